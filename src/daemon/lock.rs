//! One Cofferdam at a time: a lock on a file that only root and the daemon's user can open.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::libc::O_NOFOLLOW;

use super::Refusal;

/// Where the lock and, by default, the control socket are.
pub const RUNTIME_DIRECTORY: &str = "/run/cofferdam";

/// Holds the lock until dropped; the kernel lets it go when the process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// When another process holds it, or the file cannot be made.
    pub fn take() -> Result<Self, Refusal> {
        let directory = Path::new(RUNTIME_DIRECTORY);
        let path = directory.join("lock");
        let failed =
            |error: std::io::Error| Refusal::system(format!("open the lock {}", path.display()), error);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // The directory may be the daemon's user's: root makes no file by way of a link there.
            .custom_flags(O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Refusal::AlreadyRunning { path }),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}
