//! The two proofs of IPv6 neighbour advertisements, which nft 1.0.6 has no words for (`icmpv6 taddr`).
//!
//! In: the names of a chain that is reached for neighbour advertisements only, and whose own content is a final `drop`.
//! Out: in that chain, at the head and in this order, put there in one transaction:
//!
//! ```text
//! meta iif . ether saddr . @th,64,128 @bound6 accept     # the advertised address is proven to be the sender's
//! @th,64,128 @guarded6 goto forged                       # guarded, and not the sender's
//! goto other                                             # about foreign addresses: not ours to judge
//! ```

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta, MetaKey,
    NfTablesMessage, Payload, Register, RuleAttribute, RuleMessage, Verdict, VerdictAttribute,
};

use super::elements::{Elements, family};
use super::netlink::{NetlinkError, Request, attribute, message, u64_attribute};
use crate::plan::ruleset::{ChainName, SetName, TABLE, TableFamily};

/// The parts of the bridge table that the rules tie together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisements {
    /// Where the rules go.
    pub chain: ChainName,
    /// The set of proven `iface_index . ether_addr . ipv6_addr`.
    pub bound: SetName,
    /// The set of guarded IPv6 networks.
    pub guarded: SetName,
    /// Where advertisements about foreign addresses continue.
    pub others: ChainName,
    /// Where those about a guarded address end that is not the sender's.
    pub forged: ChainName,
}

impl Default for Advertisements {
    fn default() -> Self {
        Self {
            chain: "advert".into(),
            bound: "bound6".into(),
            guarded: "guarded6".into(),
            others: "other".into(),
            forged: "forged".into(),
        }
    }
}

/// Why the rules could not be put in place; the chain is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AdvertisementError {
    #[error("could not read the rules of chain {chain} in table bridge {TABLE}")]
    Read {
        chain: ChainName,
        #[source]
        source: NetlinkError,
    },
    #[error("could not put the neighbour advertisement rules into chain {chain} of table bridge {TABLE}")]
    Insert {
        chain: ChainName,
        #[source]
        source: NetlinkError,
    },
}

impl AdvertisementError {
    /// Whether the same call may well succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Insert { source, .. } => source.is_retryable(),
        }
    }
}

/// Puts the rules at the head of the chain; returns whether anything changed. Rules of an earlier call that are not
/// all there, or not first, are replaced in the same transaction.
pub fn insert_advertisement_rules(
    elements: &mut Elements,
    names: &Advertisements,
) -> Result<bool, AdvertisementError> {
    let chain = || names.chain.clone();
    let present = elements
        .netfilter()
        .dump(&rules_request(names), parse_rule)
        .map_err(|source| AdvertisementError::Read {
            chain: chain(),
            source,
        })?;
    let wanted = rules(names);
    let in_place = present.len() >= wanted.len()
        && wanted
            .iter()
            .zip(&present)
            .all(|(wanted, present)| wanted.user_data() == present.user_data);
    if in_place {
        return Ok(false);
    }
    let ours = |user_data: &[u8]| wanted.iter().any(|rule| rule.user_data() == user_data);
    let stale = present.iter().filter(|rule| ours(&rule.user_data));
    let mut batch: Vec<Request> = stale
        .map(|rule| (delete_request(names, rule.handle), 0))
        .collect();
    // Each goes to the head: the last first.
    batch.extend(
        wanted
            .iter()
            .rev()
            .map(|rule| (insert_request(names, rule), NLM_F_CREATE)),
    );
    let inserted = elements.netfilter().batch(&batch);
    inserted
        .map(|()| true)
        .map_err(|error| AdvertisementError::Insert {
            chain: chain(),
            source: error.source,
        })
}

struct NewRule {
    comment: &'static str,
    expressions: Vec<Expressions>,
}

impl NewRule {
    /// The comment in nft's form: type 0 (`NFTNL_UDATA_RULE_COMMENT`), length, text with its final zero byte.
    fn user_data(&self) -> Vec<u8> {
        let length = u8::try_from(self.comment.len() + 1).unwrap_or(u8::MAX);
        [&[0, length], self.comment.as_bytes(), &[0]].concat()
    }
}

const NF_ACCEPT: u32 = 1;
/// `NFT_PAYLOAD_LL_HEADER`: the sender's address is behind the receiver's.
const LINK_HEADER: u32 = 0;
const ETHER_SOURCE: u32 = 6;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`: type, code, checksum, flags, then the target (RFC 4861, 4.4).
const TRANSPORT_HEADER: u32 = 2;
const TARGET: u32 = 8;

/// The rules, in their final order.
fn rules(names: &Advertisements) -> [NewRule; 3] {
    use Register::{Reg32_00, Reg32_01, Reg32_03};
    [
        // meta iif . ether saddr . @th,64,128 @bound6 accept
        NewRule {
            comment: "advertised by its owner",
            expressions: vec![
                Expressions::Meta(vec![Meta::Key(MetaKey::Iif), Meta::DestinationRegister(Reg32_00)]),
                // Six bytes take two registers; the kernel clears the rest of the second.
                payload(LINK_HEADER, ETHER_SOURCE, 6, Reg32_01),
                payload(TRANSPORT_HEADER, TARGET, 16, Reg32_03),
                lookup(&names.bound, Reg32_00),
                verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))]),
            ],
        },
        // @th,64,128 @guarded6 goto forged
        NewRule {
            comment: "advertised by another",
            expressions: vec![
                payload(TRANSPORT_HEADER, TARGET, 16, Reg32_00),
                lookup(&names.guarded, Reg32_00),
                goto(&names.forged),
            ],
        },
        // goto other
        NewRule {
            comment: "advertises a foreign address",
            expressions: vec![goto(&names.others)],
        },
    ]
}

/// Loads a part of the packet.
fn payload(base: u32, offset: u32, length: u32, register: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// Goes on if the set holds what is in the registers.
fn lookup(set: &SetName, register: Register) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(set.as_str().to_owned()),
        Lookup::SourceRegister(register),
    ])
}

fn goto(chain: &ChainName) -> Expressions {
    verdict(vec![
        VerdictAttribute::Code(Verdict::Goto),
        VerdictAttribute::Chain(chain.as_str().to_owned()),
    ])
}

fn verdict(verdict: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
}

fn location(names: &Advertisements) -> Vec<RuleAttribute> {
    vec![
        RuleAttribute::Table(TABLE.to_owned()),
        RuleAttribute::Chain(names.chain.as_str().to_owned()),
    ]
}

/// Filtered by table and chain in the kernel.
fn rules_request(names: &Advertisements) -> NetfilterMessage {
    let attributes = location(names);
    message(
        family(TableFamily::Bridge),
        NfTablesMessage::GetRule(RuleMessage { attributes }),
    )
}

fn delete_request(names: &Advertisements, handle: u64) -> NetfilterMessage {
    let mut attributes = location(names);
    attributes.push(RuleAttribute::Handle(handle));
    message(
        family(TableFamily::Bridge),
        NfTablesMessage::DeleteRule(RuleMessage { attributes }),
    )
}

/// Without `NLM_F_APPEND` and without a position: at the head.
fn insert_request(names: &Advertisements, rule: &NewRule) -> NetfilterMessage {
    let mut attributes = location(names);
    let expressions: Vec<ListAttribute<ExpressionAttribute>> = rule
        .expressions
        .iter()
        .cloned()
        .map(ListAttribute::from)
        .collect();
    attributes.push(RuleAttribute::Expressions(expressions));
    attributes.push(RuleAttribute::UserData(rule.user_data()));
    message(
        family(TableFamily::Bridge),
        NfTablesMessage::NewRule(RuleMessage { attributes }),
    )
}

/// A rule that is there.
struct PresentRule {
    handle: u64,
    user_data: Vec<u8>,
}

fn parse_rule(payload: &[u8]) -> Option<PresentRule> {
    const NFTA_RULE_HANDLE: u16 = 3;
    const NFTA_RULE_USERDATA: u16 = 7;
    Some(PresentRule {
        handle: u64_attribute(payload, NFTA_RULE_HANDLE)?,
        user_data: attribute(payload, NFTA_RULE_USERDATA)
            .unwrap_or_default()
            .to_vec(),
    })
}
