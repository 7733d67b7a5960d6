//! Which connections are planned, what evidence says, and what becomes of cells and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::plan::{Plan, Probe, Way, plan};
use super::ports::tried;
use super::scene::{Declared, Group, LABEL, Scene, Spot, Subject, is_excused};
use super::verdict::{
    Agreement, Evidence, Mark, Real, Seen, Tested, Trace, agreement, cells, doubtful, real, tested,
};
use crate::inventory::{
    Container, ContainerId, Endpoint, Facts, Lifecycle, MANAGED_LABEL, Network, NetworkId, NetworkKind,
    NetworkMode, Published, SERVICE_LABEL,
};
use crate::model::{Rights, standing};
use crate::net::{Mac, Transport};
use crate::policy::{Peer, Policy, SourceFile, load};

const POLICY: &str = "cofferdam: 1
segment: s
services:
  web: { select: { name: \"web-*\" } }
  db: { select: { name: db } }
allow:
  - { from: web, to: db, ports: [5432, 9000-9002, 53/udp, icmp] }
  - { from: host, to: web, ports: [80] }
  - { from: world, to: web, ports: [80] }
tests:
  reachable: [ \"web -> db:5432\", \"world -> web:80\" ]
  unreachable: [ \"db -> web:any\" ]
";

fn policy(text: &str) -> Policy {
    let files = [SourceFile {
        path: "s.yaml".to_owned(),
        bytes: text.into(),
    }];
    load(&files).unwrap().policy
}

fn network(name: &str, subnet: &str) -> (NetworkId, Network) {
    let id = NetworkId(name.into());
    let network = Network {
        id: id.clone(),
        name: name.to_owned(),
        kind: NetworkKind::Bridge(format!("br-{name}").parse().unwrap()),
        subnets: vec![subnet.parse().unwrap()],
        internal: false,
        labels: BTreeMap::new(),
    };
    (id, network)
}

/// A container at these addresses, by network.
fn subject(policy: &Policy, name: &str, at: &[(&str, [u8; 4])], served: &[(Transport, u16)]) -> Subject {
    let endpoints = at.iter().map(|(network, address)| {
        let endpoint = Endpoint {
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            ipv4: Some(Ipv4Addr::from(*address)),
            ipv6: None,
        };
        (NetworkId((*network).into()), endpoint)
    });
    let container = Container {
        id: ContainerId(name.into()),
        name: name.to_owned(),
        image: "image".into(),
        labels: Default::default(),
        lifecycle: Lifecycle::Running,
        network_mode: NetworkMode::Own,
        endpoints: endpoints.collect(),
        published: BTreeSet::new(),
        facts: Facts {
            powers: Some(BTreeSet::new()),
            unreadable: false,
        },
    };
    Subject {
        standing: standing(policy, &container),
        container,
        addresses: at.iter().map(|(_, address)| IpAddr::from(*address)).collect(),
        served: served.iter().copied().collect(),
    }
}

fn scene(subjects: impl Fn(&Policy) -> Vec<Subject>) -> Scene {
    let policy = policy(POLICY);
    let subjects = subjects(&policy);
    Scene {
        rights: Rights {
            policy,
            ..Rights::default()
        },
        subjects,
        networks: [network("n", "10.0.0.0/24"), network("m", "10.0.1.0/24")].into(),
        host: ["10.0.0.1", "10.0.1.1"].map(|it| it.parse().unwrap()).into(),
        ..Scene::default()
    }
}

fn shop() -> Scene {
    scene(|policy| {
        vec![
            subject(policy, "db", &[("n", [10, 0, 0, 3])], &[(Transport::Tcp, 5432)]),
            subject(policy, "web-1", &[("n", [10, 0, 0, 2])], &[]),
        ]
    })
}

fn between(plan: &Plan, from: Spot, to: Spot) -> Vec<(Transport, u16, Declared)> {
    let probes = plan.probes.iter().filter(|it| (it.from, it.to) == (from, to));
    probes.map(|it| (it.transport, it.port, it.declared)).collect()
}

fn seen(evidence: Evidence, trace: Trace) -> Seen {
    Seen {
        evidence,
        trace,
        elapsed: Duration::from_millis(1),
    }
}

/// As if the kernel did what is declared.
fn as_declared(plan: &Plan) -> Vec<Seen> {
    let one = |probe: &Probe| match probe.declared.passes() {
        true => seen(Evidence::Connected, Trace::Passed),
        false => seen(Evidence::Silent, Trace::Missing),
    };
    plan.probes.iter().map(one).collect()
}

#[test]
fn every_declared_port_its_neighbours_and_some_undeclared_ones_are_tried() {
    let scene = shop();
    let (db, web) = (Spot::Container(0), Spot::Container(1));
    let plan = plan(&scene, Some(2));
    let (tcp, udp) = (Transport::Tcp, Transport::Udp);
    let (open, closed) = (Declared::Open, Declared::Closed);
    assert_eq!(
        between(&plan, web, db),
        [
            (tcp, 1, closed),
            (tcp, 5432, open),
            (tcp, 8999, closed),
            (tcp, 9000, open),
            (tcp, 9002, open),
            (tcp, 9003, closed),
            (tcp, 65535, closed),
            (udp, 53, open),
            (udp, 65535, closed),
        ]
    );
    assert!(
        between(&plan, db, web)
            .iter()
            .all(|(_, _, declared)| *declared == closed)
    );
    assert!(between(&plan, Spot::Host, web).contains(&(tcp, 80, open)));
    assert!(between(&plan, Spot::Host, db).contains(&(tcp, 5432, closed)));
    assert!(!between(&plan, web, Spot::Host).is_empty());
    assert_eq!(plan.not_tried.edges_from_outside, 1);
    assert_eq!(plan.not_tried.edges_with_other_protocols, 1);
    assert_eq!(plan.unjoined, []);
}

#[test]
fn a_container_that_listens_everywhere_is_not_tried_everywhere() {
    let served: BTreeSet<_> = (1..=u16::MAX).map(|port| (Transport::Tcp, port)).collect();
    let found = tried(&policy(POLICY), |peer| matches!(peer, Peer::Service(_)), &served);
    assert!(found.ports.len() < 140, "{}", found.ports.len());
    assert!(found.ports.contains(&(Transport::Tcp, 5432)), "what is declared");
    assert!(found.cut > 65_000);
    // Sockets of clients are not served.
    let client = BTreeSet::from([(Transport::Udp, 40_000), (Transport::Udp, 5353)]);
    let found = tried(&Policy::default(), |_| true, &client);
    assert!(found.ports.contains(&(Transport::Udp, 5353)));
    assert!(!found.ports.contains(&(Transport::Udp, 40_000)));
}

#[test]
fn replicas_take_turns_and_what_is_left_out_is_said() {
    let scene = scene(|policy| {
        let web = |number: u8| {
            let name = format!("web-{number}");
            subject(policy, &name, &[("n", [10, 0, 0, 10 + number])], &[])
        };
        vec![
            subject(policy, "db", &[("n", [10, 0, 0, 3])], &[]),
            web(1),
            web(2),
            web(3),
        ]
    });
    let pairs = |plan: &Plan| -> BTreeSet<(Spot, Spot)> {
        let networks = plan.probes.iter().filter(|it| matches!(it.way, Way::Network(_)));
        networks.map(|it| (it.from, it.to)).collect()
    };
    let c = Spot::Container;
    let some = plan(&scene, Some(2));
    assert_eq!(
        pairs(&some),
        BTreeSet::from([
            (c(0), c(1)),
            (c(0), c(2)),
            (c(1), c(0)),
            (c(2), c(0)),
            (c(1), c(2)),
            (c(2), c(1)),
        ])
    );
    let web = Group::Managed("s/web".to_owned());
    assert_eq!(some.sampled, BTreeMap::from([(web, (2, 3))]));
    let all = plan(&scene, None);
    assert_eq!(pairs(&all).len(), 12);
    assert!(all.sampled.is_empty());
}

#[test]
fn a_way_round_is_tried_for_what_is_closed_and_only_where_nothing_leaves_the_host() {
    let apart = |gateways: &[&str]| {
        let mut scene = scene(|policy| {
            let mut web = subject(policy, "web-1", &[("n", [10, 0, 0, 2])], &[]);
            web.container.published.insert(Published {
                address: IpAddr::from([0, 0, 0, 0]),
                transport: Transport::Tcp,
                host_port: 8080,
                container_port: 80,
            });
            let db = subject(policy, "db", &[("m", [10, 0, 1, 3])], &[(Transport::Tcp, 5432)]);
            vec![db, web]
        });
        scene.host = gateways.iter().map(|it| it.parse().unwrap()).collect();
        plan(&scene, Some(2))
    };
    let both = apart(&["10.0.0.1", "10.0.1.1"]);
    let ways = |plan: &Plan| -> BTreeSet<(Spot, Spot, Way)> {
        let probes = plan.probes.iter().filter(|it| it.way != Way::Host);
        probes.map(|it| (it.from, it.to, it.way.clone())).collect()
    };
    let (db, web) = (Spot::Container(0), Spot::Container(1));
    assert_eq!(
        ways(&both),
        BTreeSet::from([(db, web, Way::Routed), (db, web, Way::Published)])
    );
    // Declared, and no network in common.
    assert!(both.unjoined.iter().any(|it| (it.from, it.to) == (web, db)));
    assert!(ways(&apart(&["10.0.1.1"])).iter().all(|it| it.2 != Way::Routed));
}

#[test]
fn callers_are_apart_on_the_network_of_a_third_service() {
    let mut scene = shop();
    let labels = [(MANAGED_LABEL, "true"), (SERVICE_LABEL, "s/other")];
    let network = scene.networks.get_mut(&NetworkId("n".into())).unwrap();
    network.labels = labels
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let plan = plan(&scene, Some(2));
    let found = between(&plan, Spot::Container(1), Spot::Container(0));
    assert!(
        found.iter().all(|(_, _, declared)| *declared == Declared::Closed),
        "{found:?}"
    );
    assert!(!plan.unjoined.is_empty());
}

#[test]
fn what_evidence_says() {
    let (tcp, udp) = (Transport::Tcp, Transport::Udp);
    let unreachable = || Evidence::Unreachable("no route to host".to_owned());
    for (transport, evidence, trace, says) in [
        (tcp, Evidence::Connected, Trace::Passed, Real::Open),
        (tcp, Evidence::Refused, Trace::Missing, Real::Open),
        (tcp, Evidence::Silent, Trace::Missing, Real::Closed),
        (tcp, Evidence::Silent, Trace::Unwatched, Real::Closed),
        (tcp, Evidence::Silent, Trace::Passed, Real::Open),
        (tcp, unreachable(), Trace::Missing, Real::Closed),
        (udp, Evidence::Answered, Trace::Unwatched, Real::Open),
        (udp, Evidence::Silent, Trace::Passed, Real::Open),
        (udp, Evidence::Silent, Trace::Missing, Real::Closed),
        (udp, Evidence::Silent, Trace::Unwatched, Real::Unknown),
        (
            tcp,
            Evidence::Failed(String::new()),
            Trace::Missing,
            Real::Unknown,
        ),
    ] {
        let found = seen(evidence, trace);
        assert_eq!(real(transport, &found), says, "{transport} {found:?}");
    }
    assert_eq!(agreement(Declared::Closed, Real::Open), Agreement::Leaks);
    assert_eq!(agreement(Declared::Audited, Real::Open), Agreement::Agrees);
    assert_eq!(agreement(Declared::Open, Real::Closed), Agreement::Blocked);
    assert_eq!(agreement(Declared::Open, Real::Unknown), Agreement::Unknown);
}

#[test]
fn what_should_pass_and_does_not_is_tried_again_but_no_leak_is() {
    let plan = plan(&shop(), Some(2));
    let of = |declared| plan.probes.iter().find(|it| it.declared == declared).unwrap();
    let silent = seen(Evidence::Silent, Trace::Missing);
    assert!(doubtful(of(Declared::Open), &silent));
    assert!(!doubtful(of(Declared::Closed), &silent));
    let connected = seen(Evidence::Connected, Trace::Passed);
    assert!(!doubtful(of(Declared::Closed), &connected));
}

#[test]
fn cells_and_tests_tell_what_differs() {
    let scene = shop();
    let plan = plan(&scene, Some(2));
    let mut found = as_declared(&plan);
    let marks = |found: &[Seen]| -> BTreeSet<Mark> {
        cells(&scene, &plan, found)
            .values()
            .map(|cell| cell.mark())
            .collect()
    };
    let results = |found: &[Seen]| -> Vec<Tested> {
        let tests = scene.rights.policy.tests.iter();
        tests.map(|test| tested(test, &scene, &plan, found)).collect()
    };
    assert_eq!(marks(&found), BTreeSet::from([Mark::Open, Mark::Closed]));
    assert_eq!(results(&found), [Tested::Holds, Tested::NotTried, Tested::Holds]);
    let number = |from, to, port| {
        let is = |it: &Probe| (it.from, it.to, it.port) == (from, to, port);
        plan.probes.iter().position(is).unwrap()
    };
    let (db, web) = (Spot::Container(0), Spot::Container(1));
    let leak = number(db, web, 80);
    found[leak] = seen(Evidence::Refused, Trace::Passed);
    let wall = number(web, db, 5432);
    found[wall] = seen(Evidence::Silent, Trace::Missing);
    let differing: Vec<String> = cells(&scene, &plan, &found)
        .iter()
        .filter(|(_, cell)| cell.mark().differs())
        .map(|(place, cell)| format!("{} {} {:?}", place.from, place.port, cell.mark()))
        .collect();
    assert_eq!(differing, ["s/web 5432 Blocked", "s/db 80 Leaks"]);
    assert_eq!(
        results(&found),
        [Tested::Fails(wall), Tested::NotTried, Tested::Fails(leak)]
    );
}

#[test]
fn only_the_word_off_excuses() {
    let policy = policy(POLICY);
    let mut container = subject(&policy, "db", &[], &[]).container;
    assert!(!is_excused(&container));
    container.labels.insert(LABEL.into(), "on".into());
    assert!(!is_excused(&container));
    container.labels.insert(LABEL.into(), "off".into());
    assert!(is_excused(&container));
}
