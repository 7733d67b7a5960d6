//! A small shop to attack: containers with compose labels on networks of their own, the daemon with a policy, and leak
//! probes in any container's namespace.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bollard::errors::Error;
use bollard::query_parameters::{
    CreateContainerOptions, InspectNetworkOptions, ListContainersOptions, ListNetworksOptions, LogsOptions,
    RemoveContainerOptions,
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::daemon::{Daemon, Life};
use crate::engine::{IMAGE, Lab, PROBE_INSIDE, output, target_directory};
use crate::figure::Figure;

/// Long enough for a busy machine.
const CONVERGE: Duration = Duration::from_secs(30);
const AT_ONCE: usize = 8;
/// The ports that every server of a shop answers at, TCP and UDP: the first is declared in [`POLICY`], the second never.
pub(crate) const DECLARED: u16 = 8080;
pub(crate) const UNDECLARED: u16 = 9090;

/// `client` may reach `server` at [`DECLARED`] and by ping; nobody may do anything else.
pub(crate) const POLICY: &str = "
cofferdam: 1
segment: shop
services:
  client: { select: { compose: shop/client } }
  server: { select: { compose: shop/server } }
  stranger: { select: { compose: shop/stranger } }
allow:
  - { from: client, to: server, ports: [8080, 8080/udp, icmp] }
";

/// The daemon with its policy on a clean engine.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) lab: Lab,
    pub(crate) daemon: Daemon,
}

/// One container of each service of [`POLICY`], on one network.
#[derive(Debug)]
pub(crate) struct Staff {
    pub(crate) server: Container,
    pub(crate) client: Container,
    pub(crate) stranger: Container,
}

/// A container to be started.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Each with the address that is asked for, if any.
    networks: Vec<(String, Option<Ipv4Addr>)>,
    mac: Option<String>,
    command: Vec<String>,
    /// Parts of the engine's `HostConfig`.
    host: Map<String, Value>,
}

impl Spec {
    /// A container of the compose project `shop` that answers at [`DECLARED`] and [`UNDECLARED`], on no network yet.
    pub(crate) fn service(service: &str, name: &str) -> Self {
        Self::plain(name)
            .label("com.docker.compose.project", "shop")
            .label("com.docker.compose.service", service)
    }

    /// One that no selector of [`POLICY`] knows.
    pub(crate) fn plain(name: &str) -> Self {
        let ports = format!("tcp/{DECLARED},udp/{DECLARED},tcp/{UNDECLARED},udp/{UNDECLARED}");
        Self {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            networks: Vec::new(),
            mac: None,
            command: vec!["listen".to_owned(), ports],
            host: Map::new(),
        }
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The first network is there from the creation on, more are connected before the start.
    pub(crate) fn on(mut self, network: &str) -> Self {
        self.networks.push((network.to_owned(), None));
        self
    }

    pub(crate) fn at(mut self, network: &str, address: Ipv4Addr) -> Self {
        self.networks.push((network.to_owned(), Some(address)));
        self
    }

    pub(crate) fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }

    /// The probe's arguments.
    pub(crate) fn command<S: AsRef<str>>(mut self, words: &[S]) -> Self {
        self.command = words.iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    pub(crate) fn capability(mut self, name: &str) -> Self {
        let list = self.host.entry("CapAdd").or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(json!(name));
        }
        self
    }

    pub(crate) fn host(mut self, key: &str, value: Value) -> Self {
        self.host.insert(key.to_owned(), value);
        self
    }

    /// Publishes a TCP and UDP port of the container on every address of the host.
    pub(crate) fn publish(self, host: u16, container: u16) -> Self {
        let binding = json!([{"HostPort": host.to_string()}]);
        let bindings = json!({format!("{container}/tcp"): binding, format!("{container}/udp"): binding});
        self.host("PortBindings", bindings)
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Endpoint {
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
    pub(crate) mac: String,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) gateway6: Option<Ipv6Addr>,
}

#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) pid: i64,
    pub(crate) networks: BTreeMap<String, Endpoint>,
}

impl Container {
    pub(crate) fn on(&self, network: &str) -> anyhow::Result<&Endpoint> {
        self.networks
            .get(network)
            .with_context(|| format!("{} is not on {network}", self.name))
    }

    pub(crate) fn v4(&self, network: &str) -> anyhow::Result<IpAddr> {
        let address = self.on(network)?.v4;
        address
            .map(IpAddr::V4)
            .with_context(|| format!("{} has no IPv4 address", self.name))
    }

    pub(crate) fn v6(&self, network: &str) -> anyhow::Result<IpAddr> {
        let address = self.on(network)?.v6;
        address
            .map(IpAddr::V6)
            .with_context(|| format!("{} has no IPv6 address", self.name))
    }

    /// Both addresses on a network, IPv4 first.
    pub(crate) fn addresses(&self, network: &str) -> anyhow::Result<Vec<IpAddr>> {
        Ok(vec![self.v4(network)?, self.v6(network)?])
    }
}

impl Shop {
    /// A clean engine, and the daemon enforcing this policy on it.
    pub(crate) async fn open(lab: &Lab, scenario: &str, policy: &str) -> anyhow::Result<Self> {
        Self::open_with(lab, scenario, policy, &[]).await
    }

    /// The same with more arguments for `cofferdam run`.
    pub(crate) async fn open_with(
        lab: &Lab,
        scenario: &str,
        policy: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        clear(lab).await?;
        let log = target_directory().join(format!("reports/faults/{scenario}.log"));
        let mut daemon = Daemon::prepare(lab, log, false)?;
        daemon.arguments = arguments.iter().map(|&it| it.to_owned()).collect();
        daemon
            .write(&BTreeMap::from([("shop.yaml".to_owned(), policy.to_owned())]))
            .await?;
        daemon.start()?;
        daemon.converge(CONVERGE).await?;
        let lab = lab.clone();
        Ok(Self { lab, daemon })
    }

    /// Replaces the policy and waits until it is in force.
    pub(crate) async fn policy(&mut self, policy: &str) -> anyhow::Result<()> {
        self.daemon
            .write(&BTreeMap::from([("shop.yaml".to_owned(), policy.to_owned())]))
            .await?;
        self.converge().await
    }

    pub(crate) async fn converge(&mut self) -> anyhow::Result<()> {
        self.daemon.converge(CONVERGE).await
    }

    /// A bridge network of both families as compose makes them: `10.NUMBER.0.0/24` and `fd64:NUMBER::/64`.
    pub(crate) async fn network(&self, name: &str, number: u8) -> anyhow::Result<()> {
        let request = json!({
            "Name": name, "Driver": "bridge", "CheckDuplicate": true, "EnableIPv6": true,
            "IPAM": {"Driver": "default", "Config": [
                {"Subnet": format!("10.{number}.0.0/24"), "Gateway": format!("10.{number}.0.1")},
                {"Subnet": format!("fd64:{number:x}::/64"), "Gateway": format!("fd64:{number:x}::1")},
            ]},
        });
        let created = self
            .lab
            .docker
            .create_network(serde_json::from_value(request)?)
            .await;
        created
            .map(drop)
            .with_context(|| format!("cannot create the network {name}"))
    }

    /// A network as [`Self::network`] makes it, with one container of each service on it, all in force.
    pub(crate) async fn staff(&mut self, network: &str, number: u8) -> anyhow::Result<Staff> {
        self.network(network, number).await?;
        let start = async |name: &str| self.start(&Spec::service(name, name).on(network)).await;
        let staff = Staff {
            server: start("server").await?,
            client: start("client").await?,
            stranger: start("stranger").await?,
        };
        self.converge().await?;
        Ok(staff)
    }

    /// Creates a container and starts it; does not wait for the daemon.
    pub(crate) async fn start(&self, spec: &Spec) -> anyhow::Result<Container> {
        let id = self.create(spec).await?;
        self.lab
            .docker
            .start_container(&id, None)
            .await
            .with_context(|| format!("cannot start the container {}", spec.name))?;
        self.inspect(&id).await
    }

    /// Creates a container; its id.
    pub(crate) async fn create(&self, spec: &Spec) -> anyhow::Result<String> {
        create(&self.lab, spec).await
    }

    /// The container as the engine tells it now.
    pub(crate) async fn inspect(&self, id: &str) -> anyhow::Result<Container> {
        let found = self.lab.docker.inspect_container(id, None).await?;
        let networks = found
            .network_settings
            .and_then(|settings| settings.networks)
            .unwrap_or_default();
        let endpoint = |settings: bollard::models::EndpointSettings| Endpoint {
            v4: settings.ip_address.and_then(|text| text.parse().ok()),
            v6: settings.global_ipv6_address.and_then(|text| text.parse().ok()),
            mac: settings.mac_address.unwrap_or_default(),
            gateway: settings.gateway.and_then(|text| text.parse().ok()),
            gateway6: settings.ipv6_gateway.and_then(|text| text.parse().ok()),
        };
        Ok(Container {
            id: found.id.unwrap_or_default(),
            name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            pid: found.state.and_then(|state| state.pid).unwrap_or_default(),
            networks: networks
                .into_iter()
                .map(|(name, settings)| (name, endpoint(settings)))
                .collect(),
        })
    }

    /// Waits for a container's end; what it printed.
    pub(crate) async fn printed(&self, id: &str, patience: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let state = self.lab.docker.inspect_container(id, None).await?.state;
            let state = state.unwrap_or_default();
            if state.running != Some(true) && state.status.is_some_and(|it| it.to_string() != "created") {
                break;
            }
            if Instant::now() > deadline {
                bail!("a container does not end within {patience:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let lines: Vec<String> = self
            .lab
            .docker
            .logs(id, Some(options))
            .map_ok(|line| line.to_string())
            .try_collect()
            .await?;
        Ok(lines.concat())
    }

    pub(crate) async fn remove(&self, id: &str) -> anyhow::Result<()> {
        remove(&self.lab, id).await
    }

    /// A probe command in a container's network namespace, or in the host's.
    pub(crate) fn probe(&self, pid: Option<i64>) -> Command {
        let mut command = match pid {
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &pid.to_string(), "-n"]).arg(&self.lab.probe);
                command
            }
            None => Command::new(&self.lab.probe),
        };
        command.kill_on_drop(true);
        command
    }

    /// Runs a probe command to its end in a namespace; what it printed.
    pub(crate) async fn probed(&self, pid: Option<i64>, words: &[&str]) -> anyhow::Result<String> {
        let output = self
            .probe(pid)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot run the probe")?;
        if !output.status.success() {
            bail!(
                "probe {} ended with {}: {}",
                words.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether one exchange of `PROTO/ADDRESS/PORT` succeeds within a second.
    pub(crate) async fn reaches(&self, pid: Option<i64>, flow: &str) -> anyhow::Result<bool> {
        let words: Vec<&str> = flow.split('/').collect();
        let mut child = self
            .probe(pid)
            .args(["check", "1000", "0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("a probe without input")?;
        stdin
            .write_all(format!("1 {}\n", words.join(" ")).as_bytes())
            .await?;
        drop(stdin);
        let said = child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&said.stdout);
        match said.split_whitespace().nth(2) {
            Some("allow") => Ok(true),
            Some("deny") => Ok(false),
            _ => bail!("{flow}: {}", said.trim()),
        }
    }

    /// Waits until the exchange succeeds; how long that took.
    pub(crate) async fn until_reached(
        &self,
        pid: Option<i64>,
        flow: &str,
        patience: Duration,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        while !self.reaches(pid, flow).await? {
            if begun.elapsed() > patience {
                bail!("{flow} does not open within {patience:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(begun.elapsed())
    }

    /// Starts a leak probe that runs until [`LeakProbe::finish`]. Flows are `+PROTO/ADDRESS/PORT` (declared) and `-…`.
    pub(crate) fn leak_probe(&self, pid: Option<i64>, flows: &[String]) -> anyhow::Result<LeakProbe> {
        let child = self
            .probe(pid)
            .args(["leak", "stdin"])
            .args(flows)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run the leak probe")?;
        Ok(LeakProbe { child })
    }

    /// A leak probe for so long, and its report.
    pub(crate) async fn leaks_for(
        &self,
        pid: Option<i64>,
        flows: &[String],
        time: Duration,
    ) -> anyhow::Result<Leaks> {
        let probe = self.leak_probe(pid, flows)?;
        tokio::time::sleep(time).await;
        probe.finish().await
    }

    /// Ends the daemon, removes all of it and every container; fails when the product left anything.
    pub(crate) async fn close(mut self) -> anyhow::Result<()> {
        if self.daemon.life != Life::Stopped {
            self.daemon.stop(Signal::SIGTERM).await?;
        }
        if let Err(error) = self.daemon.down().await {
            // Engine 20.10 may keep an endpoint whose container is gone for good: only a restart of the engine frees the network.
            clear(&self.lab).await?;
            let again = self.daemon.down().await;
            again.with_context(|| format!("not even after the engine was cleared; first: {error:#}"))?;
        }
        let tables = output("nft", &["list", "tables"], "").await?;
        if tables.contains("cofferdam") {
            bail!("`down` left tables: {tables}");
        }
        clear(&self.lab).await
    }
}

/// How often the daemon has put back what others had changed.
pub(crate) fn repairs(status: &Value) -> anyhow::Result<u64> {
    let count = status.pointer("/passes/repairs").and_then(Value::as_u64);
    count.context("status counts no repairs")
}

/// Closes the shop; what went wrong there is a figure of its own and costs no other.
pub(crate) async fn closed(shop: Shop, scenario: &str, mut figures: Vec<Figure>) -> Vec<Figure> {
    if let Err(error) = shop.close().await {
        figures.push(Figure {
            name: format!("{scenario}: closing"),
            failed: Some(format!("{error:#}")),
            ..Figure::default()
        });
    }
    figures
}

/// A leak probe that runs.
#[derive(Debug)]
pub(crate) struct LeakProbe {
    child: Child,
}

impl LeakProbe {
    pub(crate) async fn finish(mut self) -> anyhow::Result<Leaks> {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().await?;
        if !output.status.success() {
            bail!("the leak probe ended with {}", output.status);
        }
        Leaks::parse(&String::from_utf8_lossy(&output.stdout))
    }
}

/// What one flow of a leak probe came to.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) declared: bool,
    /// `Tcp 10.0.0.2 8080`
    pub(crate) target: String,
    pub(crate) attempts: u64,
    pub(crate) successes: u64,
    /// Attempts that this side could not make.
    pub(crate) unable: u64,
    pub(crate) first_ms: Option<u64>,
    pub(crate) longest_gap_ms: Option<u64>,
    /// Of the first connect, TCP only.
    pub(crate) connected_ms: Option<u64>,
    pub(crate) first_syn: Option<bool>,
}

/// What a leak probe came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaks {
    pub(crate) flows: Vec<Flow>,
    /// The probe's words on each undeclared success, the first few.
    pub(crate) successes: Vec<String>,
}

impl Leaks {
    pub(crate) fn parse(said: &str) -> anyhow::Result<Self> {
        let mut leaks = Self::default();
        for line in said.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["success", ..] => leaks.successes.push(line.to_owned()),
                [
                    "flow",
                    sign,
                    proto,
                    address,
                    port,
                    attempts,
                    successes,
                    unable,
                    first,
                    gap,
                    connected,
                    syn,
                ] => {
                    leaks.flows.push(Flow {
                        declared: *sign == "+",
                        target: format!("{proto} {address} {port}"),
                        attempts: attempts.parse()?,
                        successes: successes.parse()?,
                        unable: unable.parse()?,
                        first_ms: first.parse().ok(),
                        longest_gap_ms: gap.parse().ok(),
                        connected_ms: connected.parse().ok(),
                        first_syn: match *syn {
                            "first-syn" => Some(true),
                            "late" => Some(false),
                            _ => None,
                        },
                    });
                }
                _ => {}
            }
        }
        if leaks.flows.is_empty() {
            bail!("the leak probe reported nothing: {}", said.trim());
        }
        Ok(leaks)
    }

    fn undeclared(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(|flow| !flow.declared)
    }

    pub(crate) fn declared(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(|flow| flow.declared)
    }

    /// Undeclared attempts.
    pub(crate) fn tried(&self) -> u64 {
        self.undeclared().map(|flow| flow.attempts - flow.unable).sum()
    }

    /// Undeclared successes.
    pub(crate) fn leaked(&self) -> u64 {
        self.undeclared().map(|flow| flow.successes).sum()
    }

    /// The longest gap of any declared flow.
    pub(crate) fn longest_gap_ms(&self) -> Option<u64> {
        self.declared().filter_map(|flow| flow.longest_gap_ms).max()
    }

    /// Declared flows that never succeeded, in words; `None` when all did.
    pub(crate) fn missing(&self) -> Option<String> {
        let missing: Vec<&str> = self
            .declared()
            .filter(|flow| flow.successes == 0)
            .map(|flow| flow.target.as_str())
            .collect();
        (!missing.is_empty()).then(|| format!("declared, but never answered: {}", missing.join(", ")))
    }
}

/// `+tcp/A/PORT`, `+udp/A/PORT` and `+icmp/A/echo` for every address, all with this sign.
pub(crate) fn flows(sign: char, protocols: &[&str], addresses: &[IpAddr], port: u16) -> Vec<String> {
    let mut flows = Vec::new();
    for address in addresses {
        for protocol in protocols {
            let port = if *protocol == "icmp" {
                "echo".to_owned()
            } else {
                port.to_string()
            };
            flows.push(format!("{sign}{protocol}/{address}/{port}"));
        }
    }
    flows
}

/// Creates a container; its id.
pub(crate) async fn create(lab: &Lab, spec: &Spec) -> anyhow::Result<String> {
    let mut host = spec.host.clone();
    let first = spec.networks.first().map_or("none", |(name, _)| name.as_str());
    host.entry("NetworkMode").or_insert_with(|| json!(first));
    let mut command = vec![PROBE_INSIDE.to_owned()];
    command.extend(spec.command.iter().cloned());
    let mut body = json!({
        "Image": IMAGE, "Cmd": command, "Labels": spec.labels, "HostConfig": host,
        // A static address and a MAC are of the first network.
        "NetworkingConfig": {"EndpointsConfig": {}},
    });
    if let Some(bindings) = spec.host.get("PortBindings").and_then(Value::as_object) {
        let exposed: Map<String, Value> = bindings.keys().map(|port| (port.clone(), json!({}))).collect();
        body["ExposedPorts"] = Value::Object(exposed);
    }
    if let Some(mac) = &spec.mac {
        body["MacAddress"] = json!(mac);
    }
    let endpoint = |address: &Option<Ipv4Addr>| match address {
        Some(address) => json!({"IPAMConfig": {"IPv4Address": address.to_string()}}),
        None => json!({}),
    };
    if let Some((network, address)) = spec.networks.first()
        && network != "bridge"
    {
        body["NetworkingConfig"]["EndpointsConfig"][network] = endpoint(address);
    }
    let options = CreateContainerOptions {
        name: Some(spec.name.clone()),
        ..Default::default()
    };
    let docker = &lab.docker;
    let created = docker
        .create_container(Some(options), serde_json::from_value(body)?)
        .await
        .with_context(|| format!("cannot create the container {}", spec.name))?;
    for (network, address) in spec.networks.iter().skip(1) {
        let request = json!({"Container": created.id, "EndpointConfig": endpoint(address)});
        docker
            .connect_network(network, serde_json::from_value(request)?)
            .await
            .with_context(|| format!("cannot connect {} to {network}", spec.name))?;
    }
    Ok(created.id)
}

pub(crate) async fn remove(lab: &Lab, id: &str) -> anyhow::Result<()> {
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

/// Removes every container, every network but Docker's own, and tables that a failed scenario left.
pub(crate) async fn clear(lab: &Lab) -> anyhow::Result<()> {
    let options = ListContainersOptions {
        all: true,
        ..Default::default()
    };
    let containers = lab.docker.list_containers(Some(options)).await?;
    let ids = containers.into_iter().filter_map(|container| container.id);
    stream::iter(ids)
        .map(|id| async move { remove(lab, &id).await })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    for network in lab.docker.list_networks(None::<ListNetworksOptions>).await? {
        let name = network.name.unwrap_or_default();
        if !["bridge", "host", "none"].contains(&name.as_str()) {
            remove_network(lab, &name).await?;
        }
    }
    for family in ["inet", "bridge"] {
        let table = format!("table {family} cofferdam");
        output("nft", &["-f", "-"], &format!("{table}\ndelete {table}\n")).await?;
    }
    Ok(())
}

/// Engine 20.10 sometimes keeps the endpoint of a container that was removed during its start: it is disconnected by
/// force. One that is not even listed goes with a restart of the engine, which forgets the endpoints of containers that do
/// not run.
async fn remove_network(lab: &Lab, name: &str) -> anyhow::Result<()> {
    if release_network(lab, name, Duration::from_secs(20)).await.is_ok() {
        return Ok(());
    }
    lab.restart_dockerd().await?;
    let removed = release_network(lab, name, Duration::from_secs(20)).await;
    removed
        .with_context(|| format!("cannot remove the network {name}, not even after a restart of the engine"))
}

async fn release_network(lab: &Lab, name: &str, patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match lab.docker.remove_network(name).await {
            Ok(()) => return Ok(()),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => {}
        }
        let network = lab
            .docker
            .inspect_network(name, None::<InspectNetworkOptions>)
            .await;
        let listed = network.ok().and_then(|it| it.containers).unwrap_or_default();
        for (id, endpoint) in listed {
            // The engine knows the endpoint of a container that is gone by one of them, and not always by the same.
            for container in [Some(id), endpoint.name].into_iter().flatten() {
                let request = json!({"Container": container, "Force": true});
                let request = serde_json::from_value(request)?;
                lab.docker.disconnect_network(name, request).await.ok();
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
