//! The daemon itself before a simulated engine: from its start to enforced, memory, idle CPU, and a storm of starts and stops.
//!
//! The bridges are there, but nothing stands behind their ports: so bindings are not measured, only rights by address.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::harness::{Goal, Report, Sample, milliseconds, runtime, sh};
use crate::product::{Daemon, PATIENCE, Setup};
use crate::scene::{Host, address, bridge_name};

const SOCKET: &str = "/run/engine.sock";
const SERVICES: usize = 100;
/// Starts, and as many stops, in a second.
const STORM: u32 = 1000;

pub(crate) fn run(report: &mut Report) {
    let runtime = runtime();
    let _within = runtime.enter();
    let setup = Setup::new(Path::new(SOCKET), &policy());
    let sizes: &[usize] = report.effort.of(&[50, 100], &[100, 1000, 10_000]);
    let (mut starts, mut memories, mut idles, mut lates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for containers in sizes.iter().copied() {
        let host = Host {
            endpoints: containers,
            services: SERVICES,
        };
        bridges(host);
        let engine = Engine::start(host, Path::new(SOCKET));
        let goal = |goal: Goal| if containers == 10_000 { goal } else { Goal::None };

        let mut times = Vec::new();
        for _ in 1..report.effort.of(1, 5) {
            times.push(setup.start().1);
        }
        let (daemon, time) = setup.start();
        times.push(time);
        let times = Sample::new(times);
        starts.push((containers, times.median()));
        let name = format!("daemon, start to enforced: {containers} containers");
        report.figure(&name, "ms", &times, None, goal(Goal::AtMost(2000.0)));
        assert!(
            agree(&engine),
            "the kernel holds other addresses than those that run"
        );

        // What seems not to fit is looked at again for a while.
        thread::sleep(report.effort.of(Duration::from_secs(1), Duration::from_secs(8)));
        let memory = Sample::one(daemon.resident());
        memories.push((containers, memory.median()));
        let name = format!("daemon, resident: {containers} containers");
        report.figure(&name, "MiB", &memory, None, goal(Goal::AtMost(64.0)));
        // With one listing of the slow timer, which comes the later the more containers there are.
        let time =
            Duration::from_secs(1) + Duration::from_secs(60) * u32::try_from(1 + containers / 2000).unwrap();
        let time = report.effort.of(Duration::from_secs(1), time);
        let before = daemon.cpu();
        thread::sleep(time);
        let idle = Sample::one((daemon.cpu() - before) / time.as_secs_f64() * 100.0);
        idles.push((containers, idle.median()));
        let name = format!("daemon, idle: {containers} containers");
        report.figure(&name, "% CPU", &idle, None, goal(Goal::AtMost(0.2)));

        lates.push((containers, storm(report, &daemon, &engine, containers)));
        let memory = Sample::one(daemon.resident());
        let name = format!("daemon, resident after a storm: {containers} containers");
        report.figure(&name, "MiB", &memory, None, Goal::None);
    }
    report.growth("daemon, start to enforced", &starts, Goal::AtMost(1.2));
    report.growth("daemon, resident", &memories, Goal::AtMost(1.2));
    report.growth("daemon, idle", &idles, Goal::AtMost(1.2));
    report.growth("daemon, storm, longest behind", &lates, Goal::None);
}

/// Every service may be dialled by the world: such a policy calls for no network of ours.
fn policy() -> String {
    let mut text = "cofferdam: 1\nsegment: bench\nservices:\n".to_owned();
    for number in 0..SERVICES {
        writeln!(
            text,
            "  s{number}: {{ select: {{ labels: {{ service: s{number} }} }} }}"
        )
        .unwrap();
    }
    text.push_str("allow:\n");
    for number in 0..SERVICES {
        writeln!(text, "  - {{ from: world, to: s{number}, ports: [8080] }}").unwrap();
    }
    text
}

fn bridges(host: Host) {
    for number in 0..host.networks() {
        let name = bridge_name(number);
        sh(&format!(
            "ip link add {name} type bridge 2>/dev/null || exit 0
             ip addr add 172.{}.0.1/16 dev {name}; ip link set {name} up",
            16 + number
        ));
    }
}

/// Whether the kernel has rights for the addresses of running containers, and for no others.
fn agree(engine: &Engine) -> bool {
    let listed = sh("nft list map inet cofferdam into4");
    let parts = listed.split(|it: char| !(it.is_ascii_digit() || it == '.'));
    let held: BTreeSet<Ipv4Addr> = parts.filter_map(|it| it.parse().ok()).collect();
    let running: BTreeSet<Ipv4Addr> = engine.running().into_iter().map(address).collect();
    held == running
}

/// Starts and stops in turn; afterwards every tenth container stays stopped. Returns the longest time behind, in ms.
fn storm(report: &mut Report, daemon: &Daemon, engine: &Engine, containers: usize) -> f64 {
    let seconds = report.effort.of(1, 10);
    while daemon.passes.try_recv().is_ok() {}
    let _before = engine.asked();
    let cpu = daemon.cpu();
    let begun = Instant::now();
    for number in 0..STORM * seconds {
        let at = usize::try_from(number).unwrap();
        engine.stop(at % containers);
        engine.begin((at + containers / 2) % containers);
        let due = Duration::from_secs(1) * (number + 1) / STORM;
        thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    let rate = f64::from(STORM * seconds) / begun.elapsed().as_secs_f64();
    for number in 0..containers {
        match number % 10 {
            0 => engine.stop(number),
            _ => engine.begin(number),
        }
    }
    let told = Instant::now();
    while !agree(engine) {
        assert!(
            told.elapsed() < PATIENCE,
            "an event was lost: the kernel holds other addresses than those that run"
        );
        thread::sleep(Duration::from_millis(20));
    }
    let settled = milliseconds(told.elapsed());
    let cpu = (daemon.cpu() - cpu) / begun.elapsed().as_secs_f64() * 100.0;
    let asked = engine.asked();
    let passes = daemon
        .passes
        .try_iter()
        .filter_map(|it| it["elapsed_us"].as_f64());
    let longest = passes.fold(0.0, f64::max);
    let mut figure = |what: &str, unit: &str, value: f64| {
        let name = format!("daemon, storm, {what}: {containers} containers");
        report.figure(&name, unit, &Sample::one(value), None, Goal::None);
    };
    figure("starts and as many stops", "1/s", rate);
    figure("longest from event to reading", "ms", milliseconds(asked.behind));
    figure("last event to kernel", "ms", settled);
    figure("longest pass", "ms", longest / 1000.0);
    figure("listings that it needed", "", asked.listings as f64);
    figure("inspections", "", asked.inspections as f64);
    figure("load", "% CPU", cpu);
    milliseconds(asked.behind)
}
