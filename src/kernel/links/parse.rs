//! What a link or route message of the kernel says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};

use super::{Bridge, NetfilterCalls, Port};
use crate::net::{IfName, Mac};

/// What a link is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Bridge(Bridge),
    /// A port, its peer not asked for yet.
    Port(Port, Option<End>),
    /// Neither, by its index.
    Other(u32),
}

/// Where a veth's other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// The namespace's number, as seen from here (`IFLA_LINK_NETNSID`).
    pub(super) namespace: i32,
    /// The interface's index there (`IFLA_LINK`).
    pub(super) index: u32,
}

/// Reads a link message.
pub(super) fn see(message: &LinkMessage) -> Seen {
    let index = message.header.index;
    let Some(name) = name(message) else {
        return Seen::Other(index);
    };
    if is_bridge(message) {
        return Seen::Bridge(Bridge { index, name });
    }
    let bridge = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(bridge) if *bridge != 0 => Some(*bridge),
        _ => None,
    });
    match bridge {
        Some(bridge) if is_bridge_port(message) => Seen::Port(
            Port {
                index,
                name,
                bridge,
                peer: None,
            },
            end(message),
        ),
        _ => Seen::Other(index),
    }
}

fn name(message: &LinkMessage) -> Option<IfName> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    })
}

fn info(message: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(info) => Some(info),
            _ => None,
        })
        .flatten()
}

pub(super) fn is_bridge(message: &LinkMessage) -> bool {
    info(message).any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)))
}

/// A bond or a VRF has ports, too.
fn is_bridge_port(message: &LinkMessage) -> bool {
    info(message).any(|info| matches!(info, LinkInfo::PortKind(InfoPortKind::Bridge)))
}

fn end(message: &LinkMessage) -> Option<End> {
    if !info(message).any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth))) {
        return None;
    }
    let (mut namespace, mut index) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // -1: a namespace without a number here.
            LinkAttribute::LinkNetNsId(number) if *number >= 0 => namespace = Some(*number),
            LinkAttribute::Link(number) => index = Some(*number),
            _ => {}
        }
    }
    Some(End {
        namespace: namespace?,
        index: index?,
    })
}

/// The link's own Ethernet address.
pub(super) fn address(message: &LinkMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

pub(super) fn netfilter_calls(message: &LinkMessage) -> Option<NetfilterCalls> {
    let data = info(message).find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(data)) => Some(data),
        _ => None,
    })?;
    let mut calls = NetfilterCalls {
        ipv4: false,
        ipv6: false,
    };
    for setting in data {
        match setting {
            InfoBridge::NfCallIpTables(on) => calls.ipv4 = *on,
            InfoBridge::NfCallIp6Tables(on) => calls.ipv6 = *on,
            _ => {}
        }
    }
    Some(calls)
}

pub(super) fn isolated(message: &LinkMessage) -> Option<bool> {
    info(message)
        .filter_map(|info| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => Some(data),
            _ => None,
        })
        .flatten()
        .find_map(|setting| match setting {
            InfoBridgePort::Isolated(on) => Some(*on),
            _ => None,
        })
}

/// Whether a port is isolated, from the bridge's own view of it (a message of the bridge's family).
pub(super) fn isolated_by_bridge(message: &LinkMessage) -> Option<bool> {
    const IFLA_BRPORT_ISOLATED: u16 = 33;
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::ProtoInfoBridge(settings) => settings.iter().find_map(|setting| {
            if setting.kind() != IFLA_BRPORT_ISOLATED {
                return None;
            }
            let mut value = vec![0; setting.value_len()];
            setting.emit_value(&mut value);
            value.first().map(|on| *on != 0)
        }),
        _ => None,
    })
}

/// A route of the main table.
pub(super) fn main_route(message: &RouteMessage) -> Option<(IpNet, Option<u32>)> {
    let mut table = u32::from(message.header.table);
    let (mut destination, mut interface) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address))
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address))
            }
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let everything = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let address = destination.unwrap_or(everything);
    let net = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some((net, interface))
}
