//! An independent look at a finished structure before it goes to the kernel. It knows nothing of policies: it knows what must
//! be true of every structure that Cofferdam may load.

use std::collections::BTreeSet;

use super::ruleset::{
    Chain, ChainName, CounterName, Hook, HookPoint, Ruleset, SetName, Statement, Table, TableFamily,
};

/// The base chains without which something is not filtered.
const BASE_CHAINS: [(TableFamily, &str, HookPoint, i32); 6] = [
    (TableFamily::Inet, "forward", HookPoint::Forward, -10),
    (TableFamily::Inet, "local", HookPoint::Input, -10),
    (TableFamily::Inet, "host", HookPoint::Output, -10),
    (TableFamily::Bridge, "identity", HookPoint::Prerouting, -300),
    (TableFamily::Bridge, "sealed", HookPoint::Forward, 100),
    (TableFamily::Bridge, "delivery", HookPoint::Postrouting, 100),
];

/// Everything that is wrong with a structure; empty when it may be loaded.
pub fn faults(ruleset: &Ruleset) -> Vec<String> {
    let mut faults = Vec::new();
    for (family, name, point, priority) in BASE_CHAINS {
        let hook = Some(Hook { point, priority });
        let chain = ruleset
            .tables
            .get(&family)
            .and_then(|table| table.chains.get(&ChainName::from(name)));
        if chain.is_none_or(|chain| chain.hook != hook || chain.rules.is_empty()) {
            faults.push(format!(
                "base chain {name} of table {} is missing or not hooked",
                family.as_str()
            ));
        }
    }
    for (family, table) in &ruleset.tables {
        for (name, chain) in &table.chains {
            let place = |what: &str| format!("chain {name} of table {} {what}", family.as_str());
            dangling(table, chain)
                .into_iter()
                .for_each(|what| faults.push(place(&what)));
            if *family == TableFamily::Inet {
                if ends(name).is_some_and(|targets| !ends_in(chain, targets)) {
                    faults.push(place("does not end with a denial"));
                }
                if name.as_str() != "pass" && accepts(chain) {
                    faults.push(place("accepts by itself: only `pass` may"));
                }
            }
        }
    }
    faults
}

/// What a chain's last rule may go to; `None` where any will do. Chains that decide about a managed end go to a denial, or to
/// an audit, which reports.
fn ends(name: &ChainName) -> Option<&'static [&'static str]> {
    let name = name.as_str();
    let governs = ["governed", "local_governed", "host_governed", "host_translated"].contains(&name);
    if governs || name.starts_with("carried_") {
        return Some(&["deny"]);
    }
    let decides = ["in_", "out_", "fromhost_", "tohost_", "pair_"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    (decides && name != "in_unmanaged" && name != "out_unmanaged").then_some(&["deny", "audit"])
}

fn ends_in(chain: &Chain, targets: &[&str]) -> bool {
    chain.rules.last().is_some_and(|rule| match &rule.statements[..] {
        [Statement::Goto(target)] => targets.contains(&target.as_str()),
        _ => false,
    })
}

fn accepts(chain: &Chain) -> bool {
    chain
        .rules
        .iter()
        .any(|rule| rule.statements.contains(&Statement::Accept))
}

/// What a chain refers to and the table does not have.
fn dangling(table: &Table, chain: &Chain) -> BTreeSet<String> {
    let mut missing = BTreeSet::new();
    for statement in chain.rules.iter().flat_map(|rule| &rule.statements) {
        named_in(statement, |named| match named {
            Named::Chain(name) if !table.chains.contains_key(name) => {
                missing.insert(format!("goes to {name}, which is missing"));
            }
            Named::Set(name) if !table.sets.contains_key(name) => {
                missing.insert(format!("looks into {name}, which is missing"));
            }
            Named::Counter(name) if !table.counters.contains(name) => {
                missing.insert(format!("counts in {name}, which is missing"));
            }
            Named::Chain(_) | Named::Set(_) | Named::Counter(_) => {}
        });
    }
    missing
}

/// What of its table a statement needs.
enum Named<'a> {
    Chain(&'a ChainName),
    Set(&'a SetName),
    Counter(&'a CounterName),
}

fn named_in(statement: &Statement, mut name: impl FnMut(Named<'_>)) {
    use super::ruleset::{Addresses, Interfaces};
    match statement {
        Statement::Goto(chain) | Statement::Jump(chain) => name(Named::Chain(chain)),
        Statement::ConnectionState { established, related } => {
            name(Named::Chain(established));
            name(Named::Chain(related));
        }
        Statement::EtherTypeMap(chains) => chains.values().for_each(|it| name(Named::Chain(it))),
        Statement::Interface(_, Interfaces::In(set) | Interfaces::NotIn(set))
        | Statement::Address(_, _, Addresses::In(set))
        | Statement::AddressMap(_, _, set)
        | Statement::Service(_, _, set)
        | Statement::HostPort(set)
        | Statement::Port(_, set)
        | Statement::ArpAddress(_, set)
        | Statement::EtherSource(set)
        | Statement::Binding(_, set)
        | Statement::Share { set, .. } => name(Named::Set(set)),
        Statement::Counter(counter) => name(Named::Counter(counter)),
        Statement::Interface(_, Interfaces::Like(_))
        | Statement::Address(_, _, Addresses::Ranges(_))
        | Statement::EtherType(_)
        | Statement::Ports(_)
        | Statement::Icmp(..)
        | Statement::OnLink
        | Statement::Translated
        | Statement::Protocol(_)
        | Statement::SentByRoot
        | Statement::Before(_)
        | Statement::Stamped(_)
        | Statement::Stamp(_)
        | Statement::Log { .. }
        | Statement::Accept
        | Statement::Drop => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Rights;
    use crate::plan::compile::{Options, compile};

    fn structure() -> Ruleset {
        compile(
            &Rights::default(),
            &BTreeSet::new(),
            Options {
                stamp: 1,
                nflog_group: 1,
            },
        )
        .ruleset
    }

    #[test]
    fn what_is_compiled_is_sound_and_each_damage_is_seen() {
        assert_eq!(faults(&structure()), Vec::<String>::new());
        let damage = |damage: &dyn Fn(&mut Table)| {
            let mut ruleset = structure();
            damage(ruleset.tables.get_mut(&TableFamily::Inet).unwrap());
            faults(&ruleset)
        };
        let chain = |table: &mut Table, name: &str| table.chains.remove(&ChainName::from(name)).unwrap();
        assert_eq!(damage(&|table| drop(chain(table, "host"))).len(), 1);
        assert!(!damage(&|table| drop(chain(table, "deny"))).is_empty());
        let open_ended = damage(&|table| {
            let mut governed = chain(table, "governed");
            Arc::make_mut(&mut governed).rules.pop();
            table.chains.insert(ChainName::from("governed"), governed);
        });
        assert!(
            open_ended[0].contains("does not end with a denial"),
            "{open_ended:?}"
        );
        let accepting = damage(&|table| {
            let mut governed = chain(table, "governed");
            Arc::make_mut(&mut governed).rules[0].statements = vec![Statement::Accept];
            table.chains.insert(ChainName::from("governed"), governed);
        });
        assert!(accepting[0].contains("accepts by itself"), "{accepting:?}");
    }
}
