//! What `audit` prints, as text and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use crate::audit::{Acceptance, Finding, Judged, Severity, Stale};
use crate::policy::{Colour, count};

pub(super) struct Report<'b> {
    pub(super) judged: Judged<'b>,
    /// How many were looked at.
    pub(super) containers: usize,
    pub(super) remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Object<'a> {
    /// Open findings by severity.
    counts: BTreeMap<&'static str, usize>,
    containers: usize,
    findings: &'a [Finding],
    accepted: Vec<Accepted<'a>>,
    stale: Vec<StaleObject<'a>>,
    remarks: &'a [String],
}

#[derive(Debug, Serialize)]
struct Accepted<'a> {
    #[serde(flatten)]
    finding: &'a Finding,
    reason: &'a str,
    until: jiff::civil::Date,
}

#[derive(Debug, Serialize)]
struct StaleObject<'a> {
    why: Stale,
    #[serde(flatten)]
    acceptance: &'a Acceptance,
}

const ALL: [Severity; 4] = [
    Severity::Critical,
    Severity::High,
    Severity::Medium,
    Severity::Low,
];

impl Report<'_> {
    fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        ALL.into_iter().map(|severity| {
            let open = self.judged.open.iter();
            let count = open.filter(|it| it.severity == severity).count();
            (severity.as_str(), count)
        })
    }

    pub(super) fn object(&self) -> Object<'_> {
        let accepted = self.judged.accepted.iter();
        let stale = self.judged.stale.iter();
        Object {
            counts: self.counts().collect(),
            containers: self.containers,
            findings: &self.judged.open,
            accepted: accepted
                .map(|(finding, acceptance)| Accepted {
                    finding,
                    reason: &acceptance.reason,
                    until: acceptance.until,
                })
                .collect(),
            stale: stale
                .map(|(why, acceptance)| StaleObject {
                    why: *why,
                    acceptance,
                })
                .collect(),
            remarks: &self.remarks,
        }
    }

    /// By container, those with the gravest finding first.
    pub(super) fn text(&self, colour: Colour) -> String {
        let mut text = String::new();
        let mut told = BTreeSet::new();
        for first in &self.judged.open {
            if !told.insert(&first.container) {
                continue;
            }
            let title = first.container.as_deref().unwrap_or("the engine");
            let state = if first.is_running { "" } else { " (does not run)" };
            let _ = writeln!(text, "{title}{state}");
            for finding in self
                .judged
                .open
                .iter()
                .filter(|it| it.container == first.container)
            {
                let severity = painted(finding.severity, colour);
                let _ = writeln!(text, "  {severity} {} {}", finding.code, finding.message);
                let _ = writeln!(text, "           {}", finding.mend);
            }
            text.push('\n');
        }
        for (finding, acceptance) in &self.judged.accepted {
            let place = finding.container.as_deref().unwrap_or("the engine");
            let _ = writeln!(
                text,
                "accepted until {}: {} {place}: {}",
                acceptance.until, finding.code, acceptance.reason
            );
        }
        for (why, acceptance) in &self.judged.stale {
            let _ = writeln!(text, "{}", why.told(acceptance));
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "note: {remark}");
        }
        let counts: Vec<String> = self
            .counts()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let containers = count(self.containers, "container");
        let _ = write!(text, "{containers}: {}", counts.join(", "));
        let accepted = self.judged.accepted.len();
        if accepted > 0 {
            let _ = write!(text, "; {accepted} accepted");
        }
        text.push('\n');
        if let Some(first) = self.judged.open.first() {
            let _ = writeln!(
                text,
                "for more about a code: cofferdam explain-code {}",
                first.code
            );
        }
        text
    }
}

/// All of one width.
fn painted(severity: Severity, colour: Colour) -> String {
    let name = format!("{:<8}", severity.as_str());
    let paint = match severity {
        Severity::Critical => "\x1b[1;31m",
        Severity::High => "\x1b[31m",
        Severity::Medium => "\x1b[33m",
        Severity::Low => "\x1b[2m",
    };
    match colour {
        Colour::Plain => name,
        Colour::Coloured => format!("{paint}{name}\x1b[0m"),
    }
}
