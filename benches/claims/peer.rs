//! dfw side by side with the daemon, each with the same grants between the same containers of the same engine, which makes no
//! rules of its own: how long a container that starts waits for what it may, a change of one rule, and new connections.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::{interval, sleep};

use crate::dfw::{self, Dfw};
use crate::harness::{Effort, Goal, Report, Sample, between, milliseconds, runtime, sh};
use crate::product::{Daemon, PATIENCE, Setup, forget};
use crate::real::{Engine, SHARED, Spec};
use crate::resident::Role;
use crate::traffic::Ends;
use crate::witness::{What, Witness};

const CONTAINERS: usize = 12;
/// The grant that is tried is from the second container to the first; the other port never is one.
const SERVER: usize = 0;
const CLIENT: usize = 1;
const DECLARED: u16 = 8001;
const UNDECLARED: u16 = 8002;
/// Events of the engine, one after the other, and how long a container that starts waits among them.
const EVENT_EVERY: Duration = Duration::from_millis(300);
const AMONG_EVENTS: Duration = Duration::from_secs(20);
/// The peer waits for half a second without events.
const QUIET: Duration = Duration::from_millis(1500);

/// Whom a container may connect to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) port: u16,
}

pub(crate) fn container(number: usize) -> String {
    format!("c{number}")
}

/// So many, with the one that is tried in the middle.
fn grants(count: usize) -> Vec<Grant> {
    let others = (0..count - 1).map(|number| {
        let (from, step) = (number % CONTAINERS, 1 + number / CONTAINERS % (CONTAINERS - 1));
        Grant {
            from,
            to: (from + step) % CONTAINERS,
            port: 9000 + u16::try_from(number / CONTAINERS / (CONTAINERS - 1)).unwrap(),
        }
    });
    let mut grants: Vec<Grant> = others.collect();
    let tried = Grant {
        from: CLIENT,
        to: SERVER,
        port: DECLARED,
    };
    grants.insert(count / 2, tried);
    grants
}

fn policy(grants: &[Grant]) -> String {
    let mut text = "cofferdam: 1\nsegment: bench\nservices:\n".to_owned();
    for name in (0..CONTAINERS).map(container) {
        writeln!(
            text,
            "  {name}: {{ select: {{ labels: {{ service: {name} }} }} }}"
        )
        .unwrap();
    }
    text.push_str("allow:\n");
    for Grant { from, to, port } in grants {
        let (from, to) = (container(*from), container(*to));
        writeln!(text, "  - {{ from: {from}, to: {to}, ports: [{port}] }}").unwrap();
    }
    text
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Dfw,
    Ours,
}

/// The peer first: it is the baseline.
const SIDES: [Side; 2] = [Side::Dfw, Side::Ours];

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Dfw => "dfw 1.3.0",
            Self::Ours => "Cofferdam",
        }
    }

    /// Goals are ours alone.
    fn at_most(self, bound: f64) -> Goal {
        match self {
            Self::Dfw => Goal::None,
            Self::Ours => Goal::AtMost(bound),
        }
    }
}

/// A daemon at work.
enum Guard {
    Dfw(Dfw),
    Ours(Setup, Daemon),
}

/// What was measured of one side at one size, in ms.
#[derive(Debug, Default)]
struct Found {
    to_enforced: Vec<f64>,
    changes: Vec<f64>,
    /// From a container's first instruction until it could connect.
    reactions: Vec<f64>,
    /// The same, or [`AMONG_EVENTS`] where it could not.
    among_events: Vec<f64>,
}

/// Those of one kind.
type Times = fn(&Found) -> &Vec<f64>;

struct Stage {
    engine: Engine,
    witness: Witness,
    effort: Effort,
    /// The client's id; it is made anew again and again.
    client: String,
    ends: Ends,
}

pub(crate) fn run(report: &mut Report) {
    runtime().block_on(side_by_side(report));
}

async fn side_by_side(report: &mut Report) {
    let mut stage = Stage::build(report.effort).await;
    let sizes: &[usize] = report.effort.of(&[10, 30], &[10, 100, 300, 1000]);
    // All of one side first: the other's networks would stand in its listings.
    let mut found = BTreeMap::new();
    for side in SIDES {
        for size in sizes.iter().copied() {
            found.insert((side, size), stage.measure(side, size, size == sizes[0]).await);
        }
    }
    tell(report, sizes, &found);
    let mut costs: BTreeMap<Side, Vec<(usize, f64)>> = BTreeMap::new();
    for size in sizes.iter().copied() {
        for (side, ratio) in stage.connections(report, size).await {
            costs.entry(side).or_default().push((size, 1.0 / ratio));
        }
    }
    for (side, points) in &costs {
        let name = format!("peer, cost of new connections: {}", side.name());
        report.growth(&name, points, side.at_most(0.02));
    }
}

impl Stage {
    async fn build(effort: Effort) -> Self {
        sh("modprobe br_netfilter 2>/dev/null || true; sysctl -qw net.bridge.bridge-nf-call-iptables=1");
        let engine = Engine::enter().await;
        // The one place where dfw looks.
        std::os::unix::fs::symlink(&engine.socket, "/run/docker.sock").unwrap();
        engine.network(SHARED, 80).await;
        let specs: Vec<Spec> = (0..CONTAINERS)
            .map(|it| Spec::new(&container(it), &container(it), Role::Stay))
            .collect();
        let ids = engine.run(&specs).await;
        let server = engine.inspect(&ids[SERVER]).await;
        let ends = Ends {
            client: engine.inspect(&ids[CLIENT]).await.namespace,
            server: server.namespace,
            at: SocketAddr::new(server.addresses[SHARED][0], DECLARED),
        };
        ends.serve(&[DECLARED, UNDECLARED]);
        assert!(ends.passes(UNDECLARED), "without rules everything passes");
        Self {
            engine,
            witness: Witness::listen(),
            effort,
            client: ids[CLIENT].clone(),
            ends,
        }
    }

    async fn measure(&mut self, side: Side, size: usize, is_among_events: bool) -> Found {
        let mut grants = grants(size);
        let mut found = Found::default();
        let (guard, enforced) = self.guard(side, &grants).await;
        found.to_enforced.push(enforced);
        self.assert_enforced();
        for _ in 0..self.effort.of(1, 5) {
            grants[0].port ^= 1 << 12;
            found.changes.push(self.change(&guard, &grants).await);
        }
        // Twice what a change took, after what the peer waits for.
        let slowest = found.changes.iter().copied().fold(0.0, f64::max);
        let pause = QUIET + Duration::from_secs_f64(slowest / 500.0);
        for _ in 0..self.effort.of(1, 5) {
            self.remove_client(&guard, pause).await;
            let waited = self.start_client(PATIENCE).await;
            found.reactions.push(waited.expect("it may connect in the end"));
        }
        if is_among_events {
            for _ in 0..self.effort.of(1, 3) {
                self.remove_client(&guard, pause).await;
                let passing = tokio::spawn(events(self.engine.clone()));
                let waited = self.start_client(AMONG_EVENTS).await;
                found
                    .among_events
                    .push(waited.unwrap_or(milliseconds(AMONG_EVENTS)));
                passing.abort();
                if waited.is_none() {
                    let told = self.engine.told(&container(CLIENT), PATIENCE).await;
                    told.expect("it may connect when there are no more events");
                }
            }
        }
        self.assert_enforced();
        drop(guard);
        remove_rules();
        found
    }

    fn assert_enforced(&self) {
        assert!(self.ends.passes(DECLARED), "what is granted does not pass");
        assert!(!self.ends.passes(UNDECLARED), "what is not granted passes");
    }

    /// Starts a side; the ms until its rules were there.
    async fn guard(&self, side: Side, grants: &[Grant]) -> (Guard, f64) {
        match side {
            Side::Dfw => {
                dfw::configure(grants);
                self.witness.take();
                let begun = Timestamp::now();
                let guard = Guard::Dfw(Dfw::start());
                (guard, between(begun, self.transaction().await))
            }
            Side::Ours => {
                let setup = Setup::new(&self.engine.socket, &policy(grants));
                // The networks of its services are made first.
                let (daemon, _) = setup.start();
                daemon.settle();
                drop(daemon);
                let (daemon, enforced) = setup.start();
                daemon.settle();
                (Guard::Ours(setup, daemon), enforced)
            }
        }
    }

    /// The ms from the signal to the kernel.
    async fn change(&self, guard: &Guard, grants: &[Grant]) -> f64 {
        match guard {
            Guard::Dfw(_) => dfw::configure(grants),
            Guard::Ours(setup, _) => setup.write(&policy(grants)),
        }
        self.witness.take();
        let begun = Timestamp::now();
        match guard {
            Guard::Dfw(dfw) => dfw.hang_up(),
            Guard::Ours(_, daemon) => daemon.hang_up(),
        }
        let changed = between(begun, self.transaction().await);
        if let Guard::Ours(_, daemon) = guard {
            daemon.settle();
        }
        changed
    }

    /// Waits for a transaction of nftables that has not been taken.
    async fn transaction(&self) -> Timestamp {
        let begun = Instant::now();
        loop {
            let heard = self.witness.take();
            if let Some(found) = heard.iter().find(|it| matches!(it.what, What::Transaction)) {
                return found.at;
            }
            assert!(begun.elapsed() < PATIENCE, "nobody changed nftables in time");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Removes the client and waits until the daemon has nothing more to do about it.
    async fn remove_client(&self, guard: &Guard, pause: Duration) {
        self.witness.take();
        self.engine.remove(std::slice::from_ref(&self.client)).await;
        match guard {
            Guard::Ours(_, daemon) => daemon.settle(),
            Guard::Dfw(_) => {
                self.transaction().await;
                sleep(pause).await;
            }
        }
    }

    /// Makes the client anew. The ms from its first instruction until it could connect; `None`: not within that time.
    async fn start_client(&mut self, patience: Duration) -> Option<f64> {
        let spec = Spec::new(&container(CLIENT), &container(CLIENT), Role::Dial(self.ends.at));
        self.client = self.engine.create(&spec).await;
        self.engine.start(&self.client).await;
        self.ends.client = self.engine.inspect(&self.client).await.namespace;
        let told = self.engine.told(&spec.name, patience).await;
        told.map(|it| between(it.began, it.connected.unwrap().0))
    }

    /// The rate of new connections with either side's rules, each right after one without; their ratio of what a second of
    /// processor time achieves.
    async fn connections(&self, report: &mut Report, size: usize) -> BTreeMap<Side, f64> {
        let grants = grants(size);
        let time = self
            .effort
            .of(Duration::from_millis(50), Duration::from_millis(500));
        let mut found = BTreeMap::new();
        for _ in 0..self.effort.of(2, 5) {
            for side in SIDES {
                let bare = self.ends.connections(time);
                match side {
                    Side::Dfw => {
                        dfw::configure(&grants);
                        dfw::once();
                    }
                    Side::Ours => {
                        let (daemon, _) = Setup::new(&self.engine.socket, &policy(&grants)).start();
                        daemon.settle();
                    }
                }
                self.assert_enforced();
                let rate = self.ends.connections(time);
                remove_rules();
                let (walls, processors): &mut (Vec<f64>, Vec<f64>) = found.entry(side).or_default();
                walls.push(rate.on_the_wall / bare.on_the_wall);
                processors.push(rate.of_processor_time / bare.of_processor_time);
            }
        }
        let mut medians = BTreeMap::new();
        for (side, (walls, processors)) in found {
            let (walls, processors) = (Sample::new(walls), Sample::new(processors));
            for (what, ratios) in [("wall", &walls), ("processor", &processors)] {
                let name = format!(
                    "peer, new connections, ratio, {what}: {}, {size} rules",
                    side.name()
                );
                report.figure(&name, "", ratios, Some(1.0), Goal::None);
            }
            medians.insert(side, processors.median());
        }
        medians
    }
}

/// One event and more in each interval, until it is aborted: containers that are created and removed, however long that takes.
async fn events(engine: Engine) {
    let mut tick = interval(EVENT_EVERY);
    for number in 0.. {
        tick.tick().await;
        let (engine, name) = (engine.clone(), format!("passing-{number}"));
        tokio::spawn(async move {
            let id = engine.create(&Spec::new(&name, "passing", Role::Stay)).await;
            engine.remove(&[id]).await;
        });
    }
}

fn remove_rules() {
    forget();
    sh("for family in inet ip ip6; do nft delete table $family dfw 2>/dev/null; done; true");
}

fn tell(report: &mut Report, sizes: &[usize], found: &BTreeMap<(Side, usize), Found>) {
    // With the most that ours may grow with the rules.
    let kinds: [(&str, Times, f64); 4] = [
        ("start to enforced", |it| &it.to_enforced, 1.2),
        ("change of one rule", |it| &it.changes, 1.2),
        (
            "start of a container until it could connect",
            |it| &it.reactions,
            0.2,
        ),
        (
            "the same among events every 300 ms, 20 s at most",
            |it| &it.among_events,
            0.2,
        ),
    ];
    for (what, of, power) in kinds {
        let mut points: BTreeMap<Side, Vec<(usize, f64)>> = BTreeMap::new();
        for size in sizes {
            let mut theirs = None;
            for side in SIDES {
                let values = of(&found[&(side, *size)]);
                if values.is_empty() {
                    continue;
                }
                let sample = Sample::new(values.clone());
                let name = format!("peer, {what}: {}, {size} rules", side.name());
                report.figure(&name, "ms", &sample, theirs, Goal::None);
                theirs = Some(sample.median());
                points.entry(side).or_default().push((*size, sample.median()));
            }
        }
        for (side, points) in &points {
            report.growth(
                &format!("peer, {what}: {}", side.name()),
                points,
                side.at_most(power),
            );
        }
    }
}
