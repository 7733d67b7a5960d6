//! What listens and what is connected in the network namespace of a process, as `/proc/PID/net/{tcp,tcp6,udp,udp6}` say.
//! In: a process id. Out: [`Sockets`]. Nothing is entered and nothing in the container is asked; root may read these of
//! any process. Whoever lives in the namespace decides how many sockets there are, so what is read of each file is bounded.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::net::Transport;

/// Sockets that are read of each file. The kernel lists listening TCP sockets before all others.
const MOST: usize = 65_536;

/// The sockets of one network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sockets {
    /// TCP sockets that listen.
    pub listening: BTreeSet<SocketAddr>,
    /// UDP sockets that have a port and take datagrams from anyone.
    pub bound: BTreeSet<SocketAddr>,
    /// TCP connections that are established, or were and still end.
    pub established: BTreeSet<Connection>,
    /// UDP sockets that talk with one peer alone.
    pub connected: BTreeSet<Connection>,
    pub extent: Extent,
}

/// Whether this is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extent {
    #[default]
    Whole,
    /// There are more sockets than are read.
    Cut,
}

/// A connection as seen from the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// Who can reach a socket, as far as its own address says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Nobody outside the namespace.
    Loopback,
    Network,
}

/// Who can reach a socket that is bound to this address.
pub fn scope(address: IpAddr) -> Scope {
    match address.is_loopback() {
        true => Scope::Loopback,
        false => Scope::Network,
    }
}

impl Sockets {
    /// The ports that others can reach: of TCP those that listen, of UDP those that are bound.
    pub fn served(&self, transport: Transport) -> BTreeSet<u16> {
        let sockets = match transport {
            Transport::Tcp => Some(&self.listening),
            Transport::Udp => Some(&self.bound),
            Transport::Sctp => None,
        };
        let sockets = sockets.into_iter().flatten();
        sockets
            .filter(|it| scope(it.ip()) == Scope::Network)
            .map(SocketAddr::port)
            .collect()
    }

    /// Whether the peer opened a TCP connection, which is known by somebody listening on its local port.
    pub fn accepted(&self, connection: &Connection) -> bool {
        let ends_here = |listener: &SocketAddr| {
            let address = listener.ip();
            // A socket on `::` usually takes IPv4 too, and nothing here says whether this one does.
            let any = address.is_unspecified() && (address.is_ipv6() || connection.local.is_ipv4());
            listener.port() == connection.local.port() && (any || address == connection.local.ip())
        };
        self.listening.iter().any(ends_here)
    }

    fn add(&mut self, transport: Transport, socket: Socket) {
        let Socket { local, remote, state } = socket;
        let connection = Connection { local, remote };
        match (transport, state) {
            (Transport::Tcp, State::Listening) => {
                self.listening.insert(local);
            }
            (Transport::Tcp, State::Established | State::Ending) => {
                self.established.insert(connection);
            }
            (Transport::Udp, State::Established) => {
                self.connected.insert(connection);
            }
            (Transport::Udp, State::Unconnected) => {
                self.bound.insert(local);
            }
            _ => {}
        }
    }
}

/// Why sockets could not be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read {}", .path.display())]
pub struct SocketsError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads the sockets of the network namespace that a process is in.
///
/// # Errors
/// When the process is gone, or this one may not look.
pub fn of_process(pid: u32) -> Result<Sockets, SocketsError> {
    let mut sockets = Sockets::default();
    for (file, transport) in [
        ("tcp", Transport::Tcp),
        ("udp", Transport::Udp),
        ("tcp6", Transport::Tcp),
        ("udp6", Transport::Udp),
    ] {
        let path = PathBuf::from(format!("/proc/{pid}/net/{file}"));
        let read = File::open(&path).and_then(|it| read(BufReader::new(it), transport, &mut sockets));
        match read {
            Ok(()) => {}
            // A kernel without IPv6 has these two files nowhere; the other two were just there.
            Err(error) if file.ends_with('6') && error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(SocketsError { path, source }),
        }
    }
    Ok(sockets)
}

fn read(lines: impl BufRead, transport: Transport, sockets: &mut Sockets) -> io::Result<()> {
    // The first line names the columns.
    for (number, line) in lines.lines().skip(1).enumerate() {
        if number == MOST {
            sockets.extent = Extent::Cut;
            break;
        }
        if let Some(socket) = parse(&line?) {
            sockets.add(transport, socket);
        }
    }
    Ok(())
}

struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Established,
    /// Was established; one side or both are done.
    Ending,
    Listening,
    /// Of UDP: has no peer of its own.
    Unconnected,
    Other,
}

/// One line: `sl local_address rem_address st ...`.
fn parse(line: &str) -> Option<Socket> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (parse_address(columns.next()?)?, parse_address(columns.next()?)?);
    // The numbers of enum in include/net/tcp_states.h; UDP uses two of them.
    let state = match u8::from_str_radix(columns.next()?, 16).ok()? {
        1 => State::Established,
        4 | 5 | 6 | 8 | 9 | 11 => State::Ending,
        7 => State::Unconnected,
        10 => State::Listening,
        _ => State::Other,
    };
    Some(Socket { local, remote, state })
}

/// `0100007F:1F90`: each 32 bits of the address as the machine reads them from memory, and the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |text: &str| u32::from_str_radix(text, 16).map(u32::to_ne_bytes).ok();
    let address: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(address)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (index, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(address.get(index * 8..index * 8 + 8)?)?);
            }
            // IPv4 over a socket of IPv6 is IPv4.
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn sockets(transport: Transport, lines: &str) -> Sockets {
        let mut sockets = Sockets::default();
        read(format!("{COLUMNS}{lines}").as_bytes(), transport, &mut sockets).unwrap();
        sockets
    }

    fn set(texts: &[&str]) -> BTreeSet<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn connection(local: &str, remote: &str) -> Connection {
        Connection {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
        }
    }

    #[test]
    fn listeners_and_connections_are_told_apart() {
        let found = sockets(
            Transport::Tcp,
            "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 522 1 0000 100 0 0 10 0\n\
             \x20  1: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 523 1 0000 100 0 0 10 0\n\
             \x20  2: 020011AC:1F90 030011AC:C350 01 00000000:00000000 00:00000000 00000000  0  0 524 1 0000 100 0 0 10 0\n\
             \x20  3: 020011AC:C351 040011AC:1538 06 00000000:00000000 03:00000000 00000000  0  0 0 3 0000\n\
             \x20  4: 020011AC:C352 040011AC:1538 02 00000001:00000000 01:00000000 00000000  0  0 0 3 0000\n",
        );
        assert_eq!(found.listening, set(&["0.0.0.0:8080", "127.0.0.1:22"]));
        assert_eq!(found.served(Transport::Tcp), BTreeSet::from([8080]));
        let inbound = connection("172.17.0.2:8080", "172.17.0.3:50000");
        let outbound = connection("172.17.0.2:50001", "172.17.0.4:5432");
        assert_eq!(found.established, BTreeSet::from([inbound, outbound]));
        assert!(found.accepted(&inbound));
        assert!(!found.accepted(&outbound));
        assert_eq!(found.extent, Extent::Whole);
    }

    #[test]
    fn ipv6_and_ipv4_behind_it() {
        let found = sockets(
            Transport::Tcp,
            "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0 0 0\n\
             \x20  1: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 0 0 0\n\
             \x20  2: 0000000000000000FFFF0000020011AC:0050 0000000000000000FFFF0000030011AC:C350 01 0 0 0\n\
             \x20  3: B80D0120000000000000000002000000:0050 B80D0120000000000000000003000000:C351 01 0 0 0\n",
        );
        assert_eq!(found.listening, set(&["[::]:80", "[::1]:81"]));
        assert_eq!(found.served(Transport::Tcp), BTreeSet::from([80]));
        let v4 = connection("172.17.0.2:80", "172.17.0.3:50000");
        let v6 = connection("[2001:db8::2]:80", "[2001:db8::3]:50001");
        assert_eq!(found.established, BTreeSet::from([v4, v6]));
        assert!(found.accepted(&v4) && found.accepted(&v6));
        assert!(!found.accepted(&connection("[2001:db8::2]:81", "[2001:db8::3]:50001")));
    }

    #[test]
    fn udp_has_bound_and_connected_sockets() {
        let found = sockets(
            Transport::Udp,
            " 100: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000  0  0 5 2 0000 0\n\
             \x20101: 0B00007F:B3F1 00000000:0000 07 00000000:00000000 00:00000000 00000000  0  0 6 2 0000 0\n\
             \x20102: 020011AC:9C40 08080808:0035 01 00000000:00000000 00:00000000 00000000  0  0 7 2 0000 0\n",
        );
        assert_eq!(found.served(Transport::Udp), BTreeSet::from([53]));
        assert_eq!(found.bound.len(), 2);
        let out = connection("172.17.0.2:40000", "8.8.8.8:53");
        assert_eq!(found.connected, BTreeSet::from([out]));
    }

    #[test]
    fn what_is_no_socket_is_left_out_and_too_many_are_cut() {
        let odd = "x\n\n 0: zz:1 00000000:0000 0A\n 0: 00000000:12345 00000000:0000 0A\n 0: 00:1 00:0 0A\n";
        assert_eq!(sockets(Transport::Tcp, odd), Sockets::default());
        let many = "0: 00000000:0035 00000000:0000 0A 0\n".repeat(MOST + 1);
        assert_eq!(sockets(Transport::Tcp, &many).extent, Extent::Cut);
    }

    #[test]
    fn finds_a_socket_of_this_process_and_tells_where_none_can_be() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = of_process(std::process::id()).unwrap();
        assert!(found.listening.contains(&tcp.local_addr().unwrap()));
        assert!(found.bound.contains(&udp.local_addr().unwrap()));
        let error = of_process(u32::MAX).unwrap_err();
        assert_eq!(error.to_string(), "could not read /proc/4294967295/net/tcp");
    }
}
