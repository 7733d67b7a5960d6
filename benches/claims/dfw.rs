//! dfw, the peer (<https://github.com/pitkley/dfw>): its program, its configuration and its process.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::peer::{Grant, container};
use crate::real::SHARED;

const VERSION: &str = "1.3.0";
const CONFIGURATION: &str = "/run/dfw.toml";

fn root() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("there is a home directory"));
    let cache = cache.unwrap_or_else(|| home().join(".cache"));
    cache.join(format!("cofferdam/dfw-{VERSION}"))
}

fn program() -> PathBuf {
    root().join("bin/dfw")
}

/// Has cargo build it, unless it did before. Without `--locked`: what its lock file names does not build with today's compiler.
pub(crate) fn install() {
    if program().exists() {
        return;
    }
    println!("building dfw {VERSION} into {}", root().display());
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["install", "--quiet", "dfw", "--version", VERSION, "--root"])
        .arg(root())
        .status()
        .expect("cargo can be run");
    assert!(
        status.success(),
        "dfw {VERSION} cannot be built here, and nothing stands beside ours without it: cargo install ended with {status}"
    );
}

/// The process, until it is dropped. Its rules stay.
#[derive(Debug)]
pub(crate) struct Dfw(Child);

impl Drop for Dfw {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

impl Dfw {
    /// The daemon, with the configuration that was written last.
    pub(crate) fn start() -> Self {
        Self(command().spawn().unwrap())
    }

    /// Has it read its configuration again.
    pub(crate) fn hang_up(&self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGHUP).unwrap();
    }
}

/// Makes its rules, once.
pub(crate) fn once() {
    let status = command().arg("--run-once").status().unwrap();
    assert!(status.success(), "dfw ended with {status}");
}

fn command() -> Command {
    let mut command = Command::new(program());
    command
        .args([
            "--load-mode",
            "always",
            "--log-level",
            "warning",
            "--config-file",
            CONFIGURATION,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Each grant is a rule; everything else between containers is dropped.
pub(crate) fn configure(grants: &[Grant]) {
    let mut text = "[container_to_container]\ndefault_policy = \"drop\"\n".to_owned();
    for Grant { from, to, port } in grants {
        let (from, to) = (container(*from), container(*to));
        write!(
            text,
            "[[container_to_container.rules]]
network = \"{SHARED}\"
src_container = \"{from}\"
dst_container = \"{to}\"
matches = \"tcp dport {port}\"
verdict = \"accept\"
"
        )
        .unwrap();
    }
    std::fs::write(CONFIGURATION, text).unwrap();
}
