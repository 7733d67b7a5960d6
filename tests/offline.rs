//! Golden cases: each directory under `tests/offline` holds policy files with tests and, in `expected.txt`, what
//! `cofferdam test` says of them on 1 June 2026. `COFFERDAM_BLESS=1 cargo test --test offline` writes what it says now.
#![expect(clippy::unwrap_used, reason = "what is missing fails the test")]
#![expect(clippy::disallowed_methods, reason = "the cases are files")]

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam::cli::test::Tested;
use cofferdam::policy::{Colour, SourceFile, load, review};

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

#[test]
fn the_policies_that_are_shipped_hold_their_tests_and_raise_no_question() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let files = files(&directory);
    assert!(!files.is_empty());
    let now = "2026-06-01T00:00:00Z".parse().unwrap();
    let reviewed = review(&files, Vec::new(), now);
    assert_eq!(reviewed.warnings.render(&files, Colour::Plain), "");
    let loaded = reviewed.loaded.unwrap();
    for file in &files {
        let tested = loaded
            .policy
            .tests
            .iter()
            .any(|test| test.location.file == file.path);
        assert!(tested, "{} has no tests", file.path);
    }
    let failed: Vec<String> = loaded
        .policy
        .tests
        .iter()
        .filter_map(|test| loaded.policy.outcome(test, now).message(test))
        .collect();
    assert_eq!(failed, Vec::<String>::new());
}
