//! The JSON Schema against the parser: what the project ships is good for both, and each single mistake is refused by both.
#![expect(clippy::unwrap_used, reason = "what is missing fails the test")]
#![expect(clippy::disallowed_methods, reason = "the policies are files")]

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam::policy::{SourceFile, load, schema};
use jsonschema::Validator;
use serde_json::Value;

fn validator() -> Validator {
    jsonschema::draft202012::new(&schema()).unwrap()
}

fn complaints(validator: &Validator, text: &str) -> Vec<String> {
    let value: Value = serde_yaml::from_str(text).unwrap();
    let errors = validator.iter_errors(&value);
    errors
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile {
        path: path.to_owned(),
        bytes: text.into(),
    }
}

/// Files with this ending below a directory.
fn below(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path, extension));
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The fenced blocks of a Markdown text that are whole policies.
fn policies_in(markdown: &str) -> Vec<String> {
    let blocks = markdown.split("```yaml\n").skip(1);
    let texts = blocks.map(|block| block.split("```").next().unwrap());
    texts
        .filter(|text| text.lines().any(|line| line.starts_with("cofferdam: 1")))
        .map(str::to_owned)
        .collect()
}

#[test]
fn what_is_shipped_is_good_for_the_schema_and_the_parser() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Every set of files that belong together.
    let mut sets: Vec<(String, Vec<SourceFile>)> = Vec::new();
    let of_tests = ["tests/check/clean", "tests/check/warnings", "tests/offline/shop"];
    let examples = fs::read_dir(root.join("examples")).unwrap();
    let examples = examples
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    let directories = of_tests.iter().chain(&["policies"]).map(|it| root.join(it));
    let mut with_policies = 0;
    for directory in directories.chain(examples) {
        let files: Vec<SourceFile> = below(&directory, "yaml")
            .into_iter()
            .map(|path| file(path.to_str().unwrap(), &fs::read_to_string(&path).unwrap()))
            .filter(|file| String::from_utf8_lossy(&file.bytes).contains("cofferdam: 1"))
            .collect();
        with_policies += usize::from(!files.is_empty());
        sets.push((directory.display().to_string(), files));
    }
    // Some examples have none.
    assert!(with_policies >= 6, "{with_policies}");
    // The documents' examples speak of another team's service.
    let ops =
        "cofferdam: 1\nsegment: ops\nservices: { prometheus: { select: { compose: ops/prometheus } } }\n";
    let mut documents = below(&root.join("docs"), "md");
    documents.push(root.join("README.md"));
    let before = sets.len();
    // Recipes have files that belong together, codes have wrong examples: tests/book looks at both.
    documents.retain(|path| !path.ends_with("docs/recipes.md") && !path.ends_with("docs/codes.md"));
    for path in documents {
        for text in policies_in(&fs::read_to_string(&path).unwrap()) {
            sets.push((
                path.display().to_string(),
                vec![file("a.yaml", &text), file("ops.yaml", ops)],
            ));
        }
    }
    assert!(sets.len() >= before + 2, "the documents' examples were not found");
    let validator = validator();
    for (name, files) in sets {
        if let Err(faults) = load(&files) {
            panic!("{name}: {faults}");
        }
        for file in files {
            let text = String::from_utf8(file.bytes).unwrap();
            assert_eq!(
                complaints(&validator, &text),
                Vec::<String>::new(),
                "{name}: {}",
                file.path
            );
        }
    }
}

const GOOD: &str = r#"cofferdam: 1
segment: shop
mode: enforce
services:
  web: { select: { compose: shop/web }, mode: audit }
  api: { select: [{ labels: { app: api } }, { name: "api-*", image: "api:*" }] }
  db:  { select: { labels: "tier in (data), !old" } }
externals:
  pay: { cidrs: [203.0.113.0/24, "2001:db8:77::/48"], except: 203.0.113.66/32 }
allow:
  - { from: world, to: web, ports: [443, "80"] }
  - { from: [web, shop/api], to: db, ports: [8080, 9000-9010/tcp, 53/udp, icmp/echo-request, any] }
  - { from: "*", to: pay, ports: 65535, until: 2099-12-01T00:00:00+01:00, why: a reason }
tests:
  reachable: [ "world -> web:443", "web->db:53/udp", "shop/api -> pay:tcp" ]
  unreachable: [ "host -> web:icmp/echo-request" ]
"#;

/// What stands in the good policy, and what is written in its place.
const MISTAKES: [(&str, &str); 50] = [
    ("cofferdam: 1", "cofferdam: 2"),
    ("cofferdam: 1", "cofferdam: \"1\""),
    ("cofferdam: 1\n", ""),
    ("segment: shop\n", ""),
    ("segment: shop", "segment: Shop"),
    ("segment: shop", "segment: 7"),
    ("segment: shop", "segments: shop"),
    ("mode: enforce", "mode: enforced"),
    ("mode: enforce", "mode: [enforce]"),
    ("mode: enforce", "mode:"),
    ("mode: audit", "mode: off"),
    ("mode: audit", "modus: audit"),
    ("  web: {", "  web_1: {"),
    ("  web: {", "  host: {"),
    ("  pay: {", "  world: {"),
    (
        "{ select: { compose: shop/web }, mode: audit }",
        "{ mode: audit }",
    ),
    ("{ select: { compose: shop/web }, mode: audit }", ""),
    ("{ compose: shop/web }", "{}"),
    ("{ compose: shop/web }", "[]"),
    ("{ compose: shop/web }", "shop/web"),
    ("compose: shop/web", "compose: web"),
    ("compose: shop/web", "composed: shop/web"),
    ("labels: { app: api }", "labels: {}"),
    ("labels: { app: api }", "labels: { app: 1.10 }"),
    ("labels: { app: api }", "labels: [app]"),
    ("\"tier in (data), !old\"", "\" \""),
    ("cidrs: [203.0.113.0/24, \"2001:db8:77::/48\"], ", ""),
    ("[203.0.113.0/24, \"2001:db8:77::/48\"]", "[]"),
    ("203.0.113.0/24", "203.0.113.0"),
    ("203.0.113.0/24", "example.com"),
    ("except:", "expect:"),
    ("{ from: world, to: web, ports: [443, \"80\"] }", "world"),
    ("from: world", "form: world"),
    ("from: world", "from: []"),
    ("from: world", "from: [7]"),
    ("to: db", "to: shop/*"),
    ("to: db", "to: Db"),
    ("ports: [443, \"80\"]", "ports: []"),
    (", ports: [443, \"80\"]", ""),
    ("443, \"80\"", "0"),
    ("443, \"80\"", "65536"),
    ("443, \"80\"", "\"65536\""),
    ("443, \"80\"", "true"),
    ("53/udp, icmp", "53/upd, icmp"),
    ("icmp/echo-request, any", "icmp/echo, any"),
    ("2099-12-01T00:00:00+01:00", "2099-12-01"),
    ("2099-12-01T00:00:00+01:00", "tomorrow"),
    ("why: a reason", "why: 7"),
    ("\"world -> web:443\"", "\"world to web:443\""),
    ("[ \"host -> web:icmp/echo-request\" ]", "[]"),
];

#[test]
fn each_single_mistake_is_refused_by_both() {
    let validator = validator();
    assert_eq!(complaints(&validator, GOOD), Vec::<String>::new());
    load(&[file("a.yaml", GOOD)]).unwrap();
    let mut accepted = Vec::new();
    for (right, wrong) in MISTAKES {
        let text = GOOD.replacen(right, wrong, 1);
        assert_ne!(text, GOOD, "`{right}` is not there");
        if load(&[file("a.yaml", &text)]).is_ok() {
            accepted.push(format!("the parser takes `{wrong}`"));
        }
        if complaints(&validator, &text).is_empty() {
            accepted.push(format!("the schema takes `{wrong}`"));
        }
    }
    assert!(accepted.is_empty(), "{}", accepted.join("\n"));
}

/// Whoever completes a field in an editor sees what it is for.
#[test]
fn every_field_is_described() {
    fn undescribed(value: &Value, path: &str, found: &mut Vec<String>) {
        if let Some(Value::Object(properties)) = value.get("properties") {
            for (name, property) in properties {
                if property.get("description").is_none() {
                    found.push(format!("{path}.{name}"));
                }
            }
        }
        match value {
            Value::Object(fields) => fields
                .iter()
                .filter(|(name, _)| *name != "examples")
                .for_each(|(name, value)| undescribed(value, &format!("{path}.{name}"), found)),
            Value::Array(items) => items.iter().for_each(|item| undescribed(item, path, found)),
            _ => {}
        }
    }
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let mut found = Vec::new();
    undescribed(&schema, "", &mut found);
    assert_eq!(found, Vec::<String>::new());
    let properties = schema["properties"].as_object().unwrap();
    assert_eq!(properties.len(), 7);
    assert!(!schema.to_string().contains("\"null\""));
}
