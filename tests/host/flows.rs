//! Probes inside containers that go on while something happens to the daemon.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use super::Engine;

/// Within the image.
pub(crate) const PROBE: &str = "/cofferdam-probe";

fn start(engine: &Engine, container: &str, words: &[&str]) -> Child {
    engine
        .command(&[&["docker", "exec", "-i", container, PROBE], words].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// One TCP connection with a request every 20 ms.
pub(crate) struct Held {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Held {
    /// Opens it, which must be possible.
    pub(crate) fn open(engine: &Engine, from: &str, address: &str, port: u16) -> Self {
        let mut child = start(engine, from, &["hold", "tcp", address, &port.to_string(), "20"]);
        let mut held = Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        let said = held.line();
        assert!(said.starts_with("open "), "it cannot be opened: {said}");
        held
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// The longest time without an answer until now, in ms; fails where it broke.
    pub(crate) fn longest_gap_ms(&mut self) -> u64 {
        self.stdin.write_all(b"report\n").unwrap();
        let said = self.line();
        let words: Vec<&str> = said.splitn(5, ' ').collect();
        match words.as_slice() {
            ["report", answers, _, longest, "-"] if *answers != "0" => longest.parse().unwrap(),
            _ => panic!("the connection broke: {said}"),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Flows that are tried all the time: `+tcp/ADDRESS/PORT` are declared, `-…` are not.
pub(crate) struct Tries {
    child: Child,
}

/// What came of one of them.
#[derive(Debug)]
pub(crate) struct Tried {
    pub(crate) declared: bool,
    pub(crate) flow: String,
    pub(crate) attempts: u64,
    pub(crate) successes: u64,
    /// The longest time from one success to the next, in ms.
    pub(crate) longest_gap_ms: Option<u64>,
}

impl Tries {
    pub(crate) fn start(engine: &Engine, from: &str, flows: &[&str]) -> Self {
        let child = start(engine, from, &[&["leak", "stdin"], flows].concat());
        Self { child }
    }

    /// Ends it.
    pub(crate) fn finish(mut self) -> Vec<Tried> {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let tried: Vec<Tried> = text.lines().filter_map(tried).collect();
        assert!(!tried.is_empty(), "{text}");
        for flow in &tried {
            assert!(flow.attempts > 5, "hardly tried: {flow:?}");
        }
        tried
    }
}

/// `flow SIGN PROTO ADDRESS PORT ATTEMPTS SUCCESSES UNABLE FIRST_MS LONGEST_GAP_MS ...`
fn tried(line: &str) -> Option<Tried> {
    let words: Vec<&str> = line.split(' ').collect();
    let [
        "flow",
        sign,
        proto,
        address,
        port,
        attempts,
        successes,
        unable,
        _,
        gap,
        ..,
    ] = words.as_slice()
    else {
        return None;
    };
    assert_eq!(*unable, "0", "{line}");
    Some(Tried {
        declared: *sign == "+",
        flow: format!("{proto}/{address}/{port}"),
        attempts: attempts.parse().unwrap(),
        successes: successes.parse().unwrap(),
        longest_gap_ms: gap.parse().ok(),
    })
}

/// Nothing undeclared passed; what is declared did, and never paused for longer than so many ms.
pub(crate) fn assert_held(tried: &[Tried], longest_gap_ms: u64) {
    for flow in tried {
        if flow.declared {
            let gap = flow.longest_gap_ms;
            assert!(gap.is_some_and(|it| it <= longest_gap_ms), "{flow:?}");
        } else {
            assert_eq!(flow.successes, 0, "it leaked: {flow:?}");
        }
    }
}
