//! The daemon under measurement: its process, its log and its status.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{milliseconds, sh};

const CONTROL: &str = "/run/control.sock";
const STATE: &str = "/run/state";
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What the daemon works with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) policies: PathBuf,
    pub(crate) engine: PathBuf,
}

/// The daemon, until it is dropped. Its rules stay.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    /// What it logged of its passes.
    pub(crate) passes: Receiver<Value>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Setup {
    /// With one policy file.
    pub(crate) fn new(engine: &Path, policy: &str) -> Self {
        let setup = Self {
            policies: "/run/policies".into(),
            engine: engine.to_owned(),
        };
        setup.write(policy);
        setup
    }

    pub(crate) fn write(&self, policy: &str) {
        std::fs::create_dir_all(&self.policies).unwrap();
        // Read whole or not at all.
        std::fs::write("/run/draft", policy).unwrap();
        std::fs::rename("/run/draft", self.policies.join("bench.yaml")).unwrap();
    }

    /// A new daemon on a kernel without its rules, and the milliseconds until these were there for the engine's containers.
    pub(crate) fn start(&self) -> (Daemon, f64) {
        forget();
        let begun = Instant::now();
        // A session of its own, as a service manager gives it: its priority is the session's.
        let mut child = Command::new("setsid")
            .arg(env!("CARGO_BIN_EXE_cofferdam"))
            .arg("run")
            .arg("--policies")
            .arg(&self.policies)
            .arg("--docker-socket")
            .arg(&self.engine)
            .args(["--control-socket", CONTROL, "--state-directory", STATE])
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, passes) = channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                match serde_json::from_str::<Value>(&line) {
                    Ok(line) if line["message"] == "pass" => drop(sender.send(line)),
                    Ok(line) if line["level"] == "INFO" => {}
                    _ => eprintln!("{line}"),
                }
            }
        });
        let daemon = Daemon { child, passes };
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let pass = daemon
                .passes
                .recv_timeout(left)
                .expect("the daemon enforces in time");
            // Before it has listed the engine's containers it leaves the kernel alone.
            if pass["kernel"] == "replace" {
                return (daemon, milliseconds(begun.elapsed()));
            }
        }
    }
}

/// Removes the rules and the last good policy of a daemon that has ended.
pub(crate) fn forget() {
    sh(&format!(
        "nft delete table inet cofferdam 2>/dev/null; nft delete table bridge cofferdam 2>/dev/null; rm -rf {STATE}"
    ));
}

impl Daemon {
    /// Waits until everything is in force that the policy and the containers ask for.
    pub(crate) fn settle(&self) {
        let begun = Instant::now();
        loop {
            let status = self.status();
            let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
            if status["state"] == "enforcing" && status["settled"] == true {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "the daemon does not settle: {}",
                status["reasons"]
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn status(&self) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cofferdam"))
            .args(["status", "--json", "--control-socket", CONTROL])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Has it read its policy again.
    pub(crate) fn hang_up(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGHUP).unwrap();
    }

    /// MiB.
    pub(crate) fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
    }

    /// Seconds that it has run, user and system.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let after_name = stat.rsplit(')').next().unwrap();
        let ticks = |at: usize| {
            after_name
                .split_whitespace()
                .nth(at)
                .unwrap()
                .parse::<f64>()
                .unwrap()
        };
        // Of 10 ms each, whatever the kernel's own are.
        (ticks(11) + ticks(12)) / 100.0
    }
}
