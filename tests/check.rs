//! Golden cases: each directory under `tests/check` holds policy files and, in `expected.txt`, what `cofferdam check`
//! says about them on 1 June 2026. `COFFERDAM_BLESS=1 cargo test --test check` writes what it says now.
#![expect(clippy::unwrap_used, reason = "what is missing fails the test")]
#![expect(clippy::disallowed_methods, reason = "the cases are files")]

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam::policy::{Colour, SourceFile, load, review};

fn files(case: &Path) -> Vec<SourceFile> {
    let mut files: Vec<SourceFile> = entries(case)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| SourceFile {
            path: path.file_name().unwrap().to_str().unwrap().to_owned(),
            bytes: fs::read(path).unwrap(),
        })
        .collect();
    // The listing's order must not matter.
    files.reverse();
    files
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

fn says(files: &[SourceFile]) -> String {
    let reviewed = review(files, Vec::new(), "2026-06-01T00:00:00Z".parse().unwrap());
    let warnings = reviewed.warnings.render(files, Colour::Plain);
    let told = match reviewed.loaded {
        Ok(loaded) => format!("{}: no faults\n", loaded.summary()),
        Err(faults) => format!("{}{}\n", faults.render(files, Colour::Plain), faults.summary()),
    };
    format!("{warnings}{told}")
}

#[test]
fn every_case_says_what_is_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check");
    let bless = std::env::var_os("COFFERDAM_BLESS").is_some();
    let cases = entries(&root);
    assert!(!cases.is_empty());
    let mut wrong = Vec::new();
    for case in cases {
        let said = says(&files(&case));
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
fn a_dozen_mistakes_show_at_once() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check/dozen");
    let faults = load(&files(&case)).unwrap_err();
    assert!(faults.iter().len() >= 12, "{faults}");
}
