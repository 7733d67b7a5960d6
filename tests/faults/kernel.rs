//! What others do to our tables, bridges and ports.
//!
//! Proves promise 5 (what is true is visible) and that nothing stays open: each change is noticed by notification, put
//! back in one transaction, counted, and told with the culprit's name; while it cannot be put back, `status` says so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cofferdam::kernel::generation::{GenerationEvent, GenerationWatch, Touched};
use cofferdam::kernel::links::{Links, NetfilterCalls};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::engine::{Lab, output};
use crate::figure::Figure;
use crate::held::{Held, difference, tables};
use crate::shop::{Container, DECLARED, POLICY, Shop, Staff, UNDECLARED, flows, repairs};

const NETWORK: &str = "shop_default";
/// Far below the slow timer's 60 s: what is put back sooner was noticed by notification.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mut shop = Shop::open(lab, "kernel", POLICY).await?;
    let Staff {
        server,
        client,
        stranger,
    } = shop.staff(NETWORK, 81).await?;
    let mut scene = Scene {
        shop,
        server,
        client,
        stranger,
    };
    let mut figures = scene.tables().await?;
    figures.extend(scene.links().await?);
    figures.push(scene.sealed().await?);
    figures.push(scene.sysctl().await?);
    figures.push(scene.cannot_repair("failing").await?);
    figures.push(scene.cannot_repair("hanging").await?);
    figures.push(scene.cost().await?);
    scene.shop.close().await?;
    Ok(figures)
}

struct Scene {
    shop: Shop,
    server: Container,
    client: Container,
    stranger: Container,
}

/// What the probes of one fault came to.
#[derive(Debug, Default)]
struct Probed {
    tried: u64,
    leaks: u64,
    gap: Option<u64>,
    failed: Option<String>,
}

impl Scene {
    fn undeclared(&self) -> anyhow::Result<Vec<String>> {
        let addresses = self.server.addresses(NETWORK)?;
        let mut targets = flows('-', &["tcp", "udp"], &addresses, UNDECLARED);
        targets.extend(flows('-', &["tcp"], &addresses[..1], DECLARED));
        Ok(targets)
    }

    /// Probes from the stranger, with the declared flow as its twin, while the action runs.
    async fn probed<T>(
        &mut self,
        action: impl AsyncFnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Probed)> {
        let address = self.server.v4(NETWORK)?;
        let mut held = Held::open(&self.shop, &self.client, &address.to_string(), DECLARED).await?;
        let probe = self
            .shop
            .leak_probe(Some(self.stranger.pid), &self.undeclared()?)?;
        tokio::time::sleep(Duration::from_millis(150)).await;
        let result = action(self).await?;
        tokio::time::sleep(Duration::from_millis(150)).await;
        let leaks = probe.finish().await?;
        let mut probed = Probed {
            tried: leaks.tried(),
            leaks: leaks.leaked(),
            ..Probed::default()
        };
        match held.longest_gap_ms().await {
            Ok(gap) => probed.gap = Some(gap),
            Err(error) => probed.failed = Some(format!("{error:#}")),
        }
        // The twin: the declared flow works still, or again.
        let flow = format!("tcp/{address}/{DECLARED}");
        if let Err(error) = self
            .shop
            .until_reached(Some(self.client.pid), &flow, PATIENCE)
            .await
        {
            probed.failed = Some(format!("{error:#}"));
        }
        Ok((result, probed))
    }

    async fn repairs(&self) -> anyhow::Result<u64> {
        repairs(&self.shop.daemon.status().await?)
    }

    /// Waits until one more repair is counted and all is in force; the status then.
    async fn repaired(&self, before: u64) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.shop.daemon.status().await?;
            if repairs(&status)? > before && status["state"] == "enforcing" {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("not repaired within {PATIENCE:?}: {status}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn tables(&mut self) -> anyhow::Result<Vec<Figure>> {
        let address = self.server.v4(NETWORK)?;
        let binding = output("nft", &["-j", "list", "set", "bridge", "cofferdam", "ports"], "").await?;
        let ports: Value = serde_json::from_str(&binding)?;
        let port = ports
            .pointer("/nftables/1/set/elem/0")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let mut faults: Vec<(String, String, bool)> = [
            ("nft flush ruleset", "flush ruleset", true),
            (
                "both tables deleted",
                "delete table inet cofferdam; delete table bridge cofferdam",
                true,
            ),
            ("the inet table deleted", "delete table inet cofferdam", true),
            ("the bridge table deleted", "delete table bridge cofferdam", true),
            ("a base chain flushed", "flush chain inet cofferdam forward", true),
            ("a chain flushed", "flush chain inet cofferdam deny", true),
            (
                "a foreign rule before ours",
                "insert rule inet cofferdam forward accept; insert rule bridge cofferdam sealed accept",
                true,
            ),
            (
                "a foreign rule behind ours",
                "add rule inet cofferdam deny accept",
                false,
            ),
            (
                "tables made dormant",
                "add table inet cofferdam { flags dormant; }",
                true,
            ),
            (
                "a foreign chain in our table",
                "add chain inet cofferdam foreign",
                false,
            ),
        ]
        .map(|(name, command, opens)| (name.to_owned(), command.to_owned(), opens))
        .into();
        faults.push((
            "an element deleted".to_owned(),
            format!("delete element inet cofferdam into4 {{ {address} }}"),
            false,
        ));
        faults.push((
            "an element added".to_owned(),
            "add element inet cofferdam into4 { 198.51.100.77 : goto pass }".to_owned(),
            false,
        ));
        if let Some(port) = port {
            faults.push((
                "a port's element deleted".to_owned(),
                format!("delete element bridge cofferdam ports {{ \"{port}\" }}"),
                false,
            ));
        }
        let mut figures = Vec::new();
        for (name, command, opens) in faults {
            figures.push(
                self.table_fault(&name, &command, opens)
                    .await
                    .with_context(|| name.clone())?,
            );
        }
        Ok(figures)
    }

    /// One nft command by hand. Where it opens the tables, what passes until they are back is counted and printed apart.
    async fn table_fault(&mut self, name: &str, command: &str, opens: bool) -> anyhow::Result<Figure> {
        let wanted = tables().await?;
        let before = self.repairs().await?;
        let (sender, mut generations) = mpsc::channel(4096);
        let watch = tokio::spawn(GenerationWatch::open()?.run(sender));
        let seen = tokio::spawn(async move {
            let mut window = Window::default();
            while let Some(event) = generations.recv().await {
                window.take(Instant::now(), &event);
            }
            window
        });
        let command = command.to_owned();
        let (status, probed) = self
            .probed(async |scene| {
                output("nft", &[&command], "").await?;
                scene.repaired(before).await
            })
            .await?;
        let found = tables().await?;
        watch.abort();
        let window = seen.await?;
        let again = self.probed(async |_| Ok(())).await?.1;
        let drift = &status["drift"];
        let us = drift["repaired_us"].as_u64();
        let mut failed = probed.failed.or(again.failed);
        if drift["process"] != "nft" || !names_culprit(&self.shop.daemon.log()) {
            failed = failed.or(Some(format!("the culprit is not named: {drift}")));
        }
        failed = failed.or(difference(&wanted, &found));
        if window.repairs != 1 {
            failed = failed.or(Some(format!("repaired in {} transactions", window.repairs)));
        }
        let note = format!(
            "{:.1} ms between the two transactions{}",
            window.length.as_secs_f64() * 1000.0,
            if opens {
                format!(", {} exchanges while the rules were gone", probed.leaks)
            } else {
                String::new()
            }
        );
        Ok(Figure {
            name: format!("kernel: {name}"),
            tried: probed.tried + again.tried,
            leaks: again.leaks + if opens { 0 } else { probed.leaks },
            longest_gap_ms: probed.gap.max(again.gap),
            repair_ms: us.map(|us| us.div_ceil(1000)),
            note: Some(note),
            failed,
        })
    }

    async fn links(&mut self) -> anyhow::Result<Vec<Figure>> {
        let links = Links::open()?;
        let listed = links.list().await?;
        let bridge = *listed.calling.first().context("no bridge is guarded")?;
        let isolated = listed.isolated.iter().find(|(_, on)| **on);
        let (caller, _) = isolated.context("no port is isolated")?;
        let guarded: BTreeSet<u32> = listed.calling.clone();
        let port = listed
            .ports
            .iter()
            .find(|port| guarded.contains(&port.bridge) && port.peer.is_some())
            .context("no port on a guarded bridge")?
            .clone();
        output("ip", &["link", "add", "elsewhere", "type", "bridge"], "").await?;
        output("ip", &["link", "set", "elsewhere", "up"], "").await?;
        let elsewhere = links
            .list()
            .await?
            .bridges
            .into_iter()
            .find(|bridge| bridge.name.to_string() == "elsewhere")
            .context("no bridge elsewhere")?
            .index;
        let mut figures = Vec::new();
        for fault in [
            "nf_call_iptables off",
            "a port not isolated",
            "a port moved",
            "a port without bridge",
        ] {
            let before = self.repairs().await?;
            let (time, probed) = self
                .probed(async |scene| {
                    let begun = Instant::now();
                    let moved = |to: Option<&str>| {
                        let name = port.name.to_string();
                        let to = to.map(str::to_owned);
                        async move {
                            match to {
                                Some(to) => output("ip", &["link", "set", &name, "master", &to], "").await,
                                None => output("ip", &["link", "set", &name, "nomaster"], "").await,
                            }
                        }
                    };
                    match fault {
                        "nf_call_iptables off" => {
                            let off = NetfilterCalls {
                                ipv4: false,
                                ipv6: true,
                            };
                            // It may be on again before the answer to this is read.
                            links.set_netfilter_calls(bridge, off).await.ok();
                        }
                        "a port not isolated" => links.set_isolated(*caller, false).await?,
                        "a port moved" => drop(moved(Some("elsewhere")).await?),
                        _ => drop(moved(None).await?),
                    }
                    scene.repaired(before).await?;
                    loop {
                        let now = links.list().await?;
                        let home = now
                            .ports
                            .iter()
                            .any(|it| it.index == port.index && it.bridge == port.bridge);
                        if now.calling.contains(&bridge) && now.isolated.get(caller) == Some(&true) && home {
                            return Ok(begun.elapsed());
                        }
                        if begun.elapsed() > PATIENCE {
                            bail!("{fault}: not put back within {PATIENCE:?}");
                        }
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                })
                .await
                .context(fault)?;
            self.shop.converge().await?;
            figures.push(Figure {
                name: format!("kernel: {fault}"),
                tried: probed.tried,
                leaks: probed.leaks,
                longest_gap_ms: probed.gap,
                repair_ms: u64::try_from(time.as_millis()).ok(),
                failed: probed.failed,
                ..Figure::default()
            });
        }
        let left = links.list().await?;
        if left.ports.iter().any(|port| port.bridge == elsewhere) {
            bail!("a port stayed elsewhere");
        }
        output("ip", &["link", "delete", "elsewhere"], "").await?;
        Ok(figures)
    }

    /// The daemon is stopped and br_netfilter's call is off: `sealed` keeps everything closed until it goes on.
    async fn sealed(&mut self) -> anyhow::Result<Figure> {
        let links = Links::open()?;
        let sysctl = std::path::Path::new("/proc/sys/net/bridge");
        let settings = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];
        let mut before = Vec::new();
        for name in settings {
            before.push(std::fs::read_to_string(sysctl.join(name))?);
            // The host-wide setting is ORed to the bridge's.
            std::fs::write(sysctl.join(name), "0")?;
        }
        let listed = links.list().await?;
        self.shop.daemon.pause()?;
        let off = NetfilterCalls {
            ipv4: false,
            ipv6: false,
        };
        for bridge in &listed.calling {
            links.set_netfilter_calls(*bridge, off).await?;
        }
        let mut targets = self.undeclared()?;
        let addresses = self.server.addresses(NETWORK)?;
        targets.extend(flows('-', &["tcp", "udp"], &addresses, DECLARED));
        let mut figure = Figure {
            name: "kernel: br_netfilter off everywhere, daemon stopped".to_owned(),
            ..Figure::default()
        };
        // Not even the declared client: what did not pass `inet forward` has no stamp.
        for pid in [self.client.pid, self.stranger.pid] {
            let leaks = self
                .shop
                .leaks_for(Some(pid), &targets, Duration::from_millis(700))
                .await?;
            figure.tried += leaks.tried();
            figure.leaks += leaks.leaked();
        }
        let begun = Instant::now();
        self.shop.daemon.resume()?;
        let flow = format!("tcp/{}/{DECLARED}", addresses[0]);
        self.shop
            .until_reached(Some(self.client.pid), &flow, PATIENCE)
            .await?;
        figure.repair_ms = u64::try_from(begun.elapsed().as_millis()).ok();
        self.shop.converge().await?;
        for (name, value) in settings.iter().zip(before) {
            std::fs::write(sysctl.join(name), value)?;
        }
        Ok(figure)
    }

    /// br_netfilter's own settings, which nobody announces: the bridges' hold whatever these say.
    async fn sysctl(&mut self) -> anyhow::Result<Figure> {
        let path = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
        let before = std::fs::read_to_string(path)?;
        let ((), probed) = self
            .probed(async |_| {
                for value in ["0", "1", "0"] {
                    std::fs::write(path, value)?;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                Ok(())
            })
            .await?;
        std::fs::write(path, before)?;
        Ok(Figure {
            name: "kernel: br_netfilter's sysctl changed".to_owned(),
            tried: probed.tried,
            leaks: probed.leaks,
            longest_gap_ms: probed.gap,
            failed: probed.failed,
            ..Figure::default()
        })
    }

    /// nft fails or hangs while an element of ours was deleted: degraded, closed, and well again by itself.
    async fn cannot_repair(&mut self, how: &str) -> anyhow::Result<Figure> {
        let address = self.server.v4(NETWORK)?;
        let before = self.repairs().await?;
        let probe = self
            .shop
            .leak_probe(Some(self.stranger.pid), &self.undeclared()?)?;
        let mut figure = Figure {
            name: format!("kernel: nft {how} while the rules are to be put back"),
            ..Figure::default()
        };
        match how {
            "failing" => self.shop.daemon.break_nft(true)?,
            _ => self.shop.daemon.hang_nft()?,
        }
        let command = format!("delete element inet cofferdam into4 {{ {address} }}");
        output("nft", &[&command], "").await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let status = self.shop.daemon.status().await?;
        if status["state"] != "degraded" || status["reasons"].as_array().is_none_or(Vec::is_empty) {
            figure.failed = Some(format!("not told: {} {}", status["state"], status["reasons"]));
        }
        if self.shop.daemon.checked().await? != Some(1) {
            figure.failed = Some("`status --check` does not exit with 1".to_owned());
        }
        self.shop.daemon.break_nft(false)?;
        let begun = Instant::now();
        self.shop.daemon.converge(Duration::from_secs(25)).await?;
        figure.repair_ms = u64::try_from(begun.elapsed().as_millis()).ok();
        if self.repairs().await? <= before || self.shop.daemon.checked().await? != Some(0) {
            figure.failed = Some("not well again".to_owned());
        }
        let leaks = probe.finish().await?;
        (figure.tried, figure.leaks) = (leaks.tried(), leaks.leaked());
        let flow = format!("tcp/{address}/{DECLARED}");
        self.shop
            .until_reached(Some(self.client.pid), &flow, PATIENCE)
            .await?;
        Ok(figure)
    }

    /// Others' transactions on their own tables cost nearly nothing and repair nothing.
    async fn cost(&mut self) -> anyhow::Result<Figure> {
        const COUNT: u64 = 400;
        let before = self.repairs().await?;
        output("nft", &["add table inet foreign"], "").await?;
        output("nft", &["add chain inet foreign c"], "").await?;
        let ticks = self.shop.daemon.processor_ms()?;
        for _ in 0..COUNT {
            output("nft", &["add rule inet foreign c accept"], "").await?;
        }
        let spent = self.shop.daemon.processor_ms()? - ticks;
        output("nft", &["delete table inet foreign"], "").await?;
        let failed = (self.repairs().await? != before).then(|| "repaired what was not touched".to_owned());
        Ok(Figure {
            name: "kernel: others' transactions on other tables".to_owned(),
            tried: COUNT,
            note: Some(format!(
                "{:.3} ms of the daemon's processor time each",
                spent as f64 / COUNT as f64
            )),
            failed,
            ..Figure::default()
        })
    }
}

/// Whether a line tells who it was.
fn names_culprit(log: &str) -> bool {
    log.lines()
        .any(|line| line.contains("changed by others") && line.contains(r#""culprit":"nft""#))
}

/// The transactions on our tables, in the order of their announcements.
#[derive(Debug, Default)]
struct Window {
    foreign: Option<Instant>,
    /// From the foreign transaction to the one that made the tables anew.
    length: Duration,
    /// Transactions that made our tables anew.
    repairs: usize,
}

impl Window {
    fn take(&mut self, at: Instant, event: &GenerationEvent) {
        let GenerationEvent::Made(made) = event else {
            return;
        };
        match (made.touched, self.foreign) {
            (Some(_), None) => self.foreign = Some(at),
            (Some(Touched::Tables), Some(begun)) => {
                self.repairs += 1;
                self.length = at - begun;
            }
            _ => {}
        }
    }
}
