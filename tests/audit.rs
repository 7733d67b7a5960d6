//! `audit` on a private engine: one container for each finding, and one without any.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "host/mod.rs"]
mod host;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Output;

use host::{Engine, STRICT};
use serde_json::Value;

const POLICY: &str = "cofferdam: 1
segment: shop
services:
  declared: { select: { name: declared } }
  closed: { select: { name: closed } }
allow:
  - { from: world, to: declared, ports: [80] }
";

impl Engine {
    /// Created only: the engine tells the same of one that runs.
    fn create(&self, name: &str, flags: &[&str]) {
        let begin = ["create", "--name", name];
        self.docker(&[&begin, flags, &["tools:1", "/bin/sleep", "600"]].concat());
    }

    fn audit(&self, arguments: &[&str]) -> Output {
        let words = [&["audit"], arguments].concat();
        self.cofferdam(&words).output().unwrap()
    }

    fn report(&self, arguments: &[&str]) -> Value {
        let output = self.audit(&[&["--json"], arguments].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// The codes of each container; of the engine under "".
fn codes(report: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut codes = BTreeMap::<String, BTreeSet<String>>::new();
    for finding in report["findings"].as_array().unwrap() {
        let container = finding["container"].as_str().unwrap_or_default();
        let code = finding["code"].as_str().unwrap();
        codes
            .entry(container.to_owned())
            .or_default()
            .insert(code.to_owned());
    }
    codes
}

#[test]
fn each_finding_has_a_container_that_has_it_and_one_that_has_not() {
    let engine = Engine::up_with(
        "audit",
        &["tools:1", "--tools", "sleep"],
        "-H tcp://127.0.0.1:2375",
    );
    let socket = engine.0.join("docker.sock");
    let socket = socket.to_str().unwrap();
    engine.docker(&["network", "create", "own"]);
    engine.docker(&[
        "network",
        "create",
        "-d",
        "macvlan",
        "-o",
        "parent=docker0",
        "seen-by-none",
    ]);
    engine.docker(&[
        "volume",
        "create",
        "-o",
        "type=none",
        "-o",
        "o=bind",
        "-o",
        "device=/run",
        "run",
    ]);
    engine.create("strict", &STRICT);
    // Each is `strict` with one thing changed: what it is without, and what comes in its place.
    let by_volume = "run:/r";
    let by_bind = format!("{socket}:/s:ro");
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("CFA001", &["--network=own"], &["--network=host"]),
        ("CFA002", &[], &["--privileged"]),
        ("CFA003", &[], &["-v", &by_bind]),
        ("CFA003", &[], &["-v", by_volume]),
        ("CFA004", &[], &["--cap-add=SYS_ADMIN"]),
        ("CFA005", &["--network=own"], &["--network=seen-by-none"]),
        ("CFA007", &[], &["--cap-add=NET_ADMIN"]),
        ("CFA008", &[], &["--cap-add=NET_RAW"]),
        ("CFA009", &[], &["--cap-add=SYS_TIME"]),
        ("CFA010", &["--cap-drop=ALL"], &["--cap-drop=NET_RAW"]),
        ("CFA011", &["--user=1000"], &[]),
        ("CFA012", &["--read-only"], &[]),
        ("CFA013", &[], &["-v", "/etc:/e:ro"]),
        ("CFA014", &[], &["-v", "/srv:/srv:ro"]),
        ("CFA015", &[], &["--device=/dev/full"]),
        ("CFA016", &[], &["--security-opt=seccomp=unconfined"]),
        ("CFA017", &[], &["--security-opt=apparmor=unconfined"]),
        ("CFA019", &["--security-opt=no-new-privileges"], &[]),
        ("CFA020", &[], &["--pid=host"]),
        ("CFA021", &["--ipc=private"], &["--ipc=host"]),
        ("CFA022", &[], &["--uts=host"]),
        ("CFA023", &[], &["--security-opt=systempaths=unconfined"]),
        ("CFA030", &[], &["-p", "127.0.0.1:8081:80"]),
    ];
    for (position, (code, without, with)) in cases.iter().enumerate() {
        let kept = STRICT.into_iter().filter(|flag| !without.contains(flag));
        let flags: Vec<&str> = kept.chain(with.iter().copied()).collect();
        engine.create(&format!("{code}-{position}"), &flags);
    }
    engine.create("declared", &[&STRICT[..], &["-p", "8082:80"]].concat());
    engine.create("closed", &[&STRICT[..], &["-p", "127.0.0.1:8083:80"]].concat());
    // Two that run: one shares the network of a container of other rights, one publishes for real.
    engine.docker(
        &[
            &["run", "-d", "--name", "open"],
            &STRICT[..],
            &["-p", "8080:80", "tools:1", "/bin/sleep", "600"],
        ]
        .concat(),
    );
    engine.docker(&["start", "closed"]);
    let shares: Vec<&str> = STRICT
        .into_iter()
        .filter(|flag| *flag != "--network=own")
        .collect();
    engine.create("shares", &[&shares[..], &["--network=container:closed"]].concat());

    let policies = engine.write("policies/shop.yaml", POLICY);
    let policies = ["--policies", &policies];
    let report = engine.report(&policies);
    let found = codes(&report);
    let of = |name: &str| -> Vec<&str> { found[name].iter().map(String::as_str).collect() };
    assert_eq!(of("strict"), ["CFA040"], "{report:#}");
    for (position, (code, _, _)) in cases.iter().enumerate() {
        assert_eq!(of(&format!("{code}-{position}")), [*code, "CFA040"], "{report:#}");
    }
    assert_eq!(of("declared"), ["CFA031", "CFA040"]);
    assert_eq!(of("closed"), ["CFA030", "CFA040"]);
    assert_eq!(of("open"), ["CFA030", "CFA031", "CFA040"]);
    assert_eq!(of("shares"), ["CFA006", "CFA040"]);
    // This kernel has neither AppArmor nor SELinux.
    assert_eq!(
        of(""),
        ["CFA100", "CFA102", "CFA103", "CFA104", "CFA105", "CFA106"],
        "{report:#}"
    );
    assert_eq!(report["remarks"], serde_json::json!([]));
    let running: BTreeSet<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["is_running"] == true)
        .filter_map(|it| it["container"].as_str())
        .collect();
    assert_eq!(running, BTreeSet::from(["closed", "open"]));

    // Registries, when they are named; and no policy, when none is.
    let pinned = ["--allowed-registries", "registry.example"];
    let report = engine.report(&[&policies[..], &pinned].concat());
    assert!(codes(&report)["strict"].contains("CFA041"));
    let report = engine.report(&["--allowed-registries", "docker.io/library"]);
    let found = codes(&report);
    assert_eq!(
        found["open"],
        BTreeSet::from(["CFA031", "CFA040"].map(str::to_owned))
    );
    assert!(
        report["remarks"][0]
            .as_str()
            .unwrap()
            .contains("no daemon answers"),
        "{report}"
    );

    judged(&engine, &policies);

    // The engine in order: its findings are gone but for what the kernel lacks.
    let mended = "--icc=false --userland-proxy=false --live-restore --no-new-privileges";
    engine.script("stop", &[]);
    engine.start_again(mended);
    let found = codes(&engine.report(&policies));
    assert_eq!(found[""], BTreeSet::from(["CFA102", "CFA103"].map(str::to_owned)));
    assert_eq!(found["CFA019-17"], BTreeSet::from(["CFA040".to_owned()]));
    engine.script("stop", &[]);
    // This engine knows no `unconfined` here, but a profile that permits everything.
    let profile = engine.write("all.json", "{ \"defaultAction\": \"SCMP_ACT_ALLOW\" }");
    engine.start_again(&format!("--seccomp-profile={profile}"));
    let found = codes(&engine.report(&policies));
    assert!(found[""].contains("CFA101"), "{found:?}");
}

/// Exit codes, the baseline and SARIF.
fn judged(engine: &Engine, policies: &[&str]) {
    let code = |arguments: &[&str]| {
        let output = engine.audit(&[policies, arguments].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (exit, text) = code(&[]);
    assert_eq!(exit, Some(1), "{text}");
    assert!(
        text.contains("\nstrict (does not run)\n  low      CFA040 "),
        "{text}"
    );
    assert!(text.contains("drop `--privileged`"), "{text}");
    assert_eq!(code(&["--fail-on", "never"]).0, Some(0));
    // All that is critical is accepted, and one high finding of two.
    let accepted = |until: &str| {
        let line = |code: &str, container: &str| {
            format!("- {{ code: {code}, {container} reason: a test, until: {until} }}\n")
        };
        let text = [
            "accepted:\n".to_owned(),
            line("CFA001", "container: \"CFA001-*\","),
            line("CFA002", "container: \"CFA002-*\","),
            line("CFA003", "container: \"CFA003-*\","),
            line("CFA004", "container: \"CFA004-*\","),
            line("CFA100", ""),
            line("CFA016", "container: \"CFA016-*\","),
            line("CFA001", "container: strict,"),
        ];
        engine.write("baseline.yaml", &text.concat())
    };
    let file = accepted("2999-12-31");
    let (exit, text) = code(&["--fail-on", "critical", "--baseline", &file]);
    assert_eq!(exit, Some(0), "{text}");
    assert!(text.contains("accepted but not found: CFA001 strict"), "{text}");
    assert!(text.contains("; 7 accepted\n"), "{text}");
    assert_eq!(code(&["--baseline", &file]).0, Some(1));
    let (_, sarif) = code(&["--sarif", "--baseline", &file]);
    let sarif: Value = serde_json::from_str(&sarif).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    let suppressed = results.iter().filter(|it| it["suppressions"].is_array());
    assert_eq!(suppressed.count(), 7);
    let file = accepted("2020-01-01");
    let (exit, text) = code(&["--fail-on", "critical", "--baseline", &file]);
    assert_eq!(exit, Some(1), "{text}");
    assert!(
        text.contains("no longer accepted since 2020-01-01 is past: CFA100 the engine"),
        "{text}"
    );
    let wrong = engine.write(
        "wrong.yaml",
        "accepted: [{ code: CFA001, reason: r, until: 2999-12-31 }]\n",
    );
    for file in [wrong.as_str(), "/nonexistent"] {
        assert_eq!(code(&["--baseline", file]).0, Some(2), "{file}");
    }
}
