//! Bounded fuzzing of every entry point: arbitrary bytes, and sound input with some of it changed.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const POLICY: &str = include_str!("../../policies/shop.yaml");

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, Vec<u8>)>> {
    let inserted = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..6),
        prop::sample::select(vec![
            &b"65536"[..],
            b"-1",
            b"0",
            b"*",
            b"&a",
            b"*a",
            b"<<: ",
            b"!!binary ",
            b"{}",
            b"[]",
            b"~",
            b"any",
            b"world",
            b"\"\"",
            b"\xff",
            b"\xe2\x80\xae",
            b"1e999",
            b"\t",
            b"null",
            b"[[[[[[[[",
            b"{{{{{{",
        ])
        .prop_map(<[u8]>::to_vec),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), 0..10_usize, inserted), 1..5)
}

fn edited(text: &[u8], edits: Vec<(prop::sample::Index, usize, Vec<u8>)>) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for (at, removed, inserted) in edits {
        let start = at.index(bytes.len().max(1)).min(bytes.len());
        let end = (start + removed).min(bytes.len());
        bytes.splice(start..end, inserted);
    }
    bytes
}

fn settings_text() -> &'static str {
    include_str!("../../examples/settings.yaml")
}

/// A list of containers and of networks at once.
fn answer() -> Vec<u8> {
    let container = json!({
        "Id": "9db2638be180", "Names": ["/c1"], "Name": "/c1", "Image": "postgres:16", "State": "running",
        "Labels": {"app": "db"}, "HostConfig": {"NetworkMode": "plain", "Privileged": false, "CapAdd": ["NET_ADMIN"],
        "PidMode": ""}, "Mounts": [{"Type": "bind", "Source": "/run/docker.sock"}],
        "NetworkSettings": {"Networks": {"plain": {"NetworkID": "d9dd575ba83e", "EndpointID": "0eab",
            "IPAddress": "10.213.0.2", "GlobalIPv6Address": "fd00:9::44", "MacAddress": "02:42:ac:12:00:02"}}},
    });
    let network = json!({
        "Id": "d9dd575ba83e", "Name": "cofferdam-shop-db", "Driver": "bridge", "Internal": true,
        "IPAM": {"Config": [{"Subnet": "10.213.0.0/24"}, {"Subnet": "fd00:9::/64"}]},
        "Labels": {"io.cofferdam.managed": "true", "io.cofferdam.service": "shop/db"},
        "Options": {"com.docker.network.bridge.name": "cfd-01234567"},
    });
    Value::from(vec![container, network]).to_string().into_bytes()
}

/// A netlink attribute with others inside.
fn attribute() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        Just(b"cofferdam\0".to_vec()),
        Just(0xffff_fffd_u32.to_be_bytes().to_vec()),
    ];
    let leaf = (any::<u8>(), value).prop_map(|(kind, value)| wrapped(u16::from(kind % 24), &value, 0));
    leaf.prop_recursive(4, 32, 4, |inner| {
        let lie = prop_oneof![8 => Just(0_i32), 1 => -8..8_i32, 1 => any::<i32>()];
        (0..24_u16, any::<bool>(), prop::collection::vec(inner, 0..4), lie).prop_map(
            |(kind, nested, inner, lie)| {
                let kind = if nested { kind | 0x8000 } else { kind };
                wrapped(kind, &inner.concat(), lie)
            },
        )
    })
}

/// With a length that may be a lie.
fn wrapped(kind: u16, value: &[u8], lie: i32) -> Vec<u8> {
    let length = i32::try_from(value.len() + 4).unwrap().wrapping_add(lie);
    let mut bytes = u16::try_from(length & 0xffff).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        // Links, routes, nftables' objects, generations, conntrack.
        prop::sample::select(vec![
            16_u16, 17, 24, 25, 0x0a0f, 0x0a0c, 0x0a03, 0x0a12, 0x0100, 2, 3
        ]),
        any::<u16>(),
    ];
    let header = prop::collection::vec(any::<u8>(), 0..20);
    let lie = prop_oneof![8 => Just(0_u32), 1 => any::<u32>()];
    let message = (kind, header, prop::collection::vec(attribute(), 0..6), lie).prop_map(
        |(kind, header, attributes, lie)| {
            let body = [header, attributes.concat()].concat();
            let length = u32::try_from(16 + body.len()).unwrap().wrapping_add(lie);
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        },
    );
    prop::collection::vec(message, 0..4).prop_map(|messages| messages.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        policy_file(&bytes);
        settings_file(&bytes);
        engine_answer(&bytes);
        netlink_datagram(&bytes);
        control_request(&bytes);
    }

    #[test]
    fn policies_with_changes(edits in edits()) {
        policy_file(&edited(POLICY.as_bytes(), edits));
    }

    #[test]
    fn settings_with_changes(edits in edits()) {
        settings_file(&edited(settings_text().as_bytes(), edits));
    }

    #[test]
    fn answers_with_changes(edits in edits()) {
        engine_answer(&edited(&answer(), edits));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn datagrams(bytes in datagram()) {
        netlink_datagram(&bytes);
    }
}

#[test]
fn a_message_of_no_length_does_not_last_for_ever() {
    netlink_datagram(&[0; 4096]);
    netlink_datagram(&[0xff; 4096]);
}

/// Each of these is small and asks for much.
#[test]
fn what_grows_is_refused() {
    let mut bomb = "cofferdam: 1\nsegment: a\nx0: &x0 [a, a, a, a, a, a, a, a, a]\n".to_owned();
    for n in 1..12 {
        bomb += &format!("x{n}: &x{n} [{}]\n", vec![format!("*x{}", n - 1); 9].join(", "));
    }
    policy_file(bomb.as_bytes());
    settings_file(bomb.as_bytes());
    for deep in ["[", "{a: ", "- "] {
        policy_file(deep.repeat(100_000).as_bytes());
        settings_file(deep.repeat(100_000).as_bytes());
        engine_answer(deep.repeat(100_000).as_bytes());
    }
    policy_file("a".repeat(10_000_000).as_bytes());
    settings_file(format!("policies: {}", "a".repeat(10_000_000)).as_bytes());
    let name = "n".repeat(10_000_000);
    engine_answer(
        json!([{"Id": "a1", "Names": [name], "State": name, "Labels": {"a": name}}])
            .to_string()
            .as_bytes(),
    );
}

/// A network that carries our mark but was made by somebody else.
#[test]
fn networks_of_one_address_and_addresses_of_others() {
    for (subnet, address) in [
        ("10.213.0.1/32", "10.213.0.1"),
        ("10.213.0.0/31", "10.213.0.1"),
        ("10.213.0.0/24", "10.212.255.255"),
        ("0.0.0.0/0", "255.255.255.255"),
        ("255.255.255.254/31", "0.0.0.1"),
    ] {
        let text = String::from_utf8(answer()).unwrap();
        let text = text
            .replace("10.213.0.0/24", subnet)
            .replace("10.213.0.2", address);
        let text = text.replace("fd00:9::/64", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128");
        let listing = crate::docker::untrusted::read_answer(text.as_bytes());
        let policy = "cofferdam: 1\nsegment: shop\nservices:\n  db: { select: { name: c1 } }\n  \
                      a: { select: { name: aa } }\nallow:\n  - { from: a, to: db, ports: [1] }\n";
        let files = [SourceFile {
            path: "p.yaml".into(),
            bytes: policy.into(),
        }];
        let rights = Rights {
            policy: policy::load(&files).unwrap().policy,
            ..Rights::default()
        };
        let mut planner = planner(rights);
        let mut other = listing.containers[0].clone();
        other.id.0 = "a2".into();
        other.name = "aa".into();
        other.endpoints.clear();
        let mut listing = listing;
        listing.containers.push(other);
        let now = planner.moment();
        planner.reset(listing, now);
        for step in planner.plan().networks {
            if let crate::plan::networks::NetworkStep::Attach { ipv4, .. } = step {
                let net: ipnet::Ipv4Net = subnet.parse().unwrap();
                assert!(net.contains(&ipv4) && ipv4 != net.network(), "{ipv4} in {net}");
            }
        }
    }
}
