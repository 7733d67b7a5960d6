//! What of a service network's subnet is whose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The part of a service network's subnet that addresses come from where a container joins without naming one, as Compose has it
/// do: the last 32, of a small one the last quarter, and of IPv6 a /96. Ours are from before it, so that nobody is given what a
/// stopped container was promised, which could not start then. `None`: the subnet is too small to be parted.
pub fn engine_share(subnet: IpNet) -> Option<IpNet> {
    match subnet {
        IpNet::V4(net) => {
            let length = (net.prefix_len() + 2).max(27);
            let share = Ipv4Net::new(net.broadcast(), length).ok()?;
            Some(IpNet::V4(share.trunc()))
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network()).checked_add(1 << 32)?;
            let share = Ipv6Net::new(first.into(), 96).ok()?;
            net.contains(&share).then_some(IpNet::V6(share))
        }
    }
}

/// The first address after the network's own: an engine's gateway.
pub fn first_host(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => Ipv4Addr::from(u32::from(net.network()) | 1).into(),
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()) | 1).into(),
    }
}
