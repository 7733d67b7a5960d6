//! The Docker Engine: its event stream, full listings, and the networks that we make.
//!
//! In: an engine's Unix socket. Out: narrow types of [`crate::inventory`] and [`EngineEvent`]s. Nothing here knows a
//! policy. The facts in comments were measured on Engine 20.10.24 (API 1.41) unless another one is named.

mod client;
mod containers;
mod events;
mod listing;
mod networks;
mod posture;
mod raw;
#[cfg(any(test, feature = "testkit"))]
pub(crate) mod untrusted;
mod volumes;
mod wire;

pub use client::{Engine, EngineError, EngineVersion};
pub(crate) use client::{FILTER_COMPONENT, FILTER_SOCKET, NEWEST_API, OLDEST_API};
pub(crate) use containers::STOP_GRACE;
pub use events::{Arrived, EngineEvent, subscribe};
pub(crate) use events::{WATCHED_EVENTS, WATCHED_TYPES};
pub use listing::NetworkSnapshot;
pub use networks::{Attachment, NetworkError, NetworkRequest};
pub use volumes::BoundVolumes;
pub(crate) use wire::is_volume_name;
