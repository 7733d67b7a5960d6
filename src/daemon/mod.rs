//! daemon
pub mod source;
