//! What the planner knows, in the words of the status.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{
    ContainerStatus, EdgeStatus, EndpointState, EndpointStatus, MANY_NETWORKS, ServiceStatus, Status,
};
use crate::daemon::findings;
use crate::inventory::{Container, ContainerId, NetworkId, NetworkKind, NetworkMode};
use crate::model::Standing;
use crate::plan::Planner;
use crate::plan::ledger::Owner;
use crate::plan::names;
use crate::plan::ruleset::Key;

impl Status {
    /// Takes over what the planner knows.
    pub fn observe(&mut self, planner: &Planner) {
        let policy = &planner.rights().policy;
        self.services = policy
            .services
            .keys()
            .map(|service| (service.to_string(), ServiceStatus::default()))
            .collect();
        self.others.clear();
        self.quarantined.clear();
        self.isolated.clear();
        for container in planner.inventory().containers().values() {
            match planner.standings().get(&container.id) {
                Some(Standing::Managed(identity)) => {
                    let names: Vec<String> = identity.services().iter().map(ToString::to_string).collect();
                    let mut status = container_status(planner, container);
                    if names.len() > 1 {
                        status.services.clone_from(&names);
                    }
                    for name in names {
                        self.services
                            .entry(name)
                            .or_default()
                            .containers
                            .push(status.clone());
                    }
                }
                Some(Standing::Quarantined(services)) => {
                    let services = services.iter().map(ToString::to_string).collect();
                    self.quarantined.insert(container.name.clone(), services);
                    self.others.push(container_status(planner, container));
                }
                Some(Standing::Isolated(identity)) => {
                    let services = identity.services().iter().map(ToString::to_string).collect();
                    self.isolated.insert(container.name.clone(), services);
                    self.others.push(container_status(planner, container));
                }
                Some(Standing::Unmanaged) => self.others.push(container_status(planner, container)),
                None => {}
            }
        }
        self.edges = policy
            .edges
            .iter()
            .map(|edge| EdgeStatus {
                from: edge.from.to_string(),
                to: edge.to.to_string(),
                ports: edge.ports.iter().map(ToString::to_string).collect(),
                declared: edge.location.to_string(),
                why: edge.why.clone(),
                until: edge.until.map(|until| until.to_string()),
                counter: names::counter(edge).to_string(),
                packets: None,
                bytes: None,
                last_used: None,
            })
            .collect();
        let name = |id: &ContainerId| {
            planner
                .inventory()
                .container(id)
                .map_or_else(|| format!("{id}"), |it| it.name.clone())
        };
        let findings = planner.unenforceable();
        self.unenforceable_counts = findings::counts(findings);
        self.unenforceable = findings
            .iter()
            .map(|(id, findings)| (name(id), findings.iter().map(ToString::to_string).collect()))
            .collect();
        let mut networks = BTreeMap::new();
        for network in planner.service_networks().values() {
            for container in network.members.keys() {
                *networks.entry(container).or_insert(0) += 1;
            }
        }
        networks.retain(|_, count| *count > MANY_NETWORKS);
        self.many_networks = networks
            .into_iter()
            .map(|(id, count)| (name(id), count))
            .collect();
    }
}

/// Whether the identity of a container's endpoint on that network is proven in the kernel.
pub fn is_bound(planner: &Planner, container: &ContainerId, network: &NetworkId) -> bool {
    let known = planner.inventory().container(container);
    let endpoint = known.and_then(|it| it.endpoints.get(network));
    endpoint.is_some_and(|endpoint| are_proven(&proven(planner, container), endpoint.addresses()))
}

fn are_proven(proven: &BTreeSet<IpAddr>, addresses: impl Iterator<Item = IpAddr>) -> bool {
    let mut addresses = addresses.peekable();
    addresses.peek().is_some() && addresses.all(|address| proven.contains(&address))
}

/// The addresses of a container that the kernel has a binding for.
fn proven(planner: &Planner, container: &ContainerId) -> BTreeSet<IpAddr> {
    planner
        .ledger()
        .claimed(&Owner::Container(container.clone()))
        .iter()
        .filter(|element| planner.ledger().is_applied(element))
        .filter_map(|(_, key)| match key {
            Key::Binding4(_, _, address) => Some(IpAddr::V4(*address)),
            Key::Binding6(_, _, address) => Some(IpAddr::V6(*address)),
            _ => None,
        })
        .collect()
}

fn container_status(planner: &Planner, container: &Container) -> ContainerStatus {
    let proven = proven(planner, &container.id);
    let endpoints = container
        .endpoints
        .iter()
        .filter_map(|(id, endpoint)| {
            let network = planner.inventory().network(id)?;
            matches!(network.kind, NetworkKind::Bridge(_)).then(|| {
                let addresses: Vec<IpAddr> = endpoint.addresses().collect();
                let bound = are_proven(&proven, addresses.iter().copied());
                let state = match planner.standings().get(&container.id) {
                    Some(Standing::Quarantined(_)) => EndpointState::Quarantined,
                    Some(Standing::Isolated(_)) => EndpointState::Isolated,
                    _ if bound => EndpointState::Bound,
                    _ if !planner.is_guarded(id) => EndpointState::Unguarded,
                    _ => EndpointState::Pending,
                };
                EndpointStatus {
                    state,
                    network: network.name.clone(),
                    addresses,
                    bound,
                }
            })
        })
        .collect();
    ContainerStatus {
        name: container.name.clone(),
        id: container.id.to_string(),
        services: Vec::new(),
        network_mode: network_mode(planner, container),
        endpoints,
    }
}

fn network_mode(planner: &Planner, container: &Container) -> Option<String> {
    match &container.network_mode {
        NetworkMode::Own => None,
        NetworkMode::Host => Some("host".to_owned()),
        NetworkMode::None => Some("none".to_owned()),
        NetworkMode::Shared(id) => {
            let other = planner.inventory().container(id);
            let name = other.map_or_else(|| id.to_string(), |it| it.name.clone());
            Some(format!("container:{name}"))
        }
    }
}
