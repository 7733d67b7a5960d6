//! Goes through a document on a private engine: what `commands` says that its commands are is done, and compared.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::commands::{Step, file, is_commands, matches, normal, not_run, steps};
use crate::host::{Engine, wait_until};
use crate::markdown::parse;
use crate::{blesses, documents, read, root};

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

#[test]
fn blocks_are_replaced_from_the_end() {
    assert_eq!(
        blessed("ab", vec![(0..1, "x".to_owned()), (1..2, "yz".to_owned())]),
        "xyz"
    );
}
