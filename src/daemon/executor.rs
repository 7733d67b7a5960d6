//! Carries a plan out. Every decision was taken in the plan: here is only a `match`, and what went wrong.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tracing::{error, warn};

use super::Refusal;
use crate::docker::{Attachment, Engine, NetworkError, NetworkRequest};
use crate::inventory::{MANAGED_LABEL, Network, NetworkKind, SERVICE_LABEL};
use crate::kernel::conntrack::{Conntrack, ConntrackError, Flow};
use crate::kernel::elements::{Elements, ElementsError};
use crate::kernel::links::{LinkError, Links, NetfilterCalls};
use crate::kernel::neighbour::{AdvertisementError, Advertisements, insert_advertisement_rules};
use crate::kernel::nft::{Nft, NftError};
use crate::net::{Traffic, Transport};
use crate::plan::flows::{Addresses, OpenFlow, may_go_on};
use crate::plan::networks::NetworkStep;
use crate::plan::ruleset::{ChainName, Hook, Ruleset, TableFamily};
use crate::plan::{KernelStep, LinkStep, Plan, Planner};

/// Everything of the kernel that a plan is carried out with.
#[derive(Debug)]
pub struct Kernel {
    nft: Nft,
    elements: Elements,
    links: Links,
    conntrack: Conntrack,
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
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    #[error("chain {chain} of table {} cofferdam is not hooked as it was declared", family.as_str())]
    NotHooked { family: TableFamily, chain: ChainName },
}

/// What a pass did, for the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    pub flows_ended: usize,
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
        })
    }

    /// The host's bridges, ports and routes.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Whether base chains of ours stand in the kernel, hooked as this ruleset says.
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
        self.nft.apply(&[crate::plan::ruleset::Step::DeleteTables]).await
    }

    /// Rules, then open connections, then bridges and ports. What fails stays in the planner and comes again.
    ///
    /// # Errors
    /// When rules or connections could not be changed; bridges and ports are only warned about, since a frame that
    /// misses `inet forward` is dropped by `bridge sealed`.
    pub async fn carry_out(&mut self, plan: &Plan, planner: &mut Planner) -> Result<Outcome, KernelError> {
        let mut outcome = Outcome::default();
        self.elements.commit(&plan.ended)?;
        if !plan.released.is_empty() {
            outcome.flows_ended +=
                self.end_flows(|flow| plan.released.iter().any(|address| flow.involves(*address)))?;
        }
        match &plan.kernel {
            KernelStep::Nothing => {}
            KernelStep::Elements(changes) => self.elements.commit(changes)?,
            KernelStep::Structure(steps) => self.nft.apply(steps).await?,
            KernelStep::Replace(steps) => {
                self.nft.apply(steps).await?;
                insert_advertisement_rules(&mut self.elements, &Advertisements::default())?;
                self.verify_hooked(&planner.structure().ruleset)?;
            }
        }
        planner.kernel_applied();
        if plan.sweep {
            let addresses = planner.addresses(host_addresses());
            let ends = |flow: &Flow| ends(flow, planner, &addresses);
            outcome.flows_ended += self.end_flows(ends)?;
        }
        planner.flows_ended();
        for step in &plan.links {
            match self.link_step(*step).await {
                Ok(()) => planner.link_applied(*step),
                // The event that it is gone is on its way.
                Err(error) if error.is_gone() => {}
                Err(error) => warn!(%error, ?step, "a bridge or port could not be changed"),
            }
        }
        Ok(outcome)
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

    fn end_flows(&mut self, ends: impl Fn(&Flow) -> bool) -> Result<usize, ConntrackError> {
        tokio::task::block_in_place(|| {
            let flows: Vec<Flow> = self
                .conntrack
                .flows()?
                .into_iter()
                .filter(|flow| ends(flow))
                .collect();
            self.conntrack.delete_all(&flows)
        })
    }

    async fn link_step(&self, step: LinkStep) -> Result<(), LinkError> {
        match step {
            LinkStep::NetfilterCalls { bridge } => {
                self.links
                    .set_netfilter_calls(
                        bridge,
                        NetfilterCalls {
                            ipv4: true,
                            ipv6: true,
                        },
                    )
                    .await
            }
            LinkStep::Isolate { port, isolated } => self.links.set_isolated(port, isolated).await,
        }
    }
}

fn base_chains(ruleset: &Ruleset) -> impl Iterator<Item = (TableFamily, &ChainName, Hook)> {
    ruleset.tables.iter().flat_map(|(family, table)| {
        table
            .chains
            .iter()
            .filter_map(|(name, chain)| Some((*family, name, chain.hook?)))
    })
}

/// Whether the policy no longer permits the connection.
fn ends(flow: &Flow, planner: &Planner, addresses: &Addresses<'_>) -> bool {
    let port = flow.server_port().unwrap_or_default();
    let traffic = match (flow.protocol, flow.icmp_type()) {
        (_, Some(kind)) => Traffic::Icmp(kind),
        (6, _) => Traffic::Port(Transport::Tcp, port),
        (17, _) => Traffic::Port(Transport::Udp, port),
        (132, _) => Traffic::Port(Transport::Sctp, port),
        (other, _) => Traffic::Other(other),
    };
    let open = OpenFlow {
        client: flow.client(),
        server: flow.server(),
        traffic,
    };
    !may_go_on(planner.rights(), addresses, open)
}

/// The host's own addresses, all interfaces'.
fn host_addresses() -> BTreeSet<IpAddr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            error!(%error, "the host's own addresses cannot be listed: its connections count as the world's");
            return BTreeSet::new();
        }
    };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    };
    interfaces.filter_map(address).collect()
}

/// What an engine call brought about.
#[derive(Debug)]
pub enum NetworkOutcome {
    Created(Network),
    Attached,
    Detached,
    Removed,
    Stopped,
}

/// Makes one engine call.
///
/// # Errors
/// The engine's refusal.
pub async fn network_step(engine: &Engine, step: &NetworkStep) -> Result<NetworkOutcome, NetworkError> {
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
        }
        NetworkStep::Detach { network, container } => engine
            .disconnect_container(network, container)
            .await
            .map(|_| NetworkOutcome::Detached),
        NetworkStep::Remove { network, .. } => engine
            .remove_network(network)
            .await
            .map(|()| NetworkOutcome::Removed),
        NetworkStep::Stop { container, .. } => engine
            .stop_container(container)
            .await
            .map(|()| NetworkOutcome::Stopped),
    }
}
