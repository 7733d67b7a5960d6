//! The policy directory: which files it holds, and their bytes.
//!
//! In: directories and files as the user names them. Out: [`Sources`], in order. A directory is read with its
//! subdirectories; its policy files end in `.yaml` or `.yml`. Names that begin with a dot are left out. A link to a file
//! is followed within the directory (so that Kubernetes' and git-sync's `..data` work); a link that leads nowhere, out of
//! the directory or to another directory is a fault, because the policy would not be what the directory shows.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::policy::{self, Code, Fault, Faults, Loaded, MAX_FILE_BYTES, Reviewed, Revision, SourceFile};

/// What stands at the paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    /// The policy files, by path. Of a file over [`MAX_FILE_BYTES`] only one byte more than that is read.
    pub files: Vec<SourceFile>,
    /// Links that were not followed, directories without policy files.
    pub faults: Vec<Fault>,
}

/// A path that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the policy {}", path.display())]
pub struct SourceError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl Sources {
    /// The policy, as [`policy::load`] reads it.
    ///
    /// # Errors
    /// Every fault of every file and link.
    pub fn load(&self) -> Result<Loaded, Faults> {
        policy::load_with(&self.files, self.faults.clone())
    }

    /// The policy with what a reviewer would ask about it at this moment.
    pub fn review(&self, now: Timestamp) -> Reviewed {
        policy::review(&self.files, self.faults.clone(), now)
    }

    /// The revision of the files, whether they are valid or not.
    pub fn revision(&self) -> Revision {
        policy::revision(&self.files)
    }
}

/// Reads directories and files; one that is named twice counts once.
///
/// # Errors
/// A path that does not exist or cannot be read.
pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Sources, SourceError> {
    let mut reader = Reader::default();
    for path in paths {
        let path = path.as_ref();
        let metadata = fs::metadata(path).map_err(|source| failed(path, source))?;
        if metadata.is_dir() {
            let root = fs::canonicalize(path).map_err(|source| failed(path, source))?;
            let before = (reader.seen.len(), reader.sources.faults.len());
            reader.directory(path, &root)?;
            if before == (reader.seen.len(), reader.sources.faults.len()) {
                reader
                    .fault(
                        Code::NoFiles,
                        path,
                        "the directory holds no policy: no `*.yaml` or `*.yml` file",
                    )
                    .help("to permit nothing, write a file with `cofferdam: 1` and `segment: <name>` alone");
            }
        } else {
            reader.file(path)?;
        }
    }
    let mut sources = reader.sources;
    sources.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

#[derive(Debug, Default)]
struct Reader {
    sources: Sources,
    /// Canonical paths of the files read so far.
    seen: BTreeSet<PathBuf>,
}

impl Reader {
    fn directory(&mut self, directory: &Path, root: &Path) -> Result<(), SourceError> {
        let entries = fs::read_dir(directory).map_err(|source| failed(directory, source))?;
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| failed(directory, source))?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
        }
        paths.sort();
        for path in paths {
            let kind = fs::symlink_metadata(&path)
                .map_err(|source| failed(&path, source))?
                .file_type();
            if kind.is_dir() {
                self.directory(&path, root)?;
            } else if kind.is_symlink() {
                self.link(&path, root)?;
            } else if is_policy(&path) && kind.is_file() {
                self.file(&path)?;
            } else if is_policy(&path) {
                self.fault(Code::Link, &path, "this is not a regular file");
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &Path, root: &Path) -> Result<(), SourceError> {
        let Ok(target) = fs::canonicalize(path) else {
            self.fault(Code::Link, path, "the symbolic link leads nowhere")
                .help("remove it or correct it");
            return Ok(());
        };
        if !target.starts_with(root) {
            self.fault(
                Code::Link,
                path,
                "the symbolic link leads out of the policy directory",
            )
            .help("put the file itself into the directory");
        } else if target.is_dir() {
            self.fault(Code::Link, path, "the symbolic link leads to a directory")
                .help("put the files themselves into the directory");
        } else if is_policy(path) {
            self.file(path)?;
        }
        Ok(())
    }

    /// Never reads more than one byte over the limit.
    fn file(&mut self, path: &Path) -> Result<(), SourceError> {
        let failed = |source| failed(path, source);
        if !self.seen.insert(fs::canonicalize(path).map_err(failed)?) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let limit = MAX_FILE_BYTES as u64 + 1;
        fs::File::open(path)
            .map_err(failed)?
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        self.sources.files.push(SourceFile {
            path: path.display().to_string(),
            bytes,
        });
        Ok(())
    }

    fn fault(&mut self, code: Code, path: &Path, message: &str) -> &mut Fault {
        self.sources
            .faults
            .push(Fault::of_file(code, path.display().to_string(), message));
        let last = self.sources.faults.len() - 1;
        &mut self.sources.faults[last]
    }
}

fn is_policy(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn failed(path: &Path, source: io::Error) -> SourceError {
    SourceError {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const EMPTY: &str = "cofferdam: 1\nsegment: a\n";

    fn names(sources: &Sources, root: &Path) -> Vec<String> {
        let prefix = format!("{}/", root.display());
        sources
            .files
            .iter()
            .map(|file| file.path.replacen(&prefix, "", 1))
            .collect()
    }

    #[test]
    fn a_directory_is_read_with_its_subdirectories_in_order() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        fs::create_dir_all(path.join("team/.hidden")).unwrap();
        for name in [
            "b.yaml",
            "a.yml",
            "notes.txt",
            ".c.yaml",
            "team/d.yaml",
            "team/.hidden/e.yaml",
        ] {
            fs::write(path.join(name), EMPTY).unwrap();
        }
        symlink("team/.hidden/e.yaml", path.join("linked.yaml")).unwrap();
        let sources = read(&[path, &path.join("b.yaml")]).unwrap();
        assert_eq!(
            names(&sources, path),
            ["a.yml", "b.yaml", "linked.yaml", "team/d.yaml"]
        );
        assert!(sources.faults.is_empty());
        assert!(sources.load().is_ok());
    }

    #[test]
    fn links_that_lead_astray_are_faults() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let path = root.path();
        fs::write(elsewhere.path().join("x.yaml"), EMPTY).unwrap();
        fs::write(path.join("a.yaml"), EMPTY).unwrap();
        symlink("nowhere.yaml", path.join("b.yaml")).unwrap();
        symlink(elsewhere.path().join("x.yaml"), path.join("c.yaml")).unwrap();
        symlink(path, path.join("d")).unwrap();
        let sources = read(&[path]).unwrap();
        assert_eq!(names(&sources, path), ["a.yaml"]);
        let faults = sources.load().unwrap_err();
        let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "the symbolic link leads nowhere",
                "the symbolic link leads out of the policy directory",
                "the symbolic link leads to a directory",
            ]
        );
    }

    #[test]
    fn nothing_to_read_is_never_an_empty_policy() {
        let root = tempfile::tempdir().unwrap();
        let sources = read(&[root.path()]).unwrap();
        assert_eq!(sources.load().unwrap_err().into_vec()[0].code, Code::NoFiles);
        assert!(read(&[root.path().join("missing")]).is_err());
    }

    #[test]
    fn a_file_over_the_limit_is_a_fault_and_not_read_whole() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.yaml"), vec![b'#'; 3 * MAX_FILE_BYTES]).unwrap();
        let sources = read(&[root.path()]).unwrap();
        assert_eq!(sources.files[0].bytes.len(), MAX_FILE_BYTES + 1);
        assert_eq!(sources.load().unwrap_err().into_vec()[0].code, Code::TooLarge);
    }
}
