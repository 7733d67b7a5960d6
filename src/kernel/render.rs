//! Structure steps as an nft JSON document: one document is one transaction.
//!
//! In: [`Step`]s in order. Out: what `nft -j -f -` reads. The `nftables` crate's types carry the rules; sets and maps
//! are raw objects, because its `SetType` has neither `verdict` nor `iface_index`. Priorities are integers: nft 1.0.6
//! silently makes a chain without a hook of a priority given as text.

use nftables::schema::{Chain, Counter, FlushObject, NfCmd, NfListObject, Table};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::statements::statement;
use crate::plan::ruleset::{
    self, ChainName, CounterName, ElementAction, ElementChange, Hook, HookPoint, Key, KeyType, SetKind,
    SetRef, SetSpec, Step, TABLE, TableFamily,
};

/// The most that a rule's comment may hold (`NFTNL_UDATA_COMMENT_MAXLEN`, with its final zero byte).
const COMMENT_BYTES: usize = 127;

/// Elements in one command.
const MOST_ALIKE: usize = 1024;

/// The steps as one transaction, in UTF-8. Command by command: of ten thousand edges the tree of all of them would be ten times
/// the text.
///
/// # Errors
/// None that is known: everything has text keys.
pub fn document(steps: &[Step]) -> serde_json::Result<Vec<u8>> {
    let mut text = br#"{"nftables":["#.to_vec();
    let parts = steps
        .chunk_by(are_alike)
        .flat_map(|alike| alike.chunks(MOST_ALIKE));
    for alike in parts {
        if let [Step::AddRule(table, name, rule)] = alike {
            serde_json::to_writer(&mut text, &add_rule(*table, name, rule)?)?;
            text.push(b',');
        }
        for command in commands(alike) {
            serde_json::to_writer(&mut text, &command)?;
            text.push(b',');
        }
    }
    text.pop_if(|last| *last == b',');
    text.extend_from_slice(b"]}");
    Ok(text)
}

/// Whether both change elements of one set in the same direction: one command says so, and nft looks the set up once.
fn are_alike(one: &Step, next: &Step) -> bool {
    let (Step::Element(one), Step::Element(next)) = (one, next) else {
        return false;
    };
    let is_deletion = |change: &ElementChange| change.action == ElementAction::Delete;
    one.set == next.set && is_deletion(one) == is_deletion(next)
}

/// What one step is in nft, or several that are alike; nothing for a rule, which [`add_rule`] is for.
fn commands(alike: &[Step]) -> Vec<Value> {
    let Some(step) = alike.first() else {
        return Vec::new();
    };
    match step {
        Step::ResetTables => TableFamily::ALL.into_iter().flat_map(reset_table).collect(),
        Step::DeleteTables => TableFamily::ALL
            .into_iter()
            .flat_map(|table| [add(table_object(table)), delete(table_object(table))])
            .collect(),
        Step::AddCounter(table, name) => vec![add(counter_object(*table, name))],
        Step::AddSet(set, spec) => vec![add_set(set, *spec)],
        Step::AddChain(table, name, hook) => vec![add(chain_object(*table, name, *hook))],
        Step::FlushChain(table, name) => {
            vec![command(&NfCmd::Flush(FlushObject::Chain(chain(
                *table, name, None,
            ))))]
        }
        Step::AddRule(..) => Vec::new(),
        Step::Element(change) => vec![elements(change, alike)],
        Step::DeleteChain(table, name) => vec![delete(chain_object(*table, name, None))],
        Step::DeleteSet(set) => vec![delete_set(set)],
        Step::DeleteCounter(table, name) => vec![delete(counter_object(*table, name))],
    }
}

/// A command as JSON. The types have text keys only, so that this cannot fail; if it did, nft would refuse the unknown
/// command, and with it the transaction.
fn command(command: &NfCmd<'_>) -> Value {
    serde_json::to_value(command).unwrap_or_else(|error| json!({ "unrenderable": error.to_string() }))
}

fn add(object: NfListObject<'_>) -> Value {
    command(&NfCmd::Add(object))
}

fn delete(object: NfListObject<'_>) -> Value {
    command(&NfCmd::Delete(object))
}

/// `add table inet cofferdam`, `delete …`, `add …`: a table that is not there cannot be deleted.
fn reset_table(table: TableFamily) -> [Value; 3] {
    [
        add(table_object(table)),
        delete(table_object(table)),
        add(table_object(table)),
    ]
}

pub(super) fn family(table: TableFamily) -> NfFamily {
    match table {
        TableFamily::Inet => NfFamily::INet,
        TableFamily::Bridge => NfFamily::Bridge,
    }
}

/// `table inet cofferdam`
fn table_object(table: TableFamily) -> NfListObject<'static> {
    NfListObject::Table(Table {
        family: family(table),
        name: TABLE.into(),
        handle: None,
    })
}

/// `counter inet cofferdam NAME`
fn counter_object(table: TableFamily, name: &CounterName) -> NfListObject<'_> {
    NfListObject::Counter(Counter {
        family: family(table),
        table: TABLE.into(),
        name: name.as_str().into(),
        handle: None,
        packets: None,
        bytes: None,
    })
}

/// `chain inet cofferdam NAME { type filter hook forward priority -10; policy accept; }`
fn chain(table: TableFamily, name: &ChainName, hook: Option<Hook>) -> Chain<'_> {
    Chain {
        family: family(table),
        table: TABLE.into(),
        name: name.as_str().into(),
        newname: None,
        handle: None,
        _type: hook.map(|_| NfChainType::Filter),
        hook: hook.map(|hook| match hook.point {
            HookPoint::Prerouting => NfHook::Prerouting,
            HookPoint::Input => NfHook::Input,
            HookPoint::Forward => NfHook::Forward,
            HookPoint::Output => NfHook::Output,
            HookPoint::Postrouting => NfHook::Postrouting,
        }),
        prio: hook.map(|hook| hook.priority),
        dev: None,
        policy: hook.map(|_| NfChainPolicy::Accept),
    }
}

fn chain_object(table: TableFamily, name: &ChainName, hook: Option<Hook>) -> NfListObject<'_> {
    NfListObject::Chain(chain(table, name, hook))
}

/// `add rule inet cofferdam CHAIN … comment "…"`. Of the most numerous command no tree is made.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum AddRule<'a> {
    Add { rule: Rule<'a> },
}

#[derive(Serialize)]
struct Rule<'a> {
    family: &'a str,
    table: &'a str,
    chain: &'a str,
    expr: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

fn add_rule<'a>(
    table: TableFamily,
    chain: &'a ChainName,
    rule: &ruleset::Rule,
) -> serde_json::Result<AddRule<'a>> {
    let statements = rule.statements.iter().map(statement);
    let rule = Rule {
        family: table.as_str(),
        table: TABLE,
        chain: chain.as_str(),
        expr: statements.collect::<serde_json::Result<_>>()?,
        comment: rule.comment.as_deref().map(comment),
    };
    Ok(AddRule::Add { rule })
}

/// A comment within nft's limit. With a quotation mark within, what nft lists could not be loaded again.
fn comment(text: &str) -> String {
    let end = text.floor_char_boundary(COMMENT_BYTES);
    text.get(..end).unwrap_or(text).replace('"', "'")
}

/// `set inet cofferdam NAME { type ipv4_addr; flags interval; size 65536; }` or
/// `map inet cofferdam NAME { type ipv4_addr : verdict; }`
fn add_set(set: &SetRef, spec: SetSpec) -> Value {
    let mut object = set_object(set);
    let mut put = |field: &str, value: Value| {
        if let Some(object) = object.as_object_mut() {
            object.insert(field.to_owned(), value);
        }
    };
    put("type", set_type(spec.key));
    if matches!(spec.key, KeyType::Ipv4Nets | KeyType::Ipv6Nets) {
        put("flags", json!(["interval"]));
    }
    if spec.kind == SetKind::Shares {
        // nft 1.0.6 has no word for `dynamic` here, and adds it itself for the rule that updates the set.
        put("flags", json!(["timeout"]));
        put("timeout", json!(10));
    }
    if let Some(size) = spec.size {
        put("size", json!(size));
    }
    if spec.kind == SetKind::Verdicts {
        put("map", json!("verdict"));
        json!({ "add": { "map": object } })
    } else {
        json!({ "add": { "set": object } })
    }
}

/// `delete set inet cofferdam NAME`; maps, too, go by this name.
fn delete_set(set: &SetRef) -> Value {
    json!({ "delete": { "set": set_object(set) } })
}

fn set_object(set: &SetRef) -> Value {
    json!({ "family": set.table.as_str(), "table": TABLE, "name": set.set.as_str() })
}

fn set_type(key: KeyType) -> Value {
    match key {
        KeyType::Ipv4 | KeyType::Ipv4Nets => json!("ipv4_addr"),
        KeyType::Ipv6 | KeyType::Ipv6Nets => json!("ipv6_addr"),
        KeyType::IfName => json!("ifname"),
        KeyType::IfIndex => json!("iface_index"),
        KeyType::Mac => json!("ether_addr"),
        KeyType::Binding4 => json!(["iface_index", "ether_addr", "ipv4_addr"]),
        KeyType::Binding6 => json!(["iface_index", "ether_addr", "ipv6_addr"]),
        KeyType::Service4 => json!(["ipv4_addr", "inet_proto", "inet_service"]),
        KeyType::Service6 => json!(["ipv6_addr", "inet_proto", "inet_service"]),
        KeyType::HostPort => json!(["nf_proto", "inet_proto", "inet_service"]),
    }
}

/// `add element inet cofferdam NAME { KEY : goto CHAIN, … }`, `delete element inet cofferdam NAME { KEY, … }`
fn elements(first: &ElementChange, alike: &[Step]) -> Value {
    let verb = match first.action {
        ElementAction::Add(_) => "add",
        ElementAction::Delete => "delete",
    };
    let elements = alike.iter().filter_map(|step| match step {
        Step::Element(change) => Some(element(change)),
        _ => None,
    });
    let mut object = set_object(&first.set);
    if let Some(object) = object.as_object_mut() {
        object.insert("elem".to_owned(), elements.collect());
    }
    json!({ verb: { "element": object } })
}

/// `KEY : goto CHAIN`, `KEY`
fn element(change: &ElementChange) -> Value {
    let key = element_key(&change.key);
    match &change.action {
        ElementAction::Add(Some(chain)) => json!([key, { "goto": { "target": chain.as_str() } }]),
        ElementAction::Add(None) | ElementAction::Delete => key,
    }
}

/// Protocols by their numbers: for names nft asks /etc/protocols, which not every system has.
fn element_key(key: &Key) -> Value {
    match key {
        Key::Ipv4(address) => json!(address.to_string()),
        Key::Ipv6(address) => json!(address.to_string()),
        Key::Net(net) => json!({ "prefix": { "addr": net.network().to_string(), "len": net.prefix_len() } }),
        Key::IfName(name) => json!(name.as_str()),
        Key::IfIndex(index) => json!(index),
        Key::Mac(mac) => json!(mac.to_string()),
        Key::Binding4(index, mac, address) => {
            json!({ "concat": [index, mac.to_string(), address.to_string()] })
        }
        Key::Service4(address, transport, port) => {
            json!({ "concat": [address.to_string(), transport.number(), port] })
        }
        Key::Service6(address, transport, port) => {
            json!({ "concat": [address.to_string(), transport.number(), port] })
        }
        Key::HostPort(family, transport, port) => {
            json!({ "concat": [format!("ipv{}", family.digit()), transport.number(), port] })
        }
        Key::Binding6(index, mac, address) => {
            json!({ "concat": [index, mac.to_string(), address.to_string()] })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(steps: &[Step]) -> Value {
        serde_json::from_slice(&document(steps).unwrap()).unwrap()
    }

    #[test]
    fn priorities_are_integers() {
        let hook = Hook {
            point: HookPoint::Forward,
            priority: -10,
        };
        let document = read(&[Step::AddChain(TableFamily::Inet, "forward".into(), Some(hook))]);
        let chain = document.pointer("/nftables/0/add/chain").unwrap();
        assert_eq!(chain.get("prio"), Some(&json!(-10)));
        assert_eq!(chain.get("hook"), Some(&json!("forward")));
        assert_eq!(chain.get("policy"), Some(&json!("accept")));
    }

    #[test]
    fn a_reset_can_be_repeated_and_comments_keep_their_limit() {
        let reset = read(&[Step::ResetTables]);
        let verbs: Vec<_> = reset
            .pointer("/nftables")
            .and_then(Value::as_array)
            .unwrap()
            .iter()
            .flat_map(|command| command.as_object().unwrap().keys().cloned())
            .collect();
        assert_eq!(verbs, ["add", "delete", "add", "add", "delete", "add"]);
        assert_eq!(comment(&"ä".repeat(100)).len(), 126);
    }
}
