//! Flows that were denied, audited or forged, by name, since the daemon began.

pub mod record;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

pub use self::record::{Direction, EndKind, FlowEnd, FlowRecord, FlowVerdict, FlowsAnswer, Missed};

/// The log, for those who write it and those who tell it.
#[derive(Debug, Clone)]
pub struct FlowLog(Arc<Mutex<FlowsAnswer>>);

impl FlowLog {
    /// An empty log that begins now.
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(FlowsAnswer {
            since: now,
            last: 0,
            flows: Vec::new(),
            missed: Missed::default(),
        })))
    }

    /// What has changed after this `seq`.
    pub fn after(&self, seq: u64) -> FlowsAnswer {
        let mut answer = self.lock().clone();
        answer.flows.retain(|flow| flow.seq > seq);
        answer
    }

    fn lock(&self) -> MutexGuard<'_, FlowsAnswer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
