//! A firewall of the host is reloaded: firewalld, which removes the engine's rules and has the engine make them anew, and nftables.service
//! or ufw, which flush everything, ours included.
//!
//! Proves that we only take away from what the engine permits, whatever becomes of its rules: what is undeclared never passes while ours
//! stand, nor after they are back, also by a published port, where the engine's rules are in the way.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

use crate::engine::{Lab, output};
use crate::figure::Figure;
use crate::held::{Held, difference, tables};
use crate::shop::{Container, DECLARED, Leaks, POLICY, Shop, Spec, UNDECLARED, closed, flows, repairs};

const NETWORK: &str = "shop_default";
const HOST: &str = "198.51.100.1";
/// The host's ports in front of [`DECLARED`] and [`UNDECLARED`].
const PUBLISHED: (u16, u16) = (18080, 18090);
const PATIENCE: Duration = Duration::from_secs(5);
/// From the firewall's reload until the engine has made its rules anew.
const ENGINE_NOTICES: Duration = Duration::from_millis(300);
/// The firewall's own rules, in the way of nobody.
const OWN: &str = "table inet firewall {
    chain forward { type filter hook forward priority 10; policy accept; ct state established,related accept; }
    chain input { type filter hook input priority 10; policy accept; iifname lo accept; }
}";

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let policy = POLICY.trim_end().to_owned() + "\n  - { from: world, to: server, ports: [8080] }\n";
    let shop = Shop::open(lab, "firewall", &policy).await?;
    let outside = outside().await?;
    shop.network(NETWORK, 94).await?;
    let server = Spec::service("server", "server").on(NETWORK).host(
        "PortBindings",
        serde_json::json!({
            format!("{DECLARED}/tcp"): [{"HostPort": PUBLISHED.0.to_string()}],
            format!("{UNDECLARED}/tcp"): [{"HostPort": PUBLISHED.1.to_string()}],
        }),
    );
    let mut scene = Scene {
        server: shop.start(&server).await?,
        client: shop.start(&Spec::service("client", "client").on(NETWORK)).await?,
        stranger: shop
            .start(&Spec::service("stranger", "stranger").on(NETWORK))
            .await?,
        outside,
        shop,
    };
    scene.shop.converge().await?;
    let figures = vec![scene.firewalld().await?, scene.flushed().await?];
    output("ip", &["netns", "delete", "outside"], "").await?;
    Ok(closed(scene.shop, "firewall", figures).await)
}

/// A machine elsewhere, and a process there.
async fn outside() -> anyhow::Result<Child> {
    for line in [
        "netns add outside",
        "link add uplink type veth peer name eth0 netns outside",
        "address add 198.51.100.1/24 dev uplink",
        "link set uplink up",
        "-n outside address add 198.51.100.2/24 dev eth0",
        "-n outside link set eth0 up",
        "-n outside route add default via 198.51.100.1",
    ] {
        output("ip", &line.split(' ').collect::<Vec<_>>(), "").await?;
    }
    Command::new("ip")
        .args(["netns", "exec", "outside", "sleep", "600"])
        .kill_on_drop(true)
        .spawn()
        .context("cannot run anything outside")
}

struct Scene {
    shop: Shop,
    server: Container,
    client: Container,
    stranger: Container,
    outside: Child,
}

/// What was tried meanwhile.
struct Tried {
    stranger: Leaks,
    outside: Leaks,
    /// Of the declared connection between containers.
    gap: u64,
}

impl Tried {
    fn attempts(&self) -> u64 {
        self.stranger.tried() + self.outside.tried()
    }

    fn leaks(&self) -> u64 {
        self.stranger.leaked() + self.outside.leaked()
    }
}

/// The engine's rules of both families.
struct Rules(String, String);

impl Rules {
    async fn save() -> anyhow::Result<Self> {
        let (ipv4, ipv6) = (
            output("iptables-save", &[], "").await?,
            output("ip6tables-save", &[], "").await?,
        );
        if !ipv4.contains("DOCKER") {
            bail!("the engine has no rules: {ipv4}");
        }
        Ok(Self(ipv4, ipv6))
    }

    /// As the engine makes them anew when it hears of a reload.
    async fn restore(&self) -> anyhow::Result<()> {
        output("iptables-restore", &[], &self.0).await?;
        output("ip6tables-restore", &[], &self.1).await?;
        Ok(())
    }
}

impl Scene {
    fn outside(&self) -> anyhow::Result<Option<i64>> {
        Ok(Some(
            self.outside.id().context("nobody is outside any more")?.into(),
        ))
    }

    /// Probes from the stranger and from outside, with a declared connection and a published port as their twins, while the action runs.
    async fn tried<T>(
        &mut self,
        action: impl AsyncFnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Tried)> {
        let address = self.server.v4(NETWORK)?;
        let mut held = Held::open(&self.shop, &self.client, &address.to_string(), DECLARED).await?;
        let addresses = self.server.addresses(NETWORK)?;
        let mut inside = flows('-', &["tcp", "udp"], &addresses, UNDECLARED);
        inside.extend(flows('-', &["tcp"], &addresses[..1], DECLARED));
        let stranger = self.shop.leak_probe(Some(self.stranger.pid), &inside)?;
        let (declared, undeclared) = PUBLISHED;
        let outer = [
            format!("+tcp/{HOST}/{declared}"),
            format!("-tcp/{HOST}/{undeclared}"),
            format!("-tcp/{address}/{UNDECLARED}"),
        ];
        let outside = self.shop.leak_probe(self.outside()?, &outer)?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let result = action(self).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let tried = Tried {
            stranger: stranger.finish().await?,
            outside: outside.finish().await?,
            gap: held.longest_gap_ms().await?,
        };
        Ok((result, tried))
    }

    /// Waits until the world reaches the published port again; how long that took.
    async fn until_published(&self) -> anyhow::Result<Duration> {
        let flow = format!("tcp/{HOST}/{}", PUBLISHED.0);
        self.shop.until_reached(self.outside()?, &flow, PATIENCE).await
    }

    /// All that is in the tables of iptables goes, and the firewall's own table; then both are made anew.
    async fn firewalld(&mut self) -> anyhow::Result<Figure> {
        self.until_published().await?;
        let (rules, ours) = (Rules::save().await?, tables().await?);
        let before = self.shop.daemon.status().await?;
        output("nft", &["-f", "-"], OWN).await?;
        let (back, tried) = self
            .tried(async |scene| {
                for program in ["iptables", "ip6tables"] {
                    for table in ["raw", "mangle", "nat", "filter"] {
                        output(program, &["-w", "-t", table, "-F"], "").await?;
                        output(program, &["-w", "-t", table, "-X"], "").await?;
                    }
                    output(program, &["-w", "-P", "FORWARD", "ACCEPT"], "").await?;
                }
                output("nft", &["-f", "-"], &format!("delete table inet firewall\n{OWN}")).await?;
                tokio::time::sleep(ENGINE_NOTICES).await;
                rules.restore().await?;
                scene.until_published().await
            })
            .await?;
        output("nft", &["delete", "table", "inet", "firewall"], "").await?;
        let status = self.shop.daemon.status().await?;
        let mut failed = difference(&ours, &tables().await?);
        if status["state"] != "enforcing" || repairs(&status)? != repairs(&before)? {
            failed = failed.or(Some(format!("others' rules are none of ours: {status}")));
        }
        failed = failed.or(tried.outside.missing());
        Ok(Figure {
            name: "firewall: firewalld reloads, and the engine makes its rules anew".to_owned(),
            tried: tried.attempts(),
            leaks: tried.leaks(),
            longest_gap_ms: Some(tried.gap),
            repair_ms: u64::try_from(back.as_millis()).ok(),
            note: published(&tried),
            failed,
        })
    }

    /// `nft flush ruleset` and the firewall's own file, as at a start or reload of nftables.service; then the engine's rules.
    async fn flushed(&mut self) -> anyhow::Result<Figure> {
        let (rules, ours) = (Rules::save().await?, tables().await?);
        let before = repairs(&self.shop.daemon.status().await?)?;
        let (status, opened) = self
            .tried(async |scene| {
                output("nft", &["-f", "-"], &format!("flush ruleset\n{OWN}")).await?;
                let begun = Instant::now();
                let status = loop {
                    let status = scene.shop.daemon.status().await?;
                    if repairs(&status)? > before && status["state"] == "enforcing" {
                        break status;
                    }
                    if begun.elapsed() > PATIENCE {
                        bail!("not repaired within {PATIENCE:?}: {status}");
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                };
                Ok(status)
            })
            .await?;
        // Ours are back, the engine's are not, and then are.
        let (back, tried) = self
            .tried(async |scene| {
                tokio::time::sleep(ENGINE_NOTICES).await;
                rules.restore().await?;
                scene.until_published().await
            })
            .await?;
        output("nft", &["delete", "table", "inet", "firewall"], "").await?;
        let mut failed = difference(&ours, &tables().await?).or(tried.outside.missing());
        let drift = &status["drift"];
        if drift["process"] != "nft" || drift["repaired_us"].as_u64().is_none() {
            failed = failed.or(Some(format!("status does not tell who it was: {drift}")));
        }
        let ours = drift["repaired_us"].as_u64().map(|us| us.div_ceil(1000));
        Ok(Figure {
            name: "firewall: nftables.service reloads, and then the engine".to_owned(),
            tried: tried.attempts(),
            leaks: tried.leaks(),
            longest_gap_ms: Some(tried.gap.max(opened.gap)),
            repair_ms: ours,
            note: Some(format!(
                "{} exchanges while the rules were gone; published again {} ms after the engine's rules",
                opened.leaks(),
                back.as_millis()
            )),
            failed,
        })
    }
}

/// For how long the world could not reach the published port.
fn published(tried: &Tried) -> Option<String> {
    let gap = tried.outside.longest_gap_ms()?;
    Some(format!("the published port was away for {gap} ms"))
}
