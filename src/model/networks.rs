//! Which networks there must be, who joins them, and which networks are guarded.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::{Rights, Standing, Unmanaged};
use crate::inventory::{Container, ContainerId, Network, NetworkKind, NetworkMode};
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

/// The networks that the policy calls for: one for each service with an inbound edge from a service, as soon as a container
/// belongs to it or calls it. Kept up container by container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceNetworks {
    /// The services that each may call.
    callees: BTreeMap<ServiceId, BTreeSet<ServiceId>>,
    /// The services that others may call.
    called: BTreeSet<ServiceId>,
    wanted: BTreeMap<ServiceId, ServiceNetwork>,
}

impl ServiceNetworks {
    /// What a policy calls for without any container: nothing yet.
    pub fn new(policy: &Policy) -> Self {
        let mut networks = Self::default();
        for edge in &policy.edges {
            if let (Peer::Service(from), Peer::Service(to)) = (&edge.from, &edge.to) {
                networks
                    .callees
                    .entry(from.clone())
                    .or_default()
                    .insert(to.clone());
                networks.called.insert(to.clone());
            }
        }
        networks
    }

    /// The services whose containers may join other networks under the other's policy.
    pub fn differing(&self, other: &Self) -> BTreeSet<ServiceId> {
        let callers = self.callees.keys().chain(other.callees.keys());
        let callers = callers.filter(|it| self.callees.get(*it) != other.callees.get(*it));
        let called = self.called.symmetric_difference(&other.called);
        callers.chain(called).cloned().collect()
    }

    /// Goes over to the other's policy. The containers of services that are [differing](Self::differing) were taken out, and
    /// come in again.
    pub fn take_over(&mut self, other: Self) {
        self.callees = other.callees;
        self.called = other.called;
    }

    /// Those that are called for, by service.
    pub fn wanted(&self) -> &BTreeMap<ServiceId, ServiceNetwork> {
        &self.wanted
    }

    /// The networks that a container with this standing joins.
    pub fn joined<'a>(
        &'a self,
        container: &'a ContainerId,
        standing: &'a Standing,
    ) -> impl Iterator<Item = &'a ServiceNetwork> {
        let joined = self.reach(Some(standing)).into_iter();
        let joined = joined.filter_map(|service| self.wanted.get(service));
        joined.filter(|network| network.members.contains_key(container))
    }

    /// Takes in how a container stands now, and how it stood before; `None`: it is, or was, not there. Returns the services
    /// whose networks are called for now and were not, or the other way round.
    pub fn set(
        &mut self,
        id: &ContainerId,
        before: Option<&Standing>,
        now: Option<(&Container, &Standing)>,
    ) -> BTreeSet<ServiceId> {
        let mut attachments = now.map(|now| self.attachments(now)).unwrap_or_default();
        let mut services: BTreeSet<ServiceId> = self.reach(before).into_iter().cloned().collect();
        services.extend(attachments.keys().cloned());
        services.retain(|service| {
            let before = self.wanted.contains_key(service);
            self.attach(service, id, attachments.remove(service));
            before != self.wanted.contains_key(service)
        });
        services
    }

    fn attach(&mut self, service: &ServiceId, id: &ContainerId, attachment: Option<Attachment>) {
        if let Some(attachment) = attachment {
            let network = self
                .wanted
                .entry(service.clone())
                .or_insert_with(|| ServiceNetwork {
                    service: service.clone(),
                    name: service.network_name(),
                    members: BTreeMap::new(),
                });
            network.members.insert(id.clone(), attachment);
        } else if let Some(network) = self.wanted.get_mut(service) {
            network.members.remove(id);
            if network.members.is_empty() {
                self.wanted.remove(service);
            }
        }
    }

    /// The services whose networks a container with this standing may join.
    fn reach<'a>(&'a self, standing: Option<&'a Standing>) -> BTreeSet<&'a ServiceId> {
        // One that is cut stays where it is, so that it goes on as before should the cut end.
        let Some(Standing::Managed(identity) | Standing::Isolated(identity)) = standing else {
            return BTreeSet::new();
        };
        let own = identity.services();
        let callees = own.iter().filter_map(|it| self.callees.get(it)).flatten();
        callees.chain(own.intersection(&self.called)).collect()
    }

    fn attachments(&self, (container, standing): (&Container, &Standing)) -> BTreeMap<ServiceId, Attachment> {
        if container.network_mode != NetworkMode::Own {
            return BTreeMap::new();
        }
        let is_own = |service: &ServiceId| standing.services().is_some_and(|own| own.contains(service));
        let attachment = |service: &ServiceId| match is_own(service) {
            true => Attachment {
                role: Role::Own,
                aliases: aliases(service, container),
            },
            false => Attachment {
                role: Role::Caller,
                aliases: BTreeSet::new(),
            },
        };
        let reach = self.reach(Some(standing)).into_iter();
        reach
            .map(|service| (service.clone(), attachment(service)))
            .collect()
    }
}

/// The service's name and compose's, each also with its segment or project behind a dot.
fn aliases(service: &ServiceId, container: &Container) -> BTreeSet<String> {
    let mut aliases = BTreeSet::from([
        service.name.to_string(),
        format!("{}.{}", service.name, service.segment),
    ]);
    if let Some(name) = container.labels.get(COMPOSE_SERVICE) {
        aliases.insert(name.to_string());
        if let Some(project) = container.labels.get(COMPOSE_PROJECT) {
            aliases.insert(format!("{name}.{project}"));
        }
    }
    aliases
}

/// Whether a network that holds, or will hold, containers with these standings is guarded: a bridge that Cofferdam made, or
/// with at least one that is not unmanaged; every bridge where unmanaged containers are denied too.
pub fn is_to_be_guarded<'a>(
    rights: &Rights,
    network: &Network,
    mut standings: impl Iterator<Item = &'a Standing>,
) -> bool {
    matches!(network.kind, NetworkKind::Bridge(_))
        && (network.is_ours()
            || rights.unmanaged == Unmanaged::Deny
            || standings.any(|it| *it != Standing::Unmanaged))
}

/// The service whose network of ours this is.
pub fn owner(network: &Network) -> Option<ServiceId> {
    let (segment, name) = network.owner()?;
    Some(ScopedName {
        segment: segment.parse().ok()?,
        name: name.parse().ok()?,
    })
}
