//! The bytes of files to a [`Policy`], or every fault of every file.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::document::Document;
use super::fault::{Code, Fault, Faults, Warnings, count};
use super::text::{Report, Site, Text};
use super::{Name, Policy, decode, resolve, warnings, yaml};

/// The largest policy file that is read.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// One file of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As the user gave it, for people.
    pub path: String,
    /// Its content; of a file that is too large, at least [`MAX_FILE_BYTES`] + 1 of it.
    pub bytes: Vec<u8>,
}

/// Which texts a policy came from: a SHA-256 over paths and bytes in hexadecimal, whatever the order of the listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(String);

impl Revision {
    /// The 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A policy without faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub policy: Policy,
    pub revision: Revision,
    /// Every segment that a file declares, also one without services.
    pub segments: BTreeSet<Name>,
}

impl Loaded {
    /// `2 segments, 7 services, 9 edges`.
    pub fn summary(&self) -> String {
        format!(
            "{}, {}, {}",
            count(self.segments.len(), "segment"),
            count(self.policy.services.len(), "service"),
            count(self.policy.edges.len(), "edge")
        )
    }
}

/// The revision of these files; they need not hold a valid policy.
pub fn revision(files: &[SourceFile]) -> Revision {
    let mut sorted: Vec<&SourceFile> = files.iter().collect();
    sorted.sort_by(|a, b| (&a.path, &a.bytes).cmp(&(&b.path, &b.bytes)));
    let mut hash = Sha256::new();
    for file in sorted {
        for part in [file.path.as_bytes(), &file.bytes] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    let digits = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Revision(digits)
}

/// Reads a policy. Without files it is the policy that declares nothing.
///
/// # Errors
/// Every fault of every file; no part of a policy with a fault is used.
pub fn load(files: &[SourceFile]) -> Result<Loaded, Faults> {
    load_with(files, Vec::new())
}

/// As [`load`], with faults that were found before, such as links that lead out of the directory.
///
/// # Errors
/// Every fault, those found before included.
pub fn load_with(files: &[SourceFile], found_before: Vec<Fault>) -> Result<Loaded, Faults> {
    Read::new(files, found_before).loaded(files)
}

/// A policy as [`load_with`] reads it, and what a reviewer would ask about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    pub loaded: Result<Loaded, Faults>,
    /// With faults, only those that do not need the whole policy.
    pub warnings: Warnings,
}

/// Reads a policy and looks at it as a reviewer would at this moment.
pub fn review(files: &[SourceFile], found_before: Vec<Fault>, now: Timestamp) -> Reviewed {
    let mut read = Read::new(files, found_before);
    let warnings = read.warnings(now);
    Reviewed {
        loaded: read.loaded(files),
        warnings,
    }
}

/// The files as read, before it is decided whether they are a policy.
struct Read<'f> {
    documents: Vec<Document>,
    policy: Policy,
    segments: BTreeSet<Name>,
    report: Report<'f>,
    faults: Vec<Fault>,
}

impl<'f> Read<'f> {
    fn new(files: &'f [SourceFile], found_before: Vec<Fault>) -> Self {
        let mut sorted: Vec<&SourceFile> = files.iter().collect();
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        let texts: Vec<Result<&str, Box<Fault>>> = sorted.iter().map(|file| decoded(file)).collect();
        let shown = sorted
            .iter()
            .zip(&texts)
            .map(|(file, text)| Text::new(&file.path, text.as_ref().map_or("", |text| text)));
        let mut report = Report::new(shown.collect());
        for fault in found_before {
            report.push(fault);
        }
        let mut documents = Vec::new();
        let mut unread = Vec::new();
        for (index, (file, text)) in sorted.iter().zip(texts).enumerate() {
            match text {
                Err(fault) => {
                    unread.push(file.path.as_str());
                    report.push(*fault);
                }
                Ok(text) => match document(index, text, &mut report) {
                    Some(document) if document.segment.is_some() => documents.push(document),
                    _ => unread.push(file.path.as_str()),
                },
            }
        }
        let (policy, segments) = resolve::policy(&documents, &unread, &mut report);
        let faults = report.take();
        Self {
            documents,
            policy,
            segments,
            report,
            faults,
        }
    }

    fn warnings(&mut self, now: Timestamp) -> Warnings {
        warnings::about_parts(&self.documents, now, &mut self.report);
        if self.faults.is_empty() {
            warnings::about_whole(&self.documents, &self.policy, now, &mut self.report);
        }
        Warnings::new(self.report.take())
    }

    fn loaded(self, files: &[SourceFile]) -> Result<Loaded, Faults> {
        match Faults::new(self.faults) {
            Some(faults) => Err(faults),
            None => Ok(Loaded {
                policy: self.policy,
                revision: revision(files),
                segments: self.segments,
            }),
        }
    }
}

fn document(index: usize, text: &str, report: &mut Report<'_>) -> Option<Document> {
    match yaml::parse(index, text) {
        Ok(node) => Some(decode::document(&node, report)),
        Err(unreadable) => {
            report
                .add(unreadable.code, unreadable.site, unreadable.message)
                .help_if(unreadable.help.map(str::to_owned));
            None
        }
    }
}

fn decoded(file: &SourceFile) -> Result<&str, Box<Fault>> {
    if file.bytes.len() > MAX_FILE_BYTES {
        let mut fault = Fault::of_file(
            Code::TooLarge,
            &file.path,
            format!("the file is larger than {} MiB", MAX_FILE_BYTES >> 20),
        );
        fault.help("split it: files of the same segment add up");
        return Err(Box::new(fault));
    }
    std::str::from_utf8(&file.bytes).map_err(|error| {
        let valid = file.bytes.get(..error.valid_up_to()).unwrap_or_default();
        let before = String::from_utf8_lossy(valid);
        let site = Site {
            file: 0,
            start: before.len(),
            end: before.len(),
        };
        let place = Report::new(vec![Text::new(&file.path, &before)]).location(site);
        let mut fault = Fault::of_file(Code::NotUtf8, &file.path, "the file is not UTF-8");
        fault.location = place;
        fault.help("policy files are text in UTF-8");
        Box::new(fault)
    })
}
