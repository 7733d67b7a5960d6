//! What was found, as it is told: counted in whole, and with words for those containers where it is gravest.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;

use super::look::Sight;
use crate::audit::{Code, Finding, Ground, Judging, Severity, of_container};
use crate::inventory::Posture;

/// The most containers that are told with words, and the most findings of each.
const MOST_SUBJECTS: usize = 100;
const MOST_FINDINGS: usize = 50;

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// When it was looked; `None`: not yet.
    pub at: Option<Timestamp>,
    /// Why there is nothing newer.
    pub failure: Option<String>,
    /// Containers that were looked at.
    pub containers: usize,
    /// Findings that nobody has accepted, by severity.
    pub open: BTreeMap<Severity, usize>,
    pub accepted: usize,
    /// Acceptances that have ended, or that are about nothing.
    pub stale: usize,
    /// Those with the gravest open finding first.
    pub subjects: Vec<Subject>,
    /// How many more there are.
    pub more: usize,
    pub remarks: Vec<String>,
    /// Open and accepted findings of each kind, for metrics.
    #[serde(skip)]
    pub counts: BTreeMap<(Code, Severity), (usize, usize)>,
}

/// A container, or the engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Subject {
    /// Accepted ones come last, then.
    is_all_accepted: bool,
    /// Open ones first, the gravest of them first.
    pub findings: Vec<Found>,
    /// `None`: the engine.
    pub container: Option<String>,
    pub is_running: bool,
    /// How many more findings there are.
    pub more: usize,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Found {
    pub accepted: Option<Accepted>,
    pub severity: Severity,
    pub code: Code,
    pub message: String,
    pub mend: String,
}

/// Why a finding does not count, and the last day on which it does not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Accepted {
    pub until: Date,
    pub reason: String,
}

/// A report that is being made.
#[derive(Debug)]
pub struct Draft<'b> {
    judging: Judging<'b>,
    report: Report,
    /// The gravest so far.
    subjects: BTreeSet<Subject>,
}

impl<'b> Draft<'b> {
    pub fn new(at: Timestamp, judging: Judging<'b>) -> Self {
        Self {
            judging,
            report: Report {
                at: Some(at),
                ..Report::default()
            },
            subjects: BTreeSet::new(),
        }
    }

    /// Judges a container.
    pub fn container(&mut self, sight: &Sight, ground: &Ground<'_>, posture: Option<&Posture>) {
        let Sight {
            container,
            standing,
            reasons,
        } = sight;
        self.report.containers += 1;
        self.take(of_container(ground, container, standing, reasons, posture));
    }

    /// Takes all findings of one container, or of the engine.
    pub fn take(&mut self, findings: Vec<Finding>) {
        let Some(first) = findings.first() else { return };
        let (container, is_running) = (first.container.clone(), first.is_running);
        let mut told: Vec<Found> = findings.into_iter().map(|finding| self.found(finding)).collect();
        told.sort();
        let more = told.len().saturating_sub(MOST_FINDINGS);
        told.truncate(MOST_FINDINGS);
        self.subjects.insert(Subject {
            is_all_accepted: told.iter().all(|it| it.accepted.is_some()),
            findings: told,
            container,
            is_running,
            more,
        });
        if self.subjects.len() > MOST_SUBJECTS {
            self.subjects.pop_last();
            self.report.more += 1;
        }
    }

    fn found(&mut self, finding: Finding) -> Found {
        let accepted = self.judging.accepts(&finding).map(|it| Accepted {
            until: it.until,
            reason: it.reason.clone(),
        });
        let kind = (finding.code, finding.severity);
        let (open, taken_out) = self.report.counts.entry(kind).or_default();
        match accepted {
            Some(_) => {
                *taken_out += 1;
                self.report.accepted += 1;
            }
            None => {
                *open += 1;
                *self.report.open.entry(finding.severity).or_default() += 1;
            }
        }
        Found {
            accepted,
            severity: finding.severity,
            code: finding.code,
            message: finding.message,
            mend: finding.mend,
        }
    }

    pub fn finish(self, mut remarks: Vec<String>) -> Report {
        let stale = self.judging.stale();
        remarks.extend(stale.iter().map(|(why, acceptance)| why.told(acceptance)));
        Report {
            stale: stale.len(),
            subjects: self.subjects.into_iter().collect(),
            remarks,
            ..self.report
        }
    }
}
