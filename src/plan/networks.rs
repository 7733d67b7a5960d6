//! Networks wanted against networks there are: what to create, attach, detach and remove, and with which addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::elements::overlaps;
use crate::inventory::{ContainerId, Inventory, Network, NetworkId, NetworkKind};
use crate::model::{ServiceNetwork, owner};
use crate::net::{IfName, engine_share};
use crate::policy::ServiceId;

/// The address pools that service networks are cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pools {
    pub ipv4: Ipv4Net,
    /// The prefix length of each network, longer than the pool's and at most 29.
    pub ipv4_prefix: u8,
    /// Cut into /64; `None`: no IPv6 on service networks.
    pub ipv6: Option<Ipv6Net>,
}

/// Every subnet of the pool is taken, by a network or by a route of the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no subnet is free in the address pool {pool}: networks and routes of this host take all of it")]
pub struct PoolExhausted {
    pub pool: IpNet,
}

/// The prefix length of each network's IPv6 subnet.
const IPV6_PREFIX: u8 = 64;

impl Pools {
    /// The first subnets that overlap none of `taken`.
    ///
    /// # Errors
    /// When a pool has none left.
    pub fn free_subnets(&self, taken: &[IpNet]) -> Result<(Ipv4Net, Option<Ipv6Net>), PoolExhausted> {
        let is_free = |candidate: &IpNet| !taken.iter().any(|net| overlaps(net, candidate));
        let ipv4 = self
            .ipv4
            .subnets(self.ipv4_prefix)
            .ok()
            .and_then(|mut subnets| subnets.find(|subnet| is_free(&IpNet::V4(*subnet))))
            .ok_or(PoolExhausted {
                pool: IpNet::V4(self.ipv4),
            })?;
        let Some(pool) = self.ipv6 else {
            return Ok((ipv4, None));
        };
        let ipv6 = pool
            .subnets(IPV6_PREFIX)
            .ok()
            .and_then(|mut subnets| subnets.find(|subnet| is_free(&IpNet::V6(*subnet))))
            .ok_or(PoolExhausted {
                pool: IpNet::V6(pool),
            })?;
        Ok((ipv4, Some(ipv6)))
    }
}

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

/// Hands out addresses of our networks, least recently used first, so that an address that was just given up is the last
/// to be used again.
#[derive(Debug, Default)]
pub struct Allocator {
    /// The host number that was handed out last.
    last: BTreeMap<NetworkId, u32>,
}

impl Allocator {
    /// The next free host number of a network: 1 is the gateway's, the last ones the engine's own share.
    fn next(&mut self, network: &NetworkId, subnet: Ipv4Net, used: &BTreeSet<u32>) -> Option<u32> {
        let end = match engine_share(IpNet::V4(subnet)) {
            Some(IpNet::V4(share)) => share.network(),
            // A network that carries our mark but was made by others may have a subnet of one address.
            _ => subnet.broadcast(),
        };
        let highest = (u32::from(end) - u32::from(subnet.network())).saturating_sub(1);
        let last = self
            .last
            .get(network)
            .copied()
            .unwrap_or_else(|| used.range(..=highest).next_back().copied().unwrap_or(1));
        let host = (last.saturating_add(1)..=highest)
            .chain(2..=last.min(highest))
            .find(|host| !used.contains(host))?;
        self.last.insert(network.clone(), host);
        Some(host)
    }

    /// Forgets networks that are gone.
    pub fn retain(&mut self, inventory: &Inventory) {
        self.last
            .retain(|network, _| inventory.network(network).is_some());
    }
}

/// The steps that are still to do, without those whose subject is `busy`, and whether a network that is wanted found no
/// free subnet. `routes` are the host's, `stale` the wishes of stopped containers for networks that are gone.
pub fn network_steps(
    wanted: &BTreeMap<ServiceId, ServiceNetwork>,
    inventory: &Inventory,
    pools: &Pools,
    routes: &[IpNet],
    allocator: &mut Allocator,
    busy: &BTreeMap<Subject, NetworkStep>,
    stale: &BTreeMap<ContainerId, BTreeSet<String>>,
) -> (Vec<NetworkStep>, Option<PoolExhausted>) {
    let mut steps = Vec::new();
    let mut exhausted = None;
    let mut taken: Vec<IpNet> = inventory
        .networks()
        .values()
        .flat_map(|network| network.subnets.iter().copied())
        .chain(routes.iter().copied())
        .collect();
    taken.extend(busy.values().flat_map(created_subnets));
    let ours = chosen(wanted, inventory);

    for (service, network) in wanted {
        let Some(existing) = ours.get(service) else {
            let Some(bridge) = network.bridge() else { continue };
            if busy.contains_key(&Subject::Service(service.clone())) {
                continue;
            }
            // What is free for one is searched for through the whole pool: once there is nothing, there is nothing for all.
            if exhausted.is_some() {
                continue;
            }
            match pools.free_subnets(&taken) {
                Ok((ipv4, ipv6)) => {
                    let (service, name) = (service.clone(), network.name.clone());
                    let step = NetworkStep::Create {
                        service,
                        name,
                        bridge,
                        ipv4,
                        ipv6,
                    };
                    taken.extend(created_subnets(&step));
                    steps.push(step);
                }
                Err(error) => exhausted = Some(error),
            }
            continue;
        };
        attach(network, existing, inventory, allocator, busy, &mut steps);
    }
    let mut attachments: BTreeMap<&NetworkId, Vec<&ContainerId>> = BTreeMap::new();
    for container in inventory.containers().values() {
        for network in container.endpoints.keys() {
            attachments.entry(network).or_default().push(&container.id);
        }
    }
    for network in inventory.networks().values().filter(|network| network.is_ours()) {
        // Where a service has several, all but one go.
        let members = owner(network)
            .filter(|service| ours.get(service).is_some_and(|it| it.id == network.id))
            .and_then(|service| wanted.get(&service))
            .map(|it| &it.members);
        let attached = attachments.get(&network.id).map_or(&[][..], Vec::as_slice);
        for container in attached
            .iter()
            .filter(|id| members.is_none_or(|it| !it.contains_key(id)))
        {
            steps.push(NetworkStep::Detach {
                network: network.id.clone(),
                container: (*container).clone(),
            });
        }
        // A container that is stopped could not start again without the network: it must be detached first.
        if members.is_none() && attached.is_empty() {
            steps.push(NetworkStep::Remove {
                network: network.id.clone(),
                name: network.name.clone(),
            });
        }
    }
    steps.extend(wishes(wanted, inventory, stale));
    steps.retain(|step| !busy.contains_key(&step.subject()));
    (steps, exhausted)
}

/// The network of each service. Of several, which only others can have made, the one that looks as if made by us, then the
/// one with the lowest id.
fn chosen<'a>(
    wanted: &BTreeMap<ServiceId, ServiceNetwork>,
    inventory: &'a Inventory,
) -> BTreeMap<ServiceId, &'a Network> {
    let mut chosen: BTreeMap<ServiceId, &Network> = BTreeMap::new();
    for network in inventory.networks().values() {
        let Some(service) = owner(network) else { continue };
        // No rule holds on one that is no bridge, whatever its labels say.
        if !matches!(network.kind, NetworkKind::Bridge(_)) {
            continue;
        }
        let genuine = |network: &Network| {
            wanted.get(&service).is_some_and(|it| {
                let bridge = it.bridge().map(NetworkKind::Bridge);
                it.name == network.name && bridge.as_ref() == Some(&network.kind)
            })
        };
        match chosen.get(&service) {
            Some(other) if genuine(other) || !genuine(network) => {}
            Some(_) | None => {
                chosen.insert(service, network);
            }
        }
    }
    chosen
}

/// Wishes that keep a container from starting. One for a network that will be made again is replaced by the attachment.
fn wishes(
    wanted: &BTreeMap<ServiceId, ServiceNetwork>,
    inventory: &Inventory,
    stale: &BTreeMap<ContainerId, BTreeSet<String>>,
) -> Vec<NetworkStep> {
    let exists = |name: &String| inventory.networks().values().any(|it| it.name == *name);
    let joins = |name: &String, container: &ContainerId| {
        let mut wanted = wanted.values();
        wanted.any(|it| it.name == *name && it.members.contains_key(container))
    };
    let mut steps = Vec::new();
    for (container, names) in stale {
        for name in names {
            if inventory.container(container).is_some() && !exists(name) && !joins(name, container) {
                let (name, container) = (name.clone(), container.clone());
                steps.push(NetworkStep::Forget { name, container });
            }
        }
    }
    steps
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

fn attach(
    wanted: &ServiceNetwork,
    network: &Network,
    inventory: &Inventory,
    allocator: &mut Allocator,
    busy: &BTreeMap<Subject, NetworkStep>,
    steps: &mut Vec<NetworkStep>,
) {
    let Some(subnet) = network.subnets.iter().find_map(|net| match net {
        IpNet::V4(net) => Some(*net),
        IpNet::V6(_) => None,
    }) else {
        return;
    };
    let ipv6 = network.subnets.iter().find_map(|net| match net {
        IpNet::V6(net) => Some(*net),
        IpNet::V4(_) => None,
    });
    // `None` for an address of another subnet.
    let number = |address: Ipv4Addr| {
        subnet
            .contains(&address)
            .then(|| u32::from(address) - u32::from(subnet.network()))
    };
    let mut used: BTreeSet<u32> = inventory
        .containers()
        .values()
        .filter_map(|container| container.endpoints.get(&network.id)?.ipv4)
        .filter_map(number)
        .collect();
    used.extend(busy.values().filter_map(|step| match step {
        NetworkStep::Attach {
            network: of, ipv4, ..
        } if *of == network.id => number(*ipv4),
        _ => None,
    }));
    for (container, attachment) in &wanted.members {
        let attached = inventory
            .container(container)
            .is_some_and(|it| it.endpoints.contains_key(&network.id));
        let subject = Subject::Attachment(network.id.clone(), container.clone());
        if attached || busy.contains_key(&subject) {
            continue;
        }
        let Some(host) = allocator.next(&network.id, subnet, &used) else {
            return;
        };
        used.insert(host);
        steps.push(NetworkStep::Attach {
            network: network.id.clone(),
            container: container.clone(),
            ipv4: Ipv4Addr::from(u32::from(subnet.network()) + host),
            ipv6: ipv6.and_then(|net| {
                let address = u128::from(net.network()).checked_add(u128::from(host))?;
                Some(Ipv6Addr::from(address)).filter(|address| net.contains(address))
            }),
            aliases: attachment.aliases.clone(),
        });
    }
}

#[cfg(test)]
mod tests;
