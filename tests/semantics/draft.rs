//! Generated policies, as text, and the containers that they are about.
#![allow(dead_code, reason = "each test executable uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use cofferdam::inventory::links::{Peer, Port};
use cofferdam::inventory::{
    Container, ContainerId, Endpoint, Facts, Lifecycle, Listing, Network, NetworkId, NetworkKind, NetworkMode,
};
use cofferdam::model::{Rights, Standing, Unmanaged};
use cofferdam::net::{Family, IfName, Mac, Traffic};
use cofferdam::plan::Planner;
use cofferdam::plan::compile::Options;
use cofferdam::plan::networks::Pools;
use cofferdam::policy::{Party, Policy, SourceFile};
use proptest::prelude::*;

/// A container's services, and the networks that it is on.
pub(crate) type Draft = (BTreeSet<usize>, BTreeSet<usize>);

pub(crate) const STAMP: u32 = 1 << 30;
pub(crate) const OPTIONS: Options = Options {
    stamp: STAMP,
    nflog_group: 64,
};

/// `one` and `two` are segments; a service is a label that its containers carry.
pub(crate) const SERVICES: [(&str, &str); 5] = [
    ("one", "a"),
    ("one", "b"),
    ("one", "c"),
    ("two", "d"),
    ("two", "e"),
];
pub(crate) const PORTS: [&str; 8] = [
    "80",
    "81",
    "80/udp",
    "79-81/tcp",
    "udp",
    "icmp",
    "icmp/echo-request",
    "any",
];
pub(crate) const OUTSIDE: [&str; 4] = ["198.51.100.10", "198.51.100.77", "203.0.113.5", "2001:db8::5"];

#[derive(Debug, Clone)]
pub(crate) struct EdgeDraft {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) ports: Vec<usize>,
    /// Of [`ENDS`].
    pub(crate) end: usize,
}

/// What an edge's `until` is: nothing, a time before [`now`], a time after it.
pub(crate) const ENDS: [&str; 3] = [
    "",
    ", until: 2020-01-01T00:00:00Z",
    ", until: 2099-12-31T23:59:59+01:00",
];

/// A moment between the two ends: whatever the host's clock says, it is the same side of both.
pub(crate) fn now() -> jiff::Timestamp {
    "2026-12-01T00:00:00Z".parse().unwrap()
}

#[derive(Debug, Clone)]
pub(crate) struct PolicyDraft {
    pub(crate) edges: Vec<EdgeDraft>,
    /// Services in audit.
    pub(crate) audited: BTreeSet<usize>,
}

/// The peers of an edge: the services, then world, host and an external.
pub(crate) const PEERS: usize = SERVICES.len() + 3;

pub(crate) fn peer(index: usize, at_home: &str) -> String {
    match SERVICES.get(index) {
        Some((segment, name)) if *segment == at_home => (*name).to_owned(),
        Some((segment, name)) => format!("{segment}/{name}"),
        None => ["world", "host", "out"][index - SERVICES.len()].to_owned(),
    }
}

/// The segment that an edge stands in; `None` where it has no service end.
pub(crate) fn home(edge: &EdgeDraft) -> Option<&'static str> {
    let service = SERVICES.get(edge.to).or_else(|| SERVICES.get(edge.from))?;
    Some(service.0)
}

pub(crate) fn write_policy(draft: &PolicyDraft) -> Vec<SourceFile> {
    ["one", "two"]
        .map(|segment| {
            let mut text = format!("cofferdam: 1\nsegment: {segment}\nservices:\n");
            for (index, (_, name)) in SERVICES.iter().enumerate().filter(|(_, (of, _))| *of == segment) {
                let mode = if draft.audited.contains(&index) { ", mode: audit" } else { "" };
                writeln!(text, "  {name}: {{ select: {{ labels: {{ {segment}-{name}: \"yes\" }} }}{mode} }}").unwrap();
            }
            text.push_str(
                "externals:\n  out: { cidrs: [198.51.100.0/24, \"2001:db8::/32\"], except: [198.51.100.64/26] }\n",
            );
            let mut list = String::new();
            for edge in draft.edges.iter().filter(|edge| home(edge) == Some(segment)) {
                let ports: Vec<&str> = edge.ports.iter().map(|port| PORTS[*port]).collect();
                let (from, to) = (peer(edge.from, segment), peer(edge.to, segment));
                writeln!(list, "  - {{ from: {from}, to: {to}, ports: [{}]{} }}", ports.join(", "), ENDS[edge.end])
                    .unwrap();
            }
            if !list.is_empty() {
                write!(text, "allow:\n{list}").unwrap();
            }
            SourceFile { path: format!("{segment}.yaml"), bytes: text.into_bytes() }
        })
        .into()
}

pub(crate) fn mac(container: usize, network: usize) -> Mac {
    Mac([
        2,
        0x42,
        0,
        0,
        u8::try_from(network).unwrap(),
        u8::try_from(container).unwrap() + 10,
    ])
}

pub(crate) fn endpoint(container: usize, network: usize) -> Endpoint {
    Endpoint {
        mac: Some(mac(container, network)),
        ipv4: Some(
            format!("172.{}.0.{}", 18 + network, container + 10)
                .parse()
                .unwrap(),
        ),
        ipv6: Some(format!("fd00:{network}::{:x}", container + 10).parse().unwrap()),
    }
}

pub(crate) const NETWORKS: usize = 2;

pub(crate) fn bridge(network: usize) -> IfName {
    format!("br-{network:012x}").parse().unwrap()
}

/// Containers with these labels, each on these networks.
pub(crate) fn listing(containers: &[(BTreeSet<usize>, BTreeSet<usize>)]) -> Listing {
    let network = |index: usize| Network {
        id: NetworkId(format!("net{index}").into()),
        name: format!("net{index}"),
        kind: NetworkKind::Bridge(bridge(index)),
        subnets: vec![
            format!("172.{}.0.0/16", 18 + index).parse().unwrap(),
            format!("fd00:{index}::/64").parse().unwrap(),
        ],
        internal: false,
        labels: BTreeMap::new(),
    };
    let container = |(index, (services, networks)): (usize, &(BTreeSet<usize>, BTreeSet<usize>))| Container {
        id: ContainerId(format!("container{index}").into()),
        name: format!("c{index}"),
        image: "image".into(),
        labels: services
            .iter()
            .map(|service| {
                (
                    format!("{}-{}", SERVICES[*service].0, SERVICES[*service].1).into(),
                    "yes".into(),
                )
            })
            .collect(),
        lifecycle: Lifecycle::Running,
        network_mode: NetworkMode::Own,
        endpoints: networks
            .iter()
            .map(|network| {
                (
                    NetworkId(format!("net{network}").into()),
                    endpoint(index, *network),
                )
            })
            .collect(),
        published: BTreeSet::new(),
        facts: Facts::default(),
    };
    Listing {
        containers: containers.iter().enumerate().map(container).collect(),
        networks: (0..NETWORKS).map(network).collect(),
        ..Listing::default()
    }
}

pub(crate) fn port_index(container: usize, network: usize) -> u32 {
    u32::try_from(100 + container * NETWORKS + network).unwrap()
}

pub(crate) fn planner(
    policy: Policy,
    containers: &[(BTreeSet<usize>, BTreeSet<usize>)],
    unmanaged: Unmanaged,
) -> Planner {
    let pools = Pools {
        ipv4: "10.213.0.0/16".parse().unwrap(),
        ipv4_prefix: 24,
        ipv6: None,
    };
    let mut planner = Planner::new(
        OPTIONS,
        pools,
        Rights {
            policy,
            unmanaged,
            ..Rights::default()
        },
    );
    let index = |network: usize| u32::try_from(network + 2).unwrap();
    let bridges = (0..NETWORKS)
        .map(|network| (index(network), bridge(network)))
        .collect();
    let mut ports = BTreeMap::new();
    for (container, (_, networks)) in containers.iter().enumerate() {
        for network in networks {
            let port = port_index(container, *network);
            let name = format!("veth{port}").parse().unwrap();
            let peer = Some(Peer {
                namespace: i32::try_from(container).unwrap(),
                mac: mac(container, *network),
            });
            ports.insert(
                port,
                Port {
                    index: port,
                    name,
                    bridge: index(*network),
                    peer,
                },
            );
        }
    }
    planner.reset_links(bridges, ports);
    // The engine is asked after its ports are there: an earlier reading binds none of them.
    let now = planner.moment();
    planner.reset(listing(containers), now);
    planner
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) address: IpAddr,
    pub(crate) at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Container { container: usize, network: usize },
    Host,
    Outside,
}

pub(crate) fn policies() -> impl Strategy<Value = PolicyDraft> {
    let ports = prop::collection::vec(0..PORTS.len(), 1..3);
    // Most edges are for good.
    let end = prop_oneof![3 => Just(0), 1 => 1..ENDS.len()];
    let edge = (0..PEERS, 0..PEERS, ports, end)
        .prop_map(|(from, to, ports, end)| EdgeDraft { from, to, ports, end })
        .prop_filter("an edge has a service end", |edge| home(edge).is_some());
    let audited = prop_oneof![
        Just(BTreeSet::new()),
        prop::collection::btree_set(0..SERVICES.len(), 0..4)
    ];
    (prop::collection::vec(edge, 0..8), audited).prop_map(|(edges, audited)| PolicyDraft { edges, audited })
}

pub(crate) fn containers() -> impl Strategy<Value = Vec<(BTreeSet<usize>, BTreeSet<usize>)>> {
    let services = prop::collection::btree_set(0..SERVICES.len(), 0..3);
    let networks = prop::collection::btree_set(0..NETWORKS, 1..=NETWORKS);
    prop::collection::vec((services, networks), 2..6)
}

/// What the policy says, with what the settings say of unmanaged containers.
pub(crate) fn expected(planner: &Planner, from: &End, to: &End, traffic: Traffic) -> bool {
    let rights = Rights {
        policy: planner.rights().policy.at(now()),
        ..planner.rights().clone()
    };
    let standing = |end: &End| match end.at {
        At::Container { container, .. } => planner
            .standings()
            .get(&ContainerId(format!("container{container}").into())),
        At::Host | At::Outside => None,
    };
    let quarantined = |standing: Option<&Standing>| matches!(standing, Some(Standing::Quarantined(_)));
    let (source, target) = (standing(from), standing(to));
    if quarantined(source) || quarantined(target) {
        return false;
    }
    let party = |end: &End| match (standing(end), end.at) {
        (Some(Standing::Managed(identity)), _) => Party::Services(identity.services()),
        (Some(_), _) => Party::Unmanaged,
        (None, At::Host) => Party::Host,
        (None, _) => Party::Outside(end.address),
    };
    let verdict = rights.judge(&party(from), &party(to), traffic, Family::of(to.address));
    verdict.passes()
}
