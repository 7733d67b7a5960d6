//! What was found, as JSON.

use std::net::SocketAddr;

use serde::Serialize;

use super::report::{Counts, Report, outcome};
use crate::verify::look::LeftOut;
use crate::verify::plan::{NotTried, Probe};
use crate::verify::scene::Declared;
use crate::verify::verdict::{Cell, Mark, Place, Real, Seen, real};

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Object<'a> {
    agrees: bool,
    /// Of the policy in force, where a daemon told it.
    revision: Option<&'a str>,
    elapsed_ms: u128,
    remarks: &'a [String],
    counts: Counts,
    cells: Vec<CellObject>,
    tests: Vec<TestObject>,
    left_out: &'a LeftOut,
    not_tried: NotTried,
    /// What was not tried, in sentences.
    not_tried_because: Vec<String>,
}

#[derive(Debug, Serialize)]
struct CellObject {
    from: String,
    to: String,
    port: u16,
    protocol: &'static str,
    declared: Vec<Declared>,
    result: Mark,
    attempts: Vec<Attempt>,
    /// Where declared and real differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<String>,
}

#[derive(Debug, Serialize)]
struct Attempt {
    from: String,
    to: String,
    address: SocketAddr,
    way: String,
    declared: Declared,
    real: Real,
    evidence: String,
    elapsed_ms: u128,
}

#[derive(Debug, Serialize)]
struct TestObject {
    test: String,
    expected: String,
    declared: String,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Report {
    pub(super) fn object(&self) -> Object<'_> {
        let tests = self.tests().map(|(test, tested)| TestObject {
            test: test.to_string(),
            expected: test.expected.to_string(),
            declared: test.location.to_string(),
            result: outcome(tested),
            why: self.failure(tested),
        });
        Object {
            agrees: self.agrees(),
            revision: self.revision.as_deref(),
            elapsed_ms: self.elapsed.as_millis(),
            remarks: &self.remarks,
            counts: self.counts(),
            cells: self
                .cells
                .iter()
                .map(|(place, cell)| self.cell(place, cell))
                .collect(),
            tests: tests.collect(),
            left_out: &self.left_out,
            not_tried: self.plan.not_tried,
            not_tried_because: self.not_tried(),
        }
    }

    fn cell(&self, place: &Place, cell: &Cell) -> CellObject {
        let numbers = cell.probes.keys();
        let tried = numbers.filter_map(|it| self.plan.probes.get(*it).zip(self.seen.get(*it)));
        CellObject {
            from: place.from.to_string(),
            to: place.to.to_string(),
            port: place.port,
            protocol: place.transport.as_str(),
            declared: cell.declared.iter().copied().collect(),
            result: cell.mark(),
            attempts: tried.map(|(probe, seen)| self.object_of(probe, seen)).collect(),
            explanation: cell.mark().differs().then(|| self.details(place, cell)),
        }
    }

    fn object_of(&self, probe: &Probe, seen: &Seen) -> Attempt {
        Attempt {
            from: self.scene.name(probe.from),
            to: self.scene.name(probe.to),
            address: probe.address,
            way: self.way(probe),
            declared: probe.declared,
            real: real(probe.transport, seen),
            evidence: seen.to_string(),
            elapsed_ms: seen.elapsed.as_millis(),
        }
    }
}
