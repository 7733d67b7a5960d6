//! Two policies, and what changes from the one to the other: pure.
//!
//! What an edge permits is compared, not how it is written: an edge that is split in two, moved to another file or given
//! another reason is no change. Between two ends all edges' ports are one set, in which each member has its end.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use crate::net::{AddressSet, IcmpType, PortRange, Transport};
use crate::policy::{Edge, Location, Mode, Peer, Policy, Ports, ScopedName, ServiceId};

/// What changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub opened: Vec<Change>,
    pub closed: Vec<Change>,
    /// What is permitted before and after, but ends at another moment.
    pub moved_ends: Vec<Change>,
    pub services_added: BTreeMap<ServiceId, Location>,
    pub services_removed: BTreeMap<ServiceId, Location>,
    /// They select containers in another way.
    pub reselected: BTreeMap<ServiceId, Location>,
    pub modes: BTreeMap<ServiceId, (Mode, Mode)>,
    /// Services that had edges and have none, with the number that they had.
    pub cut_off: BTreeMap<ServiceId, usize>,
    /// Externals with other addresses than before.
    pub externals: BTreeMap<ScopedName, Addresses>,
    pub networks_added: BTreeSet<String>,
    pub networks_removed: BTreeSet<String>,
}

/// Ports between two ends that are opened, closed, or end at another moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub from: Peer,
    pub to: Peer,
    /// As policies write them, and `other protocols`.
    pub ports: Vec<String>,
    /// The edges between the two that say so, or did, before and after.
    pub before: Vec<Location>,
    pub after: Vec<Location>,
    /// Until when, before and after; `None` is for good, or not at all.
    pub until: (Option<Timestamp>, Option<Timestamp>),
}

/// Addresses of an external that come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What changes from `old` to `new`. Edges that have ended are to be left out before: [`Policy::at`].
pub fn compare(old: &Policy, new: &Policy) -> Changes {
    let mut changes = Changes {
        externals: externals(old, new),
        cut_off: cut_off(old, new),
        ..Changes::default()
    };
    let (before, after) = (by_pair(old), by_pair(new));
    let pairs: BTreeSet<_> = before.keys().chain(after.keys()).copied().collect();
    for (from, to) in pairs {
        let edges = |all: &BTreeMap<(&Peer, &Peer), Vec<&Edge>>| -> Vec<Edge> {
            let edges = all.get(&(from, to)).into_iter().flatten();
            edges.map(|edge| (*edge).clone()).collect()
        };
        pair((from, to), &edges(&before), &edges(&after), &mut changes);
    }
    for (id, service) in &new.services {
        match old.services.get(id) {
            None => {
                changes
                    .services_added
                    .insert(id.clone(), service.location.clone());
            }
            Some(was) => {
                if was.mode != service.mode {
                    changes.modes.insert(id.clone(), (was.mode, service.mode));
                }
                if was.selectors != service.selectors {
                    changes.reselected.insert(id.clone(), service.location.clone());
                }
            }
        }
    }
    let gone = old
        .services
        .iter()
        .filter(|(id, _)| !new.services.contains_key(id));
    changes.services_removed = gone
        .map(|(id, service)| (id.clone(), service.location.clone()))
        .collect();
    let (had, has) = (networks(old), networks(new));
    changes.networks_added = has.difference(&had).cloned().collect();
    changes.networks_removed = had.difference(&has).cloned().collect();
    changes
}

fn by_pair(policy: &Policy) -> BTreeMap<(&Peer, &Peer), Vec<&Edge>> {
    let mut pairs: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for edge in &policy.edges {
        pairs.entry((&edge.from, &edge.to)).or_default().push(edge);
    }
    pairs
}

/// The networks that a policy calls for, once there are containers.
fn networks(policy: &Policy) -> BTreeSet<String> {
    let called = policy
        .edges
        .iter()
        .filter_map(|edge| match (&edge.from, &edge.to) {
            (Peer::Service(_), Peer::Service(to)) => Some(to.network_name()),
            _ => None,
        });
    called.collect()
}

fn cut_off(old: &Policy, new: &Policy) -> BTreeMap<ServiceId, usize> {
    let edges = |policy: &Policy, id: &ServiceId| {
        let is = |peer: &Peer| matches!(peer, Peer::Service(it) if it == id);
        policy
            .edges
            .iter()
            .filter(|edge| is(&edge.from) || is(&edge.to))
            .count()
    };
    let kept = new.services.keys().filter(|id| old.services.contains_key(*id));
    kept.map(|id| (id.clone(), edges(old, id)))
        .filter(|(id, had)| *had > 0 && edges(new, id) == 0)
        .collect()
}

fn externals(old: &Policy, new: &Policy) -> BTreeMap<ScopedName, Addresses> {
    let in_both = new
        .externals
        .iter()
        .filter_map(|(name, after)| Some((name, old.externals.get(name)?, after)));
    let changed = in_both.filter(|(_, before, after)| before != after);
    changed
        .map(|(name, before, after)| {
            let addresses = Addresses {
                added: ranges(&after.without(before)),
                removed: ranges(&before.without(after)),
            };
            (name.clone(), addresses)
        })
        .collect()
}

fn ranges(set: &AddressSet) -> Vec<String> {
    let range = |first: IpAddr, last: IpAddr| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let v4 = set.v4.iter().map(|(a, b)| range((*a).into(), (*b).into()));
    v4.chain(set.v6.iter().map(|(a, b)| range((*a).into(), (*b).into())))
        .collect()
}

/// Traffic that no edge between the two ends tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Ports(Transport, PortRange),
    /// `None`: the messages that policies have no name for.
    Icmp(Option<IcmpType>),
    Other,
}

impl Atom {
    fn is_in(self, ports: &Ports) -> bool {
        match (self, ports) {
            (_, Ports::Any) | (Self::Icmp(_), Ports::Icmp(None)) => true,
            (Self::Ports(transport, range), Ports::Transport(of, within)) => {
                transport == *of && within.first <= range.first && range.last <= within.last
            }
            (Self::Icmp(kind), Ports::Icmp(of)) => kind == *of,
            _ => false,
        }
    }
}

/// Everything that there is, in pieces.
fn atoms<'a>(edges: impl Iterator<Item = &'a Edge> + Clone) -> Vec<Atom> {
    let mut atoms = Vec::new();
    for transport in Transport::ALL {
        let mut cuts = BTreeSet::from([0]);
        for ports in edges.clone().flat_map(|edge| &edge.ports) {
            if let Ports::Transport(of, range) = ports
                && *of == transport
            {
                cuts.insert(range.first);
                cuts.extend(range.last.checked_add(1));
            }
        }
        let cuts: Vec<u16> = cuts.into_iter().collect();
        let lasts = cuts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
        let ranges = cuts.iter().zip(lasts);
        atoms.extend(ranges.map(|(&first, last)| Atom::Ports(transport, PortRange { first, last })));
    }
    atoms.extend(IcmpType::ALL.map(|kind| Atom::Icmp(Some(kind))));
    atoms.extend([Atom::Icmp(None), Atom::Other]);
    atoms
}

/// Until when something is permitted; for good is the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    Never,
    Moment(Timestamp),
    ForGood,
}

impl Until {
    fn moment(self) -> Option<Timestamp> {
        match self {
            Self::Moment(moment) => Some(moment),
            Self::Never | Self::ForGood => None,
        }
    }
}

fn until(atom: Atom, edges: &[Edge]) -> Until {
    let permitting = edges
        .iter()
        .filter(|edge| edge.ports.iter().any(|ports| atom.is_in(ports)));
    let ends = permitting.map(|edge| edge.until.map_or(Until::ForGood, Until::Moment));
    ends.max().unwrap_or(Until::Never)
}

fn pair((from, to): (&Peer, &Peer), before: &[Edge], after: &[Edge], changes: &mut Changes) {
    let atoms = atoms(before.iter().chain(after));
    // What changes in the same way is one change.
    let mut kinds: BTreeMap<(Until, Until), Vec<Atom>> = BTreeMap::new();
    for atom in atoms {
        let (was, is) = (until(atom, before), until(atom, after));
        if was != is {
            kinds.entry((was, is)).or_default().push(atom);
        }
    }
    for ((was, is), atoms) in kinds {
        let saying = |edges: &[Edge]| -> Vec<Location> {
            let says = |edge: &&Edge| {
                let permits = |atom: &Atom| edge.ports.iter().any(|ports| atom.is_in(ports));
                atoms.iter().any(permits)
            };
            edges
                .iter()
                .filter(says)
                .map(|edge| edge.location.clone())
                .collect()
        };
        let change = Change {
            from: from.clone(),
            to: to.clone(),
            before: saying(before),
            after: saying(after),
            ports: written(&atoms),
            until: (was.moment(), is.moment()),
        };
        match (was, is) {
            (Until::Never, _) => changes.opened.push(change),
            (_, Until::Never) => changes.closed.push(change),
            _ => changes.moved_ends.push(change),
        }
    }
}

/// Atoms in the words of policies.
fn written(atoms: &[Atom]) -> Vec<String> {
    let mut ranges: Vec<(Transport, PortRange)> = Vec::new();
    for atom in atoms {
        if let Atom::Ports(transport, range) = atom {
            match ranges.last_mut() {
                Some((same, before))
                    if same == transport && before.last.checked_add(1) == Some(range.first) =>
                {
                    before.last = range.last;
                }
                _ => ranges.push((*transport, *range)),
            }
        }
    }
    let icmp: Vec<Option<IcmpType>> = atoms
        .iter()
        .filter_map(|atom| match atom {
            Atom::Icmp(kind) => Some(*kind),
            Atom::Ports(..) | Atom::Other => None,
        })
        .collect();
    let all_icmp = icmp.len() > IcmpType::ALL.len();
    let all_ports =
        ranges.len() == Transport::ALL.len() && ranges.iter().all(|(_, range)| *range == PortRange::ALL);
    let other = atoms.contains(&Atom::Other);
    if all_ports && all_icmp && other {
        return vec![Ports::Any.to_string()];
    }
    let mut words: Vec<String> = ranges
        .into_iter()
        .map(|(transport, range)| Ports::Transport(transport, range.writable()).to_string())
        .collect();
    if all_icmp {
        words.push(Ports::Icmp(None).to_string());
    } else {
        words.extend(
            icmp.iter()
                .flatten()
                .map(|kind| Ports::Icmp(Some(*kind)).to_string()),
        );
        if icmp.contains(&None) {
            words.push("other ICMP messages".to_owned());
        }
    }
    if other {
        words.push("other protocols".to_owned());
    }
    words
}
