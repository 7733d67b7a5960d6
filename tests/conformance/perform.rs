//! The actions of a step, one after the other.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::action::{Action, IcmpError, Named, Replacement, ShortLived, Spoofed};
use crate::background::{Held, NeverAllowed, Watch};
use crate::case::ServiceSpec;
use crate::daemon::Life;
use crate::engine::{PROBE_INSIDE, output};
use crate::fact::{Party, Transport};
use crate::probes::{Source, families, run_probe};
use crate::prose::{TightLoop, invalid_text, tight_loop};
use crate::run::Stage;

/// A packet that was forged, and where it must not arrive.
#[derive(Debug)]
pub(crate) struct Forged {
    pub(crate) id: Option<String>,
    pub(crate) to: String,
    pub(crate) source: std::net::IpAddr,
    pub(crate) watches: Vec<Watch>,
}

/// An ICMP error that was sent, and where it must arrive.
#[derive(Debug)]
pub(crate) struct SentError {
    pub(crate) id: String,
    pub(crate) to: String,
    pub(crate) ipv6: bool,
    /// The embedded packet's ports, as they appear in the hex of what arrives.
    pub(crate) ports: String,
    pub(crate) watch: Watch,
}

/// How many short-lived containers at a time: each is a tight loop.
const SHORT_LIVED_AT_ONCE: usize = 5;

impl Stage<'_> {
    pub(crate) async fn perform(&mut self, action: &Action, within: Duration) -> anyhow::Result<()> {
        match action {
            Action::SetPolicy(policy) => {
                let files = self.translator.files(policy)?;
                self.changed_policy = Some(Instant::now());
                self.daemon.write(&files).await
            }
            Action::SubmitInvalidPolicy(invalid) => {
                let text = invalid_text(&invalid.kind).with_context(|| {
                    format!("the runner does not know the invalid policy {:?}", invalid.kind)
                })?;
                self.daemon.write_invalid(&invalid.kind, text)?;
                // Long enough to be taken up, if it were.
                tokio::time::sleep(Duration::from_millis(700)).await;
                Ok(())
            }
            Action::StartService(Named::Map(spec)) => {
                self.world.start_services(std::slice::from_ref(spec)).await
            }
            Action::StartService(Named::Key(key)) => self.world.start_again(key).await,
            Action::StopService(service) => self.world.remove_service(service.key()).await,
            Action::RecreateService(service) => {
                let replacement = service.replacement();
                let spec = replaced(self.world.spec(&replacement.service)?, &replacement);
                self.world.recreate(spec).await
            }
            Action::RestartService(service) => self.world.restart(service.key()).await,
            Action::Scale(scale) => self.world.scale(&scale.service, scale.replicas).await,
            Action::RollingUpdate(service) => {
                let replacement = service.replacement();
                let spec = replaced(self.world.spec(&replacement.service)?, &replacement);
                self.world.roll(spec).await
            }
            Action::RunShortLived(job) => {
                self.daemon.converge(within).await?;
                self.run_short_lived(job).await
            }
            Action::BurstStart(burst) => self.world.burst(&burst.services()).await,
            Action::NetworkConnect(attachment) => {
                let network = self.network(attachment)?;
                self.world.connect(&attachment.service, &network).await
            }
            Action::NetworkDisconnect(attachment) => {
                let network = self.network(attachment)?;
                self.world.disconnect(&attachment.service, &network).await
            }
            Action::KillController(how) => {
                self.daemon
                    .stop(signal(how.signal.as_deref().unwrap_or("SIGKILL"))?)
                    .await
            }
            Action::StopController(_) => self.daemon.stop(Signal::SIGTERM).await,
            Action::StartController(_) => {
                self.drift_before = None;
                self.daemon.start()
            }
            Action::RestartController(how) => {
                self.daemon
                    .stop(signal(how.signal.as_deref().unwrap_or("SIGTERM"))?)
                    .await?;
                self.drift_before = None;
                self.daemon.start()
            }
            Action::PauseController(_) => self.daemon.pause(),
            Action::ResumeController(_) => self.daemon.resume(),
            Action::DeleteNftTable(table) => {
                let name = table.table.as_deref().unwrap_or("cofferdam");
                let families = match &table.family {
                    Some(family) => vec![family.as_str()],
                    None => vec!["inet", "bridge"],
                };
                for family in families {
                    output("nft", &["delete", "table", family, name], "").await?;
                }
                Ok(())
            }
            Action::FlushRuleset(flush) => {
                let restart = match flush.then.as_deref() {
                    None => false,
                    Some(text) if text.to_lowercase().contains("restart dockerd") => true,
                    Some(text) => bail!("flush_ruleset: the runner does not know how to {text:?}"),
                };
                output("nft", &["flush", "ruleset"], "").await?;
                self.world.lab.rules_gone.store(true, Ordering::Relaxed);
                if restart {
                    self.restart_dockerd().await
                } else {
                    Ok(())
                }
            }
            Action::DeleteSetElement(element) => {
                let source = element.flow.as_ref().map(|flow| flow.from.to_string());
                self.delete_set_element(element.service.as_deref().or(source.as_deref()))
                    .await
            }
            Action::BreakNft(_) => self.daemon.break_nft(true),
            Action::RestoreNft(_) => self.daemon.break_nft(false),
            Action::RestartDockerd(_) => self.restart_dockerd().await,
            Action::OpenConnection(connection) => {
                self.daemon.converge(within).await?;
                let held = Held::open(&self.world, self.case, &connection.flow).await?;
                self.held.insert(connection.id.clone(), held);
                Ok(())
            }
            Action::SendSpoofed(spoofed) => {
                self.daemon.converge(within).await?;
                self.send_spoofed(spoofed).await
            }
            Action::SendIcmpError(error) => {
                let id = self.connection_for(error).await?;
                let kind = icmp_error(error.kind.as_deref().unwrap_or("fragmentation-needed"))?;
                self.send_icmp_error(id, error.from.as_deref(), kind).await
            }
            Action::Wait(pause) => {
                tokio::time::sleep(Duration::from_millis(pause.milliseconds())).await;
                Ok(())
            }
        }
    }

    /// The containers come back while dockerd starts: what runs beside the step must not wait for the end of that.
    async fn restart_dockerd(&mut self) -> anyhow::Result<()> {
        let (world, case, never_allowed) = (&self.world, self.case, &mut self.never_allowed);
        let restart = world.lab.restart_dockerd();
        tokio::pin!(restart);
        loop {
            tokio::select! {
                done = &mut restart => return done,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            for never in never_allowed.iter_mut() {
                never.follow(world, case).await?;
            }
        }
    }

    fn network(&self, attachment: &crate::action::Attachment) -> anyhow::Result<String> {
        match (&attachment.network, &attachment.network_of) {
            (Some(network), None) => Ok(network.clone()),
            (None, Some(service)) => self.world.first_network(service),
            _ => bail!("either network or network_of: {attachment:?}"),
        }
    }

    async fn run_short_lived(&mut self, job: &ShortLived) -> anyhow::Result<()> {
        let TightLoop {
            target,
            transport,
            port,
            seconds,
        } = tight_loop(&job.entrypoint)?;
        let (project, service) = job
            .service
            .split_once('/')
            .context("run_short_lived: not project/service")?;
        let spec: ServiceSpec = serde_json::from_value(serde_json::json!({
            "project": project, "service": service, "labels": job.labels,
        }))?;
        self.world.ensure_for(&spec).await?;
        let mut command = vec![PROBE_INSIDE.to_owned(), "hammer".to_owned(), seconds.to_string()];
        for replica in self.world.running(&target).await? {
            let families = families(self.case);
            for address in replica.addresses() {
                if families.iter().any(|family| family.holds(address)) {
                    command.extend([transport.to_string(), address.to_string(), port.to_string()]);
                }
            }
        }
        let (world, spec, command) = (&self.world, &spec, &command);
        let outputs: Vec<String> = stream::iter(1..=job.count)
            .map(|number| async move { world.run_to_end(spec, number, command).await })
            .buffer_unordered(SHORT_LIVED_AT_ONCE)
            .try_collect()
            .await?;
        for output in outputs {
            let lines: Vec<String> = output.lines().map(str::to_owned).collect();
            if !lines.iter().any(|line| line.starts_with("tally ")) {
                bail!(
                    "a short-lived container of {} did not report: {output}",
                    job.service
                );
            }
            for watcher in self
                .never_allowed
                .iter_mut()
                .filter(|watcher: &&mut NeverAllowed| watcher.is_from(&job.service))
            {
                watcher.hear(&job.service, &lines);
            }
        }
        Ok(())
    }

    /// Takes an element out of a set of the product behind its back.
    async fn delete_set_element(&self, service: Option<&str>) -> anyhow::Result<()> {
        let mut addresses = Vec::new();
        for key in self.world.service_keys() {
            if service.is_none_or(|wanted| wanted == key) {
                for replica in self.world.running(&key).await? {
                    addresses.extend(replica.addresses().into_iter().map(|ip| ip.to_string()));
                }
            }
        }
        let listed = output("nft", &["-j", "list", "ruleset"], "").await?;
        let listed: Value = serde_json::from_str(&listed).context("nft lists no JSON")?;
        let objects = listed
            .get("nftables")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for object in &objects {
            for kind in ["set", "map"] {
                let Some(set) = object.get(kind) else { continue };
                if set.get("table").and_then(Value::as_str) != Some("cofferdam") {
                    continue;
                }
                let elements = set
                    .get("elem")
                    .and_then(Value::as_array)
                    .cloned()
                    .unwrap_or_default();
                let ours = |element: &&Value| {
                    addresses
                        .iter()
                        .any(|ip| element.to_string().contains(&format!("\"{ip}\"")))
                };
                let Some(element) = elements.iter().find(ours) else {
                    continue;
                };
                let command = serde_json::json!({"nftables": [{"delete": {"element": {
                    "family": set.get("family"), "table": "cofferdam", "name": set.get("name"), "elem": [element],
                }}}]});
                return output("nft", &["-j", "-f", "-"], &command.to_string())
                    .await
                    .map(drop);
            }
        }
        bail!(
            "delete_set_element: no set of the product holds an address of {}",
            service.unwrap_or("a service")
        )
    }

    async fn send_spoofed(&mut self, spoofed: &Spoofed) -> anyhow::Result<()> {
        let forgery = spoofed.forgery().map_err(anyhow::Error::msg)?;
        let family = families(self.case)[0];
        let address_of = |replicas: &[crate::world::Running]| {
            let address = replicas
                .iter()
                .flat_map(|running| running.addresses())
                .find(|ip| family.holds(*ip));
            address.context("send_spoofed: no address to forge or to send to")
        };
        let pretended = match forgery.pretend.parse::<std::net::IpAddr>() {
            Ok(address) => address,
            Err(_) => address_of(&self.world.running(&forgery.pretend).await?)?,
        };
        let senders = self.world.running(&forgery.from).await?;
        let targets = self.world.running(&forgery.to).await?;
        let mut watches = Vec::new();
        for target in &targets {
            let place = Source {
                name: target.name.clone(),
                pid: Some(target.pid),
            };
            watches.push(Watch::start(&self.world, &place, forgery.proto, pretended.is_ipv6()).await?);
        }
        let (proto, count) = (forgery.proto.to_string(), spoofed.count.to_string());
        let port = if forgery.proto == Transport::Icmp {
            "echo".to_owned()
        } else {
            forgery.port.to_string()
        };
        for sender in &senders {
            let place = Source {
                name: sender.name.clone(),
                pid: Some(sender.pid),
            };
            for target in targets
                .iter()
                .flat_map(|running| running.addresses())
                .filter(|ip| family.holds(*ip))
            {
                let (source, target) = (pretended.to_string(), target.to_string());
                let words = ["spoof", &proto, &source, &target, &port, &count];
                // A network that the sender is not on and has no route to: as good as not delivered.
                if let Err(error) = run_probe(&self.world, &place, &words, "").await
                    && !format!("{error:#}").contains("unreachable")
                {
                    return Err(error);
                }
            }
        }
        self.forged.push(Forged {
            id: spoofed.id.clone(),
            to: forgery.to,
            source: pretended,
            watches,
        });
        Ok(())
    }

    /// The connection that an ICMP error is about, opened if need be.
    async fn connection_for(&mut self, error: &IcmpError) -> anyhow::Result<String> {
        if let Some(id) = &error.id {
            return Ok(id.clone());
        }
        let mut open = self.held.iter();
        match &error.flow {
            None => {
                let only = (open.next(), open.next());
                let (Some((id, _)), None) = only else {
                    bail!("send_icmp_error: it does not say about which connection")
                };
                Ok(id.clone())
            }
            Some(flow) => {
                let of_flow = |held: &Vec<Held>| held.iter().any(|held| held.flow == *flow);
                if let Some((id, _)) = open.find(|(_, held)| of_flow(held)) {
                    return Ok(id.clone());
                }
                let id = flow.to_string();
                let held = Held::open(&self.world, self.case, flow).await?;
                self.held.insert(id.clone(), held);
                Ok(id)
            }
        }
    }

    /// The server's side of a held connection sends the client an ICMP error about it.
    async fn send_icmp_error(&mut self, id: String, from: Option<&str>, kind: &str) -> anyhow::Result<()> {
        let held = self.held.get(&id).and_then(|held| held.first());
        let held = held.with_context(|| format!("send_icmp_error: no connection {id}"))?;
        let server = match (from, &held.flow.to) {
            (Some(key), _) => key.to_owned(),
            (None, Party::Service(key)) => key.clone(),
            (None, other) => bail!("send_icmp_error: {other} is no container"),
        };
        let replicas = self.world.running(&server).await?;
        let sender = replicas
            .iter()
            .find(|running| running.addresses().contains(&held.peer.ip()));
        let sender = sender
            .or(replicas.first())
            .with_context(|| format!("{server} has no container"))?;
        let place = Source {
            name: sender.name.clone(),
            pid: Some(sender.pid),
        };
        let watch = Watch::start(&self.world, &held.source, Transport::Icmp, held.peer.is_ipv6()).await?;
        let own = sender
            .addresses()
            .into_iter()
            .find(|ip| *ip == held.peer.ip())
            .unwrap_or(held.peer.ip());
        let (source, client) = (own.to_string(), held.local.ip().to_string());
        let (inner_from, inner_to) = (held.local.to_string(), held.peer.to_string());
        let proto = held.flow.transport.to_string();
        let words = [
            "icmp-error",
            kind,
            &source,
            &client,
            &proto,
            &inner_from,
            &inner_to,
        ];
        run_probe(&self.world, &place, &words, "").await?;
        let ports = format!("{:04x}{:04x}", held.local.port(), held.peer.port());
        let (to, ipv6) = (held.flow.from.to_string(), held.peer.is_ipv6());
        self.errors.push(SentError {
            id,
            to,
            ipv6,
            ports,
            watch,
        });
        Ok(())
    }

    /// Whether the daemon can be expected to follow what the step did.
    pub(crate) fn follows(&self) -> bool {
        self.daemon.life == Life::Running
    }
}

fn replaced(old: &ServiceSpec, replacement: &Replacement) -> ServiceSpec {
    let mut spec = ServiceSpec {
        reuse_address_of: None,
        ..old.clone()
    };
    if let Some(labels) = &replacement.labels {
        spec.labels = labels.clone();
    }
    if let Some(listen) = &replacement.listen {
        spec.listen = listen.clone();
    }
    spec
}

fn signal(name: &str) -> anyhow::Result<Signal> {
    let full = if name.starts_with("SIG") {
        name.to_owned()
    } else {
        format!("SIG{name}")
    };
    full.parse()
        .map_err(|_| anyhow::anyhow!("unknown signal {name:?}"))
}

/// As the probe calls it.
fn icmp_error(kind: &str) -> anyhow::Result<&'static str> {
    Ok(match kind.to_lowercase().replace(['_', ' '], "-").as_str() {
        "fragmentation-needed" | "frag-needed" | "packet-too-big" | "too-big" | "pmtu" => {
            "fragmentation-needed"
        }
        "port-unreachable" => "port-unreachable",
        "host-unreachable" | "unreachable" | "destination-unreachable" => "host-unreachable",
        "time-exceeded" | "ttl-exceeded" => "time-exceeded",
        _ => bail!("send_icmp_error: the runner does not know the kind {kind:?}"),
    })
}
