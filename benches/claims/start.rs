//! The moment of a start, on the real engine: whether the rules are in the kernel before the container's first instruction, and
//! how long each event takes to reach the kernel. Heard from outside: from the engine, the kernel and the container.

use std::net::SocketAddr;

use jiff::Timestamp;

use crate::harness::{Goal, Report, Sample, between, runtime};
use crate::product::{Daemon, PATIENCE, Setup};
use crate::real::{Engine, Event, Events, SHARED, Spec};
use crate::resident::{Role, from_fork_to_clock};
use crate::witness::{Heard, What, Witness, came};

const PORT: u16 = 8080;
const POLICY: &str = "
cofferdam: 1
segment: bench
services:
  client: { select: { labels: { service: client } } }
  server: { select: { labels: { service: server } } }
  crowd: { select: { labels: { service: crowd } } }
allow:
  - { from: client, to: server, ports: [8080] }
  - { from: world, to: crowd, ports: [8080] }
";
/// What was measured of one start, in ms.
#[derive(Debug)]
struct Start {
    /// From the last element of the container's own network to its first instruction.
    lead: f64,
    /// The same of all its networks: it may run before the engine has attached it to a service network.
    lead_everywhere: f64,
    /// From `network connect` to the first of what the address may do. Of some starts the engine tells no connect.
    rights: Option<f64>,
    /// From the port that has the container behind it to the first of who is behind that port.
    bound: f64,
    /// From `die` to the last of who is behind a port.
    gone: f64,
    is_first_attempt: bool,
}

pub(crate) fn run(report: &mut Report) {
    runtime().block_on(starts(report));
}

type Time = fn(&Start) -> Option<f64>;
type Holds = fn(&Start) -> bool;

struct Stage {
    engine: Engine,
    witness: Witness,
    events: Events,
    daemon: Daemon,
    /// Where the server answers, and the index of the bridge that it shares with the clients.
    server: SocketAddr,
    bridge: u32,
    /// Not the whole lead is the daemon's: the program had to come to its clock first. This is taken off.
    to_clock: f64,
}

async fn starts(report: &mut Report) {
    let stage = Stage::build(report).await;
    // So many containers on so many networks each.
    let sizes: &[(usize, usize)] = report
        .effort
        .of(&[(2, 1), (3, 2)], &[(10, 1), (100, 1), (100, 10)]);
    let mut crowd = Vec::new();
    let mut rights = Vec::new();
    for (containers, networks) in sizes.iter().copied() {
        grow(&stage.engine, &mut crowd, containers, networks).await;
        stage.daemon.settle();
        let mut found = Vec::new();
        // The first one warms up.
        for number in 0..=report.effort.of(3, 200) {
            found.push(one(&stage, &format!("client-{number}")).await);
        }
        found.remove(0);
        let endpoints = containers * networks;
        tell(report, &format!("{endpoints} endpoints"), &found);
        rights.push((endpoints, all(&found, |it| it.rights).median()));
    }
    report.growth("start, connect to rights", &rights, Goal::AtMost(0.2));
}

impl Stage {
    async fn build(report: &mut Report) -> Self {
        let engine = Engine::enter().await;
        let witness = Witness::listen();
        let bridge = engine.network(SHARED, 80).await;
        let (daemon, _) = Setup::new(&engine.socket, POLICY).start();
        let server = Spec::new("server", "server", Role::Serve(PORT));
        let server = engine.run(&[server]).await;
        let server = engine.inspect(&server[0]).await.addresses[SHARED][0];
        let to_clock = from_fork_to_clock(report.effort.of(3, 50));
        let name = "start, taken off each lead: from fork to the clock";
        report.figure(name, "ms", &to_clock, None, Goal::None);
        Self {
            events: engine.events(),
            engine,
            witness,
            daemon,
            server: SocketAddr::new(server, PORT),
            bridge,
            to_clock: to_clock.median(),
        }
    }
}

/// Makes it so many containers on so many networks each.
async fn grow(engine: &Engine, crowd: &mut Vec<String>, containers: usize, networks: usize) {
    let name = |network: usize| format!("crowd-{network}");
    if crowd.is_empty() {
        engine.network(&name(0), 100).await;
    }
    let more: Vec<Spec> = (crowd.len()..containers)
        .map(|it| Spec {
            network: name(0),
            ..Spec::new(&format!("crowd-{it}"), "crowd", Role::Stay)
        })
        .collect();
    crowd.extend(engine.run(&more).await);
    for network in 1..networks {
        engine.network(&name(network), 100 + network).await;
        for id in crowd.iter() {
            engine.connect(&name(network), id).await;
        }
    }
}

async fn one(stage: &Stage, name: &str) -> Start {
    let Stage {
        engine,
        witness,
        events,
        daemon,
        ..
    } = stage;
    witness.take();
    events.take();
    let id = engine
        .create(&Spec::new(name, "client", Role::Dial(stage.server)))
        .await;
    engine.start(&id).await;
    let told = engine.told(name, PATIENCE).await.expect("the container connects");
    daemon.settle();
    let running = engine.inspect(&id).await;
    let started = witness.take();
    engine.remove(std::slice::from_ref(&id)).await;
    daemon.settle();

    let (ended, events) = (witness.take(), events.take());
    let (own, everywhere) = (&running.addresses[SHARED], running.everywhere());
    let told_at = |action: &str, name: &str| -> Option<Timestamp> {
        let is_it = |it: &&Event| it.action == action && it.container == id && it.name == name;
        events.iter().find(is_it).map(|it| it.at)
    };
    let is_port = |it: &&Heard| matches!(it.what, What::Port { bridge } if bridge == stage.bridge);
    let port = started.iter().find(is_port).unwrap();
    let rights = came(&started, own).into_iter().find(|it| !it.binds()).unwrap();
    let bound = came(&started, own).into_iter().find(|it| it.binds()).unwrap();
    let gone = ended
        .iter()
        .rfind(|it| it.binds() && it.is_of(&everywhere, false));
    Start {
        lead: between(came(&started, own).last().unwrap().at, told.began) - stage.to_clock,
        lead_everywhere: between(came(&started, &everywhere).last().unwrap().at, told.began) - stage.to_clock,
        rights: told_at("connect", SHARED).map(|it| between(it, rights.at)),
        bound: between(port.at, bound.at),
        gone: between(told_at("die", name).unwrap(), gone.unwrap().at),
        is_first_attempt: told.connected.is_some_and(|(_, attempt)| attempt == 1),
    }
}

fn all(found: &[Start], of: Time) -> Sample {
    Sample::new(found.iter().filter_map(of).collect())
}

fn tell(report: &mut Report, size: &str, found: &[Start]) {
    let percent = |holds: Holds| {
        let count = found.iter().filter(|it| holds(it)).count();
        Sample::one(count as f64 * 100.0 / found.len() as f64)
    };
    let lead = all(found, |it| Some(it.lead));
    report.figure(
        &format!("start, lead before the first instruction: {size}"),
        "ms",
        &lead,
        None,
        Goal::None,
    );
    let leads: [(&str, Holds); 2] = [
        ("lead positive", |it| it.lead > 0.0),
        ("lead positive on the service network, too", |it| {
            it.lead_everywhere > 0.0
        }),
    ];
    for (what, holds) in leads {
        report.figure(
            &format!("start, {what}: {size}"),
            "%",
            &percent(holds),
            None,
            Goal::AtLeast(99.0),
        );
    }
    let first = percent(|it| it.is_first_attempt);
    report.figure(
        &format!("start, connected at the first attempt: {size}"),
        "%",
        &first,
        None,
        Goal::AtLeast(99.0),
    );
    let kinds: [(&str, Time); 3] = [
        ("connect to rights", |it| it.rights),
        ("port to bound", |it| Some(it.bound)),
        ("die to gone", |it| Some(it.gone)),
    ];
    for (what, of) in kinds {
        let times = all(found, of);
        report.figure(
            &format!("start, {what}, p50: {size}"),
            "ms",
            &times,
            None,
            Goal::AtMost(3.0),
        );
        let slow = Sample::one(times.quantile(0.99));
        report.figure(
            &format!("start, {what}, p99: {size}"),
            "ms",
            &slow,
            None,
            Goal::AtMost(10.0),
        );
    }
}
