//! `plan`, `apply --plan` and `explain` on a host: a private engine with containers, a daemon, and an open flow.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

mod host;

use std::process::{Child, Stdio};

use host::{Engine, said};

const POLICY: &str = "cofferdam: 1
segment: shop
services:
  web: { select: { name: web-1 } }
  db: { select: { name: db-1 } }
allow:
  - { from: web, to: db, ports: [5432, 53/udp], why: orders }
";

fn stop(mut daemon: Child) {
    // What was started is the script that became the program.
    let pid = nix::unistd::Pid::from_raw(daemon.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    daemon.wait().unwrap();
}

#[test]
fn on_a_host() {
    let engine = Engine::up("rollout", &["tools:1", "--tools", "bash", "sleep"]);
    engine.docker(&["network", "create", "shared"]);
    for name in ["web-1", "db-1", "idle"] {
        engine.docker(&[
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "shared",
            "tools:1",
            "/bin/sleep",
            "600",
        ]);
    }
    let old = engine.policies("old", POLICY);
    let new = engine.policies("new", &POLICY.replace(", 53/udp", ""));
    let daemon = engine
        .cofferdam(&["run", "--policies", &old])
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(engine.0.join("daemon.log")).unwrap())
        .spawn()
        .unwrap();
    engine.await_enforcing();

    // Containers by name and by address, with the policy in force.
    let web = engine.address("web-1", "shared");
    for (from, to, code, says) in [
        ("web-1", "db-1:5432", 0, "why: orders"),
        (web.as_str(), "db-1:5432", 0, "is `web-1`'s"),
        (
            "web-1",
            "db-1:5433",
            4,
            "no edge from web-1 to db-1 has that port",
        ),
        ("db-1", "web-1:5432", 4, "there is no edge"),
        ("idle", "db-1:5432", 4, "no service selects `idle`"),
        ("idle", "world:443", 0, "left alone"),
        ("nobody", "db-1:5432", 2, "no container is called `nobody`"),
    ] {
        let output = engine.cofferdam(&["explain", from, to]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{from} {to}: {output:?}");
        assert!(said(&output).contains(says), "{from} {to}: {}", said(&output));
    }

    // Nothing changes, until something does; and then a flow in use is named.
    let db = engine.address("db-1", "shared");
    let send = format!("echo hello >/dev/udp/{db}/53");
    engine.docker(&["exec", "web-1", "/bin/bash", "-c", &send]);
    let same = engine.cofferdam(&["plan", "--policies", &old]).output().unwrap();
    assert_eq!(same.status.code(), Some(0), "{}", said(&same));
    let plan = engine.cofferdam(&["plan", "--policies", &new]).output().unwrap();
    assert_eq!(plan.status.code(), Some(2), "{plan:?}");
    let text = said(&plan);
    assert!(text.contains("- shop/web -> shop/db: 53/udp"), "{text}");
    assert!(
        text.contains("Open connections that end\n  ! shop/web -> shop/db: 53/udp  (1 connection)"),
        "{text}"
    );
    let none = engine.policies("none", "cofferdam: 1\nsegment: shop\n");
    let text = said(&engine.cofferdam(&["plan", "--policies", &none]).output().unwrap());
    assert!(
        text.contains("shop/web becomes unmanaged, leaves cofferdam-shop-db"),
        "{text}"
    );

    // A saved plan is good for what it was made from.
    stop(daemon);
    let file = engine.0.join("plan.json");
    let file = file.to_str().unwrap();
    let unknown = engine
        .cofferdam(&["plan", "--policies", &new, "--save", file])
        .output()
        .unwrap();
    assert!(
        said(&unknown).contains("no daemon says what is in force"),
        "{unknown:?}"
    );
    let apply = || {
        engine
            .cofferdam(&["apply", "--policies", &new, "--plan", file])
            .output()
            .unwrap()
    };
    let applied = apply();
    assert_eq!(applied.status.code(), Some(0), "{}", said(&applied));
    engine.docker(&["rm", "-f", "idle"]);
    let moved = apply();
    assert_eq!(moved.status.code(), Some(19), "{}", said(&moved));
    engine.policies("new", POLICY);
    let moved = apply();
    assert!(
        said(&moved).contains("the policy has changed"),
        "{}",
        said(&moved)
    );
    assert_eq!(
        engine
            .cofferdam(&["down", "--yes"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(0)
    );
}
