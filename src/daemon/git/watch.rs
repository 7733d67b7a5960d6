//! Looks at a repository again and again, beside the loop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::{Report, Repository};

/// A repository that is being looked at.
#[derive(Debug)]
pub struct Watch {
    wake: Arc<Notify>,
}

impl Watch {
    /// Looks now, and not only after the interval.
    pub fn look(&self) {
        self.wake.notify_one();
    }
}

/// Looks at once, and after each interval. What it accepts it takes for in force: whoever receives it puts it in force.
pub fn watch(mut repository: Repository, interval: Duration) -> (Watch, mpsc::Receiver<Report>) {
    let wake = Arc::new(Notify::new());
    let woken = Arc::clone(&wake);
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let report = tokio::select! {
                report = repository.refresh() => report,
                () = sender.closed() => return,
            };
            if sender.send(report).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep(interval) => {}
                () = woken.notified() => {}
                () = sender.closed() => return,
            }
        }
    });
    (Watch { wake }, receiver)
}
