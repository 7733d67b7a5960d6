//! The bridge on which each container's port was proven to be its own. Only a port that was proven on this very bridge is ever
//! put back there: another one that shows the same address elsewhere gains nothing.

use super::*;

/// The bridge on which a port was proven to be a container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) bridge: u32,
    pub(super) container: ContainerId,
    pub(super) network: NetworkId,
    /// It was put back just now; the port's own event is still to come.
    pub(super) returned: bool,
}

/// Homes by port, and the port of each endpoint that has one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Homes {
    homes: BTreeMap<u32, Home>,
    ports: BTreeMap<(ContainerId, NetworkId), u32>,
}

impl Homes {
    pub(super) fn get(&self, port: u32) -> Option<&Home> {
        self.homes.get(&port)
    }

    pub(super) fn get_mut(&mut self, port: u32) -> Option<&mut Home> {
        self.homes.get_mut(&port)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Home> {
        self.homes.values_mut()
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = u32> {
        self.homes.keys().copied()
    }

    pub(super) fn insert(&mut self, port: u32, home: Home) {
        self.remove(port);
        let endpoint = (home.container.clone(), home.network.clone());
        self.ports.insert(endpoint, port);
        self.homes.insert(port, home);
    }

    pub(super) fn remove(&mut self, port: u32) {
        if let Some(home) = self.homes.remove(&port) {
            self.ports.remove(&(home.container, home.network));
        }
    }

    /// The networks on which a container has one, with the ports.
    fn of(&self, container: &ContainerId) -> Vec<(NetworkId, u32)> {
        let first = (container.clone(), NetworkId::default());
        let own = self.ports.range(first..);
        let own = own.take_while(|((id, _), _)| id == container);
        own.map(|((_, network), port)| (network.clone(), *port)).collect()
    }
}

impl Planner {
    /// Remembers where each endpoint's port is, for as long as there is the endpoint.
    pub(super) fn find_homes(&mut self, containers: &BTreeSet<ContainerId>) {
        for id in containers {
            let container = self.inventory.container(id);
            let mut known = BTreeSet::new();
            for (network, port) in self.homes.of(id) {
                let endpoint = container.and_then(|it| it.endpoints.get(&network));
                if endpoint.is_some_and(Endpoint::is_live) {
                    known.insert(network);
                } else {
                    self.homes.remove(port);
                }
            }
            let endpoints = container.into_iter().flat_map(|it| &it.endpoints);
            for (network, endpoint) in endpoints.filter(|(network, _)| !known.contains(network)) {
                let port = self.bound_port(id, network, endpoint);
                if let Some(port) = port.filter(|_| self.guarded.contains(network)) {
                    let home = Home {
                        bridge: port.bridge,
                        container: id.clone(),
                        network: network.clone(),
                        returned: false,
                    };
                    self.homes.insert(port.index, home);
                }
            }
        }
    }

    /// The port that is known to be an endpoint's.
    pub(super) fn bound_port(
        &self,
        container: &ContainerId,
        network: &NetworkId,
        endpoint: &Endpoint,
    ) -> Option<&Port> {
        let network = self.inventory.network(network)?;
        let (Some(mac), NetworkKind::Bridge(bridge)) = (endpoint.mac, &network.kind) else {
            return None;
        };
        let bridge = self.links.bridge_index(bridge)?;
        self.occupants.port_of(&self.links, container, bridge, mac)
    }
}
