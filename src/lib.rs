//! Cofferdam: a network segmentation policy controller for Docker hosts.
//!
//! One way through the house, from left to right; only [`daemon`] knows both halves:
//!
//! ```text
//! policy ────┐
//!            ├─> model ─> plan ─> kernel, docker
//! inventory ─┘
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the pure rooms (audit, policy, inventory, model, plan, and the pure parts of verify) deny them, each at its own head"
)]

pub mod audit;
pub mod cli;
pub mod confine;
pub mod daemon;
pub mod docker;
pub mod fault;
pub mod filter;
pub mod inventory;
pub mod kernel;
pub mod listener;
pub mod model;
pub mod net;
pub mod plan;
pub mod policy;
pub mod settings;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod verify;
