//! Server-sent events: what changed, a few times a second.
//!
//! | event | holds |
//! |---|---|
//! | `view` | who there is and which edges, whenever that changed |
//! | `counters` | the kernel's counters, whenever they changed |
//! | `flows` | flows that changed; the latest of all at first |
//! | `audit` | what voids or weakens segmentation, whenever it was looked at |
//! | `trouble` | why the kernel cannot be asked |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::feed::Feed;
use crate::daemon::flows::{FlowRecord, Missed};
use crate::daemon::posture::Report;

/// How often it is looked whether something changed.
const TICK: Duration = Duration::from_millis(500);
/// Something is said at least this often, so that a client that is gone is noticed.
const ALIVE: Duration = Duration::from_secs(5);
/// How soon a client comes again.
const RETRY: Duration = Duration::from_secs(1);
/// The most flows of one event; older ones are left out.
const FLOWS: usize = 1000;

/// What one client was told last.
struct Client {
    feed: Arc<Feed>,
    tick: Interval,
    view: u64,
    counters: u64,
    /// When the flow log began, and what was told of it.
    flows: Option<(Timestamp, u64, Missed)>,
    trouble: Option<String>,
    audit: Option<Arc<Report>>,
}

/// What is told of the flow log.
#[derive(Serialize)]
struct Flows<'a> {
    since: Timestamp,
    missed: Missed,
    flows: &'a [FlowRecord],
}

pub(super) async fn stream(State(feed): State<Arc<Feed>>) -> impl IntoResponse {
    Sse::new(changes(feed)).keep_alive(KeepAlive::new().interval(ALIVE))
}

fn changes(feed: Arc<Feed>) -> impl Stream<Item = Result<Event, Infallible>> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let client = Client {
        feed,
        tick,
        view: 0,
        counters: 0,
        flows: None,
        trouble: None,
        audit: None,
    };
    let hello = stream::once(async { Event::default().retry(RETRY) });
    let changes = stream::unfold(client, |mut client| async move {
        client.tick.tick().await;
        let events = client.events().await;
        Some((stream::iter(events), client))
    });
    hello.chain(changes.flatten()).map(Ok)
}

impl Client {
    async fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        match self.feed.snapshot().await {
            Ok(snapshot) => {
                self.trouble = None;
                if self.view != snapshot.view.number {
                    self.view = snapshot.view.number;
                    events.push(Event::default().event("view").data(&*snapshot.view.text));
                }
                if self.counters != snapshot.counters.number {
                    self.counters = snapshot.counters.number;
                    events.push(Event::default().event("counters").data(&*snapshot.counters.text));
                }
            }
            Err(trouble) => {
                if self.trouble.as_ref() != Some(&trouble) {
                    let line = trouble.replace(['\r', '\n'], " ");
                    events.push(Event::default().event("trouble").data(line));
                    self.trouble = Some(trouble);
                    // Told anew when it is over.
                    self.view = 0;
                }
            }
        }
        let report = self.feed.told().audited.report();
        if self.audit.as_ref().is_none_or(|told| !Arc::ptr_eq(told, &report)) {
            if let Ok(text) = serde_json::to_string(&*report) {
                events.push(Event::default().event("audit").data(text));
            }
            self.audit = Some(report);
        }
        let log = self.feed.flows().await;
        let told = (log.since, log.last, log.missed);
        if self.flows != Some(told) {
            let same_log = self.flows.filter(|(since, ..)| *since == log.since);
            let after = same_log.map_or(0, |(_, last, _)| last);
            let new = log.flows.partition_point(|flow| flow.seq <= after);
            let new = new.max(log.flows.len().saturating_sub(FLOWS));
            self.flows = Some(told);
            let flows = Flows {
                since: log.since,
                missed: log.missed,
                flows: log.flows.get(new..).unwrap_or_default(),
            };
            // Records are text and numbers: that cannot fail.
            if let Ok(text) = serde_json::to_string(&flows) {
                events.push(Event::default().event("flows").data(text));
            }
        }
        events
    }
}
