//! Containers whose packets, in part or all, pass no hook of ours, and those that can change the rules themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::Standing;
use crate::inventory::{
    Capability, Container, ContainerId, Inventory, Lifecycle, NetworkKind, NetworkMode, Power,
};

/// What happens to a managed container that cannot be held to its rights.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum OnUnenforceable {
    /// It is reported.
    #[default]
    Report,
    /// It is also cut: without proof and rights on guarded networks, as long as that can be done.
    Isolate,
    /// It is also cut, and the engine is asked to stop it.
    Stop,
}

/// What of the policy cannot be enforced on a container, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unenforceable {
    /// It uses the host's network stack.
    HostNetwork,
    /// It shares the addresses of a container with another standing, so that the two cannot be told apart.
    SharedNetwork {
        with: String,
    },
    /// It is on a network whose driver's packets pass no bridge of this host.
    Driver {
        network: String,
        driver: String,
    },
    Privileged,
    /// A capability that leads to the host, and from there to its rules.
    Capability(Capability),
    /// In the host's network stack: the rules are its own to change.
    HostNetworkAdmin,
    /// In its own network stack.
    NetworkAdmin,
    /// It sees the host's processes and has what it takes to act as one of them.
    HostProcesses(Capability),
    /// It can have the engine start whatever it likes.
    EngineSocket {
        mount: String,
    },
}

impl Unenforceable {
    /// A word for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::HostNetwork => "host-network",
            Self::SharedNetwork { .. } => "shared-network",
            Self::Driver { .. } => "driver",
            Self::Privileged => "privileged",
            Self::Capability(_) => "capability",
            Self::HostNetworkAdmin | Self::NetworkAdmin => "net-admin",
            Self::HostProcesses(_) => "host-processes",
            Self::EngineSocket { .. } => "engine-socket",
        }
    }

    /// Why it cannot be cut by taking the container's rights on guarded networks; `None` where it can.
    pub fn cannot_be_cut(&self) -> Option<&'static str> {
        match self {
            Self::HostNetwork | Self::HostNetworkAdmin => {
                Some("it has no port of its own that could be closed")
            }
            Self::SharedNetwork { .. } => Some("its port is the other container's"),
            Self::Driver { .. } => Some("that network cannot be closed to it, only guarded ones are"),
            Self::Privileged
            | Self::Capability(_)
            | Self::NetworkAdmin
            | Self::HostProcesses(_)
            | Self::EngineSocket { .. } => None,
        }
    }

    /// Whether it voids what is promised to others, so that it counts for unmanaged containers too.
    fn concerns_others(&self) -> bool {
        match self {
            Self::Driver { .. } | Self::NetworkAdmin => false,
            Self::HostNetwork
            | Self::SharedNetwork { .. }
            | Self::Privileged
            | Self::Capability(_)
            | Self::HostNetworkAdmin
            | Self::HostProcesses(_)
            | Self::EngineSocket { .. } => true,
        }
    }
}

impl fmt::Display for Unenforceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str(
                "uses the host's network: no rule applies to it, and others take it for the host itself",
            ),
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
            Self::Privileged => f.write_str("is privileged: it can take over the host and change every rule"),
            Self::Capability(capability) => {
                let name = capability.name();
                write!(f, "has {name}: it can take over the host and change every rule")
            }
            Self::HostNetworkAdmin => {
                f.write_str("has NET_ADMIN in the host's network: it can change every rule")
            }
            Self::NetworkAdmin => f.write_str(
                "has NET_ADMIN: it can change its own addresses and routes; what it forges is still dropped",
            ),
            Self::HostProcesses(capability) => {
                let name = capability.name();
                write!(
                    f,
                    "sees the host's processes and has {name}: it can act as any of them"
                )
            }
            Self::EngineSocket { mount } => {
                write!(
                    f,
                    "can open the engine's socket (mount of {mount}): it can start containers with any rights"
                )
            }
        }
    }
}

/// One reason why a container cannot be held, and whether the settings have something done about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub what: Unenforceable,
    /// Only for managed containers.
    pub is_acted_upon: bool,
    /// One that does not run yet, or no more, voids nothing at the moment.
    pub is_running: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)?;
        if let Some(reason) = self.what.cannot_be_cut().filter(|_| self.is_acted_upon) {
            write!(f, " (this cannot be cut: {reason})")?;
        }
        if !self.is_running {
            f.write_str(" (it does not run)")?;
        }
        Ok(())
    }
}

/// Why a container cannot be held to its rights, from its creation on, or, where it is unmanaged, voids others'.
pub fn findings(
    setting: OnUnenforceable,
    inventory: &Inventory,
    standings: &BTreeMap<ContainerId, Standing>,
    container: &Container,
) -> Vec<Finding> {
    let Some(own) = standings.get(&container.id) else {
        return Vec::new();
    };
    let mut reasons = reasons(inventory, standings, container, own);
    if *own == Standing::Unmanaged {
        reasons.retain(Unenforceable::concerns_others);
    }
    let is_acted_upon =
        setting != OnUnenforceable::Report && matches!(own, Standing::Managed(_) | Standing::Isolated(_));
    let is_running = container.lifecycle == Lifecycle::Running;
    let findings = reasons.into_iter().map(|what| Finding {
        what,
        is_acted_upon,
        is_running,
    });
    findings.collect()
}

/// Why a container, managed or not, cannot be held, whomever that concerns.
pub fn reasons(
    inventory: &Inventory,
    standings: &BTreeMap<ContainerId, Standing>,
    container: &Container,
    own: &Standing,
) -> Vec<Unenforceable> {
    let mut reasons = of_itself(inventory, container);
    reasons.extend(shared(inventory, standings, container, own));
    reasons
}

/// Whether a managed container is cut where the settings say so. One whose powers are not known yet is: what is opened
/// before they are known would have to be closed again.
pub fn is_to_be_cut(inventory: &Inventory, container: &Container) -> bool {
    container.facts.powers.is_none() || !of_itself(inventory, container).is_empty()
}

/// What shows in the container and its networks alone.
fn of_itself(inventory: &Inventory, container: &Container) -> Vec<Unenforceable> {
    let in_host_network = container.network_mode == NetworkMode::Host;
    let mut reasons = Vec::new();
    if in_host_network {
        reasons.push(Unenforceable::HostNetwork);
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
    let none = BTreeSet::new();
    let powers = container.facts.powers.as_ref().unwrap_or(&none);
    let has = |capability| powers.contains(&Power::Capability(capability));
    let sees_host = powers.contains(&Power::HostProcesses);
    for power in powers {
        match power {
            Power::Privileged => reasons.push(Unenforceable::Privileged),
            // Says everything that the single ones would.
            Power::Capability(Capability::All) => {
                reasons.push(Unenforceable::Capability(Capability::All));
            }
            Power::Capability(_) if has(Capability::All) => {}
            Power::Capability(Capability::NetAdmin) if in_host_network => {
                reasons.push(Unenforceable::HostNetworkAdmin);
            }
            Power::Capability(Capability::NetAdmin) => reasons.push(Unenforceable::NetworkAdmin),
            // Alone it reaches the container's own processes.
            Power::Capability(Capability::SysPtrace) if sees_host => {
                reasons.push(Unenforceable::HostProcesses(Capability::SysPtrace));
            }
            Power::Capability(Capability::SysPtrace) | Power::HostProcesses => {}
            Power::Capability(other) => reasons.push(Unenforceable::Capability(*other)),
            Power::EngineSocket { mount } => {
                let mount = mount.clone();
                reasons.push(Unenforceable::EngineSocket { mount });
            }
        }
    }
    reasons
}

fn shared(
    inventory: &Inventory,
    standings: &BTreeMap<ContainerId, Standing>,
    container: &Container,
    own: &Standing,
) -> Option<Unenforceable> {
    let NetworkMode::Shared(other) = &container.network_mode else {
        return None;
    };
    let theirs = standings.get(other).and_then(Standing::services);
    if theirs == own.services() {
        return None;
    }
    let with = inventory
        .container(other)
        .map_or_else(|| other.to_string(), |it| it.name.clone());
    Some(Unenforceable::SharedNetwork { with })
}

#[cfg(test)]
mod tests;
