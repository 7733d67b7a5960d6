//! Managed containers whose packets, in part or all, pass no hook of ours.

use std::collections::BTreeMap;
use std::fmt;

use super::Standing;
use crate::inventory::{ContainerId, Inventory, NetworkKind, NetworkMode};

/// What of the policy cannot be enforced on a container, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unenforceable {
    /// It uses the host's network stack.
    HostNetwork,
    /// It shares the addresses of a container with another standing, so that the two cannot be told apart.
    SharedNetwork { with: String },
    /// It is on a network whose driver's packets pass no bridge of this host.
    Driver { network: String, driver: String },
}

impl fmt::Display for Unenforceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str("uses the host's network: no rule applies to it"),
            Self::SharedNetwork { with } => {
                write!(
                    f,
                    "shares the network of {with}, which belongs to other services: it has those rights"
                )
            }
            Self::Driver { network, driver } => {
                write!(
                    f,
                    "is on {network}, a {driver} network: its packets there pass no rule"
                )
            }
        }
    }
}

/// Every managed or quarantined container that cannot be held to its rights, with the reasons.
pub fn unenforceable(
    inventory: &Inventory,
    standings: &BTreeMap<ContainerId, Standing>,
) -> BTreeMap<ContainerId, Vec<Unenforceable>> {
    let mut found = BTreeMap::new();
    for container in inventory.containers().values() {
        let Some(own) = standings
            .get(&container.id)
            .filter(|it| **it != Standing::Unmanaged)
        else {
            continue;
        };
        let mut reasons = Vec::new();
        match &container.network_mode {
            NetworkMode::Host => reasons.push(Unenforceable::HostNetwork),
            NetworkMode::Shared(other) if standings.get(other) != Some(own) => {
                let with = inventory
                    .container(other)
                    .map_or_else(|| other.to_string(), |it| it.name.clone());
                reasons.push(Unenforceable::SharedNetwork { with });
            }
            NetworkMode::Shared(_) | NetworkMode::Own | NetworkMode::None => {}
        }
        for network in container.endpoints.keys().filter_map(|id| inventory.network(id)) {
            match &network.kind {
                NetworkKind::Other(driver) if !matches!(driver.as_str(), "host" | "null") => {
                    let (network, driver) = (network.name.clone(), driver.clone());
                    reasons.push(Unenforceable::Driver { network, driver });
                }
                NetworkKind::Other(_) | NetworkKind::Bridge(_) => {}
            }
        }
        if !reasons.is_empty() {
            found.insert(container.id.clone(), reasons);
        }
    }
    found
}
