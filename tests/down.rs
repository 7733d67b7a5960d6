//! `cofferdam down` on a real engine: it says what becomes reachable, asks, and what it said is so afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "conformance/engine.rs"]
mod engine;
mod host;

use std::io::Write;
use std::process::{Output, Stdio};

use host::flows::PROBE;
use host::{Engine, said};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const POLICY: &str = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\n  db: { select: { name: db } }\n\
                      allow:\n  - { from: world, to: web, ports: [80] }\n  - { from: web, to: db, ports: [5432] }\n";

/// What somebody at a terminal answers.
fn asked(engine: &Engine, answer: &str) -> Output {
    let line = format!("{} down", env!("CARGO_BIN_EXE_cofferdam"));
    let mut child = engine
        .command(&["script", "--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(answer.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn it_says_what_it_opens_and_opens_nothing_else_than_asked() {
    let probe = engine::build_probe().unwrap();
    let engine = Engine::up("down", &[engine::IMAGE, probe.to_str().unwrap()]);
    engine.add_world();
    engine.docker(&["network", "create", "shared"]);
    engine.listen(engine::IMAGE, "web", "tcp/80", &["-p", "8080:80"]);
    engine.listen(engine::IMAGE, "db", "tcp/5432,tcp/5433", &["-p", "8432:5432"]);
    let policies = engine.policies("policies", POLICY);
    let log = std::fs::File::create(engine.0.join("daemon.log")).unwrap();
    let mut daemon = engine
        .cofferdam(&["run", "--policies", &policies])
        .stderr(log)
        .spawn()
        .unwrap();
    engine.await_enforcing();
    let running = engine.cofferdam(&["down", "--yes"]).output().unwrap();
    assert_eq!(running.status.code(), Some(17), "{}", said(&running));
    kill(Pid::from_raw(daemon.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    daemon.wait().unwrap();

    let world = ["ip", "netns", "exec", "world", probe.to_str().unwrap()];
    let web = ["docker", "exec", "-i", "web", PROBE];
    let db = engine.address("db", "shared");
    let open = || {
        [
            engine.answers(&world, "198.51.100.1", 8080),
            engine.answers(&web, &db, 5432),
            engine.answers(&world, "198.51.100.1", 8432),
            engine.answers(&web, &db, 5433),
        ]
    };
    let closed = [true, true, false, false];
    assert_eq!(open(), closed);

    // Without a terminal, and with one whose answer is no: it says all of it, and does nothing.
    let told = [
        "Removes the tables `inet cofferdam` and `bridge cofferdam`.",
        "Removes the network cofferdam-shop-db (db, web).",
        "Opens shared: db, web reach each other on every port.",
        "Opens 0.0.0.0:8432/tcp: whoever the engine's own rules let in reaches db, port 5432.",
        "Opens 0.0.0.0:8080/tcp: whoever the engine's own rules let in reaches web, port 80.",
        "Nothing was removed.",
    ];
    for output in [
        engine.cofferdam(&["down"]).stdin(Stdio::null()).output().unwrap(),
        asked(&engine, "n\n"),
    ] {
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        for line in told {
            assert!(said(&output).contains(line), "{line}: {}", said(&output));
        }
        assert_eq!(open(), closed);
    }
    let output = engine
        .cofferdam(&["down", "--json"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let mut documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<serde_json::Value>();
    let json = documents.next().unwrap().unwrap();
    assert_eq!(json["tables"], true);
    assert_eq!(json["opened"]["shared"], serde_json::json!(["db", "web"]));
    assert_eq!(
        json["published"]["0.0.0.0:8432/tcp"],
        serde_json::json!({ "container": "db", "port": 5432 })
    );

    let output = asked(&engine, "y\n");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(open(), [true; 4], "what it said it opens is not open");
    let tables = engine.exec(&["nft", "list", "tables"]);
    let networks = engine.docker(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(
        !tables.contains("cofferdam") && !networks.contains("cofferdam"),
        "{tables} {networks}"
    );
    let again = engine.cofferdam(&["down", "--yes"]).output().unwrap();
    assert!(again.status.success() && said(&again).contains("There is nothing of Cofferdam on this host."));
}
