//! The loop of `cofferdam run`: something is seen, the planner is told, its plan is carried out, the status is published.

mod pass;
mod policy;
mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until};
use tracing::{debug, error, info, warn};

use crate::daemon::control::{self, InForce};
use crate::daemon::drift::{self, Repairs};
use crate::daemon::endings::{Ended, Endings, Report, host_addresses, permits};
use crate::daemon::executor::{Kernel, NetworkOutcome, StepError, link_step, link_step_done, network_step};
use crate::daemon::expiry::Expiry;
use crate::daemon::findings::Findings;
use crate::daemon::flows::{self, FlowLog, Informant, Update};
use crate::daemon::git::{self, Repository, Verdict, Watch};
use crate::daemon::http;
use crate::daemon::lock::Lock;
use crate::daemon::manager::Manager;
use crate::daemon::metrics::{Awaited, Bound, Measures};
use crate::daemon::posture::{self, look::Look};
use crate::daemon::reader::{Finished, Object, Reader, Reading};
use crate::daemon::source::{self, SourceError};
use crate::daemon::state::{AuditSince, Good, Keep, Keeper, Kept, Origin, Store};
use crate::daemon::status::{
    GitStatus, LastGood, Passes, PolicyStatus, Refused, RefusedCommit, State, Status,
};
use crate::daemon::told::Told;
use crate::daemon::usage::Usage;
use crate::daemon::{Refusal, chain, reload, status};
use crate::docker::{Arrived, Engine, EngineError, EngineEvent, subscribe};
use crate::fault;
use crate::inventory::{Changes, ContainerId, Endpoint, Lifecycle, Listing, Network};
use crate::kernel::conntrack::Conntrack;
use crate::kernel::generation::{GenerationEvent, GenerationWatch};
use crate::kernel::links::{LinkError, LinkEvent, LinkWatch, Links, Snapshot};
use crate::kernel::{bridge_netfilter, privilege};
use crate::model::{OnUnenforceable, Rights, Standing};
use crate::plan::networks::{NetworkStep, PoolExhausted, Subject};
use crate::plan::{Doubt, KernelStep, LinkStep, Moment, Plan, Planner};
use crate::policy::{Loaded, Policy, SourceFile};
use crate::settings::Settings;

/// Everything is listed again after this long, whatever the events said, and after this much more for each so many containers:
/// what it costs us and the engine grows with them.
const RESYNC: Duration = Duration::from_secs(60);
const RESYNC_CONTAINERS: usize = 2000;
/// Link events that may wait; beyond them everything is listed again.
const LINK_EVENTS: usize = 4096;
/// The first pause after a failure; it doubles up to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// How long after a pass it is first looked whether kernel and engine still fit, and the longest pause between such looks.
const DOUBT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// The networks of a port that no endpoint explains are read again after such a pause, and for how long. Engine 28 names the container
/// behind a port a few milliseconds after the port is up, and tells of it (`connect`) 17 ms later, shortly before its first instruction.
const UNEXPLAINED: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// While there is always something to do, the status is published this often.
const UNPUBLISHED: Duration = Duration::from_millis(200);
/// The status grows with the host: making it takes no more than one part in so many of the time.
const STATUS_SHARE: u32 = 20;
/// But it is never older than this: where the machine is busy, making it may take long for other reasons.
const LONGEST_REST: Duration = Duration::from_secs(1);

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
        daemon.tell_manager();
        let cause = tokio::select! {
            biased;
            _ = inputs.terminate.recv() => break,
            _ = inputs.interrupt.recv() => break,
            // First what closes again: others may have opened our tables.
            Some(event) = inputs.generations.recv() => daemon.generation(&event),
            Some(event) = inputs.links.recv() => daemon.link_event(event).await,
            Some(report) = inputs.endings.recv() => daemon.flows_report(report),
            Some(reading) = inputs.readings.recv() => daemon.reading(reading),
            Some(event) = inputs.engine.recv() => daemon.engine_event(event),
            Some(done) = inputs.links_done.recv() => daemon.link_done(done),
            Some(done) = inputs.steps.recv() => daemon.step_done(done),
            Some(subject) = inputs.retries.recv() => daemon.retry(&subject),
            Some(kept) = inputs.kept.recv() => daemon.kept(kept),
            Some(()) = inputs.policy.recv() => daemon.reload("policy changed").await,
            Some(report) = inputs.repository.recv() => daemon.repository(report),
            _ = inputs.hangup.recv() => {
                daemon.manager.reloading();
                let cause = daemon.hangup().await;
                daemon.manager.reloaded();
                cause
            }
            () = sleep(daemon.expiry.next(Timestamp::now())) => daemon.end_edges(),
            () = sleep_until(daemon.resync_at) => daemon.resync("slow timer").await,
            Some(look) = inputs.looks.recv() => {
                daemon.show(look);
                None
            }
            () = sleep(daemon.manager.next_beat()) => None,
            () = sleep(daemon.until_publishing()), if daemon.unpublished => {
                daemon.publish();
                None
            }
        };
        // Whatever else is waiting belongs to the same pass; a listing, an attachment or a start makes many events.
        let cause = cause.or(daemon.drain(&mut inputs).await);
        if let Some(cause) = cause {
            daemon.pass(cause).await;
        }
    }
    daemon.manager.stopping();
    daemon.keeper.finish().await;
    info!("stopped: the rules stay; `cofferdam down` removes them");
    Ok(())
}

/// Everything that the loop waits for.
struct Inputs {
    links: mpsc::Receiver<LinkEvent>,
    engine: mpsc::Receiver<Arrived>,
    endings: mpsc::UnboundedReceiver<Report>,
    readings: mpsc::UnboundedReceiver<Finished>,
    steps: mpsc::UnboundedReceiver<StepDone>,
    links_done: mpsc::UnboundedReceiver<LinkDone>,
    retries: mpsc::UnboundedReceiver<Retry>,
    generations: mpsc::Receiver<GenerationEvent>,
    kept: mpsc::UnboundedReceiver<Kept>,
    policy: mpsc::Receiver<()>,
    repository: mpsc::Receiver<git::Report>,
    looks: mpsc::Receiver<Look>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// An engine call that is over.
struct StepDone {
    step: NetworkStep,
    result: Result<NetworkOutcome, StepError>,
}

/// A step on a bridge or port that is over.
struct LinkDone {
    step: LinkStep,
    result: Result<(), LinkError>,
}

/// What is tried again after a pause.
enum Retry {
    Kernel,
    Listing,
    Doubts,
    Step(NetworkStep),
    Port(u32),
}

/// Something in the kernel could not be changed.
struct Failure {
    reason: String,
    /// How often in a row.
    attempts: u32,
    /// It is not tried before, so that a hanging nft does not hang every pass.
    retry_at: Instant,
}

impl Failure {
    /// One more after those before, if any.
    fn after(before: Option<&Self>, what: &str, error: &dyn std::error::Error) -> Self {
        let attempts = before.map_or(0, |it| it.attempts) + 1;
        Self {
            reason: format!("{what}: {}", chain(error)),
            attempts,
            retry_at: Instant::now() + pause(attempts),
        }
    }

    /// Whether it is too early to try again.
    fn is_fresh(&self) -> bool {
        Instant::now() < self.retry_at
    }
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
    /// The events since the first of the listings under way began: they are newer than what it says.
    meanwhile: Vec<EngineEvent>,
    /// Ports whose networks are read until an endpoint explains them, and since when.
    unexplained: BTreeMap<u32, Instant>,
    /// Whether the engine was listed at least once: before that, rules of an earlier run are left alone.
    listed: bool,
    /// Whether what a listing needed for a moment was not given back to the system yet.
    needs_giving_back: bool,
    /// Whether one of those listings asked for each container what it may do.
    knows_powers: bool,
    exhausted: Option<PoolExhausted>,
    endings: Endings,
    /// The rules could not be changed: until then nft is left alone.
    kernel_failure: Option<Failure>,
    /// Connections could not be ended: their addresses stay closed.
    flows_failure: Option<Failure>,
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
    /// When everything is listed again.
    resync_at: tokio::time::Instant,
    doubts: Doubts,
    passes: Passes,
    policy: PolicyStatus,
    expiry: Expiry,
    store: Store,
    keeper: Keeper,
    /// Why the last good policy is not used although there is need of one.
    state_damaged: Option<String>,
    /// What could not be written to the state directory, and why.
    unkept: BTreeMap<&'static str, String>,
    audit: AuditSince,
    /// The repository, where the policies come from one.
    watch: Option<Watch>,
    findings: Findings,
    flows: FlowLog,
    /// Learns whose each packet is.
    informant: Informant,
    /// Whether a pass was made since the status was published, and when that was.
    unpublished: bool,
    published: Instant,
    /// For how long from then on it is not made again.
    rest: Duration,
    status: watch::Sender<Arc<Status>>,
    in_force: watch::Sender<Arc<InForce>>,
    /// Those of the planner, as they are told to others.
    rights: Arc<Rights>,
    /// What is wrong with the HTTP server, where there is one.
    http: Option<http::Trouble>,
    measures: Measures,
    awaited: Awaited,
    /// systemd, where it waits for us.
    manager: Manager,
    steps: mpsc::UnboundedSender<StepDone>,
    /// For steps on bridges and ports, which may take long.
    links: Arc<Links>,
    link_steps: mpsc::UnboundedSender<LinkDone>,
    retries: mpsc::UnboundedSender<Retry>,
    _lock: Lock,
}

impl Daemon {
    async fn start(settings: Settings) -> Result<(Self, Inputs), Refusal> {
        privilege::require_net_admin()?;
        fault::point("before-lock");
        let lock = Lock::take()?;
        fault::point("after-lock");
        let store = Store::new(&settings.state_directory);
        store.require_known()?;
        if let Some(git) = &settings.git {
            git::require(git).await?;
        }
        bridge_netfilter::ensure().await?;
        let kernel = Kernel::open()?;
        let conntrack = Conntrack::open().map_err(Refusal::kernel)?;
        let (endings, ending_reports) = Endings::start(conntrack)
            .map_err(|error| Refusal::system("start the thread that ends connections", error))?;
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
        let (in_force, in_force_receiver) = watch::channel(Arc::new(InForce::default()));
        let flows = FlowLog::new(Timestamp::now());
        let informant = flows::start(flows.clone(), settings.options.nflog_group)
            .map_err(|error| Refusal::system("start the thread that tells denied flows", error))?;
        let measures = Measures::default();
        let (looks_sender, looks) = mpsc::channel(1);
        let audited = posture::start(&settings, looks_sender)
            .map_err(|error| Refusal::system("start the thread that looks how the host is set", error))?;
        let told = Told {
            status: status_receiver,
            policy: in_force_receiver,
            flows: flows.clone(),
            usage: Usage::default(),
            measures: measures.clone(),
            audited,
        };
        tokio::spawn(told.usage.clone().keep());
        let http = match &settings.http {
            Some(http) => Some(
                http::start(http.clone(), told.clone())
                    .map_err(|error| Refusal::system("start the HTTP server's thread", error))?,
            ),
            None => None,
        };
        tokio::spawn(control::serve(socket, told));
        fault::point("after-socket");

        let (reader, readings) = Reader::new();
        let (steps_sender, steps) = mpsc::unbounded_channel();
        let (link_steps_sender, links_done) = mpsc::unbounded_channel();
        let (retries_sender, retries) = mpsc::unbounded_channel();
        let (keeper, kept) = Keeper::start(store.clone());
        let listen = |kind| signal(kind).map_err(|error| Refusal::system("listen to signals", error));
        let mut inputs = Inputs {
            links,
            engine: subscribe(settings.docker_socket.clone()),
            endings: ending_reports,
            readings,
            steps,
            links_done,
            retries,
            generations,
            kept,
            policy: match settings.git {
                Some(_) => mpsc::channel(1).1,
                None => reload::watch(&settings.policies),
            },
            // Until it is known which commit is in force.
            repository: mpsc::channel(1).1,
            looks,
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        };
        let rights = settings.rights(Policy::default());
        let mut daemon = Self {
            rights: Arc::new(rights.clone()),
            planner: Planner::new(settings.options, settings.pools.clone(), rights),
            settings,
            kernel,
            reader,
            meanwhile: Vec::new(),
            unexplained: BTreeMap::new(),
            listed: false,
            needs_giving_back: false,
            knows_powers: false,
            exhausted: None,
            endings,
            kernel_failure: None,
            flows_failure: None,
            repairs: Repairs::default(),
            without_bridge_netfilter: None,
            step_failures: BTreeMap::new(),
            engine_missing: None,
            reading_failures: (0, String::new()),
            relisting: false,
            resync_at: tokio::time::Instant::now() + RESYNC,
            doubts: Doubts::default(),
            passes: Passes::default(),
            policy: PolicyStatus::default(),
            expiry: Expiry::default(),
            store,
            keeper,
            state_damaged: None,
            unkept: BTreeMap::new(),
            audit: AuditSince::default(),
            watch: None,
            findings: Findings::default(),
            flows,
            informant,
            unpublished: false,
            published: Instant::now(),
            rest: Duration::ZERO,
            status,
            in_force,
            http,
            measures,
            awaited: Awaited::default(),
            manager: Manager::start()
                .map_err(|error| Refusal::system("start the thread that tells systemd", error))?,
            steps: steps_sender,
            links: Arc::new(Links::open().map_err(Refusal::kernel)?),
            link_steps: link_steps_sender,
            retries: retries_sender,
            _lock: lock,
        };
        daemon.first_policy(&mut inputs).await;
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
            } else if let Ok(report) = inputs.endings.try_recv() {
                self.flows_report(report)
            } else if let Ok(reading) = inputs.readings.try_recv() {
                self.reading(reading)
            } else if let Ok(event) = inputs.engine.try_recv() {
                self.engine_event(event)
            } else if let Ok(done) = inputs.links_done.try_recv() {
                self.link_done(done)
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

    async fn list_links(&mut self) {
        if let Err(error) = observe_links(self.kernel.links(), &mut self.planner).await {
            warn!(error = %chain(&error), "the host's links could not be listed; the slow timer tries again");
        }
    }

    async fn resync(&mut self, cause: Cause) -> Option<Cause> {
        self.resync_at =
            tokio::time::Instant::now() + resync_after(self.planner.inventory().containers().len());
        self.list_links().await;
        self.read(Object::Everything);
        self.without_bridge_netfilter = match bridge_netfilter::ensure().await {
            Ok(()) => None,
            Err(error) => Some(chain(&error)),
        };
        self.verify();
        self.end_edges();
        self.reload(cause).await
    }

    /// Shows a few containers to whoever looks how they are set. Before it is known what they may do nobody is answered.
    fn show(&self, look: Look) {
        if self.knows_powers {
            let rights = self.policy.revision.as_ref().map(|_| &self.rights);
            look.show(&self.planner, rights);
        }
    }

    /// The policy without the edges that have ended meanwhile. A pass follows where that makes a difference.
    fn end_edges(&mut self) -> Option<Cause> {
        let policy = self.expiry.in_force(Timestamp::now());
        let rights = self.settings.rights(policy);
        let changed = self.planner.set_rights(rights);
        if changed {
            self.rights = Arc::new(self.planner.rights().clone());
            self.informant.tell(Update::Rights(Arc::clone(&self.rights)));
        }
        changed.then_some("an edge ended")
    }
}

/// How long to wait after so many failures in a row.
fn pause(attempts: u32) -> Duration {
    RETRY.0.saturating_mul(1 << attempts.min(10)).min(RETRY.1)
}

/// From one full listing to the next.
fn resync_after(containers: usize) -> Duration {
    let times = 1 + containers / RESYNC_CONTAINERS;
    RESYNC.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX))
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
