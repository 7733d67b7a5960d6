//! What is shipped for systemd: the units, and the daemon that tells when its rules stand and that its loop goes round.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UNITS: [&str; 3] = [
    "cofferdam.service",
    "cofferdam-guard.service",
    "cofferdam-socket-filter.service",
];

/// Whom the daemon runs as here: a user that owns nothing else.
const USER: u32 = 61_234;
/// One that there is everywhere.
const GROUP: &str = "daemon";

/// Of ten, where ten is everything; as `systemd-analyze security` rounds it.
const MOST_EXPOSED: f64 = 2.0;

fn unit(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging/systemd")
        .join(name);
    fs::read_to_string(path).unwrap()
}

/// The units in a directory, with the program where it is now.
fn units() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let text = unit(name).replace("/usr/bin/cofferdam", env!("CARGO_BIN_EXE_cofferdam"));
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn analyze(arguments: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .env("SYSTEMD_COLORS", "0")
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "systemd-analyze is needed (`tests/engine/private-engine setup systemd` installs it): {error}"
            )
        })
}

#[test]
fn the_units_are_valid() {
    let folder = units();
    for name in UNITS {
        let path = folder.path().join(name);
        let output = analyze(&["verify", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{name}: {said}");
        // The check finds something where there is something.
        fs::write(&path, unit(name).replace("[Service]", "[Service]\nNoSuchThing=1")).unwrap();
        let output = analyze(&["verify", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("NoSuchThing"), "{said}");
    }
}

fn exposure(path: &Path) -> f64 {
    let output = analyze(&["security", "--offline=true", "--no-pager", path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = text
        .split_once("Overall exposure level for ")
        .unwrap_or_else(|| panic!("{output:?}"));
    let (_, figure) = rest.split_once(": ").unwrap();
    figure.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn the_units_are_hardened() {
    let folder = units();
    for name in UNITS {
        let path = folder.path().join(name);
        let figure = exposure(&path);
        println!("{name}: exposure {figure}");
        assert!(
            figure <= MOST_EXPOSED,
            "{name}: exposure {figure}, more than {MOST_EXPOSED}"
        );
        let strict = unit(name);
        let loose = strict
            .lines()
            .filter(|line| !line.starts_with("CapabilityBoundingSet="));
        fs::write(&path, loose.collect::<Vec<_>>().join("\n")).unwrap();
        assert!(exposure(&path) > figure);
    }
}

/// Every user and group of the units is made by the file that is shipped for that, but for the engine's own.
#[test]
fn the_units_run_as_users_that_are_made() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/sysusers.d/cofferdam.conf");
    let output = Command::new("systemd-sysusers")
        .arg(format!("--root={}", root.path().display()))
        .arg(shipped)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let names = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(root.path().join(file)).unwrap();
        text.lines()
            .filter_map(|line| Some(line.split_once(':')?.0.to_owned()))
            .collect()
    };
    let (users, groups) = (names("etc/passwd"), names("etc/group"));
    for name in UNITS {
        let text = unit(name);
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("{name} has no {key}")).to_owned()
        };
        assert!(users.contains(&value("User=")), "{name}: {users:?}");
        assert!(groups.contains(&value("Group=")), "{name}: {groups:?}");
    }
    let filter = unit("cofferdam-socket-filter.service");
    let listens = filter
        .split_once("--listen ")
        .unwrap()
        .1
        .split(' ')
        .next()
        .unwrap();
    let daemon = unit("cofferdam.service");
    assert!(
        daemon.contains(&format!("Environment=COFFERDAM_DOCKER_SOCKET={listens}\n"))
            && daemon.contains("\nWants=docker.service cofferdam-socket-filter.service "),
        "the daemon does not use the filter"
    );
    assert!(!daemon.contains("SupplementaryGroups"));
}

/// The calls that a unit leaves, with its groups written out.
fn permitted(unit: &str) -> BTreeSet<String> {
    fn written_out(word: &str, found: &mut BTreeSet<String>) {
        if !word.starts_with('@') {
            found.insert(word.to_owned());
            return;
        }
        let output = analyze(&["syscall-filter", "--no-pager", word]);
        let text = String::from_utf8(output.stdout).unwrap();
        let words = text
            .lines()
            .skip(1)
            .map(str::trim)
            .filter(|it| !it.is_empty() && !it.starts_with('#'));
        words.for_each(|word| written_out(word, found));
    }
    let mut left = BTreeSet::new();
    for line in unit
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="))
    {
        let mut named = BTreeSet::new();
        let (taken, words) = match line.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, line),
        };
        words.split(' ').for_each(|word| written_out(word, &mut named));
        if taken {
            left.retain(|call| !named.contains(call));
        } else {
            left.extend(named);
        }
    }
    left
}

/// It restricts itself further, and by nothing that its unit has taken.
#[test]
fn the_units_leave_the_calls_by_which_it_restricts_itself() {
    for name in ["cofferdam.service", "cofferdam-socket-filter.service"] {
        let left = permitted(&unit(name));
        for call in [
            "landlock_create_ruleset",
            "landlock_add_rule",
            "landlock_restrict_self",
            "seccomp",
            "prctl",
            "capget",
        ] {
            assert!(left.contains(call), "{name}: {call}");
        }
        for call in ["capset", "setuid", "mount", "bpf", "ptrace"] {
            assert!(!left.contains(call), "{name}: {call}");
        }
    }
}

#[test]
fn the_guard_comes_before_the_engine() {
    let guard = unit("cofferdam-guard.service");
    for line in [
        "Before=network-pre.target docker.service shutdown.target",
        "RequiredBy=docker.service",
    ] {
        assert!(guard.lines().any(|it| it == line), "{line}");
    }
    let daemon = unit("cofferdam.service");
    assert!(
        daemon.contains("Type=notify\n") && daemon.contains("After=docker.service cofferdam-guard.service")
    );
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/private-engine")
}

/// An engine that ends with the test, whatever becomes of it.
struct Engine(PathBuf);

impl Engine {
    fn up() -> Self {
        let engine = Self(format!("/tmp/cofferdam-systemd-{}", std::process::id()).into());
        engine.script(&["up"], &[]);
        for directory in ["run", "state"] {
            let path = engine.0.join(directory);
            fs::create_dir(&path).unwrap();
            chown(&path, Some(USER), None).unwrap();
        }
        let runtime = "mkdir -m 700 /run/cofferdam && chown $0 /run/cofferdam";
        engine.script(&["exec"], &["sh", "-c", runtime, &USER.to_string()]);
        fs::create_dir(engine.0.join("filter")).unwrap();
        engine
    }

    fn script(&self, command: &[&str], words: &[&str]) -> String {
        let output = Command::new(script())
            .args(command)
            .arg(&self.0)
            .args(words)
            .env("ENGINE_OWNER", std::process::id().to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{command:?} {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether the rules are in the kernel.
    fn has_rules(&self) -> bool {
        self.script(&["exec"], &["nft", "list", "tables"])
            .contains("table inet cofferdam")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        Command::new(script()).arg("down").arg(&self.0).output().ok();
    }
}

/// The filter, as the unit has it but for the user.
fn filter(engine: &Engine) -> Daemon {
    let socket = engine.0.join("filter/docker.sock");
    let started = Command::new(env!("CARGO_BIN_EXE_cofferdam"))
        .args(["socket-filter", "--mode", "660", "--group", GROUP, "--listen"])
        .arg(&socket)
        .arg("--engine")
        .arg(engine.0.join("docker.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Daemon(started)
}

/// systemd's end of the socket.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    /// Whatever comes within this time; stops early where a message begins so.
    fn hear(&mut self, limit: Duration, until: Option<&str>) -> Option<String> {
        let begun = Instant::now();
        let mut bytes = [0; 4096];
        while begun.elapsed() < limit {
            let Ok(length) = self.socket.recv(&mut bytes) else {
                continue;
            };
            let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
            self.heard.push(text.clone());
            if until.is_some_and(|until| text.starts_with(until)) {
                return Some(text);
            }
        }
        None
    }

    fn expect(&mut self, limit: u64, message: &str) -> String {
        self.hear(Duration::from_secs(limit), Some(message))
            .unwrap_or_else(|| panic!("no {message} within {limit} s: {:?}", self.heard))
    }
}

/// Ends with the test, whatever becomes of it.
struct Daemon(Child);

impl Daemon {
    fn signal(&self, signal: Signal) {
        // The script became another program, which passes signals on.
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn it_is_ready_when_the_rules_stand_and_beats_as_long_as_it_goes_round() {
    let engine = Engine::up();
    let policies = engine.0.join("policies");
    fs::create_dir(&policies).unwrap();
    let socket = engine.0.join("notify.sock");
    let mut manager = Manager::listen(&socket);
    let _filter = filter(&engine);
    let mut daemon = Daemon(
        Command::new(script())
            .arg("exec")
            .arg(&engine.0)
            // With no more than the unit leaves to it.
            .args([
                "setpriv",
                &format!("--reuid={USER}"),
                &format!("--regid={GROUP}"),
                "--clear-groups",
                "--inh-caps=-all,+net_admin",
                "--ambient-caps=-all,+net_admin",
                "--bounding-set=-all,+net_admin",
                "--no-new-privs",
            ])
            .arg(env!("CARGO_BIN_EXE_cofferdam"))
            .args(["run", "--policies", policies.to_str().unwrap()])
            .env("COFFERDAM_DOCKER_SOCKET", engine.0.join("filter/docker.sock"))
            .env("COFFERDAM_CONTROL_SOCKET", engine.0.join("run/control.sock"))
            .env("COFFERDAM_STATE_DIRECTORY", engine.0.join("state"))
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "1500000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(engine.0.join("daemon.log")).unwrap())
            .spawn()
            .unwrap(),
    );
    // Without any policy there are no rules: it lives, and says nothing of being ready.
    manager.expect(20, "WATCHDOG=1");
    manager.hear(Duration::from_secs(2), None);
    assert!(
        !manager.heard.iter().any(|it| it.contains("READY=1")),
        "{:?}",
        manager.heard
    );
    assert!(!engine.has_rules());
    assert!(
        manager.heard.iter().any(|it| it.starts_with("STATUS=")),
        "{:?}",
        manager.heard
    );

    fs::write(
        policies.join("a.yaml"),
        "cofferdam: 1\nsegment: a\nservices: { web: { select: { name: web } } }\n",
    )
    .unwrap();
    manager.expect(20, "READY=1");
    assert!(
        engine.has_rules(),
        "it said that it was ready before the rules stood"
    );
    manager.hear(Duration::from_secs(1), None);
    let line = "STATUS=enforcing: 1 service, 0 edges, 0 containers\n";
    assert!(manager.heard.iter().any(|it| it == line), "{:?}", manager.heard);

    // Its own user, with the one power over the network.
    let pid = engine.script(&["exec"], &["pgrep", "-x", "-u", &USER.to_string(), "cofferdam"]);
    let status = engine.script(&["exec"], &["cat", &format!("/proc/{}/status", pid.trim())]);
    for line in [
        "CapEff:\t0000000000001000",
        "CapBnd:\t0000000000001000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }

    // While nothing happens, and at a third of the limit.
    manager.heard.clear();
    manager.hear(Duration::from_secs(3), None);
    let beats = manager.heard.iter().filter(|it| *it == "WATCHDOG=1\n").count();
    println!("beats within 3 s: {beats}");
    assert!((4..=9).contains(&beats), "{:?}", manager.heard);

    // SIGHUP: the two that bracket a reload.
    let reloads = |heard: &[String]| {
        heard
            .iter()
            .any(|it| it.contains("RELOADING=1") && it.contains("MONOTONIC_USEC="))
    };
    manager.heard.clear();
    let send = |signal| drop(engine.script(&["exec"], &["kill", signal, pid.trim()]));
    send("-HUP");
    manager.expect(20, "READY=1");
    assert!(reloads(&manager.heard), "{:?}", manager.heard);

    // A loop that hangs is noticed: nothing comes any more.
    send("-STOP");
    manager.hear(Duration::from_millis(500), None);
    manager.heard.clear();
    manager.hear(Duration::from_secs(2), None);
    assert_eq!(manager.heard, Vec::<String>::new());
    // nsenter stops with its child, and has it go on when it goes on itself.
    let script = daemon.0.id();
    let children = fs::read_to_string(format!("/proc/{script}/task/{script}/children")).unwrap();
    for child in children.split_whitespace() {
        kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGCONT).unwrap();
    }
    manager.expect(20, "WATCHDOG=1");

    daemon.signal(Signal::SIGTERM);
    manager.expect(20, "STOPPING=1");
    daemon.0.wait().unwrap();
    assert!(engine.has_rules(), "the rules stay");
}
