//! Clear refusals: one sentence that says what to do, an exit code of its own, and nothing half applied.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the pure rooms of the library ban clocks, files and processes"
)]

mod netns;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use netns::{Background, sh, try_sh};

const COFFERDAM: &str = env!("CARGO_BIN_EXE_cofferdam");

/// A policy directory and paths for sockets, in the namespace's own `/run`.
fn home() -> &'static str {
    std::fs::create_dir_all("/run/home/policies").unwrap();
    std::fs::write("/run/home/policies/shop.yaml", "cofferdam: 1\nsegment: shop\n").unwrap();
    "--policies /run/home/policies --docker-socket /run/home/docker.sock --state-directory /run/home/state"
}

/// The command must refuse with this code, in one line that names all of this, and leave no table.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    let last = said.trim().lines().last().unwrap_or_default();
    assert!(last.starts_with("cofferdam: "), "{said}");
    for word in words {
        assert!(last.contains(word), "`{word}` is missing in: {last}");
    }
    assert_eq!(sh("nft list tables").trim(), "", "something was applied");
}

#[test]
fn without_privileges() {
    netns::run("without_privileges", || {
        let home = home();
        let output = try_sh(&format!(
            "setpriv --reuid 65534 --clear-groups --inh-caps=-all {COFFERDAM} run {home}"
        ));
        refused(&output, 11, &["CAP_NET_ADMIN", "run as root"]);
    });
}

#[test]
fn without_nft() {
    netns::run("without_nft", || {
        let home = home();
        // Tables are listed with a copy that the product does not look for.
        sh("cp $(command -v nft) /run/nft-for-the-test");
        sh("for place in /usr/sbin/nft /sbin/nft; do mount --bind /dev/null $place; done");
        let output = try_sh(&format!("{COFFERDAM} run {home}"));
        sh("for place in /sbin/nft /usr/sbin/nft; do umount $place; done");
        refused(&output, 14, &["nft", "install the package nftables"]);
    });
}

#[test]
fn without_git_or_what_judges_signatures() {
    netns::run("without_git_or_what_judges_signatures", || {
        let home = home();
        let run = format!("{COFFERDAM} run {home} --git /run/home/policy.git");
        sh("mkdir -p /run/bin");
        let output = try_sh(&format!("PATH=/run/bin {run}"));
        refused(&output, 20, &["`git` is missing", "install the package git"]);
        sh("ln -s /usr/bin/git /run/bin/git && touch /run/home/signers");
        let output = try_sh(&format!("PATH=/run/bin {run} --require-signed /run/home/signers"));
        refused(&output, 20, &["`ssh-keygen` is missing", "openssh-client"]);
        // The twin: with both it starts, whether the repository is there or not.
        let mut daemon = Background::start(&format!("{run} --require-signed /run/home/signers"));
        wait_for_tables();
        assert!(daemon.0.try_wait().unwrap().is_none());
    });
}

#[test]
fn with_signers_that_the_repository_could_bring() {
    netns::run("with_signers_that_the_repository_could_bring", || {
        let home = home();
        let run = format!("{COFFERDAM} run {home} --require-signed");
        let output = try_sh(&format!(
            "{run} /run/home/state/git/signers --git /run/home/policy.git"
        ));
        refused(&output, 10, &["must not lie in the state directory"]);
        let output = try_sh(&format!("{run} /run/home/signers"));
        refused(&output, 10, &["require-signed needs git"]);
        let output = try_sh(&format!("{COFFERDAM} apply {home} --git /run/home/policy.git"));
        refused(&output, 20, &["/run/home/policy.git"]);
    });
}

#[test]
fn without_bridge_netfilter() {
    netns::run("without_bridge_netfilter", || {
        let home = home();
        // As on a kernel without the module: neither there nor to be loaded.
        sh(
            "mount -t tmpfs none /proc/sys/net && mkdir -p /run/empty && mount --bind /run/empty /lib/modules || true",
        );
        let output = try_sh(&format!("{COFFERDAM} run {home}"));
        refused(&output, 15, &["br_netfilter", "modprobe"]);
    });
}

#[test]
fn with_state_of_a_later_version() {
    netns::run("with_state_of_a_later_version", || {
        let home = home();
        sh("mkdir -m 700 -p /run/home/state && echo 2 >/run/home/state/format");
        for command in ["run", "apply"] {
            let output = try_sh(&format!("{COFFERDAM} {command} {home}"));
            refused(&output, 21, &["/run/home/state", "has format 2", "later version"]);
        }
        assert_eq!(sh("ls /run/home/state"), "format\n", "it was written to");
        // What closes is loaded all the same, by the policy's directory.
        sh(&format!(
            "{COFFERDAM} guard {home} && nft delete table inet cofferdam && nft delete table bridge cofferdam"
        ));
        // The twin: the number that this version writes.
        sh("echo 1 >/run/home/state/format");
        let mut daemon = Background::start(&format!("{COFFERDAM} run {home}"));
        wait_for_tables();
        assert!(daemon.0.try_wait().unwrap().is_none());
    });
}

#[test]
fn with_a_pool_that_collides() {
    netns::run("with_a_pool_that_collides", || {
        let home = home();
        sh("ip link add v0 type veth peer name v1 && ip link set v0 up && ip route add 10.0.0.0/8 dev v0");
        let output = try_sh(&format!("{COFFERDAM} run {home}"));
        refused(&output, 16, &["10.213.0.0/16", "--ipv4-pool"]);
        // The twin: another pool is taken.
        let mut daemon = Background::start(&format!("{COFFERDAM} run {home} --ipv4-pool 172.31.0.0/16"));
        wait_for_tables();
        assert!(daemon.0.try_wait().unwrap().is_none());
    });
}

#[test]
fn while_another_runs() {
    netns::run("while_another_runs", || {
        let home = home();
        let _daemon = Background::start(&format!("{COFFERDAM} run {home}"));
        wait_for_tables();
        for command in ["run", "apply", "down --yes"] {
            let output = try_sh(&format!("{COFFERDAM} {command} {home}"));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(17), "{command}: {said}");
            assert!(
                said.contains("another Cofferdam is running") && said.contains("stop it first"),
                "{said}"
            );
        }
        assert!(
            sh("nft list tables").contains("cofferdam"),
            "the first one's tables stay"
        );
    });
}

#[test]
fn an_engine_that_is_too_old() {
    netns::run("an_engine_that_is_too_old", || {
        let home = home();
        // No engine that old can be installed: its two answers are enough.
        let listener = UnixListener::bind("/run/home/docker.sock").unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines
                    .next()
                    .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                {}
                let body = r#"{"Version":"18.09.1","ApiVersion":"1.39","MinAPIVersion":"1.12"}"#;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
                write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        for command in ["run", "apply"] {
            let output = try_sh(&format!("{COFFERDAM} {command} {home}"));
            refused(&output, 13, &["too old", "18.09.1", "20.10"]);
        }
    });
}

#[test]
fn without_an_engine_it_waits_closed_and_says_so() {
    netns::run("without_an_engine_it_waits_closed_and_says_so", || {
        let home = home();
        let output = try_sh(&format!("{COFFERDAM} apply {home}"));
        refused(&output, 12, &["Docker Engine", "/run/home/docker.sock"]);

        let mut daemon = Background::start(&format!("{COFFERDAM} run {home}"));
        wait_for_tables();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let status = sh(&format!("{COFFERDAM} status --json"));
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            if status["state"] == "waiting" && status["passes"]["count"] != 0 {
                break;
            }
            assert!(Instant::now() < deadline, "{status}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let check = try_sh(&format!("{COFFERDAM} status --check"));
        assert_eq!(check.status.code(), Some(1), "waiting is not enforcing");
        assert!(
            sh("nft list chain inet cofferdam forward").contains("br-*"),
            "Docker's bridges are closed"
        );
        // It ends when it is told to, and the rules stay.
        let pid = nix::unistd::Pid::from_raw(daemon.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(daemon.0.wait().unwrap().success());
        assert!(sh("nft list tables").contains("inet cofferdam"));
        assert_eq!(
            try_sh(&format!("{COFFERDAM} status")).status.code(),
            Some(3),
            "no daemon answers"
        );
        sh(&format!("{COFFERDAM} down --yes {home}"));
        assert_eq!(sh("nft list tables").trim(), "");
    });
}

#[test]
fn with_settings_that_make_no_sense() {
    netns::run("with_settings_that_make_no_sense", || {
        let home = home();
        std::fs::write("/run/home/settings.yaml", "stamp-bit: 99\n").unwrap();
        let output = try_sh(&format!(
            "{COFFERDAM} run {home} --settings /run/home/settings.yaml"
        ));
        refused(&output, 10, &["stamp-bit 99"]);
        std::fs::write("/run/home/settings.yaml", "stampbit: 9\n").unwrap();
        let output = try_sh(&format!(
            "{COFFERDAM} run {home} --settings /run/home/settings.yaml"
        ));
        assert_eq!(output.status.code(), Some(10));
    });
}

#[test]
fn down_without_an_answer_removes_nothing() {
    netns::run("down_without_an_answer_removes_nothing", || {
        let home = home();
        sh(
            "nft add table inet cofferdam && nft 'add chain inet cofferdam forward { type filter hook forward priority -10; }'",
        );
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("{COFFERDAM} down {home} </dev/null"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(sh("nft list tables").contains("cofferdam"));
    });
}

fn wait_for_tables() {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !sh("nft list tables").contains("bridge cofferdam") {
        assert!(Instant::now() < deadline, "no tables after 20 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}
