//! Why something is denied, in sentences.

use std::collections::BTreeSet;

use super::{End, Question};
use crate::model::{Identity, Rights, Standing};
use crate::policy::{Edge, Ports, ServiceId};

/// What stands in the way; the edge that is missing is another matter.
pub(super) fn reasons(rights: &Rights, question: &Question, between: &[Edge]) -> Vec<String> {
    let (from, to) = (&question.from, &question.to);
    let mut reasons: Vec<String> = [from, to].into_iter().filter_map(closed).collect();
    if reasons.is_empty() {
        reasons.extend([from, to].into_iter().filter_map(unmanaged));
    }
    if reasons.is_empty() {
        let what = match question.ports {
            Ports::Transport(_, range) if range.first == range.last => "that port",
            Ports::Transport(..) => "all of those ports",
            Ports::Icmp(Some(_)) => "that message",
            Ports::Icmp(None) => "every ICMP message",
            Ports::Any => "everything",
        };
        reasons.push(if between.is_empty() {
            format!("there is no edge from {from} to {to}")
        } else {
            format!("no edge from {from} to {to} has {what}")
        });
    }
    let audited = |end: &End| end.identity().map(|identity| rights.is_audited(&identity));
    for (end, other) in [(from, to), (to, from)] {
        if audited(end) == Some(true) && audited(other) == Some(false) {
            reasons.push(format!("{end} is in audit, but {other} enforces"));
        }
    }
    reasons
}

/// In one sentence why one connection was denied, or passed as audited: `no edge from shop/web to shop/db`. `what` names the
/// traffic: `5432/tcp`.
pub fn denial(rights: &Rights, from: &End, to: &End, what: &str) -> String {
    let ends = [from, to];
    if let Some(reason) = ends.into_iter().find_map(closed) {
        return reason;
    }
    if let Some(name) = ends.into_iter().find_map(nameless) {
        return format!("no edge can name {name}: no service selects it");
    }
    let is_between =
        |edge: &Edge| from.touches(&edge.from, &rights.policy) && to.touches(&edge.to, &rights.policy);
    let [from, to] = ends.map(|end| match end.identity() {
        Some(identity) => identity.to_string(),
        None if matches!(end, End::Outside(_)) => End::World.to_string(),
        None => end.to_string(),
    });
    match rights.policy.edges.iter().any(is_between) {
        true => format!("no edge from {from} to {to} has {what}"),
        false => format!("no edge from {from} to {to}"),
    }
}

fn nameless(end: &End) -> Option<&str> {
    match end {
        End::Container {
            name,
            standing: Standing::Unmanaged,
        } => Some(name),
        _ => None,
    }
}

fn closed(end: &End) -> Option<String> {
    let End::Container { name, standing } = end else {
        return None;
    };
    match standing {
        Standing::Quarantined(services) if services.is_empty() => Some(format!(
            "`{name}` is quarantined: whose it is cannot be told, so it is denied everything"
        )),
        Standing::Quarantined(services) => Some(format!(
            "`{name}` is quarantined: services of several segments claim it ({}), so it is denied everything until only one does",
            list(services)
        )),
        Standing::Isolated(identity) => Some(format!(
            "`{name}` ({identity}) is isolated: no rule could hold it to its rights, and the settings say that it is cut then"
        )),
        Standing::Managed(_) | Standing::Unmanaged => None,
    }
}

fn unmanaged(end: &End) -> Option<String> {
    nameless(end)
        .map(|name| format!("no service selects `{name}`, so no edge can name it: it needs a service first"))
}

fn list(services: &BTreeSet<ServiceId>) -> String {
    let names: Vec<String> = services.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// `shop/web`, or `two (shop/api+shop/trial)`.
pub(super) fn described(end: &End) -> String {
    let identity: Option<Identity> = match end {
        End::Container { standing, .. } => standing.services().cloned().and_then(Identity::new),
        _ => None,
    };
    match identity {
        Some(identity) => format!("{end} ({identity})"),
        None => end.to_string(),
    }
}
