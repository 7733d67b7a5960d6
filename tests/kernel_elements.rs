//! The inventory in a real kernel: every key type reads back, a batch is all or nothing, counters count.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cofferdam::kernel::elements::{Counter, Elements, ElementsError};
use cofferdam::kernel::nft::Nft;
use cofferdam::net::Mac;
use cofferdam::plan::ruleset::*;
use nix::errno::Errno;

mod netns;

use TableFamily::{Bridge, Inet};
use netns::{run, run_async, sh};

const MAC: Mac = Mac([0x02, 0x42, 0x0a, 0xd5, 0x05, 0x02]);

fn set(table: TableFamily, name: &str) -> SetRef {
    SetRef {
        table,
        set: name.into(),
    }
}

fn change(set: &SetRef, key: Key, action: ElementAction) -> ElementChange {
    ElementChange {
        set: set.clone(),
        key,
        action,
    }
}

fn add(set: &SetRef, key: &Key) -> ElementChange {
    change(set, key.clone(), ElementAction::Add(None))
}

fn delete(set: &SetRef, key: &Key) -> ElementChange {
    change(set, key.clone(), ElementAction::Delete)
}

fn go(set: &SetRef, key: &Key, chain: &str) -> ElementChange {
    change(set, key.clone(), ElementAction::Add(Some(chain.into())))
}

fn v4(text: &str) -> Key {
    Key::Ipv4(text.parse().unwrap())
}

fn net(text: &str) -> Key {
    Key::Net(text.parse().unwrap())
}

/// Two keys, and how nft writes them.
type TwoKeys = [(Key, &'static str); 2];

/// A set for each type.
fn key_types() -> Vec<(&'static str, KeyType, TwoKeys)> {
    let v6 = |text: &str| text.parse().unwrap();
    vec![
        (
            "k_ip4",
            KeyType::Ipv4,
            [(v4("10.0.0.1"), "10.0.0.1"), (v4("10.0.0.2"), "10.0.0.2")],
        ),
        (
            "k_ip6",
            KeyType::Ipv6,
            [
                (Key::Ipv6(v6("fd00::1")), "fd00::1"),
                (Key::Ipv6(v6("fd00::2")), "fd00::2"),
            ],
        ),
        (
            "k_net4",
            KeyType::Ipv4Nets,
            [
                (net("10.213.0.0/16"), "10.213.0.0/16"),
                (net("192.0.2.7/32"), "192.0.2.7"),
            ],
        ),
        (
            "k_net6",
            KeyType::Ipv6Nets,
            [(net("fd00::/64"), "fd00::/64"), (net("ff00::/8"), "ff00::/8")],
        ),
        (
            "k_name",
            KeyType::IfName,
            [
                (Key::IfName("lo".parse().unwrap()), "\"lo\""),
                (
                    Key::IfName("br-0123456789ab".parse().unwrap()),
                    "\"br-0123456789ab\"",
                ),
            ],
        ),
        (
            "k_index",
            KeyType::IfIndex,
            [(Key::IfIndex(1), "\"lo\""), (Key::IfIndex(77), "77")],
        ),
        (
            "k_mac",
            KeyType::Mac,
            [
                (Key::Mac(MAC), "02:42:0a:d5:05:02"),
                (Key::Mac(Mac([2; 6])), "02:02:02:02:02:02"),
            ],
        ),
        (
            "k_bind4",
            KeyType::Binding4,
            [
                (
                    Key::Binding4(1, MAC, "10.0.0.1".parse().unwrap()),
                    "\"lo\" . 02:42:0a:d5:05:02 . 10.0.0.1",
                ),
                (
                    Key::Binding4(77, MAC, "10.0.0.1".parse().unwrap()),
                    "77 . 02:42:0a:d5:05:02 . 10.0.0.1",
                ),
            ],
        ),
        (
            "k_bind6",
            KeyType::Binding6,
            [
                (
                    Key::Binding6(1, MAC, v6("fd00::1")),
                    "\"lo\" . 02:42:0a:d5:05:02 . fd00::1",
                ),
                (
                    Key::Binding6(77, MAC, v6("fd00::1")),
                    "77 . 02:42:0a:d5:05:02 . fd00::1",
                ),
            ],
        ),
    ]
}

async fn tables() {
    let mut steps = vec![Step::ResetTables, Step::AddCounter(Inet, "e_1".into())];
    for chain in ["one", "two", "three"] {
        steps.push(Step::AddChain(Inet, chain.into(), None));
    }
    let spec = |key, kind| SetSpec {
        key,
        kind,
        size: None,
    };
    for (name, key, _) in key_types() {
        steps.extend(TableFamily::ALL.map(|table| Step::AddSet(set(table, name), spec(key, SetKind::Plain))));
    }
    steps.push(Step::AddSet(
        set(Inet, "into4"),
        spec(KeyType::Ipv4, SetKind::Verdicts),
    ));
    let sized = SetSpec {
        key: KeyType::Ipv4Nets,
        kind: SetKind::Plain,
        size: Some(4),
    };
    steps.push(Step::AddSet(set(Inet, "sized"), sized));
    Nft::find().unwrap().apply(&steps).await.unwrap();
}

#[test]
fn keys_of_every_type_are_added_listed_and_deleted() {
    run_async("keys_of_every_type_are_added_listed_and_deleted", || async {
        tables().await;
        let mut elements = Elements::open().unwrap();
        for table in TableFamily::ALL {
            for (name, key_type, [(first, first_text), (second, second_text)]) in key_types() {
                let set = set(table, name);
                let listing = || sh(&format!("nft list set {} cofferdam {name}", table.as_str()));
                elements.commit(&[add(&set, &first), add(&set, &second)]).unwrap();
                // Adding again is no error.
                elements.commit(&[add(&set, &first)]).unwrap();
                let (first_entry, second_entry) = ((first.clone(), None), (second.clone(), None));
                let listed = elements.list(&set, key_type).unwrap();
                assert_eq!(
                    listed,
                    BTreeMap::from([first_entry, second_entry.clone()]),
                    "{name}"
                );
                let text = listing();
                assert!(text.contains(first_text) && text.contains(second_text), "{text}");
                elements.commit(&[delete(&set, &first)]).unwrap();
                assert_eq!(
                    elements.list(&set, key_type).unwrap(),
                    BTreeMap::from([second_entry]),
                    "{name}"
                );
                elements.commit(&[delete(&set, &second)]).unwrap();
                assert!(!listing().contains("elements"), "{}", listing());
                // What nft itself put in is read the same.
                let table = table.as_str();
                sh(&format!(
                    "nft add element {table} cofferdam {name} '{{ {first_text} }}'"
                ));
                let listed = elements.list(&set, key_type).unwrap();
                assert_eq!(listed, BTreeMap::from([(first.clone(), None)]), "{name}");
                elements.commit(&[delete(&set, &first)]).unwrap();
                assert!(!listing().contains("elements"), "{}", listing());
            }
        }
    });
}

#[test]
fn verdict_maps_lead_to_chains() {
    run_async("verdict_maps_lead_to_chains", || async {
        tables().await;
        let mut elements = Elements::open().unwrap();
        let map = set(Inet, "into4");
        let (one, two) = (v4("10.0.0.1"), v4("10.0.0.2"));
        elements
            .commit(&[
                go(&map, &one, "one"),
                go(&map, &two, "two"),
                go(&map, &two, "two"),
            ])
            .unwrap();
        let wanted = BTreeMap::from([
            (one.clone(), Some("one".into())),
            (two.clone(), Some("two".into())),
        ]);
        assert_eq!(elements.list(&map, KeyType::Ipv4).unwrap(), wanted);
        let text = sh("nft list map inet cofferdam into4");
        assert!(
            text.contains("10.0.0.1 : goto one") && text.contains("10.0.0.2 : goto two"),
            "{text}"
        );
        // Elsewhere only by way of a delete, in one transaction.
        let error = elements.commit(&[go(&map, &one, "three")]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST));
        elements
            .commit(&[delete(&map, &one), go(&map, &one, "three")])
            .unwrap();
        assert_eq!(
            elements.list(&map, KeyType::Ipv4).unwrap().get(&one),
            Some(&Some("three".into()))
        );
        let error = elements
            .commit(&[go(&map, &v4("10.0.0.9"), "nowhere")])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not add 10.0.0.9 : goto nowhere to map inet cofferdam into4"
        );
        assert_eq!(error.errno(), Some(Errno::ENOENT));
        // A verdict of someone else is not one of ours.
        sh("nft add element inet cofferdam into4 '{ 10.0.0.7 : accept }'");
        assert_eq!(
            elements.list(&map, KeyType::Ipv4).unwrap().get(&v4("10.0.0.7")),
            Some(&None)
        );
    });
}

#[test]
fn a_failing_batch_changes_nothing_and_names_the_change() {
    run_async("a_failing_batch_changes_nothing_and_names_the_change", || async {
        tables().await;
        let mut elements = Elements::open().unwrap();
        let (set, missing) = (set(Inet, "k_ip4"), v4("10.9.9.9"));
        elements.commit(&[add(&set, &v4("10.0.0.1"))]).unwrap();
        let batch = [
            add(&set, &v4("10.0.0.2")),
            delete(&set, &v4("10.0.0.1")),
            delete(&set, &missing),
            add(&set, &v4("10.0.0.3")),
        ];
        let error = elements.commit(&batch).unwrap_err();
        assert!(matches!(error, ElementsError::Change { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            "could not delete 10.9.9.9 from inet cofferdam k_ip4"
        );
        assert_eq!(error.errno(), Some(Errno::ENOENT));
        assert!(!error.is_retryable());
        let unchanged = BTreeMap::from([(v4("10.0.0.1"), None)]);
        assert_eq!(elements.list(&set, KeyType::Ipv4).unwrap(), unchanged);
        // The channel goes on, and the same batch without the fault passes.
        elements
            .commit(&[batch[0].clone(), batch[1].clone(), batch[3].clone()])
            .unwrap();
        let listed: Vec<_> = elements.list(&set, KeyType::Ipv4).unwrap().into_keys().collect();
        assert_eq!(listed, [v4("10.0.0.2"), v4("10.0.0.3")]);
        let nowhere = SetRef {
            table: Inet,
            set: "nowhere".into(),
        };
        assert_eq!(
            elements.list(&nowhere, KeyType::Ipv4).unwrap_err().errno(),
            Some(Errno::ENOENT)
        );
    });
}

#[test]
fn many_elements_are_one_transaction() {
    run_async("many_elements_are_one_transaction", || async {
        tables().await;
        let mut elements = Elements::open().unwrap();
        let set = set(Inet, "k_ip4");
        let keys: Vec<Key> = (0..60_000_u32)
            .map(|n| Key::Ipv4((0x0a00_0000 + n).into()))
            .collect();
        let mut adds: Vec<_> = keys.iter().map(|key| add(&set, key)).collect();
        adds.push(delete(&set, &v4("192.0.2.1")));
        assert!(elements.commit(&adds).is_err());
        assert_eq!(elements.list(&set, KeyType::Ipv4).unwrap().len(), 0);
        adds.pop();
        elements.commit(&adds).unwrap();
        // While the kernel's table grows, a listing may lack some.
        let begun = Instant::now();
        let mut listed = 0;
        while listed < keys.len() && begun.elapsed() < Duration::from_secs(5) {
            listed = elements.list(&set, KeyType::Ipv4).unwrap().len();
        }
        assert_eq!(listed, keys.len());
        // Every one of these fails: the answers are many, the first is told.
        let error = elements.commit(
            &(0..20_000_u32)
                .map(|n| delete(&set, &Key::Ipv4(n.into())))
                .collect::<Vec<_>>(),
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "could not delete 0.0.0.0 from inet cofferdam k_ip4"
        );
        elements
            .commit(&keys.iter().map(|key| delete(&set, key)).collect::<Vec<_>>())
            .unwrap();
        assert_eq!(elements.list(&set, KeyType::Ipv4).unwrap().len(), 0);
    });
}

#[test]
fn networks_side_by_side_come_and_go_alone() {
    run_async("networks_side_by_side_come_and_go_alone", || async {
        tables().await;
        let mut elements = Elements::open().unwrap();
        let set = set(Inet, "sized");
        let nets = ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/23", "0.0.0.0/8"].map(net);
        elements
            .commit(&nets.iter().map(|net| add(&set, net)).collect::<Vec<_>>())
            .unwrap();
        let listed: Vec<_> = elements
            .list(&set, KeyType::Ipv4Nets)
            .unwrap()
            .into_keys()
            .collect();
        let mut wanted = nets.to_vec();
        wanted.sort();
        assert_eq!(listed, wanted, "a set of size 4 holds four networks");
        let [_, middle, ..] = &nets;
        elements.commit(&[delete(&set, middle)]).unwrap();
        wanted.retain(|net| net != middle);
        assert_eq!(
            elements
                .list(&set, KeyType::Ipv4Nets)
                .unwrap()
                .into_keys()
                .collect::<Vec<_>>(),
            wanted
        );
        assert_eq!(
            elements.commit(&[delete(&set, middle)]).unwrap_err().errno(),
            Some(Errno::ENOENT)
        );
    });
}

#[test]
fn counters_of_our_table_are_read_with_64_bits() {
    run_async("counters_of_our_table_are_read_with_64_bits", || async {
        let mut elements = Elements::open().unwrap();
        assert_eq!(elements.counters().unwrap(), BTreeMap::new());
        tables().await;
        sh("nft add counter inet cofferdam big '{ packets 5 bytes 8589934592 }'");
        sh("nft add table inet other; nft add counter inet other e_9");
        sh("nft add chain inet cofferdam out '{ type filter hook output priority 0; }'");
        sh("nft add rule inet cofferdam out udp dport 9 counter name e_1");
        sh(
            "python3 -c 'import socket; s=socket.socket(2,2); [s.sendto(b\"x\"*72, (\"127.0.0.1\",9)) for _ in range(3)]'",
        );
        let counters = elements.counters().unwrap();
        assert_eq!(counters.len(), 2, "{counters:?}");
        assert_eq!(
            counters.get(&"e_1".into()),
            Some(&Counter {
                packets: 3,
                bytes: 300
            })
        );
        assert_eq!(
            counters.get(&"big".into()),
            Some(&Counter {
                packets: 5,
                bytes: 8_589_934_592
            })
        );
    });
}

#[test]
fn an_element_takes_microseconds() {
    run("an_element_takes_microseconds", || {
        tokio::runtime::Runtime::new().unwrap().block_on(tables());
        let mut elements = Elements::open().unwrap();
        let set = set(Bridge, "k_bind4");
        let start = std::time::Instant::now();
        for index in 0..1000 {
            elements
                .commit(&[add(&set, &Key::Binding4(index, MAC, "10.0.0.1".parse().unwrap()))])
                .unwrap();
        }
        let each = start.elapsed() / 1000;
        assert!(each < std::time::Duration::from_millis(1), "{each:?}");
        eprintln!("an element: {each:?}");
    });
}
