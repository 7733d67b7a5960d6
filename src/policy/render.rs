//! Faults as rustc would show them: the place, the line, a caret, what was meant.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Element, Level, Origin, Renderer, Snippet};

use super::Location;
use super::fault::{Fault, Faults};
use super::load::SourceFile;

/// Whether the text may hold terminal colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Coloured,
}

/// The widest line of source that is shown.
const MAX_SHOWN_LINE: usize = 400;

impl Faults {
    /// Every fault with its line of source, a blank line after each; `files` are those that were loaded.
    pub fn render(&self, files: &[SourceFile], colour: Colour) -> String {
        let renderer = match colour {
            Colour::Plain => Renderer::plain(),
            Colour::Coloured => Renderer::styled(),
        };
        let mut text = String::new();
        for fault in self {
            text.push_str(&render(fault, files, &renderer));
            text.push_str("\n\n");
        }
        text
    }
}

fn render(fault: &Fault, files: &[SourceFile], renderer: &Renderer) -> String {
    let mut group = Level::ERROR
        .primary_title(&fault.message)
        .id(fault.code.as_str())
        .elements(shown(files, &fault.location, &fault.range, None));
    for other in &fault.others {
        group = group.elements(shown(files, &other.location, &other.range, Some(&other.text)));
    }
    if let Some(help) = &fault.help {
        group = group.element(Level::HELP.message(help));
    }
    renderer.render(&[group])
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
