//! The private engine leaves the host as it was, two run side by side, and a crash is no obstacle to the next.
#![allow(
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An engine directory whose engine ends with the test, whatever becomes of it.
struct Engine(PathBuf);

impl Engine {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(format!(
            "/tmp/cofferdam-{name}-{}",
            std::process::id()
        )))
    }

    fn output(&self, command: &str, arguments: &[&str]) -> Output {
        self.output_with(&[], command, arguments)
    }

    fn output_with(&self, settings: &[(&str, &str)], command: &str, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/private-engine");
        Command::new(script)
            .arg(command)
            .arg(&self.0)
            .args(arguments)
            .env("ENGINE_OWNER", std::process::id().to_string())
            .envs(settings.iter().copied())
            .output()
            .expect("private-engine can be run")
    }

    fn run(&self, command: &str, arguments: &[&str]) -> String {
        self.run_with(&[], command, arguments)
    }

    fn run_with(&self, settings: &[(&str, &str)], command: &str, arguments: &[&str]) -> String {
        let output = self.output_with(settings, command, arguments);
        assert!(
            output.status.success(),
            "private-engine {command} {arguments:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.output("down", &[]);
    }
}

fn stdout(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("the program can be run");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What of the host an engine could change: interfaces, nftables tables, mounts, kernel-wide limits, files that dockerd writes.
fn host() -> Vec<String> {
    let links = stdout("ip", &["-brief", "link"]);
    let mut links: Vec<&str> = links
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    links.sort_unstable();
    let listing = |path: &str| stdout("ls", &["-a", path]);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    vec![
        links.join(" "),
        stdout("nft", &["list", "tables"]),
        read("/proc/self/mounts"),
        read("/proc/sys/kernel/keys/root_maxkeys"),
        read("/proc/sys/net/ipv4/ip_forward"),
        listing("/run"),
        listing("/etc/docker"),
        listing("/opt"),
    ]
}

#[test]
fn two_engines_side_by_side_leave_the_host_alone() {
    let before = host();
    let (one, other) = (Engine::new("one"), Engine::new("other"));
    for engine in [&one, &other] {
        engine.run("up", &[]);
        engine.run("image", &["cofferdam-test:1", "--tools", "sh", "sleep", "cat"]);
        engine.run(
            "exec",
            &[
                "docker",
                "network",
                "create",
                "--ipv6",
                "--subnet",
                "fd00:7::/64",
                "six",
            ],
        );
        let arguments = [
            "docker",
            "run",
            "-d",
            "--name",
            "still",
            "--network",
            "six",
            "cofferdam-test:1",
            "sleep",
            "600",
        ];
        engine.run("exec", &arguments);
        let addresses = engine.run("exec", &["docker", "exec", "still", "cat", "/proc/net/if_inet6"]);
        assert!(
            addresses.contains("fd000007"),
            "the container has no IPv6 address: {addresses}"
        );
        let links = engine.run("exec", &["ls", "/sys/class/net"]);
        assert!(
            links.contains("docker0"),
            "/sys shows another network namespace: {links}"
        );
    }
    assert_eq!(host(), before, "while they run");
    for engine in [&one, &other] {
        engine.run("down", &[]);
        engine.run("check-clean", &[]);
        engine.run("down", &[]);
    }
    assert_eq!(host(), before, "when they are gone");
}

#[test]
fn an_engine_of_another_system_writes_nothing_into_it() {
    let before = host();
    let engine = Engine::new("root");
    let calls = "net/bridge/bridge-nf-call-iptables";
    // This machine's own system stands for another one.
    let settings = [("ENGINE_ROOT", "/"), ("ENGINE_SYSCTLS", &format!("{calls}=0"))];
    engine.run_with(&settings, "up", &[]);
    engine.run("image", &["cofferdam-test:1", "--tools", "sh", "cat"]);
    let inside = |words: &[&str]| engine.run("exec", words);
    assert_eq!(
        inside(&[
            "docker",
            "run",
            "--rm",
            "cofferdam-test:1",
            "cat",
            "/proc/self/comm"
        ]),
        "cat\n"
    );
    assert_eq!(inside(&["cat", &format!("/proc/sys/{calls}")]), "0\n");
    let name = format!("cofferdam-{}", std::process::id());
    for folder in ["/usr", "/var"] {
        let file = format!("{folder}/{name}");
        inside(&["touch", &file]);
        inside(&["ls", &file]);
        assert!(!Path::new(&file).exists(), "{file} was written on the host");
    }
    // What is no system's is shared.
    std::fs::write(engine.0.join("shared"), "yes").expect("the engine's directory can be written");
    assert_eq!(
        inside(&["cat", &engine.0.join("shared").display().to_string()]),
        "yes"
    );
    assert_eq!(host(), before, "while it runs");
    engine.run("down", &[]);
    assert_eq!(host(), before, "when it is gone");

    let refused = engine.output_with(&[("ENGINE_ROOT", "/proc")], "up", &[]);
    assert!(!refused.status.success(), "a root without a dockerd is taken");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("/proc holds no /usr/sbin/dockerd"), "{said}");
}

#[test]
fn a_crash_leaves_nothing_that_the_next_one_trips_over() {
    let engine = Engine::new("crash");
    engine.run("up", &[]);
    engine.run("image", &["cofferdam-test:1", "--tools", "sh", "sleep"]);
    engine.run(
        "exec",
        &["docker", "run", "-d", "cofferdam-test:1", "sleep", "600"],
    );
    let init = std::fs::read_to_string(engine.0.join("init")).expect("the engine wrote its init down");
    let pid = init.split_whitespace().next().expect("a PID");
    stdout("kill", &["-KILL", pid]);
    // Without an owner: what waits for its end takes down an engine that has lost its directory, within a second.
    engine.run_with(&[("ENGINE_OWNER", "")], "up", &[]);
    assert_eq!(
        engine.run("exec", &["docker", "ps", "-aq"]),
        "",
        "containers of the crashed engine are there"
    );

    std::fs::remove_dir_all(&engine.0).ok();
    let left = engine.output("check-clean", &[]);
    assert!(
        !left.status.success(),
        "an engine without its directory goes unnoticed"
    );
    engine.run("down", &[]);
    engine.run("check-clean", &[]);
}

#[test]
fn commands_get_signals_and_their_status_comes_back() {
    let engine = Engine::new("exec");
    engine.run("up", &[]);
    assert_eq!(
        engine.output("exec", &["sh", "-c", "exit 7"]).status.code(),
        Some(7)
    );
    let script = format!(
        "'{}' exec '{}' sh -c \"trap 'exit 9' TERM; while :; do sleep 0.1; done\" & sleep 1; kill -TERM $!; wait $!",
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/engine/private-engine")
            .display(),
        engine.0.display()
    );
    let status = Command::new("bash")
        .args(["-c", &script])
        .status()
        .expect("bash can be run");
    assert_eq!(status.code(), Some(9), "the command did not get SIGTERM");
}

#[test]
fn a_directory_of_someone_else_is_not_touched() {
    let engine = Engine::new("foreign");
    std::fs::create_dir_all(engine.0.join("precious")).expect("a directory can be made");
    for command in ["up", "down"] {
        assert!(
            !engine.output(command, &[]).status.success(),
            "{command} takes what is not an engine's"
        );
        assert!(
            engine.0.join("precious").exists(),
            "{command} removed what is not an engine's"
        );
    }
    std::fs::remove_dir_all(&engine.0).expect("the directory can be removed");
}
