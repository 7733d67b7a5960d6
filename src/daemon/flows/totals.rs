//! Attempts by who tried whom and why it was refused, for metrics. They only grow: a record that made room for another
//! stays counted.

use std::collections::BTreeMap;

use super::record::{EndKind, FlowEnd, FlowRecord, FlowVerdict};

/// The most sums; what comes after them is added up in one for each verdict.
const MOST: usize = 1000;

/// Whose attempts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowSet {
    /// Services joined by `+`, or what kind of end it is.
    pub from: String,
    pub to: String,
    pub reason: &'static str,
}

/// Attempts by verdict.
#[derive(Debug, Clone, Default)]
pub struct FlowTotals {
    sums: BTreeMap<(FlowVerdict, FlowSet), u64>,
    other: BTreeMap<FlowVerdict, u64>,
}

impl FlowTotals {
    /// So many more attempts of this flow.
    pub fn add(&mut self, flow: &FlowRecord, attempts: u64) {
        let set = FlowSet {
            from: label(&flow.from),
            to: label(&flow.to),
            reason: reason(flow),
        };
        let room = self.sums.len() < MOST;
        let sum = match self.sums.entry((flow.verdict, set)) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) if room => entry.insert(0),
            _ => self.other.entry(flow.verdict).or_default(),
        };
        *sum = sum.saturating_add(attempts);
    }

    /// The sums of a verdict, in order.
    pub fn of(&self, verdict: FlowVerdict) -> impl Iterator<Item = (&FlowSet, u64)> {
        let sums = self.sums.iter().filter(move |((which, _), _)| *which == verdict);
        sums.map(|((_, set), sum)| (set, *sum))
    }

    /// What found no room among them.
    pub fn other(&self, verdict: FlowVerdict) -> u64 {
        self.other.get(&verdict).copied().unwrap_or_default()
    }
}

fn label(end: &FlowEnd) -> String {
    match end.kind {
        EndKind::Service => end
            .services
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("+"),
        EndKind::Unmanaged => "unmanaged".to_owned(),
        EndKind::Closed => "closed".to_owned(),
        EndKind::Host => "host".to_owned(),
        EndKind::World => "world".to_owned(),
        EndKind::Unknown => "unknown".to_owned(),
    }
}

/// One of a few words for why.
pub fn reason(flow: &FlowRecord) -> &'static str {
    let is = |kind| flow.from.kind == kind || flow.to.kind == kind;
    match flow.verdict {
        FlowVerdict::Identity => "forged",
        FlowVerdict::Denied | FlowVerdict::Audited => {
            if is(EndKind::Closed) {
                "closed"
            } else if is(EndKind::Unknown) {
                "unknown-address"
            } else if is(EndKind::Unmanaged) {
                "unmanaged"
            } else {
                "no-edge"
            }
        }
    }
}
