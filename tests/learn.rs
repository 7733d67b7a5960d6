//! `learn` on a real engine: a three-tier application with a database pool that was open before, and another project beside it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "conformance/engine.rs"]
mod engine;
mod host;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use cofferdam::policy::{Loaded, SourceFile, load};
use host::{Engine, said, wait_until};

const COFFERDAM: &str = env!("CARGO_BIN_EXE_cofferdam");

/// An engine with the probe, in an image and beside it.
fn engine() -> Engine {
    let probe = engine::build_probe().unwrap();
    let engine = Engine::up("learn", &[engine::IMAGE, probe.to_str().unwrap()]);
    std::fs::copy(&probe, engine.0.join("probe")).unwrap();
    engine
}

impl Engine {
    fn sh(&self, text: &str) -> String {
        self.script("exec", &["sh", "-c", text])
    }

    /// A container of a Compose project that listens on these ports.
    fn start(&self, project: &str, service: &str, ports: &str, arguments: &[&str]) {
        let name = format!("{project}-{service}-1");
        let labels = [
            format!("com.docker.compose.project={project}"),
            format!("com.docker.compose.service={service}"),
        ];
        let mut words = vec!["run", "-d", "--name", &name, "-l", &labels[0], "-l", &labels[1]];
        words.extend(arguments);
        words.extend([engine::IMAGE, engine::PROBE_INSIDE, "listen", ports]);
        self.docker(&words);
    }

    /// Whether an exchange from a container, or from outside, is answered.
    fn reaches(&self, from: &str, flow: &str) -> bool {
        let probe = self.0.join("probe");
        let words = match from {
            "world" => vec!["ip", "netns", "exec", "outside", probe.to_str().unwrap()],
            container => vec!["docker", "exec", "-i", container, engine::PROBE_INSIDE],
        };
        let words = [words, vec!["check", "1500", "0"]].concat();
        let mut child = self
            .command(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "1 {flow}").unwrap();
        let said = child.wait_with_output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        match said.split_whitespace().nth(2) {
            Some("allow") => true,
            Some("deny") => false,
            _ => panic!("{from} -> {flow}: {said}"),
        }
    }

    fn tables(&self) -> String {
        self.script("exec", &["nft", "list", "tables"])
    }

    /// Starts watching, and waits until the kernel counts.
    fn learn(&self, arguments: &[&str]) -> Learning<'_> {
        let number = self.0.join("learn.pid");
        std::fs::remove_file(&number).ok();
        let text = "echo $$ >\"$0\"; exec \"$@\"";
        let words = [
            &["sh", "-c", text, number.to_str().unwrap(), COFFERDAM, "learn"],
            arguments,
        ]
        .concat();
        let child = self
            .command(&words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut learning = Learning { engine: self, child };
        let hooked = || {
            let listed = self.sh("nft list table inet cofferdam_learn 2>/dev/null || true");
            listed.contains("hook output") && listed.contains("jump seen6")
        };
        wait_until("the tables are there", None, || {
            assert!(
                learning.child.try_wait().unwrap().is_none(),
                "learn has ended: {:?}",
                learning.child.stderr
            );
            hooked()
        });
        // The sockets are looked at after that.
        std::thread::sleep(Duration::from_secs(1));
        learning
    }
}

/// A running `cofferdam learn`.
struct Learning<'e> {
    engine: &'e Engine,
    child: Child,
}

impl Learning<'_> {
    /// Ends it by a signal, and waits until the tables are gone.
    fn end(self, signal: &str) -> Output {
        let number = std::fs::read_to_string(self.engine.0.join("learn.pid")).unwrap();
        self.engine.sh(&format!("kill -{signal} {}", number.trim()));
        let output = self.child.wait_with_output().unwrap();
        wait_until("the tables are gone", None, || {
            !self.engine.tables().contains("cofferdam_learn")
        });
        output
    }
}

fn loaded(directory: &Path) -> Loaded {
    let files: Vec<SourceFile> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| SourceFile {
            path: path.display().to_string(),
            bytes: std::fs::read(&path).unwrap(),
        })
        .collect();
    load(&files).unwrap()
}

/// `shop/web -> shop/api: 8000/tcp`.
fn edges(directory: &Path) -> BTreeSet<String> {
    let edges = loaded(directory).policy.edges;
    let text = |edge: &cofferdam::policy::Edge| {
        let ports: Vec<String> = edge.ports.iter().map(ToString::to_string).collect();
        format!("{} -> {}: {}", edge.from, edge.to, ports.join(", "))
    };
    edges.iter().map(text).collect()
}

#[test]
fn on_a_three_tier_application() {
    let engine = engine();
    for (network, subnet) in [
        ("front", "172.30.1.0/24"),
        ("back", "172.30.2.0/24"),
        ("other", "172.30.3.0/24"),
    ] {
        engine.docker(&["network", "create", "--subnet", subnet, network]);
    }
    engine.sh("ip netns add outside
         ip link add w0 type veth peer name w1 netns outside
         ip addr add 198.51.100.1/24 dev w0 && ip link set w0 up
         ip -n outside addr add 198.51.100.2/24 dev w1 && ip -n outside link set w1 up");
    engine.start("shop", "web", "tcp/80", &["--network", "front", "-p", "8080:80"]);
    engine.start(
        "shop",
        "api",
        "tcp/8000,tcp/9100,tcp/9101",
        &["--network", "front"],
    );
    engine.docker(&["network", "connect", "back", "shop-api-1"]);
    engine.start("shop", "db", "tcp/5432", &["--network", "back"]);
    engine.docker(&["network", "connect", "front", "shop-db-1"]);
    engine.start("shop", "dns", "udp/53", &["--network", "front"]);
    engine.start("shop", "idle", "tcp/1", &["--network", "front"]);
    engine.start("ops", "prometheus", "tcp/9090", &["--network", "other"]);
    engine.docker(&["network", "connect", "front", "ops-prometheus-1"]);
    let (db, dns) = (
        engine.address("shop-db-1", "back"),
        engine.address("shop-dns-1", "front"),
    );
    let api = engine.address("shop-api-1", "front");
    let db_in_front = engine.address("shop-db-1", "front");

    // A pool that is open before anybody watches.
    let mut pool = engine
        .command(&[
            "docker",
            "exec",
            "-i",
            "shop-api-1",
            engine::PROBE_INSIDE,
            "hold",
            "tcp",
            &db,
            "5432",
            "200",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));

    let traffic = [
        ("world", "tcp 198.51.100.1 8080".to_owned()),
        ("shop-web-1", format!("tcp {api} 8000")),
        ("shop-web-1", format!("tcp {api} 8000")),
        ("shop-api-1", format!("udp {dns} 53")),
        ("shop-api-1", format!("icmp {dns} echo")),
        ("ops-prometheus-1", format!("tcp {api} 9100")),
        // By the host's port, which the engine's proxy carries.
        ("ops-prometheus-1", "tcp 198.51.100.1 8080".to_owned()),
    ];
    let policies = engine.0.join("learned");
    let directory = policies.to_str().unwrap();
    let learning = engine.learn(&["-o", directory]);
    for (from, flow) in &traffic {
        assert!(engine.reaches(from, flow), "{from} -> {flow}, without rules");
    }
    let output = learning.end("INT");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let expected = [
        "ops/prometheus -> shop/api: 9100/tcp",
        "ops/prometheus -> shop/web: 80/tcp",
        "shop/api -> shop/db: 5432/tcp",
        "shop/api -> shop/dns: 53/udp, icmp/echo-request",
        "shop/web -> shop/api: 8000/tcp",
        "world -> shop/web: 80/tcp",
    ];
    let text = std::fs::read_to_string(policies.join("shop.yaml")).unwrap();
    assert_eq!(edges(&policies), expected.map(str::to_owned).into(), "{text}");
    for comment in [
        "# 8000: 2 connections, ",
        "# 5432: SEEN ONCE, as an open connection; from shop-api-1; to shop-db-1\n",
        "# 9100: SEEN ONCE, at ",
        "; by the host's port 8080\n",
        "outside: 198.51.100.2\n",
        "# Nothing was seen of shop/idle: ",
        "# Left out: host -> shop-web-1:80/tcp (1 times), taken for the engine's proxy",
    ] {
        assert!(text.contains(comment), "{comment}: {text}");
    }
    for command in ["check", "test"] {
        let output = Command::new(COFFERDAM)
            .args([command, directory])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {}", said(&output));
    }
    let again = engine
        .command(&[COFFERDAM, "learn", "-o", directory])
        .output()
        .unwrap();
    assert!(
        said(&again).contains("nothing is overwritten"),
        "{}",
        said(&again)
    );

    // The daemon keeps just that open.
    let log = engine.0.join("daemon.log");
    let mut daemon = engine
        .command(&[COFFERDAM, "run", "--policies", directory])
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    wait_until("the daemon enforces", None, || {
        let status = engine.command(&[COFFERDAM, "status", "--json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["state"] == "enforcing" && status["settled"] == true
    });
    for (from, flow) in &traffic {
        assert!(engine.reaches(from, flow), "{from} -> {flow}, learnt");
    }
    let undeclared = format!("tcp {db_in_front} 5432");
    assert!(!engine.reaches("shop-web-1", &undeclared), "never seen");

    // Beside it, what is denied is seen, and is missing; what passes is not.
    let learning = engine.learn(&["--against", directory]);
    for (from, flow) in &traffic {
        assert!(engine.reaches(from, flow), "{from} -> {flow}, learnt");
    }
    let second = engine
        .command(&[COFFERDAM, "learn", "--for", "1s"])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(17), "{}", said(&second));
    let output = learning.end("INT");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("Nothing is missing"), "{}", said(&output));
    let learning = engine.learn(&["--against", directory, "--json"]);
    assert!(engine.reaches("shop-web-1", &traffic[1].1));
    assert!(!engine.reaches("shop-web-1", &undeclared));
    let output = learning.end("TERM");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let segments = seen["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 1, "{seen}");
    let edges = segments[0]["edges"].as_array().unwrap();
    assert_eq!(edges.len(), 1, "{seen}");
    let edge = &edges[0];
    assert_eq!(
        (&edge["from"], &edge["to"], &edge["ports"][0]["port"]),
        (&"shop/web".into(), &"shop/db".into(), &"5432/tcp".into()),
        "{seen}"
    );
    let policy = segments[0]["policy"].as_str().unwrap();
    assert!(
        policy.contains("  - { from: web, to: db, ports: [5432] }\n"),
        "{policy}"
    );

    // Killed, it leaves nothing either.
    let learning = engine.learn(&[]);
    learning.end("KILL");
    assert!(
        engine.tables().contains("inet cofferdam"),
        "the daemon's own stand"
    );
    assert_eq!(pool.try_wait().unwrap(), None, "the pool was held all the time");

    let pid = nix::unistd::Pid::from_raw(daemon.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    daemon.wait().unwrap();
    drop(pool.stdin.take());
    pool.wait().unwrap();
}
