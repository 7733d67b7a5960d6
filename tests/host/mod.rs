//! A private engine for one test, and the product in its namespaces.
#![allow(dead_code, reason = "each test executable uses its part")]

pub(crate) mod flows;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Flags of a container of which `audit` has nothing to say, but for the image, which has no registry here.
pub(crate) const STRICT: [&str; 7] = [
    "--cap-drop=ALL",
    "--read-only",
    "--user=1000",
    "--security-opt=no-new-privileges",
    "--network=own",
    "--ipc=private",
    "--tmpfs=/tmp",
];

/// An engine that ends with the test, whatever becomes of it. Its directory is the test's, too.
pub(crate) struct Engine(pub(crate) PathBuf);

impl Engine {
    /// Starts it, with an image: its name, and the files or tools that are in it.
    pub(crate) fn up(name: &str, image: &[&str]) -> Self {
        Self::up_with(name, image, "")
    }

    /// The same with more flags for dockerd.
    pub(crate) fn up_with(name: &str, image: &[&str], flags: &str) -> Self {
        let engine = Self(format!("/tmp/cofferdam-{name}-{}", std::process::id()).into());
        engine.flagged_script("up", &[], Some(("ENGINE_FLAGS", flags)));
        engine.script("image", image);
        engine
    }

    /// Starts it again after `stop`, with these flags for dockerd in the place of those that it had.
    pub(crate) fn start_again(&self, flags: &str) {
        self.flagged_script("start", &[], Some(("ENGINE_FLAGS", flags)));
    }

    /// A command of `tests/engine/private-engine`, which must succeed.
    pub(crate) fn script(&self, command: &str, arguments: &[&str]) -> String {
        self.flagged_script(command, arguments, None)
    }

    fn flagged_script(&self, command: &str, arguments: &[&str], flags: Option<(&str, &str)>) -> String {
        let output = Command::new(script())
            .arg(command)
            .arg(&self.0)
            .args(arguments)
            .env("ENGINE_OWNER", std::process::id().to_string())
            .envs(flags)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "private-engine {command} {arguments:?}: {output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        self.exec(&[&["docker"], arguments].concat())
    }

    /// A command in the engine's namespaces, which must succeed.
    pub(crate) fn exec(&self, words: &[&str]) -> String {
        self.script("exec", words).trim().to_owned()
    }

    /// A container with the probe's image on the network `shared`, which listens; with more words for docker.
    pub(crate) fn listen(&self, image: &str, name: &str, ports: &str, words: &[&str]) {
        let begin = ["run", "-d", "--name", name, "--network", "shared"];
        let end = [image, flows::PROBE, "listen", ports];
        self.docker(&[&begin, words, &end].concat());
    }

    /// A network namespace `world` behind a router port: a machine outside, 198.51.100.2.
    pub(crate) fn add_world(&self) {
        for words in [
            "ip netns add world",
            "ip link add uplink type veth peer name eth0 netns world",
            "ip address add 198.51.100.1/24 dev uplink",
            "ip link set uplink up",
            "ip -n world address add 198.51.100.2/24 dev eth0",
            "ip -n world link set eth0 up",
            "ip -n world route add default via 198.51.100.1",
        ] {
            self.exec(&words.split(' ').collect::<Vec<_>>());
        }
    }

    /// A command in the engine's namespaces, with all that the product asks of its environment.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(script());
        command
            .arg("exec")
            .arg(&self.0)
            .args(words)
            .env("COFFERDAM_DOCKER_SOCKET", self.0.join("docker.sock"))
            .env("COFFERDAM_CONTROL_SOCKET", self.0.join("cofferdam/control.sock"))
            .env("COFFERDAM_STATE_DIRECTORY", self.0.join("cofferdam/state"));
        command
    }

    /// The product in the engine's namespaces.
    pub(crate) fn cofferdam(&self, arguments: &[&str]) -> Command {
        self.command(&[&[env!("CARGO_BIN_EXE_cofferdam")], arguments].concat())
    }

    /// A directory with this policy of segment `shop`.
    pub(crate) fn policies(&self, name: &str, text: &str) -> String {
        let directory = self.0.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("shop.yaml"), text).unwrap();
        directory.to_str().unwrap().to_owned()
    }

    pub(crate) fn address(&self, container: &str, network: &str) -> String {
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
        self.docker(&["inspect", "-f", &format, container])
    }

    /// Every address that a place stands for, and whether it answers whoever the probe is run as.
    pub(crate) fn ask(&self, run_as: &[&str], place: &str, port: u16) -> Vec<(String, bool)> {
        let mut child = self
            .command(&[run_as, &["check", "800", "1"]].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let flow = format!("flow tcp {place} {port}\n");
        child.stdin.take().unwrap().write_all(flow.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{run_as:?} cannot try {flow}");
        let answers = String::from_utf8(output.stdout).unwrap();
        let answer = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(matches!(words[2], "allow" | "deny"), "{line}");
            assert_ne!(words[1], "-", "{place} does not resolve");
            (words[1].to_owned(), words[2] == "allow")
        };
        answers.lines().map(answer).collect()
    }

    /// Whether an address answers.
    pub(crate) fn answers(&self, run_as: &[&str], address: &str, port: u16) -> bool {
        self.ask(run_as, address, port)
            .iter()
            .all(|(_, answered)| *answered)
    }

    /// Waits until the daemon has everything in force; its log is in `daemon.log`.
    pub(crate) fn await_enforcing(&self) {
        wait_until("the daemon enforces", Some(&self.0.join("daemon.log")), || {
            let status = self.cofferdam(&["status", "--json"]).output().unwrap();
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
            status["state"] == "enforcing" && status["settled"] == true
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        Command::new(script()).arg("down").arg(&self.0).output().ok();
    }
}

pub(crate) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/private-engine")
}

/// Waits for it, a minute at most; what the log says is told then.
pub(crate) fn wait_until(what: &str, log: Option<&Path>, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > Duration::from_secs(60) {
            let log = log.map(|log| std::fs::read_to_string(log).unwrap_or_default());
            panic!("{what}: not within a minute: {}", log.unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Standard output and error together.
pub(crate) fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(text).unwrap()
}
