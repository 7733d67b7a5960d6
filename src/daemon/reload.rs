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
            let handler = move |event: notify::Result<notify::Event>| {
                if event.as_ref().map_or(true, is_change) {
                    let _ = raw.try_send(());
                }
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

/// Reading the policy makes events, too: whoever answered them by reading again would never end.
fn is_change(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_is_told_and_a_reading_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop.yaml");
        std::fs::write(&file, "one").unwrap();
        let mut changes = watch(folder.path());
        // Until the watch is there.
        while timeout(QUIET * 3, changes.recv()).await.is_err() {
            std::fs::write(&file, "two").unwrap();
        }
        while timeout(QUIET * 3, changes.recv()).await.is_ok() {}
        for _ in 0..3 {
            std::fs::read_dir(folder.path()).unwrap().for_each(drop);
            std::fs::read_to_string(&file).unwrap();
        }
        assert!(timeout(QUIET * 5, changes.recv()).await.is_err());
        std::fs::write(&file, "three").unwrap();
        assert!(timeout(PATIENCE * 5, changes.recv()).await.is_ok());
    }
}
