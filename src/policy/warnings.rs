//! What a reviewer would ask about a policy: nothing here refuses it.
//!
//! In: documents without faults of their own, for some questions the whole policy, and the time. Out: faults with codes
//! of [`super::Severity::Warning`] in the report.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;

use super::document::{AllowEntry, Document, PeerText};
use super::fault::{Code, Other};
use super::text::{Report, Site, Sited};
use super::traffic::TrafficSet;
use super::{Expectation, Name, Peer, Policy, Ports, ScopedName, Test};
use crate::net::{Family, PortRange, Transport};

/// Where databases and their like listen when nobody tells them otherwise.
const DATABASES: [(u16, &str); 17] = [
    (1433, "SQL Server"),
    (1521, "Oracle"),
    (2379, "etcd"),
    (3306, "MySQL"),
    (5432, "PostgreSQL"),
    (5984, "CouchDB"),
    (6379, "Redis"),
    (7000, "Cassandra"),
    (7687, "Neo4j"),
    (8086, "InfluxDB"),
    (8123, "ClickHouse"),
    (9042, "Cassandra"),
    (9200, "Elasticsearch"),
    (9300, "Elasticsearch"),
    (11211, "memcached"),
    (26257, "CockroachDB"),
    (27017, "MongoDB"),
];

/// The shortest prefixes that raise no question. No organisation holds more than a /8 of IPv4 or a /16 of IPv6.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 16;

/// How many entries about one pair of ends are compared with each other.
const MAX_COMPARED: usize = 100;

/// Questions that a single entry raises, whatever stands around it.
pub(super) fn about_parts(documents: &[Document], now: Timestamp, report: &mut Report<'_>) {
    for document in documents {
        for external in &document.externals {
            for cidr in &external.cidrs {
                wide(cidr, external.name.value.as_str(), report);
            }
        }
        for entry in &document.allow {
            if let Some(until) = entry.until.as_ref().filter(|until| until.value <= now) {
                report
                    .add(
                        Code::Ended,
                        until.site,
                        format!("this edge ended at {} and permits nothing any more", until.value),
                    )
                    .help("remove it, or give it a later end if it is still needed");
            } else if entry.from.iter().any(|end| end.value == PeerText::World) {
                for ports in &entry.ports {
                    world_to_database(ports, report);
                }
            }
        }
    }
}

fn wide(cidr: &Sited<IpNet>, external: &str, report: &mut Report<'_>) {
    let (widest, family) = match cidr.value {
        IpNet::V4(_) => (WIDEST_V4, "IPv4"),
        IpNet::V6(_) => (WIDEST_V6, "IPv6"),
    };
    if cidr.value.prefix_len() < widest {
        report
            .add(
                Code::WideExternal,
                cidr.site,
                format!(
                    "{} of external `{external}` is wider than /{widest}, more {family} addresses than any organisation has",
                    cidr.value
                ),
            )
            .help("name the ranges that are meant; if everybody is, `world` says so");
    }
}

fn world_to_database(ports: &Sited<Ports>, report: &mut Report<'_>) {
    let opened = TrafficSet::of([&ports.value], Family::V4);
    let opens = |port: u16| {
        let one = Ports::Transport(Transport::Tcp, PortRange::single(port));
        !opened.common(&TrafficSet::of([&one], Family::V4)).is_empty()
    };
    let named: Vec<String> = DATABASES
        .iter()
        .filter(|(port, _)| opens(*port))
        .map(|(port, name)| format!("{port} ({name})"))
        .collect();
    let message = match named.as_slice() {
        [] => return,
        [one] => format!("an edge from `world` opens the database port {one}"),
        [first, others @ ..] => format!(
            "an edge from `world` opens the database port {first} and {}",
            super::count(others.len(), "other")
        ),
    };
    report.add(Code::WorldToDatabase, ports.site, message).help(
        "if not the whole Internet is meant, name who needs it as an external; if no database listens there, leave it",
    );
}

/// Questions that only the whole policy raises; it has no faults.
pub(super) fn about_whole(documents: &[Document], policy: &Policy, now: Timestamp, report: &mut Report<'_>) {
    let entries: Vec<Entry<'_>> = documents
        .iter()
        .flat_map(|document| document.segment.iter().map(move |segment| (segment, document)))
        .flat_map(|(segment, document)| {
            let entries = document.allow.iter();
            entries.map(move |written| Entry::new(written, &segment.value, policy))
        })
        .filter(|entry| entry.until.is_none_or(|until| now < until))
        .collect();
    covered(&entries, report);
    any_for_named(&entries, policy, report);
    without_edges(documents, policy, report);
}

/// An entry of `allow` that is in force, with its ends looked up.
struct Entry<'d> {
    written: &'d AllowEntry,
    pairs: BTreeSet<(Peer, Peer)>,
    /// What it permits over each family, in the order of [`Family::ALL`].
    traffic: [TrafficSet; 2],
    until: Option<Timestamp>,
}

impl<'d> Entry<'d> {
    fn new(written: &'d AllowEntry, segment: &Name, policy: &Policy) -> Self {
        let from = peers(&written.from, segment, policy);
        let to = peers(&written.to, segment, policy);
        let pairs = from
            .iter()
            .flat_map(|from| to.iter().map(move |to| (from.clone(), to.clone())));
        Self {
            written,
            pairs: pairs.collect(),
            traffic: Family::ALL
                .map(|family| TrafficSet::of(written.ports.iter().map(|ports| &ports.value), family)),
            until: written.until.as_ref().map(|until| until.value),
        }
    }

    fn site(&self) -> Site {
        self.written.site
    }

    /// Whether it permits, where their ends are the same, all that `other` does for as long. Of two that say the same the
    /// earlier covers the later.
    fn covers(&self, other: &Self) -> bool {
        self.includes(other) && (self.site() < other.site() || !other.includes(self))
    }

    fn includes(&self, other: &Self) -> bool {
        let lasts = self
            .until
            .is_none_or(|until| other.until.is_some_and(|theirs| theirs <= until));
        lasts
            && self
                .traffic
                .iter()
                .zip(&other.traffic)
                .all(|(mine, theirs)| theirs.without(mine).is_empty())
    }
}

/// What ends stand for in a policy without faults.
fn peers(ends: &[Sited<PeerText>], segment: &Name, policy: &Policy) -> Vec<Peer> {
    let id = |segment: &Name, name: &Name| ScopedName {
        segment: segment.clone(),
        name: name.clone(),
    };
    ends.iter()
        .flat_map(|end| match &end.value {
            PeerText::World => vec![Peer::World],
            PeerText::Host => vec![Peer::Host],
            PeerText::Every => {
                let here = policy.services.keys().filter(|id| id.segment == *segment);
                here.cloned().map(Peer::Service).collect()
            }
            PeerText::Here(name) => {
                let id = id(segment, name);
                vec![if policy.externals.contains_key(&id) {
                    Peer::External(id)
                } else {
                    Peer::Service(id)
                }]
            }
            PeerText::In(other, name) => vec![Peer::Service(id(other, name))],
        })
        .collect()
}

fn covered(entries: &[Entry<'_>], report: &mut Report<'_>) {
    let mut by_pair: BTreeMap<&(Peer, Peer), Vec<&Entry<'_>>> = BTreeMap::new();
    for entry in entries {
        for pair in &entry.pairs {
            by_pair.entry(pair).or_default().push(entry);
        }
    }
    for entry in entries {
        // The same entries meet at many pairs: each two are compared once.
        let mut compared: BTreeMap<Site, bool> = BTreeMap::new();
        let cover = |pair| {
            let others = by_pair.get(pair).into_iter().flatten().take(MAX_COMPARED);
            let mut others = others.copied().filter(|other| other.site() != entry.site());
            others.find(|other| {
                *compared
                    .entry(other.site())
                    .or_insert_with(|| other.covers(entry))
            })
        };
        let covers: Option<Vec<&Entry<'_>>> = entry.pairs.iter().map(cover).collect();
        let (Some(covers), Some((from, to))) = (covers, entry.pairs.first()) else {
            continue;
        };
        let sites: BTreeSet<Site> = covers.iter().map(|other| other.site()).collect();
        let message = match entry.pairs.len() {
            1 => format!("`{from} -> {to}` is covered by another edge"),
            _ => "each edge of this entry is covered by another".to_owned(),
        };
        let others: Vec<Other> = sites
            .into_iter()
            .take(3)
            .map(|site| report.other(site, "this permits all of it"))
            .collect();
        let fault = report.add(Code::Covered, entry.site(), message);
        fault.help("remove it: it adds nothing, and whoever removes it later closes nothing");
        fault.others = others;
    }
}

fn any_for_named(entries: &[Entry<'_>], policy: &Policy, report: &mut Report<'_>) {
    let mut named: BTreeMap<(&Peer, &Peer), Vec<&Test>> = BTreeMap::new();
    for test in &policy.tests {
        if test.expected == Expectation::Reachable {
            named.entry((&test.from, &test.to)).or_default().push(test);
        }
    }
    for entry in entries {
        let Some(any) = entry.written.ports.iter().find(|ports| ports.value == Ports::Any) else {
            continue;
        };
        let tests = entry.pairs.iter().find_map(|(from, to)| {
            let tests = named.get(&(from, to))?;
            let only_named = tests.iter().all(|test| test.ports != Ports::Any);
            tests.first().filter(|_| only_named).map(|first| (*first, tests))
        });
        let Some((first, tests)) = tests else {
            continue;
        };
        let ports: BTreeSet<String> = tests.iter().map(|test| test.ports.to_string()).collect();
        let ports: Vec<String> = ports.into_iter().collect();
        let fault = report.add(
            Code::AnyForNamed,
            any.site,
            format!(
                "`{} -> {}` is open for `any`, and the tests name only {}",
                first.from,
                first.to,
                ports.join(", ")
            ),
        );
        fault.help(format!("if that is all: `ports: [{}]`", ports.join(", ")));
        fault.others.push(Other {
            location: first.location.clone(),
            range: first.range.clone(),
            text: "the tests say this".to_owned(),
        });
    }
}

fn without_edges(documents: &[Document], policy: &Policy, report: &mut Report<'_>) {
    let named: BTreeSet<&ScopedName> = policy
        .edges
        .iter()
        .flat_map(|edge| [&edge.from, &edge.to])
        .filter_map(|end| match end {
            Peer::Service(id) => Some(id),
            _ => None,
        })
        .collect();
    for document in documents {
        let Some(segment) = &document.segment else {
            continue;
        };
        for service in &document.services {
            let id = ScopedName {
                segment: segment.value.clone(),
                name: service.name.value.clone(),
            };
            if !named.contains(&id) {
                report
                    .add(
                        Code::NoEdge,
                        service.name.site,
                        format!("no edge leads to or from `{id}`"),
                    )
                    .help(
                        "its containers reach nothing and nobody reaches them: leave it so if that is meant",
                    );
            }
        }
    }
}
