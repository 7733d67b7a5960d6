//! The probes themselves: TCP connections that are closed at once, and empty datagrams. Bounded in how many there are at
//! once, how many begin in a second, and how long each may take.

mod attempt;
mod neighbours;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use self::attempt::{connect, send};
use self::neighbours::{Neighbours, chunks, in_turns, overflows, pair};
use super::look::Looked;
use super::plan::{Probe, Way};
use super::scene::Spot;
use super::verdict::{Evidence, Seen, Trace, doubtful};
use crate::daemon::{Refusal, chain};
use crate::kernel::conntrack::{Conntrack, Detail};
use crate::kernel::elements::Elements;
use crate::kernel::neighbour_table;
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

impl Bounds {
    /// How many are tried before connection tracking is asked about them.
    fn at_a_time(&self, patience: Duration) -> usize {
        let by_rate = usize::try_from(self.rate).unwrap_or(usize::MAX);
        let turns = BETWEEN_LOOKS.as_millis() / patience.as_millis().max(1);
        let by_turns = self
            .parallel
            .saturating_mul(usize::try_from(turns).unwrap_or(1).max(1));
        let seconds = usize::try_from(BETWEEN_LOOKS.as_secs()).unwrap_or(1);
        by_rate
            .saturating_mul(seconds)
            .min(by_turns)
            .clamp(1, MOST_TO_A_LOOK)
    }
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
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);
const MOST_TO_A_LOOK: usize = 2048;

/// Tries all of them; `tried` is told of each. What is declared open comes first: it shows how long an answer takes.
///
/// # Errors
/// When connection tracking cannot be read.
pub async fn run(
    looked: &Looked,
    probes: &[Probe],
    bounds: Bounds,
    tried: impl Fn() + Sync,
) -> Result<Outcome, Refusal> {
    let prober = Prober {
        looked,
        bounds,
        pace: Pace::new(bounds.rate),
        neighbours: Neighbours::new(),
    };
    let full = overflows();
    let mut seen: Vec<Option<Seen>> = vec![None; probes.len()];
    let mut patience = bounds.timeout;
    for declared_open in [true, false] {
        let numbers = probes.iter().enumerate();
        let numbers = numbers.filter(|(_, probe)| probe.declared.passes() == declared_open);
        let part = in_turns(probes, numbers.map(|(number, _)| number));
        for numbers in chunks(probes, &part, bounds.at_a_time(patience)) {
            prober.look(probes, numbers, patience, &mut seen, &tried).await?;
        }
        let doubts = |number: &usize| {
            let pair = probes.get(*number).zip(seen.get(*number));
            pair.is_some_and(|(probe, seen)| seen.as_ref().is_some_and(|seen| doubtful(probe, seen)))
        };
        let again: Vec<usize> = part.into_iter().filter(doubts).collect();
        let longer = bounds.timeout * SECOND_LOOK;
        for numbers in chunks(probes, &again, bounds.at_a_time(longer)) {
            prober.look(probes, numbers, longer, &mut seen, &|| {}).await?;
        }
        patience = patience_after(&seen, bounds.timeout);
    }
    let missing = || Seen {
        evidence: Evidence::Failed("it was left out".to_owned()),
        trace: Trace::Unwatched,
        elapsed: Duration::ZERO,
    };
    let mut seen: Vec<Seen> = seen
        .into_iter()
        .map(|seen| seen.unwrap_or_else(missing))
        .collect();
    let stands = tokio::task::block_in_place(|| Elements::open()?.base_chains());
    let rules = match stands.is_ok_and(|chains| !chains.is_empty()) {
        true => Rules::Stand,
        false => Rules::Gone,
    };
    distrust(probes, &mut seen, rules);
    let overflown = full.zip(overflows()).is_some_and(|(before, now)| now > before);
    Ok(Outcome {
        seen,
        neighbours: match overflown {
            true => Table::WasFull,
            false => Table::HadRoom,
        },
    })
}

/// What came of all probes, in their order.
#[derive(Debug)]
pub struct Outcome {
    pub seen: Vec<Seen>,
    pub neighbours: Table,
}

/// Whether the kernel had room for new neighbours all the time: without it, packets are lost as if they were denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    HadRoom,
    WasFull,
}

/// Whether our rules stand: while they do, the kernel tracks connections for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    Stand,
    Gone,
}

/// That connection tracking knows nothing of a probe says something only where it knows of those that were seen to pass.
/// The kernel tracks a family only for as long as somebody's rules ask for it.
fn distrust(probes: &[Probe], seen: &mut [Seen], rules: Rules) {
    let mut known: BTreeMap<(Family, &Way), usize> = BTreeMap::new();
    let mut by_family: BTreeMap<Family, usize> = BTreeMap::new();
    for (probe, seen) in probes.iter().zip(seen.iter()) {
        if leaves_trace(probe, &seen.evidence) {
            let traced = usize::from(seen.trace == Trace::Passed);
            *known.entry((probe.family(), &probe.way)).or_default() += traced;
            *by_family.entry(probe.family()).or_default() += traced;
        }
    }
    for (probe, seen) in probes.iter().zip(seen) {
        let of_way = known.get(&(probe.family(), &probe.way));
        let trusted = match of_way.or(by_family.get(&probe.family())) {
            Some(traced) => *traced > 0,
            None => rules == Rules::Stand,
        };
        if seen.trace == Trace::Missing && !trusted {
            seen.trace = Trace::Unwatched;
        }
    }
}

/// What the kernel still tracks when it is asked. It forgets a connection that was refused by a reset at once.
fn leaves_trace(probe: &Probe, evidence: &Evidence) -> bool {
    match probe.transport {
        Transport::Tcp => *evidence == Evidence::Connected,
        Transport::Udp | Transport::Sctp => has_answer(evidence),
    }
}

fn has_answer(evidence: &Evidence) -> bool {
    matches!(
        evidence,
        Evidence::Connected | Evidence::Refused | Evidence::Answered
    )
}

/// How long the others may take, by what passed so far.
fn patience_after(seen: &[Option<Seen>], timeout: Duration) -> Duration {
    let answered = seen.iter().flatten().filter(|it| has_answer(&it.evidence));
    match answered.map(|it| it.elapsed).max() {
        Some(slowest) => (slowest * SLOWER).max(LEAST_PATIENCE).min(timeout),
        None => timeout,
    }
}

struct Prober<'a> {
    looked: &'a Looked,
    bounds: Bounds,
    pace: Pace,
    neighbours: Neighbours,
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
        let passed = tokio::task::block_in_place(passed)?;
        self.forget(probes, numbers).await;
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

    /// Takes the neighbours out of the kernel's table again that only these probes brought there, at both ends: who was
    /// dialled would otherwise soon ask whether the other one is still there.
    async fn forget(&self, probes: &[Probe], numbers: &[usize]) {
        let scene = &self.looked.scene;
        let mut met: BTreeMap<Spot, BTreeSet<IpAddr>> = BTreeMap::new();
        for probe in numbers.iter().filter_map(|number| probes.get(*number)) {
            let Some((from, address)) = pair(probe) else {
                continue;
            };
            met.entry(from).or_default().insert(address);
            let own = scene.subject(from).map_or(&scene.host, |it| &it.addresses);
            met.entry(probe.to).or_default().extend(own);
        }
        for (spot, mut addresses) in met {
            let Some((namespace, known)) = self.looked.place(spot) else {
                continue;
            };
            addresses.retain(|address| !known.contains(address));
            let forget = move || neighbour_table::forget(&addresses);
            match self.looked.visitor.within(namespace, forget).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "neighbours stay until they are old"),
                Err(error) => debug!(%error, "neighbours stay until they are old"),
            }
        }
    }

    /// Whether connection tracking sees what goes this way: within a bridge only where the bridge hands its packets over.
    fn is_watched(&self, probe: &Probe) -> bool {
        match &probe.way {
            Way::Network(id) => self.looked.watched.contains(id),
            Way::Routed | Way::Published | Way::Host | Way::World => true,
        }
    }

    async fn attempt(&self, probe: &Probe, patience: Duration) -> Attempt {
        sleep_until(self.neighbours.turn(probe).await).await;
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
        let place = self.looked.place(probe.from);
        let (namespace, _) = place.ok_or("there is no such namespace")?;
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
        let made = self.looked.visitor.within(namespace, make).await;
        made.map_err(|it| chain(&it))?
            .map_err(|it| format!("no socket: {it}"))
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
