//! What this process gives up before it begins its work, so that whoever gets hold of it gets hold of little. In: what the work
//! needs. Out: what the kernel could not be held to, each as a sentence.
//!
//! | module | takes |
//! |---|---|
//! | `capabilities` | root's powers, and the way to any by way of other programs |
//! | `landlock` | files, programs, TCP ports, signals to others |
//! | `seccomp` | system calls |
//!
//! All of it counts for the calling thread and for what it starts: it is done while there is no other. What was given up never comes
//! back, also for `nft` and `git`.

mod capabilities;
mod landlock;
mod seccomp;

use std::path::PathBuf;

use caps::Capability;

pub use self::landlock::Connections;
pub use self::seccomp::Sockets;

/// What the work needs.
#[derive(Debug, Clone)]
pub struct Needs {
    pub capabilities: Vec<Capability>,
    /// Read with everything below.
    pub read: Vec<PathBuf>,
    /// Read and changed with everything below.
    pub write: Vec<PathBuf>,
    /// Read and run.
    pub run: Vec<PathBuf>,
    /// The TCP port to listen at.
    pub listen: Option<u16>,
    pub connections: Connections,
    pub sockets: Sockets,
}

impl Needs {
    /// No file, no program and no power: Unix sockets, which are opened by the permissions that they have.
    pub fn sockets_alone() -> Self {
        Self {
            capabilities: Vec::new(),
            read: Vec::new(),
            write: Vec::new(),
            run: Vec::new(),
            listen: None,
            connections: Connections::None,
            sockets: Sockets::Unix,
        }
    }
}

/// Which of the kernel's means are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    pub landlock: bool,
    pub seccomp: bool,
}

impl Default for Means {
    fn default() -> Self {
        Self {
            landlock: true,
            seccomp: true,
        }
    }
}

/// Why nothing could be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("cannot give up capabilities")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("cannot forgo new privileges")]
    NoNewPrivileges(#[source] nix::errno::Errno),
    #[error("cannot restrict itself with Landlock: `landlock: false` does without")]
    Landlock(#[from] ::landlock::RulesetError),
    #[error("cannot restrict itself with seccomp: `seccomp: false` does without")]
    Seccomp(#[from] seccompiler::Error),
}

/// Gives up what is not needed. Returns what the kernel cannot be held to.
///
/// # Errors
/// When the kernel has the means and refuses.
pub fn confine(needs: &Needs, means: Means) -> Result<Vec<String>, ConfineError> {
    capabilities::keep(&needs.capabilities)?;
    nix::sys::prctl::set_no_new_privs().map_err(ConfineError::NoNewPrivileges)?;
    let mut lacks = Vec::new();
    if means.landlock {
        lacks.extend(landlock::restrict(needs)?);
    }
    // Last: it takes the calls that the others are made by.
    if means.seccomp {
        lacks.extend(seccomp::restrict(needs.sockets)?);
    }
    Ok(lacks)
}
