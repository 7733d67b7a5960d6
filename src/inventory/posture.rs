//! How a container is confined beside its network, and how the engine is set: what `cofferdam audit` judges.

use std::collections::{BTreeMap, BTreeSet};

use super::Published;
use super::powers::plain;

/// What an inspection tells of a container's confinement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Posture {
    pub is_privileged: bool,
    pub capabilities: Capabilities,
    /// As it was written: empty for the default, which is root.
    pub user: String,
    /// It has the host's users although the engine maps them.
    pub keeps_host_users: bool,
    pub has_writable_root: bool,
    pub host_namespaces: BTreeSet<HostNamespace>,
    /// The host's paths that are mounted, also by way of a volume that binds one.
    pub paths: BTreeMap<String, Access>,
    /// Those of them that lead to the engine's socket.
    pub sockets: BTreeSet<String>,
    pub devices: BTreeSet<String>,
    pub security: Security,
    /// The image's id.
    pub image: String,
    /// The ports that it publishes whenever it runs.
    pub ports: BTreeSet<Published>,
}

/// Whether a mount can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    Read,
    Write,
}

/// A namespace of the host that a container is in, besides its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostNamespace {
    Pid,
    Ipc,
    Uts,
}

/// What was asked for of capabilities, in plain upper-case names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Capabilities {
    pub added: BTreeSet<String>,
    pub dropped: BTreeSet<String>,
}

/// What every container has unless it is dropped.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

impl Capabilities {
    pub fn new(added: &[String], dropped: &[String]) -> Self {
        let names = |list: &[String]| list.iter().map(|name| plain(name)).collect();
        Self {
            added: names(added),
            dropped: names(dropped),
        }
    }

    /// Whether only what is added by name is there.
    pub fn starts_from_none(&self) -> bool {
        self.dropped.contains("ALL") && !self.added.contains("ALL")
    }

    /// Whether the container really has it: what is dropped takes away from `ALL` and from the default, never from what
    /// is added by name.
    pub fn has(&self, name: &str) -> bool {
        if self.added.contains("ALL") {
            return !self.dropped.contains(name);
        }
        let by_default = DEFAULT.contains(&name) && !self.dropped.contains("ALL");
        self.added.contains(name) || by_default && !self.dropped.contains(name)
    }

    /// Those that were added and that no container has by default.
    pub fn extra(&self) -> impl Iterator<Item = &str> {
        let added = self.added.iter().map(String::as_str);
        added.filter(|name| !DEFAULT.contains(name))
    }
}

/// What of the engine's own confinement was taken off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Security {
    pub seccomp_off: bool,
    pub apparmor_off: bool,
    pub selinux_off: bool,
    /// `/proc` and `/sys` without what is hidden there otherwise.
    pub system_paths_open: bool,
    pub no_new_privileges: bool,
}

impl Security {
    /// Reads `--security-opt`. Separators are `=` and, of old, `:`.
    pub fn new(options: &[String]) -> Self {
        let mut security = Self::default();
        for option in options {
            let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
            match (key, value) {
                ("seccomp", "unconfined") => security.seccomp_off = true,
                ("apparmor", "unconfined") => security.apparmor_off = true,
                ("label", "disable") => security.selinux_off = true,
                ("systempaths", "unconfined") => security.system_paths_open = true,
                // Docker takes what Go's ParseBool takes.
                ("no-new-privileges", "" | "1" | "t" | "T" | "true" | "TRUE" | "True") => {
                    security.no_new_privileges = true;
                }
                ("no-new-privileges", _) => security.no_new_privileges = false,
                _ => {}
            }
        }
        security
    }
}

/// How the engine is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnginePosture {
    /// Whether containers on the default bridge reach one another; `None` without a default bridge.
    pub icc: Option<bool>,
    /// `None`: it does not say, and its process could not be looked at.
    pub userland_proxy: Option<bool>,
    pub live_restore: bool,
    /// Where its API is served over TCP to whoever comes, as it warns of itself.
    pub open_api: BTreeSet<String>,
    pub seccomp: EngineSeccomp,
    pub has_apparmor: bool,
    pub has_selinux: bool,
    pub users: Users,
    /// For every container.
    pub no_new_privileges: bool,
}

/// The seccomp profile of containers that name none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EngineSeccomp {
    #[default]
    Off,
    /// The engine's own.
    Default,
    /// A file.
    Custom(String),
}

/// Whose users those in containers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Users {
    #[default]
    Host,
    /// `userns-remap`.
    Mapped,
    /// The engine itself runs without root.
    Rootless,
}

impl EnginePosture {
    /// Takes `SecurityOptions` of the engine's information: `name=seccomp,profile=default`.
    pub fn take_security(&mut self, options: &[String]) {
        for option in options {
            let mut fields = option.split(',').filter_map(|field| field.split_once('='));
            let profile = option.split_once("profile=").map(|(_, profile)| profile);
            match fields.find(|(key, _)| *key == "name").map(|(_, name)| name) {
                Some("seccomp") => {
                    self.seccomp = match profile {
                        Some("unconfined") => EngineSeccomp::Off,
                        None | Some("default" | "builtin") => EngineSeccomp::Default,
                        Some(file) => EngineSeccomp::Custom(file.to_owned()),
                    }
                }
                Some("apparmor") => self.has_apparmor = true,
                Some("selinux") => self.has_selinux = true,
                Some("userns") if self.users == Users::Host => self.users = Users::Mapped,
                Some("rootless") => self.users = Users::Rootless,
                Some("no-new-privileges") => self.no_new_privileges = true,
                _ => {}
            }
        }
    }

    /// Takes `Warnings` of the engine's information; from 20.10 on it says there where its API is open.
    pub fn take_warnings(&mut self, warnings: &[String]) {
        let open = warnings.iter().filter_map(|it| {
            let (_, rest) = it.split_once("API is accessible on ")?;
            rest.split_whitespace().next()
        });
        self.open_api.extend(open.map(str::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn capabilities_are_those_that_docker_grants() {
        let of = |added: &[&str], dropped: &[&str]| Capabilities::new(&owned(added), &owned(dropped));
        assert!(of(&[], &[]).has("NET_RAW") && !of(&[], &[]).has("NET_ADMIN"));
        assert!(!of(&[], &["net_raw"]).has("NET_RAW") && !of(&[], &["all"]).has("NET_RAW"));
        assert!(
            of(&["CAP_NET_RAW"], &["ALL"]).has("NET_RAW") && of(&["NET_RAW"], &["NET_RAW"]).has("NET_RAW")
        );
        assert!(of(&["ALL"], &["ALL"]).has("NET_RAW") && !of(&["ALL"], &["NET_RAW"]).has("NET_RAW"));
        assert!(of(&["CHOWN"], &["ALL"]).starts_from_none());
        assert!(!of(&["ALL"], &["ALL"]).starts_from_none() && !of(&[], &["NET_RAW"]).starts_from_none());
        let more = of(&["CHOWN", "sys_time"], &[]);
        assert_eq!(more.extra().collect::<Vec<_>>(), ["SYS_TIME"]);
    }

    #[test]
    fn security_options_are_read_as_docker_reads_them() {
        let of = |options: &[&str]| Security::new(&owned(options));
        assert_eq!(
            of(&["label=type:svirt_t", "seccomp={\"a\":1}", "apparmor=mine"]),
            Security::default()
        );
        assert!(of(&["seccomp=unconfined"]).seccomp_off && of(&["seccomp:unconfined"]).seccomp_off);
        assert!(of(&["apparmor=unconfined"]).apparmor_off && of(&["label=disable"]).selinux_off);
        assert!(
            of(&["no-new-privileges"]).no_new_privileges && of(&["no-new-privileges:true"]).no_new_privileges
        );
        assert!(!of(&["no-new-privileges=false"]).no_new_privileges);
    }

    #[test]
    fn the_engine_says_what_it_is() {
        let mut engine = EnginePosture::default();
        engine.take_security(&owned(&[
            "name=apparmor",
            "name=seccomp,profile=builtin",
            "name=userns",
            "name=x",
        ]));
        assert_eq!(engine.seccomp, EngineSeccomp::Default);
        assert!(engine.has_apparmor && !engine.has_selinux && engine.users == Users::Mapped);
        engine.take_security(&owned(&["name=seccomp,profile=/etc/a,b.json", "name=rootless"]));
        assert_eq!(engine.seccomp, EngineSeccomp::Custom("/etc/a,b.json".into()));
        assert_eq!(engine.users, Users::Rootless);
        engine.take_security(&owned(&["name=seccomp,profile=unconfined"]));
        assert_eq!(engine.seccomp, EngineSeccomp::Off);
        engine.take_warnings(&owned(&[
            "WARNING: bridge-nf-call-iptables is disabled",
            "WARNING: API is accessible on http://0.0.0.0:2375 without encryption.\n  Access to",
            "[DEPRECATION NOTICE]: API is accessible on https://10.0.0.1:2376 without TLS client verification.",
        ]));
        assert_eq!(
            engine.open_api.iter().map(String::as_str).collect::<Vec<_>>(),
            ["http://0.0.0.0:2375", "https://10.0.0.1:2376"]
        );
    }
}
