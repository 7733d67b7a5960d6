//! The daemon: the only room that knows both halves of the house. It feeds the planner with what was seen, carries its
//! plans out, and publishes what came of it.
//!
//! | module | owns |
//! |---|---|
//! | [`run`] | the loop: one pass for each cause |
//! | [`once`] | one reconcile, and the removal of every trace |
//! | [`guard`] | closed rules before the engine starts |
//! | [`executor`] | carrying a plan out, step by step |
//! | `endings` | ending connections, beside the loop |
//! | `expiry` | edges with an end |
//! | [`drift`] | what others change of ours: noticed, put back, counted |
//! | [`reader`] | reading engine objects again after events, never two readings of one at once |
//! | [`source`], [`reload`] | the policy directory, and its changes |
//! | [`git`] | a repository as the policy's source |
//! | [`state`] | the last good policy on disk |
//! | [`metrics`] | the status, and what the loop measures, as Prometheus text |
//! | [`http`] | metrics, the page and what it asks for, over HTTP, on a thread of its own |
//! | `clients` | the connections of a server, and who goes when there are too many |
//! | [`status`], [`told`], [`control`] | what is true now, with what the kernel adds to it, and the socket that tells it |
//! | [`flows`] | flows that were denied, audited or forged, by name |
//! | [`learn`] | watching without a daemon, for `cofferdam learn` |
//! | [`posture`] | what `cofferdam audit` finds, on a thread of its own, for metrics and the page |
//! | `findings` | which containers cannot be held to their rights, told when that changes |
//! | [`usage`] | edges' hits and last use |
//! | [`confine`] | what the daemon needs of the host; everything else it gives up |
//! | [`lock`], [`refusal`] | one daemon at a time; why it does not start |

mod clients;
pub mod confine;
pub mod control;
pub mod doctor;
pub mod drift;
mod endings;
pub mod executor;
mod expiry;
mod findings;
pub mod flows;
pub mod git;
pub mod guard;
pub mod http;
pub mod learn;
pub mod lock;
mod manager;
pub mod metrics;
pub mod once;
pub mod posture;
pub mod preview;
pub mod reader;
pub mod refusal;
pub mod reload;
pub mod run;
pub mod source;
pub mod state;
pub mod status;
pub mod told;
pub mod usage;

pub use endings::host_addresses;
pub use refusal::Refusal;

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
