//! The daemon's settings: from flags, environment, a YAML file and defaults, in this order.

pub mod git;
pub mod http;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;

use self::git::{Choice, GitPath, GitRef, GitSettings, GitUrl, Rewind};
use self::http::{Hosts, HttpSettings};
use crate::audit::Registries;
use crate::confine::Means;
use crate::model::{OnUnenforceable, Rights, Unmanaged};
use crate::plan::compile::Options;
use crate::plan::networks::Pools;
use crate::policy::{Mode, Policy};

/// Where settings are read from when no file is named; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/cofferdam/settings.yaml";

/// Settings as they can be given by flags, by environment variables or, under the same names, in the settings file.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Overrides {
    /// Directory of policy files [default: /etc/cofferdam/policies]
    #[arg(long, env = "COFFERDAM_POLICIES", value_name = "DIR")]
    pub policies: Option<PathBuf>,
    /// Docker Engine's Unix socket [default: /var/run/docker.sock]
    #[arg(long, env = "COFFERDAM_DOCKER_SOCKET", value_name = "PATH")]
    pub docker_socket: Option<PathBuf>,
    /// The daemon's control socket [default: /run/cofferdam/control.sock]
    #[arg(long, env = "COFFERDAM_CONTROL_SOCKET", value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// Where the last good policy is kept [default: /var/lib/cofferdam]
    #[arg(long, env = "COFFERDAM_STATE_DIRECTORY", value_name = "DIR")]
    pub state_directory: Option<PathBuf>,
    /// Git repository that the policies come from, in place of the directory: a URL, a path or `none` [default: none]
    #[arg(long, env = "COFFERDAM_GIT", value_name = "URL|none")]
    pub git: Option<Choice<GitUrl>>,
    /// Its branch, or a full name such as refs/tags/live [default: main]
    #[arg(long, env = "COFFERDAM_GIT_REF", value_name = "REF")]
    pub git_ref: Option<GitRef>,
    /// The directory of policy files in it [default: policies]
    #[arg(long, env = "COFFERDAM_GIT_PATH", value_name = "PATH")]
    pub git_path: Option<GitPath>,
    /// Seconds between two fetches [default: 60]
    #[arg(long, env = "COFFERDAM_GIT_INTERVAL", value_name = "SECONDS")]
    pub git_interval: Option<u64>,
    /// Take only commits that one of this file's keys has signed (the format of ssh-keygen's allowed signers) [default: none]
    #[arg(long, env = "COFFERDAM_REQUIRE_SIGNED", value_name = "FILE|none")]
    pub require_signed: Option<Choice<PathBuf>>,
    /// Take commits that do not come after the one in force, too [default: false]
    #[arg(long, env = "COFFERDAM_GIT_ALLOW_REWIND", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub git_allow_rewind: Option<bool>,
    /// Pool of service networks' IPv4 subnets [default: 10.213.0.0/16]
    #[arg(long, env = "COFFERDAM_IPV4_POOL", value_name = "CIDR")]
    pub ipv4_pool: Option<Ipv4Net>,
    /// Prefix length of each service network [default: 24]
    #[arg(long, env = "COFFERDAM_IPV4_PREFIX", value_name = "BITS")]
    pub ipv4_prefix: Option<u8>,
    /// Pool of service networks' IPv6 subnets, each a /64; `none` for IPv4 only [default: fd63:6f66:6665::/48]
    #[arg(long, env = "COFFERDAM_IPV6_POOL", value_name = "CIDR|none")]
    pub ipv6_pool: Option<Ipv6Pool>,
    /// Which bit of the packet mark says that a packet passed the rules, 0 to 31 [default: 30]
    #[arg(long, env = "COFFERDAM_STAMP_BIT", value_name = "BIT")]
    pub stamp_bit: Option<u8>,
    /// NFLOG group of denied packets [default: 64]
    #[arg(long, env = "COFFERDAM_NFLOG_GROUP", value_name = "GROUP")]
    pub nflog_group: Option<u16>,
    /// enforce, or audit: what no edge permits passes and is reported, whatever the policy says [default: enforce]
    #[arg(long, env = "COFFERDAM_MODE", value_name = "enforce|audit", value_parser = parse_mode)]
    pub mode: Option<Mode>,
    /// What happens between containers that no service selects: allow or deny [default: allow]
    #[arg(long, env = "COFFERDAM_UNMANAGED", value_name = "allow|deny", value_parser = parse_unmanaged)]
    pub unmanaged: Option<Unmanaged>,
    /// What happens to a managed container that cannot be held to its rights, a privileged one for example: report, isolate
    /// (cut it from guarded networks) or stop [default: report]
    #[arg(long, env = "COFFERDAM_UNENFORCEABLE", value_name = "report|isolate|stop", value_parser = parse_unenforceable)]
    pub unenforceable: Option<OnUnenforceable>,
    /// Where metrics and the page are served, for example 127.0.0.1:9471 [default: none]
    #[arg(long, env = "COFFERDAM_HTTP_LISTEN", value_name = "ADDRESS:PORT|none")]
    pub http_listen: Option<Choice<SocketAddr>>,
    /// Let others than this host read them: there is no password [default: false]
    #[arg(long, env = "COFFERDAM_HTTP_REMOTE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub http_remote: Option<bool>,
    /// Names, with commas between them, by which the server may be called beside localhost and addresses [default: none]
    #[arg(long, env = "COFFERDAM_HTTP_HOSTS", value_name = "NAMES|none")]
    pub http_hosts: Option<Choice<Hosts>>,
    /// Registries, or parts of them, that images may come from, with commas between them; `audit` reports others [default: none:
    /// all]
    #[arg(long, env = "COFFERDAM_ALLOWED_REGISTRIES", value_name = "NAMES|none")]
    pub allowed_registries: Option<Choice<Registries>>,
    /// File of accepted findings of `audit`, each with a reason and its last day [default: none]
    #[arg(long, env = "COFFERDAM_AUDIT_BASELINE", value_name = "FILE|none")]
    pub audit_baseline: Option<Choice<PathBuf>>,
    /// Have the daemon give up files, programs and ports that it does not need [default: true]
    #[arg(long, env = "COFFERDAM_LANDLOCK", value_name = "BOOL")]
    pub landlock: Option<bool>,
    /// Have the daemon give up system calls that it does not need [default: true]
    #[arg(long, env = "COFFERDAM_SECCOMP", value_name = "BOOL")]
    pub seccomp: Option<bool>,
}

/// A pool of IPv6 subnets, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Pool(pub Option<Ipv6Net>);

impl std::str::FromStr for Ipv6Pool {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            Ok(Self(None))
        } else {
            text.parse().map(|net| Self(Some(net)))
        }
    }
}

impl<'de> Deserialize<'de> for Ipv6Pool {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "enforce" => Ok(Mode::Enforce),
        "audit" => Ok(Mode::Audit),
        _ => Err("either enforce or audit".to_owned()),
    }
}

fn parse_unmanaged(text: &str) -> Result<Unmanaged, String> {
    match text {
        "allow" => Ok(Unmanaged::Allow),
        "deny" => Ok(Unmanaged::Deny),
        _ => Err("either allow or deny".to_owned()),
    }
}

fn parse_unenforceable(text: &str) -> Result<OnUnenforceable, String> {
    match text {
        "report" => Ok(OnUnenforceable::Report),
        "isolate" => Ok(OnUnenforceable::Isolate),
        "stop" => Ok(OnUnenforceable::Stop),
        _ => Err("one of report, isolate and stop".to_owned()),
    }
}

/// The settings in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub policies: PathBuf,
    pub docker_socket: PathBuf,
    pub control_socket: PathBuf,
    pub state_directory: PathBuf,
    /// `None`: the policies are in a directory.
    pub git: Option<GitSettings>,
    pub pools: Pools,
    pub options: Options,
    pub mode: Mode,
    pub unmanaged: Unmanaged,
    pub unenforceable: OnUnenforceable,
    /// `None`: nothing is served over HTTP.
    pub http: Option<HttpSettings>,
    /// `None`: every one.
    pub allowed_registries: Option<Registries>,
    /// `None`: nothing is accepted.
    pub audit_baseline: Option<PathBuf>,
    /// By which the daemon restricts itself.
    pub means: Means,
}

impl Settings {
    /// A policy with what these settings add to it.
    pub fn rights(&self, policy: Policy) -> Rights {
        Rights {
            policy,
            mode: self.mode,
            unmanaged: self.unmanaged,
            unenforceable: self.unenforceable,
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the settings file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the settings file {} is not valid: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
    #[error("{0}")]
    Value(String),
}

impl Settings {
    /// Merges flags and environment (`overrides`) over the file over the defaults. A file that was not named may be absent.
    ///
    /// # Errors
    /// When the file cannot be read or a value makes no sense.
    pub fn load(overrides: Overrides, file: Option<&Path>) -> Result<Self, SettingsError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let from_file = match std::fs::read_to_string(path) {
            Ok(text) => parse(&text, path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
                Overrides::default()
            }
            Err(source) => {
                return Err(SettingsError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Self::merge(overrides, from_file)
    }

    /// Merges flags over a file over the defaults.
    ///
    /// # Errors
    /// When a value makes no sense.
    pub fn merge(flags: Overrides, file: Overrides) -> Result<Self, SettingsError> {
        let path = |one: Option<PathBuf>, other: Option<PathBuf>, default: &str| {
            one.or(other).unwrap_or_else(|| PathBuf::from(default))
        };
        let ipv4 = flags
            .ipv4_pool
            .or(file.ipv4_pool)
            .unwrap_or(DEFAULT_IPV4_POOL)
            .trunc();
        let ipv4_prefix = flags.ipv4_prefix.or(file.ipv4_prefix).unwrap_or(24);
        let Ipv6Pool(ipv6) = flags
            .ipv6_pool
            .or(file.ipv6_pool)
            .unwrap_or(Ipv6Pool(Some(DEFAULT_IPV6_POOL)));
        let bit = flags.stamp_bit.or(file.stamp_bit).unwrap_or(30);
        if !(ipv4.prefix_len()..=29).contains(&ipv4_prefix) {
            let message = format!("ipv4-prefix {ipv4_prefix} must lie between the pool's ({ipv4}) and 29");
            return Err(SettingsError::Value(message));
        }
        if let Some(pool) = ipv6.filter(|pool| pool.prefix_len() > 64) {
            return Err(SettingsError::Value(format!(
                "ipv6-pool {pool} is smaller than the one /64 of a network"
            )));
        }
        if bit > 31 {
            return Err(SettingsError::Value(format!(
                "stamp-bit {bit} is not a bit of a mark: 0 to 31"
            )));
        }
        let state_directory = path(
            flags.state_directory.clone(),
            file.state_directory.clone(),
            "/var/lib/cofferdam",
        );
        let git = git_settings(&flags, &file, &state_directory).map_err(SettingsError::Value)?;
        let http = http::merge(
            flags.http_listen.or(file.http_listen),
            flags.http_remote.or(file.http_remote).unwrap_or_default(),
            flags.http_hosts.or(file.http_hosts),
        )
        .map_err(SettingsError::Value)?;
        let nflog_group = flags.nflog_group.or(file.nflog_group).unwrap_or(64);
        Ok(Self {
            policies: path(flags.policies, file.policies, "/etc/cofferdam/policies"),
            docker_socket: path(flags.docker_socket, file.docker_socket, "/var/run/docker.sock"),
            control_socket: path(
                flags.control_socket,
                file.control_socket,
                "/run/cofferdam/control.sock",
            ),
            state_directory,
            git,
            pools: Pools {
                ipv4,
                ipv4_prefix,
                ipv6: ipv6.map(|pool| pool.trunc()),
            },
            options: Options {
                stamp: 1 << bit,
                nflog_group,
            },
            mode: flags.mode.or(file.mode).unwrap_or_default(),
            unmanaged: flags.unmanaged.or(file.unmanaged).unwrap_or_default(),
            unenforceable: flags.unenforceable.or(file.unenforceable).unwrap_or_default(),
            http,
            allowed_registries: flags
                .allowed_registries
                .or(file.allowed_registries)
                .and_then(Choice::on),
            audit_baseline: flags.audit_baseline.or(file.audit_baseline).and_then(Choice::on),
            means: Means {
                landlock: flags.landlock.or(file.landlock).unwrap_or(true),
                seccomp: flags.seccomp.or(file.seccomp).unwrap_or(true),
            },
        })
    }
}

/// Which repository the policies come from, if they do.
fn git_settings(flags: &Overrides, file: &Overrides, state: &Path) -> Result<Option<GitSettings>, String> {
    let signers = flags
        .require_signed
        .clone()
        .or(file.require_signed.clone())
        .and_then(Choice::on);
    let Some(url) = flags.git.clone().or(file.git.clone()).and_then(Choice::on) else {
        return match signers {
            // Whoever asks for signatures must not be left without them.
            Some(_) => Err("require-signed needs git: files of a directory carry no signature".to_owned()),
            None => Ok(None),
        };
    };
    if let Some(signers) = &signers {
        git::outside(signers, state)?;
    }
    let seconds = flags.git_interval.or(file.git_interval).unwrap_or(60);
    if !(1..=86_400).contains(&seconds) {
        return Err(format!(
            "git-interval {seconds} must lie between 1 s and a day (86400)"
        ));
    }
    let allowed = flags
        .git_allow_rewind
        .or(file.git_allow_rewind)
        .unwrap_or_default();
    Ok(Some(GitSettings {
        url,
        reference: match flags.git_ref.clone().or(file.git_ref.clone()) {
            Some(reference) => reference,
            None => "main".parse()?,
        },
        path: match flags.git_path.clone().or(file.git_path.clone()) {
            Some(path) => path,
            None => "policies".parse()?,
        },
        interval: Duration::from_secs(seconds),
        signers,
        rewind: if allowed { Rewind::Allowed } else { Rewind::Refused },
    }))
}

const DEFAULT_IPV4_POOL: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 213, 0, 0), 16);
const DEFAULT_IPV6_POOL: Ipv6Net =
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfd63, 0x6f66, 0x6665, 0, 0, 0, 0, 0), 48);

/// Reads a settings file.
///
/// # Errors
/// Where it is no settings file.
pub fn parse(text: &str, path: &Path) -> Result<Overrides, SettingsError> {
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Overrides::default());
    }
    serde_yaml::from_str(text).map_err(|error| SettingsError::Invalid {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = parse(
            "nflog-group: 7\nstamp-bit: 3\nunmanaged: deny\nipv6-pool: none\n",
            Path::new("f"),
        )
        .unwrap();
        let flags = Overrides {
            nflog_group: Some(9),
            ..Overrides::default()
        };
        let settings = Settings::merge(flags, file).unwrap();
        assert_eq!(
            settings.options,
            Options {
                stamp: 8,
                nflog_group: 9
            }
        );
        assert_eq!(settings.unmanaged, Unmanaged::Deny);
        assert_eq!(settings.pools.ipv6, None);
        assert_eq!(settings.pools.ipv4.to_string(), "10.213.0.0/16");
    }

    #[test]
    fn an_unknown_or_senseless_setting_is_refused() {
        assert!(parse("nflog_group: 7\n", Path::new("f")).is_err());
        assert!(parse("# nothing yet\n", Path::new("f")).is_ok());
        let merge = |flags| Settings::merge(flags, Overrides::default());
        assert!(
            merge(Overrides {
                stamp_bit: Some(32),
                ..Overrides::default()
            })
            .is_err()
        );
        assert!(
            merge(Overrides {
                ipv4_prefix: Some(8),
                ..Overrides::default()
            })
            .is_err()
        );
        assert!(merge(Overrides::default()).is_ok());
    }

    #[test]
    fn http_is_off_by_default_and_on_loopback_unless_told_otherwise() {
        let merge = |text: &str| {
            let file = parse(text, Path::new("f")).unwrap();
            Settings::merge(Overrides::default(), file).map(|it| it.http)
        };
        assert_eq!(merge("# nothing\n").unwrap(), None);
        assert_eq!(merge("http-listen: none\n").unwrap(), None);
        for loopback in ["127.0.0.1:9471", "\"[::1]:9471\""] {
            let http = merge(&format!("http-listen: {loopback}\n")).unwrap().unwrap();
            assert!(http.listen.ip().is_loopback() && http.hosts == Hosts::default());
        }
        for wide in ["0.0.0.0:9471", "\"[::]:9471\"", "192.0.2.1:9471"] {
            let error = merge(&format!("http-listen: {wide}\n")).unwrap_err().to_string();
            assert!(error.contains("http-remote"), "{error}");
            assert!(merge(&format!("http-listen: {wide}\nhttp-remote: true\n")).is_ok());
        }
        let named = merge("http-listen: 127.0.0.1:1\nhttp-hosts: Board.example, b\n").unwrap();
        let hosts: Vec<String> = named.unwrap().hosts.0.into_iter().collect();
        assert_eq!(hosts, ["b", "board.example"]);
        for wrong in [
            "http-listen: 9471",
            "http-listen: localhost",
            "http-hosts: \"a b\"",
            "http-hosts: \"*\"",
        ] {
            assert!(parse(&format!("{wrong}\n"), Path::new("f")).is_err(), "{wrong}");
        }
    }

    /// The example has every key, and says what holds without it.
    #[test]
    fn the_example_is_complete_and_shows_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/settings.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        let keys = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines
                .filter_map(|line| Some(line.split_once(':')?.0.to_owned()))
                .collect()
        };
        let file = parse(&text, &path).unwrap();
        let shown = format!("{file:?}");
        assert!(!shown.contains("None"), "a key is missing: {shown}");
        let defaults = Settings::merge(Overrides::default(), Overrides::default()).unwrap();
        assert_eq!(Settings::merge(Overrides::default(), file).unwrap(), defaults);
        assert_eq!(
            Settings::load(Overrides::default(), Some(&path)).unwrap(),
            defaults
        );
        let documented = std::fs::read_to_string(path.with_file_name("../docs/settings.md")).unwrap();
        for key in keys(&text) {
            assert!(documented.contains(&format!("| `{key}` | `--{key}` |")), "{key}");
        }
    }

    #[test]
    fn what_to_do_with_the_unenforceable_is_one_of_three() {
        for (text, expected) in [
            ("report", OnUnenforceable::Report),
            ("isolate", OnUnenforceable::Isolate),
            ("stop", OnUnenforceable::Stop),
        ] {
            assert_eq!(parse_unenforceable(text), Ok(expected));
            let file = parse(&format!("unenforceable: {text}\n"), Path::new("f")).unwrap();
            assert_eq!(file.unenforceable, Some(expected));
        }
        assert!(parse_unenforceable("ignore").is_err());
        assert!(parse("unenforceable: ignore\n", Path::new("f")).is_err());
    }
}
