//! Reasons not to start, or not to go on: one sentence that says what to do, and an exit code for each.

use std::path::PathBuf;
use std::process::ExitCode;

use super::git::GitError;
use super::state::StateError;
use crate::confine::ConfineError;
use crate::docker::EngineError;
use crate::kernel::{bridge_netfilter, nft, observe, privilege};
use crate::plan::networks::PoolExhausted;
use crate::settings::SettingsError;

/// Why Cofferdam does not run. Whatever stands in the kernel is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Privilege(#[from] privilege::PrivilegeError),
    #[error(transparent)]
    Nft(#[from] nft::NftError),
    #[error(transparent)]
    Observe(#[from] observe::ObserveError),
    #[error(transparent)]
    BridgeNetfilter(#[from] bridge_netfilter::BridgeNetfilterError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(
        "another Cofferdam is running (it holds {}): stop it first, for example with `systemctl stop cofferdam`",
        path.display()
    )]
    AlreadyRunning { path: PathBuf },
    #[error(
        "{source}: choose another pool with --ipv4-pool or --ipv6-pool, or remove the route or network that takes it"
    )]
    Pool { source: PoolExhausted },
    #[error("the policy is not valid, nothing was changed: `cofferdam check {}` says why", path.display())]
    Policy { path: PathBuf },
    #[error("nothing was changed: {what} since the plan {} was made", path.display())]
    Moved { path: PathBuf, what: &'static str },
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot {what}")]
    System {
        what: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Refusal {
    /// Something of the system failed.
    pub fn system(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::System {
            what: what.into(),
            source: source.into(),
        }
    }

    /// The kernel refused a socket or a subscription.
    pub fn kernel(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::system("talk to the kernel", source)
    }

    /// The process's exit code. 1 is for policies with faults, 2 for usage.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Policy { .. } => 1,
            Self::Settings(_) => 10,
            Self::Privilege(_) => 11,
            Self::Engine(EngineError::TooOld { .. }) => 13,
            Self::Engine(_) => 12,
            Self::Nft(_) => 14,
            Self::Observe(observe::ObserveError::Taken) => 17,
            Self::Observe(_) => 14,
            Self::BridgeNetfilter(_) => 15,
            Self::Pool { .. } => 16,
            Self::AlreadyRunning { .. } => 17,
            Self::State(StateError::Newer { .. }) => 21,
            Self::System { .. } | Self::Confine(_) | Self::State(_) => 18,
            Self::Moved { .. } => 19,
            Self::Git(_) => 20,
        })
    }
}
