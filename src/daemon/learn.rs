//! Watches who opens what to whom, with or without a daemon, and changes nothing.
//!
//! In: the kernel's counting tables, the sockets in the containers' network namespaces, the engine. Out: a [`Lesson`]. The
//! counters are read every other second and whenever a container comes or goes, each time before the engine is asked anew:
//! so what was counted is held against the addresses as they were.

mod open;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};

use self::open::{namespace, open};
use super::{Refusal, chain, host_addresses};
use crate::docker::{Arrived, Engine, EngineEvent, subscribe};
use crate::inventory::{Container, ContainerId, Lifecycle, NetworkMode};
use crate::kernel::observe::{ObserveError, Observer, Reading};
use crate::kernel::privilege;
use crate::kernel::sockets::{self, Extent, Sockets};
use crate::model::learn::{Ground, Grounds, Handover, Lesson, When};
use crate::net::Transport;
use crate::settings::Settings;

/// Between two readings, unless reading takes long: then it is a twentieth of the time.
const PERIOD: Duration = Duration::from_secs(2);
const SHARE: u32 = 20;
/// What comes together with an event: a start makes several.
const GATHER: Duration = Duration::from_millis(20);
/// Who comes with the address of one who has just gone has sent nothing yet, when the counters are read so soon.
const PROMPT: Duration = Duration::from_millis(150);
/// What a listing waits for containers that start: everything else is there in milliseconds.
const GLANCE: Duration = Duration::from_millis(50);
/// An inspection waits for the start of its container.
const INSPECT_PATIENCE: Duration = Duration::from_secs(2);
const PARALLEL: usize = 8;
/// Of one reading of the counters.
const ATTEMPTS: u32 = 3;

/// What `learn` has come to, for whoever waits.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub lesson: &'a Lesson,
    pub elapsed: Duration,
}

/// Watches until `end`, telling how far it is after each reading.
///
/// # Errors
/// A [`Refusal`]: without the engine, nft or the right to use it there is nothing to see. What goes wrong later is a remark.
pub async fn learn(
    settings: &Settings,
    end: impl Future<Output = ()>,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<Lesson, Refusal> {
    privilege::require_net_admin()?;
    // Events first: what happens during the listing comes after it.
    let changes = Changes::follow(subscribe(settings.docker_socket.clone()));
    let engine = Engine::connect(&settings.docker_socket).await?;
    let mut watch = Watch::begin(engine).await?;
    let began = Instant::now();
    let mut end = std::pin::pin!(end);
    let mut pause = PERIOD;
    loop {
        let happened = tokio::select! {
            () = &mut end => break,
            () = tokio::time::sleep(pause) => Happened::Nothing,
            since = changes.next() => Happened::Change { since },
        };
        watch.turn(happened).await;
        pause = PERIOD.max(watch.took.saturating_mul(SHARE));
        progress(Progress {
            lesson: &watch.lesson,
            elapsed: began.elapsed(),
        });
        // However fast containers come and go, half of the time at most is spent on reading.
        tokio::select! {
            () = &mut end => break,
            () = tokio::time::sleep(watch.took) => {}
        }
    }
    Ok(watch.end().await)
}

/// What made a reading due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happened {
    Nothing,
    /// Containers or networks are no longer what they were.
    Change {
        since: Instant,
    },
}

/// Whether the counters could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Read,
    Unread,
}

/// That something has changed, once for what comes together.
#[derive(Debug, Default)]
struct Changes {
    told: Notify,
    first: Mutex<Option<Instant>>,
}

impl Changes {
    fn follow(mut events: mpsc::Receiver<Arrived>) -> Arc<Self> {
        let changes = Arc::new(Self::default());
        let told = Arc::clone(&changes);
        // Ends with the stream, which ends with the runtime.
        tokio::spawn(async move {
            while let Some(Arrived { event, at }) = events.recv().await {
                if !matches!(event, EngineEvent::Disconnected { .. }) {
                    told.first().get_or_insert(at);
                    tokio::time::sleep(GATHER).await;
                    while events.try_recv().is_ok() {}
                    told.told.notify_one();
                }
            }
        });
        changes
    }

    /// When the first of those that nobody was told of happened.
    async fn next(&self) -> Instant {
        loop {
            self.told.notified().await;
            if let Some(first) = self.first().take() {
                return first;
            }
        }
    }

    fn first(&self) -> MutexGuard<'_, Option<Instant>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Watch {
    engine: Engine,
    /// `None` while the tables are gone.
    observer: Option<Observer>,
    ground: Ground,
    before: Reading,
    /// How long the last reading took.
    took: Duration,
    lesson: Lesson,
    remarks: BTreeSet<String>,
}

impl Watch {
    async fn begin(engine: Engine) -> Result<Self, Refusal> {
        let mut watch = Self {
            engine,
            observer: None,
            ground: Ground::default(),
            before: Reading::default(),
            took: Duration::ZERO,
            lesson: Lesson {
                began: Timestamp::now(),
                ..Lesson::default()
            },
            remarks: BTreeSet::new(),
        };
        watch.ground = watch.list(INSPECT_PATIENCE).await?;
        let (near, published) = watch.near();
        watch.observer = Some(Observer::begin(&near, &published).await?);
        watch.sample(When::Before).await;
        Ok(watch)
    }

    /// Reads the counters, then the engine where something has changed.
    async fn turn(&mut self, happened: Happened) -> Outcome {
        let begun = Instant::now();
        let reading = self.read().await;
        self.took = begun.elapsed();
        let is_prompt = match happened {
            Happened::Nothing => true,
            Happened::Change { since } => since.elapsed() < PROMPT,
        };
        let ground = match happened {
            Happened::Nothing => None,
            Happened::Change { .. } => match self.list(GLANCE).await {
                Ok(ground) => Some(ground),
                Err(error) => {
                    self.remark(format!(
                        "INCOMPLETE: the engine did not answer ({})",
                        chain(&error)
                    ));
                    None
                }
            },
        };
        let ground = ground.unwrap_or_else(|| self.ground.clone());
        let outcome = match reading {
            Some(reading) => {
                self.take(&reading, &ground, is_prompt);
                Outcome::Read
            }
            None => Outcome::Unread,
        };
        self.ground = ground;
        let (near, published) = self.near();
        if let Some(observer) = &mut self.observer
            && observer.include(&near, &published).await.is_err()
        {
            // The next reading makes them anew.
            self.observer = None;
        }
        outcome
    }

    async fn end(mut self) -> Lesson {
        if self
            .turn(Happened::Change {
                since: Instant::now(),
            })
            .await
            == Outcome::Unread
        {
            self.remark("INCOMPLETE: the last counters could not be read".to_owned());
        }
        self.sample(When::After).await;
        if let Some(observer) = self.observer.take() {
            observer.end().await;
        }
        self.lesson.ended = Timestamp::now();
        self.lesson.remarks = self.remarks.into_iter().collect();
        self.lesson
    }

    /// The counters. Tables that are gone are made again; what was counted since the last reading is lost.
    async fn read(&mut self) -> Option<Reading> {
        for attempt in 1..=ATTEMPTS {
            let Some(observer) = &self.observer else { break };
            match observer.read().await {
                Ok(reading) => return Some(reading),
                Err(ObserveError::Gone) => {
                    self.remark("INCOMPLETE: the counting tables were gone for some seconds".to_owned());
                    break;
                }
                Err(error) if attempt == ATTEMPTS => {
                    self.remark(format!(
                        "the counters could not be read at one time ({})",
                        chain(&error)
                    ));
                    // They go on counting.
                    return None;
                }
                Err(_) => tokio::time::sleep(GATHER).await,
            }
        }
        if let Some(observer) = self.observer.take() {
            observer.end().await;
        }
        self.before = Reading::default();
        let (near, published) = self.near();
        match Observer::begin(&near, &published).await {
            Ok(observer) => self.observer = Some(observer),
            Err(error) => self.remark(format!(
                "INCOMPLETE: the counting tables could not be made again ({})",
                chain(&error)
            )),
        }
        None
    }

    /// Asks the engine for everything; containers that were there before stay known.
    async fn list(&mut self, patience: Duration) -> Result<Ground, Refusal> {
        let listing = self.engine.list_within(patience).await?;
        let ground = Ground::new(&listing.containers, &listing.networks, host_addresses());
        // Who is gone runs no more, and keeps what it was attached to.
        for container in self.lesson.containers.values_mut() {
            container.lifecycle = Lifecycle::Stopped;
        }
        for mut container in listing.containers {
            if let Some(known) = self.lesson.containers.remove(&container.id) {
                for (network, endpoint) in known.endpoints {
                    container.endpoints.entry(network).or_insert(endpoint);
                }
            }
            self.lesson.containers.insert(container.id.clone(), container);
        }
        let networks = listing.networks.into_iter();
        self.lesson
            .networks
            .extend(networks.map(|network| (network.id.clone(), network)));
        Ok(ground)
    }

    /// Addresses that are containers' or the host's, and the host's ports that lead to containers.
    fn near(&self) -> (BTreeSet<IpNet>, BTreeSet<(Transport, u16)>) {
        let subnets = self.lesson.networks.values().flat_map(|network| &network.subnets);
        let is_routable = |address: &&IpAddr| !address.is_loopback();
        let host = self
            .ground
            .host()
            .iter()
            .filter(is_routable)
            .map(|it| IpNet::from(*it));
        let published = self
            .ground
            .published()
            .map(|port| (port.transport, port.host_port));
        (subnets.copied().chain(host).collect(), published.collect())
    }

    fn take(&mut self, reading: &Reading, ground: &Ground, is_prompt: bool) {
        let now = Timestamp::now();
        let grounds = Grounds {
            before: &self.ground,
            after: ground,
            handover: match is_prompt {
                true => Handover::Later,
                false => Handover::Meanwhile,
            },
        };
        let observation = &mut self.lesson.observation;
        for ((place, contact), count) in &reading.contacts {
            let before = self.before.contacts.get(&(*place, *contact)).copied();
            let more = count.saturating_sub(before.unwrap_or_default());
            if more > 0 {
                observation.take(*place, contact, more, grounds, now);
            }
        }
        observation.left_out(
            reading.multicast.saturating_sub(self.before.multicast),
            reading.lost.saturating_sub(self.before.lost),
        );
        if reading.samples_are_cut {
            observation.samples_are_cut();
        }
        self.before = reading.clone();
    }

    /// Looks at the sockets of every running container.
    async fn sample(&mut self, when: When) {
        let now = Timestamp::now();
        let read = self.sockets().await;
        let observation = &mut self.lesson.observation;
        let grounds = Grounds::still(&self.ground);
        let mut is_cut = false;
        for (id, sockets) in &read {
            is_cut |= sockets.extent == Extent::Cut;
            let ports = |transport| {
                sockets
                    .served(transport)
                    .into_iter()
                    .map(move |port| (transport, port))
            };
            observation.serves(id, ports(Transport::Tcp).chain(ports(Transport::Udp)));
        }
        for (id, sockets) in &read {
            for connection in &sockets.established {
                if let Some(open) = open(id, sockets, connection, &read, grounds) {
                    observation.take_open(open, when, grounds, now);
                }
            }
        }
        if is_cut {
            self.remark("INCOMPLETE: a container has more sockets than are read".to_owned());
        }
    }

    async fn sockets(&mut self) -> BTreeMap<ContainerId, Sockets> {
        let own = |it: &&Container| it.lifecycle == Lifecycle::Running && it.network_mode == NetworkMode::Own;
        let ids: Vec<ContainerId> = self
            .lesson
            .containers
            .values()
            .filter(own)
            .map(|it| it.id.clone())
            .collect();
        let engine = &self.engine;
        let host = namespace("self");
        let host = &host;
        let read: Vec<(ContainerId, Result<Option<Sockets>, String>)> = stream::iter(ids)
            .map(|id| async move {
                let pid = tokio::time::timeout(INSPECT_PATIENCE, engine.pid(&id)).await;
                let pid = match pid {
                    Ok(Ok(Some(pid))) => pid,
                    // Gone, or just starting: what it opens is counted.
                    Ok(Ok(None)) | Err(_) => return (id, Ok(None)),
                    Ok(Err(error)) => return (id, Err(chain(&error))),
                };
                // A number that was given anew may be a process of the host.
                let of_process = || match namespace(&pid.to_string()) {
                    None => Ok(None),
                    same if same == *host => Ok(None),
                    _ => sockets::of_process(pid).map(Some).map_err(|error| chain(&error)),
                };
                (id, tokio::task::block_in_place(of_process))
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut found = BTreeMap::new();
        for (id, result) in read {
            match result {
                Ok(sockets) => found.extend(sockets.map(|sockets| (id, sockets))),
                Err(error) => self.remark(format!("the sockets of {id} could not be read ({error})")),
            }
        }
        found
    }

    fn remark(&mut self, remark: String) {
        // Each once, and not without bound.
        if self.remarks.len() < 20 {
            self.remarks.insert(remark);
        }
    }
}
