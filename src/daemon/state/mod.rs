//! The state directory: the last good policy, and since when services are in audit.
//!
//! In: a policy that was accepted. Out: the same policy at a start that finds none. What is there is only believed when it
//! is whole, belongs to root or this process's user, and nobody else may write to it.
//!
//! ```text
//! format           the number of this layout, as text: of a later one nothing is touched
//! last-good.json   which slot is in force, the revision, the files' paths: replaced by one rename
//! a/, b/           two slots with the files' bytes, 0000.yaml and so on: the one that is not in force is written
//! audit-since.json
//! git/             the mirror of a repository (`daemon::git`)
//! ```
//!
//! Until `last-good.json` is renamed, the slot in force is not touched: a crash leaves the old policy or the new one.

mod audit;
mod files;
mod keeper;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::audit::AuditSince;
pub use self::keeper::{Keep, Keeper, Kept};
use crate::fault;
use crate::policy::{self, Loaded, MAX_FILE_BYTES, Revision, SourceFile};

/// The most bytes and files that are kept of a policy.
pub const MAX_BYTES: usize = 32 << 20;
pub const MAX_FILES: usize = 4096;

/// The layout that this version reads and writes; packaging/debian/preinst knows it, too.
pub const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";
/// Directories without the number are of the versions before there was one.
const FORMAT_WITHOUT_FILE: u32 = 1;
const MANIFEST: &str = "last-good.json";
const AUDIT: &str = "audit-since.json";
/// Locks of a mirror that git leaves behind when it is killed.
const STALE: [&str; 5] = [
    "refs/cofferdam/candidate.lock",
    "refs/cofferdam/in-force.lock",
    "packed-refs.lock",
    "shallow.lock",
    "config.lock",
];
const MAX_FORMAT: usize = 64;
/// What a manifest or a list of services may have: paths have at most 4096 bytes.
const MAX_JSON: usize = 32 << 20;

/// Why the state cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {what} {}", path.display())]
    System {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("a policy of {bytes} bytes in {files} files is too large to be kept")]
    TooLarge { bytes: usize, files: usize },
    #[error(
        "the state directory {} has format {found}, and this version knows no later one than {FORMAT}: a later version of \
         Cofferdam wrote it. Install that one again, or move the directory away and lose the last good policy",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },
}

/// Where a policy came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    Directory(String),
    Git {
        /// Without a password.
        url: String,
        reference: String,
        path: String,
        commit: String,
    },
}

/// A policy that was accepted, with what it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Good {
    pub loaded: Loaded,
    pub files: Vec<SourceFile>,
    pub origin: Origin,
    pub accepted: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Slot {
    A,
    B,
}

impl Slot {
    fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    revision: String,
    accepted: Timestamp,
    origin: Origin,
    slot: Slot,
    /// The files' paths; the N-th file's bytes are in the slot's N-th file.
    files: Vec<String>,
}

/// The state directory. One process at a time writes to it: the one that holds the lock.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Touches nothing yet.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory where it is missing.
    ///
    /// # Errors
    /// When it cannot be made, or is not ours alone.
    pub fn prepare(&self) -> Result<(), StateError> {
        files::make_directory(&self.directory)?;
        files::require_ours(&self.directory)?;
        self.require_known()?;
        if self.recorded()?.is_none() {
            let line = format!("{FORMAT}\n");
            files::replace(&self.directory.join(FORMAT_FILE), line.as_bytes())?;
        }
        Ok(())
    }

    /// Refuses what a later version wrote: this one might misread it, and would damage it by writing.
    ///
    /// # Errors
    /// [`StateError::Newer`]. What cannot be read at all is told where it is used.
    pub fn require_known(&self) -> Result<(), StateError> {
        let found = match self.recorded() {
            Ok(found) => found.unwrap_or(FORMAT_WITHOUT_FILE),
            Err(_) => return Ok(()),
        };
        if found > FORMAT {
            let path = self.directory.clone();
            return Err(StateError::Newer { path, found });
        }
        Ok(())
    }

    /// The number of the directory's layout, where it has one.
    fn recorded(&self) -> Result<Option<u32>, StateError> {
        let path = self.directory.join(FORMAT_FILE);
        let Some(bytes) = self.read(FORMAT_FILE, MAX_FORMAT)? else {
            return Ok(None);
        };
        let number = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|it| it.trim().parse().ok());
        number.map(Some).ok_or_else(|| StateError::Damaged {
            path,
            what: "is not a number".to_owned(),
        })
    }

    /// The last good policy; `None`: none was ever kept.
    ///
    /// # Errors
    /// When what is there must not be used.
    pub fn last_good(&self) -> Result<Option<Good>, StateError> {
        let Some(manifest) = self.manifest()? else {
            return Ok(None);
        };
        let damaged = |what: String| StateError::Damaged {
            path: self.directory.join(MANIFEST),
            what,
        };
        let slot = self.directory.join(manifest.slot.name());
        files::require_ours(&slot)?;
        let mut kept = Vec::new();
        let mut bytes = 0;
        for (index, path) in manifest.files.iter().enumerate() {
            let file = files::read(&slot.join(file_name(index)), MAX_FILE_BYTES)?;
            bytes += file.len();
            require_bounded(bytes, manifest.files.len())?;
            kept.push(SourceFile {
                path: path.clone(),
                bytes: file,
            });
        }
        if policy::revision(&kept).as_str() != manifest.revision {
            return Err(damaged(
                "names another revision than that of the files".to_owned(),
            ));
        }
        let loaded = policy::load(&kept).map_err(|faults| {
            let first = faults.iter().next().map(ToString::to_string).unwrap_or_default();
            damaged(format!(
                "names a policy that has faults with this version: {first}"
            ))
        })?;
        Ok(Some(Good {
            loaded,
            files: kept,
            origin: manifest.origin,
            accepted: manifest.accepted,
        }))
    }

    /// Keeps a policy. One that is kept already, from the same place, keeps its time.
    ///
    /// # Errors
    /// When it cannot be written, or is too large.
    pub fn keep(&self, good: &Good) -> Result<(), StateError> {
        let bytes = good.files.iter().map(|file| file.bytes.len()).sum();
        require_bounded(bytes, good.files.len())?;
        self.prepare()?;
        // What cannot be believed is replaced.
        let there = self.manifest().ok().flatten();
        if let Some(there) = &there
            && there.revision == good.loaded.revision.as_str()
            && there.origin == good.origin
            && self.last_good().is_ok()
        {
            return Ok(());
        }
        let slot = there.map_or(Slot::A, |it| it.slot.other());
        self.write_slot(slot, &good.files)?;
        fault::point("state-slot");
        let manifest = Manifest {
            format: FORMAT,
            revision: good.loaded.revision.to_string(),
            accepted: good.accepted,
            origin: good.origin.clone(),
            slot,
            files: good.files.iter().map(|file| file.path.clone()).collect(),
        };
        self.write_json(MANIFEST, &manifest)
    }

    /// Since when services are in audit, as it was written last.
    ///
    /// # Errors
    /// When what is there must not be used.
    pub fn audit(&self) -> Result<AuditSince, StateError> {
        Ok(self.read_json(AUDIT)?.unwrap_or_default())
    }

    /// Writes since when services are in audit.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_audit(&self, audit: &AuditSince) -> Result<(), StateError> {
        self.prepare()?;
        self.write_json(AUDIT, audit)
    }

    /// Removes every mirror but the one that is wanted, and what commands that were killed left in that one: nobody else
    /// works there. Returns whether it is there and ours.
    pub(super) fn prepare_mirrors(&self, parent: &Path, wanted: &Path) -> Result<bool, StateError> {
        if files::require_ours(parent).is_err() {
            files::remove(parent)?;
            files::make_directory(parent)?;
        }
        for path in files::entries(parent)? {
            if path != wanted {
                files::remove(&path)?;
            }
        }
        if files::require_ours(wanted).is_err() {
            return Ok(false);
        }
        for lock in STALE {
            files::remove(&wanted.join(lock))?;
        }
        for path in files::entries(&wanted.join("objects/pack")).unwrap_or_default() {
            let name = path.file_name().unwrap_or_default();
            if name.as_encoded_bytes().starts_with(b"tmp_") {
                files::remove(&path)?;
            }
        }
        Ok(true)
    }

    /// Removes a mirror, so that it can be made anew.
    pub(super) fn remove_mirror(&self, mirror: &Path) -> Result<(), StateError> {
        files::remove(mirror)
    }

    fn manifest(&self) -> Result<Option<Manifest>, StateError> {
        let manifest: Option<Manifest> = self.read_json(MANIFEST)?;
        if let Some(manifest) = &manifest
            && manifest.format != FORMAT
        {
            return Err(StateError::Damaged {
                path: self.directory.join(MANIFEST),
                what: format!(
                    "has format {}, not {FORMAT}: another version wrote it",
                    manifest.format
                ),
            });
        }
        Ok(manifest)
    }

    fn read_json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>, StateError> {
        self.require_known()?;
        let Some(bytes) = self.read(name, MAX_JSON)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StateError::Damaged {
                path: self.directory.join(name),
                what: format!("cannot be read: {error}"),
            })
    }

    /// The bytes of a file that is ours, in a directory that is; `None`: there is none.
    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, StateError> {
        match std::fs::symlink_metadata(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            _ => files::require_ours(&self.directory)?,
        }
        match files::read(&self.directory.join(name), limit) {
            Err(StateError::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            bytes => bytes.map(Some),
        }
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), StateError> {
        let path = self.directory.join(name);
        let bytes = serde_json::to_vec(value).map_err(|error| StateError::Damaged {
            path: path.clone(),
            what: format!("cannot be made: {error}"),
        })?;
        files::replace(&path, &bytes)
    }

    fn write_slot(&self, slot: Slot, policy: &[SourceFile]) -> Result<(), StateError> {
        let path = self.directory.join(slot.name());
        let draft = self.directory.join("draft");
        files::remove(&draft)?;
        files::make_directory(&draft)?;
        for (index, file) in policy.iter().enumerate() {
            files::write_new(&draft.join(file_name(index)), &file.bytes)?;
        }
        files::sync_directory(&draft)?;
        files::remove(&path)?;
        files::rename(&draft, &path)
    }
}

/// Reads a file that only root or this process's user may have written.
///
/// # Errors
/// When it cannot be read, or others may have written it.
pub(super) fn private_file(path: &Path, limit: usize) -> Result<Vec<u8>, StateError> {
    files::read(path, limit)
}

fn file_name(index: usize) -> String {
    format!("{index:04}.yaml")
}

fn require_bounded(bytes: usize, files: usize) -> Result<(), StateError> {
    if bytes > MAX_BYTES || files > MAX_FILES {
        return Err(StateError::TooLarge { bytes, files });
    }
    Ok(())
}

impl Good {
    /// The revision of its files.
    pub fn revision(&self) -> &Revision {
        &self.loaded.revision
    }
}
