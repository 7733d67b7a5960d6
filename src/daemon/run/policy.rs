//! Which policy is in force: the directory's, or else the last good one.

use super::*;

impl Daemon {
    /// The policy of the start: what is in force before anything else is looked at.
    pub(super) async fn first_policy(&mut self, inputs: &mut Inputs) {
        match self.store.audit() {
            Ok(audit) => self.audit = audit,
            Err(error) => {
                warn!(error = %chain(&error), "since when services are in audit is not known: it counts from now")
            }
        }
        if let Some(settings) = self.settings.git.clone() {
            self.policy.git = Some(GitStatus {
                url: settings.url.to_string(),
                reference: settings.reference.as_str().to_owned(),
                path: settings.path.as_str().to_owned(),
                ..GitStatus::default()
            });
            let last = self
                .fall_back("the repository was not looked at yet".to_owned())
                .await;
            let interval = settings.interval;
            let repository = Repository::new(settings, &self.settings.state_directory, last.as_ref());
            if let Some(git) = &mut self.policy.git {
                git.commit = repository.in_force().map(str::to_owned);
            }
            let (watch, reports) = git::watch(repository, interval);
            self.watch = Some(watch);
            inputs.repository = reports;
            return;
        }
        self.policy.directory = self.settings.policies.display().to_string();
        self.reload("start").await;
        if self.policy.revision.is_none() {
            let why = self.policy.refused.as_ref().map(|it| it.first.clone());
            self.fall_back(why.unwrap_or_default()).await;
        }
    }

    /// Somebody asks to look at once.
    pub(super) async fn hangup(&mut self) -> Option<Cause> {
        match &self.watch {
            Some(watch) => {
                watch.look();
                None
            }
            None => self.reload("SIGHUP").await,
        }
    }

    /// The repository was looked at.
    pub(super) fn repository(&mut self, report: git::Report) -> Option<Cause> {
        let git = self.policy.git.get_or_insert_default();
        let before = git.clone();
        let last_good = self.policy.last_good.is_some();
        match report.fetched {
            Ok(()) => {
                git.fetched = Some(Timestamp::now().to_string());
                if git.failure.take().is_some() {
                    info!("the repository is reached again");
                }
            }
            Err(error) => {
                if git.failure.as_ref() != Some(&error) {
                    warn!(error, "the repository cannot be reached: what is in force stays");
                }
                git.failure = Some(error);
            }
        }
        git.refused = match &report.verdict {
            Verdict::Refused { commit, why } => {
                let refused = RefusedCommit {
                    commit: commit.clone(),
                    why: why.clone(),
                };
                if git.refused.as_ref() != Some(&refused) {
                    let RefusedCommit { commit, why } = &refused;
                    error!(commit, why, "commit refused: what is in force stays");
                }
                Some(refused)
            }
            _ => None,
        };
        let problems = problems(git);
        match (report.verdict, &mut self.policy.last_good) {
            (Verdict::Accepted(good), _) => self.accept(*good),
            (_, Some(last)) if !problems.is_empty() => last.why = problems.join("; "),
            (Verdict::InForce, last) => {
                if let Some(last) = last.take() {
                    info!(since = last.since, "the last good policy is the repository's");
                }
            }
            _ => {}
        }
        let changed =
            self.policy.git.as_ref() != Some(&before) || last_good != self.policy.last_good.is_some();
        changed.then_some("repository")
    }

    /// Reads the policy directory. An invalid policy is refused as a whole: the last good one stays in force.
    pub(super) async fn reload(&mut self, cause: Cause) -> Option<Cause> {
        if self.watch.is_some() {
            return Some(cause);
        }
        let directory = self.settings.policies.clone();
        let read = match tokio::task::spawn_blocking(move || load(&directory)).await {
            Ok(read) => read,
            Err(error) => {
                error!(%error, "the policy could not be read");
                return None;
            }
        };
        match read {
            Ok((loaded, files)) => {
                fault::point("policy-loaded");
                self.policy.refused = None;
                self.accept(Good {
                    loaded,
                    files,
                    origin: Origin::Directory(self.policy.directory.clone()),
                    accepted: Timestamp::now(),
                });
            }
            Err(refused) => {
                if self.policy.refused.as_ref() != Some(&refused) {
                    error!(
                        faults = refused.faults,
                        first = refused.first,
                        "policy refused: the last good one stays in force; `cofferdam check` shows every fault"
                    );
                }
                self.policy.refused = Some(refused);
            }
        }
        Some(cause)
    }

    /// A policy without faults is in force from now on, and kept.
    fn accept(&mut self, good: Good) {
        let revision = good.revision().to_string();
        if let (Some(git), Origin::Git { commit, .. }) = (&mut self.policy.git, &good.origin) {
            git.commit = Some(commit.clone());
            info!(commit, "commit accepted");
        }
        if let Some(last) = self.policy.last_good.take() {
            info!(since = last.since, "the last good policy is not needed any more");
        } else if self.policy.revision.as_ref() == Some(&revision) {
            // The same again, perhaps after a faulty one: the status changes, and a commit is a new one.
            if self.policy.git.is_some() {
                self.keeper.keep(Keep::Policy(Box::new(good)));
            }
            return;
        }
        let (services, edges) = (good.loaded.policy.services.len(), good.loaded.policy.edges.len());
        info!(revision, services, edges, "policy accepted");
        self.put_in_force(&good);
        self.keeper.keep(Keep::Policy(Box::new(good)));
    }

    /// Without a valid policy the last good one is in force, if one was kept and is whole.
    /// Returns where it came from.
    pub(super) async fn fall_back(&mut self, why: String) -> Option<Origin> {
        let store = self.store.clone();
        let read = match tokio::task::spawn_blocking(move || store.last_good()).await {
            Ok(read) => read,
            Err(error) => {
                error!(%error, "the last good policy could not be read");
                return None;
            }
        };
        match read {
            Ok(Some(good)) => {
                let (revision, accepted) = (good.revision().to_string(), good.accepted);
                warn!(revision, %accepted, why, "the last good policy is in force");
                self.policy.last_good = Some(LastGood {
                    accepted: accepted.to_string(),
                    since: Timestamp::now().to_string(),
                    why,
                });
                self.put_in_force(&good);
                Some(good.origin)
            }
            Ok(None) => None,
            Err(error) => {
                let error = chain(&error);
                error!(error, "the last good policy is not used");
                self.state_damaged = Some(format!("the last good policy is not used: {error}"));
                None
            }
        }
    }

    fn put_in_force(&mut self, good: &Good) {
        self.policy.revision = Some(good.revision().to_string());
        self.policy.accepted = Some(good.accepted);
        self.state_damaged = None;
        let rights = self.settings.rights(good.loaded.policy.clone());
        if self.audit.observe(&rights, Timestamp::now()) {
            self.keeper.keep(Keep::Audit(self.audit.clone()));
        }
        self.in_force.send_replace(Arc::new(InForce {
            revision: Some(good.revision().to_string()),
            mode: self.settings.mode,
            unmanaged: self.settings.unmanaged,
            files: InForce::files(&good.files),
        }));
        self.expiry.set(rights.policy);
        self.end_edges();
    }

    /// What came of writing the state.
    pub(super) fn kept(&mut self, kept: Kept) -> Option<Cause> {
        let changed = match kept.failure {
            Some(error) => self.unkept.insert(kept.what, error.clone()) != Some(error),
            None => self.unkept.remove(kept.what).is_some(),
        };
        changed.then_some("state kept")
    }

    /// What is not as it should be about the policy and what is kept of it.
    pub(super) fn policy_reasons(&self) -> impl Iterator<Item = String> {
        let refused = match (&self.policy.last_good, &self.policy.refused) {
            (Some(last), _) => Some(format!(
                "the last good policy, accepted {}, is in force since {}: {}",
                last.accepted, last.since, last.why
            )),
            (None, Some(refused)) => Some(format!(
                "the policy has {} faults, first: {}",
                refused.faults, refused.first
            )),
            (None, None) => None,
        };
        // The last good policy's reason says it already.
        let git = self
            .policy
            .git
            .as_ref()
            .filter(|_| self.policy.last_good.is_none());
        let git = git.map(problems).unwrap_or_default();
        let damaged = self.state_damaged.clone();
        let unkept = self
            .unkept
            .iter()
            .map(|(what, error)| format!("{what} cannot be kept: {error}"));
        refused.into_iter().chain(damaged).chain(unkept).chain(git)
    }
}

/// What keeps the repository's newest commit from being in force.
fn problems(git: &GitStatus) -> Vec<String> {
    let refused = git.refused.as_ref();
    let refused = refused.map(|it| format!("commit {} was refused: {}", it.commit, it.why));
    let failure = git.failure.as_ref();
    let failure = failure.map(|error| format!("the repository cannot be reached: {error}"));
    refused.into_iter().chain(failure).collect()
}

/// Reads and validates the policy directory.
fn load(directory: &Path) -> Result<(Loaded, Vec<SourceFile>), Refused> {
    let unreadable = |error: SourceError| Refused {
        revision: None,
        faults: 1,
        first: chain(&error),
    };
    let sources = source::read(&[directory]).map_err(unreadable)?;
    match sources.load() {
        Ok(loaded) => Ok((loaded, sources.files)),
        Err(faults) => Err(Refused {
            revision: Some(sources.revision().to_string()),
            faults: faults.iter().count(),
            first: faults.iter().next().map(ToString::to_string).unwrap_or_default(),
        }),
    }
}
