//! From what was seen on a host to a policy that permits just that.
//!
//! In: [`Contact`]s as the kernel counted them, open connections, and whose the addresses were ([`Ground`]). Out:
//! [`Observation::settle`] says who opened what to whom, [`document`] writes it as policy files, [`against`] says what of it a
//! policy does not permit. Pure.

pub mod against;
pub mod document;
mod edges;
mod ground;
mod groups;
mod observation;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

pub use self::edges::{LearnedEdge, PortEvidence};
pub use self::ground::{Ground, Grounds, Handover};
pub use self::groups::Layout;
pub use self::observation::{Observation, Open, When};
use crate::inventory::{Container, ContainerId, Network, NetworkId};
use crate::net::{Family, Transport};
use crate::policy::Ports;

/// Where the kernel saw a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// As a frame that came in by a port of a bridge: whatever a container sends, before any address translation.
    Bridge,
    /// Forwarded, or to or from the host itself, after the translation of the destination.
    Routed,
    /// By the sockets in a container's network namespace.
    Namespace,
}

/// What the kernel counted: the beginnings of connections. Near addresses are those that may be containers' or the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contact {
    Pair {
        from: IpAddr,
        to: IpAddr,
        ports: Ports,
    },
    /// To any far address.
    Out {
        from: IpAddr,
        ports: Ports,
    },
    /// One of the addresses of a [`Contact::Out`]; only so many are kept.
    Far {
        from: IpAddr,
        ports: Ports,
        to: IpAddr,
    },
    /// From any far address.
    In {
        to: IpAddr,
        ports: Ports,
    },
    /// One of the addresses of a [`Contact::In`]; only so many are kept.
    Who {
        to: IpAddr,
        ports: Ports,
        from: IpAddr,
    },
    /// A datagram that looks like the answer to what `from` once sent to `to`.
    Answer {
        from: IpAddr,
        to: IpAddr,
        ports: Ports,
    },
    /// The first datagram between two ports of which neither tells who serves.
    Unclear {
        from: IpAddr,
        to: IpAddr,
        transport: Transport,
        source: u16,
        port: u16,
    },
    /// Another protocol of IP, by its number.
    Other {
        from: IpAddr,
        to: IpAddr,
        protocol: u8,
    },
}

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Container(ContainerId),
    Host,
    /// An address that is neither this host's nor a container's.
    Outside,
}

/// Who opened what to whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub from: End,
    pub to: End,
    /// One port, or echo requests.
    pub ports: Ports,
}

/// How a flow is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Connections, retries among them; of UDP datagrams.
    pub count: u64,
    /// Connections that were open already.
    pub open: u64,
    /// Datagrams that only look like answers to it.
    pub answers: u64,
    pub first: Timestamp,
    pub last: Timestamp,
    pub families: BTreeSet<Family>,
    /// Of the end outside.
    pub addresses: Addresses,
    /// Published ports of the host that were dialled instead of the container.
    pub by_way_of: BTreeSet<u16>,
    /// Whether it is only likely that it was this way round.
    pub direction: Direction,
}

/// How sure it is who opened a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Direction {
    #[default]
    Certain,
    /// Neither the ports nor who listens say so: the first datagram did.
    Likely,
}

/// Addresses outside, as far as they were kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    pub known: BTreeSet<IpAddr>,
    /// Whether there were, or may have been, more.
    pub more: bool,
}

impl Addresses {
    /// Kept of each flow.
    pub const MOST: usize = 16;

    /// Takes one in, as long as there is room.
    pub fn insert(&mut self, address: IpAddr) {
        if self.known.len() < Self::MOST || self.known.contains(&address) {
            self.known.insert(address);
        } else {
            self.more = true;
        }
    }

    /// Takes all of the other's in.
    pub fn merge(&mut self, other: &Self) {
        other.known.iter().for_each(|address| self.insert(*address));
        self.more |= other.more;
    }

    /// Whether these are all, and there are any.
    pub fn are_all(&self) -> bool {
        !self.more && !self.known.is_empty()
    }
}

impl Evidence {
    /// None yet.
    pub fn new(now: Timestamp) -> Self {
        Self {
            count: 0,
            open: 0,
            answers: 0,
            first: now,
            last: now,
            families: BTreeSet::new(),
            addresses: Addresses::default(),
            by_way_of: BTreeSet::new(),
            direction: Direction::Certain,
        }
    }

    /// Takes in what else is known of the same flow.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.open += other.open;
        self.answers += other.answers;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.families.extend(&other.families);
        self.addresses.merge(&other.addresses);
        self.by_way_of.extend(&other.by_way_of);
        self.direction = self.direction.min(other.direction);
    }
}

/// What was not taken for flows, so that it can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Ignored {
    /// Multicast and broadcast packets.
    pub multicast: u64,
    /// Contacts from addresses on a bridge that are no container's.
    pub foreign: u64,
    /// Contacts of addresses of the engine's networks whose owner cannot be told: they changed hands at that time, belonged to a
    /// container that came and went too fast, or several claim them.
    pub contested: u64,
    /// Contacts that did not fit into the kernel's sets: some flows may be missing.
    pub lost: u64,
}

/// All that was seen, and of whom.
#[derive(Debug, Clone, Default)]
pub struct Lesson {
    pub observation: Observation,
    /// Every container that was there at any time.
    pub containers: BTreeMap<ContainerId, Container>,
    pub networks: BTreeMap<NetworkId, Network>,
    pub began: Timestamp,
    pub ended: Timestamp,
    /// What else whoever reviews it should know.
    pub remarks: Vec<String>,
}

/// Which flows are of interest: those with an end in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Compose projects, by name; none stands for all.
    pub projects: BTreeSet<String>,
    /// Docker networks, by name; none stands for all.
    pub networks: BTreeSet<String>,
}

impl Scope {
    /// Whether a container lies within.
    pub fn contains(&self, container: &Container, networks: &BTreeMap<NetworkId, Network>) -> bool {
        let project = container.labels.get(groups::PROJECT);
        let in_project = self.projects.is_empty() || project.is_some_and(|it| self.projects.contains(&**it));
        let names = || container.endpoints.keys().filter_map(|id| networks.get(id));
        let on_network =
            self.networks.is_empty() || names().any(|network| self.networks.contains(&network.name));
        in_project && on_network
    }
}

impl Lesson {
    /// The flows with an end in the scope.
    fn flows(&self, scope: &Scope) -> Vec<(Flow, Evidence)> {
        let within = |end: &End| match end {
            End::Container(id) => self
                .containers
                .get(id)
                .is_some_and(|container| scope.contains(container, &self.networks)),
            End::Host | End::Outside => false,
        };
        let flows = self.observation.settle().flows.into_iter();
        flows
            .filter(|(flow, _)| within(&flow.from) || within(&flow.to))
            .collect()
    }

    /// How many flows there are so far.
    pub fn count(&self, scope: &Scope) -> usize {
        self.flows(scope).len()
    }
}
