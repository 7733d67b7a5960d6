//! Unix sockets to listen on, with their mode from birth, in directories where nobody else can put one in their place.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, socket};
use nix::unistd::{Gid, chown};
use tokio::net::UnixListener;

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub mode: u32,
    /// `None`: that of this process.
    pub group: Option<Gid>,
}

impl Access {
    /// This user alone.
    pub const OWNER: Self = Self {
        mode: 0o600,
        group: None,
    };
}

/// Opens the socket, in place of one that an earlier process left: it is for the caller to know that it is nobody's.
///
/// # Errors
/// When the directory or the socket cannot be made, when others may write to the directory, and when something stands at
/// the path that is no socket.
pub fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    UnixListener::from_std(bound(path, access)?)
}

/// As [`listen`], for what is not yet in a runtime.
///
/// # Errors
/// As [`listen`].
pub fn bound(path: &Path, access: Access) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(directory) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        require_private(directory)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            let message = "something stands there that is no socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // It is born with the mode that the descriptor has (unix(7) does not say so, `unix_bind` in the kernel does): there is no
    // moment in which others could connect, and no umask, which is every thread's, is touched.
    let descriptor = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    rustix::fs::fchmod(&descriptor, rustix::fs::Mode::from_raw_mode(0o600))?;
    bind(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    // The group before the mode that lets it in.
    if let Some(group) = access.group {
        chown(path, None, Some(group))?;
    }
    if access.mode != Access::OWNER.mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode))?;
    }
    nix::sys::socket::listen(&descriptor, Backlog::MAXCONN)?;
    Ok(descriptor.into())
}

/// Refuses a directory in which others could put a socket of their own in our place.
fn require_private(directory: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(directory)?;
    let ours = [0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid());
    if ours && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    let message = format!(
        "others than root may write to its directory {} (mode {:o}, user {}): `chmod go-w` it or choose another",
        directory.display(),
        metadata.mode() & 0o7777,
        metadata.uid()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}
