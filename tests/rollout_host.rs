//! `plan`, `apply --plan` and `explain` on a host: a private engine with containers, a daemon, and an open flow.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const POLICY: &str = "cofferdam: 1
segment: shop
services:
  web: { select: { name: web-1 } }
  db: { select: { name: db-1 } }
allow:
  - { from: web, to: db, ports: [5432, 53/udp], why: orders }
";

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/private-engine")
}

/// An engine that ends with the test, whatever becomes of it.
struct Engine(PathBuf);

impl Engine {
    fn up() -> Self {
        let engine = Self(format!("/tmp/cofferdam-rollout-{}", std::process::id()).into());
        engine.script("up", &[]);
        engine.script("image", &["tools:1", "--tools", "bash", "sleep"]);
        engine
    }

    fn script(&self, command: &str, arguments: &[&str]) -> String {
        let output = Command::new(script())
            .arg(command)
            .arg(&self.0)
            .args(arguments)
            .env("ENGINE_OWNER", std::process::id().to_string())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "private-engine {command} {arguments:?}: {output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let words = [&["docker"], arguments].concat();
        self.script("exec", &words).trim().to_owned()
    }

    /// The program in the engine's namespaces.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(script());
        command
            .arg("exec")
            .arg(&self.0)
            .arg(env!("CARGO_BIN_EXE_cofferdam"))
            .args(arguments)
            .env("COFFERDAM_DOCKER_SOCKET", self.0.join("docker.sock"))
            .env("COFFERDAM_CONTROL_SOCKET", self.0.join("rollout/control.sock"));
        command
    }

    fn cofferdam(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn policies(&self, name: &str, text: &str) -> String {
        let directory = self.0.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("shop.yaml"), text).unwrap();
        directory.to_str().unwrap().to_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        Command::new(script()).arg("down").arg(&self.0).output().ok();
    }
}

fn stop(mut daemon: Child) {
    // What was started is the script that became the program.
    let pid = nix::unistd::Pid::from_raw(daemon.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    daemon.wait().unwrap();
}

fn wait_until(what: &str, log: &Path, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > Duration::from_secs(60) {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            panic!("{what}: not within a minute: {log}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(text).unwrap()
}

#[test]
fn on_a_host() {
    let engine = Engine::up();
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
        .command(&["run", "--policies", &old])
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(engine.0.join("daemon.log")).unwrap())
        .spawn()
        .unwrap();
    wait_until("the daemon enforces", &engine.0.join("daemon.log"), || {
        let status = engine.cofferdam(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["state"] == "enforcing" && status["settled"] == true
    });

    // Containers by name and by address, with the policy in force.
    let addresses = "{{(index .NetworkSettings.Networks \"shared\").IPAddress}}";
    let web = engine.docker(&["inspect", "-f", addresses, "web-1"]);
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
        let output = engine.cofferdam(&["explain", from, to]);
        assert_eq!(output.status.code(), Some(code), "{from} {to}: {output:?}");
        assert!(said(&output).contains(says), "{from} {to}: {}", said(&output));
    }

    // Nothing changes, until something does; and then a flow in use is named.
    let db = engine.docker(&["inspect", "-f", addresses, "db-1"]);
    let send = format!("echo hello >/dev/udp/{db}/53");
    engine.docker(&["exec", "web-1", "/bin/bash", "-c", &send]);
    let same = engine.cofferdam(&["plan", "--policies", &old]);
    assert_eq!(same.status.code(), Some(0), "{}", said(&same));
    let plan = engine.cofferdam(&["plan", "--policies", &new]);
    assert_eq!(plan.status.code(), Some(2), "{plan:?}");
    let text = said(&plan);
    assert!(text.contains("- shop/web -> shop/db: 53/udp"), "{text}");
    assert!(
        text.contains("Open connections that end\n  ! shop/web -> shop/db: 53/udp  (1 connection)"),
        "{text}"
    );
    let none = engine.policies("none", "cofferdam: 1\nsegment: shop\n");
    let text = said(&engine.cofferdam(&["plan", "--policies", &none]));
    assert!(
        text.contains("shop/web becomes unmanaged, leaves cofferdam-shop-db"),
        "{text}"
    );

    // A saved plan is good for what it was made from.
    stop(daemon);
    let file = engine.0.join("plan.json");
    let file = file.to_str().unwrap();
    let unknown = engine.cofferdam(&["plan", "--policies", &new, "--save", file]);
    assert!(
        said(&unknown).contains("no daemon says what is in force"),
        "{unknown:?}"
    );
    let apply = || engine.cofferdam(&["apply", "--policies", &new, "--plan", file]);
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
    assert_eq!(engine.cofferdam(&["down", "--yes"]).status.code(), Some(0));
}
