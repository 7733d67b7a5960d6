//! The policy: which services there are and which of them may open what to whom.
//!
//! In: the text of YAML files. Out: a [`Policy`], or every fault of every file at once. Pure: no clocks, files,
//! processes or sockets; reading the directory is `daemon::source`'s.
//!
//! The way through: `load` (bytes) -> `yaml` (nodes with places) -> `decode` (a `document` for each file) -> `resolve`
//! and `edges` (one [`Policy`]). On the way faults are collected in a `text::Report`; `warnings` adds what a reviewer would ask; `render`
//! shows both. `outcome` runs the policy's own tests.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod decode;
mod document;
mod edges;
mod externals;
mod fault;
mod fields;
mod load;
mod meaning;
mod names;
mod outcome;
mod ports;
mod render;
mod resolve;
mod schema;
mod selector;
mod selectors;
mod suggest;
#[cfg(test)]
mod tests;
mod text;
mod traffic;
mod warnings;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use litemap::LiteMap;

pub use self::fault::{Code, Fault, Faults, Other, Severity, UnknownCode, Warnings, count};
pub use self::load::{
    Loaded, MAX_FILE_BYTES, Reviewed, Revision, SourceFile, load, load_with, review, revision,
};
pub use self::meaning::{Membership, Party};
pub use self::outcome::{Outcome, Part};
pub use self::ports::PortsError;
pub use self::render::{Colour, Failure};
pub use self::schema::schema;
pub use self::selector::Selector;
pub(crate) use self::suggest::closest;
pub use self::traffic::TrafficSet;
use crate::net::{AddressSet, IcmpType, PortRange, Transport};

/// A segment's, service's or external's name: a DNS label (lower-case letters, digits and inner hyphens, 1 to 63 bytes). A clone
/// shares the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let valid = (1..=63).contains(&text.len())
            && text.chars().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid {
            Ok(Self(text.into()))
        } else {
            Err("a name is 1 to 63 lower-case letters, digits and inner hyphens".to_owned())
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name within a segment: `shop/web`. Services and externals have such names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopedName {
    pub segment: Name,
    pub name: Name,
}

impl fmt::Display for ScopedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.segment, self.name)
    }
}

impl std::str::FromStr for ScopedName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (segment, name) = text
            .split_once('/')
            .ok_or_else(|| "a full name is `segment/name`".to_owned())?;
        Ok(Self {
            segment: segment.parse()?,
            name: name.parse()?,
        })
    }
}

/// A service's full name.
pub type ServiceId = ScopedName;

/// Where something stands in the policy directory; lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The path as it was given, for people.
    pub file: String,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A validated policy: every name in an edge exists, every edge stands in the segment that owns it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    pub services: BTreeMap<ServiceId, Service>,
    pub externals: BTreeMap<ScopedName, AddressSet>,
    /// One service to one service: lists and `*` are expanded.
    pub edges: BTreeSet<Edge>,
    /// What the policy's own `tests` say of it.
    pub tests: Vec<Test>,
}

/// What happens to a flow that no edge permits.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is dropped.
    #[default]
    Enforce,
    /// It passes and is reported, unless its other end enforces.
    Audit,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        })
    }
}

/// What a line of `tests` claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expectation {
    Reachable,
    Unreachable,
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reachable => "reachable",
            Self::Unreachable => "unreachable",
        })
    }
}

/// A line of `tests`: `web -> api:8080` under `reachable` or `unreachable`. At least one end is a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    pub from: Peer,
    pub to: Peer,
    pub ports: Ports,
    pub expected: Expectation,
    pub location: Location,
    /// The place as bytes of the file.
    pub range: Range<usize>,
}

impl fmt::Display for Test {
    /// `shop/web -> shop/api:8080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:{}", self.from, self.to, self.ports)
    }
}

/// A set of containers, chosen by selectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// A container belongs to the service when any of them matches; never empty.
    pub selectors: Vec<Selector>,
    /// Its own, or else its segment's.
    pub mode: Mode,
    pub location: Location,
}

/// One end of an edge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    Service(ServiceId),
    /// Any address outside this host's containers, the host itself excluded.
    World,
    /// The Docker host itself.
    Host,
    /// Addresses of a named external that are not this host's containers or the host.
    External(ScopedName),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(id) | Self::External(id) => write!(f, "{id}"),
            Self::World => f.write_str("world"),
            Self::Host => f.write_str("host"),
        }
    }
}

/// A declared right. At least one end is a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    pub from: Peer,
    pub to: Peer,
    /// Never empty.
    pub ports: BTreeSet<Ports>,
    /// The edge is there before this moment and not from it on; `None`: for good.
    pub until: Option<Timestamp>,
    pub why: Option<String>,
    pub location: Location,
}

impl Edge {
    /// Whether it has not ended yet.
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// One entry of an edge's `ports`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// `any`: every protocol and port.
    Any,
    /// `8080`, `53/udp`, `9000-9010/tcp`, `udp` (all of its ports).
    Transport(Transport, PortRange),
    /// `icmp` (every type) or `icmp/echo-request`; ICMPv6 for IPv6.
    Icmp(Option<IcmpType>),
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Transport(transport, range) if *range == PortRange::ALL => write!(f, "{transport}"),
            Self::Transport(transport, range) => write!(f, "{range}/{transport}"),
            Self::Icmp(None) => f.write_str("icmp"),
            Self::Icmp(Some(icmp)) => write!(f, "icmp/{icmp}"),
        }
    }
}

/// What a selector looks at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The container's name without the leading slash.
    pub name: &'a str,
    /// The image reference that the container was created from.
    pub image: &'a str,
    pub labels: &'a LiteMap<Arc<str>, Arc<str>>,
}
