//! What was seen as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use crate::model::learn::against::{self, Missing};
use crate::model::learn::document::{Document, remarks};
use crate::model::learn::{Direction, Ignored, LearnedEdge, Lesson, PortEvidence};
use crate::policy::{Name, Ports};

#[derive(Debug, Serialize)]
pub(super) struct Object {
    began: Timestamp,
    ended: Timestamp,
    segments: Vec<Segment>,
    /// With `--against`: flows that no edge can permit as things are.
    #[serde(skip_serializing_if = "Option::is_none")]
    unnameable: Option<Vec<String>>,
    ignored: Ignored,
    remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Segment {
    segment: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    services: BTreeMap<String, BTreeSet<String>>,
    edges: Vec<EdgeObject>,
    /// The text of its file.
    policy: String,
}

#[derive(Debug, Serialize)]
struct EdgeObject {
    from: String,
    to: String,
    ports: Vec<PortObject>,
}

#[derive(Debug, Serialize)]
struct PortObject {
    port: String,
    count: u64,
    open: u64,
    answers: u64,
    seen_once: bool,
    direction: &'static str,
    first: Timestamp,
    last: Timestamp,
    from: BTreeSet<String>,
    to: BTreeSet<String>,
    /// Of these nothing listened on the port when watching ended.
    deaf: BTreeSet<String>,
    outside: BTreeSet<IpAddr>,
    more_outside: bool,
    by_way_of: BTreeSet<u16>,
}

pub(super) fn whole(lesson: &Lesson, documents: &[Document]) -> Object {
    let segments = documents.iter().map(|document| Segment {
        segment: document.segment.to_string(),
        services: document.services.clone(),
        edges: document.edges.iter().map(edge).collect(),
        policy: document.text.clone(),
    });
    object(lesson, segments.collect(), None, remarks(lesson))
}

pub(super) fn against(lesson: &Lesson, missing: &Missing, texts: &BTreeMap<Name, String>) -> Object {
    let segments = missing.edges.iter().map(|(segment, edges)| Segment {
        segment: segment.to_string(),
        services: BTreeMap::new(),
        edges: edges.iter().map(edge).collect(),
        policy: texts.get(segment).cloned().unwrap_or_default(),
    });
    let unnameable = Some(missing.unnameable.clone());
    object(
        lesson,
        segments.collect(),
        unnameable,
        against::notes(lesson, missing),
    )
}

fn object(
    lesson: &Lesson,
    segments: Vec<Segment>,
    unnameable: Option<Vec<String>>,
    remarks: Vec<String>,
) -> Object {
    Object {
        began: lesson.began,
        ended: lesson.ended,
        segments,
        unnameable,
        ignored: lesson.observation.settle().ignored,
        remarks,
    }
}

fn edge(edge: &LearnedEdge) -> EdgeObject {
    EdgeObject {
        from: edge.from.to_string(),
        to: edge.to.to_string(),
        ports: edge
            .ports
            .iter()
            .map(|(ports, known)| port(*ports, known))
            .collect(),
    }
}

fn port(ports: Ports, known: &PortEvidence) -> PortObject {
    let evidence = &known.evidence;
    PortObject {
        port: ports.to_string(),
        count: evidence.count,
        open: evidence.open,
        answers: evidence.answers,
        seen_once: known.is_single(),
        direction: match evidence.direction {
            Direction::Certain => "certain",
            Direction::Likely => "likely",
        },
        first: evidence.first,
        last: evidence.last,
        from: known.from.clone(),
        to: known.to.clone(),
        deaf: known.deaf.clone(),
        outside: evidence.addresses.known.clone(),
        more_outside: evidence.addresses.more,
        by_way_of: evidence.by_way_of.clone(),
    }
}
