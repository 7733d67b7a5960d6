//! What a change of policy does to the containers that there are and the connections that are open: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::Planner;
use super::flows::{OpenFlow, may_go_on};
use crate::inventory::{Container, ContainerId, Inventory};
use crate::model::Standing;
use crate::net::Traffic;

/// How things are under one policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    pub standings: BTreeMap<ContainerId, Standing>,
    /// For each open connection whether it may go on.
    pub goes_on: Vec<bool>,
}

impl View {
    /// How things are under the planner's policy; it must have planned.
    pub fn of(planner: &Planner, host: &BTreeSet<IpAddr>, flows: &[OpenFlow]) -> Self {
        let addresses = planner.addresses(host.clone());
        let goes_on = flows
            .iter()
            .map(|flow| may_go_on(planner.rights(), &addresses, *flow));
        Self {
            standings: planner.standings().clone(),
            goes_on: goes_on.collect(),
        }
    }
}

/// What a change does on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Impact {
    /// By the containers' names.
    pub containers: BTreeMap<String, Touched>,
    /// Connections that would end, with their number.
    pub endings: BTreeMap<Ending, usize>,
}

impl Impact {
    /// Whether nothing on the host is touched.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.endings.is_empty()
    }
}

/// What happens to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// What it is before and after, where that changes.
    pub standing: Option<(String, String)>,
    /// Networks of ours that it joins and leaves.
    pub joins: BTreeSet<String>,
    pub leaves: BTreeSet<String>,
}

/// Open connections of the same kind that would end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ending {
    pub client: String,
    pub server: String,
    pub traffic: String,
}

/// What changes from the old view to that of the planner; without an old one nothing is said of what was before.
pub fn impact(
    planner: &Planner,
    old: Option<&View>,
    new: &View,
    flows: &[OpenFlow],
    host: &BTreeSet<IpAddr>,
) -> Impact {
    let names = names(planner.inventory(), &new.standings);
    let mut endings = BTreeMap::new();
    for (index, flow) in flows.iter().enumerate() {
        let before = old.is_none_or(|old| old.goes_on.get(index) == Some(&true));
        if before && new.goes_on.get(index) == Some(&false) {
            let name = |address: IpAddr| match names.get(&address) {
                Some(name) => name.clone(),
                None if host.contains(&address) => "host".to_owned(),
                None => address.to_string(),
            };
            let ending = Ending {
                client: name(flow.client),
                server: name(flow.server),
                traffic: traffic(flow.traffic),
            };
            *endings.entry(ending).or_insert(0) += 1;
        }
    }
    let containers = planner.inventory().containers().values().filter_map(|container| {
        let touched = touched(planner, container, old, new);
        (touched != Touched::default()).then(|| (container.name.clone(), touched))
    });
    Impact {
        containers: containers.collect(),
        endings,
    }
}

fn touched(planner: &Planner, container: &Container, old: Option<&View>, new: &View) -> Touched {
    let is = new.standings.get(&container.id);
    let was = old.map(|old| old.standings.get(&container.id));
    let standing = was
        .filter(|was| *was != is)
        .map(|was| (described(was), described(is)));
    let wanted: BTreeSet<String> = planner
        .service_networks()
        .values()
        .filter(|network| network.members.contains_key(&container.id))
        .map(|network| network.name.clone())
        .collect();
    let networks = container.endpoints.keys();
    let attached: BTreeSet<String> = networks
        .filter_map(|id| planner.inventory().network(id))
        .filter(|network| network.is_ours())
        .map(|network| network.name.clone())
        .collect();
    Touched {
        standing,
        joins: wanted.difference(&attached).cloned().collect(),
        leaves: attached.difference(&wanted).cloned().collect(),
    }
}

fn described(standing: Option<&Standing>) -> String {
    match standing {
        Some(Standing::Managed(identity)) => identity.to_string(),
        Some(Standing::Isolated(identity)) => format!("{identity}, isolated"),
        Some(Standing::Quarantined(_)) => "quarantined".to_owned(),
        Some(Standing::Unmanaged) | None => "unmanaged".to_owned(),
    }
}

/// Whose each address is: services where there are any, else the container.
fn names(inventory: &Inventory, standings: &BTreeMap<ContainerId, Standing>) -> BTreeMap<IpAddr, String> {
    let mut names = BTreeMap::new();
    for container in inventory.containers().values() {
        let name = match standings.get(&container.id) {
            Some(Standing::Managed(identity) | Standing::Isolated(identity)) => identity.to_string(),
            _ => container.name.clone(),
        };
        let live = container.endpoints.values().filter(|endpoint| endpoint.is_live());
        names.extend(
            live.flat_map(|it| it.addresses())
                .map(|address| (address, name.clone())),
        );
    }
    names
}

fn traffic(traffic: Traffic) -> String {
    match traffic {
        Traffic::Port(transport, port) => format!("{port}/{transport}"),
        Traffic::Icmp(kind) => format!("icmp type {kind}"),
        Traffic::Other(protocol) => format!("protocol {protocol}"),
    }
}

/// The containers and what they are under the planner's policy, as one number: two that differ say that the world has
/// moved. Addresses are no part of it: a container that restarts may have others.
pub fn fingerprint(planner: &Planner) -> String {
    let mut hash = Sha256::new();
    for container in planner.inventory().containers().values() {
        let standing = described(planner.standings().get(&container.id));
        for part in [&*container.id.0, &container.name, &standing] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
