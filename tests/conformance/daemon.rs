//! The daemon under test: its policy directory, its process, and when its work is done.
#![allow(dead_code, reason = "shared by the conformance cases and the faults")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::engine::Lab;

/// Stays settled this long before the state is believed: the daemon may not have heard of the last change yet.
const QUIET: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(40);
const STATUS_PATIENCE: Duration = Duration::from_millis(2000);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    Paused,
    Stopped,
    /// The runner was told to judge without one: `COFFERDAM_DAEMON=none`.
    None,
}

#[derive(Debug)]
pub(crate) struct Daemon {
    directory: tempfile::TempDir,
    pub(crate) docker_socket: PathBuf,
    log: PathBuf,
    /// In front of the engine, where it is asked for.
    _filter: Option<Child>,
    process: Option<Child>,
    pub(crate) life: Life,
    /// What `run` is given besides the paths.
    pub(crate) arguments: Vec<String>,
    pub(crate) nft_broken: bool,
    /// An invalid file lies beside the valid ones, so the daemon cannot be content.
    invalid: bool,
    /// Another program than the product, and where that is to die: `COFFERDAM_FAULT`.
    pub(crate) faulty: Option<(PathBuf, String)>,
    /// The last policy that is valid.
    pub(crate) files: BTreeMap<String, String>,
    /// Its revision, by `check`.
    pub(crate) revision: Option<String>,
}

fn cofferdam() -> &'static str {
    env!("CARGO_BIN_EXE_cofferdam")
}

/// The engine's own socket, or with `COFFERDAM_THROUGH_FILTER` that of a filter in front of it.
fn engine_socket(lab: &Lab, directory: &Path, log: &Path) -> anyhow::Result<(PathBuf, Option<Child>)> {
    if std::env::var_os("COFFERDAM_THROUGH_FILTER").is_none() {
        return Ok((lab.socket(), None));
    }
    let socket = directory.join("filter/docker.sock");
    let filter = Command::new(cofferdam())
        .args(["socket-filter", "--allow-stop", "--listen"])
        .arg(&socket)
        .arg("--engine")
        .arg(lab.socket())
        .stdin(Stdio::null())
        .stderr(File::options().append(true).open(log)?)
        .kill_on_drop(true)
        .spawn()
        .context("cannot run cofferdam socket-filter")?;
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        if begun.elapsed() > Duration::from_secs(10) {
            bail!("the socket filter does not listen");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((socket, Some(filter)))
}

impl Daemon {
    /// Everything it needs, but not running.
    pub(crate) fn prepare(lab: &Lab, log: PathBuf, without: bool) -> anyhow::Result<Self> {
        // In the engine's directory, so that it goes with the engine should this process be killed.
        let directory = tempfile::Builder::new()
            .prefix("case-")
            .tempdir_in(&lab.directory)?;
        std::fs::create_dir(directory.path().join("policies"))?;
        std::fs::create_dir(directory.path().join("bin"))?;
        if let Some(parent) = log.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let life = if without { Life::None } else { Life::Stopped };
        let (docker_socket, filter) = engine_socket(lab, directory.path(), &log)?;
        let daemon = Self {
            directory,
            docker_socket,
            log,
            _filter: filter,
            process: None,
            life,
            arguments: Vec::new(),
            nft_broken: false,
            invalid: false,
            faulty: None,
            files: BTreeMap::new(),
            revision: None,
        };
        daemon.install_nft()?;
        Ok(daemon)
    }

    fn policies(&self) -> PathBuf {
        self.directory.path().join("policies")
    }

    /// The last good policy outlives the process.
    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn breaker(&self) -> PathBuf {
        self.directory.path().join("nft-is-broken")
    }

    /// An `nft` that fails while a file says so; all else goes to the real one. It is what changes structure; the elements
    /// of identities that the kernel knows already go over a socket of the daemon's own, which nobody can break from here.
    fn install_nft(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let real = std::env::var_os("PATH")
            .and_then(|path| {
                std::env::split_paths(&path)
                    .map(|entry| entry.join("nft"))
                    .find(|nft| nft.exists())
            })
            .unwrap_or_else(|| PathBuf::from("/usr/sbin/nft"));
        let script = format!(
            "#!/bin/sh\nif [ -s '{0}' ]; then exec sleep 600; fi\n\
             if [ -e '{0}' ]; then echo 'Error: made to fail' >&2; exit 1; fi\nexec '{1}' \"$@\"\n",
            self.breaker().display(),
            real.display()
        );
        let path = self.directory.path().join("bin/nft");
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    pub(crate) fn break_nft(&mut self, broken: bool) -> anyhow::Result<()> {
        self.nft_broken = broken;
        if broken {
            File::create(self.breaker())?;
        } else {
            std::fs::remove_file(self.breaker()).context("nft is not broken")?;
        }
        Ok(())
    }

    /// An `nft` that never ends, until [`Self::break_nft`] says that it is not broken.
    pub(crate) fn hang_nft(&mut self) -> anyhow::Result<()> {
        self.nft_broken = true;
        std::fs::write(self.breaker(), "hang").context("cannot make nft hang")
    }

    /// The exit code of `status --check`.
    pub(crate) async fn checked(&self) -> anyhow::Result<Option<i32>> {
        let output = Command::new(cofferdam())
            .args(["status", "--check", "--control-socket"])
            .arg(self.control())
            .stdin(Stdio::null())
            .output()
            .await?;
        Ok(output.status.code())
    }

    /// Whether the process has killed itself, waiting so long for it.
    ///
    /// # Errors
    /// When it ended in any other way.
    pub(crate) async fn ended(&mut self, within: Duration) -> anyhow::Result<bool> {
        let Some(process) = self.process.as_mut() else {
            return Ok(true);
        };
        match tokio::time::timeout(within, process.wait()).await {
            Ok(status) => {
                use std::os::unix::process::ExitStatusExt;
                let status = status?;
                self.process = None;
                self.life = Life::Stopped;
                if status.signal() != Some(Signal::SIGKILL as i32) {
                    bail!("the controller ended with {status}: {}", self.last_words());
                }
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    /// `down` by another program, which may be made to die.
    pub(crate) async fn down_by(&self, program: &Path, fault: &str) -> anyhow::Result<bool> {
        let output = Command::new(program)
            .args(["down", "--yes", "--docker-socket"])
            .arg(&self.docker_socket)
            .arg("--control-socket")
            .arg(self.control())
            .env("COFFERDAM_FAULT", fault)
            .stdin(Stdio::null())
            .output()
            .await?;
        Ok(output.status.success())
    }

    /// The processor time that the process has used.
    pub(crate) fn processor_ms(&self) -> anyhow::Result<u64> {
        let pid = self.process.as_ref().and_then(Child::id);
        let pid = pid.context("the controller does not run")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after = stat.rsplit(')').next().unwrap_or_default();
        let field = |index: usize| -> u64 {
            let word = after.split_whitespace().nth(index);
            word.and_then(|it| it.parse().ok()).unwrap_or_default()
        };
        // utime and stime, fields 14 and 15, in ticks of 10 ms.
        Ok((field(11) + field(12)) * 10)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Replaces the policy files: each by a rename, then what is no longer wanted goes.
    pub(crate) async fn write(&mut self, files: &BTreeMap<String, String>) -> anyhow::Result<()> {
        let directory = self.policies();
        for (name, text) in files {
            let draft = self.directory.path().join("draft");
            std::fs::write(&draft, text)?;
            std::fs::rename(&draft, directory.join(name))?;
        }
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if !files.contains_key(entry.file_name().to_string_lossy().as_ref()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        self.invalid = false;
        self.files = files.clone();
        if self.life == Life::None {
            return Ok(());
        }
        let (valid, said) = self.check().await?;
        if !valid {
            bail!("the translated policy does not pass `cofferdam check`: {said}");
        }
        self.revision = said.get("revision").and_then(Value::as_str).map(str::to_owned);
        if self.revision.is_none() {
            bail!("`cofferdam check --json` names no revision: {said}");
        }
        Ok(())
    }

    /// Writes a file that no policy may be; the valid ones stay beside it.
    pub(crate) fn write_invalid(&mut self, kind: &str, text: &str) -> anyhow::Result<()> {
        let name = format!(
            "invalid-{}.yaml",
            kind.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
        );
        self.invalid = true;
        std::fs::write(self.policies().join(name), text).context("cannot write the invalid policy")
    }

    /// Whether the directory is valid, and what `check` says about it.
    pub(crate) async fn check(&self) -> anyhow::Result<(bool, Value)> {
        let output = Command::new(cofferdam())
            .arg("check")
            .arg(self.policies())
            .arg("--json")
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot run cofferdam check")?;
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let text = [output.stdout.as_slice(), &output.stderr].concat();
            Value::String(String::from_utf8_lossy(&text).into_owned())
        });
        Ok((output.status.success(), value))
    }

    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        match self.life {
            Life::None => return Ok(()),
            Life::Stopped => {}
            Life::Running | Life::Paused => bail!("the controller runs already"),
        }
        let log = || File::options().append(true).open(&self.log);
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = match &self.faulty {
            Some((program, fault)) => {
                let mut command = Command::new(program);
                command.env("COFFERDAM_FAULT", fault);
                command
            }
            None => Command::new(cofferdam()),
        };
        let process = command
            .arg("run")
            .arg("--policies")
            .arg(self.policies())
            .arg("--docker-socket")
            .arg(&self.docker_socket)
            .arg("--control-socket")
            .arg(self.control())
            .arg("--state-directory")
            .arg(self.state())
            .args(&self.arguments)
            .env(
                "PATH",
                format!("{}:{path}", self.directory.path().join("bin").display()),
            )
            .stdin(Stdio::null())
            .stdout(log()?)
            .stderr(log()?)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run cofferdam run")?;
        self.process = Some(process);
        self.life = Life::Running;
        Ok(())
    }

    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        let process = self.process.as_ref();
        process.and_then(Child::id).context("the controller does not run")
    }

    /// Runs another command of the product with this policy; what it printed.
    pub(crate) async fn command(&self, command: &str) -> anyhow::Result<String> {
        let output = Command::new(cofferdam())
            .arg(command)
            .arg("--policies")
            .arg(self.policies())
            .arg("--docker-socket")
            .arg(&self.docker_socket)
            .arg("--state-directory")
            .arg(self.state())
            .stdin(Stdio::null())
            .output()
            .await
            .with_context(|| format!("cannot run cofferdam {command}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "cofferdam {command} ended with {}: {}",
                output.status,
                said.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command that asks this daemon.
    pub(crate) fn asking(&self, words: &[&str]) -> Command {
        let mut command = Command::new(cofferdam());
        command
            .args(words)
            .env("COFFERDAM_CONTROL_SOCKET", self.control())
            .stdin(Stdio::null());
        command
    }

    /// What a command that asks the daemon printed: standard output, standard error.
    pub(crate) async fn asked(&self, words: &[&str]) -> anyhow::Result<(String, String)> {
        let output = self.asking(words).output().await;
        let output = output.with_context(|| format!("cannot run cofferdam {words:?}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!(
                "cofferdam {words:?} ended with {}: {}",
                output.status,
                text(&output.stderr)
            );
        }
        Ok((text(&output.stdout), text(&output.stderr)))
    }

    /// The answer of `explain`, which has an exit code of its own for what is denied.
    pub(crate) async fn explained(&self, words: &[&str]) -> anyhow::Result<Value> {
        let words = [&["explain", "--json"], words].concat();
        let output = self.asking(&words).output().await;
        let output = output.context("cannot run cofferdam explain")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self
            .process
            .as_ref()
            .and_then(Child::id)
            .context("the controller does not run")?;
        kill(Pid::from_raw(pid.try_into()?), signal).context("cannot signal the controller")
    }

    /// Ends it with a signal and waits for its end.
    pub(crate) async fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        match self.life {
            Life::None => return Ok(()),
            Life::Stopped => bail!("the controller does not run"),
            Life::Paused => self.resume()?,
            Life::Running => {}
        }
        self.signal(signal)?;
        let mut process = self.process.take().context("the controller does not run")?;
        self.life = Life::Stopped;
        if tokio::time::timeout(Duration::from_secs(10), process.wait())
            .await
            .is_err()
        {
            process.kill().await.ok();
            bail!("the controller does not end within 10 s of {signal}");
        }
        Ok(())
    }

    pub(crate) fn pause(&mut self) -> anyhow::Result<()> {
        if self.life == Life::Running {
            self.signal(Signal::SIGSTOP)?;
            self.life = Life::Paused;
        }
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> anyhow::Result<()> {
        if self.life == Life::Paused {
            self.signal(Signal::SIGCONT)?;
            self.life = Life::Running;
        }
        Ok(())
    }

    pub(crate) async fn status(&self) -> anyhow::Result<Value> {
        let command = Command::new(cofferdam())
            .args(["status", "--json", "--control-socket"])
            .arg(self.control())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(STATUS_PATIENCE, command)
            .await
            .context("status does not answer")??;
        if !output.status.success() {
            bail!(
                "status failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout).context("status is no JSON")
    }

    /// Waits until the kernel holds what the policy and the containers ask for.
    pub(crate) async fn converge(&mut self, within: Duration) -> anyhow::Result<()> {
        if self.life != Life::Running {
            return Ok(());
        }
        let deadline = Instant::now() + within;
        let mut since: Option<Instant> = None;
        let mut last = "no status yet".to_owned();
        loop {
            if let Some(status) = self.process.as_mut().map(Child::try_wait).transpose()?.flatten() {
                self.life = Life::Stopped;
                bail!(
                    "the controller ended by itself with {status}: {}",
                    self.last_words()
                );
            }
            match self.status().await {
                Ok(status) if self.settled(&status) => {
                    let first = *since.get_or_insert_with(Instant::now);
                    if first.elapsed() >= QUIET {
                        return Ok(());
                    }
                }
                Ok(status) => {
                    since = None;
                    last = brief(&status);
                }
                Err(error) => {
                    since = None;
                    last = format!("{error:#}");
                }
            }
            if Instant::now() > deadline && since.is_none() {
                bail!("not converged within {} ms: {last}", within.as_millis());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn settled(&self, status: &Value) -> bool {
        let state = status.get("state").and_then(Value::as_str);
        // With a broken nft it cannot enforce anything new: it has reacted when it says so.
        if self.nft_broken && state == Some("degraded") {
            return true;
        }
        let settled = status.get("settled") == Some(&Value::Bool(true));
        let content = state == Some("enforcing") || (self.invalid && state == Some("degraded"));
        content && settled && self.is_in_force(status)
    }

    /// Whether the last valid policy is in force: also of a daemon that found an invalid one at its start.
    pub(crate) fn is_in_force(&self, status: &Value) -> bool {
        let revision = status.pointer("/policy/revision").and_then(Value::as_str);
        revision == self.revision.as_deref()
    }

    /// Removes every trace of the product; the daemon must have ended.
    pub(crate) async fn down(&self) -> anyhow::Result<()> {
        if self.life == Life::None {
            return Ok(());
        }
        let output = Command::new(cofferdam())
            .args(["down", "--yes", "--docker-socket"])
            .arg(&self.docker_socket)
            .arg("--control-socket")
            .arg(self.control())
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot run cofferdam down")?;
        if !output.status.success() {
            bail!(
                "cofferdam down failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

fn brief(status: &Value) -> String {
    let part = |pointer: &str| {
        status
            .pointer(pointer)
            .map_or("-".to_owned(), ToString::to_string)
    };
    format!(
        "state {}, settled {}, revision {}",
        part("/state"),
        part("/settled"),
        part("/policy/revision")
    )
}
