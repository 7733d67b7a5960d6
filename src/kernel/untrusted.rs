//! Bytes as if they came from the kernel, read in every way that such bytes are read.

use super::keys;
use super::netlink::{attributes, messages};
use super::{conntrack, elements, generation, links};
use crate::net::Family;
use crate::plan::ruleset::KeyType;

const KEYS: [KeyType; 9] = [
    KeyType::Ipv4,
    KeyType::Ipv6,
    KeyType::Ipv4Nets,
    KeyType::Ipv6Nets,
    KeyType::IfName,
    KeyType::IfIndex,
    KeyType::Mac,
    KeyType::Binding4,
    KeyType::Binding6,
];

/// Reads a datagram; what it returns is how many objects were found, which the datagram's size bounds.
pub(crate) fn read_datagram(datagram: &[u8]) -> usize {
    let mut found = 0;
    for message in messages(datagram) {
        found += read_payload(message.attributes());
    }
    found += read_payload(datagram);
    found += generation::generations(datagram).count();
    found += links::read_untrusted(datagram);
    found
}

fn read_payload(payload: &[u8]) -> usize {
    let mut found = attributes(payload).count();
    found += usize::from(elements::parse_counter(payload).is_some());
    found += usize::from(elements::parse_base_chain(payload).is_some());
    if let Some(flow) = conntrack::parse_flow(payload) {
        found += 1;
        let of_its_family = flow.ends().iter().all(|it| Family::of(*it) == flow.family);
        assert!(of_its_family, "a flow has addresses of one family");
        let (_port, _kind) = (flow.server_port(), flow.icmp_type());
    }
    for listed in elements::listed_elements(payload) {
        found += 1;
        for key in KEYS {
            if let Some(key) = keys::decode(key, &listed.key) {
                let _wire = keys::encode(&key);
            }
            let edges = [(listed.key.clone(), false), (listed.key.clone(), true)];
            let nets = keys::networks(key, &edges).unwrap_or_default();
            assert!(nets.len() <= 512, "one range is never more networks than this");
        }
    }
    found
}
