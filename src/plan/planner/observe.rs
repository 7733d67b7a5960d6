//! Taking in: what the engine and the links said, and when it was read.

use super::*;

impl Planner {
    /// Now. A reading of the engine that begins now knows of every port that was told so far.
    pub fn moment(&self) -> Moment {
        Moment(self.clock)
    }

    /// Takes a full listing of the engine that began at this moment.
    pub fn reset(&mut self, listing: Listing, began: Moment) {
        self.reset_except(listing, began, Changes::default());
    }

    /// Takes a full listing of the engine that began at this moment, but for these objects, of which events have told since.
    /// Of a container that was read later than that, too, it says nothing new.
    pub fn reset_except(&mut self, mut listing: Listing, began: Moment, mut newer: Changes) {
        self.stale = std::mem::take(&mut listing.stale);
        let read_since = self
            .readings
            .iter()
            .filter(|(_, of_it)| of_it.values().any(|last| *last > began));
        newer.containers.extend(read_since.map(|(id, _)| id.clone()));
        let mut readings = BTreeMap::new();
        let known = self.inventory.containers();
        let stays = |it: &Container| newer.containers.contains(&it.id) && known.contains_key(&it.id);
        let read: Vec<_> = listing.containers.iter_mut().filter(|it| !stays(it)).collect();
        for container in read {
            self.keep_newer(container, began);
            let of_it = self.note_reading(container, began);
            if !of_it.is_empty() {
                readings.insert(container.id.clone(), of_it);
            }
        }
        self.readings.retain(|id, _| newer.containers.contains(id));
        self.readings.append(&mut readings);
        let networks = self.inventory.networks().clone();
        let changes = self.inventory.reset_except(listing, &newer);
        for (id, network) in &networks {
            if changes.networks.contains(id) {
                self.note_former(network);
            }
        }
        if !changes.is_empty() {
            // Any of them may have been left by its last container.
            self.unsettled.networks.extend(networks.into_keys());
        }
        self.note(changes);
    }

    /// Changes what is known of one container.
    fn change_container(&mut self, id: &ContainerId, change: impl FnOnce(&mut Inventory) -> Changes) {
        let before = self.inventory.container(id);
        let left: Vec<NetworkId> = before
            .into_iter()
            .flat_map(|it| it.endpoints.keys().cloned())
            .collect();
        let changes = change(&mut self.inventory);
        if !changes.is_empty() {
            self.unsettled.networks.extend(left);
        }
        self.note(changes);
    }

    /// Changes what is known of one network.
    fn change_network(&mut self, id: &NetworkId, change: impl FnOnce(&mut Inventory) -> Changes) {
        let before = self.inventory.network(id).cloned();
        let changes = change(&mut self.inventory);
        if !changes.is_empty() {
            before.iter().for_each(|it| self.note_former(it));
        }
        self.note(changes);
    }

    /// Takes one container as it was when its reading began.
    pub fn upsert_container(&mut self, mut container: Container, began: Moment) {
        self.keep_newer(&mut container, began);
        let readings = self.note_reading(&container, began);
        let id = container.id.clone();
        if !readings.is_empty() {
            self.readings.insert(id.clone(), readings);
        }
        self.change_container(&id, |inventory| inventory.upsert_container(container));
    }

    /// Marks a container as running or stopped.
    pub fn set_lifecycle(&mut self, id: &ContainerId, lifecycle: Lifecycle) {
        self.change_container(id, |inventory| inventory.set_lifecycle(id, lifecycle));
    }

    /// Forgets a container.
    pub fn remove_container(&mut self, id: &ContainerId) {
        self.readings.remove(id);
        self.stale.remove(id);
        self.change_container(id, |inventory| inventory.remove_container(id));
    }

    /// Takes one network as it now is.
    pub fn upsert_network(&mut self, network: Network) {
        let id = network.id.clone();
        self.change_network(&id, |inventory| inventory.upsert_network(network));
    }

    /// Forgets a network.
    pub fn remove_network(&mut self, id: &NetworkId) {
        self.change_network(id, |inventory| inventory.remove_network(id));
        self.allocator.retain(&self.inventory);
    }

    /// Takes one endpoint as it was when its reading began, unless a later reading has told of it.
    pub fn set_endpoint(
        &mut self,
        container: &ContainerId,
        network: &NetworkId,
        endpoint: Endpoint,
        began: Moment,
    ) {
        let last = self.readings.get(container).and_then(|it| it.get(network));
        if last.is_some_and(|last| *last > began) {
            return;
        }
        if endpoint.is_live() {
            let readings = self.readings.entry(container.clone()).or_default();
            let before = readings.insert(network.clone(), began);
            self.note_confirmation(container, before, began);
        }
        self.change_container(container, |inventory| {
            inventory.set_endpoint(container, network, endpoint)
        });
    }

    /// Forgets an endpoint.
    pub fn remove_endpoint(&mut self, container: &ContainerId, network: &NetworkId) {
        self.change_container(container, |inventory| {
            inventory.remove_endpoint(container, network)
        });
    }

    /// Takes a full listing of the host's bridges and ports.
    pub fn reset_links(&mut self, bridges: BTreeMap<u32, IfName>, ports: BTreeMap<u32, Port>) {
        for port in ports.values() {
            self.note_since(port);
        }
        self.since.retain(|index, _| ports.contains_key(index));
        self.homes.values_mut().for_each(|home| home.returned = false);
        self.unset.extend(self.homes.ports());
        let before = self.links.clone();
        if self.links.reset(bridges, ports) {
            self.occupants.relisted(&before, &self.links);
            self.dirty.everything = true;
        }
    }

    /// Takes one bridge as it now is.
    pub fn upsert_bridge(&mut self, index: u32, name: IfName) {
        let before = self.links.bridge_name(index).cloned();
        if self.links.upsert_bridge(index, name.clone()) {
            self.dirty.bridges.insert(index);
            before.iter().chain([&name]).for_each(|it| self.note_bridges(it));
        }
    }

    /// Forgets a bridge.
    pub fn remove_bridge(&mut self, index: u32) {
        if let Some(name) = self.links.bridge_name(index).cloned() {
            self.links.remove_bridge(index);
            self.calling.remove(&index);
            self.observed(index);
            self.dirty.bridges.insert(index);
            self.note_bridges(&name);
        }
    }

    /// Takes one port as it now is.
    pub fn upsert_port(&mut self, port: Port) {
        self.note_since(&port);
        if let Some(home) = self.homes.get_mut(port.index) {
            home.returned = false;
            self.unset.insert(port.index);
        }
        let before = self.links.port(port.index).cloned();
        if self.links.upsert_port(port.clone()) {
            self.note_port(&port);
            before.iter().for_each(|before| self.port_gone(before));
        }
    }

    /// Forgets a port.
    pub fn remove_port(&mut self, index: u32) {
        if let Some(port) = self.links.port(index).cloned() {
            self.links.remove_port(index);
            self.since.remove(&index);
            self.isolated.remove(&index);
            self.observed(index);
            self.port_gone(&port);
        }
    }

    /// A port is not any more what it was.
    fn port_gone(&mut self, port: &Port) {
        self.note_port(port);
        let namespace = port.peer.map(|peer| peer.namespace);
        let freed = namespace.and_then(|it| self.occupants.release(&self.links, it));
        self.dirty.containers.extend(freed);
    }

    /// Takes the host's routes other than those to our own networks: no subnet of ours may overlap them.
    pub fn set_routes(&mut self, routes: Vec<IpNet>) {
        self.routes = routes;
    }

    /// Whether routes of the host and networks that are not ours leave no subnet of the pools free.
    pub fn pool_collision(&self) -> Option<PoolExhausted> {
        let others = self
            .inventory
            .networks()
            .values()
            .filter(|network| !network.is_ours());
        let taken = others
            .flat_map(|network| network.subnets.iter().copied())
            .chain(self.routes.iter().copied());
        self.pools.free_subnets(taken).take().err()
    }

    /// A port that is new, or that another Ethernet address is behind, or that has moved: what the engine said earlier does
    /// not count for it.
    pub(super) fn note_since(&mut self, port: &Port) {
        let same = self.links.port(port.index).is_some_and(|before| {
            before.bridge == port.bridge && (before.peer.is_none() || before.peer == port.peer)
        });
        if !same {
            self.clock += 1;
            self.since.insert(port.index, Moment(self.clock));
        }
    }

    /// Puts back what later readings than this one told of the container's endpoints. An inspection that began before a start
    /// ends after it: what it says of endpoints must not count again.
    fn keep_newer(&self, container: &mut Container, began: Moment) {
        let Some(readings) = self.readings.get(&container.id) else {
            return;
        };
        for (network, _) in readings.iter().filter(|(_, last)| **last > began) {
            let Some(endpoint) = self.inventory.endpoint(&container.id, network) else {
                container.endpoints.remove(network);
                continue;
            };
            if endpoint.is_live() {
                container.lifecycle = Lifecycle::Running;
            }
            container.endpoints.insert(network.clone(), endpoint.clone());
        }
    }

    /// When each endpoint of a container was last read, this reading among them. What was seen before the container was known
    /// is kept with it.
    fn note_reading(&mut self, container: &Container, began: Moment) -> LiteMap<NetworkId, Moment> {
        let mut readings = self.readings.get(&container.id).cloned().unwrap_or_default();
        for (network, _) in container.endpoints.iter().filter(|(_, it)| it.is_live()) {
            let before = readings.get(network).copied();
            let last = before.map_or(began, |before| before.max(began));
            readings.insert(network.clone(), last);
            self.note_confirmation(&container.id, before, last);
        }
        readings
    }

    /// A newer reading may confirm what waits for it. One of the same moment says nothing new.
    fn note_confirmation(&mut self, container: &ContainerId, before: Option<Moment>, now: Moment) {
        let waits = self.unconfirmed.contains_key(container) || !self.occupants.knows(container);
        if before.is_none_or(|before| waits && before < now) {
            self.dirty.containers.insert(container.clone());
        }
    }
}
