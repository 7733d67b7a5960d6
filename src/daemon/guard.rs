//! The guard: rules that stand before the engine does, so that containers with a restart policy come up closed.
//!
//! It knows no container: every bridge that may be Docker's is closed until a daemon has seen what is on it.

use jiff::Timestamp;
use tracing::{info, warn};

use super::executor::Kernel;
use super::lock::Lock;
use super::{Refusal, run, source};
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

/// The policy, if there is a valid one.
fn rights(settings: &Settings) -> (Rights, Option<String>) {
    let none = || settings.rights(Policy::default());
    let sources = match source::read(&[&settings.policies]) {
        Ok(sources) => sources,
        Err(error) => {
            warn!(%error, "the policy cannot be read: the rules are loaded without it");
            return (none(), None);
        }
    };
    match sources.load() {
        Ok(loaded) => (
            settings.rights(loaded.policy.at(Timestamp::now())),
            Some(loaded.revision.to_string()),
        ),
        Err(_) => {
            warn!("the policy is not valid: the rules are loaded without it; `cofferdam check` says why");
            (none(), None)
        }
    }
}
