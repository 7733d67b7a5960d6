//! What `cofferdam audit` finds, for metrics and the page.
//!
//! In: containers as the loop knows them, a few at a time ([`look`]), and what the engine says of how they and itself are set. Out: a
//! [`Report`]. It is made on a thread of its own with a low priority, and only while somebody asks: nothing is done for an event.

pub mod look;
mod report;
mod round;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::setpriority_process;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use self::look::Look;
pub use self::report::{Draft, Found, Report, Subject};
use self::round::Auditor;
use crate::audit::Baseline;
use crate::settings::Settings;

/// After everything else of the daemon, and after whoever asks it.
const NICENESS: i32 = 10;
/// The pause after a round is so many times as long as the round took, within these limits.
const SHARE: u32 = 10;
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));

/// The latest report, for everybody who asks. Whoever does has the next one made.
#[derive(Debug, Clone, Default)]
pub struct Audited(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    report: Mutex<Arc<Report>>,
    asked: Notify,
}

impl Audited {
    /// The latest report.
    pub fn report(&self) -> Arc<Report> {
        self.0.asked.notify_one();
        Arc::clone(&self.lock())
    }

    /// Replaces it.
    pub fn put(&self, report: Report) {
        *self.lock() = Arc::new(report);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Report>> {
        self.0.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found last stays, with why there is nothing newer.
    fn failed(&self, why: String) {
        let before = Arc::clone(&self.lock());
        if before.failure.as_ref() != Some(&why) {
            warn!(reason = why, "how the host is set cannot be looked at");
            self.put(Report {
                failure: Some(why),
                ..Report::clone(&before)
            });
        }
    }
}

/// Starts the thread. The loop answers its looks.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(settings: &Settings, looks: mpsc::Sender<Look>) -> io::Result<Audited> {
    let audited = Audited::default();
    let shared = audited.clone();
    let mut auditor = Auditor::new(settings, looks);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = move || {
        // Of this thread alone.
        if let Err(error) = setpriority_process(None, NICENESS) {
            debug!(%error, "findings are made at the daemon's priority");
        }
        runtime.block_on(async move {
            loop {
                shared.0.asked.notified().await;
                let begun = Instant::now();
                match auditor.round().await {
                    Ok(report) => shared.put(report),
                    Err(why) => shared.failed(why),
                }
                let (least, most) = PAUSE;
                sleep(begun.elapsed().saturating_mul(SHARE).clamp(least, most)).await;
            }
        });
    };
    std::thread::Builder::new().name("audit".to_owned()).spawn(body)?;
    Ok(audited)
}

/// Reads a file of accepted findings.
///
/// # Errors
/// Why it cannot be used, with its name.
pub fn baseline(path: &Path) -> Result<Baseline, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read the baseline {}: {error}", path.display()))?;
    Baseline::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
