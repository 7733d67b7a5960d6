//! Ethernet frames as a hostile container would send them, byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// In every frame, so that its arrival is seen.
pub(crate) const MARK: &str = "forged!";

pub(crate) type Mac = [u8; 6];

pub(crate) const BROADCAST: Mac = [0xff; 6];

const IP: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IP6: u16 = 0x86dd;

pub(crate) fn mac(text: &str) -> anyhow::Result<Mac> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    <[u8; 6]>::try_from(bytes?).map_err(|_| anyhow::anyhow!("not an Ethernet address: {text:?}"))
}

/// The address that the kernel makes of an Ethernet address (RFC 4291).
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The Ethernet address of a multicast group.
pub(crate) fn group(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(address) => {
            let [_, b, c, d] = address.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(address) => {
            let octets = address.octets();
            [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
        }
    }
}

pub(crate) fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(crate) fn ethernet(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

/// Puts a tag (0x8100 or 0x88a8) behind the addresses of a frame.
pub(crate) fn tagged(kind: u16, vlan: u16, frame: &[u8]) -> Vec<u8> {
    [
        &frame[..12],
        &kind.to_be_bytes(),
        &vlan.to_be_bytes(),
        &frame[12..],
    ]
    .concat()
}

/// A datagram with the mark.
pub(crate) fn udp(from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    let mut body = [&40_000_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 16, 0, 0]].concat();
    body.extend(MARK.bytes());
    body.push(b'\n');
    let check = transport_sum(from, to, 17, &body);
    body[6..8].copy_from_slice(&check.to_be_bytes());
    body
}

fn transport_sum(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = (body.len() as u16).to_be_bytes();
    sum(&[&octets(from), &octets(to), &[0, protocol], &length, body])
}

/// An IPv4 packet; `options` in whole words, `fragment` the field of flags and offset.
pub(crate) fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    fragment: u16,
    body: &[u8],
) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let length = (words * 4 + body.len()) as u16;
    let mut header = vec![0x40 | words as u8, 0];
    header.extend(length.to_be_bytes());
    header.extend([0x66, 0x66]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(options);
    let check = sum(&[&header]);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    [&header[..], body].concat()
}

pub(crate) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    packet
}

/// One datagram in one frame, of either family.
pub(crate) fn datagram(ether: (Mac, Mac), from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    let body = udp(from, to, port);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            ethernet(ether.0, ether.1, IP, &ipv4(from, to, 17, &[], 0, &body))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet(ether.0, ether.1, IP6, &ipv6(from, to, 17, 64, &body)),
        _ => Vec::new(),
    }
}

/// `operation` 1 asks, 2 answers: "`sender` is at `sender_mac`".
pub(crate) fn arp(
    ether: (Mac, Mac),
    operation: u8,
    sender_mac: Mac,
    sender: Ipv4Addr,
    target_mac: Mac,
    target: Ipv4Addr,
) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(sender_mac);
    body.extend(sender.octets());
    body.extend(target_mac);
    body.extend(target.octets());
    body.extend(MARK.bytes());
    ethernet(ether.0, ether.1, ARP, &body)
}

/// An ICMPv6 message with an option that nobody knows (RFC 4727, 253), which has the mark in it.
pub(crate) fn icmp6(ether: (Mac, Mac), from: Ipv6Addr, to: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0];
    body.extend(rest);
    body.extend([253, 2]);
    body.extend(MARK.bytes());
    body.resize(body.len() + 7, 0);
    let check = transport_sum(from.into(), to.into(), 58, &body);
    body[2..4].copy_from_slice(&check.to_be_bytes());
    ethernet(ether.0, ether.1, IP6, &ipv6(from, to, 58, 255, &body))
}

/// "`target` is at `at`", solicited or not, overriding what was known.
pub(crate) fn advertisement(
    ether: (Mac, Mac),
    from: Ipv6Addr,
    to: Ipv6Addr,
    target: Ipv6Addr,
    at: Mac,
) -> Vec<u8> {
    let rest = [&[0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &at].concat();
    icmp6(ether, from, to, 136, &rest)
}

/// "I am the router, and this is our prefix."
pub(crate) fn router_advertisement(ether: (Mac, Mac), from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut rest = vec![64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    // Prefix information: /64, on link, for autoconfiguration, for an hour.
    rest.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    rest.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets());
    rest.extend([1, 1]);
    rest.extend(ether.1);
    icmp6(ether, from, to, 134, &rest)
}

/// The datagram cut in two: the second piece begins behind `first` bytes, which are a multiple of 8.
pub(crate) fn fragments(ether: (Mac, Mac), from: IpAddr, to: IpAddr, port: u16) -> Vec<Vec<u8>> {
    let body = udp(from, to, port);
    let (head, tail) = body.split_at(8);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => vec![
            ethernet(ether.0, ether.1, IP, &ipv4(from, to, 17, &[], 0x2000, head)),
            ethernet(ether.0, ether.1, IP, &ipv4(from, to, 17, &[], 1, tail)),
        ],
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let piece = |offset: u16, part: &[u8]| {
                let header = [&[17, 0][..], &offset.to_be_bytes(), &[0, 0, 0x66, 0x66], part].concat();
                ethernet(ether.0, ether.1, IP6, &ipv6(from, to, 44, 64, &header))
            };
            vec![piece(1, head), piece(8, tail)]
        }
        _ => Vec::new(),
    }
}

/// IPv4 with a loose source route (RFC 791) by `via`.
pub(crate) fn source_routed(
    ether: (Mac, Mac),
    from: Ipv4Addr,
    via: Ipv4Addr,
    to: Ipv4Addr,
    port: u16,
) -> Vec<u8> {
    let mut options = vec![131, 7, 4];
    options.extend(to.octets());
    options.push(1);
    let body = udp(from.into(), to.into(), port);
    ethernet(ether.0, ether.1, IP, &ipv4(from, via, 17, &options, 0, &body))
}

/// An IPv6 datagram behind an extension header of this kind: 0 hop-by-hop, 43 routing (type 0 by `via`), 60 destination.
pub(crate) fn extended(ether: (Mac, Mac), from: Ipv6Addr, to: Ipv6Addr, kind: u8, port: u16) -> Vec<u8> {
    let body = udp(from.into(), to.into(), port);
    let header = match kind {
        43 => [&[17, 2, 0, 1, 0, 0, 0, 0][..], &to.octets()].concat(),
        _ => vec![17, 0, 1, 4, 0, 0, 0, 0],
    };
    let packet = ipv6(from, to, kind, 64, &[&header[..], &body].concat());
    ethernet(ether.0, ether.1, IP6, &packet)
}

/// IGMP of this type about a group, with the mark behind it.
pub(crate) fn igmp(from_mac: Mac, from: Ipv4Addr, kind: u8, about: Ipv4Addr) -> Vec<u8> {
    let all = Ipv4Addr::new(224, 0, 0, 1);
    let mut body = vec![kind, 10, 0, 0];
    body.extend(about.octets());
    body.extend(MARK.bytes());
    body.push(0);
    let check = sum(&[&body]);
    body[2..4].copy_from_slice(&check.to_be_bytes());
    let packet = ipv4(from, all, 2, &[0x94, 4, 0, 0], 0, &body);
    ethernet(group(all.into()), from_mac, IP, &packet)
}
