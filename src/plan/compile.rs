//! Policy to structure: the chains, rules and sets of both tables.
//!
//! The way of a forwarded packet, each step a fixed number of hash lookups:
//!
//! ```text
//! forward ─> governed ─> in_B  ─> pair_A_B ─> pass
//!                │         └────────┴───────> deny
//!                └─────> out_A ────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::names::{self, chain};
use super::ruleset::{
    Addresses, Chain, ChainName, Rule, Ruleset, SetKind, SetName, SetRef, SetSpec, Side, Statement, Table,
    TableFamily,
};
use super::skeleton::{address_key, bridge_table, goto, inet_skeleton, rule};
use crate::model::{Identity, Rights};
use crate::net::{AddressSet, Family, PortRange, Transport};
use crate::policy::{Edge, Peer, Ports, ServiceId};

/// An edge with no more ports and ranges than this has a rule for each; one with more has a set of them. The kernel walks all
/// sets of a table for each new one, so that a set for each edge makes a policy's load quadratic in its edges.
const RULES_FOR_PORTS: usize = 8;

/// What the host's settings say of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The mark's bit that says "this packet passed `inet forward`".
    pub stamp: u32,
    /// The NFLOG group of denied packets.
    pub nflog_group: u16,
}

/// The structure, and who may call whom: what an endpoint's elements are made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Structure {
    pub ruleset: Ruleset,
    /// For each identity, the identities that some edge lets it call.
    pub callees: BTreeMap<Identity, BTreeSet<Identity>>,
    /// The identities that have a chain for what the host calls.
    pub from_host: BTreeSet<Identity>,
    /// The identities that have a chain for what they call of the host.
    pub to_host: BTreeSet<Identity>,
    /// The identities at which passes what no edge permits.
    pub audited: BTreeSet<Identity>,
}

impl Structure {
    /// Whether the identity has its chains.
    pub fn knows(&self, identity: &Identity) -> bool {
        self.callees.contains_key(identity)
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
}

/// The map's own key where it has an equal one: thousands of elements name the same set and the same chain.
pub(super) fn shared<K: Ord + Clone, V>(map: &BTreeMap<K, V>, key: K) -> K {
    match map.get_key_value(&key) {
        Some((own, _)) => own.clone(),
        None => key,
    }
}

/// Compiles the structure for the identities that exist on this host.
pub fn compile(rights: &Rights, identities: &BTreeSet<Identity>, options: Options) -> Structure {
    let grants = Grants::new(rights, identities);
    let audited: BTreeSet<Identity> = identities
        .iter()
        .filter(|it| rights.is_audited(it))
        .cloned()
        .collect();
    let mut inet = inet_skeleton(rights.unmanaged, options);
    for identity in identities {
        add_identity(&mut inet, identity, &grants, audited.contains(identity));
    }
    for ((from, to), edges) in &grants.pairs {
        let mut rules: Vec<Rule> = edges.iter().flat_map(|edge| edge_rules(&[], edge)).collect();
        let both = audited.contains(from) && audited.contains(to);
        rules.push(goto(if both { "audit" } else { "deny" }));
        inet.chains
            .insert(names::pair(from, to), Chain { hook: None, rules });
    }
    inet.counters
        .extend(rights.policy.edges.iter().map(names::counter));

    let mut callees: BTreeMap<Identity, BTreeSet<Identity>> = identities
        .iter()
        .map(|identity| (identity.clone(), BTreeSet::new()))
        .collect();
    for (from, to) in grants.pairs.keys() {
        callees.entry((*from).clone()).or_default().insert((*to).clone());
    }
    let with_chain = |map: &BTreeMap<&Identity, Vec<&Edge>>| -> BTreeSet<Identity> {
        let declared = map.keys().map(|it| (*it).clone());
        declared.chain(audited.iter().cloned()).collect()
    };
    Structure {
        callees,
        from_host: with_chain(&grants.from_host),
        to_host: with_chain(&grants.to_host),
        audited,
        ruleset: Ruleset {
            tables: BTreeMap::from([
                (TableFamily::Inet, inet),
                (TableFamily::Bridge, bridge_table(options)),
            ]),
        },
    }
}

/// The edges, sorted by the identities that they concern.
#[derive(Default)]
struct Grants<'a> {
    pairs: BTreeMap<(&'a Identity, &'a Identity), BTreeSet<&'a Edge>>,
    called: BTreeSet<&'a Identity>,
    from_outside: BTreeMap<&'a Identity, Vec<(&'a Edge, Option<&'a AddressSet>)>>,
    to_outside: BTreeMap<&'a Identity, Vec<(&'a Edge, Option<&'a AddressSet>)>>,
    from_host: BTreeMap<&'a Identity, Vec<&'a Edge>>,
    to_host: BTreeMap<&'a Identity, Vec<&'a Edge>>,
}

impl<'a> Grants<'a> {
    fn new(rights: &'a Rights, identities: &'a BTreeSet<Identity>) -> Self {
        let mut having: BTreeMap<&ServiceId, Vec<&Identity>> = BTreeMap::new();
        for identity in identities {
            for service in identity.services() {
                having.entry(service).or_default().push(identity);
            }
        }
        let of = |service: &ServiceId| having.get(service).into_iter().flatten().copied();
        let externals = &rights.policy.externals;
        let mut grants = Self::default();
        for edge in &rights.policy.edges {
            match (&edge.from, &edge.to) {
                (Peer::Service(from), Peer::Service(to)) => {
                    for from in of(from) {
                        for to in of(to) {
                            grants.pairs.entry((from, to)).or_default().insert(edge);
                            grants.called.insert(to);
                        }
                    }
                }
                (Peer::World, Peer::Service(to)) => {
                    of(to).for_each(|it| grants.from_outside.entry(it).or_default().push((edge, None)));
                }
                (Peer::Service(from), Peer::World) => {
                    of(from).for_each(|it| grants.to_outside.entry(it).or_default().push((edge, None)));
                }
                // An external that the policy does not define names no address: it grants nothing.
                (Peer::External(external), Peer::Service(to)) => {
                    if let Some(set) = externals.get(external) {
                        of(to).for_each(|it| {
                            grants.from_outside.entry(it).or_default().push((edge, Some(set)))
                        });
                    }
                }
                (Peer::Service(from), Peer::External(external)) => {
                    if let Some(set) = externals.get(external) {
                        of(from)
                            .for_each(|it| grants.to_outside.entry(it).or_default().push((edge, Some(set))));
                    }
                }
                (Peer::Host, Peer::Service(to)) => {
                    of(to).for_each(|it| grants.from_host.entry(it).or_default().push(edge));
                }
                (Peer::Service(from), Peer::Host) => {
                    of(from).for_each(|it| grants.to_host.entry(it).or_default().push(edge));
                }
                // Validation refuses an edge without a service; such an edge grants nothing.
                (
                    Peer::World | Peer::Host | Peer::External(_),
                    Peer::World | Peer::Host | Peer::External(_),
                ) => {}
            }
        }
        grants
    }
}

/// The chains of one identity.
fn add_identity(inet: &mut Table, identity: &Identity, grants: &Grants<'_>, is_audited: bool) {
    // What no edge permits.
    let otherwise = || goto(if is_audited { "audit" } else { "deny" });
    let mut inbound = Vec::new();
    if grants.called.contains(identity) {
        for family in Family::ALL {
            let callers = names::callers(family, identity);
            let key = address_key(family);
            inet.sets.insert(
                callers.clone(),
                SetSpec {
                    key,
                    kind: SetKind::Verdicts,
                    size: None,
                },
            );
            // ip saddr vmap @from4_B
            inbound.push(rule([Statement::AddressMap(Side::Source, family, callers)]));
        }
    }
    inbound.extend(outside_rules(
        Side::Source,
        grants.from_outside.get(identity),
        is_audited,
    ));
    inbound.push(otherwise());
    inet.chains.insert(
        names::inbound(identity),
        Chain {
            hook: None,
            rules: inbound,
        },
    );

    let mut outbound = outside_rules(Side::Destination, grants.to_outside.get(identity), is_audited);
    outbound.push(otherwise());
    inet.chains.insert(
        names::outbound(identity),
        Chain {
            hook: None,
            rules: outbound,
        },
    );

    for (edges, name) in [
        (grants.from_host.get(identity), names::from_host(identity)),
        (grants.to_host.get(identity), names::to_host(identity)),
    ] {
        if edges.is_some() || is_audited {
            let edges = edges.into_iter().flatten();
            let mut rules: Vec<Rule> = edges.flat_map(|edge| edge_rules(&[], edge)).collect();
            rules.push(otherwise());
            inet.chains.insert(name, Chain { hook: None, rules });
        }
    }
}

/// The rules for world and externals, after a jump that denies (or audits) whatever is on a container's bridge.
fn outside_rules(
    side: Side,
    grants: Option<&Vec<(&Edge, Option<&AddressSet>)>>,
    is_audited: bool,
) -> Vec<Rule> {
    if grants.is_none() && !is_audited {
        return Vec::new();
    }
    let containers = match (side, is_audited) {
        (Side::Source, false) => "from_containers",
        (Side::Destination, false) => "to_containers",
        (Side::Source, true) => "audit_from_containers",
        (Side::Destination, true) => "audit_to_containers",
    };
    let mut rules = vec![rule([Statement::Jump(chain(containers))])];
    for (edge, addresses) in grants.into_iter().flatten() {
        let Some(addresses) = addresses else {
            rules.extend(edge_rules(&[], edge));
            continue;
        };
        for family in Family::ALL {
            let empty = match family {
                Family::V4 => addresses.v4.is_empty(),
                Family::V6 => addresses.v6.is_empty(),
            };
            if !empty {
                // ip daddr { 203.0.113.0-203.0.113.255 }
                let within = Addresses::Ranges((*addresses).clone());
                rules.extend(edge_rules(&[Statement::Address(side, family, within)], edge));
            }
        }
    }
    rules
}

/// `PREFIX tcp dport 8080 counter name e7 goto pass comment "shop/web -> shop/api"`, and so on for each port; ICMP needs rules
/// of its own.
fn edge_rules(prefix: &[Statement], edge: &Edge) -> Vec<Rule> {
    let mut matches: Vec<Option<Statement>> = Vec::new();
    if edge.ports.contains(&Ports::Any) {
        matches.push(None);
    } else {
        let transports: BTreeSet<_> = edge
            .ports
            .iter()
            .filter_map(|ports| match ports {
                Ports::Transport(transport, range) => Some((*transport, *range)),
                Ports::Any | Ports::Icmp(_) => None,
            })
            .collect();
        let transports = merged(&transports);
        if transports.len() <= RULES_FOR_PORTS {
            let each = transports.into_iter().map(|it| BTreeSet::from([it]));
            matches.extend(each.map(|it| Some(Statement::Ports(it))));
        } else {
            matches.push(Some(Statement::Ports(transports)));
        }
        matches.extend(
            Family::ALL
                .iter()
                .filter_map(|family| icmp(*family, &edge.ports))
                .map(Some),
        );
    }
    let comment = Some(format!("{} -> {}", edge.from, edge.to));
    matches
        .into_iter()
        .map(|ports| {
            let mut statements = prefix.to_vec();
            statements.extend(edge.until.map(Statement::Before));
            statements.extend(ports);
            statements.push(Statement::Counter(names::counter(edge)));
            statements.push(Statement::Goto(chain("pass")));
            Rule {
                statements,
                comment: comment.clone(),
            }
        })
        .collect()
}

/// The same ports in ranges that do not overlap: the kernel refuses a set with such ranges (`File exists`).
fn merged(ports: &BTreeSet<(Transport, PortRange)>) -> BTreeSet<(Transport, PortRange)> {
    let mut merged: Vec<(Transport, PortRange)> = Vec::new();
    // In order: by protocol, then by first port.
    for (transport, range) in ports {
        match merged.last_mut() {
            Some((of, last)) if of == transport && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push((*transport, *range)),
        }
    }
    merged.into_iter().collect()
}

/// `icmp type { 8 }`, or `meta l4proto icmp` where every type is open; `None` where the edge opens none.
fn icmp(family: Family, ports: &BTreeSet<Ports>) -> Option<Statement> {
    if ports.contains(&Ports::Icmp(None)) {
        return Some(Statement::Icmp(family, None));
    }
    let number = |ports: &Ports| match ports {
        Ports::Icmp(Some(icmp)) => icmp.number(family),
        Ports::Icmp(None) | Ports::Any | Ports::Transport(..) => None,
    };
    let types: BTreeSet<u8> = ports.iter().filter_map(number).collect();
    if types.is_empty() {
        None
    } else {
        Some(Statement::Icmp(family, Some(types)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{SourceFile, load};

    #[test]
    fn an_edge_has_a_set_only_for_many_ports() {
        let rules = |ports: std::ops::RangeInclusive<u16>| {
            // Every other port: none touches the next.
            let ports: Vec<_> = ports.map(|it| (it * 2).to_string()).collect();
            let text = format!(
                "cofferdam: 1\nsegment: s\nservices: {{ a: {{ select: {{ labels: {{ a: b }} }} }} }}\nallow: [{{ from: a, to: world, ports: [{}] }}]\n",
                ports.join(", ")
            );
            let file = SourceFile {
                path: "s.yaml".to_owned(),
                bytes: text.into_bytes(),
            };
            let policy = load(&[file]).unwrap().policy;
            policy.edges.iter().flat_map(|edge| edge_rules(&[], edge)).count()
        };
        assert_eq!(rules(1..=1), 1);
        assert_eq!(rules(1..=8), 8);
        assert_eq!(rules(1..=9), 1);
    }

    #[test]
    fn ranges_that_overlap_become_one() {
        let range = |first, last| PortRange { first, last };
        let (tcp, udp) = (Transport::Tcp, Transport::Udp);
        let given = [
            (tcp, range(80, 80)),
            (tcp, range(79, 81)),
            (tcp, range(82, 82)),
            (tcp, range(90, 95)),
            (tcp, range(91, 92)),
            (udp, PortRange::ALL),
            (udp, range(53, 53)),
            (udp, range(65535, 65535)),
        ];
        let expected = [(tcp, range(79, 82)), (tcp, range(90, 95)), (udp, PortRange::ALL)];
        assert_eq!(merged(&given.into()), expected.into());
    }
}
