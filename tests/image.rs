//! The image: a daemon in a container, by the compose file that is shipped, segments the host that it runs on.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "conformance/engine.rs"]
mod engine;
mod host;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use host::flows::PROBE;
use host::{Engine, said, wait_until};
use serde_json::Value;

const COMPOSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/image");
const POLICY: &str = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\n  db: { select: { name: db } }\n\
                      allow:\n  - { from: web, to: db, ports: [5432] }\n";

fn clone() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the profile of the image lets pass is what the daemon lets pass itself, and what it needs to restrict itself.
#[test]
fn the_seccomp_profile_is_that_of_the_daemon() {
    let text = std::fs::read_to_string(clone().join("packaging/image/seccomp.json")).unwrap();
    let profile: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    let named = rules
        .iter()
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
        .flat_map(|rule| {
            let names = rule["names"].as_array().unwrap();
            names.iter().map(|name| name.as_str().unwrap().to_owned())
        });
    let named: BTreeSet<String> = named.collect();
    let source = std::fs::read_to_string(clone().join("src/confine/seccomp.rs")).unwrap();
    let mut own: BTreeSet<String> = source
        .split("libc::SYS_")
        .skip(1)
        .map(|rest| {
            rest.split(|it: char| !it.is_alphanumeric() && it != '_')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert!(own.len() > 200, "{own:?}");
    own.remove("clone3"); // which is answered as if there were none
    let further = [
        "capset",
        "landlock_add_rule",
        "landlock_create_ruleset",
        "landlock_restrict_self",
        "seccomp",
    ];
    own.extend(further.map(str::to_owned));
    let differ: Vec<&String> = named.symmetric_difference(&own).collect();
    assert!(differ.is_empty(), "in one of the two only: {differ:?}");
    // Some calls pass by what they are called with only.
    for name in ["clone", "ioctl", "socket"] {
        let narrow = |rule: &&Value| rule["names"].as_array().unwrap().iter().any(|it| it == name);
        assert!(
            rules.iter().filter(narrow).all(|rule| rule["args"].is_array()),
            "{name}"
        );
    }
}

struct Stage(Engine);

impl Stage {
    fn open() -> Self {
        let probe = engine::build_probe().unwrap();
        let stage = Self(Engine::up("image", &[engine::IMAGE, probe.to_str().unwrap()]));
        // Where a host has them; the engine's /etc and /run are its own, and what is written to /var/lib is not the host's, either.
        let socket = stage.0.0.join("docker.sock");
        stage.0.exec(&[
            "sh",
            "-c",
            "mkdir -p /etc/cofferdam/policies && printf '%s' \"$0\" >/etc/cofferdam/policies/shop.yaml && \
             touch /run/docker.sock && mount --bind \"$1\" /run/docker.sock && \
             mkdir -p /run/var/upper /run/var/work && mount -t overlay \
             -o lowerdir=/var/lib,upperdir=/run/var/upper,workdir=/run/var/work overlay /var/lib",
            POLICY,
            socket.to_str().unwrap(),
        ]);
        let output = Command::new(clone().join("packaging/image/build"))
            .args([
                env!("CARGO_BIN_EXE_cofferdam"),
                concat!("cofferdam:", env!("CARGO_PKG_VERSION")),
            ])
            .env("DOCKER_HOST", format!("unix://{}", socket.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        stage.0.docker(&["network", "create", "shared"]);
        for name in ["db", "web"] {
            stage.0.listen(engine::IMAGE, name, "tcp/5432,tcp/5433", &[]);
        }
        stage
    }

    /// As the file says: in its own directory.
    fn compose(&self, arguments: &str) {
        let line = format!("cd \"$0\" && docker-compose {arguments}");
        self.0.exec(&["sh", "-c", &line, COMPOSE]);
    }

    /// `cofferdam` with these words in the daemon's container.
    fn asked(&self, words: &[&str]) -> std::process::Output {
        let begin = ["docker", "exec", "cofferdam", "cofferdam"];
        self.0.command(&[&begin, words].concat()).output().unwrap()
    }

    /// From web to both ports of db.
    fn passes(&self) -> [bool; 2] {
        let db = self.0.address("db", "shared");
        let web = ["docker", "exec", "-i", "web", PROBE];
        [5432, 5433].map(|port| self.0.answers(&web, &db, port))
    }
}

#[test]
fn it_segments_the_host_that_it_runs_on() {
    let stage = Stage::open();
    assert_eq!(stage.passes(), [true, true], "before there is a policy");
    stage.compose("up -d");
    wait_until("the daemon in the container enforces", None, || {
        let status = stage.asked(&["status", "--check"]);
        if !status.status.success() {
            let logs = stage
                .0
                .command(&["docker", "logs", "--tail", "3", "cofferdam"])
                .output()
                .unwrap();
            println!("{}{}", said(&status), said(&logs));
        }
        status.status.success()
    });
    assert_eq!(stage.passes(), [true, false]);

    // What it has, and what it has not.
    let format = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.CapAdd}} {{.HostConfig.PidMode}} {{.State.Pid}}";
    let inspected = stage.0.docker(&["inspect", "-f", format, "cofferdam"]);
    let (settings, pid) = inspected.rsplit_once(' ').unwrap();
    assert!(
        settings == "true [ALL] [NET_ADMIN] " || settings == "true [ALL] [CAP_NET_ADMIN] ",
        "{settings}"
    );
    let status = stage.0.exec(&["cat", &format!("/proc/{pid}/status")]);
    for line in [
        "CapBnd:\t0000000000001000",
        "CapEff:\t0000000000001000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let pid = stage
        .0
        .docker(&["inspect", "-f", "{{.State.Pid}}", "cofferdam-socket-filter"]);
    let status = stage.0.exec(&["cat", &format!("/proc/{pid}/status")]);
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    let files = stage
        .0
        .exec(&["sh", "-c", "docker export \"$0\" | tar -t", "cofferdam"]);
    assert!(!files.contains("bin/sh"), "there is a shell in it: {files}");
    // A container that comes later is bound, too.
    stage.0.listen(engine::IMAGE, "late", "tcp/5432", &[]);
    let db = stage.0.address("db", "shared");
    assert!(
        !stage
            .0
            .answers(&["docker", "exec", "-i", "late", PROBE], &db, 5432)
    );

    // The end of it leaves the rules, until they are removed by the same image.
    stage.compose("stop cofferdam");
    assert_eq!(stage.passes(), [true, false]);
    stage.compose("run -T --rm cofferdam down --yes");
    assert_eq!(stage.passes(), [true, true]);
    let tables = stage.0.exec(&["nft", "list", "tables"]);
    assert!(!tables.contains("cofferdam"), "{tables}");
    stage.compose("down");
    let networks = stage.0.docker(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(!networks.contains("cofferdam-shop"), "{networks}");
}
