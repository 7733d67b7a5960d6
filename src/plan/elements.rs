//! Inventory to elements: what follows from one container, one network, one bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::ledger::{Claim, Element};
use super::names::{self, chain};
use super::planner::{Moment, Readings};
use super::published::HostPorts;
use super::ruleset::{Key, SetName, SetRef, TableFamily};
use super::structure::Structure;
use crate::inventory::links::{Links, Occupants, Port};
use crate::inventory::{Container, ContainerId, Endpoint, Inventory, Network, NetworkId, NetworkKind};
use crate::model::{Identity, Rights, Standing, Unmanaged};
use crate::net::{Family, IfName, Mac, Transport};

/// Everything that elements follow from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub inventory: &'a Inventory,
    pub links: &'a Links,
    pub occupants: &'a Occupants,
    pub standings: &'a BTreeMap<ContainerId, Standing>,
    pub guarded: &'a BTreeSet<NetworkId>,
    /// When each endpoint was last read.
    pub readings: &'a Readings,
    /// When each port was first seen.
    pub since: &'a BTreeMap<u32, Moment>,
    pub structure: &'a Structure,
    pub published: &'a HostPorts,
    pub rights: &'a Rights,
}

impl<'a> View<'a> {
    /// What follows from a container: its rights by address, and the proof of its identity by port.
    pub fn container(&self, container: &Container) -> Claim {
        let mut claim = Claim::new();
        let Some(standing) = self.standings.get(&container.id) else {
            return claim;
        };
        for (network, endpoint) in &container.endpoints {
            let Some(network) = self.inventory.network(network) else {
                continue;
            };
            let NetworkKind::Bridge(bridge) = &network.kind else {
                continue;
            };
            let addresses = self.own_addresses(&network.id, endpoint);
            if addresses.is_empty() {
                continue;
            }
            match standing {
                Standing::Managed(identity) => {
                    addresses
                        .iter()
                        .for_each(|address| self.rights(identity, *address, &mut claim));
                }
                Standing::Unmanaged => {
                    addresses
                        .iter()
                        .for_each(|address| self.no_rights(*address, &mut claim));
                }
                // No rights and no proof: nothing of it passes.
                Standing::Quarantined(_) | Standing::Isolated(_) => continue,
            }
            self.binding(&container.id, &network.id, bridge, endpoint, &mut claim);
        }
        self.dialled(container, standing, &mut claim);
        if *standing != Standing::Unmanaged {
            self.published(container, &mut claim);
        }
        claim
    }

    /// The addresses of an endpoint on a guarded network that are its own. What a stopped container asks for may be
    /// another's meanwhile, but on our networks we hand addresses out.
    pub(super) fn own_addresses(&self, network: &NetworkId, endpoint: &Endpoint) -> Vec<IpAddr> {
        let ours = self.inventory.network(network).is_some_and(Network::is_ours);
        let own = self.guarded.contains(network) && (endpoint.is_live() || ours);
        if own {
            endpoint.addresses().collect()
        } else {
            Vec::new()
        }
    }

    /// The rights of a managed address.
    fn rights(&self, identity: &Identity, address: IpAddr, claim: &mut Claim) {
        let family = Family::of(address);
        for grant in self.structure.granted.get(identity).into_iter().flatten() {
            let element = (grant.set(family).clone(), address_key(address));
            claim.insert(element, grant.goto.clone());
        }
    }

    /// An unmanaged address on a guarded network.
    fn no_rights(&self, address: IpAddr, claim: &mut Claim) {
        let family = Family::of(address);
        let mut goto = |set: &str, name: &str| {
            let set = self.inet(names::by_family(set, family));
            claim.insert(
                (set, address_key(address)),
                Some(self.structure.chain(chain(name))),
            );
        };
        goto("into", "in_unmanaged");
        goto("outof", "out_unmanaged");
        if self.rights.unmanaged == Unmanaged::Allow {
            goto("fromhost", "pass");
            goto("tohost", "pass");
        }
        let set = self.inet(names::by_family("unmanaged", family));
        claim.insert((set, address_key(address)), None);
    }

    /// The proof of identity: port, MAC and address belong together.
    fn binding(
        &self,
        container: &ContainerId,
        network: &NetworkId,
        bridge: &IfName,
        endpoint: &Endpoint,
        claim: &mut Claim,
    ) {
        let Some(mac) = endpoint.mac else { return };
        claim.insert((self.bridge_set("macs"), Key::Mac(mac)), None);
        let bridge = self.links.bridge_index(bridge);
        let port = bridge.and_then(|bridge| self.occupants.port_of(self.links, container, bridge, mac));
        let Some(port) = port.map(|port| port.index) else {
            return;
        };
        if !self.is_confirmed(container, network, port) {
            return;
        }
        let mut bind = |address: IpAddr| {
            claim.insert(self.bound(port, mac, address), None);
        };
        endpoint.addresses().for_each(&mut bind);
        if endpoint.ipv6.is_some() {
            bind(IpAddr::V6(mac.link_local()));
        }
    }

    /// The port behind which an endpoint is, or would be once that is confirmed.
    pub fn port_of(&self, container: &ContainerId, network: &NetworkId, endpoint: &Endpoint) -> Option<u32> {
        let network = self.inventory.network(network)?;
        let (Some(mac), NetworkKind::Bridge(bridge)) = (endpoint.mac, &network.kind) else {
            return None;
        };
        let bridge = self.links.bridge_index(bridge)?;
        let port = self.occupants.candidate(self.links, container, bridge, mac);
        port.map(|port| port.index)
    }

    /// The guarded networks on which the container's port is newer than what the engine said.
    pub fn unconfirmed(&self, container: &Container) -> BTreeSet<NetworkId> {
        let guarded = container
            .endpoints
            .iter()
            .filter(|(id, _)| self.guarded.contains(id));
        guarded
            .filter(|(id, endpoint)| {
                let port = self.port_of(&container.id, id, endpoint);
                port.is_some_and(|port| !self.is_confirmed(&container.id, id, port))
            })
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Whether the engine said so since the port is there. What it said before may be of an earlier owner of the same
    /// address, whose end was missed: Docker hands address and MAC to the next container at once.
    pub fn is_confirmed(&self, container: &ContainerId, network: &NetworkId, port: u32) -> bool {
        let read = self.readings.get(container).and_then(|it| it.get(network));
        read.is_some_and(|read| self.since.get(&port).is_none_or(|since| read >= since))
    }

    /// What follows from a network: guarded or not, its bridge and subnets.
    pub fn network(&self, network: &Network) -> Claim {
        let mut claim = Claim::new();
        let NetworkKind::Bridge(bridge) = &network.kind else {
            return claim;
        };
        let guarded = self.guarded.contains(&network.id);
        let set = self.inet(SetName::from(if guarded { "guarded" } else { "unguarded" }));
        claim.insert((set, Key::IfName(bridge.clone())), None);
        if guarded {
            for subnet in &network.subnets {
                let set = names::by_family("guarded", Family::of(subnet.addr()));
                let key = Key::Net(subnet.trunc());
                claim.insert((self.inet(set.clone()), key.clone()), None);
                claim.insert((self.structure.set(TableFamily::Bridge, set), key), None);
            }
        }
        claim
    }

    /// What follows from a bridge that is not Docker's: it is none of our business.
    pub fn bridge(&self, index: u32) -> Claim {
        let mut claim = Claim::new();
        if let Some(name) = self.links.bridge_name(index).filter(|it| self.is_foreign(it)) {
            let set = self.inet(SetName::from("foreign"));
            claim.insert((set, Key::IfName(name.clone())), None);
        }
        claim
    }

    /// What follows from a port: whether its bridge's network is guarded.
    pub fn port(&self, port: &Port) -> Claim {
        let mut claim = Claim::new();
        let mut stands = |set: &str| claim.insert((self.bridge_set(set), Key::IfIndex(port.index)), None);
        for network in self.networks_on(port.bridge) {
            stands(if self.guarded.contains(&network.id) {
                "ports"
            } else {
                "open_ports"
            });
        }
        if self
            .links
            .bridge_name(port.bridge)
            .is_some_and(|it| self.is_foreign(it))
        {
            stands("open_ports");
        }
        claim
    }

    /// The networks that are on a bridge. Of two bridges with the same name it is the first's.
    pub fn networks_on(&self, bridge: u32) -> impl Iterator<Item = &'a Network> + use<'a> {
        let (links, inventory) = (self.links, self.inventory);
        let name = links.bridge_name(bridge);
        let name = name.filter(|it| links.bridge_index(it) == Some(bridge));
        name.into_iter().flat_map(|it| inventory.on_bridge(it))
    }

    /// Whether a bridge is not Docker's. One whose name Docker could have chosen never is: it may be one whose network has
    /// not been seen yet.
    fn is_foreign(&self, bridge: &IfName) -> bool {
        !could_be_dockers(bridge) && self.inventory.on_bridge(bridge).next().is_none()
    }

    /// An element of the proof.
    fn bound(&self, port: u32, mac: Mac, address: IpAddr) -> (SetRef, Key) {
        match address {
            IpAddr::V4(address) => (self.bridge_set("bound4"), Key::Binding4(port, mac, address)),
            IpAddr::V6(address) => (self.bridge_set("bound6"), Key::Binding6(port, mac, address)),
        }
    }

    pub(super) fn inet(&self, set: SetName) -> SetRef {
        self.structure.set(TableFamily::Inet, set)
    }

    fn bridge_set(&self, name: &str) -> SetRef {
        self.structure.set(TableFamily::Bridge, SetName::from(name))
    }

    /// The addresses of a container that packets are known to flow for: those with rights.
    pub fn addresses<'e>(claimed: impl IntoIterator<Item = &'e Element>) -> BTreeSet<IpAddr> {
        let address = |key: &Key| match key {
            Key::Ipv4(address) => Some(IpAddr::V4(*address)),
            Key::Ipv6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        };
        let claimed = claimed.into_iter();
        claimed.filter_map(|(_, key)| address(key)).collect()
    }
}

/// `docker0`, `br-` and twelve hexadecimal digits, or `cfd-…`.
pub(crate) fn could_be_dockers(name: &IfName) -> bool {
    let name = name.as_str();
    let hex = |text: &str| text.len() == 12 && text.chars().all(|c| c.is_ascii_hexdigit());
    name == "docker0" || name.starts_with("cfd-") || name.strip_prefix("br-").is_some_and(hex)
}

fn address_key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => Key::Ipv4(address),
        IpAddr::V6(address) => Key::Ipv6(address),
    }
}

pub(super) fn service_key(address: IpAddr, transport: Transport, port: u16) -> Key {
    match address {
        IpAddr::V4(address) => Key::Service4(address, transport, port),
        IpAddr::V6(address) => Key::Service6(address, transport, port),
    }
}
