//! `doctor` on a private engine: what is in order, and each thing that is not.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/private-engine")
}

/// An engine that ends with the test, whatever becomes of it.
struct Engine(PathBuf);

impl Engine {
    fn up() -> Self {
        let engine = Self(format!("/tmp/cofferdam-doctor-{}", std::process::id()).into());
        engine.run("up", &[]);
        engine
    }

    fn run(&self, command: &str, words: &[&str]) -> Output {
        let output = Command::new(script())
            .arg(command)
            .arg(&self.0)
            .args(words)
            .env("ENGINE_OWNER", std::process::id().to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{command} {words:?}: {output:?}");
        output
    }

    fn cofferdam(&self, before: &[&str], words: &[&str]) -> Output {
        Command::new(script())
            .arg("exec")
            .arg(&self.0)
            .args(before)
            .arg(env!("CARGO_BIN_EXE_cofferdam"))
            .args(words)
            .env("COFFERDAM_POLICIES", self.0.join("policies"))
            .env("COFFERDAM_DOCKER_SOCKET", self.0.join("docker.sock"))
            .env("COFFERDAM_CONTROL_SOCKET", self.0.join("run/control.sock"))
            .env("COFFERDAM_STATE_DIRECTORY", self.0.join("state"))
            .output()
            .unwrap()
    }

    /// The exit code, and by name how it stands with each thing and what was found.
    fn doctor(&self, before: &[&str], words: &[&str]) -> (Option<i32>, BTreeMap<String, (String, String)>) {
        let output = self.cofferdam(before, &[&["doctor", "--json"], words].concat());
        let object: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let mut checks = BTreeMap::new();
        for check in object["checks"].as_array().unwrap() {
            let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            assert_eq!(check["outcome"] != "ok", check["remedy"].is_string(), "{check}");
            checks.insert(text("name"), (text("outcome"), text("found")));
        }
        (output.status.code(), checks)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        Command::new(script()).arg("down").arg(&self.0).output().ok();
    }
}

#[test]
fn what_is_wrong_is_told_and_what_is_not_is_not() {
    let engine = Engine::up();
    let policies = engine.0.join("policies");
    fs::create_dir(&policies).unwrap();
    let file = policies.join("a.yaml");
    let policy = "cofferdam: 1\nsegment: a\nservices: { web: { select: { name: web } } }\n";
    fs::write(&file, policy).unwrap();

    // A host as it should be, but for what depends on the machine's clock and on what is not started yet.
    let tables = || engine.run("exec", &["nft", "list", "ruleset"]).stdout;
    let before = tables();
    let (code, checks) = engine.doctor(&[], &[]);
    assert_eq!(tables(), before, "it changed the rules");
    assert_eq!(code, Some(0), "{checks:?}");
    let outcome = |checks: &BTreeMap<String, (String, String)>, name: &str| checks[name].0.clone();
    for name in [
        "privileges",
        "nft",
        "br_netfilter",
        "netlink",
        "links",
        "kernel features",
        "forwarding",
        "connection table",
        "engine",
        "address pools",
        "policy",
    ] {
        assert_eq!(outcome(&checks, name), "ok", "{name}: {checks:?}");
    }
    assert_eq!(outcome(&checks, "rules"), "warn");
    assert_eq!(outcome(&checks, "daemon"), "warn");
    let applied = engine.cofferdam(&[], &["apply"]);
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(outcome(&engine.doctor(&[], &[]).1, "rules"), "ok");

    // Each thing that is wrong, alone.
    let failing = |before: &[&str], words: &[&str]| {
        let (code, checks) = engine.doctor(before, words);
        assert_eq!(code, Some(1), "{checks:?}");
        let failing = checks.into_iter().filter(|(_, (outcome, _))| outcome == "fail");
        failing.map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(failing(&[], &["--docker-socket", "/nonexistent"]), ["engine"]);
    assert_eq!(failing(&[], &["--policies", "/nonexistent"]), ["policy"]);
    assert_eq!(failing(&[], &["--ipv4-pool", "172.17.0.0/24"]), ["address pools"]);
    fs::write(&file, "cofferdam: 2\n").unwrap();
    assert_eq!(failing(&[], &[]), ["policy"]);
    fs::write(&file, policy).unwrap();
    let powerless = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all"];
    let found = failing(&powerless, &[]);
    assert!(
        found.contains(&"privileges".to_owned()) && found.contains(&"kernel features".to_owned()),
        "{found:?}"
    );
    engine.run("exec", &["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
    let (code, checks) = engine.doctor(&[], &[]);
    assert_eq!(
        (code, outcome(&checks, "forwarding")),
        (Some(0), "warn".to_owned())
    );

    // The same in words.
    let output = engine.cofferdam(&[], &["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("warn  forwarding") && text.contains("-> the engine sets it"),
        "{text}"
    );
}
