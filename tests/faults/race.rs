//! The start race: containers whose first instruction connects, declared and not.
//!
//! Proves promise 1 (closed first): whatever the daemon's haste, nothing undeclared opens; and that the
//! declared flow is open by the first SYN, nearly always.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::engine::Lab;
use crate::figure::Figure;
use crate::shop::{DECLARED, Leaks, POLICY, Shop, Spec, UNDECLARED, closed, flows, repairs};

const NETWORK: &str = "shop_default";
/// Long enough for two SYNs that are lost, on a machine that starts 50 containers at once.
const SECONDS: &str = "4";
/// So many of a hundred declared connects succeed at their first SYN.
const PERCENT: usize = 99;
/// From Engine 28 on. It tells of an endpoint when the first instruction is 10 to 60 ms away, and with 50 starts under way on two
/// processors it takes 20 to 300 ms to say what address that has.
const PERCENT_OF_ENGINE_28: usize = 94;

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mut shop = Shop::open(lab, "race", POLICY).await?;
    shop.network(NETWORK, 80).await?;
    let server = shop.start(&Spec::service("server", "server").on(NETWORK)).await?;
    shop.converge().await?;
    let addresses = server.addresses(NETWORK)?;
    let mut targets = flows('+', &["tcp"], &addresses[..1], DECLARED);
    targets.extend(flows('-', &["tcp"], &addresses[..1], UNDECLARED));
    targets.extend(flows('-', &["udp"], &addresses[1..], UNDECLARED));

    let mut figures = Vec::new();
    let (mut started, mut late) = (0, 0);
    // The server itself answers at the undeclared port: without the daemon's rules the probe would succeed.
    for (name, count, at_once) in [
        ("race: containers one after the other", 200, 1),
        ("race: containers, 50 at once", 200, 50),
    ] {
        let begun = Instant::now();
        let reports = starts(&shop, &targets, count, at_once).await?;
        figures.push(figure(name, &reports, begun.elapsed()));
        started += reports.len();
        late += reports.len() - at_first_syn(&reports);
    }
    let percent = percent(&shop).await?;
    if late * 100 > started * (100 - percent)
        && let Some(last) = figures.last_mut()
    {
        let text =
            format!("{late} of all {started} did not connect at the first SYN: at least {percent} % must");
        last.failed.get_or_insert(text);
    }
    figures.push(unrepaired(&shop, started as u64).await?);
    figures.push(stopped(&mut shop, &targets).await?);
    Ok(closed(shop, "race", figures).await)
}

async fn percent(shop: &Shop) -> anyhow::Result<usize> {
    let version = shop.lab.docker.version().await?.version.unwrap_or_default();
    let major = version.split('.').next().and_then(|it| it.parse::<u32>().ok());
    Ok(match major.context("the engine names no version")? {
        28.. => PERCENT_OF_ENGINE_28,
        _ => PERCENT,
    })
}

/// Creates and starts containers of the permitted client, so many at a time, and collects their reports.
async fn starts(shop: &Shop, targets: &[String], count: usize, at_once: usize) -> anyhow::Result<Vec<Leaks>> {
    let mut words = vec!["leak".to_owned(), SECONDS.to_owned()];
    words.extend(targets.iter().cloned());
    let words = &words;
    let started: Vec<String> = stream::iter(0..count)
        .map(|number| async move {
            let spec = Spec::service("client", &format!("client-{at_once}-{number}"))
                .on(NETWORK)
                .command(words);
            let id = shop.create(&spec).await?;
            let started = shop.lab.docker.start_container(&id, None).await;
            started.with_context(|| format!("cannot start {}", spec.name))?;
            Ok::<_, anyhow::Error>(id)
        })
        .buffer_unordered(at_once)
        .try_collect()
        .await?;
    stream::iter(started)
        .map(|id| async move {
            let said = shop.printed(&id, Duration::from_secs(60)).await?;
            shop.remove(&id).await?;
            Leaks::parse(&said)
        })
        .buffer_unordered(8)
        .try_collect()
        .await
}

fn at_first_syn(reports: &[Leaks]) -> usize {
    let all = |report: &&Leaks| report.declared().all(|flow| flow.first_syn == Some(true));
    reports.iter().filter(all).count()
}

fn figure(name: &str, reports: &[Leaks], elapsed: Duration) -> Figure {
    let first_syn = at_first_syn(reports);
    let mut times: Vec<u64> = reports
        .iter()
        .flat_map(Leaks::declared)
        .filter_map(|flow| flow.connected_ms)
        .collect();
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
    let missing: Vec<String> = reports.iter().filter_map(Leaks::missing).collect();
    let missing = missing
        .first()
        .map(|first| format!("{} times {first}", missing.len()));
    Figure {
        name: name.to_owned(),
        tried: reports.iter().map(Leaks::tried).sum(),
        leaks: reports.iter().map(Leaks::leaked).sum(),
        note: Some(format!(
            "{first_syn} of {} connected at the first SYN ({:.1} %), connect p50 {:?} ms, p99 {:?} ms, took {} s",
            reports.len(),
            100.0 * first_syn as f64 / reports.len().max(1) as f64,
            at(50).unwrap_or(&0),
            at(99).unwrap_or(&0),
            elapsed.as_secs(),
        )),
        failed: missing,
        ..Figure::default()
    }
}

/// Nobody but the daemon and the engine changed anything: what the daemon sets itself is not to look like a change by others.
async fn unrepaired(shop: &Shop, tried: u64) -> anyhow::Result<Figure> {
    let status = shop.daemon.status().await?;
    let failed = (repairs(&status)? > 0).then(|| format!("repaired what was not touched: {status}"));
    Ok(Figure {
        name: "race: nothing looks like a change by others".to_owned(),
        tried,
        failed,
        ..Figure::default()
    })
}

/// The daemon is stopped during the start: nothing opens; it goes on, and the declared flow works.
async fn stopped(shop: &mut Shop, targets: &[String]) -> anyhow::Result<Figure> {
    let mut figure = Figure {
        name: "race: daemon stopped during the start, then going on".to_owned(),
        ..Figure::default()
    };
    shop.daemon.pause()?;
    let mut clients = Vec::new();
    for number in 0..10 {
        clients.push(
            shop.start(&Spec::service("client", &format!("late-{number}")).on(NETWORK))
                .await?,
        );
    }
    // Declared or not: none may pass while nobody has proven the container.
    let closed: Vec<String> = targets
        .iter()
        .map(|target| target.replacen('+', "-", 1))
        .collect();
    let probes = clients
        .iter()
        .map(|client| shop.leak_probe(Some(client.pid), &closed))
        .collect::<anyhow::Result<Vec<_>>>()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for probe in probes {
        let leaks = probe.finish().await?;
        figure.tried += leaks.tried();
        figure.leaks += leaks.leaked();
    }
    shop.daemon.resume()?;
    let flow = targets[0].trim_start_matches('+').to_owned();
    let mut slowest = Duration::ZERO;
    for client in &clients {
        let opened = shop
            .until_reached(Some(client.pid), &flow, Duration::from_secs(10))
            .await;
        match opened {
            Ok(time) => slowest = slowest.max(time),
            Err(error) => figure.failed = Some(format!("{}: {error:#}", client.name)),
        }
    }
    figure.repair_ms = u64::try_from(slowest.as_millis()).ok();
    shop.converge().await?;
    let leaks = shop
        .leaks_for(Some(clients[0].pid), targets, Duration::from_secs(2))
        .await?;
    figure.tried += leaks.tried();
    figure.leaks += leaks.leaked();
    figure.failed = figure.failed.or(leaks.missing());
    for client in clients {
        shop.remove(&client.id).await?;
    }
    Ok(figure)
}
