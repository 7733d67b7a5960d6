//! Under systemd the log goes to the journal, with its fields.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test fails by panicking, and acts on the system"
)]

mod netns;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The daemon in the namespace's own `/run`, without an engine.
fn daemon(stderr: File, stream: &str) -> Child {
    fs::create_dir_all("/run/home/policies").unwrap();
    fs::write("/run/home/policies/shop.yaml", "cofferdam: 1\nsegment: shop\n").unwrap();
    Command::new(env!("CARGO_BIN_EXE_cofferdam"))
        .args([
            "run",
            "--policies",
            "/run/home/policies",
            "--docker-socket",
            "/run/home/docker.sock",
        ])
        .args([
            "--state-directory",
            "/run/home/state",
            "--control-socket",
            "/run/home/control.sock",
        ])
        .env("JOURNAL_STREAM", stream)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

/// The fields of an entry in the journal's native protocol: `NAME=text`, or the name, the length in eight bytes and the text.
fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&entry[..end], &entry[end + 1..]);
        entry = match line.iter().position(|byte| *byte == b'=') {
            Some(middle) => {
                fields.insert(text(&line[..middle]), text(&line[middle + 1..]));
                rest
            }
            None => {
                let (length, rest) = rest.split_first_chunk().unwrap();
                let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
                fields.insert(text(line), text(&rest[..length]));
                &rest[length + 1..]
            }
        };
    }
    fields
}

fn end(mut daemon: Child) {
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn fields_go_to_the_journal_where_standard_error_is_its() {
    netns::run("fields_go_to_the_journal_where_standard_error_is_its", || {
        fs::create_dir_all("/run/systemd/journal").unwrap();
        let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
        journal.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let stderr = File::create("/run/stderr").unwrap();
        let metadata = stderr.metadata().unwrap();
        let running = daemon(stderr, &format!("{}:{}", metadata.dev(), metadata.ino()));
        let entry = loop {
            let mut entry = [0; 16384];
            let length = journal.recv(&mut entry).unwrap();
            let fields = fields(&entry[..length]);
            if fields.get("MESSAGE").is_some_and(|it| it == "policy accepted") {
                break fields;
            }
        };
        end(running);
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "cofferdam");
        for field in ["REVISION", "SERVICES", "PRIORITY"] {
            assert!(entry.contains_key(field), "{field} is missing from {entry:?}");
        }
        assert_eq!(fs::read_to_string("/run/stderr").unwrap(), "");
        // The twin: standard error is something else, so lines of JSON go there.
        let running = daemon(File::create("/run/stderr").unwrap(), "1:1");
        let mut lines = String::new();
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(100));
            lines = fs::read_to_string("/run/stderr").unwrap();
            if lines.contains("\"message\":\"policy accepted\"") {
                break;
            }
        }
        end(running);
        assert!(lines.contains("\"message\":\"policy accepted\""), "{lines}");
        let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert!(line["level"].is_string(), "{line}");
    });
}
