//! Bridges, their ports, and the host's routes, over rtnetlink.
//!
//! Out: a [`Snapshot`] by [`Links::list`], then [`LinkEvent`]s by [`LinkWatch`]. In: the two settings that the data
//! plane needs of a bridge and of a port.

mod parse;
#[cfg(any(test, feature = "testkit"))]
mod untrusted;
#[cfg(any(test, feature = "testkit"))]
pub(super) use untrusted::read_untrusted;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkBridgePort, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use self::parse::{End, Seen, see};
use crate::net::IfName;

pub use self::watch::{LinkEvent, LinkWatch};
pub use crate::inventory::links::{Peer, Port};

/// A bridge of this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bridge {
    pub index: u32,
    pub name: IfName,
}

/// All bridges and ports, by index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    pub bridges: Vec<Bridge>,
    pub ports: Vec<Port>,
    /// The bridges that hand packets of both families to the `inet` table.
    pub calling: BTreeSet<u32>,
    /// Whether each port is isolated.
    pub isolated: BTreeMap<u32, bool>,
}

/// Whether bridged packets of each family pass through the `inet` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetfilterCalls {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl NetfilterCalls {
    fn both(self) -> bool {
        self.ipv4 && self.ipv6
    }
}

/// An answer that cannot be decoded never reaches its request: nothing may wait for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why links could not be read, watched or changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("could not open a route netlink socket")]
    Open(#[source] std::io::Error),
    #[error("could not list the host's links")]
    List(#[source] rtnetlink::Error),
    #[error("could not list the host's routes")]
    Routes(#[source] rtnetlink::Error),
    #[error("could not receive link changes")]
    Receive(#[source] std::io::Error),
    #[error("could not read interface {index}")]
    Read {
        index: u32,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("the kernel did not answer about links within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    #[error("interface {index} is not a bridge")]
    NotABridge { index: u32 },
    #[error("could not set {setting} of interface {index}")]
    Set {
        setting: &'static str,
        index: u32,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("{setting} of interface {index} was accepted but did not change")]
    WithoutEffect { setting: &'static str, index: u32 },
}

impl LinkError {
    /// Whether the interface is gone, so that there is nothing left to do.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Set { source, .. } => errno(source) == Some(nix::libc::ENODEV),
            _ => false,
        }
    }

    /// Whether the same call may well succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::List(source)
            | Self::Routes(source)
            | Self::Read { source, .. }
            | Self::Set { source, .. } => {
                matches!(
                    errno(source),
                    Some(nix::libc::EBUSY | nix::libc::EAGAIN | nix::libc::EINTR)
                )
            }
            Self::Timeout => true,
            _ => false,
        }
    }
}

async fn answer<T>(
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
    fail: impl FnOnce(rtnetlink::Error) -> LinkError,
) -> Result<T, LinkError> {
    match timeout(ANSWER_TIMEOUT, request).await {
        Ok(result) => result.map_err(fail),
        Err(_) => Err(LinkError::Timeout),
    }
}

/// The kernel's error number, where it gave one.
fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().saturating_neg()),
        _ => None,
    }
}

/// A channel to rtnetlink.
pub struct Links {
    /// One request at a time: concurrent dumps on one socket are refused with `EBUSY`.
    handle: Mutex<Handle>,
    connection: AbortHandle,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Opens the channel, in the network namespace of the calling thread and within a Tokio runtime.
    pub fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Open)?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self {
            handle: Mutex::new(handle),
            connection,
        })
    }

    /// All bridges and ports, with the ports' peers.
    pub async fn list(&self) -> Result<Snapshot, LinkError> {
        let mut snapshot = Snapshot::default();
        let messages: Vec<LinkMessage> = {
            let handle = self.handle.lock().await;
            answer(handle.link().get().execute().try_collect(), LinkError::List).await?
        };
        for message in &messages {
            match see(message) {
                Seen::Bridge(bridge) => {
                    if parse::netfilter_calls(message).is_some_and(NetfilterCalls::both) {
                        snapshot.calling.insert(bridge.index);
                    }
                    snapshot.bridges.push(bridge);
                }
                Seen::Port(port, end) => {
                    let isolated = parse::isolated(message).unwrap_or(false);
                    snapshot.isolated.insert(port.index, isolated);
                    snapshot.ports.push(Port {
                        peer: self.peer(end).await?,
                        ..port
                    });
                }
                Seen::Other(_) => {}
            }
        }
        snapshot.bridges.sort_unstable();
        snapshot.ports.sort_unstable();
        Ok(snapshot)
    }

    /// The Ethernet address of a veth's other end, asked for by the namespace's number: nothing is entered. `None`
    /// where there is no other namespace, or where the interface is on its way.
    async fn peer(&self, end: Option<End>) -> Result<Option<Peer>, LinkError> {
        let Some(End { namespace, index }) = end else {
            return Ok(None);
        };
        match self.get(index, Some(namespace)).await {
            Ok(message) => Ok(parse::address(&message).map(|mac| Peer { namespace, mac })),
            Err(LinkError::Read { source, .. }) if errno(&source).is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get(&self, index: u32, namespace: Option<i32>) -> Result<LinkMessage, LinkError> {
        let fail = |source| LinkError::Read { index, source };
        let handle = self.handle.lock().await;
        let mut request = handle.link().get().match_index(index);
        // IFLA_TARGET_NETNSID, the same number as IFLA_IF_NETNSID.
        request
            .message_mut()
            .attributes
            .extend(namespace.map(LinkAttribute::IfNetnsId));
        let mut answers = Box::pin(request.execute());
        let first = answer(answers.try_next(), fail).await?;
        first.ok_or_else(|| fail(rtnetlink::Error::RequestFailed))
    }

    /// Whether the bridge hands its packets to the `inet` table. (The host-wide setting is ORed to this by the kernel.)
    pub async fn netfilter_calls(&self, bridge: u32) -> Result<NetfilterCalls, LinkError> {
        let message = self.get(bridge, None).await?;
        parse::netfilter_calls(&message).ok_or(LinkError::NotABridge { index: bridge })
    }

    /// `ip link set dev BRIDGE type bridge nf_call_iptables 1 nf_call_ip6tables 1`
    pub async fn set_netfilter_calls(&self, bridge: u32, wanted: NetfilterCalls) -> Result<(), LinkError> {
        const SETTING: &str = "nf_call_iptables and nf_call_ip6tables";
        let data = InfoData::Bridge(vec![
            InfoBridge::NfCallIpTables(wanted.ipv4),
            InfoBridge::NfCallIp6Tables(wanted.ipv6),
        ]);
        let mut message = LinkMessageBuilder::<LinkUnspec>::default().index(bridge).build();
        let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.change(message, SETTING, bridge).await?;
        if self.netfilter_calls(bridge).await? == wanted {
            Ok(())
        } else {
            Err(LinkError::WithoutEffect {
                setting: SETTING,
                index: bridge,
            })
        }
    }

    /// `bridge link set dev PORT isolated on`: isolated ports do not reach each other.
    pub async fn set_isolated(&self, port: u32, isolated: bool) -> Result<(), LinkError> {
        let message = LinkBridgePort::new(port).isolated(isolated).build();
        self.change(message, "isolated", port).await
    }

    /// `ip link set dev PORT master BRIDGE`
    pub async fn set_bridge(&self, port: u32, bridge: u32) -> Result<(), LinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::default()
            .index(port)
            .controller(bridge)
            .build();
        self.change(message, "the bridge", port).await
    }

    /// Whether the port is isolated; `None` where it is not a bridge's port.
    pub async fn isolated(&self, port: u32) -> Result<Option<bool>, LinkError> {
        let message = self.get(port, None).await?;
        Ok(parse::isolated(&message))
    }

    async fn change(&self, message: LinkMessage, setting: &'static str, index: u32) -> Result<(), LinkError> {
        let handle = self.handle.lock().await;
        let fail = |source| LinkError::Set {
            setting,
            index,
            source,
        };
        answer(handle.link().change(message).execute(), fail).await
    }

    /// The main table's routes of both families with their outgoing interface, the default route as `/0`.
    pub async fn routes(&self) -> Result<Vec<(IpNet, Option<u32>)>, LinkError> {
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        let handle = self.handle.lock().await;
        let mut routes = Vec::new();
        for request in [v4, v6] {
            let listing = handle.route().get(request).execute().try_collect();
            let listed: Vec<RouteMessage> = answer(listing, LinkError::Routes).await?;
            routes.extend(listed.iter().filter_map(parse::main_route));
        }
        Ok(routes)
    }
}
