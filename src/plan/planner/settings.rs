//! Settings of bridges and ports: what must be, against what was seen.

use super::*;

impl Planner {
    /// What is still to be set. An interface where nothing is needs no further look until something changes.
    pub(super) fn link_steps(&mut self) -> Vec<LinkStep> {
        let mut steps = Vec::new();
        let mut unset = std::mem::take(&mut self.unset);
        unset.retain(|interface| {
            // One at a time: what is still to be done comes when that is over.
            if self.changing.contains_key(interface) {
                return true;
            }
            let before = steps.len();
            steps.extend(self.settings(*interface));
            steps.len() > before || self.is_astray(*interface)
        });
        self.unset = unset;
        steps.sort();
        steps
    }

    /// What one interface needs.
    fn settings(&self, interface: u32) -> Vec<LinkStep> {
        let mut steps = Vec::new();
        if self.is_guarded_bridge(interface) && !self.calling.contains(&interface) {
            steps.push(LinkStep::NetfilterCalls { bridge: interface });
        }
        if let Some(role) = self.role(interface) {
            let isolated = role == Role::Caller;
            if self.isolated.get(&interface).copied().unwrap_or(false) != isolated {
                let port = interface;
                steps.push(LinkStep::Isolate { port, isolated });
            }
        }
        let home = self.homes.get(interface).filter(|_| self.is_astray(interface));
        if let Some(home) = home.filter(|it| !it.returned && self.links.bridge_name(it.bridge).is_some()) {
            steps.push(LinkStep::Return {
                port: interface,
                bridge: home.bridge,
            });
        }
        steps
    }

    /// Whether a port is elsewhere than on the bridge that is its home.
    fn is_astray(&self, port: u32) -> bool {
        let bridge = self.links.port(port).map(|it| it.bridge);
        self.homes
            .get(port)
            .is_some_and(|home| bridge != Some(home.bridge))
    }

    pub(super) fn is_guarded_bridge(&self, index: u32) -> bool {
        let view = self.view();
        let mut networks = view.networks_on(index);
        networks.any(|network| self.guarded.contains(&network.id))
    }

    /// The role of a port that is bound on a service's network.
    pub(super) fn role(&self, port: u32) -> Option<Role> {
        let port = self.links.port(port)?;
        let mac = port.peer?.mac;
        let view = self.view();
        let roles = view.networks_on(port.bridge).filter_map(|network| {
            let service = owner(network)?;
            let wanted = self.service_networks.wanted().get(&service)?;
            let mut behind = self.inventory.attached(&network.id)?.behind(mac);
            let container = behind.find(|it| {
                let bound = self.occupants.port_of(&self.links, it, port.bridge, mac);
                bound.is_some_and(|bound| bound.index == port.index)
            })?;
            Some(wanted.members.get(container)?.role)
        });
        roles.last()
    }
}
