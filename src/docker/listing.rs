//! Readings of the engine: everything at once, one container, one network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::client::{Engine, EngineError};
use super::wire::{self, Inspection, NetworkAnswer, NetworkNames, Summary};
use crate::inventory::{
    Container, ContainerId, Endpoint, Facts, Lifecycle, Listing, Network, NetworkId, NetworkKind, Power,
};

/// Requests under way at once. The engine answers one in 1 to 2 ms; more would only keep it from others.
const PARALLEL: usize = 8;

/// How long a full listing waits for inspections, which wait for the starts of their containers.
const INSPECT_PATIENCE: Duration = Duration::from_secs(2);

/// Where engines and containerd listen wherever else the engine in use does.
const USUAL_SOCKETS: [&str; 2] = ["/run/docker.sock", "/run/containerd/containerd.sock"];

/// What a listing says of the powers of a container that was never inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Powers {
    Asked,
    /// Nothing.
    Known,
}

/// A network and the endpoints that it has in the kernel, those of containers that are just starting among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSnapshot {
    pub network: Network,
    pub endpoints: BTreeMap<ContainerId, Endpoint>,
}

/// What inspections told that never changes, so that a listing asks only for containers that it does not know.
#[derive(Debug, Clone, Default)]
pub(super) struct Inspected(Arc<Mutex<BTreeMap<ContainerId, Fixed>>>);

#[derive(Debug, Clone, Default)]
struct Fixed {
    image: Option<Arc<str>>,
    powers: Option<BTreeSet<Power>>,
}

impl Inspected {
    fn get(&self, id: &ContainerId) -> Option<Fixed> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(id).cloned()
    }

    fn insert(&self, id: ContainerId, fixed: Fixed) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(id, fixed);
    }

    /// Forgets what is gone.
    fn retain(&self, listed: &BTreeSet<ContainerId>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, _| listed.contains(id));
    }
}

impl Engine {
    /// Everything. What comes into being meanwhile may be missing: its events tell.
    ///
    /// The list of containers has the addresses of running ones. A container that is just starting is still `created`
    /// there, and only its networks know its endpoints, so each bridge network is read too.
    pub async fn list(&self) -> Result<Listing, EngineError> {
        self.list_within(INSPECT_PATIENCE).await
    }

    /// As [`Self::list`], without asking for each container what it may do: that is one request for each of thousands. Only
    /// one whose image's tag has moved on is asked, since the image's name decides its rights.
    pub async fn outline(&self) -> Result<Listing, EngineError> {
        self.listing(INSPECT_PATIENCE, Powers::Known).await
    }

    /// As [`Self::list`], with another limit for what waits for the starts of containers: what they may do and, where its tag has
    /// moved on, the name of their image may be missing then.
    pub async fn list_within(&self, patience: Duration) -> Result<Listing, EngineError> {
        self.listing(patience, Powers::Asked).await
    }

    async fn listing(&self, patience: Duration, powers: Powers) -> Result<Listing, EngineError> {
        // Containers first: then every network of theirs is in the second list, unless it has gone.
        let failed = |error| EngineError::request("list the containers")(error);
        let answer = self.list_text("/containers/json?all=1").await.map_err(failed)?;
        let networks = self.list_networks().await?;
        let names = NetworkNames::new(&networks);
        let summaries = wire::objects(&answer).map_err(|error| failed(error.into()))?;
        let (mut listed, mut stale, mut texts) = (Vec::new(), BTreeMap::new(), Texts::default());
        for summary in summaries {
            let wishes = wire::stale_wishes(&summary, &names);
            let Some(mut it) = Listed::new(summary, &names) else {
                continue;
            };
            texts.share(&mut it.container);
            if !wishes.is_empty() {
                stale.insert(it.container.id.clone(), wishes);
            }
            listed.push(it);
        }
        drop(answer);
        self.inspected
            .retain(&listed.iter().map(|it| it.container.id.clone()).collect());
        // An inspection of one that is just starting blocks: those come last, and all of them together wait only so long.
        listed.sort_by_key(|it| it.may_be_starting);
        let deadline = Instant::now() + patience;

        let containers = stream::iter(listed)
            .map(|listed| self.completed(listed, deadline, powers))
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
        let names = if answer.needs_names() {
            NetworkNames::new(&self.list_networks().await?)
        } else {
            NetworkNames::default()
        };
        let container = wire::inspected_container(answer, &names, &self.sockets());
        if let Some(container) = &container {
            let fixed = Fixed {
                image: Some(Arc::clone(&container.image)).filter(|image| !image.is_empty()),
                powers: container.facts.powers.clone(),
            };
            self.inspected.insert(id.clone(), fixed);
        }
        Ok(container)
    }

    /// The process id of a container's main process, as the engine's host counts; `None` where none runs. Blocks as
    /// [`Self::container`] does.
    pub async fn pid(&self, id: &ContainerId) -> Result<Option<u32>, EngineError> {
        Ok(self.inspect(id).await?.and_then(|answer| answer.pid()))
    }

    /// What the list says of one container, `None` if it says nothing or not enough. Unlike an inspection it never waits for the
    /// container's start (the engine answers from a copy), but it does not know the container's powers.
    pub async fn glance(&self, id: &ContainerId) -> Result<Option<Container>, EngineError> {
        if !wire::is_id(&id.0) {
            return Ok(None);
        }
        // {"id":["…"]}
        let path = format!(
            "/containers/json?all=1&filters=%7B%22id%22%3A%5B%22{}%22%5D%7D",
            id.0
        );
        let answer = self.objects::<Summary>(&path).await;
        let mut summaries = answer.map_err(EngineError::request(format!("list container {id}")))?;
        // The filter also takes the beginning of an id.
        let found = summaries
            .iter()
            .position(|it| it.id.as_ref().is_some_and(|it| **it == *id.0));
        let summary = found.map(|position| summaries.swap_remove(position));
        // Without the image's name nobody can say to how many services it belongs.
        let Some(summary) = summary.filter(|summary| !summary.has_nameless_image()) else {
            return Ok(None);
        };
        let names = if summary.needs_names() {
            NetworkNames::new(&self.list_networks().await?)
        } else {
            NetworkNames::default()
        };
        Ok(wire::listed_container(summary, &names, Facts::default()))
    }

    /// One network with its endpoints, `None` if there is none of that id.
    pub async fn network(&self, id: &NetworkId) -> Result<Option<NetworkSnapshot>, EngineError> {
        if !wire::is_id(&id.0) {
            return Ok(None);
        }
        let answer = self.get(&format!("/networks/{}", id.0)).await;
        let answer = answer.map_err(EngineError::request(format!("read network {id}")))?;
        Ok(answer
            .and_then(wire::object::<NetworkAnswer>)
            .and_then(wire::network))
    }

    async fn list_networks(&self) -> Result<Vec<Network>, EngineError> {
        let answer = self.objects("/networks").await;
        let answer = answer.map_err(EngineError::request("list the networks"))?;
        let networks = answer.into_iter().filter_map(wire::network);
        Ok(networks.map(|snapshot| snapshot.network).collect())
    }

    async fn inspect(&self, id: &ContainerId) -> Result<Option<Inspection>, EngineError> {
        if !wire::is_id(&id.0) {
            return Ok(None);
        }
        let answer = self.get(&format!("/containers/{}/json", id.0)).await;
        let answer = answer.map_err(EngineError::request(format!("inspect container {id}")))?;
        let Some(mut answer) = answer.and_then(wire::object) else {
            return Ok(None);
        };
        self.follow_volumes(&mut answer).await?;
        Ok(Some(answer))
    }

    /// Every path by which a container could reach an engine.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let usual = USUAL_SOCKETS.iter().map(PathBuf::from);
        let known = [Some(&self.socket), self.behind.as_ref()].into_iter().flatten();
        usual.chain(known.map(|socket| socket.to_path_buf())).collect()
    }

    /// A container of the list, with what only its inspection tells: its powers, and what the user called the image, which
    /// the list has by its id once the tag has moved on. What cannot be told in time stays open until the events of the
    /// container's start have it read.
    async fn completed(&self, listed: Listed, deadline: Instant, powers: Powers) -> Option<Container> {
        let mut container = listed.container;
        let id = &container.id;
        let fixed = match self.inspected.get(id) {
            Some(fixed) if fixed.powers.is_some() => fixed,
            fixed if powers == Powers::Known && !listed.has_nameless_image => fixed.unwrap_or_default(),
            // Not even begun: thousands of calls that are given up at once fill the engine's socket.
            fixed if Instant::now() >= deadline => fixed.unwrap_or_default(),
            _ => match tokio::time::timeout_at(deadline, self.inspect(id)).await {
                Ok(Ok(Some(answer))) => {
                    let powers = wire::powers(&answer, &self.sockets());
                    let image = answer.config.get().and_then(|config| config.image.get());
                    // What the list says, too, stands there already.
                    let image = image.map(|name| match *name == *container.image {
                        true => Arc::clone(&container.image),
                        false => name.into(),
                    });
                    let fixed = Fixed { image, powers };
                    self.inspected.insert(id.clone(), fixed.clone());
                    fixed
                }
                Ok(Ok(None)) => {
                    debug!(container = %id, "gone while it was listed");
                    return None;
                }
                Ok(Err(error)) => {
                    warn!(container = %id, %error, "its powers are unknown");
                    Fixed::default()
                }
                Err(_) => {
                    debug!(container = %id, "its powers are unknown while it starts");
                    Fixed::default()
                }
            },
        };
        container.facts.powers = fixed.powers;
        if let Some(name) = fixed.image.filter(|_| listed.has_nameless_image) {
            wire::use_name_of_image(&mut container, &name);
        }
        Some(container)
    }
}

/// Texts that stand at many containers of a host, each of them once.
#[derive(Debug, Default)]
struct Texts(BTreeSet<Arc<str>>);

impl Texts {
    fn share(&mut self, container: &mut Container) {
        self.replace(&mut container.image);
        let labels = std::mem::take(&mut container.labels).into_iter();
        let shared = labels.map(|(mut key, mut value)| {
            self.replace(&mut key);
            self.replace(&mut value);
            (key, value)
        });
        container.labels = shared.collect();
    }

    fn replace(&mut self, text: &mut Arc<str>) {
        match self.0.get(text) {
            Some(known) => *text = Arc::clone(known),
            None => drop(self.0.insert(Arc::clone(text))),
        }
    }
}

/// A container as far as the list tells of it. Made at once of what the list says, which has several times its size.
struct Listed {
    container: Container,
    may_be_starting: bool,
    has_nameless_image: bool,
}

impl Listed {
    fn new(summary: Summary, names: &NetworkNames) -> Option<Self> {
        Some(Self {
            may_be_starting: summary.may_be_starting(),
            has_nameless_image: summary.has_nameless_image(),
            container: wire::listed_container(summary, names, Facts::default())?,
        })
    }
}
