//! One round: every container is shown by the loop and judged. What an inspection tells of a container's confinement never changes, so
//! each is inspected once, and what is the same for many is kept once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::look::{Look, Looked};
use super::report::{Draft, Report};
use crate::audit::{Baseline, Ground, Registries, of_engine};
use crate::daemon::chain;
use crate::docker::{BoundVolumes, Engine};
use crate::inventory::{ContainerId, EnginePosture, Posture};
use crate::policy::count;
use crate::settings::Settings;

/// Between two looks: the loop has other things to do.
const PACE: Duration = Duration::from_millis(2);
/// An inspection waits for the start of its container; the next round asks again.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Auditor {
    socket: PathBuf,
    baseline: Option<PathBuf>,
    registries: Option<Registries>,
    looks: mpsc::Sender<Look>,
    postures: Postures,
}

impl Auditor {
    pub(super) fn new(settings: &Settings, looks: mpsc::Sender<Look>) -> Self {
        Self {
            socket: settings.docker_socket.clone(),
            baseline: settings.audit_baseline.clone(),
            registries: settings.allowed_registries.clone(),
            looks,
            postures: Postures::default(),
        }
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// Why the engine or the loop does not answer.
    pub(super) async fn round(&mut self) -> Result<Report, String> {
        let mut inspector = Inspector {
            engine: Engine::connect(&self.socket).await.map_err(|it| chain(&it))?,
            volumes: None,
        };
        let asked = inspector.engine.engine_posture().await;
        let engine = asked.map_err(|error| chain(&error))?;
        let now = Timestamp::now();
        let mut remarks = Vec::new();
        let baseline = match self.baseline.as_deref().map(super::baseline).transpose() {
            Ok(baseline) => baseline.unwrap_or_default(),
            Err(why) => {
                remarks.push(format!("{why}: nothing is accepted"));
                Baseline::default()
            }
        };
        let mut draft = Draft::new(now, baseline.judging(now.to_zoned(TimeZone::UTC).date()));
        draft.take(of_engine(&engine));
        let (mut after, mut unread, mut has_policy) = (None, 0, true);
        loop {
            let Looked { containers, rights } = self.look(after).await?;
            has_policy &= rights.is_some();
            let ground = Ground {
                engine: &engine,
                rights: rights.as_deref(),
                registries: self.registries.as_ref(),
            };
            for sight in &containers {
                match self.postures.of(&sight.container.id, &mut inspector).await? {
                    Reading::Is(posture) => draft.container(sight, &ground, posture.as_deref()),
                    Reading::Gone => {}
                    Reading::Late => unread += 1,
                }
            }
            let Some(last) = containers.last() else { break };
            after = Some(last.container.id.clone());
            sleep(PACE).await;
        }
        self.postures.forget_others();
        remarks.extend(self::remarks(&engine, has_policy, unread));
        Ok(draft.finish(remarks))
    }

    async fn look(&self, after: Option<ContainerId>) -> Result<Looked, String> {
        let gone = || "the daemon is ending".to_owned();
        let (answer, looked) = oneshot::channel();
        let look = Look { after, answer };
        self.looks.send(look).await.map_err(|_| gone())?;
        looked
            .await
            .map_err(|_| "the engine's containers are not known yet".to_owned())
    }
}

/// What the reader of the report is to know beside.
fn remarks(engine: &EnginePosture, has_policy: bool, unread: usize) -> Vec<String> {
    let mut remarks = Vec::new();
    if engine.userland_proxy.is_none() {
        remarks.push("the settings of the engine's process are out of reach: whether it uses the userland proxy is not known".to_owned());
    }
    if !has_policy {
        remarks.push("there is no policy yet: published ports are not compared with it".to_owned());
    }
    if unread > 0 {
        remarks.push(format!(
            "{} not looked at, since the engine did not answer in time",
            count(unread, "container")
        ));
    }
    remarks
}

/// How containers are set, as far as that was asked.
#[derive(Debug, Default)]
struct Postures {
    /// Those of the last round, of which every one that is used goes over to this round's.
    known: BTreeMap<ContainerId, Option<Arc<Posture>>>,
    seen: BTreeMap<ContainerId, Option<Arc<Posture>>>,
    /// Each different one, once.
    distinct: BTreeSet<Arc<Posture>>,
}

/// What became of asking for one.
enum Reading {
    /// `None`: it cannot be understood.
    Is(Option<Arc<Posture>>),
    /// There is no such container any more.
    Gone,
    Late,
}

impl Postures {
    async fn of(&mut self, id: &ContainerId, inspector: &mut Inspector) -> Result<Reading, String> {
        let posture = match self.known.remove(id) {
            Some(known) => known,
            None => match timeout(PATIENCE, inspector.inspect(id)).await {
                Ok(read) => match read? {
                    Some(read) => read.map(|posture| self.once(posture)),
                    None => return Ok(Reading::Gone),
                },
                Err(_) => {
                    debug!(container = %id, "its inspection takes long: the next round asks again");
                    return Ok(Reading::Late);
                }
            },
        };
        self.seen.insert(id.clone(), posture.clone());
        Ok(Reading::Is(posture))
    }

    fn once(&mut self, posture: Posture) -> Arc<Posture> {
        if let Some(same) = self.distinct.get(&posture) {
            return Arc::clone(same);
        }
        let new = Arc::new(posture);
        self.distinct.insert(Arc::clone(&new));
        new
    }

    /// After a whole round: what was not seen is gone.
    fn forget_others(&mut self) {
        self.known = std::mem::take(&mut self.seen);
        self.distinct.retain(|posture| Arc::strong_count(posture) > 1);
    }
}

/// Asks the engine.
struct Inspector {
    engine: Engine,
    /// Asked for when the first container of the round is inspected.
    volumes: Option<BoundVolumes>,
}

impl Inspector {
    /// `None`: there is no such container.
    async fn inspect(&mut self, id: &ContainerId) -> Result<Option<Option<Posture>>, String> {
        let volumes = match &mut self.volumes {
            Some(volumes) => volumes,
            none => none.insert(self.engine.bound_volumes().await.map_err(|error| chain(&error))?),
        };
        self.engine
            .posture(id, volumes)
            .await
            .map_err(|error| chain(&error))
    }
}
