//! Where the texts go. Nothing that is there is ever overwritten, and nothing that was learnt is lost.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::daemon::Refusal;

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Stdout,
    File(PathBuf),
    /// A file for each text.
    Directory(PathBuf),
}

impl Target {
    /// A path that ends like a policy file is one; every other is a directory.
    ///
    /// # Errors
    /// When the file is there already, or the directory holds policies.
    pub(super) fn new(path: Option<&Path>) -> Result<Self, Refusal> {
        let Some(path) = path else {
            return Ok(Self::Stdout);
        };
        if !path.is_dir() && is_policy(path) {
            if path.exists() {
                return Err(there_already(path));
            }
            return Ok(Self::File(path.to_owned()));
        }
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::Directory(path.to_owned()));
            }
            Err(error) => return Err(Refusal::system(format!("write into {}", path.display()), error)),
        };
        let mut policies = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_policy(path));
        match policies.next() {
            Some(policy) => Err(there_already(&policy)),
            None => Ok(Self::Directory(path.to_owned())),
        }
    }

    /// Writes named texts, and what is to be said besides. What cannot be written is printed instead.
    pub(super) fn write<'t>(
        &self,
        texts: impl Iterator<Item = (String, &'t str)>,
        rest: &str,
    ) -> Result<(), Refusal> {
        match self {
            Self::Stdout => printed(&joined(texts, rest)),
            Self::File(path) => created(path, &joined(texts, rest)),
            Self::Directory(directory) => {
                let mut result = std::fs::create_dir_all(directory)
                    .map_err(|error| Refusal::system(format!("make {}", directory.display()), error));
                for (name, text) in texts {
                    let path = directory.join(format!("{name}.yaml"));
                    let written = created(&path, text);
                    if written.is_ok() {
                        eprintln!("{}", path.display());
                    }
                    result = result.and(written);
                }
                eprint!("{rest}");
                result
            }
        }
    }
}

fn is_policy(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "yaml" || it == "yml")
}

fn there_already(path: &Path) -> Refusal {
    Refusal::system(
        format!("write {}", path.display()),
        "it is there already, and nothing is overwritten: choose another file or an empty directory",
    )
}

/// As one stream: several documents are for reading, not for a file.
fn joined<'t>(texts: impl Iterator<Item = (String, &'t str)>, rest: &str) -> String {
    let texts: Vec<&str> = texts.map(|(_, text)| text).collect();
    format!("{}{rest}", texts.join("---\n"))
}

fn created(path: &Path, text: &str) -> Result<(), Refusal> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| {
            let _gone = printed(text);
            Refusal::system(format!("write {} (it is printed instead)", path.display()), error)
        })
}

fn printed(text: &str) -> Result<(), Refusal> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Refusal::system("write the result", error))
        }
        _ => Ok(()),
    }
}
