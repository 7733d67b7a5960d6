//! What the documents say of the project's own tests and exit codes is there: `docs/proofs.md` names test files, functions and cases,
//! `docs/troubleshooting.md` every exit code.

use std::collections::BTreeSet;
use std::process::Command;

use crate::markdown::parse;
use crate::{read, root};

/// Whether `path`, or `path::name`, exists: a function of a Rust file, or a case of a YAML file.
fn exists(named: &str) -> bool {
    let (path, name) = named.split_once("::").unwrap_or((named, ""));
    if !root().join(path).exists() {
        return false;
    }
    if name.is_empty() {
        return true;
    }
    let text = read(path);
    match path.ends_with(".yaml") {
        true => text.lines().any(|line| line == format!("- id: {name}")),
        false => text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<")),
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let (mut seen, mut missing) = (BTreeSet::new(), Vec::new());
    for path in ["docs/proofs.md", "docs/threat-model.md"] {
        for (line, span) in parse(&read(path)).spans {
            let is_named = ["tests/", "src/", "fuzz/", "benches/"]
                .iter()
                .any(|it| span.starts_with(it));
            if is_named && !exists(&span) {
                missing.push(format!("{path}:{line}: {span}"));
            }
            if is_named {
                seen.insert(span);
            }
        }
    }
    assert!(seen.len() > 40, "{} tests are named", seen.len());
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(exists("tests/conformance/cases.yaml::C001") && !exists("tests/conformance/cases.yaml::C000"));
    assert!(exists("tests/refusals.rs::without_nft") && !exists("tests/refusals.rs::without_everything"));
}

/// Every promise of SECURITY.md has a section.
#[test]
fn every_promise_has_its_proofs() {
    let security = read("SECURITY.md");
    let promises = security
        .split("## What is promised")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let names: Vec<&str> = promises.split("**").skip(1).step_by(2).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    let proofs = read("docs/proofs.md");
    for (number, name) in names.iter().enumerate() {
        let heading = format!("\n## {}. {}\n", number + 1, name.trim_end_matches('.'));
        assert!(proofs.contains(&heading), "{heading} is missing");
    }
}

/// What `docs/troubleshooting.md` quotes as a reason is what the source says.
#[test]
fn every_reason_is_one_that_the_source_has() {
    let mut source = String::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                source.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let troubleshooting = read("docs/troubleshooting.md");
    let quoted = |heading: &str| -> Vec<String> {
        let section = troubleshooting.split(&format!("## {heading}\n")).nth(1).unwrap();
        let rows = section
            .split("\n## ")
            .next()
            .unwrap()
            .lines()
            .filter(|it| it.starts_with("| `"));
        let cells = rows.map(|row| row.split(" | ").next().unwrap());
        cells
            .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned))
            .collect()
    };
    let quotes = [
        quoted("status says DEGRADED"),
        quoted("My container cannot reach its database"),
    ]
    .concat();
    assert!(quotes.len() >= 20, "{quotes:?}");
    let holds = |quote: &str| {
        quote
            .split('…')
            .map(|it| it.trim().trim_end_matches(':'))
            .all(|part| source.contains(part))
    };
    let missing: Vec<_> = quotes.iter().filter(|it| !holds(it)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(!holds("no such reason: …"));
}

#[test]
fn every_exit_code_is_explained() {
    let output = Command::new(env!("CARGO_BIN_EXE_cofferdam"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let codes = help.split("Exit codes:").nth(1).unwrap();
    let numbers = codes
        .split(|it: char| !it.is_ascii_digit())
        .filter_map(|it| it.parse().ok());
    let told: BTreeSet<u8> = numbers.collect();
    let troubleshooting = read("docs/troubleshooting.md");
    let rows = troubleshooting
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok());
    let rows: BTreeSet<u8> = rows.collect();
    assert!(told.len() >= 16, "{told:?}");
    assert_eq!(rows, told);
}
