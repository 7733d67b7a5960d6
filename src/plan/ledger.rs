//! Who claims which element. An element that two owners claim with different verdicts is in force for neither: an address
//! that has passed to another container while the first one's end was missed stays closed until that is known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::names;
use super::ruleset::{ChainName, ElementAction, ElementChange, Elements, Key, SetRef};
use crate::inventory::{ContainerId, NetworkId};
use crate::net::{Family, Transport};

/// Whose presence an element follows from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Container(ContainerId),
    Network(NetworkId),
    /// A bridge that is not Docker's, by interface index.
    Bridge(u32),
}

/// The elements that follow from one owner.
pub type Claim = BTreeMap<(SetRef, Key), Option<ChainName>>;

/// All claims, and what of them is in the kernel.
#[derive(Debug, Default)]
pub struct Ledger {
    owners: BTreeMap<Owner, Claim>,
    claims: BTreeMap<(SetRef, Key), BTreeMap<Owner, Option<ChainName>>>,
    applied: BTreeMap<(SetRef, Key), Option<ChainName>>,
    touched: BTreeSet<(SetRef, Key)>,
}

impl Ledger {
    /// Replaces an owner's claim; an empty one removes the owner.
    pub fn set(&mut self, owner: &Owner, claim: Claim) {
        let before = self.owners.remove(owner).unwrap_or_default();
        if before != claim {
            for (element, verdict) in &before {
                if claim.get(element) != Some(verdict) {
                    self.withdraw(owner, element);
                }
            }
            for (element, verdict) in &claim {
                if before.get(element) != Some(verdict) {
                    self.claims
                        .entry(element.clone())
                        .or_default()
                        .insert(owner.clone(), verdict.clone());
                    self.touched.insert(element.clone());
                }
            }
        }
        if !claim.is_empty() {
            self.owners.insert(owner.clone(), claim);
        }
    }

    fn withdraw(&mut self, owner: &Owner, element: &(SetRef, Key)) {
        if let Some(claims) = self.claims.get_mut(element) {
            claims.remove(owner);
            if claims.is_empty() {
                self.claims.remove(element);
            }
        }
        self.touched.insert(element.clone());
    }

    /// The owners that have a claim.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.owners.keys()
    }

    /// One owner's claim.
    pub fn claim(&self, owner: &Owner) -> Option<&Claim> {
        self.owners.get(owner)
    }

    /// What must change in the kernel, deletions first. A verdict that changes is a deletion and an addition.
    pub fn changes(&self) -> Vec<ElementChange> {
        let mut deletions = Vec::new();
        let mut additions = Vec::new();
        for element in &self.touched {
            let (wanted, applied) = (self.in_force(element), self.applied.get(element));
            if wanted == applied {
                continue;
            }
            let change = |action| ElementChange {
                set: element.0.clone(),
                key: element.1.clone(),
                action,
            };
            if applied.is_some() {
                deletions.push(change(ElementAction::Delete));
            }
            if let Some(verdict) = wanted {
                additions.push(change(ElementAction::Add(verdict.clone())));
            }
        }
        deletions.append(&mut additions);
        deletions
    }

    /// Every element that ought to be in the kernel.
    pub fn elements(&self) -> Elements {
        let mut elements = Elements::new();
        for element in self.claims.keys() {
            if let Some(verdict) = self.in_force(element) {
                elements
                    .entry(element.0.clone())
                    .or_default()
                    .insert(element.1.clone(), verdict.clone());
            }
        }
        elements
    }

    /// What is claimed in a set of addresses and ports, of both families.
    pub fn services(&self, set: &str) -> BTreeSet<(IpAddr, Transport, u16)> {
        let service = |(of, key): &(SetRef, Key)| {
            let service = match key {
                Key::Service4(address, transport, port) => (IpAddr::V4(*address), *transport, *port),
                Key::Service6(address, transport, port) => (IpAddr::V6(*address), *transport, *port),
                _ => return None,
            };
            (of.set == names::by_family(set, Family::of(service.0))).then_some(service)
        };
        self.claims.keys().filter_map(service).collect()
    }

    /// Every element that is in the kernel.
    pub fn applied(&self) -> Elements {
        let mut elements = Elements::new();
        for ((set, key), verdict) in &self.applied {
            elements
                .entry(set.clone())
                .or_default()
                .insert(key.clone(), verdict.clone());
        }
        elements
    }

    /// Says that these deletions, of what was wanted, are in the kernel already.
    pub fn mark_deleted(&mut self, changes: &[ElementChange]) {
        for change in changes.iter().filter(|it| it.action == ElementAction::Delete) {
            self.applied.remove(&(change.set.clone(), change.key.clone()));
        }
    }

    /// Says that the kernel now holds what was wanted.
    pub fn mark_applied(&mut self) {
        for element in std::mem::take(&mut self.touched) {
            match self.in_force(&element).cloned() {
                Some(verdict) => self.applied.insert(element, verdict),
                None => self.applied.remove(&element),
            };
        }
    }

    /// Elements that several owners claim with different verdicts.
    pub fn contested(&self) -> impl Iterator<Item = (&Key, impl Iterator<Item = &Owner>)> {
        let contested = self
            .claims
            .iter()
            .filter(|(element, _)| self.in_force(element).is_none());
        contested.map(|(element, claims)| (&element.1, claims.keys()))
    }

    fn in_force(&self, element: &(SetRef, Key)) -> Option<&Option<ChainName>> {
        let mut verdicts = self.claims.get(element)?.values();
        let first = verdicts.next()?;
        if verdicts.all(|verdict| verdict == first) {
            Some(first)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ruleset::{SetName, TableFamily};

    fn owner(name: &str) -> Owner {
        Owner::Container(ContainerId(name.to_owned()))
    }

    fn claim(address: &str, verdict: &str) -> Claim {
        let set = SetRef {
            table: TableFamily::Inet,
            set: SetName::from("into4"),
        };
        let key = Key::Ipv4(address.parse().unwrap());
        Claim::from([((set, key), Some(ChainName::from(verdict)))])
    }

    #[test]
    fn an_address_that_two_containers_claim_is_closed_until_one_lets_go() {
        let mut ledger = Ledger::default();
        ledger.set(&owner("old"), claim("10.0.0.2", "in_shop/db"));
        assert_eq!(ledger.changes().len(), 1);
        ledger.mark_applied();
        assert!(ledger.changes().is_empty());

        ledger.set(&owner("new"), claim("10.0.0.2", "in_shop/web"));
        assert!(matches!(
            ledger.changes()[..],
            [ElementChange {
                action: ElementAction::Delete,
                ..
            }]
        ));
        assert_eq!(ledger.contested().count(), 1);
        ledger.mark_applied();

        ledger.set(&owner("old"), Claim::new());
        let changes = ledger.changes();
        assert_eq!(
            changes[0].action,
            ElementAction::Add(Some(ChainName::from("in_shop/web")))
        );
        ledger.mark_applied();
        assert_eq!(ledger.elements().values().map(BTreeMap::len).sum::<usize>(), 1);
    }

    #[test]
    fn the_same_claim_twice_changes_nothing() {
        let mut ledger = Ledger::default();
        ledger.set(&owner("a"), claim("10.0.0.2", "in_shop/db"));
        ledger.mark_applied();
        ledger.set(&owner("a"), claim("10.0.0.2", "in_shop/db"));
        assert!(ledger.changes().is_empty());
        ledger.set(&owner("a"), claim("10.0.0.2", "in_shop/web"));
        assert_eq!(
            ledger.changes().len(),
            2,
            "a changed verdict is a deletion and an addition"
        );
    }
}
