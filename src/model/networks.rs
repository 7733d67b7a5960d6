//! Which networks there must be, who joins them, and which networks are guarded.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::{Rights, Standing, Unmanaged};
use crate::inventory::{Container, ContainerId, Inventory, Network, NetworkId, NetworkKind, NetworkMode};
use crate::net::IfName;
use crate::policy::{Peer, Policy, ScopedName, ServiceId};

/// Compose's labels for a container's project and service.
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// The network of one service: its containers and its callers' containers join it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNetwork {
    pub service: ServiceId,
    pub name: String,
    pub members: BTreeMap<ContainerId, Attachment>,
}

impl ServiceNetwork {
    /// The bridge's name.
    pub fn bridge(&self) -> Option<IfName> {
        bridge_name(&self.service)
    }
}

/// The name of the bridge of a service's network: `cfd-` and eight hexadecimal digits of the service's name.
pub fn bridge_name(service: &ServiceId) -> Option<IfName> {
    let digest = Sha256::digest(service.to_string().as_bytes());
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("cfd-{hex}").parse().ok()
}

/// How a container joins a service's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub role: Role,
    /// Names under which the others find it; only the service's own containers have any.
    pub aliases: BTreeSet<String>,
}

/// Why a container is on a service's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It belongs to the service.
    Own,
    /// It calls the service: its bridge port is isolated, so that it reaches the service's own ports only.
    Caller,
}

/// The networks that the policy calls for, given the containers that exist: one for each service with an inbound edge
/// from a service, as soon as a container belongs to it or calls it.
pub fn service_networks(
    policy: &Policy,
    inventory: &Inventory,
    standings: &BTreeMap<ContainerId, Standing>,
) -> BTreeMap<ServiceId, ServiceNetwork> {
    let mut by_service: BTreeMap<&ServiceId, Vec<&Container>> = BTreeMap::new();
    for container in inventory.containers().values() {
        if container.network_mode != NetworkMode::Own {
            continue;
        }
        // One that is cut stays where it is, so that it goes on as before should the cut end.
        if let Some(Standing::Managed(identity) | Standing::Isolated(identity)) = standings.get(&container.id)
        {
            for service in identity.services() {
                by_service.entry(service).or_default().push(container);
            }
        }
    }
    let mut networks = BTreeMap::new();
    for (service, callers) in callers(policy) {
        let mut members = BTreeMap::new();
        for container in callers
            .iter()
            .filter_map(|caller| by_service.get(caller))
            .flatten()
        {
            let attachment = Attachment {
                role: Role::Caller,
                aliases: BTreeSet::new(),
            };
            members.insert(container.id.clone(), attachment);
        }
        for container in by_service.get(service).into_iter().flatten() {
            let attachment = Attachment {
                role: Role::Own,
                aliases: aliases(service, container),
            };
            members.insert(container.id.clone(), attachment);
        }
        if !members.is_empty() {
            let network = ServiceNetwork {
                service: service.clone(),
                name: service.network_name(),
                members,
            };
            networks.insert(service.clone(), network);
        }
    }
    networks
}

/// The services with an inbound edge from a service, with those callers.
fn callers(policy: &Policy) -> BTreeMap<&ServiceId, BTreeSet<&ServiceId>> {
    let mut callers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for edge in &policy.edges {
        if let (Peer::Service(from), Peer::Service(to)) = (&edge.from, &edge.to) {
            callers.entry(to).or_default().insert(from);
        }
    }
    callers
}

/// The service's name and compose's, each also with its segment or project behind a dot.
fn aliases(service: &ServiceId, container: &Container) -> BTreeSet<String> {
    let mut aliases = BTreeSet::from([
        service.name.to_string(),
        format!("{}.{}", service.name, service.segment),
    ]);
    if let Some(name) = container.labels.get(COMPOSE_SERVICE) {
        aliases.insert(name.clone());
        if let Some(project) = container.labels.get(COMPOSE_PROJECT) {
            aliases.insert(format!("{name}.{project}"));
        }
    }
    aliases
}

/// The bridge networks that Cofferdam made or that hold, or will hold, at least one endpoint that is not unmanaged; all of
/// them where unmanaged containers are denied too.
pub fn guarded_networks(
    rights: &Rights,
    inventory: &Inventory,
    standings: &BTreeMap<ContainerId, Standing>,
) -> BTreeSet<NetworkId> {
    let is_bridge = |network: &Network| matches!(network.kind, NetworkKind::Bridge(_));
    let by_nature = inventory
        .networks()
        .values()
        .filter(|network| network.is_ours() || rights.unmanaged == Unmanaged::Deny)
        .map(|network| &network.id);
    let held = inventory
        .containers()
        .values()
        .filter(|container| {
            standings
                .get(&container.id)
                .is_some_and(|it| *it != Standing::Unmanaged)
        })
        .flat_map(|container| container.endpoints.keys());
    by_nature
        .chain(held)
        .filter(|id| inventory.network(id).is_some_and(is_bridge))
        .cloned()
        .collect()
}

/// The service whose network of ours this is.
pub fn owner(network: &Network) -> Option<ServiceId> {
    let (segment, name) = network.owner()?;
    Some(ScopedName {
        segment: segment.parse().ok()?,
        name: name.parse().ok()?,
    })
}
