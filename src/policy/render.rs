//! Faults as rustc would show them: the place, the line, a caret, what was meant.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Element, Level, Origin, Renderer, Snippet};

use super::fault::{Fault, Faults, Other, Severity, Warnings};
use super::load::SourceFile;
use super::{Location, Outcome, Test};

/// Whether the text may hold terminal colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Coloured,
}

/// The widest line of source that is shown.
const MAX_SHOWN_LINE: usize = 400;

/// A line of `tests` that does not hold.
#[derive(Debug, Clone, Copy)]
pub struct Failure<'a> {
    pub test: &'a Test,
    pub outcome: &'a Outcome<'a>,
}

/// What is shown of anything: a title, a place, other places, help.
struct Block<'a> {
    title: Title<'a>,
    message: &'a str,
    location: &'a Location,
    range: &'a Range<usize>,
    others: &'a [Other],
    help: Option<&'a str>,
}

/// How the title of a block begins: `error[CFD031]`, `warning[CFD100]`, `error`.
struct Title<'a> {
    level: Level<'a>,
    code: Option<&'static str>,
}

impl Faults {
    /// Every fault with its line of source, a blank line after each; `files` are those that were loaded.
    pub fn render(&self, files: &[SourceFile], colour: Colour) -> String {
        let renderer = renderer(colour);
        let shown = self.iter().map(|fault| render_fault(fault, files, &renderer));
        shown.collect()
    }
}

impl Warnings {
    /// Every warning as [`Faults::render`] would show it.
    pub fn render(&self, files: &[SourceFile], colour: Colour) -> String {
        let renderer = renderer(colour);
        let shown = self.iter().map(|fault| render_fault(fault, files, &renderer));
        shown.collect()
    }
}

impl Failure<'_> {
    /// The test with its line of source and the edge that stands against it, a blank line after it.
    pub fn render(&self, files: &[SourceFile], colour: Colour) -> String {
        let message = self.outcome.message(self.test).unwrap_or_default();
        let help = self.outcome.help(self.test);
        let mut others = Vec::new();
        if let Outcome::Permitted(edge, _) = self.outcome {
            others.push(Other {
                location: edge.location.clone(),
                range: first_character(files, &edge.location),
                text: "this edge permits it".to_owned(),
            });
        }
        let block = Block {
            title: Title {
                level: Level::ERROR,
                code: None,
            },
            message: &message,
            location: &self.test.location,
            range: &self.test.range,
            others: &others,
            help: help.as_deref(),
        };
        render(&block, files, &renderer(colour))
    }
}

fn renderer(colour: Colour) -> Renderer {
    match colour {
        Colour::Plain => Renderer::plain(),
        Colour::Coloured => Renderer::styled(),
    }
}

fn render_fault(fault: &Fault, files: &[SourceFile], renderer: &Renderer) -> String {
    let level = match fault.code.severity() {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let block = Block {
        title: Title {
            level,
            code: Some(fault.code.as_str()),
        },
        message: &fault.message,
        location: &fault.location,
        range: &fault.range,
        others: &fault.others,
        help: fault.help.as_deref(),
    };
    render(&block, files, renderer)
}

fn render(block: &Block<'_>, files: &[SourceFile], renderer: &Renderer) -> String {
    let mut title = block.title.level.clone().primary_title(block.message);
    if let Some(code) = block.title.code {
        title = title.id(code);
    }
    let mut group = title.elements(shown(files, block.location, block.range, None));
    for other in block.others {
        group = group.elements(shown(files, &other.location, &other.range, Some(&other.text)));
    }
    if let Some(help) = block.help {
        group = group.element(Level::HELP.message(help));
    }
    format!("{}\n\n", renderer.render(&[group]))
}

/// The first character of what stands at a place, as bytes of its file.
fn first_character(files: &[SourceFile], location: &Location) -> Range<usize> {
    let text = files
        .iter()
        .find(|file| file.path == location.file)
        .and_then(|file| std::str::from_utf8(&file.bytes).ok())
        .unwrap_or("");
    let lines = text.split_inclusive('\n').take(location.line.saturating_sub(1));
    let start: usize = lines.map(str::len).sum();
    let rest = text.get(start..).unwrap_or("");
    let mut characters = rest.char_indices().skip(location.column.saturating_sub(1));
    characters
        .next()
        .map_or(0..0, |(at, c)| start + at..start + at + c.len_utf8())
}

/// The line of a place with a mark under it; the place alone when its line cannot be shown.
fn shown<'a>(
    files: &'a [SourceFile],
    location: &'a Location,
    range: &Range<usize>,
    label: Option<&'a str>,
) -> Option<Element<'a>> {
    let kind = if label.is_some() {
        AnnotationKind::Context
    } else {
        AnnotationKind::Primary
    };
    let Some((line, marked)) = line_of(files, location, range) else {
        let origin = Origin::path(&location.file)
            .line(location.line)
            .char_column(location.column);
        return Some(origin.into());
    };
    let snippet = Snippet::source(line)
        .path(&location.file)
        .line_start(location.line)
        .annotation(kind.span(marked).label(label));
    Some(snippet.into())
}

/// The text of the line that the range begins in, and the range within that line.
fn line_of<'a>(
    files: &'a [SourceFile],
    location: &Location,
    range: &Range<usize>,
) -> Option<(&'a str, Range<usize>)> {
    let file = files.iter().find(|file| file.path == location.file)?;
    let text = std::str::from_utf8(&file.bytes).ok()?;
    let before = text.get(..range.start)?;
    let start = before.rfind('\n').map_or(0, |position| position + 1);
    let line = text.get(start..)?.lines().next().unwrap_or("");
    if line.is_empty() || line.len() > MAX_SHOWN_LINE {
        return None;
    }
    let first = (range.start - start).min(line.len());
    let last = range.end.saturating_sub(start).clamp(first, line.len());
    line.get(first..last)?;
    Some((line, first..last))
}
