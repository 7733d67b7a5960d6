//! `cofferdam top` on a real terminal, which must be as it was afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam::daemon::control::{Answer, Request, listen, serve_with};
use cofferdam::daemon::flows::FlowLog;
use cofferdam::daemon::status::Status;
use jiff::Timestamp;

const TOP: &str = env!("CARGO_BIN_EXE_cofferdam");
/// The alternate screen is left, and the cursor shown.
const RESTORED: [&str; 2] = ["\x1b[?1049l", "\x1b[?25h"];

fn daemon(socket: &Path) {
    let flows = FlowLog::new(Timestamp::now());
    let answer = move |request| {
        let flows = flows.clone();
        async move {
            match request {
                Request::Flows { after } => Answer::Flows(Box::new(flows.after(after))),
                _ => Answer::Status(Box::new(Status::starting())),
            }
        }
    };
    tokio::spawn(serve_with(listen(socket).unwrap(), answer));
}

/// Runs it on a pseudo-terminal, with its settings told before and after; `end` is what ends it.
fn on_a_terminal(socket: &Path, end: impl FnOnce(&mut dyn Write)) -> String {
    let script = format!(
        "stty rows 24 cols 80; stty -g; sh -c 'echo $$ >{0}.pid; exec {TOP} top --control-socket {0}'; echo code $?; stty -g",
        socket.display()
    );
    let mut child = Command::new("script")
        .args(["-qec", &script, "/dev/null"])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    std::thread::sleep(Duration::from_millis(1500));
    let mut input = child.stdin.take().unwrap();
    end(&mut input);
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(10) {
            let _gone = child.kill();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(input);
    reader.join().unwrap()
}

fn is_restored(output: &str) {
    assert!(output.contains("\x1b[?1049h"), "it never drew: {output:?}");
    assert!(output.contains("starting"), "{output:?}");
    for sequence in RESTORED {
        assert!(output.contains(sequence), "{sequence:?} is missing in {output:?}");
    }
    let settings: Vec<&str> = output
        .lines()
        .map(|line| line.rsplit(['\x1b', '\r']).next().unwrap_or(line).trim())
        .chain(output.lines().map(str::trim))
        .filter(|line| line.matches(':').count() > 20)
        .collect();
    assert!(settings.len() >= 2, "{output:?}");
    assert_eq!(
        settings.first(),
        settings.last(),
        "the terminal's settings changed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_leaves_the_terminal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/control.sock");
    daemon(&socket);
    let by_key =
        tokio::task::block_in_place(|| on_a_terminal(&socket, |input| input.write_all(b"q").unwrap()));
    is_restored(&by_key);
    assert!(by_key.contains("code 0"), "{by_key:?}");
    let by_signal = tokio::task::block_in_place(|| {
        on_a_terminal(&socket, |_| {
            let id = std::fs::read_to_string(socket.with_extension("sock.pid")).unwrap();
            let id = nix::unistd::Pid::from_raw(id.trim().parse().unwrap());
            nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
        })
    });
    is_restored(&by_signal);
}

#[test]
fn without_a_terminal_or_a_daemon_it_says_so() {
    let output = Command::new(TOP)
        .arg("top")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("cofferdam status") && output.stdout.is_empty(),
        "{said}"
    );
    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("nobody.sock");
    let line = format!("{TOP} top --control-socket {}", nobody.display());
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("no daemon answers") && !said.contains("\x1b[?1049h"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(3));
}
