//! The probes themselves: TCP connections that are closed at once, and empty datagrams. Bounded in how many there are at
//! once, how many begin in a second, and how long each may take.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::look::Looked;
use super::plan::{Probe, Way};
use super::scene::Spot;
use super::verdict::{Evidence, Seen, Trace, doubtful};
use crate::daemon::{Refusal, chain};
use crate::kernel::conntrack::{Conntrack, Detail};
use crate::net::{Family, Transport};

/// How much, how fast, how long.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long an answer may take.
    pub timeout: Duration,
    /// Probes that begin in a second.
    pub rate: u32,
    /// Probes under way at once.
    pub parallel: usize,
}

/// Whatever the answers so far took, nobody is given less.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);
/// An answer may take so many times what the slowest took so far.
const SLOWER: u32 = 20;
/// A datagram's answer is welcome, but connection tracking decides.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(200);
/// Those that should have passed and did not are tried again, with more time.
const SECOND_LOOK: u32 = 3;
/// Connection tracking forgets a datagram after 30 s, so it is asked well before.
const SECONDS_TO_A_LOOK: u32 = 5;
const MOST_TO_A_LOOK: u32 = 2048;

/// Tries all of them; `tried` is told of each. What is declared open comes first: it shows how long an answer takes.
///
/// # Errors
/// When connection tracking cannot be read.
pub async fn run(
    looked: &Looked,
    probes: &[Probe],
    bounds: Bounds,
    tried: impl Fn() + Sync,
) -> Result<Vec<Seen>, Refusal> {
    let prober = Prober {
        looked,
        bounds,
        pace: Pace::new(bounds.rate),
    };
    let mut order: Vec<usize> = (0..probes.len()).collect();
    order.sort_by_key(|number| probes.get(*number).map(|probe| !probe.declared.passes()));
    let mut seen: Vec<Option<Seen>> = vec![None; probes.len()];
    let mut patience = bounds.timeout;
    let look_after = usize::try_from((bounds.rate * SECONDS_TO_A_LOOK).clamp(1, MOST_TO_A_LOOK));
    let look_after = look_after.unwrap_or(1);
    let open =
        order.partition_point(|number| probes.get(*number).is_some_and(|probe| probe.declared.passes()));
    let (open, closed) = order.split_at(open);
    for (part, is_open) in [(open, true), (closed, false)] {
        for numbers in part.chunks(look_after) {
            prober.look(probes, numbers, patience, &mut seen, &tried).await?;
        }
        if is_open {
            let doubts = |number: &&usize| {
                let pair = probes.get(**number).zip(seen.get(**number));
                pair.is_some_and(|(probe, seen)| seen.as_ref().is_some_and(|seen| doubtful(probe, seen)))
            };
            let again: Vec<usize> = part.iter().filter(doubts).copied().collect();
            for numbers in again.chunks(look_after) {
                let longer = bounds.timeout * SECOND_LOOK;
                prober.look(probes, numbers, longer, &mut seen, &|| {}).await?;
            }
            patience = patience_after(&seen, bounds.timeout);
        }
    }
    let missing = || Seen {
        evidence: Evidence::Failed("it was left out".to_owned()),
        trace: Trace::Unwatched,
        elapsed: Duration::ZERO,
    };
    Ok(seen
        .into_iter()
        .map(|seen| seen.unwrap_or_else(missing))
        .collect())
}

/// How long the others may take, by what passed so far.
fn patience_after(seen: &[Option<Seen>], timeout: Duration) -> Duration {
    let answered = seen.iter().flatten().filter(|it| {
        matches!(
            it.evidence,
            Evidence::Connected | Evidence::Refused | Evidence::Answered
        )
    });
    match answered.map(|it| it.elapsed).max() {
        Some(slowest) => (slowest * SLOWER).max(LEAST_PATIENCE).min(timeout),
        None => timeout,
    }
}

struct Prober<'a> {
    looked: &'a Looked,
    bounds: Bounds,
    pace: Pace,
}

/// What was seen at one end, before connection tracking was asked.
struct Attempt {
    evidence: Evidence,
    source: Option<SocketAddr>,
    elapsed: Duration,
}

impl Prober<'_> {
    /// Tries some of them and asks connection tracking what became of those without an answer.
    async fn look(
        &self,
        probes: &[Probe],
        numbers: &[usize],
        patience: Duration,
        seen: &mut [Option<Seen>],
        tried: &(impl Fn() + Sync),
    ) -> Result<(), Refusal> {
        let chosen = numbers
            .iter()
            .filter_map(|&number| Some((number, probes.get(number)?)));
        let attempts: Vec<_> = stream::iter(chosen)
            .map(|(number, probe)| async move {
                let attempt = self.attempt(probe, patience).await;
                tried();
                (number, probe, attempt)
            })
            .buffer_unordered(self.bounds.parallel.max(1))
            .collect()
            .await;
        let passed = match attempts.iter().any(|(_, _, it)| is_open_question(it)) {
            true => tokio::task::block_in_place(passed)?,
            false => BTreeSet::new(),
        };
        for (number, probe, attempt) in attempts {
            let key = attempt
                .source
                .map(|source| (probe.transport.number(), source, probe.address));
            let trace = if key.is_some_and(|key| passed.contains(&key)) {
                Trace::Passed
            } else if key.is_some() && self.is_watched(probe) {
                Trace::Missing
            } else {
                Trace::Unwatched
            };
            if let Some(place) = seen.get_mut(number) {
                *place = Some(Seen {
                    evidence: attempt.evidence,
                    trace,
                    elapsed: attempt.elapsed,
                });
            }
        }
        Ok(())
    }

    /// Whether connection tracking sees what goes this way: within a bridge only where the bridge hands its packets over.
    fn is_watched(&self, probe: &Probe) -> bool {
        match &probe.way {
            Way::Network(id) => self.looked.watched.contains(id),
            Way::Routed | Way::Published | Way::Host | Way::World => true,
        }
    }

    async fn attempt(&self, probe: &Probe, patience: Duration) -> Attempt {
        self.pace.wait().await;
        let begun = Instant::now();
        let made = self.socket(probe).await;
        let (result, source) = match (made, probe.transport) {
            (Err(why), _) => (Err(why), None),
            (Ok(socket), Transport::Tcp) => connect(socket, probe.address, patience).await,
            (Ok(socket), _) => send(socket, probe.address, patience.min(DATAGRAM_PATIENCE)).await,
        };
        Attempt {
            evidence: result.unwrap_or_else(Evidence::Failed),
            source,
            elapsed: begun.elapsed(),
        }
    }

    async fn socket(&self, probe: &Probe) -> Result<OwnedFd, String> {
        let namespace = match probe.from {
            Spot::Container(index) => self.looked.namespaces.get(index),
            Spot::Host | Spot::World(_) => None,
        };
        let family = match probe.family() {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let kind = match probe.transport {
            Transport::Tcp => SockType::Stream,
            Transport::Udp | Transport::Sctp => SockType::Datagram,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let make = move || socket(family, kind, flags, None);
        let made = self
            .looked
            .visitor
            .within(namespace.unwrap_or(&self.looked.own), make)
            .await;
        made.map_err(|it| chain(&it))?
            .map_err(|it| format!("no socket: {it}"))
    }
}

/// Whether only connection tracking can say what became of it.
fn is_open_question(attempt: &Attempt) -> bool {
    matches!(attempt.evidence, Evidence::Silent | Evidence::Unreachable(_))
}

type Tried = (Result<Evidence, String>, Option<SocketAddr>);

async fn connect(socket: OwnedFd, address: SocketAddr, patience: Duration) -> Tried {
    let begun = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address));
    let stream = StdTcpStream::from(socket);
    // With the first packet the kernel has chosen both.
    let source = stream.local_addr().ok();
    match begun {
        Ok(()) => return (Ok(Evidence::Connected), source),
        Err(Errno::EINPROGRESS) => {}
        Err(errno) => return (failure(errno), source),
    }
    let outcome = async {
        let stream = TcpStream::from_std(stream)?;
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => stream.peer_addr().map(drop),
        }
    };
    let result = match timeout(patience, outcome).await {
        Ok(Ok(())) => Ok(Evidence::Connected),
        Ok(Err(error)) => of_io(&error),
        Err(_) => Ok(Evidence::Silent),
    };
    (result, source)
}

async fn send(socket: OwnedFd, address: SocketAddr, patience: Duration) -> Tried {
    if let Err(errno) = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        return (failure(errno), None);
    }
    let socket = StdUdpSocket::from(socket);
    let source = socket.local_addr().ok();
    let outcome = async {
        let socket = UdpSocket::from_std(socket)?;
        socket.send(&[]).await?;
        socket.recv(&mut [0; 1]).await
    };
    let result = match timeout(patience, outcome).await {
        Ok(Ok(_)) => Ok(Evidence::Answered),
        Ok(Err(error)) => of_io(&error),
        Err(_) => Ok(Evidence::Silent),
    };
    (result, source)
}

fn of_io(error: &io::Error) -> Result<Evidence, String> {
    match error.raw_os_error() {
        Some(number) => failure(Errno::from_raw(number)),
        None => Err(error.to_string()),
    }
}

/// What an error of the sender's network stack says of the connection.
fn failure(errno: Errno) -> Result<Evidence, String> {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET => Ok(Evidence::Refused),
        Errno::ETIMEDOUT => Ok(Evidence::Silent),
        Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES | Errno::EPERM | Errno::EHOSTDOWN => {
            Ok(Evidence::Unreachable(errno.desc().to_lowercase()))
        }
        other => Err(other.desc().to_lowercase()),
    }
}

/// The connections of TCP and UDP whose first packet has passed: protocol, source, and destination as it was dialled.
fn passed() -> Result<BTreeSet<(u8, SocketAddr, SocketAddr)>, Refusal> {
    let refused = |error| Refusal::system("see which connections passed", error);
    let flows = Conntrack::open().and_then(|mut it| it.flows()).map_err(refused)?;
    let dialled = flows.iter().filter_map(|flow| match flow.original.detail {
        Detail::Ports { source, destination } => Some((
            flow.protocol,
            SocketAddr::new(flow.original.source, source),
            SocketAddr::new(flow.original.destination, destination),
        )),
        Detail::Icmp { .. } | Detail::None => None,
    });
    Ok(dialled.collect())
}

/// When the next one may begin.
struct Pace {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self {
            gap: Duration::from_secs(1) / rate.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    async fn wait(&self) {
        let turn = {
            let mut next = self.next.lock().await;
            let turn = (*next).max(Instant::now());
            *next = turn + self.gap;
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(evidence: Evidence, millis: u64) -> Option<Seen> {
        Some(Seen {
            evidence,
            trace: Trace::Missing,
            elapsed: Duration::from_millis(millis),
        })
    }

    #[test]
    fn patience_follows_what_answered() {
        let second = Duration::from_secs(1);
        assert_eq!(
            patience_after(&[None, seen(Evidence::Silent, 1000)], second),
            second
        );
        let fast = [seen(Evidence::Connected, 1), seen(Evidence::Refused, 2)];
        assert_eq!(patience_after(&fast, second), LEAST_PATIENCE);
        assert_eq!(
            patience_after(&[seen(Evidence::Connected, 20)], second),
            Duration::from_millis(400)
        );
        assert_eq!(patience_after(&[seen(Evidence::Connected, 200)], second), second);
    }

    #[tokio::test]
    async fn a_connection_an_answer_and_a_refusal_are_told_apart() {
        let make = |kind| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Inet, kind, flags, None).unwrap()
        };
        let patience = Duration::from_millis(500);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (result, source) = connect(make(SockType::Stream), address, patience).await;
        assert_eq!(result, Ok(Evidence::Connected));
        assert_eq!(source.unwrap(), listener.accept().unwrap().1);
        drop(listener);
        let (result, _) = connect(make(SockType::Stream), address, patience).await;
        assert_eq!(result, Ok(Evidence::Refused));
        let silent = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let (result, _) = send(make(SockType::Datagram), address, patience).await;
        assert_eq!(result, Ok(Evidence::Silent));
        assert_eq!(silent.recv(&mut [0; 9]).unwrap(), 0, "an empty datagram");
        drop(silent);
        let (result, _) = send(make(SockType::Datagram), address, patience).await;
        assert_eq!(result, Ok(Evidence::Refused));
    }

    #[tokio::test]
    async fn no_more_begin_in_a_second_than_may() {
        let (pace, begun) = (Pace::new(200), Instant::now());
        for _ in 0..=20 {
            pace.wait().await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(99));
    }
}
