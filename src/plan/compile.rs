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
use std::sync::Arc;

use super::names::{self, chain};
use super::ruleset::{
    Addresses, Chain, ChainName, CounterName, Rule, Ruleset, SetKind, SetSpec, Side, Statement, Table,
    TableFamily,
};
use super::skeleton::{address_key, bridge_table, inet_skeleton, rule};
use super::structure::{BothFamilies, Grant, Structure, shared};
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

/// Compiles the structure for the identities that exist on this host.
pub fn compile(rights: &Rights, identities: &BTreeSet<Identity>, options: Options) -> Structure {
    let mut inet = inet_skeleton(rights.unmanaged, options);
    let edges: Vec<Counted<'_>> = rights.policy.edges.iter().map(Counted::new).collect();
    let parties = parties(rights, identities, &edges);
    let common = Common::of(&inet);
    let callers: Vec<BothFamilies> = parties.iter().map(|it| names::callers(&it.slug)).collect();
    let mut granted: Vec<Vec<Grant>> = vec![Vec::new(); parties.len()];
    // Nearly in the order of their names: a map is made fastest of what is in order.
    let mut chains = Vec::from_iter(std::mem::take(&mut inet.chains));
    let mut add = |name: ChainName, rules: Vec<Rule>| {
        chains.push((name.clone(), Arc::new(Chain { hook: None, rules })));
        Some(name)
    };
    let mut give = |number: usize, sets: &BothFamilies, goto: Option<ChainName>| {
        let sets = sets.clone();
        granted[number].push(Grant { sets, goto });
    };
    for (number, party) in parties.iter().enumerate() {
        let goto = add(
            names::inbound(&party.slug),
            inbound(party, &callers[number], &common),
        );
        give(number, &common.into, goto);
    }
    for (number, party) in parties.iter().enumerate() {
        let goto = add(names::outbound(&party.slug), outbound(party, &common));
        give(number, &common.outof, goto);
        let hosts = [
            (&party.from_host, &common.fromhost, names::from_host(&party.slug)),
            (&party.to_host, &common.tohost, names::to_host(&party.slug)),
        ];
        for (edges, sets, name) in hosts {
            if !edges.is_empty() || party.is_audited {
                let goto = add(name, edges_alone(edges, party.is_audited, &common));
                give(number, sets, goto);
            }
        }
        if party.is_audited {
            give(number, &common.audited, None);
        }
    }
    for (number, from) in parties.iter().enumerate() {
        for (callee, edges) in &from.callees {
            let to = &parties[*callee];
            let rules = edges_alone(edges, from.is_audited && to.is_audited, &common);
            let goto = add(names::pair(&from.slug, &to.slug), rules);
            give(number, &callers[*callee], goto);
        }
    }
    inet.chains = chains.into_iter().collect();
    let called = parties.iter().zip(&callers).filter(|(party, _)| party.is_called);
    for (set, family) in called.flat_map(|(_, sets)| sets.iter().zip(Family::ALL)) {
        let spec = SetSpec {
            key: address_key(family),
            kind: SetKind::Verdicts,
            size: None,
        };
        inet.sets.insert(set.set.clone(), spec);
    }
    inet.counters
        .append(&mut edges.iter().map(|it| it.counter.clone()).collect());
    Structure {
        granted: identities.iter().cloned().zip(granted).collect(),
        ruleset: Ruleset {
            tables: BTreeMap::from([
                (TableFamily::Inet, inet),
                (TableFamily::Bridge, bridge_table(options)),
            ]),
        },
    }
}

/// What all identities' chains and elements lead to.
struct Common {
    pass: ChainName,
    deny: ChainName,
    audit: ChainName,
    into: BothFamilies,
    outof: BothFamilies,
    fromhost: BothFamilies,
    tohost: BothFamilies,
    audited: BothFamilies,
}

impl Common {
    fn of(inet: &Table) -> Self {
        let chain = |name: &str| shared(&inet.chains, chain(name));
        let sets =
            |name: &str| Family::ALL.map(|it| names::inet(shared(&inet.sets, names::by_family(name, it))));
        Self {
            pass: chain("pass"),
            deny: chain("deny"),
            audit: chain("audit"),
            into: sets("into"),
            outof: sets("outof"),
            fromhost: sets("fromhost"),
            tohost: sets("tohost"),
            audited: sets("audited"),
        }
    }

    /// The rule for what no edge permits.
    fn otherwise(&self, is_audited: bool) -> Rule {
        let target = if is_audited { &self.audit } else { &self.deny };
        rule([Statement::Goto(target.clone())])
    }
}

/// An edge and the name of its counter.
struct Counted<'a> {
    edge: &'a Edge,
    counter: CounterName,
}

impl<'a> Counted<'a> {
    fn new(edge: &'a Edge) -> Self {
        Self {
            edge,
            counter: names::counter(edge),
        }
    }
}

/// An edge that ends, or begins, at the world or at an external with these addresses.
type Outside<'a> = (&'a Counted<'a>, Option<&'a AddressSet>);

/// An identity and the edges that concern it.
struct Party<'a> {
    slug: String,
    is_audited: bool,
    /// Whether any other identity may call it.
    is_called: bool,
    /// Those that it may call, by number.
    callees: BTreeMap<usize, Vec<&'a Counted<'a>>>,
    from_outside: Vec<Outside<'a>>,
    to_outside: Vec<Outside<'a>>,
    from_host: Vec<&'a Counted<'a>>,
    to_host: Vec<&'a Counted<'a>>,
}

/// The identities, numbered in their order.
fn parties<'a>(
    rights: &'a Rights,
    identities: &BTreeSet<Identity>,
    edges: &'a [Counted<'a>],
) -> Vec<Party<'a>> {
    let party = |identity: &Identity| Party {
        slug: identity.slug(),
        is_audited: rights.is_audited(identity),
        is_called: false,
        callees: BTreeMap::new(),
        from_outside: Vec::new(),
        to_outside: Vec::new(),
        from_host: Vec::new(),
        to_host: Vec::new(),
    };
    let mut parties: Vec<Party<'a>> = identities.iter().map(party).collect();
    let mut having: BTreeMap<&ServiceId, Vec<usize>> = BTreeMap::new();
    for (number, identity) in identities.iter().enumerate() {
        for service in identity.services() {
            having.entry(service).or_default().push(number);
        }
    }
    let of = |service: &ServiceId| having.get(service).into_iter().flatten().copied();
    let externals = &rights.policy.externals;
    for counted in edges {
        match (&counted.edge.from, &counted.edge.to) {
            (Peer::Service(from), Peer::Service(to)) => {
                for from in of(from) {
                    for to in of(to) {
                        parties[from].callees.entry(to).or_default().push(counted);
                        parties[to].is_called = true;
                    }
                }
            }
            (Peer::World, Peer::Service(to)) => {
                of(to).for_each(|it| parties[it].from_outside.push((counted, None)));
            }
            (Peer::Service(from), Peer::World) => {
                of(from).for_each(|it| parties[it].to_outside.push((counted, None)));
            }
            // An external that the policy does not define names no address: it grants nothing.
            (Peer::External(external), Peer::Service(to)) => {
                if let Some(set) = externals.get(external) {
                    of(to).for_each(|it| parties[it].from_outside.push((counted, Some(set))));
                }
            }
            (Peer::Service(from), Peer::External(external)) => {
                if let Some(set) = externals.get(external) {
                    of(from).for_each(|it| parties[it].to_outside.push((counted, Some(set))));
                }
            }
            (Peer::Host, Peer::Service(to)) => {
                of(to).for_each(|it| parties[it].from_host.push(counted));
            }
            (Peer::Service(from), Peer::Host) => {
                of(from).for_each(|it| parties[it].to_host.push(counted));
            }
            // Validation refuses an edge without a service; such an edge grants nothing.
            (Peer::World | Peer::Host | Peer::External(_), Peer::World | Peer::Host | Peer::External(_)) => {}
        }
    }
    parties
}

/// What may be sent to an identity: by the caller's address first.
fn inbound(party: &Party<'_>, callers: &BothFamilies, common: &Common) -> Vec<Rule> {
    let mut rules = Vec::new();
    if party.is_called {
        for (set, family) in callers.iter().zip(Family::ALL) {
            // ip saddr vmap @from4_B
            let map = Statement::AddressMap(Side::Source, family, set.set.clone());
            rules.push(rule([map]));
        }
    }
    let outside = outside_rules(Side::Source, &party.from_outside, party.is_audited, common);
    rules.extend(outside);
    rules.push(common.otherwise(party.is_audited));
    rules
}

/// What an identity may send to other than containers.
fn outbound(party: &Party<'_>, common: &Common) -> Vec<Rule> {
    let mut rules = outside_rules(Side::Destination, &party.to_outside, party.is_audited, common);
    rules.push(common.otherwise(party.is_audited));
    rules
}

/// The rules of these edges, and what becomes of everything else.
fn edges_alone(edges: &[&Counted<'_>], is_audited: bool, common: &Common) -> Vec<Rule> {
    let permitted = edges.iter().flat_map(|edge| edge_rules(&[], edge, &common.pass));
    permitted.chain([common.otherwise(is_audited)]).collect()
}

/// The rules for world and externals, after a jump that denies (or audits) whatever is on a container's bridge.
fn outside_rules(side: Side, edges: &[Outside<'_>], is_audited: bool, common: &Common) -> Vec<Rule> {
    if edges.is_empty() && !is_audited {
        return Vec::new();
    }
    let containers = match (side, is_audited) {
        (Side::Source, false) => "from_containers",
        (Side::Destination, false) => "to_containers",
        (Side::Source, true) => "audit_from_containers",
        (Side::Destination, true) => "audit_to_containers",
    };
    let mut rules = vec![rule([Statement::Jump(chain(containers))])];
    for (edge, addresses) in edges {
        let Some(addresses) = addresses else {
            rules.extend(edge_rules(&[], edge, &common.pass));
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
                let within = Statement::Address(side, family, within);
                rules.extend(edge_rules(&[within], edge, &common.pass));
            }
        }
    }
    rules
}

/// `PREFIX tcp dport 8080 counter name e7 goto pass comment "shop/web -> shop/api"`, and so on for each port; ICMP needs rules
/// of its own.
fn edge_rules(prefix: &[Statement], Counted { edge, counter }: &Counted<'_>, pass: &ChainName) -> Vec<Rule> {
    let mut matches: Vec<Option<Statement>> = Vec::new();
    if edge.ports.contains(&Ports::Any) {
        matches.push(None);
    } else {
        let transports = merged(edge.ports.iter().filter_map(|ports| match ports {
            Ports::Transport(transport, range) => Some((*transport, *range)),
            Ports::Any | Ports::Icmp(_) => None,
        }));
        if transports.len() <= RULES_FOR_PORTS {
            let each = transports.into_iter().map(|it| BTreeSet::from([it]));
            matches.extend(each.map(|it| Some(Statement::Ports(it))));
        } else {
            matches.push(Some(Statement::Ports(transports.into_iter().collect())));
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
            let mut statements = Vec::with_capacity(prefix.len() + 4);
            statements.extend_from_slice(prefix);
            statements.extend(edge.until.map(Statement::Before));
            statements.extend(ports);
            statements.push(Statement::Counter(counter.clone()));
            statements.push(Statement::Goto(pass.clone()));
            Rule {
                statements,
                comment: comment.clone(),
            }
        })
        .collect()
}

/// The same ports, given in their order, in ranges that do not overlap: the kernel refuses a set with such ranges (`File exists`).
fn merged(ports: impl Iterator<Item = (Transport, PortRange)>) -> Vec<(Transport, PortRange)> {
    let mut merged: Vec<(Transport, PortRange)> = Vec::new();
    // In order: by protocol, then by first port.
    for (transport, range) in ports {
        match merged.last_mut() {
            Some((of, last)) if *of == transport && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push((transport, range)),
        }
    }
    merged
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
            let edges = policy.edges.iter().map(Counted::new);
            edges
                .map(|it| edge_rules(&[], &it, &chain("pass")).len())
                .sum::<usize>()
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
        assert_eq!(merged(BTreeSet::from(given).into_iter()), expected);
    }
}
