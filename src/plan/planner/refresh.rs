//! Deriving: standings, guarded networks, structure and claims. Only what follows from something that has changed is derived
//! anew; where it is not known what has changed, that is everything.

use super::*;

impl Planner {
    pub(super) fn refresh(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        if dirty == Dirty::default() {
            return;
        }
        if dirty.rights {
            self.service_networks = ServiceNetworks::new(&self.rights.policy);
            self.published = HostPorts::default();
        } else if dirty.edges {
            self.refresh_edges(&mut dirty.containers);
        }
        if dirty.rights || dirty.everything {
            self.add_everything(&mut dirty);
        }
        for network in dirty.bridges.iter().flat_map(|it| self.view().networks_on(*it)) {
            dirty.networks.insert(network.id.clone());
        }
        dirty.containers.extend(self.attached(&dirty.networks));
        self.find_occupants(&mut dirty.containers);
        self.refresh_standings(&dirty.containers);
        let guarded = self.guard(&dirty);
        self.endings.sweep |= !guarded.is_empty();
        dirty.containers.extend(self.attached(&guarded));
        dirty.networks.extend(guarded);
        let regranted = self.refresh_structure(&dirty);
        dirty.containers.extend(regranted);
        dirty.containers.extend(self.published.judge(&self.rights));
        self.refresh_findings(&dirty.containers);
        let bridges = dirty.networks.iter().flat_map(|it| self.bridges_of(it));
        dirty.bridges.extend(bridges);
        let ports = dirty.bridges.iter().flat_map(|it| self.links.ports_of(*it));
        dirty.ports.extend(ports.map(|it| it.index));
        self.refresh_claims(&dirty);
        self.find_homes(&dirty.containers);
        self.unsettle(&dirty);
        self.moved.everything |= dirty.rights || dirty.everything;
        self.moved.containers.extend(dirty.containers);
        self.moved.networks.extend(dirty.networks);
    }

    /// All that there is, and all that there was when it was last derived.
    fn add_everything(&self, dirty: &mut Dirty) {
        let inventory = &self.inventory;
        dirty.containers.extend(inventory.containers().keys().cloned());
        dirty.containers.extend(self.standings.keys().cloned());
        dirty.networks.extend(inventory.networks().keys().cloned());
        dirty.networks.extend(self.guarded.iter().cloned());
        dirty.bridges.extend(self.links.bridges().map(|(index, _)| index));
        dirty.ports.extend(self.links.ports().map(|port| port.index));
        for owner in self.ledger.owners() {
            match owner {
                Owner::Container(_) => {}
                Owner::Network(id) => drop(dirty.networks.insert(id.clone())),
                Owner::Bridge(index) => drop(dirty.bridges.insert(*index)),
                Owner::Port(index) => drop(dirty.ports.insert(*index)),
            }
        }
    }

    /// Takes other edges in. Who may join other networks for that is added.
    fn refresh_edges(&mut self, containers: &mut BTreeSet<ContainerId>) {
        let networks = ServiceNetworks::new(&self.rights.policy);
        let services = self.service_networks.differing(&networks);
        let concerned = |it: &Standing| it.services().is_some_and(|it| !it.is_disjoint(&services));
        for (id, standing) in self.standings.iter().filter(|(_, it)| concerned(it)) {
            let left = self.service_networks.set(id, Some(standing), None);
            self.unsettled.services.extend(left);
            containers.insert(id.clone());
        }
        self.service_networks.take_over(networks);
        self.published.doubt();
    }

    fn attached(&self, networks: &BTreeSet<NetworkId>) -> BTreeSet<ContainerId> {
        let attached = networks.iter().filter_map(|it| self.inventory.attached(it));
        attached.flat_map(|it| it.containers()).cloned().collect()
    }

    /// All bridges with the name of a network's; only the first can be it.
    fn bridges_of(&self, network: &NetworkId) -> impl Iterator<Item = u32> {
        let name = match self.inventory.network(network).map(|it| &it.kind) {
            Some(NetworkKind::Bridge(name)) => Some(name),
            Some(NetworkKind::Other(_)) | None => None,
        };
        name.into_iter().flat_map(|it| self.links.bridges_named(it))
    }

    /// Learns whose the namespaces are, on every bridge: a network that is not guarded today may be tomorrow. What the engine
    /// said before a port was there teaches nothing about that port. Who turns out to be concerned is added.
    fn find_occupants(&mut self, containers: &mut BTreeSet<ContainerId>) {
        let mut asked = containers.clone();
        while !asked.is_empty() {
            let view = self.view();
            let mut found = Vec::new();
            let strangers = asked.iter().filter(|it| !self.occupants.knows(it));
            for container in strangers.filter_map(|it| self.inventory.container(it)) {
                for (network, endpoint) in &container.endpoints {
                    let port = view.port_of(&container.id, network, endpoint);
                    let port = port.filter(|port| view.is_confirmed(&container.id, network, *port));
                    found.extend(port.map(|port| (container.id.clone(), port)));
                }
            }
            asked.clear();
            for (container, port) in found {
                if self.occupants.learn(&self.links, &container, port) {
                    asked.extend(self.claimants(port));
                }
            }
            containers.extend(asked.iter().cloned());
        }
    }

    /// The containers that some port to the same namespace could be taken for: now that it is known whose it is, it is
    /// theirs no more, and another port may be the only one that is left.
    fn claimants(&self, port: u32) -> BTreeSet<ContainerId> {
        let peer = self.links.port(port).and_then(|it| it.peer);
        let ports = peer
            .into_iter()
            .flat_map(|it| self.links.leading_to(it.namespace));
        let ports = ports.filter_map(|it| self.links.port(it));
        ports.flat_map(|it| self.behind(it)).collect()
    }

    fn refresh_standings(&mut self, containers: &BTreeSet<ContainerId>) {
        let cuts = self.rights.unenforceable != OnUnenforceable::Report;
        for id in containers {
            let container = self.inventory.container(id);
            let now = container.map(|container| match standing(&self.rights.policy, container) {
                Standing::Managed(identity) if cuts && is_to_be_cut(&self.inventory, container) => {
                    Standing::Isolated(identity)
                }
                other => other,
            });
            let now = now.map(|now| self.published.shared(now));
            let before = match &now {
                Some(now) => self.standings.insert(id.clone(), now.clone()),
                None => self.standings.remove(id),
            };
            // A container that was known and now stands differently: what it opened is held against its new rights.
            self.endings.sweep |= before.is_some() && now.is_some() && before != now;
            let now = container.zip(now.as_ref());
            self.published.set(id, before.as_ref(), now);
            let services = self.service_networks.set(id, before.as_ref(), now);
            self.unsettled.services.extend(services);
        }
    }

    /// A network stays guarded while it exists: its next container may be a managed one. Returns the networks that are
    /// guarded now and were not, and those that are gone.
    fn guard(&mut self, dirty: &Dirty) -> BTreeSet<NetworkId> {
        let mut changed = BTreeSet::new();
        for id in &dirty.networks {
            let Some(network) = self.inventory.network(id) else {
                changed.extend(self.guarded.take(id));
                continue;
            };
            let attached = self.inventory.attached(id).into_iter();
            let attached = attached.flat_map(|it| it.containers());
            let mut standings = attached.filter_map(|it| self.standings.get(it));
            if !self.guarded.contains(id) && is_to_be_guarded(&self.rights, network, &mut standings) {
                changed.insert(id.clone());
            }
        }
        for id in &dirty.containers {
            let (Some(container), Some(standing)) = (self.inventory.container(id), self.standings.get(id))
            else {
                continue;
            };
            let networks = container.endpoints.keys().filter(|it| !self.guarded.contains(it));
            for network in networks.filter_map(|it| self.inventory.network(it)) {
                if is_to_be_guarded(&self.rights, network, &mut [standing].into_iter()) {
                    changed.insert(network.id.clone());
                }
            }
        }
        let exists = |id: &&NetworkId| self.inventory.network(id).is_some();
        self.guarded.extend(changed.iter().filter(exists).cloned());
        changed
    }

    /// Compiles when the policy changed or an identity appeared. Returns the containers whose addresses are given other elements.
    fn refresh_structure(&mut self, dirty: &Dirty) -> BTreeSet<ContainerId> {
        let mut concerned = dirty.containers.iter().filter_map(|id| self.standings.get(id));
        let known = concerned.all(|it| managed(it).is_none_or(|it| self.structure.knows(it)));
        if known && !dirty.rights && !dirty.edges {
            return BTreeSet::new();
        }
        let present = self.standings.values().filter_map(managed).cloned();
        let declared = self.rights.policy.services.keys().cloned().map(Identity::of);
        let identities: BTreeSet<Identity> = present.chain(declared).collect();
        let structure = compile(&self.rights, &identities, self.options).sharing(&self.structure);
        if structure == self.structure {
            return BTreeSet::new();
        }
        let before = std::mem::replace(&mut self.structure, structure);
        let regranted = differences(&before.granted, &self.structure.granted);
        let regranted: BTreeSet<&Identity> = regranted.map(|(identity, _)| identity).collect();
        let is_regranted = |it: &Standing| managed(it).is_some_and(|it| regranted.contains(it));
        let containers = self.standings.iter().filter(|(_, it)| is_regranted(it));
        let containers = containers.map(|(id, _)| id.clone()).collect();
        let before = before.ruleset;
        self.held = match std::mem::replace(&mut self.held, Held::Anything) {
            Held::Anything => Held::Anything,
            Held::Wanted if before != self.structure.ruleset => Held::Earlier(before),
            Held::Earlier(earlier) if earlier != self.structure.ruleset => Held::Earlier(earlier),
            Held::Wanted | Held::Earlier(_) => Held::Wanted,
        };
        containers
    }

    fn refresh_findings(&mut self, containers: &BTreeSet<ContainerId>) {
        let setting = self.rights.unenforceable;
        // What a container shares with another is a matter of both.
        let sharing = containers.iter().flat_map(|it| self.inventory.sharing(it));
        for id in containers.iter().chain(sharing) {
            let container = self.inventory.container(id);
            let found = container.map(|it| findings(setting, &self.inventory, &self.standings, it));
            match found.filter(|it| !it.is_empty()) {
                Some(found) => drop(self.findings.insert(id.clone(), found)),
                None => drop(self.findings.remove(id)),
            }
        }
    }

    fn refresh_claims(&mut self, dirty: &Dirty) {
        for id in &dirty.containers {
            let container = self.inventory.container(id);
            let waits = container
                .map(|it| self.view().unconfirmed(it))
                .unwrap_or_default();
            if waits.is_empty() {
                self.unconfirmed.remove(id);
            } else {
                self.unconfirmed.insert(id.clone(), waits);
            }
        }
        let containers = dirty.containers.iter().cloned().map(Owner::Container);
        let networks = dirty.networks.iter().cloned().map(Owner::Network);
        let bridges = dirty.bridges.iter().copied().map(Owner::Bridge);
        let ports = dirty.ports.iter().copied().map(Owner::Port);
        let mut claimed = BTreeSet::new();
        for owner in containers.chain(networks).chain(bridges).chain(ports) {
            let claim = self.claim(&owner);
            let before = View::addresses(self.ledger.claimed(&owner));
            let now = View::addresses(claim.keys());
            self.endings.released.extend(before.difference(&now));
            claimed.extend(now.difference(&before).copied());
            self.ledger.set(&owner, claim);
        }
        // What the first owner opened does not pass to the second.
        let contested = claimed
            .into_iter()
            .filter(|address| self.ledger.is_contested(*address));
        self.endings.released.extend(contested);
    }

    /// What follows from an owner; nothing, where it is gone.
    fn claim(&self, owner: &Owner) -> Claim {
        let view = self.view();
        let claim = match owner {
            Owner::Container(id) => self.inventory.container(id).map(|it| view.container(it)),
            Owner::Network(id) => self.inventory.network(id).map(|it| view.network(it)),
            Owner::Bridge(index) => Some(view.bridge(*index)),
            Owner::Port(index) => self.links.port(*index).map(|it| view.port(it)),
        };
        claim.unwrap_or_default()
    }

    /// Where attachments, networks and settings may not be as they are wanted any more.
    fn unsettle(&mut self, dirty: &Dirty) {
        let networks = dirty.networks.iter().filter_map(|it| self.inventory.network(it));
        self.unsettled.services.extend(networks.filter_map(owner));
        self.unsettled.networks.extend(dirty.networks.iter().cloned());
        self.unsettled.containers.extend(dirty.containers.iter().cloned());
        self.unset.extend(&dirty.bridges);
        self.unset.extend(&dirty.ports);
        for container in dirty
            .containers
            .iter()
            .filter_map(|it| self.inventory.container(it))
        {
            for (network, endpoint) in &container.endpoints {
                let port = self.bound_port(&container.id, network, endpoint);
                self.unset.extend(port.map(|it| it.index));
            }
        }
    }
}

/// The identity of a container that has the rights of its services.
fn managed(standing: &Standing) -> Option<&Identity> {
    match standing {
        Standing::Managed(identity) => Some(identity),
        Standing::Unmanaged | Standing::Quarantined(_) | Standing::Isolated(_) => None,
    }
}
