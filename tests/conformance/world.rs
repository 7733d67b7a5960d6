//! What a case's topology becomes on the engine: networks, containers, external hosts; and taking it down again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, bail};
use bollard::query_parameters::{CreateContainerOptions, ListContainersOptions, ListNetworksOptions};
use bollard::query_parameters::{RemoveContainerOptions, RestartContainerOptions};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::case::{Case, IpFamily, Listen, ServiceSpec};
use crate::engine::{IMAGE, Lab, PROBE_INSIDE, output};
use crate::external::{ExternalHost, HostListener};
use crate::fact::Transport;

/// Networks that the controller made, not the case.
pub(crate) const OURS: &str = "cofferdam-";
const AT_ONCE: usize = 6;
/// What a case calls a burst.
const BURST_AT_ONCE: usize = 64;

/// A host address that belongs to no bridge, for published ports and listeners of the host. Out of the range for
/// benchmarks: the ranges for examples are the cases' own.
pub(crate) const HOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 200, 1));
pub(crate) const HOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1));

#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
}

#[derive(Debug)]
struct Service {
    spec: ServiceSpec,
    containers: Vec<Container>,
}

/// A running container as the engine tells it at one moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) pid: i64,
    pub(crate) networks: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) gateways: BTreeSet<IpAddr>,
}

impl Running {
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.networks
            .values()
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
            .collect()
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) lab: Lab,
    services: BTreeMap<String, Service>,
    networks: BTreeSet<String>,
    dual_stack: bool,
    pub(crate) externals: BTreeMap<String, ExternalHost>,
    _host: Option<HostListener>,
    /// Addresses that removed containers had, by service; the last removal wins.
    pub(crate) freed: BTreeMap<String, Vec<(String, IpAddr)>>,
    pub(crate) ever_freed: BTreeSet<IpAddr>,
    /// Services that were stopped, as they were.
    stopped: BTreeMap<String, ServiceSpec>,
}

impl World {
    pub(crate) async fn build(lab: &Lab, case: &Case) -> anyhow::Result<Self> {
        let topology = &case.topology;
        let dual_stack = topology.ip_family != IpFamily::Ipv4
            || case.requires.iter().any(|name| name == "ipv6")
            || topology
                .externals
                .iter()
                .any(|external| external.ip.is_ipv6() || external.ip6.is_some());
        let mut world = Self {
            lab: lab.clone(),
            services: BTreeMap::new(),
            networks: BTreeSet::new(),
            dual_stack,
            externals: BTreeMap::new(),
            _host: None,
            freed: BTreeMap::new(),
            ever_freed: BTreeSet::new(),
            stopped: BTreeMap::new(),
        };
        for (index, external) in topology.externals.iter().enumerate() {
            let host = ExternalHost::start(lab, external, index as u8).await?;
            world.externals.insert(external.name.clone(), host);
        }
        if let Some(host) = &topology.host {
            world._host = Some(HostListener::start(lab, host.listen()).await?);
        }
        world.start_services(&topology.services).await?;
        Ok(world)
    }

    /// Starts services side by side; those that share another's namespace come after the rest.
    pub(crate) async fn start_services(&mut self, specs: &[ServiceSpec]) -> anyhow::Result<()> {
        self.start(specs, AT_ONCE).await
    }

    /// Starts all containers of these services at once.
    pub(crate) async fn burst(&mut self, specs: &[ServiceSpec]) -> anyhow::Result<()> {
        self.start(specs, BURST_AT_ONCE).await
    }

    async fn start(&mut self, specs: &[ServiceSpec], at_once: usize) -> anyhow::Result<()> {
        for spec in specs {
            for network in attachments(spec)? {
                self.ensure_network(&network).await?;
            }
        }
        let (guests, hosts): (Vec<_>, Vec<_>) = specs.iter().partition(|spec| spec.network_mode.is_some());
        for group in [hosts, guests] {
            let wanted: Vec<(&ServiceSpec, u32)> = group
                .iter()
                .flat_map(|spec| (1..=spec.replicas).map(move |number| (*spec, number)))
                .collect();
            let this = &*self;
            let started: Vec<(String, Container)> = stream::iter(wanted)
                .map(|(spec, number)| async move {
                    let command = listen_command(spec)?;
                    let container = this
                        .start_container(spec, number, &command, "unless-stopped")
                        .await?;
                    Ok::<_, anyhow::Error>((spec.key(), container))
                })
                .buffered(at_once)
                .try_collect()
                .await?;
            for spec in group {
                self.services.entry(spec.key()).or_insert_with(|| Service {
                    spec: spec.clone(),
                    containers: Vec::new(),
                });
            }
            for (key, container) in started {
                let service = self
                    .services
                    .get_mut(&key)
                    .context("a service without a record")?;
                service.containers.push(container);
            }
        }
        Ok(())
    }

    async fn ensure_network(&mut self, name: &str) -> anyhow::Result<()> {
        if name == "bridge" || !self.networks.insert(name.to_owned()) {
            return Ok(());
        }
        // Every network of a run has a subnet of its own, so that addresses tell cases apart.
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (high, low) = (64 + number / 256, number % 256);
        let mut subnets = vec![json!({"Subnet": format!("10.{high}.{low}.0/24")})];
        if self.dual_stack {
            subnets.push(json!({"Subnet": format!("fd64:{number:x}::/64")}));
        }
        let request = json!({
            "Name": name, "Driver": "bridge", "CheckDuplicate": true, "EnableIPv6": self.dual_stack,
            "IPAM": {"Driver": "default", "Config": subnets},
        });
        self.lab
            .docker
            .create_network(serde_json::from_value(request)?)
            .await
            .with_context(|| format!("cannot create the network {name}"))?;
        Ok(())
    }

    async fn start_container(
        &self,
        spec: &ServiceSpec,
        number: u32,
        command: &[String],
        restart: &str,
    ) -> anyhow::Result<Container> {
        let name = container_name(spec, number);
        let mut labels = spec.labels.clone();
        if let Some(project) = spec.project() {
            labels.insert("com.docker.compose.project".to_owned(), project.to_owned());
            labels.insert("com.docker.compose.service".to_owned(), spec.service.clone());
            labels.insert(
                "com.docker.compose.container-number".to_owned(),
                number.to_string(),
            );
            labels.insert("com.docker.compose.oneoff".to_owned(), "False".to_owned());
        }
        let mut networks = attachments(spec)?;
        let reused = self.reused_address(spec, number)?;
        if let Some((network, _)) = &reused
            && !networks.contains(network)
        {
            networks.push(network.clone());
        }
        let endpoint = |network: &str| {
            let mut endpoint = json!({});
            if network != "bridge" && spec.project().is_some() {
                endpoint["Aliases"] = json!([spec.service]);
            }
            if let Some((taken, addresses)) = &reused
                && taken == network
            {
                for address in addresses {
                    let key = if address.is_ipv4() {
                        "IPv4Address"
                    } else {
                        "IPv6Address"
                    };
                    endpoint["IPAMConfig"][key] = json!(address.to_string());
                }
            }
            endpoint
        };
        let mode = match &spec.network_mode {
            Some(mode) => format!("container:{}", self.namespace_owner(spec, mode)?.id),
            None => networks.first().cloned().unwrap_or_else(|| "none".to_owned()),
        };
        let mut body = json!({
            "Image": IMAGE, "Cmd": command, "Labels": labels,
            "HostConfig": {"NetworkMode": mode, "RestartPolicy": {"Name": restart}},
        });
        for publish in &spec.publish {
            let port = format!("{}/{}", publish.container_port, publish.proto);
            let address = publish.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            body["ExposedPorts"][&port] = json!({});
            body["HostConfig"]["PortBindings"][&port] =
                json!([{"HostIp": address, "HostPort": publish.host_port.to_string()}]);
        }
        if spec.network_mode.is_none() && mode != "bridge" && mode != "none" {
            body["NetworkingConfig"] = json!({"EndpointsConfig": {&mode: endpoint(&mode)}});
        }
        let docker = &self.lab.docker;
        let options = CreateContainerOptions {
            name: Some(name.clone()),
            ..Default::default()
        };
        let created = docker
            .create_container(Some(options), serde_json::from_value(body)?)
            .await
            .with_context(|| format!("cannot create the container {name}"))?;
        for network in networks.iter().skip(1).filter(|_| spec.network_mode.is_none()) {
            let request = json!({"Container": created.id, "EndpointConfig": endpoint(network)});
            docker
                .connect_network(network, serde_json::from_value(request)?)
                .await
                .with_context(|| format!("cannot connect {name} to {network}"))?;
        }
        docker
            .start_container(&created.id, None)
            .await
            .with_context(|| format!("cannot start the container {name}"))?;
        Ok(Container { id: created.id, name })
    }

    /// A network of the case and the addresses there that another service left behind.
    fn reused_address(
        &self,
        spec: &ServiceSpec,
        number: u32,
    ) -> anyhow::Result<Option<(String, Vec<IpAddr>)>> {
        let Some(former) = spec.reuse_address_of.as_ref().filter(|_| number == 1) else {
            return Ok(None);
        };
        let freed = self
            .freed
            .get(former)
            .with_context(|| format!("{former} left no address behind"))?;
        let of_the_case = freed.iter().find(|(network, _)| !network.starts_with(OURS));
        let (network, _) =
            of_the_case.with_context(|| format!("{former} left no address of the case's networks"))?;
        let there = freed.iter().filter(|(other, _)| other == network);
        Ok(Some((network.clone(), there.map(|(_, ip)| *ip).collect())))
    }

    fn namespace_owner(&self, spec: &ServiceSpec, mode: &str) -> anyhow::Result<&Container> {
        let name = mode
            .strip_prefix("service:")
            .with_context(|| format!("unknown network_mode {mode:?}"))?;
        let key = match name.contains('/') {
            true => name.to_owned(),
            false => format!("{}/{name}", spec.project().unwrap_or("-")),
        };
        self.containers(&key)?
            .first()
            .with_context(|| format!("{key} has no container"))
    }

    pub(crate) fn knows(&self, key: &str) -> bool {
        self.services.contains_key(key)
    }

    pub(crate) fn service_keys(&self) -> Vec<String> {
        self.services.keys().cloned().collect()
    }

    pub(crate) fn spec(&self, key: &str) -> anyhow::Result<&ServiceSpec> {
        Ok(&self
            .services
            .get(key)
            .with_context(|| format!("no service {key}"))?
            .spec)
    }

    pub(crate) fn containers(&self, key: &str) -> anyhow::Result<&[Container]> {
        Ok(&self
            .services
            .get(key)
            .with_context(|| format!("no service {key}"))?
            .containers)
    }

    /// All running replicas of a service; fails when one of them does not run.
    pub(crate) async fn running(&self, key: &str) -> anyhow::Result<Vec<Running>> {
        let owner = match &self.spec(key)?.network_mode {
            Some(mode) => Some(self.namespace_owner(self.spec(key)?, mode)?.id.clone()),
            None => None,
        };
        let inspected = stream::iter(self.containers(key)?.to_vec())
            .map(|container| {
                let owner = owner.clone();
                async move {
                    let mut own = inspect(&self.lab, &container).await?;
                    if let Some(id) = owner {
                        let shared = Container {
                            id,
                            name: container.name.clone(),
                        };
                        own.networks = inspect(&self.lab, &shared).await?.networks;
                    }
                    Ok(own)
                }
            })
            .buffered(16);
        inspected.try_collect().await
    }

    pub(crate) async fn remove_service(&mut self, key: &str) -> anyhow::Result<()> {
        let service = self
            .services
            .remove(key)
            .with_context(|| format!("no service {key}"))?;
        for container in &service.containers {
            self.remove_container(key, container).await?;
        }
        self.stopped.insert(key.to_owned(), service.spec);
        Ok(())
    }

    pub(crate) async fn start_again(&mut self, key: &str) -> anyhow::Result<()> {
        let spec = self
            .stopped
            .remove(key)
            .with_context(|| format!("{key} was not stopped"))?;
        self.start_services(&[spec]).await
    }

    async fn remove_container(&mut self, key: &str, container: &Container) -> anyhow::Result<()> {
        if let Ok(running) = inspect(&self.lab, container).await {
            let pairs = running.networks.iter();
            let freed: Vec<(String, IpAddr)> = pairs
                .flat_map(|(network, endpoint)| endpoint.addresses.iter().map(|ip| (network.clone(), *ip)))
                .collect();
            self.ever_freed.extend(freed.iter().map(|(_, ip)| *ip));
            self.freed.insert(key.to_owned(), freed);
        }
        remove(&self.lab, &container.id).await
    }

    pub(crate) async fn recreate(&mut self, spec: ServiceSpec) -> anyhow::Result<()> {
        self.remove_service(&spec.key()).await?;
        self.start_services(&[spec]).await
    }

    pub(crate) async fn restart(&mut self, key: &str) -> anyhow::Result<()> {
        for container in self.containers(key)? {
            let options = RestartContainerOptions {
                t: Some(2),
                ..Default::default()
            };
            let done = self
                .lab
                .docker
                .restart_container(&container.id, Some(options))
                .await;
            done.with_context(|| format!("cannot restart {}", container.name))?;
        }
        Ok(())
    }

    pub(crate) async fn scale(&mut self, key: &str, replicas: u32) -> anyhow::Result<()> {
        let spec = self.spec(key)?.clone();
        let present = self.containers(key)?.len() as u32;
        for number in present + 1..=replicas {
            let started = self
                .start_container(&spec, number, &listen_command(&spec)?, "unless-stopped")
                .await?;
            self.services
                .get_mut(key)
                .context("no such service")?
                .containers
                .push(started);
        }
        while self.containers(key)?.len() as u32 > replicas {
            let last = self
                .services
                .get_mut(key)
                .and_then(|service| service.containers.pop());
            let last = last.context("no container to remove")?;
            self.remove_container(key, &last).await?;
        }
        Ok(())
    }

    /// One replica after the other: the new one stands before the next old one goes.
    pub(crate) async fn roll(&mut self, spec: ServiceSpec) -> anyhow::Result<()> {
        let key = spec.key();
        let count = self.containers(&key)?.len();
        for index in 0..count {
            let old = self.containers(&key)?[index].clone();
            self.remove_container(&key, &old).await?;
            let new = self
                .start_container(&spec, index as u32 + 1, &listen_command(&spec)?, "unless-stopped")
                .await?;
            self.services.get_mut(&key).context("no such service")?.containers[index] = new;
        }
        if let Some(service) = self.services.get_mut(&key) {
            service.spec = spec;
        }
        Ok(())
    }

    /// A container that runs one command to its end, and what it printed.
    pub(crate) async fn run_to_end(
        &self,
        spec: &ServiceSpec,
        number: u32,
        command: &[String],
    ) -> anyhow::Result<String> {
        use bollard::query_parameters::LogsOptions;
        let container = self.start_container(spec, number, command, "no").await?;
        let docker = &self.lab.docker;
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let state = docker
                .inspect_container(&container.id, None)
                .await?
                .state
                .unwrap_or_default();
            if state.running != Some(true) {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                bail!("{} does not end", container.name);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let lines: Vec<String> = docker
            .logs(&container.id, Some(options))
            .map_ok(|line| line.to_string())
            .try_collect()
            .await?;
        remove(&self.lab, &container.id).await?;
        Ok(lines.concat())
    }

    pub(crate) async fn ensure_for(&mut self, spec: &ServiceSpec) -> anyhow::Result<()> {
        for network in attachments(spec)? {
            self.ensure_network(&network).await?;
        }
        Ok(())
    }

    /// The first network of the case that a service is on.
    pub(crate) fn first_network(&self, key: &str) -> anyhow::Result<String> {
        attachments(self.spec(key)?)?
            .into_iter()
            .next()
            .with_context(|| format!("{key} is on no network"))
    }

    pub(crate) async fn connect(&mut self, key: &str, network: &str) -> anyhow::Result<()> {
        self.ensure_network(network).await?;
        for container in self.containers(key)? {
            let request = json!({"Container": container.id});
            let done = self
                .lab
                .docker
                .connect_network(network, serde_json::from_value(request)?)
                .await;
            done.with_context(|| format!("cannot connect {} to {network}", container.name))?;
        }
        Ok(())
    }

    pub(crate) async fn disconnect(&mut self, key: &str, network: &str) -> anyhow::Result<()> {
        for container in self.containers(key)? {
            let request = json!({"Container": container.id, "Force": false});
            let done = self
                .lab
                .docker
                .disconnect_network(network, serde_json::from_value(request)?)
                .await;
            done.with_context(|| format!("cannot disconnect {} from {network}", container.name))?;
        }
        Ok(())
    }
}

/// Removes every container and every network but Docker's own, whoever made them.
pub(crate) async fn clear(lab: &Lab) -> anyhow::Result<()> {
    let options = ListContainersOptions {
        all: true,
        ..Default::default()
    };
    let containers = lab
        .docker
        .list_containers(Some(options))
        .await
        .context("cannot list the containers")?;
    let ids = containers.into_iter().filter_map(|container| container.id);
    stream::iter(ids)
        .map(|id| async move { remove(lab, &id).await })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    crate::external::remove_links().await?;
    for network in lab.docker.list_networks(None::<ListNetworksOptions>).await? {
        let name = network.name.unwrap_or_default();
        if !["bridge", "host", "none"].contains(&name.as_str()) && !name.starts_with(OURS) {
            lab.docker
                .remove_network(&name)
                .await
                .with_context(|| format!("cannot remove the network {name}"))?;
        }
    }
    Ok(())
}

/// What the product left behind, in words; empty when nothing.
pub(crate) async fn leftovers(lab: &Lab) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for network in lab.docker.list_networks(None::<ListNetworksOptions>).await? {
        let name = network.name.unwrap_or_default();
        if name.starts_with(OURS) {
            found.push(format!("network {name}"));
        }
    }
    let tables = output("nft", &["list", "tables"], "").await?;
    found.extend(
        tables
            .lines()
            .filter(|line| line.contains("cofferdam"))
            .map(str::to_owned),
    );
    Ok(found)
}

/// Removes what a failed case left, so that the next one is judged on its own.
pub(crate) async fn scrub(lab: &Lab) -> anyhow::Result<()> {
    for line in leftovers(lab).await? {
        match line.strip_prefix("network ") {
            Some(name) => lab.docker.remove_network(name).await?,
            None => drop(output("sh", &["-c", &format!("nft delete {line}")], "").await?),
        }
    }
    Ok(())
}

async fn remove(lab: &Lab, id: &str) -> anyhow::Result<()> {
    let options = RemoveContainerOptions {
        force: true,
        v: true,
        ..Default::default()
    };
    lab.docker
        .remove_container(id, Some(options))
        .await
        .with_context(|| format!("cannot remove the container {id}"))
}

async fn inspect(lab: &Lab, container: &Container) -> anyhow::Result<Running> {
    let found = lab.docker.inspect_container(&container.id, None).await;
    let found = found.with_context(|| format!("cannot inspect {}", container.name))?;
    let state = found.state.unwrap_or_default();
    if state.running != Some(true) {
        bail!("{} does not run", container.name);
    }
    let networks = found
        .network_settings
        .and_then(|settings| settings.networks)
        .unwrap_or_default();
    let parse = |text: Option<String>| text.and_then(|text| text.parse::<IpAddr>().ok());
    let endpoint = |endpoint: bollard::models::EndpointSettings| Endpoint {
        addresses: [parse(endpoint.ip_address), parse(endpoint.global_ipv6_address)]
            .into_iter()
            .flatten()
            .collect(),
        gateways: [parse(endpoint.gateway), parse(endpoint.ipv6_gateway)]
            .into_iter()
            .flatten()
            .collect(),
    };
    Ok(Running {
        name: container.name.clone(),
        pid: state.pid.unwrap_or_default(),
        networks: networks
            .into_iter()
            .map(|(name, settings)| (name, endpoint(settings)))
            .collect(),
    })
}

/// How the engine calls a replica.
pub(crate) fn container_name(spec: &ServiceSpec, number: u32) -> String {
    match spec.project() {
        Some(project) => format!("{project}-{}-{number}", spec.service),
        // Docker wants two characters at least.
        None if number == 1 && spec.service.len() > 1 => spec.service.clone(),
        None => format!("{}-{number}", spec.service),
    }
}

fn attachments(spec: &ServiceSpec) -> anyhow::Result<Vec<String>> {
    match (&spec.network_mode, spec.networks.is_empty(), spec.project()) {
        (Some(mode), _, _) if !mode.starts_with("service:") => bail!("unknown network_mode {mode:?}"),
        (Some(_), _, _) => Ok(Vec::new()),
        (None, false, _) => Ok(spec.networks.clone()),
        (None, true, Some(project)) => Ok(vec![format!("{project}_default")]),
        (None, true, None) => Ok(vec!["bridge".to_owned()]),
    }
}

fn listen_command(spec: &ServiceSpec) -> anyhow::Result<Vec<String>> {
    Ok(vec![
        PROBE_INSIDE.to_owned(),
        "listen".to_owned(),
        listen_argument(&spec.listen)?,
    ])
}

pub(crate) fn listen_argument(listen: &[Listen]) -> anyhow::Result<String> {
    let entry = |listen: &Listen| match (listen.proto, &listen.port) {
        (Transport::Icmp, _) => Ok("icmp/0".to_owned()),
        (proto, Value::Number(port)) => Ok(format!("{proto}/{port}")),
        (proto, other) => bail!("not a port to listen on: {proto} {other}"),
    };
    Ok(listen.iter().map(entry).collect::<Result<Vec<_>, _>>()?.join(","))
}
