//! From one structure to the next in one transaction. What others hold in the kernel is never read for this: the intent
//! is compared with the intent that was applied last.

use super::ruleset::{ElementAction, ElementChange, Elements, Ruleset, SetRef, Step, Table, TableFamily};

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
        add_objects(family, old, new, &mut objects);
        fill_chains(family, old, new, &mut rules);
        remove_objects(family, old, new, &mut gone);
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

fn add_objects(family: TableFamily, old: &Table, new: &Table, steps: &mut Vec<Step>) {
    steps.extend(
        new.counters
            .difference(&old.counters)
            .map(|it| Step::AddCounter(family, it.clone())),
    );
    for (name, spec) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(name)) {
        steps.push(Step::AddSet(
            SetRef {
                table: family,
                set: name.clone(),
            },
            *spec,
        ));
    }
    for (name, chain) in new
        .chains
        .iter()
        .filter(|(name, _)| !old.chains.contains_key(name))
    {
        steps.push(Step::AddChain(family, name.clone(), chain.hook));
    }
}

fn fill_chains(family: TableFamily, old: &Table, new: &Table, steps: &mut Vec<Step>) {
    for (name, chain) in &new.chains {
        match old.chains.get(name) {
            Some(before) if before.rules == chain.rules => continue,
            Some(_) => steps.push(Step::FlushChain(family, name.clone())),
            None => {}
        }
        steps.extend(
            chain
                .rules
                .iter()
                .map(|rule| Step::AddRule(family, name.clone(), rule.clone())),
        );
    }
}

fn remove_objects(family: TableFamily, old: &Table, new: &Table, steps: &mut Vec<Step>) {
    let chains: Vec<_> = old
        .chains
        .keys()
        .filter(|name| !new.chains.contains_key(name))
        .collect();
    // A chain's rules hold on to sets, counters and other chains; a map's elements hold on to chains.
    steps.extend(
        chains
            .iter()
            .map(|name| Step::FlushChain(family, (*name).clone())),
    );
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(name)) {
        steps.push(Step::DeleteSet(SetRef {
            table: family,
            set: name.clone(),
        }));
    }
    steps.extend(
        chains
            .iter()
            .map(|name| Step::DeleteChain(family, (*name).clone())),
    );
    steps.extend(
        old.counters
            .difference(&new.counters)
            .map(|it| Step::DeleteCounter(family, it.clone())),
    );
}
