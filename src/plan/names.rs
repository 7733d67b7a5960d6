//! The names of our chains, sets and counters, in one place.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::ruleset::{ChainName, CounterName, SetName, SetRef, TableFamily};
use crate::net::Family;
use crate::policy::Edge;

/// Interface names that are closed unless they are known to be open: Docker's own names for bridges, and ours. A
/// bridge that appears while nobody watches is therefore closed.
pub const CLOSED_INTERFACES: [&str; 3] = ["docker0", "br-*", "cfd-*"];

/// Names that Docker gives to its ends of containers' interfaces. Frames from such a port that nobody has looked at yet are
/// closed within their bridge, too.
pub const CLOSED_PORTS: &str = "veth*";

/// The counters of what was denied, audited or forged beyond its sender's share, in each table.
pub const UNLOGGED: [(TableFamily, &str); 2] = [
    (TableFamily::Inet, UNLOGGED_PACKETS),
    (TableFamily::Bridge, UNLOGGED_FRAMES),
];
pub(crate) const UNLOGGED_PACKETS: &str = "unlogged";
pub(crate) const UNLOGGED_FRAMES: &str = "unlogged_frames";

pub(crate) fn chain(name: &str) -> ChainName {
    ChainName::from(name)
}

/// `in_shop/api`: what may be sent to the identity with this slug.
pub(crate) fn inbound(slug: &str) -> ChainName {
    ChainName(["in_", slug].concat().into())
}

/// `out_shop/api`: what the identity may send to other than containers.
pub(crate) fn outbound(slug: &str) -> ChainName {
    ChainName(["out_", slug].concat().into())
}

/// `fromhost_shop/api`: what the host may send to the identity.
pub(crate) fn from_host(slug: &str) -> ChainName {
    ChainName(["fromhost_", slug].concat().into())
}

/// `tohost_shop/api`: what the identity may send to the host.
pub(crate) fn to_host(slug: &str) -> ChainName {
    ChainName(["tohost_", slug].concat().into())
}

/// `pair_shop/web_shop/api`: what the first may send to the second.
pub(crate) fn pair(from: &str, to: &str) -> ChainName {
    ChainName(["pair_", from, "_", to].concat().into())
}

/// `from4_shop/api`, `from6_shop/api`: the callers of the identity, by address.
pub(crate) fn callers(slug: &str) -> [SetRef; 2] {
    Family::ALL.map(|family| inet(SetName(format!("from{}_{slug}", family.digit()).into())))
}

/// A name with the family's digit: `into4`.
pub(crate) fn by_family(name: &str, family: Family) -> SetName {
    SetName(format!("{name}{}", family.digit()).into())
}

pub(crate) fn inet(set: SetName) -> SetRef {
    SetRef {
        table: TableFamily::Inet,
        set,
    }
}

/// The counter of an edge: the same as long as its ends and ports are.
pub fn counter(edge: &Edge) -> CounterName {
    let mut text = format!("{}>{}", edge.from, edge.to);
    for ports in &edge.ports {
        // Writing to a String cannot fail.
        let _ = write!(text, ",{ports}");
    }
    let digest = Sha256::digest(text.as_bytes());
    let digits = digest.iter().take(6).flat_map(|byte| [byte >> 4, byte & 0xf]);
    let digits = digits.filter_map(|it| char::from_digit(it.into(), 16));
    CounterName(["e_".to_owned(), digits.collect()].concat().into())
}
