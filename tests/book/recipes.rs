//! `docs/recipes.md`: under each heading is a policy that is complete, raises no question and holds its own tests.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::markdown::parse;
use crate::read;

#[test]
fn every_recipe_holds() {
    let mut recipes: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for block in parse(&read("docs/recipes.md")).blocks {
        if block.text.contains("cofferdam: 1") {
            let name = block
                .text
                .lines()
                .next()
                .and_then(|line| line.strip_prefix("# policies/"));
            let name = name
                .unwrap_or_else(|| panic!("the file in line {} has no name", block.line))
                .to_owned();
            recipes.entry(block.section).or_default().push((name, block.text));
        }
    }
    assert!(recipes.len() >= 10, "{} recipes", recipes.len());
    let run = |words: &[&str], folder: &std::path::Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_cofferdam"))
            .args(words)
            .arg(folder)
            .output()
            .unwrap();
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let mut wrong = Vec::new();
    for (name, files) in &recipes {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            fs::write(folder.path().join(path), text).unwrap();
            for kind in ["reachable:", "unreachable:"] {
                if !text.contains(kind) {
                    wrong.push(format!("{name}: {path} has no tests of what is {kind}"));
                }
            }
        }
        for words in [&["check", "--deny-warnings"][..], &["test"]] {
            let (code, said) = run(words, folder.path());
            if code != Some(0) {
                wrong.push(format!("{name}: {words:?}: {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // The negative twin: a recipe without an edge does not hold its tests.
    let (path, text) = &recipes.values().next().unwrap()[0];
    let folder = tempfile::tempdir().unwrap();
    let edges = text.lines().filter(|line| !line.trim_start().starts_with("- {"));
    fs::write(folder.path().join(path), edges.collect::<Vec<_>>().join("\n")).unwrap();
    assert_eq!(
        run(&["test"], folder.path()).0,
        Some(1),
        "without its edges it still holds"
    );
}
