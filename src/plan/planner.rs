//! The pure heart: takes in what was seen, and says what is to be done.
//!
//! Owns the policy in force, the inventory, and what was applied last; decides everything and touches nothing. `daemon`
//! carries its plans out and tells it how that went.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::compile::{Options, Structure, compile};
use super::diff::{replacement, transition};
use super::elements::{View, could_be_dockers};
use super::flows::Addresses;
use super::ledger::{Claim, Ledger, Owner};
use super::networks::{Allocator, NetworkStep, PoolExhausted, Pools, Subject, network_steps};
use super::ruleset::{ElementAction, ElementChange, Ruleset, Step};
use crate::inventory::links::{Links, Occupants, Port};
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
    /// Put a container's port back on the bridge that the engine put it on.
    Return { port: u32, bridge: u32 },
}

impl LinkStep {
    /// The interface that it changes.
    pub fn interface(self) -> u32 {
        match self {
            Self::NetfilterCalls { bridge } => bridge,
            Self::Isolate { port, .. } | Self::Return { port, .. } => port,
        }
    }
}

/// The bridge on which a port was proven to be a container's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Home {
    bridge: u32,
    container: ContainerId,
    network: NetworkId,
    /// It was put back just now; the port's own event is still to come.
    returned: bool,
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

/// A moment of the planner's own clock, which goes on with each new bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(u64);

/// The moment at which the last reading of each live endpoint began.
pub(super) type Readings = BTreeMap<ContainerId, BTreeMap<NetworkId, Moment>>;

/// Something in the kernel that does not fit what the engine said, or the other way round. It is so for an instant at each
/// start and stop; where it stays, an event was lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// A port of a Docker network, and no container is known to be behind it.
    Port(u32),
    /// An endpoint without a port, or with one that is newer than what the engine said.
    Endpoint(ContainerId, NetworkId),
    /// A bridge that Docker may have made, and no network is known to be on it.
    Bridge(u32),
    /// A network whose bridge is gone.
    Network(NetworkId),
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
    clock: u64,
    since: BTreeMap<u32, Moment>,
    readings: Readings,
    /// Endpoints on guarded networks whose port is newer than the reading.
    unconfirmed: BTreeMap<ContainerId, BTreeSet<NetworkId>>,
    /// Attachments of stopped containers to networks of ours that are gone.
    stale: BTreeMap<ContainerId, BTreeSet<String>>,
    occupants: Occupants,
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
    homes: BTreeMap<u32, Home>,
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
            clock: 0,
            since: BTreeMap::new(),
            readings: Readings::new(),
            unconfirmed: BTreeMap::new(),
            stale: BTreeMap::new(),
            occupants: Occupants::default(),
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
            homes: BTreeMap::new(),
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
        if self.links.reset(bridges, ports) {
            self.occupants.retain(&self.links);
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
    fn note_since(&mut self, port: &Port) {
        let same = self.links.port(port.index).is_some_and(|before| {
            before.bridge == port.bridge && (before.peer.is_none() || before.peer == port.peer)
        });
        if !same {
            self.clock += 1;
            self.since.insert(port.index, Moment(self.clock));
        }
    }

    fn note_reading(&mut self, container: &Container, began: Moment, before: &Readings) {
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
    fn note_confirmation(&mut self, container: &ContainerId, before: Option<Moment>, now: Moment) {
        if before.is_none_or(|before| before > now) || self.unconfirmed.contains_key(container) {
            self.dirty.containers.insert(container.clone());
        }
    }

    fn view(&self) -> View<'_> {
        View {
            inventory: &self.inventory,
            links: &self.links,
            occupants: &self.occupants,
            standings: &self.standings,
            guarded: &self.guarded,
            readings: &self.readings,
            since: &self.since,
            structure: &self.structure,
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
                        .is_some_and(|it| it.mac.is_some() && it.mac == port.peer.map(|peer| peer.mac))
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
            &self.stale,
        );
        networks.extend(self.stops());
        self.find_homes();
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

    /// These deletions of the last plan are in the kernel, whatever becomes of the rest.
    pub fn deletions_applied(&mut self, changes: &[ElementChange]) {
        self.ledger.mark_deleted(changes);
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
            LinkStep::Return { port, .. } => {
                if let Some(home) = self.homes.get_mut(&port) {
                    home.returned = true;
                }
            }
        }
    }

    /// What a step on a bridge or port was for is gone.
    pub fn link_gone(&mut self, step: LinkStep) {
        self.homes.remove(&step.interface());
    }

    /// Takes whether a bridge hands its frames to br_netfilter. Returns whether it was known to do otherwise.
    pub fn observe_calls(&mut self, bridge: u32, calls: bool) -> bool {
        if calls {
            self.calling.insert(bridge)
        } else {
            self.calling.remove(&bridge)
        }
    }

    /// Takes whether a port is isolated. Returns whether it was known to be otherwise.
    pub fn observe_isolated(&mut self, port: u32, isolated: bool) -> bool {
        self.isolated.insert(port, isolated).unwrap_or(false) != isolated
    }

    /// Whether this port is to be isolated.
    pub fn wants_isolated(&self, port: u32) -> bool {
        self.roles().get(&port) == Some(&Role::Caller)
    }

    /// Takes a full listing of these settings.
    pub fn reset_link_settings(&mut self, calling: BTreeSet<u32>, isolated: BTreeMap<u32, bool>) {
        self.calling = calling;
        self.isolated = isolated;
    }

    /// An engine call is under way: no other with the same subject is planned until it is done.
    pub fn network_step_started(&mut self, step: &NetworkStep) {
        self.busy.insert(step.subject(), step.clone());
    }

    /// An engine call is over, with success or without.
    pub fn network_step_done(&mut self, step: &NetworkStep) {
        self.busy.remove(&step.subject());
    }

    /// A stopped container no longer wishes for a network that is gone.
    pub fn network_forgotten(&mut self, container: &ContainerId, name: &str) {
        if let Some(names) = self.stale.get_mut(container) {
            names.remove(name);
        }
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
        Addresses {
            containers,
            host,
            proxied: self.ledger.services(),
        }
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
        self.find_occupants();
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

    /// Learns whose the namespaces are, on every bridge: a network that is not guarded today may be tomorrow. What the engine
    /// said before a port was there teaches nothing about that port.
    fn find_occupants(&mut self) {
        let view = self.view();
        let mut found = Vec::new();
        for container in self.inventory.containers().values() {
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
        let astray = self.homes.iter().filter_map(|(port, home)| {
            let there = self.links.port(*port).map(|it| it.bridge) == Some(home.bridge);
            let exists = self.links.bridges().any(|(index, _)| index == home.bridge);
            (!there && exists && !home.returned).then_some(LinkStep::Return {
                port: *port,
                bridge: home.bridge,
            })
        });
        calls.chain(isolate).chain(astray).collect()
    }

    /// Remembers where each endpoint's port is, for as long as there is the endpoint. Only a port that was proven on this
    /// very bridge is ever put back there: another one that shows the same address elsewhere gains nothing.
    fn find_homes(&mut self) {
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
                    .and_then(|mac| self.occupants.port_of(&self.links, container, bridge, mac));
                roles.extend(port.map(|port| (port.index, attachment.role)));
            }
        }
        roles
    }
}
