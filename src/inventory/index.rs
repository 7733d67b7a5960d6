//! The inventory the other way round: who is attached to a network, and which networks a bridge and a service have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Container, ContainerId, Network, NetworkId, NetworkKind, NetworkMode};
use crate::net::{IfName, Mac};

/// Who is attached to one network, whether or not the network itself is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    containers: BTreeSet<ContainerId>,
    macs: BTreeSet<(Mac, ContainerId)>,
    addresses: BTreeSet<(Ipv4Addr, ContainerId)>,
}

impl Attached {
    /// All of them.
    pub fn containers(&self) -> &BTreeSet<ContainerId> {
        &self.containers
    }

    /// Those whose endpoint has this Ethernet address.
    pub fn behind(&self, mac: Mac) -> impl Iterator<Item = &ContainerId> {
        let from = (mac, ContainerId::default());
        let behind = self.macs.range(from..).take_while(move |(it, _)| *it == mac);
        behind.map(|(_, container)| container)
    }

    /// Whether an endpoint has this address, or a stopped container asks for it.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        let from = (address, ContainerId::default());
        self.addresses
            .range(from..)
            .next()
            .is_some_and(|(it, _)| *it == address)
    }

    /// Their addresses in descending order.
    pub fn highest(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().rev().map(|(address, _)| *address)
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Index {
    attached: BTreeMap<NetworkId, Attached>,
    /// Who shares the network stack of a container.
    sharing: BTreeMap<ContainerId, BTreeSet<ContainerId>>,
    bridges: BTreeMap<IfName, BTreeSet<NetworkId>>,
    /// By segment and service.
    owned: BTreeMap<(String, String), BTreeSet<NetworkId>>,
}

impl Index {
    pub(super) fn add_container(&mut self, container: &Container) {
        for (network, endpoint) in &container.endpoints {
            let attached = self.attached.entry(network.clone()).or_default();
            attached.containers.insert(container.id.clone());
            attached
                .macs
                .extend(endpoint.mac.map(|mac| (mac, container.id.clone())));
            let address = endpoint.ipv4.map(|address| (address, container.id.clone()));
            attached.addresses.extend(address);
        }
        if let NetworkMode::Shared(other) = &container.network_mode {
            add(&mut self.sharing, other.clone(), container.id.clone());
        }
    }

    pub(super) fn remove_container(&mut self, container: &Container) {
        for (network, endpoint) in &container.endpoints {
            let Some(attached) = self.attached.get_mut(network) else {
                continue;
            };
            attached.containers.remove(&container.id);
            if let Some(mac) = endpoint.mac {
                attached.macs.remove(&(mac, container.id.clone()));
            }
            if let Some(address) = endpoint.ipv4 {
                attached.addresses.remove(&(address, container.id.clone()));
            }
            if attached.containers.is_empty() {
                self.attached.remove(network);
            }
        }
        if let NetworkMode::Shared(other) = &container.network_mode {
            remove(&mut self.sharing, other, &container.id);
        }
    }

    pub(super) fn add_network(&mut self, network: &Network) {
        if let NetworkKind::Bridge(bridge) = &network.kind {
            add(&mut self.bridges, bridge.clone(), network.id.clone());
        }
        if let Some((segment, service)) = network.owner() {
            let owner = (segment.to_owned(), service.to_owned());
            add(&mut self.owned, owner, network.id.clone());
        }
    }

    pub(super) fn remove_network(&mut self, network: &Network) {
        if let NetworkKind::Bridge(bridge) = &network.kind {
            remove(&mut self.bridges, bridge, &network.id);
        }
        if let Some((segment, service)) = network.owner() {
            let owner = (segment.to_owned(), service.to_owned());
            remove(&mut self.owned, &owner, &network.id);
        }
    }

    pub(super) fn attached(&self, network: &NetworkId) -> Option<&Attached> {
        self.attached.get(network)
    }

    pub(super) fn sharing(&self, container: &ContainerId) -> Option<&BTreeSet<ContainerId>> {
        self.sharing.get(container)
    }

    pub(super) fn on_bridge(&self, bridge: &IfName) -> Option<&BTreeSet<NetworkId>> {
        self.bridges.get(bridge)
    }

    pub(super) fn owned(&self, segment: &str, service: &str) -> Option<&BTreeSet<NetworkId>> {
        self.owned.get(&(segment.to_owned(), service.to_owned()))
    }
}

fn add<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: K, value: V) {
    map.entry(key).or_default().insert(value);
}

fn remove<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
