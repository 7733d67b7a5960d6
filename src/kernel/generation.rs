//! Watches for changes of nftables by anyone: each transaction of the kernel announces a new generation.
//!
//! Out: who made each generation, and what it did to our tables, from the announcements of single objects that come before
//! its own. Whether it was a transaction of ours is for the receiver to find.

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::mpsc;

use super::netlink::{DATAGRAM, Received, SUBSYSTEM_NFTABLES, messages, text_attribute, u32_attribute};
use crate::plan::ruleset::TABLE;

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
/// `NFT_MSG_NEWGEN`
const NEW_GENERATION: u16 = (SUBSYSTEM_NFTABLES << 8) | 15;
/// Every element of every transaction is announced too.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    pub id: u32,
    /// The process that made it.
    /// The thread that made it, by its number in the host's first process namespace.
    pub pid: u32,
    /// The thread's name, at most 15 bytes.
    pub process: String,
    /// The netlink port that it came through: a socket's own number, by which a program knows its own transactions.
    pub port: u32,
    /// What it did to our tables; `None`: nothing.
    pub touched: Option<Touched>,
}

/// What a transaction did to our tables, as it is told to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    Elements,
    Objects,
    Rules,
    Chains,
    Tables,
}

impl Touched {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Elements => "elements",
            Self::Objects => "sets or counters",
            Self::Rules => "rules",
            Self::Chains => "chains",
            Self::Tables => "tables",
        }
    }
}

/// What is seen of the transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationEvent {
    Made(Generation),
    /// Announcements were lost: anything may have changed.
    Overrun,
}

/// Why the watch is not possible.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error("could not subscribe to the changes of nftables")]
    Subscribe(#[source] io::Error),
    #[error("could not receive the changes of nftables")]
    Receive(#[source] io::Error),
}

/// A subscription; it holds what comes from [`GenerationWatch::open`] on.
pub struct GenerationWatch {
    socket: TokioSocket,
}

impl std::fmt::Debug for GenerationWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerationWatch").finish_non_exhaustive()
    }
}

impl GenerationWatch {
    /// Subscribes, in the network namespace of the calling thread and within a Tokio runtime.
    pub fn open() -> Result<Self, GenerationError> {
        subscribe()
            .map(|socket| Self { socket })
            .map_err(GenerationError::Subscribe)
    }

    /// Sends every generation until the receiver is gone. A slow receiver fills the socket's buffer, and then hears
    /// of an overrun.
    pub async fn run(self, events: mpsc::Sender<GenerationEvent>) -> Result<(), GenerationError> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        let mut reading = Reading::default();
        loop {
            datagram.clear();
            let received = tokio::select! {
                received = self.socket.recv(&mut datagram) => received,
                () = events.closed() => return Ok(()),
            };
            let made: Vec<_> = match received {
                Ok(_) => messages(&datagram)
                    .filter_map(|received| reading.take(received))
                    .map(GenerationEvent::Made)
                    .collect(),
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                    reading = Reading::default();
                    vec![GenerationEvent::Overrun]
                }
                Err(error) => return Err(GenerationError::Receive(error)),
            };
            for event in made {
                if events.send(event).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    socket.socket_mut().add_membership(GROUP)?;
    Ok(socket)
}

/// What was announced of the transaction whose own announcement is still to come.
#[derive(Debug, Default)]
struct Reading {
    port: u32,
    touched: Option<Touched>,
}

impl Reading {
    /// Takes the next announcement; a generation ends a transaction.
    fn take(&mut self, received: Received<'_>) -> Option<Generation> {
        const NFTA_GEN_ID: u16 = 1;
        const NFTA_GEN_PROC_PID: u16 = 2;
        const NFTA_GEN_PROC_NAME: u16 = 3;
        if received.port != self.port {
            *self = Self {
                port: received.port,
                touched: None,
            };
        }
        if received.kind != NEW_GENERATION {
            self.touched = self.touched.max(touched(&received));
            return None;
        }
        let payload = received.attributes();
        let touched = self.touched.take();
        Some(Generation {
            id: u32_attribute(payload, NFTA_GEN_ID)?,
            pid: u32_attribute(payload, NFTA_GEN_PROC_PID)?,
            process: text_attribute(payload, NFTA_GEN_PROC_NAME)?.to_owned(),
            port: received.port,
            touched,
        })
    }
}

/// The generations among the messages of one datagram.
#[cfg(any(test, feature = "testkit"))]
pub(super) fn generations(datagram: &[u8]) -> impl Iterator<Item = Generation> {
    let mut reading = Reading::default();
    messages(datagram).filter_map(move |received| reading.take(received))
}

/// What an announced object is of our tables. Its table's name is the first attribute of every kind.
fn touched(received: &Received<'_>) -> Option<Touched> {
    const NAME_OF_TABLE: u16 = 1;
    const INET: u8 = 1;
    const BRIDGE: u8 = 7;
    if !matches!(received.family(), INET | BRIDGE) {
        return None;
    }
    let kind = match received.kind.checked_sub(SUBSYSTEM_NFTABLES << 8)? {
        0 | 2 => Touched::Tables,
        3 | 5 => Touched::Chains,
        6 | 8 => Touched::Rules,
        12 | 14 => Touched::Elements,
        9 | 11 | 18 | 20 | 22 | 24 => Touched::Objects,
        _ => return None,
    };
    text_attribute(received.attributes(), NAME_OF_TABLE)
        .is_some_and(|table| table == TABLE)
        .then_some(kind)
}
