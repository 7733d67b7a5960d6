//! The Debian package: what is in it, and its whole life on a clean root file system, with containers, rules and probes.
//!
//! The root is a Debian of this machine's release by debootstrap (`tests/engine/root RELEASE plain`), within the namespaces of a private
//! engine. systemd cannot be the first process there. So the daemon and the filter are started by the lines of the installed units,
//! as the users and with the capabilities that these name, and are started again when they end, as `Restart=always` has it. Maintainer
//! scripts run first as on a system that systemd does not run, then with a `systemctl` that writes down what it is asked for
//! and does it to these two processes.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "conformance/engine.rs"]
mod engine;
mod host;
#[path = "package/machine.rs"]
mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use host::flows::{Held, Tries, assert_held};
use host::{said, wait_until};
use machine::Machine;

/// Of the same program: all that differs is what the package says of itself.
const BEFORE: &str = "0.0.9-1";

fn clone() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs it; its standard output.
fn must(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The package as an earlier version, and as this one. Built once for all tests.
fn packages() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        // cargo-deb keeps one package only.
        let build = |version: &[&str]| {
            let script = clone().join("packaging/package");
            let told = must(Command::new(script).arg("dev").args(version));
            let made = Path::new(told.lines().last().unwrap());
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(made.file_name().unwrap());
            fs::copy(made, &kept).unwrap();
            kept
        };
        (build(&[BEFORE]), build(&[]))
    })
}

fn lintian(package: &Path) -> Output {
    let arguments = ["--allow-root", "--fail-on", "error", "--tag-display-limit", "0"];
    run(Command::new("lintian").args(arguments).arg(package))
}

fn unpacked(package: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    must(Command::new("dpkg-deb").arg("-R").arg(package).arg(folder.path()));
    folder
}

#[test]
fn lintian_finds_no_error() {
    let package = &packages().1;
    let output = lintian(package);
    assert!(output.status.success(), "{}", said(&output));
    println!("{}", said(&output));
    // It finds one where there is one.
    let folder = unpacked(package);
    fs::remove_file(folder.path().join("usr/share/doc/cofferdam/copyright")).unwrap();
    let broken = tempfile::Builder::new().suffix(".deb").tempfile().unwrap();
    must(
        Command::new("dpkg-deb")
            .args(["-Zgzip", "-z1", "-b"])
            .arg(folder.path())
            .arg(broken.path()),
    );
    let output = lintian(broken.path());
    assert!(!output.status.success() && said(&output).contains("E: cofferdam: no-copyright-file"));
}

#[test]
fn it_depends_on_what_it_needs_and_suggests_the_rest() {
    let fields = must(Command::new("dpkg-deb").arg("-f").arg(&packages().1));
    let field = |name: &str| -> Vec<String> {
        let line = fields.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {fields}"));
        line.split(',').map(|it| it.trim().to_owned()).collect()
    };
    let depends = field("Depends:");
    assert!(depends.contains(&"nftables".to_owned()), "{depends:?}");
    assert!(depends.iter().any(|it| it.starts_with("libc6")), "{depends:?}");
    assert!(field("Recommends:").contains(&"docker.io | docker-ce".to_owned()));
    assert!(field("Suggests:").contains(&"git".to_owned()));
}

/// Every command has its page, and completions complete.
#[test]
fn man_pages_and_completions_are_those_of_the_commands() {
    let folder = unpacked(&packages().1);
    let at = |path: &str| folder.path().join(path);
    let help = must(Command::new(env!("CARGO_BIN_EXE_cofferdam")).arg("--help"));
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ").filter(|it| !it.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"guard") && commands.len() > 15, "{commands:?}");
    let pages = fs::read_dir(at("usr/share/man/man1")).unwrap().count();
    assert_eq!(pages, commands.len() + 1, "a page too many or too few");
    for name in &commands {
        let page = at(&format!("usr/share/man/man1/cofferdam-{name}.1.gz"));
        let text = must(Command::new("zcat").arg(&page));
        assert!(text.contains(".SH SYNOPSIS"), "{name}: {text}");
    }
    // As bash calls it for `cofferdam gu<Tab>`.
    let bash = at("usr/share/bash-completion/completions/cofferdam");
    let script = "source \"$0\"; COMP_WORDS=(cofferdam gu) COMP_CWORD=1; _cofferdam cofferdam gu cofferdam; echo ${COMPREPLY[*]}";
    assert_eq!(must(Command::new("bash").args(["-c", script]).arg(bash)), "guard");
    let fish = at("usr/share/fish/vendor_completions.d/cofferdam.fish");
    let script = "source $argv[1]; complete -C 'cofferdam gu'";
    let completed = must(
        Command::new("fish")
            .args(["--no-config", "-c", script])
            .arg(fish)
            .env("HOME", folder.path()),
    );
    assert!(completed.starts_with("guard\t"), "{completed}");
    let zsh = at("usr/share/zsh/vendor-completions/_cofferdam");
    must(Command::new("zsh").arg("-n").arg(&zsh));
    let text = fs::read_to_string(zsh).unwrap();
    assert!(text.starts_with("#compdef cofferdam") && text.contains("guard"));
}

/// AppArmor is not in every kernel: what is tested is that the parser takes the profiles and that the units name them, not what they
/// refuse. They only complain until somebody enforces them.
#[test]
fn the_parser_takes_the_apparmor_profiles_that_the_units_name() {
    let file = clone().join("packaging/apparmor/cofferdam");
    let parse = |path: &Path| {
        run(Command::new("apparmor_parser")
            .args(["--skip-kernel-load", "--skip-cache", "--names"])
            .arg(path))
    };
    let output = parse(&file);
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    let names: Vec<&str> = text.lines().collect();
    for unit in ["cofferdam", "cofferdam-guard", "cofferdam-socket-filter"] {
        let unit = fs::read_to_string(clone().join(format!("packaging/systemd/{unit}.service"))).unwrap();
        let profile = unit
            .lines()
            .find_map(|line| line.strip_prefix("AppArmorProfile=-"));
        assert!(names.contains(&profile.unwrap()), "{names:?}");
    }
    // Also what makes the policy of it, which `--names` leaves out; and it refuses what is wrong.
    let policy = |path: &Path| {
        run(Command::new("apparmor_parser")
            .args(["--skip-kernel-load", "--skip-cache", "--stdout"])
            .arg(path))
    };
    let output = policy(&file);
    assert!(
        output.status.success() && output.stdout.len() > 1000,
        "{}",
        said(&output)
    );
    let broken = tempfile::NamedTempFile::new().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        broken.path(),
        text.replace("capability net_admin,", "capability net_admiral,"),
    )
    .unwrap();
    assert!(!policy(broken.path()).status.success());
}

#[test]
fn the_package_knows_the_format_of_the_state() {
    let script = fs::read_to_string(clone().join("packaging/debian/preinst")).unwrap();
    let known = format!("\nknown={}\n", cofferdam::daemon::state::FORMAT);
    assert!(script.contains(&known), "{known}");
}

const POLICY: &str = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\n  db: { select: { name: db } }\n\
                      allow:\n  - { from: web, to: db, ports: [5432] }\n";

/// As another version might have left the rules: more of them, others, and some gone.
const OTHERWISE: &str = "add chain inet cofferdam former; add rule inet cofferdam former counter drop; \
                         add set inet cofferdam former4 { type ipv4_addr; }; add chain bridge cofferdam former; \
                         insert rule inet cofferdam pass counter comment \"former\"";

#[test]
fn it_is_installed_upgraded_with_the_rules_up_and_removed() {
    let (before, package) = packages();
    let machine = Machine::up(&[before, package]);
    let (before, package) = (machine.path(before), machine.path(package));

    // Installed: nothing is closed, nothing enabled, nothing started.
    machine.must(&["dpkg", "-i", &before]);
    assert!(!machine.has_rules(), "an installation made rules");
    for path in [
        "/etc/cofferdam/settings.yaml",
        "/etc/cofferdam/policies",
        "/usr/share/man/man1/cofferdam.1.gz",
    ] {
        machine.must(&["test", "-e", path]);
    }
    for unit in ["cofferdam", "cofferdam-guard", "cofferdam-socket-filter"] {
        let output = run(&mut machine.inside(&["systemctl", "is-enabled", unit]));
        assert_eq!(said(&output).trim(), "disabled", "{unit}");
    }
    machine.must(&[
        "sh",
        "-c",
        "cofferdam guard --help >/dev/null && getent passwd cofferdam cofferdam-filter",
    ]);
    // Which somebody does then.
    machine.must(&["systemctl", "--quiet", "enable", "cofferdam-guard", "cofferdam"]);
    machine.must(&[
        "test",
        "-L",
        "/etc/systemd/system/docker.service.requires/cofferdam-guard.service",
    ]);

    machine.write("/etc/cofferdam/policies/shop.yaml", POLICY);
    machine.start_services();
    machine.await_enforcing();
    let db = machine.engine.address("db", "shared");
    let (declared, closed) = (format!("+tcp/{db}/5432"), format!("-tcp/{db}/5433"));
    let strange = format!("-tcp/{db}/5432");
    let mut held = Held::open(&machine.engine, "web", &db, 5432);
    let start = |from: &str, flows: &[&str]| Tries::start(&machine.engine, from, flows);
    let (web, stranger) = (
        start("web", &[&declared, &closed]),
        start("stranger", &[&strange, &closed]),
    );

    // Upgraded: while there is no daemon, the state and the rules are made those of another version.
    machine.boot_systemd();
    machine.between(&format!("rm /var/lib/cofferdam/format; nft '{OTHERWISE}'"));
    let daemon = machine.pid("cofferdam");
    machine.must(&["dpkg", "-i", &package]);
    assert_eq!(
        machine.asked(),
        [
            "daemon-reload",
            "try-restart cofferdam-socket-filter.service cofferdam.service"
        ],
        "the guard must be left alone: Docker's unit requires it"
    );
    let between = "the daemon ended, and left rules that were made those of another version";
    wait_until(between, None, || machine.was_between());
    machine.await_enforcing();
    assert_ne!(machine.pid("cofferdam"), daemon, "it is still the old one");
    let rules = machine.must(&["nft", "list", "ruleset"]);
    assert!(
        rules.contains("table inet cofferdam") && !rules.contains("former"),
        "{rules}"
    );
    wait_until("the number is written", None, || {
        machine.has("/var/lib/cofferdam/format")
    });
    assert_eq!(machine.must(&["cat", "/var/lib/cofferdam/format"]), "1");
    println!(
        "the established connection paused for {} ms at most",
        held.longest_gap_ms()
    );
    assert!(held.longest_gap_ms() < 1000);

    // Not downgraded where the state is of a later version: nothing is stopped or replaced.
    let daemon = machine.pid("cofferdam");
    machine.must(&["sh", "-c", "echo 2 >/var/lib/cofferdam/format"]);
    let output = run(&mut machine.inside(&["dpkg", "-i", &before]));
    assert!(!output.status.success());
    assert!(
        said(&output).contains("has format 2, and this version knows no later one than 1"),
        "{}",
        said(&output)
    );
    assert!(machine.asked().is_empty());
    assert_eq!(machine.pid("cofferdam"), daemon);
    let installed = [
        "dpkg-query",
        "-W",
        "-f",
        "${Version} ${db:Status-Status}",
        "cofferdam",
    ];
    assert_ne!(machine.must(&installed), format!("{BEFORE} installed"));
    machine.must(&["sh", "-c", "echo 1 >/var/lib/cofferdam/format"]);
    machine.must(&["cofferdam", "status", "--check"]);

    // Removed: the daemon ends, the rules stay and what they let through goes on. Docker does not wait for a guard that is gone.
    let output = run(&mut machine.inside(&["dpkg", "-r", "cofferdam"]));
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("its rules stay in the kernel until the next boot"),
        "{}",
        said(&output)
    );
    assert_eq!(
        machine.asked(),
        [
            "stop cofferdam.service cofferdam-socket-filter.service",
            "--quiet disable cofferdam.service cofferdam-socket-filter.service cofferdam-guard.service",
            "daemon-reload",
        ]
    );
    machine.must(&[
        "sh",
        "-c",
        "! kill -0 $(cat /run/cofferdam.pid) 2>/dev/null && ! test -e /usr/bin/cofferdam",
    ]);
    machine.must(&[
        "sh",
        "-c",
        "! test -L /etc/systemd/system/docker.service.requires/cofferdam-guard.service",
    ]);
    assert!(machine.has_rules());
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(held.longest_gap_ms() < 1000);
    // What is new is tried for 100 ms each, on a machine that may have other work.
    assert_held(&web.finish(), 2000);
    assert_held(&stranger.finish(), 2000);

    // Purged: nothing is left but policies. It is said, and it is so, that everything is open.
    let output = run(&mut machine.inside(&["dpkg", "-P", "cofferdam"]));
    assert!(output.status.success(), "{}", said(&output));
    for words in [
        "table inet cofferdam are removed",
        "table bridge cofferdam are removed",
        "policies is not empty and stays",
    ] {
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
    }
    assert!(!machine.has_rules());
    let left = machine.must(&[
        "sh",
        "-c",
        "find /etc/cofferdam /var/lib/cofferdam /etc/apparmor.d -type f 2>/dev/null; true",
    ]);
    assert_eq!(left, "/etc/cofferdam/policies/shop.yaml");
    let open = start("stranger", &[&strange]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(
        open.finish()[0].successes > 0,
        "the probe would never have passed"
    );
    assert!(held.longest_gap_ms() < 1000);
}
