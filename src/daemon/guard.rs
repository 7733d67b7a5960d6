//! The guard: rules that stand before the engine does, so that containers with a restart policy come up closed.
//!
//! It knows no container: every bridge that may be Docker's is closed until a daemon has seen what is on it.

use jiff::Timestamp;
use tracing::{info, warn};

use super::executor::Kernel;
use super::lock::Lock;
use super::state::Store;
use super::{Refusal, chain, run, source};
use crate::kernel::{bridge_netfilter, privilege};
use crate::model::Rights;
use crate::plan::Planner;
use crate::policy::Policy;
use crate::settings::Settings;

/// What the guard found or did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    /// Our tables stood already: nothing was changed.
    Stood,
    /// Our tables were loaded, with the structure of this revision of the policy; `None`: without one, as none was valid.
    Loaded { revision: Option<String> },
}

/// Closes the host's Docker networks unless our tables stand. Needs no engine and leaves no process.
///
/// # Errors
/// A [`Refusal`]; a policy with faults is none, since the rules are closed without one.
pub async fn guard(settings: &Settings) -> Result<Guard, Refusal> {
    privilege::require_net_admin()?;
    let mut kernel = Kernel::open()?;
    let (rights, revision) = rights(settings);
    let mut planner = Planner::new(settings.options, settings.pools.clone(), rights);
    run::observe_links(kernel.links(), &mut planner)
        .await
        .map_err(|error| Refusal::system("list the host's links", error))?;
    let plan = planner.plan();
    let stands = |kernel: &mut Kernel| {
        kernel
            .stands(&planner.structure().ruleset)
            .map_err(|error| Refusal::system("read the kernel's rules", error))
    };
    // A daemon that runs holds the lock, and where it runs, the tables stand.
    if stands(&mut kernel)? {
        return Ok(Guard::Stood);
    }
    let _lock = Lock::take()?;
    if stands(&mut kernel)? {
        return Ok(Guard::Stood);
    }
    // What permits needs it, what closes does not: the daemon will insist.
    if let Err(error) = bridge_netfilter::ensure().await {
        warn!(%error, "bridge netfilter is missing");
    }
    kernel
        .carry_out(&plan, &mut planner)
        .await
        .map_err(|error| Refusal::system("load the rules", error))?;
    kernel
        .end_flows(&mut planner)
        .map_err(|error| Refusal::system("end open connections", error))?;
    info!(revision, "the guard stands");
    Ok(Guard::Loaded { revision })
}

/// The policy: the directory's, or else the last good one, if there is a valid one.
fn rights(settings: &Settings) -> (Rights, Option<String>) {
    let (policy, revision) = match valid(settings) {
        Some((policy, revision)) => (policy, Some(revision)),
        None => (Policy::default(), None),
    };
    (settings.rights(policy.at(Timestamp::now())), revision)
}

fn valid(settings: &Settings) -> Option<(Policy, String)> {
    // A repository is not asked here: before the engine there may be no network.
    if settings.git.is_none() {
        match source::read(&[&settings.policies]) {
            Ok(sources) => match sources.load() {
                Ok(loaded) => return Some((loaded.policy, loaded.revision.to_string())),
                Err(_) => warn!("the policy is not valid; `cofferdam check` says why"),
            },
            Err(error) => warn!(error = %chain(&error), "the policy cannot be read"),
        }
    }
    match Store::new(&settings.state_directory).last_good() {
        Ok(Some(good)) => {
            let revision = good.revision().to_string();
            info!(revision, accepted = %good.accepted, "the rules are loaded with the last good policy");
            Some((good.loaded.policy, revision))
        }
        Ok(None) => {
            warn!("there is no last good policy: the rules are loaded without one");
            None
        }
        Err(error) => {
            warn!(error = %chain(&error), "the last good policy is not used: the rules are loaded without one");
            None
        }
    }
}
