//! Reads engine objects again after events. One reading of an object at a time: an event that comes during a reading makes
//! another one follow, and only the last is used, so that an old reading never overwrites a newer one.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tracing::warn;

use crate::docker::{Engine, EngineError, NetworkSnapshot};
use crate::inventory::{Container, ContainerId, Listing, NetworkId};

/// What can be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Everything,
    Container(ContainerId),
    Network(NetworkId),
}

/// A reading; `None`: there is no such object any more.
#[derive(Debug)]
pub enum Reading {
    Everything(Listing),
    Container(ContainerId, Option<Container>),
    Network(NetworkId, Option<NetworkSnapshot>),
    /// The engine did not answer; what it was asked stays open until the next listing.
    Failed(Object, EngineError),
}

impl Reading {
    fn object(&self) -> Object {
        match self {
            Self::Everything(_) => Object::Everything,
            Self::Container(id, _) => Object::Container(id.clone()),
            Self::Network(id, _) => Object::Network(id.clone()),
            Self::Failed(object, _) => object.clone(),
        }
    }
}

/// Starts readings and hands them over.
#[derive(Debug)]
pub struct Reader {
    engine: Option<Engine>,
    /// What is being read, and whether it must be read again after that.
    reading: BTreeMap<Object, bool>,
    sender: mpsc::UnboundedSender<Reading>,
}

impl Reader {
    /// A reader and where its readings come out. At most one reading of each object waits there.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Reading>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (
            Self {
                engine: None,
                reading: BTreeMap::new(),
                sender,
            },
            receiver,
        )
    }

    /// Uses this engine from now on; readings of another one are dropped when they come.
    pub fn connect(&mut self, engine: Option<Engine>) {
        self.engine = engine;
    }

    /// The engine in use.
    pub fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// Whether anything is being read.
    pub fn is_busy(&self) -> bool {
        !self.reading.is_empty()
    }

    /// Whether a full listing is under way.
    pub fn is_listing(&self) -> bool {
        self.reading.contains_key(&Object::Everything)
    }

    /// Reads an object, now or, when it is being read already, once more after that.
    pub fn read(&mut self, object: Object) {
        if let Some(again) = self.reading.get_mut(&object) {
            *again = true;
            return;
        }
        let Some(engine) = self.engine.clone() else { return };
        self.reading.insert(object.clone(), false);
        let sender = self.sender.clone();
        tokio::spawn(async move {
            // The receiver is gone only when the daemon ends.
            let _ = sender.send(read(&engine, object).await);
        });
    }

    /// Takes a finished reading: `None` when it is out of date, and another is under way.
    pub fn finish(&mut self, reading: Reading) -> Option<Reading> {
        let object = reading.object();
        if self.reading.remove(&object) == Some(true) {
            self.read(object);
            return None;
        }
        if let Reading::Failed(object, error) = &reading {
            warn!(%error, ?object, "the engine did not answer; the next listing will tell");
        }
        Some(reading)
    }
}

async fn read(engine: &Engine, object: Object) -> Reading {
    let result = match &object {
        Object::Everything => engine.list().await.map(Reading::Everything),
        Object::Container(id) => engine
            .container(id)
            .await
            .map(|container| Reading::Container(id.clone(), container)),
        Object::Network(id) => engine
            .network(id)
            .await
            .map(|network| Reading::Network(id.clone(), network)),
    };
    result.unwrap_or_else(|error| Reading::Failed(object, error))
}
