//! The host's bridges and their ports as they were last seen.

use std::collections::BTreeMap;

use crate::net::{IfName, Mac};

/// A port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The port's interface index.
    pub index: u32,
    pub name: IfName,
    /// The interface index of its bridge.
    pub bridge: u32,
    /// The address of the veth's other end, once that is in a namespace of its own.
    pub peer: Option<Mac>,
}

/// Bridges and ports by interface index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Links {
    bridges: BTreeMap<u32, IfName>,
    ports: BTreeMap<u32, Port>,
}

impl Links {
    /// Takes a full listing: what is missing is gone. Returns whether anything changed.
    pub fn reset(&mut self, bridges: BTreeMap<u32, IfName>, ports: BTreeMap<u32, Port>) -> bool {
        let listed = Self { bridges, ports };
        let changed = *self != listed;
        *self = listed;
        changed
    }

    /// Adds or renames a bridge. Returns whether anything changed.
    pub fn upsert_bridge(&mut self, index: u32, name: IfName) -> bool {
        self.bridges.insert(index, name.clone()) != Some(name)
    }

    /// Forgets a bridge. Returns whether it was known.
    pub fn remove_bridge(&mut self, index: u32) -> bool {
        self.bridges.remove(&index).is_some()
    }

    /// Adds or changes a port. Returns whether anything changed.
    pub fn upsert_port(&mut self, port: Port) -> bool {
        self.ports.insert(port.index, port.clone()) != Some(port)
    }

    /// Forgets a port. Returns whether it was known.
    pub fn remove_port(&mut self, index: u32) -> bool {
        self.ports.remove(&index).is_some()
    }

    /// All bridges: index and name.
    pub fn bridges(&self) -> impl Iterator<Item = (u32, &IfName)> {
        self.bridges.iter().map(|(index, name)| (*index, name))
    }

    /// The index of the bridge with this name.
    pub fn bridge_index(&self, name: &IfName) -> Option<u32> {
        self.bridges()
            .find(|(_, known)| *known == name)
            .map(|(index, _)| index)
    }

    /// A port by its interface index.
    pub fn port(&self, index: u32) -> Option<&Port> {
        self.ports.get(&index)
    }

    /// The ports of a bridge.
    pub fn ports_of(&self, bridge: u32) -> impl Iterator<Item = &Port> {
        self.ports.values().filter(move |port| port.bridge == bridge)
    }

    /// The port behind which this address is. `None` where there is none yet, and where two claim it: neither is proven.
    pub fn port_of(&self, bridge: u32, peer: Mac) -> Option<&Port> {
        let mut claims = self.ports_of(bridge).filter(|port| port.peer == Some(peer));
        let port = claims.next()?;
        if claims.next().is_some() { None } else { Some(port) }
    }
}
