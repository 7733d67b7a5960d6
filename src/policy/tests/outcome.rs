//! The policy's own tests: what holds, what does not, and that the answer is that of `Policy::allows`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::net::{Family, Traffic, Transport};

const HEAD: &str = r#"
cofferdam: 1
segment: s
services:
  a: { select: { name: aa } }
  b: { select: { name: bb } }
  c: { select: { name: cc }, mode: audit }
externals:
  near: { cidrs: [192.0.2.0/24, "2001:db8::/64"] }
  left: { cidrs: [192.0.2.0/25, "2001:db8::/64"] }
  right: { cidrs: [192.0.2.128/25] }
  far: { cidrs: [198.51.100.0/24] }
  six: { cidrs: ["2001:db8:6::/48"] }
"#;

fn policy(edges: &[String], reachable: &[String], unreachable: &[String]) -> Policy {
    let list = |name: &str, texts: &[String]| match texts {
        [] => String::new(),
        texts => format!("  {name}: {texts:?}\n"),
    };
    let allow: String = edges.iter().map(|edge| format!("  - {{ {edge} }}\n")).collect();
    valid(&[&format!(
        "{HEAD}{}tests:\n{}{}",
        if allow.is_empty() {
            String::new()
        } else {
            format!("allow:\n{allow}")
        },
        list("reachable", reachable),
        list("unreachable", unreachable),
    )])
}

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

/// Whether `claim` is reachable, unreachable or neither (partly) with these edges.
fn judged(edges: &[&str], claim: &str) -> &'static str {
    let edges: Vec<String> = edges.iter().map(|edge| (*edge).to_owned()).collect();
    let claims = [claim.to_owned()];
    let policy = policy(&edges, &claims, &claims);
    let outcomes: Vec<Outcome<'_>> = policy
        .tests
        .iter()
        .map(|test| policy.outcome(test, now()))
        .collect();
    if outcomes.contains(&Outcome::SaysNothing) {
        return "says nothing";
    }
    let holds: Vec<bool> = outcomes
        .iter()
        .map(|outcome| *outcome == Outcome::Holds)
        .collect();
    match holds[..] {
        [true, false] => "reachable",
        [false, true] => "unreachable",
        [false, false] => "partly",
        _ => "neither",
    }
}

#[test]
fn all_is_reachable_and_nothing_is_unreachable() {
    let table: &[(&[&str], &str, &str)] = &[
        (&["from: a, to: b, ports: [80]"], "a -> b:80", "reachable"),
        (&["from: a, to: b, ports: [80]"], "b -> a:80", "unreachable"),
        (&["from: a, to: b, ports: [80]"], "a -> c:80", "unreachable"),
        (&["from: a, to: b, ports: [80]"], "a -> b:80/udp", "unreachable"),
        (&["from: a, to: b, ports: [80-85]"], "a -> b:80-90", "partly"),
        (
            &[
                "from: a, to: b, ports: [80-85, 86]",
                "from: a, to: b, ports: [87-99]",
            ],
            "a -> b:80-90",
            "reachable",
        ),
        (&["from: a, to: b, ports: [tcp]"], "a -> b:tcp", "reachable"),
        (&["from: a, to: b, ports: [1-65535]"], "a -> b:tcp", "partly"),
        (&["from: a, to: b, ports: any"], "a -> b:any", "reachable"),
        (
            &["from: a, to: b, ports: [tcp, udp, sctp, icmp]"],
            "a -> b:any",
            "partly",
        ),
        (&["from: a, to: b, ports: [7/sctp]"], "a -> b:any", "partly"),
        (
            &["from: a, to: b, ports: icmp"],
            "a -> b:icmp/echo-request",
            "reachable",
        ),
        (
            &["from: a, to: b, ports: icmp/echo-request"],
            "a -> b:icmp",
            "partly",
        ),
        (
            &["from: a, to: b, ports: icmp/echo-request"],
            "a -> b:icmp/time-exceeded",
            "unreachable",
        ),
        (
            &["from: a, to: b, ports: icmp/timestamp-request"],
            "a -> b:icmp/timestamp-request",
            "reachable",
        ),
        (&[], "a -> six:icmp/timestamp-request", "says nothing"),
        (&[], "a -> six:icmp/echo-request", "unreachable"),
        (
            &["from: a, to: six, ports: icmp/echo-request"],
            "a -> six:icmp/echo-request",
            "reachable",
        ),
        (&[], "a -> c:80", "unreachable"),
        (&["from: world, to: a, ports: [80]"], "world -> a:80", "reachable"),
        (
            &["from: near, to: a, ports: [80]"],
            "world -> a:80",
            "unreachable",
        ),
        (&["from: host, to: a, ports: [80]"], "host -> a:80", "reachable"),
        (
            &["from: world, to: a, ports: [80]"],
            "host -> a:80",
            "unreachable",
        ),
        (&["from: a, to: near, ports: [80]"], "a -> near:80", "reachable"),
        (&["from: a, to: world, ports: [80]"], "a -> near:80", "reachable"),
        (&["from: a, to: near, ports: [80]"], "a -> left:80", "reachable"),
        (&["from: a, to: left, ports: [80]"], "a -> near:80", "partly"),
        (
            &[
                "from: a, to: left, ports: [80]",
                "from: a, to: right, ports: [80]",
            ],
            "a -> near:80",
            "reachable",
        ),
        (
            &[
                "from: a, to: left, ports: [80]",
                "from: a, to: right, ports: [81]",
            ],
            "a -> near:80-81",
            "partly",
        ),
        (&["from: a, to: far, ports: [80]"], "a -> near:80", "unreachable"),
        (&["from: left, to: a, ports: [80]"], "near -> a:80", "partly"),
        (
            &["from: a, to: b, ports: [80], until: 2026-06-01T00:00:00Z"],
            "a -> b:80",
            "unreachable",
        ),
        (
            &["from: a, to: b, ports: [80], until: 2026-06-01T00:00:01Z"],
            "a -> b:80",
            "reachable",
        ),
    ];
    for (edges, claim, expected) in table {
        assert_eq!(judged(edges, claim), *expected, "{claim} with {edges:?}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let said = |edge: &str, reachable: &[&str], unreachable: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let policy = policy(&owned(&[edge]), &owned(reachable), &owned(unreachable));
        let test = &policy.tests[0];
        let outcome = policy.outcome(test, now());
        (outcome.message(test).unwrap(), outcome.help(test).unwrap())
    };
    let (message, help) = said("from: a, to: b, ports: [80-85]", &["a -> c:443"], &[]);
    assert_eq!(
        message,
        "`s/a -> s/c:443/tcp` is not reachable: no edge permits it"
    );
    assert_eq!(
        help,
        "the missing edge would stand in `allow` of segment `s`: `- { from: a, to: c, ports: [443] }`"
    );
    let (message, _) = said("from: a, to: b, ports: [80-85]", &["a -> b:80-90"], &[]);
    assert_eq!(
        message,
        "`s/a -> s/b:80-90/tcp` is not all reachable: no edge permits 86-90/tcp"
    );
    let (message, _) = said("from: a, to: left, ports: [80]", &["a -> near:80"], &[]);
    assert_eq!(
        message,
        "`s/a -> s/near:80/tcp` is not all reachable: no edge permits 80/tcp at 192.0.2.128"
    );
    let (message, _) = said("from: a, to: b, ports: any", &[], &["a -> b:80-90"]);
    assert_eq!(
        message,
        "`s/a -> s/b:80-90/tcp` is reachable: an edge permits 80-90/tcp"
    );
}

const ENDS: [&str; 9] = ["a", "b", "c", "world", "host", "near", "left", "right", "far"];
const PORTS: [&str; 11] = [
    "80",
    "80-82",
    "81-90",
    "tcp",
    "82/udp",
    "udp",
    "icmp",
    "icmp/echo-request",
    "icmp/timestamp-request",
    "any",
    "80-90/sctp",
];

fn pair() -> impl Strategy<Value = (&'static str, &'static str)> {
    let any_end = 0..ENDS.len();
    (any_end, 0..3_usize, any::<bool>()).prop_map(|(end, service, turned)| match turned {
        true => (ENDS[service], ENDS[end]),
        false => (ENDS[end], ENDS[service]),
    })
}

fn edges() -> impl Strategy<Value = Vec<String>> {
    let one = (
        pair(),
        proptest::collection::btree_set(0..PORTS.len(), 1..4),
        0..4_u8,
    );
    let text = one.prop_map(|((from, to), ports, until)| {
        let ports: Vec<&str> = ports.into_iter().map(|index| PORTS[index]).collect();
        let until = if until == 0 {
            ", until: 2026-01-01T00:00:00Z"
        } else {
            ""
        };
        format!("from: {from}, to: {to}, ports: [{}]{until}", ports.join(", "))
    });
    proptest::collection::vec(text, 0..8)
}

fn traffic() -> Vec<Traffic> {
    let ports = [0, 79, 80, 81, 82, 83, 90, 91, u16::MAX];
    let mut all: Vec<Traffic> = ports
        .into_iter()
        .flat_map(|port| Transport::ALL.map(|transport| Traffic::Port(transport, port)))
        .collect();
    all.extend([0, 8, 13, 128, 255].map(Traffic::Icmp));
    all.push(Traffic::Other(47));
    all
}

/// Addresses that stand for an end: at the edges of the ranges for an external, one in no external for the world.
fn addresses(end: &str, family: Family) -> Vec<Option<IpAddr>> {
    let texts: &[&str] = match (end, family) {
        ("world", Family::V4) => &["203.0.113.7"],
        ("world", Family::V6) => &["2001:db8:ffff::7"],
        ("near", Family::V4) => &["192.0.2.0", "192.0.2.127", "192.0.2.128", "192.0.2.255"],
        ("near" | "left", Family::V6) => &["2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"],
        ("left", Family::V4) => &["192.0.2.0", "192.0.2.127"],
        ("right", Family::V4) => &["192.0.2.128", "192.0.2.255"],
        ("far", Family::V4) => &["198.51.100.0", "198.51.100.255"],
        ("right" | "far", Family::V6) => &[],
        _ => return vec![None],
    };
    texts.iter().map(|text| Some(text.parse().unwrap())).collect()
}

/// Whether the policy in force allows this between two ends of a test.
fn allows(policy: &Policy, test: &Test, address: Option<IpAddr>, traffic: Traffic, family: Family) -> bool {
    let sets = [&test.from, &test.to].map(|end| match end {
        Peer::Service(id) => BTreeSet::from([id.clone()]),
        _ => BTreeSet::new(),
    });
    let party = |end: &Peer, set| match end {
        Peer::Service(_) => Party::Services(set),
        Peer::Host => Party::Host,
        Peer::World | Peer::External(_) => Party::Outside(address.unwrap()),
    };
    let (from, to) = (party(&test.from, &sets[0]), party(&test.to, &sets[1]));
    policy.allows(&from, &to, traffic, family).is_some()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// What holds agrees with `allows` on every sample; what does not hold comes with a case against it.
    #[test]
    fn the_outcome_is_what_the_policy_allows(edges in edges(), (from, to) in pair(), ports in 0..PORTS.len()) {
        let claim = [format!("{from} -> {to}:{}", PORTS[ports])];
        let policy = policy(&edges, &claim, &claim);
        let in_force = policy.at(now());
        let outside = if addresses(from, Family::V4) == [None] { to } else { from };
        for test in &policy.tests {
            let expected = test.expected == Expectation::Reachable;
            match policy.outcome(test, now()) {
                Outcome::Holds => {
                    for family in Family::ALL {
                        for traffic in traffic().into_iter().filter(|it| test.ports.permits(*it, family)) {
                            for address in addresses(outside, family) {
                                let allowed = allows(&in_force, test, address, traffic, family);
                                prop_assert_eq!(allowed, expected, "{} {:?} {:?}", test, traffic, address);
                            }
                        }
                    }
                }
                Outcome::SaysNothing => prop_assert!(false, "each of these ends and ports has traffic: {}", test),
                Outcome::Missing(part) | Outcome::Permitted(_, part) => {
                    let traffic = part.traffic.first().unwrap();
                    prop_assert!(test.ports.permits(traffic, part.family));
                    let address = part.address.or(addresses(outside, part.family)[0]);
                    let allowed = allows(&in_force, test, address, traffic, part.family);
                    prop_assert_eq!(allowed, !expected, "{} {:?}", test, part);
                }
            }
        }
    }
}
