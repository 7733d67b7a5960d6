//! `docs/reference.md` and `docs/output.md`: what the JSON Schemas say, as pages; `docs/codes.md`: what `explain-code` says of each code.
//! They are compared with what is made now; `COFFERDAM_BLESS=1` writes them.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use cofferdam::{audit, policy};
use serde_json::{Map, Value};

use crate::{blesses, read, root};

const MADE: &str = "<!-- Made by tests/book/reference.rs: change what it is made from. -->";

/// A page of sections, one for each type in the order in which they are needed.
struct Page<'a> {
    schema: &'a Value,
    out: String,
    /// Types that still need a section, and those that have one.
    wanted: Vec<String>,
}

impl<'a> Page<'a> {
    fn of(schema: &'a Value, head: &str) -> Self {
        Self {
            schema,
            out: head.to_owned(),
            wanted: Vec::new(),
        }
    }

    /// The sections of a type and of everything that it names.
    fn sections(&mut self, title: &str) {
        self.section(title, self.schema);
        let mut done = 0;
        while let Some(name) = self.wanted.get(done).cloned() {
            self.section(&name, &self.schema["$defs"][&name]);
            done += 1;
        }
    }

    fn section(&mut self, title: &str, schema: &Value) {
        writeln!(self.out, "\n## {title}\n").unwrap();
        let description = schema["description"].as_str().unwrap_or_default();
        for paragraph in description.split("\n\n") {
            writeln!(self.out, "{}\n", words(paragraph)).unwrap();
        }
        if let Some(Value::Object(fields)) = schema.get("properties") {
            self.table(fields, schema);
        } else if let Some(Value::Array(choices)) = schema.get("oneOf") {
            for choice in choices {
                let text = text(choice).map_or_else(String::new, |it| format!(": {it}"));
                let form = self.form(choice);
                writeln!(self.out, "- {form}{text}").unwrap();
            }
            self.out.push('\n');
        } else if let Some(Value::Array(choices)) = schema.get("anyOf") {
            for choice in choices {
                let form = self.form(choice);
                let text = text(choice).map_or_else(String::new, |it| format!(": {it}"));
                writeln!(self.out, "- {form}{text}{}", examples(choice)).unwrap();
            }
            self.out.push('\n');
        } else {
            let form = self.form(schema);
            let examples = examples(schema).replace(" Such as", ", such as");
            writeln!(self.out, "Written as {form}{examples}.\n").unwrap();
        }
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
            writeln!(self.out, "```text\n{pattern}\n```\n").unwrap();
        }
        if schema.get("properties").is_some() {
            for example in schema["examples"].as_array().into_iter().flatten() {
                let lines = match example {
                    // A whole file has a line for each key.
                    Value::Object(fields) if fields.contains_key("cofferdam") => document(fields),
                    other => format!("{}\n", flow(other)),
                };
                writeln!(self.out, "```yaml\n{lines}```\n").unwrap();
            }
        }
    }

    fn table(&mut self, fields: &Map<String, Value>, schema: &Value) {
        let required: Vec<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
        fields.sort_by_key(|(name, _)| (!required.contains(&name.as_str()), place(name)));
        self.out.push_str("| key | | is | |\n|---|---|---|---|\n");
        for (name, field) in fields {
            let must = if required.contains(&name.as_str()) {
                "required"
            } else {
                ""
            };
            let form = self.form(field);
            let text = text(field).unwrap_or_default();
            writeln!(
                self.out,
                "| `{name}` | {must} | {form} | {text}{} |",
                examples(field)
            )
            .unwrap();
        }
        self.out.push('\n');
    }

    /// What may stand there, in words.
    fn form(&mut self, schema: &Value) -> String {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            let name = name.trim_start_matches("#/$defs/").to_owned();
            let link = format!("[{name}](#{})", name.to_lowercase());
            if !self.wanted.contains(&name) {
                self.wanted.push(name);
            }
            return link;
        }
        if let Some(value) = schema.get("const") {
            return code(value);
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return values.iter().map(code).collect::<Vec<_>>().join(" or ");
        }
        if let Some(choices) = schema
            .get("anyOf")
            .or_else(|| schema.get("oneOf"))
            .and_then(Value::as_array)
        {
            let listed = choices
                .iter()
                .find(|it| it["type"] == "array")
                .map(|it| it["items"].clone());
            if let (Some(item), 2) = (listed, choices.len()) {
                return format!("{}, or a list of them", self.form(&item));
            }
            let forms: Vec<String> = choices.iter().map(|it| self.form(it)).collect();
            return forms.join(" or ");
        }
        match &schema["type"] {
            Value::String(kind) => self.plain(kind, schema),
            Value::Array(kinds) => {
                let kinds = kinds.iter().filter_map(Value::as_str);
                let forms: Vec<String> = kinds.map(|it| self.plain(it, schema)).collect();
                forms.join(" or ")
            }
            _ => "anything".to_owned(),
        }
    }

    fn plain(&mut self, kind: &str, schema: &Value) -> String {
        let bounds = match (&schema["minimum"], &schema["maximum"]) {
            (Value::Number(low), Value::Number(high)) => format!(" from {low} to {high}"),
            _ => String::new(),
        };
        match kind {
            "integer" | "number" => format!("a number{bounds}"),
            "boolean" => "`true` or `false`".to_owned(),
            "array" => format!("a list of {}", self.form(&schema["items"])),
            "object" => match &schema["additionalProperties"] {
                Value::Object(of) => format!("name: {}", self.form(&Value::Object(of.clone()))),
                _ => "an object".to_owned(),
            },
            "null" => "`null`".to_owned(),
            "string" => match schema["format"].as_str() {
                Some("date-time") => "a time (RFC 3339)".to_owned(),
                Some(format) => format!("text ({format})"),
                None => "text".to_owned(),
            },
            other => panic!("{other} is no type of JSON Schema"),
        }
    }
}

/// The description on one line.
fn text(schema: &Value) -> Option<String> {
    Some(words(schema.get("description")?.as_str()?))
}

fn words(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// What is no object, as an example within a sentence.
fn examples(schema: &Value) -> String {
    let examples = schema.get("examples").and_then(Value::as_array);
    let examples: Vec<String> = examples.into_iter().flatten().map(code).collect();
    match examples.is_empty() {
        true => String::new(),
        false => format!(" Such as {}", examples.join(", ")),
    }
}

fn code(value: &Value) -> String {
    format!("`{}`", flow(value))
}

/// YAML on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| place(name));
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name}: {}", flow(value)))
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::String(text) if text.contains(['*', ',', '>', '!', '#']) || text.contains("::") => {
            format!("\"{text}\"")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn document(fields: &Map<String, Value>) -> String {
    let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
    fields.sort_by_key(|(name, _)| place(name));
    fields
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", flow(value)))
        .collect()
}

/// Keys in the order in which people write them; after them those that nobody writes, by name.
fn place(name: &str) -> (usize, String) {
    const ORDER: [&str; 16] = [
        "cofferdam",
        "segment",
        "mode",
        "services",
        "externals",
        "allow",
        "tests",
        "select",
        "compose",
        "labels",
        "image",
        "name",
        "from",
        "to",
        "ports",
        "cidrs",
    ];
    let at = ORDER.iter().position(|it| *it == name).unwrap_or(ORDER.len());
    (at, name.to_owned())
}

fn printed_schema(of: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_cofferdam"))
        .args(["schema", of])
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn policy_page() -> String {
    let schema = printed_schema("policy");
    let head = format!(
        "# Reference: every key\n\n{MADE}\n\n\
         What `cofferdam schema` says, as a page. [The policy format](policy.md) says what it means, with examples that belong together; \
         `cofferdam check` knows more: which names exist, and who owns an edge.\n"
    );
    let mut page = Page::of(&schema, &head);
    page.sections("PolicyFile");
    page.out
}

fn output_page() -> String {
    let head = format!(
        "# Reference: what status and flows print\n\n{MADE}\n\n\
         `cofferdam status --json` prints a [Status](#status), each line of `cofferdam flows --json` is a [FlowRecord](#flowrecord). \
         `cofferdam schema status` and `cofferdam schema flow` print the same as JSON Schemas.\n"
    );
    let (status, flow) = (printed_schema("status"), printed_schema("flow"));
    let mut page = Page::of(&status, &head);
    page.sections("Status");
    let mut other = Page::of(&flow, &page.out);
    other.sections("FlowRecord");
    other.out
}

fn codes_page() -> String {
    let mut out = format!(
        "# Every code of check and audit\n\n{MADE}\n\n\
         What `cofferdam explain-code` says of each, as a page.\n"
    );
    let section = |title: &str, codes: Vec<(&str, String, &str)>| {
        let mut out = format!("\n## {title}\n");
        for (code, severity, explanation) in codes {
            let (heading, text) = explanation.trim().split_once('\n').unwrap();
            let heading = heading.strip_prefix(&format!("# {code}: ")).unwrap();
            out += &format!(
                "\n### {code}: {heading}\n\nSeverity: {severity}.\n\n{}\n",
                text.trim()
            );
        }
        out
    };
    let check = policy::Code::ALL.iter().map(|it| {
        (
            it.as_str(),
            format!("{:?}", it.severity()).to_lowercase(),
            it.explanation(),
        )
    });
    out += &section("Of check", check.collect());
    let audit = audit::Code::ALL
        .iter()
        .map(|it| (it.as_str(), it.severity().as_str().to_owned(), it.explanation()));
    out += &section("Of audit", audit.collect());
    out
}

#[test]
fn the_reference_is_what_the_schemas_say() {
    let mut stale = Vec::new();
    let pages = [
        ("docs/reference.md", policy_page(), "| `"),
        ("docs/output.md", output_page(), "required"),
        ("docs/codes.md", codes_page(), "### CFD032: "),
    ];
    for (path, page, has) in pages {
        let page = format!("{}\n", page.replace("\n\n\n", "\n\n").trim_end());
        assert!(page.contains(has), "{path}: nothing was made");
        if blesses() {
            fs::write(root().join(path), &page).unwrap();
        } else if read(path) != page {
            stale.push(path);
        }
    }
    assert!(
        stale.is_empty(),
        "stale: {stale:?}; COFFERDAM_BLESS=1 cargo test --test book writes them"
    );
    let policy = policy_page();
    for key in ["cofferdam", "select", "until", "except", "unreachable"] {
        assert!(policy.contains(&format!("| `{key}` |")), "{key} is missing");
    }
}
