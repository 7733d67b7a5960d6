//! What is read for everybody who asks: at most one reading a second, and none while nobody asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Reading;
use super::view::{Counters, View};
use crate::daemon::flows::FlowsAnswer;
use crate::daemon::status::Status;
use crate::daemon::told::Told;

/// How old a reading of the status may be: a little less than the time between two questions of a client.
const STATUS: Duration = Duration::from_millis(950);
/// How old a copy of the flow log may be.
const FLOWS: Duration = Duration::from_millis(200);

type Read = Box<dyn Fn() -> Reading + Send + Sync>;

/// Reads for everybody.
pub(super) struct Feed {
    told: Told,
    read: Read,
    last: Mutex<Option<(Instant, Arc<Snapshot>)>>,
    flows: Mutex<Option<(Instant, Arc<FlowsAnswer>)>>,
}

/// A status with what the kernel said.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) status: Arc<Status>,
    pub(super) view: Text,
    pub(super) counters: Text,
}

/// Something as JSON. As long as it stays the same it has the same number.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) number: u64,
    pub(super) text: Arc<str>,
}

impl Text {
    fn after(before: Option<&Self>, text: String) -> Self {
        match before {
            Some(before) if *before.text == *text => before.clone(),
            before => Self {
                number: before.map_or(0, |it| it.number) + 1,
                text: text.into(),
            },
        }
    }
}

impl Feed {
    pub(super) fn new(told: Told, read: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        Self {
            told,
            read: Box::new(read),
            last: Mutex::new(None),
            flows: Mutex::new(None),
        }
    }

    /// What the daemon tells.
    pub(super) fn told(&self) -> &Told {
        &self.told
    }

    /// The status of about now.
    ///
    /// # Errors
    /// Why the kernel cannot be asked.
    pub(super) async fn snapshot(&self) -> Result<Arc<Snapshot>, String> {
        let mut last = self.last.lock().await;
        if let Some((made, snapshot)) = last.as_ref().filter(|(made, _)| made.elapsed() < STATUS) {
            let _ = made;
            return Ok(Arc::clone(snapshot));
        }
        let begun = Instant::now();
        let status = Arc::new((self.read)().await?);
        let before = last.as_ref().map(|(_, snapshot)| snapshot);
        let json = |error: serde_json::Error| format!("cannot write the status: {error}");
        let view = serde_json::to_string(&View::of(&status)).map_err(json)?;
        let counters = serde_json::to_string(&Counters::of(&status)).map_err(json)?;
        let snapshot = Arc::new(Snapshot {
            view: Text::after(before.map(|it| &it.view), view),
            counters: Text::after(before.map(|it| &it.counters), counters),
            status,
        });
        *last = Some((begun, Arc::clone(&snapshot)));
        Ok(snapshot)
    }

    /// The flow log of about now.
    pub(super) async fn flows(&self) -> Arc<FlowsAnswer> {
        let mut last = self.flows.lock().await;
        if let Some((_, flows)) = last.as_ref().filter(|(made, _)| made.elapsed() < FLOWS) {
            return Arc::clone(flows);
        }
        let flows = Arc::new(self.told.flows_after(0).await);
        *last = Some((Instant::now(), Arc::clone(&flows)));
        flows
    }
}
