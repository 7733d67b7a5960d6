//! Desired against applied: the ruleset, its elements, networks, and the ordered steps from one state to the next.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod ruleset;
