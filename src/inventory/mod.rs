//! The engine as it was last seen: containers, their endpoints, networks.
//!
//! In: what `docker` read, already in narrow types. Out: the state, and from every mutator whether anything changed.
//! Pure: no clocks, files, processes or sockets.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use litemap::LiteMap;

use crate::net::{IfName, Mac, Transport};

mod index;
pub mod links;
mod posture;
mod powers;
mod state;

pub use index::Attached;
pub use posture::{
    Access, Capabilities, EnginePosture, EngineSeccomp, HostNamespace, Posture, Security, Users,
};
pub use powers::{Capability, Facts, Power};
pub use state::{Changes, Inventory, Listing};

/// The label that every network of ours carries, with the value `true`.
pub const MANAGED_LABEL: &str = "io.cofferdam.managed";

/// The label that names the service whose network it is, as `segment/service`.
pub const SERVICE_LABEL: &str = "io.cofferdam.service";

/// A container's full id (64 hexadecimal digits). It stands in many places, so that a clone shares the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContainerId(pub Arc<str>);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

/// A network's full id (64 hexadecimal digits). A clone shares the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NetworkId(pub Arc<str>);

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

/// Labels by key. A map of the standard library has room for eleven of them from the first on, and most of these maps have few.
/// The texts stand at many containers, so that a clone shares them.
pub type Labels = LiteMap<Arc<str>, Arc<str>>;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    /// The image reference it was created from, as the user wrote it.
    pub image: Arc<str>,
    pub labels: Labels,
    pub lifecycle: Lifecycle,
    pub network_mode: NetworkMode,
    /// One for each network that it is attached to, or will be at its start.
    pub endpoints: LiteMap<NetworkId, Endpoint>,
    pub published: BTreeSet<Published>,
    /// What else was read of it.
    pub facts: Facts,
}

/// A port that is published on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// The host's address that it is bound to; the unspecified one stands for every one of its family.
    pub address: IpAddr,
    pub transport: Transport,
    pub host_port: u16,
    pub container_port: u16,
}

/// One attachment of a container to a network. A stopped container's endpoint may have no addresses, or only those
/// that it asks for at its start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    pub mac: Option<Mac>,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

impl Endpoint {
    /// Whether it is in the kernel: the engine names an Ethernet address from the endpoint's creation to its end. The
    /// addresses of one that is not are only wishes, and meanwhile they may be another container's.
    pub fn is_live(&self) -> bool {
        self.mac.is_some()
    }

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

impl Network {
    /// Whether it carries our mark. Only such a network may ever be changed or removed by us.
    pub fn is_ours(&self) -> bool {
        self.labels
            .get(MANAGED_LABEL)
            .is_some_and(|value| value == "true")
    }

    /// The segment and the service whose network of ours this is.
    pub fn owner(&self) -> Option<(&str, &str)> {
        let (segment, service) = self.labels.get(SERVICE_LABEL)?.split_once('/')?;
        let valid = self.is_ours() && !segment.is_empty() && !service.is_empty() && !service.contains('/');
        valid.then_some((segment, service))
    }
}

/// What carries a network's packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkKind {
    /// A Linux bridge on this host.
    Bridge(IfName),
    /// A driver whose packets pass no hook of ours, by the driver's name (`macvlan`, `ipvlan`, `overlay`, …).
    Other(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_stands_in_the_labels_of_our_networks_alone() {
        let network = |labels: &[(&str, &str)]| Network {
            id: NetworkId("f".repeat(64).into()),
            name: "cofferdam-shop-db".into(),
            kind: NetworkKind::Other("null".into()),
            subnets: vec![],
            internal: true,
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        };
        let ours = (MANAGED_LABEL, "true");
        assert_eq!(
            network(&[ours, (SERVICE_LABEL, "shop/db")]).owner(),
            Some(("shop", "db"))
        );
        assert_eq!(network(&[(SERVICE_LABEL, "shop/db")]).owner(), None);
        for malformed in ["", "shop", "/db", "shop/", "shop/db/x"] {
            assert_eq!(
                network(&[ours, (SERVICE_LABEL, malformed)]).owner(),
                None,
                "{malformed}"
            );
        }
        assert!(network(&[ours]).is_ours());
        assert!(!network(&[(MANAGED_LABEL, "yes")]).is_ours());
    }
}
