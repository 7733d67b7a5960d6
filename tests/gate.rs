//! The commands between the first line and production, as a user or a pipeline calls them: what they print and exit with.
#![expect(clippy::unwrap_used, reason = "what is missing fails the test")]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the command is a process"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn cofferdam(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_cofferdam"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

const CLEAN: &str = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\nallow:\n  - { from: world, to: web, ports: [443] }\ntests:\n  reachable: [\"world -> web:443\"]\n";

/// A directory with `policies/shop.yaml`.
fn with_policy(text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("policies")).unwrap();
    fs::write(root.path().join("policies/shop.yaml"), text).unwrap();
    root
}

#[test]
fn exit_codes_tell_clean_from_wrong_from_questionable() {
    let check = |text: &str, more: &[&str]| {
        let root = with_policy(text);
        let arguments: Vec<&str> = ["check"].iter().chain(more).copied().collect();
        cofferdam(root.path(), &arguments)
    };
    let (code, stdout, stderr) = check(CLEAN, &["--deny-warnings"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "1 segment, 1 service, 1 edge: no faults\n");
    let warned = CLEAN.replace("[443]", "[443, 5432]");
    let (code, stdout, stderr) = check(&warned, &[]);
    assert_eq!(code, 0);
    assert_eq!(stdout, "1 segment, 1 service, 1 edge: no faults, 1 warning\n");
    assert!(stderr.starts_with("warning[CFD105]: "), "{stderr}");
    assert!(stderr.contains("--> policies/shop.yaml:6:42"), "{stderr}");
    assert_eq!(check(&warned, &["--deny-warnings"]).0, 3);
    let wrong = warned.replace("to: web", "to: wbe");
    let (code, _, stderr) = check(&wrong, &["--deny-warnings"]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("error[CFD031]") && stderr.contains("warning[CFD105]"),
        "{stderr}"
    );
    assert!(
        stderr.ends_with("for more about a code: cofferdam explain-code CFD031\n"),
        "{stderr}"
    );
    assert_eq!(check(CLEAN, &["elsewhere"]).0, 2);
    assert_eq!(check(CLEAN, &["--json", "--sarif"]).0, 2);
}

#[test]
fn sarif_names_the_file_as_the_repository_does() {
    let root = with_policy(&CLEAN.replace("[443]", "[443, 5432]"));
    let (code, stdout, _) = cofferdam(root.path(), &["check", "--sarif", "policies"]);
    let log: Value = serde_json::from_str(&stdout).unwrap();
    let result = &log["runs"][0]["results"][0];
    assert_eq!(
        (code, &result["ruleId"], &result["level"]),
        (0, &"CFD105".into(), &"warning".into())
    );
    let place = &result["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "policies/shop.yaml");
    assert_eq!(
        place["region"],
        serde_json::json!({ "startLine": 6, "startColumn": 42, "endColumn": 46 })
    );
}

#[test]
fn tests_pass_fail_or_cannot_run() {
    let test = |text: &str| {
        let root = with_policy(text);
        let (code, stdout, stderr) = cofferdam(root.path(), &["test", "--junit", "junit.xml"]);
        (
            code,
            stdout,
            stderr,
            fs::read_to_string(root.path().join("junit.xml")).unwrap(),
        )
    };
    let (code, stdout, _, junit) = test(CLEAN);
    assert_eq!((code, stdout.as_str()), (0, "policies/shop.yaml: 1 test holds\n"));
    assert!(
        junit.contains("<testsuite name=\"policies/shop.yaml\""),
        "{junit}"
    );
    let (code, stdout, _, junit) = test(&CLEAN.replace("ports: [443]", "ports: [444]"));
    assert_eq!(code, 1);
    assert!(stdout.contains("--> policies/shop.yaml:8:15"), "{stdout}");
    assert!(
        stdout.ends_with("policies/shop.yaml: 1 test does not hold\n"),
        "{stdout}"
    );
    assert!(junit.contains("failures=\"1\""), "{junit}");
    let (code, stdout, stderr, junit) = test(&CLEAN.replace("allow:", "alow:"));
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(
        stderr.contains("CFD010") && junit.contains("CFD010"),
        "{stderr}{junit}"
    );
    let root = with_policy(CLEAN);
    assert_eq!(cofferdam(root.path(), &["test", "elsewhere"]).0, 2);
    assert_eq!(cofferdam(root.path(), &["test", "--junit", "no/where.xml"]).0, 2);
}

#[test]
fn codes_are_explained_and_the_schema_is_printed() {
    let root = with_policy(CLEAN);
    let (code, stdout, _) = cofferdam(root.path(), &["explain-code", "cfd012"]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with("# CFD012: "), "{stdout}");
    let (code, _, stderr) = cofferdam(root.path(), &["explain-code", "CFD999"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("there is no code `CFD999`"), "{stderr}");
    let (code, stdout, _) = cofferdam(root.path(), &["schema"]);
    let schema: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &schema["title"]), (0, &"Cofferdam policy".into()));
}

/// The repository of `examples/gitops`, with its hook and its pipeline, in the hands of someone who makes mistakes.
#[test]
fn the_repository_of_the_examples_lets_through_what_holds_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(root.path())
            .env("COFFERDAM", env!("CARGO_BIN_EXE_cofferdam"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ops");
            command.env(format!("GIT_{who}_EMAIL"), "ops@example.org");
        }
        let output = command.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), said)
    };
    let done = |program: &str, arguments: &[&str]| {
        let (success, said) = run(program, arguments);
        assert!(success, "{program} {arguments:?}: {said}");
        said
    };
    let refused = |program: &str, arguments: &[&str], why: &[&str]| {
        let (success, said) = run(program, arguments);
        assert!(!success, "{program} {arguments:?}: {said}");
        for words in why {
            assert!(
                said.contains(words),
                "{program} {arguments:?}: no `{words}` in {said}"
            );
        }
    };
    let edit = |file: &str, from: &str, to: &str| {
        let path = root.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file}: {text}");
        fs::write(path, text.replace(from, to)).unwrap();
    };
    let pipeline = root.path().join("ci/policy.sh");
    let pipeline = pipeline.to_str().unwrap();
    let (data, shop) = ("policies/data/data.yaml", "policies/shop/shop.yaml");
    let commit = ["commit", "--quiet", "--all", "--message", "a change"];

    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gitops/.");
    done("cp", &["--recursive", example, "."]);
    done("git", &["init", "--quiet", "--initial-branch", "main"]);
    done("git", &["config", "core.hooksPath", "hooks"]);
    done("git", &["add", "--all"]);
    assert!(done("git", &commit).contains("all 18 tests hold"));
    assert!(done(pipeline, &["main"]).contains("nothing changes"));
    let start_again = || {
        done("git", &["checkout", "--quiet", "--force", "-B", "change", "main"]);
    };

    // A change that is one.
    start_again();
    edit(shop, "[8000]", "[8000, 8001]");
    done("git", &commit);
    let said = done(pipeline, &["main"]);
    assert!(said.contains("`shop/web -> shop/api: 8001/tcp`"), "{said}");

    // A closed edge that others count on.
    start_again();
    edit(data, "[shop/api, reports]", "[reports]");
    refused(
        "git",
        &commit,
        &["`shop/api -> data/orders:5432/tcp` is not reachable"],
    );
    done("git", &[&commit[..], &["--no-verify"]].concat());
    let closed = "`shop/api -> data/orders: 5432/tcp` (was out/before/policies/data/data.yaml:";
    refused(
        pipeline,
        &["main"],
        &["Edges closed", closed, "not to be merged: tests\n"],
    );
    let junit = fs::read_to_string(root.path().join("out/junit.xml")).unwrap();
    assert!(junit.contains("failures=\"1\""), "{junit}");

    // What is staged counts, not what lies in the work tree.
    start_again();
    edit(shop, "to: api", "to: apii");
    done("git", &["add", "--all"]);
    edit(shop, "to: apii", "to: api");
    refused(
        "git",
        &["commit", "--message", "broken"],
        &["CFD031", "not committed"],
    );

    // Only a warning, and a file that opens another team's service: good to commit, not to merge.
    start_again();
    edit(data, "[shop/api, reports]", "[world, shop/api, reports]");
    done("git", &commit);
    refused(pipeline, &["main"], &["CFD105", "not to be merged: check\n"]);
    let sarif = fs::read_to_string(root.path().join("out/policy.sarif")).unwrap();
    assert!(sarif.contains("\"ruleId\": \"CFD105\""), "{sarif}");
    start_again();
    let foreign =
        "# Ours.\ncofferdam: 1\nsegment: data\nallow: [{ from: shop/web, to: reports, ports: [8080] }]\n";
    fs::write(root.path().join("policies/shop/more.yaml"), foreign).unwrap();
    done("git", &["add", "--all"]);
    done("git", &commit);
    let wrong = "policies/shop/more.yaml: must begin with";
    refused(pipeline, &["main"], &[wrong, "not to be merged: owners\n"]);
}
