//! What is told of a flow that was denied, audited, or not what it claimed to be: the words of the control socket, of
//! `flows --json` and of the logs.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A flow: everything that one end tried at one port of the other, added up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowRecord {
    /// Grows with every change of any record: what is greater than the last one seen is new.
    pub seq: u64,
    pub verdict: FlowVerdict,
    pub direction: Direction,
    pub from: FlowEnd,
    pub to: FlowEnd,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, `arp`, or an IP protocol's or EtherType's number.
    pub protocol: String,
    /// The port that was dialled. `None`: the protocol has none, or there were too many to be told apart (`many_ports`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// This record stands for every further port of these two ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub many_ports: bool,
    /// In words: the edge that is missing, or what was forged.
    pub reason: String,
    /// Connections that were tried: a packet that is sent again is no new one.
    pub attempts: u64,
    pub packets: u64,
    #[schemars(with = "String")]
    pub first_seen: Timestamp,
    #[schemars(with = "String")]
    pub last_seen: Timestamp,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FlowVerdict {
    /// No edge permits it.
    Denied,
    /// No edge permits it; it passed, since its managed ends are in audit.
    Audited,
    /// A frame whose port, Ethernet address and address are not bound together.
    Identity,
}

/// Between whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From a container to a container.
    Internal,
    /// From elsewhere to a container.
    Inbound,
    /// From a container to elsewhere.
    Outbound,
}

/// One end of a flow, as it was at the time of the packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct FlowEnd {
    pub kind: EndKind,
    /// `segment/service`, each that the container belongs to.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub services: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

/// What an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EndKind {
    /// A container of services.
    Service,
    /// A container that no service selects.
    Unmanaged,
    /// A container that services of two segments claim, or that was cut from guarded networks.
    Closed,
    Host,
    /// An address that is no container's and not the host's.
    World,
    /// An address of a guarded network that nobody is known to have.
    Unknown,
}

impl fmt::Display for FlowEnd {
    /// `shop/web (web-2)`, `web-2`, `world (198.51.100.7)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = self.services.iter().map(String::as_str).collect::<Vec<_>>();
        let address = self.address.map(|it| it.to_string());
        let (name, detail) = match self.kind {
            EndKind::Host => ("host".to_owned(), address),
            EndKind::World => ("world".to_owned(), address),
            EndKind::Unknown => ("unknown".to_owned(), address),
            EndKind::Service | EndKind::Unmanaged | EndKind::Closed => {
                let container = self.container.clone().or(address);
                match services.is_empty() {
                    true => (container.unwrap_or_default(), None),
                    false => (services.join("+"), container),
                }
            }
        };
        f.write_str(&name)?;
        detail.map_or(Ok(()), |detail| write!(f, " ({detail})"))
    }
}

impl FlowRecord {
    /// What was dialled: `shop/db:5432/tcp`, `shop/db icmp type 8`, `world (198.51.100.7):443/tcp`.
    pub fn target(&self) -> String {
        let to = match self.to.kind {
            EndKind::Service => self.to.services.iter().cloned().collect::<Vec<_>>().join("+"),
            _ => self.to.to_string(),
        };
        match (self.port, self.icmp_type) {
            (Some(port), _) => format!("{to}:{port}/{}", self.protocol),
            (None, Some(kind)) => format!("{to} {} type {kind}", self.protocol),
            (None, None) if self.many_ports => format!("{to}:*/{}", self.protocol),
            (None, None) => format!("{to} {}", self.protocol),
        }
    }
}

impl fmt::Display for FlowRecord {
    /// `shop/web (web-2) -> shop/db:5432/tcp denied: no edge from shop/web to shop/db`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            FlowVerdict::Denied => "denied",
            FlowVerdict::Audited => "audited",
            FlowVerdict::Identity => "dropped as forged",
        };
        write!(f, "{} -> {} {verdict}: {}", self.from, self.target(), self.reason)
    }
}

impl fmt::Display for FlowVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Denied => "denied",
            Self::Audited => "audited",
            Self::Identity => "identity",
        })
    }
}

/// The answer to [`Request::Flows`](crate::daemon::control::Request::Flows).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowsAnswer {
    /// When this log began: another one, and `seq` counts anew.
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// The greatest `seq` there is; ask for what comes after it.
    pub last: u64,
    /// In the order of their last change, the oldest first.
    pub flows: Vec<FlowRecord>,
    pub missed: Missed,
}

/// What the log does not hold, since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missed {
    /// Packets beyond the kernel's rate for one end: counted, not looked at.
    pub unlogged_packets: u64,
    /// Packets that the kernel logged and that were not read in time.
    pub lost_packets: u64,
    /// Records that made room for others.
    pub forgotten_flows: u64,
}
