//! Flows as log lines, for whoever collects the daemon's log: a line when a flow is first seen, and one a minute while it
//! goes on. Names after OpenTelemetry's conventions where there are such.

use std::time::{Duration, Instant};

use tracing::{Level, event, warn};

use super::record::{FlowRecord, FlowVerdict};

/// Lines at once, and how long it takes until as many may be written again.
const LINES: u32 = 100;
const REFILL: Duration = Duration::from_secs(10);

/// What was written lately.
#[derive(Debug, Default)]
pub(super) struct Lines {
    since: Option<Instant>,
    written: u32,
    withheld: u64,
}

impl Lines {
    /// Writes a line for the record, unless there were too many.
    pub(super) fn tell(&mut self, record: &FlowRecord, now: Instant) {
        self.flush(now);
        self.since.get_or_insert(now);
        if self.written >= LINES {
            self.withheld += 1;
            return;
        }
        self.written += 1;
        write(record);
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
