//! Edges' use since the daemon began: the kernel's counters added up over every replacement of the tables, and when each of
//! them was last seen to grow.
//!
//! The counters are read whenever somebody asks, and by a slow timer between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::status::Status;
use crate::kernel::elements::{Counter, Elements, ElementsError};
use crate::plan::ruleset::CounterName;

/// An edge's last use is known to within this.
pub const PRECISION: Duration = Duration::from_secs(30);

/// What is known of every counter.
#[derive(Debug, Clone, Default)]
pub struct Usage(Arc<Mutex<BTreeMap<CounterName, Use>>>);

#[derive(Debug, Clone, Copy, Default)]
struct Use {
    total: Counter,
    /// As the kernel said last.
    last: Counter,
    grew: Option<Timestamp>,
}

impl Usage {
    /// Takes what the kernel says now. A counter that shrank was made anew.
    pub fn observe(&self, counters: &BTreeMap<CounterName, Counter>, now: Timestamp) {
        let mut known = self.lock();
        known.retain(|name, _| counters.contains_key(name));
        for (name, counter) in counters {
            let of = known.entry(name.clone()).or_default();
            let since = |now: u64, last: u64| if now < last { now } else { now - last };
            let packets = since(counter.packets, of.last.packets);
            of.total.packets += packets;
            of.total.bytes += since(counter.bytes, of.last.bytes);
            of.last = *counter;
            if packets > 0 {
                of.grew = Some(now);
            }
        }
    }

    /// Adds each edge's use to the status.
    pub fn fill(&self, status: &mut Status) {
        let known = self.lock();
        for edge in &mut status.edges {
            let of = known.get(&CounterName::from(edge.counter.as_str()));
            edge.packets = of.map(|it| it.total.packets);
            edge.bytes = of.map(|it| it.total.bytes);
            edge.last_used = of.and_then(|it| it.grew).map(|it| it.to_string());
        }
    }

    /// Reads the counters again and again, for as long as the process runs.
    pub async fn keep(self) {
        let mut tick = interval(PRECISION);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let usage = self.clone();
            let read = move || {
                let counters = Elements::open()?.counters()?;
                usage.observe(&counters, Timestamp::now());
                Ok::<_, ElementsError>(())
            };
            if let Ok(Err(error)) = tokio::task::spawn_blocking(read).await {
                debug!(%error, "the edges' counters could not be read");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<CounterName, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::EdgeStatus;

    #[test]
    fn hits_outlive_the_tables_and_the_last_use_is_when_they_grew() {
        let usage = Usage::default();
        let name = CounterName::from("e_1");
        let at = |second| Timestamp::from_second(second).unwrap();
        let observe = |packets, second| {
            let counter = Counter {
                packets,
                bytes: 60 * packets,
            };
            usage.observe(&BTreeMap::from([(name.clone(), counter)]), at(second));
        };
        let mut status = Status::starting();
        status.edges = vec![EdgeStatus {
            counter: "e_1".to_owned(),
            ..EdgeStatus::default()
        }];
        usage.fill(&mut status);
        assert_eq!(status.edges[0].packets, None, "not read yet");
        for (packets, second) in [(0, 1), (5, 2), (5, 3), (2, 4), (2, 5)] {
            observe(packets, second);
        }
        usage.fill(&mut status);
        let edge = &status.edges[0];
        assert_eq!((edge.packets, edge.bytes), (Some(7), Some(420)));
        assert_eq!(edge.last_used.as_deref(), Some("1970-01-01T00:00:04Z"));
        // An edge that is gone and comes back begins anew.
        usage.observe(&BTreeMap::new(), at(6));
        observe(0, 7);
        usage.fill(&mut status);
        assert_eq!(
            (status.edges[0].packets, &status.edges[0].last_used),
            (Some(0), &None)
        );
    }
}
