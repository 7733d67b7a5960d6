//! The documents: their links, their commands, what is made from the schema, the tests that they name, and the book of all of them.
//!
//! `COFFERDAM_BLESS=1 cargo test --test book` writes what is made, and what commands print, into the documents. The book is in
//! `target/book/html` afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

mod build;
mod commands;
#[path = "../host/mod.rs"]
mod host;
mod links;
mod markdown;
mod recipes;
mod reference;
mod references;
mod run;

use std::fs;
use std::path::{Path, PathBuf};

/// The project's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document, by its path in the project.
fn documents() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = [
        "README.md",
        "SECURITY.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "policies/README.md",
        "benches/RESULTS.md",
    ]
    .map(PathBuf::from)
    .to_vec();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name();
        if Path::new(&name).extension().is_some_and(|it| it == "md") {
            found.push(Path::new("docs").join(name));
        }
    }
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let readme = Path::new("examples")
            .join(entry.unwrap().file_name())
            .join("README.md");
        if root().join(&readme).is_file() {
            found.push(readme);
        }
    }
    found.sort();
    assert!(found.len() > 20, "{found:?}");
    found
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether the documents are to be written anew.
fn blesses() -> bool {
    std::env::var_os("COFFERDAM_BLESS").is_some()
}
