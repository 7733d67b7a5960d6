//! The kernel's form of a set element's key.
//!
//! Each part of a concatenation is padded to four bytes. Addresses are in network byte order, interface indexes in the
//! host's. An interval is two elements: its first address, and the address after its last with the end flag.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::net::{Family, IfName, Mac, Transport};
use crate::plan::ruleset::{HookPoint, Key, KeyType};

/// The bytes of an `ifname` (`IFNAMSIZ`).
const NAME: usize = 16;

/// A key for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WireKey {
    Exact(Vec<u8>),
    /// The first address and the one after the last; `None` where the range reaches the end of the address space.
    Interval(Vec<u8>, Option<Vec<u8>>),
}

/// A key's bytes.
pub(super) fn encode(key: &Key) -> WireKey {
    let exact = |parts: &[&[u8]]| WireKey::Exact(parts.concat());
    match key {
        Key::Ipv4(address) => exact(&[&address.octets()]),
        Key::Ipv6(address) => exact(&[&address.octets()]),
        Key::Net(net) => {
            let (first, after) = match net {
                IpNet::V4(net) => (
                    net.network().octets().to_vec(),
                    u32::from(net.broadcast())
                        .checked_add(1)
                        .map(|after| after.to_be_bytes().to_vec()),
                ),
                IpNet::V6(net) => (
                    net.network().octets().to_vec(),
                    u128::from(net.broadcast())
                        .checked_add(1)
                        .map(|after| after.to_be_bytes().to_vec()),
                ),
            };
            WireKey::Interval(first, after)
        }
        Key::IfName(name) => {
            let mut bytes = name.as_str().as_bytes().to_vec();
            bytes.resize(NAME, 0);
            WireKey::Exact(bytes)
        }
        Key::IfIndex(index) => exact(&[&index.to_ne_bytes()]),
        Key::Mac(mac) => exact(&[&mac.0]),
        Key::Binding4(index, mac, address) => {
            exact(&[&index.to_ne_bytes(), &mac.0, &[0, 0], &address.octets()])
        }
        Key::Binding6(index, mac, address) => {
            exact(&[&index.to_ne_bytes(), &mac.0, &[0, 0], &address.octets()])
        }
        Key::Service4(address, transport, port) => exact(&[&address.octets(), &service(*transport, *port)]),
        Key::Service6(address, transport, port) => exact(&[&address.octets(), &service(*transport, *port)]),
        Key::HostPort(family, transport, port) => {
            exact(&[&[nfproto(*family), 0, 0, 0], &service(*transport, *port)])
        }
    }
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// A key of a set without intervals.
pub(super) fn decode(key_type: KeyType, bytes: &[u8]) -> Option<Key> {
    Some(match key_type {
        KeyType::Ipv4 => Key::Ipv4(ipv4(bytes)?),
        KeyType::Ipv6 => Key::Ipv6(ipv6(bytes)?),
        KeyType::IfName => {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            Key::IfName(
                std::str::from_utf8(bytes.get(..end)?)
                    .ok()?
                    .parse::<IfName>()
                    .ok()?,
            )
        }
        KeyType::IfIndex => Key::IfIndex(u32::from_ne_bytes(bytes.try_into().ok()?)),
        KeyType::Mac => Key::Mac(Mac(bytes.try_into().ok()?)),
        KeyType::Binding4 => {
            let (index, mac, address) = binding(bytes)?;
            Key::Binding4(index, mac, ipv4(address)?)
        }
        KeyType::Binding6 => {
            let (index, mac, address) = binding(bytes)?;
            Key::Binding6(index, mac, ipv6(address)?)
        }
        KeyType::Service4 => {
            let (address, transport, port) = address_and_service(bytes)?;
            Key::Service4(ipv4(address)?, transport, port)
        }
        KeyType::Service6 => {
            let (address, transport, port) = address_and_service(bytes)?;
            Key::Service6(ipv6(address)?, transport, port)
        }
        KeyType::HostPort => {
            let (number, transport, port) = address_and_service(bytes)?;
            let family = Family::ALL
                .into_iter()
                .find(|it| number.first() == Some(&nfproto(*it)))?;
            Key::HostPort(family, transport, port)
        }
        KeyType::Ipv4Nets | KeyType::Ipv6Nets => return None,
    })
}

/// The networks between the starts and the ends of an interval set. A range that is no network becomes several.
pub(super) fn networks(key_type: KeyType, elements: &[(Vec<u8>, bool)]) -> Option<BTreeMap<Key, ()>> {
    let last_of_all = match key_type {
        KeyType::Ipv4Nets => u128::from(u32::MAX),
        _ => u128::MAX,
    };
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for (bytes, is_end) in elements {
        let number = match key_type {
            KeyType::Ipv4Nets => u128::from(u32::from(ipv4(bytes)?)),
            _ => u128::from(ipv6(bytes)?),
        };
        if *is_end { &mut ends } else { &mut starts }.push(number);
    }
    ends.sort_unstable();
    let mut found = BTreeMap::new();
    for start in starts {
        let after = ends.partition_point(|end| *end <= start);
        let last = ends.get(after).map_or(last_of_all, |end| end - 1);
        found.extend(
            subnets(key_type, start, last)?
                .into_iter()
                .map(|net| (Key::Net(net), ())),
        );
    }
    Some(found)
}

fn subnets(key_type: KeyType, first: u128, last: u128) -> Option<Vec<IpNet>> {
    Some(match key_type {
        KeyType::Ipv4Nets => {
            let address = |number: u128| u32::try_from(number).ok().map(Ipv4Addr::from);
            Ipv4Subnets::new(address(first)?, address(last)?, 0)
                .map(IpNet::from)
                .collect()
        }
        _ => Ipv6Subnets::new(first.into(), last.into(), 0)
            .map(IpNet::from)
            .collect(),
    })
}

/// Protocol and port, each padded to four bytes.
fn service(transport: Transport, port: u16) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [transport.number(), 0, 0, 0, high, low, 0, 0]
}

fn address_and_service(bytes: &[u8]) -> Option<(&[u8], Transport, u16)> {
    let (address, service) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    let [number, _, _, _, high, low, _, _] = *service else {
        return None;
    };
    let transport = Transport::ALL.into_iter().find(|it| it.number() == number)?;
    Some((address, transport, u16::from_be_bytes([high, low])))
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn ipv6(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
}

/// An address of either family.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    ipv4(bytes)
        .map(IpAddr::V4)
        .or_else(|| ipv6(bytes).map(IpAddr::V6))
}

fn binding(bytes: &[u8]) -> Option<(u32, Mac, &[u8])> {
    let (index, rest) = bytes.split_first_chunk::<4>()?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (_padding, address) = rest.split_first_chunk::<2>()?;
    Some((u32::from_ne_bytes(*index), Mac(*mac), address))
}

/// A hook by its number, which is the same for inet (`NF_INET_*`) and bridge (`NF_BR_*`).
pub(super) fn hook(number: u32) -> Option<HookPoint> {
    match number {
        0 => Some(HookPoint::Prerouting),
        1 => Some(HookPoint::Input),
        2 => Some(HookPoint::Forward),
        3 => Some(HookPoint::Output),
        4 => Some(HookPoint::Postrouting),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(key_type: KeyType, key: &Key) -> BTreeMap<Key, ()> {
        match encode(key) {
            WireKey::Exact(bytes) => BTreeMap::from([(decode(key_type, &bytes).unwrap(), ())]),
            WireKey::Interval(first, after) => {
                let ends = after.into_iter().map(|after| (after, true));
                let elements: Vec<_> = std::iter::once((first, false)).chain(ends).collect();
                networks(key_type, &elements).unwrap()
            }
        }
    }

    #[test]
    fn every_key_reads_back() {
        let mac = Mac([2, 0x42, 10, 213, 5, 2]);
        let keys = [
            (KeyType::Ipv4, Key::Ipv4(Ipv4Addr::new(10, 213, 5, 2))),
            (KeyType::Ipv6, Key::Ipv6("fd00::5".parse().unwrap())),
            (KeyType::Ipv4Nets, Key::Net("10.213.0.0/16".parse().unwrap())),
            (KeyType::Ipv4Nets, Key::Net("0.0.0.0/0".parse().unwrap())),
            (KeyType::Ipv4Nets, Key::Net("255.255.255.255/32".parse().unwrap())),
            (KeyType::Ipv6Nets, Key::Net("fd00::/8".parse().unwrap())),
            (KeyType::Ipv6Nets, Key::Net("ff00::/8".parse().unwrap())),
            (KeyType::IfName, Key::IfName("br-0123456789ab".parse().unwrap())),
            (KeyType::IfIndex, Key::IfIndex(77)),
            (KeyType::Mac, Key::Mac(mac)),
            (
                KeyType::Binding4,
                Key::Binding4(7, mac, Ipv4Addr::new(10, 213, 5, 2)),
            ),
            (
                KeyType::Binding6,
                Key::Binding6(7, mac, "fd00::5".parse().unwrap()),
            ),
            (
                KeyType::Service4,
                Key::Service4(Ipv4Addr::new(10, 213, 5, 2), Transport::Tcp, 8080),
            ),
            (
                KeyType::Service6,
                Key::Service6("fd00::5".parse().unwrap(), Transport::Udp, 53),
            ),
            (KeyType::HostPort, Key::HostPort(Family::V6, Transport::Tcp, 8080)),
        ];
        for (key_type, key) in keys {
            assert_eq!(read_back(key_type, &key), BTreeMap::from([(key, ())]));
        }
    }

    #[test]
    fn neighbours_stay_apart_and_odd_ranges_are_split() {
        let at = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets().to_vec();
        let elements = [
            (at("0.0.0.0"), true),
            (at("10.0.0.0"), false),
            (at("10.0.1.0"), true),
            (at("10.0.1.0"), false),
            (at("10.0.1.3"), true),
        ];
        let found: Vec<_> = networks(KeyType::Ipv4Nets, &elements)
            .unwrap()
            .into_keys()
            .collect();
        let expected =
            ["10.0.0.0/24", "10.0.1.0/31", "10.0.1.2/32"].map(|net| Key::Net(net.parse().unwrap()));
        assert_eq!(found, expected);
    }
}
