//! Narrow network types that every room shares: names, addresses and port ranges that cannot be malformed.

mod ranges;
mod subnets;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

pub use self::ranges::Ranges;
pub use self::subnets::{engine_share, first_host};

/// A network interface name: 1 to 15 bytes, no `/`, no white space (`dev_valid_name` in the kernel).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

/// Why a text is not an interface name.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an interface name (1 to 15 bytes without `/`, `:` or white space)")]
pub struct IfNameError(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = IfNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = (1..=15).contains(&text.len())
            && text != "."
            && text != ".."
            && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(IfNameError(text.to_owned()))
        }
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// Why a text is not an Ethernet address.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an Ethernet address (six hexadecimal bytes with colons)")]
pub struct MacError(String);

impl Mac {
    /// The link-local IPv6 address that the kernel derives from this address (modified EUI-64, RFC 4291).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            pair(a ^ 2, b),
            pair(c, 0xff),
            pair(0xfe, d),
            pair(e, f),
        )
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(fail)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| fail())?;
        }
        if parts.next().is_some() {
            Err(fail())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The address with this number; of IPv4 the last 32 bits count.
    pub fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => to_v4(number).into(),
            Self::V6 => Ipv6Addr::from(number).into(),
        }
    }

    /// `4` or `6`, as in the names of sets.
    pub fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}

/// An inclusive range of ports; `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// Every port, 0 to 65535.
    pub const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// One port.
    pub fn single(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// As policies can write it: they know no port 0, which begins what is cut from all ports.
    #[must_use]
    pub fn writable(self) -> Self {
        match self {
            Self { first: 0, last } if last > 0 && self != Self::ALL => Self { first: 1, last },
            other => other,
        }
    }

    /// Whether the port lies within.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol's number (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The name in policies and in nft: `tcp`, `udp`, `sctp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An ICMP message that a policy can name, with its type in ICMP and, where it exists, in ICMPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IcmpType {
    EchoRequest,
    DestinationUnreachable,
    TimeExceeded,
    ParameterProblem,
    TimestampRequest,
}

impl IcmpType {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [
        Self::EchoRequest,
        Self::DestinationUnreachable,
        Self::TimeExceeded,
        Self::ParameterProblem,
        Self::TimestampRequest,
    ];

    /// The name in policies, the same as nft's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EchoRequest => "echo-request",
            Self::DestinationUnreachable => "destination-unreachable",
            Self::TimeExceeded => "time-exceeded",
            Self::ParameterProblem => "parameter-problem",
            Self::TimestampRequest => "timestamp-request",
        }
    }

    /// The type's number in ICMP (RFC 792) or ICMPv6 (RFC 4443); `None` where the family has no such message.
    pub fn number(self, family: Family) -> Option<u8> {
        match (self, family) {
            (Self::EchoRequest, Family::V4) => Some(8),
            (Self::EchoRequest, Family::V6) => Some(128),
            (Self::DestinationUnreachable, Family::V4) => Some(3),
            (Self::DestinationUnreachable, Family::V6) => Some(1),
            (Self::TimeExceeded, Family::V4) => Some(11),
            (Self::TimeExceeded, Family::V6) => Some(3),
            (Self::ParameterProblem, Family::V4) => Some(12),
            (Self::ParameterProblem, Family::V6) => Some(4),
            (Self::TimestampRequest, Family::V4) => Some(13),
            (Self::TimestampRequest, Family::V6) => None,
        }
    }
}

impl fmt::Display for IcmpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a new connection asks for: its protocol and, where it has one, its port or ICMP type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// TCP, UDP or SCTP to a destination port.
    Port(Transport, u16),
    /// ICMP or ICMPv6 (by the family of the addresses) with a type's number.
    Icmp(u8),
    /// Any other IP protocol, by number.
    Other(u8),
}

/// A set of addresses as sorted, disjoint, inclusive ranges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AddressSet {
    pub v4: Vec<(Ipv4Addr, Ipv4Addr)>,
    pub v6: Vec<(Ipv6Addr, Ipv6Addr)>,
}

impl AddressSet {
    /// The union of `include` without the union of `except`.
    pub fn new(include: &[ipnet::IpNet], except: &[ipnet::IpNet]) -> Self {
        let pick = |nets: &[ipnet::IpNet], family: Family| {
            let of_family = nets.iter().filter(|net| Family::of(net.addr()) == family);
            Ranges::new(of_family.map(|net| (to_number(net.network()), to_number(net.broadcast()))))
        };
        Self::of(|family| pick(include, family).without(&pick(except, family)))
    }

    /// The addresses of each family, as numbers.
    fn of(ranges: impl Fn(Family) -> Ranges) -> Self {
        Self {
            v4: ranges(Family::V4)
                .iter()
                .map(|(a, b)| (to_v4(a), to_v4(b)))
                .collect(),
            v6: ranges(Family::V6)
                .iter()
                .map(|(a, b)| (a.into(), b.into()))
                .collect(),
        }
    }

    /// Whether the address lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self
                .v4
                .iter()
                .any(|(first, last)| (first..=last).contains(&&address)),
            IpAddr::V6(address) => self
                .v6
                .iter()
                .any(|(first, last)| (first..=last).contains(&&address)),
        }
    }

    /// Its addresses that are not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self::of(|family| self.ranges(family).without(&other.ranges(family)))
    }

    /// Whether it holds no address at all.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The addresses of one family as numbers; [`Family::address`] makes addresses of them again.
    pub fn ranges(&self, family: Family) -> Ranges {
        match family {
            Family::V4 => Ranges::new(
                self.v4
                    .iter()
                    .map(|(first, last)| (to_number((*first).into()), to_number((*last).into()))),
            ),
            Family::V6 => Ranges::new(
                self.v6
                    .iter()
                    .map(|(first, last)| ((*first).into(), (*last).into())),
            ),
        }
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => address.into(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the number is that of an IPv4 address"
)]
fn to_v4(number: u128) -> Ipv4Addr {
    Ipv4Addr::from(number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn except_cuts_holes() {
        let set = AddressSet::new(
            &nets(&["198.51.100.0/24", "198.51.100.128/25"]),
            &nets(&["198.51.100.64/26"]),
        );
        assert_eq!(
            set.v4,
            [
                (Ipv4Addr::new(198, 51, 100, 0), Ipv4Addr::new(198, 51, 100, 63)),
                (Ipv4Addr::new(198, 51, 100, 128), Ipv4Addr::new(198, 51, 100, 255)),
            ]
        );
        assert!(set.contains("198.51.100.10".parse().unwrap()));
        assert!(!set.contains("198.51.100.77".parse().unwrap()));
    }

    #[test]
    fn everything_but_one_address_and_nothing_at_all() {
        let set = AddressSet::new(
            &nets(&["0.0.0.0/0", "::/0"]),
            &nets(&["169.254.169.254/32", "::/0"]),
        );
        assert!(set.contains("255.255.255.255".parse().unwrap()));
        assert!(!set.contains("169.254.169.254".parse().unwrap()));
        assert!(set.v6.is_empty());
        assert!(AddressSet::new(&nets(&["10.0.0.0/8"]), &nets(&["10.0.0.0/8"])).is_empty());
    }

    #[test]
    fn link_local_is_eui64() {
        let mac: Mac = "02:42:ac:11:00:02".parse().unwrap();
        assert_eq!(
            mac.link_local(),
            "fe80::42:acff:fe11:2".parse::<Ipv6Addr>().unwrap()
        );
        assert!("02:42:ac:11:00".parse::<Mac>().is_err());
    }

    #[test]
    fn interface_names_are_bounded() {
        assert!("br-0123456789ab".parse::<IfName>().is_ok());
        assert!("br-0123456789abc".parse::<IfName>().is_err());
        assert!("a/b".parse::<IfName>().is_err());
    }
}
