//! Taking in: what the engine and the links said, and when it was read.

use super::*;

impl Planner {
    /// Now. A reading of the engine that begins now knows of every port that was told so far.
    pub fn moment(&self) -> Moment {
        Moment(self.clock)
    }

    /// Takes a full listing of the engine that began at this moment.
    pub fn reset(&mut self, mut listing: Listing, began: Moment) {
        self.stale = std::mem::take(&mut listing.stale);
        let before = std::mem::take(&mut self.readings);
        for container in &listing.containers {
            self.note_reading(container, began, &before);
        }
        let networks = self.inventory.networks().clone();
        let changes = self.inventory.reset(listing);
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
    pub fn upsert_container(&mut self, container: Container, began: Moment) {
        let before = self.readings.remove(&container.id);
        let before = before.map(|it| (container.id.clone(), it)).into_iter().collect();
        self.note_reading(&container, began, &before);
        let id = container.id.clone();
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

    /// Takes one endpoint as it was when its reading began.
    pub fn set_endpoint(
        &mut self,
        container: &ContainerId,
        network: &NetworkId,
        endpoint: Endpoint,
        began: Moment,
    ) {
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

    pub(super) fn note_reading(&mut self, container: &Container, began: Moment, before: &Readings) {
        let before = before.get(&container.id);
        let is_live = |network: &NetworkId| container.endpoints.get(network).is_some_and(Endpoint::is_live);
        let mut readings = LiteMap::with_capacity(container.endpoints.len());
        // What was seen before the container was known is kept with it.
        let others = before
            .into_iter()
            .flatten()
            .filter(|(network, _)| !is_live(network));
        readings.extend(others.map(|(network, at)| (network.clone(), *at)));
        for network in container.endpoints.keys().filter(|it| is_live(it)) {
            let before = before.and_then(|it| it.get(network)).copied();
            readings.insert(network.clone(), began);
            self.note_confirmation(&container.id, before, began);
        }
        if !readings.is_empty() {
            self.readings.insert(container.id.clone(), readings);
        }
    }

    /// A newer reading may confirm what waits for it; an older one may take that back. One of the same moment says nothing new.
    pub(super) fn note_confirmation(&mut self, container: &ContainerId, before: Option<Moment>, now: Moment) {
        let waits = self.unconfirmed.contains_key(container) || !self.occupants.knows(container);
        if before.is_none_or(|before| before > now || waits && before < now) {
            self.dirty.containers.insert(container.clone());
        }
    }
}
