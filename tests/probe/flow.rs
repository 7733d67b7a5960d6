//! One exchange: a request that carries a nonce, and the same bytes back.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvfrom, sendto};

use crate::socket::{self, ConnectError, Family, Proto};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) proto: Proto,
    pub(crate) address: IpAddr,
    /// Without meaning for ICMP.
    pub(crate) port: u16,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} {}", self.proto, self.address, self.port)
    }
}

/// What became of one exchange.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answered,
    /// The network said no, or nothing at all.
    Denied(String),
    /// This side could not try; never a verdict.
    Unable(String),
}

impl From<ConnectError> for Outcome {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Denied(error) => Self::Denied(error.to_string()),
            ConnectError::Unable(error) => Self::Unable(error.to_string()),
        }
    }
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        ConnectError::from_io(error).into()
    }
}

/// A number that no other exchange of this process uses.
pub(crate) fn nonce() -> [u8; 16] {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0; 16];
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let high = clock.as_nanos() as u64 ^ (u64::from(std::process::id()) << 32);
    bytes[..8].copy_from_slice(&high.to_be_bytes());
    bytes[8..].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    bytes
}

/// One full request and response within the timeout.
pub(crate) fn exchange(target: Target, timeout: Duration) -> Outcome {
    match target.proto {
        Proto::Tcp | Proto::Sctp => stream(target, timeout),
        Proto::Udp => datagram(target, timeout).unwrap_or_else(Outcome::from),
        Proto::Icmp => echo(target.address, timeout).unwrap_or_else(Outcome::from),
    }
}

fn stream(target: Target, timeout: Duration) -> Outcome {
    let deadline = Instant::now() + timeout;
    let to = SocketAddr::new(target.address, target.port);
    let mut stream = match socket::connect_stream(target.proto, to, timeout) {
        Ok(stream) => stream,
        Err(error) => return error.into(),
    };
    let rest = deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    let request = nonce();
    let mut answer = [0; 16];
    let outcome = stream
        .set_read_timeout(Some(rest))
        .and_then(|()| stream.set_write_timeout(Some(rest)))
        .and_then(|()| stream.write_all(&request))
        .and_then(|()| stream.read_exact(&mut answer));
    match outcome {
        Ok(()) if answer == request => Outcome::Answered,
        Ok(()) => Outcome::Denied("another answer than the request's echo".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Outcome::Denied("connected, but no answer".to_owned())
        }
        Err(error) => Outcome::Denied(format!("connected, then {error}")),
    }
}

fn datagram(target: Target, timeout: Duration) -> io::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    let socket = UdpSocket::bind((Family::of(target.address).wildcard(), 0))?;
    socket.connect((target.address, target.port))?;
    let request = nonce();
    // Datagrams may be lost, and the first ones wait for neighbour discovery: send again within the time.
    let pause = (timeout / 4).max(Duration::from_millis(1));
    let mut last = "no answer".to_owned();
    while Instant::now() < deadline {
        if let Err(error) = socket.send(&request) {
            last = error.to_string();
            if matches!(ConnectError::from_io(error), ConnectError::Unable(_)) {
                return Ok(Outcome::Unable(last));
            }
        }
        let until = (Instant::now() + pause).min(deadline);
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(rest))?;
            let mut answer = [0; 64];
            match socket.recv(&mut answer) {
                Ok(16) if answer[..16] == request => return Ok(Outcome::Answered),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    last = error.to_string();
                    std::thread::sleep(rest);
                    break;
                }
            }
        }
    }
    Ok(Outcome::Denied(last))
}

fn echo(address: IpAddr, timeout: Duration) -> io::Result<Outcome> {
    let family = Family::of(address);
    let fd = match socket::raw(Proto::Icmp, family) {
        Ok(fd) => fd,
        Err(error) => return Ok(Outcome::Unable(format!("cannot open a raw ICMP socket: {error}"))),
    };
    socket::set_timeouts(&fd, Duration::from_millis(50))?;
    let deadline = Instant::now() + timeout;
    let tag = nonce();
    let (request_type, reply_type) = match family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 129),
    };
    let mut packet = vec![request_type, 0, 0, 0, tag[14], tag[15], 0, 1];
    packet.extend_from_slice(&tag);
    if family == Family::V4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let to = SockaddrStorage::from(SocketAddr::new(address, 0));
    let mut last = "no answer".to_owned();
    let mut send_at = Instant::now();
    while Instant::now() < deadline {
        if Instant::now() >= send_at {
            send_at += (timeout / 4).max(Duration::from_millis(10));
            if let Err(errno) = sendto(fd.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
                last = errno.to_string();
            }
        }
        let mut buffer = [0; 256];
        let Ok((length, from)) = recvfrom::<SockaddrStorage>(fd.as_raw_fd(), &mut buffer) else {
            continue;
        };
        // IPv4 raw sockets give the IP header too.
        let start = if family == Family::V4 {
            usize::from(buffer[0] & 0x0f) * 4
        } else {
            0
        };
        let message = &buffer[start.min(length)..length];
        let ours = message.len() >= 24 && message[0] == reply_type && message[8..24] == tag;
        if ours && from.as_ref().and_then(ip_of) == Some(address) {
            return Ok(Outcome::Answered);
        }
    }
    Ok(Outcome::Denied(last))
}

/// The address in what the kernel calls a socket address.
pub(crate) fn ip_of(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
