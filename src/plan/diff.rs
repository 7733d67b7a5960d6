//! From one structure to the next in one transaction. What others hold in the kernel is never read for this: the intent
//! is compared with the intent that was applied last.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::ruleset::{
    Chain, ChainName, ElementAction, ElementChange, Elements, Ruleset, SetName, SetRef, SetSpec, Step, Table,
    TableFamily,
};

/// Replaces whatever stands in our tables by this ruleset with these elements.
pub fn replacement(ruleset: &Ruleset, elements: &Elements) -> Vec<Step> {
    let mut steps = vec![Step::ResetTables];
    let added = elements.iter().flat_map(|(set, elements)| {
        elements.iter().map(|(key, goto)| ElementChange {
            set: set.clone(),
            key: key.clone(),
            action: ElementAction::Add(goto.clone()),
        })
    });
    steps.extend(transition(&Ruleset::default(), ruleset, added.collect()));
    steps
}

/// The steps from one structure to another with the changes of elements between. Empty when nothing changes.
pub fn transition(old: &Ruleset, new: &Ruleset, changes: Vec<ElementChange>) -> Vec<Step> {
    let nothing = Table::default();
    let (mut objects, mut rules, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for family in TableFamily::ALL {
        let old = old.tables.get(&family).unwrap_or(&nothing);
        let new = new.tables.get(&family).unwrap_or(&nothing);
        let chains: Vec<_> = differences(&old.chains, &new.chains).collect();
        let sets: Vec<_> = differences(&old.sets, &new.sets).collect();
        add_objects(family, (old, new), &sets, &chains, &mut objects);
        fill_chains(family, &chains, &mut rules);
        remove_objects(family, (old, new), &sets, &chains, &mut gone);
    }
    // An element may go to a new chain and must be gone before the chain that it went to.
    let elements = changes.into_iter().map(Step::Element);
    objects
        .into_iter()
        .chain(rules)
        .chain(elements)
        .chain(gone)
        .collect()
}

/// What is not the same before and after.
#[derive(Debug)]
pub(super) enum Difference<'a, V> {
    Gone,
    New(&'a V),
    Other(&'a V),
}

/// Walks both maps once, in their order. What both share is equal without a look into it.
pub(super) fn differences<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Difference<'a, V>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                // Shared names are found equal at once, which they are nearly always.
                (Some((before, _)), Some((now, _))) if before == now => Ordering::Equal,
                (Some((before, _)), Some((now, _))) => before.cmp(now),
            };
            let before = if order.is_le() { old.next() } else { None };
            let now = if order.is_ge() { new.next() } else { None };
            match (before, now) {
                (Some((_, before)), Some((_, now))) if before == now => {}
                (Some(_), Some((name, now))) => return Some((name, Difference::Other(now))),
                (Some((name, _)), None) => return Some((name, Difference::Gone)),
                (None, Some((name, now))) => return Some((name, Difference::New(now))),
                (None, None) => return None,
            }
        }
    })
}

type Chains<'a> = [(&'a ChainName, Difference<'a, Arc<Chain>>)];
type Sets<'a> = [(&'a SetName, Difference<'a, SetSpec>)];

fn add_objects(
    family: TableFamily,
    (old, new): (&Table, &Table),
    sets: &Sets<'_>,
    chains: &Chains<'_>,
    steps: &mut Vec<Step>,
) {
    let counters = new.counters.difference(&old.counters);
    steps.extend(counters.map(|it| Step::AddCounter(family, it.clone())));
    for (name, difference) in sets {
        if let Difference::New(spec) = difference {
            steps.push(Step::AddSet(set(family, name), **spec));
        }
    }
    for (name, difference) in chains {
        if let Difference::New(chain) = difference {
            steps.push(Step::AddChain(family, (*name).clone(), chain.hook));
        }
    }
}

fn fill_chains(family: TableFamily, chains: &Chains<'_>, steps: &mut Vec<Step>) {
    for (name, difference) in chains {
        let chain = match difference {
            Difference::Gone => continue,
            Difference::New(chain) => chain,
            Difference::Other(chain) => {
                steps.push(Step::FlushChain(family, (*name).clone()));
                chain
            }
        };
        let rules = chain.rules.iter();
        steps.extend(rules.map(|rule| Step::AddRule(family, (*name).clone(), rule.clone())));
    }
}

fn remove_objects(
    family: TableFamily,
    (old, new): (&Table, &Table),
    sets: &Sets<'_>,
    chains: &Chains<'_>,
    steps: &mut Vec<Step>,
) {
    let gone = || {
        let gone = chains.iter().filter(|(_, it)| matches!(it, Difference::Gone));
        gone.map(|(name, _)| (*name).clone())
    };
    // A chain's rules hold on to sets, counters and other chains; a map's elements hold on to chains.
    steps.extend(gone().map(|name| Step::FlushChain(family, name)));
    for (name, difference) in sets {
        if let Difference::Gone = difference {
            steps.push(Step::DeleteSet(set(family, name)));
        }
    }
    steps.extend(gone().map(|name| Step::DeleteChain(family, name)));
    let counters = old.counters.difference(&new.counters);
    steps.extend(counters.map(|it| Step::DeleteCounter(family, it.clone())));
}

fn set(table: TableFamily, name: &SetName) -> SetRef {
    SetRef {
        table,
        set: name.clone(),
    }
}
