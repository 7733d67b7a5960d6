//! Writes the state beside the loop: a slow disk delays no packet.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{AuditSince, Good, Store};
use crate::daemon::chain;

/// What could not be written is tried again after this long.
const RETRY: Duration = Duration::from_secs(60);
/// How long the end of the process waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be written.
#[derive(Debug, Clone)]
pub enum Keep {
    Policy(Box<Good>),
    Audit(AuditSince),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub what: &'static str,
    pub failure: Option<String>,
}

impl Keep {
    fn what(&self) -> &'static str {
        match self {
            Self::Policy(_) => "the last good policy",
            Self::Audit(_) => "since when services are in audit",
        }
    }
}

/// One writer, in the order of what it is given.
#[derive(Debug)]
pub struct Keeper {
    orders: mpsc::UnboundedSender<Keep>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts the writer; the receiver hears what came of each.
    pub fn start(store: Store) -> (Self, mpsc::UnboundedReceiver<Kept>) {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (outbox, results) = mpsc::unbounded_channel();
        let task = tokio::spawn(serve(store, inbox, outbox));
        (Self { orders, task }, results)
    }

    /// Has this written as soon as the disk can.
    pub fn keep(&self, order: Keep) {
        // It ends only with this value.
        let _ = self.orders.send(order);
    }

    /// Waits until everything is written, for so long.
    pub async fn finish(self) {
        drop(self.orders);
        if timeout(PATIENCE, self.task).await.is_err() {
            warn!("the state directory's disk does not answer: the last change may not be kept");
        }
    }
}

async fn serve(
    store: Store,
    mut orders: mpsc::UnboundedReceiver<Keep>,
    results: mpsc::UnboundedSender<Kept>,
) {
    let mut pending: BTreeMap<&'static str, Keep> = BTreeMap::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => drop(pending.insert(order.what(), order)),
                None => break,
            },
            () = sleep(RETRY), if !pending.is_empty() => {}
        }
        // Of several of a kind only the newest counts.
        while let Ok(order) = orders.try_recv() {
            pending.insert(order.what(), order);
        }
        for (what, order) in std::mem::take(&mut pending) {
            let (store, wanted) = (store.clone(), order.clone());
            let written = tokio::task::spawn_blocking(move || match &wanted {
                Keep::Policy(good) => store.keep(good),
                Keep::Audit(audit) => store.keep_audit(audit),
            });
            let failure = match written.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(chain(&error)),
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = &failure {
                warn!(error, "{what} cannot be kept");
                pending.insert(what, order);
            }
            // Nobody may be listening any more.
            let _ = results.send(Kept { what, failure });
        }
    }
}
