//! Running git: nothing of a repository, of the user's or of the host's settings decides what it does.
//!
//! Every command has a bound on its time and its output. It runs in a process group of its own, so that it ends with
//! whatever it started.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::process::Command;
use tokio::time::timeout;

use crate::settings::git::PROTOCOLS;

/// What of our environment git needs to reach a repository.
const PASSED_ON: [&str; 15] = [
    "PATH",
    "HOME",
    "SSH_AUTH_SOCK",
    "GIT_SSH_COMMAND",
    "GIT_SSL_CAINFO",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "TMPDIR",
];

/// What git is told whatever its files say.
const SETTINGS: [&str; 14] = [
    // Nothing of the mirror is ever run.
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "credential.helper=",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    // Objects that are not well-formed are not taken.
    "transfer.fsckObjects=true",
    // Housekeeping ends with the command that began it.
    "gc.autoDetach=false",
    "maintenance.autoDetach=false",
    "http.followRedirects=initial",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=30",
    // Only signatures of ssh keys count.
    "gpg.program=/bin/false",
    "gpg.x509.program=/bin/false",
];

/// What is kept of a command's words.
const LONGEST_COMPLAINT: u64 = 4096;

/// Why git did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("`{program}` is missing: install the package {package}")]
    Missing {
        program: &'static str,
        package: &'static str,
    },
    #[error("cannot run git {command}")]
    Run { command: String, source: io::Error },
    #[error("git {command} ended with {status}: {said}")]
    Failed {
        command: String,
        status: ExitStatus,
        /// Its last words, on one line.
        said: String,
    },
    #[error("git {command} did not end within {} s and was killed", patience.as_secs())]
    Late { command: String, patience: Duration },
    #[error("git {command} answered more than {limit} bytes and was killed")]
    Excessive { command: String, limit: usize },
    #[error("git {command} answered what cannot be read")]
    Unreadable { command: String },
    #[error("{0}")]
    Refused(String),
}

impl GitError {
    /// The exit code, where git ended by itself.
    pub(super) fn code(&self) -> Option<i32> {
        match self {
            Self::Failed { status, .. } => status.code(),
            _ => None,
        }
    }
}

/// How much a command may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) patience: Duration,
    /// Bytes of its answer.
    pub(super) limit: usize,
}

impl Bounds {
    /// A command that looks at the mirror.
    pub(super) const LOOK: Self = Self {
        patience: Duration::from_secs(30),
        limit: 1 << 20,
    };
}

/// Git for one mirror.
#[derive(Debug, Clone)]
pub(super) struct Git {
    directory: PathBuf,
}

impl Git {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a command on the mirror and returns what it wrote.
    ///
    /// # Errors
    /// Unless it ended with 0 within its bounds.
    pub(super) async fn run(
        &self,
        arguments: &[&str],
        input: &[u8],
        bounds: Bounds,
    ) -> Result<Vec<u8>, GitError> {
        let mut command = prepared();
        command.arg("--git-dir").arg(&self.directory).args(arguments);
        let name = arguments
            .iter()
            .find(|it| !it.starts_with('-') && !it.contains('='));
        finished(command, name.unwrap_or(&"").to_string(), input, bounds).await
    }

    /// As [`Self::run`], for the one line that it writes.
    ///
    /// # Errors
    /// As [`Self::run`], and when it is no text.
    pub(super) async fn line(&self, arguments: &[&str]) -> Result<String, GitError> {
        let bytes = self.run(arguments, b"", Bounds::LOOK).await?;
        String::from_utf8(bytes)
            .map(|text| text.trim_end().to_owned())
            .map_err(|_| GitError::Unreadable {
                command: arguments.first().copied().unwrap_or_default().to_owned(),
            })
    }

    /// Makes the mirror, empty.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) async fn init(&self) -> Result<(), GitError> {
        let mut command = prepared();
        command
            .args([
                "init",
                "--quiet",
                "--bare",
                "--template=",
                "--initial-branch=main",
            ])
            .arg(&self.directory);
        finished(command, "init".to_owned(), b"", Bounds::LOOK)
            .await
            .map(drop)
    }
}

/// Whether the programs are there that a repository needs.
///
/// # Errors
/// The one that is missing.
pub(super) async fn require(signatures: Signatures) -> Result<(), GitError> {
    let mut command = prepared();
    command.arg("--version");
    finished(command, "--version".to_owned(), b"", Bounds::LOOK).await?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|directory| directory.join("ssh-keygen").is_file());
    match signatures {
        Signatures::Required if !there => Err(GitError::Missing {
            program: "ssh-keygen",
            package: "openssh-client",
        }),
        _ => Ok(()),
    }
}

/// Whether commits must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signatures {
    Required,
    Ignored,
}

fn prepared() -> Command {
    let mut command = Command::new("git");
    command.env_clear();
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if std::env::var_os("GIT_SSH_COMMAND").is_none() {
        command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20");
    }
    command
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ALLOW_PROTOCOL", PROTOCOLS.join(":"))
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_NO_LAZY_FETCH", "1")
        .env("GIT_LITERAL_PATHSPECS", "1")
        .current_dir("/");
    for setting in SETTINGS {
        command.args(["-c", setting]);
    }
    command
}

/// Kills a process group, unless its leader was waited for.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may have ended; its number is not another's until it was waited for.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

async fn finished(
    mut command: Command,
    name: String,
    input: &[u8],
    bounds: Bounds,
) -> Result<Vec<u8>, GitError> {
    let Bounds { patience, limit } = bounds;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let failed = |source: io::Error| GitError::Run {
        command: name.clone(),
        source,
    };
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => GitError::Missing {
            program: "git",
            package: "git",
        },
        _ => failed(error),
    })?;
    let leader = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .map(Pid::from_raw);
    let mut group = Group(leader);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // It may end without reading everything.
            let _ = stdin.write_all(input).await;
        }
    };
    let answer = async {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            stdout
                .take(limit as u64 + 1)
                .read_to_end(&mut bytes)
                .await
                .map_err(failed)?;
        }
        if bytes.len() > limit {
            return Err(GitError::Excessive {
                command: name.clone(),
                limit,
            });
        }
        Ok(bytes)
    };
    let complaint = async {
        let mut bytes = Vec::new();
        if let Some(mut stderr) = stderr {
            (&mut stderr)
                .take(LONGEST_COMPLAINT)
                .read_to_end(&mut bytes)
                .await
                .map_err(failed)?;
            copy(&mut stderr, &mut sink()).await.map_err(failed)?;
        }
        Ok(bytes)
    };
    let work = async {
        let ((), bytes, said) = tokio::try_join!(
            async {
                feed.await;
                Ok(())
            },
            answer,
            complaint
        )?;
        let status = child.wait().await.map_err(failed)?;
        Ok((bytes, said, status))
    };
    let (bytes, said, status) = match timeout(patience, work).await {
        Ok(done) => done?,
        Err(_) => {
            return Err(GitError::Late {
                command: name,
                patience,
            });
        }
    };
    group.0 = None;
    if status.success() {
        return Ok(bytes);
    }
    Err(GitError::Failed {
        command: name,
        status,
        said: one_line(&said),
    })
}

/// What a program or a server said, for a log: without control characters.
fn one_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join("; ");
    text.chars().filter(|c| !c.is_control()).take(600).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git() -> Git {
        Git::new(PathBuf::from("/nonexistent"))
    }

    /// How many processes there are with this argument.
    fn processes(argument: &str) -> usize {
        let commands = std::fs::read_dir("/proc").unwrap().flatten();
        let commands = commands.filter_map(|it| std::fs::read(it.path().join("cmdline")).ok());
        commands
            .filter(|line| line.split(|byte| *byte == 0).any(|it| it == argument.as_bytes()))
            .count()
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_what_it_started() {
        let seconds = format!("98{}", std::process::id());
        let alias = format!("alias.hang=!sleep {seconds} & sleep {seconds}");
        let bounds = Bounds {
            patience: Duration::from_millis(1500),
            ..Bounds::LOOK
        };
        let error = git().run(&["-c", &alias, "hang"], b"", bounds).await.unwrap_err();
        assert!(
            matches!(&error, GitError::Late { command, .. } if command == "hang"),
            "{error}"
        );
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while processes(&seconds) > 0 {
            assert!(std::time::Instant::now() < deadline, "it goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn what_answers_too_much_is_killed() {
        let bounds = Bounds {
            limit: 1000,
            ..Bounds::LOOK
        };
        let error = git()
            .run(&["-c", "alias.talk=!yes", "talk"], b"", bounds)
            .await
            .unwrap_err();
        assert!(
            matches!(error, GitError::Excessive { limit: 1000, .. }),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_words_of_a_failure_are_one_line() {
        let git = git();
        let error = git
            .line(&["-c", "alias.fail=!printf 'a\\033\\n\\nb\\n' >&2; exit 3", "fail"])
            .await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), Some(3));
        assert!(error.to_string().ends_with("a; b"), "{error}");
    }
}
