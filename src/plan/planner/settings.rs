//! Settings of bridges and ports: what must be, against what was seen.

use super::*;

impl Planner {
    pub(super) fn link_steps(&self) -> Vec<LinkStep> {
        let calls = self.guarded_bridges();
        let calls = calls
            .difference(&self.calling)
            .map(|bridge| LinkStep::NetfilterCalls { bridge: *bridge });
        let isolate = self.roles().into_iter().filter_map(|(port, role)| {
            let isolated = role == Role::Caller;
            let changed = self.isolated.get(&port).copied().unwrap_or(false) != isolated;
            changed.then_some(LinkStep::Isolate { port, isolated })
        });
        let astray = self.homes.iter().filter_map(|(port, home)| {
            let there = self.links.port(*port).map(|it| it.bridge) == Some(home.bridge);
            let exists = || self.links.bridges().any(|(index, _)| index == home.bridge);
            (!there && !home.returned && exists()).then_some(LinkStep::Return {
                port: *port,
                bridge: home.bridge,
            })
        });
        calls.chain(isolate).chain(astray).collect()
    }

    /// Remembers where each endpoint's port is, for as long as there is the endpoint. Only a port that was proven on this
    /// very bridge is ever put back there: another one that shows the same address elsewhere gains nothing.
    pub(super) fn find_homes(&mut self) {
        let inventory = &self.inventory;
        let live = |home: &Home| {
            let container = inventory.container(&home.container);
            container
                .and_then(|it| it.endpoints.get(&home.network))
                .is_some_and(Endpoint::is_live)
        };
        self.homes.retain(|_, home| live(home));
        let known: BTreeSet<(ContainerId, NetworkId)> = self
            .homes
            .values()
            .map(|home| (home.container.clone(), home.network.clone()))
            .collect();
        let bridges: BTreeMap<&NetworkId, u32> = self
            .guarded
            .iter()
            .filter_map(|id| match &self.inventory.network(id)?.kind {
                NetworkKind::Bridge(name) => Some((id, self.links.bridge_index(name)?)),
                NetworkKind::Other(_) => None,
            })
            .collect();
        for container in self.inventory.containers().values() {
            for (network, endpoint) in &container.endpoints {
                let (Some(bridge), Some(mac)) = (bridges.get(network), endpoint.mac) else {
                    continue;
                };
                if known.contains(&(container.id.clone(), network.clone())) {
                    continue;
                }
                if let Some(port) = self.occupants.port_of(&self.links, &container.id, *bridge, mac) {
                    let home = Home {
                        bridge: *bridge,
                        container: container.id.clone(),
                        network: network.clone(),
                        returned: false,
                    };
                    self.homes.insert(port.index, home);
                }
            }
        }
    }

    /// The role of each bound port on a service's network.
    pub(super) fn roles(&self) -> BTreeMap<u32, Role> {
        let mut roles = BTreeMap::new();
        for network in self.inventory.networks().values() {
            let NetworkKind::Bridge(name) = &network.kind else {
                continue;
            };
            let Some(wanted) = owner(network).and_then(|service| self.service_networks.get(&service)) else {
                continue;
            };
            let Some(bridge) = self.links.bridge_index(name) else {
                continue;
            };
            for (container, attachment) in &wanted.members {
                let endpoint = self
                    .inventory
                    .container(container)
                    .and_then(|it| it.endpoints.get(&network.id));
                let port = endpoint
                    .and_then(|it| it.mac)
                    .and_then(|mac| self.occupants.port_of(&self.links, container, bridge, mac));
                roles.extend(port.map(|port| (port.index, attachment.role)));
            }
        }
        roles
    }
}
