//! One statement of a rule in the `nftables` crate's types: small constructors, the nft text above each.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use nftables::expr::{
    BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Range, SetItem,
};
use nftables::stmt::{Counter, JumpTarget, Log, Mangle, Match, Operator, Statement as Nft, VerdictMap};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::net::{AddressSet, Family, PortRange, Transport};
use crate::plan::ruleset::{
    Addresses, BindingSource, ChainName, EtherType, Interfaces, SetName, Sharer, Side, Statement,
};

/// The bytes of a packet that a log message carries: enough for every header.
const SNAPLEN: u32 = 128;

/// A statement as the text of its JSON.
///
/// # Errors
/// None that is known: everything has text keys.
pub(super) fn statement(statement: &Statement) -> serde_json::Result<Box<RawValue>> {
    let typed = match statement {
        Statement::Before(end) => return to_raw_value(&before(*end)),
        Statement::Share {
            of,
            set,
            per_second,
            burst,
        } => return to_raw_value(&share(*of, set, *per_second, *burst)),
        Statement::Interface(side, interfaces) => interface(*side, interfaces),
        Statement::Port(side, set) => equal(meta(side_of(*side, MetaKey::Iif, MetaKey::Oif)), in_set(set)),
        Statement::Address(side, family, addresses) => address(*side, *family, addresses),
        Statement::ArpAddress(side, set) => equal(
            payload("arp", side_of(*side, "saddr ip", "daddr ip")),
            in_set(set),
        ),
        Statement::Service(side, family, set) => equal(service(*side, *family), in_set(set)),
        Statement::HostPort(set) => equal(host_port(), in_set(set)),
        Statement::SentByRoot => equal(meta(MetaKey::Skuid), Expression::Number(0)),
        Statement::EtherSource(set) => equal(payload("ether", "saddr"), in_set(set)),
        Statement::Binding(source, set) => equal(binding(*source), in_set(set)),
        Statement::EtherType(ether_type) => {
            equal(payload("ether", "type"), text(ether_type_name(*ether_type)))
        }
        Statement::EtherTypeMap(targets) => ether_type_map(targets),
        Statement::ConnectionState { established, related } => connection_state(established, related),
        Statement::Translated => compare(ct("status"), Operator::IN, text("dnat")),
        Statement::AddressMap(side, family, map) => verdict_map(ip_address(*side, *family), in_set(map)),
        Statement::Ports(ports) => self::ports(ports),
        Statement::Icmp(family, types) => icmp(*family, types.as_ref()),
        Statement::OnLink => equal(payload("ip6", "hoplimit"), Expression::Number(255)),
        Statement::Protocol(number) => equal(meta(MetaKey::L4proto), protocol(*number)),
        Statement::Stamped(bits) => stamped(*bits),
        Statement::Stamp(bits) => stamp(*bits),
        Statement::Counter(name) => Nft::Counter(Counter::Named(name.as_str().into())),
        Statement::Log { prefix, group } => log(prefix, *group),
        Statement::Accept => Nft::Accept(None),
        Statement::Drop => Nft::Drop(None),
        Statement::Goto(chain) => goto(chain),
        Statement::Jump(chain) => Nft::Jump(target(chain)),
    };
    to_raw_value(&typed)
}

/// `meta time < "2026-12-01 00:00:00"`: a key that the `nftables` crate does not have. As a number it is in seconds since the
/// epoch and does not depend on the host's time zone, as the text would.
fn before(end: Timestamp) -> Value {
    json!({ "match": { "op": "<", "left": { "meta": { "key": "time" } }, "right": end.as_second() } })
}

fn side_of<T>(side: Side, source: T, destination: T) -> T {
    match side {
        Side::Source => source,
        Side::Destination => destination,
    }
}

fn text<'a>(text: impl Into<Cow<'a, str>>) -> Expression<'a> {
    Expression::String(text.into())
}

/// By its number: for a name nft asks /etc/protocols, which not every system has.
fn protocol(number: u8) -> Expression<'static> {
    Expression::Number(u32::from(number))
}

/// `@SET`
fn in_set(set: &SetName) -> Expression<'static> {
    text(format!("@{set}"))
}

/// `a`, or `{ a, b }`. A set of one would be a set of its table all the same, and the kernel walks them all for each new one.
fn one_of(mut items: Vec<Expression<'_>>) -> Expression<'_> {
    match items.len() {
        1 => items.remove(0),
        _ => Expression::Named(NamedExpression::Set(
            items.into_iter().map(SetItem::Element).collect(),
        )),
    }
}

/// `a . b`
fn concat(parts: Vec<Expression<'_>>) -> Expression<'_> {
    Expression::Named(NamedExpression::Concat(parts))
}

/// `first-last`
fn range<'a>(first: Expression<'a>, last: Expression<'a>) -> Expression<'a> {
    Expression::Range(Box::new(Range { range: [first, last] }))
}

/// `meta KEY`
fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

/// `ct KEY`
fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT {
        key: key.into(),
        family: None,
        dir: None,
    }))
}

/// `PROTOCOL FIELD`
fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

/// `ip saddr`, `ip6 daddr`
fn ip_address(side: Side, family: Family) -> Expression<'static> {
    let protocol = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    payload(protocol, side_of(side, "saddr", "daddr"))
}

/// `ip saddr . meta l4proto . th dport`
fn service(side: Side, family: Family) -> Expression<'static> {
    concat(vec![
        ip_address(side, family),
        meta(MetaKey::L4proto),
        payload("th", "dport"),
    ])
}

/// `meta nfproto . meta l4proto . th dport`
fn host_port() -> Expression<'static> {
    concat(vec![
        meta(MetaKey::Nfproto),
        meta(MetaKey::L4proto),
        payload("th", "dport"),
    ])
}

fn compare<'a>(left: Expression<'a>, op: Operator, right: Expression<'a>) -> Nft<'a> {
    Nft::Match(Match { left, right, op })
}

fn equal<'a>(left: Expression<'a>, right: Expression<'a>) -> Nft<'a> {
    compare(left, Operator::EQ, right)
}

fn target(chain: &ChainName) -> JumpTarget<'_> {
    JumpTarget {
        target: chain.as_str().into(),
    }
}

/// `goto CHAIN`
fn goto(chain: &ChainName) -> Nft<'_> {
    Nft::Goto(target(chain))
}

/// `KEY vmap DATA`
fn verdict_map<'a>(key: Expression<'a>, data: Expression<'a>) -> Nft<'a> {
    Nft::VerdictMap(VerdictMap { key, data })
}

/// `iifname @guarded`, `oifname != @open`, `iifname { "docker0", "br-*" }`
fn interface(side: Side, interfaces: &Interfaces) -> Nft<'_> {
    let name = meta(side_of(side, MetaKey::Iifname, MetaKey::Oifname));
    match interfaces {
        Interfaces::In(set) => equal(name, in_set(set)),
        Interfaces::NotIn(set) => compare(name, Operator::NEQ, in_set(set)),
        Interfaces::Like(patterns) => equal(
            name,
            one_of(patterns.iter().map(|pattern| text(pattern.as_str())).collect()),
        ),
    }
}

/// `ip saddr @guarded4`, `ip6 daddr { 2001:db8::-2001:db8::ff, 2001:db8:1::1 }`
fn address(side: Side, family: Family, addresses: &Addresses) -> Nft<'_> {
    let right = match addresses {
        Addresses::In(set) => in_set(set),
        Addresses::Ranges(set) => one_of(ranges(family, set)),
    };
    equal(ip_address(side, family), right)
}

fn ranges(family: Family, set: &AddressSet) -> Vec<Expression<'static>> {
    fn each<A: ToString + PartialEq>(ranges: &[(A, A)]) -> Vec<Expression<'static>> {
        let expression = |(first, last): &(A, A)| {
            if first == last {
                text(first.to_string())
            } else {
                range(text(first.to_string()), text(last.to_string()))
            }
        };
        ranges.iter().map(expression).collect()
    }
    match family {
        Family::V4 => each(&set.v4),
        Family::V6 => each(&set.v6),
    }
}

/// `meta iif . ether saddr . ip saddr` and its kin
fn binding(source: BindingSource) -> Expression<'static> {
    let parts = match source {
        // meta iif . ether saddr . ip saddr
        BindingSource::Sender(family) => {
            vec![
                meta(MetaKey::Iif),
                payload("ether", "saddr"),
                ip_address(Side::Source, family),
            ]
        }
        // meta iif . ether saddr . arp saddr ip
        BindingSource::ArpFrame => {
            vec![
                meta(MetaKey::Iif),
                payload("ether", "saddr"),
                payload("arp", "saddr ip"),
            ]
        }
        // meta iif . arp saddr ether . arp saddr ip
        BindingSource::ArpBody => {
            vec![
                meta(MetaKey::Iif),
                payload("arp", "saddr ether"),
                payload("arp", "saddr ip"),
            ]
        }
        // meta oif . ether daddr . ip daddr
        BindingSource::Receiver(family) => {
            vec![
                meta(MetaKey::Oif),
                payload("ether", "daddr"),
                ip_address(Side::Destination, family),
            ]
        }
    };
    concat(parts)
}

fn ether_type_name(ether_type: EtherType) -> &'static str {
    match ether_type {
        EtherType::Ip => "ip",
        EtherType::Arp => "arp",
        EtherType::Ip6 => "ip6",
    }
}

/// `ether type vmap { ip : goto a, arp : goto b }`
fn ether_type_map(targets: &BTreeMap<EtherType, ChainName>) -> Nft<'_> {
    let items = targets.iter().map(|(ether_type, chain)| {
        SetItem::MappingStatement(text(ether_type_name(*ether_type)), goto(chain))
    });
    let data = Expression::Named(NamedExpression::Set(items.collect()));
    verdict_map(payload("ether", "type"), data)
}

/// `ct state vmap { established : goto CHAIN, related : jump CHAIN, invalid : drop }`
fn connection_state<'a>(established: &'a ChainName, related: &'a ChainName) -> Nft<'a> {
    let items = vec![
        SetItem::MappingStatement(text("established"), goto(established)),
        SetItem::MappingStatement(text("related"), Nft::Jump(target(related))),
        SetItem::MappingStatement(text("invalid"), Nft::Drop(None)),
    ];
    verdict_map(ct("state"), Expression::Named(NamedExpression::Set(items)))
}

/// `tcp dport 8080`, `udp dport 53-60`, or `meta l4proto . th dport { tcp . 8080, udp . 53-60 }`
fn ports(ports: &BTreeSet<(Transport, PortRange)>) -> Nft<'_> {
    let number = |port: u16| Expression::Number(u32::from(port));
    let port = |wanted: &PortRange| {
        if wanted.first == wanted.last {
            number(wanted.first)
        } else {
            range(number(wanted.first), number(wanted.last))
        }
    };
    if let Some((transport, wanted)) = ports.first().filter(|_| ports.len() == 1) {
        return equal(payload(transport.as_str(), "dport"), port(wanted));
    }
    let items = ports
        .iter()
        .map(|(transport, wanted)| concat(vec![protocol(transport.number()), port(wanted)]));
    equal(
        concat(vec![meta(MetaKey::L4proto), payload("th", "dport")]),
        one_of(items.collect()),
    )
}

/// `meta l4proto icmp`, `icmpv6 type { 128 }`
fn icmp(family: Family, types: Option<&BTreeSet<u8>>) -> Nft<'static> {
    let (number, header) = match family {
        Family::V4 => (1, "icmp"),
        Family::V6 => (58, "icmpv6"),
    };
    match types {
        None => equal(meta(MetaKey::L4proto), protocol(number)),
        Some(types) => {
            let numbers = types.iter().map(|number| Expression::Number(u32::from(*number)));
            equal(payload(header, "type"), one_of(numbers.collect()))
        }
    }
}

/// `meta mark & BITS != 0`
fn stamped(bits: u32) -> Nft<'static> {
    let masked = BinaryOperation::AND(meta(MetaKey::Mark), Expression::Number(bits));
    compare(
        Expression::BinaryOperation(Box::new(masked)),
        Operator::NEQ,
        Expression::Number(0),
    )
}

/// `meta mark set meta mark | BITS`
fn stamp(bits: u32) -> Nft<'static> {
    let value = BinaryOperation::OR(vec![meta(MetaKey::Mark), Expression::Number(bits)]);
    Nft::Mangle(Mangle {
        key: meta(MetaKey::Mark),
        value: Expression::BinaryOperation(Box::new(value)),
    })
}

/// `update @SET { ether saddr limit rate N/second burst N packets }`: the `nftables` crate's statement knows no limit.
fn share(of: Sharer, set: &SetName, per_second: u32, burst: u32) -> Value {
    let key = match of {
        Sharer::Sender => payload("ether", "saddr"),
        Sharer::Receiver => meta(MetaKey::Oif),
        Sharer::Port => meta(MetaKey::Iif),
    };
    let limit = json!({ "limit": { "rate": per_second, "per": "second", "burst": burst } });
    json!({ "set": { "op": "update", "elem": key, "set": in_set(set), "stmt": [limit] } })
}

/// `log prefix "…" group N snaplen 128`
fn log(prefix: &str, group: u16) -> Nft<'_> {
    Nft::Log(Some(Log {
        prefix: Some(prefix.into()),
        snaplen: Some(SNAPLEN),
        ..Log::new(Some(u32::from(group)))
    }))
}
