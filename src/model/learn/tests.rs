mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use super::against::missing;
use super::document::{Document, documents};
use super::*;
use crate::inventory::{Endpoint, Facts, Labels, Lifecycle, NetworkId, NetworkKind, NetworkMode, Published};
use crate::model::{Standing, standing};
use crate::net::{IcmpType, Mac, PortRange};
use crate::policy::{Loaded, SourceFile, load};

fn id(number: usize) -> ContainerId {
    ContainerId(format!("{number:064x}").into())
}

fn address(number: usize) -> IpAddr {
    IpAddr::from([172, 18, 0, u8::try_from(number).unwrap() + 10])
}

const GATEWAY: &str = "172.18.0.1";
const OUTSIDE: [&str; 2] = ["203.0.113.7", "2001:db8::7"];

fn network() -> Network {
    Network {
        id: NetworkId("f".repeat(64).into()),
        name: "shop_default".to_owned(),
        kind: NetworkKind::Bridge("br-1".parse().unwrap()),
        subnets: vec!["172.18.0.0/16".parse().unwrap()],
        internal: false,
        labels: BTreeMap::new(),
    }
}

/// A running container: its name, and the Compose project and service, where it has them.
fn container(number: usize, name: &str, compose: Option<(&str, &str)>) -> Container {
    let mut labels = Labels::default();
    if let Some((project, service)) = compose {
        labels.insert(groups::PROJECT.into(), project.into());
        labels.insert("com.docker.compose.service".into(), service.into());
    }
    let endpoint = Endpoint {
        mac: Some(Mac([2, 0, 0, 0, 0, u8::try_from(number).unwrap()])),
        ipv4: match address(number) {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        },
        ipv6: None,
    };
    Container {
        id: id(number),
        name: name.to_owned(),
        image: "probe:1".into(),
        labels,
        lifecycle: Lifecycle::Running,
        network_mode: NetworkMode::Own,
        endpoints: [(network().id, endpoint)].into_iter().collect(),
        published: BTreeSet::new(),
        facts: Facts::default(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

/// A lesson in the making.
struct Class {
    lesson: Lesson,
    ground: Ground,
}

impl Class {
    fn new(containers: Vec<Container>) -> Self {
        let host = [GATEWAY, "198.51.100.1"].map(|it| it.parse().unwrap());
        Self {
            ground: Ground::new(&containers, &[network()], host),
            lesson: Lesson {
                containers: containers.into_iter().map(|it| (it.id.clone(), it)).collect(),
                networks: BTreeMap::from([(network().id, network())]),
                began: at(0),
                ended: at(300),
                ..Lesson::default()
            },
        }
    }

    fn see(&mut self, place: Place, contact: Contact, count: u64, second: i64) {
        let grounds = Grounds::still(&self.ground);
        self.lesson
            .observation
            .take(place, &contact, count, grounds, at(second));
    }

    fn open(&mut self, client: &str, server: &str, when: When) {
        let grounds = Grounds::still(&self.ground);
        let open = Open {
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
        };
        self.lesson.observation.take_open(open, when, grounds, at(0));
    }

    fn documents(&self, layout: &Layout) -> Vec<Document> {
        documents(&self.lesson, &Scope::default(), layout)
    }

    /// The flows, as `web-1 -> db-1:5432/tcp`.
    fn flows(&self) -> Vec<String> {
        let shown = |end| document::shown(&self.lesson, end);
        let flows = self.lesson.observation.settle().flows;
        flows
            .keys()
            .map(|flow| format!("{} -> {}:{}", shown(&flow.from), shown(&flow.to), flow.ports))
            .collect()
    }
}

fn loaded(documents: &[Document]) -> Loaded {
    let files: Vec<SourceFile> = documents
        .iter()
        .map(|document| SourceFile {
            path: format!("{}.yaml", document.segment),
            bytes: document.text.clone().into_bytes(),
        })
        .collect();
    load(&files).unwrap_or_else(|faults| panic!("{}", faults.render(&files, crate::policy::Colour::Plain)))
}

fn tcp(port: u16) -> Ports {
    Ports::Transport(Transport::Tcp, PortRange::single(port))
}

fn udp(port: u16) -> Ports {
    Ports::Transport(Transport::Udp, PortRange::single(port))
}

fn pair(from: usize, to: usize, ports: Ports) -> Contact {
    Contact::Pair {
        from: address(from),
        to: address(to),
        ports,
    }
}

fn shop() -> Vec<Container> {
    let mut containers = vec![
        container(0, "shop-web-1", Some(("shop", "web"))),
        container(1, "shop-api-1", Some(("shop", "api"))),
        container(2, "shop-api-2", Some(("shop", "api"))),
        container(3, "shop-db-1", Some(("shop", "db"))),
        container(4, "prom", Some(("ops", "prometheus"))),
        container(5, "worker-1", None),
        container(6, "worker-2", None),
        container(7, "shop-idle-1", Some(("shop", "idle"))),
    ];
    containers[0].published.insert(Published {
        address: "0.0.0.0".parse().unwrap(),
        transport: Transport::Tcp,
        host_port: 8080,
        container_port: 80,
    });
    containers
}

/// A three-tier application with its surroundings.
fn seen() -> Class {
    let mut class = Class::new(shop());
    let world: IpAddr = OUTSIDE[0].parse().unwrap();
    let host: IpAddr = GATEWAY.parse().unwrap();
    class.see(
        Place::Routed,
        Contact::In {
            to: address(0),
            ports: tcp(80),
        },
        14,
        10,
    );
    class.see(
        Place::Routed,
        Contact::Who {
            to: address(0),
            ports: tcp(80),
            from: world,
        },
        14,
        10,
    );
    for (from, count, second) in [(0, 3, 10), (0, 2, 250)] {
        class.see(Place::Bridge, pair(from, 1, tcp(8000)), count, second);
    }
    class.see(Place::Bridge, pair(0, 2, tcp(8000)), 1, 20);
    class.open("172.18.0.11:40000", "172.18.0.13:5432", When::Before);
    class.open("172.18.0.11:40000", "172.18.0.13:5432", When::Before);
    class.see(Place::Bridge, pair(4, 1, tcp(9100)), 1, 30);
    class.see(Place::Bridge, pair(1, 5, udp(53)), 7, 30);
    class.see(
        Place::Bridge,
        pair(5, 6, Ports::Icmp(Some(IcmpType::EchoRequest))),
        2,
        30,
    );
    // By the host's published port, carried by the engine's proxy.
    class.see(
        Place::Bridge,
        Contact::Pair {
            from: address(4),
            to: host,
            ports: tcp(8080),
        },
        2,
        40,
    );
    class.see(
        Place::Routed,
        Contact::Pair {
            from: host,
            to: address(0),
            ports: tcp(80),
        },
        2,
        40,
    );
    class.see(
        Place::Bridge,
        Contact::Out {
            from: address(1),
            ports: tcp(443),
        },
        5,
        50,
    );
    class.see(
        Place::Bridge,
        Contact::Far {
            from: address(1),
            ports: tcp(443),
            to: world,
        },
        5,
        50,
    );
    class.lesson.observation.left_out(12, 0);
    class
}

#[test]
fn the_whole_as_one_file() {
    let class = seen();
    let documents = class.documents(&Layout::One(None));
    assert_eq!(documents.len(), 1);
    insta::assert_snapshot!("one", documents[0].text);
    loaded(&documents);
}

#[test]
fn a_file_for_each_project() {
    let class = seen();
    let documents = class.documents(&Layout::Projects);
    let texts: Vec<String> = documents
        .iter()
        .map(|it| format!("==> {}.yaml\n{}", it.segment, it.text))
        .collect();
    insta::assert_snapshot!("projects", texts.join("\n"));
    let policy = loaded(&documents).policy;
    assert!(missing(&class.lesson, &Scope::default(), &policy).is_empty());
}

#[test]
fn a_scope_holds_what_its_containers_do() {
    let class = seen();
    let scope = Scope {
        projects: BTreeSet::from(["ops".to_owned()]),
        ..Scope::default()
    };
    let documents = documents(&class.lesson, &scope, &Layout::Projects);
    let edges: Vec<String> = documents
        .iter()
        .flat_map(|it| &it.edges)
        .map(|edge| format!("{} -> {}: {:?}", edge.from, edge.to, edge.written_ports()))
        .collect();
    assert_eq!(
        edges,
        [
            "ops/prometheus -> shop/api: [\"9100\"]",
            "ops/prometheus -> shop/web: [\"80\"]"
        ]
    );
    let nothing = Scope {
        networks: BTreeSet::from(["other".to_owned()]),
        ..Scope::default()
    };
    assert_eq!(class.lesson.count(&nothing), 0);
    let network = Scope {
        networks: BTreeSet::from(["shop_default".to_owned()]),
        ..Scope::default()
    };
    assert_eq!(
        class.lesson.count(&network),
        class.lesson.count(&Scope::default())
    );
}

#[test]
fn the_proxy_is_not_the_host_and_the_host_is_not_the_proxy() {
    let host: IpAddr = GATEWAY.parse().unwrap();
    let to_container = Contact::Pair {
        from: host,
        to: address(0),
        ports: tcp(80),
    };
    let by_container = Contact::Pair {
        from: address(4),
        to: host,
        ports: tcp(8080),
    };
    let by_world = Contact::In {
        to: "198.51.100.1".parse().unwrap(),
        ports: tcp(8080),
    };
    let flows = |seen: &[(Place, Contact, u64)]| {
        let mut class = Class::new(shop());
        for (place, contact, count) in seen {
            class.see(*place, *contact, *count, 1);
        }
        class.flows()
    };
    let carried = (Place::Bridge, by_container, 3);
    assert_eq!(
        flows(&[carried, (Place::Routed, to_container, 3)]),
        ["prom -> shop-web-1:80/tcp"]
    );
    assert_eq!(
        flows(&[carried, (Place::Routed, to_container, 4)]),
        ["prom -> shop-web-1:80/tcp", "host -> shop-web-1:80/tcp"],
        "once it was the host itself"
    );
    assert_eq!(
        flows(&[(Place::Routed, to_container, 1)]),
        ["host -> shop-web-1:80/tcp"]
    );
    assert_eq!(
        flows(&[(Place::Routed, by_world, 1), (Place::Routed, to_container, 1)]),
        ["host -> shop-web-1:80/tcp", "world -> shop-web-1:80/tcp"],
        "what the proxy carries for the world needs both"
    );
}

#[test]
fn who_serves_is_decided_by_who_listens() {
    let unclear = |from, to, source, port| Contact::Unclear {
        from: address(from),
        to: address(to),
        transport: Transport::Udp,
        source,
        port,
    };
    let flows = |serves: &[(usize, u16)]| {
        let mut class = Class::new(shop());
        for (container, port) in serves {
            class
                .lesson
                .observation
                .serves(&id(*container), [(Transport::Udp, *port)]);
        }
        class.see(Place::Bridge, unclear(1, 3, 40_000, 51_820), 1, 1);
        class.flows()
    };
    assert_eq!(flows(&[(3, 51_820)]), ["shop-api-1 -> shop-db-1:51820/udp"]);
    assert_eq!(flows(&[(1, 40_000)]), ["shop-db-1 -> shop-api-1:40000/udp"]);
    assert_eq!(
        flows(&[]),
        ["shop-api-1 -> shop-db-1:51820/udp"],
        "the first to speak"
    );
    // What is known for sure counts more than what was guessed.
    let mut class = Class::new(shop());
    class.see(Place::Bridge, unclear(3, 1, 5353, 6000), 1, 1);
    class.see(Place::Bridge, pair(1, 3, udp(5353)), 1, 1);
    assert_eq!(class.flows(), ["shop-api-1 -> shop-db-1:5353/udp"]);
    // An answer alone tells of the flow, too.
    let mut class = Class::new(shop());
    let answer = Contact::Answer {
        from: address(1),
        to: address(3),
        ports: udp(53),
    };
    class.see(Place::Bridge, answer, 2, 1);
    assert_eq!(class.flows(), ["shop-api-1 -> shop-db-1:53/udp"]);
    let text = &class.documents(&Layout::One(None))[0].text;
    assert!(text.contains("# 53/udp: seen by its answers alone"), "{text}");
}

#[test]
fn what_is_nobodys_is_no_flow() {
    let mut class = Class::new(shop());
    for (place, from, to) in [
        // Forged: no container of the bridge has these addresses.
        (Place::Bridge, OUTSIDE[0], "172.18.0.13"),
        (Place::Bridge, GATEWAY, "172.18.0.13"),
        // Seen where it came in, and once more here.
        (Place::Routed, "172.18.0.11", "172.18.0.13"),
        // The host's own affair.
        (Place::Routed, OUTSIDE[0], GATEWAY),
        (Place::Routed, GATEWAY, OUTSIDE[0]),
        (Place::Bridge, "172.18.0.11", "fe80::1"),
    ] {
        let contact = Contact::Pair {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            ports: tcp(22),
        };
        class.see(place, contact, 1, 1);
    }
    assert_eq!(class.flows(), [""; 0]);
    let ignored = class.lesson.observation.settle().ignored;
    assert_eq!((ignored.foreign, ignored.multicast), (2, 1));
}

#[test]
fn an_address_that_changes_hands_is_nobodys() {
    let networks = [network()];
    let before = Ground::new(
        &[container(1, "one", None), container(2, "two", None)],
        &networks,
        [],
    );
    let mut other = container(1, "other", None);
    other.id = id(9);
    let after = Ground::new(&[other, container(2, "two", None)], &networks, []);
    let gone = Ground::new(&[container(2, "two", None)], &networks, []);
    let flows = |before: &Ground, after: &Ground, handover| {
        let mut observation = Observation::default();
        observation.take(
            Place::Bridge,
            &pair(1, 2, tcp(1)),
            1,
            Grounds {
                before,
                after,
                handover,
            },
            at(1),
        );
        let settled = observation.settle();
        (settled.flows.len(), settled.ignored.contested)
    };
    use Handover::{Later, Meanwhile};
    assert_eq!(flows(&before, &after, Meanwhile), (0, 1));
    assert_eq!(flows(&before, &after, Later), (1, 0), "of the one before");
    assert_eq!(flows(&gone, &gone, Meanwhile), (0, 1), "nobody ever knew it");
    assert_eq!(flows(&before, &gone, Meanwhile), (1, 0), "it has just ended");
    assert_eq!(flows(&gone, &after, Meanwhile), (1, 0), "it has just come");
}

#[test]
fn only_what_is_not_permitted_is_missing() {
    let class = seen();
    let text = "cofferdam: 1
segment: shop
services:
  web: { select: { compose: shop/web } }
  api: { select: { compose: shop/api } }
  db: { select: { compose: shop/db } }
externals:
  known: { cidrs: [203.0.113.0/24] }
allow:
  - { from: known, to: web, ports: [80] }
  - { from: web, to: api, ports: [8000-8010] }
  - { from: api, to: known, ports: [443] }
tests: { reachable: [\"web -> api:8000\"] }
";
    let ops =
        "cofferdam: 1\nsegment: ops\nservices: { prometheus: { select: { compose: ops/prometheus } } }\n";
    let policy = load(
        &[("shop.yaml", text), ("ops.yaml", ops)].map(|(path, text)| SourceFile {
            path: path.to_owned(),
            bytes: text.into(),
        }),
    )
    .unwrap()
    .policy;
    let missing = missing(&class.lesson, &Scope::default(), &policy);
    let texts = against::texts(&missing, &policy);
    let all: Vec<String> = texts.into_values().chain(missing.unnameable).collect();
    insta::assert_snapshot!("missing", all.join("\n"));
}

#[test]
fn hostile_names_become_services_that_select_just_them() {
    let evil = "x\"\n  - { from: world, to: db, ports: [any] }\u{2028}";
    let containers = vec![
        container(0, "a-1", Some(("Shop", "Web"))),
        container(1, "a-2", Some(("shop", "web"))),
        container(2, "a-3", Some((evil, "db"))),
        container(3, "a-4", Some(("shop", "*"))),
        container(4, "a-5", Some(("shop", "world"))),
        container(5, "w.eb", None),
        container(6, "w_eb", None),
        container(7, "true", None),
        container(8, "x-1", None),
        container(9, "x-2", None),
        container(10, "x-2b", None),
        container(11, "2024", Some(("\u{202e}", "\u{1f600}"))),
        container(12, "n", Some(("shop-a", "b"))),
        container(13, "no", Some(("shop", "a-b"))),
    ];
    let count = containers.len();
    let mut class = Class::new(containers);
    for from in 0..count {
        class.see(Place::Bridge, pair(from, (from + 1) % count, tcp(80)), 1, 1);
    }
    for layout in [
        Layout::One(None),
        Layout::One(Some("all".parse().unwrap())),
        Layout::Projects,
    ] {
        let documents = class.documents(&layout);
        let policy = loaded(&documents).policy;
        let mut services = BTreeSet::new();
        for container in class.lesson.containers.values() {
            let Standing::Managed(identity) = standing(&policy, container) else {
                panic!("{}: {:?}", container.name, standing(&policy, container));
            };
            assert_eq!(identity.services().len(), 1, "{}", container.name);
            services.extend(identity.services().clone());
        }
        assert_eq!(services.len(), count, "{layout:?}: no two are one");
        assert_eq!(policy.edges.len(), count);
        assert!(missing(&class.lesson, &Scope::default(), &policy).is_empty());
        assert!(documents.iter().all(|it| it.text.is_ascii()));
    }
}

#[test]
fn what_no_selector_can_name_is_said() {
    let mut class = Class::new(vec![
        container(0, "web-1", Some(("shop", "web"))),
        container(1, "b\u{e4}d", None),
    ]);
    class.see(Place::Bridge, pair(1, 0, tcp(80)), 1, 1);
    let documents = class.documents(&Layout::One(None));
    let text = &documents[0].text;
    assert!(
        text.contains("# No selector can name an end of b\\u{e4}d -> web-1:80/tcp."),
        "{text}"
    );
    loaded(&documents);
}

#[test]
fn many_ports_are_ranges_and_one_line() {
    let mut class = Class::new(shop());
    for port in 1..=5000 {
        class.see(Place::Bridge, pair(1, 3, tcp(port)), 1, 1);
    }
    let documents = class.documents(&Layout::One(None));
    let text = &documents[0].text;
    assert!(
        text.contains("- { from: api, to: db, ports: [1-5000] }") && text.contains("# 4988 more ports"),
        "{text}"
    );
    loaded(&documents);
}
