//! The engine's answers, narrowed. What is malformed is left out and warned of; nothing here fails.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use bollard::models as api;
use tracing::warn;

use crate::inventory::{
    Container, ContainerId, Endpoint, Lifecycle, Network, NetworkId, NetworkKind, NetworkMode, Published,
};
use crate::net::Transport;

/// A bridge network's option with its interface's name.
pub(super) const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Networks by name. A container that was never started names its networks only by name (`NetworkID` is empty).
#[derive(Debug, Default)]
pub(super) struct NetworkNames(BTreeMap<String, Vec<NetworkId>>);

impl NetworkNames {
    pub(super) fn new<'a>(networks: impl IntoIterator<Item = &'a Network>) -> Self {
        let mut names = BTreeMap::<String, Vec<NetworkId>>::new();
        for network in networks {
            names
                .entry(network.name.clone())
                .or_default()
                .push(network.id.clone());
        }
        Self(names)
    }

    /// The id that an attachment means. A container that was started once has it from then on, even of a network that
    /// is gone: then it cannot start, whether or not another network has taken the name (`network … not found`).
    fn resolve(&self, container: &ContainerId, name: &str, id: &str) -> Option<NetworkId> {
        if !id.is_empty() {
            return Some(NetworkId(id.to_owned()));
        }
        let name = if name == "default" { "bridge" } else { name };
        match self.0.get(name).map(Vec::as_slice) {
            Some([one]) => Some(one.clone()),
            Some(several) => {
                warn!(%container, network = name, count = several.len(), "several networks have this name: attachment ignored");
                None
            }
            None => {
                warn!(%container, network = name, "unknown network: attachment ignored");
                None
            }
        }
    }
}

/// A container of `GET /containers/json`. `None` without an id.
pub(super) fn listed_container(summary: api::ContainerSummary, names: &NetworkNames) -> Option<Container> {
    let id = container_id(summary.id)?;
    use api::ContainerSummaryStateEnum as State;
    let state = match summary.state {
        Some(State::RUNNING | State::PAUSED | State::RESTARTING | State::STOPPING) => Lifecycle::Running,
        _ => Lifecycle::Stopped,
    };
    // Legacy links add names of the form `/other/alias`.
    let own_names = summary.names.unwrap_or_default();
    let own_name = own_names
        .into_iter()
        .find(|name| !name.trim_start_matches('/').contains('/'));
    let networks = summary.network_settings.and_then(|settings| settings.networks);
    let mode = summary.host_config.and_then(|config| config.network_mode);
    Some(container(
        Parts {
            id,
            name: own_name,
            image: summary.image,
            labels: summary.labels,
            state,
            mode,
            networks,
            published: summary
                .ports
                .unwrap_or_default()
                .iter()
                .filter_map(listed_port)
                .collect(),
        },
        names,
    ))
}

/// A container of `GET /containers/{id}/json`. `None` without an id.
pub(super) fn inspected_container(
    answer: api::ContainerInspectResponse,
    names: &NetworkNames,
) -> Option<Container> {
    let id = container_id(answer.id)?;
    let state = answer.state.unwrap_or_default();
    // A restarting container says `running` and `restarting`, a paused one `running` and `paused`.
    let state = match state.running.unwrap_or(false) || state.restarting.unwrap_or(false) {
        true => Lifecycle::Running,
        false => Lifecycle::Stopped,
    };
    let config = answer.config.unwrap_or_default();
    let settings = answer.network_settings.unwrap_or_default();
    Some(container(
        Parts {
            id,
            name: answer.name,
            image: config.image,
            labels: config.labels,
            state,
            mode: answer.host_config.and_then(|config| config.network_mode),
            networks: settings.networks,
            published: settings
                .ports
                .unwrap_or_default()
                .iter()
                .flat_map(inspected_ports)
                .collect(),
        },
        names,
    ))
}

/// Whether an inspected container's attachments cannot be told without the names of all networks.
pub(super) fn needs_names(answer: &api::ContainerInspectResponse) -> bool {
    let settings = answer.network_settings.as_ref();
    let mut networks = settings
        .and_then(|settings| settings.networks.as_ref())
        .into_iter()
        .flatten();
    networks.any(|(_, settings)| is_empty(settings.network_id.as_deref()))
}

/// A published port as the list tells it; one that is only exposed has no public port.
fn listed_port(port: &api::PortSummary) -> Option<Published> {
    use api::PortSummaryTypeEnum as Type;
    let transport = match port.typ? {
        Type::TCP => Transport::Tcp,
        Type::UDP => Transport::Udp,
        Type::SCTP => Transport::Sctp,
        Type::EMPTY => return None,
    };
    Some(Published {
        transport,
        host_port: port.public_port?,
        container_port: port.private_port,
    })
}

/// The published ports of one entry, `80/tcp`, as inspect tells them.
fn inspected_ports((port, bindings): (&String, &Option<Vec<api::PortBinding>>)) -> Vec<Published> {
    let parse = || {
        let (number, protocol) = port.split_once('/')?;
        let transport = Transport::ALL.into_iter().find(|it| it.as_str() == protocol)?;
        Some((number.parse().ok()?, transport))
    };
    let Some((container_port, transport)) = parse() else {
        return Vec::new();
    };
    let host_port = |binding: &api::PortBinding| binding.host_port.as_deref()?.parse().ok();
    let host_ports = bindings.iter().flatten().filter_map(host_port);
    host_ports
        .map(|host_port| Published {
            transport,
            host_port,
            container_port,
        })
        .collect()
}

/// What list and inspect have in common.
struct Parts {
    id: ContainerId,
    name: Option<String>,
    image: Option<String>,
    labels: Option<HashMap<String, String>>,
    state: Lifecycle,
    mode: Option<String>,
    networks: Option<HashMap<String, api::EndpointSettings>>,
    published: BTreeSet<Published>,
}

fn container(parts: Parts, names: &NetworkNames) -> Container {
    let id = parts.id;
    let mut endpoints = BTreeMap::new();
    // Sorted, so that warnings come in the same order each time.
    for (name, settings) in parts
        .networks
        .unwrap_or_default()
        .into_iter()
        .collect::<BTreeMap<_, _>>()
    {
        // The networks `host` and `none` carry no packets, and no other network can have these names.
        if name == "host" || name == "none" {
            continue;
        }
        let network = settings.network_id.as_deref().unwrap_or_default();
        if let Some(network) = names.resolve(&id, &name, network) {
            endpoints.insert(network, endpoint(&id, &settings));
        }
    }
    let network_mode = match parts.mode.as_deref() {
        Some("host") => NetworkMode::Host,
        // Disconnected from `none` and connected elsewhere, it still says `none`.
        Some("none") if endpoints.is_empty() => NetworkMode::None,
        Some(mode) => match mode.strip_prefix("container:") {
            Some(other) => NetworkMode::Shared(ContainerId(other.to_owned())),
            None => NetworkMode::Own,
        },
        None => {
            warn!(container = %id, "no network mode: taken for a container with its own network");
            NetworkMode::Own
        }
    };
    let lifecycle = match endpoints.values().any(Endpoint::is_live) {
        true => Lifecycle::Running,
        false => parts.state,
    };
    let name = parts.name.unwrap_or_default();
    let name = name.trim_start_matches('/').to_owned();
    if name.is_empty() {
        warn!(container = %id, "no name: no selector by name can match");
    }
    Container {
        name,
        image: parts.image.unwrap_or_default(),
        labels: parts.labels.unwrap_or_default().into_iter().collect(),
        lifecycle,
        network_mode,
        endpoints,
        published: parts.published,
        id,
    }
}

/// An attachment as a container tells it. Without an `EndpointID` there is none in the kernel: what is left are the
/// addresses asked for (`IPAMConfig`, which `network connect` and `--ip` set and a stop keeps). Engine 25+ then puts an
/// asked-for MAC where the real one stands otherwise.
fn endpoint(container: &ContainerId, settings: &api::EndpointSettings) -> Endpoint {
    if is_empty(settings.endpoint_id.as_deref()) {
        let wish = settings.ipam_config.as_ref();
        return Endpoint {
            mac: None,
            ipv4: wish.and_then(|wish| ipv4(container, wish.ipv4_address.as_deref())),
            ipv6: wish.and_then(|wish| ipv6(container, wish.ipv6_address.as_deref())),
        };
    }
    Endpoint {
        mac: parsed(container, "MAC", settings.mac_address.as_deref()),
        ipv4: ipv4(container, settings.ip_address.as_deref()),
        ipv6: ipv6(container, settings.global_ipv6_address.as_deref()),
    }
}

/// The endpoints of `GET /networks/{id}`. They are all in the kernel, those of starting containers among them.
pub(super) fn network_endpoints(
    containers: Option<HashMap<String, api::EndpointResource>>,
) -> BTreeMap<ContainerId, Endpoint> {
    let containers = containers.unwrap_or_default().into_iter();
    containers
        // `ep-…` stands for an endpoint that a crash left without a container.
        .filter(|(id, _)| !id.starts_with("ep-"))
        .map(|(id, resource)| {
            let id = ContainerId(id);
            let endpoint = Endpoint {
                mac: parsed(&id, "MAC", resource.mac_address.as_deref()),
                ipv4: ipv4(&id, resource.ipv4_address.as_deref()),
                ipv6: ipv6(&id, resource.ipv6_address.as_deref()),
            };
            (id, endpoint)
        })
        .collect()
}

/// The parts of a network that its listing and its inspection have in common.
pub(super) struct NetworkParts {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) driver: Option<String>,
    pub(super) internal: Option<bool>,
    pub(super) ipam: Option<api::Ipam>,
    pub(super) options: Option<HashMap<String, String>>,
    pub(super) labels: Option<HashMap<String, String>>,
}

/// A network. `None` without an id.
pub(super) fn network(parts: NetworkParts) -> Option<Network> {
    let Some(id) = parts.id.filter(|id| !id.is_empty()) else {
        warn!(name = parts.name, "a network without an id: ignored");
        return None;
    };
    let id = NetworkId(id);
    let kind = kind(&id, parts.driver, &parts.options.unwrap_or_default());
    let configs = parts.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let subnets = configs
        .iter()
        .filter_map(|config| parsed(&id, "subnet", config.subnet.as_deref()));
    Some(Network {
        name: parts.name.unwrap_or_default(),
        kind,
        subnets: subnets.collect(),
        internal: parts.internal.unwrap_or_default(),
        labels: parts.labels.unwrap_or_default().into_iter().collect(),
        id,
    })
}

fn kind(id: &NetworkId, driver: Option<String>, options: &HashMap<String, String>) -> NetworkKind {
    let driver = driver.unwrap_or_default();
    if driver != "bridge" {
        return NetworkKind::Other(driver);
    }
    // The default, as the engine makes it: `br-` and twelve digits of the id. Only `docker0` always has the option.
    let named = options.get(BRIDGE_NAME).filter(|name| !name.is_empty());
    let name = named.cloned().unwrap_or_else(|| format!("br-{id}"));
    match name.parse() {
        Ok(name) => NetworkKind::Bridge(name),
        Err(error) => {
            warn!(network = %id, %error, "a bridge network with an impossible interface: cannot be guarded");
            NetworkKind::Other(driver)
        }
    }
}

fn container_id(id: Option<String>) -> Option<ContainerId> {
    let id = id.filter(|id| !id.is_empty()).map(ContainerId);
    if id.is_none() {
        warn!("a container without an id: ignored");
    }
    id
}

fn is_empty(text: Option<&str>) -> bool {
    text.is_none_or(str::is_empty)
}

/// The value of a field that may be missing or empty; what is malformed is warned of.
fn parsed<T>(object: &dyn Display, field: &str, text: Option<&str>) -> Option<T>
where
    T: FromStr,
    T::Err: Display,
{
    let text = text.filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            warn!(%object, field, value = text, %error, "malformed answer of the engine: field ignored");
            None
        }
    }
}

/// An address with or without `/prefix`; the engine writes both, and an unspecified one for none.
fn address(object: &dyn Display, field: &str, text: Option<&str>) -> Option<IpAddr> {
    let text = text.map(|text| text.split_once('/').map_or(text, |(address, _)| address));
    parsed::<IpAddr>(object, field, text).filter(|address| !address.is_unspecified())
}

fn ipv4(object: &dyn Display, text: Option<&str>) -> Option<Ipv4Addr> {
    match address(object, "IPv4 address", text)? {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(other) => wrong_family(object, "IPv4 address", other.into()),
    }
}

fn ipv6(object: &dyn Display, text: Option<&str>) -> Option<Ipv6Addr> {
    match address(object, "IPv6 address", text)? {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(other) => wrong_family(object, "IPv6 address", other.into()),
    }
}

fn wrong_family<T>(object: &dyn Display, field: &str, value: IpAddr) -> Option<T> {
    warn!(%object, field, %value, "malformed answer of the engine: field ignored");
    None
}

#[cfg(test)]
mod tests;
