//! The texts of the files while they are read: places in them, and the faults found so far.

use std::ops::Range;

use super::Location;
use super::fault::{Code, Fault, Other};

/// A place in one of the files: bytes `start..end` of file number `file`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    pub(super) file: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A value with the place where it stands.
#[derive(Debug, Clone)]
pub(super) struct Sited<T> {
    pub(super) value: T,
    pub(super) site: Site,
}

/// One file as text.
#[derive(Debug, Clone)]
pub(super) struct Text<'a> {
    path: &'a str,
    text: &'a str,
    /// The byte that each line begins with.
    line_starts: Vec<usize>,
}

impl<'a> Text<'a> {
    pub(super) fn new(path: &'a str, text: &'a str) -> Self {
        let breaks = text.match_indices('\n').map(|(position, _)| position + 1);
        Self {
            path,
            text,
            line_starts: std::iter::once(0).chain(breaks).collect(),
        }
    }

    /// Line and column of a byte, both from 1; columns count characters. Beyond the end is the end.
    fn location(&self, offset: usize) -> Location {
        let line = self.line_starts.partition_point(|&start| start <= offset).max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let rest = self.text.get(start..).unwrap_or("");
        let before = rest.char_indices().take_while(|(at, _)| start + at < offset);
        // A byte order mark is no column.
        let column = before
            .filter(|(at, c)| start + at > 0 || *c != '\u{feff}')
            .count()
            + 1;
        Location {
            file: self.path.to_owned(),
            line,
            column,
        }
    }
}

/// Collects faults.
#[derive(Debug)]
pub(super) struct Report<'a> {
    texts: Vec<Text<'a>>,
    faults: Vec<Fault>,
}

impl<'a> Report<'a> {
    pub(super) fn new(texts: Vec<Text<'a>>) -> Self {
        Self {
            texts,
            faults: Vec::new(),
        }
    }

    /// Line and column of a place.
    pub(super) fn location(&self, site: Site) -> Location {
        self.texts.get(site.file).map_or_else(
            || Location {
                file: String::new(),
                line: 1,
                column: 1,
            },
            |text| text.location(site.start),
        )
    }

    /// Records a fault; help and other places can be added to what it returns.
    pub(super) fn add(&mut self, code: Code, site: Site, message: impl Into<String>) -> &mut Fault {
        let fault = Fault {
            code,
            message: message.into(),
            location: self.location(site),
            range: range(site),
            help: None,
            others: Vec::new(),
        };
        self.push(fault)
    }

    /// Records a fault that came from elsewhere.
    pub(super) fn push(&mut self, fault: Fault) -> &mut Fault {
        self.faults.push(fault);
        let last = self.faults.len() - 1;
        &mut self.faults[last]
    }

    /// Another place for [`Fault::others`].
    pub(super) fn other(&self, site: Site, text: impl Into<String>) -> Other {
        Other {
            location: self.location(site),
            range: range(site),
            text: text.into(),
        }
    }

    /// Whether there are so many faults that nobody misses a suggestion with the next one.
    pub(super) fn is_long(&self) -> bool {
        self.faults.len() > 500
    }

    /// Hands over what was found so far.
    pub(super) fn take(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }
}

fn range(site: Site) -> Range<usize> {
    site.start..site.end
}
