//! Who claims which element. An element that two owners claim with different verdicts is in force for neither, and an address
//! that is led to different chains has no rights at all, those that only one of its owners claims included: an address that has
//! passed to another container while the first one's end was missed stays closed until that is known.
//!
//! An address can be *withheld*: connections of an earlier owner are still to end. What is in the kernel for it may go, and
//! nothing is added.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::names;
use super::ruleset::{ChainName, ElementAction, ElementChange, Elements, Key, SetRef, TableFamily};
use crate::inventory::{ContainerId, NetworkId};
use crate::net::{Family, Transport};

/// Whose presence an element follows from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Container(ContainerId),
    Network(NetworkId),
    /// A bridge, by interface index.
    Bridge(u32),
    /// A port of a bridge, by interface index.
    Port(u32),
}

/// A set and a key in it.
pub type Element = (SetRef, Key);

/// The elements that follow from one owner.
pub type Claim = BTreeMap<Element, Option<ChainName>>;

/// Who claims an element, with which verdict, in the order of the owners. It is nearly always one.
type Claimants = Vec<(Owner, Option<ChainName>)>;

/// All claims, and what of them is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// What each claims, in order. Ten thousand maps of a few elements would have room for eleven each.
    owners: BTreeMap<Owner, Box<[Element]>>,
    claims: BTreeMap<Element, Claimants>,
    applied: BTreeMap<Element, Option<ChainName>>,
    touched: BTreeSet<Element>,
    /// Addresses that their owners lead to different chains.
    contested: BTreeSet<IpAddr>,
}

impl Ledger {
    /// Replaces an owner's claim; an empty one removes the owner.
    pub fn set(&mut self, owner: &Owner, claim: Claim) {
        let before = self.owners.remove(owner).unwrap_or_default();
        let mut led: BTreeSet<IpAddr> = BTreeSet::new();
        for element in &before {
            let verdict = claim.get(element);
            if verdict.is_none_or(|verdict| !self.is_claimed(owner, element, verdict)) {
                self.withdraw(owner, element);
                led.extend(led_to(element));
            }
        }
        for (element, verdict) in &claim {
            if self.is_claimed(owner, element, verdict) {
                continue;
            }
            let claimants = self.claims.entry(element.clone()).or_default();
            claimants.retain(|(it, _)| it != owner);
            claimants.reserve_exact(1);
            claimants.push((owner.clone(), verdict.clone()));
            claimants.sort_unstable();
            self.touched.insert(element.clone());
            led.extend(led_to(element));
        }
        if !claim.is_empty() {
            self.owners.insert(owner.clone(), claim.into_keys().collect());
        }
        for address in led {
            self.touch(owner, address);
        }
    }

    fn is_claimed(&self, owner: &Owner, element: &Element, verdict: &Option<ChainName>) -> bool {
        let mut claimants = self.claims.get(element).into_iter().flatten();
        claimants.any(|(it, its)| it == owner && its == verdict)
    }

    /// Who has a say about an address has changed: what its owners claim for it may now be in force, or no more.
    fn touch(&mut self, owner: &Owner, address: IpAddr) {
        let led = self.claims.get(&led_by(address));
        if led.is_some_and(|claims| agreed(claims).is_none()) {
            self.contested.insert(address);
        } else if !self.contested.remove(&address) {
            return;
        }
        let owners: BTreeSet<&Owner> = led
            .into_iter()
            .flatten()
            .map(|(it, _)| it)
            .chain([owner])
            .collect();
        for claim in owners.into_iter().filter_map(|owner| self.owners.get(owner)) {
            let of_it = claim.iter().filter(|(_, key)| address_of(key) == Some(address));
            self.touched.extend(of_it.cloned());
        }
    }

    /// Whether owners of an address lead it to different chains.
    pub fn is_contested(&self, address: IpAddr) -> bool {
        self.contested.contains(&address)
    }

    fn withdraw(&mut self, owner: &Owner, element: &Element) {
        if let Some(claims) = self.claims.get_mut(element) {
            claims.retain(|(it, _)| it != owner);
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

    /// What one owner claims.
    pub fn claimed(&self, owner: &Owner) -> &[Element] {
        self.owners.get(owner).map(Box::as_ref).unwrap_or_default()
    }

    /// What must change in the kernel, deletions first. A verdict that changes is a deletion and an addition. The additions
    /// of withheld addresses wait.
    pub fn changes(&self, withheld: &BTreeSet<IpAddr>) -> Vec<ElementChange> {
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
            if let Some(verdict) = wanted
                && !is_withheld(element, withheld)
            {
                additions.push(change(ElementAction::Add(verdict.clone())));
            }
        }
        deletions.append(&mut additions);
        deletions
    }

    /// The addresses of elements that are in the kernel and must go.
    pub fn closing(&self) -> BTreeSet<IpAddr> {
        let closing = self.touched.iter().filter(|element| {
            let applied = self.applied.get(element);
            applied.is_some() && self.in_force(element) != applied
        });
        closing.filter_map(|(_, key)| key.address()).collect()
    }

    /// Every element that ought to be in the kernel, but those of withheld addresses.
    pub fn elements(&self, withheld: &BTreeSet<IpAddr>) -> Elements {
        let mut elements = Elements::new();
        for element in self.claims.keys().filter(|it| !is_withheld(it, withheld)) {
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
        let service = |(of, key): &Element| {
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

    /// Whether an element is in the kernel as it is wanted.
    pub fn is_applied(&self, element: &Element) -> bool {
        let applied = self.applied.get(element);
        applied.is_some() && applied == self.in_force(element)
    }

    /// Says that [`Self::changes`] are in the kernel. What was withheld stays to be added.
    pub fn mark_applied(&mut self, withheld: &BTreeSet<IpAddr>) {
        for element in std::mem::take(&mut self.touched) {
            let wanted = self.in_force(&element).cloned();
            if wanted.as_ref() == self.applied.get(&element) {
                continue;
            }
            match wanted {
                Some(_) if is_withheld(&element, withheld) => {
                    self.applied.remove(&element);
                    self.touched.insert(element);
                }
                Some(verdict) => {
                    self.applied.insert(element, verdict);
                }
                None => {
                    self.applied.remove(&element);
                }
            }
        }
    }

    /// Says that the kernel holds [`Self::elements`] and nothing else. What was withheld is to be added, even where it had
    /// been there before.
    pub fn mark_replaced(&mut self, withheld: &BTreeSet<IpAddr>) {
        let elements = self.elements(withheld).into_iter();
        self.applied = elements
            .flat_map(|(set, elements)| {
                let element = move |(key, verdict)| ((set.clone(), key), verdict);
                elements.into_iter().map(element)
            })
            .collect();
        // They came container by container, which leaves the map's nodes half full.
        self.claims = std::mem::take(&mut self.claims).into_iter().collect();
        self.touched = self
            .claims
            .keys()
            .filter(|it| is_withheld(it, withheld))
            .cloned()
            .collect();
    }

    /// Elements that several owners claim with different verdicts.
    pub fn contested(&self) -> impl Iterator<Item = (&Key, impl Iterator<Item = &Owner>)> {
        let contested = self
            .claims
            .iter()
            .filter(|(element, _)| self.in_force(element).is_none());
        contested.map(|(element, claims)| (&element.1, claims.iter().map(|(owner, _)| owner)))
    }

    fn in_force(&self, element: &Element) -> Option<&Option<ChainName>> {
        if !self.contested.is_empty()
            && address_of(&element.1).is_some_and(|address| self.is_contested(address))
        {
            return None;
        }
        agreed(self.claims.get(element)?)
    }
}

/// What all owners of an element claim.
fn agreed(claims: &Claimants) -> Option<&Option<ChainName>> {
    let mut verdicts = claims.iter().map(|(_, verdict)| verdict);
    let first = verdicts.next()?;
    verdicts.all(|verdict| verdict == first).then_some(first)
}

/// The address that an element gives rights to.
fn address_of(key: &Key) -> Option<IpAddr> {
    match key {
        Key::Ipv4(address) | Key::Service4(address, ..) => Some(IpAddr::V4(*address)),
        Key::Ipv6(address) | Key::Service6(address, ..) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The element that every owner of an address claims: where what is sent to it goes on.
fn led_by(address: IpAddr) -> Element {
    let set = names::inet(names::by_family("into", Family::of(address)));
    let key = match address {
        IpAddr::V4(address) => Key::Ipv4(address),
        IpAddr::V6(address) => Key::Ipv6(address),
    };
    (set, key)
}

fn led_to((set, key): &Element) -> Option<IpAddr> {
    let leads = set.table == TableFamily::Inet && ["into4", "into6"].contains(&set.set.as_str());
    address_of(key).filter(|_| leads)
}

fn is_withheld((_, key): &Element, withheld: &BTreeSet<IpAddr>) -> bool {
    key.address().is_some_and(|address| withheld.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ruleset::SetName;

    const NONE: &BTreeSet<IpAddr> = &BTreeSet::new();

    fn owner(name: &str) -> Owner {
        Owner::Container(ContainerId(name.into()))
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
        assert_eq!(ledger.changes(NONE).len(), 1);
        ledger.mark_applied(NONE);
        assert!(ledger.changes(NONE).is_empty());

        ledger.set(&owner("new"), claim("10.0.0.2", "in_shop/web"));
        assert!(matches!(
            ledger.changes(NONE)[..],
            [ElementChange {
                action: ElementAction::Delete,
                ..
            }]
        ));
        assert_eq!(ledger.contested().count(), 1);
        ledger.mark_applied(NONE);

        ledger.set(&owner("old"), Claim::new());
        let changes = ledger.changes(NONE);
        assert_eq!(
            changes[0].action,
            ElementAction::Add(Some(ChainName::from("in_shop/web")))
        );
        ledger.mark_applied(NONE);
        assert_eq!(
            ledger.elements(NONE).values().map(BTreeMap::len).sum::<usize>(),
            1
        );
    }

    #[test]
    fn what_only_one_of_two_owners_of_an_address_claims_is_closed_too() {
        let calls = || {
            let mut claim = claim("10.0.0.2", "in_shop/web");
            let set = names::inet(SetName::from("from4_shop/db"));
            let key = Key::Ipv4("10.0.0.2".parse().unwrap());
            claim.insert((set, key), Some(ChainName::from("pair_shop/web_shop/db")));
            claim
        };
        let held = |ledger: &Ledger| ledger.applied().values().map(BTreeMap::len).sum::<usize>();
        let mut ledger = Ledger::default();
        ledger.set(&owner("gone"), calls());
        ledger.mark_applied(NONE);
        assert_eq!(held(&ledger), 2);
        // The end of the first was missed; the second, which calls nobody, has its address.
        ledger.set(&owner("new"), claim("10.0.0.2", "in_unmanaged"));
        assert!(
            ledger
                .changes(NONE)
                .iter()
                .all(|it| it.action == ElementAction::Delete)
        );
        ledger.mark_applied(NONE);
        assert_eq!(held(&ledger), 0);
        assert!(ledger.is_contested("10.0.0.2".parse().unwrap()));
        ledger.set(&owner("gone"), Claim::new());
        ledger.mark_applied(NONE);
        assert_eq!(held(&ledger), 1);
        // And where it is the second that goes, the first has everything again.
        ledger.set(&owner("gone"), calls());
        ledger.mark_applied(NONE);
        ledger.set(&owner("new"), Claim::new());
        ledger.mark_applied(NONE);
        assert_eq!(held(&ledger), 2);
        assert_eq!(ledger.applied(), ledger.elements(NONE));
    }

    #[test]
    fn the_same_claim_twice_changes_nothing() {
        let mut ledger = Ledger::default();
        ledger.set(&owner("a"), claim("10.0.0.2", "in_shop/db"));
        ledger.mark_applied(NONE);
        ledger.set(&owner("a"), claim("10.0.0.2", "in_shop/db"));
        assert!(ledger.changes(NONE).is_empty());
        ledger.set(&owner("a"), claim("10.0.0.2", "in_shop/web"));
        assert_eq!(
            ledger.changes(NONE).len(),
            2,
            "a changed verdict is a deletion and an addition"
        );
    }

    fn actions(changes: &[ElementChange]) -> Vec<bool> {
        changes
            .iter()
            .map(|it| it.action != ElementAction::Delete)
            .collect()
    }

    #[test]
    fn a_withheld_address_closes_at_once_and_opens_when_it_is_no_longer() {
        let withheld = BTreeSet::from(["10.0.0.2".parse().unwrap()]);
        let mut ledger = Ledger::default();
        ledger.set(&owner("old"), claim("10.0.0.2", "in_shop/db"));
        ledger.mark_applied(NONE);
        ledger.set(&owner("old"), Claim::new());
        ledger.set(&owner("new"), claim("10.0.0.2", "in_shop/web"));
        ledger.set(&owner("other"), claim("10.0.0.3", "in_shop/web"));
        let changes = ledger.changes(&withheld);
        assert_eq!(actions(&changes), [false, true], "{changes:?}");
        assert_eq!(changes[1].key.address(), "10.0.0.3".parse().ok());
        assert_eq!(ledger.closing(), withheld);
        ledger.mark_applied(&withheld);
        assert!(ledger.closing().is_empty());
        assert!(ledger.changes(&withheld).is_empty());
        assert_eq!(
            ledger.applied(),
            ledger.elements(&withheld),
            "the other's alone is there"
        );
        assert_eq!(actions(&ledger.changes(NONE)), [true]);
        ledger.mark_applied(NONE);
        assert_eq!(ledger.applied(), ledger.elements(NONE));
    }

    #[test]
    fn what_stays_as_it_is_stays_while_it_is_withheld() {
        let withheld = BTreeSet::from(["10.0.0.2".parse().unwrap()]);
        let mut ledger = Ledger::default();
        ledger.set(&owner("old"), claim("10.0.0.2", "in_shop/db"));
        ledger.mark_applied(NONE);
        ledger.set(&owner("new"), claim("10.0.0.2", "in_shop/db"));
        ledger.set(&owner("old"), Claim::new());
        assert!(ledger.changes(&withheld).is_empty());
        ledger.mark_applied(&withheld);
        assert_eq!(ledger.applied(), ledger.elements(NONE), "it is not forgotten");
        ledger.set(&owner("new"), Claim::new());
        assert_eq!(
            actions(&ledger.changes(&withheld)),
            [false],
            "and it goes with its owner"
        );
    }

    #[test]
    fn tables_that_are_replaced_lack_what_is_withheld_until_it_is_no_longer() {
        let withheld = BTreeSet::from(["10.0.0.2".parse().unwrap()]);
        let mut ledger = Ledger::default();
        ledger.set(&owner("a"), claim("10.0.0.2", "in_shop/db"));
        ledger.set(&owner("b"), claim("10.0.0.3", "in_shop/web"));
        ledger.mark_applied(NONE);
        ledger.mark_replaced(&withheld);
        assert_eq!(ledger.applied(), ledger.elements(&withheld));
        assert!(ledger.changes(&withheld).is_empty());
        assert_eq!(actions(&ledger.changes(NONE)), [true]);
        ledger.mark_applied(NONE);
        assert_eq!(ledger.applied(), ledger.elements(NONE));
    }
}
