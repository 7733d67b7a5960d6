//! The real engine: a private one, from inside its namespaces. Its containers run this very program.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{CreateContainerOptions, EventsOptions, RemoveContainerOptions};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde_json::json;

use crate::product::PATIENCE;
use crate::resident::{Role, TOLD, Told};

pub(crate) const IMAGE: &str = "cofferdam-bench:1";
/// The network that containers share where nothing else is said.
pub(crate) const SHARED: &str = "shared";
/// Engine calls side by side, where many are to be made.
pub(crate) const AT_ONCE: usize = 16;

/// The engine, as a client sees it.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) docker: Docker,
    pub(crate) socket: PathBuf,
    told: PathBuf,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    /// Its label, by which policies select it.
    pub(crate) service: String,
    pub(crate) network: String,
    pub(crate) role: Role,
}

impl Spec {
    pub(crate) fn new(name: &str, service: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            service: service.to_owned(),
            network: SHARED.to_owned(),
            role,
        }
    }
}

/// What the engine says of a running container.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    /// By the name of their network.
    pub(crate) addresses: BTreeMap<String, Vec<IpAddr>>,
    /// The file of its network namespace.
    pub(crate) namespace: PathBuf,
}

impl Running {
    pub(crate) fn everywhere(&self) -> Vec<IpAddr> {
        self.addresses.values().flatten().copied().collect()
    }
}

/// An event of the engine, with the time that the engine gave it.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) action: String,
    pub(crate) container: String,
    /// Of the network, or of the container where it has none.
    pub(crate) name: String,
    pub(crate) at: Timestamp,
}

impl Engine {
    /// From inside the engine's namespaces.
    pub(crate) async fn enter() -> Self {
        let host = std::env::var("DOCKER_HOST").expect("the engine's namespaces name its socket");
        let socket = PathBuf::from(host.trim_start_matches("unix://"));
        let docker = Docker::connect_with_unix(&host, 120, bollard::API_DEFAULT_VERSION).unwrap();
        let docker = docker.negotiate_version().await.unwrap();
        let told = socket.parent().unwrap().join(TOLD);
        std::fs::create_dir_all(&told).unwrap();
        Self { docker, socket, told }
    }

    /// A bridge network, `10.NUMBER.0.0/16`; its bridge's index.
    pub(crate) async fn network(&self, name: &str, number: usize) -> u32 {
        let request = json!({
            "Name": name, "Driver": "bridge", "CheckDuplicate": true,
            "IPAM": {"Driver": "default", "Config": [{"Subnet": format!("10.{number}.0.0/16")}]},
        });
        let request = serde_json::from_value(request).unwrap();
        let created = self.docker.create_network(request).await.unwrap();
        let index = format!("/sys/class/net/br-{}/ifindex", &created.id[..12]);
        let index = std::fs::read_to_string(index).unwrap();
        index.trim().parse().unwrap()
    }

    /// Creates a container; its id.
    pub(crate) async fn create(&self, spec: &Spec) -> String {
        let this = std::env::current_exe().unwrap();
        let program = format!("/{}", this.file_name().unwrap().display());
        let command = [vec![program], spec.role.words(&spec.name)].concat();
        let body = json!({
            "Image": IMAGE, "Cmd": command, "Labels": {"service": spec.service},
            "HostConfig": {"NetworkMode": spec.network, "Binds": [format!("{}:/{TOLD}", self.told.display())]},
            "NetworkingConfig": {"EndpointsConfig": {&spec.network: {}}},
        });
        let options = CreateContainerOptions {
            name: Some(spec.name.clone()),
            ..Default::default()
        };
        let body = serde_json::from_value(body).unwrap();
        let created = self.docker.create_container(Some(options), body).await.unwrap();
        created.id
    }

    pub(crate) async fn connect(&self, network: &str, id: &str) {
        let request = serde_json::from_value(json!({"Container": id})).unwrap();
        self.docker.connect_network(network, request).await.unwrap();
    }

    pub(crate) async fn start(&self, id: &str) {
        self.docker.start_container(id, None).await.unwrap();
    }

    /// Creates, starts and waits until the program has begun, for all of them; their ids.
    pub(crate) async fn run(&self, specs: &[Spec]) -> Vec<String> {
        stream::iter(specs)
            .map(|spec| async move {
                let id = self.create(spec).await;
                self.start(&id).await;
                self.told(&spec.name, PATIENCE).await.expect("it tells");
                id
            })
            .buffered(AT_ONCE)
            .collect()
            .await
    }

    /// What a container told, if it does so in time.
    pub(crate) async fn told(&self, name: &str, patience: Duration) -> Option<Told> {
        let begun = Instant::now();
        loop {
            if let Some(told) = Told::take(&self.told, name) {
                return Some(told);
            }
            if begun.elapsed() > patience {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn inspect(&self, id: &str) -> Running {
        let found = self.docker.inspect_container(id, None).await.unwrap();
        let networks = found
            .network_settings
            .and_then(|it| it.networks)
            .unwrap_or_default();
        let addresses = networks.into_iter().map(|(network, endpoint)| {
            let both = [endpoint.ip_address, endpoint.global_ipv6_address];
            (
                network,
                both.iter().flatten().filter_map(|it| it.parse().ok()).collect(),
            )
        });
        let pid = found.state.and_then(|it| it.pid).unwrap();
        Running {
            addresses: addresses.collect(),
            namespace: format!("/proc/{pid}/ns/net").into(),
        }
    }

    /// Ends and removes containers.
    pub(crate) async fn remove(&self, ids: &[String]) {
        let removed = stream::iter(ids.to_vec())
            .map(|id| async move {
                let options = RemoveContainerOptions {
                    force: true,
                    v: true,
                    ..Default::default()
                };
                self.docker.remove_container(&id, Some(options)).await
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>();
        removed.await.unwrap();
    }

    /// Events of containers and their endpoints from now on.
    pub(crate) fn events(&self) -> Events {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (docker, events) = (self.docker.clone(), Arc::clone(&heard));
        let filters = BTreeMap::from([("type", vec!["container", "network"])]);
        let options = EventsOptions {
            filters: Some(serde_json::from_value(json!(filters)).unwrap()),
            ..Default::default()
        };
        let task = tokio::spawn(async move {
            let mut stream = docker.events(Some(options));
            while let Some(Ok(message)) = stream.next().await {
                let actor = message.actor.unwrap_or_default();
                let attributes = actor.attributes.unwrap_or_default();
                let container = attributes.get("container").cloned().or(actor.id);
                let at = Timestamp::from_nanosecond(message.time_nano.unwrap().into());
                events.lock().unwrap().push(Event {
                    action: message.action.unwrap_or_default(),
                    container: container.unwrap_or_default(),
                    name: attributes.get("name").cloned().unwrap_or_default(),
                    at: at.unwrap(),
                });
            }
        });
        Events { heard, task }
    }
}

/// Events that were heard, until it is dropped.
#[derive(Debug)]
pub(crate) struct Events {
    heard: Arc<Mutex<Vec<Event>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Events {
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}
