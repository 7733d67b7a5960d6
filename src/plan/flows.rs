//! Connections that are open already: which of them the policy, as it now is, no longer permits, and which belonged to
//! somebody who is gone.
//!
//! Ending them takes a walk over all that the kernel tracks, beside the loop. Until that is done the addresses whose owner is
//! gone are withheld: nothing opens for their next one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Rights, Standing};
use crate::net::{Family, Traffic, Transport};
use crate::policy::Party;

/// A tracked connection by its true ends: who opened it, and who answers after all address translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenFlow {
    pub client: IpAddr,
    pub server: IpAddr,
    pub traffic: Traffic,
}

/// Whose each address is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The addresses of containers on guarded networks.
    pub containers: BTreeMap<IpAddr, Standing>,
    /// The host's own addresses.
    pub host: BTreeSet<IpAddr>,
    /// Who may dial what the engine's proxy carries: client and host port.
    pub hairpin: BTreeSet<(IpAddr, Transport, u16)>,
    /// Where the engine's proxy may go on to: server and container port.
    pub proxied: BTreeSet<(IpAddr, Transport, u16)>,
}

impl Addresses {
    /// The party behind an address; `None` where it is quarantined or isolated and has no rights.
    fn party(&self, address: IpAddr) -> Option<Party<'_>> {
        match self.containers.get(&address) {
            Some(Standing::Managed(identity)) => Some(Party::Services(identity.services())),
            Some(Standing::Unmanaged) => Some(Party::Unmanaged),
            Some(Standing::Quarantined(_) | Standing::Isolated(_)) => None,
            None if self.host.contains(&address) => Some(Party::Host),
            None => Some(Party::Outside(address)),
        }
    }

    /// Whether the flow is one half of a published port's way through the engine's proxy.
    fn is_proxied(&self, flow: OpenFlow) -> bool {
        let Traffic::Port(transport, port) = flow.traffic else {
            return false;
        };
        let to_proxy =
            self.host.contains(&flow.server) && self.hairpin.contains(&(flow.client, transport, port));
        let from_proxy =
            self.host.contains(&flow.client) && self.proxied.contains(&(flow.server, transport, port));
        to_proxy || from_proxy
    }

    fn is_governed(&self, address: IpAddr) -> bool {
        matches!(
            self.containers.get(&address),
            Some(Standing::Managed(_) | Standing::Quarantined(_) | Standing::Isolated(_))
        )
    }
}

/// Whether an open connection may go on. Connections without a managed end are none of our business.
pub fn may_go_on(rights: &Rights, addresses: &Addresses, flow: OpenFlow) -> bool {
    if !addresses.is_governed(flow.client) && !addresses.is_governed(flow.server) {
        return true;
    }
    if addresses.is_proxied(flow) {
        return true;
    }
    let (Some(from), Some(to)) = (addresses.party(flow.client), addresses.party(flow.server)) else {
        return false;
    };
    rights
        .judge(&from, &to, flow.traffic, Family::of(flow.server))
        .passes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_halves_of_a_way_through_the_proxy_are_not_mixed_up() {
        let address = |last: u8| IpAddr::from([172, 18, 0, last]);
        let (host, client, server) = (address(1), address(2), address(3));
        let standing = Standing::Quarantined(BTreeSet::new());
        let addresses = Addresses {
            containers: BTreeMap::from([(client, standing.clone()), (server, standing)]),
            host: BTreeSet::from([host]),
            hairpin: BTreeSet::from([(client, Transport::Tcp, 8080)]),
            proxied: BTreeSet::from([(server, Transport::Tcp, 80)]),
        };
        let goes_on = |client, server, port| {
            let traffic = Traffic::Port(Transport::Tcp, port);
            let flow = OpenFlow {
                client,
                server,
                traffic,
            };
            may_go_on(&Rights::default(), &addresses, flow)
        };
        assert!(goes_on(client, host, 8080), "to the proxy");
        assert!(goes_on(host, server, 80), "from the proxy");
        assert!(!goes_on(host, client, 8080), "the host calls the client");
        assert!(!goes_on(server, host, 80), "the server calls the host");
    }
}

/// Connections that are to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Tasks are numbered in their order.
    pub number: u64,
    /// All that these addresses have: their owner is gone, and their elements are out of the kernel.
    pub released: BTreeSet<IpAddr>,
    /// What the policy does not permit, where rights have changed.
    pub sweep: Option<Sweep>,
}

/// What open connections are held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    pub rights: Rights,
    pub addresses: Addresses,
}

impl Sweep {
    /// See [`may_go_on`].
    pub fn permits(&self, flow: OpenFlow) -> bool {
        may_go_on(&self.rights, &self.addresses, flow)
    }
}

/// What is to be ended, and what is under way.
#[derive(Debug, Clone)]
pub(super) struct Endings {
    /// Addresses whose owner is gone, and no task knows of it yet.
    pub(super) released: BTreeSet<IpAddr>,
    /// Whether open connections are to be held against the policy.
    pub(super) sweep: bool,
    /// The last task in which each address is.
    purging: BTreeMap<IpAddr, u64>,
    /// The last task with a sweep.
    sweeping: Option<u64>,
    count: u64,
}

impl Endings {
    /// What was opened before anybody watched is held against the policy.
    pub(super) fn new() -> Self {
        Self {
            released: BTreeSet::new(),
            sweep: true,
            purging: BTreeMap::new(),
            sweeping: None,
            count: 0,
        }
    }

    /// The addresses for which nothing may open.
    pub(super) fn withheld(&self) -> BTreeSet<IpAddr> {
        self.released.iter().chain(self.purging.keys()).copied().collect()
    }

    /// Whether anything is still to be ended.
    pub(super) fn is_pending(&self) -> bool {
        self.sweep || self.sweeping.is_some() || !self.released.is_empty() || !self.purging.is_empty()
    }

    /// Notes a task for what is ready; its number.
    pub(super) fn start(&mut self, released: &BTreeSet<IpAddr>, sweep: bool) -> u64 {
        self.count += 1;
        for address in released {
            self.released.remove(address);
            self.purging.insert(*address, self.count);
        }
        if sweep {
            self.sweep = false;
            self.sweeping = Some(self.count);
        }
        self.count
    }

    /// All tasks up to this one are done. An address that was released again meanwhile waits for its next.
    pub(super) fn done(&mut self, through: u64) {
        self.purging.retain(|_, number| *number > through);
        self.sweeping = self.sweeping.filter(|number| *number > through);
    }

    /// None of the tasks up to this one can be relied on: all of them are to be done again.
    pub(super) fn failed(&mut self, through: u64) {
        let failed = self.purging.extract_if(.., |_, number| *number <= through);
        self.released.extend(failed.map(|(address, _)| address));
        if self.sweeping.is_some_and(|number| number <= through) {
            self.sweeping = None;
            self.sweep = true;
        }
    }
}
