//! Findings of published ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Code, Report, Severity};
use crate::inventory::{Container, Posture, Published};
use crate::model::{Rights, Standing, Unmanaged};
use crate::net::{Family, Traffic, Transport};
use crate::policy::{Peer, Policy, ServiceId};

/// One port of the host, with every address that it is bound to.
type Port = (u16, Transport, u16);

/// What it publishes now, or will when it is started.
fn published(container: &Container, posture: &Posture) -> BTreeMap<Port, BTreeSet<IpAddr>> {
    let mut ports = BTreeMap::<Port, BTreeSet<IpAddr>>::new();
    let all = if container.published.is_empty() {
        &posture.ports
    } else {
        &container.published
    };
    for Published {
        address,
        transport,
        host_port,
        container_port,
    } in all
    {
        let key = (*host_port, *transport, *container_port);
        ports.entry(key).or_default().insert(*address);
    }
    ports
}

/// As Docker's users write it: `8080:80/tcp`.
fn written((host, transport, inside): Port) -> String {
    format!("{host}:{inside}/{}", transport.as_str())
}

/// Ports that no edge declares.
pub(super) fn undeclared(
    container: &Container,
    posture: &Posture,
    own: &Standing,
    rights: &Rights,
    report: &mut Report,
) {
    for (port, addresses) in published(container, posture) {
        let (_, transport, inside) = port;
        let traffic = Traffic::Port(transport, inside);
        let is_declared = addresses
            .iter()
            .any(|address| declared(&rights.policy, own, *address, traffic).is_some());
        if is_declared {
            continue;
        }
        let why = match own {
            Standing::Unmanaged if rights.unmanaged == Unmanaged::Allow => {
                "no service selects the container, so that nothing closes it"
            }
            Standing::Unmanaged => "no service selects the container",
            Standing::Quarantined(_) => "the container has no rights at all",
            Standing::Managed(_) | Standing::Isolated(_) => {
                "no edge from world, host or an external leads to it, and without Cofferdam's rules it is open"
            }
        };
        let text = written(port);
        report.add(
            Code::UndeclaredPort,
            Some(&text),
            format!("publishes {text}, which the policy does not declare: {why}"),
            format!(
                "drop `--publish {text}`, or declare who may open {inside}/{}",
                transport.as_str()
            ),
        );
    }
}

/// Ports on every address of the host.
pub(super) fn everywhere(
    container: &Container,
    posture: &Posture,
    own: &Standing,
    rights: Option<&Rights>,
    report: &mut Report,
) {
    for (port, addresses) in published(container, posture) {
        let Some(address) = addresses.iter().find(|address| address.is_unspecified()) else {
            continue;
        };
        let (host, transport, inside) = port;
        let traffic = Traffic::Port(transport, inside);
        let peer = rights.and_then(|rights| declared(&rights.policy, own, *address, traffic));
        // It is what the policy says that it is.
        let severity = match peer {
            Some(Peer::World) => Severity::Low,
            _ => Code::AllAddresses.severity(),
        };
        let text = written(port);
        report.add_as(
            Code::AllAddresses,
            severity,
            Some(&text),
            format!("publishes {text} on all addresses of the host, those that are added later included"),
            format!(
                "name the address: `--publish ADDRESS:{host}:{inside}/{}`",
                transport.as_str()
            ),
        );
    }
}

/// The peer outside of the container networks that an edge lets in, the widest first. Only the host dials loopback.
fn declared<'p>(policy: &'p Policy, own: &Standing, address: IpAddr, traffic: Traffic) -> Option<&'p Peer> {
    let (Standing::Managed(identity) | Standing::Isolated(identity)) = own else {
        return None;
    };
    let family = Family::of(address);
    let services: &BTreeSet<ServiceId> = identity.services();
    let leads_here = policy.edges.iter().filter(|edge| {
        matches!(&edge.to, Peer::Service(to) if services.contains(to))
            && edge.ports.iter().any(|ports| ports.permits(traffic, family))
    });
    let from = leads_here.map(|edge| &edge.from).filter(|from| match from {
        Peer::Host => true,
        Peer::World | Peer::External(_) => !address.is_loopback(),
        Peer::Service(_) => false,
    });
    from.min_by_key(|from| match from {
        Peer::World => 0,
        Peer::External(_) => 1,
        Peer::Host | Peer::Service(_) => 2,
    })
}
