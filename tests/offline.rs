//! Golden cases: each directory under `tests/offline` holds policy files with tests and, in `expected.txt`, what
//! `cofferdam test` says of them on 1 June 2026. `COFFERDAM_BLESS=1 cargo test --test offline` writes what it says now.
#![expect(clippy::unwrap_used, reason = "what is missing fails the test")]
#![expect(clippy::disallowed_methods, reason = "the cases are files")]

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam::cli::test::Tested;
use cofferdam::policy::{Colour, Expectation, SourceFile, load, review};

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn files(directory: &Path) -> Vec<SourceFile> {
    let paths = entries(directory)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let read = paths.map(|path| SourceFile {
        path: path.file_name().unwrap().to_str().unwrap().to_owned(),
        bytes: fs::read(path).unwrap(),
    });
    read.collect()
}

fn says(directory: &Path) -> String {
    let mut files = files(directory);
    // The listing's order must not matter.
    files.reverse();
    let loaded = load(&files).unwrap();
    Tested::new(&loaded, "2026-06-01T00:00:00Z".parse().unwrap()).text(&files, Colour::Plain)
}

#[test]
fn every_case_says_what_is_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/offline");
    let bless = std::env::var_os("COFFERDAM_BLESS").is_some();
    let cases = entries(&root);
    assert!(!cases.is_empty());
    let mut wrong = Vec::new();
    for case in cases {
        let said = says(&case);
        let expected = case.join("expected.txt");
        if bless {
            fs::write(&expected, said).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != said {
            wrong.push(format!("{}:\n{said}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The policies in a directory of examples: each file is one, each folder is one, and all of them together are one.
fn shipped(directory: &Path) -> Vec<(String, Vec<SourceFile>)> {
    let alone = files(directory).into_iter();
    let mut policies: Vec<_> = alone.map(|file| (file.path.clone(), vec![file])).collect();
    for folder in entries(directory).into_iter().filter(|path| path.is_dir()) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let named = |file: SourceFile| SourceFile {
            path: format!("{name}/{}", file.path),
            bytes: file.bytes,
        };
        policies.push((name.clone(), files(&folder).into_iter().map(named).collect()));
    }
    let all = policies.iter().flat_map(|(_, files)| files.clone()).collect();
    policies.push(("all together".to_owned(), all));
    policies
}

#[test]
fn the_policies_that_are_shipped_hold_their_tests_and_raise_no_question() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut policies = shipped(&root.join("policies"));
    assert!(policies.len() > 6, "six examples, and all of them together");
    // Its folders speak of each other's services: only together are they a policy.
    policies.extend(shipped(&root.join("examples/gitops/policies")).pop());
    let now = "2026-06-01T00:00:00Z".parse().unwrap();
    for (name, files) in policies {
        let reviewed = review(&files, Vec::new(), now);
        assert_eq!(reviewed.warnings.render(&files, Colour::Plain), "", "{name}");
        let loaded = reviewed
            .loaded
            .unwrap_or_else(|faults| panic!("{name}: {faults}"));
        let tests = &loaded.policy.tests;
        for file in &files {
            for expected in [Expectation::Reachable, Expectation::Unreachable] {
                let tested = tests
                    .iter()
                    .any(|test| test.location.file == file.path && test.expected == expected);
                assert!(tested, "{name}: {} has no {expected} test", file.path);
            }
        }
        let failed: Vec<String> = tests
            .iter()
            .filter_map(|test| loaded.policy.outcome(test, now).message(test))
            .collect();
        assert_eq!(failed, Vec::<String>::new(), "{name}");
    }
}
