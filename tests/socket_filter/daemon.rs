//! The daemon through the filter: it enforces as without, follows what happens, and survives the end of either.

use std::fs;
use std::process::{Child, Stdio};

use crate::Filter;
use crate::host::{Engine, said, wait_until};

const POLICY: &str = "cofferdam: 1
segment: shop
services:
  web: { select: { name: \"web-*\" } }
  db: { select: { name: db-1 } }
allow:
  - { from: web, to: db, ports: [5432] }
";

/// Ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(engine: &Engine, name: &str) {
    let run = ["run", "-d", "--name", name, "--network", "shared", "tools:1"];
    let listen = "socket(my $s, 2, 1, 0); bind($s, pack('SnNx8', 2, 5432, 0)); listen($s, 9); sleep 600";
    engine.docker(&[&run[..], &["/bin/perl", "-e", listen]].concat());
}

/// What `verify` says is so, in all namespaces.
fn holds(engine: &Engine) {
    let output = engine.cofferdam(&["verify"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn it_enforces_through_the_filter() {
    let engine = Engine::up("filter-run", &["tools:1", "--tools", "perl"]);
    engine.docker(&["network", "create", "shared"]);
    let mut filter = Filter::start(&engine, "filter", &[]);
    let policies = engine.policies("policies", POLICY);
    let socket = filter.socket.display().to_string();
    let log = engine.0.join("daemon.log");
    let started = engine
        .cofferdam(&["run", "--policies", &policies, "--docker-socket", &socket])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let _daemon = Daemon(started);
    start(&engine, "web-1");
    start(&engine, "db-1");
    let joined = |name: &str| {
        engine.await_enforcing();
        let format = "{{json .NetworkSettings.Networks}}";
        engine
            .docker(&["inspect", "-f", format, name])
            .contains("cofferdam-shop-db")
    };
    wait_until("the service's network is there", Some(&log), || {
        joined("web-1") && joined("db-1")
    });
    holds(&engine);

    // Without the filter the rules stand; when it is back, what happened meanwhile is taken up.
    filter.end();
    wait_until("the daemon notices", Some(&log), || {
        let output = engine.cofferdam(&["status", "--json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        status["state"] != "enforcing"
    });
    start(&engine, "web-2");
    let _filter = Filter::start(&engine, "filter", &[]);
    wait_until("the late container joins", Some(&log), || joined("web-2"));
    holds(&engine);

    // The engine's own end and return.
    engine.script("stop", &[]);
    engine.script("start", &[]);
    for name in ["web-1", "db-1", "web-2"] {
        engine.docker(&["start", name]);
    }
    wait_until("all are back", Some(&log), || {
        ["web-1", "db-1", "web-2"].into_iter().all(joined)
    });
    holds(&engine);
    let refused = fs::read_to_string(engine.0.join("filter.log")).unwrap();
    assert!(!refused.contains("refused"), "{refused}");
}
