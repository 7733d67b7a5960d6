//! Reads engine objects again after events. One reading of an object at a time: an event that comes during a reading makes
//! another one follow, and only the last is used, so that an old reading never overwrites a newer one. A network's is used
//! all the same: while many containers start, there is always a newer event, and what the reading says of the others counts.
//!
//! Every reading ends: after [`PATIENCE`] it has failed. When the engine is lost, the readings under way are given up, so
//! that none of them keeps the next connection's waiting.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::docker::{Engine, EngineError, NetworkSnapshot};
use crate::inventory::{Container, ContainerId, Listing, NetworkId};
use crate::plan::Moment;

/// Longer than any single request may take: an answer that begins and never ends is given up here.
const PATIENCE: Duration = Duration::from_secs(100);

/// A reading that takes longer than this is worth a word in the status. Starts keep an inspection waiting for half a second.
const LATE: Duration = Duration::from_secs(5);

/// What can be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Everything,
    /// Everything but what takes a question for each container: what it may do.
    Outline,
    Container(ContainerId),
    /// A container that is not known yet, as the list shows it: that never waits for its start.
    Glance(ContainerId),
    Network(NetworkId),
}

impl Object {
    /// Whether it is everything, in either way.
    pub fn is_listing(&self) -> bool {
        matches!(self, Self::Everything | Self::Outline)
    }
}

/// A reading; `None`: there is no such object any more.
#[derive(Debug)]
pub enum Reading {
    Everything(Listing),
    Outline(Listing),
    Container(ContainerId, Option<Container>),
    Glance(Option<Container>),
    Network(NetworkId, Option<NetworkSnapshot>),
    /// The engine did not answer; what it was asked stays open until the next listing.
    Failed(Object, ReadingError),
}

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum ReadingError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the engine did not finish its answer within {} s", PATIENCE.as_secs())]
    Unfinished,
}

/// A reading on its way to the daemon.
#[derive(Debug)]
pub struct Finished {
    number: u64,
    object: Object,
    reading: Reading,
}

#[derive(Debug)]
struct UnderWay {
    number: u64,
    /// Whether it must be read again after that.
    again: bool,
    moment: Moment,
    began: Instant,
    task: AbortHandle,
}

/// Starts readings and hands them over.
#[derive(Debug)]
pub struct Reader {
    engine: Option<Engine>,
    reading: BTreeMap<Object, UnderWay>,
    count: u64,
    sender: mpsc::UnboundedSender<Finished>,
}

impl Reader {
    /// A reader and where its readings come out. At most one reading of each object waits there.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Finished>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (
            Self {
                engine: None,
                reading: BTreeMap::new(),
                count: 0,
                sender,
            },
            receiver,
        )
    }

    /// Uses this engine from now on; readings of another one are given up.
    pub fn connect(&mut self, engine: Option<Engine>) {
        self.engine = engine;
        for (_, reading) in std::mem::take(&mut self.reading) {
            reading.task.abort();
        }
    }

    /// The engine in use.
    pub fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// Whether anything is being read.
    pub fn is_busy(&self) -> bool {
        !self.reading.is_empty()
    }

    /// Whether this is being read.
    pub fn is_reading(&self, object: &Object) -> bool {
        self.reading.contains_key(object)
    }

    /// Whether a full listing is under way.
    pub fn is_listing(&self) -> bool {
        self.listing().is_some()
    }

    fn listing(&self) -> Option<&UnderWay> {
        let mut listings = self.reading.iter().filter(|(object, _)| object.is_listing());
        listings.next().map(|(_, reading)| reading)
    }

    /// How long the longest full listing under way has kept us waiting, where that is unusual.
    pub fn is_late(&self) -> Option<Duration> {
        Some(self.listing()?.began.elapsed()).filter(|since| *since >= LATE)
    }

    /// Reads an object, now or, when it is being read already, once more after that. `moment` is when it began.
    pub fn read(&mut self, object: Object, moment: Moment) {
        if let Some(reading) = self.reading.get_mut(&object) {
            // What a glance is for never changes.
            reading.again |= !matches!(object, Object::Glance(_));
            return;
        }
        let Some(engine) = self.engine.clone() else { return };
        self.count += 1;
        let (number, sender, of) = (self.count, self.sender.clone(), object.clone());
        let task = tokio::spawn(async move {
            let reading = read(&engine, &of).await;
            // The receiver is gone only when the daemon ends.
            let _ = sender.send(Finished {
                number,
                object: of,
                reading,
            });
        });
        let reading = UnderWay {
            number,
            again: false,
            moment,
            began: Instant::now(),
            task: task.abort_handle(),
        };
        self.reading.insert(object, reading);
    }

    /// Reads an object unless a reading is under way that began at this moment or later.
    pub fn confirm(&mut self, object: Object, moment: Moment) {
        if self.reading.get(&object).is_none_or(|it| it.moment < moment) {
            self.read(object, moment);
        }
    }

    /// Gives up the readings of an object that is gone: what they say was true before.
    pub fn forget(&mut self, objects: &[Object]) {
        for object in objects {
            if let Some(reading) = self.reading.remove(object) {
                reading.task.abort();
            }
        }
    }

    /// Takes a finished reading with the moment at which it began: `None` when it was given up, or when it is out of date
    /// and another is under way.
    pub fn finish(&mut self, finished: Finished, now: Moment) -> Option<(Reading, Moment)> {
        let Finished {
            number,
            object,
            reading,
        } = finished;
        if self.reading.get(&object).is_none_or(|it| it.number != number) {
            return None;
        }
        let under_way = self.reading.remove(&object)?;
        // After a failure the caller decides when to try again.
        if under_way.again && !matches!(reading, Reading::Failed(..)) {
            let is_used = matches!(object, Object::Network(_));
            self.read(object, now);
            if !is_used {
                return None;
            }
        }
        Some((reading, under_way.moment))
    }
}

async fn read(engine: &Engine, object: &Object) -> Reading {
    let reading = async {
        Ok::<_, ReadingError>(match object {
            Object::Everything => Reading::Everything(engine.list().await?),
            Object::Outline => Reading::Outline(engine.outline().await?),
            Object::Container(id) => Reading::Container(id.clone(), engine.container(id).await?),
            Object::Glance(id) => Reading::Glance(engine.glance(id).await?),
            Object::Network(id) => Reading::Network(id.clone(), engine.network(id).await?),
        })
    };
    match timeout(PATIENCE, reading).await {
        Ok(Ok(reading)) => reading,
        Ok(Err(error)) => Reading::Failed(object.clone(), error),
        Err(_) => Reading::Failed(object.clone(), ReadingError::Unfinished),
    }
}
