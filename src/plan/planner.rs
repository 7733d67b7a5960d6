//! The pure heart: takes in what was seen, and says what is to be done.
//!
//! Owns the policy in force, the inventory, and what was applied last; decides everything and touches nothing. `daemon`
//! carries its plans out and tells it how that went.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::compile::{Options, Structure, compile};
use super::diff::{replacement, transition};
use super::elements::View;
use super::flows::Addresses;
use super::ledger::{Claim, Ledger, Owner};
use super::networks::{Allocator, NetworkStep, PoolExhausted, Pools, Subject, network_steps};
use super::ruleset::{ElementAction, ElementChange, Ruleset, Step};
use crate::inventory::links::{Links, Port};
use crate::inventory::{
    Changes, Container, ContainerId, Endpoint, Inventory, Lifecycle, Listing, Network, NetworkId, NetworkKind,
};
use crate::model::{
    Finding, Identity, OnUnenforceable, Rights, Role, ServiceNetwork, Standing, guarded_networks,
    is_to_be_cut, owner, service_networks, standing, unenforceable,
};
use crate::net::IfName;
use crate::policy::ServiceId;

/// What the kernel's tables need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelStep {
    Nothing,
    /// Elements only, over the open netlink socket.
    Elements(Vec<ElementChange>),
    /// Structure and elements in one transaction.
    Structure(Vec<Step>),
    /// Whatever stands in our tables is replaced in one transaction.
    Replace(Vec<Step>),
}

/// What bridges and ports need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkStep {
    /// Have br_netfilter call our inet chains for the frames of a guarded bridge.
    NetfilterCalls { bridge: u32 },
    /// Let a caller's port talk to the service's own ports only, or lift that.
    Isolate { port: u32, isolated: bool },
}

/// Everything that is to be done now, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Addresses whose owner is gone: their connections end before anybody else's begin.
    pub released: BTreeSet<IpAddr>,
    /// What is taken from the sets before those connections end; empty where no address was released.
    pub ended: Vec<ElementChange>,
    pub kernel: KernelStep,
    pub links: Vec<LinkStep>,
    /// Rights have changed: open connections are held against the policy.
    pub sweep: bool,
    pub networks: Vec<NetworkStep>,
    pub exhausted: Option<PoolExhausted>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ended.is_empty()
            && self.kernel == KernelStep::Nothing
            && self.links.is_empty()
            && self.released.is_empty()
            && !self.sweep
            && self.networks.is_empty()
    }
}

#[derive(Debug, Default)]
struct Dirty {
    everything: bool,
    containers: BTreeSet<ContainerId>,
    networks: BTreeSet<NetworkId>,
}

/// See the module.
#[derive(Debug)]
pub struct Planner {
    options: Options,
    pools: Pools,
    rights: Rights,
    inventory: Inventory,
    links: Links,
    routes: Vec<IpNet>,
    standings: BTreeMap<ContainerId, Standing>,
    guarded: BTreeSet<NetworkId>,
    structure: Structure,
    service_networks: BTreeMap<ServiceId, ServiceNetwork>,
    ledger: Ledger,
    allocator: Allocator,
    /// The structure that the kernel holds; `None`: not known.
    applied: Option<Ruleset>,
    calling: BTreeSet<u32>,
    isolated: BTreeMap<u32, bool>,
    busy: BTreeMap<Subject, NetworkStep>,
    released: BTreeSet<IpAddr>,
    sweep: bool,
    dirty: Dirty,
}

impl Planner {
    /// A planner that has seen nothing yet.
    pub fn new(options: Options, pools: Pools, rights: Rights) -> Self {
        Self {
            options,
            pools,
            rights,
            inventory: Inventory::default(),
            links: Links::default(),
            routes: Vec::new(),
            standings: BTreeMap::new(),
            guarded: BTreeSet::new(),
            structure: Structure::default(),
            service_networks: BTreeMap::new(),
            ledger: Ledger::default(),
            allocator: Allocator::default(),
            applied: None,
            calling: BTreeSet::new(),
            isolated: BTreeMap::new(),
            busy: BTreeMap::new(),
            released: BTreeSet::new(),
            sweep: true,
            dirty: Dirty {
                everything: true,
                ..Dirty::default()
            },
        }
    }

    /// The policy in force.
    pub fn rights(&self) -> &Rights {
        &self.rights
    }

    /// The engine as last seen.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The standing of each container.
    pub fn standings(&self) -> &BTreeMap<ContainerId, Standing> {
        &self.standings
    }

    /// The networks that the policy calls for.
    pub fn service_networks(&self) -> &BTreeMap<ServiceId, ServiceNetwork> {
        &self.service_networks
    }

    /// The claims on elements.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The structure that is wanted.
    pub fn structure(&self) -> &Structure {
        &self.structure
    }

    /// Whether an engine call with this subject is under way, or waits to be tried again.
    pub fn is_busy(&self, subject: &Subject) -> bool {
        self.busy.contains_key(subject)
    }

    /// The engine calls under way.
    pub fn busy(&self) -> impl Iterator<Item = &NetworkStep> {
        self.busy.values()
    }

    /// Takes a new policy. Returns whether it differs.
    pub fn set_rights(&mut self, rights: Rights) -> bool {
        if self.rights == rights {
            return false;
        }
        self.rights = rights;
        self.dirty.everything = true;
        self.sweep = true;
        true
    }

    /// Takes a full listing of the engine.
    pub fn reset(&mut self, listing: Listing) {
        let changes = self.inventory.reset(listing);
        self.note(changes);
    }

    /// Takes one container as it now is.
    pub fn upsert_container(&mut self, container: Container) {
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

    /// Takes one endpoint as it now is.
    pub fn set_endpoint(&mut self, container: &ContainerId, network: &NetworkId, endpoint: Endpoint) {
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
        if self.links.reset(bridges, ports) {
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
        let before = self.links.port(port.index).cloned();
        if self.links.upsert_port(port.clone()) {
            self.note_port(&port);
            before.iter().for_each(|before| self.note_port(before));
        }
    }

    /// Forgets a port.
    pub fn remove_port(&mut self, index: u32) {
        if let Some(port) = self.links.port(index).cloned() {
            self.links.remove_port(index);
            self.isolated.remove(&index);
            self.note_port(&port);
        }
    }

    /// Takes the host's routes, which no subnet of ours may overlap.
    pub fn set_routes(&mut self, routes: Vec<IpNet>) {
        self.routes = routes;
    }

    fn note(&mut self, mut changes: Changes) {
        self.dirty.containers.append(&mut changes.containers);
        self.dirty.networks.append(&mut changes.networks);
    }

    /// Marks the network that a port is on and the containers that could be behind it.
    fn note_port(&mut self, port: &Port) {
        let bridge = self
            .links
            .bridges()
            .find(|(index, _)| *index == port.bridge)
            .map(|(_, name)| name);
        let network = self
            .inventory
            .networks()
            .values()
            .find(|network| match &network.kind {
                NetworkKind::Bridge(name) => Some(name) == bridge,
                NetworkKind::Other(_) => false,
            });
        match network {
            Some(network) => {
                let behind = |container: &&Container| {
                    container
                        .endpoints
                        .get(&network.id)
                        .is_some_and(|it| it.mac == port.peer)
                };
                let containers = self
                    .inventory
                    .containers()
                    .values()
                    .filter(behind)
                    .map(|it| it.id.clone());
                self.dirty.containers.extend(containers);
                self.dirty.networks.insert(network.id.clone());
            }
            None => self.dirty.everything = true,
        }
    }

    /// What is to be done now. Until [`Self::kernel_applied`] says that it was, the next plan has it again.
    pub fn plan(&mut self) -> Plan {
        self.refresh();
        let (ended, kernel) = self.kernel_step();
        let (mut networks, exhausted) = network_steps(
            &self.service_networks,
            &self.inventory,
            &self.pools,
            &self.routes,
            &mut self.allocator,
            &self.busy,
        );
        networks.extend(self.stops());
        let links = self.link_steps();
        Plan {
            released: self.released.clone(),
            ended,
            kernel,
            links,
            sweep: self.sweep,
            networks,
            exhausted,
        }
    }

    /// Every container that cannot be held to its rights, or that voids others'.
    pub fn unenforceable(&self) -> BTreeMap<ContainerId, Vec<Finding>> {
        unenforceable(self.rights.unenforceable, &self.inventory, &self.standings)
    }

    /// The containers that the engine is to stop.
    fn stops(&self) -> Vec<NetworkStep> {
        if self.rights.unenforceable != OnUnenforceable::Stop {
            return Vec::new();
        }
        let found = self.unenforceable().into_iter();
        let stops = found.filter_map(|(id, findings)| {
            let voids: Vec<String> = findings
                .iter()
                .filter(|finding| finding.is_acted_upon && finding.is_running)
                .map(|finding| finding.what.to_string())
                .collect();
            let step = NetworkStep::Stop {
                name: self.inventory.container(&id)?.name.clone(),
                container: id,
                reason: voids.join("; "),
            };
            (!voids.is_empty() && !self.busy.contains_key(&step.subject())).then_some(step)
        });
        stops.collect()
    }

    fn kernel_step(&self) -> (Vec<ElementChange>, KernelStep) {
        let mut changes = self.ledger.changes();
        let Some(applied) = &self.applied else {
            let steps = replacement(&self.structure.ruleset, &self.ledger.elements());
            return (Vec::new(), KernelStep::Replace(steps));
        };
        let ended = if self.released.is_empty() {
            Vec::new()
        } else {
            changes
                .extract_if(.., |change| change.action == ElementAction::Delete)
                .collect()
        };
        let kernel = if *applied != self.structure.ruleset {
            KernelStep::Structure(transition(applied, &self.structure.ruleset, changes))
        } else if changes.is_empty() {
            KernelStep::Nothing
        } else {
            KernelStep::Elements(changes)
        };
        (ended, kernel)
    }

    /// The kernel's tables are as the last plan wanted them.
    pub fn kernel_applied(&mut self) {
        self.ledger.mark_applied();
        if self.applied.as_ref() != Some(&self.structure.ruleset) {
            self.applied = Some(self.structure.ruleset.clone());
        }
    }

    /// Whether the kernel's tables were made by this planner.
    pub fn is_applied(&self) -> bool {
        self.applied.is_some()
    }

    /// The kernel's tables are not as they were left: the next plan replaces them.
    pub fn kernel_lost(&mut self) {
        self.applied = None;
    }

    /// The connections of released addresses and those that the policy no longer permits have been ended.
    pub fn flows_ended(&mut self) {
        self.released.clear();
        self.sweep = false;
    }

    /// Open connections are to be held against the policy once more.
    pub fn request_sweep(&mut self) {
        self.sweep = true;
    }

    /// A step on a bridge or port succeeded.
    pub fn link_applied(&mut self, step: LinkStep) {
        match step {
            LinkStep::NetfilterCalls { bridge } => {
                self.calling.insert(bridge);
            }
            LinkStep::Isolate { port, isolated } => {
                self.isolated.insert(port, isolated);
            }
        }
    }

    /// Bridges and ports may have been changed by others: the next plan sets them all again.
    pub fn forget_links_applied(&mut self) {
        self.calling.clear();
        self.isolated.clear();
    }

    /// An engine call is under way: no other with the same subject is planned until it is done.
    pub fn network_step_started(&mut self, step: &NetworkStep) {
        self.busy.insert(step.subject(), step.clone());
    }

    /// An engine call is over, with success or without.
    pub fn network_step_done(&mut self, step: &NetworkStep) {
        self.busy.remove(&step.subject());
    }

    /// Whose each address is, for judging open connections.
    pub fn addresses(&self, host: BTreeSet<IpAddr>) -> Addresses<'_> {
        let mut containers = BTreeMap::new();
        for container in self.inventory.containers().values() {
            let Some(standing) = self.standings.get(&container.id) else {
                continue;
            };
            for (network, endpoint) in &container.endpoints {
                if self.guarded.contains(network) {
                    containers.extend(endpoint.addresses().map(|address| (address, standing)));
                }
            }
        }
        Addresses { containers, host }
    }

    /// The interface indices of guarded bridges.
    pub fn guarded_bridges(&self) -> BTreeSet<u32> {
        self.guarded
            .iter()
            .filter_map(|id| match &self.inventory.network(id)?.kind {
                NetworkKind::Bridge(name) => self.links.bridge_index(name),
                NetworkKind::Other(_) => None,
            })
            .collect()
    }

    fn refresh(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if !dirty.everything && dirty.containers.is_empty() && dirty.networks.is_empty() {
            return;
        }
        let mut everything = dirty.everything;
        let mut containers = dirty.containers;
        let restated = self.refresh_standings(everything, &containers);
        containers.extend(restated);
        let guarded = self.guard();
        let mut networks = dirty.networks;
        networks.extend(guarded.symmetric_difference(&self.guarded).cloned());
        self.sweep |= guarded != self.guarded;
        self.guarded = guarded;
        everything |= self.refresh_structure(dirty.everything);
        self.service_networks = service_networks(&self.rights.policy, &self.inventory, &self.standings);
        self.refresh_claims(everything, &containers, &networks);
    }

    /// Returns the containers that stand differently now and were not among those that changed.
    fn refresh_standings(
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
                    self.sweep = true;
                    restated.insert(container.id.clone());
                }
            }
        }
        restated
    }

    /// A network stays guarded while it exists: its next container may be a managed one.
    fn guard(&self) -> BTreeSet<NetworkId> {
        let mut guarded = guarded_networks(&self.rights, &self.inventory, &self.standings);
        let sticky = self
            .guarded
            .iter()
            .filter(|id| self.inventory.network(id).is_some());
        guarded.extend(sticky.cloned());
        guarded
    }

    /// Compiles when the policy changed or an identity appeared. Returns whether elements must be derived anew.
    fn refresh_structure(&mut self, everything: bool) -> bool {
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

    fn refresh_claims(
        &mut self,
        everything: bool,
        containers: &BTreeSet<ContainerId>,
        networks: &BTreeSet<NetworkId>,
    ) {
        let view = View {
            inventory: &self.inventory,
            links: &self.links,
            standings: &self.standings,
            guarded: &self.guarded,
            structure: &self.structure,
            unmanaged: self.rights.unmanaged,
        };
        let mut claims: BTreeMap<Owner, Claim> = BTreeMap::new();
        let concerned = |container: &Container| {
            everything
                || containers.contains(&container.id)
                || container
                    .endpoints
                    .keys()
                    .any(|network| networks.contains(network))
        };
        for container in self.inventory.containers().values().filter(|it| concerned(it)) {
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
        for (owner, claim) in claims {
            let before = self.ledger.claim(&owner).map(View::addresses).unwrap_or_default();
            self.released.extend(before.difference(&View::addresses(&claim)));
            self.ledger.set(&owner, claim);
        }
    }

    fn exists(&self, owner: &Owner) -> bool {
        match owner {
            Owner::Container(id) => self.inventory.container(id).is_some(),
            Owner::Network(id) => self.inventory.network(id).is_some(),
            // Every foreign bridge's claim is made anew in each pass: one without a claim is foreign no more.
            Owner::Bridge(_) => false,
        }
    }

    fn link_steps(&self) -> Vec<LinkStep> {
        let calls = self.guarded_bridges();
        let calls = calls
            .difference(&self.calling)
            .map(|bridge| LinkStep::NetfilterCalls { bridge: *bridge });
        let isolate = self.roles().into_iter().filter_map(|(port, role)| {
            let isolated = role == Role::Caller;
            let changed = self.isolated.get(&port).copied().unwrap_or(false) != isolated;
            changed.then_some(LinkStep::Isolate { port, isolated })
        });
        calls.chain(isolate).collect()
    }

    /// The role of each bound port on a service's network.
    fn roles(&self) -> BTreeMap<u32, Role> {
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
                    .and_then(|mac| self.links.port_of(bridge, mac));
                roles.extend(port.map(|port| (port.index, attachment.role)));
            }
        }
        roles
    }
}
