//! The control socket: one request line, one answer line, both JSON. It tells and never changes anything.
//!
//! Mode 0600 in a directory of mode 0700, and the peer must be root or this process's user.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::status::Status;
use crate::kernel::elements::Elements;

/// A request is a few words.
const LONGEST_REQUEST: u64 = 4096;
/// An answer of 10,000 containers is about 4 MiB.
const LONGEST_ANSWER: u64 = 256 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients that are served at once; others wait.
const CLIENTS: usize = 8;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Status,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Status(Box<Status>),
    Error(String),
}

/// Opens the socket, in place of one that an earlier daemon left: the lock says that it is nobody's.
///
/// # Errors
/// When the directory or the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the status's sender is gone.
pub async fn serve(listener: UnixListener, status: watch::Receiver<Arc<Status>>) {
    let slots = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = Arc::clone(&status.borrow());
                tokio::spawn(async move {
                    let served = timeout(PATIENCE, answer(stream, status)).await;
                    if let Ok(Err(error)) = served {
                        debug!(%error, "a control client went away");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a control client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, status: Arc<Status>) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {peer} may not ask"),
        ));
    }
    let mut line = String::new();
    let (reader, mut writer) = stream.split();
    BufReader::new(reader.take(LONGEST_REQUEST))
        .read_line(&mut line)
        .await?;
    let answer = match serde_json::from_str(&line) {
        Ok(Request::Status) => completed(status).await,
        Err(error) => Answer::Error(format!("not a request: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    writer.write_all(&text).await?;
    writer.shutdown().await
}

async fn completed(status: Arc<Status>) -> Answer {
    let result = tokio::task::spawn_blocking(move || {
        let mut status = Arc::unwrap_or_clone(status);
        let mut elements = Elements::open()?;
        status.complete(&mut elements)?;
        Ok::<_, crate::kernel::elements::ElementsError>(status)
    });
    match result.await {
        Ok(Ok(status)) => Answer::Status(Box::new(status)),
        Ok(Err(error)) => Answer::Error(format!("cannot read the kernel's rules: {error}")),
        Err(error) => Answer::Error(format!("the request failed: {error}")),
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
