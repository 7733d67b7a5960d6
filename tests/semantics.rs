//! The main property: for random policies, inventories and packets, what the policy allows is what the ruleset lets pass.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of #[test] functions"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use cofferdam::inventory::links::{Peer, Port};
use cofferdam::inventory::{
    Container, ContainerId, Endpoint, Lifecycle, Listing, Network, NetworkId, NetworkKind, NetworkMode,
};
use cofferdam::model::{Rights, Standing, Unmanaged};
use cofferdam::net::{Family, IfName, Mac, Traffic, Transport};
use cofferdam::plan::Planner;
use cofferdam::plan::compile::Options;
use cofferdam::plan::eval::{Body, Connection, Frame, Kernel, Packet, Verdict};
use cofferdam::plan::networks::Pools;
use cofferdam::plan::ruleset::{HookPoint, TableFamily};
use cofferdam::policy::{self, Party, Policy, SourceFile};
use proptest::prelude::*;

const STAMP: u32 = 1 << 30;
const OPTIONS: Options = Options {
    stamp: STAMP,
    nflog_group: 64,
};

/// `one` and `two` are segments; a service is a label that its containers carry.
const SERVICES: [(&str, &str); 5] = [
    ("one", "a"),
    ("one", "b"),
    ("one", "c"),
    ("two", "d"),
    ("two", "e"),
];
const PORTS: [&str; 8] = [
    "80",
    "81",
    "80/udp",
    "79-81/tcp",
    "udp",
    "icmp",
    "icmp/echo-request",
    "any",
];
const OUTSIDE: [&str; 4] = ["198.51.100.10", "198.51.100.77", "203.0.113.5", "2001:db8::5"];

#[derive(Debug, Clone)]
struct EdgeDraft {
    from: usize,
    to: usize,
    ports: Vec<usize>,
}

/// The peers of an edge: the services, then world, host and an external.
const PEERS: usize = SERVICES.len() + 3;

fn peer(index: usize, at_home: &str) -> String {
    match SERVICES.get(index) {
        Some((segment, name)) if *segment == at_home => (*name).to_owned(),
        Some((segment, name)) => format!("{segment}/{name}"),
        None => ["world", "host", "out"][index - SERVICES.len()].to_owned(),
    }
}

/// The segment that an edge stands in; `None` where it has no service end.
fn home(edge: &EdgeDraft) -> Option<&'static str> {
    let service = SERVICES.get(edge.to).or_else(|| SERVICES.get(edge.from))?;
    Some(service.0)
}

fn write_policy(edges: &[EdgeDraft]) -> Vec<SourceFile> {
    ["one", "two"]
        .map(|segment| {
            let mut text = format!("cofferdam: 1\nsegment: {segment}\nservices:\n");
            for (_, name) in SERVICES.iter().filter(|(of, _)| *of == segment) {
                writeln!(text, "  {name}: {{ select: {{ labels: {{ {segment}-{name}: \"yes\" }} }} }}").unwrap();
            }
            text.push_str(
                "externals:\n  out: { cidrs: [198.51.100.0/24, \"2001:db8::/32\"], except: [198.51.100.64/26] }\n",
            );
            let mut list = String::new();
            for edge in edges.iter().filter(|edge| home(edge) == Some(segment)) {
                let ports: Vec<&str> = edge.ports.iter().map(|port| PORTS[*port]).collect();
                let (from, to) = (peer(edge.from, segment), peer(edge.to, segment));
                writeln!(list, "  - {{ from: {from}, to: {to}, ports: [{}] }}", ports.join(", ")).unwrap();
            }
            if !list.is_empty() {
                write!(text, "allow:\n{list}").unwrap();
            }
            SourceFile { path: format!("{segment}.yaml"), bytes: text.into_bytes() }
        })
        .into()
}

fn mac(container: usize, network: usize) -> Mac {
    Mac([
        2,
        0x42,
        0,
        0,
        u8::try_from(network).unwrap(),
        u8::try_from(container).unwrap() + 10,
    ])
}

fn endpoint(container: usize, network: usize) -> Endpoint {
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

const NETWORKS: usize = 2;

fn bridge(network: usize) -> IfName {
    format!("br-{network:012x}").parse().unwrap()
}

/// Containers with these labels, each on these networks.
fn listing(containers: &[(BTreeSet<usize>, BTreeSet<usize>)]) -> Listing {
    let network = |index: usize| Network {
        id: NetworkId(format!("net{index}")),
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
        id: ContainerId(format!("container{index}")),
        name: format!("c{index}"),
        image: "image".to_owned(),
        labels: services
            .iter()
            .map(|service| {
                (
                    format!("{}-{}", SERVICES[*service].0, SERVICES[*service].1),
                    "yes".to_owned(),
                )
            })
            .collect(),
        lifecycle: Lifecycle::Running,
        network_mode: NetworkMode::Own,
        endpoints: networks
            .iter()
            .map(|network| (NetworkId(format!("net{network}")), endpoint(index, *network)))
            .collect(),
        published: BTreeSet::new(),
    };
    Listing {
        containers: containers.iter().enumerate().map(container).collect(),
        networks: (0..NETWORKS).map(network).collect(),
        ..Listing::default()
    }
}

fn port_index(container: usize, network: usize) -> u32 {
    u32::try_from(100 + container * NETWORKS + network).unwrap()
}

fn planner(
    policy: Policy,
    containers: &[(BTreeSet<usize>, BTreeSet<usize>)],
    unmanaged: Unmanaged,
) -> Planner {
    let pools = Pools {
        ipv4: "10.213.0.0/16".parse().unwrap(),
        ipv4_prefix: 24,
        ipv6: None,
    };
    let mut planner = Planner::new(OPTIONS, pools, Rights { policy, unmanaged });
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
    let began = planner.moment();
    planner.reset(listing(containers), began);
    planner
}

/// Sends a new connection's first packet all the way that it would take.
struct Wire<'a> {
    kernel: Kernel<'a>,
}

#[derive(Debug, Clone, Copy)]
struct End {
    address: IpAddr,
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Container { container: usize, network: usize },
    Host,
    Outside,
}

impl Wire<'_> {
    fn passes(&self, from: End, to: End, traffic: Traffic) -> bool {
        let interface = |end: End| match end.at {
            At::Container { network, .. } => Some(bridge(network)),
            At::Host => None,
            At::Outside => Some("eth0".parse().unwrap()),
        };
        let mut packet = Packet {
            frame: None,
            iifname: interface(from),
            oifname: interface(to),
            body: Body::Ip {
                source: from.address,
                destination: to.address,
                traffic,
            },
            connection: Connection::New,
            mark: 0,
            sent_by_root: true,
        };
        // Into the bridge.
        if let At::Container { container, network } = from.at {
            packet.frame = Some(Frame {
                iif: port_index(container, network),
                oif: 0,
                source: mac(container, network),
                destination: Mac([2, 0, 0, 0, 0, 1]),
            });
            if !self.accepts(TableFamily::Bridge, HookPoint::Prerouting, &mut packet) {
                return false;
            }
        }
        let point = match (from.at, to.at) {
            (At::Host, _) => HookPoint::Output,
            (_, At::Host) => HookPoint::Input,
            _ => HookPoint::Forward,
        };
        if !self.accepts(TableFamily::Inet, point, &mut packet) {
            return false;
        }
        // Out of the bridge.
        if let At::Container { container, network } = to.at {
            let same = matches!(from.at, At::Container { network: of, .. } if of == network);
            packet.frame = Some(Frame {
                iif: packet.frame.map_or(0, |frame| frame.iif),
                oif: port_index(container, network),
                source: packet.frame.map_or(Mac([2, 0, 0, 0, 0, 1]), |frame| frame.source),
                destination: mac(container, network),
            });
            if same && !self.accepts(TableFamily::Bridge, HookPoint::Forward, &mut packet) {
                return false;
            }
            return self.accepts(TableFamily::Bridge, HookPoint::Postrouting, &mut packet);
        }
        true
    }

    fn accepts(&self, family: TableFamily, point: HookPoint, packet: &mut Packet) -> bool {
        match self.kernel.hook(family, point, packet) {
            Verdict::Accept { mark } => {
                packet.mark = mark;
                true
            }
            Verdict::Drop => false,
        }
    }
}

fn traffic() -> impl Strategy<Value = Traffic> {
    prop_oneof![
        (0..2_usize, 79..83_u16)
            .prop_map(|(transport, port)| Traffic::Port([Transport::Tcp, Transport::Udp][transport], port)),
        Just(Traffic::Icmp(8)),
        Just(Traffic::Icmp(128)),
        Just(Traffic::Icmp(13)),
        Just(Traffic::Other(47)),
    ]
}

fn edges() -> impl Strategy<Value = Vec<EdgeDraft>> {
    let edge = (0..PEERS, 0..PEERS, prop::collection::vec(0..PORTS.len(), 1..3))
        .prop_map(|(from, to, ports)| EdgeDraft { from, to, ports })
        .prop_filter("an edge has a service end", |edge| home(edge).is_some());
    prop::collection::vec(edge, 0..8)
}

fn containers() -> impl Strategy<Value = Vec<(BTreeSet<usize>, BTreeSet<usize>)>> {
    let services = prop::collection::btree_set(0..SERVICES.len(), 0..3);
    let networks = prop::collection::btree_set(0..NETWORKS, 1..=NETWORKS);
    prop::collection::vec((services, networks), 2..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_ruleset_means_what_the_policy_means(
        edges in edges(),
        containers in containers(),
        traffic in prop::collection::vec(traffic(), 1..5),
        denied in any::<bool>(),
    ) {
        let files = write_policy(&edges);
        let loaded = policy::load(&files).map_err(|faults| {
            TestCaseError::fail(faults.render(&files, policy::Colour::Plain))
        })?;
        let unmanaged = if denied { Unmanaged::Deny } else { Unmanaged::Allow };
        let mut planner = planner(loaded.policy.clone(), &containers, unmanaged);
        planner.plan();
        let elements = planner.ledger().elements();
        let ruleset = &planner.structure().ruleset;
        prop_assert_eq!(cofferdam::plan::check::faults(ruleset), Vec::<String>::new());
        let wire = Wire { kernel: Kernel { ruleset, elements: &elements } };

        let mut ends: Vec<End> = OUTSIDE
            .iter()
            .map(|address| End { address: address.parse().unwrap(), at: At::Outside })
            .chain(["172.18.0.1", "fd00:0::1"].map(|it| End { address: it.parse().unwrap(), at: At::Host }))
            .collect();
        for (container, (_, networks)) in containers.iter().enumerate() {
            for network in networks {
                let at = At::Container { container, network: *network };
                ends.extend(endpoint(container, *network).addresses().map(|address| End { address, at }));
            }
        }
        for from in &ends {
            for to in &ends {
                let same_family = from.address.is_ipv4() == to.address.is_ipv4();
                let one_is_a_container =
                    [from, to].iter().any(|end| matches!(end.at, At::Container { .. }));
                let itself = match (from.at, to.at) {
                    (At::Container { container: a, .. }, At::Container { container: b, .. }) => a == b,
                    _ => false,
                };
                if !same_family || !one_is_a_container || itself {
                    continue;
                }
                for traffic in &traffic {
                    let expected = expected(&planner, from, to, *traffic);
                    prop_assert_eq!(
                        wire.passes(*from, *to, *traffic), expected,
                        "{:?} -> {:?} {:?}", from, to, traffic
                    );
                    // The same packet from a port that is not its own, and with a MAC that is not its own.
                    if let At::Container { container, network } = from.at {
                        for (other, (_, networks)) in containers.iter().enumerate() {
                            let managed = planner.standings().get(&ContainerId(format!("container{container}")))
                                != Some(&Standing::Unmanaged);
                            if other != container && networks.contains(&network) && managed {
                                let forged = End { at: At::Container { container: other, network }, ..*from };
                                prop_assert!(!wire.passes(forged, *to, *traffic), "forged {:?} -> {:?}", forged, to);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_second_plan_is_empty(edges in edges(), containers in containers()) {
        let files = write_policy(&edges);
        let loaded = policy::load(&files).map_err(|_| TestCaseError::fail("the drafted policy has faults"))?;
        let mut planner = planner(loaded.policy, &containers, Unmanaged::Allow);
        let plan = planner.plan();
        planner.kernel_applied();
        planner.flows_ended();
        plan.links.iter().for_each(|step| planner.link_applied(*step));
        plan.networks.iter().for_each(|step| planner.network_step_started(step));
        let second = planner.plan();
        prop_assert!(second.is_empty(), "{:?}", second);
    }
}

/// What the policy says, with what the settings say of unmanaged containers.
fn expected(planner: &Planner, from: &End, to: &End, traffic: Traffic) -> bool {
    let policy = &planner.rights().policy;
    let standing = |end: &End| match end.at {
        At::Container { container, .. } => planner
            .standings()
            .get(&ContainerId(format!("container{container}"))),
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
    let managed = |standing: Option<&Standing>| matches!(standing, Some(Standing::Managed(_)));
    if managed(source) || managed(target) {
        return policy
            .allows(&party(from), &party(to), traffic, Family::of(to.address))
            .is_some();
    }
    planner.rights().unmanaged == Unmanaged::Allow
}
