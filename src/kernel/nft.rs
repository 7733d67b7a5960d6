//! Runs `nft` on a structure document: one transaction, all of it or nothing.
//!
//! In: [`Step`]s. Out: nothing, or the text that nft wrote to its standard error.

use std::collections::VecDeque;
use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::render;
use crate::fault;
use crate::plan::ruleset::Step;

/// How long one run of nft may take, unless [`Nft::with_timeout`] says otherwise; a large document may take longer.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// So much more for each MiB of the document: what nft and the kernel need grows faster than a policy (docs/scale.md), and a
/// host that could never load its policy would be worse off.
const FOR_EACH_MIB: Duration = Duration::from_secs(5);
/// Where nft is when the path of a service manager does not say so.
const FURTHER_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// nft can repeat itself once for every command of a document; the first messages tell.
const ERROR_BYTES: usize = 4096;

/// What nft was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `nft -c -j -f -`: nothing changes.
    Check,
    /// `nft -j -f -`: one transaction.
    Apply,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Check => "check",
            Self::Apply => "apply",
        })
    }
}

/// Why the structure is not in the kernel; the transaction is applied as a whole or not at all.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("nft is not installed: install the package nftables")]
    Missing,
    #[error("could not encode the ruleset")]
    Encode(#[source] serde_json::Error),
    #[error("could not run {program} to {phase} the ruleset")]
    Run {
        program: PathBuf,
        phase: Phase,
        #[source]
        source: std::io::Error,
    },
    #[error("could not {phase} the ruleset with nft: {message}")]
    Refused { phase: Phase, message: String },
    /// After a timeout of [`Phase::Apply`] the transaction may have been applied.
    #[error("could not {phase} the ruleset: nft did not finish within {} ms", .limit.as_millis())]
    Timeout { phase: Phase, limit: Duration },
}

impl NftError {
    /// Whether the kernel's tables are certainly as they were before.
    pub fn left_everything(&self) -> bool {
        !matches!(
            self,
            Self::Timeout {
                phase: Phase::Apply,
                ..
            }
        )
    }
}

/// The nft program.
#[derive(Debug, Clone)]
pub struct Nft {
    program: PathBuf,
    timeout: Duration,
    own: Own,
}

/// The processes whose transactions have not been announced yet. A run of nft makes one transaction at most.
#[derive(Debug, Clone, Default)]
struct Own(Arc<Mutex<VecDeque<u32>>>);

impl Own {
    /// Those that failed are never announced: the oldest are forgotten.
    const MOST: usize = 32;

    fn note(&self, pid: u32) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pids.len() >= Self::MOST {
            pids.pop_front();
        }
        pids.push_back(pid);
    }

    fn take(&self, pid: u32) -> bool {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = pids.iter().position(|it| *it == pid);
        found.is_some_and(|index| pids.remove(index).is_some())
    }
}

impl Nft {
    /// Looks for nft in `PATH`, then where the distributions put it.
    pub fn find() -> Result<Self, NftError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let further = FURTHER_DIRECTORIES.iter().map(PathBuf::from);
        Self::find_in(env::split_paths(&path).chain(further))
    }

    fn find_in(directories: impl Iterator<Item = PathBuf>) -> Result<Self, NftError> {
        directories
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join("nft"))
            .find(|program| is_executable(program))
            .map(|program| Self {
                program,
                timeout: DEFAULT_TIMEOUT,
                own: Own::default(),
            })
            .ok_or(NftError::Missing)
    }

    /// The program's path.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// With another limit for each run of nft.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Applies the steps as one transaction. It is not checked before: what is refused changes nothing, and a check would take
    /// as long again.
    pub async fn apply(&self, steps: &[Step]) -> Result<(), NftError> {
        let document = render::document(steps).map_err(NftError::Encode)?;
        fault::point("nft-begins");
        self.run(Phase::Apply, &document).await
    }

    /// Has nft and the kernel look at the steps, and changes nothing.
    pub async fn check(&self, steps: &[Step]) -> Result<(), NftError> {
        let document = render::document(steps).map_err(NftError::Encode)?;
        self.run(Phase::Check, &document).await
    }

    /// Whether this process, or netlink port (its first socket's is the same number), was a run of nft of ours whose
    /// transaction was not accounted for yet.
    pub fn made(&self, pid: u32) -> bool {
        self.own.take(pid)
    }

    async fn run(&self, phase: Phase, document: &[u8]) -> Result<(), NftError> {
        let limit = self.timeout + allowance(document.len());
        timeout(limit, self.run_unbounded(phase, document))
            .await
            .unwrap_or(Err(NftError::Timeout { phase, limit }))
    }

    async fn run_unbounded(&self, phase: Phase, document: &[u8]) -> Result<(), NftError> {
        let fail = |source| NftError::Run {
            program: self.program.clone(),
            phase,
            source,
        };
        let arguments: &[&str] = match phase {
            Phase::Check => &["-c", "-j", "-f", "-"],
            Phase::Apply => &["-j", "-f", "-"],
        };
        let mut child = Command::new(&self.program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(fail)?;
        if phase == Phase::Apply {
            child.id().into_iter().for_each(|pid| self.own.note(pid));
        }
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A child that refuses early closes its end; its own words are the better error.
                let _closed_early = stdin.write_all(document).await;
            }
        };
        let read = async {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                stderr.read_to_end(&mut text).await?;
            }
            Ok(text)
        };
        let ((), text) = tokio::join!(write, read);
        let text = text.map_err(fail)?;
        let status = child.wait().await.map_err(fail)?;
        if status.success() {
            return Ok(());
        }
        Err(NftError::Refused {
            phase,
            message: message(&text, status),
        })
    }
}

/// What a document of so many bytes may take longer than a small one.
fn allowance(bytes: usize) -> Duration {
    FOR_EACH_MIB * u32::try_from(bytes / (1024 * 1024)).unwrap_or(u32::MAX / 8)
}

/// The beginning of what nft said, or how it ended where it said nothing.
fn message(stderr: &[u8], status: std::process::ExitStatus) -> String {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim();
    let shortened = text.get(..text.floor_char_boundary(ERROR_BYTES)).unwrap_or(text);
    if shortened.is_empty() {
        format!("{status}, without a message")
    } else {
        shortened.to_owned()
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(directory: &Path, script: &str) -> Nft {
        let program = directory.join("nft");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Nft::find_in(std::iter::once(directory.to_owned())).unwrap()
    }

    #[test]
    fn a_large_document_may_take_longer() {
        assert_eq!(allowance(1024), Duration::ZERO);
        assert_eq!(allowance(12 * 1024 * 1024 + 5), Duration::from_secs(60));
    }

    #[test]
    fn a_missing_nft_is_named_with_its_package() {
        let empty = tempfile::tempdir().unwrap();
        let error = Nft::find_in(std::iter::once(empty.path().to_owned())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "nft is not installed: install the package nftables"
        );
    }

    #[tokio::test]
    async fn a_hanging_nft_is_an_error_and_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let nft =
            fake(directory.path(), "#!/bin/sh\nexec sleep 60\n").with_timeout(Duration::from_millis(200));
        let error = nft.apply(&[Step::ResetTables]).await.unwrap_err();
        assert!(
            matches!(
                error,
                NftError::Timeout {
                    phase: Phase::Apply,
                    ..
                }
            ),
            "{error}"
        );
        assert!(!error.left_everything());
    }

    #[tokio::test]
    async fn the_words_of_nft_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let nft = fake(
            directory.path(),
            "#!/bin/sh\ncat >/dev/null; echo 'Error: no such thing' >&2; exit 1\n",
        );
        let error = nft.apply(&[Step::ResetTables]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not apply the ruleset with nft: Error: no such thing"
        );
        assert!(error.left_everything());
    }
}
