//! What was found, as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use super::report::{Counts, Report, difference, outcome};
use crate::net::Transport;
use crate::policy::{Colour, count};
use crate::verify::scene::Group;
use crate::verify::verdict::Mark;

/// Differences beyond this are only counted.
const MOST_DIFFERENCES: usize = 30;
/// Ports that are named in a row of the matrix.
const MOST_PORTS: usize = 6;

/// Ports of a target that look alike to everyone.
type Row<'a> = (&'a Group, Vec<Option<Mark>>, Vec<String>);

impl Report {
    pub(super) fn text(&self, colour: Colour) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.render(&mut out, colour);
        out
    }

    fn render(&self, out: &mut String, colour: Colour) -> fmt::Result {
        for remark in &self.remarks {
            writeln!(out, "note: {remark}")?;
        }
        self.matrix(out, colour)?;
        for (place, cell) in self.differences().take(MOST_DIFFERENCES) {
            writeln!(out, "\n{}", difference(place, cell))?;
            write!(out, "{}", self.details(place, cell))?;
        }
        let more = self.differences().count().saturating_sub(MOST_DIFFERENCES);
        if more > 0 {
            writeln!(out, "\nand {more} more that differ; --json has them all")?;
        }
        self.policy_tests(out)?;
        self.summary(out)
    }

    /// A row for each port that is dialled, a column for each who dials. Rows of one service that are alike are one.
    fn matrix(&self, out: &mut String, colour: Colour) -> fmt::Result {
        let dialling: BTreeSet<&Group> = self.cells.keys().map(|it| &it.from).collect();
        let width = dialling.len().to_string().len() + 1;
        writeln!(out, "who dials:")?;
        for (number, group) in dialling.iter().enumerate() {
            writeln!(out, "{:>width$} {group}", number + 1)?;
        }
        let mut rows: BTreeMap<(&Group, Transport, u16), Vec<Option<Mark>>> = BTreeMap::new();
        for (place, cell) in &self.cells {
            let row = rows
                .entry((&place.to, place.transport, place.port))
                .or_insert_with(|| vec![None; dialling.len()]);
            let column = dialling.iter().position(|it| **it == place.from);
            if let Some(mark) = column.and_then(|column| row.get_mut(column)) {
                *mark = Some(cell.mark());
            }
        }
        let mut alike: Vec<Row<'_>> = Vec::new();
        for ((to, transport, port), row) in rows {
            let port = format!("{port}/{transport}");
            match alike.iter_mut().find(|(of, same, _)| *of == to && *same == row) {
                Some((_, _, ports)) => ports.push(port),
                None => alike.push((to, row, vec![port])),
            }
        }
        let mut lines: Vec<(String, String)> = Vec::new();
        for (to, row, mut ports) in alike {
            let more = ports.len().saturating_sub(MOST_PORTS);
            ports.truncate(MOST_PORTS);
            let mut name = format!("{to}:{}", ports.join(","));
            if more > 0 {
                let _ = write!(name, " and {more} more");
            }
            let marks = row.iter().map(|mark| shown(*mark, width, colour)).collect();
            lines.push((name, marks));
        }
        let longest = lines.iter().map(|(name, _)| name.chars().count()).max();
        let longest = longest.unwrap_or_default();
        let numbers: String = (1..=dialling.len()).map(|it| format!("{it:>width$}")).collect();
        writeln!(out, "\n{:longest$} {numbers}", "dialled:")?;
        for (name, marks) in lines {
            writeln!(out, "{}", format!("{name:longest$} {marks}").trim_end())?;
        }
        writeln!(
            out,
            "\no open, a open in audit, . closed, ? unknown, blank not tried; ! OPEN AND DECLARED CLOSED, x CLOSED AND \
             DECLARED OPEN"
        )
    }

    fn policy_tests(&self, out: &mut String) -> fmt::Result {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (test, tested) in self.tests() {
            *counts.entry(outcome(tested)).or_default() += 1;
            if let Some(why) = self.failure(tested) {
                writeln!(
                    out,
                    "\n{}: the test `{test}` is not {}: {why}",
                    test.location, test.expected
                )?;
            }
        }
        let counts: Vec<String> = counts
            .iter()
            .map(|(what, number)| format!("{number} {what}"))
            .collect();
        if !counts.is_empty() {
            writeln!(out, "\nthe policy's own tests: {}", counts.join(", "))?;
        }
        Ok(())
    }

    fn summary(&self, out: &mut String) -> fmt::Result {
        for line in self.not_tried() {
            writeln!(out, "not tried: {line}")?;
        }
        let Counts {
            tried,
            agree,
            differ,
            unknown,
        } = self.counts();
        let differing = self.differences().count();
        writeln!(
            out,
            "\n{}: {} tried in {:.1} s, {agree} as declared, {differ} not{}; {} of {} differ",
            if self.agrees() { "agrees" } else { "DIFFERS" },
            count(tried, "connection"),
            self.elapsed.as_secs_f64(),
            match unknown {
                0 => String::new(),
                unknown => format!(", {unknown} unknown (no answer, and nothing that tells why)"),
            },
            differing,
            count(self.cells.len(), "cell"),
        )
    }
}

fn shown(mark: Option<Mark>, width: usize, colour: Colour) -> String {
    let letter = match mark {
        None => ' ',
        Some(Mark::Open) => 'o',
        Some(Mark::Audited) => 'a',
        Some(Mark::Closed) => '.',
        Some(Mark::Unknown) => '?',
        Some(Mark::Leaks) => '!',
        Some(Mark::Blocked) => 'x',
    };
    match (mark.is_some_and(Mark::differs), colour) {
        (true, Colour::Coloured) => format!("\x1b[1;31m{letter:>width$}\x1b[0m"),
        _ => format!("{letter:>width$}"),
    }
}
