//! What of the structure does not depend on the identities: hooks, the way to each identity's chains, and the whole bridge
//! table.

mod bridge;
mod host;
mod report;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::compile::Options;
use super::names::{self, CLOSED_INTERFACES, CLOSED_PORTS, chain};
use super::ruleset::{
    Addresses, Chain, ChainName, CounterName, Hook, HookPoint, Interfaces, KeyType, Rule, SetKind, SetName,
    SetSpec, Side, Statement, Table,
};
pub(super) use bridge::bridge_table;
use host::{carried_chains, host_chains, local_chains};
use report::{forged_chains, report_chains};

use crate::model::Unmanaged;
use crate::net::Family;

/// The most elements of each global set; one element is one endpoint's address, binding, port or network.
const ENDPOINTS: u32 = 65_536;
const NETWORKS: u32 = 4_096;

/// `ip6 hoplimit 255 icmpv6 type { 135, 136 } goto pass`: neighbour solicitation and advertisement (RFC 4861), proven by
/// `bridge identity`. The host would forward one with a routable destination like any packet, out to the world.
fn neighbour_discovery() -> Rule {
    let types = BTreeSet::from([135, 136]);
    rule([
        Statement::OnLink,
        Statement::Icmp(Family::V6, Some(types)),
        Statement::Goto(chain("pass")),
    ])
}

/// Everything of `table inet cofferdam` that does not depend on the identities.
pub(super) fn inet_skeleton(unmanaged: Unmanaged, options: Options) -> Table {
    let mut table = Table::default();
    for name in ["guarded", "unguarded", "foreign"] {
        let spec = SetSpec {
            key: KeyType::IfName,
            kind: SetKind::Plain,
            size: Some(NETWORKS),
        };
        table.sets.insert(SetName::from(name), spec);
    }
    for family in Family::ALL {
        let key = address_key(family);
        for name in ["into", "outof", "fromhost", "tohost"] {
            let spec = SetSpec {
                key,
                kind: SetKind::Verdicts,
                size: Some(ENDPOINTS),
            };
            table.sets.insert(names::by_family(name, family), spec);
        }
        let spec = SetSpec {
            key,
            kind: SetKind::Plain,
            size: Some(ENDPOINTS),
        };
        for name in ["unmanaged", "audited"] {
            table.sets.insert(names::by_family(name, family), spec);
        }
        for name in ["hairpin", "proxied", "carried"] {
            let spec = SetSpec {
                key: service_key(family),
                kind: SetKind::Plain,
                size: Some(ENDPOINTS),
            };
            table.sets.insert(names::by_family(name, family), spec);
        }
        let spec = SetSpec {
            key: nets_key(family),
            kind: SetKind::Plain,
            size: Some(NETWORKS),
        };
        table.sets.insert(names::by_family("guarded", family), spec);
    }
    for name in ["carried", "carried_world", "carried_host", "carried_unmanaged"] {
        let spec = SetSpec {
            key: KeyType::HostPort,
            kind: SetKind::Plain,
            size: Some(ENDPOINTS),
        };
        table.sets.insert(SetName::from(name), spec);
    }

    base(&mut table, "forward", HookPoint::Forward, -10, {
        let mut rules = scope(Side::Source, "governed");
        rules.extend(scope(Side::Destination, "arriving"));
        rules
    });
    // From an interface that no container is on: an address of a guarded network is forged.
    let mut arriving: Vec<Rule> = Family::ALL.iter().map(|family| forged(*family)).collect();
    arriving.push(goto("governed"));
    plain(&mut table, "arriving", arriving);

    let mut governed = vec![connection_state(), neighbour_discovery()];
    for (side, name) in [(Side::Destination, "into"), (Side::Source, "outof")] {
        for family in Family::ALL {
            // ip daddr vmap @into4
            governed.push(rule([Statement::AddressMap(
                side,
                family,
                names::by_family(name, family),
            )]));
        }
    }
    governed.push(goto("deny"));
    plain(&mut table, "governed", governed);

    local_chains(&mut table);
    host_chains(&mut table);
    for (side, name) in [
        (Side::Source, "from_containers"),
        (Side::Destination, "to_containers"),
    ] {
        plain(
            &mut table,
            name,
            vec![
                rule([interface(side, "guarded"), Statement::Goto(chain("deny"))]),
                rule([interface(side, "unguarded"), Statement::Goto(chain("deny"))]),
                rule([
                    Statement::Interface(side, closed_interfaces()),
                    Statement::Interface(side, Interfaces::NotIn(SetName::from("foreign"))),
                    Statement::Goto(chain("deny")),
                ]),
            ],
        );
    }
    carried_chains(&mut table);
    for (side, name) in [
        (Side::Source, "in_unmanaged"),
        (Side::Destination, "out_unmanaged"),
    ] {
        plain(&mut table, name, unmanaged_rules(unmanaged, side));
    }
    for (side, name) in [
        (Side::Source, "audit_from_containers"),
        (Side::Destination, "audit_to_containers"),
    ] {
        plain(&mut table, name, audit_rules(unmanaged, side));
    }
    // Errors of open connections. What a helper of the kernel's expects, since another connection announced it, is a
    // connection like any other.
    let errors = Family::ALL.map(|family| pass(Statement::Icmp(family, None)));
    plain(&mut table, "related", errors.into());
    // meta mark set meta mark | STAMP accept
    plain(
        &mut table,
        "pass",
        vec![rule([Statement::Stamp(options.stamp), Statement::Accept])],
    );
    report_chains(&mut table, options.nflog_group);
    table
}

/// One end is in audit: what the other end, on this side, is a container of passes as audited, unless that one enforces or
/// nobody knows it.
fn audit_rules(unmanaged: Unmanaged, side: Side) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .iter()
        .map(|it| audited(side, *it, "audited"))
        .collect();
    if unmanaged == Unmanaged::Allow {
        rules.extend(Family::ALL.iter().map(|it| audited(side, *it, "unmanaged")));
        // iifname @unguarded goto audit: only unmanaged containers are there.
        rules.push(rule([
            interface(side, "unguarded"),
            Statement::Goto(chain("audit")),
        ]));
    }
    rules.push(goto(match side {
        Side::Source => "from_containers",
        Side::Destination => "to_containers",
    }));
    rules
}

/// `ip saddr @audited4 goto audit`
fn audited(side: Side, family: Family, set: &str) -> Rule {
    let within = Addresses::In(names::by_family(set, family));
    rule([
        Statement::Address(side, family, within),
        Statement::Goto(chain("audit")),
    ])
}

/// An unmanaged container's other end must be unmanaged too, or in audit, or no container at all.
fn unmanaged_rules(unmanaged: Unmanaged, side: Side) -> Vec<Rule> {
    if unmanaged == Unmanaged::Deny {
        return vec![goto("deny")];
    }
    let mut rules: Vec<Rule> = Family::ALL
        .iter()
        .map(|family| {
            let within = Addresses::In(names::by_family("unmanaged", *family));
            pass(Statement::Address(side, *family, within))
        })
        .collect();
    rules.extend(Family::ALL.iter().map(|it| audited(side, *it, "audited")));
    rules.extend(scope(side, "deny"));
    rules.push(goto("pass"));
    rules
}

pub(super) fn address_key(family: Family) -> KeyType {
    match family {
        Family::V4 => KeyType::Ipv4,
        Family::V6 => KeyType::Ipv6,
    }
}

fn service_key(family: Family) -> KeyType {
    match family {
        Family::V4 => KeyType::Service4,
        Family::V6 => KeyType::Service6,
    }
}

fn nets_key(family: Family) -> KeyType {
    match family {
        Family::V4 => KeyType::Ipv4Nets,
        Family::V6 => KeyType::Ipv6Nets,
    }
}

/// Sends what comes from (or goes to) a closed bridge to a chain: a guarded one, or one that nobody has looked at yet.
fn scope(side: Side, target: &str) -> Vec<Rule> {
    let not_in = |name: &str| Statement::Interface(side, Interfaces::NotIn(SetName::from(name)));
    vec![
        // iifname @guarded goto TARGET
        rule([interface(side, "guarded"), Statement::Goto(chain(target))]),
        // iifname { "docker0", "br-*", "cfd-*" } iifname != @unguarded iifname != @foreign goto TARGET
        rule([
            Statement::Interface(side, closed_interfaces()),
            not_in("unguarded"),
            not_in("foreign"),
            Statement::Goto(chain(target)),
        ]),
    ]
}

fn closed_interfaces() -> Interfaces {
    Interfaces::Like(CLOSED_INTERFACES.map(str::to_owned).to_vec())
}

fn interface(side: Side, set: &str) -> Statement {
    Statement::Interface(side, Interfaces::In(SetName::from(set)))
}

/// `ct state vmap { established : goto pass, related : jump related, invalid : drop }`
fn connection_state() -> Rule {
    rule([Statement::ConnectionState {
        established: chain("pass"),
        related: chain("related"),
    }])
}

/// `ip saddr @guarded4 goto deny`
fn forged(family: Family) -> Rule {
    let within = Addresses::In(names::by_family("guarded", family));
    rule([
        Statement::Address(Side::Source, family, within),
        Statement::Goto(chain("deny")),
    ])
}

fn pass(condition: Statement) -> Rule {
    rule([condition, Statement::Goto(chain("pass"))])
}

pub(super) fn goto(target: &str) -> Rule {
    rule([Statement::Goto(chain(target))])
}

pub(super) fn rule(statements: impl Into<Vec<Statement>>) -> Rule {
    Rule {
        statements: statements.into(),
        comment: None,
    }
}

fn plain(table: &mut Table, name: &str, rules: Vec<Rule>) {
    add(table, name, Chain { hook: None, rules });
}

fn base(table: &mut Table, name: &str, point: HookPoint, priority: i32, rules: Vec<Rule>) {
    let hook = Some(Hook { point, priority });
    add(table, name, Chain { hook, rules });
}

fn add(table: &mut Table, name: &str, chain: Chain) {
    table.chains.insert(ChainName::from(name), Arc::new(chain));
}
