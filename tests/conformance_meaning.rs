//! The conformance runner's translation against the words of the format: for random neutral policies, what the format says
//! passes is what Cofferdam's own policy allows, for every container that could ever be there.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of #[test] functions"
)]
#![allow(dead_code, reason = "the runner uses the rest of these modules")]

#[path = "conformance/action.rs"]
mod action;
#[path = "conformance/algebra.rs"]
mod algebra;
#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/fact.rs"]
mod fact;
#[path = "conformance/prose.rs"]
mod prose;
#[path = "conformance/rules.rs"]
mod rules;
#[path = "conformance/translate.rs"]
mod translate;
#[path = "conformance/words.rs"]
mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;

use case::{
    Case, Direction, NeutralEdge, NeutralPolicy, NeutralPort, NeutralSelector, Operator, PortSpec, Side,
    Stance,
};
use cofferdam::net::{Family, Traffic, Transport};
use cofferdam::policy::{self, Membership, Party, Policy, Subject};
use proptest::prelude::*;
use serde_json::{Value, json};
use translate::Translator;

/// One end of a flow as the format sees it.
#[derive(Debug, Clone)]
enum Thing {
    Container(BTreeMap<String, String>),
    Outside(IpAddr),
    Host,
}

const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";

/// Every container that the generated selectors can tell apart, three addresses, and the host.
fn things() -> Vec<Thing> {
    let mut things = Vec::new();
    for project in ["x", "y"] {
        for service in ["a", "b"] {
            for tier in [None, Some("1"), Some("2"), Some("")] {
                let mut labels = BTreeMap::from([
                    (PROJECT.to_owned(), project.to_owned()),
                    (SERVICE.to_owned(), service.to_owned()),
                ]);
                if let Some(tier) = tier {
                    labels.insert("tier".to_owned(), tier.to_owned());
                }
                things.push(Thing::Container(labels));
            }
        }
    }
    things.push(Thing::Container(BTreeMap::new()));
    things.push(Thing::Container(BTreeMap::from([(
        "tier".to_owned(),
        "1".to_owned(),
    )])));
    for address in ["198.51.100.10", "198.51.100.77", "203.0.113.5", "2001:db8::1"] {
        things.push(Thing::Outside(address.parse().unwrap()));
    }
    things.push(Thing::Host);
    things
}

/// The ports by name of every service: `web` is 80 with `a`, 81 with `b` of x, and nothing with `b` of y.
fn named(labels: &BTreeMap<String, String>, name: &str) -> Option<u16> {
    let of = |key: &str| labels.get(key).map(String::as_str);
    match (of(PROJECT), of(SERVICE), name) {
        (Some(_), Some("a"), "web") => Some(80),
        (Some("x"), Some("b"), "web") => Some(81),
        _ => None,
    }
}

fn case_with_names() -> Case {
    let service = |project: &str, service: &str, listen: Value| json!({"project": project, "service": service, "listen": listen});
    let web = |port: u16| json!([{"proto": "tcp", "port": port, "name": "web"}]);
    serde_json::from_value(json!({
        "id": "T", "name": "t", "category": "t", "profile": "core",
        "topology": {"services": [
            service("x", "a", web(80)), service("y", "a", web(80)), service("x", "b", web(81)), service("y", "b", json!([])),
        ]},
        "policy": {"default": "deny"}, "expect": {},
    }))
    .unwrap()
}

fn selects(selector: &NeutralSelector, thing: &Thing) -> bool {
    match thing {
        Thing::Host => selector.host,
        Thing::Outside(address) => {
            selector.world
                || selector.cidr.is_some_and(|cidr| cidr.contains(address))
                    && !selector.except.iter().any(|hole| hole.contains(address))
        }
        Thing::Container(labels) => {
            if selector.host || selector.world || selector.cidr.is_some() {
                return false;
            }
            let is = |key: &str, wanted: &Option<String>| {
                wanted
                    .as_ref()
                    .is_none_or(|wanted| labels.get(key) == Some(wanted))
            };
            let expressed = selector.expr.iter().all(|expression| {
                let value = labels.get(&expression.key);
                match expression.op {
                    Operator::In => value.is_some_and(|value| expression.values.contains(value)),
                    Operator::NotIn => value.is_none_or(|value| !expression.values.contains(value)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            });
            is(PROJECT, &selector.project)
                && is(SERVICE, &selector.service)
                && selector
                    .labels
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
                && expressed
        }
    }
}

fn port_matches(port: &NeutralPort, to: &Thing, traffic: Traffic) -> bool {
    let proto = port.proto.or(port.port.is_some().then_some(fact::Transport::Tcp));
    let proto_is = proto.is_none_or(|proto| match (proto, traffic) {
        (fact::Transport::Icmp, Traffic::Icmp(_)) => true,
        (proto, Traffic::Port(transport, _)) => proto.to_string() == transport.as_str(),
        _ => false,
    });
    let number = match traffic {
        Traffic::Port(_, number) => number,
        _ => 0,
    };
    let port_is = match &port.port {
        None => true,
        Some(PortSpec::Number(wanted)) => *wanted == number,
        Some(PortSpec::Range(range)) => (range.from..=range.to).contains(&number),
        Some(PortSpec::Name(name)) => {
            matches!(to, Thing::Container(labels) if named(labels, name) == Some(number))
        }
    };
    proto_is && port_is
}

fn matches_edge(edge: &NeutralEdge, from: &Thing, to: &Thing, traffic: Traffic) -> bool {
    edge.from.iter().any(|selector| selects(selector, from))
        && edge.to.iter().any(|selector| selects(selector, to))
        && edge
            .ports
            .as_ref()
            .is_none_or(|ports| ports.iter().any(|port| port_matches(port, to, traffic)))
}

/// The format's own words: see "POLICY SEMANTICS" at the head of `cases.yaml`.
fn passes(policy: &NeutralPolicy, from: &Thing, to: &Thing, traffic: Traffic) -> bool {
    let allow = || {
        policy
            .allow
            .iter()
            .chain(policy.documents.iter().flat_map(|d| &d.allow))
    };
    let deny = || {
        policy
            .deny
            .iter()
            .chain(policy.documents.iter().flat_map(|d| &d.deny))
    };
    let isolate = || {
        policy
            .isolate
            .iter()
            .chain(policy.documents.iter().flat_map(|d| &d.isolate))
    };
    let isolated = |thing: &Thing, side: Side| {
        matches!(thing, Thing::Container(_))
            && (policy.default == Stance::Deny
                || isolate().any(|entry| {
                    entry.on(side)
                        && entry
                            .select
                            .list()
                            .iter()
                            .any(|selector| selects(selector, thing))
                }))
    };
    let open = |side: Direction| {
        allow().any(|edge| {
            (edge.direction == Direction::Both || edge.direction == side)
                && matches_edge(edge, from, to, traffic)
        })
    };
    (!isolated(from, Side::Egress) || open(Direction::Egress))
        && (!isolated(to, Side::Ingress) || open(Direction::Ingress))
        && !deny().any(|edge| matches_edge(edge, from, to, traffic))
}

/// Every kind of invalid policy that the runner knows how to write.
const KINDS: [&str; 24] = [
    "syntax",
    "malformed YAML",
    "unparseable",
    "truncated_file",
    "binary",
    "unknown-field",
    "unknown_key",
    "schema",
    "wrong_type",
    "duplicate_key",
    "unknown_service",
    "dangling_reference",
    "undefined service",
    "bad_port",
    "port_out_of_range",
    "inverted port range",
    "end_port_below_port",
    "empty_ports",
    "bad_cidr",
    "except_outside_cidr",
    "unknown_protocol",
    "unknown_operator",
    "empty_selector",
    "unknown_version",
];

#[test]
fn every_kind_of_invalid_policy_is_refused() {
    for kind in KINDS {
        let text = prose::invalid_text(kind).unwrap_or_else(|| panic!("{kind} is not known"));
        let file = policy::SourceFile {
            path: "invalid.yaml".to_owned(),
            bytes: text.as_bytes().to_vec(),
        };
        assert!(policy::load(&[file]).is_err(), "{kind}: {text}");
    }
    assert_eq!(prose::invalid_text("moon phase"), None);
}

fn load(files: &BTreeMap<String, String>) -> Policy {
    let files: Vec<policy::SourceFile> = files
        .iter()
        .map(|(name, text)| policy::SourceFile {
            path: name.clone(),
            bytes: text.clone().into_bytes(),
        })
        .collect();
    match policy::load(&files) {
        Ok(loaded) => loaded.policy,
        Err(faults) => panic!("{}", faults.render(&files, policy::Colour::Plain)),
    }
}

fn allowed(policy: &Policy, from: &Thing, to: &Thing, traffic: Traffic) -> bool {
    let services = |thing: &Thing| match thing {
        Thing::Container(labels) => {
            let shared = labels
                .iter()
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()));
            let subject = Subject {
                name: "some",
                image: "some:1",
                labels: &shared.collect(),
            };
            match policy.services_of(subject) {
                Membership::Member(services) => Some(services),
                other => panic!("{labels:?} is {other:?}"),
            }
        }
        Thing::Outside(_) | Thing::Host => None,
    };
    let (mine, theirs) = (services(from), services(to));
    fn party<'a>(
        thing: &Thing,
        services: &'a Option<std::collections::BTreeSet<policy::ServiceId>>,
    ) -> Party<'a> {
        match (thing, services) {
            (_, Some(services)) => Party::Services(services),
            (Thing::Outside(address), None) => Party::Outside(*address),
            _ => Party::Host,
        }
    }
    policy
        .allows(&party(from, &mine), &party(to, &theirs), traffic, Family::V4)
        .is_some()
}

fn containers() -> impl Strategy<Value = Value> {
    let expression = prop_oneof![
        prop_oneof![Just("In"), Just("NotIn")].prop_flat_map(|op| {
            proptest::collection::vec(prop_oneof![Just("1"), Just("2"), Just("")], 1..3)
                .prop_map(move |values| json!({"key": "tier", "op": op, "values": values}))
        }),
        Just(json!({"key": "tier", "op": "Exists"})),
        Just(json!({"key": "tier", "op": "DoesNotExist"})),
        Just(json!({"key": PROJECT, "op": "NotIn", "values": ["x"]})),
    ];
    (
        proptest::option::of(prop_oneof![Just("x"), Just("y")]),
        proptest::option::of(prop_oneof![Just("a"), Just("b")]),
        proptest::option::weighted(0.3, prop_oneof![Just("1"), Just("2")]),
        proptest::collection::vec(expression, 0..3),
    )
        .prop_map(|(project, service, tier, expressions)| {
            let mut selector = json!({});
            if let Some(project) = project {
                selector["project"] = json!(project);
            }
            if let Some(service) = service {
                selector["service"] = json!(service);
            }
            if let Some(tier) = tier {
                selector["labels"] = json!({ "tier": tier });
            }
            if !expressions.is_empty() {
                selector["expr"] = json!(expressions);
            }
            if selector == json!({}) {
                selector["any_service"] = json!(true);
            }
            selector
        })
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => containers(),
        1 => Just(json!({"world": true})),
        1 => Just(json!({"host": true})),
        1 => Just(json!({"cidr": "198.51.100.0/24", "except": ["198.51.100.64/26"]})),
        1 => Just(json!({"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24"]})),
        1 => Just(json!({"cidr": "198.51.100.77/32"})),
    ]
}

fn edge(directions: bool) -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        Just(json!({"proto": "tcp", "port": 80})),
        Just(json!({"port": 81})),
        Just(json!({"proto": "udp"})),
        Just(json!({"proto": "icmp"})),
        Just(json!({"proto": "tcp", "port": {"from": 80, "to": 81}})),
        Just(json!({"port": "web"})),
    ];
    let direction = if directions {
        prop_oneof![Just("both"), Just("ingress"), Just("egress")].boxed()
    } else {
        Just("both").boxed()
    };
    (
        proptest::collection::vec(selector(), 1..3),
        proptest::collection::vec(selector(), 1..3),
        proptest::option::weighted(0.7, proptest::collection::vec(port, 0..3)),
        direction,
    )
        .prop_map(|(from, to, ports, direction)| {
            let mut edge = json!({"from": from, "to": to, "direction": direction});
            if let Some(ports) = ports {
                edge["ports"] = json!(ports);
            }
            edge
        })
}

fn neutral() -> impl Strategy<Value = Value> {
    let isolation = (containers(), 0..3_usize).prop_map(|(select, sides)| {
        let sides = [
            json!(["ingress"]),
            json!(["egress"]),
            json!(["ingress", "egress"]),
        ][sides]
            .clone();
        json!({"select": select, "directions": sides})
    });
    let several = |edges, most| proptest::collection::vec(edges, 0..most);
    prop_oneof![
        several(edge(false).boxed(), 4_usize).prop_map(|allow| json!({"default": "deny", "allow": allow})),
        (several(edge(true).boxed(), 4), several(edge(false).boxed(), 2), several(edge(true).boxed(), 2)).prop_map(
            |(allow, deny, more)| {
                json!({"default": "deny", "allow": allow, "deny": deny, "documents": [{"name": "d", "allow": more}]})
            }
        ),
        (
            several(edge(true).boxed(), 3),
            several(edge(false).boxed(), 2),
            proptest::collection::vec(isolation, 0..3)
        )
            .prop_map(|(allow, deny, isolate)| {
                json!({"default": "allow", "allow": allow, "deny": deny, "isolate": isolate})
            }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_format_lets_pass_is_what_the_translation_allows(value in neutral()) {
        let neutral: NeutralPolicy = serde_json::from_value(value).unwrap();
        let files = Translator::of(&case_with_names()).files(&neutral).unwrap();
        let policy = load(&files);
        let things = things();
        let tcp = |port| Traffic::Port(Transport::Tcp, port);
        let udp = |port| Traffic::Port(Transport::Udp, port);
        for traffic in [tcp(80), tcp(81), tcp(82), udp(80), Traffic::Icmp(8)] {
            for from in &things {
                for to in &things {
                    let governed = matches!(from, Thing::Container(_)) || matches!(to, Thing::Container(_));
                    if !governed {
                        continue;
                    }
                    let (wanted, is) = (
                        passes(&neutral, from, to, traffic),
                        allowed(&policy, from, to, traffic),
                    );
                    prop_assert_eq!(wanted, is, "{:?} -> {:?} {:?} of {:#?}", from, to, traffic, files);
                }
            }
        }
    }
}
