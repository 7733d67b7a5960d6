//! Sockets that std cannot open: SCTP, raw ICMP, one family's wildcard.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proto {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

impl std::str::FromStr for Proto {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            "icmp" => Ok(Self::Icmp),
            _ => Err(format!("unknown protocol {text:?}")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn wildcard(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    fn address_family(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

impl std::str::FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "4" => Ok(Self::V4),
            "6" => Ok(Self::V6),
            _ => Err(format!("a family is 4 or 6, not {text:?}")),
        }
    }
}

/// A connected byte stream; a std type for SCTP too, whose one-to-one sockets read and write alike.
pub(crate) fn connect_stream(
    proto: Proto,
    to: SocketAddr,
    timeout: Duration,
) -> Result<TcpStream, ConnectError> {
    let kind = match proto {
        Proto::Sctp => SockProtocol::Sctp,
        Proto::Tcp | Proto::Udp | Proto::Icmp => SockProtocol::Tcp,
    };
    if kind == SockProtocol::Tcp {
        return TcpStream::connect_timeout(&to, timeout).map_err(ConnectError::from_io);
    }
    let fd = open(Family::of(to.ip()), SockType::Stream, kind).map_err(ConnectError::Unable)?;
    set_timeouts(&fd, timeout).map_err(ConnectError::Unable)?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
        .map_err(|errno| ConnectError::from_io(errno.into()))?;
    Ok(TcpStream::from(fd))
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// The network said no, or nothing.
    Denied(io::Error),
    /// This side could not even try.
    Unable(io::Error),
}

impl ConnectError {
    /// An error of this process's own means is not an answer of the network.
    pub(crate) fn from_io(error: io::Error) -> Self {
        use nix::errno::Errno;
        let own = [
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOMEM,
            Errno::ENOBUFS,
            Errno::EAFNOSUPPORT,
            Errno::EPROTONOSUPPORT,
            Errno::EADDRNOTAVAIL,
            Errno::EINVAL,
        ];
        match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if own.contains(&errno) => Self::Unable(error),
            _ => Self::Denied(error),
        }
    }
}

pub(crate) fn open(family: Family, kind: SockType, proto: SockProtocol) -> io::Result<OwnedFd> {
    Ok(socket::socket(
        family.address_family(),
        kind,
        SockFlag::SOCK_CLOEXEC,
        proto,
    )?)
}

pub(crate) fn set_timeouts(fd: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let value = TimeVal::new(
        timeout.as_secs().try_into().unwrap_or(i64::MAX),
        timeout.subsec_micros().into(),
    );
    setsockopt(fd, sockopt::ReceiveTimeout, &value)?;
    setsockopt(fd, sockopt::SendTimeout, &value)?;
    Ok(())
}

/// A listening stream socket on one family's wildcard.
pub(crate) fn listen_stream(proto: Proto, family: Family, port: u16) -> io::Result<std::net::TcpListener> {
    let kind = if proto == Proto::Sctp {
        SockProtocol::Sctp
    } else {
        SockProtocol::Tcp
    };
    let fd = open(family, SockType::Stream, kind)?;
    bind_wildcard(&fd, family, port)?;
    socket::listen(&fd, Backlog::new(1024)?)?;
    Ok(fd.into())
}

/// A datagram socket on one family's wildcard that learns which address each datagram was sent to.
pub(crate) fn listen_datagram(family: Family, port: u16) -> io::Result<UdpSocket> {
    let fd = open(family, SockType::Datagram, SockProtocol::Udp)?;
    match family {
        Family::V4 => setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?,
        Family::V6 => setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    bind_wildcard(&fd, family, port)?;
    Ok(fd.into())
}

fn bind_wildcard(fd: &OwnedFd, family: Family, port: u16) -> io::Result<()> {
    setsockopt(fd, sockopt::ReuseAddr, &true)?;
    if family == Family::V6 {
        setsockopt(fd, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(family.wildcard(), port)),
    )?;
    Ok(())
}

/// A raw socket that sends ICMP (or ICMPv6) and gets a copy of what arrives.
pub(crate) fn raw(proto: Proto, family: Family) -> io::Result<OwnedFd> {
    let number = match (proto, family) {
        (Proto::Tcp, _) => SockProtocol::Tcp,
        (Proto::Udp, _) => SockProtocol::Udp,
        (Proto::Sctp, _) => SockProtocol::Sctp,
        (Proto::Icmp, Family::V4) => SockProtocol::Icmp,
        (Proto::Icmp, Family::V6) => SockProtocol::IcmpV6,
    };
    open(family, SockType::Raw, number)
}

/// `can PROTO`: exit 0 when such sockets open, 2 when they do not.
pub(crate) fn can_open(proto: &str) -> Result<(), String> {
    let proto: Proto = proto.parse()?;
    let outcome = match proto {
        Proto::Tcp | Proto::Sctp => listen_stream(proto, Family::V4, 0).map(drop),
        Proto::Udp => listen_datagram(Family::V4, 0).map(drop),
        Proto::Icmp => raw(proto, Family::V4).map(drop),
    };
    outcome.map_err(|error| format!("{proto:?} sockets cannot be opened: {error}"))
}
