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

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regex::Regex;
use serde_json::Value;

use crate::host::{Engine, wait_until};
use crate::markdown::{Block, parse};
use crate::{blesses, documents, read, root};

/// Document (or `*`), how the command begins, and why it is not run.
const NOT_RUN: [(&str, &str, &str); 12] = [
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

fn not_run(document: &Path, command: &str) -> Option<usize> {
    let of_it =
        |(path, begin, _): &(&str, &str, &str)| document == Path::new(path) && command.starts_with(begin);
    NOT_RUN.iter().position(of_it)
}

/// One command, what it prints where that is shown, and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    command: String,
    prints: Option<String>,
    exits: i32,
    /// A set-up that readers do not see.
    hidden: bool,
    /// What runs in the background is ended before it.
    stops: bool,
}

/// The commands of a block.
fn steps(block: &Block) -> Vec<Step> {
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
fn file(block: &Block) -> Option<(&str, &str)> {
    let path = block.text.lines().next()?.strip_prefix("# ")?;
    let is_path = !path.contains([' ', ':']) && path.contains('.');
    (block.language == "yaml" && is_path).then_some((path, block.text.as_str()))
}

fn is_commands(block: &Block) -> bool {
    ["sh", "console"].contains(&block.language.as_str())
}

/// What may differ is the same.
fn normal(text: &str) -> Vec<String> {
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
fn matches(shown: &[String], printed: &[String]) -> bool {
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

/// A document that is being gone through.
struct Reader<'a> {
    engine: &'a Engine,
    /// Where its commands run, and where its files are.
    folder: String,
    background: Vec<(String, Child)>,
    /// Something was done that the daemon may have to follow.
    stirred: bool,
    faults: Vec<String>,
}

impl Reader<'_> {
    /// A shell in the engine's namespaces, where the commands before left it.
    fn shell(&self, script: &str) -> Command {
        let bin = self.engine.0.join("bin");
        let script = format!(
            "cd \"$(cat {0}.cwd)\" && export PATH={1}:$PATH && {{ {script}\n}}; code=$?; pwd >{0}.cwd; exit $code",
            self.folder,
            bin.display()
        );
        let mut command = self.engine.command(&["bash", "-c", &script]);
        command.stdin(Stdio::null()).env("SOURCE", root());
        command
    }

    fn write(&mut self, path: &str, text: &str) {
        self.stirred = true;
        let path = Path::new(&self.folder).join(path);
        let script = format!("mkdir -p \"$(dirname '{0}')\" && cat >'{0}'", path.display());
        let mut child = self.shell(&script).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{script}");
    }

    /// Starts what goes on, and waits until it is there.
    fn start(&mut self, command: &str) {
        let log = format!("{}.{}.log", self.folder, self.background.len());
        let words = command.trim_end_matches('&').trim();
        let child = self
            .shell(&format!("exec {words}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        self.background.push((command.to_owned(), child));
        self.stirred = true;
        if let Some((_, rest)) = words.split_once("--listen ") {
            let socket = rest.split(' ').next().unwrap();
            wait_until(command, Some(Path::new(&log)), || {
                self.shell(&format!("test -S {socket}"))
                    .status()
                    .unwrap()
                    .success()
            });
        }
    }

    /// What the daemon was told of is in force.
    fn settle(&mut self) {
        let stirred = std::mem::take(&mut self.stirred);
        let daemon = self
            .background
            .iter()
            .position(|(command, _)| command.contains("cofferdam run"));
        let Some(daemon) = daemon.filter(|_| stirred) else {
            return;
        };
        // It looks at a changed directory after a moment of silence.
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        loop {
            let output = self.engine.cofferdam(&["status", "--json"]).output().unwrap();
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if status["state"] == "enforcing" && status["settled"] == true {
                return;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                let log = fs::read_to_string(format!("{}.{daemon}.log", self.folder)).unwrap_or_default();
                let (state, reasons) = (&status["state"], &status["reasons"]);
                self.faults.push(format!(
                    "{}: the daemon does not enforce: {state} {reasons}\n{log}",
                    self.folder
                ));
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a step; what it printed.
    fn run(&mut self, place: &str, step: &Step) -> String {
        if ["cofferdam run", "cofferdam socket-filter"]
            .iter()
            .any(|it| step.command.starts_with(it))
        {
            self.start(&step.command);
            return String::new();
        }
        self.stirred |= !step.command.starts_with("cofferdam ");
        let begun = Instant::now();
        let output = self
            .shell(&format!("{{ {}\n}} 2>&1", step.command))
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.code() != Some(step.exits) {
            let code = output.status.code();
            self.faults.push(format!(
                "{place}: {} ended with {code:?} and not {}:\n{printed}",
                step.command, step.exits
            ));
        }
        if begun.elapsed() > Duration::from_secs(30) {
            self.faults
                .push(format!("{place}: {} took {:?}", step.command, begun.elapsed()));
        }
        printed
    }

    /// Ends what goes on.
    fn stop(&mut self) {
        for (command, mut child) in self.background.drain(..).rev() {
            kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
            let ended = child.wait().unwrap();
            if !ended.success() {
                self.faults.push(format!("{command} ended with {ended}"));
            }
        }
    }

    /// Ends and removes what the document left.
    fn end(mut self) -> Vec<String> {
        self.settle();
        self.stop();
        let clear = "docker ps -aq | xargs -r docker rm -f; cofferdam down --yes; docker network prune -f; rm -rf /etc/cofferdam";
        let cleared = self.shell(clear).output().unwrap();
        assert!(cleared.status.success(), "{cleared:?}");
        self.faults
    }
}

/// What a document's text becomes when its console blocks show what was printed.
fn blessed(text: &str, mut found: Vec<(Range<usize>, String)>) -> String {
    let mut text = text.to_owned();
    found.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    for (range, block) in found {
        text.replace_range(range, &block);
    }
    text
}

/// Goes through a document; what is wrong with it.
fn go_through(engine: &Engine, path: &Path) -> Vec<String> {
    let text = read(path);
    let document = parse(&text);
    let mut wanted = document
        .blocks
        .iter()
        .filter(|it| is_commands(it))
        .flat_map(steps)
        .filter(|it| !it.hidden);
    if wanted.all(|it| not_run(path, &it.command).is_some()) {
        return Vec::new();
    }
    let name = path.with_extension("").to_string_lossy().replace('/', "-");
    let folder = engine.0.join("documents").join(name);
    fs::create_dir_all(&folder).unwrap();
    let folder = folder.display().to_string();
    fs::write(format!("{folder}.cwd"), &folder).unwrap();
    let mut reader = Reader {
        engine,
        folder,
        background: Vec::new(),
        stirred: false,
        faults: Vec::new(),
    };
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for (path, text) in document.blocks.iter().filter_map(file) {
        first.entry(path).or_insert(text);
    }
    for (path, text) in first {
        reader.write(path, text);
    }
    let mut found = Vec::new();
    for block in &document.blocks {
        let place = format!("{}:{}", path.display(), block.line);
        if let Some((path, text)) = file(block) {
            reader.write(path, text);
        }
        if !is_commands(block) {
            continue;
        }
        let mut shows = String::new();
        for step in steps(block) {
            let mut printed = String::new();
            if not_run(path, &step.command).is_none() {
                if step.stops {
                    reader.stop();
                }
                reader.settle();
                printed = reader.run(&place, &step);
            }
            let Some(shown) = &step.prints else { continue };
            let same = matches(&normal(shown), &normal(&printed)) || not_run(path, &step.command).is_some();
            let prompt = if block.text.contains(&format!("# {}\n", step.command)) {
                '#'
            } else {
                '$'
            };
            let now = if same { shown } else { &printed };
            shows.push_str(&format!("{prompt} {}\n{now}", step.command));
            if !same && !blesses() {
                reader.faults.push(format!(
                    "{place}: {} printed\n{printed}and not\n{shown}",
                    step.command
                ));
            }
        }
        if block.language == "console" {
            found.push((block.range.clone(), shows));
        }
    }
    if blesses() {
        fs::write(root().join(path), blessed(&text, found)).unwrap();
    }
    reader.end()
}

#[test]
fn every_command_is_run() {
    let busybox = Path::new("/bin/busybox");
    assert!(
        busybox.exists(),
        "busybox is missing: install the package busybox (`make setup` does)"
    );
    // The image that readers get from a registry, with the programs that the documents use.
    let image = tempfile::tempdir().unwrap();
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir(image.path().join(folder)).unwrap();
    }
    let listed = Command::new("ldd").arg(busybox).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain(["/bin/busybox"]) {
        let place = image.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(path, place).unwrap();
    }
    for program in ["sh", "sleep", "httpd", "wget", "timeout", "nc"] {
        std::os::unix::fs::symlink("busybox", image.path().join("bin").join(program)).unwrap();
    }
    let engine = Engine::up("book", &["busybox:1.36", image.path().to_str().unwrap()]);
    fs::create_dir(engine.0.join("bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cofferdam"), engine.0.join("bin/cofferdam")).unwrap();

    let chosen = std::env::var("COFFERDAM_DOCUMENT").ok();
    let mut faults = Vec::new();
    for path in documents() {
        if chosen.as_ref().is_none_or(|it| path.ends_with(it)) {
            faults.extend(go_through(&engine, &path));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
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
    assert_eq!(
        blessed("ab", vec![(0..1, "x".to_owned()), (1..2, "yz".to_owned())]),
        "xyz"
    );
}
