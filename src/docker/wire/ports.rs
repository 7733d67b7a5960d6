//! Published ports, as the engine's list and its inspection tell them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ListedPort, Ports};
use crate::docker::raw::Field;
use crate::inventory::Published;
use crate::net::Transport;

/// The published ports as the list tells them; one that is only exposed has no public port.
pub(super) fn listed_ports(ports: Field<Vec<Field<ListedPort>>>) -> BTreeSet<Published> {
    let published = |port: ListedPort| {
        let transport = transport(&port.r#type.get()?)?;
        let (host_port, container_port) = (port.public_port.get()?, port.private_port.get()?);
        let published = move |address| Published {
            address,
            transport,
            host_port,
            container_port,
        };
        Some(bound_to(port.ip).into_iter().map(published))
    };
    let ports = ports.unwrap_or_default().into_iter();
    ports
        .filter_map(|port| published(port.get()?))
        .flatten()
        .collect()
}

/// The published ports as inspect tells them.
pub(in crate::docker) fn inspected_ports(ports: Ports) -> BTreeSet<Published> {
    let mut published = BTreeSet::new();
    for (port, bindings) in ports.unwrap_or_default() {
        let Some((number, protocol)) = port.split_once('/') else {
            continue;
        };
        let (Ok(container_port), Some(transport)) = (number.parse(), transport(protocol)) else {
            continue;
        };
        for binding in bindings.unwrap_or_default().into_iter().filter_map(Field::get) {
            let Some(host_port) = binding.host_port.get().and_then(|it| it.parse().ok()) else {
                continue;
            };
            published.extend(bound_to(binding.host_ip).into_iter().map(|address| Published {
                address,
                transport,
                host_port,
                container_port,
            }));
        }
    }
    published
}

/// The host's addresses that a port is bound to: all of them where the engine names none that can be read.
fn bound_to(address: Field<String>) -> Vec<IpAddr> {
    match address.get().and_then(|it| it.parse().ok()) {
        Some(address) => vec![address],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    }
}

fn transport(name: &str) -> Option<Transport> {
    Transport::ALL.into_iter().find(|it| it.as_str() == name)
}
