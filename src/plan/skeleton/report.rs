//! The end of what no edge permits: counted, told as far as there is room for it, and dropped or (in audit) passed.
//!
//! Who may be told of how often is limited for each container that sends, and for what comes from elsewhere for each
//! address that it is sent to: a scan uses up its own share and nobody else's.

use super::*;
use crate::plan::ruleset::{LOG_PREFIX, Sharer};

/// Packets told of at once, and from then on for each second.
const BURST: u32 = 5000;
const PER_SECOND: u32 = 500;
/// Of frames that are not what they claim to be.
const FORGED_BURST: u32 = 500;
const FORGED_PER_SECOND: u32 = 50;
/// What more senders than these send within a minute is counted only.
const SHARES: u32 = 65_536;

/// The ways `deny` and `audit`.
pub(super) fn report_chains(table: &mut Table, group: u16) {
    for family in Family::ALL {
        let spec = SetSpec {
            key: address_key(family),
            kind: SetKind::Shares,
            size: Some(SHARES),
        };
        table.sets.insert(names::by_family("shares", family), spec);
    }
    for counter in ["denied", "audited", "unlogged"] {
        table.counters.insert(CounterName::from(counter));
    }
    for (name, from_container, end, last) in [
        ("deny", "deny_container", "denied", Statement::Drop),
        (
            "audit",
            "audit_container",
            "audited",
            Statement::Goto(chain("pass")),
        ),
    ] {
        // iifname @guarded goto deny_container
        // iifname { "docker0", "br-*", "cfd-*" } goto deny_container
        let mut rules: Vec<Rule> = [
            interface(Side::Source, "guarded"),
            Statement::Interface(Side::Source, closed_interfaces()),
        ]
        .map(|containers| rule([containers, Statement::Goto(chain(from_container))]))
        .into();
        rules.extend(reports(Side::Destination, end, group));
        plain(table, name, rules);
        plain(table, from_container, reports(Side::Source, end, group).into());
        let counted = Statement::Counter(CounterName::from(end));
        plain(table, end, vec![rule([counted, last])]);
    }
}

/// `update @shares4 { ip saddr limit … } log … goto denied`, the same for IPv6, and what is beyond the share.
fn reports(side: Side, end: &str, group: u16) -> [Rule; 3] {
    let within = |family| {
        rule([
            Statement::Share {
                of: Sharer::Address(side, family),
                set: names::by_family("shares", family),
                per_second: PER_SECOND,
                burst: BURST,
            },
            log(end, group),
            Statement::Goto(chain(end)),
        ])
    };
    let beyond = rule([
        Statement::Counter(CounterName::from("unlogged")),
        Statement::Goto(chain(end)),
    ]);
    [within(Family::V4), within(Family::V6), beyond]
}

/// The ends of frames that are not what they claim to be, or that passed the rules by.
pub(super) fn forged_chains(table: &mut Table, group: u16) {
    let spec = SetSpec {
        key: KeyType::IfIndex,
        kind: SetKind::Shares,
        size: Some(ENDPOINTS),
    };
    table.sets.insert(SetName::from("shares"), spec);
    table.counters.insert(CounterName::from("unlogged_frames"));
    for name in ["forged", "unsealed"] {
        table.counters.insert(CounterName::from(name));
        let told = rule([
            Statement::Share {
                of: Sharer::Port,
                set: SetName::from("shares"),
                per_second: FORGED_PER_SECOND,
                burst: FORGED_BURST,
            },
            log(name, group),
            Statement::Counter(CounterName::from(name)),
            Statement::Drop,
        ]);
        let beyond = rule([
            Statement::Counter(CounterName::from("unlogged_frames")),
            Statement::Counter(CounterName::from(name)),
            Statement::Drop,
        ]);
        plain(table, name, vec![told, beyond]);
    }
}

fn log(what: &str, group: u16) -> Statement {
    Statement::Log {
        prefix: format!("{LOG_PREFIX}{what}"),
        group,
    }
}
