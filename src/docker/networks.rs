//! The networks that we make, and the attachments of containers to them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};

use bollard::errors::Error as WireError;
use bollard::models::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkConnectRequest, NetworkCreateRequest,
    NetworkDisconnectRequest,
};
use bollard::query_parameters::InspectNetworkOptions;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::warn;

use super::client::{Engine, EngineVersion, is_transient, refusal};
use super::wire::BRIDGE_NAME;
use crate::inventory::{ContainerId, MANAGED_LABEL, NetworkId};
use crate::net::{IfName, engine_share, first_host};

/// A network to be made: an internal bridge with subnets of ours, which static addresses need.
///
/// Before Engine 28 the first address of each subnet is the engine's own (its gateway), although an internal network announces
/// none: a container that asks for it is refused with [`NetworkError::AddressInUse`]. Who joins without asking for an address
/// gets one of [`engine_share`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRequest {
    pub name: String,
    pub bridge: IfName,
    pub ipv4: Ipv4Net,
    pub ipv6: Option<Ipv6Net>,
    /// The mark of our networks is added to these.
    pub labels: BTreeMap<String, String>,
}

/// How a container joins a network. Besides the aliases the engine adds the container's name and short id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub ipv4: Ipv4Addr,
    pub ipv6: Option<Ipv6Addr>,
    pub aliases: Vec<String>,
}

/// Why a network or an attachment could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot create network {name}: another network has a part of {subnets}")]
    PoolOverlaps {
        name: String,
        subnets: String,
        source: WireError,
    },
    #[error("cannot create network {name} with bridge {bridge}: the name or the bridge is another network's")]
    NameTaken {
        name: String,
        bridge: IfName,
        source: Option<WireError>,
    },
    #[error("cannot attach container {container} to network {network}: an address of {addresses} is taken")]
    AddressInUse {
        container: ContainerId,
        network: NetworkId,
        addresses: String,
        source: WireError,
    },
    #[error("cannot attach container {container} to network {network}: the network is gone")]
    NetworkGone {
        container: ContainerId,
        network: NetworkId,
        source: WireError,
    },
    #[error("cannot attach container {container} to network {network}: the container is gone")]
    ContainerGone {
        container: ContainerId,
        network: NetworkId,
        source: WireError,
    },
    /// It has the host's network stack, another container's, or none.
    #[error("cannot attach container {container} to network {network}: it has no network stack of its own")]
    NoStack {
        container: ContainerId,
        network: NetworkId,
        source: WireError,
    },
    #[error("cannot remove network {network}: it still has endpoints")]
    HasEndpoints { network: NetworkId, source: WireError },
    #[error("cannot {attempted}")]
    Other { attempted: String, source: WireError },
}

impl NetworkError {
    /// Whether the same request may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::HasEndpoints { .. } => true,
            Self::Other { source, .. } => is_transient(source),
            _ => false,
        }
    }
}

impl Engine {
    /// Makes a network.
    pub async fn create_network(&self, request: &NetworkRequest) -> Result<NetworkId, NetworkError> {
        let taken = |source| NetworkError::NameTaken {
            name: request.name.clone(),
            bridge: request.bridge.clone(),
            source,
        };
        let body = create_body(request, self.info());
        let answer = self.docker.create_network(body).await.map_err(|source| {
            match refusal(&source).map(|(status, message)| (status, message.to_lowercase())) {
                Some((_, message)) if message.contains("pool overlaps") => NetworkError::PoolOverlaps {
                    name: request.name.clone(),
                    subnets: subnets(request),
                    source,
                },
                Some((status, message)) if status == 409 || message.contains("same bridge name") => {
                    taken(Some(source))
                }
                _ => NetworkError::Other {
                    attempted: format!("create network {}", request.name),
                    source,
                },
            }
        })?;
        let id = NetworkId(answer.id.into());
        // Before API 1.44 a second network of the same name is made with only a warning, and then no container can name
        // either of them: ours has to go again.
        if answer.warning.contains("already exists") {
            if let Err(error) = self.remove_network(&id).await {
                warn!(network = %id, name = request.name, %error, "a second network of this name is left");
            }
            return Err(taken(None));
        }
        Ok(id)
    }

    /// Attaches a container with static addresses. One that is attached already stays as it is.
    ///
    /// A running container gets its endpoint within 10 to 70 ms. One that is starting gets it when it has started. For
    /// one that does not run only the wish is noted, without an event: addresses are not checked, a wish that is there
    /// is silently kept, and if an address is another's at the start then **the start fails** (`Address already in
    /// use`). Wishes survive stop, start and restart in `IPAMConfig`. So allocate addresses that nobody has or
    /// wishes, and detach first to change one.
    pub async fn connect_container(
        &self,
        network: &NetworkId,
        container: &ContainerId,
        attachment: &Attachment,
    ) -> Result<(), NetworkError> {
        let wish = EndpointIpamConfig {
            ipv4_address: Some(attachment.ipv4.to_string()),
            ipv6_address: attachment.ipv6.map(|address| address.to_string()),
            link_local_ips: None,
        };
        let body = NetworkConnectRequest {
            container: container.0.to_string(),
            endpoint_config: Some(EndpointSettings {
                ipam_config: Some(wish),
                aliases: Some(attachment.aliases.clone()),
                ..EndpointSettings::default()
            }),
        };
        let Err(source) = self.docker.connect_network(&network.0, body).await else {
            return Ok(());
        };
        let (container, network) = (container.clone(), network.clone());
        Err(match connect_refusal(&source) {
            Some(ConnectRefusal::Attached) => return Ok(()),
            Some(ConnectRefusal::AddressInUse) => NetworkError::AddressInUse {
                addresses: match attachment.ipv6 {
                    Some(ipv6) => format!("{} and {ipv6}", attachment.ipv4),
                    None => attachment.ipv4.to_string(),
                },
                container,
                network,
                source,
            },
            Some(ConnectRefusal::NetworkGone) => NetworkError::NetworkGone {
                container,
                network,
                source,
            },
            Some(ConnectRefusal::ContainerGone) => NetworkError::ContainerGone {
                container,
                network,
                source,
            },
            Some(ConnectRefusal::NoStack) => NetworkError::NoStack {
                container,
                network,
                source,
            },
            None => NetworkError::Other {
                attempted: format!("attach container {container} to network {network}"),
                source,
            },
        })
    }

    /// Detaches a container. What is not attached, or not there at all, is fine.
    pub async fn disconnect_container(
        &self,
        network: &NetworkId,
        container: &ContainerId,
    ) -> Result<(), NetworkError> {
        self.disconnect(&network.0, network, container).await
    }

    /// Has a container that does not run forget a network that is gone, and whose wish for it keeps it from starting.
    /// Only the network's name does it: by the id the engine says `is not connected`, and keeps the wish.
    pub async fn forget_network(&self, name: &str, container: &ContainerId) -> Result<(), NetworkError> {
        self.disconnect(name, &name, container).await
    }

    async fn disconnect(
        &self,
        network: &str,
        shown: &(dyn Display + Sync),
        container: &ContainerId,
    ) -> Result<(), NetworkError> {
        let attempted = format!("detach container {container} from network {shown}");
        let body = NetworkDisconnectRequest {
            container: container.0.to_string(),
            force: Some(true),
        };
        match self.docker.disconnect_network(network, body).await {
            Ok(()) => Ok(()),
            Err(source) if is_detached(&source) => Ok(()),
            Err(source) => Err(NetworkError::Other { attempted, source }),
        }
    }

    /// Removes a network. One that is not there is fine. Containers that do not run keep their wish for it, and then they
    /// **cannot start** (`network … not found`): detach them first, or later with [`Engine::forget_network`].
    pub async fn remove_network(&self, network: &NetworkId) -> Result<(), NetworkError> {
        match self.try_to_remove_network(network).await {
            Err(NetworkError::HasEndpoints { .. }) => {
                self.release_leftovers(network).await?;
                self.try_to_remove_network(network).await
            }
            other => other,
        }
    }

    /// Frees a network of endpoints whose containers are gone: Engine 20.10 sometimes keeps that of a container that was
    /// removed during its start.
    async fn release_leftovers(&self, network: &NetworkId) -> Result<(), NetworkError> {
        let found = self
            .docker
            .inspect_network(&network.0, None::<InspectNetworkOptions>);
        let found = found.await.map_err(|source| NetworkError::Other {
            attempted: format!("read network {network}"),
            source,
        })?;
        for (id, endpoint) in found.containers.unwrap_or_default() {
            if !matches!(self.container(&ContainerId(id.as_str().into())).await, Ok(None)) {
                continue;
            }
            warn!(%network, endpoint = endpoint.name, "an endpoint is left of a container that is gone: removing it");
            // The engine knows it by its name or by the container's id, and not always by the same.
            for name in [endpoint.name, Some(id)].into_iter().flatten() {
                self.disconnect_container(network, &ContainerId(name.into()))
                    .await?;
            }
        }
        Ok(())
    }

    async fn try_to_remove_network(&self, network: &NetworkId) -> Result<(), NetworkError> {
        match self.docker.remove_network(&network.0).await {
            Ok(()) => Ok(()),
            Err(source) => match refusal(&source) {
                Some((404, _)) => Ok(()),
                Some((_, message)) if message.contains("has active endpoints") => {
                    Err(NetworkError::HasEndpoints {
                        network: network.clone(),
                        source,
                    })
                }
                _ => Err(NetworkError::Other {
                    attempted: format!("remove network {network}"),
                    source,
                }),
            },
        }
    }
}

/// What an engine's refusal to attach means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectRefusal {
    Attached,
    AddressInUse,
    NetworkGone,
    ContainerGone,
    NoStack,
}

/// The status alone does not tell: 403 stands for both a taken address and an attachment that is there, 404 for both
/// a container and a network that is not.
fn connect_refusal(error: &WireError) -> Option<ConnectRefusal> {
    let (status, message) = refusal(error)?;
    let message = message.to_lowercase();
    let says = |part: &str| message.contains(part);
    if says("already exists in network") {
        Some(ConnectRefusal::Attached)
    } else if says("address already in use") {
        Some(ConnectRefusal::AddressInUse)
    } else if says("no such container") || says("marked for removal") {
        Some(ConnectRefusal::ContainerGone)
    } else if status == 404 && says("network") {
        Some(ConnectRefusal::NetworkGone)
    } else if says("sharing network namespace") || says("private (none) mode") {
        Some(ConnectRefusal::NoStack)
    } else {
        None
    }
}

/// A container that is not there is 404, but one that is not attached is 500, and so is a network that is not there.
fn is_detached(error: &WireError) -> bool {
    refusal(error).is_some_and(|(status, message)| status == 404 || message.contains("is not connected to"))
}

fn create_body(request: &NetworkRequest, engine: &EngineVersion) -> NetworkCreateRequest {
    let isolated = engine.has_isolated_gateways();
    let config = |subnet: IpNet| IpamConfig {
        subnet: Some(subnet.to_string()),
        ip_range: engine_share(subnet).map(|share| share.to_string()),
        // Otherwise it would be the first of the range.
        gateway: (!isolated).then(|| first_host(subnet).to_string()),
        ..IpamConfig::default()
    };
    let subnets = std::iter::once(IpNet::V4(request.ipv4)).chain(request.ipv6.map(IpNet::V6));
    let mut options = HashMap::from([(BRIDGE_NAME.to_owned(), request.bridge.to_string())]);
    let mut set = |option: &str, value: &str| {
        options.insert(format!("com.docker.network.bridge.{option}"), value.into())
    };
    // No address on the bridge, so that no container reaches the host over it. There is no such option for IPv6 before
    // Engine 28: there the bridge gets the IPv6 subnet's first address and fe80::1. Nothing needs them: with both taken
    // off the bridge by hand, containers start and reach each other as before.
    if isolated {
        set("gateway_mode_ipv4", "isolated");
        if request.ipv6.is_some() {
            set("gateway_mode_ipv6", "isolated");
        }
    } else {
        set("inhibit_ipv4", "true");
    }
    let mut labels: HashMap<_, _> = request.labels.clone().into_iter().collect();
    labels.insert(MANAGED_LABEL.to_owned(), "true".to_owned());
    NetworkCreateRequest {
        name: request.name.clone(),
        driver: Some("bridge".to_owned()),
        internal: Some(true),
        enable_ipv6: Some(request.ipv6.is_some()),
        ipam: Some(Ipam {
            config: Some(subnets.map(config).collect()),
            ..Ipam::default()
        }),
        options: Some(options),
        labels: Some(labels),
        ..NetworkCreateRequest::default()
    }
}

fn subnets(request: &NetworkRequest) -> String {
    match request.ipv6 {
        Some(ipv6) => format!("{} and {ipv6}", request.ipv4),
        None => request.ipv4.to_string(),
    }
}

#[cfg(test)]
mod tests;
