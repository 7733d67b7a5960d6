//! The structure in a real kernel: every statement loads, a transaction is all or nothing, base chains are hooked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::collections::{BTreeMap, BTreeSet};

use cofferdam::kernel::elements::Elements;
use cofferdam::kernel::nft::{Nft, NftError, Phase};
use cofferdam::net::{AddressSet, Family, PortRange, Transport};
use cofferdam::plan::ruleset::*;

mod netns;

use Statement as S;
use TableFamily::{Bridge, Inet};
use netns::{run_async, sh, try_sh};

fn set(table: TableFamily, name: &str) -> SetRef {
    SetRef {
        table,
        set: name.into(),
    }
}

fn add_set(table: TableFamily, name: &str, key: KeyType, kind: SetKind) -> Step {
    Step::AddSet(
        set(table, name),
        SetSpec {
            key,
            kind,
            size: (kind != SetKind::Verdicts).then_some(1024),
        },
    )
}

fn chain(table: TableFamily, name: &str, hook: Option<(HookPoint, i32)>) -> Step {
    Step::AddChain(
        table,
        name.into(),
        hook.map(|(point, priority)| Hook { point, priority }),
    )
}

fn rule(table: TableFamily, chain: &str, statements: Vec<Statement>) -> Step {
    Step::AddRule(
        table,
        chain.into(),
        Rule {
            statements,
            comment: Some("why: \"shop/web\" -> shop/api".to_owned()),
        },
    )
}

const BASE_CHAINS: [(TableFamily, &str, HookPoint, i32); 6] = [
    (Inet, "local", HookPoint::Prerouting, -310),
    (Inet, "entry", HookPoint::Input, -10),
    (Inet, "forward", HookPoint::Forward, -10),
    (Inet, "host", HookPoint::Output, -10),
    (Bridge, "identity", HookPoint::Prerouting, -300),
    (Bridge, "sealed", HookPoint::Forward, 100),
];

/// Sets of every type and rules with every statement, each beside its text in nft's own listing.
fn everything() -> (Vec<Step>, Vec<&'static str>) {
    let mut steps = vec![
        Step::ResetTables,
        Step::AddCounter(Inet, "e_1".into()),
        add_set(Inet, "guarded", KeyType::IfName, SetKind::Plain),
        add_set(Inet, "cidr4", KeyType::Ipv4Nets, SetKind::Plain),
        add_set(Inet, "cidr6", KeyType::Ipv6Nets, SetKind::Plain),
        add_set(Inet, "into4", KeyType::Ipv4, SetKind::Verdicts),
        add_set(Inet, "into6", KeyType::Ipv6, SetKind::Verdicts),
        add_set(Inet, "callers4", KeyType::Service4, SetKind::Plain),
        add_set(Inet, "callers6", KeyType::Service6, SetKind::Plain),
        add_set(Inet, "carried", KeyType::HostPort, SetKind::Plain),
        add_set(Inet, "senders", KeyType::Mac, SetKind::Shares),
        add_set(Inet, "receivers", KeyType::IfIndex, SetKind::Shares),
        add_set(Bridge, "shares", KeyType::IfIndex, SetKind::Shares),
        add_set(Bridge, "ports", KeyType::IfIndex, SetKind::Plain),
        add_set(Bridge, "macs", KeyType::Mac, SetKind::Plain),
        add_set(Bridge, "ones4", KeyType::Ipv4, SetKind::Plain),
        add_set(Bridge, "bound4", KeyType::Binding4, SetKind::Plain),
        add_set(Bridge, "bound6", KeyType::Binding6, SetKind::Plain),
    ];
    for name in ["pass", "deny", "rules"] {
        steps.push(chain(Inet, name, None));
    }
    for name in ["a_ip", "a_arp", "rules"] {
        steps.push(chain(Bridge, name, None));
    }
    for (table, name, point, priority) in BASE_CHAINS {
        steps.push(chain(table, name, Some((point, priority))));
    }
    let nets = |nets: &[&str]| {
        let nets: Vec<_> = nets.iter().map(|net| net.parse().unwrap()).collect();
        Addresses::Ranges(AddressSet::new(&nets, &[]))
    };
    let like = |patterns: &[&str]| Interfaces::Like(patterns.iter().map(ToString::to_string).collect());
    let ports = BTreeSet::from([
        (Transport::Tcp, PortRange::single(8080)),
        (Transport::Udp, PortRange { first: 53, last: 60 }),
        (Transport::Sctp, PortRange::ALL),
    ]);
    let port = |transport, range| S::Ports(BTreeSet::from([(transport, range)]));
    let inet = [
        (
            S::Interface(Side::Source, Interfaces::In("guarded".into())),
            "iifname @guarded",
        ),
        (
            S::Interface(Side::Destination, Interfaces::NotIn("guarded".into())),
            "oifname != @guarded",
        ),
        (
            S::Interface(Side::Source, like(&["docker0", "br-*"])),
            "iifname { \"br-*\", \"docker0\" }",
        ),
        (
            S::Interface(Side::Destination, like(&["cfd-*"])),
            "oifname \"cfd-*\"",
        ),
        (
            S::Address(Side::Source, Family::V4, Addresses::In("cidr4".into())),
            "ip saddr @cidr4",
        ),
        (
            S::Service(Side::Source, Family::V4, "callers4".into()),
            "ip saddr . meta l4proto . th dport @callers4",
        ),
        (
            S::Service(Side::Destination, Family::V6, "callers6".into()),
            "ip6 daddr . meta l4proto . th dport @callers6",
        ),
        (
            S::HostPort("carried".into()),
            "meta nfproto . meta l4proto . th dport @carried",
        ),
        (S::Translated, "ct status dnat"),
        (S::OnLink, "ip6 hoplimit 255"),
        (S::SentByRoot, "meta skuid 0"),
        (
            S::Address(Side::Destination, Family::V6, Addresses::In("cidr6".into())),
            "ip6 daddr @cidr6",
        ),
        (
            S::Address(
                Side::Source,
                Family::V4,
                nets(&["198.51.100.0/26", "203.0.113.7/32"]),
            ),
            "ip saddr { 198.51.100.0/26, 203.0.113.7 }",
        ),
        (
            S::Address(Side::Destination, Family::V6, nets(&["2001:db8::/32"])),
            "ip6 daddr 2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        ),
        (
            S::Address(Side::Source, Family::V4, nets(&["0.0.0.0/0"])),
            "ip saddr 0.0.0.0-255.255.255.255",
        ),
        (
            S::Address(Side::Source, Family::V6, nets(&["::/0"])),
            "ip6 saddr ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ),
        (
            S::ConnectionState {
                established: "pass".into(),
                related: "pass".into(),
            },
            "ct state vmap { invalid : drop, established : goto pass, related : jump pass }",
        ),
        (
            S::AddressMap(Side::Destination, Family::V4, "into4".into()),
            "ip daddr vmap @into4",
        ),
        (
            S::AddressMap(Side::Source, Family::V6, "into6".into()),
            "ip6 saddr vmap @into6",
        ),
        (
            S::Ports(ports),
            "meta l4proto . th dport { tcp . 8080, udp . 53-60, sctp . 0-65535 }",
        ),
        (port(Transport::Tcp, PortRange::single(8080)), "tcp dport 8080"),
        (
            port(Transport::Udp, PortRange { first: 53, last: 60 }),
            "udp dport 53-60",
        ),
        (port(Transport::Sctp, PortRange::ALL), "sctp dport 0-65535"),
        (S::Icmp(Family::V4, None), "meta l4proto icmp"),
        (S::Icmp(Family::V6, None), "meta l4proto ipv6-icmp"),
        (
            S::Icmp(Family::V4, Some(BTreeSet::from([8, 3]))),
            "icmp type { destination-unreachable, echo-request }",
        ),
        (
            S::Icmp(Family::V6, Some(BTreeSet::from([128]))),
            "icmpv6 type echo-request",
        ),
        (S::Protocol(2), "meta l4proto igmp"),
        (S::Stamped(0x4000_0000), "meta mark & 0x40000000 != 0x00000000"),
        (S::Stamp(0x4000_0000), "meta mark set meta mark | 0x40000000"),
        (S::Counter("e_1".into()), "counter name \"e_1\""),
        (
            S::Share {
                of: Sharer::Receiver,
                set: "receivers".into(),
                per_second: 10,
                burst: 20,
            },
            "update @receivers { oif limit rate 10/second burst 20 packets }",
        ),
        (
            S::Share {
                of: Sharer::Sender,
                set: "senders".into(),
                per_second: 10,
                burst: 20,
            },
            "update @senders { ether saddr limit rate 10/second burst 20 packets }",
        ),
        (
            S::Log {
                prefix: "cfd deny".to_owned(),
                group: 64,
            },
            "log prefix \"cfd deny\" group 64 snaplen 128",
        ),
        (S::Accept, "accept"),
        (S::Drop, "drop"),
        (S::Goto("deny".into()), "goto deny"),
        (S::Jump("deny".into()), "jump deny"),
    ];
    let types = BTreeMap::from([
        (EtherType::Ip, ChainName::from("a_ip")),
        (EtherType::Arp, "a_arp".into()),
        (EtherType::Ip6, "a_ip".into()),
    ]);
    let bridge = [
        (S::Port(Side::Source, "ports".into()), "iif @ports"),
        (S::Port(Side::Destination, "ports".into()), "oif @ports"),
        (S::ArpAddress(Side::Source, "ones4".into()), "arp saddr ip @ones4"),
        (
            S::ArpAddress(Side::Destination, "ones4".into()),
            "arp daddr ip @ones4",
        ),
        (S::EtherSource("macs".into()), "ether saddr @macs"),
        (
            S::Binding(BindingSource::Sender(Family::V4), "bound4".into()),
            "iif . ether saddr . ip saddr @bound4",
        ),
        (
            S::Binding(BindingSource::Sender(Family::V6), "bound6".into()),
            "iif . ether saddr . ip6 saddr @bound6",
        ),
        (
            S::Binding(BindingSource::ArpFrame, "bound4".into()),
            "iif . ether saddr . arp saddr ip @bound4",
        ),
        (
            S::Binding(BindingSource::ArpBody, "bound4".into()),
            "iif . arp saddr ether . arp saddr ip @bound4",
        ),
        (
            S::Binding(BindingSource::Receiver(Family::V4), "bound4".into()),
            "oif . ether daddr . ip daddr @bound4",
        ),
        (
            S::Binding(BindingSource::Receiver(Family::V6), "bound6".into()),
            "oif . ether daddr . ip6 daddr @bound6",
        ),
        (S::EtherType(EtherType::Arp), "ether type arp"),
        (
            S::Share {
                of: Sharer::Port,
                set: "shares".into(),
                per_second: 10,
                burst: 20,
            },
            "update @shares { iif limit rate 10/second burst 20 packets }",
        ),
        (
            S::EtherTypeMap(types),
            "ether type vmap { ip : goto a_ip, arp : goto a_arp, ip6 : goto a_ip }",
        ),
    ];
    let texts = inet.iter().chain(&bridge).map(|(_, text)| *text).collect();
    steps.extend(inet.map(|(statement, _)| rule(Inet, "rules", vec![statement])));
    steps.extend(bridge.map(|(statement, _)| rule(Bridge, "rules", vec![statement])));
    (steps, texts)
}

#[test]
fn every_statement_loads_and_reads_as_it_is_documented() {
    run_async("every_statement_loads_and_reads_as_it_is_documented", || async {
        let (steps, texts) = everything();
        Nft::find().unwrap().apply(&steps).await.unwrap();
        let listing = sh("nft -nn list ruleset; nft list ruleset").replace("meta iif", "iif");
        let missing: Vec<_> = texts.iter().filter(|text| !listing.contains(**text)).collect();
        assert!(missing.is_empty(), "{missing:#?}\n{listing}");
        let rules = listing.matches("why: ").count();
        assert_eq!(rules, 2 * texts.len(), "{listing}");
        assert!(
            rules > 0 && listing.contains("comment \"why: 'shop/web' -> shop/api\""),
            "{listing}"
        );
        // The same again: a reset starts from nothing.
        Nft::find().unwrap().apply(&steps).await.unwrap();
        assert_eq!(sh("nft list ruleset").matches("why: ").count(), texts.len());
    });
}

#[test]
fn a_refused_step_leaves_everything_as_it_was_and_says_why() {
    run_async(
        "a_refused_step_leaves_everything_as_it_was_and_says_why",
        || async {
            let nft = Nft::find().unwrap();
            nft.apply(&everything().0).await.unwrap();
            let before = sh("nft list ruleset");
            let refused = [
                Step::ResetTables,
                chain(Inet, "forward", None),
                rule(
                    Inet,
                    "forward",
                    vec![S::AddressMap(Side::Source, Family::V4, "nowhere".into())],
                ),
            ];
            let error = nft.apply(&refused).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    NftError::Refused {
                        phase: Phase::Apply,
                        ..
                    }
                ),
                "{error}"
            );
            assert!(error.to_string().contains("No such file or directory"), "{error}");
            assert_eq!(sh("nft list ruleset"), before);
        },
    );
}

#[test]
fn structure_shrinks_again() {
    run_async("structure_shrinks_again", || async {
        let nft = Nft::find().unwrap();
        nft.apply(&everything().0).await.unwrap();
        sh("nft add element inet cofferdam into4 '{ 10.0.0.1 : goto deny }'");
        let change = |action| {
            let key = Key::Ipv4("10.0.0.2".parse().unwrap());
            Step::Element(ElementChange {
                set: set(Inet, "into4"),
                key,
                action,
            })
        };
        nft.apply(&[change(ElementAction::Add(Some("deny".into())))])
            .await
            .unwrap();
        assert!(sh("nft list map inet cofferdam into4").contains("10.0.0.2 : goto deny"));
        nft.apply(&[
            change(ElementAction::Delete),
            Step::FlushChain(Inet, "rules".into()),
            rule(Inet, "rules", vec![S::Drop]),
            Step::DeleteSet(set(Inet, "into4")),
            Step::DeleteSet(set(Inet, "cidr6")),
            Step::DeleteCounter(Inet, "e_1".into()),
            Step::DeleteChain(Inet, "pass".into()),
        ])
        .await
        .unwrap();
        let listing = sh("nft list table inet cofferdam");
        for gone in ["into4", "cidr6", "e_1", "chain pass"] {
            assert!(!listing.contains(gone), "{gone} in {listing}");
        }
        for _ in 0..2 {
            nft.apply(&[Step::DeleteTables]).await.unwrap();
            assert_eq!(sh("nft list ruleset"), "");
        }
    });
}

#[test]
fn elements_of_every_type_load_with_the_structure() {
    run_async("elements_of_every_type_load_with_the_structure", || async {
        let nft = Nft::find().unwrap();
        let mac = "02:42:0a:d5:05:02".parse().unwrap();
        let element = |table, name: &str, key| {
            Step::Element(ElementChange {
                set: set(table, name),
                key,
                action: ElementAction::Add(None),
            })
        };
        let mut steps = everything().0;
        steps.extend([
            element(Inet, "guarded", Key::IfName("br-0123456789ab".parse().unwrap())),
            element(Inet, "cidr4", Key::Net("10.213.0.0/16".parse().unwrap())),
            element(Inet, "cidr4", Key::Net("192.0.2.1/32".parse().unwrap())),
            element(Inet, "cidr6", Key::Net("::/0".parse().unwrap())),
            element(Bridge, "ports", Key::IfIndex(77)),
            element(Bridge, "macs", Key::Mac(mac)),
            element(
                Bridge,
                "bound4",
                Key::Binding4(77, mac, "10.213.5.2".parse().unwrap()),
            ),
            element(
                Bridge,
                "bound6",
                Key::Binding6(77, mac, "fd00::2".parse().unwrap()),
            ),
        ]);
        nft.apply(&steps).await.unwrap();
        let mut elements = Elements::open().unwrap();
        let bound = elements.list(&set(Bridge, "bound6"), KeyType::Binding6).unwrap();
        assert_eq!(
            bound,
            BTreeMap::from([(Key::Binding6(77, mac, "fd00::2".parse().unwrap()), None)])
        );
        let nets = elements.list(&set(Inet, "cidr4"), KeyType::Ipv4Nets).unwrap();
        assert_eq!(nets.len(), 2, "{nets:?}");
        let everything = elements.list(&set(Inet, "cidr6"), KeyType::Ipv6Nets).unwrap();
        assert_eq!(
            everything,
            BTreeMap::from([(Key::Net("::/0".parse().unwrap()), None)])
        );
        let ports = elements.list(&set(Bridge, "ports"), KeyType::IfIndex).unwrap();
        assert_eq!(ports, BTreeMap::from([(Key::IfIndex(77), None)]));
    });
}

#[test]
fn base_chains_are_hooked_and_a_lost_hook_is_seen() {
    run_async("base_chains_are_hooked_and_a_lost_hook_is_seen", || async {
        let nft = Nft::find().unwrap();
        let mut elements = Elements::open().unwrap();
        assert_eq!(elements.base_chains().unwrap(), BTreeMap::new());
        sh(
            "nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 5; }'",
        );
        nft.apply(&everything().0).await.unwrap();
        let wanted: BTreeMap<_, _> = BASE_CHAINS
            .iter()
            .map(|(table, name, point, priority)| {
                (
                    (*table, ChainName::from(*name)),
                    Hook {
                        point: *point,
                        priority: *priority,
                    },
                )
            })
            .collect();
        assert_eq!(elements.base_chains().unwrap(), wanted);
        // A chain of the right name without its hook.
        sh("nft delete chain inet cofferdam forward; nft add chain inet cofferdam forward");
        let found = elements.base_chains().unwrap();
        assert_eq!(found.len(), wanted.len() - 1);
        assert!(!found.contains_key(&(Inet, "forward".into())));
        // A dormant table lists its hooks, but the kernel has taken them off.
        if try_sh("nft add table bridge cofferdam '{ flags dormant; }'")
            .status
            .success()
        {
            assert!(
                elements
                    .base_chains()
                    .unwrap()
                    .keys()
                    .all(|(table, _)| *table == Inet)
            );
        }
    });
}
