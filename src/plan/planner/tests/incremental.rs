//! What the planner keeps up event by event is what it would derive from everything at once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::inventory::{MANAGED_LABEL, Power, SERVICE_LABEL};
use crate::model::ServiceNetworks;

const CONTAINERS: usize = 5;
/// The last two carry our labels.
const NETWORKS: usize = 4;
const BRIDGES: [&str; 5] = ["br-000000000000", "mine0", "cfd-1", "docker0", "virbr0"];
const POLICIES: [&str; 6] = [
    POLICY,
    "
cofferdam: 1
segment: shop
services:
  client: { select: { labels: { service: client } } }
  server: { select: { labels: { service: server } }, mode: audit }
  either: { select: [{ labels: { service: client } }, { labels: { service: other } }] }
allow:
  - { from: client, to: server, ports: [80, 81] }
  - { from: either, to: client, ports: [80] }
  - { from: world, to: server, ports: [80] }
  - { from: host, to: server, ports: [80] }
",
    "
cofferdam: 1
segment: shop
services:
  server: { select: { labels: { service: server } } }
  other: { select: { labels: { service: other } }, mode: audit }
",
    // The services of the first, in other places and with other edges.
    "
cofferdam: 1
segment: shop
allow:
  - { from: client, to: server, ports: [81] }
  - { from: [client, server], to: other, ports: [80] }
  - { from: world, to: client, ports: [80] }
services:
  client: { select: { labels: { service: client } } }
  other: { select: { labels: { service: other } } }
  server: { select: { labels: { service: server } } }
",
    "
cofferdam: 1
segment: shop
mode: audit
services:
  client: { select: { labels: { service: client } } }
  other: { select: { labels: { service: other } } }
  server: { select: { labels: { service: server } }, mode: enforce }
allow:
  - { from: server, to: client, ports: [80] }
  - { from: host, to: server, ports: [80] }
  - { from: other, to: host, ports: [80] }
",
    // Those of the second.
    "
cofferdam: 1
segment: shop
services:
  client: { select: { labels: { service: client } } }
  server: { select: { labels: { service: server } } }
  either: { select: [{ labels: { service: client } }, { labels: { service: other } }] }
allow:
  - { from: client, to: server, ports: [80] }
  - { from: server, to: either, ports: [80, 81] }
  - { from: either, to: world, ports: [80] }
",
];

/// Choices, from one number.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        let sides = u64::try_from(sides).unwrap();
        let rolled = self.0 % sides;
        self.0 /= sides;
        usize::try_from(rolled).unwrap()
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == sides - 1
    }

    fn small(&mut self, sides: usize) -> u8 {
        u8::try_from(self.roll(sides)).unwrap()
    }

    fn container(&mut self) -> ContainerId {
        id(&self.roll(CONTAINERS).to_string())
    }

    fn network(&mut self) -> NetworkId {
        NetworkId(self.roll(NETWORKS).to_string().into())
    }

    fn mac(&mut self) -> Mac {
        Mac([2, 0x42, 172, 18, 0, self.small(4)])
    }

    fn endpoint(&mut self) -> Endpoint {
        let live = !self.one_in(3);
        Endpoint {
            mac: live.then(|| self.mac()),
            ipv4: (!self.one_in(4)).then(|| [172, 18, 0, self.small(4)].into()),
            ipv6: self.one_in(4).then(|| "fd00::2".parse().unwrap()),
        }
    }

    fn read_container(&mut self) -> Container {
        let id = self.container();
        let attached = (0..self.roll(3))
            .map(|_| (self.network(), self.endpoint()))
            .collect();
        let service = ["client", "server", "other", "nobody"][self.roll(4)];
        let port = Published {
            address: [[0, 0, 0, 0], [127, 0, 0, 1]][self.roll(2)].into(),
            transport: Transport::Tcp,
            host_port: 8080 + u16::from(self.small(2)),
            container_port: 80 + u16::from(self.small(2)),
        };
        let powers = [None, Some([].into()), Some([Power::Privileged].into())];
        Container {
            name: id.0.to_string(),
            id,
            image: "".into(),
            labels: [("service".into(), service.into())].into_iter().collect(),
            lifecycle: [Lifecycle::Running, Lifecycle::Stopped][self.roll(2)],
            endpoints: attached,
            published: self.one_in(3).then_some(port).into_iter().collect(),
            facts: Facts {
                unreadable: self.one_in(10),
                powers: powers[self.roll(3)].clone(),
            },
            network_mode: match self.roll(6) {
                0 => NetworkMode::Shared(self.container()),
                1 => NetworkMode::Host,
                _ => NetworkMode::Own,
            },
        }
    }

    fn read_network(&mut self) -> Network {
        let number = self.small(NETWORKS);
        let service = ["client", "server", "/"][self.roll(3)];
        let is_ours = usize::from(number) >= NETWORKS - 2;
        let labels = [
            (MANAGED_LABEL, "true".to_owned()),
            (SERVICE_LABEL, format!("shop/{service}")),
        ];
        let labels = labels.map(|(label, value)| (label.to_owned(), value));
        Network {
            id: NetworkId(number.to_string().into()),
            name: format!("net{number}"),
            kind: match self.roll(8) {
                0 => NetworkKind::Other("macvlan".to_owned()),
                _ => NetworkKind::Bridge(BRIDGES[usize::from(number)].parse().unwrap()),
            },
            subnets: vec![
                format!("10.213.{number}.0/{}", 24 + self.roll(8))
                    .parse()
                    .unwrap(),
            ],
            internal: false,
            labels: labels.into_iter().filter(|_| is_ours).collect(),
        }
    }

    fn bridge(&mut self) -> (u32, IfName) {
        (
            1 + u32::from(self.small(6)),
            BRIDGES[self.roll(BRIDGES.len())].parse().unwrap(),
        )
    }

    fn port(&mut self) -> Port {
        let index = 10 + u32::from(self.small(6));
        let peer = Peer {
            namespace: i32::from(self.small(4)),
            mac: self.mac(),
        };
        Port {
            index,
            name: format!("veth{index}").parse().unwrap(),
            bridge: 1 + u32::from(self.small(6)),
            peer: (!self.one_in(5)).then_some(peer),
        }
    }

    fn rights(&mut self) -> Rights {
        Rights {
            unmanaged: [Unmanaged::Allow, Unmanaged::Deny][self.roll(2)],
            unenforceable: [
                OnUnenforceable::Report,
                OnUnenforceable::Isolate,
                OnUnenforceable::Stop,
            ][self.roll(3)],
            ..rights(POLICIES[self.roll(POLICIES.len())])
        }
    }
}

/// A planner, and what was told of it.
struct Story {
    planner: Planner,
    /// A moment at which a reading may have begun.
    earlier: Moment,
    ending: u64,
    residents: BTreeMap<ContainerId, Resident>,
    subnets: Vec<IpNet>,
    /// Steps on bridges and ports that are under way.
    changing: Vec<LinkStep>,
}

impl Story {
    fn new() -> Self {
        let planner = planner("10.213.0.0/22");
        Self {
            earlier: planner.moment(),
            planner,
            ending: 0,
            residents: BTreeMap::new(),
            subnets: Vec::new(),
            changing: Vec::new(),
        }
    }

    fn event(&mut self, kind: usize, dice: &mut Dice) {
        let planner = &mut self.planner;
        let began = match dice.one_in(3) {
            true => self.earlier,
            false => planner.moment(),
        };
        match kind {
            0..=3 => planner.upsert_container(dice.read_container(), began),
            4 => planner.set_lifecycle(&dice.container(), Lifecycle::Stopped),
            5 => planner.remove_container(&dice.container()),
            6..=7 => planner.set_endpoint(&dice.container(), &dice.network(), dice.endpoint(), began),
            8 => planner.remove_endpoint(&dice.container(), &dice.network()),
            9..=11 => planner.upsert_network(dice.read_network()),
            12 => planner.remove_network(&dice.network()),
            13..=14 => {
                let (index, name) = dice.bridge();
                planner.upsert_bridge(index, name);
            }
            15 => planner.remove_bridge(dice.bridge().0),
            16..=19 => planner.upsert_port(dice.port()),
            20 => planner.remove_port(dice.port().index),
            21 => {
                let newer = Changes {
                    containers: (0..dice.roll(3)).map(|_| dice.container()).collect(),
                    networks: (0..dice.roll(2)).map(|_| dice.network()).collect(),
                };
                planner.reset_except(listing(&planner.inventory, dice), began, newer);
            }
            22 => {
                let bridges = planner.links.bridges().map(|(index, name)| (index, name.clone()));
                let ports = planner.links.ports().map(|it| (it.index, it.clone()));
                let (mut bridges, mut ports): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    (bridges.collect(), ports.collect());
                bridges.extend([dice.bridge()]);
                ports.remove(&dice.port().index);
                planner.reset_links(bridges, ports);
            }
            23 => drop(planner.set_rights(dice.rights())),
            24 => drop(planner.observe_calls(dice.bridge().0, dice.one_in(2))),
            25 => drop(planner.observe_isolated(dice.port().index, dice.one_in(2))),
            26 => planner.reset_link_settings(BTreeSet::from([dice.bridge().0]), BTreeMap::new()),
            27 => self.earlier = planner.moment(),
            28 => {
                if let Some(ending) = planner.start_ending(BTreeSet::new) {
                    self.ending = ending.number;
                }
            }
            29 => match dice.one_in(3) {
                true => planner.flows_not_ended(self.ending),
                false => planner.flows_ended(self.ending),
            },
            30..=31 => self.engine_answers(dice),
            32 => {
                let over = self.changing.pop().into_iter();
                over.for_each(|step| match dice.roll(3) {
                    0 => planner.link_failed(step),
                    1 => planner.link_gone(step),
                    _ => planner.link_applied(step),
                });
            }
            _ => self.pass(dice),
        }
    }

    /// A call of the engine that is under way is over.
    fn engine_answers(&mut self, dice: &mut Dice) {
        let busy: Vec<NetworkStep> = self.planner.busy().cloned().collect();
        let Some(step) = busy.get(dice.roll(busy.len().max(1))) else {
            return;
        };
        self.planner.network_step_done(step);
        let now = self.planner.moment();
        match step {
            _ if dice.one_in(3) => {}
            NetworkStep::Attach {
                network,
                container,
                ipv4,
                ..
            } => {
                let endpoint = Endpoint {
                    ipv4: Some(*ipv4),
                    ..dice.endpoint()
                };
                self.planner.set_endpoint(container, network, endpoint, now);
            }
            NetworkStep::Detach { network, container } => self.planner.remove_endpoint(container, network),
            NetworkStep::Remove { network, .. } => self.planner.remove_network(network),
            NetworkStep::Create {
                service,
                name,
                bridge,
                ipv4,
                ..
            } => self.planner.upsert_network(Network {
                id: NetworkId(service.to_string().into()),
                name: name.clone(),
                kind: NetworkKind::Bridge(bridge.clone()),
                subnets: vec![(*ipv4).into()],
                internal: true,
                labels: BTreeMap::from([
                    (MANAGED_LABEL.to_owned(), "true".to_owned()),
                    (SERVICE_LABEL.to_owned(), service.to_string()),
                ]),
            }),
            NetworkStep::Stop { container, .. } => self.planner.set_lifecycle(container, Lifecycle::Stopped),
            NetworkStep::Forget { .. } => {}
        }
    }

    /// Plans, and carries out the whole of it, a part, or nothing.
    fn pass(&mut self, dice: &mut Dice) {
        let plan = self.planner.plan();
        match dice.roll(6) {
            0 => {}
            1 => self.planner.deletions_applied(&plan.ended),
            2 => self.planner.kernel_lost(),
            _ => {
                self.planner.deletions_applied(&plan.ended);
                self.planner.kernel_applied();
            }
        }
        for step in plan.links {
            match dice.roll(4) {
                0 => {}
                1 => {
                    self.planner.link_started(step);
                    self.changing.push(step);
                }
                _ => self.planner.link_applied(step),
            }
        }
        for step in &plan.networks {
            if !dice.one_in(4) {
                self.planner.network_step_started(step);
            }
        }
        let moves = self.planner.moves();
        if moves.everybody {
            self.residents.clear();
        }
        for (id, resident) in moves.containers {
            match resident {
                Some(resident) => drop(self.residents.insert(id, resident)),
                None => drop(self.residents.remove(&id)),
            }
        }
        self.subnets = moves.subnets.unwrap_or(std::mem::take(&mut self.subnets));
        let mut anew = anew(&self.planner);
        anew.plan();
        let all = anew.moves();
        let all_residents = all.containers.into_iter().filter_map(|(id, it)| Some((id, it?)));
        assert_eq!(self.residents, all_residents.collect());
        assert_eq!(Some(&self.subnets), all.subnets.as_ref());
    }

    /// The next plan is the one that follows from everything, and so is all that was kept up for it.
    fn check(&self) {
        let (mut kept, mut anew) = (self.planner.clone(), anew(&self.planner));
        let plan = kept.plan();
        assert_eq!(plan, anew.plan());
        assert_eq!(kept.standings, anew.standings);
        assert_eq!(kept.findings, anew.findings);
        assert_eq!(kept.guarded, anew.guarded);
        assert_eq!(kept.occupants, anew.occupants);
        assert_eq!(kept.unconfirmed, anew.unconfirmed);
        assert_eq!(kept.structure, anew.structure);
        assert_eq!(kept.held, anew.held);
        assert_eq!(kept.service_networks, anew.service_networks);
        assert_eq!(kept.published, anew.published);
        assert_eq!(kept.ledger, anew.ledger);
        assert_eq!(kept.inventory.networks(), anew.inventory.networks());
        let again = kept.plan();
        assert_eq!(again.kernel, plan.kernel);
        assert_eq!(again.links, plan.links);
        let subjects =
            |plan: &Plan| -> Vec<Subject> { plan.networks.iter().map(NetworkStep::subject).collect() };
        assert_eq!(subjects(&again), subjects(&plan));
    }
}

/// The engine lists what is known, but for one container that it shows as something else or not at all.
fn listing(inventory: &Inventory, dice: &mut Dice) -> Listing {
    let mut containers = inventory.containers().clone();
    let other = dice.read_container();
    match dice.one_in(2) {
        true => drop(containers.remove(&other.id)),
        false => drop(containers.insert(other.id.clone(), other)),
    }
    let mut networks = inventory.networks().clone();
    if dice.one_in(3) {
        networks.remove(&dice.network());
    }
    let wish = (
        dice.container(),
        BTreeSet::from(["cofferdam-shop-server".to_owned()]),
    );
    Listing {
        containers: containers.into_values().collect(),
        networks: networks.into_values().collect(),
        stale: BTreeMap::from([wish]),
    }
}

/// A planner that remembers what this one does of the past, and derives everything else from what both know.
fn anew(planner: &Planner) -> Planner {
    let mut anew = planner.clone();
    anew.inventory = Inventory::new();
    anew.inventory.reset(Listing {
        containers: planner.inventory.containers().values().cloned().collect(),
        networks: planner.inventory.networks().values().cloned().collect(),
        ..Listing::default()
    });
    anew.findings = BTreeMap::new();
    anew.unconfirmed = BTreeMap::new();
    anew.service_networks = ServiceNetworks::new(&planner.rights.policy);
    anew.published = HostPorts::default();
    anew.unsettled = Unsettled::default();
    anew.unset = planner.homes.ports().collect();
    anew.dirty = Dirty {
        rights: planner.dirty.rights,
        edges: planner.dirty.edges,
        everything: true,
        ..Dirty::default()
    };
    anew
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_kept_up_is_what_follows_from_everything(
        events in prop::collection::vec((0..40_usize, any::<u64>()), 1..40),
    ) {
        let mut story = Story::new();
        for (kind, number) in events {
            story.event(kind, &mut Dice(number));
            story.check();
        }
    }
}
