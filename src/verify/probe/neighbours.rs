//! The kernel's tables of neighbours, one for each family and all namespaces of the host together. Who dials an address of
//! their own network for the first time gets an entry there, and so does who is dialled. Full tables would keep others from
//! their connections, and what fails for that looks denied: so new pairs begin no faster than the kernel takes entries back
//! at the side that is dialled, and those of the other side are taken out again before there are many.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::net::Family;
use crate::verify::plan::{Probe, Way};
use crate::verify::scene::Spot;

/// The kernel's default for the most entries.
const USUAL_MOST: u32 = 1024;
/// The kernel takes back entries that are older.
const YOUNG: Duration = Duration::from_secs(5);
/// Of the table, for either side; the rest stays for others.
const SHARE: u32 = 3;
/// Pairs of a family after which the dialling side's are taken out.
const MOST_PAIRS: usize = 150;

/// Gives each pair its turn.
#[derive(Debug)]
pub(super) struct Neighbours {
    gaps: [Duration; 2],
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    next: BTreeMap<Family, Instant>,
    of: BTreeMap<(Spot, IpAddr), Instant>,
}

impl Neighbours {
    /// As fast as this host's tables allow.
    pub(super) fn new() -> Self {
        let most = |family: &str| {
            let path = format!("/proc/sys/net/{family}/neigh/default/gc_thresh3");
            // The host's own namespace has these alone.
            let said = fs::read_to_string(path).ok();
            said.and_then(|text| text.trim().parse().ok())
                .unwrap_or(USUAL_MOST)
        };
        Self::of([most("ipv4"), most("ipv6")])
    }

    fn of(most: [u32; 2]) -> Self {
        Self {
            gaps: most.map(|most| YOUNG / (most / SHARE).max(1)),
            turns: Mutex::default(),
        }
    }

    /// When the probe may begin.
    pub(super) async fn turn(&self, probe: &Probe) -> Instant {
        let now = Instant::now();
        let Some(pair) = pair(probe) else { return now };
        let [v4, v6] = self.gaps;
        let gap = match probe.family() {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let mut turns = self.turns.lock().await;
        if let Some(turn) = turns.of.get(&pair)
            && *turn + YOUNG > now
        {
            return *turn;
        }
        let next = turns.next.entry(probe.family()).or_insert(now);
        let turn = (*next).max(now);
        *next = turn + gap;
        turns.of.insert(pair, turn);
        turn
    }
}

/// Who becomes whose neighbour. By any other way it is the host, who is one already.
pub(super) fn pair(probe: &Probe) -> Option<(Spot, IpAddr)> {
    let direct = match probe.way {
        Way::Network(_) => true,
        Way::Host => probe.from == Spot::Host,
        Way::Routed | Way::Published | Way::World => false,
    };
    direct.then(|| (probe.from, probe.address.ip()))
}

/// The order in which probes begin: all of a pair together, and the families in turns.
pub(super) fn in_turns(probes: &[Probe], numbers: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut pairs: BTreeMap<(Spot, IpAddr), Vec<usize>> = BTreeMap::new();
    for number in numbers {
        if let Some(probe) = probes.get(number) {
            pairs
                .entry((probe.from, probe.address.ip()))
                .or_default()
                .push(number);
        }
    }
    let mut ranks: BTreeMap<Family, usize> = BTreeMap::new();
    let mut ranked: Vec<((usize, Family), Vec<usize>)> = Vec::new();
    for ((_, address), numbers) in pairs {
        let rank = ranks.entry(Family::of(address)).or_default();
        ranked.push(((*rank, Family::of(address)), numbers));
        *rank += 1;
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().flat_map(|(_, numbers)| numbers).collect()
}

/// Cuts what is tried into parts, after each of which the table is relieved.
pub(super) fn chunks<'a>(probes: &[Probe], numbers: &'a [usize], most: usize) -> Vec<&'a [usize]> {
    let mut chunks = Vec::new();
    let mut rest = numbers;
    while !rest.is_empty() {
        let mut pairs: BTreeSet<(Spot, IpAddr)> = BTreeSet::new();
        let fits = |number: &&usize| {
            pairs.extend(probes.get(**number).and_then(pair));
            pairs.len() <= 2 * MOST_PAIRS
        };
        let length = rest.iter().take(most.max(1)).take_while(fits).count().max(1);
        let (chunk, others) = rest.split_at(length);
        chunks.push(chunk);
        rest = others;
    }
    chunks
}

/// How often the kernel refused a new entry since the host started, where it tells.
pub(super) fn overflows() -> Option<u64> {
    let of = |table: &str| {
        let text = fs::read_to_string(format!("/proc/net/stat/{table}")).ok()?;
        fulls(&text)
    };
    Some(of("arp_cache")? + of("ndisc_cache")?)
}

/// The column `table_fulls` of each processor's line.
fn fulls(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let column = lines
        .next()?
        .split_ascii_whitespace()
        .position(|it| it == "table_fulls")?;
    let values = lines.filter_map(|line| line.split_ascii_whitespace().nth(column));
    Some(values.filter_map(|it| u64::from_str_radix(it, 16).ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::NetworkId;
    use crate::net::Transport;
    use crate::verify::scene::Declared;

    fn probe(from: usize, address: &str, port: u16) -> Probe {
        Probe {
            from: Spot::Container(from),
            to: Spot::Container(9),
            transport: Transport::Tcp,
            port,
            address: (address.parse::<IpAddr>().unwrap(), port).into(),
            way: Way::Network(NetworkId("n".into())),
            declared: Declared::Closed,
        }
    }

    #[tokio::test]
    async fn new_pairs_wait_for_each_other_and_ports_of_one_do_not() {
        // 5 s / 10 for IPv4.
        let neighbours = Neighbours::of([30, 3000]);
        let first = neighbours.turn(&probe(0, "10.0.0.2", 80)).await;
        assert_eq!(neighbours.turn(&probe(0, "10.0.0.2", 81)).await, first);
        let other = neighbours.turn(&probe(1, "10.0.0.2", 80)).await;
        assert_eq!(other - first, Duration::from_millis(500));
        let v6 = neighbours.turn(&probe(1, "fd00::2", 80)).await;
        assert!(v6 < other, "the families have tables of their own");
        let routed = Probe {
            way: Way::Routed,
            ..probe(2, "10.0.0.2", 80)
        };
        assert!(neighbours.turn(&routed).await < other);
    }

    #[test]
    fn pairs_stay_together_and_families_take_turns() {
        let probes = [
            probe(0, "10.0.0.2", 80),
            probe(1, "10.0.0.2", 80),
            probe(0, "fd00::2", 80),
            probe(0, "10.0.0.2", 81),
        ];
        assert_eq!(in_turns(&probes, 0..4), [0, 3, 2, 1]);
    }

    #[test]
    fn a_part_has_a_bounded_number_of_pairs_and_probes() {
        let probes: Vec<Probe> = (0..700).map(|from| probe(from / 2, "10.0.0.2", 80)).collect();
        let numbers: Vec<usize> = (0..700).collect();
        let lengths = |most| -> Vec<usize> {
            let chunks = chunks(&probes, &numbers, most);
            chunks.iter().map(|chunk| chunk.len()).collect()
        };
        assert_eq!(lengths(5000), [600, 100]);
        assert_eq!(lengths(400), [400, 300]);
        assert_eq!(lengths(0).len(), 700);
    }

    #[test]
    fn overflows_are_counted_over_all_processors() {
        let text =
            "entries  allocs  destroys  table_fulls\n00000003  0000 0000 00000010\n00000003 0 0 0000000a\n";
        assert_eq!(fulls(text), Some(26));
        assert_eq!(fulls("entries allocs\n1 2\n"), None);
    }
}
