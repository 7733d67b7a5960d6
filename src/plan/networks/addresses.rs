//! Which address of a network of ours a container gets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use crate::inventory::{Attached, Inventory, NetworkId};
use crate::net::engine_share;

/// The addresses of a network that somebody has, asks for, or is about to get.
#[derive(Debug)]
pub(super) struct Used<'a> {
    pub(super) subnet: Ipv4Net,
    pub(super) attached: Option<&'a Attached>,
    /// By steps under way, and by those of this very plan.
    pub(super) handed_out: BTreeSet<Ipv4Addr>,
}

impl Used<'_> {
    pub(super) fn address(&self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()).saturating_add(host))
    }

    fn has(&self, host: u32) -> bool {
        let address = self.address(host);
        self.handed_out.contains(&address) || self.attached.is_some_and(|it| it.has(address))
    }

    /// The highest host number that we may hand out: 1 is the gateway's, the last ones are the engine's own share.
    fn limit(&self) -> u32 {
        let end = match engine_share(IpNet::V4(self.subnet)) {
            Some(IpNet::V4(share)) => share.network(),
            // A network that carries our mark but was made by others may have a subnet of one address.
            _ => self.subnet.broadcast(),
        };
        (u32::from(end) - u32::from(self.subnet.network())).saturating_sub(1)
    }

    /// The highest host number of ours that is used.
    fn last(&self) -> Option<u32> {
        let limit = self.address(self.limit());
        let ours = |address: &Ipv4Addr| self.subnet.contains(address) && *address <= limit;
        let attached = self.attached.into_iter().flat_map(Attached::highest);
        let last = attached.into_iter().find(ours);
        let last = last.max(self.handed_out.iter().rev().copied().find(ours))?;
        Some(u32::from(last) - u32::from(self.subnet.network()))
    }
}

/// Hands out addresses of our networks, least recently used first, so that an address that was just given up is the last
/// to be used again.
#[derive(Debug, Clone, Default)]
pub struct Allocator {
    /// The host number that was handed out last.
    last: BTreeMap<NetworkId, u32>,
}

impl Allocator {
    /// The next free address of a network.
    pub(super) fn next(&mut self, network: &NetworkId, used: &Used<'_>) -> Option<u32> {
        let highest = used.limit();
        let last = self.last.get(network).copied();
        let last = last.unwrap_or_else(|| used.last().unwrap_or(1));
        let host = (last.saturating_add(1)..=highest)
            .chain(2..=last.min(highest))
            .find(|host| !used.has(*host))?;
        self.last.insert(network.clone(), host);
        Some(host)
    }

    /// Forgets networks that are gone.
    pub fn retain(&mut self, inventory: &Inventory) {
        self.last
            .retain(|network, _| inventory.network(network).is_some());
    }
}
