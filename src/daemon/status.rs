//! What is true now: built after each pass from what was applied, completed with the kernel's counters when asked for.

mod observe;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::observe::is_bound;
use super::state::AuditSince;
use super::usage::Usage;
use crate::kernel::elements::{Elements, ElementsError};
use crate::plan::names::UNLOGGED;
use crate::plan::ruleset::CounterName;

/// How the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not made its first pass yet; rules of an earlier run stand.
    Starting,
    /// The engine cannot be reached: the rules stand, nothing new opens.
    Waiting,
    /// The policy is in force.
    Enforcing,
    /// Something is not as it should be; `reasons` says what. What stands is closed rather than open.
    Degraded,
}

/// Everything that `cofferdam status --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    pub state: State,
    pub reasons: Vec<String>,
    /// Whether everything that was seen is in force: no pass, engine call, reading or ending of connections is under
    /// way.
    pub settled: bool,
    pub engine: Option<String>,
    pub policy: PolicyStatus,
    pub passes: Passes,
    /// The last change by others that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// By `segment/service`.
    pub services: BTreeMap<String, ServiceStatus>,
    pub edges: Vec<EdgeStatus>,
    /// Containers that are in no service's list: unmanaged ones, and those that are denied everything.
    #[serde(default)]
    pub others: Vec<ContainerStatus>,
    /// Containers that services of two segments claim, with the services.
    pub quarantined: BTreeMap<String, Vec<String>>,
    /// Managed containers that no rule can hold, and unmanaged ones that void the others' rules, with the reasons.
    pub unenforceable: BTreeMap<String, Vec<String>>,
    /// How many containers there are of each kind of reason.
    #[serde(default)]
    pub unenforceable_counts: BTreeMap<String, usize>,
    /// Containers that were cut from guarded networks for that, with their services.
    #[serde(default)]
    pub isolated: BTreeMap<String, Vec<String>>,
    /// Containers on many service networks, with their number: each makes their start slower.
    pub many_networks: BTreeMap<String, usize>,
    /// Since when services, or the whole host, are in audit.
    #[serde(default)]
    pub audit: AuditSince,
    /// Packets that were denied since the tables were made.
    pub denied_packets: Option<u64>,
    /// Packets that no edge permits but that passed, since the tables were made: their ends are in audit.
    #[serde(default)]
    pub audited_packets: Option<u64>,
    /// Frames that were not what they claimed to be, since the tables were made.
    #[serde(default)]
    pub forged_packets: Option<u64>,
    /// Denied, audited or forged packets that were counted only: beyond the rate of their sender.
    #[serde(default)]
    pub unlogged_packets: Option<u64>,
}

/// The policy in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyStatus {
    pub directory: String,
    /// The revision in force; `None`: none was valid yet.
    pub revision: Option<String>,
    /// When it was accepted, by this daemon or an earlier one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub accepted: Option<Timestamp>,
    /// A newer one that was refused, and how many faults it has.
    pub refused: Option<Refused>,
    /// The policy in force is the last good one, as it was kept on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<LastGood>,
    /// The repository that the policies come from, in place of the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitStatus>,
}

/// A repository and its commits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GitStatus {
    /// Without a password.
    pub url: String,
    pub reference: String,
    pub path: String,
    /// The commit in force.
    pub commit: Option<String>,
    /// A newer one that was refused.
    pub refused: Option<RefusedCommit>,
    /// When the repository was reached last.
    pub fetched: Option<String>,
    /// Why it could not be reached when that was tried last.
    pub failure: Option<String>,
}

/// A commit that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedCommit {
    pub commit: String,
    pub why: String,
}

/// Why an earlier policy is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastGood {
    /// When it was accepted.
    pub accepted: String,
    /// Since when it is in force for want of another.
    pub since: String,
    pub why: String,
}

/// A policy that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    pub revision: Option<String>,
    pub faults: usize,
    pub first: String,
}

/// Passes since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Passes {
    pub count: u64,
    /// How often the tables were found changed by others and were put back.
    pub repairs: u64,
    pub last_cause: String,
    pub last_elapsed_ms: u64,
}

/// A change of our rules, bridges or ports by others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drift {
    /// When it was noticed.
    pub at: String,
    pub what: String,
    /// Who made it, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How long it took to put it back; `None`: it is not yet.
    pub repaired_us: Option<u64>,
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} changed by ", self.what)?;
        match (&self.process, self.pid) {
            (Some(process), Some(pid)) => write!(f, "{process} ({pid})"),
            _ => f.write_str("others"),
        }
    }
}

/// One service's containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    pub containers: Vec<ContainerStatus>,
}

/// One container's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerStatus {
    pub name: String,
    pub id: String,
    /// Every service that it belongs to, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Where it has no network stack of its own: `host`, `none` or `container:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<String>,
    pub endpoints: Vec<EndpointStatus>,
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointStatus {
    pub network: String,
    pub addresses: Vec<IpAddr>,
    /// Whether its identity is proven in the kernel: without that nothing of it passes on a guarded network.
    pub bound: bool,
    #[serde(default)]
    pub state: EndpointState,
}

/// How an endpoint stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// It has its rights, proven in the kernel.
    Bound,
    /// It is not proven yet, or its container does not run: nothing of it passes.
    #[default]
    Pending,
    /// Services of two segments claim its container: nothing of it passes.
    Quarantined,
    /// No rule can hold its container, and the settings say that it is cut then.
    Isolated,
    /// No managed container was ever on its network: none of our business.
    Unguarded,
}

impl EndpointStatus {
    /// Whether it must be proven for anything of it to pass: it has an address, and its network is guarded.
    pub fn is_wanted(&self) -> bool {
        !self.addresses.is_empty() && self.state != EndpointState::Unguarded
    }
}

/// One edge and its use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EdgeStatus {
    pub from: String,
    pub to: String,
    pub ports: Vec<String>,
    pub declared: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// The name of its counter in `table inet cofferdam`.
    pub counter: String,
    /// New connections' first packets since the daemon began, from the kernel's counters.
    pub packets: Option<u64>,
    pub bytes: Option<u64>,
    /// When the counter was last seen to grow, to within 30 s; absent: never since the daemon began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<String>,
}

/// From this number of service networks on, a container's start is noticeably slower.
pub const MANY_NETWORKS: usize = 20;

impl Status {
    /// A daemon that has done nothing yet.
    pub fn starting() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: State::Starting,
            reasons: Vec::new(),
            settled: false,
            engine: None,
            policy: PolicyStatus::default(),
            passes: Passes::default(),
            drift: None,
            services: BTreeMap::new(),
            edges: Vec::new(),
            others: Vec::new(),
            quarantined: BTreeMap::new(),
            unenforceable: BTreeMap::new(),
            unenforceable_counts: BTreeMap::new(),
            isolated: BTreeMap::new(),
            many_networks: BTreeMap::new(),
            audit: AuditSince::default(),
            denied_packets: None,
            audited_packets: None,
            forged_packets: None,
            unlogged_packets: None,
        }
    }

    /// Adds what the kernel says at this moment: counters, and whether the tables stand.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn complete(&mut self, elements: &mut Elements, usage: &Usage) -> Result<(), ElementsError> {
        let counters = elements.counters()?;
        usage.observe(&counters, Timestamp::now());
        usage.fill(self);
        let packets = |name: &str| counters.get(&CounterName::from(name)).map(|it| it.packets);
        self.denied_packets = packets("denied");
        self.audited_packets = packets("audited");
        self.forged_packets = packets("forged");
        let unlogged = UNLOGGED.map(|(_, name)| packets(name));
        self.unlogged_packets = unlogged.into_iter().flatten().reduce(|a, b| a + b);
        if elements.base_chains()?.is_empty() && self.state != State::Starting {
            self.state = State::Degraded;
            self.reasons.push("the kernel holds none of our rules".to_owned());
        }
        Ok(())
    }
}
