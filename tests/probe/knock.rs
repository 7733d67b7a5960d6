//! Attempts whose number is known: one packet each, never sent again.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockProtocol, SockType, SockaddrStorage, connect};

use crate::number;
use crate::socket::{Family, Proto, open};

/// `knock PROTO ADDRESS FIRST LAST TIMES`: one SYN or empty datagram for each port, so often. Each TCP socket is closed before
/// it could send its SYN again.
pub(crate) fn run(proto: &str, address: &str, first: &str, last: &str, times: &str) -> Result<(), String> {
    let proto: Proto = proto.parse()?;
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("not an address: {address:?}"))?;
    let (first, last): (u16, u16) = (number("FIRST", first)?, number("LAST", last)?);
    let mut knocks = 0_u64;
    for _ in 0..number::<u32>("TIMES", times)? {
        for port in first..=last {
            let to = SocketAddr::new(address, port);
            match proto {
                Proto::Tcp => syn(to),
                Proto::Udp => datagram(to),
                Proto::Sctp | Proto::Icmp => return Err("only TCP and UDP knock".to_owned()),
            }
            .map_err(|error| format!("{to}: {error}"))?;
            knocks += 1;
        }
    }
    println!("knocked {knocks}");
    Ok(())
}

fn syn(to: SocketAddr) -> std::io::Result<()> {
    let socket = open(Family::of(to.ip()), SockType::Stream, SockProtocol::Tcp)?;
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::ECONNREFUSED) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn datagram(to: SocketAddr) -> std::io::Result<()> {
    let any = SocketAddr::new(Family::of(to.ip()).wildcard(), 0);
    let socket = UdpSocket::bind(any)?;
    socket.send_to(&[], to).map(drop)
}
