//! Follows bridges and ports as they come and go.
//!
//! A container's port must be known before the container's first instruction: each message of a port leads to one
//! question (whose end is on the other side?) and, if the answer is new, to one event.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::parse::{self, Seen, see};
use super::{Bridge, LinkError, Links, NetfilterCalls, Port};

/// `RTNLGRP_LINK`
const GROUP: u32 = 1;
/// A link message takes about 2 KiB; a thousand containers may start at once.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;
const DATAGRAM: usize = 64 * 1024;

/// A change of bridges or ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// New, or renamed.
    Bridge(Bridge),
    BridgeGone(u32),
    /// New, or anything of it changed.
    Port(Port),
    /// Left its bridge, or gone altogether; also told of an index that was never a port.
    PortGone(u32),
    /// Whether a bridge hands packets of both families to the `inet` table: told at first, and when it changes.
    Calls {
        bridge: u32,
        calls: bool,
    },
    /// Whether a port is isolated: told at first, and when it changes.
    Isolated {
        port: u32,
        isolated: bool,
    },
    /// Changes were lost: list everything again.
    Resync,
}

/// A subscription; it holds what comes from [`LinkWatch::open`] on, so that a listing made afterwards and the events
/// leave no gap.
pub struct LinkWatch {
    socket: TokioSocket,
    links: Links,
    bridges: BTreeMap<u32, Bridge>,
    ports: BTreeMap<u32, Port>,
    calling: BTreeMap<u32, bool>,
    isolated: BTreeMap<u32, bool>,
}

impl fmt::Debug for LinkWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkWatch")
            .field("bridges", &self.bridges)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// The receiver of the events is gone.
struct Closed;

impl LinkWatch {
    /// Subscribes, in the network namespace of the calling thread and within a Tokio runtime.
    pub fn open() -> Result<Self, LinkError> {
        Ok(Self {
            socket: subscribe().map_err(LinkError::Open)?,
            // A channel of its own: a long listing elsewhere must not delay a container's start.
            links: Links::open()?,
            bridges: BTreeMap::new(),
            ports: BTreeMap::new(),
            calling: BTreeMap::new(),
            isolated: BTreeMap::new(),
        })
    }

    /// Sends every change until the receiver is gone. A receiver whose channel is full loses changes, and is told so
    /// by [`LinkEvent::Resync`].
    pub async fn run(mut self, events: mpsc::Sender<LinkEvent>) -> Result<(), LinkError> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        loop {
            datagram.clear();
            let received = tokio::select! {
                received = self.socket.recv(&mut datagram) => received,
                () = events.closed() => return Ok(()),
            };
            let changes = match received {
                Ok(_) => self.changes(&datagram).await?,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => vec![LinkEvent::Resync],
                Err(error) => return Err(LinkError::Receive(error)),
            };
            for change in changes {
                if let Err(Closed) = self.send(&events, change).await {
                    return Ok(());
                }
            }
        }
    }

    async fn send(&mut self, events: &mpsc::Sender<LinkEvent>, change: LinkEvent) -> Result<(), Closed> {
        if change == LinkEvent::Resync {
            return self.resync(events).await;
        }
        match events.try_send(change) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(Closed),
            Err(TrySendError::Full(_)) => {
                tracing::warn!("link changes come faster than they are handled: listing again");
                self.resync(events).await
            }
        }
    }

    /// What was known is no longer sure: everything is told afresh.
    async fn resync(&mut self, events: &mpsc::Sender<LinkEvent>) -> Result<(), Closed> {
        self.bridges.clear();
        self.ports.clear();
        self.calling.clear();
        self.isolated.clear();
        events.send(LinkEvent::Resync).await.map_err(|_| Closed)
    }

    async fn changes(&mut self, datagram: &[u8]) -> Result<Vec<LinkEvent>, LinkError> {
        let mut changes = Vec::new();
        for message in route_messages(datagram) {
            changes.extend(match message {
                RouteNetlinkMessage::NewLink(link) => self.appeared(&link).await?,
                RouteNetlinkMessage::DelLink(link) => self.disappeared(&link).into_iter().collect(),
                _ => Vec::new(),
            });
        }
        Ok(changes)
    }

    async fn appeared(&mut self, link: &LinkMessage) -> Result<Vec<LinkEvent>, LinkError> {
        let index = link.header.index;
        // The bridge's own view of its port: a port that comes is told of by a second message, of the usual kind, but a
        // setting that changes only here.
        if link.header.interface_family == AddressFamily::Bridge {
            return Ok(parse::isolated_by_bridge(link)
                .and_then(|isolated| self.isolated(index, isolated))
                .into_iter()
                .collect());
        }
        let mut events = Vec::new();
        match see(link) {
            Seen::Bridge(bridge) => {
                if self.bridges.insert(index, bridge.clone()).as_ref() != Some(&bridge) {
                    events.push(LinkEvent::Bridge(bridge));
                }
                let calls = parse::netfilter_calls(link).is_some_and(NetfilterCalls::both);
                if self.calling.insert(index, calls) != Some(calls) {
                    events.push(LinkEvent::Calls { bridge: index, calls });
                }
            }
            Seen::Port(port, end) => {
                let port = Port {
                    peer: self.links.peer(end).await?,
                    ..port
                };
                if self.ports.insert(index, port.clone()).as_ref() != Some(&port) {
                    events.push(LinkEvent::Port(port));
                }
                events.extend(parse::isolated(link).and_then(|isolated| self.isolated(index, isolated)));
            }
            Seen::Other(index) => {
                self.isolated.remove(&index);
                events.extend(self.ports.remove(&index).map(|_| LinkEvent::PortGone(index)));
            }
        }
        Ok(events)
    }

    fn isolated(&mut self, port: u32, isolated: bool) -> Option<LinkEvent> {
        let news = self.isolated.insert(port, isolated) != Some(isolated);
        news.then_some(LinkEvent::Isolated { port, isolated })
    }

    fn disappeared(&mut self, link: &LinkMessage) -> Option<LinkEvent> {
        let index = link.header.index;
        let known = self.ports.remove(&index).is_some();
        self.isolated.remove(&index);
        self.calling.remove(&index);
        // A deletion in the bridge's family says that the port left, though the interface may live on.
        if known || link.header.interface_family == AddressFamily::Bridge {
            return Some(LinkEvent::PortGone(index));
        }
        if self.bridges.remove(&index).is_some() || parse::is_bridge(link) {
            return Some(LinkEvent::BridgeGone(index));
        }
        None
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind_auto()?;
    setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    socket.socket_mut().add_membership(GROUP)?;
    Ok(socket)
}

/// The messages of a datagram; one that cannot be read is passed over.
pub(super) fn route_messages(datagram: &[u8]) -> impl Iterator<Item = RouteNetlinkMessage> {
    let mut rest = datagram;
    let whole = std::iter::from_fn(move || {
        let length = usize::try_from(NetlinkBuffer::new_checked(rest).ok()?.length()).ok()?;
        let (message, after) = rest.split_at_checked(length)?;
        rest = after
            .get(length.next_multiple_of(4) - length..)
            .unwrap_or_default();
        Some(message)
    });
    whole.filter_map(
        |bytes| match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
            Ok(NetlinkMessage {
                payload: NetlinkPayload::InnerMessage(message),
                ..
            }) => Some(message),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "a link message that cannot be read");
                None
            }
        },
    )
}
