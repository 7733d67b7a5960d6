//! Flows added up, within bounds: whoever tries much uses up its own room.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use super::record::{EndKind, FlowEnd, FlowRecord, FlowVerdict, FlowsAnswer, Missed};
use super::resolve::{Attempt, Known, What};
use super::totals::FlowTotals;
use crate::inventory::ContainerId;
use crate::model::Rights;

/// Ports (and addresses outside) that are told apart between two ends; the rest is added up in one record.
const EACH: usize = 256;
/// Pairs of ends, and records in all.
const PAIRS: usize = 4096;
const RECORDS: usize = 16_384;
/// A flow that goes on is worth a line again after this long.
const QUIET: SignedDuration = SignedDuration::from_secs(60);
/// Packets by which one that is sent again is known.
const SEEN: usize = 65_536;

/// Between whom, and what became of it. The world is one end, whatever its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    verdict: FlowVerdict,
    from: Who,
    to: Who,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    kind: EndKind,
    container: Option<ContainerId>,
}

/// What is told apart within a pair.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Single {
        /// Of an end that is no container.
        from: Option<IpAddr>,
        to: Option<IpAddr>,
        what: What,
    },
    /// Everything else of this protocol.
    Rest(String),
}

#[derive(Debug)]
struct Entry {
    record: FlowRecord,
    /// When it was last worth a line.
    told: Timestamp,
    /// Attempts that are not in the totals yet.
    uncounted: u64,
}

impl Entry {
    fn count(&mut self, totals: &mut FlowTotals) {
        if self.uncounted > 0 {
            totals.add(&self.record, self.uncounted);
            self.uncounted = 0;
        }
    }
}

/// The log.
#[derive(Debug)]
pub(super) struct Log {
    since: Timestamp,
    seq: u64,
    pairs: BTreeMap<Pair, BTreeMap<Item, Entry>>,
    records: usize,
    /// Of a secret kind: nobody can make two packets look like one.
    hasher: RandomState,
    seen: BTreeSet<u64>,
    seen_order: VecDeque<u64>,
    totals: FlowTotals,
    pub(super) missed: Missed,
}

/// What a packet was to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Noted {
    /// The first of its kind, or the first for a while.
    Tell(Box<FlowRecord>),
    Again,
}

impl Log {
    pub(super) fn new(since: Timestamp) -> Self {
        Self {
            since,
            seq: 0,
            pairs: BTreeMap::new(),
            records: 0,
            hasher: RandomState::new(),
            seen: BTreeSet::new(),
            seen_order: VecDeque::new(),
            totals: FlowTotals::default(),
            missed: Missed::default(),
        }
    }

    /// Adds a packet.
    pub(super) fn add(&mut self, attempt: Attempt, rights: &Rights, now: Timestamp) -> Noted {
        let is_new = self.is_new(&attempt);
        let pair = Pair {
            verdict: attempt.verdict,
            from: Who::of(&attempt.from),
            to: Who::of(&attempt.to),
        };
        self.seq += 1;
        let items = self.pairs.get(&pair);
        let single = Item::Single {
            from: outside(&attempt.from),
            to: outside(&attempt.to),
            what: attempt.what,
        };
        let item = match items {
            Some(items) if items.len() >= EACH && !items.contains_key(&single) => {
                Item::Rest(attempt.what.protocol())
            }
            _ => single,
        };
        if let Some(entry) = self.pairs.get_mut(&pair).and_then(|items| items.get_mut(&item)) {
            let record = &mut entry.record;
            record.seq = self.seq;
            record.packets += 1;
            record.attempts += u64::from(is_new);
            entry.uncounted += u64::from(is_new);
            record.last_seen = now;
            record.from.address = attempt.from.address;
            record.to.address = attempt.to.address;
            if now.duration_since(entry.told) < QUIET {
                return Noted::Again;
            }
            entry.told = now;
            return Noted::Tell(Box::new(record.clone()));
        }
        let rest = matches!(item, Item::Rest(_));
        let record = FlowRecord {
            seq: self.seq,
            verdict: attempt.verdict,
            direction: attempt.direction(),
            protocol: attempt.what.protocol(),
            port: attempt.what.port().filter(|_| !rest),
            icmp_type: attempt.what.icmp_type().filter(|_| !rest),
            many_ports: rest,
            reason: match rest {
                true => "more ports or addresses than are told apart".to_owned(),
                false => attempt.reason(rights),
            },
            from: attempt.from.told(),
            to: attempt.to.told(),
            attempts: 1,
            packets: 1,
            first_seen: now,
            last_seen: now,
        };
        self.insert(pair, item, record.clone());
        Noted::Tell(Box::new(record))
    }

    fn insert(&mut self, pair: Pair, item: Item, record: FlowRecord) {
        self.make_room(&pair);
        let entry = Entry {
            told: record.last_seen,
            uncounted: record.attempts,
            record,
        };
        let before = self.pairs.entry(pair).or_default().insert(item, entry);
        self.records += usize::from(before.is_none());
    }

    /// So many more attempts and packets of this flow.
    pub(super) fn put(&mut self, mut record: FlowRecord) {
        self.seq += 1;
        record.seq = self.seq;
        let pair = Pair {
            verdict: record.verdict,
            from: Who::told(&record.from),
            to: Who::told(&record.to),
        };
        let item = Item::Rest(format!("{}/{:?}", record.protocol, record.port));
        match self.pairs.get_mut(&pair).and_then(|items| items.get_mut(&item)) {
            Some(entry) => {
                entry.uncounted += record.attempts;
                record.attempts += entry.record.attempts;
                record.packets += entry.record.packets;
                record.first_seen = entry.record.first_seen;
                entry.record = record;
            }
            None => self.insert(pair, item, record),
        }
    }

    /// Attempts by service and reason.
    pub(super) fn totals(&mut self) -> &FlowTotals {
        for entry in self.pairs.values_mut().flat_map(BTreeMap::values_mut) {
            entry.count(&mut self.totals);
        }
        &self.totals
    }

    /// Whether it is not an earlier packet that is sent again.
    fn is_new(&mut self, attempt: &Attempt) -> bool {
        let Some(once) = attempt.once else { return true };
        let packet = (
            attempt.from.address,
            attempt.to.address,
            attempt.what.port(),
            once,
        );
        let hash = self.hasher.hash_one(packet);
        if !self.seen.insert(hash) {
            return false;
        }
        self.seen_order.push_back(hash);
        if self.seen_order.len() > SEEN
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }

    /// Room for one more record: of too many pairs the one that has been silent for longest goes; of too many records, the
    /// half of the greatest pair that has.
    fn make_room(&mut self, coming: &Pair) {
        if self.pairs.len() >= PAIRS && !self.pairs.contains_key(coming) {
            let last = |items: &BTreeMap<Item, Entry>| items.values().map(|it| it.record.seq).max();
            let silent = self.pairs.iter().min_by_key(|(_, items)| last(items));
            if let Some(pair) = silent.map(|(pair, _)| pair.clone())
                && let Some(mut items) = self.pairs.remove(&pair)
            {
                items.values_mut().for_each(|entry| entry.count(&mut self.totals));
                self.forgot(items.len());
            }
        }
        if self.records >= RECORDS {
            let greatest = self.pairs.values_mut().max_by_key(|items| items.len());
            let Some(items) = greatest else { return };
            let mut order: Vec<u64> = items.values().map(|it| it.record.seq).collect();
            order.sort_unstable();
            let limit = order.get(order.len() / 2).copied().unwrap_or(u64::MAX);
            let before = items.len();
            let totals = &mut self.totals;
            items.retain(|_, entry| {
                entry.count(totals);
                entry.record.seq > limit
            });
            let gone = before - items.len();
            self.forgot(gone);
            self.pairs.retain(|_, items| !items.is_empty());
        }
    }

    fn forgot(&mut self, records: usize) {
        self.records -= records;
        self.missed.forgotten_flows += u64::try_from(records).unwrap_or(u64::MAX);
    }

    /// What has changed after this `seq`, in the order of the changes.
    pub(super) fn after(&self, seq: u64) -> FlowsAnswer {
        let records = self
            .pairs
            .values()
            .flat_map(BTreeMap::values)
            .map(|it| &it.record);
        let mut flows: Vec<FlowRecord> = records.filter(|it| it.seq > seq).cloned().collect();
        flows.sort_by_key(|it| it.seq);
        FlowsAnswer {
            since: self.since,
            last: self.seq,
            flows,
            missed: self.missed,
        }
    }
}

impl Who {
    fn of(end: &Known) -> Self {
        Self {
            kind: end.kind,
            container: end.party.as_ref().map(|party| party.id.clone()),
        }
    }

    fn told(end: &FlowEnd) -> Self {
        Self {
            kind: end.kind,
            container: end.container_id.as_deref().map(|id| ContainerId(id.into())),
        }
    }
}

/// The address of an end that is known by nothing else.
fn outside(end: &Known) -> Option<IpAddr> {
    end.address
        .filter(|_| end.party.is_none() && end.kind != EndKind::Host)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::book::Book;
    use super::super::resolve::{Patience, Resolved, resolve};
    use super::*;
    use crate::inventory::Endpoint;
    use crate::kernel::nflog::{Logged, LoggedBody};
    use crate::model::Standing;
    use crate::net::{Traffic, Transport};
    use crate::plan::ruleset::HookPoint;
    use crate::plan::{Moves, Place, Resident};

    const SCANNER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    /// Containers `c2`, `c3`, ... at 10.0.0.2, 10.0.0.3, ...
    fn book(containers: u32) -> Book {
        let mut book = Book::default();
        let resident = |number: u32| Resident {
            name: format!("c{number}"),
            standing: Standing::Unmanaged,
            places: Box::new([Place {
                endpoint: Endpoint {
                    ipv4: Some(Ipv4Addr::from(0x0a00_0000 + number)),
                    ..Endpoint::default()
                },
                port: None,
            }]),
            published: BTreeSet::new(),
        };
        let containers = (2..containers + 2)
            .map(|number| (ContainerId(number.to_string().into()), Some(resident(number))));
        let moves = Moves {
            containers: containers.collect(),
            ..Moves::default()
        };
        book.take(moves, Instant::now());
        book
    }

    fn at(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn attempt(book: &Book, source: IpAddr, destination: IpAddr, port: u16, packet: (u16, u32)) -> Attempt {
        let logged = Logged {
            prefix: "cofferdam denied".to_owned(),
            hook: HookPoint::Forward,
            iif: None,
            port: None,
            mac: None,
            body: LoggedBody::Ip {
                source,
                destination,
                traffic: Traffic::Port(Transport::Tcp, port),
                source_port: packet.0,
                sequence: Some(packet.1),
            },
        };
        match resolve(&logged, book, Instant::now(), Patience::Over) {
            Resolved::Attempt(attempt) => attempt,
            other => panic!("{other:?}"),
        }
    }

    fn log() -> (Log, Arc<Rights>) {
        (Log::new(Timestamp::UNIX_EPOCH), Arc::default())
    }

    #[test]
    fn a_packet_that_is_sent_again_is_no_new_attempt() {
        let (mut log, rights) = log();
        let book = book(2);
        let now = Timestamp::UNIX_EPOCH;
        for packet in [(4000, 1), (4000, 1), (4001, 2), (4000, 1), (4000, 3)] {
            log.add(attempt(&book, at(2), at(3), 80, packet), &rights, now);
        }
        let answer = log.after(0);
        let [record] = answer.flows.as_slice() else {
            panic!("{answer:?}");
        };
        assert_eq!((record.attempts, record.packets, record.seq), (3, 5, 5));
        assert_eq!(record.reason, "no edge can name c2: no service selects it");
        assert_eq!(log.after(5).flows, []);
    }

    #[test]
    fn a_scan_leaves_the_records_of_others_alone_and_is_bounded() {
        let (mut log, rights) = log();
        let book = book(5000);
        let now = Timestamp::UNIX_EPOCH;
        log.add(attempt(&book, at(9), at(8), 443, (1, 1)), &rights, now);
        for port in 1..=u16::MAX {
            log.add(
                attempt(&book, SCANNER.into(), at(3), port, (port, 7)),
                &rights,
                now,
            );
        }
        let of = |log: &Log, container: &str| -> Vec<FlowRecord> {
            let all = log.after(0).flows.into_iter();
            all.filter(|it| it.from.container.as_deref() == Some(container))
                .collect()
        };
        assert_eq!(of(&log, "c9").len(), 1);
        let scan = of(&log, "c2");
        assert_eq!(scan.len(), EACH + 1);
        assert_eq!(
            scan.iter().map(|it| it.attempts).sum::<u64>(),
            u64::from(u16::MAX)
        );
        assert_eq!(log.missed.forgotten_flows, 0);
        // Every container and every port: still bounded, and the other's record is the last to go.
        for to in 3..5000 {
            for port in 1..=20 {
                log.add(
                    attempt(&book, SCANNER.into(), at(to), port, (port, to)),
                    &rights,
                    now,
                );
            }
            if to % 100 == 0 {
                log.add(attempt(&book, at(9), at(8), 443, (2, to)), &rights, now);
            }
        }
        assert!(log.records <= RECORDS && log.pairs.len() <= PAIRS);
        assert_eq!(log.records, log.after(0).flows.len());
        assert_eq!(of(&log, "c9").len(), 1);
        assert!(log.missed.forgotten_flows > 0);
    }

    #[test]
    fn the_worlds_addresses_share_one_room() {
        let (mut log, rights) = log();
        let book = book(2);
        let now = Timestamp::UNIX_EPOCH;
        for number in 0..10_000_u32 {
            let from = IpAddr::from(Ipv4Addr::from(0xc633_6400 + number));
            log.add(attempt(&book, from, at(2), 80, (1, number)), &rights, now);
        }
        assert_eq!((log.pairs.len(), log.records), (1, EACH + 1));
    }
}
