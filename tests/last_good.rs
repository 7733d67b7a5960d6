//! A start without a valid policy: the last good one is in force, and `status` says since when and why.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the pure rooms of the library ban clocks, files and processes"
)]

mod netns;

use std::time::{Duration, Instant};

use netns::{Background, sh, try_sh};
use serde_json::Value;

const COFFERDAM: &str = env!("CARGO_BIN_EXE_cofferdam");
const HOME: &str =
    "--policies /run/home/policies --docker-socket /run/home/docker.sock --state-directory /run/home/state";
const SHOP: &str = "/run/home/policies/shop.yaml";
const VALID: &str = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\n  api: { select: { name: api }, mode: audit }\nallow: [{ from: web, to: api, ports: [80] }]\n";

fn write(text: &str) {
    std::fs::create_dir_all("/run/home/policies").unwrap();
    std::fs::write(SHOP, text).unwrap();
}

/// A daemon of which the status says what the test waits for.
fn daemon(wanted: impl Fn(&Value) -> bool) -> (Background, Value) {
    let daemon = Background::start(&format!("{COFFERDAM} run {HOME} 2>>/run/home/log"));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut status = Value::Null;
    while !wanted(&status) {
        let log = std::fs::read_to_string("/run/home/log").unwrap_or_default();
        assert!(Instant::now() < deadline, "{status:#}\n{log}");
        std::thread::sleep(Duration::from_millis(50));
        let output = try_sh(&format!("{COFFERDAM} status --json"));
        status = serde_json::from_slice(&output.stdout).unwrap_or_default();
    }
    (daemon, status)
}

fn stop((mut daemon, _): (Background, Value)) {
    let pid = nix::unistd::Pid::from_raw(daemon.0.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
}

fn revision(status: &Value) -> Option<&str> {
    status["policy"]["revision"].as_str()
}

fn says(status: &Value, words: &str) -> bool {
    let reasons = status["reasons"].as_array().into_iter().flatten();
    reasons.filter_map(Value::as_str).any(|it| it.contains(words))
}

#[test]
fn a_start_without_a_valid_policy_has_the_last_good_one() {
    netns::run("a_start_without_a_valid_policy_has_the_last_good_one", || {
        // The twin first: nothing was kept, so there is none.
        write("cofferdam: 9\nsegment: shop\n");
        let first = daemon(|status| says(status, "the policy has 1 faults"));
        assert_eq!(revision(&first.1), None);
        stop(first);

        write(VALID);
        let valid = daemon(|status| revision(status).is_some());
        let wanted = revision(&valid.1).unwrap().to_owned();
        assert_eq!(valid.1["policy"].get("last_good"), None);
        let since = valid.1["audit"]["services"]["shop/api"].clone();
        assert!(since.is_string(), "{:#}", valid.1);
        stop(valid);
        sh(&format!("{COFFERDAM} down --yes {HOME}"));

        for (text, why) in [
            (Some("cofferdam: 9\nsegment: shop\n"), "shop.yaml:1:12"),
            (None, "cannot read the policy"),
        ] {
            match text {
                Some(text) => write(text),
                None => std::fs::rename("/run/home/policies", "/run/home/elsewhere").unwrap(),
            }
            let started = daemon(|status| status["passes"]["count"].as_u64() > Some(0));
            let status = &started.1;
            assert_eq!(revision(status), Some(wanted.as_str()), "{status:#}");
            assert!(says(status, "the last good policy, accepted"), "{status:#}");
            assert!(says(status, why), "{status:#}");
            assert_eq!(
                status["audit"]["services"]["shop/api"], since,
                "it goes on from before"
            );
            let shown = sh(&format!("{COFFERDAM} status"));
            assert!(
                shown.contains("the last good one, accepted") && shown.contains("shop/api in audit for"),
                "{shown}"
            );
            assert_eq!(status["edges"][0]["to"], "shop/api", "{status:#}");
            let rules = sh("nft list tables");
            assert!(rules.contains("inet cofferdam"), "{rules}");
            stop(started);
            sh(&format!("{COFFERDAM} down --yes {HOME}"));
            // The guard likewise.
            let said = sh(&format!("{COFFERDAM} guard --json {HOME}"));
            assert!(said.contains(&wanted), "{said}");
            sh(&format!("{COFFERDAM} down --yes {HOME}"));
        }

        // A valid directory counts again at once.
        let started = daemon(|status| says(status, "the last good policy"));
        std::fs::rename("/run/home/elsewhere", "/run/home/policies").unwrap();
        write(&VALID.replace("80", "81"));
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status: Value = serde_json::from_str(&sh(&format!("{COFFERDAM} status --json"))).unwrap();
            if status["policy"].get("last_good").is_none() && revision(&status) != Some(wanted.as_str()) {
                break;
            }
            assert!(Instant::now() < deadline, "{status:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
        stop(started);

        // What was changed behind our back is never used, and that is said.
        write("cofferdam: 9\nsegment: shop\n");
        let kept = sh("ls /run/home/state/*/0000.yaml");
        for path in kept.lines() {
            std::fs::write(path, VALID.replace("80", "1-65535")).unwrap();
        }
        let started = daemon(|status| says(status, "the last good policy is not used"));
        assert_eq!(revision(&started.1), None);
        stop(started);
        let said = sh(&format!(
            "{COFFERDAM} down --yes {HOME} && {COFFERDAM} guard --json {HOME}"
        ));
        assert!(said.contains("\"revision\": null"), "{said}");
    });
}

#[test]
fn a_state_directory_that_cannot_be_written_is_said_and_ends_nothing() {
    netns::run(
        "a_state_directory_that_cannot_be_written_is_said_and_ends_nothing",
        || {
            write(VALID);
            std::fs::write("/run/home/state", "no directory").unwrap();
            let started = daemon(|status| says(status, "the last good policy cannot be kept"));
            assert!(revision(&started.1).is_some());
            stop(started);
        },
    );
}
