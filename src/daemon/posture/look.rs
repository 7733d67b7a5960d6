//! What the loop shows of its containers: a few at each look, so that nothing waits for it and nobody needs all of them at once.

use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::inventory::{Container, ContainerId};
use crate::model::{Rights, Standing, Unenforceable, reasons};
use crate::plan::Planner;

/// Containers at one look: about a tenth of a millisecond of the loop.
const AT_ONCE: usize = 32;

/// A question to the loop.
#[derive(Debug)]
pub struct Look {
    /// The container after which it begins; `None`: the first.
    pub after: Option<ContainerId>,
    pub answer: oneshot::Sender<Looked>,
}

/// Its answer.
#[derive(Debug)]
pub struct Looked {
    /// The next ones in the order of their ids; none: that was all.
    pub containers: Vec<Sight>,
    /// The policy in force; `None`: there is none yet.
    pub rights: Option<Arc<Rights>>,
}

/// A container with what follows for it from the policy and from the others.
#[derive(Debug)]
pub struct Sight {
    pub container: Container,
    pub standing: Standing,
    pub reasons: Vec<Unenforceable>,
}

impl Look {
    /// Answers it.
    pub fn show(self, planner: &Planner, rights: Option<&Arc<Rights>>) {
        let begin = match self.after {
            Some(id) => Bound::Excluded(id),
            None => Bound::Unbounded,
        };
        let inventory = planner.inventory();
        let next = inventory
            .containers()
            .range((begin, Bound::Unbounded))
            .take(AT_ONCE)
            .map(|(id, container)| {
                // One that has none yet is nobody's.
                let standing = planner.standings().get(id).cloned();
                let standing = standing.unwrap_or(Standing::Unmanaged);
                Sight {
                    container: container.clone(),
                    reasons: reasons(inventory, planner.standings(), container, &standing),
                    standing,
                }
            });
        // Whoever asked may be gone.
        let _ = self.answer.send(Looked {
            containers: next.collect(),
            rights: rights.cloned(),
        });
    }
}
