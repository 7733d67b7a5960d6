//! Traffic as a set, so that what edges permit can be compared as a whole, without trying single ports.

use super::Ports;
use crate::net::{Family, IcmpType, PortRange, Ranges, Traffic, Transport};

/// New connections of one address family, by protocol and number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrafficSet {
    /// Ports of each [`Transport`], in the order of [`Transport::ALL`].
    ports: [Ranges; 3],
    /// Types of ICMP or ICMPv6.
    icmp: Ranges,
    /// Numbers of all other IP protocols.
    other: Ranges,
}

impl TrafficSet {
    /// What these permit over the family; nothing where they have no meaning in it.
    pub fn of<'p>(ports: impl IntoIterator<Item = &'p Ports>, family: Family) -> Self {
        ports
            .into_iter()
            .fold(Self::default(), |all, ports| all.with(&Self::one(*ports, family)))
    }

    fn one(ports: Ports, family: Family) -> Self {
        let mut set = Self::default();
        match ports {
            Ports::Any => {
                set.ports = [PortRange::ALL; 3].map(numbers);
                set.icmp = bytes();
                set.other = bytes();
            }
            Ports::Transport(transport, range) => set.ports[index(transport)] = numbers(range),
            Ports::Icmp(None) => set.icmp = bytes(),
            Ports::Icmp(Some(icmp)) => {
                set.icmp = Ranges::new(icmp.number(family).map(|number| (number.into(), number.into())));
            }
        }
        set
    }

    /// The traffic of either.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        self.each(other, Ranges::with)
    }

    /// The traffic that is not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.each(other, Ranges::without)
    }

    /// The traffic of both.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        self.each(other, Ranges::common)
    }

    fn each(&self, other: &Self, combine: fn(&Ranges, &Ranges) -> Ranges) -> Self {
        let [a, b, c] = &self.ports;
        let [x, y, z] = &other.ports;
        Self {
            ports: [combine(a, x), combine(b, y), combine(c, z)],
            icmp: combine(&self.icmp, &other.icmp),
            other: combine(&self.other, &other.other),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One of its members.
    pub fn first(&self) -> Option<Traffic> {
        let port = |transport: Transport| {
            let first = self.ports[index(transport)].first()?;
            Some(Traffic::Port(transport, u16::try_from(first).ok()?))
        };
        let byte = |ranges: &Ranges| ranges.first().and_then(|first| u8::try_from(first).ok());
        Transport::ALL
            .into_iter()
            .find_map(port)
            .or_else(|| byte(&self.icmp).map(Traffic::Icmp))
            .or_else(|| byte(&self.other).map(Traffic::Other))
    }

    /// As a policy would write it: `80/tcp, 9000-9010/tcp, icmp`.
    pub fn describe(&self, family: Family) -> String {
        if *self == Self::one(Ports::Any, family) {
            return Ports::Any.to_string();
        }
        let mut parts = Vec::new();
        for transport in Transport::ALL {
            for (first, last) in self.ports[index(transport)].iter() {
                if let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) {
                    parts.push(Ports::Transport(transport, PortRange { first, last }).to_string());
                }
            }
        }
        if self.icmp == bytes() {
            parts.push(Ports::Icmp(None).to_string());
        } else {
            for (first, last) in self.icmp.iter() {
                let named = IcmpType::ALL
                    .into_iter()
                    .find(|icmp| first == last && icmp.number(family).map(u128::from) == Some(first));
                parts.push(match named {
                    Some(icmp) => Ports::Icmp(Some(icmp)).to_string(),
                    None if first == last => format!("ICMP type {first}"),
                    None => format!("ICMP types {first}-{last}"),
                });
            }
        }
        if !self.other.is_empty() {
            parts.push("other protocols".to_owned());
        }
        parts.join(", ")
    }
}

fn index(transport: Transport) -> usize {
    match transport {
        Transport::Tcp => 0,
        Transport::Udp => 1,
        Transport::Sctp => 2,
    }
}

fn numbers(range: PortRange) -> Ranges {
    Ranges::new([(range.first.into(), range.last.into())])
}

fn bytes() -> Ranges {
    Ranges::new([(0, u8::MAX.into())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str], family: Family) -> TrafficSet {
        let ports: Vec<Ports> = texts.iter().map(|text| text.parse().unwrap()).collect();
        TrafficSet::of(&ports, family)
    }

    #[test]
    fn traffic_is_added_and_subtracted_by_protocol() {
        let v4 = |texts: &[&str]| set(texts, Family::V4);
        let left = |from: &[&str], take: &[&str]| v4(from).without(&v4(take)).describe(Family::V4);
        assert_eq!(left(&["80-90"], &["85"]), "80-84/tcp, 86-90/tcp");
        assert_eq!(left(&["80-90"], &["80-84", "85-100"]), "");
        assert_eq!(left(&["53/udp"], &["53"]), "53/udp");
        assert_eq!(left(&["udp", "80"], &["tcp"]), "udp");
        assert_eq!(
            left(&["icmp"], &["icmp/echo-request"]),
            "ICMP types 0-7, ICMP types 9-255"
        );
        assert_eq!(left(&["any"], &["tcp", "udp", "sctp"]), "icmp, other protocols");
        assert_eq!(left(&["any"], &[]), "any");
        assert!(v4(&["any"]).without(&v4(&["any"])).is_empty());
        assert_eq!(
            v4(&["80-90", "icmp"])
                .common(&v4(&["85-99", "any"]))
                .describe(Family::V4),
            "80-90/tcp, icmp"
        );
    }

    #[test]
    fn a_message_that_a_family_lacks_is_no_traffic_in_it() {
        assert!(!set(&["icmp/timestamp-request"], Family::V4).is_empty());
        assert!(set(&["icmp/timestamp-request"], Family::V6).is_empty());
        assert_eq!(
            set(&["icmp/echo-request"], Family::V6).first(),
            Some(Traffic::Icmp(128))
        );
    }
}
