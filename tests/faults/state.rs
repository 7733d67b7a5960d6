//! What stands on the host because of the daemon, in a form that can be compared; and what the daemon costs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::engine::output;
use crate::held::is_filled_by_packets;
use crate::shop::Shop;

/// Tables, bridges and ports, networks and attachments, each part under its name.
pub(crate) type State = BTreeMap<String, BTreeSet<String>>;

/// The state as it is now.
pub(crate) async fn state(shop: &Shop) -> anyhow::Result<State> {
    let mut state = State::new();
    for family in ["inet", "bridge"] {
        let text = output("nft", &["-j", "list", "table", family, "cofferdam"], "").await?;
        let listed: Value = serde_json::from_str(&text)?;
        for object in listed["nftables"].as_array().into_iter().flatten() {
            note(&mut state, family, object);
        }
    }
    for entry in std::fs::read_dir("/sys/class/net")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let read = |file: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{file}"));
        if let Ok(isolated) = read("brport/isolated") {
            state
                .entry(format!("port {name}"))
                .or_default()
                .insert(isolated.trim().to_owned());
        }
        if let Ok(calls) = read("bridge/nf_call_iptables") {
            state
                .entry(format!("bridge {name}"))
                .or_default()
                .insert(calls.trim().to_owned());
        }
    }
    let networks = shop.lab.docker.list_networks(None::<ListNetworksOptions>).await?;
    let ours: BTreeSet<String> = networks.into_iter().filter_map(|it| it.name).collect();
    state.insert("networks".to_owned(), ours);
    let all = ListContainersOptions {
        all: true,
        ..Default::default()
    };
    for container in shop.lab.docker.list_containers(Some(all)).await? {
        let id = container.id.unwrap_or_default();
        let attachments = container
            .network_settings
            .and_then(|it| it.networks)
            .unwrap_or_default();
        let attachments = attachments.into_iter().map(|(name, it)| {
            let wish = it.ipam_config.and_then(|it| it.ipv4_address).unwrap_or_default();
            format!("{name} {wish} {}", it.ip_address.unwrap_or_default())
        });
        state.insert(format!("container {id}"), attachments.collect());
    }
    Ok(state)
}

/// Without handles, counts and the order of what has none.
fn note(state: &mut State, family: &str, object: &Value) {
    let Some((kind, body)) = object.as_object().and_then(|it| it.iter().next()) else {
        return;
    };
    let name = body["name"].as_str().unwrap_or_default();
    match kind.as_str() {
        "rule" => {
            let chain = format!("{family} chain {}", body["chain"].as_str().unwrap_or_default());
            let rules = state.entry(chain).or_default();
            let number = rules.len();
            rules.insert(format!("{number:04} {}", body["expr"]));
        }
        "set" if is_filled_by_packets(body) => {
            state.insert(format!("{family} {kind} {name}"), BTreeSet::new());
        }
        "set" | "map" => {
            let elements = body["elem"].as_array().into_iter().flatten();
            state.insert(
                format!("{family} {kind} {name}"),
                elements.map(Value::to_string).collect(),
            );
        }
        "chain" | "counter" => {
            state
                .entry(format!("{family} {kind}s"))
                .or_default()
                .insert(name.to_owned());
        }
        _ => {}
    }
}

/// What differs, in words; `None` where nothing does.
pub(crate) fn difference(one: &State, other: &State) -> Option<String> {
    let mut words = Vec::new();
    for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
        let (left, right) = (one.get(key), other.get(key));
        if left != right {
            let only = |a: Option<&BTreeSet<String>>, b: Option<&BTreeSet<String>>| -> Vec<String> {
                let b = b.cloned().unwrap_or_default();
                a.into_iter()
                    .flatten()
                    .filter(|it| !b.contains(*it))
                    .take(2)
                    .cloned()
                    .collect()
            };
            words.push(format!(
                "{key}: {:?} against {:?}",
                only(left, right),
                only(right, left)
            ));
        }
    }
    words.truncate(4);
    (!words.is_empty()).then(|| words.join("; "))
}

/// Starts the daemon anew and compares what it makes from scratch with what stood.
pub(crate) async fn from_scratch(shop: &mut Shop) -> anyhow::Result<Option<String>> {
    let stood = state(shop).await?;
    shop.daemon.stop(Signal::SIGTERM).await?;
    shop.daemon.start()?;
    shop.converge().await?;
    Ok(difference(&stood, &state(shop).await?))
}

/// Waits until the daemon knows what the engine has: each container that its policy names, and nothing else, bound wherever it
/// runs. How long that took.
pub(crate) async fn agreed(shop: &Shop, patience: Duration) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        let why = match disagreement(shop).await {
            Ok(None) => return Ok(begun.elapsed()),
            Ok(Some(why)) => why,
            Err(error) => format!("{error:#}"),
        };
        if begun.elapsed() > patience {
            bail!("after {patience:?} daemon and engine still differ: {why}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn disagreement(shop: &Shop) -> anyhow::Result<Option<String>> {
    let all = ListContainersOptions {
        all: true,
        ..Default::default()
    };
    let mut running = BTreeMap::new();
    for container in shop.lab.docker.list_containers(Some(all)).await? {
        let labels = container.labels.unwrap_or_default();
        if labels.contains_key("com.docker.compose.service") {
            let is_running = container.state.is_some_and(|it| it.to_string() == "running");
            running.insert(container.id.unwrap_or_default(), is_running);
        }
    }
    let status = shop.daemon.status().await?;
    if status["state"] != "enforcing" || status["settled"] != true {
        return Ok(Some(format!("state {}, {}", status["state"], status["reasons"])));
    }
    let mut known = BTreeSet::new();
    for service in status["services"].as_object().into_iter().flatten() {
        for container in service.1["containers"].as_array().into_iter().flatten() {
            let id = container["id"].as_str().unwrap_or_default();
            // Shortened for people.
            let Some((full, is_running)) = running.iter().find(|(it, _)| it.starts_with(id)) else {
                return Ok(Some(format!("{} is gone", container["name"])));
            };
            known.insert(full.clone());
            let endpoints = container["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
            let bound = endpoints.iter().filter(|it| it["bound"] == true).count();
            if *is_running && (bound == 0 || bound < endpoints.len()) || !*is_running && bound > 0 {
                let name = &container["name"];
                return Ok(Some(format!(
                    "{name}: {bound} of {} bound, running {is_running}",
                    endpoints.len()
                )));
            }
        }
    }
    let missing = running.keys().find(|id| !known.contains(*id));
    Ok(missing.map(|id| format!("{id} is not known")))
}

/// What the daemon has cost until now: CPU time, and how often it gave the CPU back by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) cpu: Duration,
    pub(crate) wakes: u64,
    at: Instant,
}

pub(crate) fn cost(shop: &Shop) -> anyhow::Result<Cost> {
    let pid = shop.daemon.pid()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("a strange /proc/PID/stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // utime and stime, in hundredths of a second.
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|it| it.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let mut wakes = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        wakes += line
            .and_then(|it| it.trim().parse::<u64>().ok())
            .unwrap_or_default();
    }
    Ok(Cost {
        cpu: Duration::from_millis(10 * (ticks(11) + ticks(12))),
        wakes,
        at: Instant::now(),
    })
}

impl Cost {
    /// What it has cost since, in words.
    pub(crate) fn since(&self, shop: &Shop) -> anyhow::Result<String> {
        let now = cost(shop)?;
        Ok(format!(
            "{:.2} s of CPU in {:.1} s",
            now.cpu.saturating_sub(self.cpu).as_secs_f64(),
            now.at.duration_since(self.at).as_secs_f64()
        ))
    }
}
