//! What of the structure does not depend on the identities: hooks, the way to each identity's chains, and the whole bridge
//! table.

use std::collections::{BTreeMap, BTreeSet};

use super::compile::Options;
use super::names::{self, CLOSED_INTERFACES, CLOSED_PORTS, chain};
use super::ruleset::{
    Addresses, BindingSource, Chain, ChainName, CounterName, EtherType, Hook, HookPoint, Interfaces, KeyType,
    Rule, SetName, SetSpec, Side, Statement, Table,
};
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
            verdicts: false,
            size: Some(NETWORKS),
        };
        table.sets.insert(SetName::from(name), spec);
    }
    for family in Family::ALL {
        let key = address_key(family);
        for name in ["into", "outof", "fromhost", "tohost"] {
            let spec = SetSpec {
                key,
                verdicts: true,
                size: Some(ENDPOINTS),
            };
            table.sets.insert(names::by_family(name, family), spec);
        }
        let spec = SetSpec {
            key,
            verdicts: false,
            size: Some(ENDPOINTS),
        };
        table.sets.insert(names::by_family("unmanaged", family), spec);
        for name in ["hairpin", "proxied"] {
            let spec = SetSpec {
                key: service_key(family),
                verdicts: false,
                size: Some(ENDPOINTS),
            };
            table.sets.insert(names::by_family(name, family), spec);
        }
        let spec = SetSpec {
            key: nets_key(family),
            verdicts: false,
            size: Some(NETWORKS),
        };
        table.sets.insert(names::by_family("guarded", family), spec);
    }
    table.counters.insert(CounterName::from("denied"));

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

    for (point, base_name, side, governed_name, map, address) in [
        (
            HookPoint::Input,
            "local",
            Side::Source,
            "local_governed",
            "tohost",
            Side::Source,
        ),
        (
            HookPoint::Output,
            "host",
            Side::Destination,
            "host_governed",
            "fromhost",
            Side::Destination,
        ),
    ] {
        let mut rules = scope(side, governed_name);
        if point == HookPoint::Output {
            rules.extend(Family::ALL.map(|family| translated(family, governed_name)));
        }
        base(&mut table, base_name, point, -10, rules);
        let mut rules = vec![connection_state(), neighbour_discovery()];
        if point == HookPoint::Output {
            // The host's own multicast listener reports (RFC 3810) and router discovery.
            rules.push(pass(Statement::Icmp(
                Family::V6,
                Some(BTreeSet::from([131, 132, 133, 143])),
            )));
        }
        for family in Family::ALL {
            rules.push(proxy(point, family));
            // ip saddr vmap @tohost4
            rules.push(rule([Statement::AddressMap(
                address,
                family,
                names::by_family(map, family),
            )]));
        }
        rules.push(goto("deny"));
        plain(&mut table, governed_name, rules);
    }

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
    for (side, name) in [
        (Side::Source, "in_unmanaged"),
        (Side::Destination, "out_unmanaged"),
    ] {
        plain(&mut table, name, unmanaged_rules(unmanaged, side));
    }
    // meta mark set meta mark | STAMP accept
    plain(
        &mut table,
        "pass",
        vec![rule([Statement::Stamp(options.stamp), Statement::Accept])],
    );
    plain(
        &mut table,
        "deny",
        vec![
            rule([
                Statement::Limit {
                    per_second: 200,
                    burst: 200,
                },
                Statement::Log {
                    prefix: "cofferdam denied".to_owned(),
                    group: options.nflog_group,
                },
            ]),
            rule([Statement::Counter(CounterName::from("denied")), Statement::Drop]),
        ],
    );
    table
}

/// An unmanaged container's other end must be unmanaged too, or no container at all.
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
    rules.extend(scope(side, "deny"));
    rules.push(goto("pass"));
    rules
}

/// `table bridge cofferdam`: whole, for it does not depend on the policy.
pub(super) fn bridge_table(stamp: u32) -> Table {
    let mut table = Table::default();
    for (name, key, size) in [
        ("ports", KeyType::IfIndex, ENDPOINTS),
        ("open_ports", KeyType::IfIndex, ENDPOINTS),
        ("macs", KeyType::Mac, ENDPOINTS),
        ("bound4", KeyType::Binding4, ENDPOINTS),
        ("bound6", KeyType::Binding6, 2 * ENDPOINTS),
        ("guarded4", KeyType::Ipv4Nets, NETWORKS),
        ("guarded6", KeyType::Ipv6Nets, NETWORKS),
    ] {
        table.sets.insert(
            SetName::from(name),
            SetSpec {
                key,
                verdicts: false,
                size: Some(size),
            },
        );
    }
    let drop = Statement::Drop;
    let accept = Statement::Accept;
    let port = |side| Statement::Port(side, SetName::from("ports"));
    let open_port = |side| Statement::Port(side, SetName::from("open_ports"));
    let guarded =
        |side, family| Statement::Address(side, family, Addresses::In(names::by_family("guarded", family)));
    let bound = |source| Statement::Binding(source, bound_set(source));

    base(
        &mut table,
        "identity",
        HookPoint::Prerouting,
        -300,
        vec![
            // A port of a bridge that is none of our business.
            rule([open_port(Side::Source), accept.clone()]),
            rule([Statement::EtherTypeMap(BTreeMap::from([
                (EtherType::Ip, chain("identity4")),
                (EtherType::Arp, chain("identity_arp")),
                (EtherType::Ip6, chain("identity6")),
            ]))]),
            goto("other"),
        ],
    );
    plain(
        &mut table,
        "identity4",
        vec![
            // IGMP (2): a container could become the bridge's multicast querier.
            rule([port(Side::Source), Statement::Protocol(2), drop.clone()]),
            rule([bound(BindingSource::Sender(Family::V4)), accept.clone()]),
            // Neither proven nor foreign.
            rule([guarded(Side::Source, Family::V4), drop.clone()]),
            rule([guarded(Side::Destination, Family::V4), drop.clone()]),
            goto("other"),
        ],
    );
    plain(
        &mut table,
        "identity_arp",
        vec![
            rule([
                bound(BindingSource::ArpFrame),
                bound(BindingSource::ArpBody),
                accept.clone(),
            ]),
            rule([
                Statement::ArpAddress(Side::Source, SetName::from("guarded4")),
                drop.clone(),
            ]),
            rule([
                Statement::ArpAddress(Side::Destination, SetName::from("guarded4")),
                drop.clone(),
            ]),
            goto("other"),
        ],
    );
    plain(
        &mut table,
        "identity6",
        vec![
            // Multicast listener messages (130-132, 143), router solicitation and advertisement (133, 134), redirect (137).
            rule([
                Statement::Icmp(
                    Family::V6,
                    Some(BTreeSet::from([130, 131, 132, 133, 134, 137, 143])),
                ),
                drop.clone(),
            ]),
            rule([
                Statement::Icmp(Family::V6, Some(BTreeSet::from([136]))),
                Statement::Goto(chain("advert")),
            ]),
            rule([bound(BindingSource::Sender(Family::V6)), accept.clone()]),
            rule([guarded(Side::Source, Family::V6), drop.clone()]),
            rule([guarded(Side::Destination, Family::V6), drop.clone()]),
            goto("other"),
        ],
    );
    // `kernel::neighbour` puts the rules that look at an advertisement's target before this one.
    plain(&mut table, "advert", vec![rule([drop.clone()])]);
    plain(
        &mut table,
        "other",
        vec![
            rule([port(Side::Source), drop.clone()]),
            rule([Statement::EtherSource(SetName::from("macs")), drop.clone()]),
        ],
    );

    // After br_netfilter: a frame without the stamp did not pass `inet forward`.
    let mut sealed = vec![
        rule([Statement::Stamped(stamp), accept.clone()]),
        rule([Statement::EtherType(EtherType::Arp), accept.clone()]),
        rule([port(Side::Source), drop.clone()]),
        rule([port(Side::Destination), drop.clone()]),
        rule([open_port(Side::Source), accept.clone()]),
    ];
    for family in Family::ALL {
        sealed.push(rule([guarded(Side::Source, family), drop.clone()]));
        sealed.push(rule([guarded(Side::Destination, family), drop.clone()]));
    }
    // A port that nobody has looked at yet, as on a network that is made while no daemon runs. Where its bridge does not
    // call br_netfilter, `inet forward` never sees its frames, and the bridge's name cannot be asked for on every kernel.
    let unknown = Interfaces::Like(vec![CLOSED_PORTS.to_owned()]);
    sealed.push(rule([Statement::Interface(Side::Source, unknown), drop.clone()]));
    base(&mut table, "sealed", HookPoint::Forward, 100, sealed);

    // Whatever made a frame leave by this port, only the address's owner is behind it.
    let mut delivery = vec![rule([open_port(Side::Destination), accept])];
    for family in Family::ALL {
        let receiver = BindingSource::Receiver(family);
        delivery.push(rule([
            guarded(Side::Destination, family),
            Statement::NotBinding(receiver, bound_set(receiver)),
            drop.clone(),
        ]));
    }
    base(&mut table, "delivery", HookPoint::Postrouting, 100, delivery);
    table
}

fn bound_set(source: BindingSource) -> SetName {
    let family = match source {
        BindingSource::Sender(family) | BindingSource::Receiver(family) => family,
        BindingSource::ArpFrame | BindingSource::ArpBody => Family::V4,
    };
    names::by_family("bound", family)
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

/// A published port that a container reaches by an address of the host, where the engine's proxy carries it: to the proxy for
/// declared callers, and from the proxy, which is root's, to the container. Where the engine translates addresses instead,
/// the packet is forwarded like any other and neither rule is met.
fn proxy(point: HookPoint, family: Family) -> Rule {
    let service = |side, name| Statement::Service(side, family, names::by_family(name, family));
    let pass = Statement::Goto(chain("pass"));
    if point == HookPoint::Input {
        // ip saddr . meta l4proto . th dport @hairpin4 goto pass
        rule([service(Side::Source, "hairpin"), pass])
    } else {
        // meta skuid 0 ip daddr . meta l4proto . th dport @proxied4 goto pass
        rule([Statement::SentByRoot, service(Side::Destination, "proxied"), pass])
    }
}

/// `ct state vmap { established : goto pass, related : goto pass, invalid : drop }`
fn connection_state() -> Rule {
    rule([Statement::ConnectionState(chain("pass"))])
}

/// `ct status dnat ip daddr @guarded4 goto TARGET`: a process of the host that dials a published port. The hook still names the
/// interface that led to the address of the host (`lo`), not the bridge.
fn translated(family: Family, target: &str) -> Rule {
    let within = Addresses::In(names::by_family("guarded", family));
    rule([
        Statement::Translated,
        Statement::Address(Side::Destination, family, within),
        Statement::Goto(chain(target)),
    ])
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
    table
        .chains
        .insert(ChainName::from(name), Chain { hook: None, rules });
}

fn base(table: &mut Table, name: &str, point: HookPoint, priority: i32, rules: Vec<Rule>) {
    table.chains.insert(
        ChainName::from(name),
        Chain {
            hook: Some(Hook { point, priority }),
            rules,
        },
    );
}
