//! An explanation as text and JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::cli::policies::EdgeObject;
use crate::model::explain::{Explanation, Outcome, Part, Ruling};
use crate::net::Family;
use crate::policy::Edge;

pub(in crate::cli) fn text(answer: &Explanation, remarks: &[String]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = render(&mut out, answer, remarks);
    out
}

/// Parts beyond this are only counted.
const MOST_PARTS: usize = 20;

fn render(out: &mut String, answer: &Explanation, remarks: &[String]) -> std::fmt::Result {
    let verdict = match answer.outcome {
        Outcome::Permitted => "permitted",
        Outcome::Audited => "permitted in audit",
        Outcome::Untouched => "left alone",
        Outcome::Partly => "permitted in part",
        Outcome::Denied => "denied",
    };
    writeln!(out, "{verdict}: {}", answer.question)?;
    for remark in remarks {
        writeln!(out, "  note: {remark}")?;
    }
    match answer.parts.as_slice() {
        [one] => match &one.ruling {
            Ruling::Permitted(edge) => {
                writeln!(out, "  by the edge in {}", edge.location)?;
                writeln!(out, "    {}", shown(edge))?;
            }
            Ruling::Audited => writeln!(
                out,
                "  no edge permits it: it passes and is reported, because every managed end is in audit"
            )?,
            Ruling::Untouched => writeln!(
                out,
                "  neither end belongs to a service: such connections are left alone"
            )?,
            Ruling::Denied => {}
        },
        parts => {
            for part in parts.iter().take(MOST_PARTS) {
                writeln!(out, "  {}: {}", described(part, parts), ruling(&part.ruling))?;
            }
            if let Some(more) = parts.len().checked_sub(MOST_PARTS).filter(|more| *more > 0) {
                writeln!(out, "  and {more} parts more; --json has them all")?;
            }
        }
    }
    for reason in &answer.reasons {
        writeln!(out, "  {reason}")?;
    }
    for edge in &answer.ended {
        if let Some(until) = edge.until {
            writeln!(out, "  ended {until}: {} ({})", shown(edge), edge.location)?;
        }
    }
    if answer.outcome.passes() {
        return Ok(());
    }
    for edge in &answer.between {
        writeln!(out, "  there is: {} ({})", shown(edge), edge.location)?;
    }
    if let Some(missing) = &answer.missing {
        writeln!(
            out,
            "  the edge that is missing belongs into segment {}, such as in {}: {}",
            missing.segment, missing.file, missing.because
        )?;
        for remark in &missing.remarks {
            writeln!(out, "  note: {remark}")?;
        }
        writeln!(out, "\n{}", missing.yaml.trim_end())?;
    }
    Ok(())
}

/// `shop/web -> shop/db: 5432/tcp, until 2026-12-01T00:00:00Z, why: migration`.
fn shown(edge: &Edge) -> String {
    let ports: Vec<String> = edge.ports.iter().map(ToString::to_string).collect();
    let mut text = format!("{} -> {}: {}", edge.from, edge.to, ports.join(", "));
    if let Some(until) = edge.until {
        let _ = write!(text, ", until {until}");
    }
    if let Some(why) = &edge.why {
        let _ = write!(text, ", why: {why}");
    }
    text
}

fn described(part: &Part, all: &[Part]) -> String {
    let mut words = vec![part.traffic.clone()];
    if all.iter().any(|other| other.families != part.families) || part.families.len() < 2 {
        words.extend(part.families.iter().map(|family| family_name(*family).to_owned()));
    }
    words.extend(part.from.iter().map(|from| format!("from {from}")));
    words.extend(part.to.iter().map(|to| format!("to {to}")));
    words.join(" ")
}

fn ruling(ruling: &Ruling) -> String {
    match ruling {
        Ruling::Permitted(edge) => format!("permitted by {} ({})", shown(edge), edge.location),
        Ruling::Audited => "permitted in audit".to_owned(),
        Ruling::Untouched => "left alone".to_owned(),
        Ruling::Denied => "denied".to_owned(),
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Object<'a> {
    from: String,
    to: String,
    ports: String,
    outcome: Outcome,
    parts: Vec<PartObject<'a>>,
    reasons: &'a [String],
    between: Vec<EdgeObject>,
    ended: Vec<EdgeObject>,
    missing: Option<MissingObject<'a>>,
    remarks: &'a [String],
}

#[derive(Debug, Serialize)]
struct PartObject<'a> {
    families: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    traffic: &'a str,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    edge: Option<EdgeObject>,
}

#[derive(Debug, Serialize)]
struct MissingObject<'a> {
    segment: &'a str,
    file: &'a str,
    because: &'a str,
    yaml: &'a str,
    remarks: &'a [String],
}

impl<'a> Object<'a> {
    pub(super) fn new(answer: &'a Explanation, remarks: &'a [String]) -> Self {
        let edges = |edges: &[Edge]| edges.iter().map(EdgeObject::from).collect();
        Self {
            from: answer.question.from.to_string(),
            to: answer.question.to.to_string(),
            ports: answer.question.ports.to_string(),
            outcome: answer.outcome,
            parts: answer.parts.iter().map(PartObject::from).collect(),
            reasons: &answer.reasons,
            between: edges(&answer.between),
            ended: edges(&answer.ended),
            missing: answer.missing.as_ref().map(|missing| MissingObject {
                segment: missing.segment.as_str(),
                file: &missing.file,
                because: &missing.because,
                yaml: &missing.yaml,
                remarks: &missing.remarks,
            }),
            remarks,
        }
    }
}

impl<'a> From<&'a Part> for PartObject<'a> {
    fn from(part: &'a Part) -> Self {
        let (outcome, edge) = match &part.ruling {
            Ruling::Permitted(edge) => (Outcome::Permitted, Some(EdgeObject::from(&**edge))),
            Ruling::Audited => (Outcome::Audited, None),
            Ruling::Untouched => (Outcome::Untouched, None),
            Ruling::Denied => (Outcome::Denied, None),
        };
        Self {
            families: part.families.iter().map(|family| family_name(*family)).collect(),
            from: part.from.as_deref(),
            to: part.to.as_deref(),
            traffic: &part.traffic,
            outcome,
            edge,
        }
    }
}
