//! The bodies of the calls that change networks, read into what they may ask for and nothing beside it: an engine would take a
//! field under any spelling, and the last of two.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::call::Refusal;
use crate::model::bridge_name;
use crate::net::{engine_share, first_host};
use crate::policy::{ScopedName, ServiceId};

/// Names under which one container is found. A service has two of its own and two of Compose's.
const MOST_ALIASES: usize = 8;
/// A label's value may become an alias.
const LONGEST_NAME: usize = 4096;

/// `POST /networks/create`: the network of a service, as the daemon makes it. But for subnets and the kind of gateway, all of it follows
/// from the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Create {
    name: String,
    driver: String,
    internal: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    options: Options,
    labels: Labels,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Ipam {
    config: Vec<Subnet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Subnet {
    subnet: IpNet,
    #[serde(rename = "IPRange", default, skip_serializing_if = "Option::is_none")]
    range: Option<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

impl Subnet {
    /// Whether all but the subnet follows from it.
    fn follows(&self) -> bool {
        self.range == engine_share(self.subnet) && self.gateway.is_none_or(|it| it == first_host(self.subnet))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(rename = "com.docker.network.bridge.name")]
    bridge: String,
    #[serde(
        rename = "com.docker.network.bridge.inhibit_ipv4",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    inhibit: Option<String>,
    #[serde(
        rename = "com.docker.network.bridge.gateway_mode_ipv4",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    ipv4: Option<String>,
    #[serde(
        rename = "com.docker.network.bridge.gateway_mode_ipv6",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    ipv6: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    #[serde(rename = "io.cofferdam.managed")]
    managed: String,
    #[serde(rename = "io.cofferdam.service")]
    service: String,
}

impl Create {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let body: Self = read(bytes)?;
        let service = service(&body.labels.service).ok_or(Refusal::Body("the service's label"))?;
        let bridge = bridge_name(&service).map(|name| name.to_string());
        let subnets: Vec<IpNet> = body.ipam.config.iter().map(|it| it.subnet).collect();
        let with_ipv6 = match subnets.as_slice() {
            [IpNet::V4(ipv4)] if is_subnet(*ipv4) => false,
            [IpNet::V4(ipv4), IpNet::V6(ipv6)] if is_subnet(*ipv4) && is_subnet6(*ipv6) => true,
            _ => return Err(Refusal::Body("the subnets")),
        };
        let options = &body.options;
        let modes = [&options.inhibit, &options.ipv4, &options.ipv6].map(|it| it.as_deref());
        let expected = if with_ipv6 { Some("isolated") } else { None };
        let holds = [
            (body.labels.managed == "true", "the mark of our networks"),
            (body.name == service.network_name(), "the name"),
            (body.driver == "bridge", "the driver"),
            (body.internal, "Internal"),
            (body.ipam.config.iter().all(Subnet::follows), "the addresses"),
            (body.enable_ipv6 == with_ipv6, "EnableIPv6"),
            (Some(&options.bridge) == bridge.as_ref(), "the bridge's name"),
            (
                modes == [Some("true"), None, None] || modes == [None, Some("isolated"), expected],
                "the gateway's mode",
            ),
        ];
        match holds.into_iter().find(|(holds, _)| !holds) {
            None => Ok(body),
            Some((_, what)) => Err(Refusal::Body(what)),
        }
    }
}

fn service(label: &str) -> Option<ServiceId> {
    let (segment, name) = label.split_once('/')?;
    Some(ScopedName {
        segment: segment.parse().ok()?,
        name: name.parse().ok()?,
    })
}

fn is_subnet(net: Ipv4Net) -> bool {
    net == net.trunc() && (8..=29).contains(&net.prefix_len())
}

fn is_subnet6(net: Ipv6Net) -> bool {
    net == net.trunc() && net.prefix_len() == 64
}

/// `POST /networks/{id}/connect`: a container with static addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Connect {
    container: String,
    endpoint_config: Endpoint,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Endpoint {
    #[serde(rename = "IPAMConfig")]
    ipam: Addresses,
    aliases: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Addresses {
    #[serde(rename = "IPv4Address")]
    ipv4: Ipv4Addr,
    #[serde(rename = "IPv6Address", default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<Ipv6Addr>,
}

impl Connect {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let body: Self = read(bytes)?;
        let aliases = &body.endpoint_config.aliases;
        if aliases.len() > MOST_ALIASES || aliases.iter().any(|it| it.len() > LONGEST_NAME) {
            return Err(Refusal::Body("the aliases"));
        }
        if !super::call::is_id(&body.container) {
            return Err(Refusal::Body("the container: not a whole id"));
        }
        Ok(body)
    }
}

/// `POST /networks/{id}/disconnect`. The container may be a name: that of an endpoint whose container is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct Disconnect {
    container: String,
    force: bool,
}

impl Disconnect {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let body: Self = read(bytes)?;
        let valid = (1..=LONGEST_NAME).contains(&body.container.len()) && body.force;
        if valid {
            Ok(body)
        } else {
            Err(Refusal::Body("Force"))
        }
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Refusal> {
    // serde would read an object's fields from a list, too; what was read is written anew in any case.
    serde_json::from_slice(bytes).map_err(|error| Refusal::Json(error.to_string()))
}
