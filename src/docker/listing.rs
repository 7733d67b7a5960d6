//! Readings of the engine: everything at once, one container, one network.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::models as api;
use bollard::query_parameters::{
    InspectContainerOptions, InspectNetworkOptions, ListContainersOptionsBuilder, ListNetworksOptions,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tracing::{debug, warn};

use super::client::{Engine, EngineError, found};
use super::wire::{self, NetworkNames, NetworkParts};
use crate::inventory::{
    Container, ContainerId, Endpoint, Lifecycle, Listing, Network, NetworkId, NetworkKind,
};

/// Requests under way at once. The engine answers one in 1 to 2 ms; more would only keep it from others.
const PARALLEL: usize = 8;

/// How long a full listing waits for one container's inspection, which waits for the container's start.
const INSPECT_PATIENCE: Duration = Duration::from_secs(2);

/// A network and the endpoints that it has in the kernel, those of containers that are just starting among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSnapshot {
    pub network: Network,
    pub endpoints: BTreeMap<ContainerId, Endpoint>,
}

impl Engine {
    /// Everything. What comes into being meanwhile may be missing: its events tell.
    ///
    /// The list of containers has the addresses of running ones. A container that is just starting is still `created`
    /// there, and only its networks know its endpoints, so each bridge network is read too.
    pub async fn list(&self) -> Result<Listing, EngineError> {
        // Containers first: then every network of theirs is in the second list, unless it has gone.
        let all = ListContainersOptionsBuilder::default().all(true).build();
        let summaries = self.docker.list_containers(Some(all)).await;
        let summaries = summaries.map_err(EngineError::request("list the containers"))?;
        let networks = self.list_networks().await?;
        let names = NetworkNames::new(&networks);
        let stale = wire::stale_wishes(&summaries, &networks);

        let containers = stream::iter(summaries)
            .map(|summary| self.listed_container(summary, &names))
            .buffer_unordered(PARALLEL)
            .filter_map(std::future::ready)
            .map(|container| (container.id.clone(), container));
        let mut containers: BTreeMap<_, _> = containers.collect().await;

        let bridges = networks
            .iter()
            .filter(|network| matches!(network.kind, NetworkKind::Bridge(_)));
        // Owned ids: borrowed ones would make this future one that cannot be spawned.
        let bridges: Vec<_> = bridges.map(|network| network.id.clone()).collect();
        let snapshots: Vec<_> = stream::iter(bridges)
            .map(|id| async move { self.network(&id).await })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        for snapshot in snapshots.into_iter().flatten() {
            for (id, endpoint) in snapshot.endpoints {
                // A container that came after the list was made announces itself.
                if let Some(container) = containers.get_mut(&id) {
                    container.endpoints.insert(snapshot.network.id.clone(), endpoint);
                    container.lifecycle = Lifecycle::Running;
                }
            }
        }
        Ok(Listing {
            containers: containers.into_values().collect(),
            networks,
            stale,
        })
    }

    /// One container, `None` if there is none of that id.
    ///
    /// From the first `network connect` of a start to the container's first instruction this blocks, as everything
    /// does that needs the container's lock: read [`Engine::network`] then, which answers in 1 to 2 ms.
    pub async fn container(&self, id: &ContainerId) -> Result<Option<Container>, EngineError> {
        let Some(answer) = self.inspect(id).await? else {
            return Ok(None);
        };
        let names = if wire::needs_names(&answer) {
            NetworkNames::new(&self.list_networks().await?)
        } else {
            NetworkNames::default()
        };
        Ok(wire::inspected_container(answer, &names))
    }

    /// One network with its endpoints, `None` if there is none of that id.
    pub async fn network(&self, id: &NetworkId) -> Result<Option<NetworkSnapshot>, EngineError> {
        let answer = self
            .docker
            .inspect_network(&id.0, None::<InspectNetworkOptions>)
            .await;
        let answer = found(answer).map_err(EngineError::request(format!("read network {id}")))?;
        Ok(answer.and_then(|answer| {
            let network = wire::network(NetworkParts {
                id: answer.id,
                name: answer.name,
                driver: answer.driver,
                internal: answer.internal,
                ipam: answer.ipam,
                options: answer.options,
                labels: answer.labels,
            })?;
            let endpoints = wire::network_endpoints(answer.containers);
            Some(NetworkSnapshot { network, endpoints })
        }))
    }

    async fn list_networks(&self) -> Result<Vec<Network>, EngineError> {
        let answer = self.docker.list_networks(None::<ListNetworksOptions>).await;
        let answer = answer.map_err(EngineError::request("list the networks"))?;
        let networks = answer.into_iter().filter_map(|network| {
            wire::network(NetworkParts {
                id: network.id,
                name: network.name,
                driver: network.driver,
                internal: network.internal,
                ipam: network.ipam,
                options: network.options,
                labels: network.labels,
            })
        });
        Ok(networks.collect())
    }

    async fn inspect(&self, id: &ContainerId) -> Result<Option<api::ContainerInspectResponse>, EngineError> {
        let answer = self
            .docker
            .inspect_container(&id.0, None::<InspectContainerOptions>)
            .await;
        found(answer).map_err(EngineError::request(format!("inspect container {id}")))
    }

    /// A container of the list. Once an image's tag has moved on, the list has the image's id where the container's
    /// own configuration still has what the user wrote.
    async fn listed_container(
        &self,
        mut summary: api::ContainerSummary,
        names: &NetworkNames,
    ) -> Option<Container> {
        let id = summary.id.clone().map(ContainerId);
        if let Some(id) = id.filter(|_| {
            summary
                .image
                .as_deref()
                .is_some_and(|image| image.starts_with("sha256:"))
        }) {
            match tokio::time::timeout(INSPECT_PATIENCE, self.inspect(&id)).await {
                Ok(Ok(Some(answer))) => {
                    summary.image = answer.config.and_then(|config| config.image).or(summary.image);
                }
                Ok(Ok(None)) => {
                    debug!(container = %id, "gone while it was listed");
                    return None;
                }
                Ok(Err(error)) => warn!(container = %id, %error, "image's name unknown: its id is taken"),
                Err(_) => {
                    warn!(container = %id, "image's name unknown while the container starts: its id is taken")
                }
            }
        }
        wire::listed_container(summary, names)
    }
}
