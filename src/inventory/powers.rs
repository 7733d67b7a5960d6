//! What a container may do beyond its own network: facts that decide whether any rule can hold it.

use std::collections::BTreeSet;

/// What was read of a container besides its name, networks and addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `None`: not read yet. They are fixed when the container is created.
    pub powers: Option<BTreeSet<Power>>,
    /// The engine's answer does not tell for certain what it is called or where its network stack is.
    pub unreadable: bool,
}

/// Something that Docker grants only when it is asked to, and that lets a container act outside its own network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Power {
    Privileged,
    Capability(Capability),
    /// It shares the host's process namespace.
    HostProcesses,
    /// The engine's socket can be opened inside; `mount` is the host's path that brings it in.
    EngineSocket {
        mount: String,
    },
}

/// A capability that matters here. `NET_RAW`, which containers have by default, does not: what is forged is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    All,
    NetAdmin,
    SysAdmin,
    SysModule,
    SysPtrace,
    SysRawio,
    DacReadSearch,
}

impl Capability {
    /// Every one that stands for itself.
    const SINGLE: [Self; 6] = [
        Self::NetAdmin,
        Self::SysAdmin,
        Self::SysModule,
        Self::SysPtrace,
        Self::SysRawio,
        Self::DacReadSearch,
    ];

    /// As Docker's users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "ALL",
            Self::NetAdmin => "NET_ADMIN",
            Self::SysAdmin => "SYS_ADMIN",
            Self::SysModule => "SYS_MODULE",
            Self::SysPtrace => "SYS_PTRACE",
            Self::SysRawio => "SYS_RAWIO",
            Self::DacReadSearch => "DAC_READ_SEARCH",
        }
    }

    /// Those of `added` that the container really has: `dropped` only takes away from `ALL`.
    pub fn granted(added: &[String], dropped: &[String]) -> BTreeSet<Self> {
        let names = |list: &[String]| -> BTreeSet<String> { list.iter().map(|name| plain(name)).collect() };
        let (added, dropped) = (names(added), names(dropped));
        let all = added.contains("ALL");
        let single = Self::SINGLE.into_iter();
        let mut granted: BTreeSet<Self> = if all {
            single.filter(|it| !dropped.contains(it.name())).collect()
        } else {
            single.filter(|it| added.contains(it.name())).collect()
        };
        if all && granted.len() == Self::SINGLE.len() {
            granted.insert(Self::All);
        }
        granted
    }
}

/// `CAP_NET_ADMIN`, `cap_net_admin` and `NET_ADMIN` are the same to Docker.
pub(super) fn plain(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_is_what_docker_grants() {
        let granted = |added: &[&str], dropped: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
            Capability::granted(&owned(added), &owned(dropped))
        };
        assert_eq!(granted(&["NET_RAW", "CHOWN"], &[]), BTreeSet::new());
        for written in ["NET_ADMIN", "cap_net_admin", "CAP_NET_ADMIN"] {
            assert_eq!(
                granted(&[written], &["ALL"]),
                BTreeSet::from([Capability::NetAdmin])
            );
        }
        // What is added by name stays, whatever is dropped.
        assert_eq!(
            granted(&["NET_ADMIN"], &["NET_ADMIN"]),
            BTreeSet::from([Capability::NetAdmin])
        );
        assert!(granted(&["all"], &["NET_RAW"]).contains(&Capability::All));
        let less = granted(&["ALL"], &["CAP_NET_ADMIN"]);
        assert!(!less.contains(&Capability::NetAdmin) && !less.contains(&Capability::All));
        assert!(less.contains(&Capability::SysAdmin));
    }
}
