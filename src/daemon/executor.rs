//! Carries a plan out. Every decision was taken in the plan: here is only a `match`, and what went wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;
use tracing::warn;

use super::Refusal;
use super::endings::{self, host_addresses};
use crate::docker::{Attachment, Engine, NetworkError, NetworkRequest};
use crate::fault;
use crate::inventory::{MANAGED_LABEL, Network, NetworkKind, SERVICE_LABEL};
use crate::kernel::conntrack::{Conntrack, ConntrackError};
use crate::kernel::elements::{Elements, ElementsError, StructureDigest};
use crate::kernel::generation::Generation;
use crate::kernel::links::{LinkError, Links, NetfilterCalls};
use crate::kernel::neighbour::{AdvertisementError, Advertisements, insert_advertisement_rules};
use crate::kernel::nft::{Nft, NftError};
use crate::plan::check;
use crate::plan::networks::NetworkStep;
use crate::plan::ruleset::{
    ChainName, ElementAction, ElementChange, Hook, Ruleset, SetKind, SetRef, SetSpec, Step, TableFamily,
};
use crate::plan::{KernelStep, LinkStep, Plan, Planner};

/// More chains than this are read back together with all others, which takes as long.
const READ_SINGLY: usize = 512;

/// Everything of the kernel that a plan is carried out with.
#[derive(Debug)]
pub struct Kernel {
    nft: Nft,
    elements: Elements,
    links: Links,
    conntrack: Conntrack,
    /// The structure as it was left by the last transaction of ours that changed it.
    left: Option<StructureDigest>,
    /// The last transaction of anybody before our tables were replaced: what came up to it is undone.
    replaced_after: Option<u32>,
}

/// Why the rules are not as they were wanted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Structure(#[from] NftError),
    #[error(transparent)]
    Elements(#[from] ElementsError),
    #[error(transparent)]
    Advertisements(#[from] AdvertisementError),
    #[error("a structure that must not be loaded was made, and refused: {0}")]
    Unsound(String),
    #[error("chain {chain} of table {} cofferdam is not hooked as it was declared", family.as_str())]
    NotHooked { family: TableFamily, chain: ChainName },
}

impl KernelError {
    /// Whether the kernel's rules and elements are certainly what the planner was told.
    fn left_everything(&self) -> bool {
        match self {
            Self::Structure(error) => error.left_everything(),
            // A full set or table: the transaction was refused as a whole, and nobody else is to blame.
            Self::Elements(error) => {
                matches!(error.errno(), Some(Errno::ENFILE | Errno::ENOSPC | Errno::ENOMEM))
            }
            Self::Unsound(_) => true,
            Self::Advertisements(_) | Self::NotHooked { .. } => false,
        }
    }
}

impl Kernel {
    /// Opens every socket that is needed.
    ///
    /// # Errors
    /// When `nft` is not installed or a socket is refused.
    pub fn open() -> Result<Self, Refusal> {
        Ok(Self {
            nft: Nft::find()?,
            elements: Elements::open().map_err(Refusal::kernel)?,
            links: Links::open().map_err(Refusal::kernel)?,
            conntrack: Conntrack::open().map_err(Refusal::kernel)?,
            left: None,
            replaced_after: None,
        })
    }

    /// Whether the announced transaction was made by this very process or a run of nft of its own. Asked once for each.
    pub fn made(&self, generation: &Generation) -> bool {
        generation.port == self.elements.port()
            || self.nft.made(generation.port)
            || self.nft.made(generation.pid)
    }

    /// Whether our tables have been replaced after that transaction.
    pub fn undid(&self, generation: &Generation) -> bool {
        self.replaced_after
            .is_some_and(|last| last.wrapping_sub(generation.id).cast_signed() >= 0)
    }

    /// What in our tables is not as it was left: reads all of them.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn difference(&mut self, planner: &Planner) -> Result<Option<&'static str>, ElementsError> {
        tokio::task::block_in_place(|| {
            if Some(self.elements.structure()?) != self.left {
                return Ok(Some("chains or rules"));
            }
            let applied = planner.ledger().applied();
            let nothing = BTreeMap::new();
            for (family, table) in &planner.structure().ruleset.tables {
                // Packets fill the others.
                let kept = |spec: &SetSpec| spec.kind != SetKind::Shares;
                for (name, spec) in table.sets.iter().filter(|(_, spec)| kept(spec)) {
                    let set = SetRef {
                        table: *family,
                        set: name.clone(),
                    };
                    let wanted = applied.get(&set).unwrap_or(&nothing);
                    // While the kernel's table grows, a listing may lack some: only what is seen twice counts.
                    if self.elements.list(&set, spec.key)? != *wanted
                        && self.elements.list(&set, spec.key)? != *wanted
                    {
                        return Ok(Some("elements"));
                    }
                }
            }
            Ok(None)
        })
    }

    /// The host's bridges, ports and routes.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Whether every base chain of this ruleset stands in the kernel, hooked as it says.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn stands(&mut self, ruleset: &Ruleset) -> Result<bool, ElementsError> {
        let hooked = self.elements.base_chains()?;
        Ok(base_chains(ruleset)
            .all(|(family, chain, hook)| hooked.get(&(family, chain.clone())) == Some(&hook)))
    }

    /// Whether there is any base chain of ours.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has_tables(&mut self) -> Result<bool, ElementsError> {
        Ok(!self.elements.base_chains()?.is_empty())
    }

    /// Removes both tables.
    ///
    /// # Errors
    /// When `nft` fails.
    pub async fn remove_tables(&self) -> Result<(), NftError> {
        self.nft.apply(&[Step::DeleteTables]).await
    }

    /// Rules, then bridges and ports. What fails stays in the planner and comes again; where the kernel may hold something
    /// else than the planner was told, it is told so, and its next plan replaces everything. Open connections are not ended
    /// here: see [`Planner::start_ending`].
    ///
    /// # Errors
    /// When rules could not be changed; bridges and ports are only warned about, since a frame that
    /// misses `inet forward` is dropped by `bridge sealed`.
    pub async fn carry_out(&mut self, plan: &Plan, planner: &mut Planner) -> Result<(), KernelError> {
        self.change_rules(plan, planner).await?;
        for step in &plan.links {
            let result = link_step(&self.links, *step).await;
            link_step_done(planner, *step, result);
        }
        Ok(())
    }

    /// The part of [`Self::carry_out`] that bridges and ports are no part of.
    ///
    /// # Errors
    /// When rules could not be changed.
    pub async fn change_rules(&mut self, plan: &Plan, planner: &mut Planner) -> Result<(), KernelError> {
        let result = self.try_to_change_rules(plan, planner).await;
        if result.as_ref().is_err_and(|error| !error.left_everything()) {
            planner.kernel_lost();
        }
        result
    }

    async fn try_to_change_rules(&mut self, plan: &Plan, planner: &mut Planner) -> Result<(), KernelError> {
        fault::point("pass-begins");
        if matches!(plan.kernel, KernelStep::Structure(_) | KernelStep::Replace(_))
            && let Some(fault) = check::faults(&planner.structure().ruleset).into_iter().next()
        {
            return Err(KernelError::Unsound(fault));
        }
        self.close(plan, planner)?;
        match &plan.kernel {
            KernelStep::Nothing => {}
            KernelStep::Elements(changes) => {
                self.commit(changes, planner)?;
                if !plan.released.is_empty() {
                    fault::point("ended-committed");
                }
            }
            KernelStep::Structure(steps) => {
                self.nft.apply(steps).await?;
                fault::point("structure-changed");
                self.read_back(steps)?;
            }
            KernelStep::Replace(steps) => {
                let last = self.elements.generation()?;
                self.nft.apply(steps).await?;
                fault::point("tables-replaced");
                insert_advertisement_rules(&mut self.elements, &Advertisements::default())?;
                fault::point("advertisements-inserted");
                self.verify_hooked(&planner.structure().ruleset)?;
                self.left = Some(self.elements.structure()?);
                self.replaced_after = Some(last);
            }
        }
        fault::point("kernel-changed");
        planner.kernel_applied();
        Ok(())
    }

    /// The part of a plan that needs no nft and opens nothing: elements of released addresses.
    ///
    /// # Errors
    /// When an element could not be deleted.
    pub fn close(&mut self, plan: &Plan, planner: &mut Planner) -> Result<(), KernelError> {
        if plan.ended.is_empty() {
            return Ok(());
        }
        self.elements.commit(&plan.ended)?;
        fault::point("ended-committed");
        planner.deletions_applied(&plan.ended);
        Ok(())
    }

    /// Ends the connections that are to end, here and now. Returns how many. For runs without a loop.
    ///
    /// # Errors
    /// When a connection could not be ended.
    pub fn end_flows(&mut self, planner: &mut Planner) -> Result<usize, ConntrackError> {
        let Some(ending) = planner.start_ending(host_addresses) else {
            return Ok(0);
        };
        let ended =
            tokio::task::block_in_place(|| endings::end(&mut self.conntrack, &ending, |suspects| suspects))?;
        planner.flows_ended(ending.number);
        if ended.swept {
            fault::point("flows-swept");
        }
        Ok(ended.flows)
    }

    /// All changes in one transaction; what closes is not held up by what cannot open.
    fn commit(&mut self, changes: &[ElementChange], planner: &mut Planner) -> Result<(), KernelError> {
        let Err(error) = self.elements.commit(changes) else {
            return Ok(());
        };
        let error = KernelError::from(error);
        if error.left_everything() {
            let deletions: Vec<ElementChange> = changes
                .iter()
                .filter(|change| change.action == ElementAction::Delete)
                .cloned()
                .collect();
            self.elements.commit(&deletions)?;
            planner.deletions_applied(&deletions);
        }
        Err(error)
    }

    /// Reads what the transaction has left of the chains that it changed. What others do to any other chain stays a difference.
    fn read_back(&mut self, steps: &[Step]) -> Result<(), ElementsError> {
        let chains = steps.iter().filter_map(Step::chain);
        let chains: BTreeSet<_> = chains.map(|(table, name)| (table, name.clone())).collect();
        match &mut self.left {
            Some(left) if chains.len() <= READ_SINGLY => self.elements.structure_of(&chains, left),
            left => {
                *left = Some(self.elements.structure()?);
                Ok(())
            }
        }
    }

    fn verify_hooked(&mut self, ruleset: &Ruleset) -> Result<(), KernelError> {
        let hooked = self.elements.base_chains()?;
        for (family, chain, hook) in base_chains(ruleset) {
            if hooked.get(&(family, chain.clone())) != Some(&hook) {
                return Err(KernelError::NotHooked {
                    family,
                    chain: chain.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Sets one bridge or port. It waits for the kernel's one lock over all links, which the engine holds often and long while
/// many containers start.
pub(super) async fn link_step(links: &Links, step: LinkStep) -> Result<(), LinkError> {
    let result = match step {
        LinkStep::NetfilterCalls { bridge } => {
            let calls = NetfilterCalls {
                ipv4: true,
                ipv6: true,
            };
            links.set_netfilter_calls(bridge, calls).await
        }
        LinkStep::Isolate { port, isolated } => links.set_isolated(port, isolated).await,
        LinkStep::Return { port, bridge } => links.set_bridge(port, bridge).await,
    };
    fault::point("link-changed");
    result
}

/// Tells the planner what became of such a step. Returns whether it succeeded.
pub(super) fn link_step_done(planner: &mut Planner, step: LinkStep, result: Result<(), LinkError>) -> bool {
    match result {
        Ok(()) => {
            planner.link_applied(step);
            return true;
        }
        // The event that it is gone is on its way.
        Err(error) if error.is_gone() => planner.link_gone(step),
        Err(error) => {
            warn!(%error, ?step, "a bridge or port could not be changed");
            planner.link_failed(step);
        }
    }
    false
}

fn base_chains(ruleset: &Ruleset) -> impl Iterator<Item = (TableFamily, &ChainName, Hook)> {
    ruleset.tables.iter().flat_map(|(family, table)| {
        table
            .chains
            .iter()
            .filter_map(|(name, chain)| Some((*family, name, chain.hook?)))
    })
}

/// Longer than any single request may take: an answer that begins and never ends is given up here.
const STEP_PATIENCE: Duration = Duration::from_secs(100);

/// Why an engine call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Engine(#[from] NetworkError),
    #[error("the engine did not finish its answer within {} s: {step:?}", STEP_PATIENCE.as_secs())]
    Unfinished { step: NetworkStep },
}

/// What an engine call brought about.
#[derive(Debug)]
pub enum NetworkOutcome {
    Created(Network),
    Attached,
    Detached,
    Removed,
    Forgotten,
    Stopped,
}

/// Makes one engine call.
///
/// # Errors
/// The engine's refusal.
pub async fn network_step(engine: &Engine, step: &NetworkStep) -> Result<NetworkOutcome, StepError> {
    let patience = tokio::time::timeout(STEP_PATIENCE, engine_call(engine, step));
    match patience.await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StepError::Unfinished { step: step.clone() }),
    }
}

async fn engine_call(engine: &Engine, step: &NetworkStep) -> Result<NetworkOutcome, NetworkError> {
    match step {
        NetworkStep::Create {
            service,
            name,
            bridge,
            ipv4,
            ipv6,
        } => {
            let request = NetworkRequest {
                name: name.clone(),
                bridge: bridge.clone(),
                ipv4: *ipv4,
                ipv6: *ipv6,
                labels: [(SERVICE_LABEL.to_owned(), service.to_string())].into(),
            };
            let id = engine.create_network(&request).await?;
            fault::point("network-created");
            let mut labels = request.labels;
            labels.insert(MANAGED_LABEL.to_owned(), "true".to_owned());
            Ok(NetworkOutcome::Created(Network {
                id,
                name: request.name,
                kind: NetworkKind::Bridge(request.bridge),
                subnets: [IpNet::V4(*ipv4)]
                    .into_iter()
                    .chain(ipv6.map(IpNet::V6))
                    .collect(),
                internal: true,
                labels,
            }))
        }
        NetworkStep::Attach {
            network,
            container,
            ipv4,
            ipv6,
            aliases,
        } => {
            let attachment = Attachment {
                ipv4: *ipv4,
                ipv6: *ipv6,
                aliases: aliases.iter().cloned().collect(),
            };
            engine
                .connect_container(network, container, &attachment)
                .await
                .map(|_| NetworkOutcome::Attached)
                .inspect(|_| fault::point("attached"))
        }
        NetworkStep::Detach { network, container } => engine
            .disconnect_container(network, container)
            .await
            .map(|_| NetworkOutcome::Detached)
            .inspect(|_| fault::point("detached")),
        NetworkStep::Remove { network, .. } => engine
            .remove_network(network)
            .await
            .map(|()| NetworkOutcome::Removed)
            .inspect(|_| fault::point("network-removed")),
        NetworkStep::Forget { name, container } => engine
            .forget_network(name, container)
            .await
            .map(|()| NetworkOutcome::Forgotten),
        NetworkStep::Stop { container, .. } => engine
            .stop_container(container)
            .await
            .map(|()| NetworkOutcome::Stopped),
    }
}
