//! The main property in a real kernel: of generated policies, each loaded as the daemon loads it, real packets pass exactly
//! where the policy allows them. Containers are network namespaces on bridges that are named and addressed as Docker's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::daemon::executor::Kernel;
use cofferdam::kernel::conntrack::Conntrack;
use cofferdam::kernel::links::Snapshot;
use cofferdam::model::Unmanaged;
use cofferdam::net::{Traffic, Transport};
use cofferdam::plan::Planner;
use cofferdam::policy::{self, Policy};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use draft::{At, Draft, End, OUTSIDE, PolicyDraft, endpoint, expected, policies, write_policy};
use flow::{Outcome, Target, exchange};
use netns::sh;
use socket::Proto;
use stage::{PLACES, build, enter, namespace_of, tell_links};

#[path = "semantics/draft.rs"]
mod draft;
#[expect(dead_code, reason = "shared with the probe")]
#[path = "probe/flow.rs"]
mod flow;
mod netns;
#[expect(dead_code, reason = "shared with the probe")]
#[path = "probe/socket.rs"]
mod socket;
#[path = "semantics/stage.rs"]
mod stage;

const POLICIES: usize = 40;
/// Well below the limit of the namespace, whatever the machine.
const LONGEST: Duration = Duration::from_secs(70);
const DENIED_AFTER: Duration = Duration::from_millis(300);
/// A packet that is lost under load is tried again; one that must not pass is tried once in each policy.
const ATTEMPTS: usize = 4;
const TCP: [u16; 3] = [80, 81, 82];
const UDP: [u16; 2] = [80, 82];
const GATEWAYS: [&str; 4] = ["172.18.0.1", "172.19.0.1", "fd00:0::1", "fd00:1::1"];

/// Every end that packets start from or go to.
fn ends() -> Vec<End> {
    let end = |address: &str, at| End {
        address: address.parse().unwrap(),
        at,
    };
    let outside = OUTSIDE.iter().map(|address| end(address, At::Outside));
    let host = GATEWAYS.iter().map(|address| end(address, At::Host));
    let containers = PLACES.into_iter().enumerate().flat_map(|(container, network)| {
        let at = At::Container { container, network };
        endpoint(container, network)
            .addresses()
            .map(move |address| End { address, at })
    });
    outside.chain(host).chain(containers).collect()
}

/// Echo servers on every address; they end with the test.
fn serve(ends: &[End]) {
    for end in ends.iter().copied() {
        for port in TCP {
            thread::spawn(move || {
                enter(end.at);
                let listener = TcpListener::bind((end.address, port)).unwrap();
                for stream in listener.incoming() {
                    thread::spawn(move || echo(stream.unwrap()));
                }
            });
        }
        for port in UDP {
            thread::spawn(move || {
                enter(end.at);
                let socket = UdpSocket::bind((end.address, port)).unwrap();
                let mut buffer = [0; 2048];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    let _unreachable = socket.send_to(&buffer[..length], peer);
                }
            });
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 2048];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 || stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    from: End,
    to: End,
    target: Target,
    traffic: Traffic,
}

/// Every kind of packet between every two ends of which one is a container. A source has one address of a family.
fn probes(ends: &[End]) -> Vec<Probe> {
    let first = |end: &End| {
        let same = |other: &&End| {
            namespace_of(other.at) == namespace_of(end.at) && other.address.is_ipv4() == end.address.is_ipv4()
        };
        ends.iter().find(same).unwrap().address == end.address
    };
    let is_container = |end: &End| matches!(end.at, At::Container { .. });
    let mut probes = Vec::new();
    for from in ends.iter().filter(|end| first(end)) {
        for to in ends {
            let fits = from.address.is_ipv4() == to.address.is_ipv4()
                && namespace_of(from.at) != namespace_of(to.at);
            if !fits || !(is_container(from) || is_container(to)) {
                continue;
            }
            let mut add = |proto, port, traffic| {
                let address = to.address;
                let target = Target { proto, address, port };
                probes.push(Probe {
                    from: *from,
                    to: *to,
                    target,
                    traffic,
                });
            };
            for port in TCP {
                add(Proto::Tcp, port, Traffic::Port(Transport::Tcp, port));
            }
            for port in UDP {
                add(Proto::Udp, port, Traffic::Port(Transport::Udp, port));
            }
            let request = if to.address.is_ipv4() { 8 } else { 128 };
            add(Proto::Icmp, 0, Traffic::Icmp(request));
        }
    }
    probes
}

fn passes(probe: Probe, patience: Duration) -> bool {
    match exchange(probe.target, patience) {
        Outcome::Answered => true,
        Outcome::Denied(_) => false,
        Outcome::Unable(why) => panic!("{probe:?} could not be tried: {why}"),
    }
}

/// Sends them all at once, each source's from its namespace; returns which passed.
fn send(probes: &[Probe]) -> Vec<bool> {
    let sent: Vec<_> = probes
        .iter()
        .map(|probe| {
            let probe = *probe;
            thread::spawn(move || {
                enter(probe.from.at);
                passes(probe, DENIED_AFTER)
            })
        })
        .collect();
    sent.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// The packets that did not go as expected; those that ought to pass get more chances.
fn wrong(probes: &[Probe], expected: impl Fn(&Probe) -> bool) -> Vec<(Probe, bool)> {
    let mut wrong: Vec<(Probe, bool)> = Vec::new();
    let mut left = probes.to_vec();
    for attempt in 0..ATTEMPTS {
        let passed = send(&left);
        let mut again = Vec::new();
        for (probe, passed) in left.into_iter().zip(passed) {
            match (passed, expected(&probe)) {
                (true, false) => wrong.push((probe, true)),
                (false, true) if attempt + 1 < ATTEMPTS => again.push(probe),
                (false, true) => wrong.push((probe, false)),
                _ => {}
            }
        }
        left = again;
        if left.is_empty() {
            break;
        }
    }
    wrong
}

fn planned(policy: Policy, containers: &[Draft], unmanaged: Unmanaged, links: &Snapshot) -> Planner {
    let mut planner = draft::planner(policy, containers, unmanaged);
    tell_links(&mut planner, links);
    // Asked after the ports are there.
    let now = planner.moment();
    planner.reset(draft::listing(containers), now);
    planner
}

fn generated(runner: &mut TestRunner) -> (PolicyDraft, Vec<Draft>, bool) {
    let services = prop::collection::btree_set(0..draft::SERVICES.len(), 0..3);
    let strategy = (
        policies(),
        prop::collection::vec(services, PLACES.len()),
        any::<bool>(),
    );
    let (policy, services, denied) = strategy.new_tree(runner).unwrap().current();
    let containers = services
        .into_iter()
        .zip(PLACES.map(|network| BTreeSet::from([network])));
    (policy, containers.collect(), denied)
}

#[test]
fn real_packets_pass_where_generated_policies_allow_them() {
    netns::run("real_packets_pass_where_generated_policies_allow_them", || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(compare());
    });
}

async fn compare() {
    let started = Instant::now();
    build();
    let ends = ends();
    serve(&ends);
    let probes = probes(&ends);
    let mut kernel = Kernel::open().unwrap();
    let mut conntrack = Conntrack::open().unwrap();
    let links = kernel.links().list().await.unwrap();
    thread::sleep(Duration::from_millis(300));

    // Without tables everything passes: what does not later is denied by them.
    let lost = wrong(&probes, |_| true);
    assert!(lost.is_empty(), "without rules, these did not pass: {lost:?}");

    let mut runner = TestRunner::new(ProptestConfig::default());
    let (mut count, mut passed, mut denied, mut reported) = (0, 0, 0, false);
    while count < POLICIES && started.elapsed() < LONGEST {
        let (draft, containers, closed) = generated(&mut runner);
        let files = write_policy(&draft);
        let loaded = policy::load(&files).unwrap();
        let unmanaged = if closed { Unmanaged::Deny } else { Unmanaged::Allow };
        let mut planner = planned(loaded.policy, &containers, unmanaged, &links);
        let plan = planner.plan();
        let carried_out = kernel.carry_out(&plan, &mut planner).await;
        let text: Vec<_> = files
            .iter()
            .map(|file| String::from_utf8_lossy(&file.bytes))
            .collect();
        assert!(
            carried_out.is_ok(),
            "policy {count} was not loaded: {carried_out:?}\n{containers:?}\n{unmanaged:?}\n{}",
            text.join("\n")
        );
        // A UDP socket may get the port of an earlier one, whose connection the policy before permitted.
        let open = conntrack.flows().unwrap();
        conntrack.delete_all(&open).unwrap();
        let allowed = |probe: &Probe| expected(&planner, &probe.from, &probe.to, probe.traffic);
        let wrong = tokio::task::block_in_place(|| wrong(&probes, allowed));
        assert!(
            wrong.is_empty(),
            "{} packets (the flag says whether it passed), first {:?}\n{containers:?}\n{unmanaged:?}\n{}",
            wrong.len(),
            &wrong[..wrong.len().min(5)],
            text.join("\n")
        );
        // What packets put into our tables is no change by others, as an element of somebody's is.
        reported |= sh("nft list set inet cofferdam senders").contains("elements");
        assert_eq!(kernel.difference(&planner).unwrap(), None);
        if count == 0 {
            sh("nft add element inet cofferdam guarded '{ somebody0 }'");
            assert_eq!(kernel.difference(&planner).unwrap(), Some("elements"));
        }
        passed += probes.iter().filter(|probe| allowed(probe)).count();
        denied += probes.iter().filter(|probe| !allowed(probe)).count();
        count += 1;
    }
    println!("{count} policies, {passed} packets passed and {denied} were denied, as declared");
    assert!(count >= 12, "only {count} policies in {LONGEST:?}");
    assert!(passed > 0 && denied > 0 && reported);
}
