//! Networks, and the endpoints that they name.

use std::collections::BTreeMap;

use serde::Deserialize;
use tracing::warn;

use super::parse::{ipv4, ipv6, is_id, is_odd, parsed};
use crate::docker::listing::NetworkSnapshot;
use crate::docker::raw::Field;
use crate::inventory::{ContainerId, Endpoint, Network, NetworkId, NetworkKind};

/// A bridge network's option with its interface's name.
pub(in crate::docker) const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// A network, listed or inspected.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(in crate::docker) struct NetworkAnswer {
    id: Field<String>,
    name: Field<String>,
    driver: Field<String>,
    internal: Field<bool>,
    #[serde(rename = "IPAM")]
    ipam: Field<Ipam>,
    options: Field<BTreeMap<String, String>>,
    labels: Field<BTreeMap<String, String>>,
    containers: Field<BTreeMap<String, Field<EndpointResource>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Ipam {
    config: Field<Vec<Field<IpamConfig>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct IpamConfig {
    subnet: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::docker) struct EndpointResource {
    #[serde(rename = "MacAddress")]
    mac_address: Field<String>,
    #[serde(rename = "IPv4Address")]
    ipv4_address: Field<String>,
    #[serde(rename = "IPv6Address")]
    ipv6_address: Field<String>,
}

/// The endpoints of `GET /networks/{id}`. They are all in the kernel, those of starting containers among them.
fn network_endpoints(
    containers: Field<BTreeMap<String, Field<EndpointResource>>>,
) -> BTreeMap<ContainerId, Endpoint> {
    let containers = containers.unwrap_or_default().into_iter();
    containers
        .filter_map(|(id, resource)| Some((id, resource.get()?)))
        // `ep-…` stands for an endpoint that a crash left without a container.
        .filter(|(id, _)| !id.starts_with("ep-"))
        .map(|(id, resource)| {
            let id = ContainerId(id.into());
            let endpoint = Endpoint {
                mac: parsed(&id, "MAC", &resource.mac_address),
                ipv4: ipv4(&id, &resource.ipv4_address),
                ipv6: ipv6(&id, &resource.ipv6_address),
            };
            (id, endpoint)
        })
        .collect()
}

/// A network. `None` without an id.
pub(in crate::docker) fn network(answer: NetworkAnswer) -> Option<NetworkSnapshot> {
    let Some(id) = answer.id.get().filter(|id| is_id(id)) else {
        warn!("a network without an id: ignored");
        return None;
    };
    let id = NetworkId(id.into());
    let kind = kind(&id, answer.driver.unwrap_or_default(), answer.options);
    let configs = answer.ipam.unwrap_or_default().config.unwrap_or_default();
    let subnets = configs
        .iter()
        .filter_map(|config| parsed(&id, "subnet", &config.as_ref()?.subnet));
    let name = Some(answer.name).filter(|name| !is_odd(name));
    let network = Network {
        name: name.unwrap_or_default().unwrap_or_default(),
        kind,
        subnets: subnets.collect(),
        internal: answer.internal.unwrap_or_default(),
        labels: answer.labels.unwrap_or_default(),
        id,
    };
    Some(NetworkSnapshot {
        network,
        endpoints: network_endpoints(answer.containers),
    })
}

fn kind(id: &NetworkId, driver: String, options: Field<BTreeMap<String, String>>) -> NetworkKind {
    if driver != "bridge" {
        return NetworkKind::Other(driver);
    }
    // The default, as the engine makes it: `br-` and twelve digits of the id. Only `docker0` always has the option.
    if options.is_malformed() {
        warn!(network = %id, "a bridge network whose options cannot be read: cannot be guarded");
        return NetworkKind::Other(driver);
    }
    let mut options = options.unwrap_or_default();
    let named = options.remove(BRIDGE_NAME).filter(|name| !name.is_empty());
    let name = named.unwrap_or_else(|| format!("br-{id}"));
    match name.parse() {
        Ok(name) => NetworkKind::Bridge(name),
        Err(error) => {
            warn!(network = %id, %error, "a bridge network with an impossible interface: cannot be guarded");
            NetworkKind::Other(driver)
        }
    }
}
