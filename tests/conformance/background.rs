//! What goes on beside a step: flows that must never succeed, connections that are held, packets that are watched for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::case::Case;
use crate::fact::{Fact, Party, Transport};
use crate::probes::{Expected, Snapshot, Source, families, first_wrong, targets};
use crate::world::World;

/// A probe that runs until its input ends.
#[derive(Debug)]
pub(crate) struct Probe {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    source: Source,
}

impl Probe {
    pub(crate) fn start(world: &World, source: &Source, words: &[&str]) -> anyhow::Result<Self> {
        let mut command = match source.pid {
            None => Command::new(&world.lab.probe),
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command
                    .args(["-t", &pid.to_string(), "-n", "--"])
                    .arg(&world.lab.probe);
                command
            }
        };
        let mut child = command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot probe from {}", source.name))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a probe without output")?;
        Ok(Self {
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            source: source.clone(),
        })
    }

    pub(crate) async fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("the probe hears no more")?;
        stdin
            .write_all(text.as_bytes())
            .await
            .with_context(|| format!("the probe from {} is gone", self.source.name))
    }

    pub(crate) async fn line(&mut self) -> anyhow::Result<String> {
        let next = tokio::time::timeout(Duration::from_secs(8), self.lines.next_line()).await;
        let next = next.with_context(|| format!("the probe from {} says nothing", self.source.name))??;
        next.with_context(|| format!("the probe from {} ended", self.source.name))
    }

    /// Ends its input and reads the rest of what it has to say.
    async fn finish(mut self) -> anyhow::Result<Vec<String>> {
        self.stdin = None;
        let mut rest = Vec::new();
        while let Some(line) = self.lines.next_line().await? {
            rest.push(line);
        }
        self.child.wait().await?;
        Ok(rest)
    }

    /// What it has said so far, without waiting for more; then it is ended.
    pub(crate) async fn cut(mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Ok(Ok(Some(line))) =
            tokio::time::timeout(Duration::from_millis(50), self.lines.next_line()).await
        {
            said.push(line);
        }
        self.child.kill().await.ok();
        said
    }
}

/// A flow that must not succeed once; follows its containers as they come, go and move.
#[derive(Debug)]
pub(crate) struct NeverAllowed {
    flow: Fact,
    rate_hz: u32,
    running: BTreeMap<(Source, BTreeSet<IpAddr>), Probe>,
    attempts: u64,
    first_success: Option<String>,
    unable: Option<String>,
}

impl NeverAllowed {
    pub(crate) fn new(flow: Fact, rate_hz: u32) -> Self {
        Self {
            flow,
            rate_hz,
            running: BTreeMap::new(),
            attempts: 0,
            first_success: None,
            unable: None,
        }
    }

    /// Starts what is missing and ends what no longer has a container. Harmless while the engine is away.
    pub(crate) async fn follow(&mut self, world: &World, case: &Case) -> anyhow::Result<()> {
        let mut wanted = BTreeSet::new();
        let known = |party: &Party| match party {
            Party::Service(key) => world.knows(key),
            Party::External(_) | Party::Host => true,
        };
        if known(&self.flow.from) && known(&self.flow.to) {
            let keys = [&self.flow.from, &self.flow.to]
                .into_iter()
                .filter_map(|party| match party {
                    Party::Service(key) => Some(key.as_str()),
                    Party::External(_) | Party::Host => None,
                });
            // A container that is just not running, or an engine that is just not there: what runs, runs on.
            let Ok(snapshot) = Snapshot::take(world, keys.collect()).await else {
                return Ok(());
            };
            for family in families(case) {
                wanted.extend(targets(world, &snapshot, &self.flow, family)?);
            }
        }
        wanted.retain(|(_, addresses)| !addresses.is_empty());
        let gone: Vec<_> = self
            .running
            .keys()
            .filter(|key| !wanted.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            if let Some(probe) = self.running.remove(&key) {
                self.account(probe).await?;
            }
        }
        for (source, addresses) in wanted {
            if self.running.contains_key(&(source.clone(), addresses.clone())) {
                continue;
            }
            let mut probe = Probe::start(world, &source, &["never-allowed", &self.rate_hz.to_string()])?;
            let mut text = String::new();
            for address in &addresses {
                let port = match self.flow.transport {
                    Transport::Icmp => "echo".to_owned(),
                    _ => self.flow.dialled().to_string(),
                };
                text.push_str(&format!("{} {address} {port}\n", self.flow.transport));
            }
            // It fails when its container ended this very moment.
            if probe.say(&(text + "\n")).await.is_ok() && probe.line().await.is_ok() {
                self.running.insert((source, addresses), probe);
            }
        }
        Ok(())
    }

    async fn account(&mut self, probe: Probe) -> anyhow::Result<()> {
        let source = probe.source.name.clone();
        self.hear(&source, &probe.finish().await?);
        Ok(())
    }

    /// Takes in what a probe printed: `success`, `unable` and `tally` lines.
    pub(crate) fn hear(&mut self, source: &str, lines: &[String]) {
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["success", ..] => {
                    self.first_success
                        .get_or_insert_with(|| format!("{source}: {line}"));
                }
                ["unable", ..] => {
                    self.unable.get_or_insert_with(|| format!("{source}: {line}"));
                }
                ["tally", attempts, ..] => self.attempts += attempts.parse::<u64>().unwrap_or(0),
                _ => {}
            }
        }
    }

    pub(crate) async fn verdict(mut self) -> anyhow::Result<Option<String>> {
        for (_, probe) in std::mem::take(&mut self.running) {
            self.account(probe).await?;
        }
        if let Some(success) = self.first_success {
            return Ok(Some(format!(
                "never_allowed {}: an exchange succeeded: {success}",
                self.flow
            )));
        }
        if let Some(unable) = self.unable {
            bail!("never_allowed {}: a probe could not run: {unable}", self.flow);
        }
        if self.attempts == 0 {
            bail!("never_allowed {}: not one attempt was made", self.flow);
        }
        Ok(None)
    }

    pub(crate) fn is_from(&self, key: &str) -> bool {
        self.flow.from == Party::Service(key.to_owned())
    }
}

/// A connection that is kept busy.
#[derive(Debug)]
pub(crate) struct Held {
    probe: Probe,
    pub(crate) flow: Fact,
    pub(crate) source: Source,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldReport {
    pub(crate) answers: u64,
    pub(crate) since_last: Duration,
    pub(crate) longest_gap: Duration,
    pub(crate) broken: Option<String>,
}

impl std::str::FromStr for HeldReport {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let ["report", answers, since, longest, broken] = words.as_slice() else {
            bail!("the held connection says {line:?}")
        };
        Ok(Self {
            answers: answers.parse()?,
            since_last: Duration::from_millis(since.parse()?),
            longest_gap: Duration::from_millis(longest.parse()?),
            broken: (*broken != "-").then(|| (*broken).to_owned()),
        })
    }
}

impl Held {
    /// One connection for each pair of replicas and each address that can be reached now; at least one for each source.
    pub(crate) async fn open(world: &World, case: &Case, flow: &Fact) -> anyhow::Result<Vec<Self>> {
        // Only what is allowed now can be opened; this also says why when it is not.
        if let Some(wrong) = first_wrong(world, case, &[(Expected::Allow, flow.clone())]).await? {
            bail!("the connection cannot be opened: {wrong}");
        }
        let keys = [&flow.from, &flow.to]
            .into_iter()
            .filter_map(|party| match party {
                Party::Service(key) => Some(key.as_str()),
                Party::External(_) | Party::Host => None,
            });
        let snapshot = Snapshot::take(world, keys.collect()).await?;
        let mut held = Vec::new();
        for family in families(case) {
            for (source, addresses) in targets(world, &snapshot, flow, family)? {
                let before = held.len();
                let mut reason = "no address".to_owned();
                let mut waiting = Vec::new();
                for address in addresses {
                    let (proto, port) = (flow.transport.to_string(), flow.dialled().to_string());
                    let words = ["hold", &proto, &address.to_string(), &port, "100"];
                    waiting.push(Probe::start(world, &source, &words)?);
                }
                for mut probe in waiting {
                    let line = probe.line().await?;
                    let words: Vec<&str> = line.split_whitespace().collect();
                    match words.as_slice() {
                        ["open", local, peer] => held.push(Self {
                            probe,
                            flow: flow.clone(),
                            source: source.clone(),
                            local: local.parse()?,
                            peer: peer.parse()?,
                        }),
                        _ => reason = line,
                    }
                }
                if held.len() == before {
                    bail!(
                        "no connection {flow} can be opened from {}: {reason}",
                        source.name
                    );
                }
            }
        }
        Ok(held)
    }

    pub(crate) async fn report(&mut self) -> anyhow::Result<HeldReport> {
        self.probe.say("report\n").await?;
        self.probe.line().await?.parse()
    }

    /// No reset, and never longer than the limit without an answer.
    pub(crate) async fn interruption(&mut self, limit: Duration) -> anyhow::Result<Option<String>> {
        let report = self.report().await?;
        let place = format!("{} from {} to {}", self.flow, self.source.name, self.peer);
        Ok(match report {
            HeldReport {
                broken: Some(reason), ..
            } => Some(format!("{place} broke: {reason}")),
            HeldReport { longest_gap, .. } if longest_gap > limit => {
                Some(format!("{place} had a gap of {} ms", longest_gap.as_millis()))
            }
            _ => None,
        })
    }

    /// Whether it still gets answers: one within a second from now.
    pub(crate) async fn alive(&mut self) -> anyhow::Result<bool> {
        let before = self.report().await?;
        let deadline = Instant::now() + Duration::from_millis(1200);
        while Instant::now() < deadline {
            let now = self.report().await?;
            if now.broken.is_some() {
                return Ok(false);
            }
            if now.answers > before.answers {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(false)
    }

    /// Dead means broken, or two seconds without an answer while requests go out.
    pub(crate) async fn dies_within(&mut self, within: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + within;
        loop {
            let report = self.report().await?;
            if report.broken.is_some() || report.since_last > Duration::from_secs(2) {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Watches a namespace for packets of one protocol.
#[derive(Debug)]
pub(crate) struct Watch {
    probe: Probe,
    pub(crate) place: String,
}

impl Watch {
    pub(crate) async fn start(
        world: &World,
        source: &Source,
        proto: Transport,
        ipv6: bool,
    ) -> anyhow::Result<Self> {
        let family = if ipv6 { "6" } else { "4" };
        let mut probe = Probe::start(world, source, &["watch", &proto.to_string(), family])?;
        let line = probe.line().await?;
        if line != "watching" {
            bail!("cannot watch {}: {line}", source.name);
        }
        Ok(Self {
            probe,
            place: source.name.clone(),
        })
    }

    /// Source address and the transport part in hex, for each packet so far.
    pub(crate) async fn packets(self) -> Vec<(String, String)> {
        let lines = self.probe.cut().await;
        let packet = |line: &String| {
            let mut words = line.split_whitespace();
            (words.next() == Some("packet")).then(|| {
                let mut next = || words.next().unwrap_or_default().to_owned();
                (next(), next())
            })
        };
        lines.iter().filter_map(packet).collect()
    }
}
