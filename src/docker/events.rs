//! The engine's event stream, followed for ever by one task that does nothing else.
//!
//! In: the engine's socket. Out: [`EngineEvent`]s over a bounded channel. Events are hints: they are told in the
//! engine's order, but some come twice, their order differs between engine versions, and a slow reader loses them
//! silently. So whoever consumes them lists everything after each [`EngineEvent::Connected`] and [`EngineEvent::Resync`].

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use bollard::Docker;
use bollard::models::{EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{EventsOptions, EventsOptionsBuilder};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tracing::debug;

use super::client::Engine;
use crate::inventory::{Changes, ContainerId, NetworkId};

/// Events that may wait for the consumer: a few MiB at most. A `docker run` on one network makes three, so this is
/// more than a thousand starts; beyond it events are dropped and one [`EngineEvent::Resync`] stands for them.
const WAITING: usize = 8192;

/// The reconnection's shortest and longest pause.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// An engine that hangs keeps its streams open and says nothing: so it is asked this often, and must answer within the second
/// time. Even an engine that starts hundreds of containers answers a ping in milliseconds.
const PING: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(5));

/// A stream that lived so long was a success: the next pause is the shortest again.
const SUCCESS: Duration = Duration::from_secs(1);

/// An event that is older was not on its way for so long.
const LATE: Duration = Duration::from_secs(10);

/// How far back the engine is asked to replay, against small steps of the clock.
const REPLAY: Duration = Duration::from_secs(1);

/// What is asked for.
pub(crate) const WATCHED_TYPES: [&str; 2] = ["container", "network"];
pub(crate) const WATCHED_EVENTS: [&str; 8] = [
    "create",
    "start",
    "die",
    "destroy",
    "rename",
    "connect",
    "disconnect",
    "remove",
];

/// What the engine tells, and how its event stream is.
#[derive(Debug, Clone)]
pub enum EngineEvent {
    /// The stream is there: list everything now. Nothing after this moment is lost, and some events from just before
    /// it may follow.
    Connected(Engine),
    /// Events were dropped, since too many waited: list everything.
    Resync,
    /// The stream ended, or could not be opened. Another attempt follows after the pause.
    Disconnected {
        reason: String,
        retry_in: Duration,
    },
    ContainerCreated(ContainerId),
    ContainerStarted(ContainerId),
    /// Its main process ended (`die`).
    ContainerStopped(ContainerId),
    ContainerDestroyed(ContainerId),
    ContainerRenamed(ContainerId),
    NetworkCreated(NetworkId),
    NetworkDestroyed(NetworkId),
    /// The endpoint is in the kernel. Attaching a container that does not run tells nothing until its start.
    EndpointConnected {
        network: NetworkId,
        container: ContainerId,
    },
    /// The endpoint is gone, and its address may be another's already.
    EndpointDisconnected {
        network: NetworkId,
        container: ContainerId,
    },
}

impl EngineEvent {
    /// What it tells of.
    pub fn touches(&self) -> Changes {
        let mut touched = Changes::default();
        match self {
            Self::ContainerCreated(id)
            | Self::ContainerStarted(id)
            | Self::ContainerStopped(id)
            | Self::ContainerDestroyed(id)
            | Self::ContainerRenamed(id) => {
                touched.containers.insert(id.clone());
            }
            Self::NetworkCreated(id) | Self::NetworkDestroyed(id) => {
                touched.networks.insert(id.clone());
            }
            Self::EndpointConnected { network, container }
            | Self::EndpointDisconnected { network, container } => {
                touched.containers.insert(container.clone());
                touched.networks.insert(network.clone());
            }
            Self::Connected(_) | Self::Resync | Self::Disconnected { .. } => {}
        }
        touched
    }
}

/// An event, and when it happened.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub event: EngineEvent,
    /// By the engine's own time stamp where that makes sense, otherwise when it was read.
    pub at: Instant,
}

impl Arrived {
    fn now(event: EngineEvent) -> Self {
        let at = Instant::now();
        Self { event, at }
    }

    /// With the engine's time stamp, in nanoseconds since the epoch. A clock that was set meanwhile makes none of it.
    fn stamped(event: EngineEvent, nanoseconds: Option<i64>) -> Self {
        let stamp = nanoseconds
            .and_then(|it| u64::try_from(it).ok())
            .map(Duration::from_nanos);
        let age = stamp.and_then(|stamp| {
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH + stamp)
                .ok()
        });
        let now = Instant::now();
        let at = age.filter(|age| *age < LATE).and_then(|age| now.checked_sub(age));
        Self {
            event,
            at: at.unwrap_or(now),
        }
    }
}

/// Follows the events of the engine at that socket until the receiver is dropped, through every restart of the engine.
/// To be called within a tokio runtime.
pub fn subscribe(socket: PathBuf) -> mpsc::Receiver<Arrived> {
    subscribe_with(socket, WAITING)
}

fn subscribe_with(socket: PathBuf, waiting: usize) -> mpsc::Receiver<Arrived> {
    let (sender, receiver) = mpsc::channel(waiting);
    tokio::spawn(async move {
        // It ends when nobody listens any more.
        let closed = sender.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = reconnect_for_ever(socket, sender) => {}
        }
    });
    receiver
}

async fn reconnect_for_ever(socket: PathBuf, sender: mpsc::Sender<Arrived>) {
    let mut failures = 0;
    loop {
        let reason = match Engine::connect(&socket).await {
            Ok(engine) => {
                let opened = Instant::now();
                let reason = read(engine, &sender).await;
                if opened.elapsed() >= SUCCESS {
                    failures = 0;
                }
                reason
            }
            Err(error) => chain(&error),
        };
        let retry_in = pause(failures, RandomState::new().hash_one(failures));
        failures = failures.saturating_add(1);
        let ended = EngineEvent::Disconnected { reason, retry_in };
        if sender.send(Arrived::now(ended)).await.is_err() {
            return;
        }
        tokio::time::sleep(retry_in).await;
    }
}

/// One stream from its opening to its end, with the reason why it ended.
///
/// That the request was answered does not show that events are caught from now on: the engine sends the headers
/// first and subscribes then (`getEvents` in its source). So it is asked to replay what happened since before
/// `Connected` was told. Its memory of 256 events of every type is ample for the milliseconds in between.
async fn read(engine: Engine, sender: &mpsc::Sender<Arrived>) -> String {
    // While the channel is full no stream is open that would stall the engine.
    let Ok(permit) = sender.reserve().await else {
        return "nobody listens".to_owned();
    };
    let docker = engine.docker.clone();
    let stream = engine.docker.events(Some(options(SystemTime::now())));
    permit.send(Arrived::now(EngineEvent::Connected(engine.clone())));
    let events = stream.filter_map(|message| {
        std::future::ready(match message {
            Ok(message) => {
                let time = message.time_nano;
                narrow(message).map(|event| Ok(Arrived::stamped(event, time)))
            }
            Err(error) => Some(Err(chain(&error))),
        })
    });
    tokio::select! {
        reason = forward(events, sender) => reason,
        reason = silence(&docker) => reason,
    }
}

/// Ends when the engine no longer answers.
async fn silence(docker: &Docker) -> String {
    let (pause, patience) = PING;
    loop {
        tokio::time::sleep(pause).await;
        match tokio::time::timeout(patience, docker.ping()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return format!("the engine does not answer: {}", chain(&error)),
            Err(_) => return format!("the engine has not answered for {} s", patience.as_secs()),
        }
    }
}

/// Passes events on and never waits for the consumer: what finds no room is dropped, and one `Resync` takes its place
/// as soon as there is room again.
async fn forward(
    events: impl Stream<Item = Result<Arrived, String>>,
    sender: &mpsc::Sender<Arrived>,
) -> String {
    let mut events = std::pin::pin!(events);
    let mut dropped = 0_u64;
    loop {
        tokio::select! {
            biased;
            permit = sender.reserve(), if dropped > 0 => match permit {
                Ok(permit) => {
                    debug!(dropped, "events dropped");
                    permit.send(Arrived::now(EngineEvent::Resync));
                    dropped = 0;
                }
                Err(_) => return "nobody listens".to_owned(),
            },
            event = events.next() => match event {
                // After a drop the order is broken anyway, and the listing will show what this event tells.
                Some(Ok(_)) if dropped > 0 => dropped += 1,
                Some(Ok(event)) => if sender.try_send(event).is_err() {
                    dropped = 1;
                },
                Some(Err(reason)) => return reason,
                None => return "the engine closed the event stream".to_owned(),
            },
        }
    }
}

/// Only what we know: an event of a type that bollard does not know would end the stream, and the many events of
/// health checks (`exec_*`) would only push others out of the engine's memory of 256.
fn options(now: SystemTime) -> EventsOptions {
    let since = now.checked_sub(REPLAY).unwrap_or(now);
    let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let filters = HashMap::from([
        ("type", WATCHED_TYPES.to_vec()),
        ("event", WATCHED_EVENTS.to_vec()),
    ]);
    EventsOptionsBuilder::default()
        .since(&format!("{}.{:09}", since.as_secs(), since.subsec_nanos()))
        .filters(&filters)
        .build()
}

/// `None` for what does not concern us. Of an event only the ids count: users' labels can override its attributes.
fn narrow(message: EventMessage) -> Option<EngineEvent> {
    let actor = message.actor?;
    let id = actor.id.filter(|id| !id.is_empty())?;
    let action = message.action?;
    match message.typ? {
        EventMessageTypeEnum::CONTAINER => {
            let id = ContainerId(id.into());
            match action.as_str() {
                "create" => Some(EngineEvent::ContainerCreated(id)),
                "start" => Some(EngineEvent::ContainerStarted(id)),
                "die" => Some(EngineEvent::ContainerStopped(id)),
                "destroy" => Some(EngineEvent::ContainerDestroyed(id)),
                "rename" => Some(EngineEvent::ContainerRenamed(id)),
                _ => None,
            }
        }
        EventMessageTypeEnum::NETWORK => {
            let network = NetworkId(id.into());
            // A network's event has no labels of a user; this attribute is the engine's own.
            let container = || {
                let mut attributes = actor.attributes?;
                attributes
                    .remove("container")
                    .filter(|id| !id.is_empty())
                    .map(|id| ContainerId(id.into()))
            };
            match action.as_str() {
                "create" => Some(EngineEvent::NetworkCreated(network)),
                "destroy" | "remove" => Some(EngineEvent::NetworkDestroyed(network)),
                "connect" => {
                    container().map(|container| EngineEvent::EndpointConnected { network, container })
                }
                "disconnect" => {
                    container().map(|container| EngineEvent::EndpointDisconnected { network, container })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The pause after so many failures in a row: doubled each time, and of that the upper half at random, so that several
/// daemons do not come back in step.
fn pause(failures: u32, random: u64) -> Duration {
    let (shortest, longest) = BACKOFF;
    let full = shortest
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(longest);
    let half = full / 2;
    let spread = u64::try_from(half.as_micros())
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    (half + Duration::from_micros(random % spread)).max(shortest)
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
