//! The neighbours that the calling thread's network namespace knows: who is one, and forgetting some. Two short exchanges
//! on a socket of their own, since the thread may be somewhere else the next time.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Answers that are read for one request, at most: more than the kernel's table holds.
const MOST_ANSWERS: usize = 100_000;

/// The neighbours that are known, whatever their state.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn known() -> io::Result<BTreeSet<IpAddr>> {
    let entries = list(&open()?)?;
    Ok(entries.iter().filter_map(address).collect())
}

/// Forgets these, except those that somebody put there for good. Whoever needs one again asks for it again.
///
/// # Errors
/// When the kernel cannot be asked. What is gone already is no error.
pub fn forget(addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    let socket = open()?;
    for entry in list(&socket)? {
        let lasting = matches!(
            entry.header.state,
            NeighbourState::Permanent | NeighbourState::Noarp
        );
        if lasting || !address(&entry).is_some_and(|it| addresses.contains(&it)) {
            continue;
        }
        let mut which = NeighbourMessage::default();
        which.header.family = entry.header.family;
        which.header.ifindex = entry.header.ifindex;
        let destination = entry.attributes.into_iter();
        which.attributes = destination
            .filter(|it| matches!(it, NeighbourAttribute::Destination(_)))
            .collect();
        let request = RouteNetlinkMessage::DelNeighbour(which);
        exchange(&socket, request, NLM_F_REQUEST | NLM_F_ACK)?;
    }
    Ok(())
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn list(socket: &Socket) -> io::Result<Vec<NeighbourMessage>> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    exchange(socket, request, NLM_F_REQUEST | NLM_F_DUMP)
}

fn address(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn exchange(socket: &Socket, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<NeighbourMessage>> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    while found.len() < MOST_ANSWERS {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(invalid)?;
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => found.push(entry),
                NetlinkPayload::Error(error) => {
                    let code = error.raw_code().saturating_neg();
                    return match code {
                        0 | nix::libc::ENOENT | nix::libc::ENODEV => Ok(found),
                        code => Err(io::Error::from_raw_os_error(code)),
                    };
                }
                NetlinkPayload::Done(_) => return Ok(found),
                _ => {}
            }
            let length = usize::try_from(answer.header.length).map_err(invalid)?;
            // No message is empty, so this comes to an end.
            rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
        }
    }
    Ok(found)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
