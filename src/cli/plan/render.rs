//! A plan as text and Markdown.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::daemon::preview::Basis;
use crate::plan::compare::{Change, Changes};
use crate::plan::impact::{Ending, Impact};
use crate::policy::{Colour, Location, Mode, count};

/// How a line stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Opens,
    Closes,
    Alters,
    Warns,
}

impl Mark {
    fn sign(self) -> char {
        match self {
            Self::Opens => '+',
            Self::Closes => '-',
            Self::Alters => '~',
            Self::Warns => '!',
        }
    }

    /// The colour by its SGR number: green, red, yellow, magenta.
    fn number(self) -> u8 {
        match self {
            Self::Opens => 32,
            Self::Closes => 31,
            Self::Alters => 33,
            Self::Warns => 35,
        }
    }
}

/// A titled list of lines.
#[derive(Debug)]
struct Section {
    title: &'static str,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    mark: Mark,
    what: String,
    /// Where it stands, or why.
    note: String,
}

fn line(mark: Mark, what: impl Into<String>, note: impl Into<String>) -> Line {
    Line {
        mark,
        what: what.into(),
        note: note.into(),
    }
}

/// The sections that hold anything.
fn sections(changes: &Changes) -> Vec<Section> {
    let edges = |changes: &[Change], mark| changes.iter().map(|it| change(mark, it)).collect::<Vec<_>>();
    let mut services: Vec<Line> = Vec::new();
    for (id, place) in &changes.services_added {
        services.push(line(Mark::Opens, id.to_string(), place.to_string()));
    }
    for (id, place) in &changes.services_removed {
        services.push(line(Mark::Closes, id.to_string(), place.to_string()));
    }
    for (id, place) in &changes.reselected {
        services.push(line(
            Mark::Alters,
            format!("{id} selects in another way"),
            place.to_string(),
        ));
    }
    for (id, (was, is)) in &changes.modes {
        let mark = if *is == Mode::Audit {
            Mark::Warns
        } else {
            Mark::Alters
        };
        let note = match is {
            Mode::Audit => "what no edge permits will pass and be reported",
            Mode::Enforce => "what no edge permits will be dropped",
        };
        services.push(line(mark, format!("{id}: {was} becomes {is}"), note));
    }
    let cut_off = changes.cut_off.iter().map(|(id, had)| {
        line(
            Mark::Warns,
            id.to_string(),
            format!("had {}, has none", count(*had, "edge")),
        )
    });
    let mut externals = Vec::new();
    for (name, addresses) in &changes.externals {
        for (mark, all) in [
            (Mark::Opens, &addresses.added),
            (Mark::Closes, &addresses.removed),
        ] {
            externals.extend(all.iter().map(|it| line(mark, format!("{name}: {it}"), "")));
        }
    }
    let networks = |names: &BTreeSet<String>, mark| -> Vec<Line> {
        names.iter().map(|name| line(mark, name.clone(), "")).collect()
    };
    let mut all_networks = networks(&changes.networks_added, Mark::Opens);
    all_networks.extend(networks(&changes.networks_removed, Mark::Closes));
    let sections = [
        ("Edges opened", edges(&changes.opened, Mark::Opens)),
        ("Edges closed", edges(&changes.closed, Mark::Closes)),
        (
            "Edges that end at another time",
            edges(&changes.moved_ends, Mark::Alters),
        ),
        ("Services that lose everything", cut_off.collect()),
        ("Services", services),
        ("Addresses of externals", externals),
        ("Networks", all_networks),
    ];
    sections
        .into_iter()
        .map(|(title, lines)| Section { title, lines })
        .filter(|section| !section.lines.is_empty())
        .collect()
}

fn change(mark: Mark, change: &Change) -> Line {
    let mut what = format!("{} -> {}: {}", change.from, change.to, change.ports.join(", "));
    match (mark, change.until) {
        (Mark::Opens, (_, Some(until))) => what += &format!(", until {until}"),
        (Mark::Alters, (was, is)) => what += &format!(", {} instead of {}", end(is), end(was)),
        _ => {}
    }
    let places = |all: &[Location]| -> String {
        let all: Vec<String> = all.iter().map(|it| format!("{}:{}", it.file, it.line)).collect();
        all.join(", ")
    };
    let note = match (places(&change.before), places(&change.after)) {
        (before, after) if before.is_empty() => after,
        (before, after) if after.is_empty() => format!("was {before}"),
        (before, after) => format!("{after}, was {before}"),
    };
    line(mark, what, note)
}

fn end(moment: Option<Timestamp>) -> String {
    moment.map_or_else(|| "for good".to_owned(), |it| format!("until {it}"))
}

/// `2 edges opened, 1 closed`, or that nothing changes.
fn summary(changes: &Changes) -> String {
    if changes.is_empty() {
        return "nothing changes".to_owned();
    }
    let mut parts = vec![
        format!("{} opened", count(changes.opened.len(), "edge")),
        format!("{} closed", changes.closed.len()),
    ];
    let more = [
        (
            changes.moved_ends.len(),
            "edge",
            "ends at another time",
            "end at another time",
        ),
        (
            changes.cut_off.len(),
            "service",
            "loses everything",
            "lose everything",
        ),
        (changes.services_added.len(), "service", "added", "added"),
        (changes.services_removed.len(), "service", "removed", "removed"),
        (
            changes.reselected.len(),
            "service",
            "selects in another way",
            "select in another way",
        ),
        (
            changes.modes.len(),
            "service",
            "changes its mode",
            "change their mode",
        ),
        (
            changes.externals.len(),
            "external",
            "has other addresses",
            "have other addresses",
        ),
    ];
    for (number, noun, one, many) in more {
        if number > 0 {
            parts.push(format!(
                "{} {}",
                count(number, noun),
                if number == 1 { one } else { many }
            ));
        }
    }
    parts.join(", ")
}

/// Everything that a plan shows.
#[derive(Debug)]
pub(super) struct Shown {
    /// `None`: what is in force is not known.
    pub(super) changes: Option<Changes>,
    /// On this host.
    pub(super) impact: Option<Impact>,
    pub(super) basis: Option<Basis>,
}

const UNKNOWN: &str = "no daemon says what is in force: which edges open or close is not known";

impl Shown {
    /// Whether it is known that nothing changes.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.as_ref().is_some_and(Changes::is_empty)
            && self.impact.as_ref().is_none_or(Impact::is_empty)
    }

    fn sections(&self) -> Vec<Section> {
        let mut all = self.changes.as_ref().map(sections).unwrap_or_default();
        let Some(impact) = &self.impact else { return all };
        let containers = impact.containers.iter().map(|(name, touched)| {
            let mut notes = Vec::new();
            if let Some((was, is)) = &touched.standing {
                notes.push(format!("{was} becomes {is}"));
            }
            notes.extend(touched.joins.iter().map(|it| format!("joins {it}")));
            notes.extend(touched.leaves.iter().map(|it| format!("leaves {it}")));
            line(Mark::Alters, name.clone(), notes.join(", "))
        });
        let endings = impact.endings.iter().map(|(ending, number)| {
            let Ending {
                client,
                server,
                traffic,
            } = ending;
            line(
                Mark::Warns,
                format!("{client} -> {server}: {traffic}"),
                count(*number, "connection"),
            )
        });
        let host: [(_, Vec<Line>); 2] = [
            ("Containers", containers.collect()),
            ("Open connections that end", endings.collect()),
        ];
        let host = host.into_iter().map(|(title, lines)| Section { title, lines });
        all.extend(host.filter(|section| !section.lines.is_empty()));
        all
    }

    fn summary(&self) -> String {
        let mut parts = vec![match &self.changes {
            Some(changes) => summary(changes),
            None => UNKNOWN.to_owned(),
        }];
        if let Some(impact) = self.impact.as_ref().filter(|it| !it.is_empty()) {
            parts.push(format!("{} touched", count(impact.containers.len(), "container")));
            let ending: usize = impact.endings.values().sum();
            if ending > 0 {
                let verb = if ending == 1 { "ends" } else { "end" };
                parts.push(format!("{} {verb}", count(ending, "open connection")));
            }
        }
        parts.join("; ")
    }
}

/// As text.
pub(super) fn text(shown: &Shown, colour: Colour) -> String {
    let mut out = String::new();
    for section in shown.sections() {
        out += &format!("{}\n", section.title);
        let width = section
            .lines
            .iter()
            .map(|it| it.what.len())
            .filter(|it| *it <= 60)
            .max();
        for Line { mark, what, note } in &section.lines {
            let padded = match note.is_empty() {
                true => what.clone(),
                false => format!("{what:<0$}  ({note})", width.unwrap_or(0)),
            };
            out += &match colour {
                Colour::Plain => format!("  {} {padded}\n", mark.sign()),
                Colour::Coloured => format!("  \u{1b}[{}m{} {padded}\u{1b}[0m\n", mark.number(), mark.sign()),
            };
        }
        out.push('\n');
    }
    out += &format!("{}\n", shown.summary());
    out
}

/// As Markdown: the summary first, for whoever reads no further.
pub(super) fn markdown(shown: &Shown) -> String {
    let mut out = format!("### Network policy: {}\n", shown.summary());
    for section in shown.sections() {
        out += &format!("\n**{}**\n\n", section.title);
        for Line { mark, what, note } in &section.lines {
            let sign = match mark {
                Mark::Opens => "➕",
                Mark::Closes => "➖",
                Mark::Alters => "🔁",
                Mark::Warns => "⚠️",
            };
            out += &format!("- {sign} {}", code(what));
            if !note.is_empty() {
                out += &format!(" ({})", escaped(note));
            }
            out.push('\n');
        }
    }
    out
}

/// As code, whatever it holds: policies' names and ports have no backticks.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('`', "'"))
}

/// Paths may hold what Markdown would take for its own.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' | '!' | '&' | '@' => {
                out.extend(['\\', c])
            }
            '\n' | '\r' => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}
