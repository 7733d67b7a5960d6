//! `verify` on a private engine: it agrees with what is in force, finds a hole and a wall that were made by hand, over TCP,
//! UDP and both families, and leaves alone what it must.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

mod host;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host::{Engine, said};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const POLICY: &str = "cofferdam: 1
segment: shop
services:
  web: { select: { name: \"web-*\" } }
  api: { select: { name: api-1 } }
  db: { select: { name: db-1 } }
  quiet: { select: { name: quiet-1 } }
allow:
  - { from: world, to: web, ports: [8080] }
  - { from: host, to: web, ports: [8080] }
  - { from: web, to: api, ports: [8000-8002] }
  - { from: db, to: web, ports: [8080] }
  - { from: api, to: db, ports: [5432, 53/udp] }
  - { from: api, to: host, ports: [7000] }
  - { from: web, to: world, ports: [443] }
tests:
  reachable: [ \"web -> api:8000\", \"host -> web:8080\", \"world -> web:8080\" ]
  unreachable: [ \"web -> db:any\", \"db -> api:8000\" ]
";

/// Listens on what it is told, on both families, and takes what comes for granted.
const SERVER: &str = r#"for (@ARGV) {
  my ($t, $p) = split m{/};
  socket(my $s, 10, $t eq "tcp" ? 1 : 2, 0) or die "socket: $!";
  bind($s, pack("SnNa16N", 10, $p, 0, "\0" x 16, 0)) or die "bind: $!";
  listen($s, 1024) if $t eq "tcp";
  push @kept, $s;
}
sleep 3600"#;

/// The kernel's table of neighbours is one for all namespaces: one engine at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// An engine with a network of both families.
fn engine(name: &str) -> (MutexGuard<'static, ()>, Engine) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = Engine::up(name, &["tools:1", "--tools", "perl"]);
    let create = [
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fd00:77::/64",
        "shared",
    ];
    engine.docker(&create);
    (alone, engine)
}

impl Engine {
    fn start(&self, name: &str, flags: &[&str], ports: &[&str]) {
        let begin = ["docker", "run", "-d", "--name", name, "--network", "shared"];
        self.exec(&[&begin[..], flags, &["tools:1", "/bin/perl", "-e", SERVER], ports].concat());
    }

    fn verify(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let begun = Instant::now();
        let output = self
            .cofferdam(&[&["verify", "--json"], arguments].concat())
            .output()
            .unwrap();
        let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {}", said(&output));
        });
        println!(
            "verify {arguments:?}: {:?}, {}",
            begun.elapsed(),
            object["counts"]
        );
        (output.status.code(), object)
    }
}

/// The daemon, which can be held.
struct Daemon(Child);

impl Daemon {
    fn start(engine: &Engine, policies: &str) -> Self {
        let log = engine.0.join("daemon.log");
        let started = engine
            .cofferdam(&["run", "--policies", policies])
            .stdout(Stdio::null())
            .stderr(fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        Self(started)
    }

    /// What was started is the script, whose child enters the namespaces, whose child is the program. When the program is
    /// stopped, its parent stops itself, too.
    fn signal(&self, signal: Signal) {
        let script = self.0.id();
        let child = |pid: u32| -> u32 {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            children.split_whitespace().next().unwrap().parse().unwrap()
        };
        let parent = child(script);
        let program = child(parent);
        let send = |pid: u32| kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
        send(program);
        if signal == Signal::SIGCONT {
            send(parent);
        }
    }

    fn end(mut self) {
        self.signal(Signal::SIGTERM);
        self.0.wait().unwrap();
    }
}

/// The cells with this result, as `from -> to:port/protocol`.
fn cells(object: &Value, result: &str) -> BTreeSet<String> {
    let cells = object["cells"].as_array().unwrap().iter();
    let with = cells.filter(|cell| cell["result"] == result);
    with.map(|cell| {
        let text = |key: &str| cell[key].as_str().unwrap();
        format!(
            "{} -> {}:{}/{}",
            text("from"),
            text("to"),
            cell["port"],
            text("protocol")
        )
    })
    .collect()
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// What was tried in a cell: `evidence` of each attempt by this way.
fn attempts(object: &Value, from: &str, to: &str, port: u16) -> Vec<Value> {
    let cells = object["cells"].as_array().unwrap().iter();
    let of = |cell: &&Value| cell["from"] == from && cell["to"] == to && cell["port"] == port;
    cells
        .filter(of)
        .flat_map(|cell| cell["attempts"].as_array().unwrap().clone())
        .collect()
}

#[test]
fn what_is_declared_is_what_is() {
    let (_alone, engine) = engine("verify");
    engine.start("web-1", &["-p", "18080:8080"], &["tcp/8080"]);
    engine.start("web-2", &[], &["tcp/8080"]);
    engine.start("api-1", &[], &["tcp/8000"]);
    engine.start("db-1", &[], &["tcp/5432", "tcp/6000", "udp/53"]);
    engine.start("quiet-1", &["--label", "io.cofferdam.verify=off"], &["tcp/9000"]);
    engine.start("idle", &[], &["tcp/9001"]);
    // A machine outside.
    engine.add_world();
    let policies = engine.policies("policies", POLICY);

    // Without a daemon nobody says what is declared, until somebody names it; and then nothing is closed.
    let nobody = engine.cofferdam(&["verify"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(3), "{}", said(&nobody));
    let (code, open) = engine.verify(&["--policies", &policies]);
    assert_eq!((code, &open["agrees"]), (Some(1), &false.into()));
    assert!(cells(&open, "leaks").contains("shop/web -> shop/db:5432/tcp"));

    let daemon = Daemon::start(&engine, &policies);
    engine.await_enforcing();
    let outside = ["--world", "198.51.100.2:443", "--world", "198.51.100.2:80"];
    let (code, agreed) = engine.verify(&outside);
    assert_eq!(code, Some(0), "{agreed:#}");
    assert_eq!(
        (&agreed["counts"]["differ"], &agreed["counts"]["unknown"]),
        (&0.into(), &0.into()),
        "{agreed:#}"
    );
    let declared = set(&[
        "host -> shop/web:8080/tcp",
        "shop/api -> host:7000/tcp",
        "shop/api -> shop/db:53/udp",
        "shop/api -> shop/db:5432/tcp",
        "shop/db -> shop/web:8080/tcp",
        "shop/web -> shop/api:8000/tcp",
        "shop/web -> shop/api:8002/tcp",
        "shop/web -> world 198.51.100.2:443/tcp",
    ]);
    assert_eq!(cells(&agreed, "open"), declared);
    let closed = cells(&agreed, "closed");
    for cell in [
        "shop/web -> shop/api:7999/tcp",
        "shop/web -> shop/api:8003/tcp",
        "shop/web -> shop/db:53/udp",
        "shop/web -> shop/web:8080/tcp",
        "shop/db -> shop/api:8000/tcp",
        "(unmanaged) -> shop/db:6000/tcp",
        "shop/web -> (unmanaged):9001/tcp",
        "host -> shop/db:5432/tcp",
        "shop/web -> host:7000/tcp",
        "shop/web -> world 198.51.100.2:80/tcp",
    ] {
        assert!(closed.contains(cell), "{cell} is not among {closed:?}");
    }
    // Each of both families on each network; and through the host.
    let ways = |from, to, port| -> BTreeSet<(String, bool)> {
        let attempts = attempts(&agreed, from, to, port).into_iter();
        let way = |it: Value| {
            let is_v6 = it["address"].as_str().unwrap().starts_with('[');
            (it["way"].as_str().unwrap().to_owned(), is_v6)
        };
        attempts.map(way).collect()
    };
    let db = ways("shop/api", "shop/db", 5432);
    for network in ["on shared", "on cofferdam-shop-db"] {
        assert!(db.contains(&(network.to_owned(), false)), "{db:?}");
        assert!(db.contains(&(network.to_owned(), true)), "{db:?}");
    }
    for (from, real) in [("shop/db", "open"), ("shop/api", "closed")] {
        let all = attempts(&agreed, from, "shop/web", 8080);
        let through = all
            .iter()
            .find(|it| it["way"] == "through the host's published port");
        assert_eq!(through.unwrap()["real"], real, "{all:#?}");
    }
    // Nobody answers a datagram here, and yet it is known that it passed.
    let silent = attempts(&agreed, "shop/api", "shop/db", 53);
    assert!(
        silent.iter().all(|it| it["evidence"]
            .as_str()
            .unwrap()
            .contains("passed the host's rules")),
        "{silent:#?}"
    );
    assert_eq!(agreed["left_out"]["excused"], serde_json::json!(["quiet-1"]));
    assert!(!agreed["cells"].to_string().contains("quiet"), "it was left out");
    let held = agreed["tests"].as_array().unwrap().iter();
    let held: Vec<&Value> = held.map(|test| &test["result"]).collect();
    assert_eq!(held, ["held", "held", "not tried", "held", "held"]);

    let text = said(&engine.cofferdam(&["verify"]).output().unwrap());
    assert!(
        text.contains("the policy's own tests: 4 held, 1 not tried"),
        "{text}"
    );
    assert!(text.contains("\nagrees: "), "{text}");

    // A hole for one alone, in what the daemon cannot repair now; a wall before another; and a datagram's.
    daemon.signal(Signal::SIGSTOP);
    let [web, api, db] = ["web-1", "api-1", "db-1"].map(|name| engine.address(name, "shared"));
    for rule in [
        format!("insert rule inet cofferdam deny ip saddr {web} ip daddr {db} tcp dport 6000 goto pass"),
        format!("insert rule inet cofferdam deny ip saddr {web} ip daddr {db} udp dport 53 goto pass"),
        format!("insert rule inet cofferdam forward ip saddr {api} ip daddr {db} tcp dport 5432 drop"),
    ] {
        engine.exec(&[&["nft"], &rule.split(' ').collect::<Vec<_>>()[..]].concat());
    }
    let junit = engine.0.join("junit.xml");
    let junit = junit.to_str().unwrap();
    let (code, broken) = engine.verify(&["--policies", &policies, "--junit", junit]);
    assert_eq!(code, Some(1));
    assert_eq!(
        cells(&broken, "leaks"),
        set(&["shop/web -> shop/db:6000/tcp", "shop/web -> shop/db:53/udp"])
    );
    assert_eq!(cells(&broken, "blocked"), set(&["shop/api -> shop/db:5432/tcp"]));
    let explained = broken.to_string();
    assert!(explained.contains("no edge from web-1 to db-1"), "{broken:#}");
    assert!(explained.contains("declared permitted: api-1"), "{broken:#}");
    let failed: Vec<&Value> = broken["tests"].as_array().unwrap().iter().collect();
    assert_eq!(failed[3]["result"], "failed", "web -> db:any");
    let report = fs::read_to_string(junit).unwrap();
    assert_eq!(report.matches("<failure").count(), 4, "{report}");
    // All of the rules gone.
    for table in ["inet", "bridge"] {
        engine.exec(&["nft", "delete", "table", table, "cofferdam"]);
    }
    let (code, gone) = engine.verify(&["--policies", &policies]);
    assert_eq!(code, Some(1));
    assert!(cells(&gone, "blocked").is_empty(), "{gone:#}");
    let leaks = cells(&gone, "leaks");
    for cell in [
        "shop/db -> shop/api:8000/tcp",
        "shop/web -> shop/db:53/udp",
        "(unmanaged) -> shop/db:6000/tcp",
        "host -> shop/db:5432/tcp",
    ] {
        assert!(leaks.contains(cell), "{cell} is not among {leaks:?}");
    }

    // The daemon repairs all of it.
    daemon.signal(Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(500));
    engine.await_enforcing();
    let (code, repaired) = engine.verify(&["--all"]);
    assert_eq!(code, Some(0), "{repaired:#}");

    // In audit everything passes.
    let revision = repaired["revision"].clone();
    engine.policies(
        "policies",
        &POLICY.replace("segment: shop\n", "segment: shop\nmode: audit\n"),
    );
    let begun = Instant::now();
    let audited = loop {
        let (_, found) = engine.verify(&[]);
        if found["revision"] != revision {
            break found;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the new policy is not taken"
        );
    };
    assert!(cells(&audited, "blocked").is_empty(), "{audited:#}");
    assert!(cells(&audited, "audited").contains("shop/web -> shop/db:5432/tcp"));
    assert_eq!(audited["tests"][3]["result"], "held but for audit");

    daemon.end();
    let down = engine.cofferdam(&["down", "--yes"]).output().unwrap();
    assert!(down.status.success(), "{}", said(&down));
}

#[test]
fn it_needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "becoming another user needs root: run as root"
    );
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("cofferdam");
    fs::copy(env!("CARGO_BIN_EXE_cofferdam"), &program).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open).unwrap();
    let mut command = Command::new(&program);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    let output = command.arg("verify").output().unwrap();
    assert_eq!(output.status.code(), Some(11), "{}", said(&output));
    assert!(said(&output).contains("run as root"), "{}", said(&output));
}

/// Each calls the next one, all on one network and both families: some 13,000 cells.
#[test]
fn fifty_services_agree_in_every_cell() {
    const SERVICES: usize = 50;
    let (_alone, engine) = engine("fifty");
    let mut policy = "cofferdam: 1\nsegment: shop\nservices:\n".to_owned();
    for number in 0..SERVICES {
        engine.start(&format!("c{number}"), &[], &["tcp/8000", "udp/8001"]);
        policy += &format!("  s{number}: {{ select: {{ name: c{number} }} }}\n");
    }
    policy += "allow:\n";
    for number in 0..SERVICES {
        let next = (number + 1) % SERVICES;
        policy += &format!("  - {{ from: s{number}, to: s{next}, ports: [8000, 8001/udp] }}\n");
    }
    let daemon = Daemon::start(&engine, &engine.policies("policies", &policy));
    engine.await_enforcing();
    let (code, object) = engine.verify(&[]);
    assert_eq!(code, Some(0), "{}", object["counts"]);
    assert_eq!(object["counts"]["differ"], 0);
    assert_eq!(object["counts"]["unknown"], 0);
    assert_eq!(cells(&object, "open").len(), 2 * SERVICES);
    daemon.end();
}
