//! A plan in JSON, as it is printed and saved.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::render::Shown;
use crate::daemon::preview::Basis;
use crate::plan::compare::{Change, Changes};
use crate::plan::impact::{Ending, Touched};
use crate::policy::Mode;

/// The object.
#[derive(Debug, Serialize)]
pub(super) struct Object<'a> {
    #[serde(flatten)]
    basis: Option<&'a Basis>,
    /// `null`: what is in force is not known.
    changes: Option<ChangesObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<BTreeMap<&'a str, TouchedObject<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections_ended: Option<Vec<EndingObject<'a>>>,
}

#[derive(Debug, Serialize)]
struct TouchedObject<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'a str>,
    joins: &'a BTreeSet<String>,
    leaves: &'a BTreeSet<String>,
}

#[derive(Debug, Serialize)]
struct EndingObject<'a> {
    client: &'a str,
    server: &'a str,
    traffic: &'a str,
    count: usize,
}

impl<'a> From<&'a Shown> for Object<'a> {
    fn from(shown: &'a Shown) -> Self {
        let touched = |touched: &'a Touched| TouchedObject {
            before: touched.standing.as_ref().map(|(was, _)| was.as_str()),
            after: touched.standing.as_ref().map(|(_, is)| is.as_str()),
            joins: &touched.joins,
            leaves: &touched.leaves,
        };
        let ending = |(ending, count): (&'a Ending, &usize)| EndingObject {
            client: &ending.client,
            server: &ending.server,
            traffic: &ending.traffic,
            count: *count,
        };
        let impact = shown.impact.as_ref();
        Self {
            basis: shown.basis.as_ref(),
            changes: shown.changes.as_ref().map(ChangesObject::from),
            containers: impact.map(|it| {
                it.containers
                    .iter()
                    .map(|(name, it)| (name.as_str(), touched(it)))
                    .collect()
            }),
            connections_ended: impact.map(|it| it.endings.iter().map(ending).collect()),
        }
    }
}

#[derive(Debug, Serialize)]
struct ChangesObject {
    opened: Vec<ChangeObject>,
    closed: Vec<ChangeObject>,
    moved_ends: Vec<ChangeObject>,
    services_added: Vec<String>,
    services_removed: Vec<String>,
    reselected: Vec<String>,
    modes: BTreeMap<String, ModeObject>,
    cut_off: Vec<String>,
    externals: BTreeMap<String, AddressesObject>,
    networks_added: Vec<String>,
    networks_removed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ChangeObject {
    from: String,
    to: String,
    ports: Vec<String>,
    before: Vec<String>,
    after: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until_before: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until_after: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct ModeObject {
    before: Mode,
    after: Mode,
}

#[derive(Debug, Serialize)]
struct AddressesObject {
    added: Vec<String>,
    removed: Vec<String>,
}

fn names<'a, T: ToString + 'a>(all: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    all.into_iter().map(ToString::to_string).collect()
}

impl From<&Change> for ChangeObject {
    fn from(change: &Change) -> Self {
        Self {
            from: change.from.to_string(),
            to: change.to.to_string(),
            ports: change.ports.clone(),
            before: names(&change.before),
            after: names(&change.after),
            until_before: change.until.0,
            until_after: change.until.1,
        }
    }
}

impl From<&Changes> for ChangesObject {
    fn from(changes: &Changes) -> Self {
        let edges = |all: &[Change]| all.iter().map(ChangeObject::from).collect();
        let modes = changes.modes.iter().map(|(id, (before, after))| {
            let mode = ModeObject {
                before: *before,
                after: *after,
            };
            (id.to_string(), mode)
        });
        let externals = changes.externals.iter().map(|(name, addresses)| {
            let addresses = AddressesObject {
                added: addresses.added.clone(),
                removed: addresses.removed.clone(),
            };
            (name.to_string(), addresses)
        });
        Self {
            opened: edges(&changes.opened),
            closed: edges(&changes.closed),
            moved_ends: edges(&changes.moved_ends),
            services_added: names(changes.services_added.keys()),
            services_removed: names(changes.services_removed.keys()),
            reselected: names(changes.reselected.keys()),
            modes: modes.collect(),
            cut_off: names(changes.cut_off.keys()),
            externals: externals.collect(),
            networks_added: names(&changes.networks_added),
            networks_removed: names(&changes.networks_removed),
        }
    }
}
