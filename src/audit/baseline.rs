//! The baseline: findings that somebody has accepted, why, and until when.

use std::collections::BTreeSet;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::{Code, Finding};

/// Accepted findings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    pub accepted: Vec<Acceptance>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    pub code: Code,
    /// The container's name, with `*` for any characters. Nothing for the engine's own settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Only of this path, port, capability, image, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    pub reason: String,
    /// The last day.
    pub until: Date,
}

/// Why a baseline cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    #[error("the baseline is not valid: {0}")]
    Invalid(String),
    #[error("acceptance {number} of the baseline ({code}) {what}")]
    Senseless {
        /// From 1.
        number: usize,
        code: Code,
        what: &'static str,
    },
}

/// Why an acceptance does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stale {
    /// Its findings count again.
    Expired,
    /// There is no such finding: it was mended, or the name is wrong.
    Unmatched,
}

/// What is left of the findings, and what was taken out.
#[derive(Debug, Default)]
pub struct Judged<'b> {
    pub open: Vec<Finding>,
    pub accepted: Vec<(Finding, &'b Acceptance)>,
    pub stale: Vec<(Stale, &'b Acceptance)>,
}

impl Baseline {
    /// Reads a file.
    ///
    /// # Errors
    /// What is not understood would accept more, or less, than its writer meant.
    pub fn parse(text: &str) -> Result<Self, BaselineError> {
        let baseline: Self =
            serde_yaml::from_str(text).map_err(|error| BaselineError::Invalid(error.to_string()))?;
        for (position, acceptance) in baseline.accepted.iter().enumerate() {
            if let Some(what) = acceptance.senseless() {
                return Err(BaselineError::Senseless {
                    number: position + 1,
                    code: acceptance.code,
                    what,
                });
            }
        }
        Ok(baseline)
    }

    /// Takes out what is accepted on this day.
    pub fn judge(&self, findings: Vec<Finding>, today: Date) -> Judged<'_> {
        let mut judged = Judged::default();
        let mut judging = self.judging(today);
        for finding in findings {
            match judging.accepts(&finding) {
                Some(acceptance) => judged.accepted.push((finding, acceptance)),
                None => judged.open.push(finding),
            }
        }
        judged.stale = judging.stale();
        judged
    }

    /// The same for findings that come one by one.
    pub fn judging(&self, today: Date) -> Judging<'_> {
        Judging {
            baseline: self,
            today,
            matched: BTreeSet::new(),
        }
    }
}

/// Findings that are being judged on one day.
#[derive(Debug)]
pub struct Judging<'b> {
    baseline: &'b Baseline,
    today: Date,
    /// The positions of acceptances that are about something that was found.
    matched: BTreeSet<usize>,
}

impl<'b> Judging<'b> {
    /// What accepts a finding.
    pub fn accepts(&mut self, finding: &Finding) -> Option<&'b Acceptance> {
        let mut by = None;
        for (position, acceptance) in self.baseline.accepted.iter().enumerate() {
            if acceptance.matches(finding) {
                self.matched.insert(position);
                if acceptance.until >= self.today && by.is_none() {
                    by = Some(acceptance);
                }
            }
        }
        by
    }

    /// The acceptances that do nothing, once everything was judged.
    pub fn stale(&self) -> Vec<(Stale, &'b Acceptance)> {
        let mut stale = Vec::new();
        for (position, acceptance) in self.baseline.accepted.iter().enumerate() {
            if !self.matched.contains(&position) {
                stale.push((Stale::Unmatched, acceptance));
            } else if acceptance.until < self.today {
                stale.push((Stale::Expired, acceptance));
            }
        }
        stale
    }
}

impl std::fmt::Display for Acceptance {
    /// What it is about.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = self.container.as_deref().unwrap_or("the engine");
        write!(f, "{} {place}", self.code)
    }
}

impl Stale {
    /// The sentence about such an acceptance.
    pub fn told(self, acceptance: &Acceptance) -> String {
        match self {
            Self::Expired => format!(
                "no longer accepted since {} is past: {acceptance}",
                acceptance.until
            ),
            Self::Unmatched => {
                format!("accepted but not found: {acceptance}; take it out of the baseline, or mend the name")
            }
        }
    }
}

impl Acceptance {
    fn senseless(&self) -> Option<&'static str> {
        let named = self
            .container
            .as_deref()
            .map(|name| !name.trim_matches('*').is_empty());
        if self.reason.trim().is_empty() {
            return Some("has no reason");
        }
        match (self.code.is_of_engine(), named) {
            (true, Some(_)) => Some("is about the engine: it names no container"),
            (false, None) => Some("names no container"),
            (false, Some(false)) => Some("names every container: name one, or the beginning of its name"),
            (true, None) | (false, Some(true)) => None,
        }
    }

    fn matches(&self, finding: &Finding) -> bool {
        let container = match (&self.container, &finding.container) {
            (None, None) => true,
            (Some(pattern), Some(name)) => fits(pattern.as_bytes(), name.as_bytes()),
            _ => false,
        };
        let object = self.object.is_none() || self.object == finding.object;
        self.code == finding.code && container && object
    }
}

/// Whether a text is as the pattern says, where `*` stands for any characters.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last `*`, and how much of the text it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                star = Some((p, t));
            }
            Some(byte) if Some(byte) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((after, taken)) => {
                    *taken += 1;
                    p = *after;
                    t = *taken;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Severity;

    fn finding(code: Code, container: Option<&str>, object: Option<&str>) -> Finding {
        Finding {
            severity: Severity::High,
            code,
            container: container.map(str::to_owned),
            object: object.map(str::to_owned),
            message: "m".into(),
            mend: "m".into(),
            is_running: true,
        }
    }

    #[test]
    fn an_acceptance_ends_and_one_for_nothing_is_told() {
        let text = "accepted:\n\
            - { code: CFA013, container: \"backup-*\", object: /etc, reason: copies it, until: 2026-12-31 }\n\
            - { code: CFA104, reason: guarded, until: 2026-12-31 }\n\
            - { code: CFA001, container: gone, reason: was so, until: 2099-01-01 }\n";
        let baseline = Baseline::parse(text).unwrap();
        let found = || {
            vec![
                finding(Code::SensitivePath, Some("backup-1"), Some("/etc")),
                finding(Code::SensitivePath, Some("backup-1"), Some("/root")),
                finding(Code::SensitivePath, Some("web"), Some("/etc")),
                finding(Code::Icc, None, None),
            ]
        };
        let day = |text: &str| text.parse::<Date>().unwrap();
        let last = baseline.judge(found(), day("2026-12-31"));
        assert_eq!((last.open.len(), last.accepted.len()), (2, 2));
        let stale: Vec<_> = last.stale.iter().map(|(why, it)| (*why, it.code)).collect();
        assert_eq!(stale, [(Stale::Unmatched, Code::HostNetwork)]);
        let after = baseline.judge(found(), day("2027-01-01"));
        assert_eq!((after.open.len(), after.accepted.len()), (4, 0));
        assert_eq!(
            after
                .stale
                .iter()
                .filter(|(why, _)| *why == Stale::Expired)
                .count(),
            2
        );
    }

    #[test]
    fn what_accepts_more_than_was_meant_is_refused() {
        for (line, says) in [
            (
                "{ code: CFA001, reason: r, until: 2026-12-31 }",
                "names no container",
            ),
            (
                "{ code: CFA001, container: \"**\", reason: r, until: 2026-12-31 }",
                "every container",
            ),
            (
                "{ code: CFA104, container: a, reason: r, until: 2026-12-31 }",
                "about the engine",
            ),
            (
                "{ code: CFA001, container: a, reason: \" \", until: 2026-12-31 }",
                "no reason",
            ),
            ("{ code: CFA001, container: a, until: 2026-12-31 }", "reason"),
            ("{ code: CFA001, container: a, reason: r }", "until"),
            (
                "{ code: CFA999, container: a, reason: r, until: 2026-12-31 }",
                "CFA999",
            ),
            (
                "{ code: CFA001, contaner: a, reason: r, until: 2026-12-31 }",
                "contaner",
            ),
            ("{ code: CFA001, container: a, reason: r, until: 2026-13-31 }", ""),
        ] {
            let error = Baseline::parse(&format!("accepted: [{line}]\n"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn patterns_are_whole() {
        for (pattern, text, holds) in [
            ("web", "web", true),
            ("web", "web-1", false),
            ("web-*", "web-1", true),
            ("*-db", "a-db-db", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("w*", "w", true),
        ] {
            assert_eq!(
                fits(pattern.as_bytes(), text.as_bytes()),
                holds,
                "{pattern} {text}"
            );
        }
    }
}
