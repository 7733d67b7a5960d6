//! A logged packet in the words of the policy: who tried what with whom, and why it did not pass.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::book::{Book, Party};
use super::record::{Direction, EndKind, FlowEnd, FlowVerdict};
use crate::kernel::nflog::{Logged, LoggedBody};
use crate::model::explain::{End, denial};
use crate::model::{Rights, Standing, Verdict};
use crate::net::{Family, Traffic};
use crate::plan::ruleset::{HookPoint, LOG_PREFIX};
use crate::policy;

/// What a packet is an attempt of.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) verdict: FlowVerdict,
    pub(super) from: Known,
    pub(super) to: Known,
    pub(super) what: What,
    /// Equal for packets that are the same one sent again.
    pub(super) once: Option<(u16, u32)>,
    why: Why,
}

/// An end, as it was at the time.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) kind: EndKind,
    pub(super) party: Option<Arc<Party>>,
    pub(super) address: Option<IpAddr>,
}

/// The traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Ip(Traffic, Family),
    Arp,
    EtherType(u16),
}

/// The reason, to be put into words where it is the first of its kind.
#[derive(Debug, Clone)]
enum Why {
    Policy,
    Words(String),
}

/// What to do with a packet.
#[derive(Debug, Clone)]
pub(super) enum Resolved {
    Attempt(Attempt),
    /// Whose it is is not known yet.
    Unknown,
    /// What a container says truthfully before it is bound, or what is no rule's of ours.
    Nothing,
}

/// How long it is waited for the container that a packet must be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Wait,
    Over,
}

pub(super) fn resolve(logged: &Logged, book: &Book, when: Instant, patience: Patience) -> Resolved {
    match logged.prefix.strip_prefix(LOG_PREFIX) {
        Some("denied") => judged(FlowVerdict::Denied, logged, book, when, patience),
        Some("audited") => judged(FlowVerdict::Audited, logged, book, when, patience),
        Some("forged") => forged(logged, book, when, patience),
        Some("unsealed") => unsealed(logged, book, when),
        _ => Resolved::Nothing,
    }
}

fn container(party: &Arc<Party>, address: Option<IpAddr>) -> Known {
    let kind = match &party.standing {
        Standing::Managed(_) => EndKind::Service,
        Standing::Unmanaged => EndKind::Unmanaged,
        Standing::Quarantined(_) | Standing::Isolated(_) => EndKind::Closed,
    };
    Known {
        kind,
        party: Some(Arc::clone(party)),
        address,
    }
}

fn other(kind: EndKind, address: Option<IpAddr>) -> Known {
    Known {
        kind,
        party: None,
        address,
    }
}

impl Known {
    /// In the words of a record.
    pub(super) fn told(&self) -> FlowEnd {
        let party = self.party.as_ref();
        let services = party
            .and_then(|party| party.standing.services())
            .into_iter()
            .flatten();
        FlowEnd {
            kind: self.kind,
            services: services.map(ToString::to_string).collect(),
            container: party.map(|party| party.name.clone()),
            container_id: party.map(|party| party.id.0.clone()),
            address: self.address,
        }
    }

    /// In the words of the policy.
    fn end(&self) -> End {
        match (&self.party, self.kind, self.address) {
            (Some(party), _, _) => End::Container {
                name: party.name.clone(),
                standing: party.standing.clone(),
            },
            (None, EndKind::Host, _) => End::Host,
            (None, _, Some(address)) => End::Outside(address),
            (None, _, None) => End::World,
        }
    }

    fn is_outside(&self) -> bool {
        matches!(self.kind, EndKind::Host | EndKind::World)
    }
}

fn known(address: IpAddr, book: &Book, when: Instant) -> Known {
    match book.at_address(address, when) {
        Some(party) => container(party, Some(address)),
        None if book.is_within(address) => other(EndKind::Unknown, Some(address)),
        None => other(EndKind::World, Some(address)),
    }
}

fn judged(verdict: FlowVerdict, logged: &Logged, book: &Book, when: Instant, patience: Patience) -> Resolved {
    let LoggedBody::Ip {
        source,
        destination,
        mut traffic,
        source_port,
        sequence,
    } = logged.body
    else {
        return Resolved::Nothing;
    };
    let mut from = match logged.hook {
        HookPoint::Output => other(EndKind::Host, Some(source)),
        _ => known(source, book, when),
    };
    // What comes to the host from nowhere that is known, by `lo`, is its own.
    let behind = match (logged.hook, traffic) {
        (HookPoint::Input, Traffic::Port(transport, port)) => book.behind(transport, port),
        _ => None,
    };
    let to = match (logged.hook, behind) {
        (HookPoint::Input, Some((party, port))) => {
            if let Traffic::Port(transport, _) = traffic {
                traffic = Traffic::Port(transport, port);
            }
            container(party, Some(destination))
        }
        (HookPoint::Input, None) => other(EndKind::Host, Some(destination)),
        _ => known(destination, book, when),
    };
    if logged.hook == HookPoint::Input && (source.is_loopback() || source == destination) {
        from = other(EndKind::Host, Some(source));
    }
    // The host's own reports to multicast groups, on every interface that it has.
    if from.kind == EndKind::Host && destination.is_multicast() {
        return Resolved::Nothing;
    }
    let unknown = |end: &Known| end.kind == EndKind::Unknown;
    if patience == Patience::Wait && (unknown(&from) || unknown(&to)) {
        return Resolved::Unknown;
    }
    Resolved::Attempt(Attempt {
        verdict,
        from,
        to,
        what: What::Ip(traffic, Family::of(source)),
        once: sequence.map(|sequence| (source_port, sequence)),
        why: Why::Policy,
    })
}

/// A frame that `bridge identity` dropped.
fn forged(logged: &Logged, book: &Book, when: Instant, patience: Patience) -> Resolved {
    let sender = logged.port.and_then(|port| book.at_port(port, when));
    if sender.is_none() && patience == Patience::Wait {
        return Resolved::Unknown;
    }
    let (claimed, mac, to) = match logged.body {
        LoggedBody::Ip {
            source, destination, ..
        } => (Some(source), logged.mac, Some(destination)),
        LoggedBody::Arp {
            sender_mac,
            sender,
            target,
        } => {
            let mac = logged.mac.filter(|mac| *mac == sender_mac);
            (Some(sender.into()), mac, Some(target.into()))
        }
        LoggedBody::Other(_) => (None, None, None),
    };
    let why = match (sender, claimed) {
        (Some(party), Some(address)) => {
            // The truth, only too early: the container speaks before its port is bound.
            if let (Some(port), Some(mac)) = (logged.port, mac)
                && party.is_truth(port, mac, address)
            {
                return Resolved::Nothing;
            }
            match book.at_address(address, when) {
                Some(owner) if owner.id == party.id => {
                    format!(
                        "{address} is {}'s, but not with this Ethernet address and port",
                        party.name
                    )
                }
                Some(owner) => format!("{address} is {}'s, not {}'s", owner.name, party.name),
                None => format!("{address} is not {}'s", party.name),
            }
        }
        (Some(party), None) => format!("{} sends what is neither IP nor ARP", party.name),
        (None, Some(address)) => format!("it says {address}, and who is behind its port is not known"),
        (None, None) => "who is behind its port is not known".to_owned(),
    };
    violation(logged, sender, to.map(|to| known(to, book, when)), why)
}

/// A frame that `bridge sealed` dropped.
fn unsealed(logged: &Logged, book: &Book, when: Instant) -> Resolved {
    let sender = logged.port.and_then(|port| book.at_port(port, when));
    let to = match logged.body {
        LoggedBody::Ip { destination, .. } => Some(known(destination, book, when)),
        LoggedBody::Arp { .. } | LoggedBody::Other(_) => None,
    };
    let why = "it passed the rules by: its bridge does not call br_netfilter";
    violation(logged, sender, to, why.to_owned())
}

fn violation(logged: &Logged, sender: Option<&Arc<Party>>, to: Option<Known>, why: String) -> Resolved {
    let (what, source) = match logged.body {
        LoggedBody::Ip { source, traffic, .. } => (What::Ip(traffic, Family::of(source)), Some(source)),
        LoggedBody::Arp { sender, .. } => (What::Arp, Some(sender.into())),
        LoggedBody::Other(kind) => (What::EtherType(kind), None),
    };
    let from = match sender {
        Some(party) => container(party, source),
        None => other(EndKind::Unknown, source),
    };
    Resolved::Attempt(Attempt {
        verdict: FlowVerdict::Identity,
        from,
        to: to.unwrap_or_else(|| other(EndKind::Unknown, None)),
        what,
        once: None,
        why: Why::Words(why),
    })
}

impl What {
    /// `5432/tcp`, `icmp type 8`.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Ip(Traffic::Port(transport, port), _) => format!("{port}/{}", transport.as_str()),
            Self::Ip(Traffic::Icmp(kind), Family::V4) => format!("icmp type {kind}"),
            Self::Ip(Traffic::Icmp(kind), Family::V6) => format!("icmpv6 type {kind}"),
            Self::Ip(Traffic::Other(number), _) => format!("IP protocol {number}"),
            Self::Arp => "arp".to_owned(),
            Self::EtherType(number) => format!("EtherType {number:#06x}"),
        }
    }

    /// As a record's `protocol`.
    pub(super) fn protocol(self) -> String {
        match self {
            Self::Ip(Traffic::Port(transport, _), _) => transport.as_str().to_owned(),
            Self::Ip(Traffic::Icmp(_), Family::V4) => "icmp".to_owned(),
            Self::Ip(Traffic::Icmp(_), Family::V6) => "icmpv6".to_owned(),
            Self::Ip(Traffic::Other(number), _) => number.to_string(),
            Self::Arp => "arp".to_owned(),
            Self::EtherType(number) => format!("{number:#06x}"),
        }
    }

    pub(super) fn port(self) -> Option<u16> {
        match self {
            Self::Ip(Traffic::Port(_, port), _) => Some(port),
            _ => None,
        }
    }

    pub(super) fn icmp_type(self) -> Option<u8> {
        match self {
            Self::Ip(Traffic::Icmp(kind), _) => Some(kind),
            _ => None,
        }
    }
}

impl Attempt {
    pub(super) fn direction(&self) -> Direction {
        match (self.from.is_outside(), self.to.is_outside()) {
            (true, _) => Direction::Inbound,
            (false, true) => Direction::Outbound,
            (false, false) => Direction::Internal,
        }
    }

    /// The reason in words, under the rights in force.
    pub(super) fn reason(&self, rights: &Rights) -> String {
        if let Why::Words(words) = &self.why {
            return words.clone();
        }
        let (from, to) = (&self.from.end(), &self.to.end());
        let What::Ip(traffic, family) = self.what else {
            return denial(rights, from, to, &self.what.describe());
        };
        let judged = match (party(from), party(to)) {
            (Some(from), Some(to)) => Some(rights.judge(&from, &to, traffic, family)),
            _ => None,
        };
        match judged {
            Some(Verdict::Allowed(edge)) => format!(
                "{} permits it: it came before the container was known, or by a way that edge does not open",
                edge.location
            ),
            _ => denial(rights, from, to, &self.what.describe()),
        }
    }
}

/// `None`: it has no rights whatever the edges say.
fn party(end: &End) -> Option<policy::Party<'_>> {
    match end {
        End::Container {
            standing: Standing::Managed(identity),
            ..
        } => Some(policy::Party::Services(identity.services())),
        End::Container {
            standing: Standing::Unmanaged,
            ..
        } => Some(policy::Party::Unmanaged),
        End::Host => Some(policy::Party::Host),
        End::Outside(address) => Some(policy::Party::Outside(*address)),
        End::Container { .. } | End::Service(_) | End::External(_) | End::World => None,
    }
}
