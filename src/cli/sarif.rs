//! SARIF 2.1.0: findings of `check`, which code hosts show beside the lines of a change; `audit` makes its own of the same parts.
//!
//! <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>; section numbers below are its.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::policy::{Code, Fault, Location, Severity, SourceFile};

const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// A log with one run (3.13).
#[derive(Debug, Serialize)]
pub(super) struct Log {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: [Run; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    tool: Tool,
    /// Our columns count characters, not UTF-16 units (3.14.17).
    column_kind: &'static str,
    results: Vec<Outcome>,
}

#[derive(Debug, Serialize)]
struct Tool {
    driver: Driver,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Driver {
    name: &'static str,
    semantic_version: &'static str,
    rules: Vec<Rule>,
}

/// One of our codes (3.49).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    id: &'static str,
    short_description: Message,
    help: Help,
    default_configuration: Configuration,
}

#[derive(Debug, Serialize)]
struct Help {
    text: &'static str,
    markdown: &'static str,
}

#[derive(Debug, Serialize)]
struct Configuration {
    level: Level,
}

/// How grave (3.27.10).
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Error,
    Warning,
    Note,
}

impl From<Severity> for Level {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Error => Self::Error,
            Severity::Warning => Self::Warning,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Message {
    pub(super) text: String,
}

/// A finding (3.27).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outcome {
    pub(super) rule_id: &'static str,
    pub(super) rule_index: usize,
    pub(super) level: Level,
    pub(super) message: Message,
    pub(super) locations: [Place; 1],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) related_locations: Vec<Place>,
    /// By which the same finding is known in another log (3.27.17).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) partial_fingerprints: BTreeMap<&'static str, String>,
    /// Who accepted it, and why (3.27.23).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) suppressions: Vec<Suppression>,
}

/// 3.35.
#[derive(Debug, Serialize)]
pub(super) struct Suppression {
    pub(super) kind: &'static str,
    pub(super) justification: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Place {
    #[serde(skip_serializing_if = "Option::is_none")]
    physical_location: Option<PhysicalLocation>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logical_locations: Vec<LogicalLocation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
}

impl Place {
    /// Something that is in no file (3.33).
    pub(super) fn logical(kind: &'static str, name: String) -> Self {
        Self {
            physical_location: None,
            logical_locations: vec![LogicalLocation { name, kind }],
            message: None,
        }
    }
}

#[derive(Debug, Serialize)]
struct LogicalLocation {
    name: String,
    kind: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PhysicalLocation {
    artifact_location: Artifact,
    region: Region,
}

#[derive(Debug, Serialize)]
struct Artifact {
    uri: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: usize,
    start_column: usize,
    /// The column after the last character, where the place lies within one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    end_column: Option<usize>,
}

impl Log {
    pub(super) fn new<'f>(findings: impl Iterator<Item = &'f Fault>, files: &[SourceFile]) -> Self {
        let rules = Code::ALL
            .iter()
            .map(|code| Rule::new(code.as_str(), code.explanation(), code.severity().into()));
        Self::of(
            rules.collect(),
            findings.map(|fault| Outcome::new(fault, files)).collect(),
        )
    }

    pub(super) fn of(rules: Vec<Rule>, results: Vec<Outcome>) -> Self {
        Self {
            schema: SCHEMA,
            version: "2.1.0",
            runs: [Run {
                tool: Tool {
                    driver: Driver {
                        name: "cofferdam",
                        semantic_version: env!("CARGO_PKG_VERSION"),
                        rules,
                    },
                },
                column_kind: "unicodeCodePoints",
                results,
            }],
        }
    }
}

impl Rule {
    /// An explanation begins with a line `# CODE: title`.
    pub(super) fn new(id: &'static str, explanation: &'static str, level: Level) -> Self {
        let title = explanation.lines().next().unwrap_or("");
        let title = title.split_once(": ").map_or(title, |(_, title)| title);
        Self {
            id,
            short_description: Message {
                text: title.to_owned(),
            },
            help: Help {
                text: explanation,
                markdown: explanation,
            },
            default_configuration: Configuration { level },
        }
    }
}

impl Outcome {
    fn new(fault: &Fault, files: &[SourceFile]) -> Self {
        let help = fault.help.iter().map(|help| format!("\n{help}"));
        let text = std::iter::once(fault.message.clone()).chain(help).collect();
        let related = fault.others.iter().map(|other| Place {
            physical_location: Some(PhysicalLocation::new(&other.location, &other.range, files)),
            logical_locations: Vec::new(),
            message: Some(Message {
                text: other.text.clone(),
            }),
        });
        Self {
            rule_id: fault.code.as_str(),
            rule_index: Code::ALL.iter().position(|code| *code == fault.code).unwrap_or(0),
            level: fault.code.severity().into(),
            message: Message { text },
            locations: [Place {
                physical_location: Some(PhysicalLocation::new(&fault.location, &fault.range, files)),
                logical_locations: Vec::new(),
                message: None,
            }],
            related_locations: related.collect(),
            partial_fingerprints: BTreeMap::new(),
            suppressions: Vec::new(),
        }
    }
}

impl PhysicalLocation {
    fn new(location: &Location, range: &std::ops::Range<usize>, files: &[SourceFile]) -> Self {
        let marked = files
            .iter()
            .find(|file| file.path == location.file)
            .and_then(|file| file.bytes.get(range.clone()))
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .filter(|text| !text.is_empty() && !text.contains('\n'));
        Self {
            artifact_location: Artifact {
                uri: uri(&location.file),
            },
            region: Region {
                start_line: location.line,
                start_column: location.column,
                end_column: marked.map(|text| location.column + text.chars().count()),
            },
        }
    }
}

/// A path as a URI reference (RFC 3986): relative paths stay so, for the host to resolve against the repository.
fn uri(path: &str) -> String {
    let path = path.strip_prefix("./").unwrap_or(path);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let encoded: String = path
        .bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    if encoded.starts_with('/') {
        format!("file://{encoded}")
    } else {
        encoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::review;

    #[test]
    fn what_the_standard_requires_is_there() {
        let text = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\n  web: { select: { name: w\u{e9}b } }\nallow:\n  - { from: world, to: web, ports: [5432, 0] }\n";
        let files = [SourceFile {
            path: "policies/zw\u{f6}lf teams.yaml".to_owned(),
            bytes: text.into(),
        }];
        let reviewed = review(&files, Vec::new(), jiff::Timestamp::UNIX_EPOCH);
        let faults = reviewed.loaded.as_ref().unwrap_err();
        let log = Log::new(faults.iter().chain(reviewed.warnings.iter()), &files);
        let log = serde_json::to_value(log).unwrap();
        assert_eq!(log["version"], "2.1.0");
        let run = &log["runs"][0];
        let driver = &run["tool"]["driver"];
        assert_eq!(driver["name"], "cofferdam");
        assert_eq!(driver["rules"].as_array().unwrap().len(), Code::ALL.len());
        assert_eq!(driver["rules"][0]["id"], "CFD001");
        assert_eq!(
            driver["rules"][0]["shortDescription"]["text"],
            "a file that is too large"
        );
        let results = run["results"].as_array().unwrap();
        let told: Vec<String> = results
            .iter()
            .map(|result| {
                let place = &result["locations"][0]["physicalLocation"];
                assert_eq!(
                    place["artifactLocation"]["uri"],
                    "policies/zw%C3%B6lf%20teams.yaml"
                );
                let rule = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
                assert_eq!(driver["rules"][rule]["id"], result["ruleId"]);
                assert!(result["message"]["text"].as_str().unwrap().len() > 10);
                let region = &place["region"];
                format!(
                    "{} {} {}:{}-{}",
                    result["level"].as_str().unwrap(),
                    result["ruleId"].as_str().unwrap(),
                    region["startLine"],
                    region["startColumn"],
                    region["endColumn"]
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                "error CFD011 5:3-6",
                "error CFD030 7:43-44",
                "warning CFD105 7:37-41"
            ]
        );
        let related = &results[0]["relatedLocations"][0];
        assert_eq!(related["physicalLocation"]["region"]["startLine"], 4);
        assert!(related["message"]["text"].is_string());
    }

    #[test]
    fn paths_become_references() {
        assert_eq!(uri("./policies/a.yaml"), "policies/a.yaml");
        assert_eq!(uri("/etc/a b.yaml"), "file:///etc/a%20b.yaml");
        assert_eq!(uri("a:b#c?.yaml"), "a%3Ab%23c%3F.yaml");
    }
}
