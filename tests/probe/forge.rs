//! Packets that no honest stack would send, and a look at what arrives.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto};

use crate::flow::{checksum, ip_of};
use crate::number;
use crate::socket::{self, Family, Proto};

/// `watch PROTO 4|6`: `watching`, then `packet SOURCE TRANSPORT_BYTES_IN_HEX` each.
pub(crate) fn watch(proto: &str, family: &str) -> Result<(), String> {
    let (proto, family): (Proto, Family) = (proto.parse()?, family.parse()?);
    let fd = socket::raw(proto, family).map_err(|error| format!("cannot open a raw socket: {error}"))?;
    println!("watching");
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = recvfrom::<SockaddrStorage>(fd.as_raw_fd(), &mut buffer)
            .map_err(|errno| format!("cannot receive: {errno}"))?;
        let Some(source) = from.as_ref().and_then(ip_of) else {
            continue;
        };
        let start = if family == Family::V4 {
            usize::from(buffer[0] & 0x0f) * 4
        } else {
            0
        };
        let hex: String = buffer[start.min(length)..length.min(start + 64)]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        println!("packet {source} {hex}");
    }
}

/// `spoof PROTO SOURCE DESTINATION PORT COUNT`
pub(crate) fn spoof(
    proto: &str,
    source: &str,
    destination: &str,
    port: &str,
    count: &str,
) -> Result<(), String> {
    let proto: Proto = proto.parse()?;
    let (source, destination) = (address(source)?, address(destination)?);
    let port = if port == "echo" {
        0
    } else {
        number("the port", port)?
    };
    let body = transport(proto, source, destination, port)?;
    for _ in 0..number::<u32>("the count", count)? {
        send(source, destination, ip_number(proto, source), &body)
            .map_err(|error| format!("cannot send from {source} to {destination}: {error}"))?;
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("sent");
    Ok(())
}

/// `icmp-error KIND SOURCE DESTINATION PROTO INNER_SOURCE:PORT INNER_DESTINATION:PORT`
pub(crate) fn icmp_error(
    kind: &str,
    source: &str,
    destination: &str,
    proto: &str,
    inner_source: &str,
    inner_destination: &str,
) -> Result<(), String> {
    let (source, destination) = (address(source)?, address(destination)?);
    let (class, code, rest) = match (kind, source.is_ipv4()) {
        ("fragmentation-needed", true) => (3, 4, 1400_u32),
        ("port-unreachable", true) => (3, 3, 0),
        ("host-unreachable", true) => (3, 1, 0),
        ("time-exceeded", true) => (11, 0, 0),
        ("fragmentation-needed", false) => (2, 0, 1400),
        ("port-unreachable", false) => (1, 4, 0),
        ("host-unreachable", false) => (1, 3, 0),
        ("time-exceeded", false) => (3, 0, 0),
        _ => return Err(format!("unknown kind of ICMP error {kind:?}")),
    };
    let socket = |text: &str| {
        text.parse::<SocketAddr>()
            .map_err(|_| format!("not ADDRESS:PORT: {text:?}"))
    };
    let (from, to) = (socket(inner_source)?, socket(inner_destination)?);
    let proto: Proto = proto.parse()?;
    let mut ports = Vec::from(from.port().to_be_bytes());
    ports.extend(to.port().to_be_bytes());
    ports.extend([0; 16]);
    let inner = ip_packet(from.ip(), to.ip(), ip_number(proto, source), &ports)
        .map_err(|error| format!("not a packet: {error}"))?;
    let mut body = vec![class, code, 0, 0];
    body.extend(rest.to_be_bytes());
    body.extend(inner);
    let mut summed = Vec::new();
    if source.is_ipv6() {
        summed.extend(octets(source));
        summed.extend(octets(destination));
        summed.extend([0, 58]);
        summed.extend((body.len() as u16).to_be_bytes());
    }
    summed.extend(&body);
    let sum = checksum(&summed);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    for _ in 0..3 {
        send(source, destination, ip_number(Proto::Icmp, source), &body)
            .map_err(|error| format!("cannot send: {error}"))?;
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("sent");
    Ok(())
}

/// `frames INTERFACE`: whole Ethernet frames in hex on stdin, one a line, each sent as it is.
pub(crate) fn frames(interface: &str) -> Result<(), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("cannot send on {interface}: {error}");
    let link = nix::ifaddrs::getifaddrs()
        .map_err(|errno| wrong(&errno))?
        .filter(|it| it.interface_name == interface)
        .find_map(|it| it.address?.as_link_addr().copied())
        .ok_or_else(|| wrong(&"there is no such interface"))?;
    let fd = packet_socket().map_err(|errno| wrong(&errno))?;
    for line in io::stdin().lines() {
        let line = line.map_err(|error| wrong(&error))?;
        let frame = bytes(line.trim())?;
        match sendto(fd.as_raw_fd(), &frame, &link, MsgFlags::empty()) {
            Ok(_) => {}
            Err(errno) => return Err(wrong(&format!("{errno} ({} bytes)", frame.len()))),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("sent");
    Ok(())
}

/// `sniff MARK`: `watching`, then `frame HEX` for each frame that reaches this namespace and has the text in it, until
/// stdin ends.
pub(crate) fn sniff(mark: &str) -> Result<(), String> {
    let fd = packet_socket().map_err(|errno| format!("cannot watch: {errno}"))?;
    println!("watching");
    std::thread::spawn(|| {
        io::stdin().lines().map_while(Result::ok).count();
        std::process::exit(0);
    });
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = recvfrom::<nix::sys::socket::LinkAddr>(fd.as_raw_fd(), &mut buffer)
            .map_err(|errno| format!("cannot receive: {errno}"))?;
        // 4: PACKET_OUTGOING, this namespace's own.
        let own = from.is_some_and(|from| from.pkttype() == 4);
        let frame = &buffer[..length];
        if !own && frame.windows(mark.len()).any(|part| part == mark.as_bytes()) {
            let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
            println!("frame {hex}");
        }
    }
}

fn packet_socket() -> nix::Result<std::os::fd::OwnedFd> {
    nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Packet,
        SockType::Raw,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
}

fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    (0..hex.len())
        .step_by(2)
        .map(|at| {
            hex.get(at..at + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect::<Option<_>>()
        .ok_or_else(|| format!("not hex: {hex:?}"))
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("not an address: {text:?}"))
}

fn ip_number(proto: Proto, address: IpAddr) -> u8 {
    match proto {
        Proto::Tcp => 6,
        Proto::Udp => 17,
        Proto::Sctp => 132,
        Proto::Icmp if address.is_ipv4() => 1,
        Proto::Icmp => 58,
    }
}

/// The transport part of a first packet, with its checksum.
fn transport(proto: Proto, source: IpAddr, destination: IpAddr, port: u16) -> Result<Vec<u8>, String> {
    const FROM: u16 = 40_000;
    let mut body = Vec::new();
    let at = match proto {
        Proto::Udp => {
            body.extend(FROM.to_be_bytes());
            body.extend(port.to_be_bytes());
            body.extend([0, 14, 0, 0]);
            body.extend(b"forged");
            6
        }
        Proto::Tcp => {
            body.extend(FROM.to_be_bytes());
            body.extend(port.to_be_bytes());
            // Sequence, acknowledgement, 5 words, SYN, window, checksum, urgent.
            body.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
            16
        }
        Proto::Icmp => {
            let class = if source.is_ipv4() { 8 } else { 128 };
            body.extend([class, 0, 0, 0, 0x77, 0x77, 0, 1]);
            body.extend(b"forged");
            2
        }
        Proto::Sctp => return Err("cannot forge SCTP".to_owned()),
    };
    let mut summed = Vec::new();
    if proto != Proto::Icmp || source.is_ipv6() {
        summed.extend(octets(source));
        summed.extend(octets(destination));
        summed.extend([0, ip_number(proto, source)]);
        summed.extend((body.len() as u16).to_be_bytes());
    }
    summed.extend(&body);
    body[at..at + 2].copy_from_slice(&checksum(&summed).to_be_bytes());
    Ok(body)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, number: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + body.len() as u16).to_be_bytes());
    packet.extend([0x12, 0x34, 0, 0, 64, number, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

/// Raw sockets of protocol 255 take the whole packet, IP header included.
fn send(source: IpAddr, destination: IpAddr, number: u8, body: &[u8]) -> io::Result<()> {
    let packet = ip_packet(source, destination, number, body)?;
    let fd = socket::open(Family::of(destination), SockType::Raw, SockProtocol::Raw)?;
    let to = SockaddrStorage::from(SocketAddr::new(destination, 0));
    match sendto(fd.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
        // The packet filter of this side refused it: as good as not delivered.
        Ok(_) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn ip_packet(source: IpAddr, destination: IpAddr, number: u8, body: &[u8]) -> io::Result<Vec<u8>> {
    Ok(match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, number, body),
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend((body.len() as u16).to_be_bytes());
            packet.extend([number, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet.extend(body);
            packet
        }
        _ => {
            return Err(io::Error::other(
                "source and destination are of different families",
            ));
        }
    })
}
