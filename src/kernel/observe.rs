//! Tables that only count who opens what to whom, for `cofferdam learn`, and are gone when whoever made them is.
//!
//! In: which addresses are near. Out: [`Reading`]s. `table bridge cofferdam_learn` sees every frame that comes in by a bridge's
//! port, whether or not the bridge calls the other families' hooks; `table inet cofferdam_learn` sees what comes from the
//! host and from outside. Both sit before whatever drops, and accept everything.
//!
//! The tables carry `flags owner`: the kernel removes them with the netlink socket that made them, that of an interactive `nft`
//! whose end follows from the end of its input, and so from ours, however we end.

mod reading;
mod rules;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};

pub use self::reading::Reading;
use self::reading::{is_complete, is_there, read};
use super::nft::{Nft, NftError};
use crate::net::Transport;

/// The families in which there is a table.
const FAMILIES: [&str; 2] = ["bridge", "inet"];

/// The name of both tables.
pub const TABLE: &str = "cofferdam_learn";

/// How long nft may take to make the tables, and to list one.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// Of what nft says on standard error.
const ERROR_BYTES: u64 = 4096;

/// Why nothing can be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error("the tables {TABLE} are there already: another `cofferdam learn` is running")]
    Taken,
    #[error("could not run {}", program.display())]
    Run {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "could not make the tables {TABLE} (this needs nft 1.0 and Linux 5.12 or later, for tables that end with their owner): {message}"
    )]
    Refused { message: String },
    #[error("could not read the tables {TABLE}: {message}")]
    Read { message: String },
    #[error("somebody removed the tables {TABLE}")]
    Gone,
    #[error("could not read what nft printed")]
    Malformed(#[source] serde_json::Error),
}

/// The tables, as long as this lives.
#[derive(Debug)]
pub struct Observer {
    program: PathBuf,
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<String>>,
    near: BTreeSet<IpNet>,
    published: BTreeSet<(Transport, u16)>,
}

impl Observer {
    /// Makes the tables. `near` are the addresses of containers and of the host, `published` the ports of the host that
    /// lead to containers.
    ///
    /// # Errors
    /// When nft is missing or the kernel refuses; then there are no tables.
    pub async fn begin(
        near: &BTreeSet<IpNet>,
        published: &BTreeSet<(Transport, u16)>,
    ) -> Result<Self, ObserveError> {
        let program = Nft::find()?.program().to_owned();
        if is_there(&listed(&program).await.unwrap_or_default()) {
            return Err(ObserveError::Taken);
        }
        let mut child = Command::new(&program)
            .arg("-i")
            // Its line editor keeps a history in the home directory; and signals of the terminal are for us alone.
            .env("HOME", "/dev/null")
            .env("TERM", "dumb")
            .env("LC_ALL", "C")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ObserveError::Run {
                program: program.clone(),
                source,
            })?;
        let said = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(keep(stderr, Arc::clone(&said)));
        }
        let Some(stdin) = child.stdin.take() else {
            return Err(ObserveError::Refused {
                message: "nft has no input".to_owned(),
            });
        };
        let mut observer = Self {
            program,
            child,
            stdin,
            said,
            near: BTreeSet::new(),
            published: BTreeSet::new(),
        };
        let mut text = rules::tables();
        text.push_str(&observer.included(near, published));
        text.push_str(&rules::hooks());
        observer.say(&text).await?;
        observer.ready().await?;
        Ok(observer)
    }

    /// Takes in more near addresses and published ports.
    ///
    /// # Errors
    /// When nft is gone.
    pub async fn include(
        &mut self,
        near: &BTreeSet<IpNet>,
        published: &BTreeSet<(Transport, u16)>,
    ) -> Result<(), ObserveError> {
        let text = self.included(near, published);
        self.say(&text).await
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// When the tables are gone.
    pub async fn read(&self) -> Result<Reading, ObserveError> {
        let objects = listed(&self.program).await?;
        match is_complete(&objects) {
            true => Ok(read(&objects)),
            false => Err(ObserveError::Gone),
        }
    }

    /// Removes the tables, and waits until they are gone.
    pub async fn end(self) {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
            // The kernel removes them then, too.
            let _gone_already = child.kill().await;
        }
    }

    fn included(&mut self, near: &BTreeSet<IpNet>, published: &BTreeSet<(Transport, u16)>) -> String {
        let near: Vec<IpNet> = near.difference(&self.near).copied().collect();
        let published: Vec<_> = published.difference(&self.published).copied().collect();
        let text = rules::included(&near, &published);
        self.near.extend(near);
        self.published.extend(published);
        text
    }

    async fn say(&mut self, text: &str) -> Result<(), ObserveError> {
        self.stdin
            .write_all(text.as_bytes())
            .await
            .map_err(|error| ObserveError::Refused {
                message: format!("nft has ended: {}{error}", self.said()),
            })
    }

    fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.trim() {
            "" => String::new(),
            said => format!("{said}; "),
        }
    }

    /// Waits until the last rule is in place; what nft says before is a refusal.
    async fn ready(&mut self) -> Result<(), ObserveError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if listed(&self.program)
                .await
                .is_ok_and(|objects| is_complete(&objects))
            {
                break;
            }
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > deadline || !self.said().is_empty() {
                // Its last words may still be on their way.
                tokio::time::sleep(POLL * 5).await;
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        let said = self.said();
        let ended = self.child.try_wait().ok().flatten();
        match ended {
            None if said.is_empty() => Ok(()),
            None => Err(ObserveError::Refused { message: said }),
            Some(status) => Err(ObserveError::Refused {
                message: format!("{said}{status}"),
            }),
        }
    }
}

async fn keep(stderr: tokio::process::ChildStderr, said: Arc<Mutex<String>>) {
    let mut stderr = stderr;
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if (said.len() as u64) < ERROR_BYTES {
            said.push_str(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()));
        }
    }
}

/// The tables' counters and sets as JSON. Not the tables themselves: nft 1.0.6 prints no JSON of a table with an owner.
async fn listed(program: &Path) -> Result<Vec<Value>, ObserveError> {
    let commands: Vec<String> = ["counters", "sets"]
        .iter()
        .flat_map(|what| FAMILIES.map(|family| format!("list {what} table {family} {TABLE}")))
        .collect();
    let output = Command::new(program)
        .args(["-j", "-n"])
        .arg(commands.join("; "))
        .env("LC_ALL", "C")
        // A signal of the terminal ends the watching, not the reading.
        .process_group(0)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let failed = |message: String| ObserveError::Read { message };
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .map_err(|_| failed(format!("nft did not finish within {} s", PATIENCE.as_secs())))?
        .map_err(|source| ObserveError::Run {
            program: program.to_owned(),
            source,
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(match said.contains("No such file or directory") {
            true => ObserveError::Gone,
            false => failed(said.lines().next().unwrap_or_default().to_owned()),
        });
    }
    // A document for each command.
    let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let mut objects = Vec::new();
    for document in documents {
        if let Some(Value::Array(listed)) = document.map_err(ObserveError::Malformed)?.get_mut("nftables") {
            objects.append(listed);
        }
    }
    Ok(objects)
}
