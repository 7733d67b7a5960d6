//! The end of what no edge permits: counted, told as far as there is room for it, and dropped or (in audit) passed.
//!
//! How often is told is limited for each container that sends, by its proven Ethernet address, and for what comes from elsewhere
//! for each network that it is sent to: a scan uses up its own share and nobody else's. No share is kept by IP address: what
//! the sets say of an address must end with its container.

use super::*;
use crate::plan::names::{UNLOGGED_FRAMES, UNLOGGED_PACKETS};
use crate::plan::ruleset::{LOG_PREFIX, Sharer};

/// Packets told of at once, and from then on for each second. A share is forgotten when it would be full again.
const BURST: u32 = 5000;
const PER_SECOND: u32 = 500;
/// Of frames that are not what they claim to be.
const FORGED_BURST: u32 = 500;
const FORGED_PER_SECOND: u32 = 50;

/// The ways `deny` and `audit`.
pub(super) fn report_chains(table: &mut Table, group: u16) {
    share_set(table, "senders", KeyType::Mac);
    share_set(table, "receivers", KeyType::IfIndex);
    for counter in ["denied", "audited", UNLOGGED_PACKETS] {
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
        let mut rules = vec![rule([
            interface(Side::Source, "guarded"),
            Statement::Goto(chain(from_container)),
        ])];
        rules.extend(reports(Sharer::Receiver, "receivers", end, group));
        plain(table, name, rules);
        let rules = reports(Sharer::Sender, "senders", end, group);
        plain(table, from_container, rules.into());
        let counted = Statement::Counter(CounterName::from(end));
        plain(table, end, vec![rule([counted, last])]);
    }
}

fn share_set(table: &mut Table, name: &str, key: KeyType) {
    let spec = SetSpec {
        key,
        kind: SetKind::Shares,
        size: Some(ENDPOINTS),
    };
    table.sets.insert(SetName::from(name), spec);
}

/// `update @senders { ether saddr limit … } log … goto denied`, and what is beyond the share.
fn reports(of: Sharer, set: &str, end: &str, group: u16) -> [Rule; 2] {
    let within = rule([
        Statement::Share {
            of,
            set: SetName::from(set),
            per_second: PER_SECOND,
            burst: BURST,
        },
        log(end, group),
        Statement::Goto(chain(end)),
    ]);
    let beyond = rule([
        Statement::Counter(CounterName::from(UNLOGGED_PACKETS)),
        Statement::Goto(chain(end)),
    ]);
    [within, beyond]
}

/// The ends of frames that are not what they claim to be, or that passed the rules by.
pub(super) fn forged_chains(table: &mut Table, group: u16) {
    share_set(table, "senders", KeyType::IfIndex);
    table.counters.insert(CounterName::from(UNLOGGED_FRAMES));
    for name in ["forged", "unsealed"] {
        table.counters.insert(CounterName::from(name));
        let told = rule([
            Statement::Share {
                of: Sharer::Port,
                set: SetName::from("senders"),
                per_second: FORGED_PER_SECOND,
                burst: FORGED_BURST,
            },
            log(name, group),
            Statement::Counter(CounterName::from(name)),
            Statement::Drop,
        ]);
        let beyond = rule([
            Statement::Counter(CounterName::from(UNLOGGED_FRAMES)),
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
