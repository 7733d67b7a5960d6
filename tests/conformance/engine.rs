//! The private engine: brought up by the outer process, used by the inner one inside its namespaces.
#![allow(dead_code, reason = "shared by the conformance cases and the faults")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bollard::Docker;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) const IMAGE: &str = "cofferdam-probe:test";
/// Where the probe lies inside the image.
pub(crate) const PROBE_INSIDE: &str = "/cofferdam-probe";

fn tool() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/private-engine")
}

/// Cargo's target directory, whatever it is called.
pub(crate) fn target_directory() -> PathBuf {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    temporary.parent().unwrap_or(temporary).to_owned()
}

/// Links the probe statically. Only the last step differs from an ordinary build, so nothing is compiled twice.
pub(crate) fn build_probe() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "rustc",
            "--quiet",
            "--bin",
            "cofferdam-probe",
            "--features",
            "testkit",
            "--target-dir",
        ])
        .arg(target_directory())
        .args(["--", "-C", "target-feature=+crt-static"])
        .stdout(Stdio::null())
        .status()
        .context("cannot run cargo to build the probe")?;
    if !status.success() {
        bail!("the probe does not build: cargo rustc ended with {status}");
    }
    Ok(target_directory().join("debug/cofferdam-probe"))
}

/// Builds the product with its fault points, beside the ordinary one. Shares the probe's build of the library.
pub(crate) fn build_faulty() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "build",
            "--quiet",
            "--bin",
            "cofferdam-faulty",
            "--features",
            "testkit",
        ])
        .arg("--target-dir")
        .arg(target_directory())
        .stdout(Stdio::null())
        .status()
        .context("cannot run cargo to build the product with fault points")?;
    if !status.success() {
        bail!("the product with fault points does not build: cargo build ended with {status}");
    }
    Ok(faulty())
}

/// Where [`build_faulty`] leaves it.
pub(crate) fn faulty() -> PathBuf {
    target_directory().join("debug/cofferdam-faulty")
}

/// An engine that ends with this value.
#[derive(Debug)]
pub(crate) struct PrivateEngine {
    directory: PathBuf,
}

impl PrivateEngine {
    pub(crate) fn up(probe: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("cfd-")
            .rand_bytes(6)
            .tempdir()?
            .keep();
        // The tool makes it anew, and takes it down itself should this process be killed.
        std::fs::remove_dir(&directory)?;
        let engine = Self { directory };
        let owner = std::process::id().to_string();
        engine.run("up", &[], Some(("ENGINE_OWNER", &owner)))?;
        let probe = probe.to_str().context("the probe's path is not UTF-8")?;
        engine.run("image", &[IMAGE, probe], None)?;
        Ok(engine)
    }

    fn run(
        &self,
        command: &str,
        arguments: &[&str],
        environment: Option<(&str, &str)>,
    ) -> anyhow::Result<()> {
        let output = Command::new(tool())
            .arg(command)
            .arg(&self.directory)
            .args(arguments)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .with_context(|| format!("cannot run private-engine {command}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "private-engine {command} ended with {}: {}",
                output.status,
                said.trim()
            );
        }
        Ok(())
    }

    /// A command that runs in the engine's namespaces.
    pub(crate) fn command(&self, program: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(tool());
        command
            .arg("exec")
            .arg(&self.directory)
            .arg(program)
            .env("COFFERDAM_ENGINE_DIR", &self.directory);
        command
    }

    pub(crate) fn down(self) -> anyhow::Result<()> {
        let outcome = self.run("down", &[], None);
        std::mem::forget(self);
        outcome
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        if let Err(error) = self.run("down", &[], None) {
            eprintln!("conformance: {error:#}");
        }
    }
}

/// Runs this program once more inside the namespaces of an engine of its own, and takes the engine down whatever happens.
/// Returns whether the inner one was content.
pub(crate) async fn run_inside() -> anyhow::Result<bool> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let probe = build_probe()?;
    let engine = PrivateEngine::up(&probe)?;
    let this = std::env::current_exe().context("cannot find this program")?;
    let mut child = engine
        .command(&this)
        .env("COFFERDAM_PROBE", &probe)
        .spawn()
        .context("cannot enter the engine")?;
    let interrupted = tokio::select! {
        status = child.wait() => Ok(status?),
        _ = interrupt.recv() => Err("interrupted"),
        _ = terminate.recv() => Err("terminated"),
    };
    if interrupted.is_err() {
        child.kill().await.ok();
    }
    let down = engine.down();
    let status = interrupted.map_err(anyhow::Error::msg)?;
    down?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("the runner inside the engine ended with {status}"),
    }
}

/// What the inner process works with.
#[derive(Debug, Clone)]
pub(crate) struct Lab {
    pub(crate) docker: Docker,
    /// The engine's directory.
    pub(crate) directory: PathBuf,
    pub(crate) probe: PathBuf,
    pub(crate) sctp: bool,
    /// Docker's own rules were flushed, and nobody has asked it to make them anew.
    pub(crate) rules_gone: Arc<AtomicBool>,
}

impl Lab {
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("docker.sock")
    }

    /// From inside the namespaces.
    pub(crate) async fn enter(directory: PathBuf, probe: PathBuf) -> anyhow::Result<Self> {
        let docker = connect(&directory.join("docker.sock")).await?;
        let can = |proto: &str| {
            Command::new(&probe)
                .args(["can", proto])
                .stderr(Stdio::null())
                .status()
        };
        let sctp = can("sctp").context("cannot run the probe")?.success();
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/ping_group_range", "0 2147483647"),
        ] {
            let path = Path::new("/proc/sys").join(key);
            std::fs::write(&path, value).with_context(|| format!("cannot set {}", path.display()))?;
        }
        Ok(Self {
            docker,
            directory,
            probe,
            sctp,
            rules_gone: Arc::default(),
        })
    }

    /// Brings dockerd back after a case that left none, and its rules after one that left it without.
    pub(crate) async fn repair(&self) -> anyhow::Result<()> {
        let alive = tokio::time::timeout(Duration::from_secs(10), self.docker.ping()).await;
        if matches!(alive, Ok(Ok(_))) {
            return match self.rules_gone.load(Ordering::Relaxed) {
                true => self.restart_dockerd().await,
                false => Ok(()),
            };
        }
        if let Ok(pid) = std::fs::read_to_string(self.directory.join("dockerd.pid")) {
            let pid = nix::unistd::Pid::from_raw(pid.trim().parse()?);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
        }
        self.start_dockerd().await
    }

    /// A signal for dockerd.
    pub(crate) fn signal_dockerd(&self, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
        let pid =
            std::fs::read_to_string(self.directory.join("dockerd.pid")).context("dockerd does not run")?;
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse()?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("cannot send {signal} to dockerd"))
    }

    /// The flags of dockerd's next starts.
    pub(crate) fn dockerd_flags(&self, flags: &str) -> anyhow::Result<()> {
        std::fs::write(self.directory.join("flags"), format!("{flags}\n"))
            .context("cannot write dockerd's flags")
    }

    /// Ends dockerd and starts it again in the same namespaces; the engine's init does the starting.
    pub(crate) async fn restart_dockerd(&self) -> anyhow::Result<()> {
        let pid_file = self.directory.join("dockerd.pid");
        let pid: i32 = std::fs::read_to_string(&pid_file)
            .context("dockerd does not run")?
            .trim()
            .parse()?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .context("cannot end dockerd")?;
        self.start_dockerd().await
    }

    pub(crate) async fn start_dockerd(&self) -> anyhow::Result<()> {
        let pid_file = self.directory.join("dockerd.pid");
        wait_until(Duration::from_secs(40), || !pid_file.exists())
            .await
            .context("dockerd does not end")?;
        std::fs::write(self.directory.join("control"), "start\n").context("cannot ask for a start")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if pid_file.exists() && self.docker.ping().await.is_ok() {
                self.rules_gone.store(false, Ordering::Relaxed);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("dockerd does not start again")
    }
}

async fn connect(socket: &Path) -> anyhow::Result<Docker> {
    let path = socket.to_str().context("the socket's path is not UTF-8")?;
    let docker = Docker::connect_with_unix(path, 120, bollard::API_DEFAULT_VERSION)?;
    docker
        .negotiate_version()
        .await
        .context("cannot speak to the engine")
}

pub(crate) async fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !done() {
        if Instant::now() > deadline {
            bail!("still not so after {patience:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Runs a program to its end; its output when it succeeds.
pub(crate) async fn output(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    use tokio::io::AsyncWriteExt;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.ok();
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{program} {} ended with {}: {}",
            arguments.join(" "),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
