//! Links between documents, as a Git forge follows them.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use crate::markdown::{Document, parse};
use crate::{documents, read, root};

/// A path without `.` and `..`; `None`: it leads out of the project.
pub(crate) fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            other => normal.push(other),
        }
    }
    Some(normal)
}

pub(crate) fn is_elsewhere(target: &str) -> bool {
    ["https://", "http://", "mailto:"]
        .iter()
        .any(|it| target.starts_with(it))
}

/// What is wrong with a link.
fn fault(from: &Path, target: &str, documents: &BTreeMap<PathBuf, Document>) -> Option<&'static str> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if path.is_empty() {
        from.to_owned()
    } else {
        match normal(&from.parent().unwrap().join(path)) {
            Some(path) => path,
            None => return Some("leads out of the project"),
        }
    };
    if !root().join(&path).exists() {
        return Some("leads to nothing");
    }
    match documents.get(&path) {
        _ if anchor.is_empty() => None,
        Some(document) if document.anchors.iter().any(|it| it == anchor) => None,
        Some(_) => Some("names a heading that is not there"),
        None => Some("names a heading of what is no document"),
    }
}

fn all() -> BTreeMap<PathBuf, Document> {
    let documents = documents().into_iter();
    documents.map(|path| (path.clone(), parse(&read(path)))).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let documents = all();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (from, document) in &documents {
        for (line, target) in document.links.iter().filter(|(_, it)| !is_elsewhere(it)) {
            seen += 1;
            let fault = fault(from, target, &documents);
            wrong.extend(fault.map(|it| format!("{}:{line}: {target} {it}", from.display())));
        }
    }
    assert!(seen > 100, "only {seen} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_link_to_nothing_is_found() {
    let documents = all();
    let from = Path::new("docs/policy.md");
    for good in [
        "#tests",
        "../README.md",
        "settings.md#the-control-socket",
        "../examples/gitops",
    ] {
        assert_eq!(fault(from, good, &documents), None, "{good}");
    }
    for wrong in [
        "#nothing",
        "nothing.md",
        "settings.md#nothing",
        "../../x",
        "idea.svg#x",
    ] {
        assert!(fault(from, wrong, &documents).is_some(), "{wrong}");
    }
}

/// The contents of the book name every document under `docs/` once, so that none is forgotten.
#[test]
fn the_contents_are_complete() {
    let contents = Path::new("docs/SUMMARY.md");
    let mut named: Vec<PathBuf> = parse(&read(contents))
        .links
        .iter()
        .filter_map(|(_, target)| normal(&Path::new("docs").join(target)))
        .collect();
    named.sort();
    assert_eq!(named, documents());
}
