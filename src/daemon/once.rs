//! One reconcile without a daemon, and the removal of every trace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use jiff::Timestamp;
use tracing::{info, warn};

use super::executor::{Kernel, network_step};
use super::git::{self, GitError, Repository, Verdict};
use super::lock::Lock;
use super::preview::{Basis, VERSION};
use super::state::{Good, Origin, Store};
use super::{Refusal, chain, run, source};
use crate::docker::Engine;
use crate::fault;
use crate::inventory::{Inventory, Lifecycle, NetworkKind};
use crate::kernel::links::NetfilterCalls;
use crate::kernel::{bridge_netfilter, privilege};
use crate::plan::impact::fingerprint;
use crate::plan::networks::NetworkStep;
use crate::plan::{Plan, Planner};
use crate::settings::Settings;
use crate::settings::git::GitSettings;

/// A network that is made must be listed before containers can be attached to it, and attached ones before they are bound:
/// a reconcile takes a few rounds, and one that does not end is an error.
const ROUNDS: usize = 20;

/// What a reconcile did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    pub revision: String,
    pub engine_calls: usize,
    pub flows_ended: usize,
    /// Engine calls that failed, with the reason.
    pub failed: Vec<String>,
}

/// Brings the host to what the policy says, once.
///
/// # Errors
/// A [`Refusal`]; an invalid policy changes nothing.
pub async fn apply(settings: &Settings) -> Result<Applied, Refusal> {
    apply_if(settings, |_, _| Ok(())).await
}

/// As [`apply`], if the policy and the world are those that the saved plan was made from.
///
/// # Errors
/// A [`Refusal`], among others when they are not; nothing was changed then.
pub async fn apply_saved(settings: &Settings, plan: &Path, basis: &Basis) -> Result<Applied, Refusal> {
    let unmoved = |revision: &str, planner: &Planner| {
        let now = Basis {
            version: VERSION,
            revision: revision.to_owned(),
            // The lock is ours, so no daemon is there to say.
            in_force: None,
            world: fingerprint(planner),
        };
        match basis.moved(&now) {
            None => Ok(()),
            Some(what) => Err(Refusal::Moved {
                path: plan.to_owned(),
                what,
            }),
        }
    };
    apply_if(settings, unmoved).await
}

/// Applies if the check of revision and host, before anything is changed, has nothing against it.
async fn apply_if(
    settings: &Settings,
    check: impl Fn(&str, &Planner) -> Result<(), Refusal>,
) -> Result<Applied, Refusal> {
    privilege::require_net_admin()?;
    let _lock = Lock::take()?;
    Store::new(&settings.state_directory).require_known()?;
    let good = match &settings.git {
        Some(git) => of_repository(settings, git).await?,
        None => of_directory(settings)?,
    };
    bridge_netfilter::ensure().await?;
    let mut kernel = Kernel::open()?;
    let engine = Engine::connect(&settings.docker_socket).await?;
    let rights = settings.rights(good.loaded.policy.at(Timestamp::now()));
    let mut planner = Planner::new(settings.options, settings.pools.clone(), rights);
    let mut applied = Applied {
        revision: good.revision().to_string(),
        ..Applied::default()
    };
    for round in 0..ROUNDS {
        observe(&engine, &kernel, &mut planner).await?;
        let plan = planner.plan();
        if round == 0 {
            check(&applied.revision, &planner)?;
            keep(settings, &good);
        }
        if let Some(source) = plan.exhausted {
            return Err(Refusal::Pool { source });
        }
        if plan.is_empty() {
            return Ok(applied);
        }
        kernel
            .carry_out(&plan, &mut planner)
            .await
            .map_err(|error| Refusal::system("change the kernel's rules", error))?;
        applied.flows_ended += kernel
            .end_flows(&mut planner)
            .map_err(|error| Refusal::system("end open connections", error))?;
        if !engine_calls(&engine, &plan, &mut applied).await {
            return Ok(applied);
        }
    }
    Err(Refusal::system(
        "come to an end",
        format!("there was still something to do after {ROUNDS} rounds"),
    ))
}

fn of_directory(settings: &Settings) -> Result<Good, Refusal> {
    let sources =
        source::read(&[&settings.policies]).map_err(|error| Refusal::system("read the policy", error))?;
    let loaded = sources.load().map_err(|_| Refusal::Policy {
        path: settings.policies.clone(),
    })?;
    Ok(Good {
        loaded,
        files: sources.files,
        origin: Origin::Directory(settings.policies.display().to_string()),
        accepted: Timestamp::now(),
    })
}

/// The commit that the repository has now; one that is refused changes nothing.
async fn of_repository(settings: &Settings, git: &GitSettings) -> Result<Good, Refusal> {
    git::require(git).await?;
    let last = Store::new(&settings.state_directory).last_good().ok().flatten();
    let origin = last.as_ref().map(|it| &it.origin);
    let report = Repository::new(git.clone(), &settings.state_directory, origin)
        .refresh()
        .await;
    report.fetched.map_err(GitError::Refused)?;
    let refused = match (report.verdict, last) {
        (Verdict::Accepted(good), _) => return Ok(*good),
        (Verdict::InForce, Some(last)) => return Ok(last),
        (Verdict::Refused { commit, why }, _) => {
            format!("commit {commit} is refused, nothing was changed: {why}")
        }
        (Verdict::Nothing | Verdict::InForce, _) => "the repository holds no commit".to_owned(),
    };
    Err(GitError::Refused(refused).into())
}

/// Keeps what was accepted. That it cannot be kept changes nothing now.
fn keep(settings: &Settings, good: &Good) {
    let store = Store::new(&settings.state_directory);
    if let Err(error) = store.keep(good) {
        warn!(error = %chain(&error), "the last good policy cannot be kept");
    }
    let mut audit = store.audit().unwrap_or_default();
    if audit.observe(&settings.rights(good.loaded.policy.clone()), good.accepted)
        && let Err(error) = store.keep_audit(&audit)
    {
        warn!(error = %chain(&error), "since when services are in audit cannot be kept");
    }
}

async fn observe(engine: &Engine, kernel: &Kernel, planner: &mut Planner) -> Result<(), Refusal> {
    // Links first: what the engine says counts only for ports that were there before.
    run::observe_links(kernel.links(), planner)
        .await
        .map_err(|error| Refusal::system("list the host's links", error))?;
    let began = planner.moment();
    planner.reset(engine.list().await?, began);
    Ok(())
}

/// Makes the plan's engine calls, one after the other. Returns whether there is any use in another round.
async fn engine_calls(engine: &Engine, plan: &Plan, applied: &mut Applied) -> bool {
    let mut failed = Vec::new();
    for step in &plan.networks {
        match network_step(engine, step).await {
            Ok(_) => applied.engine_calls += 1,
            Err(error) => failed.push(error.to_string()),
        }
    }
    // What failed once fails again, until something else has changed.
    let hopeless = !failed.is_empty() && failed.len() == plan.networks.len();
    if hopeless {
        applied.failed = failed;
    }
    !hopeless
}

/// What `down` would remove, and what becomes reachable by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traces {
    /// Our networks, with the containers on each.
    pub networks: BTreeMap<String, BTreeSet<String>>,
    /// Networks that are not ours, with the containers that will reach each other freely there.
    pub opened: BTreeMap<String, BTreeSet<String>>,
    /// Ports of this host that lead to a container, as `0.0.0.0:8080/tcp`, with the container and its port.
    pub published: BTreeMap<String, Behind>,
    pub tables: bool,
}

/// What a published port leads to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Behind {
    pub container: String,
    pub port: u16,
}

/// Removal in two steps: see what there is, then remove it.
#[derive(Debug)]
pub struct Removal {
    inventory: Inventory,
    engine: Option<Engine>,
    kernel: Kernel,
    _lock: Lock,
}

impl Removal {
    /// Looks at what there is. Without an engine only the rules can be removed.
    ///
    /// # Errors
    /// A [`Refusal`], among others when a daemon is running.
    pub async fn prepare(settings: &Settings) -> Result<Self, Refusal> {
        privilege::require_net_admin()?;
        let lock = Lock::take()?;
        let kernel = Kernel::open()?;
        let mut inventory = Inventory::default();
        let engine = match Engine::connect(&settings.docker_socket).await {
            Ok(engine) => {
                inventory.reset(engine.list().await?);
                Some(engine)
            }
            Err(error) => {
                warn!(%error, "without the engine only the rules are removed, not the networks");
                None
            }
        };
        Ok(Self {
            inventory,
            engine,
            kernel,
            _lock: lock,
        })
    }

    /// What would be removed.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn traces(&mut self) -> Result<Traces, Refusal> {
        let tables = self
            .kernel
            .has_tables()
            .map_err(|error| Refusal::system("read the kernel's rules", error))?;
        let mut traces = Traces {
            tables,
            ..Traces::default()
        };
        for network in self.inventory.networks().values() {
            let on_it = |it: &&crate::inventory::Container| it.endpoints.contains_key(&network.id);
            let containers: BTreeSet<String> = self
                .inventory
                .containers()
                .values()
                .filter(on_it)
                .map(|it| it.name.clone())
                .collect();
            if network.is_ours() {
                traces.networks.insert(network.name.clone(), containers);
            } else if tables && containers.len() > 1 && matches!(network.kind, NetworkKind::Bridge(_)) {
                traces.opened.insert(network.name.clone(), containers);
            }
        }
        let running = self.inventory.containers().values();
        for container in running.filter(|it| tables && it.lifecycle == Lifecycle::Running) {
            for port in &container.published {
                let host = SocketAddr::new(port.address, port.host_port);
                let behind = Behind {
                    container: container.name.clone(),
                    port: port.container_port,
                };
                let name = format!("{host}/{}", port.transport.as_str());
                traces.published.insert(name, behind);
            }
        }
        Ok(traces)
    }

    /// Removes everything; goes on after a failure and returns what could not be removed.
    pub async fn remove(self) -> Vec<String> {
        let mut failed = Vec::new();
        // The rules last: until the networks are gone, they hold.
        if let Some(engine) = &self.engine {
            for network in self
                .inventory
                .networks()
                .values()
                .filter(|network| network.is_ours())
            {
                let members = self
                    .inventory
                    .containers()
                    .values()
                    .filter(|it| it.endpoints.contains_key(&network.id));
                let detach = members.map(|it| NetworkStep::Detach {
                    network: network.id.clone(),
                    container: it.id.clone(),
                });
                let remove = NetworkStep::Remove {
                    network: network.id.clone(),
                    name: network.name.clone(),
                };
                for step in detach.chain([remove]) {
                    if let Err(error) = network_step(engine, &step).await {
                        failed.push(error.to_string());
                    }
                }
                info!(network = network.name, "network removed");
            }
            self.restore_bridges(&mut failed).await;
            fault::point("down-networks");
        }
        if let Err(error) = self.kernel.remove_tables().await {
            failed.push(error.to_string());
        }
        failed
    }

    /// Takes the bridges that are not ours out of br_netfilter again; the host-wide switch, if the engine turned it on,
    /// goes on calling it.
    async fn restore_bridges(&self, failed: &mut Vec<String>) {
        let snapshot = match self.kernel.links().list().await {
            Ok(snapshot) => snapshot,
            Err(error) => return failed.push(error.to_string()),
        };
        for network in self
            .inventory
            .networks()
            .values()
            .filter(|network| !network.is_ours())
        {
            let NetworkKind::Bridge(name) = &network.kind else {
                continue;
            };
            for bridge in snapshot.bridges.iter().filter(|bridge| bridge.name == *name) {
                let off = NetfilterCalls {
                    ipv4: false,
                    ipv6: false,
                };
                if let Err(error) = self.kernel.links().set_netfilter_calls(bridge.index, off).await {
                    failed.push(error.to_string());
                }
            }
        }
    }
}
