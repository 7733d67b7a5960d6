//! What `audit` finds, as a running daemon tells it of real containers: in metrics, over HTTP and on the page in a real browser.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "page/browser.rs"]
mod browser;
#[path = "host/mod.rs"]
mod host;

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use browser::Browser;
use host::{Engine, STRICT, wait_until};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

const POLICY: &str = "cofferdam: 1
segment: shop
services:
  web: { select: { name: strict } }
allow:
  - { from: world, to: web, ports: [80] }
";
const ADDRESS: &str = "127.0.0.1:9471";
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

struct Scene {
    engine: Engine,
    /// By its id, so that nobody moves a tag.
    image: String,
}

impl Scene {
    fn run(&self, name: &str, flags: &[&str]) {
        let begin = ["run", "-d", "--name", name];
        let end = [self.image.as_str(), "/bin/sleep", "600"];
        self.engine.docker(&[&begin, &STRICT[..], flags, &end].concat());
    }

    fn cofferdam(&self, arguments: &[&str]) -> Value {
        let output = self.engine.cofferdam(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn metrics(&self) -> String {
        let output = self.engine.cofferdam(&["status", "--metrics"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn is_told(&self, line: &str) {
        wait_until(line, Some(&self.engine.0.join("daemon.log")), || {
            self.metrics().lines().any(|it| it == line)
        });
    }
}

/// The codes of each container's findings, `!` before those that are accepted; of the engine under "".
type Found = BTreeMap<String, Vec<String>>;

/// As the daemon tells them on the page.
async fn on_the_page(browser: &Browser) -> Found {
    let listed = "return [...document.querySelectorAll('.subject')].map(it => [it.dataset.container || '', \
        [...it.querySelectorAll('li')].map(it => (it.className === 'accepted' ? '!' : '') + it.dataset.code).sort()])";
    let pairs: Vec<(String, Vec<String>)> = serde_json::from_value(browser.run(listed).await).unwrap();
    pairs.into_iter().collect()
}

/// As the command does.
fn of_the_command(report: &Value) -> Found {
    let mut found = Found::new();
    for (list, mark) in [("findings", ""), ("accepted", "!")] {
        for finding in report[list].as_array().unwrap() {
            let container = finding["container"].as_str().unwrap_or_default();
            let code = format!("{mark}{}", finding["code"].as_str().unwrap());
            found.entry(container.to_owned()).or_default().push(code);
        }
    }
    found.values_mut().for_each(|codes| codes.sort());
    found
}

#[test]
fn the_daemon_tells_what_the_command_finds() {
    let engine = Engine::up_with(
        "posture",
        &["tools:1", "--tools", "sleep"],
        "--userland-proxy=false",
    );
    let image = engine.docker(&["image", "inspect", "-f", "{{.Id}}", "tools:1"]);
    let scene = Scene { engine, image };
    let engine = &scene.engine;
    engine.docker(&["network", "create", "own"]);
    scene.run("strict", &[]);
    scene.run("raw", &["--cap-add=NET_RAW"]);
    scene.run("known", &["--cap-add=NET_RAW"]);
    scene.run("publishes", &["-p", "127.0.0.1:8081:80"]);
    let baseline = engine.0.join("audit.yaml");
    let acceptance = "accepted: [{ code: CFA008, container: known, reason: pings, until: 2999-12-31 }]\n";
    fs::write(&baseline, acceptance).unwrap();
    let baseline = baseline.to_str().unwrap();
    let policies = engine.policies("policies", POLICY);
    let arguments = ["run", "--policies", &policies, "--http-listen", ADDRESS];
    let log = fs::File::create(engine.0.join("daemon.log")).unwrap();
    let _daemon = Daemon(
        engine
            .cofferdam(&[&arguments[..], &["--audit-baseline", baseline]].concat())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    engine.await_enforcing();

    // Whoever asks first has it looked at.
    assert!(!scene.metrics().contains("cofferdam_audit_findings"));
    scene.is_told("cofferdam_audit_findings{code=\"CFA008\",severity=\"medium\"} 1");
    scene.is_told("cofferdam_audit_accepted_findings{code=\"CFA008\",severity=\"medium\"} 1");
    scene.is_told("cofferdam_audit_findings{code=\"CFA030\",severity=\"medium\"} 1");
    scene.is_told("cofferdam_audit_findings{code=\"CFA001\",severity=\"critical\"} 0");
    scene.is_told("cofferdam_audit_stale_acceptances 0");

    // The page, in the engine's network.
    let init = fs::read_to_string(engine.0.join("init")).unwrap();
    let init = init.split(' ').next().unwrap();
    let network = fs::File::open(format!("/proc/{init}/ns/net")).unwrap();
    let page = || async {
        let folder = tempfile::tempdir().unwrap();
        let browser = Browser::open(folder.path(), (1400, 900), "light").await;
        browser.page.goto(&format!("http://{ADDRESS}/#")).await.unwrap();
        browser
            .until("return state.audit?.at && state.view ? true : null")
            .await;
        browser.run("openTab('audit'); showScene()").await;
        let first = on_the_page(&browser).await;
        // Mended and removed, broken and made: it shows by itself.
        engine.docker(&["rm", "-f", "raw"]);
        scene.run("worse", &["--privileged"]);
        // The daemon looks when there is time for it.
        let begun = Instant::now();
        let shown = "return document.querySelector('[data-container=worse]') !== null";
        while browser.run(shown).await != json!(true) {
            assert!(
                begun.elapsed() < Duration::from_secs(90),
                "it does not look again"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let second = on_the_page(&browser).await;
        browser.close().await;
        (first, second)
    };
    let (first, second) = std::thread::scope(|scope| {
        // Of the thread alone, and of what it starts.
        let inside = scope.spawn(|| {
            setns(&network, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(page())
        });
        inside.join().unwrap()
    });
    let command = of_the_command(&scene.cofferdam(&["audit", "--json", "--baseline", baseline]));
    let codes = |found: &Found, name: &str| found.get(name).cloned().unwrap_or_default();
    assert_eq!(codes(&first, "strict"), [""; 0], "{first:?}");
    assert_eq!(codes(&first, "raw"), ["CFA008"]);
    assert_eq!(codes(&first, "known"), ["!CFA008"]);
    assert_eq!(codes(&first, "publishes"), ["CFA030"]);
    assert!(codes(&first, "").contains(&"CFA104".to_owned()), "{first:?}");
    assert!(!second.contains_key("raw") && codes(&second, "worse").contains(&"CFA002".to_owned()));
    assert_eq!(second, command, "the page and the command");

    // A baseline that is wrong accepts nothing.
    fs::write(
        baseline,
        "accepted: [{ code: CFA008, reason: r, until: 2999-12-31 }]\n",
    )
    .unwrap();
    scene.is_told("cofferdam_audit_findings{code=\"CFA008\",severity=\"medium\"} 1");
}
