//! Published ports that the engine's proxy carries: who may dial them by an address of the host.
//!
//! Where the engine translates an address, the packet is forwarded and judged like any other. Its proxy instead ends the
//! connection in the host's input and opens another one in its output, as a process of root, and there nobody can tell any
//! more who dialled. So it is the input that lets those in who may reach the container directly, and nobody else.

use std::collections::{BTreeMap, BTreeSet};

use super::elements::{View, service_key};
use super::ledger::Claim;
use super::names;
use super::ruleset::{Key, SetName};
use super::structure::shared;
use crate::inventory::{Container, ContainerId, Published};
use crate::model::{Identity, Rights, Standing, Verdict};
use crate::net::{Family, Traffic, Transport};
use crate::policy::Party;

/// A port of the host, of all its addresses of a family.
type HostPort = (Family, Transport, u16);

/// What is behind a port of the host: the identity, where it is a managed container, and the port there.
type Server = (Option<Identity>, Traffic);

/// Whether somebody reaches what is behind a port of the host, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Dials {
    Never,
    /// No edge permits it, but everybody concerned is in audit.
    Audited,
    Declared,
}

/// A container with published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Publisher {
    standing: Standing,
    published: BTreeSet<Published>,
}

impl Publisher {
    fn ports(&self) -> impl Iterator<Item = HostPort> {
        self.published.iter().map(host_port)
    }
}

/// Containers with the same standing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Callers {
    containers: BTreeSet<ContainerId>,
    /// What they dial.
    ports: BTreeMap<HostPort, Dials>,
}

/// What is behind a port of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Behind {
    containers: BTreeSet<ContainerId>,
    /// Whether somebody on this host is declared to reach it.
    is_declared: bool,
}

/// Every published port of the host and who may dial it, kept up container by container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPorts {
    publishers: BTreeMap<ContainerId, Publisher>,
    callers: BTreeMap<Standing, Callers>,
    ports: BTreeMap<HostPort, Behind>,
    /// Ports behind which something has changed.
    changed: BTreeSet<HostPort>,
    /// Standings that nobody had before.
    new: BTreeSet<Standing>,
}

impl HostPorts {
    /// Takes in a container as it is now and how it stands, and how it stood before; `None`: it is, or was, not there.
    pub(super) fn set(
        &mut self,
        id: &ContainerId,
        before: Option<&Standing>,
        now: Option<(&Container, &Standing)>,
    ) {
        let standing = now.map(|(_, standing)| standing);
        if standing != before {
            before.iter().for_each(|it| self.remove_caller(id, it));
        }
        standing.iter().for_each(|it| self.add_caller(id, it));
        let publisher = now.map(|(container, standing)| Publisher {
            standing: standing.clone(),
            published: container.published.clone(),
        });
        let publisher = publisher.filter(|it| !it.published.is_empty());
        if self.publishers.get(id) == publisher.as_ref() {
            return;
        }
        for port in self.publishers.remove(id).iter().flat_map(Publisher::ports) {
            if let Some(behind) = self.ports.get_mut(&port) {
                behind.containers.remove(id);
            }
            self.changed.insert(port);
        }
        for port in publisher.iter().flat_map(Publisher::ports) {
            self.ports.entry(port).or_default().containers.insert(id.clone());
            self.changed.insert(port);
        }
        self.publishers.extend(publisher.map(|it| (id.clone(), it)));
    }

    /// Has every port judged anew.
    pub(super) fn doubt(&mut self) {
        self.changed.extend(self.ports.keys());
    }

    /// The same standing, as the first container has it that stands so: then there is one for all of them.
    pub(super) fn shared(&self, standing: Standing) -> Standing {
        shared(&self.callers, standing)
    }

    fn add_caller(&mut self, id: &ContainerId, standing: &Standing) {
        if !self.callers.contains_key(standing) {
            self.new.insert(standing.clone());
        }
        let callers = self.callers.entry(standing.clone()).or_default();
        callers.containers.insert(id.clone());
    }

    fn remove_caller(&mut self, id: &ContainerId, standing: &Standing) {
        if let Some(callers) = self.callers.get_mut(standing) {
            callers.containers.remove(id);
            if callers.containers.is_empty() {
                self.changed.extend(callers.ports.keys());
                self.callers.remove(standing);
            }
        }
    }

    /// Judges anew what has changed. Returns the containers whose elements follow from that.
    pub(super) fn judge(&mut self, rights: &Rights) -> BTreeSet<ContainerId> {
        let new = std::mem::take(&mut self.new);
        let changed = std::mem::take(&mut self.changed);
        let mut concerned = BTreeSet::new();
        let everything: BTreeSet<HostPort> = match new.is_empty() {
            true => changed.clone(),
            false => self.ports.keys().copied().collect(),
        };
        for port in everything {
            let servers = self.servers(port);
            let mut is_declared = false;
            for (standing, callers) in &mut self.callers {
                if changed.contains(&port) || new.contains(standing) {
                    let dials = party(standing).map_or(Dials::Never, |from| dials(rights, &from, &servers));
                    let before = match dials {
                        Dials::Never => callers.ports.remove(&port),
                        _ => callers.ports.insert(port, dials),
                    };
                    if before.is_some() != (dials > Dials::Never) {
                        concerned.extend(callers.containers.iter().cloned());
                    }
                }
                is_declared |= callers.ports.get(&port) == Some(&Dials::Declared);
            }
            let Some(behind) = self.ports.get_mut(&port) else {
                continue;
            };
            if changed.contains(&port) || behind.is_declared != is_declared {
                concerned.extend(behind.containers.iter().cloned());
            }
            behind.is_declared = is_declared;
            if behind.containers.is_empty() {
                self.ports.remove(&port);
            }
        }
        concerned
    }

    /// All that is behind a port of the host: several containers may have it, each on another of the host's addresses.
    fn servers(&self, port: HostPort) -> Vec<Server> {
        let containers = self.ports.get(&port).map(|it| &it.containers);
        let publishers = containers.into_iter().flatten();
        let publishers = publishers.filter_map(|id| self.publishers.get(id));
        let servers = publishers.flat_map(|publisher| {
            let identity = match &publisher.standing {
                Standing::Managed(identity) => Some(identity),
                _ => None,
            };
            let same = publisher.published.iter();
            let same = same.filter(move |it| host_port(it) == port);
            same.map(move |it| (identity.cloned(), Traffic::Port(it.transport, it.container_port)))
        });
        servers.collect()
    }

    fn dialled_by(&self, standing: &Standing) -> impl Iterator<Item = HostPort> {
        let callers = self.callers.get(standing);
        callers.into_iter().flat_map(|it| it.ports.keys().copied())
    }

    fn is_declared(&self, port: HostPort) -> bool {
        self.ports.get(&port).is_some_and(|it| it.is_declared)
    }
}

impl View<'_> {
    /// What follows from a container's published ports.
    pub(super) fn published(&self, container: &Container, claim: &mut Claim) {
        for port in &container.published {
            self.host_port(*port, claim);
            // Not for the world: then every process of root could go to the container. It needs an edge from the host, too.
            // What is only audited goes on by the container's own chain, which reports it.
            if !self.published.is_declared(host_port(port)) {
                continue;
            }
            for (network, endpoint) in &container.endpoints {
                for address in self.own_addresses(network, endpoint) {
                    let set = names::by_family("proxied", Family::of(address));
                    let key = service_key(address, port.transport, port.container_port);
                    claim.insert((self.inet(set), key), None);
                }
            }
        }
    }

    /// The published ports that a container may dial.
    pub(super) fn dialled(&self, container: &Container, standing: &Standing, claim: &mut Claim) {
        for (network, endpoint) in &container.endpoints {
            for address in self.own_addresses(network, endpoint) {
                for (_, transport, port) in self.published.dialled_by(standing) {
                    let set = names::by_family("hairpin", Family::of(address));
                    claim.insert((self.inet(set), service_key(address, transport, port)), None);
                }
            }
        }
    }

    /// The port is carried, and whether it is for the world, for the host, and for containers on networks that are not guarded.
    fn host_port(&self, port: Published, claim: &mut Claim) {
        let servers = self.published.servers(host_port(&port));
        let family = Family::of(port.address);
        let key = Key::HostPort(family, port.transport, port.host_port);
        let mut add = |set: &str| {
            claim.insert((self.inet(SetName::from(set)), key.clone()), None);
        };
        if self.world_dials(&servers) != Dials::Never {
            add("carried_world");
        }
        if dials(self.rights, &Party::Host, &servers) != Dials::Never {
            add("carried_host");
        }
        if dials(self.rights, &Party::Unmanaged, &servers) != Dials::Never {
            add("carried_unmanaged");
        }
        if port.address.is_unspecified() {
            add("carried");
        } else {
            let key = service_key(port.address, port.transport, port.host_port);
            claim.insert((self.inet(names::by_family("carried", family)), key), None);
        }
    }

    /// Whether every address outside reaches every one of them directly.
    fn world_dials(&self, servers: &[Server]) -> Dials {
        let policy = &self.rights.policy;
        let one = |(identity, traffic): &Server| match identity {
            Some(it) if policy.allows_world(it.services(), *traffic, Family::V4) => Dials::Declared,
            Some(it) if self.rights.is_audited(it) => Dials::Audited,
            Some(_) | None => Dials::Never,
        };
        servers.iter().map(one).min().unwrap_or(Dials::Never)
    }
}

fn host_port(port: &Published) -> HostPort {
    (Family::of(port.address), port.transport, port.host_port)
}

/// Who calls with this standing; `None`: nobody who may.
fn party(standing: &Standing) -> Option<Party<'_>> {
    match standing {
        Standing::Managed(identity) => Some(Party::Services(identity.services())),
        Standing::Unmanaged => Some(Party::Unmanaged),
        Standing::Quarantined(_) | Standing::Isolated(_) => None,
    }
}

/// Whether a party reaches every one of them directly.
fn dials(rights: &Rights, from: &Party<'_>, servers: &[Server]) -> Dials {
    let one = |(identity, traffic): &Server| {
        let Some(identity) = identity else {
            return Dials::Never;
        };
        let to = Party::Services(identity.services());
        match rights.judge(from, &to, *traffic, Family::V4) {
            Verdict::Allowed(_) => Dials::Declared,
            Verdict::Audited => Dials::Audited,
            Verdict::Untouched | Verdict::Denied => Dials::Never,
        }
    };
    servers.iter().map(one).min().unwrap_or(Dials::Never)
}
