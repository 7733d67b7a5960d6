//! The allow-graph as a picture: which nodes and arcs it shows, in words of no format yet.
//!
//! In: a policy and what part of it is wanted. Out: a [`Graph`], in order. Several edges between two ends are one arc. Where
//! every service of a segment may do the same, one arc from (or to) the segment's `*` says so: that is what keeps a graph
//! of 200 services readable. Pure.

mod dot;
mod mermaid;
#[cfg(test)]
mod tests;
mod tried;

use std::collections::{BTreeMap, BTreeSet};

use crate::net::Transport;
use crate::policy::{Mode, Name, Peer, Policy, Ports, ServiceId};

use self::tried::Sums;
pub use self::tried::{Outcome, Tried};

/// Fewer services of a segment than this are drawn one by one.
const FEWEST_FOR_ALL: usize = 4;
/// Ports beyond this number are only counted.
const MOST_PORTS: usize = 6;

/// What is drawn as a box.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// Every service of a segment.
    Every(Name),
    Peer(Peer),
    /// A container that no service selects, by name, or an address that nobody is known to have.
    Stranger(String),
}

/// What part of a policy is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scope {
    #[default]
    Everything,
    /// The segment's services, and whoever they have edges with.
    Segment(Name),
    /// What is so many edges from the service, in either direction. World, host and externals lead no further, nor does
    /// whoever is reached by an edge that every service of the segment has.
    Around(ServiceId, usize),
}

/// A picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    /// The services of each segment, with their modes.
    pub segments: BTreeMap<Name, BTreeMap<ServiceId, Mode>>,
    /// Segments whose `*` is drawn.
    pub every: BTreeSet<Name>,
    /// World, host and externals.
    pub outside: BTreeSet<Peer>,
    /// With their labels.
    pub arcs: BTreeMap<(Node, Node), String>,
    /// Who tried something and is in no policy.
    pub strangers: BTreeSet<String>,
    tried: Sums,
}

type Arcs = BTreeMap<(Peer, Peer), BTreeSet<Ports>>;

impl Graph {
    /// The picture of this part of the policy.
    pub fn of(policy: &Policy, scope: &Scope) -> Self {
        let mut arcs = Arcs::new();
        for edge in &policy.edges {
            let ports = arcs.entry((edge.from.clone(), edge.to.clone())).or_default();
            ports.extend(&edge.ports);
        }
        let shown = shown(policy, scope, &arcs);
        arcs.retain(|(from, to), _| {
            let among = shown.contains(from) && shown.contains(to);
            // Beside a segment, what its neighbours do among themselves is not asked for.
            among && [from, to].into_iter().any(|peer| is_centre(peer, scope))
        });
        let mut graph = Self::default();
        for peer in shown {
            match peer {
                Peer::Service(id) => {
                    let mode = policy.services.get(&id).map(|it| it.mode).unwrap_or_default();
                    let services = graph.segments.entry(id.segment.clone()).or_default();
                    services.insert(id, mode);
                }
                outside => {
                    graph.outside.insert(outside);
                }
            }
        }
        graph.add(policy, arcs);
        graph
    }

    /// As DOT, for Graphviz.
    pub fn dot(&self) -> String {
        dot::render(self)
    }

    /// As a Mermaid flowchart.
    pub fn mermaid(&self) -> String {
        mermaid::render(self)
    }

    fn add(&mut self, policy: &Policy, mut arcs: Arcs) {
        for general in generals(policy, &arcs) {
            // What is in two of them has been drawn with the first.
            if general.arcs.iter().all(|arc| arcs.contains_key(arc)) {
                for arc in &general.arcs {
                    arcs.remove(arc);
                }
                self.every.insert(general.segment);
                self.arcs.insert(general.arc, label(&general.ports));
            }
        }
        for ((from, to), ports) in arcs {
            self.arcs
                .insert((Node::Peer(from), Node::Peer(to)), label(&ports));
        }
    }
}

/// What every service of a segment may do, or whoever may do it to every one of them.
struct General {
    segment: Name,
    /// As it is drawn.
    arc: (Node, Node),
    ports: BTreeSet<Ports>,
    /// What it stands for.
    arcs: Vec<(Peer, Peer)>,
}

/// First those from every service, then those to every service, each in order.
fn generals(policy: &Policy, arcs: &Arcs) -> Vec<General> {
    let mut size: BTreeMap<&Name, usize> = BTreeMap::new();
    for id in policy.services.keys() {
        *size.entry(&id.segment).or_default() += 1;
    }
    let mut groups: BTreeMap<_, Vec<(Peer, Peer)>> = BTreeMap::new();
    for ((from, to), ports) in arcs {
        for (is_to, peer, other) in [(false, from, to), (true, to, from)] {
            if let Peer::Service(id) = peer {
                let group = groups.entry((is_to, &id.segment, other, ports)).or_default();
                group.push((from.clone(), to.clone()));
            }
        }
    }
    let all = groups.into_iter().filter(|((_, segment, ..), arcs)| {
        let all = size.get(segment).copied().unwrap_or_default();
        all >= FEWEST_FOR_ALL && arcs.len() == all
    });
    all.map(|((is_to, segment, other, ports), arcs)| {
        let (every, other) = (Node::Every(segment.clone()), Node::Peer(other.clone()));
        General {
            segment: segment.clone(),
            arc: if is_to { (other, every) } else { (every, other) },
            ports: ports.clone(),
            arcs,
        }
    })
    .collect()
}

fn is_centre(peer: &Peer, scope: &Scope) -> bool {
    match (scope, peer) {
        (Scope::Segment(segment), Peer::Service(id)) => id.segment == *segment,
        (Scope::Segment(_), _) => false,
        (Scope::Everything | Scope::Around(..), _) => true,
    }
}

fn shown(policy: &Policy, scope: &Scope, arcs: &Arcs) -> BTreeSet<Peer> {
    let services = policy.services.keys().cloned().map(Peer::Service);
    let ends = |arcs: &Arcs| -> BTreeSet<Peer> {
        arcs.keys()
            .flat_map(|(from, to)| [from.clone(), to.clone()])
            .collect()
    };
    match scope {
        Scope::Everything => services.chain(ends(arcs)).collect(),
        Scope::Segment(segment) => {
            let own = services.filter(|peer| matches!(peer, Peer::Service(id) if id.segment == *segment));
            let mut touching = arcs.clone();
            touching.retain(|(from, to), _| is_centre(from, scope) || is_centre(to, scope));
            own.chain(ends(&touching)).collect()
        }
        Scope::Around(service, depth) => {
            let generals = generals(policy, arcs);
            let general: BTreeSet<&(Peer, Peer)> = generals.iter().flat_map(|it| &it.arcs).collect();
            let mut shown = BTreeSet::from([Peer::Service(service.clone())]);
            let mut edge = shown.clone();
            for _ in 0..*depth {
                let (mut reached, mut next) = (BTreeSet::new(), BTreeSet::new());
                for arc in arcs.keys() {
                    let (from, to) = arc;
                    for (one, other) in [(from, to), (to, from)] {
                        if edge.contains(one) && !shown.contains(other) {
                            reached.insert(other.clone());
                            if matches!(other, Peer::Service(_)) && !general.contains(arc) {
                                next.insert(other.clone());
                            }
                        }
                    }
                }
                shown.extend(reached);
                edge = next;
            }
            shown
        }
    }
}

/// `5432, 53/udp`: a number alone is TCP, as in policies.
fn label(ports: &BTreeSet<Ports>) -> String {
    let word = |ports: &Ports| {
        let text = ports.to_string();
        match ports {
            Ports::Transport(Transport::Tcp, _) => {
                text.strip_suffix("/tcp").map(str::to_owned).unwrap_or(text)
            }
            _ => text,
        }
    };
    let mut words: Vec<String> = ports.iter().take(MOST_PORTS).map(word).collect();
    if let Some(more) = ports.len().checked_sub(MOST_PORTS).filter(|more| *more > 0) {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}
