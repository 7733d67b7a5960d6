//! A Git repository as the policy's source: real repositories, on disk and over git's own protocols on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the pure rooms of the library ban clocks, files and processes"
)]

mod netns;
#[path = "git/upstream.rs"]
mod upstream;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam::daemon::git::{Report, Repository, Verdict};
use cofferdam::daemon::state::{Good, Store};
use cofferdam::settings::git::{GitSettings, Rewind};
use upstream::Upstream;

const SHOP: &str = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\n  api: { select: { name: api } }\nallow: [{ from: web, to: api, ports: [8080] }]\n";
const BROKEN: &str = "cofferdam: 1\nsegment: shop\nallow: [{ from: web, to: api, ports: [8080] }]\n";

fn settings(url: &str) -> GitSettings {
    GitSettings {
        url: url.parse().unwrap(),
        reference: "main".parse().unwrap(),
        path: "policies/".parse().unwrap(),
        interval: Duration::from_secs(60),
        signers: None,
        rewind: Rewind::Refused,
    }
}

/// The mirror of a repository, with a runtime to look at it.
struct Mirror {
    repository: Repository,
    runtime: tokio::runtime::Runtime,
}

impl Mirror {
    fn new(settings: GitSettings, state: &Path) -> Self {
        let last = Store::new(state).last_good().unwrap();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        Self {
            repository: Repository::new(settings, state, last.as_ref().map(|it| &it.origin)),
            runtime: runtime.enable_all().build().unwrap(),
        }
    }

    fn refresh(&mut self) -> Report {
        self.runtime.block_on(self.repository.refresh())
    }

    /// What was pushed must be accepted.
    fn accepted(&mut self, commit: &str) -> Good {
        match self.refresh() {
            Report {
                fetched: Ok(()),
                verdict: Verdict::Accepted(good),
            } => {
                assert_eq!(self.repository.in_force(), Some(commit));
                *good
            }
            other => panic!("{other:?}"),
        }
    }

    /// What was pushed must be refused with all of these words, and what is in force must stay.
    fn refused(&mut self, commit: &str, words: &[&str]) {
        let before = self.repository.in_force().map(str::to_owned);
        match self.refresh() {
            Report {
                fetched: Ok(()),
                verdict: Verdict::Refused { commit: which, why },
            } => {
                assert_eq!(which, commit);
                for word in words {
                    assert!(why.contains(word), "`{word}` is missing in: {why}");
                }
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(self.repository.in_force(), before.as_deref());
    }

    fn in_force(&mut self) {
        let report = self.refresh();
        assert!(matches!(report.verdict, Verdict::InForce), "{report:?}");
    }
}

/// A repository with a valid policy, its mirror, and the first commit.
fn shop() -> (Upstream, Mirror, String) {
    let upstream = Upstream::new();
    upstream.write("policies/shop.yaml", SHOP);
    let commit = upstream.push(&[]);
    let mirror = Mirror::new(settings(&upstream.url()), &upstream.path("state"));
    (upstream, mirror, commit)
}

fn ports(good: &Good) -> Vec<String> {
    let ports = good.loaded.policy.edges.iter().flat_map(|edge| &edge.ports);
    ports.map(ToString::to_string).collect()
}

/// Pushes take effect over whatever leads there.
fn pushes_take_effect(upstream: &Upstream, url: &str) {
    upstream.write("policies/shop.yaml", SHOP);
    upstream.write("README.md", "nothing of ours");
    let commit = upstream.push(&[]);
    let mut mirror = Mirror::new(settings(url), &upstream.path("state"));
    let good = mirror.accepted(&commit);
    assert_eq!(ports(&good), ["8080/tcp"]);
    assert_eq!(good.files[0].path, "policies/shop.yaml");
    mirror.in_force();
    upstream.write("policies/shop.yaml", SHOP.replace("8080", "8081"));
    let commit = upstream.push(&[]);
    assert_eq!(ports(&mirror.accepted(&commit)), ["8081/tcp"]);
}

#[test]
fn a_push_takes_effect_on_disk() {
    let upstream = Upstream::new();
    pushes_take_effect(&upstream, &upstream.url());
}

#[test]
fn a_push_takes_effect_over_git_daemon() {
    let upstream = Upstream::new();
    let (_server, url) = upstream.serve_git();
    pushes_take_effect(&upstream, &url);
}

#[test]
fn a_push_takes_effect_over_http() {
    let upstream = Upstream::new();
    let url = upstream.serve_http();
    pushes_take_effect(&upstream, &url);
}

#[test]
fn only_commits_with_a_good_signature_are_taken() {
    let (upstream, mut unsigned, first) = shop();
    let good = unsigned.accepted(&first);
    Store::new(&upstream.path("state")).keep(&good).unwrap();

    let (ours, line) = upstream.key("ours");
    let (strangers, _) = upstream.key("strangers");
    let [ours, strangers] = [&ours, &strangers].map(|key| key.iter().map(String::as_str).collect::<Vec<_>>());
    let signers: PathBuf = upstream.path("signers");
    std::fs::write(&signers, line).unwrap();
    std::fs::set_permissions(&signers, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut required = settings(&upstream.url());
    required.signers = Some(signers.clone());
    let mut mirror = Mirror::new(required, &upstream.path("state"));
    assert_eq!(mirror.repository.in_force(), Some(first.as_str()));
    // The one in force came before signatures were asked for.
    mirror.refused(&first, &["not signed"]);
    let commit = upstream.push(&[]);
    mirror.refused(&commit, &["not signed"]);
    let commit = upstream.push(&strangers);
    mirror.refused(&commit, &["not among those of the allowed signers"]);
    // The twin.
    let commit = upstream.push(&ours);
    mirror.accepted(&commit);
    mirror.in_force();

    // A signature that was made for other contents.
    let forged = upstream.git(upstream.work(), &["cat-file", "commit", "HEAD"]);
    upstream.write(
        "forged",
        forged
            .replace("policy", "policy, and more")
            .replace("\n\npolicy", "\n\nx")
            + "\n",
    );
    let forged = upstream.git(upstream.work(), &["hash-object", "-t", "commit", "-w", "forged"]);
    let target = format!("{forged}:refs/heads/main");
    upstream.git(
        upstream.work(),
        &["push", "--quiet", "--force", &upstream.url(), &target],
    );
    let mut rewinding = settings(&upstream.url());
    rewinding.signers = Some(signers.clone());
    rewinding.rewind = Rewind::Allowed;
    let mut other = Mirror::new(rewinding, &upstream.path("state"));
    other.refused(&forged, &["signature is wrong"]);

    // A list of signers that others may write to says nothing.
    let commit = upstream.push(&ours);
    std::fs::set_permissions(&signers, std::fs::Permissions::from_mode(0o666)).unwrap();
    mirror.refused(&commit, &["cannot be judged", "mode 666"]);
    std::fs::set_permissions(&signers, std::fs::Permissions::from_mode(0o644)).unwrap();
    mirror.accepted(&commit);
}

#[test]
fn rewritten_history_is_refused_unless_it_is_allowed() {
    let (upstream, mut mirror, first) = shop();
    mirror.accepted(&first);
    upstream.write("policies/shop.yaml", SHOP.replace("8080", "8081"));
    let second = upstream.push(&[]);
    let good = mirror.accepted(&second);
    Store::new(&upstream.path("state")).keep(&good).unwrap();
    // Back to the first one, and another history.
    upstream.git(upstream.work(), &["reset", "--quiet", "--hard", &first]);
    upstream.git(
        upstream.work(),
        &["push", "--quiet", "--force", &upstream.url(), "HEAD:main"],
    );
    mirror.refused(&first, &["does not come after", &second, "git-allow-rewind"]);
    upstream.git(upstream.work(), &["checkout", "--quiet", "--orphan", "other"]);
    let orphan = upstream.push(&[]);
    mirror.refused(&orphan, &["does not come after"]);
    // A restart changes nothing about that, even where the mirror is lost.
    for lose in [false, true] {
        if lose {
            std::fs::remove_dir_all(upstream.path("state/git")).unwrap();
        }
        let mut again = Mirror::new(settings(&upstream.url()), &upstream.path("state"));
        again.refused(&orphan, &["does not come after"]);
    }
    let mut allowed = settings(&upstream.url());
    allowed.rewind = Rewind::Allowed;
    Mirror::new(allowed, &upstream.path("state")).accepted(&orphan);
}

#[test]
fn a_branch_that_disappears_keeps_what_is_in_force() {
    let (upstream, mut mirror, first) = shop();
    let good = mirror.accepted(&first);
    let store = Store::new(&upstream.path("state"));
    store.keep(&good).unwrap();
    assert_eq!(store.last_good().unwrap(), Some(good));
    upstream.git(
        upstream.path("policy.git"),
        &["update-ref", "-d", "refs/heads/main"],
    );
    let report = mirror.refresh();
    assert!(report.fetched.unwrap_err().contains("refs/heads/main"));
    assert!(matches!(report.verdict, Verdict::InForce));
    // Offline likewise, after a restart too.
    std::fs::rename(upstream.path("policy.git"), upstream.path("away")).unwrap();
    for mut mirror in [
        mirror,
        Mirror::new(settings(&upstream.url()), &upstream.path("state")),
    ] {
        let report = mirror.refresh();
        assert!(report.fetched.is_err() && matches!(report.verdict, Verdict::InForce));
        assert_eq!(mirror.repository.in_force(), Some(first.as_str()));
    }
    // Another path of the same commit is read, though.
    let mut elsewhere = settings(&upstream.url());
    elsewhere.path = ".".parse().unwrap();
    let report = Mirror::new(elsewhere, &upstream.path("state")).refresh();
    assert!(matches!(report.verdict, Verdict::Accepted(_)), "{report:?}");
    // And when it is back, it goes on.
    std::fs::rename(upstream.path("away"), upstream.path("policy.git")).unwrap();
    let second = upstream.push(&[]);
    Mirror::new(settings(&upstream.url()), &upstream.path("state")).accepted(&second);
}

#[test]
fn a_broken_commit_is_refused_and_a_good_one_after_it_is_not() {
    let (upstream, mut mirror, first) = shop();
    mirror.accepted(&first);
    upstream.write("policies/shop.yaml", BROKEN);
    let broken = upstream.push(&[]);
    mirror.refused(&broken, &["2 faults", "policies/shop.yaml:3"]);
    upstream.write(
        "policies/shop.yaml",
        SHOP.to_owned() + "tests:\n  reachable: [\"web -> api:9090\"]\n",
    );
    let failing = upstream.push(&[]);
    mirror.refused(&failing, &["shop/web -> shop/api:9090/tcp", "reachable"]);
    upstream.write(
        "policies/shop.yaml",
        SHOP.to_owned() + "tests:\n  unreachable: [\"web -> api:8080\"]\n",
    );
    let failing = upstream.push(&[]);
    mirror.refused(&failing, &["an edge permits 8080/tcp"]);
    upstream.git(upstream.work(), &["rm", "--quiet", "-r", "policies"]);
    let empty = upstream.push(&[]);
    mirror.refused(&empty, &["holds no policy"]);
    let held = "tests:\n  reachable: [\"web -> api:8080\"]\n  unreachable: [\"api -> web:8080\", \"world -> api:8080\"]\n";
    upstream.write("policies/shop.yaml", SHOP.to_owned() + held);
    let good = upstream.push(&[]);
    mirror.accepted(&good);
}

#[test]
fn what_a_killed_git_left_is_no_hindrance() {
    let (upstream, mut mirror, first) = shop();
    mirror.accepted(&first);
    let mut mirrors = std::fs::read_dir(upstream.path("state/git")).unwrap();
    let path = mirrors.next().unwrap().unwrap().path();
    for left in [
        "refs/cofferdam/candidate.lock",
        "refs/cofferdam/in-force.lock",
        "packed-refs.lock",
    ] {
        std::fs::write(path.join(left), "").unwrap();
    }
    let half = path.join("objects/pack/tmp_pack_x");
    std::fs::create_dir_all(half.parent().unwrap()).unwrap();
    std::fs::write(&half, "PACK").unwrap();
    let commit = upstream.push(&[]);
    mirror.accepted(&commit);
    assert!(!half.exists());
    // A mirror that is none any more is made anew.
    std::fs::write(path.join("HEAD"), "").unwrap();
    mirror.in_force();
    let commit = upstream.push(&[]);
    mirror.accepted(&commit);
    // And one that is somebody else's, too.
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    std::fs::write(path.join("theirs"), "").unwrap();
    let commit = upstream.push(&[]);
    mirror.accepted(&commit);
    assert!(!path.join("theirs").exists());
}

#[test]
fn a_large_file_is_refused_by_its_size() {
    let (upstream, mut mirror, first) = shop();
    mirror.accepted(&first);
    upstream.write("policies/large.yaml", vec![b'#'; 10 << 20]);
    let large = upstream.push(&[]);
    mirror.refused(&large, &["policies/large.yaml", "larger than 1 MiB"]);
    // Many that are small enough each.
    std::fs::remove_file(upstream.work().join("policies/large.yaml")).unwrap();
    for number in 0..33 {
        upstream.write(&format!("policies/{number}.yaml"), vec![b'#'; 1 << 20]);
    }
    let many = upstream.push(&[]);
    mirror.refused(&many, &["34 files", "32 MiB"]);
    for number in 0..33 {
        std::fs::remove_file(upstream.work().join(format!("policies/{number}.yaml"))).unwrap();
    }
    // The twin: what is no policy may be large.
    upstream.write("policies/large.bin", vec![b'#'; 10 << 20]);
    let commit = upstream.push(&[]);
    mirror.accepted(&commit);
}

#[test]
fn nothing_in_a_repository_points_outside_or_runs() {
    let (upstream, mut mirror, first) = shop();
    mirror.accepted(&first);
    let outside = upstream.path("outside.yaml");
    std::fs::write(&outside, "cofferdam: 1\nsegment: outside\n").unwrap();
    for target in [
        outside.as_path(),
        Path::new("../../../outside.yaml"),
        Path::new("shop.yaml"),
    ] {
        let link = upstream.work().join("policies/link.yaml");
        symlink(target, &link).unwrap();
        let commit = upstream.push(&[]);
        mirror.refused(&commit, &["policies/link.yaml", "symbolic link"]);
        std::fs::remove_file(link).unwrap();
    }
    // The directory itself as a link.
    std::fs::rename(upstream.work().join("policies"), upstream.work().join("real")).unwrap();
    symlink("real", upstream.work().join("policies")).unwrap();
    let commit = upstream.push(&[]);
    mirror.refused(&commit, &["policies", "symbolic link"]);
    std::fs::remove_file(upstream.work().join("policies")).unwrap();
    std::fs::rename(upstream.work().join("real"), upstream.work().join("policies")).unwrap();
    let module = format!("160000,{first},policies/module");
    upstream.git(upstream.work(), &["add", "--all"]);
    upstream.git(
        upstream.work(),
        &["update-index", "--add", "--cacheinfo", &module],
    );
    upstream.git(upstream.work(), &["commit", "--quiet", "-m", "module"]);
    upstream.git(
        upstream.work(),
        &["push", "--quiet", &upstream.url(), "HEAD:main"],
    );
    let commit = upstream.git(upstream.work(), &["rev-parse", "HEAD"]);
    mirror.refused(&commit, &["policies/module", "submodule"]);

    // Hooks of the mirror never run, and attributes of the repository filter nothing.
    let mirrors = std::fs::read_dir(upstream.path("state/git")).unwrap();
    for directory in mirrors {
        let hooks = directory.unwrap().path().join("hooks");
        std::fs::create_dir_all(&hooks).unwrap();
        for hook in ["reference-transaction", "post-fetch", "pre-auto-gc"] {
            let path = hooks.join(hook);
            std::fs::write(
                &path,
                format!("#!/bin/sh\ntouch {}\n", upstream.path("ran").display()),
            )
            .unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    upstream.write(".gitattributes", "*.yaml ident text eol=crlf filter=x\n");
    let commit = upstream.push(&[]);
    let good = mirror.accepted(&commit);
    assert_eq!(good.files[0].bytes, SHOP.as_bytes());
    assert!(!upstream.path("ran").exists());
}

mod daemon {
    use std::time::Instant;

    use netns::{Background, sh, try_sh};
    use serde_json::Value;

    use super::*;

    const COFFERDAM: &str = env!("CARGO_BIN_EXE_cofferdam");

    fn wait_for(what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = try_sh(&format!("{COFFERDAM} status --json"));
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if wanted(&status) {
                return status;
            }
            let log = std::fs::read_to_string("/run/log").unwrap_or_default();
            assert!(Instant::now() < deadline, "{what}: {status:#}\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(daemon: &Background, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(daemon.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    #[test]
    fn the_daemon_follows_the_repository() {
        use nix::sys::signal::Signal;
        netns::run("daemon::the_daemon_follows_the_repository", || {
            let upstream = Upstream::new();
            upstream.write("policies/shop.yaml", SHOP);
            let first = upstream.push(&[]);
            let run = format!(
                "{COFFERDAM} run --git {} --docker-socket /run/docker.sock --state-directory /run/state 2>>/run/log",
                upstream.url()
            );
            let mut daemon = Background::start(&run);
            let commit = |status: &Value| status["policy"]["git"]["commit"].as_str().map(str::to_owned);
            let status = wait_for("the first commit", |status| {
                commit(status).as_ref() == Some(&first)
            });
            assert!(status["policy"]["revision"].is_string(), "{status:#}");
            assert_eq!(
                status["edges"][0]["declared"].as_str().unwrap().split(':').next(),
                Some("policies/shop.yaml")
            );

            upstream.write("policies/shop.yaml", SHOP.replace("8080", "8081"));
            let second = upstream.push(&[]);
            signal(&daemon, Signal::SIGHUP);
            wait_for("the second commit", |status| {
                commit(status).as_ref() == Some(&second)
            });

            upstream.write("policies/shop.yaml", BROKEN);
            let broken = upstream.push(&[]);
            signal(&daemon, Signal::SIGHUP);
            let status = wait_for("the refusal", |status| {
                status["policy"]["git"]["refused"]["commit"] == broken.as_str()
            });
            assert!(
                status["reasons"]
                    .to_string()
                    .contains(&format!("commit {broken} was refused")),
                "{status:#}"
            );
            assert_eq!(commit(&status).as_ref(), Some(&second));
            signal(&daemon, Signal::SIGTERM);
            assert!(daemon.0.wait().unwrap().success());

            // After a restart without the repository the last good one is in force.
            std::fs::rename(upstream.path("policy.git"), upstream.path("away")).unwrap();
            let mut daemon = Background::start(&run);
            let status = wait_for("the failure", |status| {
                status["policy"]["git"]["failure"].is_string()
            });
            assert_eq!(commit(&status).as_ref(), Some(&second));
            let why = status["policy"]["last_good"]["why"].as_str().unwrap_or_default();
            assert!(why.contains("the repository cannot be reached"), "{status:#}");
            assert_eq!(status["edges"][0]["ports"][0], "8081/tcp");
            let shown = sh(&format!("{COFFERDAM} status"));
            assert!(shown.contains(&format!("commit {}", &second[..12])), "{shown}");
            signal(&daemon, Signal::SIGTERM);
            assert!(daemon.0.wait().unwrap().success());
            sh(&format!(
                "{COFFERDAM} down --yes --docker-socket /run/docker.sock"
            ));
        });
    }
}
