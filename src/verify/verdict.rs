//! What came of the probes: whether each passed, the cells of the matrix, the policies' own tests. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::plan::{Plan, Probe};
use super::scene::{Declared, Group, Scene, Spot};
use crate::model::Standing;
use crate::net::{Family, Traffic, Transport};
use crate::policy::{Expectation, Peer, Policy, Test};

/// What the one who tried saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    Connected,
    /// A datagram came back.
    Answered,
    /// TCP's reset, or ICMP's "port unreachable".
    Refused,
    /// ICMP, or the sender's own network stack, said why not.
    Unreachable(String),
    Silent,
    /// It could not be tried.
    Failed(String),
}

/// What the host's connection tracking knows of it. It learns of a connection when the first packet has passed all rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    Passed,
    /// It would know, and does not.
    Missing,
    /// Nobody looked, or it need not know.
    Unwatched,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub evidence: Evidence,
    pub trace: Trace,
    pub elapsed: Duration,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.evidence, self.trace) {
            (Evidence::Connected, _) => f.write_str("connected"),
            (Evidence::Answered, _) => f.write_str("answered"),
            (Evidence::Refused, _) => f.write_str("refused by the target, so it got there"),
            (Evidence::Unreachable(why), Trace::Passed) => write!(f, "passed the host's rules, then: {why}"),
            (Evidence::Unreachable(why), _) => f.write_str(why),
            (Evidence::Silent, Trace::Passed) => f.write_str("no answer, but it passed the host's rules"),
            (Evidence::Silent, _) => write!(f, "no answer in {} ms", self.elapsed.as_millis()),
            (Evidence::Failed(why), _) => write!(f, "could not be tried: {why}"),
        }
    }
}

/// What is really so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Real {
    Open,
    Closed,
    Unknown,
}

/// What the evidence says. That nothing came back says nothing of a datagram, unless the host knows that none passed.
pub fn real(transport: Transport, seen: &Seen) -> Real {
    match (&seen.evidence, seen.trace) {
        (Evidence::Failed(_), _) => Real::Unknown,
        (Evidence::Connected | Evidence::Answered | Evidence::Refused, _) | (_, Trace::Passed) => Real::Open,
        (Evidence::Unreachable(_), _) | (Evidence::Silent, Trace::Missing) => Real::Closed,
        (Evidence::Silent, Trace::Unwatched) => match transport {
            Transport::Tcp => Real::Closed,
            Transport::Udp | Transport::Sctp => Real::Unknown,
        },
    }
}

/// How a probe compares with what is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agreement {
    Agrees,
    Unknown,
    /// Open, and declared closed.
    Leaks,
    /// Closed, and declared open.
    Blocked,
}

/// Compares.
pub fn agreement(declared: Declared, real: Real) -> Agreement {
    match (declared.passes(), real) {
        (_, Real::Unknown) => Agreement::Unknown,
        (true, Real::Open) | (false, Real::Closed) => Agreement::Agrees,
        (false, Real::Open) => Agreement::Leaks,
        (true, Real::Closed) => Agreement::Blocked,
    }
}

/// The place of a cell: the column (whose port), and the row (who dials).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub to: Group,
    pub transport: Transport,
    pub port: u16,
    pub from: Group,
}

/// What was found at a place: numbers of probes, by how they compare.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    pub declared: BTreeSet<Declared>,
    pub probes: BTreeMap<usize, Agreement>,
    /// Numbers of what is declared open and has no way at all.
    pub unjoined: Vec<usize>,
}

/// A cell in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    Open,
    Audited,
    Closed,
    Unknown,
    /// Open, at least in part, and declared closed.
    Leaks,
    /// Closed, at least in part, and declared open.
    Blocked,
}

impl Mark {
    /// Whether declared and real differ.
    pub fn differs(self) -> bool {
        matches!(self, Self::Leaks | Self::Blocked)
    }
}

impl Cell {
    /// The cell in one word; the worst of its probes decides, and unknown ones only where there are no others.
    pub fn mark(&self) -> Mark {
        let any = |of: Agreement| self.probes.values().any(|it| *it == of);
        if any(Agreement::Leaks) {
            Mark::Leaks
        } else if any(Agreement::Blocked) || !self.unjoined.is_empty() {
            Mark::Blocked
        } else if !any(Agreement::Agrees) {
            Mark::Unknown
        } else if self.declared.contains(&Declared::Open) {
            Mark::Open
        } else if self.declared.contains(&Declared::Audited) {
            Mark::Audited
        } else {
            Mark::Closed
        }
    }
}

/// Every cell with what was found.
pub fn cells(scene: &Scene, plan: &Plan, seen: &[Seen]) -> BTreeMap<Place, Cell> {
    let mut cells: BTreeMap<Place, Cell> = BTreeMap::new();
    let place = |from: Spot, to: Spot, transport, port| Place {
        to: scene.group(to),
        transport,
        port,
        from: scene.group(from),
    };
    for (number, (probe, seen)) in plan.probes.iter().zip(seen).enumerate() {
        let place = place(probe.from, probe.to, probe.transport, probe.port);
        let cell = cells.entry(place).or_default();
        cell.declared.insert(probe.declared);
        let found = agreement(probe.declared, real(probe.transport, seen));
        cell.probes.insert(number, found);
    }
    for (number, lost) in plan.unjoined.iter().enumerate() {
        let place = place(lost.from, lost.to, lost.transport, lost.port);
        let cell = cells.entry(place).or_default();
        cell.declared.insert(Declared::Open);
        cell.unjoined.push(number);
    }
    cells
}

/// What became of one of the policy's own tests, live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tested {
    Holds,
    /// It does not hold, but only because its ends are in audit.
    Audited,
    /// This probe, by number, says otherwise.
    Fails(usize),
    /// No way that the policy declares open is there.
    NoWay,
    /// Nothing of it was tried, or only what nothing can be said of.
    NotTried,
}

/// Runs a test on what was seen.
pub fn tested(test: &Test, scene: &Scene, plan: &Plan, seen: &[Seen]) -> Tested {
    let policy = &scene.rights.policy;
    let concerns = |from: Spot, to: Spot, transport, port, family| {
        is(&test.from, from, scene, policy)
            && is(&test.to, to, scene, policy)
            && test.ports.permits(Traffic::Port(transport, port), family)
    };
    let mut result = Tested::NotTried;
    for (number, (probe, seen)) in plan.probes.iter().zip(seen).enumerate() {
        if !concerns(probe.from, probe.to, probe.transport, probe.port, probe.family()) {
            continue;
        }
        match (test.expected, real(probe.transport, seen)) {
            (_, Real::Unknown) => {}
            (Expectation::Reachable, Real::Open) | (Expectation::Unreachable, Real::Closed) => {
                if result == Tested::NotTried {
                    result = Tested::Holds;
                }
            }
            (Expectation::Unreachable, Real::Open) if probe.declared == Declared::Audited => {
                result = Tested::Audited;
            }
            _ => return Tested::Fails(number),
        }
    }
    let lost = plan
        .unjoined
        .iter()
        .any(|it| concerns(it.from, it.to, it.transport, it.port, Family::V4));
    match test.expected {
        Expectation::Reachable if lost => Tested::NoWay,
        _ => result,
    }
}

fn is(peer: &Peer, spot: Spot, scene: &Scene, policy: &Policy) -> bool {
    match (peer, spot) {
        (Peer::Host, Spot::Host) => true,
        (Peer::Service(id), Spot::Container(_)) => match scene.subject(spot).map(|it| &it.standing) {
            Some(Standing::Managed(identity)) => identity.services().contains(id),
            _ => false,
        },
        (Peer::External(name), Spot::World(address)) => policy
            .externals
            .get(name)
            .is_some_and(|addresses| addresses.contains(address)),
        // As offline: the world is what is in no external.
        (Peer::World, Spot::World(address)) => !policy.externals.values().any(|it| it.contains(address)),
        _ => false,
    }
}

/// The probes that are to be tried again, more patiently: what should pass and was not seen to.
pub fn doubtful(probe: &Probe, seen: &Seen) -> bool {
    let real = real(probe.transport, seen);
    agreement(probe.declared, real) == Agreement::Blocked || matches!(seen.evidence, Evidence::Failed(_))
}
