//! A made-up host of any size: services in a ring, each called by the ten after it, and their containers on bridges that are
//! named as Docker's. What stands behind a made-up bridge port does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use cofferdam::inventory::links::{Peer, Port};
use cofferdam::inventory::{
    Container, ContainerId, Endpoint, Facts, Lifecycle, Listing, Network, NetworkId, NetworkKind, NetworkMode,
};
use cofferdam::model::Rights;
use cofferdam::net::{IfName, Mac};
use cofferdam::plan::Planner;
use cofferdam::plan::compile::Options;
use cofferdam::plan::networks::Pools;
use cofferdam::policy::{SourceFile, load};

pub(crate) const OPTIONS: Options = Options {
    stamp: 1 << 30,
    nflog_group: 64,
};
/// Edges into each service.
pub(crate) const CALLERS: usize = 10;
/// Endpoints on a bridge; the kernel allows 1,023.
const ON_A_BRIDGE: usize = 1000;
/// Above every index that the namespace gives to an interface of its own.
const FIRST_BRIDGE: u32 = 10_000_000;
const FIRST_PORT: u32 = 20_000_000;

/// A policy of so many services.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) services: usize,
    /// Edges into service 0, from the services after it; the others have [`CALLERS`].
    pub(crate) into_first: usize,
    /// Whether the edge from service 1 to service 0 has one port more: 9000.
    pub(crate) changed: bool,
}

impl Shape {
    pub(crate) fn ring(services: usize) -> Self {
        Self {
            services,
            into_first: CALLERS,
            changed: false,
        }
    }

    pub(crate) fn edges(self) -> impl Iterator<Item = (usize, usize, u16)> {
        (0..self.services).flat_map(move |to| {
            let callers = if to == 0 { self.into_first } else { CALLERS };
            (1..=callers).map(move |step| {
                let port = 8000 + u16::try_from(step).unwrap();
                ((to + step) % self.services, to, port)
            })
        })
    }

    /// Service number `n` is called by those after it.
    pub(crate) fn files(self) -> Vec<SourceFile> {
        let mut text = "cofferdam: 1\nsegment: bench\nservices:\n".to_owned();
        for number in 0..self.services {
            writeln!(
                text,
                "  s{number}: {{ select: {{ labels: {{ service: s{number} }} }} }}"
            )
            .unwrap();
        }
        text.push_str("allow:\n");
        for (from, to, port) in self.edges() {
            let more = if self.changed && (to, port) == (0, 8001) {
                ", 9000"
            } else {
                ""
            };
            writeln!(text, "  - {{ from: s{from}, to: s{to}, ports: [{port}{more}] }}").unwrap();
        }
        vec![SourceFile {
            path: "bench.yaml".to_owned(),
            bytes: text.into_bytes(),
        }]
    }

    pub(crate) fn rights(self) -> Rights {
        Rights {
            policy: load(&self.files()).unwrap().policy,
            ..Rights::default()
        }
    }
}

pub(crate) fn planner(rights: Rights) -> Planner {
    let pools = Pools {
        ipv4: "10.213.0.0/16".parse().unwrap(),
        ipv4_prefix: 24,
        ipv6: None,
    };
    Planner::new(OPTIONS, pools, rights)
}

/// Endpoints of a made-up host, one for each container; container `n` belongs to service `n % services`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    pub(crate) endpoints: usize,
    pub(crate) services: usize,
}

pub(crate) fn mac(container: usize) -> Mac {
    let bytes = u32::try_from(container).unwrap().to_be_bytes();
    Mac([2, 0x42, bytes[0], bytes[1], bytes[2], bytes[3]])
}

pub(crate) fn address(container: usize) -> Ipv4Addr {
    let (network, host) = (container / ON_A_BRIDGE, container % ON_A_BRIDGE + 10);
    let octet = |value: usize| u8::try_from(value).unwrap();
    Ipv4Addr::new(172, 16 + octet(network), octet(host / 256), octet(host % 256))
}

pub(crate) fn bridge_name(network: usize) -> IfName {
    format!("br-{network:012x}").parse().unwrap()
}

pub(crate) fn container_id(container: usize) -> ContainerId {
    ContainerId(format!("{container:064x}").into())
}

pub(crate) fn network_id(network: usize) -> NetworkId {
    NetworkId(format!("{:064x}", 0xffff_0000_u64 + network as u64).into())
}

impl Host {
    pub(crate) fn networks(self) -> usize {
        self.endpoints.div_ceil(ON_A_BRIDGE)
    }

    pub(crate) fn container(self, number: usize) -> Container {
        let endpoint = Endpoint {
            mac: Some(mac(number)),
            ipv4: Some(address(number)),
            ipv6: None,
        };
        Container {
            id: container_id(number),
            name: format!("c{number}"),
            image: "bench".into(),
            labels: [("service".into(), format!("s{}", number % self.services).into())]
                .into_iter()
                .collect(),
            lifecycle: Lifecycle::Running,
            network_mode: NetworkMode::Own,
            endpoints: [(network_id(number / ON_A_BRIDGE), endpoint)]
                .into_iter()
                .collect(),
            published: BTreeSet::new(),
            facts: Facts::default(),
        }
    }

    pub(crate) fn listing(self) -> Listing {
        let network = |number: usize| Network {
            id: network_id(number),
            name: format!("net{number}"),
            kind: NetworkKind::Bridge(bridge_name(number)),
            subnets: vec![format!("172.{}.0.0/16", 16 + number).parse().unwrap()],
            internal: false,
            labels: BTreeMap::new(),
        };
        Listing {
            containers: (0..self.endpoints).map(|it| self.container(it)).collect(),
            networks: (0..self.networks()).map(network).collect(),
            ..Listing::default()
        }
    }

    pub(crate) fn network_of(container: usize) -> usize {
        container / ON_A_BRIDGE
    }

    pub(crate) fn bridge_index(network: usize) -> u32 {
        FIRST_BRIDGE + u32::try_from(network).unwrap()
    }

    pub(crate) fn port(number: usize) -> Port {
        let offset = u32::try_from(number).unwrap();
        Port {
            index: FIRST_PORT + offset,
            name: format!("veth{number}").parse().unwrap(),
            bridge: Self::bridge_index(number / ON_A_BRIDGE),
            peer: Some(Peer {
                namespace: i32::try_from(number).unwrap(),
                mac: mac(number),
            }),
        }
    }

    /// Tells the planner everything; `real` are the bridges and ports that do exist, in place of made-up ones.
    pub(crate) fn tell(
        self,
        planner: &mut Planner,
        real: &BTreeMap<usize, Port>,
        bridges: &BTreeMap<usize, u32>,
    ) {
        let index = |network: usize| {
            bridges
                .get(&network)
                .copied()
                .unwrap_or(Self::bridge_index(network))
        };
        let named = (0..self.networks())
            .map(|it| (index(it), bridge_name(it)))
            .collect();
        let ports = (0..self.endpoints).map(|number| {
            let mut port = Self::port(number);
            port.bridge = index(number / ON_A_BRIDGE);
            let port = real.get(&number).cloned().unwrap_or(port);
            (port.index, port)
        });
        planner.reset_links(named, ports.collect());
        // The engine is asked after its ports are there: an earlier reading binds none of them.
        let now = planner.moment();
        planner.reset(self.listing(), now);
    }
}
