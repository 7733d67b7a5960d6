//! What does not fit together, and what waits for a newer reading. Notes of what is to be looked at anew.

use super::*;

impl Planner {
    pub(super) fn view(&self) -> View<'_> {
        View {
            inventory: &self.inventory,
            links: &self.links,
            occupants: &self.occupants,
            standings: &self.standings,
            guarded: &self.guarded,
            readings: &self.readings,
            since: &self.since,
            structure: &self.structure,
            published: &self.published,
            rights: &self.rights,
        }
    }

    /// The networks that must be read again, since a port of theirs is newer than what the engine said of its owner.
    pub fn unconfirmed(&self) -> BTreeSet<NetworkId> {
        self.unconfirmed.values().flatten().cloned().collect()
    }

    /// The containers whose endpoint on a network waits for such a reading.
    pub fn unconfirmed_on(&self, network: &NetworkId) -> Vec<ContainerId> {
        let waiting = self
            .unconfirmed
            .iter()
            .filter(|(_, networks)| networks.contains(network));
        waiting.map(|(container, _)| container.clone()).collect()
    }

    /// What does not fit together. See [`Doubt`].
    pub fn doubts(&self) -> BTreeSet<Doubt> {
        let view = self.view();
        let mut doubts = BTreeSet::new();
        let mut owned = BTreeSet::new();
        for container in self.inventory.containers().values() {
            for (network, endpoint) in container.endpoints.iter().filter(|(_, it)| it.is_live()) {
                let is_bridge = |it: &Network| matches!(it.kind, NetworkKind::Bridge(_));
                if !self.inventory.network(network).is_some_and(is_bridge) {
                    continue;
                }
                match view.port_of(&container.id, network, endpoint) {
                    Some(port) if view.is_confirmed(&container.id, network, port) => {
                        owned.insert(port);
                    }
                    _ => {
                        doubts.insert(Doubt::Endpoint(container.id.clone(), network.clone()));
                    }
                }
            }
        }
        let mut bridges = BTreeSet::new();
        for network in self.inventory.networks().values() {
            let NetworkKind::Bridge(name) = &network.kind else {
                continue;
            };
            let Some(bridge) = self.links.bridge_index(name) else {
                doubts.insert(Doubt::Network(network.id.clone()));
                continue;
            };
            bridges.insert(bridge);
            let ports = self.links.ports_of(bridge);
            let strangers = ports.filter(|port| port.peer.is_some() && !owned.contains(&port.index));
            doubts.extend(strangers.map(|port| Doubt::Port(port.index)));
        }
        let unknown = self.links.bridges();
        let unknown = unknown.filter(|(index, name)| !bridges.contains(index) && could_be_dockers(name));
        doubts.extend(unknown.map(|(index, _)| Doubt::Bridge(index)));
        doubts
    }

    pub(super) fn note(&mut self, changes: Changes) {
        // `append` would make the whole set anew for each of a thousand events.
        self.dirty.containers.extend(changes.containers);
        self.dirty.networks.extend(changes.networks);
    }

    /// What a network that is no more as it was leaves behind: its bridge may be nobody's, and its service without one.
    pub(super) fn note_former(&mut self, network: &Network) {
        if let NetworkKind::Bridge(bridge) = &network.kind {
            self.dirty.bridges.extend(self.links.bridges_named(bridge));
        }
        self.unsettled.services.extend(owner(network));
    }

    /// Marks all bridges with a name, and the networks that may be on one of them.
    pub(super) fn note_bridges(&mut self, name: &IfName) {
        self.dirty.bridges.extend(self.links.bridges_named(name));
        let networks = self.inventory.on_bridge(name).map(|it| it.id.clone());
        self.dirty.networks.extend(networks);
    }

    /// Marks a port and the containers that could be behind it.
    pub(super) fn note_port(&mut self, port: &Port) {
        self.dirty.ports.insert(port.index);
        let behind = self.behind(port);
        self.dirty.containers.extend(behind);
    }

    /// The networks to read since a port leads to a container and no endpoint that is known can be behind it: the engine's word of
    /// that attachment is late, or was lost.
    pub fn unexplained(&self, port: u32) -> Vec<NetworkId> {
        let port = self.links.port(port).filter(|port| port.peer.is_some());
        let port = port.filter(|port| self.behind(port).is_empty());
        let networks = port.into_iter().flat_map(|it| self.view().networks_on(it.bridge));
        networks.map(|network| network.id.clone()).collect()
    }

    /// The containers with an endpoint on the port's bridge that has the address that the port claims.
    pub(super) fn behind(&self, port: &Port) -> BTreeSet<ContainerId> {
        let Some(peer) = port.peer else {
            return BTreeSet::new();
        };
        let view = self.view();
        let attached = view
            .networks_on(port.bridge)
            .filter_map(|network| self.inventory.attached(&network.id));
        attached.flat_map(|it| it.behind(peer.mac)).cloned().collect()
    }
}
