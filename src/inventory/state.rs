//! The state itself: what the engine last said, and mutators that return what they changed for real.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{Attached, Index};
use super::{Container, ContainerId, Endpoint, Lifecycle, Network, NetworkId};
use crate::net::IfName;

/// A full reading of the engine. What is missing from it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    pub containers: Vec<Container>,
    pub networks: Vec<Network>,
    /// Networks that are gone, by name, that stopped containers of this host still wish for: such a container cannot
    /// start. Only those with names that we give.
    pub stale: BTreeMap<ContainerId, BTreeSet<String>>,
}

/// The objects that an event really touched: a value that was already so is no change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    pub containers: BTreeSet<ContainerId>,
    pub networks: BTreeSet<NetworkId>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.networks.is_empty()
    }

    /// Takes the other's objects in too.
    pub fn merge(&mut self, other: Self) {
        self.containers.extend(other.containers);
        self.networks.extend(other.networks);
    }

    fn of_container(id: &ContainerId) -> Self {
        Self {
            containers: BTreeSet::from([id.clone()]),
            networks: BTreeSet::new(),
        }
    }

    fn of_network(id: &NetworkId) -> Self {
        Self {
            containers: BTreeSet::new(),
            networks: BTreeSet::from([id.clone()]),
        }
    }
}

/// The engine as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    containers: BTreeMap<ContainerId, Container>,
    networks: BTreeMap<NetworkId, Network>,
    /// Endpoints that were seen before their container was. They count for nobody until it is known.
    early: BTreeMap<ContainerId, BTreeMap<NetworkId, Endpoint>>,
    index: Index,
}

impl Inventory {
    /// One that knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every known container, by id.
    pub fn containers(&self) -> &BTreeMap<ContainerId, Container> {
        &self.containers
    }

    /// Every known network, by id.
    pub fn networks(&self) -> &BTreeMap<NetworkId, Network> {
        &self.networks
    }

    /// The container of that id.
    pub fn container(&self, id: &ContainerId) -> Option<&Container> {
        self.containers.get(id)
    }

    /// Whether all of these are known.
    pub fn knows(&self, objects: &Changes) -> bool {
        objects
            .containers
            .iter()
            .all(|it| self.containers.contains_key(it))
            && objects.networks.iter().all(|it| self.networks.contains_key(it))
    }

    /// What was last seen of an attachment, whether or not its container is known.
    pub fn endpoint(&self, container: &ContainerId, network: &NetworkId) -> Option<&Endpoint> {
        match self.containers.get(container) {
            Some(container) => container.endpoints.get(network),
            None => self.early.get(container)?.get(network),
        }
    }

    /// The network of that id.
    pub fn network(&self, id: &NetworkId) -> Option<&Network> {
        self.networks.get(id)
    }

    /// Who is attached to a network, whether or not that is known itself.
    pub fn attached(&self, network: &NetworkId) -> Option<&Attached> {
        self.index.attached(network)
    }

    /// The containers that share the network stack of this one.
    pub fn sharing<'a>(&'a self, container: &ContainerId) -> impl Iterator<Item = &'a ContainerId> + use<'a> {
        self.index.sharing(container).into_iter().flatten()
    }

    /// The networks on a bridge of this name.
    pub fn on_bridge<'a>(&'a self, bridge: &IfName) -> impl Iterator<Item = &'a Network> + use<'a> {
        let networks = self.index.on_bridge(bridge).into_iter().flatten();
        networks.filter_map(|id| self.networks.get(id))
    }

    /// The networks of ours of a service.
    pub fn owned<'a>(&'a self, segment: &str, service: &str) -> impl Iterator<Item = &'a Network> + use<'a> {
        let networks = self.index.owned(segment, service).into_iter().flatten();
        networks.filter_map(|id| self.networks.get(id))
    }

    /// Containers that have endpoints but are not known themselves: read these from the engine.
    pub fn unknown_containers(&self) -> impl Iterator<Item = &ContainerId> {
        self.early.keys()
    }

    /// Replaces everything by a full reading. Whatever was seen before it is forgotten, early endpoints too.
    pub fn reset(&mut self, listing: Listing) -> Changes {
        self.reset_except(listing, &Changes::default())
    }

    /// Replaces everything by a full reading, but these objects, which changed while it was made: those that are known stay as
    /// they are. Of the others the reading is the best that there is.
    pub fn reset_except(&mut self, listing: Listing, newer: &Changes) -> Changes {
        let mut containers = by_id(listing.containers, |container| container.id.clone());
        let mut networks = by_id(listing.networks, |network| network.id.clone());
        keep(&mut containers, &self.containers, &newer.containers);
        keep(&mut networks, &self.networks, &newer.networks);
        self.early.retain(|id, _| newer.containers.contains(id));
        for container in containers.values_mut() {
            self.complete(container);
        }
        let changes = Changes {
            containers: differing(&self.containers, &containers),
            networks: differing(&self.networks, &networks),
        };
        if !changes.is_empty() {
            self.index = Index::default();
            containers.values().for_each(|it| self.index.add_container(it));
            networks.values().for_each(|it| self.index.add_network(it));
            self.containers = containers;
            self.networks = networks;
        }
        changes
    }

    /// Takes a container's new reading. Endpoints that were seen before the container was known complete it where
    /// the reading has none, or none that is in the kernel yet.
    pub fn upsert_container(&mut self, mut container: Container) -> Changes {
        self.complete(&mut container);
        if self.containers.get(&container.id) == Some(&container) {
            return Changes::default();
        }
        let changes = Changes::of_container(&container.id);
        if let Some(before) = self.containers.get(&container.id) {
            self.index.remove_container(before);
        }
        self.index.add_container(&container);
        self.containers.insert(container.id.clone(), container);
        changes
    }

    /// Takes in what was seen before the container was known. Its powers never change: what was read once holds where the new
    /// reading could not tell.
    fn complete(&mut self, container: &mut Container) {
        for (network, endpoint) in self.early.remove(&container.id).unwrap_or_default() {
            if !container.endpoints.get(&network).is_some_and(Endpoint::is_live) {
                if endpoint.is_live() {
                    container.lifecycle = Lifecycle::Running;
                }
                container.endpoints.insert(network, endpoint);
            }
        }
        if container.facts.powers.is_none() {
            let known = self.containers.get(&container.id);
            container.facts.powers = known.and_then(|known| known.facts.powers.clone());
        }
    }

    /// Forgets a container with its endpoints.
    pub fn remove_container(&mut self, id: &ContainerId) -> Changes {
        self.early.remove(id);
        match self.containers.remove(id) {
            Some(before) => {
                self.index.remove_container(&before);
                Changes::of_container(id)
            }
            None => Changes::default(),
        }
    }

    /// Marks a container as running or stopped. A stopped one has no endpoint in the kernel and its addresses are
    /// free at once, so they are forgotten; the attachments stay. Read the container again for what it keeps.
    pub fn set_lifecycle(&mut self, id: &ContainerId, lifecycle: Lifecycle) -> Changes {
        if lifecycle == Lifecycle::Stopped {
            self.early.remove(id);
        }
        self.change_container(id, |container| {
            container.lifecycle = lifecycle;
            if lifecycle == Lifecycle::Stopped {
                let endpoints = container.endpoints.iter_mut().map(|(_, it)| it);
                for endpoint in endpoints.filter(|it| it.is_live()) {
                    *endpoint = Endpoint::default();
                }
            }
        })
    }

    /// Renames a container.
    pub fn rename_container(&mut self, id: &ContainerId, name: &str) -> Changes {
        self.change_container(id, |container| name.clone_into(&mut container.name))
    }

    /// Takes a network's new reading.
    pub fn upsert_network(&mut self, network: Network) -> Changes {
        if self.networks.get(&network.id) == Some(&network) {
            return Changes::default();
        }
        let changes = Changes::of_network(&network.id);
        if let Some(before) = self.networks.get(&network.id) {
            self.index.remove_network(before);
        }
        self.index.add_network(&network);
        self.networks.insert(network.id.clone(), network);
        changes
    }

    /// Forgets a network. Attachments to it stay with their containers until the engine says otherwise.
    pub fn remove_network(&mut self, id: &NetworkId) -> Changes {
        match self.networks.remove(id) {
            Some(before) => {
                self.index.remove_network(&before);
                Changes::of_network(id)
            }
            None => Changes::default(),
        }
    }

    /// Takes one attachment's new reading. One that is in the kernel makes its container a running one; one of an
    /// unknown container is kept until the container is known, and is no change until then.
    pub fn set_endpoint(&mut self, id: &ContainerId, network: &NetworkId, endpoint: Endpoint) -> Changes {
        if !self.containers.contains_key(id) {
            let early = self.early.entry(id.clone()).or_default();
            early.insert(network.clone(), endpoint);
            return Changes::default();
        }
        self.change_container(id, |container| {
            if endpoint.is_live() {
                container.lifecycle = Lifecycle::Running;
            }
            container.endpoints.insert(network.clone(), endpoint);
        })
    }

    /// Forgets one attachment.
    pub fn remove_endpoint(&mut self, id: &ContainerId, network: &NetworkId) -> Changes {
        if let Some(early) = self.early.get_mut(id) {
            early.remove(network);
            if early.is_empty() {
                self.early.remove(id);
            }
        }
        self.change_container(id, |container| {
            container.endpoints.remove(network);
        })
    }

    fn change_container(&mut self, id: &ContainerId, change: impl FnOnce(&mut Container)) -> Changes {
        let Some(container) = self.containers.get_mut(id) else {
            return Changes::default();
        };
        let before = container.clone();
        change(container);
        if *container == before {
            return Changes::default();
        }
        self.index.remove_container(&before);
        self.index.add_container(container);
        Changes::of_container(id)
    }
}

/// Of two readings of one object in a listing the later counts.
fn by_id<K: Ord, V>(values: Vec<V>, id: impl Fn(&V) -> K) -> BTreeMap<K, V> {
    values.into_iter().map(|value| (id(&value), value)).collect()
}

/// Puts what is known of these objects in the place of what was read of them.
fn keep<K: Ord + Clone, V: Clone>(read: &mut BTreeMap<K, V>, known: &BTreeMap<K, V>, these: &BTreeSet<K>) {
    for id in these {
        if let Some(value) = known.get(id) {
            read.insert(id.clone(), value.clone());
        }
    }
}

/// The keys whose values are not the same on both sides.
fn differing<K: Ord + Clone, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> BTreeSet<K> {
    let keys = before.keys().chain(after.keys());
    keys.filter(|key| before.get(key) != after.get(key))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests;
