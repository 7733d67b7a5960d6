//! Inventory over netlink: set elements in and out, named counters, and whether our base chains are hooked.
//!
//! In: [`ElementChange`]s. Out: one kernel transaction, or an error that names the change. Owner of the long-lived
//! netfilter socket.

mod counters;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, GenMessage, ListAttribute, NfTablesMessage, RuleAttribute,
    RuleMessage, SetElementAttribute, SetElementFlags, SetElementList, SetElementMessage, TableAttribute,
    TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterProtoFamily};
use nix::errno::Errno;
use sha2::{Digest, Sha256};

pub use self::counters::Counter;
#[cfg(any(test, feature = "testkit"))]
pub(super) use self::counters::parse_counter;
use super::keys::{self, WireKey};
use super::netlink::{
    BATCH_BYTES, BatchError, Netfilter, NetlinkError, Request, attribute, attributes, message, size,
    text_attribute, u32_attribute,
};
use crate::plan::ruleset::{
    ChainName, ElementAction, ElementChange, Hook, Key, KeyType, SetRef, TABLE, TableFamily,
};

/// Why elements could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum ElementsError {
    #[error("could not open the channel to nftables")]
    Open(#[source] NetlinkError),
    /// Nothing of the batch was applied.
    #[error("could not {change}")]
    Change {
        change: String,
        #[source]
        source: NetlinkError,
    },
    /// Nothing of the batch was applied.
    #[error("could not change {count} set elements in one transaction")]
    Batch {
        count: usize,
        #[source]
        source: NetlinkError,
    },
    #[error("could not list the elements of set {set}")]
    List {
        set: String,
        #[source]
        source: NetlinkError,
    },
    #[error("could not read the counters of the tables {TABLE}")]
    Counters(#[source] NetlinkError),
    #[error("could not read the number of the last transaction of nftables")]
    Generation(#[source] NetlinkError),
    #[error("could not read the chains and rules of table {family} {TABLE}")]
    Structure {
        family: &'static str,
        #[source]
        source: NetlinkError,
    },
    #[error("could not read the base chains of table {family} {TABLE}")]
    BaseChains {
        family: &'static str,
        #[source]
        source: NetlinkError,
    },
}

impl ElementsError {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<Errno> {
        self.cause().errno()
    }

    /// Whether the same call may well succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        self.cause().is_retryable()
    }

    fn cause(&self) -> &NetlinkError {
        match self {
            Self::Open(source)
            | Self::Change { source, .. }
            | Self::Batch { source, .. }
            | Self::List { source, .. }
            | Self::Counters(source)
            | Self::Generation(source)
            | Self::Structure { source, .. }
            | Self::BaseChains { source, .. } => source,
        }
    }
}

/// The long-lived channel to nftables.
#[derive(Debug)]
pub struct Elements {
    netfilter: Netfilter,
}

impl Elements {
    /// Opens the channel in the network namespace of the calling thread.
    pub fn open() -> Result<Self, ElementsError> {
        Netfilter::open()
            .map(|netfilter| Self { netfilter })
            .map_err(ElementsError::Open)
    }

    pub(super) fn netfilter(&mut self) -> &mut Netfilter {
        &mut self.netfilter
    }

    /// Applies the changes in order, as one transaction. Adding an element that exists is no error, unless it is a
    /// map's and goes elsewhere (`EEXIST`: delete it first, in the same batch); deleting a missing one is (`ENOENT`).
    ///
    /// Past 16 MiB of messages (some 130,000 changes) the kernel would have to hold them in one piece: such a batch
    /// is cut, and each part is a transaction of its own.
    pub fn commit(&mut self, changes: &[ElementChange]) -> Result<(), ElementsError> {
        let requests: Vec<Request> = changes.iter().map(request).collect();
        let mut start = 0;
        while let Some(rest) = requests.get(start..).filter(|rest| !rest.is_empty()) {
            let part = rest.get(..part_length(rest)).unwrap_or(rest);
            self.netfilter
                .batch(part)
                .map_err(|BatchError { index, source }| {
                    match index.and_then(|index| changes.get(start + index)) {
                        Some(change) => ElementsError::Change {
                            change: describe(change),
                            source,
                        },
                        None => ElementsError::Batch {
                            count: part.len(),
                            source,
                        },
                    }
                })?;
            start += part.len();
        }
        Ok(())
    }

    /// A set's elements as the kernel holds them: for verdict maps with the chain that `goto` leads to.
    pub fn list(
        &mut self,
        set: &SetRef,
        key_type: KeyType,
    ) -> Result<BTreeMap<Key, Option<ChainName>>, ElementsError> {
        let fail = |source| ElementsError::List {
            set: set_name(set),
            source,
        };
        let wanted = elements_message(set, Vec::new());
        let wanted = message(family(set.table), NfTablesMessage::GetSetElement(wanted));
        let parts = self
            .netfilter
            .dump(&wanted, |payload| Some(listed_elements(payload)))
            .map_err(fail)?;
        let listed: Vec<Listed> = parts.into_iter().flatten().collect();
        let read = match key_type {
            KeyType::Ipv4Nets | KeyType::Ipv6Nets => {
                let edges: Vec<_> = listed
                    .into_iter()
                    .map(|element| (element.key, element.is_end))
                    .collect();
                keys::networks(key_type, &edges).map(|nets| nets.into_keys().map(|net| (net, None)).collect())
            }
            _ => listed
                .into_iter()
                .map(|element| keys::decode(key_type, &element.key).map(|key| (key, element.target)))
                .collect(),
        };
        read.ok_or_else(|| fail(NetlinkError::Malformed))
    }

    /// The chains of our tables that are hooked into the packet path, with hook and priority. A chain that lost its
    /// hook, or whose table is dormant, is not among them.
    pub fn base_chains(&mut self) -> Result<BTreeMap<(TableFamily, ChainName), Hook>, ElementsError> {
        let mut hooked = BTreeMap::new();
        for table in TableFamily::ALL {
            let fail = |source| ElementsError::BaseChains {
                family: table.as_str(),
                source,
            };
            if !self.table_is_awake(table).map_err(fail)? {
                continue;
            }
            let wanted = chain_request(table, None);
            let chains = self.netfilter.dump(&wanted, parse_base_chain).map_err(fail)?;
            hooked.extend(chains.into_iter().map(|(chain, hook)| ((table, chain), hook)));
        }
        Ok(hooked)
    }

    /// A digest of our tables' chains and rules, as the kernel holds them: each chain's hook and policy, each rule's
    /// handle and expressions, in their order. Elements and counters' values are no part of it.
    pub fn structure(&mut self) -> Result<StructureDigest, ElementsError> {
        let mut digest = StructureDigest::default();
        for table in TableFamily::ALL {
            let fail = structure_error(table);
            if self.table_is_awake(table).map_err(fail)? {
                digest.awake.insert(table);
            }
            let chains = self.netfilter.dump(&chain_request(table, None), chain_identity);
            let mut read: BTreeMap<String, Sha256> = chains.map_err(fail)?.into_iter().collect();
            let rules = self.netfilter.dump(&rules_request(table, None), |payload| {
                const NFTA_RULE_CHAIN: u16 = 2;
                let chain = text_attribute(payload, NFTA_RULE_CHAIN)?.to_owned();
                Some((chain, our_attributes(payload, &RULE_IDENTITY)?))
            });
            for (chain, rule) in rules.map_err(fail)? {
                // One without its chain was made between the two listings.
                read.entry(chain).or_default().update(rule);
            }
            let read = read.into_iter();
            let read = read.map(|(name, chain)| ((table, name.as_str().into()), chain.finalize().into()));
            digest.chains.extend(read);
        }
        Ok(digest)
    }

    /// Brings a digest up to date for these chains, as [`Self::structure`] would read them.
    pub fn structure_of(
        &mut self,
        chains: &BTreeSet<(TableFamily, ChainName)>,
        digest: &mut StructureDigest,
    ) -> Result<(), ElementsError> {
        for (table, name) in chains {
            let fail = structure_error(*table);
            let asked = self
                .netfilter
                .get(&chain_request(*table, Some(name)), chain_identity);
            let mut chain = match asked {
                Ok((_, chain)) => chain,
                Err(NetlinkError::Refused(Errno::ENOENT)) => {
                    digest.chains.remove(&(*table, name.clone()));
                    continue;
                }
                Err(error) => return Err(fail(error)),
            };
            let rules = self
                .netfilter
                .dump(&rules_request(*table, Some(name)), |payload| {
                    our_attributes(payload, &RULE_IDENTITY)
                });
            rules.map_err(fail)?.iter().for_each(|rule| chain.update(rule));
            let chain = chain.finalize().into();
            digest.chains.insert((*table, name.clone()), chain);
        }
        Ok(())
    }

    /// The number of the last transaction of anybody.
    pub fn generation(&mut self) -> Result<u32, ElementsError> {
        const NFTA_GEN_ID: u16 = 1;
        let wanted = NfTablesMessage::GetGen(GenMessage {
            attributes: Vec::new(),
        });
        self.netfilter
            .get(&message(NetfilterProtoFamily::Unspec, wanted), |payload| {
                u32_attribute(payload, NFTA_GEN_ID)
            })
            .map_err(ElementsError::Generation)
    }

    /// The number under which the kernel announces the transactions of this channel.
    pub fn port(&self) -> u32 {
        self.netfilter.port()
    }

    /// Whether our table exists and its base chains are registered.
    fn table_is_awake(&mut self, table: TableFamily) -> Result<bool, NetlinkError> {
        const NFTA_TABLE_FLAGS: u16 = 2;
        const NFT_TABLE_F_DORMANT: u32 = 1;
        let name = TableAttribute::Name(TABLE.to_owned());
        let wanted = NfTablesMessage::GetTable(TableMessage {
            attributes: vec![name],
        });
        let flags = self.netfilter.get(&message(family(table), wanted), |payload| {
            Some(u32_attribute(payload, NFTA_TABLE_FLAGS).unwrap_or(0))
        });
        match flags {
            Ok(flags) => Ok(flags & NFT_TABLE_F_DORMANT == 0),
            Err(NetlinkError::Refused(Errno::ENOENT)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What our tables' chains and rules are, in 32 bytes for each chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StructureDigest {
    awake: BTreeSet<TableFamily>,
    chains: BTreeMap<(TableFamily, ChainName), [u8; 32]>,
}

/// `NFTA_CHAIN_HANDLE`, `_NAME`, `_HOOK`, `_POLICY`, `_TYPE`, `_FLAGS`
const CHAIN_IDENTITY: [u16; 6] = [2, 3, 4, 5, 7, 10];
/// `NFTA_RULE_CHAIN`, `_HANDLE`, `_EXPRESSIONS`, `_USERDATA`
const RULE_IDENTITY: [u16; 4] = [2, 3, 4, 7];

/// The attributes that make an object of ours what it is, with their numbers and lengths; `None` for another table's.
fn our_attributes(payload: &[u8], wanted: &[u16]) -> Option<Vec<u8>> {
    const TABLE_NAME: u16 = 1;
    text_attribute(payload, TABLE_NAME).filter(|table| *table == TABLE)?;
    let mut bytes = Vec::new();
    for (kind, value) in attributes(payload).filter(|(kind, _)| wanted.contains(kind)) {
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value.len().to_ne_bytes());
        bytes.extend(value);
    }
    Some(bytes)
}

/// A chain of ours, without its rules yet.
fn chain_identity(payload: &[u8]) -> Option<(String, Sha256)> {
    const NFTA_CHAIN_NAME: u16 = 3;
    let digest = Sha256::new_with_prefix(our_attributes(payload, &CHAIN_IDENTITY)?);
    Some((text_attribute(payload, NFTA_CHAIN_NAME)?.to_owned(), digest))
}

/// One chain of our table, or all chains of its family: the kernel cannot filter a listing of chains by table.
fn chain_request(table: TableFamily, name: Option<&ChainName>) -> NetfilterMessage {
    let name = name.map(|name| {
        [
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(name.as_str().to_owned()),
        ]
    });
    let attributes = name.into_iter().flatten().collect();
    message(
        family(table),
        NfTablesMessage::GetChain(ChainMessage { attributes }),
    )
}

/// The rules of one chain, or of all.
fn rules_request(table: TableFamily, chain: Option<&ChainName>) -> NetfilterMessage {
    let chain = chain.map(|chain| RuleAttribute::Chain(chain.as_str().to_owned()));
    let attributes = [RuleAttribute::Table(TABLE.to_owned())].into_iter().chain(chain);
    message(
        family(table),
        NfTablesMessage::GetRule(RuleMessage {
            attributes: attributes.collect(),
        }),
    )
}

fn structure_error(table: TableFamily) -> impl Fn(NetlinkError) -> ElementsError + Copy {
    move |source| ElementsError::Structure {
        family: table.as_str(),
        source,
    }
}

/// How many requests fit into one batch; at least one.
fn part_length(requests: &[Request]) -> usize {
    let mut bytes = 0;
    let fitting = requests.iter().take_while(|(message, _)| {
        bytes += size(message);
        bytes <= BATCH_BYTES
    });
    fitting.count().max(1)
}

/// The netlink family of a table.
pub(super) fn family(table: TableFamily) -> NetfilterProtoFamily {
    match table {
        TableFamily::Inet => NetfilterProtoFamily::Inet,
        TableFamily::Bridge => NetfilterProtoFamily::Bridge,
    }
}

fn elements_message(set: &SetRef, elements: Vec<ListAttribute<SetElementAttribute>>) -> SetElementMessage {
    let mut attributes = vec![
        SetElementList::Table(TABLE.to_owned()),
        SetElementList::Set(set.set.as_str().to_owned()),
    ];
    if !elements.is_empty() {
        attributes.push(SetElementList::Elements(elements));
    }
    SetElementMessage { attributes }
}

/// `add element` or `delete element`.
fn request(change: &ElementChange) -> Request {
    use SetElementAttribute as Attribute;
    let key = |bytes| Attribute::Key(DataAttribute::Value(bytes));
    let mut elements = match keys::encode(&change.key) {
        WireKey::Exact(bytes) => vec![vec![key(bytes)]],
        WireKey::Interval(first, after) => {
            let end = after.map(|after| vec![key(after), Attribute::Flags(SetElementFlags::IntervalEnd)]);
            std::iter::once(vec![key(first)]).chain(end).collect()
        }
    };
    if let (ElementAction::Add(Some(chain)), Some(element)) = (&change.action, elements.first_mut()) {
        let verdict = vec![
            VerdictAttribute::Code(Verdict::Goto),
            VerdictAttribute::Chain(chain.as_str().to_owned()),
        ];
        element.push(Attribute::Data(DataAttribute::Verdict(verdict)));
    }
    let elements = elements.into_iter().map(ListAttribute::Element).collect();
    let inner = elements_message(&change.set, elements);
    let family = family(change.set.table);
    match change.action {
        ElementAction::Add(_) => (
            message(family, NfTablesMessage::NewSetElement(inner)),
            NLM_F_CREATE,
        ),
        ElementAction::Delete => (message(family, NfTablesMessage::DeleteSetElement(inner)), 0),
    }
}

fn set_name(set: &SetRef) -> String {
    format!("{} {TABLE} {}", set.table.as_str(), set.set)
}

/// What the change does, for an error's text.
fn describe(change: &ElementChange) -> String {
    let (key, set) = (KeyText(&change.key), set_name(&change.set));
    match &change.action {
        ElementAction::Add(None) => format!("add {key} to set {set}"),
        ElementAction::Add(Some(chain)) => format!("add {key} : goto {chain} to map {set}"),
        ElementAction::Delete => format!("delete {key} from {set}"),
    }
}

struct KeyText<'a>(&'a Key);

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Key::Ipv4(address) => address.fmt(f),
            Key::Ipv6(address) => address.fmt(f),
            Key::Net(net) => net.fmt(f),
            Key::IfName(name) => name.fmt(f),
            Key::IfIndex(index) => write!(f, "interface {index}"),
            Key::Mac(mac) => mac.fmt(f),
            Key::Binding4(index, mac, address) => write!(f, "interface {index} . {mac} . {address}"),
            Key::Binding6(index, mac, address) => write!(f, "interface {index} . {mac} . {address}"),
            Key::Service4(address, transport, port) => write!(f, "{address} . {transport} . {port}"),
            Key::Service6(address, transport, port) => write!(f, "{address} . {transport} . {port}"),
            Key::HostPort(family, transport, port) => {
                write!(f, "IPv{} . {transport} . {port}", family.digit())
            }
        }
    }
}

/// An element as the kernel lists it.
pub(super) struct Listed {
    pub(super) key: Vec<u8>,
    is_end: bool,
    target: Option<ChainName>,
}

pub(super) fn listed_elements(payload: &[u8]) -> Vec<Listed> {
    const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    let list = attribute(payload, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    attributes(list)
        .filter_map(|(_, element)| listed_element(element))
        .collect()
}

fn listed_element(element: &[u8]) -> Option<Listed> {
    const NFTA_SET_ELEM_KEY: u16 = 1;
    const NFTA_SET_ELEM_DATA: u16 = 2;
    const NFTA_SET_ELEM_FLAGS: u16 = 3;
    const NFTA_DATA_VALUE: u16 = 1;
    const NFTA_DATA_VERDICT: u16 = 2;
    const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
    let key = attribute(attribute(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?.to_vec();
    let flags = u32_attribute(element, NFTA_SET_ELEM_FLAGS).unwrap_or(0);
    let verdict = attribute(element, NFTA_SET_ELEM_DATA).and_then(|data| attribute(data, NFTA_DATA_VERDICT));
    Some(Listed {
        key,
        is_end: flags & NFT_SET_ELEM_INTERVAL_END != 0,
        target: verdict.and_then(goto_target),
    })
}

/// The chain of a `goto` verdict; other verdicts are not ours.
fn goto_target(verdict: &[u8]) -> Option<ChainName> {
    const NFTA_VERDICT_CODE: u16 = 1;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    let is_goto = u32_attribute(verdict, NFTA_VERDICT_CODE) == Some(Verdict::Goto.into());
    text_attribute(verdict, NFTA_VERDICT_CHAIN)
        .filter(|_| is_goto)
        .map(ChainName::from)
}

/// The kernel cannot filter a listing of chains by table: what is not ours is passed over at its first attribute.
pub(super) fn parse_base_chain(payload: &[u8]) -> Option<(ChainName, Hook)> {
    const NFTA_CHAIN_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    const NFTA_CHAIN_HOOK: u16 = 4;
    const NFTA_HOOK_HOOKNUM: u16 = 1;
    const NFTA_HOOK_PRIORITY: u16 = 2;
    text_attribute(payload, NFTA_CHAIN_TABLE).filter(|table| *table == TABLE)?;
    let hook = attribute(payload, NFTA_CHAIN_HOOK)?;
    let point = keys::hook(u32_attribute(hook, NFTA_HOOK_HOOKNUM)?)?;
    let priority = u32_attribute(hook, NFTA_HOOK_PRIORITY)?.cast_signed();
    Some((
        ChainName::from(text_attribute(payload, NFTA_CHAIN_NAME)?),
        Hook { point, priority },
    ))
}
