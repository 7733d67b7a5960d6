//! `select` as YAML to [`Selector`]s.

use super::Selector;
use super::fault::Code;
use super::fields::{self, Fields};
use super::selector::{Builder, Unusable};
use super::text::{Report, Site, Sited};
use super::yaml::{Node, Value};

/// One selector; what is wrong with it is reported.
pub(super) fn selector(node: &Node, report: &mut Report<'_>) -> Option<Sited<Selector>> {
    let known = ["compose", "labels", "name", "image"];
    let fields = Fields::of(node, "a selector", &known, report)?;
    if let Value::Map(pairs) = &node.value
        && pairs.is_empty()
    {
        report_empty(node.site, report);
        return None;
    }
    let mut builder = Builder::default();
    let mut complete = true;
    if let Some(labels) = fields.get("labels") {
        complete &= self::labels(labels, &mut builder, report);
    }
    type Part = fn(&mut Builder, &str) -> Result<(), Unusable>;
    let parts: [(&str, &str, Part); 3] = [
        (
            "compose",
            "`compose` is the text `project/service`",
            Builder::compose,
        ),
        (
            "name",
            "`name` is text, a pattern for container names",
            Builder::name,
        ),
        (
            "image",
            "`image` is text, a pattern for image references",
            Builder::image,
        ),
    ];
    for (field, must, read) in parts {
        let Some(value) = fields.get(field) else {
            continue;
        };
        complete &= fields::text(value, must, report)
            .is_some_and(|text| kept(read(&mut builder, &text.value), text.site, report).is_some());
    }
    if !complete {
        return None;
    }
    kept(builder.build(), node.site, report)
        .flatten()
        .map(|value| Sited {
            value,
            site: node.site,
        })
}

fn report_empty(site: Site, report: &mut Report<'_>) {
    report
        .add(Code::Empty, site, "an empty selector never means \"all\"")
        .help("select by `compose`, `labels`, `name` or `image`");
}

/// `labels` as a map of exact values or as text; whether all of it could be read.
fn labels(node: &Node, builder: &mut Builder, report: &mut Report<'_>) -> bool {
    match &node.value {
        Value::Text(text) if text.trim().is_empty() => {
            report_empty(node.site, report);
            false
        }
        Value::Text(text) => kept(builder.label_selector(text), node.site, report).is_some(),
        Value::Map(pairs) if pairs.is_empty() => {
            report_empty(node.site, report);
            false
        }
        Value::Map(_) => {
            let mut complete = true;
            for (key, value) in fields::map(node, "`labels`", report).unwrap_or_default() {
                let text = fields::text(value, "a label's value is text", report);
                complete &= text.is_some_and(|text| {
                    kept(builder.label(&key.value, &text.value), key.site, report).is_some()
                });
            }
            complete
        }
        _ => {
            let must = "`labels` is a mapping, or text such as \"app=web, tier in (data, cache)\"";
            fields::wrong_type(node, must, report);
            false
        }
    }
}

/// Reports what could not be used.
fn kept<T>(result: Result<T, Unusable>, site: Site, report: &mut Report<'_>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(unusable) => {
            report
                .add(unusable.code, site, unusable.message)
                .help_if(unusable.help);
            None
        }
    }
}
