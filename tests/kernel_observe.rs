//! The counting tables of `learn` in a network namespace of their own: what is counted, which way round, and how they end.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::kernel::observe::{ObserveError, Observer, Reading};
use cofferdam::model::learn::{Contact, Place};
use cofferdam::net::{PortRange, Transport};
use cofferdam::policy::Ports;

use draft::{At, endpoint};
use stage::{container, within};

#[path = "semantics/draft.rs"]
mod draft;
mod netns;
#[path = "semantics/stage.rs"]
mod stage;

const PATIENCE: Duration = Duration::from_secs(1);

fn v4(number: usize) -> IpAddr {
    endpoint(number, stage::PLACES[number]).ipv4.unwrap().into()
}

fn v6(number: usize) -> IpAddr {
    endpoint(number, stage::PLACES[number]).ipv6.unwrap().into()
}

fn dial(from: At, to: IpAddr, port: u16) {
    // Whether anybody answers is of no concern.
    let _refused = within(from, || TcpStream::connect_timeout(&(to, port).into(), PATIENCE));
}

fn send(from: At, source: (IpAddr, u16), to: (IpAddr, u16)) {
    within(from, || {
        let socket = UdpSocket::bind(SocketAddr::from(source)).unwrap();
        // The first may wait for its neighbour, and what nobody takes comes back as an error.
        let _refused = socket.send_to(b"datagram", SocketAddr::from(to));
        thread::sleep(Duration::from_millis(100));
    });
}

fn ports(transport: Transport, port: u16) -> Ports {
    Ports::Transport(transport, PortRange::single(port))
}

fn counted(reading: &Reading, place: Place) -> BTreeMap<Contact, u64> {
    let here = reading.contacts.iter().filter(|((at, _), _)| *at == place);
    here.map(|((_, contact), count)| (*contact, *count)).collect()
}

async fn begin() -> Observer {
    stage::build();
    thread::sleep(Duration::from_millis(300));
    // As wherever Docker runs without asking the other hooks.
    netns::sh(
        "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 || true",
    );
    let near = BTreeSet::from(["198.51.100.1/32".parse().unwrap()]);
    let published = BTreeSet::from([(Transport::Tcp, 8080)]);
    Observer::begin(&near, &published).await.unwrap()
}

fn tables() -> String {
    netns::sh("nft list tables")
}

async fn until_gone() {
    let begun = Instant::now();
    while tables().contains("cofferdam_learn") {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "the tables stay: {}",
            tables()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn contacts_are_counted_the_right_way_round() {
    netns::run_async("contacts_are_counted_the_right_way_round", || async {
        let observer = begin().await;
        let outside: IpAddr = "203.0.113.5".parse().unwrap();
        let gateway: IpAddr = "172.18.0.1".parse().unwrap();
        let host: IpAddr = "198.51.100.1".parse().unwrap();
        let any = |address: IpAddr| -> IpAddr {
            match address {
                IpAddr::V4(_) => "0.0.0.0".parse().unwrap(),
                IpAddr::V6(_) => "::".parse().unwrap(),
            }
        };
        // One that is taken, with all its packets, and one that is refused.
        let listener = within(container(1), || TcpListener::bind((v4(1), 8080)).unwrap());
        for _ in 0..3 {
            dial(container(0), v4(1), 8080);
        }
        drop(listener);
        dial(container(0), v6(1), 81);
        // Asked and answered.
        let server = within(container(1), || UdpSocket::bind((v4(1), 53)).unwrap());
        send(container(0), (any(v4(0)), 40_000), (v4(1), 53));
        server.send_to(b"answer", (v4(0), 40_000)).unwrap();
        drop(server);
        // The answer to what was asked before, and what nobody can tell.
        send(container(2), (any(v4(2)), 123), (v4(0), 50_000));
        send(container(0), (any(v6(0)), 40_001), (v6(2), 51_820));
        send(container(2), (any(v6(2)), 51_820), (v6(0), 40_001));
        // To the world and from it, to the host and from it, to another network.
        dial(container(0), outside, 443);
        dial(At::Outside, v4(0), 80);
        dial(At::Outside, host, 8080);
        dial(At::Outside, host, 22);
        dial(container(0), gateway, 22);
        dial(At::Host, v4(2), 9);
        dial(container(0), v4(3), 7);
        send(
            container(0),
            (any(v4(0)), 5000),
            ("224.0.0.251".parse().unwrap(), 5353),
        );
        let reading = observer.read().await.unwrap();

        let pair = |from, to, ports| Contact::Pair { from, to, ports };
        let tcp = |port| ports(Transport::Tcp, port);
        let udp = |port| ports(Transport::Udp, port);
        let bridge = counted(&reading, Place::Bridge);
        let expected = BTreeMap::from([
            (pair(v4(0), v4(1), tcp(8080)), 3),
            (pair(v6(0), v6(1), tcp(81)), 1),
            (pair(v4(0), v4(1), udp(53)), 1),
            (
                Contact::Answer {
                    from: v4(0),
                    to: v4(1),
                    ports: udp(53),
                },
                1,
            ),
            (
                Contact::Answer {
                    from: v4(0),
                    to: v4(2),
                    ports: udp(123),
                },
                1,
            ),
            (
                Contact::Unclear {
                    from: v6(0),
                    to: v6(2),
                    transport: Transport::Udp,
                    source: 40_001,
                    port: 51_820,
                },
                // With the answer.
                2,
            ),
            (
                Contact::Out {
                    from: v4(0),
                    ports: tcp(443),
                },
                1,
            ),
            (
                Contact::Far {
                    from: v4(0),
                    ports: tcp(443),
                    to: outside,
                },
                1,
            ),
            (pair(v4(0), gateway, tcp(22)), 1),
            (pair(v4(0), v4(3), tcp(7)), 1),
        ]);
        assert_eq!(bridge, expected);
        let routed = counted(&reading, Place::Routed);
        let client: IpAddr = "198.51.100.10".parse().unwrap();
        let inward = |to, port| Contact::In { to, ports: tcp(port) };
        let who = |to, port| Contact::Who {
            to,
            ports: tcp(port),
            from: client,
        };
        let expected = BTreeMap::from([
            (inward(v4(0), 80), 1),
            (who(v4(0), 80), 1),
            (inward(host, 8080), 1),
            (who(host, 8080), 1),
            (pair(gateway, v4(2), tcp(9)), 1),
            // Forwarded once more.
            (pair(v4(0), v4(3), tcp(7)), 1),
        ]);
        assert_eq!(routed, expected);
        assert!(reading.multicast > 0, "{reading:?}");
        assert_eq!(reading.lost, 0);
        observer.end().await;
        assert!(!tables().contains("cofferdam_learn"));
    });
}

#[test]
fn what_finds_no_room_is_counted_as_lost() {
    netns::run_async("what_finds_no_room_is_counted_as_lost", || async {
        let observer = begin().await;
        send(container(0), (v4(0), 40_000), (v4(1), 40_000));
        within(container(0), || {
            let socket = UdpSocket::bind((v4(0), 40_000)).unwrap();
            for port in 41_000..51_000 {
                while socket.send_to(b"x", (v4(1), port)).is_err() {}
            }
        });
        let begun = Instant::now();
        let reading = observer.read().await.unwrap();
        let elapsed = begun.elapsed();
        assert_eq!(counted(&reading, Place::Bridge).len(), 8192);
        assert_eq!(reading.lost, 10_001 - 8192);
        println!("8,192 contacts read in {elapsed:?}");
        observer.end().await;
    });
}

#[test]
fn the_tables_end_with_whoever_made_them() {
    netns::run_async("the_tables_end_with_whoever_made_them", || async {
        let mut observer = begin().await;
        let nothing = (BTreeSet::new(), BTreeSet::new());
        let second = Observer::begin(&nothing.0, &nothing.1).await.unwrap_err();
        assert!(matches!(second, ObserveError::Taken), "{second}");
        // Nobody else can remove them, nor add to them.
        netns::sh("nft flush ruleset");
        let added = netns::try_sh("nft add chain inet cofferdam_learn other");
        assert!(!added.status.success());
        dial(container(0), v4(1), 80);
        let more = BTreeSet::from(["203.0.113.0/24".parse().unwrap()]);
        observer.include(&more, &nothing.1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        dial(container(0), "203.0.113.5".parse().unwrap(), 80);
        let reading = observer.read().await.unwrap();
        let bridge = counted(&reading, Place::Bridge);
        assert_eq!(bridge.len(), 2, "{bridge:?}");
        assert!(bridge.keys().all(|it| matches!(it, Contact::Pair { .. })));
        // Dropped, as where the process is killed.
        drop(observer);
        until_gone().await;
        // And once more.
        let observer = Observer::begin(&nothing.0, &nothing.1).await.unwrap();
        netns::sh(&format!("kill -9 $(pgrep -P {} -x nft)", std::process::id()));
        until_gone().await;
        assert!(matches!(
            observer.read().await,
            Err(ObserveError::Gone | ObserveError::Read { .. })
        ));
    });
}
