//! Flows as log lines, for whoever collects the daemon's log: a line when a flow is first seen, and one a minute while it
//! goes on. Names after OpenTelemetry's conventions where there are such.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{Level, event, warn};

use super::record::{EndKind, FlowRecord, FlowVerdict};

/// Lines at once in all and for each sender, and how long it takes until as many may be written again.
const LINES: u32 = 200;
const EACH: u32 = 10;
const REFILL: Duration = Duration::from_secs(10);

/// What was written lately.
#[derive(Debug, Default)]
pub(super) struct Lines {
    since: Option<Instant>,
    written: u32,
    /// By sender: a scan takes nobody else's lines.
    senders: BTreeMap<(EndKind, Option<String>), u32>,
    withheld: u64,
}

impl Lines {
    /// Writes a line for the record, unless there were too many.
    pub(super) fn tell(&mut self, record: &FlowRecord, now: Instant) {
        self.flush(now);
        self.since.get_or_insert(now);
        if !self.has_room(record) {
            self.withheld += 1;
            return;
        }
        self.written += 1;
        write(record);
    }

    fn has_room(&mut self, record: &FlowRecord) -> bool {
        if self.written >= LINES {
            return false;
        }
        let sender = (record.from.kind, record.from.container_id.clone());
        let written = self.senders.entry(sender).or_default();
        *written += 1;
        *written <= EACH
    }

    /// Says how many were withheld, when more may be written again.
    pub(super) fn flush(&mut self, now: Instant) {
        let over = self
            .since
            .is_some_and(|since| now.saturating_duration_since(since) >= REFILL);
        if !over {
            return;
        }
        if self.withheld > 0 {
            let flows = self.withheld;
            warn!(
                flows,
                "flows without a line of their own: `cofferdam flows` tells them"
            );
        }
        *self = Self::default();
    }
}

fn write(record: &FlowRecord) {
    let (from, to) = (&record.from, &record.to);
    let services = |end: &super::FlowEnd| end.services.iter().cloned().collect::<Vec<_>>().join(",");
    let address = |end: &super::FlowEnd| end.address.map(|it| it.to_string());
    macro_rules! line {
        ($level:expr) => {
            event!(
                target: "cofferdam::flows",
                $level,
                source.address = address(from),
                destination.address = address(to),
                destination.port = record.port,
                network.transport = record.protocol,
                cofferdam.verdict = %record.verdict,
                cofferdam.source.service = services(from),
                cofferdam.source.container = from.container.as_deref(),
                cofferdam.destination.service = services(to),
                cofferdam.destination.container = to.container.as_deref(),
                cofferdam.attempts = record.attempts,
                cofferdam.packets = record.packets,
                "{record}"
            )
        };
    }
    match record.verdict {
        FlowVerdict::Denied | FlowVerdict::Audited => line!(Level::INFO),
        FlowVerdict::Identity => line!(Level::WARN),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::record::{Direction, FlowEnd};
    use super::*;

    fn record(sender: &str) -> FlowRecord {
        let end = |name: &str| FlowEnd {
            kind: EndKind::Unmanaged,
            services: Default::default(),
            container: Some(name.to_owned()),
            container_id: Some(name.to_owned()),
            address: None,
        };
        FlowRecord {
            seq: 1,
            verdict: FlowVerdict::Denied,
            direction: Direction::Internal,
            from: end(sender),
            to: end("server"),
            protocol: "tcp".to_owned(),
            port: Some(1),
            icmp_type: None,
            many_ports: false,
            reason: String::new(),
            attempts: 1,
            packets: 1,
            first_seen: Timestamp::UNIX_EPOCH,
            last_seen: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_scan_takes_nobody_elses_lines() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        for _ in 0..300 {
            lines.tell(&record("scanner"), now);
        }
        assert_eq!((lines.written, lines.withheld), (EACH, 300 - u64::from(EACH)));
        lines.tell(&record("web"), now);
        assert_eq!(lines.written, EACH + 1);
        // After a while everybody may write again.
        lines.tell(&record("scanner"), now + REFILL);
        assert_eq!((lines.written, lines.withheld), (1, 0));
    }
}
