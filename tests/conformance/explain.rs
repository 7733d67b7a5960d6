//! The suite-wide requirement: for every fact, `cofferdam explain` says what the wire must do.
//!
//! What it is asked is what a user would write: containers by name, addresses, `host`; a published port is asked as the
//! container's. The function is the command's own. It is asked while the controller runs and can program the kernel:
//! without one the command says that no daemon answers, and what stands then is the facts' to tell.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, bail};
use cofferdam::docker::Engine;
use cofferdam::inventory::{Inventory, NetworkMode};
use cofferdam::model::explain::{Explanation, Host, Knowledge, Outcome, Place, Question, explain};
use cofferdam::model::{Rights, standing};
use cofferdam::policy::{self, Policy, SourceFile};

use crate::case::Case;
use crate::fact::{Fact, Party, Transport};
use crate::probes::{Expected, families};
use crate::world::World;

/// What explain knows at one moment.
struct Explainer<'a> {
    rights: Rights,
    host: Host,
    world: &'a World,
    case: &'a Case,
}

/// The first fact that explain would have otherwise, if any.
pub(crate) async fn disagreement(
    world: &World,
    case: &Case,
    files: &BTreeMap<String, String>,
    facts: &[(Expected, Fact)],
) -> anyhow::Result<Option<String>> {
    if facts.is_empty() {
        return Ok(None);
    }
    let policy = load(files)?;
    let engine = Engine::connect(&world.lab.socket()).await?;
    let mut inventory = Inventory::default();
    inventory.reset(engine.list().await?);
    let explainer = Explainer {
        host: host(&inventory, &policy),
        rights: Rights {
            policy,
            ..Rights::default()
        },
        world,
        case,
    };
    for (expected, fact) in facts {
        for (from, to) in explainer.pairs(fact)? {
            let answer = explainer
                .ask(&from, &to)
                .with_context(|| format!("explain {from} {to}"))?;
            let agrees = match expected {
                Expected::Allow => answer.outcome.passes(),
                Expected::Deny => answer.outcome == Outcome::Denied,
            };
            if !agrees {
                let outcome = answer.outcome;
                return Ok(Some(format!(
                    "{fact} is to be {expected:?}, and `explain {from} {to}` says {outcome:?}: {:?}",
                    answer.reasons
                )));
            }
        }
    }
    Ok(None)
}

fn load(files: &BTreeMap<String, String>) -> anyhow::Result<Policy> {
    let file = |(path, text): (&String, &String)| SourceFile {
        path: path.clone(),
        bytes: text.clone().into_bytes(),
    };
    let files: Vec<SourceFile> = files.iter().map(file).collect();
    match policy::load(&files) {
        Ok(loaded) => Ok(loaded.policy),
        Err(faults) => bail!("the policy in force has faults: {faults}"),
    }
}

fn host(inventory: &Inventory, policy: &Policy) -> Host {
    let mut host = Host::default();
    for container in inventory.containers().values() {
        let place = match &container.network_mode {
            NetworkMode::Own => Place::Own(standing(policy, container)),
            NetworkMode::Host => Place::Host,
            NetworkMode::None => Place::Nowhere,
            NetworkMode::Shared(id) => match inventory.container(id) {
                Some(other) => Place::Shared(other.name.clone()),
                None => Place::Nowhere,
            },
        };
        host.containers.insert(container.name.clone(), place);
    }
    host
}

impl Explainer<'_> {
    fn ask(&self, from: &str, to: &str) -> anyhow::Result<Explanation> {
        let knowledge = Knowledge::Of(&self.host);
        let question = Question::parse(from, to, &self.rights.policy, knowledge)?;
        Ok(explain(&self.rights, question, jiff::Timestamp::now())?)
    }

    /// Every source with every destination, as arguments of the command.
    fn pairs(&self, fact: &Fact) -> anyhow::Result<Vec<(String, String)>> {
        let port = match fact.transport {
            Transport::Icmp => "icmp/echo-request".to_owned(),
            transport => format!("{}/{transport}", fact.port),
        };
        let mut pairs = Vec::new();
        for from in self.names(&fact.from)? {
            for to in self.names(&fact.to)? {
                let (one, other) = (from.parse::<IpAddr>(), to.parse::<IpAddr>());
                let apart = one.as_ref().ok().zip(other.as_ref().ok());
                if from == to || apart.is_some_and(|(a, b)| a.is_ipv4() != b.is_ipv4()) {
                    continue;
                }
                let to = match other {
                    Ok(IpAddr::V6(_)) => format!("[{to}]:{port}"),
                    _ => format!("{to}:{port}"),
                };
                pairs.push((from.clone(), to));
            }
        }
        Ok(pairs)
    }

    fn names(&self, party: &Party) -> anyhow::Result<Vec<String>> {
        match party {
            Party::Host => Ok(vec!["host".to_owned()]),
            Party::Service(key) => {
                let containers = self.world.containers(key)?;
                Ok(containers.iter().map(|it| it.name.clone()).collect())
            }
            Party::External(name) => {
                let host = self.world.externals.get(name);
                let host = host.with_context(|| format!("no external {name}"))?;
                let families = families(self.case);
                let of_case = |ip: &&IpAddr| families.iter().any(|family| family.holds(**ip));
                let mut addresses: Vec<&IpAddr> = host.addresses.iter().filter(of_case).collect();
                if addresses.is_empty() {
                    addresses = host.addresses.iter().collect();
                }
                Ok(addresses.into_iter().map(ToString::to_string).collect())
            }
        }
    }
}
