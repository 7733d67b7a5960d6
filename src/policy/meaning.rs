//! What a policy means: who may open what to whom, and which services a container belongs to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;

use super::{Edge, Peer, Policy, ScopedName, ServiceId, Subject};
use crate::net::{Family, Traffic};

/// One end of a connection as it is, not as it is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party<'a> {
    /// A managed container: the services that it belongs to.
    Services(&'a BTreeSet<ServiceId>),
    /// A container of this host that no service selects.
    Unmanaged,
    /// The Docker host itself.
    Host,
    /// An address that is neither this host's nor a container's.
    Outside(IpAddr),
}

/// The services that a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// No service selects it.
    Unmanaged,
    /// Services of one segment; never empty.
    Member(BTreeSet<ServiceId>),
    /// Services of several segments claim it, so it has no rights at all.
    Quarantined(BTreeSet<ServiceId>),
}

impl Policy {
    /// The first edge that lets `from` open `traffic` to `to`; `None` is a denial wherever one end is managed. Whether
    /// two unmanaged containers may talk is the daemon's setting, not the policy's.
    pub fn allows(
        &self,
        from: &Party<'_>,
        to: &Party<'_>,
        traffic: Traffic,
        family: Family,
    ) -> Option<&Edge> {
        self.edges.iter().find(|edge| {
            self.is(from, &edge.from)
                && self.is(to, &edge.to)
                && edge.ports.iter().any(|ports| ports.permits(traffic, family))
        })
    }

    /// Whether every address outside may open `traffic` to these services: by an edge from `world`, not by one from an external.
    pub fn allows_world(&self, services: &BTreeSet<ServiceId>, traffic: Traffic, family: Family) -> bool {
        let to = Party::Services(services);
        self.edges.iter().any(|edge| {
            edge.from == Peer::World
                && self.is(&to, &edge.to)
                && edge.ports.iter().any(|ports| ports.permits(traffic, family))
        })
    }

    fn is(&self, party: &Party<'_>, peer: &Peer) -> bool {
        match (party, peer) {
            (Party::Services(services), Peer::Service(id)) => services.contains(id),
            (Party::Host, Peer::Host) | (Party::Outside(_), Peer::World) => true,
            (Party::Outside(address), Peer::External(name)) => self
                .externals
                .get(name)
                .is_some_and(|addresses| addresses.contains(*address)),
            _ => false,
        }
    }

    /// The policy as it is at this moment: without the edges that have ended.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Self {
        let mut policy = self.clone();
        policy.edges.retain(|edge| edge.is_in_force(now));
        policy
    }

    /// The moment after `now` at which the next edge ends.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = self.edges.iter().filter_map(|edge| edge.until);
        ends.filter(|until| now < *until).min()
    }

    /// The services whose selectors match the container.
    pub fn services_of(&self, subject: Subject<'_>) -> Membership {
        let matching: BTreeSet<ServiceId> = self
            .services
            .iter()
            .filter(|(_, service)| service.selectors.iter().any(|selector| selector.matches(subject)))
            .map(|(id, _)| id.clone())
            .collect();
        let segments: BTreeSet<_> = matching.iter().map(|id| &id.segment).collect();
        match segments.len() {
            0 => Membership::Unmanaged,
            1 => Membership::Member(matching),
            _ => Membership::Quarantined(matching),
        }
    }

    /// Whether every container belongs to the same services under both policies.
    pub fn selects_as(&self, other: &Self) -> bool {
        let mut both = self.services.iter().zip(&other.services);
        self.services.len() == other.services.len()
            && both.all(|((id, service), (of, other))| id == of && service.selectors == other.selectors)
    }

    /// The services with an edge into this one; itself too when that is declared.
    pub fn callers_of(&self, service: &ServiceId) -> BTreeSet<&ServiceId> {
        self.edges
            .iter()
            .filter(|edge| matches!(&edge.to, Peer::Service(to) if to == service))
            .filter_map(|edge| match &edge.from {
                Peer::Service(from) => Some(from),
                _ => None,
            })
            .collect()
    }
}

impl ScopedName {
    /// The name of a service's own network: `cofferdam-shop-web`. No two services of a policy share one.
    pub fn network_name(&self) -> String {
        format!("cofferdam-{}-{}", self.segment, self.name)
    }
}
