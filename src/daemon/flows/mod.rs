//! Flows that were denied, audited or forged, by name, since the daemon began.
//!
//! In: the packets that our rules log (NFLOG), and from the loop who lives where. Out: [`FlowRecord`]s for the control socket,
//! and log lines. A thread of its own does all of it, so that a flood of packets never holds up the loop.
//!
//! | module | owns |
//! |---|---|
//! | `book` | who had which address and port, also a moment ago |
//! | `resolve` | a packet in the words of the policy |
//! | `log` | the records, within bounds |
//! | `totals` | attempts by service and reason, which only grow |
//! | `lines` | which of them are written to the log, and how |
//! | [`record`] | the words of the control socket |

mod book;
mod lines;
mod log;
pub mod record;
mod resolve;
mod totals;

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{info, warn};

use self::book::Book;
use self::lines::Lines;
use self::log::{Log, Noted};
pub use self::record::{Direction, EndKind, FlowEnd, FlowRecord, FlowVerdict, FlowsAnswer, Missed};
use self::resolve::{Patience, Resolved, resolve};
pub use self::totals::{FlowSet, FlowTotals, reason};
use super::chain;
use crate::kernel::nflog::{Logged, Nflog};
use crate::model::Rights;
use crate::plan::Moves;

/// How long a packet waits for the container that it must be of.
const PATIENCE: Duration = Duration::from_secs(2);
/// Packets that wait so; the others are told of as they are.
const WAITING: usize = 512;
/// Before the group is tried again, where it cannot be had.
const RETRY: Duration = Duration::from_secs(10);

/// The log, for those who write it and those who tell it.
#[derive(Debug, Clone)]
pub struct FlowLog {
    log: Arc<Mutex<Log>>,
    failure: Arc<Mutex<Option<String>>>,
}

impl FlowLog {
    /// An empty log that begins now.
    pub fn new(now: Timestamp) -> Self {
        Self {
            log: Arc::new(Mutex::new(Log::new(now))),
            failure: Arc::default(),
        }
    }

    /// What has changed after this `seq`.
    pub fn after(&self, seq: u64) -> FlowsAnswer {
        lock(&self.log).after(seq)
    }

    /// What was attempted in all, and what the log does not hold.
    pub fn totals(&self) -> (FlowTotals, Missed) {
        let mut log = lock(&self.log);
        (log.totals().clone(), log.missed)
    }

    /// Why nothing is told, where that is so.
    pub fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// So many more attempts and packets of this flow, for tests of those who tell it.
    pub fn put(&self, record: FlowRecord) {
        lock(&self.log).put(record);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the loop tells.
#[derive(Debug)]
pub enum Update {
    Moves(Moves),
    Rights(Arc<Rights>),
}

/// The loop's end. The thread ends with it.
#[derive(Debug)]
pub struct Informant(mpsc::Sender<(Instant, Update)>);

impl Informant {
    /// Tells; the thread may be gone only with the process.
    pub fn tell(&self, update: Update) {
        let _ = self.0.send((Instant::now(), update));
    }
}

/// Starts the thread, in the network namespace of the calling one.
///
/// # Errors
/// When the system gives no thread.
pub fn start(flows: FlowLog, group: u16) -> io::Result<Informant> {
    let (sender, updates) = mpsc::channel();
    let reader = Reader {
        flows,
        updates,
        book: Book::default(),
        rights: Arc::default(),
        waiting: VecDeque::new(),
        lines: Lines::default(),
    };
    thread::Builder::new()
        .name("flows".to_owned())
        .spawn(move || reader.run(group))?;
    Ok(Informant(sender))
}

struct Reader {
    flows: FlowLog,
    updates: mpsc::Receiver<(Instant, Update)>,
    book: Book,
    rights: Arc<Rights>,
    waiting: VecDeque<(Instant, Logged)>,
    lines: Lines,
}

/// The loop is gone, and the process is about to be.
struct Over;

impl Reader {
    fn run(mut self, group: u16) {
        while let Ok(()) = self.read(group) {}
    }

    /// Opens the group and reads it until that fails.
    fn read(&mut self, group: u16) -> Result<(), Over> {
        let mut nflog = match Nflog::open(group) {
            Ok(nflog) => nflog,
            Err(error) => return self.pause(chain(&error)),
        };
        if lock(&self.flows.failure).take().is_some() {
            info!(group, "denied flows are told again");
        }
        loop {
            let batch = match nflog.receive() {
                Ok(batch) => batch,
                Err(error) => return self.pause(chain(&error)),
            };
            let now = Instant::now();
            self.take_updates()?;
            if batch.lost > 0 {
                lock(&self.flows.log).missed.lost_packets += batch.lost;
            }
            for logged in batch.packets {
                self.packet(logged, now, Patience::Wait);
            }
            self.look_again(now);
            self.lines.flush(now);
        }
    }

    fn take_updates(&mut self) -> Result<(), Over> {
        loop {
            match self.updates.try_recv() {
                Ok((when, Update::Moves(moves))) => self.book.take(moves, when),
                Ok((_, Update::Rights(rights))) => self.rights = rights,
                Err(mpsc::TryRecvError::Empty) => return Ok(()),
                Err(mpsc::TryRecvError::Disconnected) => return Err(Over),
            }
        }
    }

    /// Nothing can be told for a while, but who lives where is still learned.
    fn pause(&mut self, why: String) -> Result<(), Over> {
        {
            let mut failure = lock(&self.flows.failure);
            if failure.as_ref() != Some(&why) {
                warn!(reason = why, "denied flows are not told");
            }
            *failure = Some(why);
        }
        let end = Instant::now() + RETRY;
        while Instant::now() < end {
            self.take_updates()?;
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn packet(&mut self, logged: Logged, when: Instant, patience: Patience) {
        match resolve(&logged, &self.book, when, patience) {
            Resolved::Nothing => {}
            Resolved::Unknown if self.waiting.len() >= WAITING => self.packet(logged, when, Patience::Over),
            Resolved::Unknown => self.waiting.push_back((when, logged)),
            Resolved::Attempt(attempt) => {
                let noted = lock(&self.flows.log).add(attempt, &self.rights, Timestamp::now());
                if let Noted::Tell(record) = noted {
                    self.lines.tell(&record, Instant::now());
                }
            }
        }
    }

    /// Those that waited, now that more may be known.
    fn look_again(&mut self, now: Instant) {
        for (when, logged) in std::mem::take(&mut self.waiting) {
            let patience = match now.saturating_duration_since(when) >= PATIENCE {
                true => Patience::Over,
                false => Patience::Wait,
            };
            self.packet(logged, when, patience);
        }
    }
}
