//! Flows that were denied, audited or forged, by name, since the daemon began.

pub mod record;
mod totals;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

pub use self::record::{Direction, EndKind, FlowEnd, FlowRecord, FlowVerdict, FlowsAnswer, Missed};
pub use self::totals::{FlowSet, FlowTotals, reason};

/// The log, for those who write it and those who tell it.
#[derive(Debug, Clone)]
pub struct FlowLog(Arc<Mutex<Log>>);

#[derive(Debug)]
struct Log {
    told: FlowsAnswer,
    totals: FlowTotals,
}

impl FlowLog {
    /// An empty log that begins now.
    pub fn new(now: Timestamp) -> Self {
        let told = FlowsAnswer {
            since: now,
            last: 0,
            flows: Vec::new(),
            missed: Missed::default(),
        };
        Self(Arc::new(Mutex::new(Log {
            told,
            totals: FlowTotals::default(),
        })))
    }

    /// What has changed after this `seq`.
    pub fn after(&self, seq: u64) -> FlowsAnswer {
        let mut answer = self.lock().told.clone();
        answer.flows.retain(|flow| flow.seq > seq);
        answer
    }

    /// What was attempted in all, and what the log does not hold.
    pub fn totals(&self) -> (FlowTotals, Missed) {
        let log = self.lock();
        (log.totals.clone(), log.told.missed)
    }

    /// So many more attempts and packets of this flow, whose own numbers and times are those of the first and last one.
    pub fn put(&self, mut flow: FlowRecord) {
        let mut log = self.lock();
        log.totals.add(&flow, flow.attempts);
        log.told.last += 1;
        flow.seq = log.told.last;
        let same = |it: &FlowRecord| {
            (&it.from, &it.to, &it.protocol, it.port, it.verdict)
                == (&flow.from, &flow.to, &flow.protocol, flow.port, flow.verdict)
        };
        if let Some(index) = log.told.flows.iter().position(same) {
            let before = log.told.flows.remove(index);
            flow.attempts += before.attempts;
            flow.packets += before.packets;
            flow.first_seen = before.first_seen;
        }
        log.told.flows.push(flow);
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
