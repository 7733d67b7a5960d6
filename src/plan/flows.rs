//! Connections that are open already: which of them the policy, as it now is, no longer permits.

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
#[derive(Debug, Clone, Default)]
pub struct Addresses<'a> {
    /// The addresses of containers on guarded networks.
    pub containers: BTreeMap<IpAddr, &'a Standing>,
    /// The host's own addresses.
    pub host: BTreeSet<IpAddr>,
    /// Who may dial what the engine's proxy carries: client and host port.
    pub hairpin: BTreeSet<(IpAddr, Transport, u16)>,
    /// Where the engine's proxy may go on to: server and container port.
    pub proxied: BTreeSet<(IpAddr, Transport, u16)>,
}

impl<'a> Addresses<'a> {
    /// The party behind an address; `None` where it is quarantined or isolated and has no rights.
    fn party(&self, address: IpAddr) -> Option<Party<'a>> {
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
pub fn may_go_on(rights: &Rights, addresses: &Addresses<'_>, flow: OpenFlow) -> bool {
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
            containers: BTreeMap::from([(client, &standing), (server, &standing)]),
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
