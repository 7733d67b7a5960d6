//! Changes by others of what is ours: noticed, put back, counted. And the two watches that notice them, which never end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::status::Drift;
use crate::kernel::generation::{GenerationEvent, GenerationWatch};
use crate::kernel::links::{LinkEvent, LinkWatch};
use crate::plan::LinkStep;

/// A watch that ended is opened again after this long.
const REOPEN: Duration = Duration::from_millis(200);
/// More often than this within [`FIGHT_WINDOW`], and somebody fights with us over the tables.
const FIGHT: usize = 20;
const FIGHT_WINDOW: Duration = Duration::from_secs(10);
/// How long each repair of a fight waits, so that it does not take a whole processor.
const FIGHT_PAUSE: Duration = Duration::from_millis(200);

/// What others changed and what became of it.
#[derive(Debug, Default)]
pub struct Repairs {
    /// How often something was put back.
    pub count: u64,
    pub last: Option<Drift>,
    /// Since when our tables are not as they were left.
    tables: Option<Instant>,
    /// Bridges and ports whose settings are not as they were left.
    links: BTreeSet<u32>,
    noticed: Option<Instant>,
    recent: Vec<Instant>,
}

impl Repairs {
    /// Others changed our tables. Returns how long the repair is to wait: usually not at all.
    pub fn tables_changed(&mut self, what: &str, culprit: Option<(&str, u32)>) -> Duration {
        let now = Instant::now();
        self.notice(format!("our {what}"), culprit);
        self.tables = Some(now);
        self.recent
            .retain(|earlier| now.duration_since(*earlier) < FIGHT_WINDOW);
        self.recent.push(now);
        if self.recent.len() > FIGHT {
            FIGHT_PAUSE
        } else {
            Duration::ZERO
        }
    }

    /// Others took away a setting that a bridge or port must have, or gave it back.
    pub fn link_observed(&mut self, index: u32, setting: &str, lost: bool) {
        if !lost {
            self.links.remove(&index);
        } else if self.links.insert(index) {
            self.notice(format!("{setting} of interface {index}"), None);
        }
    }

    /// A bridge or port is gone: there is nothing to put back.
    pub fn link_gone(&mut self, index: u32) {
        self.links.remove(&index);
    }

    fn notice(&mut self, what: String, culprit: Option<(&str, u32)>) {
        let (process, pid) = culprit.unzip();
        let drift = Drift {
            at: Timestamp::now().to_string(),
            what,
            process: process.map(str::to_owned),
            pid,
            repaired_us: None,
        };
        warn!(
            what = drift.what,
            culprit = process.unwrap_or("unknown"),
            pid,
            "changed by others: putting it back"
        );
        self.last = Some(drift);
        self.noticed = Some(Instant::now());
    }

    /// What is not put back yet.
    pub fn pending(&self) -> Option<String> {
        let pending = self.tables.is_some() || !self.links.is_empty();
        self.last
            .as_ref()
            .filter(|_| pending)
            .map(|drift| format!("not put back yet: {drift}"))
    }

    /// A pass succeeded: the tables are as they must be.
    pub fn pass_done(&mut self) {
        if self.tables.take().is_some() {
            self.repaired();
        }
    }

    /// A step on a bridge or port succeeded.
    pub fn link_set(&mut self, step: LinkStep) {
        // Only now it is certain that the port was not on its way out.
        if let LinkStep::Return { port, .. } = step {
            self.link_observed(port, "the bridge", true);
        }
        if self.links.remove(&step.interface()) {
            self.repaired();
        }
    }

    fn repaired(&mut self) {
        self.count += 1;
        let elapsed = self.noticed.map_or(0, |at| {
            u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX)
        });
        info!(
            elapsed_us = elapsed,
            repairs = self.count,
            "put back what others had changed"
        );
        if let Some(drift) = &mut self.last {
            drift.repaired_us = Some(elapsed);
        }
    }
}

/// Follows bridges and ports for as long as the receiver is there: a watch that ends is opened again, and everything is
/// listed.
pub async fn watch_links(watch: LinkWatch, events: mpsc::Sender<LinkEvent>) {
    let mut next = Some(watch);
    loop {
        if let Some(watch) = next.take() {
            match watch.run(events.clone()).await {
                Ok(()) => return,
                Err(error) => error!(%error, "the watch over bridges and ports ended: opening it again"),
            }
        }
        sleep(REOPEN).await;
        match LinkWatch::open() {
            Ok(watch) => {
                next = Some(watch);
                if events.send(LinkEvent::Resync).await.is_err() {
                    return;
                }
            }
            Err(error) => error!(%error, "bridges and ports cannot be watched"),
        }
    }
}

/// As [`watch_links`], for the transactions of nftables.
pub async fn watch_generations(watch: GenerationWatch, events: mpsc::Sender<GenerationEvent>) {
    let mut next = Some(watch);
    loop {
        if let Some(watch) = next.take() {
            match watch.run(events.clone()).await {
                Ok(()) => return,
                Err(error) => error!(%error, "the watch over nftables ended: opening it again"),
            }
        }
        sleep(REOPEN).await;
        match GenerationWatch::open() {
            Ok(watch) => {
                next = Some(watch);
                if events.send(GenerationEvent::Overrun).await.is_err() {
                    return;
                }
            }
            Err(error) => error!(%error, "nftables cannot be watched"),
        }
    }
}
