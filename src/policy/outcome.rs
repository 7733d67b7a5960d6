//! What becomes of the policy's own tests: whether its edges permit all of what is said to be reachable and none of what
//! is said to be unreachable.
//!
//! Only what is declared counts: a mode does not, nor does an edge that has ended. It is decided on sets of addresses and
//! traffic, never by trying single ports.

use std::net::IpAddr;

use jiff::Timestamp;

use super::traffic::TrafficSet;
use super::{Edge, Expectation, Name, Peer, Policy, Ports, Test};
use crate::net::{Family, Ranges};

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<'p> {
    Holds,
    /// It is said to be reachable, and no edge permits this.
    Missing(Part),
    /// It is said to be unreachable, and the edge permits this.
    Permitted(&'p Edge, Part),
    /// It is about no traffic at all: the ports have no meaning for the external's addresses.
    SaysNothing,
}

/// A part of what a test is about; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub family: Family,
    /// An address of the external, where the test has one as an end.
    pub address: Option<IpAddr>,
    pub traffic: TrafficSet,
}

impl Policy {
    /// Whether a test holds at this moment.
    ///
    /// `world` as an end is an address in no external. An external as an end is reachable where each of its addresses is,
    /// and unreachable where none of them is.
    pub fn outcome(&self, test: &Test, now: Timestamp) -> Outcome<'_> {
        let edges = || self.edges.iter().filter(|edge| edge.is_in_force(now));
        let mut says_nothing = true;
        for family in Family::ALL {
            let addresses = self.addresses(&test.from, &test.to, family);
            let traffic = TrafficSet::of([&test.ports], family);
            let part = |addresses: &Ranges, traffic: &TrafficSet| {
                let first = addresses.first().filter(|_| !traffic.is_empty())?;
                let named = [&test.from, &test.to].into_iter().any(is_external);
                Some(Part {
                    family,
                    address: named.then(|| family.address(first)),
                    traffic: traffic.clone(),
                })
            };
            says_nothing &= part(&addresses, &traffic).is_none();
            match test.expected {
                Expectation::Unreachable => {
                    for edge in edges() {
                        let shared = self.shared(test, edge, family).common(&addresses);
                        if shared.is_empty() {
                            continue;
                        }
                        let permitted = traffic.common(&TrafficSet::of(&edge.ports, family));
                        if let Some(part) = part(&shared, &permitted) {
                            return Outcome::Permitted(edge, part);
                        }
                    }
                }
                Expectation::Reachable => {
                    let mut missing = vec![(addresses, traffic.clone())];
                    for edge in edges() {
                        let shared = self.shared(test, edge, family);
                        if shared.is_empty() {
                            continue;
                        }
                        let permitted = TrafficSet::of(&edge.ports, family);
                        missing = missing
                            .iter()
                            .flat_map(|(addresses, traffic)| {
                                [
                                    (addresses.without(&shared), traffic.clone()),
                                    (addresses.common(&shared), traffic.without(&permitted)),
                                ]
                            })
                            .filter(|(addresses, traffic)| part(addresses, traffic).is_some())
                            .collect();
                    }
                    let first = missing
                        .iter()
                        .find_map(|(addresses, traffic)| part(addresses, traffic));
                    if let Some(part) = first {
                        return Outcome::Missing(part);
                    }
                }
            }
        }
        if says_nothing {
            Outcome::SaysNothing
        } else {
            Outcome::Holds
        }
    }

    /// The addresses that two ends are about: those of the external among them; without one a single stand-in.
    fn addresses(&self, from: &Peer, to: &Peer, family: Family) -> Ranges {
        let mut externals = [from, to].into_iter().filter(|peer| is_external(peer));
        externals
            .next()
            .map_or_else(stand_in, |peer| self.of_external(peer, family))
    }

    /// Those of the test's addresses that the edge is about too.
    fn shared(&self, test: &Test, edge: &Edge, family: Family) -> Ranges {
        let one = |end: &Peer, of_edge: &Peer| match (end, of_edge) {
            (Peer::External(_), Peer::World) => Some(self.of_external(end, family)),
            (Peer::External(_), Peer::External(_)) => Some(
                self.of_external(end, family)
                    .common(&self.of_external(of_edge, family)),
            ),
            _ if end == of_edge => Some(stand_in()),
            _ => None,
        };
        match (one(&test.from, &edge.from), one(&test.to, &edge.to)) {
            (Some(addresses), Some(_)) if is_external(&test.from) => addresses,
            (Some(_), Some(addresses)) => addresses,
            _ => Ranges::default(),
        }
    }

    fn of_external(&self, peer: &Peer, family: Family) -> Ranges {
        match peer {
            Peer::External(name) => self
                .externals
                .get(name)
                .map_or_else(Ranges::default, |addresses| addresses.ranges(family)),
            _ => Ranges::default(),
        }
    }
}

/// Stands for whoever a service, the host or the world is: here all of them are as one.
fn stand_in() -> Ranges {
    Ranges::new([(0, 0)])
}

fn is_external(peer: &Peer) -> bool {
    matches!(peer, Peer::External(_))
}

impl Test {
    /// The segment in which an edge for it would stand: the callee's, or the caller's where the callee is no service.
    pub fn owner(&self) -> Option<&Name> {
        [&self.to, &self.from].into_iter().find_map(|end| match end {
            Peer::Service(id) => Some(&id.segment),
            _ => None,
        })
    }

    /// The edge that would make it reachable, as its segment would write it.
    fn edge_as_written(&self) -> String {
        let end = |peer: &Peer| match peer {
            Peer::Service(id) | Peer::External(id) if Some(&id.segment) == self.owner() => {
                id.name.to_string()
            }
            peer => peer.to_string(),
        };
        let ports = match self.ports {
            Ports::Transport(transport, range)
                if transport == crate::net::Transport::Tcp && range != crate::net::PortRange::ALL =>
            {
                range.to_string()
            }
            ports => ports.to_string(),
        };
        format!(
            "{{ from: {}, to: {}, ports: [{ports}] }}",
            end(&self.from),
            end(&self.to)
        )
    }
}

impl Part {
    /// `9005-9010/tcp`, and where it matters the address: `443/tcp at 203.0.113.66`.
    pub fn describe(&self) -> String {
        let traffic = self.traffic.describe(self.family);
        self.address
            .map_or_else(|| traffic.clone(), |address| format!("{traffic} at {address}"))
    }
}

impl Outcome<'_> {
    /// What is wrong, in one line; `None` where the test holds.
    pub fn message(&self, test: &Test) -> Option<String> {
        let Test { from, to, ports, .. } = test;
        match self {
            Self::Holds => None,
            Self::Missing(part)
                if part.traffic == TrafficSet::of([ports], part.family) && part.address.is_none() =>
            {
                Some(format!(
                    "`{from} -> {to}:{ports}` is not reachable: no edge permits it"
                ))
            }
            Self::Missing(part) => Some(format!(
                "`{from} -> {to}:{ports}` is not all reachable: no edge permits {}",
                part.describe()
            )),
            Self::SaysNothing => Some(format!(
                "`{from} -> {to}:{ports}` says nothing: `{ports}` has no meaning for these addresses"
            )),
            Self::Permitted(_, part) => Some(format!(
                "`{from} -> {to}:{ports}` is reachable: an edge permits {}",
                part.describe()
            )),
        }
    }

    /// What would make the test hold.
    pub fn help(&self, test: &Test) -> Option<String> {
        match self {
            Self::Holds => None,
            Self::Missing(_) => test.owner().map(|segment| {
                format!(
                    "the missing edge would stand in `allow` of segment `{segment}`: `- {}`",
                    test.edge_as_written()
                )
            }),
            Self::SaysNothing => Some("remove the test, or name other ports".to_owned()),
            Self::Permitted(..) => Some("narrow the edge, or correct the test".to_owned()),
        }
    }
}
