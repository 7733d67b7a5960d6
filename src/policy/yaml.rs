//! YAML text to a tree of nodes with their places. The only module that knows the YAML library.
//!
//! In: the text of one file. Out: its one document as a [`Node`], or the first thing that is not YAML. Duplicate keys
//! are kept in the tree, so that whoever reads it can report them along with everything else.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer};
use serde_yaml::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_yaml::{Error, MessageFormatter, Spanned, UserMessageFormatter};

use super::fault::Code;
use super::text::{Site, Sited};

/// A YAML node with its place: for a scalar the whole of it, for a collection its beginning.
pub(super) type Node = Sited<Value>;

/// What a node holds. Numbers keep the text as it was written: `010` is not `8` here, nor is `1.10` the same as `1.1`.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(String),
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// Pairs in order, duplicates included.
    Map(Vec<(Sited<String>, Node)>),
}

/// Why a text has no tree.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) site: Site,
    pub(super) help: Option<&'static str>,
}

/// Reads the one document of a file.
///
/// # Errors
/// Text that is not YAML, no document, several documents, or more nodes, depth or aliases than a policy can need.
pub(super) fn parse(file: usize, text: &str) -> Result<Node, Unreadable> {
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: 32,
            flow_nesting_limit: 32,
            max_nodes: 400_000,
            max_events: 1_000_000,
            max_aliases: 10_000,
            max_buffered_comment_events: usize::MAX,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 16,
        },
        emit_comments: false,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    match serde_yaml::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => {
            let node = place(raw, file, text);
            match node.value {
                Value::Null => Err(empty(file)),
                _ => Ok(node),
            }
        }
        Err(error) => Err(unreadable(&error, file, text)),
    }
}

fn empty(file: usize) -> Unreadable {
    Unreadable {
        code: Code::EmptyFile,
        message: "the file holds no policy: it is empty or only comments".to_owned(),
        site: Site {
            file,
            start: 0,
            end: 0,
        },
        help: Some(
            "a policy begins with `cofferdam: 1` and `segment: <name>`; remove the file if it is not needed",
        ),
    }
}

fn unreadable(error: &Error, file: usize, text: &str) -> Unreadable {
    let mut inner = error.without_snippet();
    while let Error::AliasError { error, .. } = inner {
        inner = error.without_snippet();
    }
    let site = error.location().map_or(
        Site {
            file,
            start: 0,
            end: 0,
        },
        |location| site_of(location, file, text),
    );
    let says = UserMessageFormatter.format_message(inner).into_owned();
    let (code, message, help) = match inner {
        Error::Eof { .. } => return empty(file),
        Error::MultipleDocuments { .. } => (
            Code::SeveralDocuments,
            "a second document begins here: a policy file holds exactly one".to_owned(),
            Some("put each document into a file of its own; files of the same segment add up"),
        ),
        Error::Budget { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::RecursiveReferencesRequireWeakTypes { .. } => (
            Code::Excessive,
            "the document is larger or more deeply nested than a policy may be".to_owned(),
            Some("aliases (`*name`) count as what they stand for: write out what is meant"),
        ),
        Error::MergeKeyNotAllowed { .. } => (
            Code::Syntax,
            "merge keys (`<<`) are not part of the policy format".to_owned(),
            Some("write the fields out"),
        ),
        Error::NullIntoString { .. } => (Code::Syntax, "a key must be text".to_owned(), None),
        _ => {
            // `from: *` is the beginning of an alias to YAML.
            let star = says.contains("alias") || matches!(inner, Error::UnknownAnchor { .. });
            let help = star.then_some("put a text that begins with `*` into quotes, such as \"*\"");
            (Code::Syntax, format!("not valid YAML: {says}"), help)
        }
    };
    Unreadable {
        code,
        message,
        site,
        help,
    }
}

/// The library's place as bytes of the text, whatever it says.
fn site_of(location: serde_yaml::Location, file: usize, text: &str) -> Site {
    let span = location.span();
    let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let start = span
        .byte_offset()
        .map_or_else(
            || offset_of(text, whole(location.line()), whole(location.column())),
            whole,
        )
        .min(text.len());
    let length = span.byte_len().map_or(0, whole);
    let end = start.saturating_add(length).min(text.len());
    Site { file, start, end }
}

fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let rest = text.get(before..).unwrap_or("");
    let within = rest
        .char_indices()
        .nth(column.saturating_sub(1))
        .map_or(rest.len(), |(at, _)| at);
    before + within
}

/// What the library hands over, before places are made of its locations.
enum Raw {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            pairs.push((key, access.next_value()?));
        }
        Ok(Raw::Map(pairs))
    }
}

fn place(raw: Spanned<Raw>, file: usize, text: &str) -> Node {
    let site = site_of(raw.referenced, file, text);
    let defined = site_of(raw.defined, file, text);
    let written = |otherwise: String| {
        text.get(defined.start..defined.end)
            .map(str::trim)
            .filter(|written| !written.is_empty())
            .map_or(otherwise, str::to_owned)
    };
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(written(value.to_string())),
        Raw::Number(value) => Value::Number(written(value)),
        Raw::Text(value) => Value::Text(value),
        Raw::List(items) => Value::List(items.into_iter().map(|item| place(item, file, text)).collect()),
        Raw::Map(pairs) => Value::Map(
            pairs
                .into_iter()
                .map(|(key, value)| {
                    let key = Sited {
                        site: site_of(key.referenced, file, text),
                        value: key.value,
                    };
                    (key, place(value, file, text))
                })
                .collect(),
        ),
    };
    // A collection's place is its first character: what follows is shown by the faults inside it.
    let end = match value {
        Value::List(_) | Value::Map(_) => site.end.min(site.start + 1),
        _ => site.end,
    };
    Node {
        value,
        site: Site { end, ..site },
    }
}
