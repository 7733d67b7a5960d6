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
        let changes = self.inventory.reset(listing);
        self.note(changes);
    }

    /// Takes one container as it was when its reading began.
    pub fn upsert_container(&mut self, container: Container, began: Moment) {
        let before = self.readings.remove(&container.id);
        let before = before.map(|it| (container.id.clone(), it)).into_iter().collect();
        self.note_reading(&container, began, &before);
        let changes = self.inventory.upsert_container(container);
        self.note(changes);
    }

    /// Marks a container as running or stopped.
    pub fn set_lifecycle(&mut self, id: &ContainerId, lifecycle: Lifecycle) {
        let changes = self.inventory.set_lifecycle(id, lifecycle);
        self.note(changes);
    }

    /// Forgets a container.
    pub fn remove_container(&mut self, id: &ContainerId) {
        self.readings.remove(id);
        self.stale.remove(id);
        let changes = self.inventory.remove_container(id);
        self.note(changes);
    }

    /// Takes one network as it now is.
    pub fn upsert_network(&mut self, network: Network) {
        let changes = self.inventory.upsert_network(network);
        self.note(changes);
    }

    /// Forgets a network.
    pub fn remove_network(&mut self, id: &NetworkId) {
        let changes = self.inventory.remove_network(id);
        self.note(changes);
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
        let changes = self.inventory.set_endpoint(container, network, endpoint);
        self.note(changes);
    }

    /// Forgets an endpoint.
    pub fn remove_endpoint(&mut self, container: &ContainerId, network: &NetworkId) {
        let changes = self.inventory.remove_endpoint(container, network);
        self.note(changes);
    }

    /// Takes a full listing of the host's bridges and ports.
    pub fn reset_links(&mut self, bridges: BTreeMap<u32, IfName>, ports: BTreeMap<u32, Port>) {
        for port in ports.values() {
            self.note_since(port);
        }
        self.since.retain(|index, _| ports.contains_key(index));
        self.homes.values_mut().for_each(|home| home.returned = false);
        let before = self.links.clone();
        if self.links.reset(bridges, ports) {
            self.occupants.relisted(&before, &self.links);
            self.dirty.everything = true;
        }
    }

    /// Takes one bridge as it now is.
    pub fn upsert_bridge(&mut self, index: u32, name: IfName) {
        if self.links.upsert_bridge(index, name) {
            self.dirty.everything = true;
        }
    }

    /// Forgets a bridge.
    pub fn remove_bridge(&mut self, index: u32) {
        if self.links.remove_bridge(index) {
            self.calling.remove(&index);
            self.dirty.everything = true;
        }
    }

    /// Takes one port as it now is.
    pub fn upsert_port(&mut self, port: Port) {
        self.note_since(&port);
        if let Some(home) = self.homes.get_mut(&port.index) {
            home.returned = false;
        }
        let before = self.links.port(port.index).cloned();
        if self.links.upsert_port(port.clone()) {
            self.occupants.retain(&self.links);
            self.note_port(&port);
            before.iter().for_each(|before| self.note_port(before));
        }
    }

    /// Forgets a port.
    pub fn remove_port(&mut self, index: u32) {
        if let Some(port) = self.links.port(index).cloned() {
            self.links.remove_port(index);
            self.since.remove(&index);
            self.occupants.retain(&self.links);
            self.isolated.remove(&index);
            self.note_port(&port);
        }
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
        let taken: Vec<IpNet> = others
            .flat_map(|network| network.subnets.iter().copied())
            .chain(self.routes.iter().copied())
            .collect();
        self.pools.free_subnets(&taken).err()
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
        let mut readings = before.cloned().unwrap_or_default();
        // What was seen before the container was known is kept with it.
        readings.retain(|network, _| container.endpoints.get(network).is_none_or(|it| !it.is_live()));
        for (network, _) in container.endpoints.iter().filter(|(_, it)| it.is_live()) {
            let before = readings.insert(network.clone(), began);
            self.note_confirmation(&container.id, before, began);
        }
        if !readings.is_empty() {
            self.readings.insert(container.id.clone(), readings);
        }
    }

    /// A newer reading may confirm what waits for it; an older one may take that back.
    pub(super) fn note_confirmation(&mut self, container: &ContainerId, before: Option<Moment>, now: Moment) {
        if before.is_none_or(|before| before > now) || self.unconfirmed.contains_key(container) {
            self.dirty.containers.insert(container.clone());
        }
    }
}
