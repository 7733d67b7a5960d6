//! A clean Debian root within the namespaces of a private engine, with what of systemd the package's scripts meet.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::engine::{IMAGE, build_probe};
use crate::host::{Engine, wait_until};

/// Within the engine's namespaces.
const ROOT: &str = "/run/clean/root";

/// Mounts the root that is kept, with a layer in memory over it: `$0` the root, `$1` where the packages and the engine's socket are.
const MOUNT: &str = "
set -e
mkdir -p /run/clean/upper /run/clean/work /run/clean/root
mount -t overlay -o lowerdir=$0,upperdir=/run/clean/upper,workdir=/run/clean/work overlay /run/clean/root
cd /run/clean/root
for place in proc sys dev; do mount --rbind /$place $place; done
mount -t tmpfs -o mode=755 tmpfs run
touch run/docker.sock
mount --bind $1/docker.sock run/docker.sock
mkdir -p packages
mount --bind $1/packages packages
";

/// `Restart=always` for the words after the name, and what is to happen between two lives of it.
const SERVICE: &str = "
name=$0
while ! test -e /run/stop; do
    \"$@\" 2>>/run/$name.log &
    echo $! >/run/$name.pid
    wait
    if test -e /run/between-$name; then sh /run/between-$name && mv /run/between-$name /run/was-between-$name; fi
    sleep 0.2
done
";

/// Writes down what it is asked, and does it to what the other script minds.
const SYSTEMCTL: &str = "#!/bin/sh
echo \"$*\" >>/run/asked
case $1 in
try-restart) for unit; do test ! -e /run/${unit%.service}.pid || kill -TERM $(cat /run/${unit%.service}.pid); done ;;
stop)
    touch /run/stop
    for unit; do
        test -e /run/${unit%.service}.pid || continue
        kill -TERM $(cat /run/${unit%.service}.pid)
        while kill -0 $(cat /run/${unit%.service}.pid) 2>/dev/null; do sleep 0.05; done
    done ;;
--quiet) exec /usr/bin/systemctl.real \"$@\" ;;
esac
exit 0
";

pub(crate) struct Machine {
    pub(crate) engine: Engine,
    services: std::cell::RefCell<Vec<std::process::Child>>,
}

/// A Debian of this machine's release: the program is linked with its libraries.
fn root() -> PathBuf {
    let release = std::fs::read_to_string("/etc/os-release").unwrap();
    let release = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/root");
    let made = super::must(Command::new(tool).args([release.unwrap(), "plain"]));
    made.into()
}

impl Machine {
    /// With three containers on one network, each of which listens, and these packages.
    pub(crate) fn up(packages: &[&PathBuf]) -> Self {
        let root = root();
        let probe = build_probe().unwrap();
        let engine = Engine::up("package", &[IMAGE, probe.to_str().unwrap()]);
        let folder = engine.0.join("packages");
        std::fs::create_dir(&folder).unwrap();
        for package in packages {
            std::fs::copy(package, folder.join(package.file_name().unwrap())).unwrap();
        }
        engine.exec(&[
            "sh",
            "-c",
            MOUNT,
            root.to_str().unwrap(),
            engine.0.to_str().unwrap(),
        ]);
        engine.docker(&["network", "create", "shared"]);
        for name in ["db", "web", "stranger"] {
            engine.listen(IMAGE, name, "tcp/5432,tcp/5433", &[]);
        }
        let services = std::cell::RefCell::default();
        Self { engine, services }
    }

    /// Where the package is inside.
    pub(crate) fn path(&self, package: &Path) -> String {
        format!("/packages/{}", package.file_name().unwrap().to_str().unwrap())
    }

    /// A command in the root, without what tests have in their environment.
    pub(crate) fn inside(&self, words: &[&str]) -> Command {
        let clean = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C",
            "DEBIAN_FRONTEND=noninteractive",
            "chroot",
            ROOT,
        ];
        self.engine.command(&[&clean[..], words].concat())
    }

    pub(crate) fn must(&self, words: &[&str]) -> String {
        super::must(&mut self.inside(words))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        self.must(&["sh", "-c", "printf '%s' \"$1\" >\"$0\"", path, text]);
    }

    pub(crate) fn has_rules(&self) -> bool {
        let tables = self.engine.exec(&["nft", "list", "tables"]);
        let found = ["inet", "bridge"].map(|family| tables.contains(&format!("table {family} cofferdam")));
        assert_eq!(found[0], found[1], "half of the rules: {tables}");
        found[0]
    }

    /// Starts what the installed units say.
    pub(crate) fn start_services(&self) {
        for name in ["cofferdam-socket-filter", "cofferdam"] {
            let unit = self.must(&["cat", &format!("/usr/lib/systemd/system/{name}.service")]);
            let mut words = vec![
                "sh".to_owned(),
                "-c".to_owned(),
                SERVICE.to_owned(),
                name.to_owned(),
            ];
            words.extend(self.line_of(&unit));
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.services
                .borrow_mut()
                .push(self.inside(&words).spawn().unwrap());
        }
    }

    /// What systemd would make for the unit is made; how it would start it is returned.
    fn line_of(&self, unit: &str) -> Vec<String> {
        let value = |key: &str| {
            unit.lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap_or_default()
        };
        let (user, group) = (value("User="), value("Group="));
        for (parent, key) in [("/run", "RuntimeDirectory"), ("/var/lib", "StateDirectory")] {
            let name = value(&format!("{key}="));
            if !name.is_empty() {
                let mode = value(&format!("{key}Mode="));
                self.must(&[
                    "install",
                    "-d",
                    "-m",
                    mode,
                    "-o",
                    user,
                    "-g",
                    group,
                    &format!("{parent}/{name}"),
                ]);
            }
        }
        // The group of the engine's socket has no name in this root.
        let groups = match value("SupplementaryGroups=") {
            "" => "--clear-groups".to_owned(),
            _ => format!(
                "--groups={}",
                self.must(&["stat", "-c", "%g", "/run/docker.sock"])
            ),
        };
        let kept = |key: &str| {
            let names = value(key).to_lowercase();
            let added = names
                .split_whitespace()
                .map(|name| format!(",+{}", name.trim_start_matches("cap_")));
            format!("-all{}", added.collect::<String>())
        };
        let (bounding, ambient) = (kept("CapabilityBoundingSet="), kept("AmbientCapabilities="));
        let mut words = vec![
            "setpriv".to_owned(),
            format!("--reuid={user}"),
            format!("--regid={group}"),
            groups,
            format!("--inh-caps={ambient}"),
            format!("--ambient-caps={ambient}"),
            format!("--bounding-set={bounding}"),
            "--no-new-privs".to_owned(),
            "env".to_owned(),
        ];
        words.extend(
            unit.lines()
                .filter_map(|line| line.strip_prefix("Environment="))
                .map(str::to_owned),
        );
        words.extend(value("ExecStart=").split(' ').map(str::to_owned));
        words
    }

    pub(crate) fn await_enforcing(&self) {
        let holds = || {
            super::run(&mut self.inside(&["cofferdam", "status", "--check"]))
                .status
                .success()
        };
        let begun = std::time::Instant::now();
        wait_until("the daemon enforces", None, || {
            if begun.elapsed().as_secs() > 50 {
                println!("{}", self.must(&["sh", "-c", "cat /run/*.log"]));
            }
            holds()
        });
    }

    /// From now on the scripts find a systemd.
    pub(crate) fn boot_systemd(&self) {
        self.must(&["mv", "/usr/bin/systemctl", "/usr/bin/systemctl.real"]);
        self.write("/usr/bin/systemctl", SYSTEMCTL);
        self.must(&[
            "sh",
            "-c",
            "chmod 755 /usr/bin/systemctl; mkdir -p /run/systemd/system; : >/run/asked",
        ]);
    }

    /// What systemctl was asked since this was asked last.
    pub(crate) fn asked(&self) -> Vec<String> {
        let text = self.must(&["sh", "-c", "cat /run/asked; : >/run/asked"]);
        text.lines().map(str::to_owned).collect()
    }

    /// What happens when the daemon has ended, before it is started again.
    pub(crate) fn between(&self, script: &str) {
        self.write("/run/between-cofferdam", &format!("set -e; {script}"));
    }

    pub(crate) fn was_between(&self) -> bool {
        self.has("/run/was-between-cofferdam")
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.inside(&["test", "-e", path]).status().unwrap().success()
    }

    pub(crate) fn pid(&self, service: &str) -> String {
        self.must(&["cat", &format!("/run/{service}.pid")])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for service in self.services.get_mut() {
            service.kill().ok();
            service.wait().ok();
        }
    }
}
