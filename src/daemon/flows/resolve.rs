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
            container_id: party.map(|party| party.id.0.to_string()),
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
    // What the host dials of itself comes in by `lo`.
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::inventory::{ContainerId, Endpoint, Published};
    use crate::net::{Mac, Transport};
    use crate::plan::{Moves, Place, Resident};

    const GUARDED: &str = "10.0.0.0/24";
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);

    /// `web` at 10.0.0.2 behind port 7, with its port 80 published as 8080; `db` at 10.0.0.3 behind port 8.
    fn book(now: Instant) -> Book {
        let mut book = Book::default();
        let resident = |name: &str, last: u8, mac, port, published: &[u16]| Resident {
            name: name.to_owned(),
            standing: Standing::Unmanaged,
            places: Box::new([Place {
                endpoint: Endpoint {
                    mac: Some(mac),
                    ipv4: Some(Ipv4Addr::new(10, 0, 0, last)),
                    ipv6: None,
                },
                port: Some(port),
            }]),
            published: published
                .iter()
                .map(|host_port| Published {
                    address: Ipv4Addr::UNSPECIFIED.into(),
                    transport: Transport::Tcp,
                    host_port: *host_port,
                    container_port: 80,
                })
                .collect(),
        };
        let web = resident("web", 2, MAC, 7, &[8080]);
        let db = resident("db", 3, OTHER, 8, &[]);
        let containers = [("web", web), ("db", db)];
        let moves = Moves {
            containers: containers
                .map(|(id, it)| (ContainerId(id.into()), Some(it)))
                .into(),
            subnets: Some(vec![GUARDED.parse().unwrap()]),
            ..Moves::default()
        };
        book.take(moves, now);
        book
    }

    fn logged(prefix: &str, hook: HookPoint, port: Option<u32>, mac: Mac, from: &str, to: &str) -> Logged {
        Logged {
            prefix: format!("{LOG_PREFIX}{prefix}"),
            hook,
            iif: Some(1),
            port,
            mac: Some(mac),
            body: LoggedBody::Ip {
                source: from.parse().unwrap(),
                destination: to.parse().unwrap(),
                traffic: Traffic::Port(Transport::Tcp, 8080),
                source_port: 40000,
                sequence: Some(1),
            },
        }
    }

    fn arp(mac: Mac, said: Mac, sender: &str) -> Logged {
        let body = LoggedBody::Arp {
            sender_mac: said,
            sender: sender.parse().unwrap(),
            target: Ipv4Addr::new(10, 0, 0, 3),
        };
        Logged {
            body,
            ..logged(
                "forged",
                HookPoint::Prerouting,
                Some(7),
                mac,
                "10.0.0.2",
                "10.0.0.3",
            )
        }
    }

    fn told(logged: &Logged) -> (FlowVerdict, String, String, String) {
        let now = Instant::now();
        match resolve(logged, &book(now), now, Patience::Over) {
            Resolved::Attempt(attempt) => (
                attempt.verdict,
                attempt.from.told().to_string(),
                format!("{}:{:?}", attempt.to.told(), attempt.what.port()),
                attempt.reason(&Rights::default()),
            ),
            other => panic!("{other:?}"),
        }
    }

    fn is_nothing(logged: &Logged) -> bool {
        let now = Instant::now();
        matches!(
            resolve(logged, &book(now), now, Patience::Over),
            Resolved::Nothing
        )
    }

    #[test]
    fn a_frame_that_lies_is_told_of_whoever_is_behind_the_port() {
        let frame = |port, mac, from| logged("forged", HookPoint::Prerouting, port, mac, from, "10.0.0.3");
        for (frame, from, reason) in [
            (
                frame(Some(7), MAC, "10.0.0.3"),
                "web",
                "10.0.0.3 is db's, not web's",
            ),
            (
                frame(Some(7), OTHER, "10.0.0.2"),
                "web",
                "10.0.0.2 is web's, but not with this Ethernet address and port",
            ),
            (frame(Some(7), MAC, "192.0.2.1"), "web", "192.0.2.1 is not web's"),
            (
                frame(Some(99), MAC, "10.0.0.2"),
                "unknown (10.0.0.2)",
                "it says 10.0.0.2, and who is behind its port is not known",
            ),
            (arp(MAC, MAC, "10.0.0.3"), "web", "10.0.0.3 is db's, not web's"),
            (
                arp(MAC, OTHER, "10.0.0.2"),
                "web",
                "10.0.0.2 is web's, but not with this Ethernet address and port",
            ),
        ] {
            let (verdict, who, _, why) = told(&frame);
            assert_eq!(
                (verdict, who.as_str(), why.as_str()),
                (FlowVerdict::Identity, from, reason)
            );
        }
        let other = Logged {
            body: LoggedBody::Other(0x88cc),
            ..frame(Some(7), MAC, "10.0.0.2")
        };
        assert_eq!(told(&other).3, "web sends what is neither IP nor ARP");
    }

    #[test]
    fn the_truth_that_comes_too_early_is_nothing_and_an_unknown_port_is_waited_for() {
        let frame = |port, from| logged("forged", HookPoint::Prerouting, port, MAC, from, "10.0.0.3");
        let link_local = MAC.link_local().to_string();
        for truth in ["10.0.0.2", "0.0.0.0", link_local.as_str()] {
            assert!(is_nothing(&frame(Some(7), truth)), "{truth}");
        }
        assert!(is_nothing(&arp(MAC, MAC, "10.0.0.2")));
        let now = Instant::now();
        let unknown = |logged: &Logged| {
            matches!(
                resolve(logged, &book(now), now, Patience::Wait),
                Resolved::Unknown
            )
        };
        assert!(unknown(&frame(Some(99), "10.0.0.2")));
        // An address of a network that nobody is known to have may be a container's that is just starting.
        let denied = |from| logged("denied", HookPoint::Forward, None, MAC, from, "10.0.0.3");
        assert!(unknown(&denied("10.0.0.77")) && !unknown(&denied("10.0.0.2")));
    }

    #[test]
    fn a_frame_that_missed_the_rules_is_told() {
        let frame = logged(
            "unsealed",
            HookPoint::Forward,
            Some(7),
            MAC,
            "10.0.0.2",
            "10.0.0.3",
        );
        let (verdict, from, to, why) = told(&frame);
        assert_eq!(
            (verdict, from.as_str(), to.as_str()),
            (FlowVerdict::Identity, "web", "db:Some(8080)")
        );
        assert!(why.contains("br_netfilter"), "{why}");
    }

    #[test]
    fn what_is_denied_is_told_by_hook_and_by_what_is_behind_a_port() {
        let denied = |hook, from, to| told(&logged("denied", hook, None, MAC, from, to));
        let who = |hook, from, to| {
            let (_, from, to, _) = denied(hook, from, to);
            format!("{from} -> {to}")
        };
        assert_eq!(
            who(HookPoint::Forward, "10.0.0.2", "10.0.0.3"),
            "web -> db:Some(8080)"
        );
        assert_eq!(
            who(HookPoint::Forward, "10.0.0.2", "198.51.100.7"),
            "web -> world (198.51.100.7):Some(8080)"
        );
        assert_eq!(
            who(HookPoint::Output, "10.0.0.1", "10.0.0.3"),
            "host (10.0.0.1) -> db:Some(8080)"
        );
        // The published port stands for the container's own.
        assert_eq!(
            who(HookPoint::Input, "10.0.0.3", "10.0.0.1"),
            "db -> web:Some(80)"
        );
        assert_eq!(
            who(HookPoint::Input, "127.0.0.1", "127.0.0.1"),
            "host (127.0.0.1) -> web:Some(80)"
        );
        let report = logged("denied", HookPoint::Output, None, MAC, "10.0.0.1", "224.0.0.22");
        assert!(is_nothing(&report), "the host's own reports to groups");
        let container = logged("denied", HookPoint::Forward, None, MAC, "10.0.0.2", "224.0.0.22");
        assert!(!is_nothing(&container));
        assert!(is_nothing(&Logged {
            prefix: "somebody else's".to_owned(),
            ..container
        }));
    }
}
