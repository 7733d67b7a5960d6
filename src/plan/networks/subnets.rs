//! The address pools, and what of them is free.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

/// The address pools that service networks are cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pools {
    pub ipv4: Ipv4Net,
    /// The prefix length of each network, longer than the pool's and at most 29.
    pub ipv4_prefix: u8,
    /// Cut into /64; `None`: no IPv6 on service networks.
    pub ipv6: Option<Ipv6Net>,
}

/// Every subnet of the pool is taken, by a network or by a route of the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no subnet is free in the address pool {pool}: networks and routes of this host take all of it")]
pub struct PoolExhausted {
    pub pool: IpNet,
}

/// The prefix length of each network's IPv6 subnet.
const IPV6_PREFIX: u8 = 64;

impl Pools {
    /// The subnets that overlap none of `taken`, the lowest first.
    pub fn free_subnets(&self, taken: impl IntoIterator<Item = IpNet>) -> FreeSubnets<'_> {
        FreeSubnets {
            pools: self,
            taken: taken.into_iter().map(|net| net.trunc()).collect(),
            ipv4: self.ipv4.subnets(self.ipv4_prefix).ok(),
            ipv6: self.ipv6.and_then(|pool| pool.subnets(IPV6_PREFIX).ok()),
        }
    }
}

/// What is left of the pools: each subnet is given once.
#[derive(Debug)]
pub struct FreeSubnets<'a> {
    pools: &'a Pools,
    taken: BTreeSet<IpNet>,
    ipv4: Option<Ipv4Subnets>,
    ipv6: Option<Ipv6Subnets>,
}

impl FreeSubnets<'_> {
    /// The next network's subnets.
    ///
    /// # Errors
    /// When a pool has none left.
    pub fn take(&mut self) -> Result<(Ipv4Net, Option<Ipv6Net>), PoolExhausted> {
        let taken = &self.taken;
        let exhausted = |pool| PoolExhausted { pool };
        let ipv4 = self
            .ipv4
            .as_mut()
            .and_then(|subnets| subnets.find(|subnet| is_free(taken, IpNet::V4(*subnet))));
        let ipv4 = ipv4.ok_or(exhausted(IpNet::V4(self.pools.ipv4)))?;
        let Some(pool) = self.pools.ipv6 else {
            return Ok((ipv4, None));
        };
        let ipv6 = self
            .ipv6
            .as_mut()
            .and_then(|subnets| subnets.find(|subnet| is_free(taken, IpNet::V6(*subnet))));
        let ipv6 = ipv6.ok_or(exhausted(IpNet::V6(pool)))?;
        Ok((ipv4, Some(ipv6)))
    }
}

/// Two subnets overlap only where one contains the other.
fn is_free(taken: &BTreeSet<IpNet>, candidate: IpNet) -> bool {
    let mut around = std::iter::successors(Some(candidate), IpNet::supernet);
    let mut within = taken.range(candidate..=IpNet::from(candidate.broadcast()));
    within.next().is_none() && !around.any(|net| taken.contains(&net))
}
