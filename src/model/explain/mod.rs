//! Why a connection is permitted or denied: by which edge, or which edge is missing and where it would be written.
//!
//! In: a [`Question`] and the [`Rights`]. Out: an [`Explanation`], whose verdicts are those of [`Rights::judge`] and of
//! nothing else. An end that stands for many addresses, and ports that are many, are cut into parts within which no edge
//! tells two members apart; each part is judged. Pure.

mod classes;
mod ends;
mod missing;
mod reasons;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::Timestamp;

use self::classes::{Class, classes};
pub use self::ends::{End, Host, Knowledge, Place, Question, QuestionError};
pub use self::missing::Missing;
pub use self::reasons::denial;
use super::{Rights, Verdict};
use crate::net::{Family, PortRange, Traffic, Transport};
use crate::policy::{Edge, Ports};

/// What becomes of a connection, with the edge that permits it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ruling {
    Permitted(Box<Edge>),
    Audited,
    Untouched,
    Denied,
}

impl Ruling {
    /// Whether the connection comes about.
    pub fn passes(&self) -> bool {
        *self != Self::Denied
    }
}

/// A part of what was asked, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub families: BTreeSet<Family>,
    /// Addresses, where an end stands for more than these.
    pub from: Option<String>,
    pub to: Option<String>,
    /// `5432/tcp`, `8000-8010/tcp`, `icmp type 8`.
    pub traffic: String,
    pub ruling: Ruling,
}

/// The answer as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Everything that was asked for is permitted by edges.
    Permitted,
    /// Everything passes, and at least a part only because both ends are in audit.
    Audited,
    /// Neither end is managed.
    Untouched,
    /// A part passes and a part does not.
    Partly,
    /// Nothing passes.
    Denied,
}

impl Outcome {
    /// Whether everything that was asked for passes.
    pub fn passes(self) -> bool {
        matches!(self, Self::Permitted | Self::Audited | Self::Untouched)
    }
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub question: Question,
    pub outcome: Outcome,
    /// Never empty; one where everything that was asked for meets the same fate.
    pub parts: Vec<Part>,
    /// Why what is denied is denied.
    pub reasons: Vec<String>,
    /// Every edge from the one end to the other, whatever its ports.
    pub between: Vec<Edge>,
    /// Edges between them that have ended.
    pub ended: Vec<Edge>,
    /// The edge that would permit it; `None` where everything passes, or where no edge can help.
    pub missing: Option<Missing>,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    #[error("`{from}` and `{to}` have no addresses of the same family: no connection between them can be")]
    NoFamily { from: String, to: String },
}

/// Answers the question under these rights, at this moment.
///
/// # Errors
/// When there can be no such connection.
pub fn explain(rights: &Rights, question: Question, now: Timestamp) -> Result<Explanation, NoAnswer> {
    let (policy, ended) = (rights.policy.at(now), &rights.policy.edges);
    let is_between =
        |edge: &&Edge| question.from.touches(&edge.from, &policy) && question.to.touches(&edge.to, &policy);
    let ended = ended
        .iter()
        .filter(|edge| edge.until.is_some_and(|until| until <= now));
    let ended: Vec<Edge> = ended.filter(is_between).cloned().collect();
    let between: Vec<Edge> = policy.edges.iter().filter(is_between).cloned().collect();
    let rights = Rights {
        policy,
        ..rights.clone()
    };
    let parts = parts(&rights, &question, &between);
    if parts.is_empty() {
        return Err(NoAnswer::NoFamily {
            from: question.from.to_string(),
            to: question.to.to_string(),
        });
    }
    let outcome = outcome(&parts);
    let missing = (!outcome.passes())
        .then(|| missing::edge(&rights.policy, &question))
        .flatten();
    let reasons = match outcome.passes() {
        true => Vec::new(),
        false => reasons::reasons(&rights, &question, &between),
    };
    Ok(Explanation {
        question,
        outcome,
        parts,
        reasons,
        between,
        ended,
        missing,
    })
}

fn outcome(parts: &[Part]) -> Outcome {
    let passing = parts.iter().filter(|part| part.ruling.passes()).count();
    let any = |ruling: &Ruling| parts.iter().any(|part| part.ruling == *ruling);
    match passing {
        0 => Outcome::Denied,
        some if some < parts.len() => Outcome::Partly,
        _ if any(&Ruling::Audited) => Outcome::Audited,
        _ if any(&Ruling::Untouched) => Outcome::Untouched,
        _ => Outcome::Permitted,
    }
}

fn parts(rights: &Rights, question: &Question, between: &[Edge]) -> Vec<Part> {
    let edges: Vec<&Edge> = between.iter().collect();
    let (mine, theirs) = (question.from.identity(), question.to.identity());
    let mut parts: Vec<Part> = Vec::new();
    for family in Family::ALL {
        let classes = |end, identity| classes(end, identity, &edges, &rights.policy, family);
        let from = classes(&question.from, mine.as_ref());
        let to = classes(&question.to, theirs.as_ref());
        let spans = spans(question.ports, &edges, family);
        for from in &from {
            for to in &to {
                let judged = spans
                    .iter()
                    .map(|span| (*span, rule(rights, from, to, span.traffic, family)));
                for (span, ruling) in merged(judged) {
                    let part = Part {
                        families: BTreeSet::from([family]),
                        from: from.text.clone(),
                        to: to.text.clone(),
                        traffic: span.to_string(),
                        ruling,
                    };
                    add(&mut parts, part);
                }
            }
        }
    }
    // One edge may well permit all of it: that it does so in pieces is of no interest.
    if let Some(first) = parts.first()
        && parts.iter().all(|part| part.ruling == first.ruling)
    {
        let whole = Part {
            families: parts.iter().flat_map(|part| part.families.clone()).collect(),
            from: None,
            to: None,
            traffic: question.ports.to_string(),
            ruling: first.ruling.clone(),
        };
        return vec![whole];
    }
    parts
}

/// Adds a part, to the same one of the other family where there is one.
fn add(parts: &mut Vec<Part>, part: Part) {
    let same = parts.iter_mut().find(|it| {
        (&it.from, &it.to, &it.traffic, &it.ruling) == (&part.from, &part.to, &part.traffic, &part.ruling)
    });
    match same {
        Some(same) => same.families.extend(part.families),
        None => parts.push(part),
    }
}

fn rule(rights: &Rights, from: &Class<'_>, to: &Class<'_>, traffic: Traffic, family: Family) -> Ruling {
    let (Some(from), Some(to)) = (&from.party, &to.party) else {
        return Ruling::Denied;
    };
    match rights.judge(from, to, traffic, family) {
        Verdict::Allowed(edge) => Ruling::Permitted(Box::new(edge.clone())),
        Verdict::Audited => Ruling::Audited,
        Verdict::Untouched => Ruling::Untouched,
        Verdict::Denied => Ruling::Denied,
    }
}

/// Traffic that no edge tells apart, by its first member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    traffic: Traffic,
    /// The last port or type.
    last: u16,
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.traffic {
            Traffic::Port(transport, first) => {
                let range = PortRange {
                    first,
                    last: self.last,
                };
                write!(f, "{}", Ports::Transport(transport, range.writable()))
            }
            Traffic::Icmp(first) if u16::from(first) == self.last => write!(f, "icmp type {first}"),
            Traffic::Icmp(first) => write!(f, "icmp types {first}-{}", self.last),
            Traffic::Other(_) => f.write_str("other protocols"),
        }
    }
}

/// What was asked for, cut wherever a port range of these edges begins or ends. ICMP messages that the family does not
/// have are nothing.
fn spans(ports: Ports, edges: &[&Edge], family: Family) -> Vec<Span> {
    let icmp = || {
        (0..=u8::MAX).map(|number| Span {
            traffic: Traffic::Icmp(number),
            last: number.into(),
        })
    };
    match ports {
        Ports::Transport(transport, range) => spans_of(transport, range, edges),
        Ports::Icmp(None) => icmp().collect(),
        Ports::Icmp(Some(kind)) => kind
            .number(family)
            .map(|number| Span {
                traffic: Traffic::Icmp(number),
                last: number.into(),
            })
            .into_iter()
            .collect(),
        Ports::Any => {
            let transports = Transport::ALL.into_iter();
            let mut spans: Vec<Span> = transports
                .flat_map(|transport| spans_of(transport, PortRange::ALL, edges))
                .collect();
            spans.extend(icmp());
            // Only `any` permits those, so one stands for all. 47 is GRE.
            spans.push(Span {
                traffic: Traffic::Other(47),
                last: 0,
            });
            spans
        }
    }
}

fn spans_of(transport: Transport, range: PortRange, edges: &[&Edge]) -> Vec<Span> {
    let mut cuts = BTreeSet::from([range.first]);
    for ports in edges.iter().flat_map(|edge| &edge.ports) {
        if let Ports::Transport(of, declared) = ports
            && *of == transport
        {
            let ends = [Some(declared.first), declared.last.checked_add(1)];
            cuts.extend(ends.into_iter().flatten().filter(|port| range.contains(*port)));
        }
    }
    let cuts: Vec<u16> = cuts.into_iter().collect();
    let lasts = cuts.iter().skip(1).map(|next| next - 1).chain([range.last]);
    cuts.iter()
        .zip(lasts)
        .map(|(&first, last)| Span {
            traffic: Traffic::Port(transport, first),
            last,
        })
        .collect()
}

/// Neighbouring spans that meet the same fate as one.
fn merged(judged: impl Iterator<Item = (Span, Ruling)>) -> Vec<(Span, Ruling)> {
    let mut merged: Vec<(Span, Ruling)> = Vec::new();
    for (span, ruling) in judged {
        match merged.last_mut() {
            Some((before, same)) if *same == ruling && follows(*before, span) => before.last = span.last,
            _ => merged.push((span, ruling)),
        }
    }
    merged
}

fn follows(before: Span, next: Span) -> bool {
    match (before.traffic, next.traffic) {
        (Traffic::Port(one, _), Traffic::Port(other, first)) => {
            one == other && before.last.checked_add(1) == Some(first)
        }
        (Traffic::Icmp(_), Traffic::Icmp(first)) => before.last + 1 == u16::from(first),
        _ => false,
    }
}

impl std::fmt::Display for Question {
    /// `web-1 (shop/web) -> shop/db:5432/tcp`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let to = reasons::described(&self.to);
        let to = match self.to {
            End::Outside(std::net::IpAddr::V6(_)) => format!("[{to}]"),
            _ => to,
        };
        write!(f, "{} -> {to}:{}", reasons::described(&self.from), self.ports)
    }
}
