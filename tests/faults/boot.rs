//! Boot: containers with a restart policy start with the engine, long before the daemon; and networks that are made while
//! no daemon runs.
//!
//! Proves promise 1: isolation is a static drop that stands before Docker starts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::daemon::Daemon;
use crate::engine::{Lab, output, target_directory};
use crate::figure::Figure;
use crate::outage::logged;
use crate::shop::{Container, DECLARED, POLICY, Shop, Spec, UNDECLARED, clear, flows};
use crate::state::agreed;

const NETWORK: &str = "shop_default";
const SERVER: [u8; 4] = [10, 82, 0, 200];
const LATE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
const CALLS: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const CALLS6: &str = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    clear(lab).await?;
    let log = target_directory().join("reports/faults/boot.log");
    let mut daemon = Daemon::prepare(lab, log, false)?;
    daemon
        .write(&BTreeMap::from([("shop.yaml".to_owned(), POLICY.to_owned())]))
        .await?;
    let mut shop = Shop {
        lab: lab.clone(),
        daemon,
    };
    shop.network(NETWORK, 82).await?;
    let mut figures = vec![boot(&mut shop).await?];
    figures.extend(meanwhile(&mut shop).await?);
    shop.close().await?;
    Ok(figures)
}

async fn boot(shop: &mut Shop) -> anyhow::Result<Figure> {
    let always = json!({"Name": "always"});
    let server = Spec::service("server", "server").at(NETWORK, SERVER.into());
    let server = shop.start(&server.host("RestartPolicy", always.clone())).await?;
    let addresses = server.addresses(NETWORK)?;
    let to_server = |port| flows('-', &["tcp", "udp"], &addresses, port);
    // Each a run of 2 s from its first instruction, again and again.
    let probe = |service: &str, name: &str, port| {
        let mut words = vec!["leak".to_owned(), "2".to_owned()];
        words.extend(to_server(port));
        let spec = Spec::service(service, name).on(NETWORK).command(&words);
        spec.host("RestartPolicy", always.clone())
    };
    let specs = [
        probe("stranger", "boots-stranger", DECLARED),
        probe("client", "boots-client", UNDECLARED),
    ];
    let client = Spec::service("client", "client").on(NETWORK);
    let client = shop.start(&client.host("RestartPolicy", always.clone())).await?;
    let mut figure = Figure {
        name: "boot: containers with a restart policy, the daemon 10 s late".to_owned(),
        ..Figure::default()
    };

    // The twin: neither guard nor daemon. What is undeclared succeeds, so the probe sees leaks.
    let open = boot_once(shop, &specs, async |_| Ok(())).await?;
    // The same with the guard.
    let closed = boot_once(shop, &specs, async |shop| {
        let first = shop.daemon.command("guard").await?;
        anyhow::ensure!(
            first.contains("are closed until"),
            "the guard did not load: {first}"
        );
        let before = output("nft", &["list", "ruleset"], "").await?;
        let second = shop.daemon.command("guard").await?;
        anyhow::ensure!(
            second.contains("nothing was changed"),
            "the guard loaded twice: {second}"
        );
        let after = output("nft", &["list", "ruleset"], "").await?;
        anyhow::ensure!(before == after, "a second guard changed the rules");
        Ok(())
    })
    .await?;
    (figure.tried, figure.leaks) = closed;
    figure.note = Some(format!("without the guard {} of {} succeed", open.1, open.0));
    if open.1 == 0 {
        figure.failed = Some("without the guard nothing succeeds: nothing was tried".to_owned());
    }

    let begun = Instant::now();
    shop.daemon.start()?;
    let client = shop.inspect(&client.id).await?;
    let declared = format!("tcp/{}/{DECLARED}", addresses[0]);
    match shop.until_reached(Some(client.pid), &declared, PATIENCE).await {
        Ok(_) => figure.repair_ms = u64::try_from(begun.elapsed().as_millis()).ok(),
        Err(error) => figure.failed = Some(format!("{error:#}")),
    }
    shop.converge().await?;
    agreed(shop, PATIENCE).await?;
    let second = shop.daemon.command("guard").await?;
    anyhow::ensure!(
        second.contains("nothing was changed"),
        "beside a daemon: {second}"
    );
    Ok(figure)
}

/// The engine ends, something is done, it starts with the probing containers; what they tried and where they succeeded within
/// [`LATE`].
async fn boot_once(
    shop: &mut Shop,
    specs: &[Spec],
    meanwhile: impl AsyncFnOnce(&mut Shop) -> anyhow::Result<()>,
) -> anyhow::Result<(u64, u64)> {
    let mut ids = Vec::new();
    for spec in specs {
        ids.push(shop.create(spec).await?);
    }
    // A container must have been started once for its restart policy to count; what that shows is not of interest.
    for id in &ids {
        shop.lab.docker.start_container(id, None).await?;
    }
    shop.lab.signal_dockerd(Signal::SIGTERM)?;
    crate::engine::wait_until(PATIENCE, || !shop.lab.directory.join("dockerd.pid").exists()).await?;
    let mut before = Vec::new();
    for id in &ids {
        before.push(json_log(&shop.lab, id)?);
    }
    meanwhile(shop).await?;
    shop.lab
        .start_dockerd()
        .await
        .context("the engine does not come back")?;
    tokio::time::sleep(LATE).await;
    let (mut tried, mut leaks) = (0, 0);
    for (id, before) in ids.iter().zip(before) {
        let (attempts, successes) = logged(shop, id).await?;
        tried += attempts.saturating_sub(before.0);
        leaks += successes.saturating_sub(before.1);
        shop.remove(id).await?;
    }
    Ok((tried, leaks))
}

/// What a container had logged when the engine ended, from the engine's own file.
fn json_log(lab: &Lab, id: &str) -> anyhow::Result<(u64, u64)> {
    let path = lab.directory.join(format!("data/containers/{id}/{id}-json.log"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut tried, mut leaks) = (0, 0);
    for line in text.lines() {
        let entry: serde_json::Value = serde_json::from_str(line)?;
        let words: Vec<&str> = entry["log"]
            .as_str()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        match words.as_slice() {
            ["success", ..] => leaks += 1,
            ["flow", "-", _, _, _, attempts, ..] => tried += attempts.parse::<u64>()?,
            _ => {}
        }
    }
    Ok((tried, leaks))
}

/// Networks that are made while no daemon runs: nothing passes on them until it does.
async fn meanwhile(shop: &mut Shop) -> anyhow::Result<Vec<Figure>> {
    let saved = (std::fs::read_to_string(CALLS)?, std::fs::read_to_string(CALLS6)?);
    let mut figures = Vec::new();
    for (name, number, calls) in [
        ("boot: a new network while no daemon runs", 83, "1"),
        ("boot: the same, bridge-nf-call-iptables 0", 84, "0"),
    ] {
        let mut figure = Figure {
            name: name.to_owned(),
            ..Figure::default()
        };
        shop.daemon.stop(Signal::SIGTERM).await?;
        let network = format!("fresh_{number}");
        shop.network(&network, number).await?;
        let start = async |service: &str| {
            let spec = Spec::service(service, &format!("{service}-{number}")).on(&network);
            shop.start(&spec).await
        };
        let (server, client) = (start("server").await?, start("client").await?);
        let stranger = start("stranger").await?;
        std::fs::write(CALLS, calls)?;
        std::fs::write(CALLS6, calls)?;
        let targets = targets(&server, &network)?;
        // The host answers at its own address, and a container on a known network at its own.
        let mut host = shop.probe(None);
        let mut host = host
            .args(["listen", &format!("tcp/{DECLARED},udp/{DECLARED}")])
            .spawn()?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let probes = [&client, &stranger]
            .iter()
            .map(|it| shop.leak_probe(Some(it.pid), &targets))
            .collect::<anyhow::Result<Vec<_>>>()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        for probe in probes {
            let leaks = probe.finish().await?;
            figure.tried += leaks.tried();
            figure.leaks += leaks.leaked();
            if let Some(first) = leaks.successes.first() {
                figure.failed = Some(first.clone());
            }
        }
        host.kill().await.ok();
        let begun = Instant::now();
        shop.daemon.start()?;
        let declared = format!("tcp/{}/{DECLARED}", server.v4(&network)?);
        match shop.until_reached(Some(client.pid), &declared, PATIENCE).await {
            Ok(_) => figure.repair_ms = u64::try_from(begun.elapsed().as_millis()).ok(),
            Err(error) => figure.failed = Some(format!("{error:#}")),
        }
        agreed(shop, PATIENCE).await?;
        // With the daemon the undeclared stays closed.
        let undeclared = flows(
            '-',
            &["tcp", "udp", "icmp"],
            &server.addresses(&network)?,
            UNDECLARED,
        );
        let leaks = shop
            .leaks_for(Some(stranger.pid), &undeclared, Duration::from_secs(1))
            .await?;
        figure.tried += leaks.tried();
        figure.leaks += leaks.leaked();
        // The twin: without our rules the very same probe succeeds.
        figures.push(figure);
    }
    // The twin: with no rules of ours, on the network where the bridge does not call br_netfilter and nothing may be in the way.
    shop.daemon.stop(Signal::SIGTERM).await?;
    shop.daemon.down().await?;
    let (server, stranger) = (
        shop.inspect("server-84").await?,
        shop.inspect("stranger-84").await?,
    );
    let open = shop
        .leaks_for(
            Some(stranger.pid),
            &targets(&server, "fresh_84")?,
            Duration::from_secs(1),
        )
        .await?;
    figures.push(Figure {
        name: "boot: the twin without rules, where the same must succeed".to_owned(),
        tried: open.tried(),
        note: Some(format!("{} succeed", open.leaked())),
        failed: (open.leaked() == 0).then(|| "nothing succeeds: nothing was tried".to_owned()),
        ..Figure::default()
    });
    std::fs::write(CALLS, saved.0)?;
    std::fs::write(CALLS6, saved.1)?;
    Ok(figures)
}

/// To a container on the same network, one on another network, and the host.
fn targets(server: &Container, network: &str) -> anyhow::Result<Vec<String>> {
    let mut targets = flows(
        '-',
        &["tcp", "udp", "icmp"],
        &server.addresses(network)?,
        DECLARED,
    );
    let gateway: Vec<IpAddr> = server.on(network)?.gateway.map(IpAddr::V4).into_iter().collect();
    targets.extend(flows('-', &["tcp", "udp"], &gateway, DECLARED));
    targets.extend(flows('-', &["tcp", "icmp"], &[IpAddr::from(SERVER)], DECLARED));
    Ok(targets)
}
