//! The documents' commands are run.
//!
//! A fenced block of `sh` is commands, one a line; one of `console` is commands behind `$ ` or `# ` and what each prints. All of a
//! document run in its order, as root, in a folder of its own, on one private engine. That means:
//!
//! - A block of YAML whose first line is a path (`# policies/shop.yaml`) is a file, and is there from the document's beginning; where
//!   a document shows a file again, the later text counts from its place on.
//! - A command ends with 0, or with what a comment before its block says: `<!-- exits 2 -->` is about the block's last command.
//!   Such a comment may also have lines `before: COMMAND`, which are run first: containers that a document takes for granted,
//!   files of the project (in `$SOURCE`); and a line `stops`: the text tells the reader to end with Ctrl-C what runs in another terminal.
//! - What a `console` block shows is what is printed, standard error included. Times, durations and long hexadecimal numbers may
//!   differ; a line `…` stands for any lines.
//! - `cofferdam run` and `cofferdam socket-filter` go on in the background: they must come up, and end with 0 on SIGTERM. The
//!   next command waits until the daemon has everything in force, and so does each one after a file was changed.
//! - Commands of `NOT_RUN` are not run, for the reason that stands there. Those of Cofferdam are still put before its parser of
//!   arguments (with `--help` behind them): a flag or a command that is not there is found, two flags that exclude each other are not.

use std::path::Path;
use std::process::Command;

use regex::Regex;

use crate::markdown::{Block, parse};
use crate::{documents, read};

/// Document (or `*`), how the command begins, and why it is not run.
const NOT_RUN: [(&str, &str, &str); 13] = [
    (
        "README.md",
        "make demo",
        "takes minutes; it is the demo, which compares for itself",
    ),
    (
        "examples/compose/README.md",
        "",
        "tests/compose.rs does what this page does, with Debian's docker-compose",
    ),
    (
        "docs/install.md",
        "",
        "tests/package.rs and tests/image.rs do what this page does",
    ),
    (
        "docs/gitops.md",
        "cofferdam run --git",
        "the repository is an example; tests/git.rs follows real ones",
    ),
    (
        "docs/learn.md",
        "cofferdam learn --for 2h",
        "watches for two hours; tests/learn.rs does for seconds",
    ),
    (
        "docs/learn.md",
        "cofferdam check learned/",
        "on what the command before would have written",
    ),
    (
        "docs/flows.md",
        "cofferdam flows",
        "shows a forged frame too: tests/faults/flows.rs has one; the tutorial's flows are real",
    ),
    (
        "docs/guard.md",
        "install -m 644",
        "units belong to a host: tests/systemd.rs runs systemd on them",
    ),
    ("docs/guard.md", "systemd-sysusers", "as before"),
    ("docs/guard.md", "systemctl", "as before"),
    (
        "docs/troubleshooting.md",
        "systemctl",
        "needs systemd: tests/systemd.rs",
    ),
    (
        "docs/troubleshooting.md",
        "journalctl",
        "needs a journal: tests/journal.rs",
    ),
    ("docs/proofs.md", "", "these run the tests themselves"),
];

pub(crate) fn not_run(document: &Path, command: &str) -> Option<usize> {
    let of_it =
        |(path, begin, _): &(&str, &str, &str)| document == Path::new(path) && command.starts_with(begin);
    NOT_RUN.iter().position(of_it)
}

/// One command, what it prints where that is shown, and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) command: String,
    pub(crate) prints: Option<String>,
    pub(crate) exits: i32,
    /// A set-up that readers do not see.
    pub(crate) hidden: bool,
    /// What runs in the background is ended before it.
    pub(crate) stops: bool,
}

/// The commands of a block.
pub(crate) fn steps(block: &Block) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut last = 0;
    let mut stops = false;
    for line in block.comment.lines() {
        if let Some(code) = line.trim().strip_prefix("exits ") {
            last = code.parse().unwrap();
        } else if line.trim() == "stops" {
            stops = true;
        } else if let Some(command) = line.trim().strip_prefix("before: ") {
            steps.push(Step {
                command: command.to_owned(),
                prints: None,
                exits: 0,
                hidden: true,
                stops: false,
            });
        }
    }
    for line in block.text.lines() {
        let is_console = block.language == "console";
        let command = if is_console {
            line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "))
        } else {
            Some(line).filter(|it| !it.is_empty() && !it.starts_with('#'))
        };
        match (command, steps.last_mut()) {
            (Some(command), _) => steps.push(Step {
                command: command.to_owned(),
                prints: is_console.then(String::new),
                exits: 0,
                hidden: false,
                stops: std::mem::take(&mut stops),
            }),
            (
                None,
                Some(Step {
                    prints: Some(prints), ..
                }),
            ) => {
                prints.push_str(line);
                prints.push('\n');
            }
            (None, _) => assert!(
                line.is_empty() || line.starts_with('#'),
                "{line} is behind no prompt"
            ),
        }
    }
    steps.last_mut().unwrap().exits = last;
    steps
}

/// The path and text of a block that is a file.
pub(crate) fn file(block: &Block) -> Option<(&str, &str)> {
    let path = block.text.lines().next()?.strip_prefix("# ")?;
    let is_path = !path.contains([' ', ':']) && path.contains('.');
    (block.language == "yaml" && is_path).then_some((path, block.text.as_str()))
}

pub(crate) fn is_commands(block: &Block) -> bool {
    ["sh", "console"].contains(&block.language.as_str())
}

/// What may differ is the same.
pub(crate) fn normal(text: &str) -> Vec<String> {
    const VARYING: [(&str, &str); 6] = [
        // A process.
        (r"\(\d+\)", "(PID)"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d", "TIME"),
        (r"\b[0-9a-f]{12,64}\b", "HEX"),
        (r"\b\d+(\.\d+)? (ms|s|seconds?|minutes?)\b", "DURATION"),
        (r"[ \t]+", " "),
    ];
    let mut text = text.to_owned();
    for (pattern, word) in VARYING {
        text = Regex::new(pattern).unwrap().replace_all(&text, word).into_owned();
    }
    text.trim_end()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// Whether this was printed, where a line `…` stands for any lines.
pub(crate) fn matches(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((line, rest)) if line == "…" => {
            (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..]))
        }
        Some((line, rest)) => printed
            .split_first()
            .is_some_and(|(it, behind)| it == line && matches(rest, behind)),
    }
}

/// Puts a command before the parser of its arguments; what that says against it.
fn refused(command: &str) -> Option<String> {
    let words = command.split(['&', '|', '>', ';', '#']).next().unwrap().trim();
    let output = Command::new("sh")
        .args(["-c", &format!("PATH=\"$0:$PATH\"; {words} --help")])
        .arg(Path::new(env!("CARGO_BIN_EXE_cofferdam")).parent().unwrap())
        .env_clear()
        // Whatever becomes of the `--help`, nothing is done.
        .env("COFFERDAM_SETTINGS", "/nothing")
        .env("COFFERDAM_CONTROL_SOCKET", "/nothing")
        .env("PATH", std::env::var_os("PATH").unwrap())
        .output()
        .unwrap();
    (!output.status.success()).then(|| format!("{words}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn what_is_not_run_is_parsed_and_still_there() {
    let mut used = [false; NOT_RUN.len()];
    let (mut parsed, mut faults) = (0, Vec::new());
    for path in documents() {
        let document = parse(&read(&path));
        for step in document
            .blocks
            .iter()
            .filter(|it| is_commands(it))
            .flat_map(steps)
        {
            let Some(reason) = not_run(&path, &step.command) else {
                continue;
            };
            used[reason] = true;
            if step.command.starts_with("cofferdam ") {
                parsed += 1;
                faults.extend(refused(&step.command));
            }
        }
    }
    for ((path, begin, _), used) in NOT_RUN.iter().zip(used) {
        assert!(used, "{path} has no command `{begin}…` any more");
    }
    assert!(parsed > 0, "no command was parsed");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(refused("cofferdam run --gti x").is_some());
    assert!(refused("cofferdam rnu").is_some());
}

/// Inline commands (`cofferdam status`) are parsed, too.
#[test]
fn commands_within_text_are_parsed() {
    let (mut parsed, mut faults) = (0, Vec::new());
    for path in documents().into_iter().filter(|it| !it.ends_with("CHANGELOG.md")) {
        for (line, span) in parse(&read(&path)).spans {
            // Placeholders are in capitals or cut short.
            if span.starts_with("cofferdam ") && !span.contains(['…', '[', '(']) {
                parsed += 1;
                let span = span.replace("URL", "https://git.example.org/policy.git");
                faults.extend(refused(&span).map(|it| format!("{}:{line}: {it}", path.display())));
            }
        }
    }
    assert!(parsed > 20, "{parsed}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn blocks_are_read_as_they_are_meant() {
    let text = "<!-- exits 2\nbefore: x -->\n```console\n$ a b\nc\n\nd\n# e\n```\n\n```yaml\n# policies/a.yaml\nb: 1\n```\n";
    let document = parse(text);
    let [console, yaml] = document.blocks.as_slice() else {
        panic!("{document:?}")
    };
    let step = |command: &str, prints: Option<&str>, exits, hidden| Step {
        command: command.to_owned(),
        prints: prints.map(str::to_owned),
        exits,
        hidden,
        stops: false,
    };
    let wanted = [
        step("x", None, 0, true),
        step("a b", Some("c\n\nd\n"), 0, false),
        step("e", Some(""), 2, false),
    ];
    assert_eq!(steps(console), wanted);
    assert_eq!(file(yaml), Some(("policies/a.yaml", "# policies/a.yaml\nb: 1\n")));
    let lines = |text: &str| normal(text);
    assert!(matches(&lines("a\n…\nz"), &lines("a\nb\nc\nz")));
    assert!(matches(
        &lines("at 2026-11-27T10:00:00Z in 5 ms"),
        &lines("at 2027-01-01T10:00:00.5Z  in 17 ms")
    ));
    assert!(!matches(&lines("a\n…\nz"), &lines("a\nb")));
    assert!(!matches(&lines("to db:5432"), &lines("to db:5433")));
}
