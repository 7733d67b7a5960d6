//! Whether this host has what Cofferdam needs: kernel, programs, engine, pools, clock, policy. Looks, and changes nothing: the rules are
//! put before the kernel as `nft --check` does.

use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::process::Command;
use tokio::time::timeout;

use super::control::{Answer, Request, ask};
use super::state::Store;
use super::status::State;
use super::{chain, run, source};
use crate::docker::Engine;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::elements::Elements;
use crate::kernel::links::Links;
use crate::kernel::nft::Nft;
use crate::kernel::privilege;
use crate::plan::{KernelStep, Planner};
use crate::policy::Policy;
use crate::settings::Settings;

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// It runs, but somebody should look.
    Warn,
    /// It cannot enforce like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub outcome: Outcome,
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            outcome: Outcome::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn bad(name: &'static str, outcome: Outcome, found: impl Into<String>, remedy: &'static str) -> Self {
        Self {
            name,
            outcome,
            found: found.into(),
            remedy: Some(remedy),
        }
    }
}

/// The version of nft that the rules are tested with.
const TESTED_NFT: [u32; 3] = [1, 0, 6];
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything, in the order in which it is needed.
pub async fn examine(settings: &Settings) -> Vec<Check> {
    let mut checks = vec![privileges(), nft_version().await, bridge_netfilter(), sockets()];
    let mut planner = Planner::new(
        settings.options,
        settings.pools.clone(),
        settings.rights(Policy::default()),
    );
    let links = links(&mut planner).await;
    let links_hold = links.outcome == Outcome::Ok;
    checks.push(links);
    checks.push(features(&mut planner).await);
    checks.push(forwarding());
    checks.push(tracking());
    checks.push(engine(settings, &mut planner).await);
    if links_hold {
        checks.push(pools(&planner));
    }
    checks.push(clock(&Store::new(&settings.state_directory)));
    checks.push(policy(settings));
    checks.push(rules());
    checks.push(daemon(settings).await);
    checks
}

fn privileges() -> Check {
    match privilege::require_net_admin() {
        Ok(()) => Check::ok("privileges", "CAP_NET_ADMIN is there"),
        Err(error) => Check::bad("privileges", Outcome::Fail, error.to_string(), "run this as root"),
    }
}

async fn nft_version() -> Check {
    const NAME: &str = "nft";
    const INSTALL: &str = "install the package nftables, 1.0.6 or later";
    if let Err(error) = Nft::find() {
        return Check::bad(NAME, Outcome::Fail, error.to_string(), INSTALL);
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let run = Command::new("nft")
        .arg("--version")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .kill_on_drop(true)
        .output();
    let text = match timeout(PATIENCE, run).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(Err(error)) => return Check::bad(NAME, Outcome::Fail, format!("cannot be run: {error}"), INSTALL),
        Err(_) => return Check::bad(NAME, Outcome::Fail, "hangs", INSTALL),
    };
    match version(&text) {
        Some(found) if found >= TESTED_NFT => Check::ok(NAME, text),
        Some(_) => Check::bad(
            NAME,
            Outcome::Warn,
            format!("{text} is older than what is tested"),
            INSTALL,
        ),
        None => Check::bad(
            NAME,
            Outcome::Warn,
            format!("says `{text}`, which is no version"),
            INSTALL,
        ),
    }
}

/// `nftables v1.0.6 (Lester Gooch #5)`.
fn version(text: &str) -> Option<[u32; 3]> {
    let word = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut numbers = word.split('.').map(|it| it.parse().ok());
    Some([
        numbers.next()??,
        numbers.next()??,
        numbers.next().flatten().unwrap_or_default(),
    ])
}

fn bridge_netfilter() -> Check {
    const NAME: &str = "br_netfilter";
    if Path::new("/proc/sys/net/bridge").is_dir() {
        Check::ok(NAME, "is loaded")
    } else {
        Check::bad(
            NAME,
            Outcome::Fail,
            "is not loaded: nothing between containers of one network can be permitted",
            "modprobe br_netfilter, and a line `br_netfilter` in /etc/modules-load.d/cofferdam.conf",
        )
    }
}

/// What the daemon opens at its start.
fn sockets() -> Check {
    const NAME: &str = "netlink";
    let opened = Elements::open()
        .map_err(|error| chain(&error))
        .and_then(|_| Conntrack::open().map_err(|error| chain(&error)))
        .and_then(|mut it| it.flows().map_err(|error| chain(&error)));
    match opened {
        Ok(flows) => Check::ok(
            NAME,
            format!(
                "nftables and connection tracking answer; {} connections",
                flows.len()
            ),
        ),
        Err(error) => Check::bad(
            NAME,
            Outcome::Fail,
            error,
            "run this as root; else a kernel with CONFIG_NF_TABLES and CONFIG_NF_CT_NETLINK (modules nf_tables, nf_conntrack_netlink)",
        ),
    }
}

async fn links(planner: &mut Planner) -> Check {
    const NAME: &str = "links";
    const REMEDY: &str = "a kernel with CONFIG_BRIDGE and network namespaces";
    let links = match Links::open() {
        Ok(links) => links,
        Err(error) => return Check::bad(NAME, Outcome::Fail, chain(&error), REMEDY),
    };
    match run::observe_links(&links, planner).await {
        Ok(()) => Check::ok(NAME, "bridges, ports and routes can be read"),
        Err(error) => Check::bad(NAME, Outcome::Fail, chain(&error), REMEDY),
    }
}

/// The kernel's word on every expression that the rules use.
async fn features(planner: &mut Planner) -> Check {
    const NAME: &str = "kernel features";
    const REMEDY: &str = "a kernel with nf_tables for the families inet and bridge, nft_ct, nft_fib_inet, nft_log, nft_limit, nft_reject; \
                          the message says which is missing";
    let plan = planner.plan();
    let (KernelStep::Replace(steps) | KernelStep::Structure(steps)) = &plan.kernel else {
        return Check::bad(NAME, Outcome::Warn, "there was nothing to check", REMEDY);
    };
    let checked = match Nft::find() {
        Ok(nft) => nft.check(steps).await,
        Err(error) => Err(error),
    };
    match checked {
        Ok(()) => Check::ok(NAME, "the kernel would take the rules"),
        Err(error) => Check::bad(NAME, Outcome::Fail, chain(&error), REMEDY),
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn forwarding() -> Check {
    const NAME: &str = "forwarding";
    match number("/proc/sys/net/ipv4/ip_forward") {
        Some(1) => Check::ok(NAME, "net.ipv4.ip_forward is 1"),
        _ => Check::bad(
            NAME,
            Outcome::Warn,
            "net.ipv4.ip_forward is not 1: nothing passes between networks",
            "the engine sets it at its start unless told not to: restart it, or sysctl net.ipv4.ip_forward=1",
        ),
    }
}

fn tracking() -> Check {
    const NAME: &str = "connection table";
    let count = number("/proc/sys/net/netfilter/nf_conntrack_count");
    let most = number("/proc/sys/net/netfilter/nf_conntrack_max");
    match (count, most) {
        (Some(count), Some(most)) => crowded(count, most),
        // It is loaded with the rules.
        _ => Check::ok(NAME, "is not in use yet"),
    }
}

fn crowded(count: u64, most: u64) -> Check {
    const NAME: &str = "connection table";
    let found = format!("{count} of {most} connections");
    if count.saturating_mul(5) >= most.saturating_mul(4) {
        let remedy = "sysctl net.netfilter.nf_conntrack_max to twice as much: what does not fit is dropped";
        Check::bad(NAME, Outcome::Warn, found, remedy)
    } else {
        Check::ok(NAME, found)
    }
}

async fn engine(settings: &Settings, planner: &mut Planner) -> Check {
    const NAME: &str = "engine";
    const REMEDY: &str = "start Docker Engine 20.10 or later, or name its socket with --docker-socket";
    let engine = match Engine::connect(&settings.docker_socket).await {
        Ok(engine) => engine,
        Err(error) => return Check::bad(NAME, Outcome::Fail, chain(&error), REMEDY),
    };
    let version = engine.info().version.clone();
    let began = planner.moment();
    match engine.list().await {
        Ok(listing) => {
            let found = format!("{version}, {} containers", listing.containers.len());
            planner.reset(listing, began);
            Check::ok(NAME, found)
        }
        Err(error) => Check::bad(NAME, Outcome::Fail, chain(&error), REMEDY),
    }
}

fn pools(planner: &Planner) -> Check {
    const NAME: &str = "address pools";
    match planner.pool_collision() {
        None => Check::ok(NAME, "subnets are free"),
        Some(error) => Check::bad(
            NAME,
            Outcome::Fail,
            error.to_string(),
            "name other pools with --ipv4-pool and --ipv6-pool, or remove the route or network that takes them",
        ),
    }
}

/// Edges with `until` end by the kernel's clock.
fn clock(store: &Store) -> Check {
    const NAME: &str = "clock";
    const REMEDY: &str =
        "set the clock, and have systemd-timesyncd or chrony keep it: edges with `until` end by it";
    let now = Timestamp::now();
    if let Ok(Some(good)) = store.last_good()
        && good.accepted > now
    {
        let found = format!(
            "it is {now:.0}, before the last policy was accepted ({:.0})",
            good.accepted
        );
        return Check::bad(NAME, Outcome::Fail, found, REMEDY);
    }
    let kept = [
        "/run/systemd/timesync/synchronized",
        "/run/chrony/chronyd.pid",
        "/run/chronyd.pid",
        "/run/ntpd.pid",
        "/run/ntpsec/ntpd.pid",
    ];
    match kept.iter().find(|path| Path::new(path).exists()) {
        Some(_) => Check::ok(NAME, format!("it is {now:.0}, and kept")),
        None => Check::bad(
            NAME,
            Outcome::Warn,
            format!("it is {now:.0}, and nobody seems to keep it"),
            REMEDY,
        ),
    }
}

fn policy(settings: &Settings) -> Check {
    const NAME: &str = "policy";
    if settings.git.is_some() {
        return Check::ok(
            NAME,
            "comes from a repository; `cofferdam status` tells the commit",
        );
    }
    let path = settings.policies.display();
    match source::read(&[&settings.policies]).map(|sources| sources.load()) {
        Ok(Ok(loaded)) => Check::ok(NAME, loaded.summary()),
        Ok(Err(faults)) => Check::bad(
            NAME,
            Outcome::Fail,
            format!("{path}: {}", faults.summary()),
            "`cofferdam check` says where and what was meant",
        ),
        Err(error) => Check::bad(
            NAME,
            Outcome::Fail,
            chain(&error),
            "write a policy there, or name the directory with --policies",
        ),
    }
}

fn rules() -> Check {
    const NAME: &str = "rules";
    let chains = Elements::open().and_then(|mut elements| elements.base_chains());
    match chains {
        Ok(chains) if !chains.is_empty() => Check::ok(NAME, "stand in the kernel"),
        Ok(_) => Check::bad(
            NAME,
            Outcome::Warn,
            "there are none: every container is as open as Docker makes it",
            "start the daemon, or `cofferdam guard` to close everything before",
        ),
        Err(error) => Check::bad(NAME, Outcome::Fail, chain(&error), "run this as root"),
    }
}

async fn daemon(settings: &Settings) -> Check {
    const NAME: &str = "daemon";
    const STATUS: &str = "`cofferdam status` says more";
    match ask(&settings.control_socket, Request::Status).await {
        Ok(Answer::Status(status)) => match (status.state, status.reasons.first()) {
            (State::Enforcing, _) => Check::ok(NAME, "enforces the policy"),
            (State::Starting, _) => Check::bad(NAME, Outcome::Warn, "has only just started", STATUS),
            (State::Waiting, _) => Check::bad(NAME, Outcome::Warn, "waits for the engine", STATUS),
            (State::Degraded, reason) => {
                let reason = reason.map_or("something is wrong", String::as_str);
                Check::bad(NAME, Outcome::Fail, format!("is degraded: {reason}"), STATUS)
            }
        },
        Ok(_) => Check::bad(
            NAME,
            Outcome::Warn,
            "answers something else than its status",
            STATUS,
        ),
        Err(error) => Check::bad(
            NAME,
            Outcome::Warn,
            format!("does not answer: {}", chain(&error)),
            "`systemctl start cofferdam`, or `cofferdam run`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!(version("nftables v1.0.6 (Lester Gooch #5)"), Some([1, 0, 6]));
        assert_eq!(version("nftables v1.1 (x)"), Some([1, 1, 0]));
        assert!(version("nftables v1.0.10 (x)") > Some(TESTED_NFT));
        assert!(version("nftables v0.9.8 (x)") < Some(TESTED_NFT));
        for wrong in ["", "nftables", "nftables vx.y"] {
            assert_eq!(version(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_table_is_crowded_before_it_is_full() {
        assert_eq!(crowded(79, 100).outcome, Outcome::Ok);
        assert_eq!(crowded(80, 100).outcome, Outcome::Warn);
        assert_eq!(crowded(u64::MAX, u64::MAX).outcome, Outcome::Warn);
    }

    #[test]
    fn a_clock_behind_the_last_policy_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let nothing = Store::new(folder.path());
        assert_ne!(clock(&nothing).outcome, Outcome::Fail);
    }
}
