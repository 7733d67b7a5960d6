//! From review to rollout: `explain`, `plan` and `graph` as a user runs them, without a host.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and runs the program"
)]

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program among the policies of `tests/rollout`, where no daemon answers.
fn cofferdam(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cofferdam"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rollout"))
        .env_remove("COFFERDAM_POLICIES")
        .env("COFFERDAM_CONTROL_SOCKET", "/nonexistent/control.sock")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_plan_without_a_host() {
    let plan = |extra: &[&str]| cofferdam(&[&["plan", "--from", "old", "--policies", "new"], extra].concat());
    let output = plan(&[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    insta::assert_snapshot!("plan", said(&output));
    insta::assert_snapshot!("plan_markdown", said(&plan(&["--markdown"])));
    insta::assert_snapshot!("plan_json", said(&plan(&["--json"])));
    assert!(!said(&output).contains('\u{1b}'), "colour without a terminal");
    // A mistyped option must not look like a change.
    assert_eq!(plan(&["--jsno"]).status.code(), Some(1));

    let same = cofferdam(&["plan", "--from", "new", "--policies", "new"]);
    assert_eq!(
        (same.status.code(), said(&same).as_str()),
        (Some(0), "nothing changes\n")
    );
}

#[test]
fn a_policy_with_faults_is_no_plan() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.yaml"), "cofferdam: 1\nsegmnt: a\n").unwrap();
    let faulty = directory.path().to_str().unwrap();
    for arguments in [
        &["plan", "--from", "old", "--policies", faulty],
        &["plan", "--from", faulty, "--policies", "old"],
        &["plan", "--from", "/nonexistent", "--policies", "old"],
        &["explain", "shop/web", "shop/db:1", "--policies", faulty],
    ] {
        let output = cofferdam(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn an_explanation_and_its_exit_code() {
    let explain = |from: &str, to: &str| cofferdam(&["explain", from, to, "--policies", "old"]);
    let permitted = explain("shop/api", "shop/db:5432");
    assert_eq!(permitted.status.code(), Some(0), "{permitted:?}");
    insta::assert_snapshot!("explain_permitted", said(&permitted));
    let denied = explain("shop/web", "shop/db:5432");
    assert_eq!(denied.status.code(), Some(4), "{denied:?}");
    insta::assert_snapshot!("explain_denied", said(&denied));
    let partly = explain("shop/web", "shop/api:8009-8012");
    assert_eq!(partly.status.code(), Some(4), "{partly:?}");
    insta::assert_snapshot!("explain_partly", said(&partly));
    let json = cofferdam(&[
        "explain",
        "shop/web",
        "shop/db:5432",
        "--policies",
        "old",
        "--json",
    ]);
    insta::assert_snapshot!("explain_json", said(&json));

    // Only a daemon knows containers.
    let container = explain("shop-web-1", "shop/db:5432");
    assert_eq!(container.status.code(), Some(3), "{container:?}");
    let unknown = explain("shop/wbe", "shop/db:5432");
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}

#[test]
fn a_graph_of_what_there_is() {
    let graph = |extra: &[&str]| cofferdam(&[&["graph", "--policies", "old"], extra].concat());
    assert!(said(&graph(&[])).starts_with("digraph cofferdam {"));
    assert!(said(&graph(&["--format", "mermaid"])).starts_with("flowchart LR\n"));
    let part = said(&graph(&["--service", "shop/db"]));
    assert!(
        part.contains("\"shop/api\" -> \"shop/db\" [label=\"5432\"]") && !part.contains("shop/web"),
        "{part}"
    );
    // An empty picture would say that nothing is permitted.
    let unknown = graph(&["--service", "shop/bd"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let svg = graph(&["--format", "svg"]);
    match Command::new("dot").arg("-V").output() {
        Ok(_) => assert!(said(&svg).contains("<svg"), "{svg:?}"),
        Err(_) => {
            assert_eq!(svg.status.code(), Some(18));
            assert!(
                String::from_utf8(svg.stderr)
                    .unwrap()
                    .contains("install the package graphviz")
            );
        }
    }
}
