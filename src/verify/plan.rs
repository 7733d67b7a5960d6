//! Which connections are tried, and what is declared of each. Pure.
//!
//! A permitted connection is tried over every network that both ends are on; what is closed also by the ways round: over
//! the host to a network that only the target is on, and through published ports. Nothing that is planned leaves the host
//! but to an address that the user named.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::ports::{Tried, tried};
use super::scene::{Declared, Group, Scene, Spot, Subject};
use crate::inventory::NetworkId;
use crate::model::Standing;
use crate::net::{Family, Transport};
use crate::policy::{Peer, Ports, ServiceId};

/// What of the host's own ports is tried.
const MOST_OF_HOST: usize = 8;

/// One connection to try.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    pub from: Spot,
    pub to: Spot,
    pub transport: Transport,
    /// The port that the policy is about; a published one is dialled by another number.
    pub port: u16,
    pub address: SocketAddr,
    pub way: Way,
    pub declared: Declared,
}

impl Probe {
    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.address.ip())
    }
}

/// By which way a probe goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Both ends are on this network.
    Network(NetworkId),
    /// Over the host, to a network that only the target is on.
    Routed,
    /// To a port of the host that is published for the target.
    Published,
    /// From the host or to it.
    Host,
    /// To an address outside.
    World,
}

/// A connection that is declared open and for which there is no way at all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unjoined {
    pub from: Spot,
    pub to: Spot,
    pub transport: Transport,
    pub port: u16,
}

/// What is to be tried, and what is not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub probes: Vec<Probe>,
    pub unjoined: Vec<Unjoined>,
    /// Groups of which not every container is tried: how many are, and how many there are.
    pub sampled: BTreeMap<Group, (usize, usize)>,
    /// Ports that are too many, by target.
    pub cut: BTreeMap<Group, usize>,
    pub not_tried: NotTried,
}

/// What of the policy cannot be tried from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct NotTried {
    /// Edges from the world or an external: a machine outside would have to open those.
    pub edges_from_outside: usize,
    /// Edges to the world or an external; only addresses that were named are tried.
    pub edges_to_outside: usize,
    /// Edges that permit ICMP, SCTP or other protocols, as far as those are concerned.
    pub edges_with_other_protocols: usize,
}

/// Makes the plan, with at most this many containers of each group, or all pairs of all of them.
pub fn plan(scene: &Scene, most: Option<usize>) -> Plan {
    let samples = scene.samples(most);
    let mut planner = Planner {
        scene,
        plan: Plan {
            not_tried: not_tried(scene),
            ..Plan::default()
        },
    };
    for (group, all) in scene.samples(None) {
        let taken = samples.get(&group).map_or(0, Vec::len);
        if taken < all.len() {
            planner.plan.sampled.insert(group, (taken, all.len()));
        }
    }
    let targets: BTreeMap<&Group, Tried> = samples
        .keys()
        .map(|group| (group, planner.ports(group)))
        .collect();
    for (to, tried) in &targets {
        let Some(theirs) = samples.get(to) else { continue };
        for (from, mine) in &samples {
            for (from, to) in pairs(mine, theirs, from == *to, most.is_none()) {
                planner.between(from, to, tried);
            }
        }
        for to in theirs {
            planner.host_dials(*to, tried);
        }
    }
    let host = planner.host_ports();
    for from in samples.values().flatten() {
        planner.dials_host(*from, &host);
        planner.dials_world(*from);
    }
    planner.plan.probes.sort();
    planner.plan.probes.dedup();
    planner.plan.unjoined.sort();
    planner.plan.unjoined.dedup();
    planner.plan
}

fn not_tried(scene: &Scene) -> NotTried {
    let edges = || scene.rights.policy.edges.iter();
    let is_outside = |peer: &Peer| matches!(peer, Peer::World | Peer::External(_));
    let other = |ports: &Ports| {
        matches!(
            ports,
            Ports::Any | Ports::Icmp(_) | Ports::Transport(Transport::Sctp, _)
        )
    };
    NotTried {
        edges_from_outside: edges().filter(|edge| is_outside(&edge.from)).count(),
        edges_to_outside: edges().filter(|edge| is_outside(&edge.to)).count(),
        edges_with_other_protocols: edges().filter(|edge| edge.ports.iter().any(other)).count(),
    }
}

/// Each of the one with one of the other, so that everyone has a turn; or each with each. Nobody with itself.
fn pairs(mine: &[usize], theirs: &[usize], same: bool, each: bool) -> Vec<(usize, usize)> {
    let all = mine
        .iter()
        .flat_map(|from| theirs.iter().map(move |to| (*from, *to)));
    let all = all.filter(|(from, to)| from != to);
    if each {
        return all.collect();
    }
    let shift = usize::from(same);
    let turns = 0..mine.len().max(theirs.len());
    let turn = |turn: usize| {
        let from = mine.iter().cycle().nth(turn)?;
        let to = theirs.iter().cycle().nth(turn + shift)?;
        Some((*from, *to))
    };
    turns.filter_map(turn).filter(|(from, to)| from != to).collect()
}

struct Planner<'a> {
    scene: &'a Scene,
    plan: Plan,
}

impl<'a> Planner<'a> {
    /// The ports of a group of containers.
    fn ports(&mut self, group: &Group) -> Tried {
        let members = self.scene.subjects.iter().enumerate();
        let members: Vec<&Subject> = members
            .filter(|(index, _)| self.scene.group(Spot::Container(*index)) == *group)
            .map(|(_, subject)| subject)
            .collect();
        let served: BTreeSet<(Transport, u16)> =
            members.iter().flat_map(|it| it.served.iter().copied()).collect();
        let services: BTreeSet<&ServiceId> = members
            .iter()
            .flat_map(|it| it.standing.services().into_iter().flatten())
            .collect();
        let is_target = |peer: &Peer| matches!(peer, Peer::Service(id) if services.contains(id));
        let found = tried(&self.scene.rights.policy, is_target, &served);
        if found.cut > 0 {
            self.plan.cut.insert(group.clone(), found.cut);
        }
        found
    }

    fn host_ports(&mut self) -> Tried {
        // What is published is a container's.
        let published: BTreeSet<(Transport, u16)> = self
            .scene
            .subjects
            .iter()
            .flat_map(|it| it.container.published.iter())
            .map(|it| (it.transport, it.host_port))
            .collect();
        let own = self.scene.host_served.difference(&published);
        let served: BTreeSet<(Transport, u16)> = own.copied().take(MOST_OF_HOST).collect();
        tried(
            &self.scene.rights.policy,
            |peer| matches!(peer, Peer::Host),
            &served,
        )
    }

    fn between(&mut self, from: usize, to: usize, tried: &Tried) {
        let scene = self.scene;
        let (one, other) = (Spot::Container(from), Spot::Container(to));
        let (Some(mine), Some(theirs)) = (scene.subject(one), scene.subject(other)) else {
            return;
        };
        let on: BTreeSet<(&NetworkId, Family)> = scene
            .attached(mine)
            .map(|(id, _, address)| (id, Family::of(address)))
            .collect();
        for &(transport, port) in &tried.ports {
            let mut open = false;
            let mut ways = false;
            for (id, network, address) in scene.attached(theirs) {
                let family = Family::of(address);
                let Some(declared) = scene.declared(one, other, transport, port, family) else {
                    continue;
                };
                open |= declared == Declared::Open;
                if !on.contains(&(id, family)) || declared.passes() && !scene.joins(network, mine, theirs) {
                    continue;
                }
                ways = true;
                self.add(
                    (one, other),
                    (transport, port),
                    (address, port),
                    Way::Network(id.clone()),
                    declared,
                );
            }
            if open && !ways {
                self.plan.unjoined.push(Unjoined {
                    from: one,
                    to: other,
                    transport,
                    port,
                });
            }
        }
        self.routed(one, other, &on, tried);
        self.published(one, other);
    }

    /// To a network that only the target is on. The host must be on it, or the packets would leave by its default route.
    fn routed(&mut self, one: Spot, other: Spot, on: &BTreeSet<(&NetworkId, Family)>, tried: &Tried) {
        let scene = self.scene;
        let (Some(mine), Some(theirs), Some(port)) = (scene.subject(one), scene.subject(other), tried.likely)
        else {
            return;
        };
        for family in Family::ALL {
            let leads_out = scene
                .attached(mine)
                .any(|(_, network, address)| Family::of(address) == family && !network.internal);
            let apart = scene.attached(theirs).find(|(id, network, address)| {
                Family::of(*address) == family
                    && !on.contains(&(*id, family))
                    && scene.gateway(network, family).is_some()
            });
            let declared = scene.declared(one, other, Transport::Tcp, port, family);
            if let (true, Some((_, _, address)), Some(Declared::Closed)) = (leads_out, apart, declared) {
                self.add(
                    (one, other),
                    (Transport::Tcp, port),
                    (address, port),
                    Way::Routed,
                    Declared::Closed,
                );
            }
        }
    }

    /// Through the host's address to what is published for the target.
    fn published(&mut self, one: Spot, other: Spot) {
        let scene = self.scene;
        let (Some(mine), Some(theirs)) = (scene.subject(one), scene.subject(other)) else {
            return;
        };
        let gateway = scene
            .attached(mine)
            .filter(|(_, network, address)| address.is_ipv4() && !network.internal)
            .find_map(|(_, network, _)| scene.gateway(network, Family::V4));
        let Some(gateway) = gateway else { return };
        for published in &theirs.container.published {
            let everywhere = published.address == IpAddr::from([0, 0, 0, 0]);
            if published.transport != Transport::Tcp || !everywhere && published.address != gateway {
                continue;
            }
            let port = published.container_port;
            if let Some(declared) = scene.declared(one, other, Transport::Tcp, port, Family::V4) {
                let dialled = (gateway, published.host_port);
                self.add(
                    (one, other),
                    (Transport::Tcp, port),
                    dialled,
                    Way::Published,
                    declared,
                );
            }
        }
    }

    fn host_dials(&mut self, to: usize, tried: &Tried) {
        let (scene, spot) = (self.scene, Spot::Container(to));
        let Some(subject) = scene.subject(spot) else {
            return;
        };
        for (_, network, address) in scene.attached(subject) {
            let family = Family::of(address);
            if scene.gateway(network, family).is_none() {
                continue;
            }
            for &(transport, port) in &tried.ports {
                if let Some(declared) = scene.declared(Spot::Host, spot, transport, port, family) {
                    self.add(
                        (Spot::Host, spot),
                        (transport, port),
                        (address, port),
                        Way::Host,
                        declared,
                    );
                }
            }
        }
    }

    fn dials_host(&mut self, from: usize, tried: &Tried) {
        let (scene, spot) = (self.scene, Spot::Container(from));
        let Some(subject) = scene.subject(spot) else {
            return;
        };
        for (_, network, address) in scene.attached(subject) {
            let family = Family::of(address);
            let Some(gateway) = scene.gateway(network, family) else {
                continue;
            };
            for &(transport, port) in &tried.ports {
                if let Some(declared) = scene.declared(spot, Spot::Host, transport, port, family) {
                    self.add(
                        (spot, Spot::Host),
                        (transport, port),
                        (gateway, port),
                        Way::Host,
                        declared,
                    );
                }
            }
        }
    }

    fn dials_world(&mut self, from: usize) {
        let (scene, spot) = (self.scene, Spot::Container(from));
        let managed = scene
            .subject(spot)
            .is_some_and(|it| it.standing != Standing::Unmanaged);
        for address in scene.world.iter().filter(|_| managed) {
            let (to, port) = (Spot::World(address.ip()), address.port());
            let family = Family::of(address.ip());
            if let Some(declared) = scene.declared(spot, to, Transport::Tcp, port, family) {
                let dialled = (address.ip(), port);
                self.add((spot, to), (Transport::Tcp, port), dialled, Way::World, declared);
            }
        }
    }

    fn add(
        &mut self,
        (from, to): (Spot, Spot),
        (transport, port): (Transport, u16),
        dialled: (IpAddr, u16),
        way: Way,
        declared: Declared,
    ) {
        self.plan.probes.push(Probe {
            from,
            to,
            transport,
            port,
            address: dialled.into(),
            way,
            declared,
        });
    }
}
