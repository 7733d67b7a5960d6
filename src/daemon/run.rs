//! The loop of `cofferdam run`: something is seen, the planner is told, its plan is carried out, the status is published.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, error, info, warn};

use super::control;
use super::drift::{self, Repairs};
use super::executor::{Kernel, NetworkOutcome, StepError, network_step};
use super::findings::Findings;
use super::lock::Lock;
use super::reader::{Finished, Object, Reader, Reading};
use super::source::{self, SourceError};
use super::status::{Passes, PolicyStatus, Refused, State, Status};
use super::{Refusal, reload};
use crate::docker::{Engine, EngineError, EngineEvent, subscribe};
use crate::fault;
use crate::inventory::{Endpoint, Lifecycle, Network};
use crate::kernel::generation::{GenerationEvent, GenerationWatch};
use crate::kernel::links::{LinkError, LinkEvent, LinkWatch, Links, Snapshot};
use crate::kernel::{bridge_netfilter, privilege};
use crate::plan::networks::{NetworkStep, PoolExhausted, Subject};
use crate::plan::{Doubt, KernelStep, Plan, Planner};
use crate::policy::{Loaded, Policy};
use crate::settings::Settings;

/// Everything is listed again after this long, whatever the events said.
const RESYNC: Duration = Duration::from_secs(60);
/// Link events that may wait; beyond them everything is listed again.
const LINK_EVENTS: usize = 4096;
/// The first pause after a failure; it doubles up to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// How long after a pass it is first looked whether kernel and engine still fit, and the longest pause between such looks.
const DOUBT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// Why a pass runs, for the log: the first cause that came since the last pass.
type Cause = &'static str;

/// Runs until SIGTERM or SIGINT. The rules stay when it ends.
///
/// # Errors
/// A [`Refusal`] to start.
pub async fn run(settings: Settings) -> Result<(), Refusal> {
    let (mut daemon, mut inputs) = Daemon::start(settings).await?;
    daemon.pass("start").await;
    loop {
        let cause = tokio::select! {
            biased;
            _ = inputs.terminate.recv() => break,
            _ = inputs.interrupt.recv() => break,
            // First what closes again: others may have opened our tables.
            Some(event) = inputs.generations.recv() => daemon.generation(&event),
            Some(event) = inputs.links.recv() => daemon.link_event(event).await,
            Some(reading) = inputs.readings.recv() => daemon.reading(reading),
            Some(event) = inputs.engine.recv() => daemon.engine_event(event),
            Some(done) = inputs.steps.recv() => daemon.step_done(done),
            Some(subject) = inputs.retries.recv() => daemon.retry(&subject),
            Some(()) = inputs.policy.recv() => daemon.reload("policy changed").await,
            _ = inputs.hangup.recv() => daemon.reload("SIGHUP").await,
            _ = inputs.tick.tick() => daemon.resync("slow timer").await,
        };
        // Whatever else is waiting belongs to the same pass; a listing, an attachment or a start makes many events.
        let cause = cause.or(daemon.drain(&mut inputs).await);
        if let Some(cause) = cause {
            daemon.pass(cause).await;
        }
    }
    info!("stopped: the rules stay; `cofferdam down` removes them");
    Ok(())
}

/// Everything that the loop waits for.
struct Inputs {
    links: mpsc::Receiver<LinkEvent>,
    engine: mpsc::Receiver<EngineEvent>,
    readings: mpsc::UnboundedReceiver<Finished>,
    steps: mpsc::UnboundedReceiver<StepDone>,
    retries: mpsc::UnboundedReceiver<Retry>,
    generations: mpsc::Receiver<GenerationEvent>,
    policy: mpsc::Receiver<()>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    tick: tokio::time::Interval,
}

/// An engine call that is over.
struct StepDone {
    step: NetworkStep,
    result: Result<NetworkOutcome, StepError>,
}

/// What is tried again after a pause.
enum Retry {
    Kernel,
    Listing,
    Doubts,
    Step(NetworkStep),
}

/// The rules could not be changed.
struct KernelFailure {
    reason: String,
    attempts: u32,
    /// Nothing is tried before, so that a hanging nft does not hang every pass.
    retry_at: Instant,
}

/// What does not fit although nothing is going on any more: an event was lost.
#[derive(Debug, Default)]
struct Doubts {
    /// Whether a look is due.
    due: bool,
    /// Looks in a row that found something.
    looks: u32,
    /// What the last look found.
    found: BTreeSet<Doubt>,
    /// What was still so after a listing: it is so, for example a port that somebody added by hand.
    accepted: BTreeSet<Doubt>,
}

struct Daemon {
    settings: Settings,
    planner: Planner,
    kernel: Kernel,
    reader: Reader,
    /// Events that came while everything was being listed: they are newer than the listing.
    held_back: Vec<EngineEvent>,
    /// Whether the engine was listed at least once: before that, rules of an earlier run are left alone.
    listed: bool,
    exhausted: Option<PoolExhausted>,
    /// The rules could not be changed: why, how often in a row, and until when nft is left alone.
    kernel_failure: Option<KernelFailure>,
    repairs: Repairs,
    /// br_netfilter is not there any more.
    without_bridge_netfilter: Option<String>,
    /// Engine calls that fail: how often in a row, and why.
    step_failures: BTreeMap<Subject, (u32, String)>,
    /// Why the engine cannot be reached. It stays until a listing has succeeded.
    engine_missing: Option<String>,
    /// Readings that failed since the last listing: how many, and why.
    reading_failures: (u32, String),
    relisting: bool,
    doubts: Doubts,
    passes: Passes,
    policy: PolicyStatus,
    findings: Findings,
    status: watch::Sender<Arc<Status>>,
    steps: mpsc::UnboundedSender<StepDone>,
    retries: mpsc::UnboundedSender<Retry>,
    _lock: Lock,
}

impl Daemon {
    async fn start(settings: Settings) -> Result<(Self, Inputs), Refusal> {
        privilege::require_net_admin()?;
        fault::point("before-lock");
        let lock = Lock::take()?;
        fault::point("after-lock");
        bridge_netfilter::ensure().await?;
        let kernel = Kernel::open()?;
        // One that cannot be reached is waited for, in the loop.
        if let Err(error @ EngineError::TooOld { .. }) = Engine::connect(&settings.docker_socket).await {
            return Err(error.into());
        }
        // Subscriptions first, listings after them: nothing falls between.
        let (links_sender, links) = mpsc::channel(LINK_EVENTS);
        let link_watch = LinkWatch::open().map_err(Refusal::kernel)?;
        tokio::spawn(drift::watch_links(link_watch, links_sender));
        let (generations_sender, generations) = mpsc::channel(LINK_EVENTS);
        let generation_watch = GenerationWatch::open().map_err(Refusal::kernel)?;
        tokio::spawn(drift::watch_generations(generation_watch, generations_sender));

        let (status, status_receiver) = watch::channel(Arc::new(Status::starting()));
        let socket = control::listen(&settings.control_socket).map_err(|error| {
            Refusal::system(
                format!("open the control socket {}", settings.control_socket.display()),
                error,
            )
        })?;
        tokio::spawn(control::serve(socket, status_receiver));
        fault::point("after-socket");

        let (reader, readings) = Reader::new();
        let (steps_sender, steps) = mpsc::unbounded_channel();
        let (retries_sender, retries) = mpsc::unbounded_channel();
        let listen = |kind| signal(kind).map_err(|error| Refusal::system("listen to signals", error));
        let mut tick = interval(RESYNC);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        let inputs = Inputs {
            links,
            engine: subscribe(settings.docker_socket.clone()),
            readings,
            steps,
            retries,
            generations,
            policy: reload::watch(&settings.policies),
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            tick,
        };
        let rights = settings.rights(Policy::default());
        let mut daemon = Self {
            planner: Planner::new(settings.options, settings.pools.clone(), rights),
            settings,
            kernel,
            reader,
            held_back: Vec::new(),
            listed: false,
            exhausted: None,
            kernel_failure: None,
            repairs: Repairs::default(),
            without_bridge_netfilter: None,
            step_failures: BTreeMap::new(),
            engine_missing: None,
            reading_failures: (0, String::new()),
            relisting: false,
            doubts: Doubts::default(),
            passes: Passes::default(),
            policy: PolicyStatus::default(),
            findings: Findings::default(),
            status,
            steps: steps_sender,
            retries: retries_sender,
            _lock: lock,
        };
        daemon.reload("start").await;
        daemon.list_links().await;
        if let Some(source) = daemon.planner.pool_collision() {
            return Err(Refusal::Pool { source });
        }
        Ok((daemon, inputs))
    }

    /// Takes what waits in any channel without waiting for more.
    async fn drain(&mut self, inputs: &mut Inputs) -> Option<Cause> {
        let mut first = None;
        loop {
            let cause = if let Ok(event) = inputs.links.try_recv() {
                self.link_event(event).await
            } else if let Ok(reading) = inputs.readings.try_recv() {
                self.reading(reading)
            } else if let Ok(event) = inputs.engine.try_recv() {
                self.engine_event(event)
            } else if let Ok(done) = inputs.steps.try_recv() {
                self.step_done(done)
            } else if let Ok(event) = inputs.generations.try_recv() {
                self.generation(&event)
            } else {
                return first;
            };
            first = first.or(cause);
        }
    }

    /// Reads the policy directory. An invalid policy is refused as a whole: the last good one stays in force.
    async fn reload(&mut self, cause: Cause) -> Option<Cause> {
        let directory = self.settings.policies.clone();
        let loaded = match tokio::task::spawn_blocking(move || load(&directory)).await {
            Ok(loaded) => loaded,
            Err(error) => {
                error!(%error, "the policy could not be read");
                return None;
            }
        };
        self.policy.directory = self.settings.policies.display().to_string();
        match loaded {
            Ok(loaded) => {
                fault::point("policy-loaded");
                let revision = loaded.revision.to_string();
                self.policy.refused = None;
                if self.policy.revision.as_ref() == Some(&revision) {
                    // The same again, perhaps after a faulty one: the status changes.
                    return Some(cause);
                }
                let (services, edges) = (loaded.policy.services.len(), loaded.policy.edges.len());
                info!(revision, services, edges, "policy accepted");
                self.policy.revision = Some(revision);
                self.planner.set_rights(self.settings.rights(loaded.policy));
            }
            Err(refused) => {
                if self.policy.refused.as_ref() != Some(&refused) {
                    error!(
                        faults = refused.faults,
                        first = refused.first,
                        "policy refused: the last good one stays in force; `cofferdam check` shows every fault"
                    );
                }
                self.policy.refused = Some(refused);
            }
        }
        Some(cause)
    }

    async fn list_links(&mut self) {
        if let Err(error) = observe_links(self.kernel.links(), &mut self.planner).await {
            warn!(error = %chain(&error), "the host's links could not be listed; the slow timer tries again");
        }
    }

    async fn resync(&mut self, cause: Cause) -> Option<Cause> {
        self.list_links().await;
        self.read(Object::Everything);
        self.without_bridge_netfilter = match bridge_netfilter::ensure().await {
            Ok(()) => None,
            Err(error) => Some(chain(&error)),
        };
        self.verify();
        self.reload(cause).await
    }

    async fn link_event(&mut self, event: LinkEvent) -> Option<Cause> {
        debug!(?event, "link event");
        match event {
            LinkEvent::Bridge(bridge) => self.planner.upsert_bridge(bridge.index, bridge.name),
            LinkEvent::BridgeGone(index) => self.planner.remove_bridge(index),
            LinkEvent::Port(port) => self.planner.upsert_port(port),
            LinkEvent::PortGone(index) => self.planner.remove_port(index),
            LinkEvent::Calls { bridge, calls } => {
                let changed = self.planner.observe_calls(bridge, calls) && !calls;
                self.repairs
                    .link_observed(bridge, "bridge netfilter's call", changed);
            }
            LinkEvent::Isolated { port, isolated } => {
                let changed = self.planner.observe_isolated(port, isolated);
                self.repairs.link_observed(
                    port,
                    "isolation",
                    changed && self.planner.wants_isolated(port) != isolated,
                );
            }
            LinkEvent::Resync => self.list_links().await,
        }
        Some("link event")
    }

    fn engine_event(&mut self, event: EngineEvent) -> Option<Cause> {
        debug!(?event, "engine event");
        match event {
            EngineEvent::Connected(engine) => {
                info!(version = engine.info().version, "connected to the engine");
                self.reader.connect(Some(engine));
                self.read(Object::Everything);
                Some("engine found")
            }
            EngineEvent::Disconnected { reason, retry_in } => {
                let retry_ms = u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX);
                // Each attempt ends here: only news is worth a line and a pass.
                if self.reader.engine().is_none() && self.engine_missing.as_ref() == Some(&reason) {
                    debug!(reason, retry_ms, "still no connection to the engine");
                    return None;
                }
                warn!(
                    reason,
                    retry_ms, "no connection to the engine: the rules stand, nothing new opens"
                );
                self.reader.connect(None);
                self.engine_missing = Some(reason);
                self.release_held_back();
                Some("engine lost")
            }
            EngineEvent::Resync => {
                self.read(Object::Everything);
                None
            }
            event if self.reader.is_listing() => {
                self.held_back.push(event);
                None
            }
            event => self.object_event(event),
        }
    }

    /// An event of one object: what it says for certain is taken over, the rest is read.
    fn object_event(&mut self, event: EngineEvent) -> Option<Cause> {
        match event {
            EngineEvent::ContainerCreated(id) => {
                self.read(Object::Container(id));
                None
            }
            EngineEvent::ContainerStarted(id) | EngineEvent::ContainerRenamed(id) => {
                self.read(Object::Container(id));
                None
            }
            EngineEvent::ContainerStopped(id) => {
                self.planner.set_lifecycle(&id, Lifecycle::Stopped);
                self.read(Object::Container(id));
                Some("container stopped")
            }
            EngineEvent::ContainerDestroyed(id) => {
                self.planner.remove_container(&id);
                Some("container removed")
            }
            EngineEvent::NetworkCreated(id) => {
                self.read(Object::Network(id));
                None
            }
            EngineEvent::NetworkDestroyed(id) => {
                let ours = self
                    .planner
                    .inventory()
                    .network(&id)
                    .is_some_and(Network::is_ours);
                self.planner.remove_network(&id);
                if ours {
                    // Stopped containers may still wish for it, and then they cannot start: only a listing shows that.
                    self.read(Object::Everything);
                }
                Some("network removed")
            }
            EngineEvent::EndpointConnected { network, container } => {
                if self.planner.inventory().container(&container).is_none() {
                    self.read(Object::Container(container));
                }
                self.read(Object::Network(network));
                None
            }
            EngineEvent::EndpointDisconnected { network, container } => {
                // The address may be another's already; whether the attachment stays, the container tells.
                self.planner
                    .set_endpoint(&container, &network, Endpoint::default(), self.planner.moment());
                self.read(Object::Container(container));
                Some("endpoint gone")
            }
            EngineEvent::Connected(_) | EngineEvent::Disconnected { .. } | EngineEvent::Resync => None,
        }
    }

    /// Reads an object; what it says counts for the ports that are there now.
    fn read(&mut self, object: Object) {
        self.reader.read(object, self.planner.moment());
    }

    /// Events that waited for a listing, in their order.
    fn release_held_back(&mut self) {
        for event in std::mem::take(&mut self.held_back) {
            self.object_event(event);
        }
    }

    fn reading(&mut self, finished: Finished) -> Option<Cause> {
        let (reading, began) = self.reader.finish(finished, self.planner.moment())?;
        match reading {
            Reading::Everything(listing) => {
                self.planner.reset(listing, began);
                self.listed = true;
                fault::point("listed");
                self.engine_missing = None;
                self.reading_failures = (0, String::new());
                self.release_held_back();
                Some("listing")
            }
            Reading::Container(_, Some(container)) => {
                self.planner.upsert_container(container, began);
                Some("container read")
            }
            Reading::Container(id, None) => {
                self.planner.remove_container(&id);
                Some("container gone")
            }
            Reading::Network(_, Some(snapshot)) => {
                let id = snapshot.network.id.clone();
                self.planner.upsert_network(snapshot.network);
                // Of those whose proof waited for this, the ones that are no longer on it.
                for container in self.planner.unconfirmed_on(&id) {
                    if !snapshot.endpoints.contains_key(&container) {
                        self.planner
                            .set_endpoint(&container, &id, Endpoint::default(), began);
                        self.read(Object::Container(container));
                    }
                }
                for (container, endpoint) in snapshot.endpoints {
                    self.planner.set_endpoint(&container, &id, endpoint, began);
                }
                let unknown: Vec<_> = self.planner.inventory().unknown_containers().cloned().collect();
                for container in unknown {
                    self.read(Object::Container(container));
                }
                Some("network read")
            }
            Reading::Network(id, None) => {
                self.planner.remove_network(&id);
                Some("network gone")
            }
            Reading::Failed(object, error) => {
                let (failures, last) = &mut self.reading_failures;
                *failures = failures.saturating_add(1);
                *last = chain(&error);
                warn!(
                    error = last,
                    ?object,
                    "the engine did not answer: everything will be listed"
                );
                let failures = *failures;
                // Whatever failed, a listing makes up for it. One at a time, with growing pauses.
                if !self.relisting {
                    self.relisting = true;
                    self.retry_later(Retry::Listing, failures);
                }
                if object == Object::Everything {
                    self.release_held_back();
                }
                Some("reading failed")
            }
        }
    }

    /// Looks, some time after a pass, whether what the kernel shows fits what the engine said. Where it does not and nothing
    /// happens any more, an event was lost: everything is listed again.
    fn look_for_doubts(&mut self) {
        let doubts = &mut self.doubts;
        doubts.due = false;
        let found = self.planner.doubts();
        let lasting = found
            .intersection(&doubts.found)
            .any(|it| !doubts.accepted.contains(it));
        doubts.accepted.retain(|it| found.contains(it));
        doubts.looks = if found.is_subset(&doubts.accepted) {
            0
        } else {
            doubts.looks + 1
        };
        doubts.found = found;
        if lasting && self.reader.engine().is_some() {
            debug!(doubts = ?self.doubts.found, "kernel and engine do not fit: an event was lost");
            // If it is still so after this, then it is so.
            self.doubts.accepted.clone_from(&self.doubts.found);
            self.read(Object::Everything);
        }
        if self.doubts.looks > 0 {
            self.look_later();
        }
    }

    fn look_later(&mut self) {
        if self.doubts.due || !self.listed {
            return;
        }
        self.doubts.due = true;
        let (first, last) = DOUBT;
        let pause = first
            .saturating_mul(1 << self.doubts.looks.saturating_sub(2).min(5))
            .min(last);
        let sender = self.retries.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            let _ = sender.send(Retry::Doubts);
        });
    }

    /// Others changed nftables: what they did to our tables is undone by replacing all of it, in one transaction.
    fn generation(&mut self, event: &GenerationEvent) -> Option<Cause> {
        let GenerationEvent::Made(generation) = event else {
            warn!("changes of nftables were lost: reading our tables");
            return self.verify();
        };
        let ours = self.kernel.made(generation);
        let touched = generation.touched?;
        // Before the tables are made, and while they wait to be replaced, nothing of theirs is worth a repair.
        if ours || !self.planner.is_applied() || self.kernel.undid(generation) {
            return None;
        }
        self.drift(touched.as_str(), Some((&generation.process, generation.pid)))
    }

    /// Reads our tables and has them replaced where they are not as they were left.
    fn verify(&mut self) -> Option<Cause> {
        if !self.planner.is_applied() {
            return None;
        }
        match self.kernel.difference(&self.planner) {
            Ok(None) => None,
            Ok(Some(what)) => self.drift(what, None),
            Err(error) => {
                warn!(error = %chain(&error), "our tables could not be read; the slow timer tries again");
                None
            }
        }
    }

    fn drift(&mut self, what: &str, culprit: Option<(&str, u32)>) -> Option<Cause> {
        let pause = self.repairs.tables_changed(what, culprit);
        self.planner.kernel_lost();
        // What was opened while the rules were others' must not live on as established.
        self.planner.request_sweep();
        // Whoever asks meanwhile is not told that all is well.
        self.publish();
        if pause.is_zero() {
            return Some("drift");
        }
        let sender = self.retries.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            let _ = sender.send(Retry::Kernel);
        });
        None
    }

    fn step_done(&mut self, done: StepDone) -> Option<Cause> {
        let StepDone { step, result } = done;
        match result {
            Ok(outcome) => {
                self.step_failures.remove(&step.subject());
                self.planner.network_step_done(&step);
                self.step_succeeded(&step, outcome);
            }
            Err(error) => {
                let entry = self.step_failures.entry(step.subject()).or_default();
                entry.0 += 1;
                entry.1 = error.to_string();
                let attempts = entry.0;
                warn!(%error, attempts, "an engine call failed");
                self.retry_later(Retry::Step(step), attempts);
            }
        }
        Some("engine call done")
    }

    fn step_succeeded(&mut self, step: &NetworkStep, outcome: NetworkOutcome) {
        match (step, outcome) {
            (
                NetworkStep::Create {
                    name, bridge, ipv4, ..
                },
                NetworkOutcome::Created(network),
            ) => {
                info!(network = name, %bridge, subnet = %ipv4, "network created");
                self.planner.upsert_network(network);
            }
            (
                NetworkStep::Attach {
                    network,
                    container,
                    ipv4,
                    ipv6,
                    ..
                },
                _,
            ) => {
                // Attaching a container that does not run tells nothing until its start; of a running one the event may
                // have been faster.
                let known = self.planner.inventory().container(container);
                let live = known
                    .and_then(|it| it.endpoints.get(network))
                    .is_some_and(Endpoint::is_live);
                if known.is_some() && !live {
                    let endpoint = Endpoint {
                        mac: None,
                        ipv4: Some(*ipv4),
                        ipv6: *ipv6,
                    };
                    let now = self.planner.moment();
                    self.planner.set_endpoint(container, network, endpoint, now);
                }
            }
            (NetworkStep::Detach { network, container }, _) => {
                self.planner.remove_endpoint(container, network);
            }
            (NetworkStep::Remove { network, name }, _) => {
                info!(network = name, "network removed");
                self.planner.remove_network(network);
            }
            (NetworkStep::Forget { name, container }, _) => {
                info!(network = name, %container, "a stopped container no longer waits for a network that is gone");
                self.planner.network_forgotten(container, name);
            }
            (NetworkStep::Stop { container, .. }, _) => {
                // The event of its end may come later; until then it would be stopped again.
                self.planner.set_lifecycle(container, Lifecycle::Stopped);
            }
            (NetworkStep::Create { .. }, _) => {}
        }
    }

    fn retry(&mut self, retry: &Retry) -> Option<Cause> {
        match retry {
            Retry::Kernel => {
                if !self.listed {
                    self.read(Object::Everything);
                }
            }
            Retry::Listing => {
                self.relisting = false;
                self.read(Object::Everything);
                return None;
            }
            Retry::Doubts => {
                self.look_for_doubts();
                return None;
            }
            Retry::Step(step) => {
                self.planner.network_step_done(step);
                // What it worked on may have changed: read it, so that the next plan is made from what is true.
                self.read(Object::Everything);
            }
        }
        Some("retry")
    }

    fn retry_later(&self, retry: Retry, attempts: u32) {
        let pause = pause(attempts);
        let sender = self.retries.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            let _ = sender.send(retry);
        });
    }

    /// Plans, carries out, publishes.
    async fn pass(&mut self, cause: Cause) {
        if !self.may_touch_the_kernel() {
            self.publish();
            return;
        }
        let started = Instant::now();
        let plan = self.planner.plan();
        if !plan.is_empty() {
            self.change_kernel(cause, &plan, started).await;
            self.start_engine_calls(&plan.networks);
        } else {
            // What could not be done is not wanted any more.
            self.kernel_failure = None;
        }
        for network in self.planner.unconfirmed() {
            self.read(Object::Network(network));
        }
        self.look_later();
        let wanted = |subject: &Subject| plan.networks.iter().any(|step| step.subject() == *subject);
        self.step_failures
            .retain(|subject, _| self.planner.is_busy(subject) || wanted(subject));
        self.exhausted = plan.exhausted;
        self.passes.count += 1;
        self.passes.last_cause = cause.to_owned();
        self.passes.last_elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.findings.observe(&self.planner);
        fault::point("before-publish");
        self.publish();
    }

    async fn change_kernel(&mut self, cause: Cause, plan: &Plan, started: Instant) {
        let needs_nft = matches!(plan.kernel, KernelStep::Structure(_) | KernelStep::Replace(_));
        let waiting = |failure: &KernelFailure| needs_nft && Instant::now() < failure.retry_at;
        let result = if self.kernel_failure.as_ref().is_some_and(waiting) {
            self.kernel.close(plan, &mut self.planner).map(|_| None)
        } else {
            self.kernel.carry_out(plan, &mut self.planner).await.map(Some)
        };
        match result {
            Ok(None) => {}
            Ok(Some(outcome)) => {
                self.kernel_failure = None;
                self.repairs.pass_done(&outcome.links);
                self.log_pass(cause, plan, outcome.flows_ended, started);
            }
            Err(failure) => {
                let attempts = self.kernel_failure.as_ref().map_or(0, |it| it.attempts) + 1;
                error!(error = %chain(&failure), cause, attempts, "the rules could not be changed: what stands stays");
                self.kernel_failure = Some(KernelFailure {
                    reason: format!("the rules could not be changed: {}", chain(&failure)),
                    attempts,
                    retry_at: Instant::now() + pause(attempts),
                });
                self.retry_later(Retry::Kernel, attempts);
            }
        }
    }

    /// Before the engine and the policy are known, rules of an earlier run are better than none: they stay. Without such
    /// rules a skeleton that is closed for Docker's bridges is.
    fn may_touch_the_kernel(&mut self) -> bool {
        let known = self.listed && self.policy.revision.is_some();
        let skeleton = self.engine_missing.is_some() && !self.kernel.has_tables().unwrap_or(true);
        known || self.planner.is_applied() || skeleton
    }

    fn start_engine_calls(&mut self, steps: &[NetworkStep]) {
        let Some(engine) = self.reader.engine() else {
            return;
        };
        if self.policy.revision.is_none() || !self.listed {
            return;
        }
        for step in steps {
            if let NetworkStep::Stop { name, reason, .. } = step {
                warn!(
                    container = name,
                    reason, "stopping a container that cannot be held to its rights"
                );
            }
            self.planner.network_step_started(step);
            let (engine, step, sender) = (engine.clone(), step.clone(), self.steps.clone());
            tokio::spawn(async move {
                let result = network_step(&engine, &step).await;
                let _ = sender.send(StepDone { step, result });
            });
        }
    }

    fn log_pass(&self, cause: Cause, plan: &Plan, flows_ended: usize, started: Instant) {
        let (kernel, steps) = match &plan.kernel {
            KernelStep::Nothing => ("nothing", 0),
            KernelStep::Elements(changes) => ("elements", changes.len()),
            KernelStep::Structure(steps) => ("structure", steps.len()),
            KernelStep::Replace(steps) => ("replace", steps.len()),
        };
        let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        info!(
            cause,
            kernel,
            steps,
            ended = plan.ended.len(),
            links = plan.links.len(),
            engine_calls = plan.networks.len(),
            flows_ended,
            elapsed_us,
            "pass"
        );
    }

    fn publish(&self) {
        let mut status = Status::starting();
        status.observe(&self.planner);
        status.policy = self.policy.clone();
        status.passes = self.passes.clone();
        status.passes.repairs = self.repairs.count;
        status.drift = self.repairs.last.clone();
        status.engine = self.reader.engine().map(|engine| engine.info().version.clone());
        status.reasons.extend(self.repairs.pending());
        status
            .reasons
            .extend(self.kernel_failure.iter().map(|it| it.reason.clone()));
        status
            .reasons
            .extend(self.without_bridge_netfilter.iter().cloned());
        if let Some(refused) = &self.policy.refused {
            status.reasons.push(format!(
                "the policy has {} faults, first: {}",
                refused.faults, refused.first
            ));
        }
        status
            .reasons
            .extend(self.exhausted.iter().map(ToString::to_string));
        status
            .reasons
            .extend(self.step_failures.values().map(|(_, error)| error.clone()));
        match (&self.engine_missing, &self.reading_failures) {
            (Some(reason), _) if self.reader.engine().is_none() => {
                status
                    .reasons
                    .push(format!("no connection to the engine: {reason}"));
            }
            (_, (failures, last)) if *failures > 0 => {
                status
                    .reasons
                    .push(format!("the engine could not be read: {last}"));
            }
            _ => {}
        }
        if let Some(since) = self.reader.is_late() {
            let seconds = since.as_secs();
            status
                .reasons
                .push(format!("the engine has not answered a listing for {seconds} s"));
        }
        status.settled = self.planner.busy().next().is_none() && !self.reader.is_busy();
        status.state = if self.reader.engine().is_none() {
            State::Waiting
        } else if !self.listed || self.policy.revision.is_none() && status.reasons.is_empty() {
            State::Starting
        } else if status.reasons.is_empty() && self.planner.is_applied() {
            State::Enforcing
        } else {
            State::Degraded
        };
        // Nobody may be asking.
        self.status.send_replace(Arc::new(status));
    }
}

/// How long to wait after so many failures in a row.
fn pause(attempts: u32) -> Duration {
    RETRY.0.saturating_mul(1 << attempts.min(10)).min(RETRY.1)
}

/// Lists the host's bridges, ports and routes into the planner.
pub(super) async fn observe_links(links: &Links, planner: &mut Planner) -> Result<(), LinkError> {
    let Snapshot {
        bridges,
        ports,
        calling,
        isolated,
    } = links.list().await?;
    let ours: BTreeSet<u32> = bridges
        .iter()
        .filter(|it| it.name.as_str().starts_with("cfd-"))
        .map(|it| it.index)
        .collect();
    let bridges = bridges
        .into_iter()
        .map(|bridge| (bridge.index, bridge.name))
        .collect();
    planner.reset_links(
        bridges,
        ports.into_iter().map(|port| (port.index, port)).collect(),
    );
    planner.reset_link_settings(calling, isolated);
    let others = links.routes().await?.into_iter().filter(|(net, interface)| {
        // The default route overlaps everything and takes nothing.
        net.prefix_len() > 0 && interface.is_none_or(|interface| !ours.contains(&interface))
    });
    planner.set_routes(others.map(|(net, _)| net).collect());
    Ok(())
}

/// Reads and validates the policy directory.
fn load(directory: &Path) -> Result<Loaded, Refused> {
    let unreadable = |error: SourceError| Refused {
        revision: None,
        faults: 1,
        first: chain(&error),
    };
    let sources = source::read(&[directory]).map_err(unreadable)?;
    sources.load().map_err(|faults| Refused {
        revision: Some(sources.revision().to_string()),
        faults: faults.iter().count(),
        first: faults.iter().next().map(ToString::to_string).unwrap_or_default(),
    })
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
