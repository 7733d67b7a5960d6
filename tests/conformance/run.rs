//! One case from its topology to its last step, and a clean table after it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::action::{Action, Assertion};
use crate::background::{Held, NeverAllowed};
use crate::case::{Case, Expect, Step};
use crate::daemon::{Daemon, Life};
use crate::engine::Lab;
use crate::explain::disagreement;
use crate::fact::Fact;
use crate::judge::drift;
use crate::perform::{Forged, SentError};
use crate::probes::{Expected, first_wrong};
use crate::report::Verdict;
use crate::translate::Translator;
use crate::world::{self, World};

/// What a case has on its table.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) case: &'a Case,
    pub(crate) world: World,
    pub(crate) daemon: Daemon,
    pub(crate) translator: Translator,
    /// Connections opened by actions, by id; they outlive their step.
    pub(crate) held: BTreeMap<String, Vec<Held>>,
    /// These two live for one step.
    pub(crate) uninterrupted: Vec<Held>,
    pub(crate) never_allowed: Vec<NeverAllowed>,
    pub(crate) forged: Vec<Forged>,
    pub(crate) errors: Vec<SentError>,
    pub(crate) changed_policy: Option<Instant>,
    /// The last drift that the daemon had seen when the step began.
    pub(crate) drift_before: Option<Value>,
    /// When the last action that started containers was done.
    pub(crate) started: Option<Instant>,
    /// Milliseconds until the daemon said that it was done, and stayed so for a moment: never less than it took.
    pub(crate) samples: BTreeMap<Measured, Vec<f64>>,
}

/// What a latency is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measured {
    /// The change of the policy's files.
    Policy,
    /// The start of containers.
    Start,
}

/// Whether the daemon under test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum With {
    Daemon,
    NoDaemon,
}

/// Something done to a case's world once it stands: for the runner's test of itself.
pub(crate) type Sabotage = fn(&World) -> futures_util::future::BoxFuture<'_, anyhow::Result<()>>;

pub(crate) async fn judge(
    lab: &Lab,
    case: &Case,
    with: With,
    logs: &Path,
    sabotage: Option<Sabotage>,
) -> Verdict {
    let log = logs.join(format!("{}.log", case.id));
    let outcome = play(lab, case, with, &log, sabotage).await;
    match outcome {
        Ok(None) => {
            std::fs::remove_file(&log).ok();
            Verdict::Passed
        }
        Ok(Some(reason)) => Verdict::Failed(reason),
        Err(error) => Verdict::Failed(format!("{error:#}")),
    }
}

async fn play(
    lab: &Lab,
    case: &Case,
    with: With,
    log: &Path,
    sabotage: Option<Sabotage>,
) -> anyhow::Result<Option<String>> {
    world::clear(lab).await?;
    world::scrub(lab).await?;
    let mut translator = Translator::of(case);
    let files = translator.files(&case.policy)?;
    let mut daemon = Daemon::prepare(lab, log.to_owned(), with == With::NoDaemon)?;
    daemon.write(&files).await?;
    let world = World::build(lab, case).await?;
    let mut stage = Stage {
        case,
        world,
        daemon,
        translator,
        held: BTreeMap::new(),
        uninterrupted: Vec::new(),
        never_allowed: Vec::new(),
        forged: Vec::new(),
        errors: Vec::new(),
        changed_policy: None,
        drift_before: None,
        started: None,
        samples: BTreeMap::new(),
    };
    stage.daemon.start()?;
    let mut outcome = stage.play(sabotage).await;
    let cleaned = stage.clean().await;
    if matches!(outcome, Ok(None))
        && let Err(error) = cleaned
    {
        outcome = Err(error);
    }
    outcome
}

impl Stage<'_> {
    async fn play(&mut self, sabotage: Option<Sabotage>) -> anyhow::Result<Option<String>> {
        let within = Duration::from_millis(self.case.defaults.converge_ms);
        let case = self.case;
        let opening = Step::of(case.expect.clone());
        self.daemon.converge(within).await?;
        if let Some(sabotage) = sabotage {
            sabotage(&self.world).await?;
        }
        if let Some(reason) = self.step(&opening).await? {
            return Ok(Some(reason));
        }
        for (index, step) in case.steps.iter().enumerate() {
            let place = format!("step {}: ", index + 1);
            match self.step(step).await {
                Ok(None) => {}
                Ok(Some(reason)) => return Ok(Some(place + &reason)),
                Err(error) => return Err(error.context(format!("step {}", index + 1))),
            }
        }
        Ok(None)
    }

    async fn step(&mut self, step: &Step) -> anyhow::Result<Option<String>> {
        let within = Duration::from_millis(step.within_ms.unwrap_or(self.case.defaults.converge_ms));
        self.drift_before = match self.follows() {
            true => self.daemon.status().await.ok().as_ref().and_then(drift),
            false => None,
        };
        self.start_background(&step.expect).await?;
        for action in &step.actions {
            self.perform(action, within).await?;
            if starts_containers(action) {
                self.started = Some(Instant::now());
            }
            self.follow().await?;
        }
        self.settle(within).await?;
        let case = self.case;
        for assertion in &step.expect.assertions {
            if let Some(reason) = self.judge_first(assertion).await? {
                return Ok(Some(reason));
            }
        }
        self.follow().await?;
        let facts = facts(&step.expect);
        if let Some(reason) = first_wrong(&self.world, case, &facts).await? {
            return Ok(Some(reason));
        }
        // Explain speaks of what is in force, which only a controller at work can say.
        if self.follows()
            && !self.daemon.nft_broken
            && let Some(reason) = disagreement(&self.world, case, &self.daemon.files, &facts).await?
        {
            return Ok(Some(reason));
        }
        for assertion in &step.expect.assertions {
            if let Some(reason) = self.judge(assertion, within).await? {
                return Ok(Some(reason));
            }
        }
        self.judge_background().await
    }

    async fn start_background(&mut self, expect: &Expect) -> anyhow::Result<()> {
        for assertion in &expect.assertions {
            match assertion {
                Assertion::NeverInterrupted { flow, .. } => {
                    self.uninterrupted
                        .extend(Held::open(&self.world, self.case, flow).await?);
                }
                Assertion::NeverAllowed { flow, rate_hz, .. } => {
                    self.never_allowed.push(NeverAllowed::new(flow.clone(), *rate_hz));
                }
                _ => {}
            }
        }
        self.follow().await
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        for never in &mut self.never_allowed {
            never.follow(&self.world, self.case).await?;
        }
        Ok(())
    }

    /// Waits until every container runs and the daemon has done what the step asks for.
    async fn settle(&mut self, within: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut missing = None;
            for key in self.world.service_keys() {
                if let Err(error) = self.world.running(&key).await {
                    missing = Some(error);
                    break;
                }
            }
            match missing {
                None => break,
                Some(error) if begun.elapsed() > within => return Err(error),
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        self.follow().await?;
        self.daemon
            .converge(
                within
                    .saturating_sub(begun.elapsed())
                    .max(Duration::from_millis(500)),
            )
            .await?;
        for (since, measured) in [
            (self.changed_policy.take(), Measured::Policy),
            (self.started.take(), Measured::Start),
        ] {
            let took = since.map(|since| since.elapsed().as_secs_f64() * 1000.0);
            self.samples.entry(measured).or_default().extend(took);
        }
        Ok(())
    }

    /// Takes everything down, and finds out whether the product leaves anything behind.
    async fn clean(mut self) -> anyhow::Result<()> {
        self.held.clear();
        if matches!(self.daemon.life, Life::Running | Life::Paused) {
            self.daemon.stop(nix::sys::signal::Signal::SIGTERM).await?;
        }
        self.daemon.down().await?;
        let lab = self.world.lab.clone();
        if self.daemon.life != Life::None {
            let left = world::leftovers(&lab).await?;
            if !left.is_empty() {
                anyhow::bail!("`cofferdam down` left behind: {}", left.join(", "));
            }
        }
        drop(self);
        world::clear(&lab).await
    }
}

fn facts(expect: &Expect) -> Vec<(Expected, Fact)> {
    let with = |expected| move |fact: &Fact| (expected, fact.clone());
    expect
        .allow
        .iter()
        .map(with(Expected::Allow))
        .chain(expect.deny.iter().map(with(Expected::Deny)))
        .collect()
}

fn starts_containers(action: &Action) -> bool {
    matches!(
        action,
        Action::StartService(_)
            | Action::RecreateService(_)
            | Action::RestartService(_)
            | Action::Scale(_)
            | Action::RollingUpdate(_)
            | Action::BurstStart(_)
    )
}
