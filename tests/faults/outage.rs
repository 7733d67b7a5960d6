//! The engine fails: restarted, killed, hung, its socket replaced, its events lost, and driven as fast as it goes.
//!
//! Proves promise 1 (a late or lost event delays a permitted flow, it never permits an undeclared one) and promise 2 (an
//! address that Docker hands to the next container at once gains nothing), and that the daemon comes by itself to the
//! state that it would make from scratch. `COFFERDAM_HANG_SECONDS` is how long the engine hangs (30).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bollard::query_parameters::StopContainerOptions;
use futures_util::stream::{self, StreamExt};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::daemon::Daemon;
use crate::engine::{Lab, target_directory};
use crate::figure::Figure;
use crate::proxy::{Proxy, Spoil};
use crate::shop::{Container, DECLARED, Leaks, POLICY, Shop, Spec, UNDECLARED, clear, flows};
use crate::state::{agreed, cost, from_scratch, state};

const NETWORK: &str = "shop_default";
const OURS: &str = "cofferdam-shop-server";
/// The slow timer, a listing, and a busy machine.
const BOUND: Duration = Duration::from_secs(75);
const SERVER: [u8; 4] = [10, 81, 0, 200];

struct Outage {
    shop: Shop,
    proxy: Proxy,
    client: Container,
    stranger: Container,
    /// To the server: the declared flow, then undeclared ones.
    from_client: Vec<String>,
    from_stranger: Vec<String>,
    figures: Vec<Figure>,
}

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mut outage = Outage::open(lab).await?;
    // What was measured before a failure counts, too.
    if let Err(error) = outage.everything().await {
        outage.figures.push(Figure {
            name: "outage".to_owned(),
            failed: Some(format!("could not be carried out: {error:#}")),
            ..Figure::default()
        });
    }
    outage.proxy.spoil(Spoil::Nothing);
    lab.dockerd_flags("")?;
    lab.restart_dockerd().await?;
    outage.shop.close().await?;
    Ok(outage.figures)
}

fn milliseconds(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}

impl Outage {
    async fn open(lab: &Lab) -> anyhow::Result<Self> {
        clear(lab).await?;
        lab.dockerd_flags("--live-restore")?;
        lab.restart_dockerd().await?;
        let proxy = Proxy::open(&lab.directory.join("relay.sock"), &lab.socket())?;
        let log = target_directory().join("reports/faults/outage.log");
        let mut daemon = Daemon::prepare(lab, log, false)?;
        daemon.docker_socket = lab.directory.join("relay.sock");
        daemon
            .write(&BTreeMap::from([("shop.yaml".to_owned(), POLICY.to_owned())]))
            .await?;
        daemon.start()?;
        let mut shop = Shop {
            lab: lab.clone(),
            daemon,
        };
        shop.converge().await?;
        shop.network(NETWORK, 81).await?;
        let always = json!({"Name": "always"});
        let server = Spec::service("server", "server").at(NETWORK, SERVER.into());
        let server = shop.start(&server.host("RestartPolicy", always.clone())).await?;
        let client = Spec::service("client", "client").on(NETWORK);
        let client = shop.start(&client.host("RestartPolicy", always.clone())).await?;
        let stranger = Spec::service("stranger", "stranger").on(NETWORK);
        let stranger = shop.start(&stranger.host("RestartPolicy", always)).await?;
        agreed(&shop, BOUND).await?;
        let mut outage = Self {
            shop,
            proxy,
            client,
            stranger,
            from_client: Vec::new(),
            from_stranger: Vec::new(),
            figures: Vec::new(),
        };
        outage.set_flows(&server)?;
        Ok(outage)
    }

    fn declared(&self) -> &str {
        self.from_client[0].trim_start_matches('+')
    }

    async fn everything(&mut self) -> anyhow::Result<()> {
        self.engine_restarts().await?;
        self.engine_hangs().await?;
        self.socket_replaced().await?;
        self.addresses_reused_unseen().await?;
        self.events_spoiled().await?;
        self.networks_tampered_with().await?;
        self.churn().await?;
        self.quiet().await
    }

    /// The containers' processes after a restart.
    async fn find_again(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            self.client = self.shop.inspect(&self.client.id).await?;
            self.stranger = self.shop.inspect(&self.stranger.id).await?;
            let server = self.shop.inspect("server").await?;
            if self.client.pid != 0 && self.stranger.pid != 0 && server.pid != 0 {
                // Its IPv6 address may be another one now, and the old one another container's.
                return self.set_flows(&server);
            }
            anyhow::ensure!(
                begun.elapsed() < Duration::from_secs(20),
                "a container does not run again"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn set_flows(&mut self, server: &Container) -> anyhow::Result<()> {
        let addresses = server.addresses(NETWORK)?;
        self.from_client = flows('+', &["tcp"], &addresses[..1], DECLARED);
        self.from_client
            .extend(flows('-', &["tcp", "udp"], &addresses, UNDECLARED));
        self.from_stranger = flows('-', &["tcp", "udp"], &addresses, DECLARED);
        Ok(())
    }

    /// Waits until our network is there and these containers will join it at their start.
    async fn until_joined(&self, containers: &[String], gone: Option<String>) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let docker = &self.shop.lab.docker;
        loop {
            let network = docker.inspect_network(OURS, None).await.ok().and_then(|it| it.id);
            let mut joined = network.is_some() && network != gone;
            for id in containers {
                let settings = docker.inspect_container(id, None).await?.network_settings;
                let attachment = settings
                    .and_then(|it| it.networks)
                    .and_then(|mut it| it.remove(OURS));
                // Empty before the first start with it.
                let id = attachment.map(|it| it.network_id.unwrap_or_default());
                joined &= id.is_some_and(|id| id.is_empty() || Some(id) == network);
            }
            if joined {
                return Ok(begun.elapsed());
            }
            anyhow::ensure!(begun.elapsed() < BOUND, "our network does not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Holds what was measured against the state from scratch.
    async fn conclude(&mut self, mut figure: Figure, repair: anyhow::Result<Duration>) -> anyhow::Result<()> {
        match repair {
            Ok(time) => figure.repair_ms = milliseconds(time),
            Err(error) => figure.failed = figure.failed.or(Some(format!("{error:#}"))),
        }
        let differs = from_scratch(&mut self.shop).await;
        let differs = differs.unwrap_or_else(|error| Some(format!("no state from scratch: {error:#}")));
        figure.failed = figure
            .failed
            .or(differs.map(|how| format!("not the state from scratch: {how}")));
        // The positive twin of every negative: the probe's own way works.
        self.find_again().await?;
        let reached = self
            .shop
            .until_reached(Some(self.client.pid), self.declared(), Duration::from_secs(5));
        if let Err(error) = reached.await {
            figure.failed = figure.failed.or(Some(format!("{error:#}")));
        }
        self.figures.push(figure);
        Ok(())
    }

    /// Leak probes of both containers while something is done, and until daemon and engine agree again.
    async fn watched(
        &mut self,
        name: &str,
        fault: impl AsyncFnOnce(&mut Self) -> anyhow::Result<Option<String>>,
    ) -> anyhow::Result<()> {
        let before = cost(&self.shop)?;
        let client = self.shop.leak_probe(Some(self.client.pid), &self.from_client)?;
        let stranger = self
            .shop
            .leak_probe(Some(self.stranger.pid), &self.from_stranger)?;
        let note = fault(self).await.with_context(|| name.to_owned())?;
        let repair = agreed(&self.shop, BOUND).await;
        // Nothing may open after it has calmed down, either.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (client, stranger) = (client.finish().await?, stranger.finish().await?);
        let words = [note, Some(before.since(&self.shop)?)];
        let figure = Figure {
            name: format!("outage: {name}"),
            tried: client.tried() + stranger.tried(),
            leaks: client.leaked() + stranger.leaked(),
            longest_gap_ms: client.longest_gap_ms(),
            note: Some(words.into_iter().flatten().collect::<Vec<_>>().join(", ")),
            failed: leaked(&[&client, &stranger]).or(client.missing()),
            ..Figure::default()
        };
        self.conclude(figure, repair).await
    }

    async fn engine_restarts(&mut self) -> anyhow::Result<()> {
        self.watched("dockerd restarted, live-restore", async |it| {
            it.shop.lab.restart_dockerd().await.map(|()| None)
        })
        .await?;
        self.watched("dockerd killed (-9), live-restore", async |it| {
            it.shop.lab.signal_dockerd(Signal::SIGKILL)?;
            it.shop.lab.start_dockerd().await.map(|()| None)
        })
        .await?;
        self.shop.lab.dockerd_flags("")?;
        for (name, signal) in [
            ("dockerd restarted, without live-restore", Signal::SIGTERM),
            ("dockerd killed (-9), without live-restore", Signal::SIGKILL),
        ] {
            // Containers end and start again: who probes must do so from its own first instruction.
            let mut words = vec!["leak".to_owned(), "2".to_owned()];
            words.extend(self.from_stranger.iter().cloned());
            let always = json!({"Name": "always"});
            let prober = Spec::service("stranger", "prober").on(NETWORK).command(&words);
            let prober = self.shop.start(&prober.host("RestartPolicy", always)).await?;
            let before = cost(&self.shop)?;
            self.shop.lab.signal_dockerd(signal)?;
            self.shop.lab.start_dockerd().await?;
            let back = Instant::now();
            self.find_again().await?;
            let opened = self
                .shop
                .until_reached(Some(self.client.pid), self.declared(), BOUND);
            let opened = opened.await.map(|_| back.elapsed());
            tokio::time::sleep(Duration::from_secs(3)).await;
            let note = before.since(&self.shop)?;
            let (tried, leaks) = logged(&self.shop, &prober.id).await?;
            self.shop.remove(&prober.id).await?;
            let agreed = agreed(&self.shop, BOUND).await;
            let figure = Figure {
                name: format!("outage: {name}"),
                tried,
                leaks,
                note: Some(note),
                ..Figure::default()
            };
            self.conclude(figure, agreed.and(opened)).await?;
        }
        self.shop.lab.dockerd_flags("--live-restore")?;
        self.shop.lab.restart_dockerd().await?;
        self.find_again().await?;
        agreed(&self.shop, BOUND).await.map(drop)
    }

    async fn engine_hangs(&mut self) -> anyhow::Result<()> {
        let seconds = std::env::var("COFFERDAM_HANG_SECONDS").ok();
        let hang = Duration::from_secs(seconds.and_then(|it| it.parse().ok()).unwrap_or(30).max(10));
        self.watched(&format!("dockerd hung for {} s", hang.as_secs()), async |it| {
            it.shop.lab.signal_dockerd(Signal::SIGSTOP)?;
            let begun = Instant::now();
            let mut told = None;
            while begun.elapsed() < hang {
                let state = it.shop.daemon.status().await?["state"].clone();
                if told.is_none() && (state == "waiting" || state == "degraded") {
                    told = Some(begun.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            it.shop.lab.signal_dockerd(Signal::SIGCONT)?;
            let told = told.context("status never said that the engine does not answer")?;
            Ok(Some(format!("status said so after {} ms", told.as_millis())))
        })
        .await
    }

    async fn socket_replaced(&mut self) -> anyhow::Result<()> {
        self.watched("socket replaced, the old one silent", async |it| {
            it.proxy.replace()?;
            // One whose events the old connection would have told.
            let late = it
                .shop
                .start(&Spec::service("client", "late").on(NETWORK))
                .await?;
            let opened = it
                .shop
                .until_reached(Some(late.pid), it.declared(), BOUND)
                .await?;
            it.shop.remove(&late.id).await?;
            Ok(Some(format!(
                "a new container's declared flow after {} ms",
                opened.as_millis()
            )))
        })
        .await
    }

    /// A permitted client goes and a stranger gets its address (and on old engines its MAC), and no event tells.
    async fn addresses_reused_unseen(&mut self) -> anyhow::Result<()> {
        let mut figure = Figure {
            name: "outage: no events, a stranger gets a client's address".to_owned(),
            ..Figure::default()
        };
        let before = cost(&self.shop)?;
        let (mut reused, mut slowest) = (0, Duration::ZERO);
        for round in 0..5 {
            let client = Spec::service("client", &format!("goes-{round}")).on(NETWORK);
            let client = self.shop.start(&client).await?;
            let known = self
                .shop
                .until_reached(Some(client.pid), self.declared(), BOUND)
                .await?;
            slowest = slowest.max(known);
            self.proxy.spoil(Spoil::Drop);
            self.shop.remove(&client.id).await?;
            let stranger = Spec::service("stranger", &format!("comes-{round}")).on(NETWORK);
            let stranger = self.shop.start(&stranger).await?;
            reused += u32::from(client.on(NETWORK)?.v4 == stranger.on(NETWORK)?.v4);
            let leaks = self
                .shop
                .leaks_for(
                    Some(stranger.pid),
                    &self.from_stranger,
                    Duration::from_millis(2500),
                )
                .await?;
            figure.tried += leaks.tried();
            figure.leaks += leaks.leaked();
            self.shop.remove(&stranger.id).await?;
            self.proxy.spoil(Spoil::Nothing);
        }
        let repair = agreed(&self.shop, BOUND).await;
        figure.note = Some(format!(
            "{reused} of 5 addresses reused, {}",
            before.since(&self.shop)?
        ));
        if reused == 0 {
            figure.failed = Some("no address was reused: nothing was tried".to_owned());
        }
        self.conclude(figure, repair).await
    }

    async fn events_spoiled(&mut self) -> anyhow::Result<()> {
        for (name, spoil) in [
            ("all events dropped", Spoil::Drop),
            ("two of three events dropped", Spoil::DropMost),
            (
                "events delayed by 300 ms each",
                Spoil::Delay(Duration::from_millis(300)),
            ),
            ("events duplicated", Spoil::Duplicate),
            ("events reordered", Spoil::Reorder),
            ("event stream cut in the middle of a line", Spoil::Cut),
        ] {
            self.watched(name, async |it| {
                it.proxy.spoil(spoil);
                let mut kept = Vec::new();
                for number in 0..6 {
                    let service = if number % 2 == 0 { "client" } else { "stranger" };
                    let spec = Spec::service(service, &format!("{service}-{number}")).on(NETWORK);
                    let container = it.shop.start(&spec).await?;
                    if number % 3 == 0 {
                        it.shop.remove(&container.id).await?;
                    } else {
                        kept.push((service, container));
                    }
                }
                let begun = Instant::now();
                for (_, client) in kept.iter().filter(|(service, _)| *service == "client") {
                    it.shop
                        .until_reached(Some(client.pid), it.declared(), BOUND)
                        .await?;
                }
                let opened = begun.elapsed();
                for (_, container) in kept {
                    it.shop.remove(&container.id).await?;
                }
                agreed(&it.shop, BOUND).await?;
                it.proxy.spoil(Spoil::Nothing);
                Ok(Some(format!(
                    "new declared flows open after {} ms",
                    opened.as_millis()
                )))
            })
            .await?;
        }
        Ok(())
    }

    /// Our network goes while its containers are stopped, and another takes its labels.
    async fn networks_tampered_with(&mut self) -> anyhow::Result<()> {
        let docker = self.shop.lab.docker.clone();
        let mut figure = Figure {
            name: "outage: our network removed while its containers are stopped".to_owned(),
            ..Figure::default()
        };
        let server = "server".to_owned();
        let both = [self.client.id.clone(), server];
        for id in &both {
            docker
                .stop_container(
                    id,
                    Some(StopContainerOptions {
                        t: Some(0),
                        ..Default::default()
                    }),
                )
                .await?;
        }
        let gone = docker.inspect_network(OURS, None).await?.id;
        docker
            .remove_network(OURS)
            .await
            .context("cannot remove our network")?;
        let repair = self.until_joined(&both, gone).await;
        for id in &both {
            if let Err(error) = docker.start_container(id, None).await {
                anyhow::bail!("{}: {id} does not start: {error}", figure.name);
            }
        }
        agreed(&self.shop, BOUND).await?;
        self.find_again().await?;
        let leaks = self
            .shop
            .leaks_for(Some(self.client.pid), &self.from_client, Duration::from_secs(2))
            .await?;
        (figure.tried, figure.leaks) = (leaks.tried(), leaks.leaked());
        figure.failed = figure.failed.or(leaks.missing());
        self.conclude(figure, repair).await?;

        // Gone while no daemon runs, and no longer called for either: nothing but the wish is left of it.
        let mut figure = Figure {
            name: "outage: the same without a daemon, and the policy no longer wants it".to_owned(),
            ..Figure::default()
        };
        self.shop.daemon.stop(Signal::SIGTERM).await?;
        for id in &both {
            docker
                .stop_container(
                    id,
                    Some(StopContainerOptions {
                        t: Some(0),
                        ..Default::default()
                    }),
                )
                .await?;
        }
        docker
            .remove_network(OURS)
            .await
            .context("cannot remove our network")?;
        let refused = docker.start_container(&both[0], None).await.is_err();
        figure.note = Some(format!("before the repair the start was refused: {refused}"));
        let without = POLICY.split("allow:").next().unwrap_or_default();
        let without = BTreeMap::from([("shop.yaml".to_owned(), without.to_owned())]);
        self.shop.daemon.write(&without).await?;
        self.shop.daemon.start()?;
        let repair = agreed(&self.shop, BOUND).await;
        for id in &both {
            if let Err(error) = docker.start_container(id, None).await {
                anyhow::bail!("{}: {id} does not start: {error}", figure.name);
            }
        }
        agreed(&self.shop, BOUND).await?;
        self.find_again().await?;
        let nothing: Vec<String> = self
            .from_client
            .iter()
            .map(|it| it.replacen('+', "-", 1))
            .collect();
        let leaks = self
            .shop
            .leaks_for(Some(self.client.pid), &nothing, Duration::from_secs(2))
            .await?;
        (figure.tried, figure.leaks) = (leaks.tried(), leaks.leaked());
        self.shop.policy(POLICY).await?;
        agreed(&self.shop, BOUND).await?;
        self.conclude(figure, repair).await?;

        self.watched("a second network with our labels", async |_| {
            let request = json!({
                "Name": "impostor", "Driver": "bridge",
                "Labels": {"io.cofferdam.managed": "true", "io.cofferdam.service": "shop/server"},
            });
            docker.create_network(serde_json::from_value(request)?).await?;
            let begun = Instant::now();
            while docker.inspect_network("impostor", None).await.is_ok() {
                anyhow::ensure!(begun.elapsed() < BOUND, "the second network stays");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(Some(format!("gone after {} ms", begun.elapsed().as_millis())))
        })
        .await
    }

    /// Containers created, started and removed as fast as it goes.
    async fn churn(&mut self) -> anyhow::Result<()> {
        const MOST: usize = 500;
        const TIME: Duration = Duration::from_secs(240);
        self.watched("churn", async |it| {
            let before = cost(&it.shop)?;
            let until = Instant::now() + TIME;
            let shop = &it.shop;
            let lives = stream::iter(0..MOST).map(|number| async move {
                if Instant::now() > until {
                    return Ok::<bool, anyhow::Error>(false);
                }
                let service = ["client", "stranger", "server"][number % 3];
                let spec = Spec::service(service, &format!("churn-{number}")).on(NETWORK);
                let id = shop.create(&spec).await?;
                // One of ten runs, of each service in turn: a start takes the engine half a second.
                if number % 10 == 0 {
                    shop.lab.docker.start_container(&id, None).await?;
                }
                shop.remove(&id).await?;
                Ok(true)
            });
            let lives: Vec<anyhow::Result<bool>> = lives.buffer_unordered(8).collect().await;
            let lived = lives.iter().filter(|it| matches!(it, Ok(true))).count();
            let failed = lives
                .iter()
                .filter_map(|it| it.as_ref().err())
                .map(|it| format!("{it:#}"));
            let failed: Vec<String> = failed.collect();
            let first = failed.first().map(|it| format!(" ({it})")).unwrap_or_default();
            if lived + failed.len() < MOST {
                bail!(
                    "only {lived} of {MOST} containers in {TIME:?}, {} refused{first}",
                    failed.len()
                );
            }
            let took = TIME.saturating_sub(until.saturating_duration_since(Instant::now()));
            Ok(Some(format!(
                "{lived} containers in {:.1} s, {} refused by the engine{first}, meanwhile {}",
                took.as_secs_f64(),
                failed.len(),
                before.since(&it.shop)?
            )))
        })
        .await
    }

    /// Nothing happens: the daemon sleeps.
    async fn quiet(&mut self) -> anyhow::Result<()> {
        const TIME: Duration = Duration::from_secs(10);
        // Until the looks after the last pass are over.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let stood = state(&self.shop).await?;
        let before = cost(&self.shop)?;
        tokio::time::sleep(TIME).await;
        let after = cost(&self.shop)?;
        let wakes = after.wakes.saturating_sub(before.wakes);
        let cpu = after.cpu.saturating_sub(before.cpu);
        let changed = crate::state::difference(&stood, &state(&self.shop).await?);
        let often = wakes > 100 || cpu > Duration::from_millis(200);
        self.figures.push(Figure {
            name: "outage: quiet".to_owned(),
            tried: 1,
            note: Some(format!(
                "{wakes} wakes and {} ms of CPU in {} s",
                cpu.as_millis(),
                TIME.as_secs()
            )),
            failed: changed.or_else(|| often.then(|| "it does not sleep".to_owned())),
            ..Figure::default()
        });
        Ok(())
    }
}

/// The first undeclared success.
fn leaked(reports: &[&Leaks]) -> Option<String> {
    reports.iter().flat_map(|it| it.successes.first()).next().cloned()
}

/// Undeclared attempts and successes of a container that probes again and again.
pub(crate) async fn logged(shop: &Shop, id: &str) -> anyhow::Result<(u64, u64)> {
    use bollard::query_parameters::LogsOptions;
    use futures_util::TryStreamExt;
    let options = LogsOptions {
        stdout: true,
        ..Default::default()
    };
    let lines: Vec<String> = shop
        .lab
        .docker
        .logs(id, Some(options))
        .map_ok(|line| line.to_string())
        .try_collect()
        .await?;
    let text = lines.concat();
    let (mut tried, mut leaks) = (0, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            // Each success at once, so that those of a run that was killed count, too.
            ["success", ..] => leaks += 1,
            ["flow", "-", _, _, _, attempts, ..] => tried += attempts.parse::<u64>()?,
            _ => {}
        }
    }
    Ok((tried, leaks))
}
