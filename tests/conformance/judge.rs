//! The assertions of a step, after its facts.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::action::Assertion;
use crate::engine::output;
use crate::probes::{Source, first_connections, name_of, nameserver, run_probe};
use crate::run::{Measured, Stage};

/// Longer without an answer is an interruption.
const GAP: Duration = Duration::from_millis(1000);
const DEAD_WITHIN: Duration = Duration::from_secs(5);

/// The marks that the probe's `spoof` leaves, so that the pretended sender's own packets are not taken for forged ones: the
/// word `forged` in UDP and ICMP; source port 40000 and sequence number 1 in TCP.
fn is_forged(hex: &str) -> bool {
    hex.contains("666f72676564") || (hex.starts_with("9c40") && hex.get(8..16) == Some("00000001"))
}

impl Stage<'_> {
    /// What must hold before anything else speaks: the first connection is only first once.
    pub(crate) async fn judge_first(&mut self, assertion: &Assertion) -> anyhow::Result<Option<String>> {
        match assertion {
            Assertion::FirstConnectionSucceeds { flow } => {
                first_connections(&self.world, self.case, flow).await
            }
            _ => Ok(None),
        }
    }

    /// What is wrong, if anything.
    pub(crate) async fn judge(
        &mut self,
        assertion: &Assertion,
        within: Duration,
    ) -> anyhow::Result<Option<String>> {
        match assertion {
            // They ran beside the step and are asked at its end.
            Assertion::NeverAllowed { .. } | Assertion::NeverInterrupted { .. } => Ok(None),
            Assertion::FirstConnectionSucceeds { .. } => Ok(None),
            Assertion::ConnectionAlive { id } => {
                for held in self.connections(id)? {
                    if let Some(reason) = held.interruption(Duration::MAX).await? {
                        return Ok(Some(format!("connection_alive {id}: {reason}")));
                    }
                    if !held.alive().await? {
                        return Ok(Some(format!(
                            "connection_alive {id}: {} gets no answer",
                            held.flow
                        )));
                    }
                }
                Ok(None)
            }
            Assertion::ConnectionDead { id, within_ms } => {
                let within = within_ms.map_or(DEAD_WITHIN, Duration::from_millis);
                for held in self.connections(id)? {
                    if !held.dies_within(within).await? {
                        let (flow, peer) = (&held.flow, held.peer);
                        return Ok(Some(format!(
                            "connection_dead {id}: {flow} to {peer} still gets answers"
                        )));
                    }
                }
                Ok(None)
            }
            Assertion::Resolves { from, name } => self.resolves(from, name).await,
            Assertion::PolicyRejected {} => {
                let (valid, said) = self.daemon.check().await?;
                if valid {
                    return Ok(Some("policy_rejected: `cofferdam check` accepts it".to_owned()));
                }
                if !self.follows() {
                    return Ok(None);
                }
                let status = self.daemon.status().await?;
                Ok((!self.daemon.is_in_force(&status)).then(|| {
                    format!("policy_rejected: another revision is in force: {status}; check says {said}")
                }))
            }
            Assertion::NoStaleAddresses { within_ms } => {
                let deadline = Instant::now() + within_ms.map_or(within, Duration::from_millis);
                loop {
                    let stale = self.stale_addresses().await?;
                    if stale.is_empty() {
                        return Ok(None);
                    }
                    if Instant::now() > deadline {
                        return Ok(Some(format!(
                            "no_stale_addresses: the kernel still holds {}",
                            stale.join(", ")
                        )));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Assertion::DriftReported { within_ms } => {
                let before = self.drift_before.clone();
                let deadline = Instant::now() + within_ms.map_or(within, Duration::from_millis);
                self.status_shows("drift_reported", deadline, |status| {
                    drift(status).is_some_and(|last| Some(&last) != before.as_ref())
                })
                .await
            }
            Assertion::ProgrammingErrorReported { within_ms } => {
                let deadline = Instant::now() + within_ms.map_or(within, Duration::from_millis);
                let reported = |status: &Value| {
                    let state = status.get("state").and_then(Value::as_str);
                    state != Some("enforcing") || status.get("settled") != Some(&Value::Bool(true))
                };
                self.status_shows("programming_error_reported", deadline, reported)
                    .await
            }
            Assertion::PacketNotDelivered { id, to } => {
                let wanted = |forged: &crate::perform::Forged| {
                    (id.is_none() || forged.id == *id) && to.as_ref().is_none_or(|to| *to == forged.to)
                };
                let index = self.forged.iter().position(wanted);
                let forged = self
                    .forged
                    .remove(index.context("packet_not_delivered: no packet was sent")?);
                let source = forged.source.to_string();
                for watch in forged.watches {
                    let place = watch.place.clone();
                    let forged = |(from, hex): &(String, String)| *from == source && is_forged(hex);
                    if watch.packets().await.iter().any(forged) {
                        return Ok(Some(format!(
                            "packet_not_delivered: {place} got a packet forged as {source}"
                        )));
                    }
                }
                Ok(None)
            }
            Assertion::IcmpErrorDelivered { id, to } => {
                let wanted = |sent: &crate::perform::SentError| {
                    id.as_ref().is_none_or(|id| *id == sent.id) && to.as_ref().is_none_or(|to| *to == sent.to)
                };
                let index = self.errors.iter().position(wanted);
                let sent = self
                    .errors
                    .remove(index.context("icmp_error_delivered: no error was sent")?);
                let place = sent.watch.place.clone();
                let packets = sent.watch.packets().await;
                // An error's type, then 8 bytes of ICMP and the inner IP header before its ports.
                let (types, at): (&[&str], _) = match sent.ipv6 {
                    false => (&["03", "0b"], 2 * (8 + 20)),
                    true => (&["01", "02", "03"], 2 * (8 + 40)),
                };
                let ours = |hex: &str| {
                    types.iter().any(|class| hex.starts_with(class))
                        && hex.get(at..at + 8) == Some(sent.ports.as_str())
                };
                Ok((!packets.iter().any(|(_, hex)| ours(hex)))
                    .then(|| format!("icmp_error_delivered: {place} did not get it")))
            }
            Assertion::LatencyP99Ms { metric, max } => self.latency(metric, *max),
            Assertion::Reported {
                flow,
                verdict,
                fields,
            } => {
                bail!("reported {flow} {verdict:?} {fields:?}: the product has no report of flows yet")
            }
            Assertion::NotReported { flow, verdict } => {
                bail!("not_reported {flow} {verdict:?}: the product has no report of flows yet")
            }
        }
    }

    /// What ran beside the step: nothing got through that must not, nothing missed a beat that must not.
    pub(crate) async fn judge_background(&mut self) -> anyhow::Result<Option<String>> {
        for never in std::mem::take(&mut self.never_allowed) {
            if let Some(reason) = never.verdict().await? {
                return Ok(Some(reason));
            }
        }
        for mut held in std::mem::take(&mut self.uninterrupted) {
            if let Some(reason) = held.interruption(GAP).await? {
                return Ok(Some(format!("never_interrupted: {reason}")));
            }
            if !held.alive().await? {
                return Ok(Some(format!("never_interrupted: {} gets no answer", held.flow)));
            }
        }
        Ok(None)
    }

    /// Asks the daemon until its status shows it.
    async fn status_shows(
        &self,
        what: &str,
        deadline: Instant,
        shows: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Option<String>> {
        loop {
            let status = self.daemon.status().await?;
            if shows(&status) {
                return Ok(None);
            }
            if Instant::now() > deadline {
                return Ok(Some(format!("{what}: status does not say so: {status}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn connections(&mut self, id: &str) -> anyhow::Result<&mut Vec<crate::background::Held>> {
        self.held
            .get_mut(id)
            .with_context(|| format!("no connection {id} was opened"))
    }

    async fn resolves(&self, from: &str, name: &str) -> anyhow::Result<Option<String>> {
        // `p/s` is how another project's service is called, as in the probes by name.
        let project = from.split('/').next().unwrap_or_default();
        let (service, name) = match name.split_once('/') {
            Some(_) => (Some(name.to_owned()), name_of(&self.world, from, name)?),
            None => {
                let mut keys = vec![format!("{project}/{name}"), format!("-/{name}")];
                keys.extend(
                    name.split_once('.')
                        .map(|(service, project)| format!("{project}/{service}")),
                );
                let known = keys.into_iter().find(|key| self.world.knows(key));
                (known, name.to_owned())
            }
        };
        let name = name.as_str();
        let external = self
            .world
            .externals
            .values()
            .find(|host| host.names.iter().any(|known| known == name));
        let mut theirs = Vec::new();
        if let Some(key) = &service {
            for replica in self.world.running(key).await? {
                theirs.extend(replica.addresses());
            }
        } else if let Some(host) = external {
            theirs.extend(&host.addresses);
        }
        for replica in self.world.running(from).await? {
            let source = Source {
                name: replica.name.clone(),
                pid: Some(replica.pid),
            };
            let server = nameserver(&source);
            let mut found = Vec::new();
            for family in ["4", "6"] {
                let mut words = vec!["resolve", name, family];
                words.extend(server.as_deref());
                // A name without an address in one family may have one in the other.
                let addresses = run_probe(&self.world, &source, &words, "")
                    .await
                    .unwrap_or_default();
                found.extend(
                    addresses
                        .lines()
                        .filter_map(|line| line.parse::<std::net::IpAddr>().ok()),
                );
            }
            if found.is_empty() {
                return Ok(Some(format!(
                    "resolves: {name} does not resolve in {}",
                    replica.name
                )));
            }
            if !theirs.is_empty() && !found.iter().any(|address| theirs.contains(address)) {
                let what = format!(
                    "{name} resolves to {found:?} in {}, not to {theirs:?}",
                    replica.name
                );
                return Ok(Some(format!("resolves: {what}")));
            }
        }
        Ok(None)
    }

    /// Addresses of removed containers, taken by no other, that are still in a table of the product.
    async fn stale_addresses(&self) -> anyhow::Result<Vec<String>> {
        let mut present = Vec::new();
        for key in self.world.service_keys() {
            for replica in self.world.running(&key).await? {
                present.extend(replica.addresses());
            }
        }
        let mut text = String::new();
        for family in ["inet", "bridge"] {
            text += &output("nft", &["-n", "list", "table", family, "cofferdam"], "").await?;
        }
        let words: std::collections::BTreeSet<&str> = text
            .split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':'))
            .collect();
        let stale = self
            .world
            .ever_freed
            .iter()
            .filter(|address| !present.contains(address));
        Ok(stale
            .map(ToString::to_string)
            .filter(|address| words.contains(address.as_str()))
            .collect())
    }

    fn latency(&self, metric: &str, max: f64) -> anyhow::Result<Option<String>> {
        let name = metric.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| name.contains(word));
        let policy = says(&["policy", "edge", "apply", "revo", "reload"]);
        let start = says(&["start", "container", "service", "workload", "burst", "ready"]);
        let either = says(&["converge", "update", "program"]) && !policy && !start;
        let mut samples = Vec::new();
        for (measured, wanted) in [
            (Measured::Policy, policy || either),
            (Measured::Start, start || either),
        ] {
            if wanted {
                samples.extend(self.samples.get(&measured).into_iter().flatten().copied());
            }
        }
        if samples.is_empty() {
            bail!("latency_p99_ms: the runner does not measure {metric:?} here");
        }
        samples.sort_by(f64::total_cmp);
        let index = ((samples.len() as f64 * 0.99).ceil() as usize).clamp(1, samples.len()) - 1;
        let p99 = samples[index];
        Ok((p99 > max).then(|| format!("latency_p99_ms {metric}: {p99:.1} ms, more than {max}")))
    }
}

/// The last drift that the daemon has seen since it started; it says when.
pub(crate) fn drift(status: &Value) -> Option<Value> {
    status.get("drift").filter(|drift| !drift.is_null()).cloned()
}
