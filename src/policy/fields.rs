//! The fields of a YAML mapping, taken one by one; what is wrong with them is reported, not returned.

use super::fault::Code;
use super::suggest::{self, did_you_mean};
use super::text::{Report, Site, Sited};
use super::yaml::{Node, Value};

/// The fields of one mapping. `what` names it in messages: "an `allow` entry".
#[derive(Debug)]
pub(super) struct Fields<'n> {
    what: &'static str,
    site: Site,
    pairs: Vec<(&'n Sited<String>, &'n Node)>,
    /// Known fields that an unknown one was probably meant to be; they are not reported as missing too.
    misspelt: Vec<String>,
}

impl<'n> Fields<'n> {
    /// Unknown fields and duplicates are reported and left out; what is not a mapping is reported and `None`.
    pub(super) fn of(
        node: &'n Node,
        what: &'static str,
        known: &[&str],
        report: &mut Report<'_>,
    ) -> Option<Self> {
        let mut pairs = Vec::new();
        let mut misspelt = Vec::new();
        for (key, value) in map(node, what, report)? {
            if known.contains(&key.value.as_str()) {
                pairs.push((key, value));
                continue;
            }
            let suggestion = suggest::closest(&key.value, known.iter().copied());
            misspelt.extend(suggestion.map(str::to_owned));
            let help = did_you_mean(suggestion)
                .unwrap_or_else(|| format!("its fields are {}", suggest::listed(known, "and")));
            report
                .add(
                    Code::UnknownField,
                    key.site,
                    format!("{what} has no field `{}`", key.value),
                )
                .help(help);
        }
        Some(Self {
            what,
            site: node.site,
            pairs,
            misspelt,
        })
    }

    /// The value of a field, if it stands there.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.pairs
            .iter()
            .find(|(key, _)| key.value == name)
            .map(|(_, value)| *value)
    }

    /// The value of a field that must be there.
    pub(super) fn need(&self, name: &str, report: &mut Report<'_>) -> Option<&'n Node> {
        let found = self.get(name);
        if found.is_none() && !self.misspelt.iter().any(|meant| meant == name) {
            report.add(
                Code::MissingField,
                self.site,
                format!("{} needs `{name}`", self.what),
            );
        }
        found
    }
}

/// The pairs of a mapping without duplicates, which are reported.
pub(super) fn map<'n>(
    node: &'n Node,
    what: &str,
    report: &mut Report<'_>,
) -> Option<Vec<(&'n Sited<String>, &'n Node)>> {
    let Value::Map(all) = &node.value else {
        wrong_type(node, &format!("{what} is a mapping"), report);
        return None;
    };
    let mut seen = std::collections::BTreeMap::new();
    let mut pairs = Vec::new();
    for (key, value) in all {
        if let Some(&first) = seen.get(key.value.as_str()) {
            let other = report.other(first, "it stands here first");
            report
                .add(
                    Code::DuplicateKey,
                    key.site,
                    format!("`{}` stands twice in one mapping", key.value),
                )
                .others
                .push(other);
        } else {
            seen.insert(key.value.as_str(), key.site);
            pairs.push((key, value));
        }
    }
    Some(pairs)
}

/// A text; anything else is reported with `must`, such as "`segment` is a name".
pub(super) fn text(node: &Node, must: &str, report: &mut Report<'_>) -> Option<Sited<String>> {
    if let Value::Text(text) = &node.value {
        return Some(Sited {
            value: text.clone(),
            site: node.site,
        });
    }
    wrong_type(node, must, report);
    None
}

/// A list, or one value in place of a list of one; empty lists and other things are reported.
pub(super) fn one_or_many<'n>(node: &'n Node, what: &str, report: &mut Report<'_>) -> Vec<&'n Node> {
    match &node.value {
        Value::List(items) if items.is_empty() => {
            report
                .add(Code::Empty, node.site, format!("{what} is an empty list"))
                .help("an empty list never means \"all\": write what is meant, or remove the entry");
            Vec::new()
        }
        Value::List(items) => items.iter().collect(),
        _ => vec![node],
    }
}

/// A list that is not empty; anything else is reported.
pub(super) fn list<'n>(node: &'n Node, what: &str, report: &mut Report<'_>) -> Vec<&'n Node> {
    if let Value::List(_) = node.value {
        return one_or_many(node, what, report);
    }
    wrong_type(node, &format!("{what} is a list"), report);
    Vec::new()
}

/// Reports a value of the wrong type.
pub(super) fn wrong_type(node: &Node, must: &str, report: &mut Report<'_>) {
    let (found, help) = match &node.value {
        Value::Null => ("nothing".to_owned(), None),
        Value::Bool(text) => (format!("the truth value `{text}`"), quoted(text)),
        Value::Number(text) => (format!("the number `{text}`"), quoted(text)),
        Value::Text(text) => (format!("the text `{}`", shortened(text)), None),
        Value::List(_) => ("a list".to_owned(), None),
        Value::Map(_) => ("a mapping".to_owned(), None),
    };
    let help = help.filter(|_| must.contains("text") || must.contains("name"));
    report
        .add(Code::WrongType, node.site, format!("{must}, found {found}"))
        .help_if(help);
}

fn quoted(text: &str) -> Option<String> {
    Some(format!("write \"{text}\" with quotes if the text is meant"))
}

fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or("");
    let short: String = line.chars().take(40).collect();
    if short.len() < text.len() {
        format!("{short}...")
    } else {
        short
    }
}
