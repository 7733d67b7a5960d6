use super::*;
use crate::policy::{SourceFile, load};

fn policy(files: &[(&str, &str)]) -> Policy {
    let source = |(path, text): &(&str, &str)| SourceFile {
        path: (*path).to_owned(),
        bytes: text.as_bytes().to_vec(),
    };
    let files: Vec<SourceFile> = files.iter().map(source).collect();
    load(&files).unwrap().policy
}

const SERVICES: &str = "cofferdam: 1\nsegment: s\nservices: { a: { select: { name: aa } }, b: { select: { name: bb } }, c: { select: { name: cc } } }\nexternals: { e: { cidrs: [192.0.2.0/24] } }\n";

fn with(edges: &str) -> Policy {
    policy(&[("s.yaml", &format!("{SERVICES}allow: [{edges}]\n"))])
}

fn told(changes: &[Change]) -> Vec<String> {
    let one = |it: &Change| format!("{} -> {}: {}", it.from, it.to, it.ports.join(", "));
    changes.iter().map(one).collect()
}

#[test]
fn what_means_the_same_is_no_change() {
    let one = with("{ from: a, to: b, ports: [80-89, 53/udp, icmp] }, { from: [a, b], to: c, ports: [any] }");
    let edges = "cofferdam: 1\nsegment: s\nallow:\n  - { from: b, to: c, ports: [any], why: moved }\n  - { from: a, to: b, ports: [85-89, icmp/echo-request, icmp] }\n";
    let head = format!(
        "{SERVICES}allow: [{{ from: a, to: b, ports: [80-84, 53/udp] }}, {{ from: a, to: c, ports: [any, 80] }}]\n"
    );
    let other = policy(&[("head.yaml", &head), ("edges.yaml", edges)]);
    assert_ne!(one.edges, other.edges);
    assert!(compare(&one, &other).is_empty(), "{:?}", compare(&one, &other));
}

#[test]
fn ports_are_compared_as_sets() {
    let old = with("{ from: a, to: b, ports: [80-89] }, { from: a, to: c, ports: [any] }");
    let new =
        with("{ from: a, to: b, ports: [85-95, 53/udp] }, { from: a, to: c, ports: [tcp, udp, sctp, icmp] }");
    let changes = compare(&old, &new);
    assert_eq!(told(&changes.opened), ["s/a -> s/b: 90-95/tcp, 53/udp"]);
    assert_eq!(
        told(&changes.closed),
        ["s/a -> s/b: 80-84/tcp", "s/a -> s/c: other protocols"]
    );
    assert_eq!(changes.closed[0].before[0].line, 5);
    assert!(changes.closed[0].after.is_empty());
    // And the other way round it is the opposite.
    let back = compare(&new, &old);
    assert_eq!(
        (told(&back.opened), told(&back.closed)),
        (told(&changes.closed), told(&changes.opened))
    );
}

#[test]
fn services_modes_networks_externals_and_ends() {
    let old = with("{ from: a, to: b, ports: [80] }, { from: b, to: e, ports: [443] }");
    let text = "cofferdam: 1\nsegment: s\nservices: { a: { select: { name: ax } }, b: { select: { name: bb }, mode: audit }, d: { select: { name: dd } } }\nexternals: { e: { cidrs: [192.0.2.0/25, 198.51.100.1/32] } }\nallow: [{ from: b, to: e, ports: [443], until: 2030-01-01T00:00:00Z }, { from: b, to: d, ports: [1] }]\n";
    let changes = compare(&old, &policy(&[("s.yaml", text)]));
    let names = |ids: Vec<&ServiceId>| -> Vec<String> { ids.into_iter().map(ToString::to_string).collect() };
    assert_eq!(names(changes.services_added.keys().collect()), ["s/d"]);
    assert_eq!(names(changes.services_removed.keys().collect()), ["s/c"]);
    assert_eq!(names(changes.reselected.keys().collect()), ["s/a"]);
    assert_eq!(names(changes.cut_off.keys().collect()), ["s/a"]);
    assert_eq!(changes.modes.values().next(), Some(&(Mode::Enforce, Mode::Audit)));
    assert_eq!(told(&changes.moved_ends), ["s/b -> s/e: 443/tcp"]);
    assert_eq!(told(&changes.closed), ["s/a -> s/b: 80/tcp"]);
    let addresses = changes.externals.values().next().unwrap();
    assert_eq!(addresses.added, ["198.51.100.1"]);
    assert_eq!(addresses.removed, ["192.0.2.128-192.0.2.255"]);
    assert_eq!(changes.networks_added, ["cofferdam-s-d".to_owned()].into());
    assert_eq!(changes.networks_removed, ["cofferdam-s-b".to_owned()].into());
}

const PORTS: [&str; 9] = [
    "80",
    "79-81",
    "81-90",
    "tcp",
    "53/udp",
    "udp",
    "icmp",
    "icmp/echo-request",
    "any",
];

fn edges() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let names = || prop::sample::select(vec!["a", "b", "c"]);
    let ports = prop::collection::vec(prop::sample::select(PORTS.to_vec()), 1..3);
    let edge = (names(), names(), ports)
        .prop_map(|(from, to, ports)| format!("{{ from: {from}, to: {to}, ports: [{}] }}", ports.join(", ")));
    prop::collection::vec(edge, 1..5).prop_map(|edges| edges.join(", "))
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_opens_and_closes_is_what_the_policies_say(old in edges(), new in edges()) {
        use crate::net::{Family, Traffic};
        use crate::policy::Party;
        let (old, new) = (with(&old), with(&new));
        let changes = compare(&old, &new);
        let tells = |all: &[Change], from: &ServiceId, to: &ServiceId, traffic: Traffic| {
            let of_pair = all.iter().filter(|it| {
                (&it.from, &it.to) == (&Peer::Service(from.clone()), &Peer::Service(to.clone()))
            });
            let permits = |word: &String| match word.parse::<Ports>() {
                Ok(ports) => ports.permits(traffic, Family::V4),
                Err(_) => match word.as_str() {
                    "other protocols" => matches!(traffic, Traffic::Other(_)),
                    _ => traffic == Traffic::Icmp(17),
                },
            };
            of_pair.flat_map(|it| &it.ports).any(permits)
        };
        let port = |number| Traffic::Port(Transport::Tcp, number);
        let traffics = [78, 79, 80, 81, 82, 90, 91].map(port).into_iter().chain([
            Traffic::Port(Transport::Udp, 53),
            Traffic::Port(Transport::Udp, 54),
            Traffic::Port(Transport::Sctp, 1),
            Traffic::Icmp(8),
            Traffic::Icmp(17),
            Traffic::Other(47),
        ]);
        for traffic in traffics {
            for from in old.services.keys() {
                for to in old.services.keys() {
                    let (mine, theirs) = (BTreeSet::from([from.clone()]), BTreeSet::from([to.clone()]));
                    let allows = |policy: &Policy| {
                        let (from, to) = (Party::Services(&mine), Party::Services(&theirs));
                        policy.allows(&from, &to, traffic, Family::V4).is_some()
                    };
                    let (was, is) = (allows(&old), allows(&new));
                    proptest::prop_assert_eq!(tells(&changes.opened, from, to, traffic), !was && is);
                    proptest::prop_assert_eq!(tells(&changes.closed, from, to, traffic), was && !is);
                }
            }
        }
    }
}
