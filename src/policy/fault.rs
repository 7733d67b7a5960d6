//! Faults: what is wrong with a policy, where it stands and what was probably meant.
//!
//! In: places in the text of files. Out: [`Faults`], which refuse a policy, and [`Warnings`], which do not; both render
//! themselves in the style of rustc. Each code's explanation is `explain/CODE.md`.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use super::Location;

macro_rules! codes {
    ($($severity:ident { $($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+ })+) => {
        /// What kind of fault it is. The texts are stable: they may be searched for and written down.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($($(#[doc = $doc])+ $name,)+)+
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$($(Self::$name,)+)+];

            /// The code as text, such as `CFD031`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$name => $text,)+)+
                }
            }

            /// Whether a policy with it is refused.
            pub fn severity(self) -> Severity {
                match self {
                    $($(Self::$name)|+ => Severity::$severity,)+
                }
            }

            /// A short text in Markdown: a title, what it is about, a wrong and a right example.
            pub fn explanation(self) -> &'static str {
                match self {
                    $($(Self::$name => include_str!(concat!("explain/", $text, ".md")),)+)+
                }
            }
        }
    };
}

/// What a finding means for the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy is refused.
    Error,
    /// The policy is as good as any; a reviewer would ask.
    Warning,
}

codes! {
    Error {
    /// A file over [`super::MAX_FILE_BYTES`].
    TooLarge = "CFD001",
    /// A file that is not UTF-8.
    NotUtf8 = "CFD002",
    /// A file that is not YAML.
    Syntax = "CFD003",
    /// More than one document in a file.
    SeveralDocuments = "CFD004",
    /// A file without a document.
    EmptyFile = "CFD005",
    /// A document that grows without measure: too many nodes, too deep, aliases that multiply.
    Excessive = "CFD006",
    /// A symbolic link that cannot be followed or leads out of the directory.
    Link = "CFD007",
    /// A directory without policy files.
    NoFiles = "CFD008",
    /// A field that the format does not have.
    UnknownField = "CFD010",
    /// A key that stands twice in one mapping.
    DuplicateKey = "CFD011",
    /// A value of the wrong type.
    WrongType = "CFD012",
    /// A field that must be there.
    MissingField = "CFD013",
    /// An empty list, selector or `*` that would stand for nothing.
    Empty = "CFD014",
    /// A format version other than 1.
    Version = "CFD015",
    /// A name that is not a DNS label.
    BadName = "CFD016",
    /// A name with a meaning of its own: `world`, `host`.
    ReservedName = "CFD017",
    /// A `mode` other than `enforce` and `audit`.
    BadMode = "CFD018",
    /// A selector that cannot be read.
    BadSelector = "CFD020",
    /// A selector that no container can match.
    NeverMatches = "CFD021",
    /// A CIDR that cannot be read or has host bits set.
    BadCidr = "CFD022",
    /// An `except` that lies outside the `cidrs`.
    ExceptOutside = "CFD023",
    /// An external without any address left.
    EmptyExternal = "CFD024",
    /// A port, range or protocol that cannot be read.
    BadPorts = "CFD030",
    /// A name that nothing declares.
    UnknownName = "CFD031",
    /// An edge that stands in a segment that does not own it.
    WrongSegment = "CFD032",
    /// An edge without a service at either end.
    NoService = "CFD033",
    /// The same name declared twice in a segment.
    DeclaredTwice = "CFD040",
    /// Files of one segment with different modes.
    ModesContradict = "CFD041",
    /// Two services whose networks would have the same name.
    NetworkName = "CFD042",
    /// Services of two segments that select the same containers.
    SharedOwnership = "CFD043",
    /// A time that is not RFC 3339.
    BadTime = "CFD050",
    /// A line of `tests` that cannot be read.
    BadTest = "CFD051",
    }
    Warning {
    /// An edge that another edge between the same ends covers.
    Covered = "CFD100",
    /// A service that no edge leads to or from.
    NoEdge = "CFD101",
    /// An edge with `any` where the tests between the same ends name ports.
    AnyForNamed = "CFD102",
    /// A range of an external that is wider than any organisation's.
    WideExternal = "CFD103",
    /// An edge whose `until` is past.
    Ended = "CFD104",
    /// An edge from `world` to a port of a database.
    WorldToDatabase = "CFD105",
    }
}

impl std::str::FromStr for Code {
    type Err = UnknownCode;

    /// Upper or lower case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut codes = Self::ALL.iter();
        codes
            .find(|code| code.as_str().eq_ignore_ascii_case(text))
            .copied()
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

/// A text that is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no code `{0}`: codes look like `CFD031`")]
pub struct UnknownCode(String);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something wrong in a policy, or worth a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub code: Code,
    /// One line that names the object.
    pub message: String,
    pub location: Location,
    /// The place as bytes of the file; empty when there is nothing to show.
    pub range: Range<usize>,
    /// What was probably meant, or what to do.
    pub help: Option<String>,
    /// Other places that take part, each with what it says.
    pub others: Vec<Other>,
}

/// Another place that takes part in a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub location: Location,
    pub range: Range<usize>,
    pub text: String,
}

impl Fault {
    /// A fault of a whole file or directory, at its first line and column.
    pub fn of_file(code: Code, file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            location: Location {
                file: file.into(),
                line: 1,
                column: 1,
            },
            range: 0..0,
            help: None,
            others: Vec::new(),
        }
    }

    /// Adds what was probably meant.
    pub fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    /// Adds what was probably meant, if anything was.
    pub fn help_if(&mut self, help: Option<String>) -> &mut Self {
        if help.is_some() {
            self.help = help;
        }
        self
    }
}

impl fmt::Display for Fault {
    /// One line: `shop.yaml:3:5: CFD031: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.location, self.code, self.message)
    }
}

/// Every fault of every file, by file and place; never empty, and all of [`Severity::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// `None` without faults; sorts them and drops repetitions.
    pub fn new(faults: Vec<Fault>) -> Option<Self> {
        let faults = in_order(faults);
        (!faults.is_empty()).then_some(Self(faults))
    }

    /// The faults in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    /// The faults in order, owned.
    pub fn into_vec(self) -> Vec<Fault> {
        self.0
    }

    /// `12 faults in 3 files`.
    pub fn summary(&self) -> String {
        summary(&self.0, "fault")
    }
}

/// What a reviewer would ask about a policy, by file and place; often none. All of [`Severity::Warning`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Warnings(Vec<Fault>);

impl Warnings {
    /// Sorts them and drops repetitions.
    pub fn new(warnings: Vec<Fault>) -> Self {
        Self(in_order(warnings))
    }

    /// The warnings in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `2 warnings in 1 file`.
    pub fn summary(&self) -> String {
        summary(&self.0, "warning")
    }
}

fn in_order(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by(|a, b| (&a.location, a.code, &a.message).cmp(&(&b.location, b.code, &b.message)));
    faults.dedup_by(|a, b| a.location == b.location && a.code == b.code && a.message == b.message);
    faults
}

fn summary(faults: &[Fault], noun: &str) -> String {
    let files: BTreeSet<&str> = faults.iter().map(|fault| fault.location.file.as_str()).collect();
    format!("{} in {}", count(faults.len(), noun), count(files.len(), "file"))
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Faults {
    /// One line for each fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.iter().enumerate() {
            let line_break = if index > 0 { "\n" } else { "" };
            write!(f, "{line_break}{fault}")?;
        }
        Ok(())
    }
}

/// `1 service`, `2 services`.
pub fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
