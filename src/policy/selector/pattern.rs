//! Patterns with `*` (any run of characters, `/` and `:` included) and `?` (any one character).

use std::cmp::Ordering;

use globset::{GlobBuilder, GlobMatcher};

/// A pattern; two are equal when their texts are.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    matcher: GlobMatcher,
}

impl Pattern {
    /// The caller has checked that `text` holds nothing but `*`, `?` and characters that are not special in a glob.
    ///
    /// # Errors
    /// A text that is not a glob, or too large a one.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let glob = GlobBuilder::new(text)
            .literal_separator(false)
            .backslash_escape(false)
            .build()
            .map_err(|error| error.kind().to_string())?;
        Ok(Self {
            text: text.to_owned(),
            matcher: glob.compile_matcher(),
        })
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        self.matcher.is_match(text)
    }

    /// Whether whatever `self` matches is certain to be matched by `other`; a `false` may be wrong.
    pub(super) fn implies(&self, other: &Self) -> bool {
        self == other || other.text == "*" || (!is_wild(&self.text) && other.matches(&self.text))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Whether the text has a wild card.
pub(super) fn is_wild(text: &str) -> bool {
    text.contains(['*', '?'])
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl PartialOrd for Pattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pattern {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}
