//! A relay between the daemon and the engine that spoils the event stream: one socket in front of another.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoil {
    Nothing,
    /// None arrives.
    Drop,
    /// Each third arrives.
    DropMost,
    Delay(Duration),
    Duplicate,
    /// Four at a time, the last first.
    Reorder,
    /// The stream ends in the middle of each third event.
    Cut,
    /// Not only events: whatever is asked, no answer comes, and no connection ends.
    Silence,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    path: PathBuf,
    engine: PathBuf,
    spoil: Arc<Mutex<Spoil>>,
    accepting: JoinHandle<()>,
    /// Its end ends every connection.
    alive: watch::Sender<()>,
}

impl Proxy {
    pub(crate) fn open(path: &Path, engine: &Path) -> anyhow::Result<Self> {
        std::fs::remove_file(path).ok();
        let listener = UnixListener::bind(path).context("cannot open the relay's socket")?;
        let spoil = Arc::new(Mutex::new(Spoil::Nothing));
        let (alive, ended) = watch::channel(());
        let accepting = tokio::spawn(accept(listener, engine.to_owned(), Arc::clone(&spoil), ended));
        Ok(Self {
            path: path.to_owned(),
            engine: engine.to_owned(),
            spoil,
            accepting,
            alive,
        })
    }

    pub(crate) fn spoil(&self, how: Spoil) {
        *self.spoil.lock().unwrap_or_else(PoisonError::into_inner) = how;
    }

    /// Another socket at the same path. Connections to the old one stay and carry nothing any more.
    pub(crate) fn replace(&mut self) -> anyhow::Result<()> {
        self.spoil(Spoil::Silence);
        let fresh = Self::open(&self.path, &self.engine)?;
        let old = std::mem::replace(self, fresh);
        old.accepting.abort();
        // Its connections live as long as this process.
        std::mem::forget(old.alive);
        Ok(())
    }
}

async fn accept(
    listener: UnixListener,
    engine: PathBuf,
    spoil: Arc<Mutex<Spoil>>,
    ended: watch::Receiver<()>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (engine, spoil, mut ended) = (engine.clone(), Arc::clone(&spoil), ended.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = relay(client, &engine, &spoil) => {}
                _ = ended.changed() => {}
            }
        });
    }
}

async fn relay(client: UnixStream, engine: &Path, spoil: &Mutex<Spoil>) -> std::io::Result<()> {
    let (mut from_client, to_client) = client.into_split();
    let mut request = vec![0; 16384];
    let length = from_client.read(&mut request).await?;
    hush(spoil).await;
    let (from_engine, mut to_engine) = UnixStream::connect(engine).await?.into_split();
    let request = &request[..length];
    to_engine.write_all(request).await?;
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let events = String::from_utf8_lossy(line).contains("/events");
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_engine).await?;
        to_engine.shutdown().await
    };
    let down = async {
        if events {
            spoiled(from_engine, to_client, spoil).await
        } else {
            plain(from_engine, to_client, spoil).await
        }
    };
    tokio::select! {
        // The client goes first only when it no longer wants the answer.
        result = up => result,
        result = down => result,
    }
}

fn now(spoil: &Mutex<Spoil>) -> Spoil {
    *spoil.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn hush(spoil: &Mutex<Spoil>) {
    while now(spoil) == Spoil::Silence {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn plain(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, spoil: &Mutex<Spoil>) -> std::io::Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        hush(spoil).await;
        to.write_all(&buffer[..length]).await?;
    }
}

/// The engine sends each event as one chunk of `Transfer-Encoding: chunked`, ending in a line feed.
async fn spoiled(from: OwnedReadHalf, mut to: OwnedWriteHalf, spoil: &Mutex<Spoil>) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = String::new();
    loop {
        line.clear();
        if from.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        to.write_all(line.as_bytes()).await?;
        if line == "\r\n" {
            break;
        }
    }
    let (mut count, mut held) = (0_u64, Vec::<Vec<u8>>::new());
    loop {
        if now(spoil) != Spoil::Reorder {
            for event in held.drain(..) {
                send(&mut to, &event).await?;
            }
        }
        let mut size = String::new();
        // What is held goes on after a while without more.
        let next = tokio::time::timeout(Duration::from_millis(300), from.read_line(&mut size));
        match next.await {
            Ok(Ok(0)) => return Ok(()),
            Ok(read) => drop(read?),
            Err(_) if size.is_empty() => {
                for event in held.drain(..).rev() {
                    send(&mut to, &event).await?;
                }
                continue;
            }
            // The rest of a line that was cut by the wait.
            Err(_) => {
                from.read_line(&mut size).await?;
            }
        }
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
            return Ok(());
        };
        let mut event = vec![0; size + 2];
        from.read_exact(&mut event).await?;
        event.truncate(size);
        if size == 0 {
            return to.write_all(b"0\r\n\r\n").await;
        }
        count += 1;
        match now(spoil) {
            Spoil::Nothing => send(&mut to, &event).await?,
            Spoil::Drop => {}
            Spoil::DropMost if count.is_multiple_of(3) => send(&mut to, &event).await?,
            Spoil::DropMost => {}
            Spoil::Delay(time) => {
                tokio::time::sleep(time).await;
                send(&mut to, &event).await?;
            }
            Spoil::Duplicate => {
                send(&mut to, &event).await?;
                send(&mut to, &event).await?;
            }
            Spoil::Reorder => {
                held.push(event);
                if held.len() == 4 {
                    for event in held.drain(..).rev() {
                        send(&mut to, &event).await?;
                    }
                }
            }
            Spoil::Cut if count.is_multiple_of(3) => {
                let half = &event[..size / 2];
                to.write_all(format!("{size:x}\r\n").as_bytes()).await?;
                return to.write_all(half).await;
            }
            Spoil::Cut => send(&mut to, &event).await?,
            Spoil::Silence => hush(spoil).await,
        }
    }
}

async fn send(to: &mut OwnedWriteHalf, event: &[u8]) -> std::io::Result<()> {
    to.write_all(format!("{:x}\r\n", event.len()).as_bytes()).await?;
    to.write_all(event).await?;
    to.write_all(b"\r\n").await
}
