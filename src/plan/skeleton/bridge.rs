//! The bridge table: who is who.

use std::collections::BTreeMap;

use super::*;
use crate::plan::ruleset::{BindingSource, EtherType};

/// `table bridge cofferdam`: whole, for it does not depend on the policy.
pub(in crate::plan) fn bridge_table(options: Options) -> Table {
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
                kind: SetKind::Plain,
                size: Some(size),
            },
        );
    }
    forged_chains(&mut table, options.nflog_group);
    let drop = Statement::Drop;
    // Neither proven nor foreign.
    let forged = || Statement::Goto(chain("forged"));
    let unsealed = || Statement::Goto(chain("unsealed"));
    let accept = Statement::Accept;
    let port = |side| Statement::Port(side, SetName::from("ports"));
    let open_port = |side| Statement::Port(side, SetName::from("open_ports"));
    let guarded =
        |side, family| Statement::Address(side, family, Addresses::In(names::by_family("guarded", family)));
    let bound = |source| Statement::Binding(source, bound_set(source));

    // Most frames come from a proven sender: one lookup. Whatever else a port that is none of our business sends may pass.
    let open = || rule([open_port(Side::Source), accept.clone()]);
    let proven = |source| rule([bound(source), accept.clone()]);
    base(
        &mut table,
        "identity",
        HookPoint::Prerouting,
        -300,
        vec![
            rule([Statement::EtherTypeMap(BTreeMap::from([
                (EtherType::Ip, chain("identity4")),
                (EtherType::Arp, chain("identity_arp")),
                (EtherType::Ip6, chain("identity6")),
            ]))]),
            open(),
            goto("other"),
        ],
    );
    plain(
        &mut table,
        "identity4",
        vec![
            // IGMP (2): a container could become the bridge's multicast querier.
            rule([Statement::Protocol(2), port(Side::Source), drop.clone()]),
            proven(BindingSource::Sender(Family::V4)),
            open(),
            rule([guarded(Side::Source, Family::V4), forged()]),
            rule([guarded(Side::Destination, Family::V4), forged()]),
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
            open(),
            rule([
                Statement::ArpAddress(Side::Source, SetName::from("guarded4")),
                forged(),
            ]),
            rule([
                Statement::ArpAddress(Side::Destination, SetName::from("guarded4")),
                forged(),
            ]),
            goto("other"),
        ],
    );
    plain(
        &mut table,
        "identity6",
        vec![
            // Multicast listener messages (130-132, 143), router solicitation and advertisement (133, 134), neighbour
            // advertisement (136), redirect (137).
            rule([
                Statement::Icmp(
                    Family::V6,
                    Some(BTreeSet::from([130, 131, 132, 133, 134, 136, 137, 143])),
                ),
                Statement::Goto(chain("on_link")),
            ]),
            proven(BindingSource::Sender(Family::V6)),
            open(),
            rule([guarded(Side::Source, Family::V6), forged()]),
            rule([guarded(Side::Destination, Family::V6), forged()]),
            goto("other"),
        ],
    );
    plain(
        &mut table,
        "on_link",
        vec![
            open(),
            rule([
                Statement::Icmp(Family::V6, Some(BTreeSet::from([136]))),
                Statement::Goto(chain("advert")),
            ]),
            rule([drop.clone()]),
        ],
    );
    // `kernel::neighbour` puts the rules that look at an advertisement's target before this one.
    plain(&mut table, "advert", vec![rule([drop.clone()])]);
    plain(
        &mut table,
        "other",
        vec![
            rule([port(Side::Source), forged()]),
            rule([Statement::EtherSource(SetName::from("macs")), forged()]),
        ],
    );

    // After br_netfilter: a frame without the stamp did not pass `inet forward`.
    let mut sealed = vec![
        rule([Statement::Stamped(options.stamp), accept.clone()]),
        rule([Statement::EtherType(EtherType::Arp), accept.clone()]),
        rule([port(Side::Source), unsealed()]),
        rule([port(Side::Destination), unsealed()]),
        rule([open_port(Side::Source), accept.clone()]),
    ];
    for family in Family::ALL {
        sealed.push(rule([guarded(Side::Source, family), unsealed()]));
        sealed.push(rule([guarded(Side::Destination, family), unsealed()]));
    }
    // A port that nobody has looked at yet, as on a network that is made while no daemon runs. Where its bridge does not
    // call br_netfilter, `inet forward` never sees its frames, and the bridge's name cannot be asked for on every kernel.
    let unknown = Interfaces::Like(vec![CLOSED_PORTS.to_owned()]);
    sealed.push(rule([Statement::Interface(Side::Source, unknown), drop.clone()]));
    base(&mut table, "sealed", HookPoint::Forward, 100, sealed);

    // Whatever made a frame leave by this port, only the address's owner is behind it.
    let mut delivery: Vec<Rule> = Family::ALL
        .map(|family| proven(BindingSource::Receiver(family)))
        .into();
    delivery.push(rule([open_port(Side::Destination), accept.clone()]));
    for family in Family::ALL {
        delivery.push(rule([guarded(Side::Destination, family), drop.clone()]));
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
