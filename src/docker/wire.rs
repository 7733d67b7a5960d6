//! The engine's answers, narrowed. What is malformed is left out and warned of; nothing here fails.

mod mounts;
mod networks;
mod parse;
mod ports;
mod powers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use litemap::LiteMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::warn;

use self::mounts::Mount;
pub(super) use self::networks::{BRIDGE_NAME, NetworkAnswer, network};
use self::networks::{EndpointResource, Ipam, IpamConfig};
pub(super) use self::parse::is_id;
pub(crate) use self::parse::is_volume_name;
use self::parse::{container_id, ipv4, ipv6, is_empty, is_odd, parsed};
pub(super) use self::ports::inspected_ports;
use self::ports::listed_ports;
pub(super) use self::powers::{holds_a_socket, powers};
use super::raw::{Field, Shaped, shortened};
use crate::inventory::{
    Container, ContainerId, Endpoint, Facts, Labels, Lifecycle, Network, NetworkId, NetworkMode, Published,
};

/// The networks that there are, by id and by name. A container that was never started names its networks only by name
/// (`NetworkID` is empty).
#[derive(Debug, Default)]
pub(super) struct NetworkNames {
    ids: BTreeSet<NetworkId>,
    named: BTreeMap<String, Vec<NetworkId>>,
}

impl NetworkNames {
    pub(super) fn new<'a>(networks: impl IntoIterator<Item = &'a Network>) -> Self {
        let mut names = Self::default();
        for network in networks {
            names.ids.insert(network.id.clone());
            let named = names.named.entry(network.name.clone()).or_default();
            named.push(network.id.clone());
        }
        names
    }

    /// The id that an attachment means. A container that was started once has it from then on, even of a network that
    /// is gone: then it cannot start, whether or not another network has taken the name (`network … not found`).
    ///
    /// The default network counts by its name alone: it has another id after each start of the engine.
    fn resolve(&self, container: &ContainerId, name: &str, id: &str) -> Option<NetworkId> {
        let name = if name == "default" { "bridge" } else { name };
        if !(id.is_empty() || name == "bridge" && self.named.contains_key(name)) {
            let id = NetworkId(id.into());
            // That of the network itself, so that ten thousand attachments share one text.
            return Some(self.ids.get(&id).cloned().unwrap_or(id));
        }
        match self.named.get(name).map(Vec::as_slice) {
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

/// A container of `GET /containers/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Summary {
    pub(super) id: Field<String>,
    names: Field<Vec<String>>,
    pub(super) image: Field<String>,
    labels: Field<BTreeMap<String, String>>,
    state: Field<String>,
    host_config: Field<HostConfig>,
    network_settings: Field<NetworkSettings>,
    ports: Field<Vec<Field<ListedPort>>>,
}

impl Summary {
    /// Whether the engine may be holding the container's lock for its start.
    pub(super) fn may_be_starting(&self) -> bool {
        !self
            .state
            .as_ref()
            .is_some_and(|state| matches!(state.as_str(), "running" | "paused" | "dead"))
    }

    /// Whether the image's name is not known, only its id.
    pub(super) fn has_nameless_image(&self) -> bool {
        self.image
            .as_ref()
            .is_some_and(|image| image.starts_with("sha256:"))
    }

    /// Whether the attachments cannot be told without the names of all networks.
    pub(super) fn needs_names(&self) -> bool {
        needs_names(&self.network_settings)
    }
}

/// A container of `GET /containers/{id}/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Inspection {
    id: Field<String>,
    name: Field<String>,
    pub(super) config: Field<Config>,
    state: Field<RunState>,
    host_config: Field<HostConfig>,
    network_settings: Field<NetworkSettings>,
    mounts: Field<Vec<Field<Mount>>>,
}

impl Inspection {
    /// Whether the attachments cannot be told without the names of all networks.
    pub(super) fn needs_names(&self) -> bool {
        needs_names(&self.network_settings)
    }

    /// The main process, where one runs.
    pub(super) fn pid(&self) -> Option<u32> {
        let pid = self.state.as_ref()?.pid.as_ref().copied();
        pid.filter(|pid| *pid > 0)
    }
}

fn needs_names(settings: &Field<NetworkSettings>) -> bool {
    let networks = settings.as_ref().and_then(|settings| settings.networks.as_ref());
    networks.into_iter().flatten().any(|(_, settings)| {
        settings
            .as_ref()
            .is_none_or(|settings| is_empty(&settings.network_id))
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Config {
    pub(super) image: Field<String>,
    labels: Field<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RunState {
    running: Field<bool>,
    restarting: Field<bool>,
    pid: Field<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct HostConfig {
    network_mode: Field<String>,
    pid_mode: Field<String>,
    privileged: Field<bool>,
    cap_add: Field<Vec<String>>,
    cap_drop: Field<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Attachments,
    /// `80/tcp`, with its bindings; null for a port that is only exposed.
    ports: Ports,
}

/// Attachments by the network's name. Boxed, since a map makes room for eleven.
type Attachments = Field<BTreeMap<String, Field<Box<EndpointSettings>>>>;

/// Ports with their bindings, by `80/tcp`.
pub(super) type Ports = Field<BTreeMap<String, Field<Vec<Field<PortBinding>>>>>;

/// A port of the list of containers.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ListedPort {
    #[serde(rename = "IP")]
    ip: Field<String>,
    private_port: Field<u16>,
    public_port: Field<u16>,
    r#type: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct PortBinding {
    host_ip: Field<String>,
    host_port: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EndpointSettings {
    #[serde(rename = "IPAMConfig")]
    ipam_config: Field<Wish>,
    #[serde(rename = "NetworkID")]
    network_id: Field<String>,
    #[serde(rename = "EndpointID")]
    endpoint_id: Field<String>,
    #[serde(rename = "IPAddress")]
    ip_address: Field<String>,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: Field<String>,
    #[serde(rename = "MacAddress")]
    mac_address: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wish {
    #[serde(rename = "IPv4Address")]
    ipv4_address: Field<String>,
    #[serde(rename = "IPv6Address")]
    ipv6_address: Field<String>,
}

macro_rules! objects_of_json {
    ($($name:ty),*) => { $(
        impl Shaped for $name {
            fn fits(value: &Value) -> bool {
                value.is_object()
            }
        }
    )* };
}

objects_of_json!(
    Summary,
    Inspection,
    Config,
    RunState,
    HostConfig,
    Mount,
    NetworkSettings,
    EndpointSettings,
    Wish,
    NetworkAnswer,
    Ipam,
    IpamConfig,
    EndpointResource,
    ListedPort,
    PortBinding
);

/// The objects of a list, without those that are none. One after the other, and of each only the fields that are asked for: a
/// host's list has tens of MiB.
///
/// # Errors
/// The text is no list, which is not an empty one.
pub(super) fn objects<T: DeserializeOwned>(text: &str) -> serde_json::Result<impl Iterator<Item = T>> {
    let items: Option<Vec<&RawValue>> = serde_json::from_str(text)?;
    let object = |item: &RawValue| {
        let object = Some(item.get()).filter(|it| it.starts_with('{'));
        let object = object.and_then(|it| serde_json::from_str(it).ok());
        if object.is_none() {
            warn!("an object of the engine that is none: ignored");
        }
        object
    };
    Ok(items.into_iter().flatten().filter_map(object))
}

/// One object.
pub(super) fn object<T: DeserializeOwned + Shaped>(answer: Value) -> Option<T> {
    let object = if T::fits(&answer) {
        T::deserialize(answer).ok()
    } else {
        None
    };
    if object.is_none() {
        warn!("an object of the engine that is none: ignored");
    }
    object
}

/// A container of the list. `None` without an id.
pub(super) fn listed_container(summary: Summary, names: &NetworkNames, facts: Facts) -> Option<Container> {
    let id = container_id(summary.id)?;
    // A state that a future engine may have is no running one; an endpoint in the kernel says otherwise.
    let state = match summary.state.as_ref().map(String::as_str) {
        Some("running" | "paused" | "restarting" | "stopping") => Lifecycle::Running,
        Some("created" | "exited" | "removing" | "dead" | "") | None => Lifecycle::Stopped,
        Some(other) => {
            warn!(container = %id, state = shortened(other), "unknown state: taken for a stopped container");
            Lifecycle::Stopped
        }
    };
    // Legacy links add names of the form `/other/alias`.
    let name = match summary.names {
        Field::Is(names) => Field::Is(
            names
                .into_iter()
                .find(|name| !name.trim_start_matches('/').contains('/'))
                .unwrap_or_default(),
        ),
        Field::Absent => Field::Absent,
        Field::Malformed => Field::Malformed,
    };
    let parts = Parts {
        id,
        name,
        image: summary.image,
        labels: summary.labels,
        state,
        mode: mode(summary.host_config),
        networks: summary.network_settings.unwrap_or_default().networks,
        published: listed_ports(summary.ports),
        facts,
    };
    Some(container(parts, names))
}

/// An inspected container. `None` without an id.
pub(super) fn inspected_container(
    answer: Inspection,
    names: &NetworkNames,
    sockets: &[PathBuf],
) -> Option<Container> {
    let facts = Facts {
        powers: powers(&answer, sockets),
        unreadable: answer.config.is_malformed(),
    };
    let id = container_id(answer.id)?;
    let state = answer.state.unwrap_or_default();
    // A restarting container says `running` and `restarting`, a paused one `running` and `paused`.
    let state = match state.running == Field::Is(true) || state.restarting == Field::Is(true) {
        true => Lifecycle::Running,
        false => Lifecycle::Stopped,
    };
    let config = answer.config.unwrap_or_default();
    let settings = answer.network_settings.unwrap_or_default();
    let parts = Parts {
        id,
        name: answer.name,
        image: config.image,
        labels: config.labels,
        state,
        mode: mode(answer.host_config),
        networks: settings.networks,
        published: inspected_ports(settings.ports),
        facts,
    };
    Some(container(parts, names))
}

fn mode(config: Field<HostConfig>) -> Field<String> {
    match config {
        Field::Is(config) => config.network_mode,
        Field::Absent => Field::Absent,
        Field::Malformed => Field::Malformed,
    }
}

/// What our networks' names begin with.
const OUR_NAMES: &str = "cofferdam-";

/// The networks with names of ours that are gone, and that a stopped container still wishes for.
pub(super) fn stale_wishes(summary: &Summary, names: &NetworkNames) -> BTreeSet<String> {
    let settings = summary.network_settings.as_ref();
    let attachments = settings.and_then(|it| it.networks.as_ref());
    let is_stale = |settings: &EndpointSettings| {
        let network = settings.network_id.as_ref().filter(|it| !it.is_empty());
        let is_gone = network.is_some_and(|it| !names.ids.contains(&NetworkId(it.as_str().into())));
        is_gone && is_empty(&settings.endpoint_id)
    };
    let ours = attachments.into_iter().flatten();
    let ours = ours.filter(|(name, _)| name.starts_with(OUR_NAMES));
    ours.filter(|(_, settings)| settings.as_ref().is_some_and(|it| is_stale(it)))
        .map(|(name, _)| name.clone())
        .collect()
}

/// What list and inspect have in common.
struct Parts {
    id: ContainerId,
    name: Field<String>,
    image: Field<String>,
    labels: Field<BTreeMap<String, String>>,
    state: Lifecycle,
    mode: Field<String>,
    networks: Attachments,
    published: BTreeSet<Published>,
    facts: Facts,
}

fn container(parts: Parts, names: &NetworkNames) -> Container {
    let id = parts.id;
    let mut facts = parts.facts;
    let odd = [&parts.name, &parts.image, &parts.mode].into_iter().any(is_odd);
    if odd || parts.labels.is_malformed() {
        warn!(container = %id, "name, image, labels or network mode cannot be read: denied everything");
        facts.unreadable = true;
    }
    if parts.networks.is_malformed() {
        warn!(container = %id, "its networks cannot be read: attachments ignored");
    }
    let networks = parts.networks.unwrap_or_default();
    let mut endpoints = LiteMap::with_capacity(networks.len());
    for (name, settings) in networks {
        // The networks `host` and `none` carry no packets, and no other network can have these names.
        if name == "host" || name == "none" {
            continue;
        }
        let settings = match settings {
            Field::Is(settings) if !settings.network_id.is_malformed() => settings,
            Field::Absent => Box::default(),
            Field::Is(_) | Field::Malformed => {
                warn!(container = %id, network = shortened(&name), "malformed attachment: ignored");
                continue;
            }
        };
        let network = settings.network_id.as_ref().map_or("", String::as_str);
        if let Some(network) = names.resolve(&id, &name, network) {
            endpoints.insert(network, endpoint(&id, &settings));
        }
    }
    let network_mode = match parts.mode.as_ref().map(String::as_str) {
        Some("host") => NetworkMode::Host,
        // Disconnected from `none` and connected elsewhere, it still says `none`.
        Some("none") if endpoints.is_empty() => NetworkMode::None,
        Some(mode) => match mode.strip_prefix("container:") {
            Some(other) => NetworkMode::Shared(ContainerId(other.into())),
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
    // What is too long is not kept either.
    let name = kept(parts.name).trim_start_matches('/').to_owned();
    if name.is_empty() {
        warn!(container = %id, "no name: no selector by name can match");
    }
    Container {
        name,
        image: kept(parts.image).into(),
        labels: labels(parts.labels),
        lifecycle,
        network_mode,
        endpoints,
        published: parts.published,
        facts,
        id,
    }
}

/// Takes the image's name as its user wrote it, where the list only has the image's id.
pub(super) fn use_name_of_image(container: &mut Container, name: &str) {
    let name = Field::Is(name.to_owned());
    if is_odd(&name) {
        warn!(container = %container.id, "the image's name cannot be read: denied everything");
        container.facts.unreadable = true;
    }
    container.image = kept(name).into();
}

fn labels(labels: Field<BTreeMap<String, String>>) -> Labels {
    let labels = labels.unwrap_or_default().into_iter();
    labels.map(|(key, value)| (key.into(), value.into())).collect()
}

fn kept(field: Field<String>) -> String {
    if is_odd(&field) {
        String::new()
    } else {
        field.unwrap_or_default()
    }
}

/// An attachment as a container tells it. Without an `EndpointID` there is none in the kernel: what is left are the
/// addresses asked for (`IPAMConfig`, which `network connect` and `--ip` set and a stop keeps). Engine 25+ then puts an
/// asked-for MAC where the real one stands otherwise.
fn endpoint(container: &ContainerId, settings: &EndpointSettings) -> Endpoint {
    if settings.endpoint_id.is_malformed() {
        return Endpoint::default();
    }
    if is_empty(&settings.endpoint_id) {
        let wish = settings.ipam_config.as_ref();
        return Endpoint {
            mac: None,
            ipv4: wish.and_then(|wish| ipv4(container, &wish.ipv4_address)),
            ipv6: wish.and_then(|wish| ipv6(container, &wish.ipv6_address)),
        };
    }
    Endpoint {
        mac: parsed(container, "MAC", &settings.mac_address),
        ipv4: ipv4(container, &settings.ip_address),
        ipv6: ipv6(container, &settings.global_ipv6_address),
    }
}

#[cfg(test)]
mod tests;
