//! An address that changes hands: closed until the connections of its last owner are gone, and open from then on.

mod incremental;

use super::*;
use crate::inventory::links::Peer;
use crate::inventory::{Facts, NetworkMode, Published};
use crate::model::Unmanaged;
use crate::net::{Mac, Transport};
use crate::policy::{self, SourceFile};

const BRIDGE: u32 = 2;
const POLICY: &str = "
cofferdam: 1
segment: shop
services:
  client: { select: { labels: { service: client } } }
  other: { select: { labels: { service: other } } }
  server: { select: { labels: { service: server } } }
allow:
  - { from: client, to: server, ports: [80] }
";

fn network() -> NetworkId {
    NetworkId("net".into())
}

fn id(name: &str) -> ContainerId {
    ContainerId(name.into())
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([172, 18, 0, number])
}

fn only(number: u8) -> BTreeSet<IpAddr> {
    BTreeSet::from([address(number)])
}

fn rights(policy: &str) -> Rights {
    let file = SourceFile {
        path: "shop.yaml".to_owned(),
        bytes: policy.as_bytes().to_vec(),
    };
    Rights {
        policy: policy::load(&[file]).unwrap().policy,
        unmanaged: Unmanaged::Allow,
        ..Rights::default()
    }
}

/// A planner that knows nothing yet but [`POLICY`].
fn planner(pool: &str) -> Planner {
    let pools = Pools {
        ipv4: pool.parse().unwrap(),
        ipv4_prefix: 24,
        ipv6: None,
    };
    let options = Options {
        stamp: 1 << 30,
        nflog_group: 64,
    };
    Planner::new(options, pools, rights(POLICY))
}

/// One network, and a planner whose plans are carried out as the daemon does it.
struct Scene {
    planner: Planner,
    ports: BTreeMap<ContainerId, u32>,
}

impl Scene {
    fn new() -> Self {
        let mut planner = planner("10.213.0.0/16");
        let bridge: IfName = "br-000000000000".parse().unwrap();
        planner.upsert_bridge(BRIDGE, bridge.clone());
        let network = Network {
            id: network(),
            name: "net".to_owned(),
            kind: NetworkKind::Bridge(bridge),
            subnets: vec!["172.18.0.0/16".parse().unwrap()],
            internal: false,
            labels: BTreeMap::new(),
        };
        let listing = Listing {
            networks: vec![network],
            ..Listing::default()
        };
        planner.reset(listing, planner.moment());
        let ports = BTreeMap::new();
        let mut scene = Self { planner, ports };
        scene.start("server", "server", 2);
        scene.start("first", "client", 3);
        assert!(matches!(scene.carry_out().kernel, KernelStep::Replace(_)));
        let ending = scene.ending().unwrap();
        assert!(ending.sweep.is_some() && ending.released.is_empty());
        scene.planner.flows_ended(ending.number);
        assert!(!scene.planner.is_ending());
        scene
    }

    /// A container at an address, behind a new port. The engine gives the same address the same MAC.
    fn start(&mut self, name: &str, service: &str, number: u8) {
        let port = 100 + u32::try_from(self.ports.len()).unwrap();
        self.ports.insert(id(name), port);
        let mac = Mac([2, 0x42, 172, 18, 0, number]);
        self.planner.upsert_port(Port {
            index: port,
            name: format!("veth{port}").parse().unwrap(),
            bridge: BRIDGE,
            peer: Some(Peer {
                namespace: i32::try_from(port).unwrap(),
                mac,
            }),
        });
        let endpoint = Endpoint {
            mac: Some(mac),
            ipv4: Some([172, 18, 0, number].into()),
            ipv6: None,
        };
        let container = Container {
            id: id(name),
            name: name.to_owned(),
            image: "".into(),
            labels: [("service".into(), service.into())].into_iter().collect(),
            lifecycle: Lifecycle::Running,
            network_mode: NetworkMode::Own,
            endpoints: [(network(), endpoint)].into_iter().collect(),
            published: BTreeSet::new(),
            facts: Facts::default(),
        };
        let now = self.planner.moment();
        self.planner.upsert_container(container, now);
    }

    /// As the planner knows it.
    fn container(&self, name: &str) -> Container {
        self.planner.inventory().container(&id(name)).unwrap().clone()
    }

    fn stop(&mut self, name: &str) {
        self.planner.remove_port(self.ports[&id(name)]);
        self.planner.remove_container(&id(name));
    }

    fn carry_out(&mut self) -> Plan {
        let plan = self.planner.plan();
        self.planner.deletions_applied(&plan.ended);
        self.planner.kernel_applied();
        plan
    }

    fn ending(&mut self) -> Option<Ending> {
        self.planner.start_ending(BTreeSet::new)
    }

    /// Whether the kernel lets the address dial port 8080 of the host.
    fn dials(&self, number: u8) -> bool {
        let applied = self.planner.ledger().applied();
        let mut elements = applied.iter().filter(|(set, _)| set.set.as_str() == "hairpin4");
        elements.any(|(_, keys)| keys.keys().any(|key| key.address() == Some(address(number))))
    }

    /// Whether the kernel binds the address to a port: without that nothing of it passes.
    fn is_open(&self, number: u8) -> bool {
        let applied = self.planner.ledger().applied();
        let mut keys = applied.values().flat_map(BTreeMap::keys);
        keys.any(|key| matches!(key, Key::Binding4(..)) && key.address() == Some(address(number)))
    }
}

fn elements(plan: &Plan) -> &[ElementChange] {
    match &plan.kernel {
        KernelStep::Elements(changes) => changes,
        other => panic!("not elements only: {other:?}"),
    }
}

fn is_deletion(change: &ElementChange) -> bool {
    change.action == ElementAction::Delete
}

#[test]
fn an_address_that_changes_hands_is_closed_until_its_connections_are_gone() {
    let mut scene = Scene::new();
    assert!(scene.is_open(3));
    scene.stop("first");
    scene.start("next", "client", 3);
    let plan = scene.planner.plan();
    assert_eq!(plan.released, only(3));
    assert!(plan.ended.is_empty(), "one transaction is enough");
    assert!(
        elements(&plan)
            .iter()
            .filter(|it| it.key.address() == Some(address(3)))
            .all(is_deletion),
        "{plan:?}"
    );
    // What is still in the kernel lets new connections in.
    assert_eq!(scene.ending(), None);
    scene.planner.kernel_applied();
    let ending = scene.ending().unwrap();
    assert_eq!(ending.released, only(3));
    assert!(scene.planner.is_ending());
    let meanwhile = scene.carry_out();
    assert_eq!(meanwhile.kernel, KernelStep::Nothing);
    assert!(meanwhile.released.is_empty() && !scene.is_open(3));
    assert_eq!(scene.ending(), None, "it is under way");

    scene.planner.flows_ended(ending.number);
    let plan = scene.carry_out();
    assert!(!elements(&plan).iter().any(is_deletion), "{plan:?}");
    assert!(scene.is_open(3));
    assert!(!scene.planner.is_ending());
    assert_eq!(scene.planner.plan().kernel, KernelStep::Nothing);
}

#[test]
fn an_address_that_two_containers_have_dials_no_published_port() {
    let mut scene = Scene::new();
    let mut server = scene.container("server");
    server.published.insert(Published {
        address: [0, 0, 0, 0].into(),
        transport: Transport::Tcp,
        host_port: 8080,
        container_port: 80,
    });
    let now = scene.planner.moment();
    scene.planner.upsert_container(server, now);
    scene.carry_out();
    assert!(scene.dials(3), "it may call the server");
    // The end of the first was missed; the second may not.
    scene.start("next", "other", 3);
    scene.carry_out();
    assert!(!scene.dials(3));
    scene.stop("next");
    scene.carry_out();
    let ending = scene.ending().unwrap();
    scene.planner.flows_ended(ending.number);
    scene.carry_out();
    assert!(scene.dials(3), "and the first may again");
}

#[test]
fn closing_is_never_held_up() {
    let mut scene = Scene::new();
    scene.stop("first");
    scene.carry_out();
    let ending = scene.ending().unwrap();
    scene.start("next", "client", 4);
    scene.stop("server");
    let plan = scene.carry_out();
    assert!(elements(&plan).iter().any(is_deletion));
    assert!(!scene.is_open(2) && !scene.is_open(3));
    assert!(scene.is_open(4), "another address opens at once");
    let next = scene.ending().unwrap();
    assert_eq!(next.released, only(2));
    scene.planner.flows_ended(next.number);
    assert!(
        !scene.planner.is_ending(),
        "what came before is done, too: {ending:?}"
    );
}

#[test]
fn an_address_that_is_released_again_meanwhile_needs_another_ending() {
    let mut scene = Scene::new();
    scene.stop("first");
    scene.start("second", "client", 3);
    scene.carry_out();
    let ending = scene.ending().unwrap();
    scene.stop("second");
    scene.start("third", "other", 3);
    let plan = scene.carry_out();
    assert_eq!(plan.released, only(3));
    let again = scene.ending().unwrap();
    assert_eq!(again.released, only(3));
    scene.planner.flows_ended(ending.number);
    scene.carry_out();
    assert!(!scene.is_open(3), "the last ending is not over");
    scene.planner.flows_ended(again.number);
    scene.carry_out();
    assert!(scene.is_open(3));
}

#[test]
fn rules_that_cannot_be_changed_do_not_hold_up_a_closing() {
    let mut scene = Scene::new();
    scene.stop("first");
    scene.planner.set_rights(rights(&POLICY.replace("[80]", "[81]")));
    let plan = scene.planner.plan();
    assert!(matches!(plan.kernel, KernelStep::Structure(_)));
    assert!(plan.sweep && !plan.ended.is_empty());
    assert!(
        plan.ended
            .iter()
            .all(|it| is_deletion(it) && it.key.address() == Some(address(3)))
    );
    // The deletions are committed, and then nft hangs.
    scene.planner.deletions_applied(&plan.ended);
    assert!(!scene.is_open(3));
    let ending = scene.ending().unwrap();
    assert_eq!((ending.released, ending.sweep), (only(3), None));
    scene.start("next", "client", 3);
    let again = scene.planner.plan();
    assert!(
        matches!(&again.kernel, KernelStep::Structure(steps) if !steps.iter().any(|step| {
            matches!(step, Step::Element(change) if change.key.address() == Some(address(3)))
        }))
    );
    scene.planner.flows_ended(ending.number);
    let plan = scene.carry_out();
    assert!(matches!(plan.kernel, KernelStep::Structure(_)));
    assert!(scene.is_open(3));
    let ending = scene.ending().unwrap();
    assert!(ending.released.is_empty() && ending.sweep.is_some());
}

#[test]
fn connections_that_could_not_be_ended_keep_their_address_closed() {
    let mut scene = Scene::new();
    scene.stop("first");
    scene.start("next", "client", 3);
    scene.planner.request_sweep();
    scene.carry_out();
    let ending = scene.ending().unwrap();
    scene.planner.flows_not_ended(ending.number);
    let plan = scene.carry_out();
    assert!(plan.released == only(3) && plan.sweep, "{plan:?}");
    assert!(!scene.is_open(3));
    let again = scene.ending().unwrap();
    assert_eq!((again.released, again.sweep), (ending.released, ending.sweep));
    scene.planner.flows_ended(again.number);
    scene.carry_out();
    assert!(scene.is_open(3));
}

#[test]
fn tables_that_are_replaced_lack_an_address_whose_connections_are_not_gone() {
    let mut scene = Scene::new();
    scene.stop("first");
    scene.start("next", "client", 3);
    scene.planner.kernel_lost();
    let plan = scene.planner.plan();
    assert!(
        matches!(&plan.kernel, KernelStep::Replace(steps) if !steps.iter().any(|step| {
            matches!(step, Step::Element(change) if change.key.address() == Some(address(3)))
        }))
    );
    assert_eq!(scene.ending(), None, "the kernel may hold anything");
    scene.planner.kernel_applied();
    assert!(!scene.is_open(3) && scene.is_open(2));
    let ending = scene.ending().unwrap();
    assert_eq!(ending.released, only(3));
    scene.planner.flows_ended(ending.number);
    scene.carry_out();
    assert!(scene.is_open(3));
}

#[test]
fn an_inspection_that_a_start_held_up_takes_nothing_back() {
    let mut scene = Scene::new();
    let before_the_start = scene.planner.moment();
    scene.start("second", "client", 4);
    scene.carry_out();
    assert!(scene.is_open(4));
    let inspected = scene.container("second");
    scene
        .planner
        .upsert_container(inspected.clone(), before_the_start);
    let plan = scene.carry_out();
    assert!(matches!(plan.kernel, KernelStep::Nothing), "{:?}", plan.kernel);
    // Nor does it bring an endpoint back that went meanwhile.
    let (container, now) = (id("second"), scene.planner.moment());
    let none = Endpoint::default();
    scene.planner.set_endpoint(&container, &network(), none, now);
    scene
        .planner
        .upsert_container(inspected.clone(), before_the_start);
    scene.carry_out();
    assert!(!scene.is_open(4));
    // One that began now does.
    scene.planner.upsert_container(inspected, now);
    if let Some(ending) = scene.ending() {
        scene.planner.flows_ended(ending.number);
    }
    scene.carry_out();
    assert!(scene.is_open(4));
}

#[test]
fn an_older_reading_of_an_unknown_container_does_not_pass_for_a_later_one() {
    let mut scene = Scene::new();
    let server = scene.container("server");
    let stranger = Container {
        id: id("stranger"),
        ..server.clone()
    };
    let (long_ago, of_server) = (scene.planner.moment(), server.endpoints[&network()].clone());
    // Another port, so that there is a later moment.
    scene.start("second", "client", 4);
    let moved = Endpoint {
        ipv4: Some([172, 18, 0, 9].into()),
        ..of_server.clone()
    };
    let now = scene.planner.moment();
    scene
        .planner
        .set_endpoint(&stranger.id, &network(), moved.clone(), now);
    scene.planner.upsert_container(stranger.clone(), long_ago);
    let seen = |scene: &Scene| {
        scene
            .planner
            .inventory()
            .endpoint(&id("stranger"), &network())
            .cloned()
    };
    assert_eq!(seen(&scene), Some(moved));
    // What is read now counts.
    scene.planner.upsert_container(stranger, now);
    assert_eq!(seen(&scene), Some(of_server));
}

#[test]
fn the_first_container_of_a_network_guards_it_though_an_event_came_before_it_was_known() {
    let known = Scene::new().planner;
    let server = known.inventory().container(&id("server")).unwrap().clone();
    let listing = |containers| Listing {
        containers,
        networks: known.inventory().networks().values().cloned().collect(),
        ..Listing::default()
    };
    let guards = |containers| {
        let mut planner = planner("10.213.0.0/16");
        let newer = Changes {
            containers: BTreeSet::from([id("server")]),
            ..Changes::default()
        };
        planner.reset_except(listing(containers), planner.moment(), newer);
        let _plan = planner.plan();
        planner.guarded.contains(&network())
    };
    assert!(guards(vec![server]));
    assert!(!guards(Vec::new()));
}

#[test]
fn a_listing_takes_nothing_back_that_was_read_since() {
    let mut scene = Scene::new();
    let began = scene.planner.moment();
    let listing = Listing {
        containers: scene.planner.inventory().containers().values().cloned().collect(),
        networks: scene.planner.inventory().networks().values().cloned().collect(),
        ..Listing::default()
    };
    scene.start("second", "client", 4);
    scene.carry_out();
    assert!(scene.is_open(4));
    scene.planner.reset(listing.clone(), began);
    scene.carry_out();
    assert!(scene.is_open(3) && scene.is_open(4));
    // What began later does say that it is gone.
    scene.planner.reset(listing, scene.planner.moment());
    scene.carry_out();
    assert!(scene.is_open(3) && !scene.is_open(4));
}

#[test]
fn a_port_without_a_known_endpoint_has_its_network_read() {
    let mut scene = Scene::new();
    let known = scene.ports[&id("first")];
    assert_eq!(scene.planner.unexplained(known), []);
    let stranger = |mac| Port {
        index: 200,
        name: "veth200".parse().unwrap(),
        bridge: BRIDGE,
        peer: Some(Peer { namespace: 200, mac }),
    };
    scene.planner.upsert_port(stranger(Mac([2, 0x42, 172, 18, 0, 9])));
    assert_eq!(scene.planner.unexplained(200), [network()]);
    // An address that somebody has is no news, whoever claims it.
    scene.planner.upsert_port(stranger(Mac([2, 0x42, 172, 18, 0, 3])));
    assert_eq!(scene.planner.unexplained(200), []);
    // On a bridge without a network of Docker's there is nothing to read.
    scene.planner.upsert_port(Port {
        bridge: BRIDGE + 1,
        ..stranger(Mac([2, 0x42, 172, 18, 0, 9]))
    });
    assert_eq!(scene.planner.unexplained(200), []);
}

#[test]
fn a_bridge_that_is_being_set_is_left_until_that_is_over() {
    let mut scene = Scene::new();
    let step = LinkStep::NetfilterCalls { bridge: BRIDGE };
    assert_eq!(scene.carry_out().links, [step]);
    scene.planner.link_started(step);
    assert_eq!(scene.carry_out().links, []);
    scene.planner.link_failed(step);
    assert_eq!(scene.carry_out().links, [step]);
    scene.planner.link_started(step);
    scene.planner.link_applied(step);
    assert_eq!(scene.carry_out().links, []);
    assert!(!scene.planner.observe_calls(BRIDGE, true), "that was ours");
    assert!(scene.planner.observe_calls(BRIDGE, false));
    assert_eq!(scene.carry_out().links, [step]);
}

#[test]
fn what_others_set_while_a_bridge_is_being_set_is_not_forgotten_when_that_is_over() {
    let mut scene = Scene::new();
    let step = LinkStep::NetfilterCalls { bridge: BRIDGE };
    scene.planner.link_started(step);
    assert!(!scene.planner.observe_calls(BRIDGE, true), "that was ours");
    assert!(scene.planner.observe_calls(BRIDGE, false));
    scene.planner.link_applied(step);
    assert_eq!(scene.carry_out().links, [step]);
    // What the kernel told was lost, and everything was listed.
    scene.planner.link_started(step);
    scene
        .planner
        .reset_link_settings(BTreeSet::new(), BTreeMap::new());
    scene.planner.link_applied(step);
    assert_eq!(scene.carry_out().links, [step]);
}

#[test]
fn what_others_set_on_a_bridge_without_guarded_network_is_theirs() {
    let mut scene = Scene::new();
    let theirs = BRIDGE + 1;
    scene.planner.upsert_bridge(theirs, "br0".parse().unwrap());
    assert!(!scene.planner.observe_calls(theirs, true));
    assert!(!scene.planner.observe_calls(theirs, false));
    assert!(!scene.planner.observe_calls(BRIDGE, true));
    assert!(scene.planner.observe_calls(BRIDGE, false));
}

#[test]
fn a_port_is_put_back_as_often_as_it_is_taken_away() {
    let mut scene = Scene::new();
    let port = scene.ports[&id("server")];
    let at_home = scene.planner.links.port(port).unwrap().clone();
    let step = LinkStep::Return { port, bridge: BRIDGE };
    for _ in 0..2 {
        scene.planner.remove_port(port);
        assert!(scene.carry_out().links.contains(&step));
        scene.planner.link_started(step);
        // The kernel tells of it before it is over.
        scene.planner.upsert_port(at_home.clone());
        scene.planner.link_applied(step);
        assert!(!scene.carry_out().links.contains(&step));
    }
}
