//! Policy x inventory: which identity each container has, which networks are guarded, what cannot be enforced and why.
//!
//! In: a [`Policy`] and what `inventory` holds. Out: values that `plan` turns into rules and elements. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod explain;
pub mod graph;
mod identity;
pub mod learn;
mod networks;
mod rights;
mod unenforceable;
mod yaml;

pub use identity::{Identity, Standing, standing};
pub use networks::{Attachment, Role, ServiceNetwork, ServiceNetworks, bridge_name, is_to_be_guarded, owner};
pub use rights::{Rights, Verdict};
pub use unenforceable::{Finding, OnUnenforceable, Unenforceable, findings, is_to_be_cut, reasons};

/// What happens between containers that no service selects.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Unmanaged {
    /// They are untouched towards each other, the world and the host; denied towards managed ones.
    #[default]
    Allow,
    /// They are closed, as if they belonged to a service without edges.
    Deny,
}
