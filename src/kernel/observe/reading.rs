//! What nft prints of the tables as contacts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::rules;
use crate::model::learn::{Contact, Place};
use crate::net::{IcmpType, PortRange, Transport};
use crate::policy::Ports;

/// What was counted since the tables were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    pub contacts: BTreeMap<(Place, Contact), u64>,
    /// Multicast and broadcast packets.
    pub multicast: u64,
    /// Packets that found no room.
    pub lost: u64,
    /// Whether there were more addresses outside than are kept.
    pub samples_are_cut: bool,
}

fn counters(objects: &[Value]) -> impl Iterator<Item = (&str, u64)> {
    objects.iter().filter_map(|object| {
        let counter = object.get("counter")?;
        Some((counter["name"].as_str()?, counter["packets"].as_u64()?))
    })
}

pub(super) fn is_there(objects: &[Value]) -> bool {
    counters(objects).next().is_some()
}

/// Whether the last of all commands was carried out.
pub(super) fn is_complete(objects: &[Value]) -> bool {
    counters(objects).any(|(name, _)| name == rules::READY)
}

pub(super) fn read(objects: &[Value]) -> Reading {
    let mut reading = Reading::default();
    for (name, packets) in counters(objects) {
        match name {
            "lost" => reading.lost += packets,
            "many" => reading.multicast += packets,
            _ => {}
        }
    }
    for set in objects.iter().filter_map(|object| object.get("set")) {
        let place = match set["family"].as_str() {
            Some("bridge") => Place::Bridge,
            _ => Place::Routed,
        };
        let kind = set["name"]
            .as_str()
            .unwrap_or_default()
            .trim_end_matches(['4', '6']);
        let elements = set["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_full = set["size"].as_u64() <= u64::try_from(elements.len()).ok();
        reading.samples_are_cut |= matches!(kind, "far" | "who") && is_full;
        for element in elements.iter().filter_map(|element| element.get("elem")) {
            let parts = element["val"]["concat"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            if let Some(contact) = contact(kind, parts) {
                let packets = element["counter"]["packets"].as_u64().unwrap_or_default();
                *reading.contacts.entry((place, contact)).or_default() += packets;
            }
        }
    }
    reading
}

/// An element of a set by the name of its kind; `None` for what no policy can say, such as port 0.
fn contact(kind: &str, parts: &[Value]) -> Option<Contact> {
    let ports = |protocol: &Value, port: &Value| {
        let port = number(port).filter(|port| *port != 0)?;
        Some(Ports::Transport(transport(protocol)?, PortRange::single(port)))
    };
    Some(match (kind, parts) {
        ("pair", [from, to, protocol, port]) => Contact::Pair {
            from: address(from)?,
            to: address(to)?,
            ports: ports(protocol, port)?,
        },
        ("out", [from, protocol, port]) => Contact::Out {
            from: address(from)?,
            ports: ports(protocol, port)?,
        },
        ("far", [from, protocol, port, to]) => Contact::Far {
            from: address(from)?,
            ports: ports(protocol, port)?,
            to: address(to)?,
        },
        ("into", [to, protocol, port]) => Contact::In {
            to: address(to)?,
            ports: ports(protocol, port)?,
        },
        ("who", [to, protocol, port, from]) => Contact::Who {
            to: address(to)?,
            ports: ports(protocol, port)?,
            from: address(from)?,
        },
        ("echo", [from, to]) => Contact::Pair {
            from: address(from)?,
            to: address(to)?,
            ports: Ports::Icmp(Some(IcmpType::EchoRequest)),
        },
        ("answer", [from, to, protocol, port]) => Contact::Answer {
            from: address(from)?,
            to: address(to)?,
            ports: ports(protocol, port)?,
        },
        ("unclear", [from, to, protocol, source, port]) => Contact::Unclear {
            from: address(from)?,
            to: address(to)?,
            transport: transport(protocol)?,
            source: number(source).filter(|port| *port != 0)?,
            port: number(port).filter(|port| *port != 0)?,
        },
        ("other", [from, to, protocol]) => Contact::Other {
            from: address(from)?,
            to: address(to)?,
            protocol: number(protocol)?,
        },
        _ => return None,
    })
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

/// By number, or by name where nft knows one.
fn transport(value: &Value) -> Option<Transport> {
    Transport::ALL.into_iter().find(|transport| {
        value.as_u64() == Some(u64::from(transport.number())) || value.as_str() == Some(transport.as_str())
    })
}
