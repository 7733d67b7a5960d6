//! Real docker-compose beside the daemon: `examples/compose` comes up, is scaled, recreated and taken down; what is declared
//! works at every stage and nothing else does.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "conformance/engine.rs"]
mod engine;
mod host;

use std::process::{Child, Output};

use host::{Engine, said, wait_until};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What compose is to run in place of the example's images. The file names the ports on which each listens.
const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compose");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/compose");
const PROBE: &str = "/cofferdam-probe";

/// The daemon and a host outside of this one, with an engine and compose.
struct Stage {
    engine: Engine,
    daemon: Child,
    /// The client that speaks compose here: of its own, or a part of docker's.
    compose: &'static [&'static str],
}

impl Stage {
    fn open() -> Self {
        let probe = engine::build_probe().unwrap();
        let engine = Engine::up("compose", &[engine::IMAGE, probe.to_str().unwrap()]);
        let has = |words: &[&str]| {
            let output = engine.command(&[words, &["version"]].concat()).output();
            output.is_ok_and(|output| output.status.success())
        };
        let compose: &[&str] = match has(&["docker-compose"]) {
            true => &["docker-compose"],
            false => &["docker", "compose"],
        };
        assert!(
            has(compose),
            "there is no docker-compose: make setup installs Debian's"
        );
        // Behind a router port of this host's, as in the demo of the shop.
        engine.add_world();
        let log = std::fs::File::create(engine.0.join("daemon.log")).unwrap();
        let daemon = engine
            .cofferdam(&["run", "--policies", &format!("{EXAMPLE}/policies")])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        engine.await_enforcing();
        Self {
            engine,
            daemon,
            compose,
        }
    }

    /// Compose with a project of the example.
    fn try_compose(&self, project: &str, arguments: &[&str]) -> Output {
        let files = [
            format!("{EXAMPLE}/{project}/compose.yaml"),
            format!("{IMAGES}/{project}.yaml"),
        ];
        let begin = [self.compose, &["-f", &files[0], "-f", &files[1]]].concat();
        self.engine
            .command(&[&begin[..], arguments].concat())
            .output()
            .unwrap()
    }

    fn compose(&self, project: &str, arguments: &[&str]) -> String {
        let output = self.try_compose(project, arguments);
        assert!(
            output.status.success(),
            "compose {project} {arguments:?}: {}",
            said(&output)
        );
        if arguments[0] == "up" {
            self.engine.await_enforcing();
        }
        String::from_utf8(output.stdout).unwrap()
    }

    fn containers(&self, project: &str, service: &str) -> Vec<String> {
        let ids = self.compose(project, &["ps", "-q", service]);
        ids.lines().map(str::to_owned).collect()
    }

    /// From every container of one service to all addresses behind a name, which are so many: each answers, or none does.
    fn expect(&self, from: (&str, &str), place: &str, port: u16, addresses: usize, open: bool) {
        let callers = self.containers(from.0, from.1);
        assert!(!callers.is_empty(), "{from:?} has no container");
        for caller in callers {
            let run_as = ["docker", "exec", "-i", &caller, PROBE];
            let answers = self.engine.ask(&run_as, &format!("name:{place}"), port);
            assert_eq!(answers.len(), addresses, "{from:?} asks for {place}: {answers:?}");
            assert!(
                answers.iter().all(|(_, answered)| *answered == open),
                "{from:?} -> {place}:{port} should be {}: {answers:?}",
                if open { "open" } else { "closed" }
            );
        }
    }

    /// The shop as its policy has it, with so many containers of `api`.
    fn shop_holds(&self, apis: usize) {
        self.expect(("shop", "web"), "api", 8000, apis, true);
        self.expect(("shop", "web"), "db", 5432, 1, false);
        self.expect(("shop", "api"), "db", 5432, 1, true);
        self.expect(("shop", "api"), "db", 5433, 1, false);
        self.expect(("shop", "api"), "web", 80, 1, false);
        self.expect(("shop", "db"), "api", 8000, apis, false);
        let probe = engine::target_directory().join("debug/cofferdam-probe");
        let world = ["ip", "netns", "exec", "world", probe.to_str().unwrap()];
        assert_eq!(
            self.engine.ask(&world, "198.51.100.1", 8080),
            [("198.51.100.1".to_owned(), true)],
            "the published port"
        );
        // Published as well, by the test's own file: no edge says so.
        assert_eq!(
            self.engine.ask(&world, "198.51.100.1", 8432),
            [("198.51.100.1".to_owned(), false)],
            "a published port without an edge"
        );
    }

    fn networks(&self) -> Vec<String> {
        let names = self.engine.docker(&["network", "ls", "--format", "{{.Name}}"]);
        let engines_own = ["bridge", "host", "none"];
        let mut names: Vec<String> = names
            .lines()
            .filter(|name| !engines_own.contains(name))
            .map(str::to_owned)
            .collect();
        names.sort_unstable();
        names
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.daemon.kill().ok();
        self.daemon.wait().ok();
    }
}

#[test]
fn two_projects_come_up_are_scaled_recreated_and_taken_down() {
    let mut stage = Stage::open();
    let early = stage.try_compose("reports", &["up", "-d"]);
    assert!(!early.status.success(), "a network that is not there is named");
    let reason = said(&early);
    assert!(
        reason.contains("cofferdam-shop-db") && reason.contains("found"),
        "{reason}"
    );

    stage.compose("shop", &["up", "-d"]);
    stage.shop_holds(1);

    stage.compose("shop", &["up", "-d", "--scale", "api=3"]);
    assert_eq!(stage.containers("shop", "api").len(), 3);
    stage.shop_holds(3);

    let before = stage.containers("shop", "db");
    stage.compose("shop", &["up", "-d", "--force-recreate", "--scale", "api=2"]);
    assert_ne!(stage.containers("shop", "db"), before, "it was not recreated");
    stage.shop_holds(2);

    // Another project names our network. Compose and the daemon both attach it.
    stage.compose("reports", &["up", "-d"]);
    stage.expect(("reports", "export"), "db", 5432, 1, true);
    stage.expect(("reports", "export"), "db", 5433, 1, false);
    let export = &stage.containers("reports", "export")[0];
    let address = stage.engine.address(export, "cofferdam-shop-db");
    assert!(
        address.starts_with("10.213."),
        "it is not on our network: {address:?}"
    );
    stage.shop_holds(2);

    // The network outlives the shop where another project is on it, and the shop comes back to it.
    stage.compose("shop", &["down"]);
    wait_until("the shop's other networks go", None, || {
        stage.networks() == ["cofferdam-shop-db", "reports_default"]
    });
    stage.compose("shop", &["up", "-d"]);
    stage.expect(("reports", "export"), "db", 5432, 1, true);
    stage.shop_holds(1);

    stage.compose("reports", &["down"]);
    stage.shop_holds(1);
    stage.compose("shop", &["down"]);
    wait_until("our networks go", None, || stage.networks().is_empty());

    kill(
        Pid::from_raw(stage.daemon.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    stage.daemon.wait().unwrap();
    let down = stage.engine.cofferdam(&["down", "--yes"]).output().unwrap();
    assert!(down.status.success(), "{}", said(&down));
    let rules = stage.engine.exec(&["nft", "list", "tables"]);
    assert!(!rules.contains("cofferdam"), "{rules}");
}
