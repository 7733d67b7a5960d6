//! Who is there: the containers that can be probed, the host, addresses outside; and who stands for a service. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::inventory::{Container, Network, NetworkId, NetworkKind};
use crate::model::explain::End;
use crate::model::{Rights, Standing, Verdict, owner};
use crate::net::{Family, Traffic, Transport};
use crate::policy::Party;

/// A container with this label and the value `off` is probed neither from nor to.
pub const LABEL: &str = "io.cofferdam.verify";

/// Whether the container's owner wants no probes.
pub fn is_excused(container: &Container) -> bool {
    container.labels.get(LABEL).is_some_and(|value| **value == *"off")
}

/// A container that can be probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub container: Container,
    pub standing: Standing,
    /// Those of its addresses that its namespace really has.
    pub addresses: BTreeSet<IpAddr>,
    /// The ports on which others can reach something of it.
    pub served: BTreeSet<(Transport, u16)>,
}

/// Everything that a plan is made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scene {
    /// With the edges of this moment.
    pub rights: Rights,
    /// In the order of their names.
    pub subjects: Vec<Subject>,
    pub networks: BTreeMap<NetworkId, Network>,
    /// The host's own addresses.
    pub host: BTreeSet<IpAddr>,
    /// The ports on which the host serves something of its own.
    pub host_served: BTreeSet<(Transport, u16)>,
    /// Addresses outside that were named to be tried.
    pub world: Vec<SocketAddr>,
}

/// One end of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spot {
    /// By its place in [`Scene::subjects`].
    Container(usize),
    Host,
    World(IpAddr),
}

/// A row or a column: ends with the same rights.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The name of its identity.
    Managed(String),
    Isolated(String),
    Quarantined,
    Unmanaged,
    Host,
    World(IpAddr),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Managed(name) => f.write_str(name),
            Self::Isolated(name) => write!(f, "{name} (isolated)"),
            Self::Quarantined => f.write_str("(quarantined)"),
            Self::Unmanaged => f.write_str("(unmanaged)"),
            Self::Host => f.write_str("host"),
            Self::World(address) => write!(f, "world {address}"),
        }
    }
}

/// What is declared of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Declared {
    /// An edge permits it.
    Open,
    /// No edge permits it, and it passes because its ends are in audit.
    Audited,
    Closed,
}

impl Declared {
    /// Whether it has to pass.
    pub fn passes(self) -> bool {
        self != Self::Closed
    }
}

impl Scene {
    /// The container at a spot.
    pub fn subject(&self, spot: Spot) -> Option<&Subject> {
        match spot {
            Spot::Container(index) => self.subjects.get(index),
            Spot::Host | Spot::World(_) => None,
        }
    }

    /// What a spot is called: the container's name, `host`, an address.
    pub fn name(&self, spot: Spot) -> String {
        match spot {
            Spot::Container(_) => self
                .subject(spot)
                .map_or_else(String::new, |it| it.container.name.clone()),
            Spot::Host => "host".to_owned(),
            Spot::World(address) => address.to_string(),
        }
    }

    /// The row or column of a spot.
    pub fn group(&self, spot: Spot) -> Group {
        match spot {
            Spot::Host => Group::Host,
            Spot::World(address) => Group::World(address),
            Spot::Container(_) => match self.subject(spot).map(|it| &it.standing) {
                Some(Standing::Managed(identity)) => Group::Managed(identity.to_string()),
                Some(Standing::Isolated(identity)) => Group::Isolated(identity.to_string()),
                Some(Standing::Quarantined(_)) => Group::Quarantined,
                Some(Standing::Unmanaged) | None => Group::Unmanaged,
            },
        }
    }

    /// A spot as one end of a question to `explain`.
    pub fn end(&self, spot: Spot) -> End {
        match (spot, self.subject(spot)) {
            (Spot::World(address), _) => End::Outside(address),
            (_, Some(subject)) => End::Container {
                name: subject.container.name.clone(),
                standing: subject.standing.clone(),
            },
            (Spot::Host | Spot::Container(_), None) => End::Host,
        }
    }

    /// What is declared; `None` where neither end is managed, so that nobody says anything of it.
    pub fn declared(
        &self,
        from: Spot,
        to: Spot,
        transport: Transport,
        port: u16,
        family: Family,
    ) -> Option<Declared> {
        let (Some(from), Some(to)) = (self.party(from), self.party(to)) else {
            return Some(Declared::Closed);
        };
        match self
            .rights
            .judge(&from, &to, Traffic::Port(transport, port), family)
        {
            Verdict::Allowed(_) => Some(Declared::Open),
            Verdict::Audited => Some(Declared::Audited),
            Verdict::Denied => Some(Declared::Closed),
            Verdict::Untouched => None,
        }
    }

    /// `None`: it has no rights at all.
    fn party(&self, spot: Spot) -> Option<Party<'_>> {
        match spot {
            Spot::Host => Some(Party::Host),
            Spot::World(address) => Some(Party::Outside(address)),
            Spot::Container(_) => match &self.subject(spot)?.standing {
                Standing::Managed(identity) => Some(Party::Services(identity.services())),
                Standing::Unmanaged => Some(Party::Unmanaged),
                Standing::Quarantined(_) | Standing::Isolated(_) => None,
            },
        }
    }

    /// Who is in each group: the first `most` of them, or all. Unmanaged ones that share a network with managed ones come
    /// first.
    pub fn samples(&self, most: Option<usize>) -> BTreeMap<Group, Vec<usize>> {
        let mut groups: BTreeMap<Group, Vec<usize>> = BTreeMap::new();
        for index in 0..self.subjects.len() {
            groups
                .entry(self.group(Spot::Container(index)))
                .or_default()
                .push(index);
        }
        let managed = self
            .subjects
            .iter()
            .filter(|it| it.standing != Standing::Unmanaged);
        let beside: BTreeSet<&NetworkId> = managed.flat_map(|it| it.container.endpoints.keys()).collect();
        let is_apart = |index: &usize| {
            let endpoints = self.subjects.get(*index).map(|it| &it.container.endpoints);
            !endpoints.is_some_and(|it| it.keys().any(|network| beside.contains(network)))
        };
        for (group, members) in &mut groups {
            if *group == Group::Unmanaged {
                members.sort_by_key(is_apart);
            }
            members.truncate(most.unwrap_or(usize::MAX).max(1));
        }
        groups
    }

    /// The container's addresses on each bridge network.
    pub fn attached<'a>(
        &'a self,
        subject: &'a Subject,
    ) -> impl Iterator<Item = (&'a NetworkId, &'a Network, IpAddr)> {
        let live = subject.container.endpoints.iter().filter(|(_, it)| it.is_live());
        live.flat_map(move |(id, endpoint)| {
            let network = self.networks.get(id);
            let network = network.filter(|it| matches!(it.kind, NetworkKind::Bridge(_)));
            let addresses = endpoint
                .addresses()
                .filter(|address| subject.addresses.contains(address));
            addresses.filter_map(move |address| Some((id, network?, address)))
        })
    }

    /// The host's address on the network: without one, what the host sends there leaves by its default route.
    pub fn gateway(&self, network: &Network, family: Family) -> Option<IpAddr> {
        let within = |address: &&IpAddr| {
            let subnets = network.subnets.iter();
            Family::of(**address) == family && subnets.clone().any(|subnet| subnet.contains(*address))
        };
        self.host.iter().find(within).copied()
    }

    /// Whether a permitted connection comes about over this network. On a service's own network its callers are apart.
    pub fn joins(&self, network: &Network, from: &Subject, to: &Subject) -> bool {
        let Some(service) = owner(network) else {
            return true;
        };
        [from, to].into_iter().any(|subject| {
            let services = subject.standing.services();
            services.is_some_and(|services| services.contains(&service))
        })
    }
}
