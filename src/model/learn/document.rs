//! A policy that permits just what was seen, as text with what each edge is known by.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::edges::{Edges, LearnedEdge, time, written};
use super::groups::{self, Layout, Services};
use super::observation::Settled;
use super::words::{plain, several};
use super::{End, Lesson, Scope};
use crate::inventory::{ContainerId, Lifecycle};
use crate::model::yaml::{quoted, scalar};
use crate::policy::{Name, Peer};

/// Tests of a segment; with more of them nobody reads them.
const TESTS: usize = 60;
/// Names in a remark.
const NAMED: usize = 8;

/// A file that was written from what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub segment: Name,
    pub text: String,
    /// The services with their containers' names, and the edges that stand in it.
    pub services: BTreeMap<String, BTreeSet<String>>,
    pub edges: Vec<LearnedEdge>,
}

/// Writes the policy; one document for each segment, none where nothing was seen.
pub fn documents(lesson: &Lesson, scope: &Scope, layout: &Layout) -> Vec<Document> {
    let flows = lesson.flows(scope);
    let ends = flows.iter().flat_map(|(flow, _)| [&flow.from, &flow.to]);
    let wanted: BTreeSet<ContainerId> = ends
        .filter_map(|end| match end {
            End::Container(id) => Some(id.clone()),
            End::Host | End::Outside => None,
        })
        .collect();
    let services = groups::services(&lesson.containers, &wanted, layout);
    let mut edges = Edges::default();
    let mut unwritten = BTreeSet::new();
    for (flow, evidence) in &flows {
        match (peer(&services, &flow.from), peer(&services, &flow.to)) {
            (Some(from), Some(to)) => edges.add(lesson, (from, to), flow, evidence),
            _ => {
                unwritten.insert(format!(
                    "{} -> {}:{}",
                    shown(lesson, &flow.from),
                    shown(lesson, &flow.to),
                    flow.ports
                ));
            }
        }
    }
    let mut edges = edges.by_segment();
    let segments: BTreeSet<Name> = services.found.keys().map(|id| id.segment.clone()).collect();
    let head = head(lesson, scope, &services, &unwritten);
    segments
        .into_iter()
        .map(|segment| {
            document(
                lesson,
                &services,
                edges.remove(&segment).unwrap_or_default(),
                segment,
                &head,
            )
        })
        .collect()
}

fn peer(services: &Services, end: &End) -> Option<Peer> {
    match end {
        End::Container(id) => services.of.get(id).cloned().map(Peer::Service),
        End::Host => Some(Peer::Host),
        End::Outside => Some(Peer::World),
    }
}

/// An end for people.
pub(super) fn shown(lesson: &Lesson, end: &End) -> String {
    match end {
        End::Container(id) => match lesson.containers.get(id) {
            Some(container) => plain(&container.name),
            None => id.to_string(),
        },
        End::Host => "host".to_owned(),
        End::Outside => "world".to_owned(),
    }
}

fn document(
    lesson: &Lesson,
    services: &Services,
    edges: Vec<LearnedEdge>,
    segment: Name,
    head: &[String],
) -> Document {
    let mut text = String::new();
    for line in head {
        line_of(&mut text, &format!("# {line}"));
    }
    line_of(&mut text, "cofferdam: 1");
    line_of(&mut text, &format!("segment: {}", scalar(segment.as_str())));
    line_of(&mut text, "");
    line_of(&mut text, "services:");
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (id, found) in services.found.iter().filter(|(id, _)| id.segment == segment) {
        let members = found.containers.iter().filter_map(|id| lesson.containers.get(id));
        let members: BTreeSet<String> = members.map(|it| plain(&it.name)).collect();
        let shown = several(&members, NAMED);
        line_of(
            &mut text,
            &format!(
                "  {}: {{ select: {} }} # {shown}",
                scalar(id.name.as_str()),
                found.select
            ),
        );
        named.insert(id.to_string(), members);
    }
    if !edges.is_empty() {
        line_of(&mut text, "");
        line_of(&mut text, "allow:");
        edges_of(&mut text, &edges, &segment);
        tests_of(&mut text, &edges, &segment);
    }
    Document {
        segment,
        text,
        services: named,
        edges,
    }
}

pub(super) fn edges_of(text: &mut String, edges: &[LearnedEdge], segment: &Name) {
    for edge in edges {
        for comment in edge.comments() {
            line_of(text, &format!("  # {comment}"));
        }
        line_of(text, &format!("  - {}", written(edge, segment)));
    }
}

fn tests_of(text: &mut String, edges: &[LearnedEdge], segment: &Name) {
    let end = |peer: &Peer| match peer {
        Peer::Service(id) if id.segment == *segment => id.name.to_string(),
        peer => peer.to_string(),
    };
    let tests: Vec<String> = edges
        .iter()
        .flat_map(|edge| {
            let (from, to) = (end(&edge.from), end(&edge.to));
            let ports = edge.written_ports().into_iter();
            ports.map(move |ports| format!("{from} -> {to}:{ports}"))
        })
        .collect();
    line_of(text, "");
    if tests.len() > TESTS {
        line_of(
            text,
            &format!("# No tests: {} are more than anybody reads.", tests.len()),
        );
        return;
    }
    line_of(text, "tests:");
    line_of(text, "  reachable:");
    for test in tests {
        line_of(text, &format!("    - {}", quoted(&test)));
    }
}

pub(super) fn line_of(text: &mut String, line: &str) {
    let _infallible = writeln!(text, "{line}");
}

/// What whoever reviews it must know, before all else.
fn head(lesson: &Lesson, scope: &Scope, services: &Services, unwritten: &BTreeSet<String>) -> Vec<String> {
    let mut lines = vec![
        format!(
            "Written by `cofferdam learn` from what was seen from {} to {}.",
            time(lesson.began),
            time(lesson.ended)
        ),
        "To be reviewed: not all that was seen should be permitted, and what was not seen will be closed."
            .to_owned(),
    ];
    let quiet: BTreeSet<String> = lesson
        .containers
        .values()
        .filter(|it| it.lifecycle == Lifecycle::Running && scope.contains(it, &lesson.networks))
        .filter(|it| !services.of.contains_key(&it.id))
        .map(|it| plain(&groups::label(it)))
        .collect();
    if !quiet.is_empty() {
        lines.push(format!(
            "Nothing was seen of {}: without a service they stay unmanaged.",
            several(&quiet, NAMED)
        ));
    }
    lines.extend(
        unwritten
            .iter()
            .map(|flow| format!("No selector can name an end of {flow}.")),
    );
    lines.extend(remarks(lesson));
    lines
}

/// What was left out, and why.
pub fn remarks(lesson: &Lesson) -> Vec<String> {
    let Settled {
        proxied,
        others,
        ignored,
        ..
    } = lesson.observation.settle();
    let mut lines: Vec<String> = lesson.remarks.iter().map(|it| plain(it)).collect();
    for (flow, count) in proxied {
        lines.push(format!(
            "Left out: host -> {}:{} ({count} times), taken for the engine's proxy, since containers dialled the host's port as often.",
            shown(lesson, &flow.to),
            flow.ports
        ));
    }
    for (from, to, protocol, count) in others {
        lines.push(format!(
            "Left out: IP protocol {protocol} from {} to {} ({count} packets). Only `any` permits it.",
            shown(lesson, &from),
            shown(lesson, &to)
        ));
    }
    if ignored.multicast > 0 {
        lines.push(format!(
            "Left out: {} multicast, broadcast and link-local packets.",
            ignored.multicast
        ));
    }
    if ignored.foreign > 0 {
        lines.push(format!(
            "Left out: {} packets on bridges whose source was no container's address.",
            ignored.foreign
        ));
    }
    if ignored.contested > 0 {
        lines.push(format!(
            "INCOMPLETE: {} packets of container addresses whose owner could not be told: it came or went just then.",
            ignored.contested
        ));
    }
    if ignored.lost > 0 {
        lines.push(format!(
            "INCOMPLETE: the kernel's sets were full, {} packets could not be noted.",
            ignored.lost
        ));
    }
    lines
}
