//! What a policy would do to this host: looks, and changes nothing. And the saved plan that `apply` is held to.

use serde::{Deserialize, Serialize};

use super::endings::{host_addresses, open_flow};
use super::{Refusal, run};
use crate::docker::Engine;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::links::Links;
use crate::kernel::privilege;
use crate::model::Rights;
use crate::plan::Planner;
use crate::plan::flows::OpenFlow;
use crate::plan::impact::{Impact, View, fingerprint, impact};
use crate::settings::Settings;

/// What a change of policy would do on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    pub impact: Impact,
    /// Of the containers that it was made from.
    pub world: String,
}

/// Looks at the host under the old rights, where they are known, and under the new ones.
///
/// # Errors
/// A [`Refusal`]: without the engine, or the right to read the kernel's tables, nothing can be said.
pub async fn preview(settings: &Settings, old: Option<Rights>, new: Rights) -> Result<Preview, Refusal> {
    privilege::require_net_admin()?;
    let engine = Engine::connect(&settings.docker_socket).await?;
    let links = Links::open().map_err(Refusal::kernel)?;
    let first = old.clone().unwrap_or_else(|| new.clone());
    let mut planner = Planner::new(settings.options, settings.pools.clone(), first);
    run::observe_links(&links, &mut planner)
        .await
        .map_err(|error| Refusal::system("list the host's links", error))?;
    let began = planner.moment();
    planner.reset(engine.list().await?, began);
    let listed = tokio::task::block_in_place(|| Conntrack::open()?.flows());
    let listed = listed.map_err(|error| Refusal::system("list the open connections", error))?;
    let flows: Vec<OpenFlow> = listed.iter().map(open_flow).collect();
    let host = host_addresses();
    planner.plan();
    let before = old.map(|_| View::of(&planner, &host, &flows));
    planner.set_rights(new);
    planner.plan();
    let after = View::of(&planner, &host, &flows);
    Ok(Preview {
        impact: impact(&planner, before.as_ref(), &after, &flows, &host),
        world: fingerprint(&planner),
    })
}

/// The format of saved plans.
pub const VERSION: u32 = 1;

/// A plan as it is saved: what it is good for, and what it was made from. The file says more, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// [`VERSION`].
    pub version: u32,
    /// The revision that it would bring in force.
    pub revision: String,
    /// The revision that was in force; `None` where no daemon told.
    pub in_force: Option<String>,
    /// The containers, as one number.
    pub world: String,
}

impl Basis {
    /// What has moved since the plan was made, if anything; `now` is what a plan would be made from at this moment.
    pub fn moved(&self, now: &Self) -> Option<&'static str> {
        if self.version != now.version {
            Some("the format of plans has changed")
        } else if self.revision != now.revision {
            Some("the policy has changed")
        } else if self.in_force != now.in_force {
            Some("the policy in force, as far as it is known, has changed")
        } else if self.world != now.world {
            Some("containers have come, gone or become something else")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_good_for_what_it_was_made_from_alone() {
        let basis = Basis {
            version: 1,
            revision: "r".to_owned(),
            in_force: None,
            world: "w".to_owned(),
        };
        assert_eq!(basis.moved(&basis.clone()), None);
        for other in [
            Basis {
                version: 2,
                ..basis.clone()
            },
            Basis {
                revision: "s".to_owned(),
                ..basis.clone()
            },
            Basis {
                in_force: Some("q".to_owned()),
                ..basis.clone()
            },
            Basis {
                world: "v".to_owned(),
                ..basis.clone()
            },
        ] {
            assert!(basis.moved(&other).is_some(), "{other:?}");
        }
    }
}
