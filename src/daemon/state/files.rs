//! Files that only root may have written, and writing them so that a crash leaves the old or the new one.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use super::StateError;
use crate::fault;

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::System { what, path, source }
}

fn damaged(path: &Path, what: impl Into<String>) -> StateError {
    StateError::Damaged {
        path: path.to_owned(),
        what: what.into(),
    }
}

/// Refuses a directory that is not root's or ours, or that others may write to. A link is no directory.
pub(super) fn require_ours(path: &Path) -> Result<(), StateError> {
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if !metadata.is_dir() {
        return Err(damaged(path, "is not a directory"));
    }
    owned(path, &metadata)
}

fn owned(path: &Path, metadata: &Metadata) -> Result<(), StateError> {
    let owner = metadata.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(damaged(path, format!("belongs to user {owner}")));
    }
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(damaged(
            path,
            format!("has mode {mode:o}: others than its owner may write to it"),
        ));
    }
    Ok(())
}

/// Reads a file that is ours, of so many bytes at the most. Links are not followed.
pub(super) fn read(path: &Path, limit: usize) -> Result<Vec<u8>, StateError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(path)
        .map_err(failed("read", path))?;
    let metadata = file.metadata().map_err(failed("read", path))?;
    if !metadata.is_file() {
        return Err(damaged(path, "is not a regular file"));
    }
    owned(path, &metadata)?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    if bytes.len() > limit {
        return Err(damaged(path, format!("has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Makes a directory of mode 0700, and those above it, where they are missing.
pub(super) fn make_directory(path: &Path) -> Result<(), StateError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("make", path))
}

/// Writes a file that is not there yet, down to the disk.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("write", path))?;
    file.write_all(bytes).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("write", path))
}

/// Replaces a file by one rename.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut draft = OsString::from(path);
    draft.push(".draft");
    let draft = Path::new(&draft);
    remove(draft)?;
    write_new(draft, bytes)?;
    fault::point("state-draft");
    rename(draft, path)
}

/// Renames within a directory, down to the disk.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StateError> {
    fs::rename(from, to).map_err(failed("write", to))?;
    to.parent().map_or(Ok(()), sync_directory)
}

/// Entries of a directory reach the disk by themselves only.
pub(super) fn sync_directory(path: &Path) -> Result<(), StateError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("write", path))
}

/// What is in a directory.
pub(super) fn entries(path: &Path) -> Result<Vec<PathBuf>, StateError> {
    let entries = fs::read_dir(path).map_err(failed("read", path))?;
    let entries: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    entries.map_err(failed("read", path))
}

/// Removes a file, a link or a directory, if there is one.
pub(super) fn remove(path: &Path) -> Result<(), StateError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed("remove", path)),
    }
}
