//! What rules log: one message for each packet, over netlink (NFLOG).
//!
//! In: the number of a group. Out: [`Logged`] packets in the order in which the kernel saw them, and how many of them got
//! lost. One process at a time can hold a group of a network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::errno::Errno;

use super::keys;
use super::netlink::{Netfilter, NetlinkError, attributes, text};
use crate::net::{Mac, Traffic, Transport};
use crate::plan::ruleset::HookPoint;

/// Why packets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NflogError {
    #[error("could not open the channel to NFLOG")]
    Open(#[source] NetlinkError),
    #[error("another process reads NFLOG group {0}")]
    Taken(u16),
    #[error("could not subscribe to NFLOG group {group}")]
    Subscribe {
        group: u16,
        #[source]
        source: NetlinkError,
    },
    #[error("could not receive from NFLOG")]
    Receive(#[source] NetlinkError),
}

/// A packet that a rule logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The rule's own words.
    pub prefix: String,
    /// Where in its way.
    pub hook: HookPoint,
    /// The interface that it came in by; of a bridge's frame the bridge.
    pub iif: Option<u32>,
    /// The bridge's port that it came in by.
    pub port: Option<u32>,
    /// Who sent the frame, where there was one.
    pub mac: Option<Mac>,
    pub body: LoggedBody,
}

/// What the packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoggedBody {
    Ip {
        source: IpAddr,
        destination: IpAddr,
        traffic: Traffic,
        /// The source port; 0 where the protocol has none.
        source_port: u16,
        /// TCP's sequence number, by which a packet that is sent again is known.
        sequence: Option<u32>,
    },
    Arp {
        sender_mac: Mac,
        sender: Ipv4Addr,
        target: Ipv4Addr,
    },
    /// By EtherType; also a packet too short to say what it is.
    Other(u16),
}

/// What is read at once.
#[derive(Debug, Default)]
pub struct Batch {
    pub packets: Vec<Logged>,
    /// Logged before these, and lost on the way.
    pub lost: u64,
}

/// The bytes of each packet that are looked at: enough for every header.
const SNAPLEN: u32 = 128;
/// The kernel hands over when so many wait, or after this long.
const AT_ONCE: u32 = 64;
/// In hundredths of a second.
const AT_LATEST: u32 = 5;

/// How long [`Nflog::receive`] waits.
const PATIENCE: Duration = Duration::from_millis(200);

const NFULNL_MSG_CONFIG: u8 = 1;
/// `NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET`
const PACKET: u16 = 4 << 8;

/// A group that is ours until this is dropped.
#[derive(Debug)]
pub struct Nflog {
    netfilter: Netfilter,
    /// The number of the next packet.
    next: Option<u32>,
}

impl Nflog {
    /// Subscribes, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NflogError::Taken`] where another process has the group.
    pub fn open(group: u16) -> Result<Self, NflogError> {
        let mut netfilter = Netfilter::open().map_err(NflogError::Open)?;
        let results = netfilter.calls(&subscription(group));
        let refused = match results {
            Ok(results) => results.into_iter().flatten().next().map(NetlinkError::Refused),
            Err(error) => Some(error),
        };
        match refused {
            None => {
                netfilter.set_patience(PATIENCE).map_err(NflogError::Open)?;
                Ok(Self {
                    netfilter,
                    next: None,
                })
            }
            Some(NetlinkError::Refused(Errno::EBUSY | Errno::EPERM)) => Err(NflogError::Taken(group)),
            Some(source) => Err(NflogError::Subscribe { group, source }),
        }
    }

    /// Waits for packets, a moment at most: then the batch is empty.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub fn receive(&mut self) -> Result<Batch, NflogError> {
        let datagram = match self.netfilter.notification() {
            // How many got lost is told by the number of the next one that comes.
            Err(NetlinkError::Overrun) => self.netfilter.notification(),
            other => other,
        };
        let datagram = match datagram {
            Ok(datagram) => datagram,
            Err(NetlinkError::Timeout | NetlinkError::Overrun) => return Ok(Batch::default()),
            Err(error) => return Err(NflogError::Receive(error)),
        };
        let mut batch = Batch::default();
        for received in super::netlink::messages(datagram).filter(|received| received.kind == PACKET) {
            let (logged, number) = parse(received.attributes());
            if let Some(number) = number {
                let missing = self.next.map_or(0, |next| number.wrapping_sub(next));
                batch.lost += u64::from(missing);
                self.next = Some(number.wrapping_add(1));
            }
            batch.packets.extend(logged);
        }
        Ok(batch)
    }
}

/// Bind; what is copied of each packet; how many at once; numbers, by which a loss is seen.
fn subscription(group: u16) -> Vec<NetfilterMessage> {
    const NFULA_CFG_CMD: u16 = 1;
    const NFULA_CFG_MODE: u16 = 2;
    const NFULA_CFG_TIMEOUT: u16 = 4;
    const NFULA_CFG_QTHRESH: u16 = 5;
    const NFULA_CFG_FLAGS: u16 = 6;
    const NFULNL_CFG_CMD_BIND: u8 = 1;
    const NFULNL_COPY_PACKET: u8 = 2;
    const NFULNL_CFG_F_SEQ: u16 = 1;
    // The copy's length, the mode, and a byte to fill up.
    let mode = [&SNAPLEN.to_be_bytes()[..], &[NFULNL_COPY_PACKET, 0]].concat();
    let attributes = [
        (NFULA_CFG_CMD, vec![NFULNL_CFG_CMD_BIND]),
        (NFULA_CFG_MODE, mode),
        (NFULA_CFG_TIMEOUT, AT_LATEST.to_be_bytes().to_vec()),
        (NFULA_CFG_QTHRESH, AT_ONCE.to_be_bytes().to_vec()),
        (NFULA_CFG_FLAGS, NFULNL_CFG_F_SEQ.to_be_bytes().to_vec()),
    ];
    let message = |(kind, value)| {
        let inner = NetfilterMessageInner::Other {
            subsys: NetfilterSubsystem::ULog,
            message_type: NFULNL_MSG_CONFIG,
            attributes: vec![DefaultNla::new(kind, value)],
        };
        NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, group),
            inner,
        )
    };
    attributes.map(message).into()
}

/// The packet, where it is one, and its number.
pub(super) fn parse(payload: &[u8]) -> (Option<Logged>, Option<u32>) {
    const NFULA_PACKET_HDR: u16 = 1;
    const NFULA_IFINDEX_INDEV: u16 = 4;
    const NFULA_IFINDEX_PHYSINDEV: u16 = 6;
    const NFULA_HWADDR: u16 = 8;
    const NFULA_PAYLOAD: u16 = 9;
    const NFULA_PREFIX: u16 = 10;
    const NFULA_SEQ: u16 = 12;
    let word = |value: &[u8]| value.first_chunk().copied().map(u32::from_be_bytes);
    let (mut header, mut prefix, mut packet, mut number) = (None, "", &[][..], None);
    let (mut iif, mut port, mut mac) = (None, None, None);
    for (kind, value) in attributes(payload) {
        match kind {
            NFULA_PACKET_HDR => header = value.first_chunk::<3>().copied(),
            NFULA_IFINDEX_INDEV => iif = word(value),
            NFULA_IFINDEX_PHYSINDEV => port = word(value),
            // Its length, two bytes to fill up, then the address.
            NFULA_HWADDR if value.starts_with(&[0, 6]) => {
                mac = value.get(4..).and_then(|it| it.first_chunk()).copied().map(Mac);
            }
            NFULA_PAYLOAD => packet = value,
            NFULA_PREFIX => prefix = text(value).unwrap_or_default(),
            NFULA_SEQ => number = word(value),
            _ => {}
        }
    }
    let logged = header.and_then(|[high, low, hook]| {
        let hook = keys::hook(u32::from(hook))?;
        Some(Logged {
            prefix: prefix.to_owned(),
            hook,
            iif,
            port,
            mac,
            body: body(u16::from_be_bytes([high, low]), packet),
        })
    });
    (logged, number)
}

fn body(ether_type: u16, packet: &[u8]) -> LoggedBody {
    const IPV4: u16 = 0x0800;
    const ARP: u16 = 0x0806;
    const IPV6: u16 = 0x86dd;
    match ether_type {
        IPV4 => ipv4(packet),
        IPV6 => ipv6(packet),
        ARP => arp(packet),
        _ => None,
    }
    .unwrap_or(LoggedBody::Other(ether_type))
}

/// RFC 791.
fn ipv4(packet: &[u8]) -> Option<LoggedBody> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let source: [u8; 4] = *header[12..].first_chunk()?;
    let destination: [u8; 4] = *header[16..].first_chunk()?;
    // Only a packet's first fragment has the header of what it carries.
    let rest = if fragment == 0 { packet.get(length..) } else { None };
    Some(ip(
        Ipv4Addr::from(source).into(),
        Ipv4Addr::from(destination).into(),
        header[9],
        rest.unwrap_or_default(),
    ))
}

/// RFC 8200, with the extension headers that come before what is carried.
fn ipv6(packet: &[u8]) -> Option<LoggedBody> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let header: &[u8; 40] = packet.first_chunk()?;
    let source: [u8; 16] = *header[8..].first_chunk()?;
    let destination: [u8; 16] = *header[24..].first_chunk()?;
    let (mut protocol, mut rest) = (header[6], packet.get(40..).unwrap_or_default());
    while matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
        let Some([next, length, high, low]) = rest.first_chunk().copied() else {
            break;
        };
        let whole = match protocol {
            FRAGMENT => 8,
            _ => (usize::from(length) + 1) * 8,
        };
        let is_first = protocol != FRAGMENT || u16::from_be_bytes([high, low]) >> 3 == 0;
        protocol = next;
        rest = if is_first {
            rest.get(whole..).unwrap_or_default()
        } else {
            &[]
        };
        if !is_first {
            break;
        }
    }
    Some(ip(
        Ipv6Addr::from(source).into(),
        Ipv6Addr::from(destination).into(),
        protocol,
        rest,
    ))
}

fn ip(source: IpAddr, destination: IpAddr, protocol: u8, rest: &[u8]) -> LoggedBody {
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    let ports = rest
        .first_chunk::<4>()
        .map(|[a, b, c, d]| (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
    let transport = Transport::ALL.into_iter().find(|it| it.number() == protocol);
    let (traffic, source_port) = match (transport, ports, protocol, rest.first()) {
        (Some(transport), Some((source, destination)), _, _) => {
            (Traffic::Port(transport, destination), source)
        }
        (None, _, ICMP | ICMPV6, Some(kind)) => (Traffic::Icmp(*kind), 0),
        _ => (Traffic::Other(protocol), 0),
    };
    let sequence = match traffic {
        Traffic::Port(Transport::Tcp, _) => rest.get(4..).and_then(|it| it.first_chunk()).copied(),
        _ => None,
    };
    LoggedBody::Ip {
        source,
        destination,
        traffic,
        source_port,
        sequence: sequence.map(u32::from_be_bytes),
    }
}

/// RFC 826, for Ethernet and IPv4.
fn arp(packet: &[u8]) -> Option<LoggedBody> {
    let packet: &[u8; 28] = packet.first_chunk()?;
    if packet[..6] != [0, 1, 0x08, 0x00, 6, 4] {
        return None;
    }
    let sender: [u8; 4] = *packet[14..].first_chunk()?;
    let target: [u8; 4] = *packet[24..].first_chunk()?;
    Some(LoggedBody::Arp {
        sender_mac: Mac(*packet[8..].first_chunk()?),
        sender: sender.into(),
        target: target.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(source_port: u16, port: u16) -> Vec<u8> {
        let mut header = vec![0; 20];
        header[..2].copy_from_slice(&source_port.to_be_bytes());
        header[2..4].copy_from_slice(&port.to_be_bytes());
        header[4..8].copy_from_slice(&7_u32.to_be_bytes());
        header
    }

    fn v6(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[6] = protocol;
        packet[23] = 1;
        packet[39] = 2;
        [packet, rest.to_vec()].concat()
    }

    #[test]
    fn headers_are_found_behind_options_and_extensions() {
        let mut packet = vec![0; 24];
        packet[0] = 0x46;
        packet[9] = 6;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        let with_options = [packet.clone(), tcp(40000, 5432)].concat();
        let expected = LoggedBody::Ip {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            traffic: Traffic::Port(Transport::Tcp, 5432),
            source_port: 40000,
            sequence: Some(7),
        };
        assert_eq!(body(0x0800, &with_options), expected);
        // A later fragment has no ports, whatever its first bytes look like.
        let mut fragment = with_options;
        fragment[7] = 1;
        assert!(matches!(
            body(0x0800, &fragment),
            LoggedBody::Ip {
                traffic: Traffic::Other(6),
                ..
            }
        ));
        let extended = v6(
            0,
            &[
                &[60, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0][..],
                &tcp(1, 443),
            ]
            .concat(),
        );
        assert!(matches!(
            body(0x86dd, &extended),
            LoggedBody::Ip {
                traffic: Traffic::Port(Transport::Tcp, 443),
                ..
            }
        ));
        assert!(matches!(
            body(0x86dd, &v6(58, &[128, 0, 0, 0])),
            LoggedBody::Ip {
                traffic: Traffic::Icmp(128),
                ..
            }
        ));
    }

    proptest! {
        #[test]
        fn nothing_that_a_container_sends_is_too_strange(
            ether_type in prop_oneof![Just(0x0800_u16), Just(0x0806), Just(0x86dd), any::<u16>()],
            packet in prop::collection::vec(any::<u8>(), 0..140),
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = body(ether_type, &packet);
            let _ = parse(&payload);
        }
    }
}
