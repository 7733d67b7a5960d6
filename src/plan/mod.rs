//! Desired against applied: the ruleset, its elements, networks, and the ordered steps from one state to the next.
//!
//! In: a policy, the inventory, what was applied last. Out: a [`Plan`] that `daemon` carries out. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod check;
pub mod compare;
pub mod compile;
pub mod diff;
pub mod elements;
pub mod eval;
pub mod flows;
pub mod impact;
pub mod ledger;
pub mod names;
pub mod networks;
mod planner;
mod published;
pub mod ruleset;
mod skeleton;
pub mod structure;

pub use planner::{Doubt, KernelStep, LinkStep, Moment, Moves, Place, Plan, Planner, Resident};
