//! The book: every document as a page, built by mdBook. Its source is the project's own tree, so that the links of a forge are
//! those of the book; what is no document (example files, units) is beside the pages as it is.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mdbook_driver::MDBook;
use regex::{Captures, Regex};

use crate::links::{is_elsewhere, normal};
use crate::{read, root};

/// What of the project the documents lead to.
const SHOWN: [&str; 10] = [
    "README.md",
    "SECURITY.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs",
    "examples",
    "policies",
    "packaging",
    "benches/RESULTS.md",
];
/// Nothing else of the tests.
const ENGINE: &str = "tests/engine/private-engine";

/// The contents with paths of the project in place of those of `docs/`.
fn contents() -> String {
    let link = Regex::new(r"\]\(([^)]+)\)").unwrap();
    let rewritten = |found: &Captures<'_>| {
        let path = normal(&Path::new("docs").join(&found[1])).unwrap();
        format!("]({})", path.display())
    };
    link.replace_all(&read("docs/SUMMARY.md"), rewritten).into_owned()
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
    found.sort();
}

/// A page for each folder that has none: its files.
fn list_folders(directory: &Path) {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            list_folders(&entry.path());
            names.push(format!("{name}/index.html"));
        } else {
            names.push(name);
        }
    }
    names.sort();
    let page = directory.join("index.html");
    if !page.exists() {
        let links: Vec<String> = names
            .iter()
            .map(|name| format!("<li><a href=\"{name}\">{name}</a></li>\n"))
            .collect();
        fs::write(
            page,
            format!(
                "<!doctype html>\n<meta charset=\"utf-8\">\n<ul>\n{}</ul>\n",
                links.concat()
            ),
        )
        .unwrap();
    }
}

/// Links of the pages that lead nowhere, and how many were looked at.
fn dead_links(html: &Path) -> (Vec<String>, usize) {
    let mut all = Vec::new();
    files(html, &mut all);
    let (links, ids) = (
        Regex::new(r#"(?:href|src)="([^"]+)""#).unwrap(),
        Regex::new(r#"id="([^"]+)""#).unwrap(),
    );
    let identifiers = |page: &Path| -> BTreeSet<String> {
        let text = fs::read_to_string(page).unwrap();
        ids.captures_iter(&text).map(|it| it[1].to_owned()).collect()
    };
    let (mut dead, mut seen) = (Vec::new(), 0);
    let is_page = |path: &Path| path.extension().is_some_and(|it| it == "html");
    // The page for what is not found is served anywhere.
    for page in all.iter().filter(|it| is_page(it) && !it.ends_with("404.html")) {
        let text = fs::read_to_string(page).unwrap();
        for link in links.captures_iter(&text) {
            let target = link[1].replace("&amp;", "&");
            if is_elsewhere(&target) || target.starts_with("data:") {
                continue;
            }
            seen += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let mut to = if path.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(path)
            };
            if to.is_dir() {
                to.push("index.html");
            }
            let holds =
                to.is_file() && (anchor.is_empty() || !is_page(&to) || identifiers(&to).contains(anchor));
            if !holds {
                dead.push(format!(
                    "{}: {target}",
                    page.strip_prefix(html).unwrap().display()
                ));
            }
        }
    }
    (dead, seen)
}

#[test]
fn the_book_is_built_and_its_links_lead_somewhere() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let book = target.join("book");
    if book.exists() {
        fs::remove_dir_all(&book).unwrap();
    }
    let source = book.join("src");
    for name in SHOWN.into_iter().chain([ENGINE]) {
        let place = source.join(name);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(root().join(name), place).unwrap();
    }
    fs::write(source.join("SUMMARY.md"), contents()).unwrap();
    for name in ["book.toml", "book.css"] {
        fs::copy(root().join("docs").join(name), book.join(name)).unwrap();
    }
    let built = MDBook::load(&book).unwrap();
    built.build().unwrap();
    let html = book.join("html");
    list_folders(&html);
    for page in [
        "index.html",
        "docs/policy.html",
        "docs/tutorial.html",
        "SECURITY.html",
        "docs/page.png",
    ] {
        assert!(html.join(page).is_file(), "{page} is missing");
    }
    let (dead, seen) = dead_links(&html);
    assert!(seen > 1000, "only {seen} links were found");
    assert!(dead.is_empty(), "{}", dead.join("\n"));

    // One that leads nowhere is found.
    let page = html.join("docs/page-of-the-test.html");
    fs::write(
        &page,
        "<a href=\"policy.html#no-such\"><img src=\"no.png\"><a id=\"x\" href=\"#x\">",
    )
    .unwrap();
    assert_eq!(dead_links(&html).0.len(), 2);
    fs::remove_file(page).unwrap();
}
