//! One file as written: every part that could be read, each with its place. Names are not looked up yet.

use jiff::Timestamp;

use super::text::{Site, Sited};
use super::{Expectation, Mode, Name, Ports, Selector};

/// What a file declares. Parts that could not be read are missing here and are faults already.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) segment: Option<Sited<Name>>,
    pub(super) mode: Option<Sited<Mode>>,
    pub(super) services: Vec<ServiceEntry>,
    pub(super) externals: Vec<ExternalEntry>,
    pub(super) allow: Vec<AllowEntry>,
    pub(super) tests: Vec<Sited<Fact>>,
}

#[derive(Debug)]
pub(super) struct ServiceEntry {
    pub(super) name: Sited<Name>,
    pub(super) selectors: Vec<Sited<Selector>>,
    pub(super) mode: Option<Mode>,
}

#[derive(Debug)]
pub(super) struct ExternalEntry {
    pub(super) name: Sited<Name>,
    pub(super) addresses: crate::net::AddressSet,
    pub(super) cidrs: Vec<Sited<ipnet::IpNet>>,
}

#[derive(Debug)]
pub(super) struct AllowEntry {
    pub(super) site: Site,
    pub(super) from: Vec<Sited<PeerText>>,
    pub(super) to: Vec<Sited<PeerText>>,
    pub(super) ports: Vec<Sited<Ports>>,
    pub(super) until: Option<Sited<Timestamp>>,
    pub(super) why: Option<String>,
}

/// One end of an edge as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PeerText {
    World,
    Host,
    /// `*`: every service of the segment.
    Every,
    /// A service or external of the segment.
    Here(Name),
    /// A service with its segment.
    In(Name, Name),
}

/// A line of `tests`.
#[derive(Debug)]
pub(super) struct Fact {
    pub(super) from: PeerText,
    pub(super) to: PeerText,
    pub(super) ports: Ports,
    pub(super) expected: Expectation,
}
