//! What [`compile`](super::compile) makes: the ruleset, and what each address of an identity is given in its sets.

use std::collections::BTreeMap;

use super::ruleset::{ChainName, Ruleset, SetName, SetRef, TableFamily};
use crate::model::Identity;
use crate::net::Family;

/// The structure, and what follows from it for each endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Structure {
    pub ruleset: Ruleset,
    /// What each address of an identity is given. Every identity that has its chains is here.
    pub granted: BTreeMap<Identity, Vec<Grant>>,
}

/// An element that an address has in the set of its family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub(super) sets: BothFamilies,
    pub goto: Option<ChainName>,
}

/// The same set for IPv4 and for IPv6.
pub(super) type BothFamilies = [SetRef; 2];

impl Grant {
    /// The family's set.
    pub fn set(&self, family: Family) -> &SetRef {
        let [v4, v6] = &self.sets;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

impl Structure {
    /// Whether the identity has its chains.
    pub fn knows(&self, identity: &Identity) -> bool {
        self.granted.contains_key(identity)
    }

    /// A set by its name, which is the structure's own where there is such a set.
    pub(super) fn set(&self, table: TableFamily, name: SetName) -> SetRef {
        let set = match self.ruleset.tables.get(&table) {
            Some(table) => shared(&table.sets, name),
            None => name,
        };
        SetRef { table, set }
    }

    /// A chain's name, which is the structure's own where there is such a chain.
    pub(super) fn chain(&self, name: ChainName) -> ChainName {
        match self.ruleset.tables.get(&TableFamily::Inet) {
            Some(table) => shared(&table.chains, name),
            None => name,
        }
    }

    /// This structure, made of the earlier one's parts where the two are equal: they are in memory once, and to compare them
    /// is to compare pointers.
    #[must_use]
    pub(super) fn sharing(mut self, earlier: &Self) -> Self {
        for (family, table) in &mut self.ruleset.tables {
            if let Some(earlier) = earlier.ruleset.tables.get(family) {
                share(&mut table.chains, &earlier.chains);
                share(&mut table.sets, &earlier.sets);
            }
        }
        share(&mut self.granted, &earlier.granted);
        self
    }
}

/// The map's own key where it has an equal one: thousands of elements name the same set and the same chain.
pub(super) fn shared<K: Ord + Clone, V>(map: &BTreeMap<K, V>, key: K) -> K {
    match map.get_key_value(&key) {
        Some((own, _)) => own.clone(),
        None => key,
    }
}

/// Takes over from an earlier map what is equal in both.
fn share<K: Ord + Clone, V: PartialEq + Clone>(map: &mut BTreeMap<K, V>, earlier: &BTreeMap<K, V>) {
    let mut earlier = earlier.iter().peekable();
    let taken = std::mem::take(map).into_iter().map(|(key, value)| {
        while earlier.next_if(|(before, _)| **before < key).is_some() {}
        match earlier.next_if(|(before, _)| **before == key) {
            Some((key, before)) if *before == value => (key.clone(), before.clone()),
            Some((key, _)) => (key.clone(), value),
            None => (key, value),
        }
    });
    *map = taken.collect();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Rights;
    use crate::plan::compile::{Options, compile};
    use crate::policy::{SourceFile, load};

    #[test]
    fn what_is_equal_in_two_structures_is_in_memory_once() {
        let structure = |edges: &str| {
            let text = format!(
                "cofferdam: 1\nsegment: s\nservices:\n  a: {{ select: {{ name: aa }} }}\n  b: {{ select: {{ name: bb }} }}\n  c: {{ select: {{ name: cc }} }}\nallow: [{edges}]\n"
            );
            let file = SourceFile {
                path: "s.yaml".to_owned(),
                bytes: text.into_bytes(),
            };
            let rights = Rights {
                policy: load(&[file]).unwrap().policy,
                ..Rights::default()
            };
            let identities = rights.policy.services.keys().cloned().map(Identity::of);
            let options = Options {
                stamp: 1,
                nflog_group: 1,
            };
            compile(&rights, &identities.collect(), options)
        };
        let first = structure("{ from: a, to: b, ports: [80] }, { from: b, to: c, ports: [80] }");
        let second = structure("{ from: a, to: c, ports: [80] }, { from: b, to: c, ports: [81] }");
        let sharing = second.clone().sharing(&first);
        assert_eq!(sharing, second);
        assert_eq!(first.clone().sharing(&sharing), first);
        let chain = |of: &Structure, name: &str| {
            Arc::clone(&of.ruleset.tables[&TableFamily::Inet].chains[&ChainName::from(name)])
        };
        let same = |name| Arc::ptr_eq(&chain(&first, name), &chain(&sharing, name));
        assert!(same("forward") && same("in_s/c"));
        assert!(!same("in_s/b") && !same("pair_s/b_s/c"));
    }
}
