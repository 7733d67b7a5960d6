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
use crate::model::{Identity, Standing, Verdict};
use crate::net::{Family, Traffic};
use crate::policy::Party;

/// What is behind a port of the host: the identity, where it is a managed container, and the port there.
type Server<'a> = (Option<&'a Identity>, Traffic);

/// Whether somebody reaches what is behind a port of the host, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Dials {
    Never,
    /// No edge permits it, but everybody concerned is in audit.
    Audited,
    Declared,
}

impl View<'_> {
    /// What follows from a container's published ports.
    pub(super) fn published(&self, container: &Container, claim: &mut Claim) {
        for port in &container.published {
            let servers = self.servers(*port);
            // Not for the world: then every process of root could go to the container. It needs an edge from the host, too.
            let mut is_declared = false;
            self.host_port(*port, &servers, claim);
            for caller in self.inventory.containers().values() {
                let calling = match self.standings.get(&caller.id) {
                    Some(Standing::Managed(calling)) => Party::Services(calling.services()),
                    Some(Standing::Unmanaged) => Party::Unmanaged,
                    Some(Standing::Quarantined(_) | Standing::Isolated(_)) | None => continue,
                };
                let dials = self.dials(&calling, &servers);
                if dials == Dials::Never {
                    continue;
                }
                is_declared |= dials == Dials::Declared;
                for (network, endpoint) in &caller.endpoints {
                    for address in self.own_addresses(network, endpoint) {
                        let set = names::by_family("hairpin", Family::of(address));
                        let key = service_key(address, port.transport, port.host_port);
                        claim.insert((names::inet(set), key), None);
                    }
                }
            }
            // What is only audited goes on by the container's own chain, which reports it.
            if !is_declared {
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

    /// The port is carried, and whether it is for the world, for the host, and for containers on networks that are not guarded.
    fn host_port(&self, port: Published, servers: &[Server<'_>], claim: &mut Claim) {
        let family = Family::of(port.address);
        let key = Key::HostPort(family, port.transport, port.host_port);
        let mut add = |set: &str| {
            claim.insert((names::inet(SetName::from(set)), key.clone()), None);
        };
        if self.world_dials(servers) != Dials::Never {
            add("carried_world");
        }
        if self.dials(&Party::Host, servers) != Dials::Never {
            add("carried_host");
        }
        if self.dials(&Party::Unmanaged, servers) != Dials::Never {
            add("carried_unmanaged");
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

    /// Whether a party reaches every one of them directly.
    fn dials(&self, from: &Party<'_>, servers: &[Server<'_>]) -> Dials {
        let one = |(identity, traffic): &Server<'_>| {
            let Some(identity) = identity else {
                return Dials::Never;
            };
            let to = Party::Services(identity.services());
            match self.rights.judge(from, &to, *traffic, Family::V4) {
                Verdict::Allowed(_) => Dials::Declared,
                Verdict::Audited => Dials::Audited,
                Verdict::Untouched | Verdict::Denied => Dials::Never,
            }
        };
        servers.iter().map(one).min().unwrap_or(Dials::Never)
    }

    /// Whether every address outside reaches every one of them directly.
    fn world_dials(&self, servers: &[Server<'_>]) -> Dials {
        let policy = &self.rights.policy;
        let one = |(identity, traffic): &Server<'_>| match identity {
            Some(it) if policy.allows_world(it.services(), *traffic, Family::V4) => Dials::Declared,
            Some(it) if self.rights.is_audited(it) => Dials::Audited,
            Some(_) | None => Dials::Never,
        };
        servers.iter().map(one).min().unwrap_or(Dials::Never)
    }
}
