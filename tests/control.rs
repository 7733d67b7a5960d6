//! The control socket against clients that may not ask, that ask too much, and that only want to be in the way.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cofferdam::daemon::control::{Answer, Request, ask, listen, serve_with};

const STATUS: &[u8] = b"{\"command\":\"status\"}\n";

/// A served socket, whose answers say how many were made before them and are so long.
fn served(length: usize) -> (tempfile::TempDir, PathBuf, Arc<AtomicUsize>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/control.sock");
    let listener = listen(&path).unwrap();
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    tokio::spawn(serve_with(listener, move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            // As long as a dump of many counters takes.
            tokio::time::sleep(Duration::from_millis(5)).await;
            Answer::Error(format!("{number}{}", "0".repeat(length)))
        }
    }));
    (folder, path, made)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

async fn answers_within(path: &Path, limit: Duration) -> Duration {
    let started = Instant::now();
    let answer = ask(path, Request::Status).await.unwrap();
    assert!(matches!(answer, Answer::Error(_)), "{answer:?}");
    let elapsed = started.elapsed();
    assert!(elapsed < limit, "answered only after {elapsed:?}");
    elapsed
}

#[tokio::test]
async fn it_is_for_its_owner_alone() {
    let (_folder, path, _) = served(10);
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    // In place of an earlier one.
    listen(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn a_directory_that_others_may_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("shared");
    fs::create_dir(&directory).unwrap();
    let path = directory.join("control.sock");
    for wide in [0o777, 0o1777, 0o770, 0o702] {
        fs::set_permissions(&directory, Permissions::from_mode(wide)).unwrap();
        let error = listen(&path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains("chmod go-w"), "{error}");
        assert!(!path.exists());
    }
    // Others may look into it: the socket's own mode and the peer's user keep them out.
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
    listen(&path).unwrap();
    assert_eq!((mode(&directory), mode(&path)), (0o755, 0o600));
}

#[tokio::test]
async fn nothing_but_a_socket_is_ever_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    fs::write(&path, "text").unwrap();
    listen(&path).unwrap_err();
    assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    listen(&link).unwrap_err();
    assert_eq!(fs::read_to_string(&path).unwrap(), "text");
}

/// Run by [`another_user_gets_no_answer`] as another user.
#[test]
fn as_another_user() {
    let Some(path) = std::env::var_os("COFFERDAM_TEST_CONTROL_SOCKET") else {
        return;
    };
    let mut stream = UnixStream::connect(path).unwrap();
    let _closed_already = stream.write_all(STATUS);
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"", "another user was told something");
    println!("was not told anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_gets_no_answer() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "becoming another user needs root: run as root"
    );
    let (folder, path, made) = served(10);
    // As if somebody had opened everything by mistake: what is left is the check of the peer.
    let program = folder.path().join("client");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for (path, mode) in [
        (folder.path(), 0o755),
        (path.parent().unwrap(), 0o755),
        (&path, 0o666),
        (&program, 0o755),
    ] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let client = |user| {
        let output = Command::new(&program)
            .args(["--exact", "as_another_user", "--nocapture"])
            .env("COFFERDAM_TEST_CONTROL_SOCKET", &path)
            .uid(user)
            .gid(user)
            .output();
        let output = output.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    let (content, said) = tokio::task::block_in_place(|| client(65534));
    assert!(content && said.contains("was not told anything"), "{said}");
    assert_eq!(made.load(Ordering::SeqCst), 0);
    // The same client as root is told something: so it would have noticed.
    let (content, said) = tokio::task::block_in_place(|| client(0));
    assert!(
        !content && said.contains("another user was told something"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_ten_megabytes_is_cut_short() {
    let (_folder, path, made) = served(10);
    let answer = tokio::task::block_in_place(|| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        // It is not read to its end, so that it may fail.
        let _refused = stream.write_all(&vec![b'['; 10_000_000]);
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        answer
    });
    assert!(answer.len() < 1000);
    assert!(answer.is_empty() || String::from_utf8_lossy(&answer).contains("not a request"));
    assert_eq!(made.load(Ordering::SeqCst), 0);
    answers_within(&path, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_silent_clients_are_not_in_the_way() {
    let (_folder, path, _) = served(10);
    let flood = path.clone();
    let flood = tokio::task::spawn_blocking(move || {
        let open = |_| UnixStream::connect(&flood).ok();
        (0..900).filter_map(open).collect::<Vec<_>>()
    });
    // In the middle of it, and when all are there.
    let during = answers_within(&path, Duration::from_secs(4)).await;
    let silent = flood.await.unwrap();
    assert_eq!(silent.len(), 900);
    let after = answers_within(&path, Duration::from_secs(4)).await;
    // Half a request is as good as none.
    let half: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(&STATUS[..10]).unwrap();
            stream
        })
        .collect();
    let halfway = answers_within(&path, Duration::from_secs(4)).await;
    println!("1,000 silent clients: answered after {during:?}, {after:?} and {halfway:?}");
    drop((silent, half));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_listen_are_not_in_the_way() {
    // More than a socket holds.
    let (_folder, path, _) = served(4_000_000);
    let deaf: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(STATUS).unwrap();
            stream
        })
        .collect();
    let elapsed = answers_within(&path, Duration::from_millis(4900)).await;
    println!("200 deaf clients: answered after {elapsed:?}");
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_share_answers_that_are_fresh() {
    let (_folder, path, made) = served(10);
    let asked: Vec<_> = (0..300)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { ask(&path, Request::Status).await })
        })
        .collect();
    let mut answered = 0;
    for asked in asked {
        answered += usize::from(asked.await.unwrap().is_ok());
    }
    assert_eq!(answered, 300);
    assert!(
        made.load(Ordering::SeqCst) < 100,
        "{made:?} answers for 300 clients"
    );
    let Answer::Error(before) = ask(&path, Request::Status).await.unwrap() else {
        panic!("not the answer of this test");
    };
    let Answer::Error(after) = ask(&path, Request::Status).await.unwrap() else {
        panic!("not the answer of this test");
    };
    assert_ne!(before, after, "an answer is never older than its question");
}
