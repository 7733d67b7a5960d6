//! What was seen and a policy does not permit: the edges that are missing, each in the segment that owns it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::document::{edges_of, line_of, remarks, shown};
use super::edges::{Edges, LearnedEdge};
use super::{End, Evidence, Flow, Lesson, Scope};
use crate::model::yaml::scalar;
use crate::model::{Standing, standing};
use crate::net::{Family, Traffic};
use crate::policy::{Name, Party, Peer, Policy, Ports};

/// What is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    pub edges: BTreeMap<Name, Vec<LearnedEdge>>,
    /// Flows that no edge can permit as long as an end belongs to no service, or to those of two segments.
    pub unnameable: Vec<String>,
}

impl Missing {
    /// Whether the policy permits all that was seen.
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty() && self.unnameable.is_empty()
    }
}

/// Holds what was seen against a policy as it is now.
pub fn missing(lesson: &Lesson, scope: &Scope, policy: &Policy) -> Missing {
    let standings: BTreeMap<_, _> = lesson
        .containers
        .values()
        .map(|container| (&container.id, standing(policy, container)))
        .collect();
    let standing = |end: &End| match end {
        End::Container(id) => standings.get(id),
        End::Host | End::Outside => None,
    };
    let mut edges = Edges::default();
    let mut unnameable = BTreeSet::new();
    for (flow, evidence) in lesson.flows(scope) {
        let (from, to) = (standing(&flow.from), standing(&flow.to));
        let is_governed = |it: Option<&Standing>| it.is_some_and(|it| *it != Standing::Unmanaged);
        if !is_governed(from) && !is_governed(to) {
            continue;
        }
        let unnamed = [(&flow.from, from), (&flow.to, to)]
            .into_iter()
            .find_map(|(end, standing)| {
                let why = match standing? {
                    Standing::Managed(_) => return None,
                    Standing::Unmanaged => "no service selects",
                    Standing::Quarantined(_) | Standing::Isolated(_) => "services of two segments select",
                };
                Some(format!("{why} {}", shown(lesson, end)))
            });
        if let Some(why) = unnamed {
            unnameable.insert(format!(
                "{} -> {}:{}: {why}",
                shown(lesson, &flow.from),
                shown(lesson, &flow.to),
                flow.ports
            ));
            continue;
        }
        let ends = Ends { policy, from, to };
        if let Some(evidence) = ends.denied(&flow, &evidence)
            && let (Some(from), Some(to)) = (peer(&flow.from, from), peer(&flow.to, to))
        {
            edges.add(lesson, (from, to), &flow, &evidence);
        }
    }
    Missing {
        edges: edges.by_segment(),
        unnameable: unnameable.into_iter().collect(),
    }
}

/// Of several services an edge may name any; this is the first.
fn peer(end: &End, standing: Option<&Standing>) -> Option<Peer> {
    match end {
        End::Host => Some(Peer::Host),
        End::Outside => Some(Peer::World),
        End::Container(_) => standing?.services()?.first().cloned().map(Peer::Service),
    }
}

struct Ends<'a> {
    policy: &'a Policy,
    from: Option<&'a Standing>,
    to: Option<&'a Standing>,
}

impl Ends<'_> {
    /// The part of the evidence that the policy does not permit.
    fn denied(&self, flow: &Flow, evidence: &Evidence) -> Option<Evidence> {
        let families = Family::ALL
            .into_iter()
            .filter(|it| evidence.families.contains(it));
        let outside = [&flow.from, &flow.to].contains(&&End::Outside);
        if !outside {
            let denied = families
                .filter(|family| !self.permits(flow, None, *family))
                .count();
            return (denied > 0).then(|| evidence.clone());
        }
        let mut left = evidence.clone();
        // Who else it was is not known: only an edge for all of the world is sure to permit that.
        let mut families = families;
        if evidence.addresses.more || evidence.addresses.known.is_empty() {
            return families
                .any(|family| !self.permits_world(flow, family))
                .then_some(left);
        }
        let permits = |address: &IpAddr| self.permits(flow, Some(*address), Family::of(*address));
        left.addresses.known.retain(|address| !permits(address));
        (!left.addresses.known.is_empty()).then_some(left)
    }

    fn permits(&self, flow: &Flow, outside: Option<IpAddr>, family: Family) -> bool {
        let Some(traffic) = traffic(flow.ports, family) else {
            return true;
        };
        let party = |end: &End, standing: Option<&Standing>| -> Option<Owned> {
            Some(match end {
                End::Host => Owned::Host,
                End::Outside => Owned::Outside(outside?),
                End::Container(_) => Owned::Services(standing?.services()?.clone()),
            })
        };
        let (Some(from), Some(to)) = (party(&flow.from, self.from), party(&flow.to, self.to)) else {
            return false;
        };
        self.policy
            .allows(&from.party(), &to.party(), traffic, family)
            .is_some()
    }

    /// Whether an edge from or to `world` itself permits it.
    fn permits_world(&self, flow: &Flow, family: Family) -> bool {
        let Some(traffic) = traffic(flow.ports, family) else {
            return true;
        };
        let is = |end: &End, standing: Option<&Standing>, peer: &Peer| match (end, peer) {
            (End::Outside, Peer::World) => true,
            (End::Container(_), Peer::Service(id)) => standing
                .and_then(Standing::services)
                .is_some_and(|it| it.contains(id)),
            _ => false,
        };
        self.policy.edges.iter().any(|edge| {
            is(&flow.from, self.from, &edge.from)
                && is(&flow.to, self.to, &edge.to)
                && edge.ports.iter().any(|ports| ports.permits(traffic, family))
        })
    }
}

enum Owned {
    Services(BTreeSet<crate::policy::ServiceId>),
    Host,
    Outside(IpAddr),
}

impl Owned {
    fn party(&self) -> Party<'_> {
        match self {
            Self::Services(services) => Party::Services(services),
            Self::Host => Party::Host,
            Self::Outside(address) => Party::Outside(*address),
        }
    }
}

/// What a flow's port stands for in a family; `None` where it has no meaning there.
fn traffic(ports: Ports, family: Family) -> Option<Traffic> {
    match ports {
        Ports::Transport(transport, range) => Some(Traffic::Port(transport, range.first)),
        Ports::Icmp(Some(icmp)) => icmp.number(family).map(Traffic::Icmp),
        Ports::Icmp(None) | Ports::Any => None,
    }
}

/// As files that can be put beside the policy's own, one for each segment.
pub fn texts(missing: &Missing, policy: &Policy) -> BTreeMap<Name, String> {
    let mut texts = BTreeMap::new();
    for (segment, edges) in &missing.edges {
        let mut text = String::new();
        let files: BTreeSet<&str> = policy
            .services
            .iter()
            .filter(|(id, _)| id.segment == *segment)
            .map(|(_, service)| service.location.file.as_str())
            .collect();
        let files: Vec<&str> = files.into_iter().collect();
        line_of(
            &mut text,
            &format!(
                "# Seen, but not permitted by segment {segment} ({}).",
                files.join(", ")
            ),
        );
        line_of(&mut text, "cofferdam: 1");
        line_of(&mut text, &format!("segment: {}", scalar(segment.as_str())));
        line_of(&mut text, "allow:");
        edges_of(&mut text, edges, segment);
        texts.insert(segment.clone(), text);
    }
    texts
}

/// What is to be said besides the edges, one line each.
pub fn notes(lesson: &Lesson, missing: &Missing) -> Vec<String> {
    let unnameable = missing
        .unnameable
        .iter()
        .map(|flow| format!("No edge can permit {flow}."));
    unnameable.chain(remarks(lesson)).collect()
}
