//! Containers that no rule can hold: each kind is found, named, cut or stopped as the setting says, and its twin without the
//! power is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::engine::{IMAGE, Lab, PROBE_INSIDE, output, target_directory};
use crate::figure::Figure;

const PATIENCE: Duration = Duration::from_secs(20);
const NETWORK: &str = "cft-unenforceable";
const MACVLAN: &str = "cft-macvlan";
/// A named volume that is the directory of the engine's socket, and one that is another.
const BOUND: &str = "cft-bound";
const BOUND_ELSEWHERE: &str = "cft-bound-elsewhere";

const POLICY: &str = "cofferdam: 1
segment: shop
services:
  web: { select: { labels: { cft: web } } }
  db: { select: { labels: { cft: db } } }
allow:
  - { from: web, to: db, ports: [80] }
";

/// A container of service `web` that cannot be held: its name, the kind that must be told, and how it is started.
struct Kind {
    name: &'static str,
    kind: &'static str,
    options: Vec<String>,
}

fn kinds(lab: &Lab) -> Vec<Kind> {
    let kind = |name, kind, options: &[&str]| Kind {
        name,
        kind,
        options: options.iter().map(ToString::to_string).collect(),
    };
    let on_network =
        |name, word, options: &[&str]| kind(name, word, &[&["--network", NETWORK][..], options].concat());
    let socket = lab.socket().display().to_string();
    let directory = lab.directory.display().to_string();
    vec![
        kind("cft-host", "host-network", &["--network", "host"]),
        kind(
            "cft-host-admin",
            "net-admin",
            &["--network", "host", "--cap-add", "NET_ADMIN"],
        ),
        kind("cft-mac", "driver", &["--network", MACVLAN]),
        kind("cft-shared", "shared-network", &["--network", "container:cft-db"]),
        on_network("cft-privileged", "privileged", &["--privileged"]),
        on_network("cft-net-admin", "net-admin", &["--cap-add", "NET_ADMIN"]),
        on_network("cft-sys-admin", "capability", &["--cap-add", "SYS_ADMIN"]),
        on_network("cft-all", "capability", &["--cap-add", "ALL"]),
        on_network(
            "cft-socket",
            "engine-socket",
            &["-v", &format!("{socket}:/docker.sock:ro")],
        ),
        on_network(
            "cft-above",
            "engine-socket",
            &["-v", &format!("{directory}:/engine:ro")],
        ),
        on_network("cft-bound", "engine-socket", &["-v", &format!("{BOUND}:/engine")]),
        on_network(
            "cft-pids",
            "host-processes",
            &["--pid", "host", "--cap-add", "SYS_PTRACE"],
        ),
    ]
}

/// What has less of it than would matter.
fn twins() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("cft-plain", vec![]),
        ("cft-ptrace", vec!["--cap-add", "SYS_PTRACE"]),
        ("cft-host-pids", vec!["--pid", "host"]),
        ("cft-raw", vec!["--cap-add", "NET_RAW"]),
        ("cft-mount", vec!["-v", "/srv:/srv:ro"]),
        ("cft-volume", vec!["-v", "cft-bound-elsewhere:/srv"]),
    ]
}

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let log = target_directory().join("reports/unenforceable.log");
    let mut daemon = Daemon::prepare(lab, log.clone(), false)?;
    let scene = Scene { lab };
    let result = scene.play(&mut daemon, &log).await;
    daemon.stop(Signal::SIGTERM).await.ok();
    scene.clear().await;
    daemon.down().await.ok();
    result
}

struct Scene<'a> {
    lab: &'a Lab,
}

impl Scene<'_> {
    async fn docker(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let host = format!("unix://{}", self.lab.socket().display());
        let all: Vec<&str> = ["-H", &host]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        output("docker", &all, input).await
    }

    async fn start(&self, name: &str, service: Option<&str>, options: &[&str]) -> anyhow::Result<()> {
        let label = service.map(|service| format!("cft={service}"));
        let mut arguments = vec!["run", "-d", "--name", name];
        if let Some(label) = &label {
            arguments.extend(["--label", label]);
        }
        arguments.extend(options);
        arguments.push(IMAGE);
        match service {
            Some("db") => arguments.extend([PROBE_INSIDE, "listen", "tcp/80"]),
            _ => arguments.extend([PROBE_INSIDE, "sleep"]),
        }
        self.docker(&arguments, "").await.map(drop)
    }

    /// The engine's socket, for a container.
    fn mount(&self) -> String {
        format!("{}:/docker.sock", self.lab.socket().display())
    }

    async fn clear(&self) {
        let all = self.docker(&["ps", "-aq", "--filter", "name=cft-"], "").await;
        for id in all.unwrap_or_default().split_whitespace() {
            self.docker(&["rm", "-f", id], "").await.ok();
        }
        for network in [NETWORK, MACVLAN] {
            self.docker(&["network", "rm", network], "").await.ok();
        }
        self.docker(&["volume", "rm", BOUND, BOUND_ELSEWHERE], "")
            .await
            .ok();
        output("ip", &["link", "del", "cftmac0"], "").await.ok();
    }

    async fn play(&self, daemon: &mut Daemon, log: &std::path::Path) -> anyhow::Result<Vec<Figure>> {
        self.clear().await;
        self.docker(&["network", "create", NETWORK], "").await?;
        // No packet leaves by it: a veth stands for the network card.
        output(
            "ip",
            &[
                "link", "add", "cftmac0", "type", "veth", "peer", "name", "cftmac1",
            ],
            "",
        )
        .await?;
        output("ip", &["link", "set", "cftmac0", "up"], "").await?;
        let macvlan = ["network", "create", "-d", "macvlan", "-o", "parent=cftmac0"];
        self.docker(
            &[&macvlan[..], &["--subnet", "192.0.2.0/24", MACVLAN]].concat(),
            "",
        )
        .await
        .context("macvlan")?;
        let directory = self.lab.directory.display().to_string();
        for (name, path) in [(BOUND, directory.as_str()), (BOUND_ELSEWHERE, "/srv")] {
            let device = format!("device={path}");
            let volume = [
                "volume",
                "create",
                "-o",
                "type=none",
                "-o",
                "o=bind",
                "-o",
                &device,
                name,
            ];
            self.docker(&volume, "").await?;
        }
        let files = BTreeMap::from([("shop.yaml".to_owned(), POLICY.to_owned())]);
        daemon.write(&files).await?;
        Ok(vec![
            self.reported(daemon, log).await?,
            self.unmanaged(daemon).await?,
            self.isolated(daemon).await?,
            self.stopped(daemon).await?,
        ])
    }

    /// Each kind while the daemon runs, and all of them at its start.
    async fn reported(&self, daemon: &mut Daemon, log: &std::path::Path) -> anyhow::Result<Figure> {
        let kinds = kinds(self.lab);
        let mut wrong = Vec::new();
        let mut only_created = Vec::new();
        let mut slowest = Duration::ZERO;
        daemon.start()?;
        self.start("cft-db", Some("db"), &["--network", NETWORK]).await?;
        for (name, options) in twins() {
            let options = [&["--network", NETWORK][..], &options].concat();
            self.start(name, Some("web"), &options).await?;
        }
        for kind in &kinds {
            let options: Vec<&str> = kind.options.iter().map(String::as_str).collect();
            let started = Instant::now();
            if let Err(error) = self.start(kind.name, Some("web"), &options).await {
                // A machine that lacks a capability cannot grant it: the container stays as it was created.
                if !format!("{error:#}").contains("unable to apply caps") {
                    return Err(error.context(kind.name));
                }
                only_created.push(kind.name);
            }
            if let Err(error) = until(daemon, |status| {
                names(status, "unenforceable").contains(kind.name)
            })
            .await
            {
                wrong.push(format!("{}: {error:#}", kind.name));
            }
            slowest = slowest.max(started.elapsed());
        }
        daemon.converge(PATIENCE).await?;
        let status = daemon.status().await?;
        let expected: BTreeSet<String> = kinds.iter().map(|kind| kind.name.to_owned()).collect();
        if names(&status, "unenforceable") != expected {
            wrong.push(format!("found {:?}", names(&status, "unenforceable")));
        }
        for kind in &kinds {
            if !logged(log, kind.name, kind.kind, "WARN")? {
                wrong.push(format!(
                    "{}: no line in the log that says {}",
                    kind.name, kind.kind
                ));
            }
            if status
                .pointer(&format!("/unenforceable_counts/{}", kind.kind))
                .is_none()
            {
                wrong.push(format!("{} is not counted", kind.kind));
            }
        }
        // A daemon that starts later finds the same.
        daemon.stop(Signal::SIGTERM).await?;
        daemon.start()?;
        daemon.converge(PATIENCE).await?;
        let found = names(&daemon.status().await?, "unenforceable");
        if found != expected {
            wrong.push(format!("after a restart found {found:?}"));
        }
        // And each is no longer told of when it is gone.
        for kind in &kinds {
            self.docker(&["rm", "-f", kind.name], "").await?;
        }
        until(daemon, |status| names(status, "unenforceable").is_empty()).await?;
        for kind in &kinds {
            if !logged(log, kind.name, kind.kind, "INFO")? {
                wrong.push(format!("{}: no line in the log when it went", kind.name));
            }
        }
        daemon.stop(Signal::SIGTERM).await?;
        let mut figure = figure(
            "unenforceable: each kind is named, its twin is not",
            kinds.len() + twins().len(),
            0,
            Some(slowest),
            wrong,
        );
        if !only_created.is_empty() {
            figure.note = Some(format!(
                "created, but not startable here: {}",
                only_created.join(", ")
            ));
        }
        Ok(figure)
    }

    /// Unmanaged containers count where they void what others were promised.
    async fn unmanaged(&self, daemon: &mut Daemon) -> anyhow::Result<Figure> {
        daemon.start()?;
        let socket = self.mount();
        self.start("cft-stray", None, &["--network", NETWORK, "-v", &socket])
            .await?;
        self.start(
            "cft-stray-admin",
            None,
            &["--network", NETWORK, "--cap-add", "NET_ADMIN"],
        )
        .await?;
        self.start("cft-stray-shared", None, &["--network", "container:cft-db"])
            .await?;
        daemon.converge(PATIENCE).await?;
        let found = names(&daemon.status().await?, "unenforceable");
        let expected: BTreeSet<String> = ["cft-stray", "cft-stray-shared"].map(str::to_owned).into();
        let wrong = (found != expected).then(|| format!("found {found:?}"));
        daemon.stop(Signal::SIGTERM).await?;
        Ok(figure(
            "unenforceable: unmanaged ones that void others' rights",
            3,
            0,
            None,
            wrong.into_iter().collect(),
        ))
    }

    /// Cut: nothing of it passes, and its twin goes on.
    async fn isolated(&self, daemon: &mut Daemon) -> anyhow::Result<Figure> {
        let mut wrong = Vec::new();
        let socket = self.mount();
        self.start("cft-cut", Some("web"), &["--network", NETWORK, "-v", &socket])
            .await?;
        let db = self.address("cft-db").await?;
        daemon.start()?;
        daemon.converge(PATIENCE).await?;
        if !self.reaches("cft-cut", &db).await? {
            wrong.push("where it is only reported, it does not reach what is declared".to_owned());
        }
        daemon.stop(Signal::SIGTERM).await?;
        daemon.arguments = vec!["--unenforceable".to_owned(), "isolate".to_owned()];
        daemon.start()?;
        daemon.converge(PATIENCE).await?;
        // One that comes later is never open.
        self.start(
            "cft-later",
            Some("web"),
            &["--network", NETWORK, "--cap-add", "SYS_ADMIN"],
        )
        .await?;
        daemon.converge(PATIENCE).await?;
        let mut leaks = 0;
        for cut in ["cft-cut", "cft-later"] {
            leaks += u64::from(self.reaches(cut, &db).await?);
        }
        if !self.reaches("cft-plain", &db).await? {
            wrong.push("its twin does not reach what is declared".to_owned());
        }
        let status = daemon.status().await?;
        let expected: BTreeSet<String> = ["cft-cut", "cft-later"].map(str::to_owned).into();
        if names(&status, "isolated") != expected {
            wrong.push(format!("isolated are {:?}", names(&status, "isolated")));
        }
        // What cannot be cut is said so.
        self.start("cft-host", Some("web"), &["--network", "host"])
            .await?;
        let said = |status: &Value| {
            status
                .pointer("/unenforceable/cft-host/0")
                .map(ToString::to_string)
        };
        let status = until(daemon, |status| said(status).is_some()).await?;
        if !said(&status).is_some_and(|text| text.contains("cannot be cut")) {
            wrong.push(format!("of the host's network it says {:?}", said(&status)));
        }
        daemon.stop(Signal::SIGTERM).await?;
        Ok(figure(
            "unenforceable: isolate cuts it and not its twin",
            2,
            leaks,
            None,
            wrong,
        ))
    }

    /// Stopped, again and again; unmanaged ones and the twin stay.
    async fn stopped(&self, daemon: &mut Daemon) -> anyhow::Result<Figure> {
        let mut wrong = Vec::new();
        daemon.arguments = vec!["--unenforceable".to_owned(), "stop".to_owned()];
        let began = Instant::now();
        daemon.start()?;
        let managed = ["cft-cut", "cft-host", "cft-later"];
        for name in managed {
            self.until_stopped(name).await?;
        }
        let elapsed = began.elapsed();
        self.docker(&["start", "cft-cut"], "").await?;
        self.until_stopped("cft-cut").await.context("started once more")?;
        daemon.converge(PATIENCE).await?;
        for name in ["cft-plain", "cft-db", "cft-stray", "cft-stray-admin"] {
            if !self.runs(name).await? {
                wrong.push(format!("{name} was stopped"));
            }
        }
        daemon.stop(Signal::SIGTERM).await?;
        Ok(figure(
            "unenforceable: stop stops it and not its twin",
            managed.len() + 1,
            0,
            Some(elapsed),
            wrong,
        ))
    }

    async fn runs(&self, name: &str) -> anyhow::Result<bool> {
        let said = self
            .docker(&["inspect", "-f", "{{.State.Running}}", name], "")
            .await?;
        Ok(said.trim() == "true")
    }

    async fn until_stopped(&self, name: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.runs(name).await? {
            if Instant::now() > deadline {
                bail!("{name} still runs");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn address(&self, name: &str) -> anyhow::Result<String> {
        let template = format!("{{{{(index .NetworkSettings.Networks \"{NETWORK}\").IPAddress}}}}");
        let address = self.docker(&["inspect", "-f", &template, name], "").await?;
        Ok(address.trim().to_owned())
    }

    async fn reaches(&self, name: &str, address: &str) -> anyhow::Result<bool> {
        let flow = format!("f tcp {address} 80\n");
        let said = self
            .docker(&["exec", "-i", name, PROBE_INSIDE, "check", "700", "2"], &flow)
            .await?;
        match said.split_whitespace().nth(2) {
            Some("allow") => Ok(true),
            Some("deny") => Ok(false),
            _ => bail!("the probe in {name} said {said:?}"),
        }
    }
}

async fn until(daemon: &Daemon, done: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(status) = daemon.status().await {
            if done(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("not so after {PATIENCE:?}: {:?}", status.get("unenforceable"));
            }
        } else if Instant::now() > deadline {
            bail!("no status after {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The keys of an object of the status.
fn names(status: &Value, field: &str) -> BTreeSet<String> {
    let object = status.get(field).and_then(Value::as_object);
    object.into_iter().flat_map(|it| it.keys().cloned()).collect()
}

fn logged(log: &std::path::Path, container: &str, kind: &str, level: &str) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(log)?;
    let is_it = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let has = |field: &str, value: &str| line.get(field).and_then(Value::as_str) == Some(value);
        has("container", container) && has("kind", kind) && has("level", level)
    };
    Ok(text.lines().any(is_it))
}

fn figure(name: &str, tried: usize, leaks: u64, repair: Option<Duration>, wrong: Vec<String>) -> Figure {
    Figure {
        name: name.to_owned(),
        tried: tried as u64,
        leaks,
        repair_ms: repair.and_then(|it| u64::try_from(it.as_millis()).ok()),
        failed: (!wrong.is_empty()).then(|| wrong.join("; ")),
        ..Figure::default()
    }
}
