//! `kill -9` at every step of a pass and at random moments, under churn.
//!
//! Proves promises 1 and 3: the rules stand while nobody minds them, whatever the daemon was in the middle of; the next one
//! brings the same state as the first, and nothing opens or ends in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::daemon::Life;
use crate::engine::{Lab, faulty, output};
use crate::figure::Figure;
use crate::held::{Held, difference, tables};
use crate::shop::{
    Container, DECLARED, LeakProbe, POLICY, Shop, Spec, Staff, UNDECLARED, create, flows, remove,
};

const NETWORK: &str = "shop_default";
/// Another edge: its service network comes, and goes with the next policy.
const FURTHER: &str = "  - { from: client, to: stranger, ports: [8080] }\n";
/// Where the product dies: the place, and for which passing.
const POINTS: &[&str] = &[
    "before-lock",
    "after-lock",
    "after-socket",
    "policy-loaded:1",
    "listed",
    "pass-begins:1",
    "nft-begins:1",
    "tables-replaced",
    "advertisements-inserted",
    "kernel-changed:1",
    "link-changed:1",
    "before-publish:1",
    "flows-swept:1",
    // From here on it has begun its work.
    "policy-loaded:2",
    "pass-begins:6",
    "ended-committed:1",
    "released-ended:1",
    "nft-begins:2",
    "structure-changed:1",
    "state-slot",
    "state-draft",
    "kernel-changed:5",
    "flows-swept:2",
    "network-created",
    "attached:1",
    "attached:2",
    "detached",
    "network-removed",
    "before-publish:7",
];
const RANDOM: u64 = 100;
const RANDOM_TIME: Duration = Duration::from_secs(75);

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mut shop = Shop::open(lab, "crashes", POLICY).await?;
    let Staff {
        server,
        client,
        stranger,
    } = shop.staff(NETWORK, 82).await?;
    let mut scene = Scene {
        shop,
        server,
        client,
        stranger,
        wanted: String::new(),
        networks: BTreeSet::new(),
    };
    // Made by a daemon on a clean engine: what every later one must come to.
    (scene.wanted, scene.networks) = (tables().await?, networks(&scene.shop).await?);
    let figures = vec![
        scene.at_every_point().await?,
        scene.at_random_moments().await?,
        scene.absent(Signal::SIGKILL).await?,
        scene.absent(Signal::SIGTERM).await?,
        scene.removed().await?,
    ];
    Ok(figures)
}

struct Scene {
    shop: Shop,
    server: Container,
    client: Container,
    stranger: Container,
    wanted: String,
    networks: BTreeSet<String>,
}

/// Our networks, each with who is on it.
async fn networks(shop: &Shop) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let listed = shop.lab.docker.list_networks(None).await?;
    for network in listed {
        let name = network.name.unwrap_or_default();
        if !name.starts_with("cofferdam-") {
            continue;
        }
        let inspected = shop.lab.docker.inspect_network(&name, None).await?;
        let members: BTreeSet<String> = inspected
            .containers
            .unwrap_or_default()
            .into_values()
            .map(|it| {
                format!(
                    "{} {}",
                    it.name.unwrap_or_default(),
                    it.ipv4_address.unwrap_or_default()
                )
            })
            .collect();
        found.insert(format!("{name} {members:?}"));
    }
    Ok(found)
}

/// What is watched all the time.
struct Watched {
    held: Held,
    probes: Vec<LeakProbe>,
}

impl Scene {
    async fn watch(&self) -> anyhow::Result<Watched> {
        let address = self.server.v4(NETWORK)?;
        let held = Held::open(&self.shop, &self.client, &address.to_string(), DECLARED).await?;
        let addresses = self.server.addresses(NETWORK)?;
        let undeclared = flows('-', &["tcp", "udp"], &addresses[..1], UNDECLARED);
        let mut strange = undeclared.clone();
        strange.extend(flows('-', &["tcp"], &addresses, DECLARED));
        Ok(Watched {
            held,
            probes: vec![
                self.shop.leak_probe(Some(self.stranger.pid), &strange)?,
                self.shop.leak_probe(Some(self.client.pid), &undeclared)?,
            ],
        })
    }

    async fn conclude(&self, watched: Watched, figure: &mut Figure) -> anyhow::Result<()> {
        let Watched { mut held, probes } = watched;
        for probe in probes {
            let leaks = probe.finish().await?;
            figure.leaks += leaks.leaked();
            if leaks.tried() == 0 {
                bail!("a leak probe did not try");
            }
        }
        match held.longest_gap_ms().await {
            Ok(gap) => {
                figure.longest_gap_ms = Some(gap);
                if gap > 1000 {
                    figure.failed = Some("the established connection was interrupted".to_owned());
                }
            }
            Err(error) => figure.failed = Some(format!("{error:#}")),
        }
        Ok(())
    }

    /// Waits for the state of the first daemon; what is different where it does not come.
    async fn as_at_first(&mut self) -> anyhow::Result<Option<String>> {
        self.shop.converge().await?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let different = difference(&self.wanted, &tables().await?);
            let now = networks(&self.shop).await?;
            let different = different.or_else(|| {
                let text = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join("\n");
                difference(&text(&self.networks), &text(&now))
            });
            if different.is_none() || Instant::now() > deadline {
                return Ok(different);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn write(&mut self, further: bool) -> anyhow::Result<()> {
        let policy = if further {
            format!("{POLICY}{FURTHER}")
        } else {
            POLICY.to_owned()
        };
        self.shop
            .daemon
            .write(&BTreeMap::from([("shop.yaml".to_owned(), policy)]))
            .await
    }

    /// Everything that makes a daemon work, in order; ends early when it has died. Returns whether it has.
    async fn work(&mut self) -> anyhow::Result<bool> {
        let died = async |scene: &mut Self, ms| scene.shop.daemon.ended(Duration::from_millis(ms)).await;
        if died(self, 300).await? {
            return Ok(true);
        }
        let extra = Spec::service("client", "extra").on(NETWORK);
        let extra = self.shop.start(&extra).await?.id;
        if !died(self, 150).await? {
            self.write(true).await?;
            if !died(self, 700).await? {
                self.shop.remove(&extra).await?;
                died(self, 100).await?;
                self.write(false).await?;
                died(self, 900).await?;
                return self.shop.daemon.ended(Duration::ZERO).await;
            }
        }
        self.shop.remove(&extra).await?;
        self.write(false).await?;
        Ok(true)
    }

    async fn at_every_point(&mut self) -> anyhow::Result<Figure> {
        let mut figure = Figure {
            name: "crashes: killed at every step".to_owned(),
            ..Figure::default()
        };
        let watched = self.watch().await?;
        let mut slowest = Duration::ZERO;
        for point in POINTS {
            if self.shop.daemon.life != Life::Stopped {
                self.shop.daemon.stop(Signal::SIGKILL).await?;
            }
            self.shop.daemon.faulty = Some((faulty(), (*point).to_owned()));
            self.shop.daemon.start()?;
            if !self.work().await.with_context(|| (*point).to_owned())? {
                figure.failed = Some(format!("{point} was never passed"));
                self.shop.daemon.stop(Signal::SIGKILL).await?;
            }
            figure.tried += 1;
            self.shop.daemon.faulty = None;
            let begun = Instant::now();
            self.shop.daemon.start()?;
            if let Some(different) = self.as_at_first().await? {
                figure.failed = Some(format!("after {point}: {different}"));
            }
            slowest = slowest.max(begun.elapsed());
        }
        figure.repair_ms = u64::try_from(slowest.as_millis()).ok();
        figure.note = Some(format!("{} places", POINTS.len()));
        self.conclude(watched, &mut figure).await?;
        Ok(figure)
    }

    async fn at_random_moments(&mut self) -> anyhow::Result<Figure> {
        let mut figure = Figure {
            name: "crashes: killed at random moments under churn".to_owned(),
            ..Figure::default()
        };
        let watched = self.watch().await?;
        let begun = Instant::now();
        let (mut random, mut slowest, mut compared) = (0x9e37_79b9_7f4a_7c15_u64, Duration::ZERO, 0);
        while figure.tried < RANDOM && begun.elapsed() < RANDOM_TIME {
            // Ten kills in a row, each of a daemon that finds what the last one left; then the state is compared.
            let going = Arc::new(AtomicBool::new(true));
            let churn = tokio::spawn(churn(self.shop.lab.clone(), Arc::clone(&going)));
            for number in 0..10 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                tokio::time::sleep(Duration::from_millis(20 + random % 450)).await;
                self.shop.daemon.stop(Signal::SIGKILL).await?;
                figure.tried += 1;
                if number % 3 == 0 {
                    self.write(number % 2 == 0).await?;
                }
                self.shop.daemon.start()?;
            }
            self.write(false).await?;
            going.store(false, Ordering::Relaxed);
            churn.await??;
            let restarted = Instant::now();
            if let Some(different) = self.as_at_first().await? {
                figure.failed = Some(format!("after {} kills: {different}", figure.tried));
            }
            slowest = slowest.max(restarted.elapsed());
            compared += 1;
        }
        figure.repair_ms = u64::try_from(slowest.as_millis()).ok();
        figure.note = Some(format!(
            "{} kills in {} s, state compared {compared} times",
            figure.tried,
            begun.elapsed().as_secs()
        ));
        self.conclude(watched, &mut figure).await?;
        Ok(figure)
    }

    /// Without a daemon the rules stand and nothing new opens; a started container gets nothing until it is back.
    async fn absent(&mut self, signal: Signal) -> anyhow::Result<Figure> {
        let mut figure = Figure {
            name: format!("crashes: no daemon after {signal}"),
            ..Figure::default()
        };
        let watched = self.watch().await?;
        let before = tables().await?;
        self.shop.daemon.stop(signal).await?;
        let late = self
            .shop
            .start(&Spec::service("client", "late").on(NETWORK))
            .await?;
        let addresses = self.server.addresses(NETWORK)?;
        let mut targets = flows('-', &["tcp", "udp"], &addresses, UNDECLARED);
        targets.extend(flows('-', &["tcp", "udp"], &addresses, DECLARED));
        let leaks = self
            .shop
            .leaks_for(Some(late.pid), &targets, Duration::from_millis(1500))
            .await?;
        (figure.tried, figure.leaks) = (leaks.tried(), leaks.leaked());
        figure.failed = difference(&before, &tables().await?);
        let begun = Instant::now();
        self.shop.daemon.start()?;
        let flow = format!("tcp/{}/{DECLARED}", addresses[0]);
        self.shop
            .until_reached(Some(late.pid), &flow, Duration::from_secs(10))
            .await?;
        figure.repair_ms = u64::try_from(begun.elapsed().as_millis()).ok();
        self.shop.remove(&late.id).await?;
        if let Some(different) = self.as_at_first().await? {
            figure.failed = Some(different);
        }
        self.conclude(watched, &mut figure).await?;
        Ok(figure)
    }

    /// `down` that dies between the networks and the tables, and once more: nothing is left.
    async fn removed(mut self) -> anyhow::Result<Figure> {
        self.shop.daemon.stop(Signal::SIGTERM).await?;
        let mut figure = Figure {
            name: "crashes: `down` killed, and again".to_owned(),
            tried: 1,
            ..Figure::default()
        };
        if self.shop.daemon.down_by(&faulty(), "down-networks").await? {
            figure.failed = Some("`down` did not die".to_owned());
        }
        // Until the rules go, they hold: also without our networks.
        let addresses = self.server.addresses(NETWORK)?;
        let targets = flows('-', &["tcp", "udp"], &addresses, UNDECLARED);
        let leaks = self
            .shop
            .leaks_for(Some(self.stranger.pid), &targets, Duration::from_millis(500))
            .await?;
        figure.leaks = leaks.leaked();
        self.shop.daemon.down().await?;
        let left = output("nft", &["list", "tables"], "").await?;
        if left.contains("cofferdam") || !networks(&self.shop).await?.is_empty() {
            figure.failed = Some(format!("`down` left something: {left}"));
        }
        self.shop.close().await?;
        Ok(figure)
    }
}

/// Containers of the client that come and go.
async fn churn(lab: Lab, going: Arc<AtomicBool>) -> anyhow::Result<()> {
    let spec = |number: usize| Spec::service("client", &format!("churn-{number}")).on(NETWORK);
    let mut number = 0;
    while going.load(Ordering::Relaxed) {
        number += 1;
        let started = create(&lab, &spec(number)).await?;
        lab.docker.start_container(&started, None).await?;
        tokio::time::sleep(Duration::from_millis(60)).await;
        remove(&lab, &started).await?;
    }
    Ok(())
}
