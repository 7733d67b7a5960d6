//! The kernel's connection tracking table: which flows are established, and their end.
//!
//! Out: [`Flow`]s with what a policy is asked about. In: flows to end, so that a revoked right does not live on in an
//! open connection.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_netfilter::{
    NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::errno::Errno;

use super::keys;
use super::netlink::{Netfilter, NetlinkError, attribute, message};
use crate::net::Family;

/// Why flows could not be listed or ended.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    #[error("could not open the channel to connection tracking")]
    Open(#[source] NetlinkError),
    #[error("could not list the established flows")]
    List(#[source] NetlinkError),
    #[error("could not end the flow from {} to {}", .flow.original.source, .flow.original.destination)]
    Delete {
        flow: Box<Flow>,
        #[source]
        source: NetlinkError,
    },
    #[error("could not end {count} flows")]
    DeleteMany {
        count: usize,
        #[source]
        source: NetlinkError,
    },
}

impl ConntrackError {
    /// Whether the same call may well succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open(source)
            | Self::List(source)
            | Self::Delete { source, .. }
            | Self::DeleteMany { source, .. } => source.is_retryable(),
        }
    }
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub detail: Detail,
}

/// What tells a protocol's flows between two addresses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detail {
    Ports { source: u16, destination: u16 },
    Icmp { kind: u8, code: u8, id: u16 },
    None,
}

/// A tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub family: Family,
    /// The IP protocol's number.
    pub protocol: u8,
    /// As the first packet came, before any address translation.
    pub original: Tuple,
    /// As answers come: its source is where the flow really goes, whatever DNAT made of the destination.
    pub reply: Tuple,
    /// Guards against ending a younger flow with the same addresses.
    pub id: u32,
    pub zone: u16,
}

impl Flow {
    /// Who began it: the source before any masquerading.
    pub fn client(&self) -> IpAddr {
        self.original.source
    }

    /// Where it really goes, after DNAT.
    pub fn server(&self) -> IpAddr {
        self.reply.source
    }

    /// The port where it really goes, after DNAT.
    pub fn server_port(&self) -> Option<u16> {
        match self.reply.detail {
            Detail::Ports { source, .. } => Some(source),
            Detail::Icmp { .. } | Detail::None => None,
        }
    }

    /// The type of the ICMP message that began it.
    pub fn icmp_type(&self) -> Option<u8> {
        match self.original.detail {
            Detail::Icmp { kind, .. } => Some(kind),
            Detail::Ports { .. } | Detail::None => None,
        }
    }

    /// The addresses in either direction, on either side.
    pub fn ends(&self) -> [IpAddr; 4] {
        let (original, reply) = (self.original, self.reply);
        [
            original.source,
            original.destination,
            reply.source,
            reply.destination,
        ]
    }

    /// Whether the address is one of [`Self::ends`].
    pub fn involves(&self, address: IpAddr) -> bool {
        self.ends().contains(&address)
    }
}

/// The long-lived channel to connection tracking.
#[derive(Debug)]
pub struct Conntrack {
    netfilter: Netfilter,
}

impl Conntrack {
    /// Opens the channel in the network namespace of the calling thread.
    pub fn open() -> Result<Self, ConntrackError> {
        Netfilter::open()
            .map(|netfilter| Self { netfilter })
            .map_err(ConntrackError::Open)
    }

    /// Every flow of both families, in one walk: the kernel passes over each bucket of its hash table, which takes 20 ms
    /// and more even where nothing is in it, and no filter shortens that.
    pub fn flows(&mut self) -> Result<Vec<Flow>, ConntrackError> {
        let request = conntrack_message(NetfilterProtoFamily::Unspec, IPCTNL_MSG_CT_GET, Vec::new());
        self.netfilter
            .dump(&request, parse_flow)
            .map_err(ConntrackError::List)
    }

    /// Ends a flow; one that is gone already, or was replaced by a younger one, is no error.
    pub fn delete(&mut self, flow: &Flow) -> Result<(), ConntrackError> {
        self.delete_all(std::slice::from_ref(flow)).map(drop)
    }

    /// Ends the flows; returns how many were still there. All are tried before the first failure is returned.
    pub fn delete_all(&mut self, flows: &[Flow]) -> Result<usize, ConntrackError> {
        let requests: Vec<_> = flows.iter().map(delete_request).collect();
        let results = self
            .netfilter
            .calls(&requests)
            .map_err(|source| ConntrackError::DeleteMany {
                count: flows.len(),
                source,
            })?;
        let mut ended = 0;
        let mut failure = None;
        for (flow, result) in flows.iter().zip(results) {
            match result {
                None => ended += 1,
                Some(Errno::ENOENT) => {}
                Some(errno) => {
                    let source = NetlinkError::Refused(errno);
                    failure.get_or_insert(ConntrackError::Delete {
                        flow: Box::new(*flow),
                        source,
                    });
                }
            }
        }
        failure.map_or(Ok(ended), Err)
    }

    /// Ends every flow that has the address in either direction; returns how many.
    pub fn purge_address(&mut self, address: IpAddr) -> Result<usize, ConntrackError> {
        let flows: Vec<Flow> = self
            .flows()?
            .into_iter()
            .filter(|flow| flow.involves(address))
            .collect();
        self.delete_all(&flows)
    }
}

const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `CTA_PROTO_ICMP_{ID,TYPE,CODE}` follow each other, and so do `CTA_PROTO_ICMPV6_{ID,TYPE,CODE}`.
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMPV6_ID: u16 = 7;

fn conntrack_message(
    family: NetfilterProtoFamily,
    message_type: u8,
    attributes: Vec<DefaultNla>,
) -> NetfilterMessage {
    let subsys = NetfilterSubsystem::Conntrack;
    message(
        family,
        NetfilterMessageInner::Other {
            subsys,
            message_type,
            attributes,
        },
    )
}

pub(super) fn parse_flow(payload: &[u8]) -> Option<Flow> {
    let original = attribute(payload, CTA_TUPLE_ORIG)?;
    let family = family(attribute(original, CTA_TUPLE_IP)?)?;
    Some(Flow {
        family,
        protocol: number(attribute(original, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM)?,
        original: parse_tuple(family, original)?,
        reply: parse_tuple(family, attribute(payload, CTA_TUPLE_REPLY)?)?,
        id: attribute(payload, CTA_ID)?
            .try_into()
            .ok()
            .map(u32::from_be_bytes)?,
        zone: short(payload, CTA_ZONE).unwrap_or(0),
    })
}

/// The family of a tuple, by which addresses it has.
fn family(addresses: &[u8]) -> Option<Family> {
    Family::ALL.into_iter().find(|family| {
        let (source, _) = address_kinds(*family);
        attribute(addresses, source).is_some()
    })
}

fn parse_tuple(family: Family, tuple: &[u8]) -> Option<Tuple> {
    let (addresses, protocol) = (
        attribute(tuple, CTA_TUPLE_IP)?,
        attribute(tuple, CTA_TUPLE_PROTO)?,
    );
    let (source, destination) = address_kinds(family);
    let address = |kind| {
        let address = keys::address(attribute(addresses, kind)?)?;
        (Family::of(address) == family).then_some(address)
    };
    let icmp_id = icmp_id_kind(family);
    let detail = if let Some(source) = short(protocol, CTA_PROTO_SRC_PORT) {
        Detail::Ports {
            source,
            destination: short(protocol, CTA_PROTO_DST_PORT)?,
        }
    } else if let Some(id) = short(protocol, icmp_id) {
        Detail::Icmp {
            kind: number(protocol, icmp_id + 1)?,
            code: number(protocol, icmp_id + 2)?,
            id,
        }
    } else {
        Detail::None
    };
    Some(Tuple {
        source: address(source)?,
        destination: address(destination)?,
        detail,
    })
}

fn address_kinds(family: Family) -> (u16, u16) {
    match family {
        Family::V4 => (CTA_IP_V4_SRC, CTA_IP_V4_DST),
        Family::V6 => (CTA_IP_V6_SRC, CTA_IP_V6_DST),
    }
}

fn icmp_id_kind(family: Family) -> u16 {
    match family {
        Family::V4 => CTA_PROTO_ICMP_ID,
        Family::V6 => CTA_PROTO_ICMPV6_ID,
    }
}

fn number(payload: &[u8], kind: u16) -> Option<u8> {
    attribute(payload, kind)?.first().copied()
}

fn short(payload: &[u8], kind: u16) -> Option<u16> {
    attribute(payload, kind)?.try_into().ok().map(u16::from_be_bytes)
}

/// A delete without a tuple would end every flow of the host: it always has one.
fn delete_request(flow: &Flow) -> NetfilterMessage {
    let (family, tuple) = (flow.family, &flow.original);
    let (source, destination) = address_kinds(family);
    let addresses = [
        DefaultNla::new(source, octets(tuple.source)),
        DefaultNla::new(destination, octets(tuple.destination)),
    ];
    let mut protocol = vec![DefaultNla::new(CTA_PROTO_NUM, vec![flow.protocol])];
    match tuple.detail {
        Detail::Ports { source, destination } => protocol.extend([
            DefaultNla::new(CTA_PROTO_SRC_PORT, source.to_be_bytes().to_vec()),
            DefaultNla::new(CTA_PROTO_DST_PORT, destination.to_be_bytes().to_vec()),
        ]),
        Detail::Icmp { kind, code, id } => {
            let first = icmp_id_kind(family);
            protocol.extend([
                DefaultNla::new(first, id.to_be_bytes().to_vec()),
                DefaultNla::new(first + 1, vec![kind]),
                DefaultNla::new(first + 2, vec![code]),
            ]);
        }
        Detail::None => {}
    }
    let tuple = nested(
        CTA_TUPLE_ORIG,
        &[
            nested(CTA_TUPLE_IP, &addresses),
            nested(CTA_TUPLE_PROTO, &protocol),
        ],
    );
    let mut attributes = vec![tuple, DefaultNla::new(CTA_ID, flow.id.to_be_bytes().to_vec())];
    if flow.zone != 0 {
        attributes.push(DefaultNla::new(CTA_ZONE, flow.zone.to_be_bytes().to_vec()));
    }
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    conntrack_message(family, IPCTNL_MSG_CT_DELETE, attributes)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}
