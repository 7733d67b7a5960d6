//! The ruleset as our own small representation: what `kernel::nft` renders to nftables and `plan::eval` interprets.
//!
//! *Structure* is tables, chains, sets' declarations, counters and rules: a function of the policy. *Inventory* is the
//! sets' [`Elements`]: a function of the containers. Every statement carries its nft text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::net::{AddressSet, Family, IfName, Mac, PortRange, Transport};

/// The name of both our tables.
pub const TABLE: &str = "cofferdam";

/// What the prefix of everything that our rules log begins with; the name of the counter follows.
pub const LOG_PREFIX: &str = "cofferdam ";

/// Which of our two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableFamily {
    /// `table inet cofferdam`: who may open what.
    Inet,
    /// `table bridge cofferdam`: who is who.
    Bridge,
}

impl TableFamily {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Inet, Self::Bridge];

    /// The family's name in nft.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }
}

/// Names that stand in many places: a clone shares the text.
macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self { Self(text.into()) }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    )+ };
}

names! {
    /// A chain's name within its table.
    ChainName,
    /// A set's or map's name within its table.
    SetName,
    /// A named counter.
    CounterName,
}

/// Both tables' structure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    pub tables: BTreeMap<TableFamily, Table>,
}

/// One table's structure.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Chains that are the same before and after a change are shared.
    pub chains: BTreeMap<ChainName, Arc<Chain>>,
    pub sets: BTreeMap<SetName, SetSpec>,
    pub counters: BTreeSet<CounterName>,
}

/// A chain: hooked (a base chain, policy accept) or reached by goto and jump.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// Where a base chain of type `filter` is hooked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    pub point: HookPoint,
    pub priority: i32,
}

/// The kernel's hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A set or a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetSpec {
    pub key: KeyType,
    pub kind: SetKind,
    /// The most elements it can hold. The kernel allocates a sized hash table at once (16 bytes and more for each
    /// element), so only the few global sets have one; the maps of each identity grow with their elements.
    pub size: Option<u32>,
}

/// What a set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKind {
    /// Keys alone, put in and taken out by us.
    Plain,
    /// Each element carries a verdict (`goto` a chain): `type KEY : verdict`.
    Verdicts,
    /// Filled by [`Statement::Share`], one element for each that was seen in the last ten seconds: `flags dynamic, timeout`.
    Shares,
}

/// What a set's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyType {
    /// `ipv4_addr`
    Ipv4,
    /// `ipv6_addr`
    Ipv6,
    /// `ipv4_addr; flags interval`
    Ipv4Nets,
    /// `ipv6_addr; flags interval`
    Ipv6Nets,
    /// `ifname`
    IfName,
    /// `iface_index`
    IfIndex,
    /// `ether_addr`
    Mac,
    /// `iface_index . ether_addr . ipv4_addr`
    Binding4,
    /// `iface_index . ether_addr . ipv6_addr`
    Binding6,
    /// `ipv4_addr . inet_proto . inet_service`
    Service4,
    /// `ipv6_addr . inet_proto . inet_service`
    Service6,
    /// `nf_proto . inet_proto . inet_service`
    HostPort,
}

/// An element's key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Ipv4(Ipv4Addr),
    Ipv6(Ipv6Addr),
    /// For both kinds of interval sets; the ranges of one set never overlap.
    Net(IpNet),
    IfName(IfName),
    IfIndex(u32),
    Mac(Mac),
    Binding4(u32, Mac, Ipv4Addr),
    Binding6(u32, Mac, Ipv6Addr),
    Service4(Ipv4Addr, Transport, u16),
    Service6(Ipv6Addr, Transport, u16),
    HostPort(Family, Transport, u16),
}

impl Key {
    /// The one address that the element is about.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Ipv4(address) | Self::Binding4(_, _, address) | Self::Service4(address, _, _) => {
                Some(IpAddr::V4(*address))
            }
            Self::Ipv6(address) | Self::Binding6(_, _, address) | Self::Service6(address, _, _) => {
                Some(IpAddr::V6(*address))
            }
            Self::Net(_) | Self::IfName(_) | Self::IfIndex(_) | Self::Mac(_) | Self::HostPort(..) => None,
        }
    }
}

/// One set, across both tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetRef {
    pub table: TableFamily,
    pub set: SetName,
}

/// The elements of all sets: key, and for verdict maps the chain to go to.
pub type Elements = BTreeMap<SetRef, BTreeMap<Key, Option<ChainName>>>;

/// One change of one element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementChange {
    pub set: SetRef,
    pub key: Key,
    pub action: ElementAction,
}

/// What happens to an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementAction {
    /// Into a plain set (`None`) or a verdict map.
    Add(Option<ChainName>),
    Delete,
}

/// A rule: statements in order; a match that fails ends it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub statements: Vec<Statement>,
    pub comment: Option<String>,
}

/// In or out of the packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// `iifname`, `iif`, `saddr`
    Source,
    /// `oifname`, `oif`, `daddr`
    Destination,
}

/// What an interface's name is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interfaces {
    /// `@set` of [`KeyType::IfName`]
    In(SetName),
    /// `!= @set`
    NotIn(SetName),
    /// `{ "docker0", "br-*" }`: exact names, or a prefix and `*`.
    Like(Vec<String>),
}

/// What an address is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// `@set`
    In(SetName),
    /// `{ 198.51.100.0-198.51.100.63, … }`: the ranges of the statement's family; never empty.
    Ranges(AddressSet),
}

/// Where in an Ethernet frame a proof of identity is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindingSource {
    /// `meta iif . ether saddr . ip saddr` (or `ip6 saddr`)
    Sender(Family),
    /// `meta iif . ether saddr . arp saddr ip`
    ArpFrame,
    /// `meta iif . arp saddr ether . arp saddr ip`
    ArpBody,
    /// `meta oif . ether daddr . ip daddr` (or `ip6 daddr`)
    Receiver(Family),
}

/// Of whom a share is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharer {
    /// `ether saddr`: the container that sent it, on a guarded bridge.
    Sender,
    /// `meta oif`: the network that it is sent to; 0 where that is the host.
    Receiver,
    /// `meta iif`: the bridge's port.
    Port,
}

/// The EtherTypes that the bridge table tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EtherType {
    /// `ip`, 0x0800
    Ip,
    /// `arp`, 0x0806
    Arp,
    /// `ip6`, 0x86dd
    Ip6,
}

/// One statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// `iifname @guarded`, `oifname != @open`, `iifname { "docker0", "br-*" }`
    Interface(Side, Interfaces),
    /// `meta iif @ports`, `meta oif @ports`
    Port(Side, SetName),
    /// `ip saddr @guarded4`, `ip6 daddr { … }`
    Address(Side, Family, Addresses),
    /// `ip saddr . meta l4proto . th dport @hairpin4`
    Service(Side, Family, SetName),
    /// `meta nfproto . meta l4proto . th dport @carried`
    HostPort(SetName),
    /// `meta skuid 0`: the host's own packet, sent by a process of root.
    SentByRoot,
    /// `arp saddr ip @guarded4`, `arp daddr ip @guarded4`
    ArpAddress(Side, SetName),
    /// `ether saddr @macs`
    EtherSource(SetName),
    /// `meta iif . ether saddr . ip saddr @bound4`
    Binding(BindingSource, SetName),
    /// `ether type arp`
    EtherType(EtherType),
    /// `ether type vmap { ip : goto a, arp : goto b }`
    EtherTypeMap(BTreeMap<EtherType, ChainName>),
    /// `ct state vmap { established : goto CHAIN, related : jump CHAIN, invalid : drop }`
    ConnectionState {
        established: ChainName,
        related: ChainName,
    },
    /// `ct status dnat`: its destination is not the one that it was sent to.
    Translated,
    /// `ip daddr vmap @into4`: goes to the element's chain; no element: the next rule.
    AddressMap(Side, Family, SetName),
    /// `tcp dport 8080`, `meta l4proto . th dport { tcp . 8080, udp . 53-60 }`; never empty.
    Ports(BTreeSet<(Transport, PortRange)>),
    /// `meta l4proto icmp` (or `ipv6-icmp`) where `None`, `icmp type { 8 }` (or `icmpv6 type`) where given, as numbers.
    Icmp(Family, Option<BTreeSet<u8>>),
    /// `ip6 hoplimit 255`: no router has touched it (RFC 4861), the host included.
    OnLink,
    /// `meta l4proto 2`
    Protocol(u8),
    /// `meta time < "2026-12-01 00:00:00"`, in whole seconds: the kernel itself ends what has an end.
    Before(Timestamp),
    /// `meta mark & BITS != 0`
    Stamped(u32),
    /// `meta mark set meta mark | BITS`
    Stamp(u32),
    /// `counter name "e_…"`
    Counter(CounterName),
    /// `update @senders { ether saddr limit rate N/second burst N packets }`: goes on while this one has not had more than its share.
    Share {
        of: Sharer,
        set: SetName,
        per_second: u32,
        burst: u32,
    },
    /// `log prefix "…" group N snaplen 128`
    Log {
        prefix: String,
        group: u16,
    },
    Accept,
    Drop,
    Goto(ChainName),
    Jump(ChainName),
}

/// One step of a structure transaction; the steps of one transaction are applied in order, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start from nothing: `add`, `delete`, `add` of both tables.
    ResetTables,
    /// Remove both tables, whether or not they exist.
    DeleteTables,
    AddCounter(TableFamily, CounterName),
    AddSet(SetRef, SetSpec),
    AddChain(TableFamily, ChainName, Option<Hook>),
    /// Remove a chain's rules, so that new ones can be added.
    FlushChain(TableFamily, ChainName),
    /// Append a rule.
    AddRule(TableFamily, ChainName, Rule),
    Element(ElementChange),
    DeleteChain(TableFamily, ChainName),
    DeleteSet(SetRef),
    DeleteCounter(TableFamily, CounterName),
}

impl Step {
    /// The chain that is there or not, or has other rules, afterwards. Whoever resets all tables knows that of all chains.
    pub fn chain(&self) -> Option<(TableFamily, &ChainName)> {
        match self {
            Self::AddChain(table, name, _)
            | Self::FlushChain(table, name)
            | Self::AddRule(table, name, _)
            | Self::DeleteChain(table, name) => Some((*table, name)),
            Self::ResetTables
            | Self::DeleteTables
            | Self::AddCounter(..)
            | Self::AddSet(..)
            | Self::Element(_)
            | Self::DeleteSet(_)
            | Self::DeleteCounter(..) => None,
        }
    }
}
