//! Watches for changes of nftables by anyone: each transaction of the kernel announces a new generation.
//!
//! Out: who made each generation. Whose change it is, and whether it touched our tables, is for the receiver to find.

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::mpsc;

use super::netlink::{DATAGRAM, SUBSYSTEM_NFTABLES, messages, text_attribute, u32_attribute};

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
    pub pid: u32,
    /// The process's name, at most 15 bytes.
    pub process: String,
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
        loop {
            datagram.clear();
            let received = tokio::select! {
                received = self.socket.recv(&mut datagram) => received,
                () = events.closed() => return Ok(()),
            };
            let made: Vec<_> = match received {
                Ok(_) => generations(&datagram).map(GenerationEvent::Made).collect(),
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
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

/// The generations among a datagram's messages; the others tell of single objects.
pub(super) fn generations(datagram: &[u8]) -> impl Iterator<Item = Generation> {
    const NFTA_GEN_ID: u16 = 1;
    const NFTA_GEN_PROC_PID: u16 = 2;
    const NFTA_GEN_PROC_NAME: u16 = 3;
    messages(datagram)
        .filter(|received| received.kind == NEW_GENERATION)
        .filter_map(|received| {
            let payload = received.attributes();
            Some(Generation {
                id: u32_attribute(payload, NFTA_GEN_ID)?,
                pid: u32_attribute(payload, NFTA_GEN_PROC_PID)?,
                process: text_attribute(payload, NFTA_GEN_PROC_NAME)?.to_owned(),
            })
        })
}
