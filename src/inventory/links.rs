//! The host's bridges and their ports as they were last seen.

use std::collections::{BTreeMap, BTreeSet};

use super::ContainerId;
use crate::net::{IfName, Mac};

/// A port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The port's interface index.
    pub index: u32,
    pub name: IfName,
    /// The interface index of its bridge.
    pub bridge: u32,
    /// The veth's other end, once that is in a namespace of its own.
    pub peer: Option<Peer>,
}

/// What is known of a veth's other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The number by which the host knows the network namespace that it is in.
    pub namespace: i32,
    /// Its address. Whoever has `CAP_NET_ADMIN` there can change it.
    pub mac: Mac,
}

/// Bridges and ports by interface index, and the other ways round: a host has thousands, and each pass asks for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Links {
    bridges: BTreeMap<u32, IfName>,
    ports: BTreeMap<u32, Port>,
    names: BTreeMap<IfName, BTreeSet<u32>>,
    /// Bridge and port.
    on_bridges: BTreeSet<(u32, u32)>,
    /// Bridge, the address claimed, and port.
    claims: BTreeSet<(u32, Mac, u32)>,
    /// Namespace and port.
    namespaces: BTreeSet<(i32, u32)>,
}

impl Links {
    /// Takes a full listing: what is missing is gone. Returns whether anything changed.
    pub fn reset(&mut self, bridges: BTreeMap<u32, IfName>, ports: BTreeMap<u32, Port>) -> bool {
        let mut listed = Self::default();
        for (index, name) in bridges {
            listed.upsert_bridge(index, name);
        }
        for (_, port) in ports {
            listed.upsert_port(port);
        }
        let changed = *self != listed;
        *self = listed;
        changed
    }

    /// Adds or renames a bridge. Returns whether anything changed.
    pub fn upsert_bridge(&mut self, index: u32, name: IfName) -> bool {
        if self.bridges.get(&index) == Some(&name) {
            return false;
        }
        self.remove_bridge(index);
        self.names.entry(name.clone()).or_default().insert(index);
        self.bridges.insert(index, name);
        true
    }

    /// Forgets a bridge. Returns whether it was known.
    pub fn remove_bridge(&mut self, index: u32) -> bool {
        let Some(name) = self.bridges.remove(&index) else {
            return false;
        };
        if let Some(indices) = self.names.get_mut(&name) {
            indices.remove(&index);
            if indices.is_empty() {
                self.names.remove(&name);
            }
        }
        true
    }

    /// Adds or changes a port. Returns whether anything changed.
    pub fn upsert_port(&mut self, port: Port) -> bool {
        if self.ports.get(&port.index) == Some(&port) {
            return false;
        }
        self.remove_port(port.index);
        self.on_bridges.insert((port.bridge, port.index));
        if let Some(peer) = port.peer {
            self.claims.insert((port.bridge, peer.mac, port.index));
            self.namespaces.insert((peer.namespace, port.index));
        }
        self.ports.insert(port.index, port);
        true
    }

    /// Forgets a port. Returns whether it was known.
    pub fn remove_port(&mut self, index: u32) -> bool {
        let Some(port) = self.ports.remove(&index) else {
            return false;
        };
        self.on_bridges.remove(&(port.bridge, index));
        if let Some(peer) = port.peer {
            self.claims.remove(&(port.bridge, peer.mac, index));
            self.namespaces.remove(&(peer.namespace, index));
        }
        true
    }

    /// All bridges: index and name.
    pub fn bridges(&self) -> impl Iterator<Item = (u32, &IfName)> {
        self.bridges.iter().map(|(index, name)| (*index, name))
    }

    /// The index of the bridge with this name.
    pub fn bridge_index(&self, name: &IfName) -> Option<u32> {
        self.names.get(name)?.first().copied()
    }

    /// The name of a bridge.
    pub fn bridge_name(&self, index: u32) -> Option<&IfName> {
        self.bridges.get(&index)
    }

    /// Every bridge with this name: for a moment there may be two.
    pub fn bridges_named(&self, name: &IfName) -> impl Iterator<Item = u32> {
        self.names.get(name).into_iter().flatten().copied()
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.values()
    }

    /// A port by its interface index.
    pub fn port(&self, index: u32) -> Option<&Port> {
        self.ports.get(&index)
    }

    /// The ports of a bridge.
    pub fn ports_of(&self, bridge: u32) -> impl Iterator<Item = &Port> {
        self.on_bridges
            .range((bridge, 0)..=(bridge, u32::MAX))
            .filter_map(|(_, index)| self.ports.get(index))
    }

    /// The ports of a bridge behind which this address is claimed to be.
    fn claimants(&self, bridge: u32, mac: Mac) -> impl Iterator<Item = (&Port, i32)> {
        self.claims
            .range((bridge, mac, 0)..=(bridge, mac, u32::MAX))
            .filter_map(|(_, _, index)| self.ports.get(index))
            .filter_map(|port| Some((port, port.peer?.namespace)))
    }

    /// The ports that lead to this namespace.
    pub fn leading_to(&self, namespace: i32) -> impl Iterator<Item = u32> {
        self.namespaces
            .range((namespace, 0)..=(namespace, u32::MAX))
            .map(|(_, index)| *index)
    }

    fn leads_to(&self, port: u32, namespace: i32) -> bool {
        self.namespaces.contains(&(namespace, port))
    }
}

/// Whose each network namespace is.
///
/// An address alone proves nothing: a container with `CAP_NET_ADMIN` can take another's at any time. But every port of a
/// container leads to the one namespace that it has from its start to its end. So the first endpoint that is found in a
/// namespace says whose it is, before the container's first instruction, and from then on whatever is claimed there is
/// that container's or nobody's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Occupants {
    containers: BTreeMap<ContainerId, i32>,
    namespaces: BTreeMap<i32, ContainerId>,
}

impl Occupants {
    /// Forgets a namespace that no port leads to any more: its number is given anew. Returns whose it was.
    pub fn release(&mut self, links: &Links, namespace: i32) -> Option<ContainerId> {
        if links.leading_to(namespace).next().is_some() {
            return None;
        }
        let container = self.namespaces.remove(&namespace)?;
        self.containers.remove(&container);
        Some(container)
    }

    /// After a full listing, between which and the links `before` events were missed: a number is the same namespace's only if
    /// a port led to it all the time. The index of a port is never given anew.
    pub fn relisted(&mut self, before: &Links, now: &Links) {
        let lasting = |namespace: &i32| {
            now.leading_to(*namespace)
                .any(|port| before.leads_to(port, *namespace))
        };
        self.containers.retain(|_, namespace| lasting(namespace));
        self.namespaces.retain(|namespace, _| lasting(namespace));
    }

    /// The port that a container's endpoint is behind, or would be once that is learnt: where the container's namespace is
    /// not known, the one port that claims the address and leads to a namespace that is nobody's yet. `None` where there is no
    /// such port, and where there are two.
    pub fn candidate<'a>(
        &self,
        links: &'a Links,
        container: &ContainerId,
        bridge: u32,
        mac: Mac,
    ) -> Option<&'a Port> {
        if self.containers.contains_key(container) {
            return self.port_of(links, container, bridge, mac);
        }
        let mut strangers = links
            .claimants(bridge, mac)
            .filter(|(_, namespace)| !self.namespaces.contains_key(namespace));
        let (port, _) = strangers.next()?;
        if strangers.next().is_some() {
            None
        } else {
            Some(port)
        }
    }

    /// Whether a container's namespace is known: then there is nothing to learn of it.
    pub fn knows(&self, container: &ContainerId) -> bool {
        self.containers.contains_key(container)
    }

    /// Takes in that a port is a container's: so is the namespace that it leads to, unless that is known to be another's, or
    /// the container is known to have another. Returns whether anything was learnt.
    pub fn learn(&mut self, links: &Links, container: &ContainerId, port: u32) -> bool {
        let Some(peer) = links.port(port).and_then(|port| port.peer) else {
            return false;
        };
        if self.containers.contains_key(container) || self.namespaces.contains_key(&peer.namespace) {
            return false;
        }
        self.namespaces.insert(peer.namespace, container.clone());
        self.containers.insert(container.clone(), peer.namespace);
        true
    }

    /// The port of a container's endpoint: it claims the address, and leads to the container's own namespace. `None` where
    /// there is none yet, and where two do.
    pub fn port_of<'a>(
        &self,
        links: &'a Links,
        container: &ContainerId,
        bridge: u32,
        mac: Mac,
    ) -> Option<&'a Port> {
        let mut own = links
            .claimants(bridge, mac)
            .filter(|(_, namespace)| self.containers.get(container) == Some(namespace));
        let (port, _) = own.next()?;
        if own.next().is_some() { None } else { Some(port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: u32 = 1;
    const MAC: Mac = Mac([2, 0x42, 10, 0, 0, 2]);
    const OTHER: Mac = Mac([2, 0x42, 10, 0, 0, 3]);

    fn links(ports: &[(u32, i32, Mac)]) -> Links {
        let port = |&(index, namespace, mac): &(u32, i32, Mac)| {
            let port = Port {
                index,
                name: format!("veth{index}").parse().expect("a name"),
                bridge: BRIDGE,
                peer: Some(Peer { namespace, mac }),
            };
            (index, port)
        };
        let mut links = Links::default();
        links.reset(BTreeMap::new(), ports.iter().map(port).collect());
        links
    }

    fn container(name: &str) -> ContainerId {
        ContainerId(name.into())
    }

    fn port(occupants: &Occupants, links: &Links, name: &str, mac: Mac) -> Option<u32> {
        occupants
            .port_of(links, &container(name), BRIDGE, mac)
            .map(|port| port.index)
    }

    /// Learns from the one port that can be the endpoint's.
    fn learn(occupants: &mut Occupants, links: &Links, name: &str, mac: Mac) -> bool {
        let port = occupants
            .candidate(links, &container(name), BRIDGE, mac)
            .map(|port| port.index);
        port.is_some_and(|port| occupants.learn(links, &container(name), port))
    }

    #[test]
    fn an_address_that_another_takes_later_stays_its_owners() {
        let mut occupants = Occupants::default();
        let before = links(&[(10, 0, MAC), (11, 1, OTHER)]);
        assert!(learn(&mut occupants, &before, "victim", MAC));
        assert!(learn(&mut occupants, &before, "thief", OTHER));
        let stolen = links(&[(10, 0, MAC), (11, 1, MAC)]);
        assert_eq!(port(&occupants, &stolen, "victim", MAC), Some(10));
        assert_eq!(port(&occupants, &stolen, "thief", OTHER), None);
    }

    #[test]
    fn an_address_that_is_taken_before_its_owner_comes_gains_nothing() {
        let mut occupants = Occupants::default();
        assert!(learn(&mut occupants, &links(&[(11, 1, OTHER)]), "thief", OTHER));
        let waiting = links(&[(11, 1, MAC)]);
        assert!(!learn(&mut occupants, &waiting, "victim", MAC));
        assert_eq!(port(&occupants, &waiting, "victim", MAC), None);
        let come = links(&[(11, 1, MAC), (12, 2, MAC)]);
        assert!(learn(&mut occupants, &come, "victim", MAC));
        assert_eq!(port(&occupants, &come, "victim", MAC), Some(12));
    }

    #[test]
    fn of_two_strangers_neither_is_believed() {
        let mut occupants = Occupants::default();
        let both = links(&[(10, 0, MAC), (11, 1, MAC)]);
        assert!(!learn(&mut occupants, &both, "victim", MAC));
        assert_eq!(port(&occupants, &both, "victim", MAC), None);
    }

    #[test]
    fn a_number_that_was_given_anew_while_nobody_looked_is_the_new_ones() {
        let mut occupants = Occupants::default();
        let before = links(&[(10, 0, MAC), (11, 1, OTHER)]);
        assert!(learn(&mut occupants, &before, "restarted", MAC));
        assert!(learn(&mut occupants, &before, "steady", OTHER));
        // It is in namespace 2 now, and another one in its old namespace's number claims its address.
        let now = links(&[(11, 1, OTHER), (12, 0, MAC), (13, 2, MAC)]);
        occupants.relisted(&before, &now);
        assert_eq!(port(&occupants, &now, "restarted", MAC), None, "the thief's port");
        assert_eq!(port(&occupants, &now, "steady", OTHER), Some(11));
        let honest = links(&[(11, 1, OTHER), (13, 2, MAC)]);
        assert!(learn(&mut occupants, &honest, "restarted", MAC));
        assert_eq!(port(&occupants, &honest, "restarted", MAC), Some(13));
    }

    #[test]
    fn a_namespaces_number_is_given_anew() {
        let mut occupants = Occupants::default();
        learn(&mut occupants, &links(&[(10, 0, MAC)]), "gone", MAC);
        let still = links(&[(11, 0, MAC)]);
        assert_eq!(occupants.release(&still, 0), None, "another port leads to it");
        assert_eq!(occupants.release(&links(&[]), 0), Some(container("gone")));
        let next = links(&[(11, 0, MAC)]);
        assert!(learn(&mut occupants, &next, "next", MAC));
        assert_eq!(port(&occupants, &next, "next", MAC), Some(11));
    }

    #[test]
    fn what_is_found_by_bridge_address_and_namespace_follows_each_change() {
        let mut changed = links(&[(10, 0, MAC), (11, 1, OTHER), (12, 2, MAC)]);
        let moved = Port {
            bridge: BRIDGE + 1,
            ..changed.port(10).cloned().expect("a port")
        };
        assert!(changed.upsert_port(moved.clone()));
        assert!(!changed.upsert_port(moved), "the same again");
        let of = |links: &Links, bridge| links.ports_of(bridge).map(|it| it.index).collect::<Vec<_>>();
        assert_eq!(
            (of(&changed, BRIDGE), of(&changed, BRIDGE + 1)),
            (vec![11, 12], vec![10])
        );
        let claimants = |links: &Links| links.claimants(BRIDGE, MAC).map(|it| it.1).collect::<Vec<_>>();
        assert_eq!(claimants(&changed), [2]);
        let without_peer = Port {
            peer: None,
            ..changed.port(12).cloned().expect("a port")
        };
        assert!(changed.upsert_port(without_peer));
        assert!(claimants(&changed).is_empty());
        assert!(changed.leading_to(2).next().is_none());
        assert!(changed.remove_port(11) && !changed.remove_port(11));
        assert!(of(&changed, BRIDGE) == [12] && changed.leading_to(1).next().is_none());
        // What changes made is what a listing of the same makes.
        let mut listed = Links::default();
        listed.reset(BTreeMap::new(), changed.ports.clone());
        assert_eq!(changed, listed);
    }

    #[test]
    fn a_bridge_is_found_by_the_name_that_it_has_now() {
        let name = |text: &str| text.parse::<IfName>().expect("a name");
        let mut links = Links::default();
        assert!(links.upsert_bridge(5, name("br-a")) && links.upsert_bridge(6, name("br-b")));
        assert!(links.upsert_bridge(5, name("br-b")), "renamed");
        assert_eq!(links.bridge_index(&name("br-a")), None);
        assert_eq!(links.bridge_index(&name("br-b")), Some(5), "the first of two");
        assert!(links.remove_bridge(5));
        assert_eq!(links.bridge_index(&name("br-b")), Some(6));
    }
}
