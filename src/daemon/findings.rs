//! Which containers cannot be held to their rights: told in the log when that begins and when it ends, and counted.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use crate::inventory::ContainerId;
use crate::model::{Finding, Unenforceable};
use crate::plan::Planner;

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    told: BTreeMap<ContainerId, Told>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    name: String,
    what: BTreeSet<Unenforceable>,
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    name: String,
    what: Unenforceable,
    begins: bool,
}

impl Findings {
    /// Logs what has changed since the last time.
    pub(super) fn observe(&mut self, planner: &Planner) {
        let name = |id: &ContainerId| {
            let container = planner.inventory().container(id);
            container.map_or_else(|| id.to_string(), |it| it.name.clone())
        };
        let found = planner.unenforceable().iter().map(|(id, findings)| {
            let what = findings.iter().map(|finding| finding.what.clone()).collect();
            let name = name(id);
            (id.clone(), Told { name, what })
        });
        for Change { name, what, begins } in self.take(found.collect()) {
            let (container, kind) = (name, what.kind());
            if begins {
                warn!(container, kind, reason = %what, "a container cannot be held to its rights");
            } else {
                info!(container, kind, reason = %what, "no longer so: a container could not be held to its rights");
            }
        }
    }

    fn take(&mut self, found: BTreeMap<ContainerId, Told>) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut tell = |from: &BTreeMap<ContainerId, Told>, to: &BTreeMap<ContainerId, Told>, begins| {
            for (id, told) in from {
                for what in &told.what {
                    if !to.get(id).is_some_and(|other| other.what.contains(what)) {
                        let (name, what) = (told.name.clone(), what.clone());
                        changes.push(Change { name, what, begins });
                    }
                }
            }
        };
        tell(&self.told, &found, false);
        tell(&found, &self.told, true);
        self.told = found;
        changes
    }
}

/// How many containers have at least one finding of each kind.
pub(super) fn counts(findings: &BTreeMap<ContainerId, Vec<Finding>>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for findings in findings.values() {
        let kinds: BTreeSet<&str> = findings.iter().map(|finding| finding.what.kind()).collect();
        for kind in kinds {
            *counts.entry(kind.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_when_it_begins_and_once_when_it_ends() {
        let found = |what: &[Unenforceable]| {
            let told = Told {
                name: "web".to_owned(),
                what: what.iter().cloned().collect(),
            };
            BTreeMap::from([(ContainerId("1".into()), told)])
        };
        let mut findings = Findings::default();
        let mut take = |now| -> Vec<(Unenforceable, bool)> {
            let changes = findings.take(now).into_iter();
            changes.map(|change| (change.what, change.begins)).collect()
        };
        let (host, privileged) = (Unenforceable::HostNetwork, Unenforceable::Privileged);
        assert_eq!(take(found(std::slice::from_ref(&host))), [(host.clone(), true)]);
        assert_eq!(take(found(std::slice::from_ref(&host))), []);
        assert_eq!(
            take(found(std::slice::from_ref(&privileged))),
            [(host, false), (privileged.clone(), true)]
        );
        assert_eq!(take(BTreeMap::new()), [(privileged, false)]);
    }
}
