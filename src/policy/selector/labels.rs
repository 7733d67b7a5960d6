//! Conditions on labels, and the grammar of Kubernetes' label selectors.
//!
//! `a=b`, `a==b`, `a!=b`, `a in (x, y)`, `a notin (x, y)`, `a`, `!a`; a comma is AND. As in Kubernetes, `!=` and
//! `notin` hold when the label is absent, and a value may be empty (`a=`, `a in (x,)`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use litemap::LiteMap;

use super::pattern::Pattern;

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Requirement {
    pub(super) key: String,
    pub(super) test: Test,
}

/// What a label must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Test {
    /// Present with one of the values.
    In(BTreeSet<String>),
    /// Absent, or present with another value.
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
    /// Present with a value like this; only `compose` makes these.
    Like(Pattern),
}

impl Requirement {
    pub(super) fn equals(key: &str, value: &str) -> Self {
        Self {
            key: key.to_owned(),
            test: Test::In(BTreeSet::from([value.to_owned()])),
        }
    }

    pub(super) fn holds(&self, labels: &LiteMap<Arc<str>, Arc<str>>) -> bool {
        let value = labels.get(self.key.as_str()).map(Arc::as_ref);
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Like(pattern) => value.is_some_and(|value| pattern.matches(value)),
        }
    }

    /// Whether every container for which `self` holds is one for which `other` holds; a `false` may be wrong.
    pub(super) fn implies(&self, other: &Self) -> bool {
        if self.key != other.key {
            return false;
        }
        match (&self.test, &other.test) {
            (mine, theirs) if mine == theirs => true,
            (Test::In(mine), Test::In(theirs)) => mine.is_subset(theirs),
            (Test::In(mine), Test::NotIn(theirs)) => mine.is_disjoint(theirs),
            (Test::In(mine), Test::Like(theirs)) => mine.iter().all(|value| theirs.matches(value)),
            (Test::NotIn(mine), Test::NotIn(theirs)) => mine.is_superset(theirs),
            (Test::In(_) | Test::Like(_), Test::Exists) | (Test::Absent, Test::NotIn(_)) => true,
            (Test::Like(mine), Test::Like(theirs)) => mine.implies(theirs),
            _ => false,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let list = |values: &BTreeSet<String>| {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            values.join(", ")
        };
        match &self.test {
            Test::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values)),
            Test::In(values) => write!(f, "{key} in ({})", list(values)),
            Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", list(values)),
            Test::NotIn(values) => write!(f, "{key} notin ({})", list(values)),
            Test::Exists => write!(f, "{key}"),
            Test::Absent => write!(f, "!{key}"),
            Test::Like(pattern) => write!(f, "{key} like {}", pattern.as_str()),
        }
    }
}

/// Two requirements on one label that cannot both hold, as text; `None` when some container could meet them all.
pub(super) fn contradiction<'a>(requirements: impl IntoIterator<Item = &'a Requirement>) -> Option<String> {
    let mut by_key: BTreeMap<&str, Vec<&Requirement>> = BTreeMap::new();
    for requirement in requirements {
        by_key.entry(&requirement.key).or_default().push(requirement);
    }
    by_key.into_values().find_map(|all| contradiction_of_key(&all))
}

fn contradiction_of_key(all: &[&Requirement]) -> Option<String> {
    let texts = || {
        let texts: Vec<String> = all.iter().map(|requirement| format!("`{requirement}`")).collect();
        texts.join(" and ")
    };
    let must_exist = all
        .iter()
        .any(|r| matches!(r.test, Test::In(_) | Test::Exists | Test::Like(_)));
    let must_not = all.iter().any(|r| r.test == Test::Absent);
    if must_exist && must_not {
        return Some(texts());
    }
    let mut lists = all.iter().filter_map(|r| match &r.test {
        Test::In(values) => Some(values),
        _ => None,
    });
    let first = lists.next()?;
    let possible = first.iter().any(|value| {
        all.iter().all(|r| match &r.test {
            Test::In(values) => values.contains(value),
            Test::NotIn(values) => !values.contains(value),
            Test::Like(pattern) => pattern.matches(value),
            Test::Exists => true,
            Test::Absent => false,
        })
    });
    (!possible).then(texts)
}

/// Reads a selector in the grammar; never empty.
///
/// # Errors
/// What was found and what was expected instead.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, String> {
    let mut tokens = Tokens { rest: text };
    let mut requirements = Vec::new();
    loop {
        requirements.push(requirement(&mut tokens)?);
        match tokens.next()? {
            Token::End => return Ok(requirements),
            Token::Comma => {}
            other => return Err(format!("expected a comma or the end, found {other}")),
        }
    }
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<Requirement, String> {
    let (key, absent) = match tokens.next()? {
        Token::Not => match tokens.next()? {
            Token::Word(key) => (key, true),
            other => return Err(format!("expected a label after `!`, found {other}")),
        },
        Token::Word(key) => (key, false),
        other => return Err(format!("expected a label, found {other}")),
    };
    check_key(key)?;
    let test = if absent { Test::Absent } else { test(tokens)? };
    Ok(Requirement {
        key: key.to_owned(),
        test,
    })
}

fn test(tokens: &mut Tokens<'_>) -> Result<Test, String> {
    let before = tokens.rest;
    match tokens.next()? {
        Token::Equals => Ok(Test::In(BTreeSet::from([value(tokens)?]))),
        Token::Differs => Ok(Test::NotIn(BTreeSet::from([value(tokens)?]))),
        Token::Word("in") => values(tokens).map(Test::In),
        Token::Word("notin") => values(tokens).map(Test::NotIn),
        Token::Comma | Token::End => {
            tokens.rest = before;
            Ok(Test::Exists)
        }
        other => Err(format!(
            "expected `=`, `!=`, `in`, `notin` or a comma, found {other}"
        )),
    }
}

/// The value after `=` or `!=`; nothing there is the empty value.
fn value(tokens: &mut Tokens<'_>) -> Result<String, String> {
    let before = tokens.rest;
    match tokens.next()? {
        Token::Word(value) => Ok(value.to_owned()),
        Token::Comma | Token::End => {
            tokens.rest = before;
            Ok(String::new())
        }
        other => Err(format!("expected a value, found {other}")),
    }
}

/// `(x, y)`; a place left empty between commas is the empty value, but `()` is nothing.
fn values(tokens: &mut Tokens<'_>) -> Result<BTreeSet<String>, String> {
    match tokens.next()? {
        Token::Open => {}
        other => return Err(format!("expected `(`, found {other}")),
    }
    let mut values = BTreeSet::new();
    let mut current: Option<&str> = None;
    let mut commas = false;
    loop {
        match tokens.next()? {
            Token::Word(word) if current.is_none() => current = Some(word),
            Token::Comma => {
                commas = true;
                values.insert(current.take().unwrap_or_default().to_owned());
            }
            Token::Close if current.is_none() && !commas => {
                return Err("the list of values is empty".to_owned());
            }
            Token::Close => {
                values.insert(current.take().unwrap_or_default().to_owned());
                return Ok(values);
            }
            other => return Err(format!("expected a comma or `)`, found {other}")),
        }
    }
}

/// What a label's key can be with `docker run --label` and in Compose files.
///
/// # Errors
/// What makes the key impossible.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    match key
        .chars()
        .find(|c| c.is_whitespace() || c.is_control() || *c == '=')
    {
        _ if key.is_empty() => Err("a label's name must not be empty".to_owned()),
        Some(wrong) => Err(format!("a label's name cannot contain {wrong:?}")),
        None => Ok(()),
    }
}

#[derive(Debug, Clone, Copy)]
enum Token<'a> {
    Word(&'a str),
    Equals,
    Differs,
    Not,
    Open,
    Close,
    Comma,
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Equals => f.write_str("`=`"),
            Self::Differs => f.write_str("`!=`"),
            Self::Not => f.write_str("`!`"),
            Self::Open => f.write_str("`(`"),
            Self::Close => f.write_str("`)`"),
            Self::Comma => f.write_str("a comma"),
            Self::End => f.write_str("the end"),
        }
    }
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Result<Token<'a>, String> {
        const SIGNS: [(&str, Token<'static>); 7] = [
            ("==", Token::Equals),
            ("!=", Token::Differs),
            ("=", Token::Equals),
            ("!", Token::Not),
            ("(", Token::Open),
            (")", Token::Close),
            (",", Token::Comma),
        ];
        self.rest = self.rest.trim_start();
        if self.rest.is_empty() {
            return Ok(Token::End);
        }
        if self.rest.starts_with(['<', '>']) {
            return Err("`<` and `>` are not supported: labels are compared as text".to_owned());
        }
        for (sign, token) in SIGNS {
            if let Some(rest) = self.rest.strip_prefix(sign) {
                self.rest = rest;
                return Ok(token);
            }
        }
        let special = |c: char| c.is_whitespace() || "=!(),<>".contains(c);
        let end = self.rest.find(special).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(Token::Word(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect();
        parse(selector)
            .unwrap()
            .iter()
            .all(|requirement| requirement.holds(&labels))
    }

    #[test]
    fn the_grammar_of_kubernetes() {
        type Labels = &'static [(&'static str, &'static str)];
        let table: &[(&str, Labels, bool)] = &[
            ("a=b", &[("a", "b")], true),
            ("a==b", &[("a", "b")], true),
            ("a = b", &[("a", "c")], false),
            ("a=", &[("a", "")], true),
            ("a=", &[], false),
            ("a!=b", &[], true),
            ("a!=b", &[("a", "b")], false),
            ("a!=b", &[("a", "c")], true),
            ("a!=", &[("a", "")], false),
            ("a in (x,y)", &[("a", "y")], true),
            ("a in ( x , y )", &[("a", "z")], false),
            ("a in(x)", &[("a", "x")], true),
            ("a in (x,)", &[("a", "")], true),
            ("a in (,)", &[("a", "")], true),
            ("a notin (x,y)", &[], true),
            ("a notin (x,y)", &[("a", "x")], false),
            ("a", &[("a", "")], true),
            ("a", &[], false),
            ("!a", &[], true),
            ("! a", &[("a", "1")], false),
            ("a,!b,c=d", &[("a", "1"), ("c", "d")], true),
            ("a,!b,c=d", &[("a", "1"), ("b", ""), ("c", "d")], false),
            ("example.com/tier=db", &[("example.com/tier", "db")], true),
            ("in in (in)", &[("in", "in")], true),
            ("metrics in (on, true), !internal", &[("metrics", "true")], true),
        ];
        for (selector, labels, expected) in table {
            assert_eq!(holds(selector, labels), *expected, "{selector} {labels:?}");
        }
    }

    #[test]
    fn what_the_grammar_refuses() {
        let table = [
            ("", "found the end"),
            ("  ", "found the end"),
            ("a,", "found the end"),
            (",a", "found a comma"),
            ("a b", "found `b`"),
            ("a in x", "expected `(`"),
            ("a in (x", "found the end"),
            ("a in (x y)", "found `y`"),
            ("a in ()", "empty"),
            ("!a=b", "found `=`"),
            ("a=b=c", "found `=`"),
            ("a==!b", "found `!`"),
            ("a > 3", "not supported"),
            ("!", "found the end"),
        ];
        for (selector, expected) in table {
            let error = parse(selector).unwrap_err();
            assert!(error.contains(expected), "{selector}: {error}");
        }
    }

    #[test]
    fn contradictions_are_seen() {
        for selector in [
            "a=b,a!=b",
            "a,!a",
            "a in (x),a in (y)",
            "a=b,a=c",
            "a in (x,y),a notin (y,x)",
            "!a,a=b",
        ] {
            assert!(contradiction(&parse(selector).unwrap()).is_some(), "{selector}");
        }
        for selector in ["a=b,a", "a!=b,!a", "a in (x,y),a!=x", "a,b", "!a,b"] {
            assert!(contradiction(&parse(selector).unwrap()).is_none(), "{selector}");
        }
    }
}
