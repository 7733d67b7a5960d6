//! Deriving: standings, guarded networks, structure and claims, as far as something changed.

use super::*;

impl Planner {
    pub(super) fn refresh(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if !dirty.everything && dirty.containers.is_empty() && dirty.networks.is_empty() {
            return;
        }
        let mut everything = dirty.everything;
        self.find_occupants();
        let mut containers = dirty.containers;
        let restated = self.refresh_standings(everything, &containers);
        containers.extend(restated);
        let guarded = self.guard();
        let mut networks = dirty.networks;
        networks.extend(guarded.symmetric_difference(&self.guarded).cloned());
        self.endings.sweep |= guarded != self.guarded;
        self.guarded = guarded;
        everything |= self.refresh_structure(dirty.everything);
        self.service_networks = service_networks(&self.rights.policy, &self.inventory, &self.standings);
        self.refresh_claims(everything, &containers, &networks);
        self.moved.everything |= everything;
        self.moved.containers.extend(containers);
        self.moved.networks.extend(networks);
    }

    /// Learns whose the namespaces are, on every bridge: a network that is not guarded today may be tomorrow. What the engine
    /// said before a port was there teaches nothing about that port.
    pub(super) fn find_occupants(&mut self) {
        let view = self.view();
        let mut found = Vec::new();
        let strangers = self.inventory.containers().values();
        for container in strangers.filter(|it| !self.occupants.knows(&it.id)) {
            for (network, endpoint) in &container.endpoints {
                let port = view.port_of(&container.id, network, endpoint);
                let port = port.filter(|port| view.is_confirmed(&container.id, network, *port));
                found.extend(port.map(|port| (container.id.clone(), port)));
            }
        }
        for (container, port) in found {
            self.occupants.learn(&self.links, &container, port);
        }
    }

    /// Returns the containers that stand differently now and were not among those that changed.
    pub(super) fn refresh_standings(
        &mut self,
        everything: bool,
        containers: &BTreeSet<ContainerId>,
    ) -> BTreeSet<ContainerId> {
        let mut restated = BTreeSet::new();
        self.standings
            .retain(|id, _| self.inventory.container(id).is_some());
        let cuts = self.rights.unenforceable != OnUnenforceable::Report;
        for container in self.inventory.containers().values() {
            // Whether a container is cut depends on its networks, too.
            if everything || cuts || containers.contains(&container.id) {
                let now = match standing(&self.rights.policy, container) {
                    Standing::Managed(identity) if cuts && is_to_be_cut(&self.inventory, container) => {
                        Standing::Isolated(identity)
                    }
                    other => other,
                };
                let before = self.standings.insert(container.id.clone(), now.clone());
                // A container that was known and now stands differently: what it opened is held against its new rights.
                if before.is_some_and(|before| before != now) {
                    self.endings.sweep = true;
                    restated.insert(container.id.clone());
                }
            }
        }
        restated
    }

    /// A network stays guarded while it exists: its next container may be a managed one.
    pub(super) fn guard(&self) -> BTreeSet<NetworkId> {
        let mut guarded = guarded_networks(&self.rights, &self.inventory, &self.standings);
        let sticky = self
            .guarded
            .iter()
            .filter(|id| self.inventory.network(id).is_some());
        guarded.extend(sticky.cloned());
        guarded
    }

    /// Compiles when the policy changed or an identity appeared. Returns whether elements must be derived anew.
    pub(super) fn refresh_structure(&mut self, everything: bool) -> bool {
        let present = self.standings.values().filter_map(|standing| match standing {
            Standing::Managed(identity) => Some(identity),
            Standing::Unmanaged | Standing::Quarantined(_) | Standing::Isolated(_) => None,
        });
        if !everything && present.clone().all(|identity| self.structure.knows(identity)) {
            return false;
        }
        let declared = self.rights.policy.services.keys().cloned().map(Identity::of);
        let identities: BTreeSet<Identity> = present.cloned().chain(declared).collect();
        let structure = compile(&self.rights, &identities, self.options);
        let changed = structure != self.structure;
        self.structure = structure;
        changed
    }

    pub(super) fn refresh_claims(
        &mut self,
        everything: bool,
        containers: &BTreeSet<ContainerId>,
        networks: &BTreeSet<NetworkId>,
    ) {
        let mut claims: BTreeMap<Owner, Claim> = BTreeMap::new();
        let concerned = |container: &Container| {
            everything
                || containers.contains(&container.id)
                // Its callers have changed, perhaps.
                || !container.published.is_empty()
                || container
                    .endpoints
                    .keys()
                    .any(|network| networks.contains(network))
        };
        let mut unconfirmed = std::mem::take(&mut self.unconfirmed);
        unconfirmed.retain(|id, _| self.inventory.container(id).is_some());
        let view = self.view();
        for container in self.inventory.containers().values().filter(|it| concerned(it)) {
            let networks = view.unconfirmed(container);
            if networks.is_empty() {
                unconfirmed.remove(&container.id);
            } else {
                unconfirmed.insert(container.id.clone(), networks);
            }
            claims.insert(Owner::Container(container.id.clone()), view.container(container));
        }
        for network in self
            .inventory
            .networks()
            .values()
            .filter(|it| everything || networks.contains(&it.id))
        {
            claims.insert(Owner::Network(network.id.clone()), view.network(network));
        }
        for (index, name) in view.foreign_bridges() {
            claims.insert(Owner::Bridge(index), view.foreign_bridge(index, name));
        }
        let gone = self
            .ledger
            .owners()
            .filter(|owner| !claims.contains_key(owner) && !self.exists(owner));
        let gone: Vec<Owner> = gone.cloned().collect();
        claims.extend(gone.into_iter().map(|owner| (owner, Claim::new())));
        self.unconfirmed = unconfirmed;
        let mut claimed = BTreeSet::new();
        for (owner, claim) in claims {
            let before = self.ledger.claim(&owner).map(View::addresses).unwrap_or_default();
            let now = View::addresses(&claim);
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

    pub(super) fn exists(&self, owner: &Owner) -> bool {
        match owner {
            Owner::Container(id) => self.inventory.container(id).is_some(),
            Owner::Network(id) => self.inventory.network(id).is_some(),
            // Every foreign bridge's claim is made anew in each pass: one without a claim is foreign no more.
            Owner::Bridge(_) => false,
        }
    }
}
