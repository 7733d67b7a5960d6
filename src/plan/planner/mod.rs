//! The pure heart: takes in what was seen, and says what is to be done.
//!
//! Owns the policy in force, the inventory, and what was applied last; decides everything and touches nothing. `daemon`
//! carries its plans out and tells it how that went.

mod decide;
mod doubts;
mod homes;
mod observe;
mod refresh;
mod residents;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use litemap::LiteMap;

use crate::inventory::links::{Links, Occupants, Port};
use crate::inventory::{
    Changes, Container, ContainerId, Endpoint, Inventory, Lifecycle, Listing, Network, NetworkId, NetworkKind,
};
use crate::model::{
    Finding, Identity, OnUnenforceable, Rights, Role, ServiceNetwork, ServiceNetworks, Standing, findings,
    is_to_be_cut, is_to_be_guarded, owner, standing,
};
use crate::net::IfName;
use crate::plan::compile::{Options, compile};
use crate::plan::diff::{differences, replacement, transition};
use crate::plan::elements::{View, could_be_dockers};
use crate::plan::flows::{Addresses, Ending, Endings, Sweep};
use crate::plan::ledger::{Claim, Ledger, Owner};
use crate::plan::networks::{
    Allocator, Ground, NetworkStep, PoolExhausted, Pools, Subject, Unsettled, network_steps,
};
use crate::plan::published::HostPorts;
use crate::plan::ruleset::{ElementAction, ElementChange, Key, Ruleset, Step};
use crate::plan::structure::Structure;
use crate::policy::ServiceId;

use self::homes::Homes;
pub use self::residents::{Moves, Place, Resident};

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

/// What the kernel told of a bridge or port while it is being changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Silence,
    Told,
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

/// Everything that is to be done now, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What released addresses have in the sets, where nft is needed for the rest: that it hangs or fails must not hold up a
    /// closing.
    pub ended: Vec<ElementChange>,
    pub kernel: KernelStep,
    pub links: Vec<LinkStep>,
    /// Addresses whose owner is gone: [`Planner::start_ending`] ends their connections, and nothing opens for them before.
    pub released: BTreeSet<IpAddr>,
    /// Rights have changed: [`Planner::start_ending`] holds open connections against the policy.
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
pub(super) type Readings = BTreeMap<ContainerId, LiteMap<NetworkId, Moment>>;

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

/// What is to be looked at anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Dirty {
    /// The policy.
    rights: bool,
    /// What is open between containers that stand as they stood.
    edges: bool,
    everything: bool,
    containers: BTreeSet<ContainerId>,
    networks: BTreeSet<NetworkId>,
    /// By interface index.
    bridges: BTreeSet<u32>,
    ports: BTreeSet<u32>,
}

/// What the kernel holds, as far as rules go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    /// Not known.
    Anything,
    /// The structure that is wanted.
    Wanted,
    Earlier(Ruleset),
}

/// See the module.
#[derive(Debug, Clone)]
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
    findings: BTreeMap<ContainerId, Vec<Finding>>,
    guarded: BTreeSet<NetworkId>,
    structure: Structure,
    service_networks: ServiceNetworks,
    published: HostPorts,
    ledger: Ledger,
    allocator: Allocator,
    held: Held,
    calling: BTreeSet<u32>,
    isolated: BTreeMap<u32, bool>,
    /// Bridges and ports that are being changed.
    changing: BTreeMap<u32, Meanwhile>,
    homes: Homes,
    busy: BTreeMap<Subject, NetworkStep>,
    endings: Endings,
    dirty: Dirty,
    unsettled: Unsettled,
    /// Bridges and ports whose settings may not be as they are wanted.
    unset: BTreeSet<u32>,
    /// What [`Self::moves`] has not told yet.
    moved: Dirty,
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
            findings: BTreeMap::new(),
            guarded: BTreeSet::new(),
            structure: Structure::default(),
            service_networks: ServiceNetworks::default(),
            published: HostPorts::default(),
            ledger: Ledger::default(),
            allocator: Allocator::default(),
            held: Held::Anything,
            calling: BTreeSet::new(),
            isolated: BTreeMap::new(),
            changing: BTreeMap::new(),
            homes: Homes::default(),
            busy: BTreeMap::new(),
            endings: Endings::new(),
            dirty: Dirty {
                rights: true,
                ..Dirty::default()
            },
            unsettled: Unsettled::default(),
            unset: BTreeSet::new(),
            moved: Dirty::default(),
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

    /// Whether a managed container is or was on the network, or it is ours.
    pub fn is_guarded(&self, network: &NetworkId) -> bool {
        self.guarded.contains(network)
    }

    /// The networks that the policy calls for.
    pub fn service_networks(&self) -> &BTreeMap<ServiceId, ServiceNetwork> {
        self.service_networks.wanted()
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
        let stand_the_same = self.rights.stand_as(&rights);
        self.rights = rights;
        self.dirty.edges |= stand_the_same;
        self.dirty.rights |= !stand_the_same;
        self.endings.sweep = true;
        true
    }
}
