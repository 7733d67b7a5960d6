//! Everything that was found, and how it is said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::time::Duration;

use jiff::Timestamp;

use crate::cli::explain::render::text as explained;
use crate::model::explain::{Question, explain};
use crate::net::PortRange;
use crate::policy::{Ports, Test, count};
use crate::verify::look::LeftOut;
use crate::verify::plan::{Plan, Probe, Way};
use crate::verify::scene::{LABEL, Scene, Spot};
use crate::verify::verdict::{Agreement, Cell, Mark, Place, Seen, Tested};

/// Attempts that are shown of each difference.
const MOST_PROBES: usize = 6;

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) scene: Scene,
    pub(super) plan: Plan,
    pub(super) seen: Vec<Seen>,
    pub(super) cells: BTreeMap<Place, Cell>,
    /// In the order of the policy's tests.
    pub(super) tests: Vec<Tested>,
    pub(super) left_out: LeftOut,
    pub(super) revision: Option<String>,
    pub(super) remarks: Vec<String>,
    pub(super) elapsed: Duration,
}

/// How many attempts there are of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub(super) struct Counts {
    pub(super) tried: usize,
    pub(super) agree: usize,
    pub(super) differ: usize,
    pub(super) unknown: usize,
}

impl Report {
    /// Whether nothing differs.
    pub(super) fn agrees(&self) -> bool {
        let failed = |it: &Tested| matches!(it, Tested::Fails(_) | Tested::NoWay);
        self.differences().next().is_none() && !self.tests.iter().any(failed)
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for found in self.cells.values().flat_map(|cell| cell.probes.values()) {
            counts.tried += 1;
            match found {
                Agreement::Agrees => counts.agree += 1,
                Agreement::Unknown => counts.unknown += 1,
                Agreement::Leaks | Agreement::Blocked => counts.differ += 1,
            }
        }
        counts
    }

    pub(super) fn differences(&self) -> impl Iterator<Item = (&Place, &Cell)> {
        self.cells.iter().filter(|(_, cell)| cell.mark().differs())
    }

    /// The tests with what became of them.
    pub(super) fn tests(&self) -> impl Iterator<Item = (&Test, Tested)> {
        let tests = self.scene.rights.policy.tests.iter();
        tests.zip(self.tests.iter().copied())
    }

    /// The attempts of a cell that differ, and what `explain` says.
    pub(super) fn details(&self, place: &Place, cell: &Cell) -> String {
        let mut out = String::new();
        let differing = cell
            .probes
            .iter()
            .filter(|(_, found)| matches!(found, Agreement::Leaks | Agreement::Blocked));
        let lines: Vec<String> = differing
            .filter_map(|(number, _)| {
                Some(self.attempt(self.plan.probes.get(*number)?, self.seen.get(*number)?))
            })
            .chain(cell.unjoined.iter().filter_map(|number| {
                let lost = self.plan.unjoined.get(*number)?;
                let (from, to) = (self.scene.name(lost.from), self.scene.name(lost.to));
                Some(format!(
                    "{from} and {to} have no network in common over which it could pass"
                ))
            }))
            .collect();
        for line in lines.iter().take(MOST_PROBES) {
            let _ = writeln!(out, "  {line}");
        }
        if let Some(more) = lines.len().checked_sub(MOST_PROBES).filter(|more| *more > 0) {
            let _ = writeln!(out, "  and {more} more");
        }
        for line in self.explanation(place, cell).lines() {
            let indent = if line.trim().is_empty() { "" } else { "  " };
            let _ = writeln!(out, "{indent}{}", line.trim_end());
        }
        out
    }

    /// `web-1 -> db-1 at 172.18.0.3:5432 on shop_default: connected`.
    pub(super) fn attempt(&self, probe: &Probe, seen: &Seen) -> String {
        let (from, to) = (self.scene.name(probe.from), self.scene.name(probe.to));
        let way = self.way(probe);
        format!("{from} -> {to} at {} {way}: {seen}", probe.address)
    }

    pub(super) fn way(&self, probe: &Probe) -> String {
        match &probe.way {
            Way::Network(id) => {
                let network = self.scene.networks.get(id);
                let name = network.map_or_else(|| id.to_string(), |it| it.name.escape_debug().to_string());
                format!("on {name}")
            }
            Way::Routed => "over the host's routes".to_owned(),
            Way::Published => "through the host's published port".to_owned(),
            Way::Host => match probe.from {
                Spot::Host => "from the host".to_owned(),
                Spot::Container(_) | Spot::World(_) => "at the host".to_owned(),
            },
            Way::World => "outside".to_owned(),
        }
    }

    /// What `explain` says of a cell.
    pub(super) fn explanation(&self, place: &Place, cell: &Cell) -> String {
        let worst = cell.probes.iter().max_by_key(|(_, found)| **found);
        let worst = worst.and_then(|(number, _)| self.plan.probes.get(*number));
        let ends = match (
            worst,
            cell.unjoined.first().and_then(|it| self.plan.unjoined.get(*it)),
        ) {
            (Some(probe), _) => (probe.from, probe.to),
            (None, Some(lost)) => (lost.from, lost.to),
            (None, None) => return String::new(),
        };
        let question = Question {
            from: self.scene.end(ends.0),
            to: self.scene.end(ends.1),
            ports: Ports::Transport(place.transport, PortRange::single(place.port)),
            remarks: Vec::new(),
        };
        match explain(&self.scene.rights, question, Timestamp::now()) {
            Ok(answer) => format!("declared {}", explained(&answer, &[])),
            Err(error) => error.to_string(),
        }
    }

    /// Why a test does not hold, where it does not.
    pub(super) fn failure(&self, tested: Tested) -> Option<String> {
        match tested {
            Tested::Fails(number) => {
                let (probe, seen) = self.plan.probes.get(number).zip(self.seen.get(number))?;
                Some(self.attempt(probe, seen))
            }
            Tested::NoWay => Some("there is no network in common".to_owned()),
            Tested::Holds | Tested::Audited | Tested::NotTried => None,
        }
    }

    /// What was not tried, in sentences.
    pub(super) fn not_tried(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let names =
            |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let LeftOut {
            excused,
            without_network,
            failed,
        } = &self.left_out;
        if !excused.is_empty() {
            lines.push(format!(
                "{} with the label {LABEL}=off: {}",
                count(excused.len(), "container"),
                names(excused)
            ));
        }
        if !without_network.is_empty() {
            lines.push(format!(
                "{} without a network of its own: {}",
                count(without_network.len(), "container"),
                names(without_network)
            ));
        }
        lines.extend(failed.iter().map(|(name, why)| format!("{name}: {why}")));
        for (group, (taken, all)) in &self.plan.sampled {
            lines.push(format!(
                "{} of {all} containers of {group}; --all tries all",
                all - taken
            ));
        }
        for (group, cut) in &self.plan.cut {
            lines.push(format!("{} of {group}: there are too many", count(*cut, "port")));
        }
        let not = self.plan.not_tried;
        for (number, what) in [
            (
                not.edges_from_outside,
                "from outside of the host, which only a machine there can open",
            ),
            (
                match self.scene.world.is_empty() {
                    true => not.edges_to_outside,
                    false => 0,
                },
                "to outside of the host; --world names an address to try",
            ),
            (
                not.edges_with_other_protocols,
                "with ICMP, SCTP or other protocols, as far as those are concerned",
            ),
        ] {
            if number > 0 {
                lines.push(format!("{} {what}", count(number, "edge")));
            }
        }
        lines
    }
}

impl fmt::Display for Place {
    /// `shop/web -> shop/db:5432/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:{}/{}", self.from, self.to, self.port, self.transport)
    }
}

pub(super) fn difference(place: &Place, cell: &Cell) -> String {
    match cell.mark() {
        Mark::Leaks => format!("{place} is open, and the policy declares it closed"),
        _ => format!("{place} is closed, and the policy declares it open"),
    }
}

pub(super) fn outcome(tested: Tested) -> &'static str {
    match tested {
        Tested::Holds => "held",
        Tested::Audited => "held but for audit",
        Tested::Fails(_) | Tested::NoWay => "failed",
        Tested::NotTried => "not tried",
    }
}
