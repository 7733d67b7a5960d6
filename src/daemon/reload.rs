//! Says when the policy directory may have changed.

use std::path::Path;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

/// Editors and `git checkout` write several files: wait until it is quiet for this long …
const QUIET: Duration = Duration::from_millis(100);
/// … but never longer than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where a watch is not possible (the directory does not exist yet), look again after this long.
const RETRY: Duration = Duration::from_secs(2);

/// A message for each burst of changes below the directory, until the receiver is dropped. Whether the policy differs is
/// for the receiver to see.
pub fn watch(directory: &Path) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    let directory = directory.to_owned();
    tokio::spawn(async move {
        while !sender.is_closed() {
            let (raw, mut changes) = mpsc::channel(1);
            // A full channel says already that something changed.
            let handler = move |_: notify::Result<notify::Event>| {
                let _ = raw.try_send(());
            };
            let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
                watcher.watch(&directory, RecursiveMode::Recursive)?;
                Ok(watcher)
            });
            match watcher {
                Ok(watcher) => {
                    forward(&directory, &mut changes, &sender).await;
                    drop(watcher);
                }
                Err(error) => {
                    warn!(%error, directory = %directory.display(), "the policy directory cannot be watched yet");
                    sleep(RETRY).await;
                }
            }
            let _ = sender.try_send(());
        }
    });
    receiver
}

/// Passes bursts on until the directory is not the one that is being watched any more, or the receiver is gone.
async fn forward(directory: &Path, changes: &mut mpsc::Receiver<()>, sender: &mpsc::Sender<()>) {
    let watched = inode(directory);
    loop {
        tokio::select! {
            change = changes.recv() => if change.is_none() { return },
            () = sender.closed() => return,
            () = sleep(RETRY) => {
                if inode(directory) != watched {
                    return;
                }
                continue;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && matches!(timeout(QUIET, changes.recv()).await, Ok(Some(()))) {}
        let _ = sender.try_send(());
        if inode(directory) != watched {
            return;
        }
    }
}

fn inode(directory: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(directory)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}
