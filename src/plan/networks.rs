//! Networks wanted against networks there are: what to create, attach, detach and remove, and with which addresses.

mod addresses;
mod subnets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::addresses::Allocator;
use self::addresses::Used;
pub use self::subnets::{FreeSubnets, PoolExhausted, Pools};
use crate::inventory::{ContainerId, Inventory, Network, NetworkId, NetworkKind};
use crate::model::{ServiceNetwork, ServiceNetworks, Standing, owner};
use crate::net::IfName;
use crate::policy::ServiceId;

/// One call of the engine. Each is safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkStep {
    Create {
        service: ServiceId,
        name: String,
        bridge: IfName,
        ipv4: Ipv4Net,
        ipv6: Option<Ipv6Net>,
    },
    Attach {
        network: NetworkId,
        container: ContainerId,
        ipv4: Ipv4Addr,
        ipv6: Option<Ipv6Addr>,
        aliases: BTreeSet<String>,
    },
    Detach {
        network: NetworkId,
        container: ContainerId,
    },
    Remove {
        network: NetworkId,
        name: String,
    },
    /// Have a stopped container no longer wish for a network that is gone.
    Forget {
        name: String,
        container: ContainerId,
    },
    /// A container that cannot be held to its rights.
    Stop {
        container: ContainerId,
        name: String,
        reason: String,
    },
}

/// What a step works on: no two steps with the same subject are under way at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Service(ServiceId),
    Network(NetworkId),
    Attachment(NetworkId, ContainerId),
    Wish(String, ContainerId),
    Container(ContainerId),
}

impl NetworkStep {
    /// What the step works on.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Create { service, .. } => Subject::Service(service.clone()),
            Self::Remove { network, .. } => Subject::Network(network.clone()),
            Self::Forget { name, container } => Subject::Wish(name.clone(), container.clone()),
            Self::Stop { container, .. } => Subject::Container(container.clone()),
            Self::Attach {
                network, container, ..
            }
            | Self::Detach { network, container } => Subject::Attachment(network.clone(), container.clone()),
        }
    }
}

/// What steps follow from.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    pub wanted: &'a ServiceNetworks,
    pub inventory: &'a Inventory,
    pub standings: &'a BTreeMap<ContainerId, Standing>,
    pub pools: &'a Pools,
    /// The host's.
    pub routes: &'a [IpNet],
    /// Steps under way.
    pub busy: &'a BTreeMap<Subject, NetworkStep>,
    /// The wishes of stopped containers for networks that are gone.
    pub stale: &'a BTreeMap<ContainerId, BTreeSet<String>>,
}

/// What is to be looked at: where something has changed, and where something is left to do that is not under way.
#[derive(Debug, Clone, Default)]
pub struct Unsettled {
    /// Their networks are there or not, and all who are to be on them.
    pub services: BTreeSet<ServiceId>,
    /// What each is attached to.
    pub containers: BTreeSet<ContainerId>,
    /// Networks of ours that nobody needs, perhaps.
    pub networks: BTreeSet<NetworkId>,
}

impl Unsettled {
    /// A step is over, with success or without.
    pub fn step_done(&mut self, step: &NetworkStep) {
        match step {
            NetworkStep::Create { service, .. } => {
                self.services.insert(service.clone());
            }
            NetworkStep::Attach {
                network, container, ..
            }
            | NetworkStep::Detach { network, container } => {
                self.containers.insert(container.clone());
                self.networks.insert(network.clone());
            }
            NetworkStep::Remove { network, .. } => {
                self.networks.insert(network.clone());
            }
            NetworkStep::Forget { .. } | NetworkStep::Stop { .. } => {}
        }
    }
}

/// The steps that are still to do where it is unsettled, without those whose subject is busy, and whether a network that is
/// wanted found no free subnet. What is left to do stays unsettled.
pub fn network_steps(
    ground: Ground<'_>,
    unsettled: &mut Unsettled,
    allocator: &mut Allocator,
) -> (Vec<NetworkStep>, Option<PoolExhausted>) {
    let mut steps = Vec::new();
    let mut missing = Vec::new();
    for service in std::mem::take(&mut unsettled.services) {
        for network in ground.owned(&service) {
            unsettled.networks.insert(network.id.clone());
            unsettled.containers.extend(ground.attached(network).cloned());
        }
        let Some(wanted) = ground.wanted.wanted().get(&service) else {
            continue;
        };
        match ground.chosen(&service) {
            Some(_) => unsettled.containers.extend(wanted.members.keys().cloned()),
            None if ground.busy.contains_key(&Subject::Service(service.clone())) => {}
            None => {
                missing.push(wanted);
                unsettled.services.insert(service);
            }
        }
    }
    let exhausted = ground.create(&missing, &mut steps).err();
    let mut used = BTreeMap::new();
    unsettled.containers.retain(|id| {
        let before = steps.len();
        let lacks = ground.attach(id, allocator, &mut used, &mut steps);
        ground.detach(id, &mut steps);
        lacks || steps.len() > before
    });
    unsettled.networks.retain(|id| {
        let removed = ground.remove(id);
        let is_to_go = removed.is_some();
        steps.extend(removed);
        is_to_go
    });
    steps.extend(ground.wishes());
    steps.sort();
    (steps, exhausted)
}

impl<'a> Ground<'a> {
    fn is_busy(&self, subject: &Subject) -> bool {
        self.busy.contains_key(subject)
    }

    /// The networks that say that they are the service's.
    fn owned(&self, service: &ServiceId) -> impl Iterator<Item = &'a Network> + use<'a> {
        self.inventory
            .owned(service.segment.as_str(), service.name.as_str())
    }

    fn attached(&self, network: &Network) -> impl Iterator<Item = &'a ContainerId> + use<'a> {
        let attached = self.inventory.attached(&network.id);
        attached.into_iter().flat_map(|it| it.containers())
    }

    /// The network of a service. Of several, which only others can have made, the one that looks as if made by us, then the
    /// one with the lowest id. No rule holds on one that is no bridge, whatever its labels say.
    fn chosen(&self, service: &ServiceId) -> Option<&'a Network> {
        let is_bridge = |it: &&Network| matches!(it.kind, NetworkKind::Bridge(_));
        let mut networks = self.owned(service).filter(is_bridge);
        let first = networks.next()?;
        if networks.next().is_none() {
            return Some(first);
        }
        let wanted = self.wanted.wanted().get(service);
        let genuine = wanted.and_then(|wanted| {
            let bridge = wanted.bridge().map(NetworkKind::Bridge)?;
            let mut networks = self.owned(service);
            networks.find(|it| it.name == wanted.name && it.kind == bridge)
        });
        Some(genuine.unwrap_or(first))
    }

    /// The service network that this is; `None`: it is none, or not one that is wanted.
    fn wanted_as(&self, network: &Network) -> Option<&'a ServiceNetwork> {
        let service = owner(network)?;
        let chosen = self.chosen(&service).filter(|it| it.id == network.id);
        chosen.and(self.wanted.wanted().get(&service))
    }

    fn create(&self, missing: &[&ServiceNetwork], steps: &mut Vec<NetworkStep>) -> Result<(), PoolExhausted> {
        if missing.is_empty() {
            return Ok(());
        }
        let networks = self.inventory.networks().values();
        let taken = networks.flat_map(|network| network.subnets.iter().copied());
        let taken = taken
            .chain(self.routes.iter().copied())
            .chain(self.busy.values().flat_map(created_subnets));
        let mut free = self.pools.free_subnets(taken);
        for network in missing {
            let Some(bridge) = network.bridge() else { continue };
            let (ipv4, ipv6) = free.take()?;
            steps.push(NetworkStep::Create {
                service: network.service.clone(),
                name: network.name.clone(),
                bridge,
                ipv4,
                ipv6,
            });
        }
        Ok(())
    }

    /// Attaches a container wherever it lacks. Returns whether it lacks anywhere, be there an address for it or not.
    fn attach(
        &self,
        id: &ContainerId,
        allocator: &mut Allocator,
        used: &mut BTreeMap<&'a NetworkId, Used<'a>>,
        steps: &mut Vec<NetworkStep>,
    ) -> bool {
        let (Some(container), Some(standing)) = (self.inventory.container(id), self.standings.get(id)) else {
            return false;
        };
        let mut lacks = false;
        for wanted in self.wanted.joined(id, standing) {
            let Some(network) = self.chosen(&wanted.service) else {
                continue;
            };
            let subject = Subject::Attachment(network.id.clone(), id.clone());
            if container.endpoints.contains_key(&network.id) || self.is_busy(&subject) {
                continue;
            }
            lacks = true;
            let Some(subnet) = ipv4_subnet(network) else {
                continue;
            };
            let used = used
                .entry(&network.id)
                .or_insert_with(|| self.used(network, subnet));
            let Some(host) = allocator.next(&network.id, used) else {
                continue;
            };
            let ipv4 = used.address(host);
            used.handed_out.insert(ipv4);
            steps.push(NetworkStep::Attach {
                network: network.id.clone(),
                container: id.clone(),
                ipv4,
                ipv6: ipv6_subnet(network).and_then(|net| {
                    let address = u128::from(net.network()).checked_add(u128::from(host))?;
                    Some(Ipv6Addr::from(address)).filter(|address| net.contains(address))
                }),
                aliases: wanted
                    .members
                    .get(id)
                    .map(|it| it.aliases.clone())
                    .unwrap_or_default(),
            });
        }
        lacks
    }

    fn used(&self, network: &Network, subnet: Ipv4Net) -> Used<'a> {
        let first = Subject::Attachment(network.id.clone(), ContainerId::default());
        let under_way = self.busy.range(first..).map_while(|(_, step)| match step {
            NetworkStep::Attach {
                network: of, ipv4, ..
            } if *of == network.id => Some(Some(*ipv4)),
            NetworkStep::Detach { network: of, .. } if *of == network.id => Some(None),
            _ => None,
        });
        Used {
            subnet,
            attached: self.inventory.attached(&network.id),
            handed_out: under_way.flatten().collect(),
        }
    }

    /// Detaches a container from networks of ours that are not for it. Where a service has several, all but one are for nobody.
    fn detach(&self, id: &ContainerId, steps: &mut Vec<NetworkStep>) {
        let endpoints = self.inventory.container(id).into_iter();
        let networks = endpoints.flat_map(|it| it.endpoints.keys());
        for network in networks.filter_map(|it| self.inventory.network(it)) {
            let is_member = || {
                self.wanted_as(network)
                    .is_some_and(|it| it.members.contains_key(id))
            };
            if !network.is_ours() || is_member() {
                continue;
            }
            let step = NetworkStep::Detach {
                network: network.id.clone(),
                container: id.clone(),
            };
            if !self.is_busy(&step.subject()) {
                steps.push(step);
            }
        }
    }

    /// Removes a network of ours that is for nobody. A container that is stopped could not start again without the network: it
    /// must be detached first.
    fn remove(&self, id: &NetworkId) -> Option<NetworkStep> {
        let network = self.inventory.network(id).filter(|it| it.is_ours())?;
        if self.wanted_as(network).is_some() || self.attached(network).next().is_some() {
            return None;
        }
        let step = NetworkStep::Remove {
            network: id.clone(),
            name: network.name.clone(),
        };
        (!self.is_busy(&step.subject())).then_some(step)
    }

    /// Wishes that keep a container from starting. One for a network that will be made again is replaced by the attachment.
    fn wishes(&self) -> Vec<NetworkStep> {
        let exists = |name: &String| self.inventory.networks().values().any(|it| it.name == *name);
        let joins = |name: &String, container: &ContainerId| {
            let mut wanted = self.wanted.wanted().values();
            wanted.any(|it| it.name == *name && it.members.contains_key(container))
        };
        let mut steps = Vec::new();
        for (container, names) in self.stale {
            for name in names {
                if self.inventory.container(container).is_some() && !exists(name) && !joins(name, container) {
                    let (name, container) = (name.clone(), container.clone());
                    steps.push(NetworkStep::Forget { name, container });
                }
            }
        }
        steps.retain(|step| !self.is_busy(&step.subject()));
        steps
    }
}

fn ipv4_subnet(network: &Network) -> Option<Ipv4Net> {
    network.subnets.iter().find_map(|net| match net {
        IpNet::V4(net) => Some(*net),
        IpNet::V6(_) => None,
    })
}

fn ipv6_subnet(network: &Network) -> Option<Ipv6Net> {
    network.subnets.iter().find_map(|net| match net {
        IpNet::V6(net) => Some(*net),
        IpNet::V4(_) => None,
    })
}

fn created_subnets(step: &NetworkStep) -> Vec<IpNet> {
    match step {
        NetworkStep::Create { ipv4, ipv6, .. } => [IpNet::V4(*ipv4)]
            .into_iter()
            .chain(ipv6.map(IpNet::V6))
            .collect(),
        NetworkStep::Attach { .. }
        | NetworkStep::Detach { .. }
        | NetworkStep::Remove { .. }
        | NetworkStep::Forget { .. }
        | NetworkStep::Stop { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
