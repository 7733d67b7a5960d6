//! Flows between containers as edges between services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words::{plain, several};
use super::{Direction, End, Evidence, Flow, Lesson};
use crate::model::yaml::scalar;
use crate::net::{PortRange, Transport};
use crate::policy::{Name, Peer, Ports, ScopedName};

/// Containers named in a comment.
const NAMED: usize = 4;
/// Ports of an edge with a line of their own; the others share one.
const LINES: usize = 12;
/// Addresses outside that are few enough to suggest an external.
const FEW: usize = 4;

/// An edge, and how each of its ports is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedEdge {
    pub from: Peer,
    pub to: Peer,
    pub ports: BTreeMap<Ports, PortEvidence>,
}

/// How a port is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortEvidence {
    pub evidence: Evidence,
    /// Names of containers at either end.
    pub from: BTreeSet<String>,
    pub to: BTreeSet<String>,
    /// Of these nothing listened on the port.
    pub deaf: BTreeSet<String>,
}

/// Edges by their ends.
#[derive(Debug, Clone, Default)]
pub(super) struct Edges(BTreeMap<(Peer, Peer), BTreeMap<Ports, PortEvidence>>);

impl Edges {
    /// Adds a flow to the edge between these ends.
    pub(super) fn add(&mut self, lesson: &Lesson, ends: (Peer, Peer), flow: &Flow, evidence: &Evidence) {
        let name = |end: &End| match end {
            End::Container(id) => lesson.containers.get(id).map(|it| it.name.clone()),
            End::Host | End::Outside => None,
        };
        let (from, to) = (name(&flow.from), name(&flow.to));
        let is_deaf = lesson.observation.is_served(flow) == Some(false);
        let deaf = to.clone().filter(|_| is_deaf);
        match self.0.entry(ends).or_default().entry(flow.ports) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(PortEvidence {
                    evidence: evidence.clone(),
                    from: from.into_iter().collect(),
                    to: to.into_iter().collect(),
                    deaf: deaf.into_iter().collect(),
                });
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                known.evidence.merge(evidence);
                known.from.extend(from);
                known.to.extend(to);
                known.deaf.extend(deaf);
            }
        }
    }

    /// By the segment in which each stands.
    pub(super) fn by_segment(self) -> BTreeMap<Name, Vec<LearnedEdge>> {
        let mut segments: BTreeMap<Name, Vec<LearnedEdge>> = BTreeMap::new();
        for ((from, to), ports) in self.0 {
            let edge = LearnedEdge { from, to, ports };
            if let Some(owner) = edge.owner() {
                segments.entry(owner.clone()).or_default().push(edge);
            }
        }
        segments
    }
}

impl LearnedEdge {
    /// The segment that it stands in: the callee's, or the caller's where the callee is no service.
    pub fn owner(&self) -> Option<&Name> {
        [&self.to, &self.from].into_iter().find_map(|end| match end {
            Peer::Service(id) => Some(&id.segment),
            _ => None,
        })
    }

    /// Its `ports`, neighbours as ranges.
    pub fn written_ports(&self) -> Vec<String> {
        let mut written = Vec::new();
        for transport in Transport::ALL {
            let mut ranges: Vec<PortRange> = Vec::new();
            for ports in self.ports.keys() {
                let Ports::Transport(of, range) = ports else {
                    continue;
                };
                if *of != transport {
                    continue;
                }
                match ranges.last_mut() {
                    Some(last) if last.last.checked_add(1) == Some(range.first) => last.last = range.last,
                    _ => ranges.push(*range),
                }
            }
            let texts = ranges
                .iter()
                .map(|range| Ports::Transport(transport, *range).to_string());
            written.extend(texts.map(|text| match text.strip_suffix("/tcp") {
                Some(number) => number.to_owned(),
                None => text,
            }));
        }
        let others = self.ports.keys().filter(|it| !matches!(it, Ports::Transport(..)));
        written.extend(others.map(ToString::to_string));
        written
    }

    /// How it is known, one line for each port, for comments.
    pub fn comments(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .ports
            .iter()
            .take(LINES)
            .map(|(ports, known)| known.line(*ports))
            .collect();
        if self.ports.len() > LINES {
            let rest = self.ports.len() - LINES;
            let times = self
                .ports
                .values()
                .skip(LINES)
                .map(|it| it.evidence.count + it.evidence.open);
            lines.push(format!(
                "{rest} more ports, {} times altogether",
                times.sum::<u64>()
            ));
        }
        lines.extend(self.external());
        lines
    }

    /// Where only few addresses outside are involved: the external that would name them.
    fn external(&self) -> Option<String> {
        let (end, towards) = match (&self.from, &self.to) {
            (_, Peer::World) => (&self.from, "to"),
            (Peer::World, _) => (&self.to, "from"),
            _ => return None,
        };
        let mut all: BTreeSet<IpAddr> = BTreeSet::new();
        for known in self.ports.values() {
            if !known.evidence.addresses.are_all() {
                return None;
            }
            all.extend(&known.evidence.addresses.known);
        }
        if all.len() > FEW {
            return None;
        }
        let Peer::Service(ScopedName { name, .. }) = end else {
            return None;
        };
        let cidrs: Vec<String> = all
            .iter()
            .map(|address| format!("\"{}\"", ipnet::IpNet::from(*address)))
            .collect();
        let mut external = format!("{name}-peers");
        external.truncate(63);
        Some(format!(
            "instead of world, for these addresses alone: `externals: {{ {external}: {{ cidrs: [{}] }} }}` and `{towards}: {external}`",
            cidrs.join(", ")
        ))
    }
}

impl PortEvidence {
    /// Whether it was seen just once.
    pub fn is_single(&self) -> bool {
        self.evidence.count + self.evidence.open == 1
    }

    fn line(&self, ports: Ports) -> String {
        let Evidence {
            count,
            open,
            answers,
            first,
            last,
            addresses,
            by_way_of,
            direction,
            ..
        } = &self.evidence;
        let what = match ports {
            Ports::Transport(Transport::Tcp, _) => ("connection", "connections"),
            Ports::Transport(..) => ("datagram", "datagrams"),
            _ => ("request", "requests"),
        };
        let mut parts = Vec::new();
        match count {
            0 => {}
            1 if *open == 0 => parts.push(format!("SEEN ONCE, at {}", time(*first))),
            1 => parts.push(format!("1 {}, at {}", what.0, time(*first))),
            _ if time(*first) == time(*last) => {
                parts.push(format!("{count} {}, at {}", what.1, time(*first)))
            }
            _ => parts.push(format!("{count} {}, {} to {}", what.1, time(*first), time(*last))),
        }
        match open {
            0 => {}
            1 if *count == 0 => parts.push("SEEN ONCE, as an open connection".to_owned()),
            _ => parts.push(format!("{open} open when watching began")),
        }
        if count + open == 0 {
            parts.push(match answers {
                0 | 1 => "SEEN ONCE, by its answer alone".to_owned(),
                _ => format!("seen by its answers alone, {answers} of them"),
            });
        }
        if *direction == Direction::Likely {
            parts.push("perhaps the other way round".to_owned());
        }
        if !self.from.is_empty() {
            parts.push(format!("from {}", containers(&self.from)));
        }
        if !self.to.is_empty() {
            parts.push(format!("to {}", containers(&self.to)));
        }
        if !self.deaf.is_empty() {
            parts.push(format!("NOTHING LISTENS there in {}", containers(&self.deaf)));
        }
        if !by_way_of.is_empty() {
            let ports: Vec<String> = by_way_of.iter().map(ToString::to_string).collect();
            parts.push(format!("by the host's port {}", ports.join(", ")));
        }
        if !addresses.known.is_empty() {
            let mut texts: Vec<String> = addresses
                .known
                .iter()
                .take(FEW)
                .map(ToString::to_string)
                .collect();
            if addresses.more || addresses.known.len() > FEW {
                texts.push("others".to_owned());
            }
            parts.push(format!("outside: {}", texts.join(", ")));
        }
        let text = ports.to_string();
        let text = text.strip_suffix("/tcp").unwrap_or(&text);
        format!("{text}: {}", parts.join("; "))
    }
}

fn containers(names: &BTreeSet<String>) -> String {
    several(&names.iter().map(|name| plain(name)).collect(), NAMED)
}

/// To the second, in UTC.
pub(super) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// The edge as its segment writes it.
pub(super) fn written(edge: &LearnedEdge, segment: &Name) -> String {
    let end = |peer: &Peer| match peer {
        Peer::Service(id) | Peer::External(id) if id.segment == *segment => scalar(id.name.as_str()),
        peer => scalar(&peer.to_string()),
    };
    format!(
        "{{ from: {}, to: {}, ports: [{}] }}",
        end(&edge.from),
        end(&edge.to),
        edge.written_ports().join(", ")
    )
}
