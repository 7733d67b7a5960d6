//! Many containers as fast as the real engine starts them: what that takes with and without the daemon, in turn, and when the
//! rules of all of them are in the kernel.

use std::net::IpAddr;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;

use crate::harness::{Goal, Report, Sample, between, runtime};
use crate::product::{Daemon, PATIENCE, Setup, forget};
use crate::real::{AT_ONCE, Engine, SHARED, Spec};
use crate::resident::Role;
use crate::witness::{Witness, came};

/// What stands beside the engine while it works: nothing, or the daemon, and of which service the containers are.
const WAYS: [(&str, Option<&str>); 3] = [
    ("engine alone", None),
    ("policy without service networks", Some("site")),
    ("policy with a service network", Some("client")),
];

/// One policy for both, so that no network is ever removed: Engine 20.10 may go on counting the endpoints of containers that were removed at
/// once, and then refuses that.
const POLICY: &str = "
cofferdam: 1
segment: bench
services:
  site: { select: { labels: { service: site } } }
  client: { select: { labels: { service: client } } }
  server: { select: { labels: { service: server } } }
allow:
  - { from: world, to: site, ports: [8080] }
  - { from: client, to: server, ports: [8080] }
";

#[derive(Debug, Default)]
struct Found {
    /// Until the last start was answered.
    seconds: Vec<f64>,
    /// Containers of whose own network everything was in the kernel before their first instruction, in percent.
    in_time: Vec<f64>,
    /// The same of all their networks: they may run before the engine has attached them to a service network.
    in_time_everywhere: Vec<f64>,
    /// From the answer to the last start to the last element, in ms; negative: it was there before.
    after: Vec<f64>,
    /// Processor time of the daemon, in s.
    cpu: Vec<f64>,
}

pub(crate) fn run(report: &mut Report) {
    runtime().block_on(bursts(report));
}

async fn bursts(report: &mut Report) {
    let engine = Engine::enter().await;
    let witness = Witness::listen();
    engine.network(SHARED, 80).await;
    engine.run(&[Spec::new("server", "server", Role::Stay)]).await;
    let sizes: &[usize] = report.effort.of(&[2, 4], &[25, 50, 100]);
    // The first round warms up.
    rounds(&engine, &witness, sizes[0], 1).await;
    let mut found = Vec::new();
    for count in sizes.iter().copied() {
        let of_size = rounds(&engine, &witness, count, report.effort.of(1, 4)).await;
        tell(report, count, &of_size);
        found.push((count, of_size));
    }
    tell_growth(report, &found);
}

/// What was found of each of [`WAYS`].
async fn rounds(engine: &Engine, witness: &Witness, count: usize, rounds: usize) -> [Found; WAYS.len()] {
    let mut found = WAYS.map(|_| Found::default());
    for _ in 0..rounds {
        for ((_, service), found) in WAYS.iter().zip(&mut found) {
            one(engine, witness, count, *service, found).await;
        }
    }
    found
}

async fn one(engine: &Engine, witness: &Witness, count: usize, service: Option<&str>, found: &mut Found) {
    forget();
    let daemon = service.map(|_| Setup::new(&engine.socket, POLICY).start().0);
    if let Some(daemon) = &daemon {
        daemon.settle();
    }
    let cpu = || daemon.as_ref().map_or(0.0, Daemon::cpu);
    let specs: Vec<Spec> = (0..count)
        .map(|it| Spec::new(&format!("burst-{it}"), service.unwrap_or("site"), Role::Stay))
        .collect();
    witness.take();
    let (begun, before) = (Timestamp::now(), cpu());
    let started: Vec<(&Spec, String)> = stream::iter(&specs)
        .map(|spec| async move {
            let id = engine.create(spec).await;
            engine.start(&id).await;
            (spec, id)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let answered = Timestamp::now();
    found.seconds.push(between(begun, answered) / 1000.0);
    if let Some(daemon) = &daemon {
        daemon.settle();
    }
    let heard = witness.take();
    let (mut in_time, mut in_time_everywhere, mut last) = (0, 0, begun);
    for (spec, id) in &started {
        let told = engine.told(&spec.name, PATIENCE).await.expect("it tells");
        if daemon.is_some() {
            let running = engine.inspect(id).await;
            let last_of = |of: &[IpAddr]| came(&heard, of).last().unwrap().at;
            let (own, all) = (
                last_of(&running.addresses[SHARED]),
                last_of(&running.everywhere()),
            );
            in_time += usize::from(own <= told.began);
            in_time_everywhere += usize::from(all <= told.began);
            last = last.max(all);
        }
    }
    if daemon.is_some() {
        let percent = |part: usize| part as f64 * 100.0 / count as f64;
        found.in_time.push(percent(in_time));
        found.in_time_everywhere.push(percent(in_time_everywhere));
        found.after.push(between(answered, last));
        found.cpu.push(cpu() - before);
    }
    let ids: Vec<String> = started.into_iter().map(|(_, id)| id).collect();
    engine.remove(&ids).await;
}

fn tell(report: &mut Report, count: usize, found: &[Found]) {
    let alone = &found[0].seconds;
    for ((way, service), found) in WAYS.iter().zip(found) {
        let name = |what: &str| format!("burst of {count}, {what}: {way}");
        let mut figure = |what: &str, unit: &str, values: &[f64], baseline: Option<f64>, goal: Goal| {
            report.figure(&name(what), unit, &Sample::new(values.to_vec()), baseline, goal);
        };
        let baseline = service.map(|_| Sample::new(alone.clone()).median());
        figure("to the last start", "s", &found.seconds, baseline, Goal::None);
        if service.is_none() {
            continue;
        }
        // Each beside that of the same round.
        let ratios: Vec<f64> = found
            .seconds
            .iter()
            .zip(alone)
            .map(|(it, alone)| it / alone)
            .collect();
        figure("ratio", "", &ratios, Some(1.0), Goal::AtMost(1.05));
        figure(
            "enforced before the first instruction",
            "%",
            &found.in_time,
            None,
            Goal::AtLeast(99.0),
        );
        figure(
            "the same on all networks",
            "%",
            &found.in_time_everywhere,
            None,
            Goal::None,
        );
        figure(
            "last element after the last start",
            "ms",
            &found.after,
            None,
            Goal::None,
        );
        figure("the daemon's processor time", "s", &found.cpu, None, Goal::None);
    }
}

fn tell_growth(report: &mut Report, found: &[(usize, [Found; WAYS.len()])]) {
    for (at, (way, service)) in WAYS.iter().enumerate() {
        let points = |of: fn(&Found) -> &Vec<f64>| -> Vec<(usize, f64)> {
            let medians = found
                .iter()
                .map(|(count, found)| (*count, Sample::new(of(&found[at]).clone()).median()));
            medians.collect()
        };
        let seconds = points(|it| &it.seconds);
        report.growth(&format!("burst, to the last start: {way}"), &seconds, Goal::None);
        if service.is_some() {
            let cpu = points(|it| &it.cpu);
            let name = format!("burst, the daemon's processor time: {way}");
            report.growth(&name, &cpu, Goal::AtMost(1.2));
        }
    }
}
