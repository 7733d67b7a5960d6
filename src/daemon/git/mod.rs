//! A Git repository as the policy's source.
//!
//! In: the settings, and the commit of the last good policy. Out: [`Report`]s, each with the policy of a new commit that may
//! be put in force, or why it may not. The `git` command works on a bare mirror in the state directory; files are read from
//! its objects.
//!
//! A commit is accepted when it comes after the one in force, is signed where that is asked for, has no faults, and its own
//! `tests` hold. Whatever cannot be told counts as refused.

mod command;
mod tree;
mod watch;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tracing::warn;

pub use self::command::GitError;
use self::command::{Bounds, Git, Signatures};
pub use self::watch::{Watch, watch};
use super::chain;
use super::state::{Good, Origin, Store, private_file};
use crate::policy::{Policy, Test};
use crate::settings::git::{GitSettings, Rewind};

/// The first fetch brings the whole history.
const FETCH: Bounds = Bounds {
    patience: Duration::from_secs(300),
    limit: 1 << 20,
};
/// What was fetched last.
const CANDIDATE: &str = "refs/cofferdam/candidate";
/// The commit in force, so that housekeeping leaves it where it is.
const IN_FORCE: &str = "refs/cofferdam/in-force";
/// The largest file of allowed signers.
const MAX_SIGNERS: usize = 1 << 20;

/// What came of looking at the repository.
#[derive(Debug)]
pub struct Report {
    /// Whether it could be reached; if not, why.
    pub fetched: Result<(), String>,
    pub verdict: Verdict,
}

/// What becomes of the commit that was fetched last.
#[derive(Debug)]
pub enum Verdict {
    /// None was ever fetched.
    Nothing,
    /// It is the one in force.
    InForce,
    /// It may be put in force, and counts as that from now on.
    Accepted(Box<Good>),
    /// What is in force stays.
    Refused { commit: String, why: String },
}

/// Whether the programs are there that this source needs.
///
/// # Errors
/// The one that is missing.
pub async fn require(settings: &GitSettings) -> Result<(), GitError> {
    command::require(match settings.signers {
        Some(_) => Signatures::Required,
        None => Signatures::Ignored,
    })
    .await
}

/// A repository and its mirror.
#[derive(Debug)]
pub struct Repository {
    settings: GitSettings,
    store: Store,
    git: Git,
    /// The commit in force.
    in_force: Option<String>,
    /// Whether the same path of it is in force: the settings may name another since.
    same_path: bool,
}

impl Repository {
    /// Touches nothing yet. `last` is where the last good policy came from: of this repository it is the commit in force.
    pub fn new(settings: GitSettings, state: &Path, last: Option<&Origin>) -> Self {
        let (in_force, same_path) = match last {
            Some(Origin::Git {
                url,
                reference,
                path,
                commit,
            }) if *url == settings.url.to_string() && reference == settings.reference.as_str() => {
                (Some(commit.clone()), path == settings.path.as_str())
            }
            _ => (None, false),
        };
        let digest = Sha256::digest(settings.url.as_str().as_bytes());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self {
            git: Git::new(state.join("git").join(name)),
            store: Store::new(state),
            settings,
            in_force,
            same_path,
        }
    }

    /// The commit in force.
    pub fn in_force(&self) -> Option<&str> {
        self.in_force.as_deref()
    }

    /// Fetches, and judges what was fetched last. Without a connection that is what is there.
    pub async fn refresh(&mut self) -> Report {
        let fetched = self
            .fetch()
            .await
            .map_err(|error| self.without_secrets(&chain(&error)));
        let verdict = match self.judge().await {
            Ok(verdict) => verdict,
            // Whatever was not understood is not put in force.
            Err(error) => Verdict::Refused {
                commit: self.candidate().await.ok().flatten().unwrap_or_default(),
                why: self.without_secrets(&chain(&error)),
            },
        };
        Report { fetched, verdict }
    }

    async fn fetch(&self) -> Result<(), GitError> {
        self.prepare().await?;
        let refspec = format!("+{}:{CANDIDATE}", self.settings.reference.full());
        let arguments = [
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--end-of-options",
            self.settings.url.as_str(),
            &refspec,
        ];
        self.git.run(&arguments, b"", FETCH).await.map(drop)
    }

    /// Makes the mirror where there is none that can be used, and removes those of other repositories.
    async fn prepare(&self) -> Result<(), GitError> {
        let refused = |error: super::state::StateError| GitError::Refused(chain(&error));
        let parent = self.git.directory().parent().unwrap_or(Path::new("/")).to_owned();
        self.store.prepare().map_err(refused)?;
        let mirror = self.git.directory().to_owned();
        let (store, wanted) = (self.store.clone(), mirror.clone());
        let usable = tokio::task::spawn_blocking(move || store.prepare_mirrors(&parent, &wanted))
            .await
            .map_err(|error| GitError::Refused(error.to_string()))?
            .map_err(refused)?;
        if usable
            && self
                .git
                .line(&["rev-parse", "--is-bare-repository"])
                .await
                .is_ok()
        {
            return Ok(());
        }
        if mirror.exists() {
            warn!(mirror = %mirror.display(), "the mirror cannot be used: it is made anew");
        }
        self.store.remove_mirror(&mirror).map_err(refused)?;
        self.git.init().await
    }

    async fn candidate(&self) -> Result<Option<String>, GitError> {
        if !self.git.directory().exists() {
            return Ok(None);
        }
        let name = format!("{CANDIDATE}^{{commit}}");
        match self.git.line(&["rev-parse", "--verify", "--quiet", &name]).await {
            Ok(commit) => Ok(Some(commit)),
            Err(error) if error.code() == Some(1) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn judge(&mut self) -> Result<Verdict, GitError> {
        let Some(commit) = self.candidate().await? else {
            return Ok(Verdict::Nothing);
        };
        let refused = |why: String| Verdict::Refused {
            commit: commit.clone(),
            // Whoever pushed it chose the names in it.
            why: why.chars().filter(|c| !c.is_control()).collect(),
        };
        if let Some(why) = self.objection_to_history(&commit).await? {
            return Ok(refused(why));
        }
        // Also of the commit in force: it may have come before signatures were asked for.
        if let Some(why) = self.objection_to_signature(&commit).await? {
            return Ok(refused(why));
        }
        if self.in_force.as_ref() == Some(&commit) && self.same_path {
            return Ok(Verdict::InForce);
        }
        let sources = tree::read(&self.git, &commit, &self.settings.path).await?;
        let loaded = match sources.load() {
            Ok(loaded) => loaded,
            Err(faults) => {
                let first = faults.iter().next().map(ToString::to_string).unwrap_or_default();
                return Ok(refused(format!("{}, first: {first}", faults.summary())));
            }
        };
        if let Some(why) = failing_test(&loaded.policy) {
            return Ok(refused(why));
        }
        self.git.line(&["update-ref", IN_FORCE, &commit]).await?;
        self.in_force = Some(commit.clone());
        self.same_path = true;
        Ok(Verdict::Accepted(Box::new(Good {
            loaded,
            files: sources.files,
            origin: Origin::Git {
                url: self.settings.url.to_string(),
                reference: self.settings.reference.as_str().to_owned(),
                path: self.settings.path.as_str().to_owned(),
                commit,
            },
            accepted: Timestamp::now(),
        })))
    }

    async fn objection_to_history(&self, commit: &str) -> Result<Option<String>, GitError> {
        let Some(in_force) = &self.in_force else {
            return Ok(None);
        };
        if in_force == commit || self.settings.rewind == Rewind::Allowed {
            return Ok(None);
        }
        let arguments = ["merge-base", "--is-ancestor", in_force, commit];
        match self.git.run(&arguments, b"", Bounds::LOOK).await {
            Ok(_) => Ok(None),
            // 1: it is none; 128: it is not there at all, so the history is another.
            Err(error) if matches!(error.code(), Some(1 | 128)) => Ok(Some(format!(
                "it does not come after {in_force}, the commit in force: history was rewritten \
                 (git-allow-rewind takes it all the same)"
            ))),
            Err(error) => Err(error),
        }
    }

    async fn objection_to_signature(&self, commit: &str) -> Result<Option<String>, GitError> {
        let Some(signers) = &self.settings.signers else {
            return Ok(None);
        };
        if let Err(error) = private_file(signers, MAX_SIGNERS) {
            return Ok(Some(format!("its signature cannot be judged: {}", chain(&error))));
        }
        let signers = format!("gpg.ssh.allowedSignersFile={}", signers.display());
        let arguments = [
            "-c",
            &signers,
            "log",
            "-1",
            "--no-show-signature",
            "--format=%G?",
            commit,
        ];
        let said = match self.git.line(&arguments).await?.as_str() {
            "G" => return Ok(None),
            "N" => "it is not signed",
            "U" => "it is signed with a key that is not among those of the allowed signers",
            "B" => "its signature is wrong",
            "X" | "Y" => "its signature or the key has expired",
            "R" => "the key of its signature was revoked",
            _ => "its signature cannot be checked",
        };
        Ok(Some(said.to_owned()))
    }

    /// git may repeat the URL, with a password.
    fn without_secrets(&self, text: &str) -> String {
        text.replace(self.settings.url.as_str(), &self.settings.url.to_string())
    }
}

/// The first of the policies' own tests that does not hold, with its place.
fn failing_test(policy: &Policy) -> Option<String> {
    let now = Timestamp::now();
    let said = |test: &Test| {
        let message = policy.outcome(test, now).message(test)?;
        Some(format!("{}: {message}", test.location))
    };
    policy.tests.iter().find_map(said)
}
