//! Whose each address is at one time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::End;
use crate::inventory::{Container, ContainerId, Network, NetworkKind, NetworkMode, Published};
use crate::net::{Family, PortRange};
use crate::policy::Ports;

/// Addresses and published ports as they are at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ground {
    /// Containers that have the address: more than one where it is contested.
    addresses: BTreeMap<IpAddr, BTreeSet<ContainerId>>,
    host: BTreeSet<IpAddr>,
    /// Of the engine's bridges: who is there and unknown is somebody, but not the world.
    subnets: BTreeSet<IpNet>,
    published: BTreeMap<Published, BTreeSet<ContainerId>>,
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    End(End),
    /// Several claim it.
    Contested,
    /// A container's that nobody knows: it came or went just then.
    Unknown,
    /// It says nothing about who has it.
    Nobody,
}

impl Ground {
    /// As the engine and the host's interfaces tell it.
    pub fn new<'c>(
        containers: impl IntoIterator<Item = &'c Container>,
        networks: impl IntoIterator<Item = &'c Network>,
        host: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut ground = Self {
            host: host.into_iter().collect(),
            subnets: networks
                .into_iter()
                .filter(|network| matches!(network.kind, NetworkKind::Bridge(_)))
                .flat_map(|network| network.subnets.iter().copied())
                .collect(),
            ..Self::default()
        };
        for container in containers {
            if container.network_mode != NetworkMode::Own {
                continue;
            }
            for endpoint in container.endpoints.values().filter(|it| it.is_live()) {
                for address in endpoint.addresses() {
                    let owners = ground.addresses.entry(address).or_default();
                    owners.insert(container.id.clone());
                }
            }
            for port in &container.published {
                let owners = ground.published.entry(*port).or_default();
                owners.insert(container.id.clone());
            }
        }
        ground
    }

    /// The ports that are published on any address.
    pub fn published(&self) -> impl Iterator<Item = &Published> {
        self.published.keys()
    }

    /// The host's own addresses.
    pub fn host(&self) -> &BTreeSet<IpAddr> {
        &self.host
    }

    pub(super) fn owner(&self, address: IpAddr) -> Owner {
        if let Some(owners) = self.addresses.get(&address) {
            let mut owners = owners.iter();
            return match (owners.next(), owners.next()) {
                (Some(one), None) => Owner::End(End::Container(one.clone())),
                _ => Owner::Contested,
            };
        }
        if self.host.contains(&address) || address.is_loopback() {
            return Owner::End(End::Host);
        }
        let is_link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if self.subnets.iter().any(|subnet| subnet.contains(&address)) {
            return Owner::Unknown;
        }
        match is_link_local || address.is_unspecified() || address.is_multicast() {
            true => Owner::Nobody,
            false => Owner::End(End::Outside),
        }
    }

    /// The containers behind a port of the host, with the port there. One that is published on just this address goes before
    /// those on every address.
    fn behind(&self, address: IpAddr, ports: Ports) -> BTreeSet<(ContainerId, Ports)> {
        let Ports::Transport(transport, range) = ports else {
            return BTreeSet::new();
        };
        let behind = |is_bound: &dyn Fn(IpAddr) -> bool| -> BTreeSet<(ContainerId, Ports)> {
            let matching = self.published.iter().filter(|(port, _)| {
                port.transport == transport && port.host_port == range.first && is_bound(port.address)
            });
            matching
                .flat_map(|(port, owners)| {
                    let ports = Ports::Transport(transport, PortRange::single(port.container_port));
                    owners.iter().map(move |owner| (owner.clone(), ports))
                })
                .collect()
        };
        let exact = behind(&|bound| bound == address);
        if !exact.is_empty() {
            return exact;
        }
        behind(&|bound| bound.is_unspecified() && Family::of(bound) == Family::of(address))
    }
}

/// Whose addresses they were before and after what was counted.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    pub before: &'a Ground,
    pub after: &'a Ground,
    /// When an address that had one owner before and another after changed hands.
    pub handover: Handover,
}

/// When addresses changed hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// While it was counted: whose it was cannot be told.
    Meanwhile,
    /// After that.
    Later,
}

impl<'a> Grounds<'a> {
    /// Nothing changed.
    pub fn still(ground: &'a Ground) -> Self {
        Self {
            before: ground,
            after: ground,
            handover: Handover::Later,
        }
    }

    /// Who had the address.
    pub(super) fn owner(&self, address: IpAddr) -> Owner {
        let (before, after) = (self.before.owner(address), self.after.owner(address));
        let is_containers = |owner: &Owner| matches!(owner, Owner::End(End::Container(_)) | Owner::Contested);
        match (is_containers(&before), is_containers(&after)) {
            (true, true) if before != after && self.handover == Handover::Meanwhile => Owner::Contested,
            (true, _) => before,
            // A network may have come with it.
            (false, false) if before == Owner::Unknown => before,
            (false, _) => after,
        }
    }

    /// The container that has the address.
    pub fn container(&self, address: IpAddr) -> Option<ContainerId> {
        match self.owner(address) {
            Owner::End(End::Container(id)) => Some(id),
            _ => None,
        }
    }

    /// The containers behind a port of the host, before and after.
    pub(super) fn behind(&self, address: IpAddr, ports: Ports) -> BTreeSet<(ContainerId, Ports)> {
        let mut behind = self.before.behind(address, ports);
        if behind.is_empty() {
            behind = self.after.behind(address, ports);
        }
        behind
    }
}
