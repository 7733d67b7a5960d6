//! Published ports that the engine's proxy carries: who may dial them by an address of the host.
//!
//! Where the engine translates an address, the packet is forwarded and judged like any other. Its proxy instead ends the
//! connection in the host's input and opens another one in its output, as a process of root, and there nobody can tell any
//! more who dialled. So it is the input that lets those in who may reach the container directly, and nobody else.

use super::elements::{View, service_key};
use super::ledger::Claim;
use super::names;
use super::ruleset::{Key, SetName};
use crate::inventory::{Container, Published};
use crate::model::{Identity, Standing};
use crate::net::{Family, Traffic};
use crate::policy::Party;

/// What is behind a port of the host: the identity, where it is a managed container, and the port there.
type Server<'a> = (Option<&'a Identity>, Traffic);

impl View<'_> {
    /// What follows from a container's published ports.
    pub(super) fn published(&self, container: &Container, claim: &mut Claim) {
        for port in &container.published {
            let servers = self.servers(*port);
            let mut is_dialled = false;
            self.host_port(*port, &servers, claim);
            for caller in self.inventory.containers().values() {
                let Some(Standing::Managed(calling)) = self.standings.get(&caller.id) else {
                    continue;
                };
                if !self.may_dial(&Party::Services(calling.services()), &servers) {
                    continue;
                }
                is_dialled = true;
                for (network, endpoint) in &caller.endpoints {
                    for address in self.own_addresses(network, endpoint) {
                        let set = names::by_family("hairpin", Family::of(address));
                        let key = service_key(address, port.transport, port.host_port);
                        claim.insert((names::inet(set), key), None);
                    }
                }
            }
            if !is_dialled && !self.world_may_dial(&servers) {
                continue;
            }
            for (network, endpoint) in &container.endpoints {
                for address in self.own_addresses(network, endpoint) {
                    let set = names::by_family("proxied", Family::of(address));
                    let key = service_key(address, port.transport, port.container_port);
                    claim.insert((names::inet(set), key), None);
                }
            }
        }
    }

    /// The port is carried, and whether it is for the world and for the host.
    fn host_port(&self, port: Published, servers: &[Server<'_>], claim: &mut Claim) {
        let family = Family::of(port.address);
        let key = Key::HostPort(family, port.transport, port.host_port);
        let mut add = |set: &str| {
            claim.insert((names::inet(SetName::from(set)), key.clone()), None);
        };
        if self.world_may_dial(servers) {
            add("carried_world");
        }
        if self.may_dial(&Party::Host, servers) {
            add("carried_host");
        }
        if port.address.is_unspecified() {
            add("carried");
        } else {
            let key = service_key(port.address, port.transport, port.host_port);
            claim.insert((names::inet(names::by_family("carried", family)), key), None);
        }
    }

    /// All that is behind this port of the host: another container may have it on another of the host's addresses.
    fn servers(&self, port: Published) -> Vec<Server<'_>> {
        let same = |other: &Published| {
            other.transport == port.transport
                && other.host_port == port.host_port
                && Family::of(other.address) == Family::of(port.address)
        };
        let mut servers = Vec::new();
        for container in self.inventory.containers().values() {
            let identity = match self.standings.get(&container.id) {
                Some(Standing::Managed(identity)) => Some(identity),
                _ => None,
            };
            let ports = container.published.iter().filter(|port| same(port));
            servers.extend(ports.map(|port| (identity, Traffic::Port(port.transport, port.container_port))));
        }
        servers
    }

    /// Whether a party may reach every one of them directly.
    fn may_dial(&self, from: &Party<'_>, servers: &[Server<'_>]) -> bool {
        servers.iter().all(|(identity, traffic)| {
            let to = identity.map(|it| Party::Services(it.services()));
            to.is_some_and(|to| {
                self.rights
                    .policy
                    .allows(from, &to, *traffic, Family::V4)
                    .is_some()
            })
        })
    }

    /// Whether every address outside may reach every one of them directly.
    fn world_may_dial(&self, servers: &[Server<'_>]) -> bool {
        servers.iter().all(|(identity, traffic)| {
            identity.is_some_and(|it| {
                self.rights
                    .policy
                    .allows_world(it.services(), *traffic, Family::V4)
            })
        })
    }
}
