//! The open connections of a server. Clients that are slow, silent or many cannot keep it from others: of too many, those
//! that have said nothing go first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

/// Connections at once.
const CLIENTS: usize = 64;
/// When there are too many: how long each is left in peace before it has asked, and after that.
const SILENT: Duration = Duration::from_millis(50);
const SLOW: Duration = Duration::from_secs(1);

/// The open connections, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Clients(VecDeque<Client>);

#[derive(Debug)]
struct Client {
    since: Instant,
    asked: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Clients {
    /// Waits until another one may come in.
    pub(super) async fn room(&mut self) {
        while !self.have_room() {
            sleep(SILENT / 10).await;
        }
    }

    /// Another one; `asked` is set once it has asked for something.
    pub(super) fn add(&mut self, asked: Arc<AtomicBool>, task: AbortHandle) {
        self.0.push_back(Client {
            since: Instant::now(),
            asked,
            task,
        });
    }

    /// Whether another one may come in. If not, the oldest one that has said nothing goes, or else the oldest of all, once
    /// each has had its time.
    fn have_room(&mut self) -> bool {
        self.0.retain(|client| !client.task.is_finished());
        if self.0.len() < CLIENTS {
            return true;
        }
        let asked = |client: &Client| client.asked.load(Ordering::Relaxed);
        let silent = self
            .0
            .iter()
            .position(|client| !asked(client) && client.since.elapsed() >= SILENT);
        let slow = || self.0.iter().position(|client| client.since.elapsed() >= SLOW);
        match silent.or_else(slow).and_then(|index| self.0.remove(index)) {
            Some(client) => {
                client.task.abort();
                true
            }
            None => false,
        }
    }
}
