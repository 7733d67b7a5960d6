//! Sets of containers, addresses, ports and flows, with intersection and difference: pure.
//!
//! What the neutral policy says with directions, isolation and denials becomes a plain sum of [`Flows`], whatever containers
//! come later: the sets are conditions on labels, not lists of what runs.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::fact::Transport;

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Condition {
    /// Present with one of these values; never empty.
    In(BTreeSet<String>),
    /// Not present with one of these; `exists` when it must be present.
    Out {
        not: BTreeSet<String>,
        exists: bool,
    },
    Absent,
}

impl Condition {
    pub(crate) fn equals(value: &str) -> Self {
        Self::In(BTreeSet::from([value.to_owned()]))
    }

    pub(crate) fn exists() -> Self {
        Self::Out {
            not: BTreeSet::new(),
            exists: true,
        }
    }

    /// Both; `None` when no value is both.
    fn and(&self, other: &Self) -> Option<Self> {
        let some = |values: BTreeSet<String>| (!values.is_empty()).then_some(Self::In(values));
        match (self, other) {
            (Self::In(mine), Self::In(theirs)) => some(mine & theirs),
            (Self::In(values), Self::Out { not, .. }) | (Self::Out { not, .. }, Self::In(values)) => {
                some(values - not)
            }
            (Self::Out { not: a, exists: b }, Self::Out { not: c, exists: d }) => Some(Self::Out {
                not: a | c,
                exists: *b || *d,
            }),
            (Self::Absent, Self::Absent | Self::Out { exists: false, .. })
            | (Self::Out { exists: false, .. }, Self::Absent) => Some(Self::Absent),
            (Self::Absent, Self::In(_) | Self::Out { exists: true, .. })
            | (Self::In(_) | Self::Out { exists: true, .. }, Self::Absent) => None,
        }
    }

    /// The opposite, as alternatives.
    fn negated(&self) -> Vec<Self> {
        match self {
            Self::In(values) => vec![Self::Out {
                not: values.clone(),
                exists: false,
            }],
            Self::Absent => vec![Self::exists()],
            Self::Out { not, exists } => {
                let present = (!not.is_empty()).then(|| Self::In(not.clone()));
                present
                    .into_iter()
                    .chain(exists.then_some(Self::Absent))
                    .collect()
            }
        }
    }
}

/// Containers: all conditions hold. Without any it is every container.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Containers {
    pub(crate) labels: BTreeMap<String, Condition>,
    /// The name of a container without a project; it has no opposite.
    pub(crate) plain: Option<String>,
}

/// A set whose opposite cannot be said with labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoOpposite;

impl Containers {
    /// Adds a condition; `false` when nothing is left.
    #[must_use]
    pub(crate) fn require(&mut self, key: &str, condition: &Condition) -> bool {
        if matches!(condition, Condition::Out { not, exists: false } if not.is_empty()) {
            return true;
        }
        let joined = match self.labels.get(key) {
            None => Some(condition.clone()),
            Some(present) => present.and(condition),
        };
        joined.is_some_and(|joined| {
            self.labels.insert(key.to_owned(), joined);
            true
        })
    }

    fn and(&self, other: &Self) -> Option<Self> {
        let mut both = self.clone();
        match (&self.plain, &other.plain) {
            (Some(mine), Some(theirs)) if mine != theirs => return None,
            (None, theirs) => both.plain = theirs.clone(),
            (Some(_), _) => {}
        }
        let all = other
            .labels
            .iter()
            .all(|(key, condition)| both.require(key, condition));
        all.then_some(both)
    }

    /// Every container that is in none of these.
    pub(crate) fn in_none_of(sets: &[Self]) -> Result<Vec<Self>, NoOpposite> {
        let mut left = vec![Self::default()];
        for set in sets {
            left = Self::without(&left, set)?;
        }
        Ok(left)
    }

    fn without(sets: &[Self], taken: &Self) -> Result<Vec<Self>, NoOpposite> {
        if taken.plain.is_some() && sets.iter().any(|set| set.and(taken).is_some()) {
            return Err(NoOpposite);
        }
        let mut left = Vec::new();
        for set in sets {
            if set.and(taken).is_none() {
                left.push(set.clone());
                continue;
            }
            for (key, condition) in &taken.labels {
                for opposite in condition.negated() {
                    let mut rest = set.clone();
                    if rest.require(key, &opposite) {
                        left.push(rest);
                    }
                }
            }
        }
        left.sort();
        left.dedup();
        Ok(left)
    }
}

/// Addresses that are no container's: `within`, but not `except`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Addresses {
    pub(crate) within: Vec<IpNet>,
    pub(crate) except: Vec<IpNet>,
}

fn overlap(one: &IpNet, other: &IpNet) -> Option<IpNet> {
    if one.contains(other) {
        Some(*other)
    } else {
        other.contains(one).then_some(*one)
    }
}

impl Addresses {
    /// Without needless exceptions; `None` when nothing is left.
    pub(crate) fn new(within: &[IpNet], except: &[IpNet]) -> Option<Self> {
        let except: Vec<IpNet> = except.iter().map(IpNet::trunc).collect();
        let covered = |net: &IpNet| except.iter().any(|hole| hole.contains(net));
        let within: Vec<IpNet> = within
            .iter()
            .map(IpNet::trunc)
            .filter(|net| !covered(net))
            .collect();
        let touched = |hole: &IpNet| within.iter().any(|net| overlap(net, hole).is_some());
        let except = except.iter().filter(|hole| touched(hole)).copied().collect();
        (!within.is_empty()).then_some(Self { within, except })
    }

    pub(crate) fn all() -> Self {
        let within = [
            IpNet::from(ipnet::Ipv4Net::default()),
            IpNet::from(ipnet::Ipv6Net::default()),
        ];
        Self {
            within: within.into(),
            except: Vec::new(),
        }
    }

    fn and(&self, other: &Self) -> Option<Self> {
        let pairs = self
            .within
            .iter()
            .flat_map(|mine| other.within.iter().filter_map(|theirs| overlap(mine, theirs)));
        let within: BTreeSet<IpNet> = pairs.collect();
        let except: BTreeSet<IpNet> = self.except.iter().chain(&other.except).copied().collect();
        Self::new(&Vec::from_iter(within), &Vec::from_iter(except))
    }

    fn without(&self, taken: &Self) -> Vec<Self> {
        let except: Vec<IpNet> = self.except.iter().chain(&taken.within).copied().collect();
        let holes = taken.except.iter().filter_map(|hole| {
            self.and(&Self {
                within: vec![*hole],
                except: Vec::new(),
            })
        });
        Self::new(&self.within, &except)
            .into_iter()
            .chain(holes)
            .collect()
    }
}

/// One end of flows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Containers(Containers),
    /// Any address outside.
    World,
    Addresses(Addresses),
    Host,
}

impl End {
    /// Every end that there is.
    pub(crate) fn anything() -> Vec<Self> {
        vec![Self::Containers(Containers::default()), Self::World, Self::Host]
    }

    pub(crate) fn is_service(&self) -> bool {
        matches!(self, Self::Containers(_))
    }

    pub(crate) fn and(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Containers(mine), Self::Containers(theirs)) => mine.and(theirs).map(Self::Containers),
            (Self::World, Self::World) => Some(Self::World),
            (Self::Host, Self::Host) => Some(Self::Host),
            (Self::Addresses(some), Self::World) | (Self::World, Self::Addresses(some)) => {
                Some(Self::Addresses(some.clone()))
            }
            (Self::Addresses(mine), Self::Addresses(theirs)) => mine.and(theirs).map(Self::Addresses),
            _ => None,
        }
    }

    fn without(&self, taken: &Self) -> Result<Vec<Self>, NoOpposite> {
        let addresses = |left: Vec<Addresses>| left.into_iter().map(Self::Addresses).collect();
        Ok(match (self, taken) {
            (Self::Containers(mine), Self::Containers(theirs)) => {
                let left = Containers::without(std::slice::from_ref(mine), theirs)?;
                left.into_iter().map(Self::Containers).collect()
            }
            (Self::World | Self::Addresses(_), Self::World) | (Self::Host, Self::Host) => Vec::new(),
            (Self::World, Self::Addresses(taken)) => addresses(Addresses::all().without(taken)),
            (Self::Addresses(mine), Self::Addresses(taken)) => addresses(mine.without(taken)),
            _ => vec![self.clone()],
        })
    }
}

/// The kinds of traffic that a fact can name; ICMP's types stand where the others have ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Traffic {
    Any,
    Some(BTreeMap<Transport, Vec<(u16, u16)>>),
}

pub(crate) const ECHO: (u16, u16) = (8, 8);

/// All that a protocol has.
pub(crate) fn whole(transport: Transport) -> (u16, u16) {
    match transport {
        Transport::Icmp => (0, 255),
        Transport::Tcp | Transport::Udp | Transport::Sctp => (1, u16::MAX),
    }
}

impl Traffic {
    pub(crate) fn one(transport: Transport, range: (u16, u16)) -> Self {
        Self::Some(BTreeMap::from([(transport, vec![range])]))
    }

    fn ranges(&self) -> BTreeMap<Transport, Vec<(u16, u16)>> {
        match self {
            Self::Some(ranges) => ranges.clone(),
            Self::Any => [Transport::Tcp, Transport::Udp, Transport::Sctp, Transport::Icmp]
                .into_iter()
                .map(|transport| (transport, vec![whole(transport)]))
                .collect(),
        }
    }

    fn some(ranges: BTreeMap<Transport, Vec<(u16, u16)>>) -> Option<Self> {
        let ranges: BTreeMap<_, _> = ranges.into_iter().filter(|(_, list)| !list.is_empty()).collect();
        (!ranges.is_empty()).then_some(Self::Some(ranges))
    }

    fn and(&self, other: &Self) -> Option<Self> {
        if *self == Self::Any {
            return Some(other.clone());
        }
        if *other == Self::Any {
            return Some(self.clone());
        }
        let theirs = other.ranges();
        let both = |(transport, mine): (Transport, Vec<(u16, u16)>)| {
            let theirs = theirs.get(&transport).cloned().unwrap_or_default();
            let pairs = mine.iter().flat_map(|(first, last)| {
                let cut = |(a, b): &(u16, u16)| (*first.max(a), *last.min(b));
                theirs.iter().map(cut).collect::<Vec<_>>()
            });
            (transport, pairs.filter(|(first, last)| first <= last).collect())
        };
        Self::some(self.ranges().into_iter().map(both).collect())
    }

    fn without(&self, taken: &Self) -> Option<Self> {
        if *taken == Self::Any {
            return None;
        }
        let taken = taken.ranges();
        let rest = |(transport, mine): (Transport, Vec<(u16, u16)>)| {
            let mut left = mine;
            for &(from, to) in taken.get(&transport).into_iter().flatten() {
                let cut = |(first, last): (u16, u16)| {
                    let below = (first < from).then(|| (first, last.min(from.saturating_sub(1))));
                    let above = (last > to).then(|| (first.max(to.saturating_add(1)), last));
                    below.into_iter().chain(above)
                };
                left = left.into_iter().flat_map(cut).collect();
            }
            (transport, left)
        };
        Self::some(self.ranges().into_iter().map(rest).collect())
    }
}

/// All flows of some kinds of traffic from one end to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flows {
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) traffic: Traffic,
}

impl Flows {
    pub(crate) fn and(&self, other: &Self) -> Option<Self> {
        Some(Self {
            from: self.from.and(&other.from)?,
            to: self.to.and(&other.to)?,
            traffic: self.traffic.and(&other.traffic)?,
        })
    }

    pub(crate) fn without(&self, taken: &Self) -> Result<Vec<Self>, NoOpposite> {
        if self.and(taken).is_none() {
            return Ok(vec![self.clone()]);
        }
        let mut left = Vec::new();
        for from in self.from.without(&taken.from)? {
            left.push(Self { from, ..self.clone() });
        }
        for to in self.to.without(&taken.to)? {
            left.push(Self { to, ..self.clone() });
        }
        if let Some(traffic) = self.traffic.without(&taken.traffic) {
            left.push(Self {
                traffic,
                ..self.clone()
            });
        }
        Ok(left)
    }
}
