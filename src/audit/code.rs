//! The codes of findings, with how grave each is. Each code's explanation is `explain/CODE.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal $severity:ident,)+) => {
        /// What kind of finding it is. The texts are stable: they stand in baselines.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code as text, such as `CFA001`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// How grave it is, where nothing more is known.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)+
                }
            }

            /// A short text in Markdown: a title, what it is about, a wrong and a right example.
            pub fn explanation(self) -> &'static str {
                match self {
                    $(Self::$name => include_str!(concat!("explain/", $text, ".md")),)+
                }
            }
        }
    };
}

/// How grave a finding is; the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The container is not held by any rule: it is, or can become, the host.
    Critical,
    /// A way around the rules, or most of one.
    High,
    /// What makes a break-in reach further.
    Medium,
    /// What good practice leaves out.
    Low,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }
}

codes! {
    /// The host's network.
    HostNetwork = "CFA001" Critical,
    /// `--privileged`.
    Privileged = "CFA002" Critical,
    /// The engine's socket is in reach.
    EngineSocket = "CFA003" Critical,
    /// A capability that leads to the host.
    HostCapability = "CFA004" Critical,
    /// A network whose packets pass no rule.
    UnseenNetwork = "CFA005" High,
    /// Another container's network.
    SharedNetwork = "CFA006" High,
    /// `NET_ADMIN` in its own network.
    NetAdmin = "CFA007" Medium,
    /// `NET_RAW`.
    NetRaw = "CFA008" Medium,
    /// Another capability that was added.
    AddedCapability = "CFA009" Medium,
    /// The default capabilities are kept.
    KeepsCapabilities = "CFA010" Low,
    /// Root, and the host's root at that.
    Root = "CFA011" Medium,
    /// A writable root file system.
    WritableRoot = "CFA012" Low,
    /// A host's path that leads to the host.
    SensitivePath = "CFA013" High,
    /// Another path of the host.
    HostPath = "CFA014" Medium,
    /// A device of the host.
    Device = "CFA015" High,
    /// No seccomp.
    Seccomp = "CFA016" High,
    /// No AppArmor.
    AppArmor = "CFA017" Medium,
    /// No SELinux.
    Selinux = "CFA018" Medium,
    /// `no-new-privileges` is missing.
    NewPrivileges = "CFA019" Low,
    /// The host's processes.
    HostPid = "CFA020" High,
    /// The host's IPC.
    HostIpc = "CFA021" Medium,
    /// The host's name.
    HostUts = "CFA022" Low,
    /// `/proc` and `/sys` as they are.
    SystemPaths = "CFA023" Medium,
    /// A published port that no edge declares.
    UndeclaredPort = "CFA030" Medium,
    /// A port that is published on all addresses.
    AllAddresses = "CFA031" Medium,
    /// An image by a tag.
    MutableTag = "CFA040" Low,
    /// An image from another registry than those allowed.
    Registry = "CFA041" Medium,
    /// What cannot be read.
    Unreadable = "CFA050" High,
    /// The engine's API without proof of who asks.
    OpenApi = "CFA100" Critical,
    /// The engine's seccomp profile.
    EngineSeccomp = "CFA101" High,
    /// Neither AppArmor nor SELinux.
    NoMandatory = "CFA102" Low,
    /// No `userns-remap`.
    NoUserMap = "CFA103" Low,
    /// The default bridge is open within.
    Icc = "CFA104" Medium,
    /// The userland proxy.
    UserlandProxy = "CFA105" Low,
    /// No `live-restore`.
    LiveRestore = "CFA106" Low,
}

impl Code {
    /// Whether it is about the engine's settings and not about a container.
    pub fn is_of_engine(self) -> bool {
        self >= Self::OpenApi
    }
}

impl std::str::FromStr for Code {
    type Err = UnknownCode;

    /// Upper or lower case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut codes = Self::ALL.iter();
        codes
            .find(|code| code.as_str().eq_ignore_ascii_case(text))
            .copied()
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

/// A text that is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no finding `{0}`: codes of `audit` look like `CFA001`")]
pub struct UnknownCode(String);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
