//! What an end stands for, cut into classes of addresses that no edge tells apart.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::End;
use crate::model::{Identity, Standing};
use crate::net::{AddressSet, Family};
use crate::policy::{Edge, Party, Peer, Policy};

/// One of the classes that an end falls into: within it no edge tells two members apart.
#[derive(Debug, Clone)]
pub(super) struct Class<'a> {
    /// `None`: it has no rights at all.
    pub(super) party: Option<Party<'a>>,
    /// Its addresses, where the end has more than these.
    pub(super) text: Option<String>,
}

/// The classes of an end for addresses of one family; none where it has no address of the family.
pub(super) fn classes<'a>(
    end: &End,
    identity: Option<&'a Identity>,
    edges: &[&Edge],
    policy: &Policy,
    family: Family,
) -> Vec<Class<'a>> {
    let one = |party| vec![Class { party, text: None }];
    match end {
        End::Service(_) => one(identity.map(|it| Party::Services(it.services()))),
        End::Container { standing, .. } => one(match standing {
            Standing::Managed(_) => identity.map(|it| Party::Services(it.services())),
            Standing::Unmanaged => Some(Party::Unmanaged),
            Standing::Quarantined(_) | Standing::Isolated(_) => None,
        }),
        End::Host => one(Some(Party::Host)),
        End::Outside(address) if Family::of(*address) == family => one(Some(Party::Outside(*address))),
        End::Outside(_) => Vec::new(),
        End::World => outside(whole(family), edges, policy, family),
        End::External(name) => match policy.externals.get(name) {
            Some(set) => outside(ranges(set, family), edges, policy, family),
            None => Vec::new(),
        },
    }
}

/// Inclusive ranges of addresses as numbers.
type Ranges = Vec<(u128, u128)>;

fn whole(family: Family) -> Ranges {
    vec![match family {
        Family::V4 => (0, u128::from(u32::MAX)),
        Family::V6 => (0, u128::MAX),
    }]
}

fn ranges(set: &AddressSet, family: Family) -> Ranges {
    match family {
        Family::V4 => set
            .v4
            .iter()
            .map(|(a, b)| (u32::from(*a).into(), u32::from(*b).into()))
            .collect(),
        Family::V6 => set.v6.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect(),
    }
}

/// Cuts the ranges wherever an external of these edges begins or ends.
fn outside<'a>(within: Ranges, edges: &[&Edge], policy: &Policy, family: Family) -> Vec<Class<'a>> {
    let mut cuts = BTreeSet::new();
    for peer in edges.iter().flat_map(|edge| [&edge.from, &edge.to]) {
        if let Peer::External(name) = peer
            && let Some(set) = policy.externals.get(name)
        {
            for (first, last) in ranges(set, family) {
                cuts.insert(first);
                cuts.extend(last.checked_add(1));
            }
        }
    }
    let mut parts = Vec::new();
    for (first, last) in within {
        let mut start = first;
        for cut in cuts.range(first..=last).filter(|cut| **cut > first) {
            parts.push((start, cut - 1));
            start = *cut;
        }
        parts.push((start, last));
    }
    let alone = parts.len() == 1;
    parts
        .into_iter()
        .map(|(first, last)| {
            let (from, to) = (address(first, family), address(last, family));
            let text = if from == to {
                from.to_string()
            } else {
                format!("{from}-{to}")
            };
            Class {
                party: Some(Party::Outside(from)),
                text: (!alone).then_some(text),
            }
        })
        .collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the number came from an address of the family"
)]
fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}
