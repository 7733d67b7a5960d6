//! The control socket: one request line, one answer line, both JSON. It tells and never changes anything.
//!
//! Mode 0600, in a directory of mode 0700 where we make it; and the peer must be root or this process's user, so that a
//! descriptor that was passed on is of no use. A directory that is there already stays as it is, but one that others may
//! write to is refused: they could put a socket of their own there.
//!
//! Clients that are slow, silent or many cannot keep it from others: of too many, those that have said nothing go first.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::clients::Clients;
use super::flows::FlowsAnswer;
use super::status::Status;
use super::told::Told;
use crate::listener::{self, Access};
use crate::model::Unmanaged;
use crate::policy::{self, SourceFile};

/// A request is a few words.
const LONGEST_REQUEST: u64 = 4096;
/// An answer of 10,000 containers is about 4 MiB.
const LONGEST_ANSWER: u64 = 256 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that the policy files in force may have together to be told; a file has 1 MiB at most.
const MOST_POLICY: usize = 32 * 1024 * 1024;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    Status,
    /// The policy files in force, and the settings that add to their meaning.
    Policy,
    /// Flows that were denied, audited or forged, and have changed after this `seq`; 0: all.
    Flows {
        after: u64,
    },
    /// Everything for Prometheus, in its text format.
    Metrics,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Status(Box<Status>),
    Policy(Box<InForce>),
    Flows(Box<FlowsAnswer>),
    Metrics(String),
    Error(String),
}

/// The policy in force, as it was read. The directory may hold another one by now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// `None`: none was valid yet.
    pub revision: Option<String>,
    pub mode: policy::Mode,
    pub unmanaged: Unmanaged,
    pub files: Vec<PolicyFile>,
}

/// A policy file in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFile {
    pub path: String,
    pub text: String,
}

impl InForce {
    /// Files that were loaded, so they are text.
    pub fn files(files: &[SourceFile]) -> Vec<PolicyFile> {
        let text = |file: &SourceFile| PolicyFile {
            path: file.path.clone(),
            text: String::from_utf8_lossy(&file.bytes).into_owned(),
        };
        files.iter().map(text).collect()
    }

    /// The files as they were read.
    pub fn sources(&self) -> Vec<SourceFile> {
        let source = |file: &PolicyFile| SourceFile {
            path: file.path.clone(),
            bytes: file.text.clone().into_bytes(),
        };
        self.files.iter().map(source).collect()
    }

    pub(super) fn answer(self: Arc<Self>) -> Answer {
        let length: usize = self.files.iter().map(|file| file.text.len()).sum();
        if length > MOST_POLICY {
            return Answer::Error(format!(
                "the policy files in force have {length} bytes: only up to {MOST_POLICY} are told"
            ));
        }
        Answer::Policy(Box::new(Arc::unwrap_or_clone(self)))
    }
}

/// Opens the socket, for this user alone, in place of one that an earlier daemon left: the lock says that it is nobody's.
///
/// # Errors
/// As [`listener::listen`].
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    listener::listen(path, Access::OWNER)
}

/// Tells what is asked for.
pub async fn serve(listener: UnixListener, told: Told) {
    serve_with(listener, move |request| told.clone().answer(request)).await;
}

/// Serves with an answer of this kind, made when it is asked for: at most one at a time, however many ask.
pub async fn serve_with<A, F>(listener: UnixListener, answer: A)
where
    A: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send,
{
    let answers = Arc::new(Answers {
        make: answer,
        last: Mutex::new(None),
    });
    let mut clients = Clients::default();
    loop {
        clients.room().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let asked = Arc::new(AtomicBool::new(false));
                let (answers, has_asked) = (Arc::clone(&answers), Arc::clone(&asked));
                let task = tokio::spawn(async move {
                    let served = timeout(PATIENCE, answers.give(stream, &has_asked)).await;
                    if let Ok(Err(error)) = served {
                        debug!(%error, "a control client went away");
                    }
                });
                clients.add(asked, task.abort_handle());
            }
            Err(error) => {
                warn!(%error, "cannot accept a control client");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Makes answers. Whoever asks gets one that was begun after that, and shares it with all who asked the same meanwhile.
struct Answers<A> {
    make: A,
    last: Mutex<Option<Made>>,
}

/// An answer, and when it was begun.
struct Made {
    request: Request,
    begun: Instant,
    text: Arc<[u8]>,
}

impl<A, F> Answers<A>
where
    A: Fn(Request) -> F,
    F: Future<Output = Answer>,
{
    async fn give(&self, mut stream: UnixStream, asked: &AtomicBool) -> io::Result<()> {
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {peer} may not ask"),
            ));
        }
        let mut line = Vec::new();
        let (reader, mut writer) = stream.split();
        BufReader::new(reader.take(LONGEST_REQUEST))
            .read_until(b'\n', &mut line)
            .await?;
        asked.store(true, Ordering::Relaxed);
        let text = match request(&line) {
            Ok(request) => self.fresh(request).await?,
            Err(message) => encoded(&Answer::Error(message))?,
        };
        writer.write_all(&text).await?;
        writer.shutdown().await
    }

    async fn fresh(&self, request: Request) -> io::Result<Arc<[u8]>> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        let fits = |made: &&Made| made.request == request && made.begun >= asked;
        if let Some(made) = last.as_ref().filter(fits) {
            return Ok(Arc::clone(&made.text));
        }
        let begun = Instant::now();
        let text = encoded(&(self.make)(request).await)?;
        *last = Some(Made {
            request,
            begun,
            text: Arc::clone(&text),
        });
        Ok(text)
    }
}

fn encoded(answer: &Answer) -> io::Result<Arc<[u8]>> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    Ok(text.into())
}

/// Reads a request line.
///
/// # Errors
/// What is wrong with it.
pub fn request(line: &[u8]) -> Result<Request, String> {
    if line.len() as u64 >= LONGEST_REQUEST {
        return Err(format!("not a request: {LONGEST_REQUEST} bytes or more"));
    }
    // With nothing else beside it, which an enum of unit variants would not refuse.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        command: String,
        after: Option<u64>,
    }
    let Line { command, after } =
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    let request =
        serde_json::from_value(serde_json::json!({ "command": command, "after": after.unwrap_or(0) }))
            .map_err(|error| format!("not a request: {error}"))?;
    match (request, after) {
        (Request::Status | Request::Policy | Request::Metrics, Some(_)) => {
            Err(format!("not a request: `after` is not for `{command}`"))
        }
        (request, _) => Ok(request),
    }
}

/// Asks the daemon behind the socket.
///
/// # Errors
/// When there is none, or it does not answer in time.
pub async fn ask(path: &Path, request: Request) -> io::Result<Answer> {
    let exchange = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut text = serde_json::to_vec(&request)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut answer = Vec::new();
        stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
        serde_json::from_slice(&answer).map_err(io::Error::from)
    };
    timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]

        #[test]
        fn no_request_but_those_there_are(line in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "\\{\"command\": ?\"(status|policy|flows|metrics|stop|down)\"(, ?\"[a-z]{0,4}\": ?[0-9\\[\\{]{0,5})?\\}?\n?".prop_map(String::into_bytes),
        ]) {
            match request(&line) {
                Ok(Request::Status) => prop_assert!(String::from_utf8(line).unwrap().contains("status")),
                Ok(Request::Policy) => prop_assert!(String::from_utf8(line).unwrap().contains("policy")),
                Ok(Request::Flows { .. }) => prop_assert!(String::from_utf8(line).unwrap().contains("flows")),
                Ok(Request::Metrics) => prop_assert!(String::from_utf8(line).unwrap().contains("metrics")),
                Err(message) => prop_assert!(message.len() < 5000),
            }
        }
    }

    #[test]
    fn a_request_is_exactly_what_it_must_be() {
        assert_eq!(request(b"{\"command\":\"status\"}\n"), Ok(Request::Status));
        assert_eq!(request(b"{\"command\":\"policy\"}\n"), Ok(Request::Policy));
        assert_eq!(
            request(b"{\"command\":\"flows\"}\n"),
            Ok(Request::Flows { after: 0 })
        );
        assert_eq!(
            request(b"{\"command\":\"flows\",\"after\":7}\n"),
            Ok(Request::Flows { after: 7 })
        );
        for wrong in [
            &b""[..],
            b"{\"command\":\"status\",\"after\":7}",
            b"{\"command\":\"flows\",\"after\":-1}",
            b"status",
            b"{\"command\":\"down\"}",
            b"{\"command\":\"status\",\"force\":true}",
            b"{\"command\":\"status\"} {\"command\":\"status\"}",
            &[b'['; 4096],
            &[0xff; 100],
        ] {
            request(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_policy_that_is_too_long_is_not_told() {
        let with = |length| {
            let file = PolicyFile {
                path: "a.yaml".to_owned(),
                text: " ".repeat(length),
            };
            let policy = InForce {
                files: vec![file],
                ..InForce::default()
            };
            Arc::new(policy).answer()
        };
        assert!(matches!(with(MOST_POLICY), Answer::Policy(_)));
        assert!(matches!(with(MOST_POLICY + 1), Answer::Error(_)));
    }
}
