//! The engine as it was last seen: containers, their endpoints, networks.
//!
//! In: what `docker` read, already in narrow types. Out: the state, and from every mutator whether anything changed.
//! Pure: no clocks, files, processes or sockets.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::net::{IfName, Mac};

/// A container's full id (64 hexadecimal digits).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub String);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

/// A network's full id (64 hexadecimal digits).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub String);

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

/// How far a container is in its life, as far as the network is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lifecycle {
    /// Created, stopped or dead: has no endpoint in the kernel.
    Stopped,
    /// Between the first endpoint's creation and the first instruction, running, paused or restarting.
    Running,
}

/// Where a container's network stack is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkMode {
    /// Its own, attached to the networks of its endpoints.
    Own,
    /// The host's: no rule of ours applies.
    Host,
    /// Another container's (`container:ID`): it shares that one's addresses.
    Shared(ContainerId),
    /// None at all.
    None,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    /// The image reference it was created from, as the user wrote it.
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub lifecycle: Lifecycle,
    pub network_mode: NetworkMode,
    /// One for each network that it is attached to, or will be at its start.
    pub endpoints: BTreeMap<NetworkId, Endpoint>,
}

/// One attachment of a container to a network. A stopped container's endpoint may have no addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    pub mac: Option<Mac>,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

impl Endpoint {
    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.ipv4
            .map(IpAddr::V4)
            .into_iter()
            .chain(self.ipv6.map(IpAddr::V6))
    }
}

/// A Docker network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub id: NetworkId,
    pub name: String,
    pub kind: NetworkKind,
    pub subnets: Vec<IpNet>,
    pub internal: bool,
    pub labels: BTreeMap<String, String>,
}

/// What carries a network's packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkKind {
    /// A Linux bridge on this host.
    Bridge(IfName),
    /// A driver whose packets pass no hook of ours, by the driver's name (`macvlan`, `ipvlan`, `overlay`, …).
    Other(String),
}
