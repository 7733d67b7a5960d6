//! What is sent to the host itself and by it, published ports through the engine's proxy included.

use std::collections::BTreeSet;

use super::*;

/// What is sent to the host itself.
pub(super) fn local_chains(table: &mut Table) {
    let mut rules = scope(Side::Source, "local_governed");
    rules.extend(carried("carried_elsewhere"));
    base(table, "local", HookPoint::Input, -10, rules);
    let mut rules = vec![connection_state(), neighbour_discovery()];
    // An edge to the host is none to the containers behind its ports.
    rules.extend(carried("carried_from_containers"));
    rules.extend(edges_of(Side::Source, "tohost"));
    plain(table, "local_governed", rules);
}

/// What the host itself sends.
pub(super) fn host_chains(table: &mut Table) {
    let mut rules = scope(Side::Destination, "host_governed");
    rules.extend(Family::ALL.map(translated));
    base(table, "host", HookPoint::Output, -10, rules);
    let mut rules = vec![
        connection_state(),
        neighbour_discovery(),
        // The host's own multicast listener reports (RFC 3810) and router discovery.
        pass(Statement::Icmp(
            Family::V6,
            Some(BTreeSet::from([131, 132, 133, 143])),
        )),
    ];
    rules.extend(Family::ALL.map(from_proxy));
    rules.extend(edges_of(Side::Destination, "fromhost"));
    plain(table, "host_governed", rules);
    // The proxy dials the container itself.
    let mut rules = vec![connection_state()];
    rules.extend(edges_of(Side::Destination, "fromhost"));
    plain(table, "host_translated", rules);
}

/// `ip saddr vmap @tohost4`, the same for IPv6, and the end.
fn edges_of(side: Side, map: &str) -> [Rule; 3] {
    let edges = |family| rule([Statement::AddressMap(side, family, names::by_family(map, family))]);
    [edges(Family::V4), edges(Family::V6), goto("deny")]
}

/// Who may dial what the engine's proxy carries, by where it comes from.
pub(super) fn carried_chains(table: &mut Table) {
    let lo = Statement::Interface(Side::Source, Interfaces::Like(vec!["lo".to_owned()]));
    let host_port = |set| Statement::HostPort(SetName::from(set));
    let mut callers: Vec<Rule> = Family::ALL.map(dials_proxy).into();
    callers.push(goto("deny"));
    plain(table, "carried_from_containers", callers);
    plain(
        table,
        "carried_from_host",
        vec![pass(host_port("carried_host")), goto("deny")],
    );
    plain(
        table,
        "carried_elsewhere",
        vec![
            // What is only audited, from where nobody is managed.
            rule([
                interface(Side::Source, "unguarded"),
                host_port("carried_unmanaged"),
                Statement::Goto(chain("pass")),
            ]),
            rule([Statement::Jump(chain("from_containers"))]),
            rule([lo, Statement::Goto(chain("carried_from_host"))]),
            pass(host_port("carried_world")),
            goto("deny"),
        ],
    );
}

/// `ct status dnat ip daddr @guarded4 goto host_translated`: a process of the host that dials a published port. The hook still names the
/// interface that led to the address of the host (`lo`), not the bridge.
fn translated(family: Family) -> Rule {
    let within = Addresses::In(names::by_family("guarded", family));
    rule([
        Statement::Translated,
        Statement::Address(Side::Destination, family, within),
        Statement::Goto(chain("host_translated")),
    ])
}

/// `ip saddr . meta l4proto . th dport @hairpin4 goto pass`: the callers that may dial a port that the engine's proxy carries.
fn dials_proxy(family: Family) -> Rule {
    pass(Statement::Service(
        Side::Source,
        family,
        names::by_family("hairpin", family),
    ))
}

/// `meta skuid 0 ip daddr . meta l4proto . th dport @proxied4 goto pass`: the engine's proxy, which is root's, goes on to the
/// container. Where the engine translates addresses instead, the packet is forwarded like any other.
fn from_proxy(family: Family) -> Rule {
    rule([
        Statement::SentByRoot,
        Statement::Service(Side::Destination, family, names::by_family("proxied", family)),
        Statement::Goto(chain("pass")),
    ])
}

/// What the engine's proxy carries to a managed container, by port of the host: behind the proxy nobody can tell any more who
/// dialled.
fn carried(target: &str) -> [Rule; 3] {
    let by_address =
        |family| Statement::Service(Side::Destination, family, names::by_family("carried", family));
    [
        // meta nfproto . meta l4proto . th dport @carried goto TARGET
        Statement::HostPort(SetName::from("carried")),
        // ip daddr . meta l4proto . th dport @carried4 goto TARGET
        by_address(Family::V4),
        by_address(Family::V6),
    ]
    .map(|condition| rule([condition, Statement::Goto(chain(target))]))
}
