//! systemd, where it waits for us (`Type=notify`): told when the rules stand, what the state is, that the policy is read again, and
//! that the loop goes round (`WatchdogSec`). Without `NOTIFY_SOCKET` all of this does nothing.
//!
//! A thread of its own sends: where systemd takes nothing, the loop must not wait for it.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::debug;

use super::status::{State, Status};
use crate::policy::count;

/// Much longer than anything that is waited for.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// The longest text of the status that is told.
const LONGEST: usize = 300;

enum Message {
    Ready,
    Reloading,
    Stopping,
    Status(String),
    Beat,
}

/// What tells systemd.
#[derive(Debug)]
pub(super) struct Manager {
    /// `None`: nobody waits.
    sender: Option<Sender<Message>>,
    /// A beat comes at least this often, where the loop is watched.
    interval: Option<Duration>,
    beaten: Instant,
    is_ready: bool,
    status: String,
}

impl Manager {
    /// Whoever started this process says by its environment whether it waits.
    pub(super) fn start() -> io::Result<Self> {
        let mut manager = Self {
            sender: None,
            interval: None,
            beaten: Instant::now(),
            is_ready: false,
            status: String::new(),
        };
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            let (sender, receiver) = channel();
            thread::Builder::new()
                .name("systemd".to_owned())
                .spawn(move || tell(&receiver))?;
            manager.sender = Some(sender);
            // So that one that comes late is no cause yet.
            manager.interval = sd_notify::watchdog_enabled().map(|limit| limit / 3);
        }
        Ok(manager)
    }

    fn send(&self, message: Message) {
        if let Some(sender) = &self.sender {
            let _over = sender.send(message);
        }
    }

    /// Whether it is to be told yet that the rules stand.
    pub(super) fn is_waiting(&self) -> bool {
        self.sender.is_some() && !self.is_ready
    }

    /// The rules stand.
    pub(super) fn ready(&mut self) {
        self.is_ready = true;
        self.send(Message::Ready);
    }

    /// The loop goes round. Told only when it is time.
    pub(super) fn beat(&mut self) {
        if self.next_beat().is_zero() {
            self.beaten = Instant::now();
            self.send(Message::Beat);
        }
    }

    /// How long the loop may rest until then.
    pub(super) fn next_beat(&self) -> Duration {
        self.interval
            .map_or(NEVER, |interval| interval.saturating_sub(self.beaten.elapsed()))
    }

    pub(super) fn reloading(&self) {
        if self.is_ready {
            self.send(Message::Reloading);
        }
    }

    pub(super) fn reloaded(&self) {
        if self.is_ready {
            self.send(Message::Ready);
        }
    }

    pub(super) fn stopping(&self) {
        self.send(Message::Stopping);
    }

    /// One line for `systemctl status`, when it is another than before.
    pub(super) fn status(&mut self, status: &Status) {
        if self.sender.is_none() {
            return;
        }
        let line = line(status);
        if line != self.status {
            self.status.clone_from(&line);
            self.send(Message::Status(line));
        }
    }
}

fn line(status: &Status) -> String {
    let text = match (status.state, status.reasons.first()) {
        (State::Starting, None) => "starting: rules of an earlier run stand".to_owned(),
        (State::Waiting, None) => "waiting for the engine: the rules stand".to_owned(),
        (State::Enforcing, _) => {
            let containers: usize = status.services.values().map(|it| it.containers.len()).sum();
            let parts = [
                count(status.services.len(), "service"),
                count(status.edges.len(), "edge"),
                count(containers, "container"),
            ];
            format!("enforcing: {}", parts.join(", "))
        }
        (State::Degraded, None) => "degraded".to_owned(),
        (State::Starting, Some(reason)) => format!("starting: {reason}"),
        (State::Waiting, Some(reason)) => format!("waiting: {reason}"),
        (State::Degraded, Some(reason)) => format!("degraded: {reason}"),
    };
    // A line of its own in the message: a name in a reason must not begin another.
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(LONGEST).collect()
}

fn tell(messages: &Receiver<Message>) {
    while let Ok(message) = messages.recv() {
        let sent = match &message {
            Message::Ready => sd_notify::notify(&[NotifyState::Ready]),
            Message::Reloading => NotifyState::monotonic_usec_now()
                .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
            Message::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
            Message::Status(text) => sd_notify::notify(&[NotifyState::Status(text)]),
            Message::Beat => sd_notify::notify(&[NotifyState::Watchdog]),
        };
        if let Err(error) = sent {
            debug!(%error, "systemd cannot be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_stays_one_line() {
        let mut status = Status::starting();
        status.state = State::Degraded;
        status.reasons = vec![format!("name\nREADY=1\u{1b}[2J{}", "x".repeat(1000))];
        let line = line(&status);
        assert!(line.starts_with("degraded: name READY=1 [2J"), "{line}");
        assert_eq!(line.chars().count(), LONGEST);
    }

    #[test]
    fn without_anybody_who_waits_nothing_is_due() {
        let mut manager = Manager {
            sender: None,
            interval: None,
            beaten: Instant::now(),
            is_ready: false,
            status: String::new(),
        };
        assert!(!manager.is_waiting());
        assert_eq!(manager.next_beat(), NEVER);
        manager.interval = Some(Duration::from_secs(20));
        assert!(manager.next_beat() > Duration::from_secs(10));
        manager.interval = Some(Duration::ZERO);
        manager.beat();
        assert!(manager.next_beat().is_zero());
    }
}
