//! Ways round the rules that only a real kernel shows, each in a network namespace of its own, with what is declared beside it.
//! `c0` belongs to `one/a`, `c1` to `one/b`, on a guarded network; `c3` is unmanaged, on another.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;

use cofferdam::model::Unmanaged;
use cofferdam::policy::Mode;
use nix::sys::socket::{MsgFlags, SockaddrStorage, recvfrom, sendto, setsockopt, sockopt};

use draft::{At, endpoint};
use rules::{PATIENCE, Stage, answers, publish, run, serve};
use socket::{Family, Proto};
use stage::{container, within};

#[path = "semantics/draft.rs"]
mod draft;
mod netns;
#[path = "semantics/rules.rs"]
mod rules;
#[expect(dead_code, reason = "shared with the probe")]
#[path = "probe/socket.rs"]
mod socket;
#[path = "semantics/stage.rs"]
mod stage;

/// The types of the ICMPv6 messages sent, one after the other, that arrive.
fn arriving(from: At, to: (At, Ipv6Addr), sent: &[(u8, u8)]) -> Vec<(u8, u8)> {
    let receiver = within(to.0, || socket::raw(Proto::Icmp, Family::V6).unwrap());
    socket::set_timeouts(&receiver, PATIENCE).unwrap();
    let target = SockaddrStorage::from(SocketAddr::new(to.1.into(), 0));
    let mut arrived = Vec::new();
    for (kind, hops) in sent.iter().copied() {
        within(from, || {
            let sender = socket::raw(Proto::Icmp, Family::V6).unwrap();
            setsockopt(&sender, sockopt::Ipv6Ttl, &i32::from(hops)).unwrap();
            let message = [&[kind, 0, 0, 0], [hops; 44].as_slice()].concat();
            sendto(sender.as_raw_fd(), &message, &target, MsgFlags::empty()).unwrap();
        });
        let mut buffer = [0; 256];
        while let Ok((length, _)) = recvfrom::<SockaddrStorage>(receiver.as_raw_fd(), &mut buffer) {
            if length == 48 && buffer[0] == kind && buffer[47] == hops {
                arrived.push((kind, hops));
                break;
            }
        }
    }
    arrived
}

/// Proves promise 1: messages of neighbour discovery are let through between neighbours, and the host routes whatever it is
/// given a routable destination for.
#[test]
fn neighbour_discovery_is_no_way_to_the_world() {
    run("neighbour_discovery_is_no_way_to_the_world", || async {
        let _stage = Stage::open("[{ from: a, to: world, ports: [icmp/echo-request] }]", |_| ()).await;
        let world = (At::Outside, "2001:db8::5".parse().unwrap());
        let sent = [(128, 64), (135, 64), (135, 255), (136, 64), (136, 255)];
        let arrived = tokio::task::block_in_place(|| arriving(container(0), world, &sent));
        assert_eq!(arrived, [(128, 64)]);
        // Between neighbours that may not reach each other it is needed.
        let neighbour = (container(1), endpoint(1, 0).ipv6.unwrap());
        let arrived =
            tokio::task::block_in_place(|| arriving(container(0), neighbour, &[(128, 255), (135, 255)]));
        assert_eq!(arrived, [(135, 255)]);
    });
}

/// Proves promise 1: a process of the host reaches a published port by an address of the host, where the engine translates it.
#[test]
fn a_translated_address_of_the_host_leads_to_the_container_only_where_that_is_declared() {
    let name = "a_translated_address_of_the_host_leads_to_the_container_only_where_that_is_declared";
    run(name, || async {
        // A caller besides, so that the engine's proxy, a process of root as this one, may go on to the container.
        let mut stage = Stage::open("[{ from: a, to: b, ports: [8080] }]", |listing| {
            publish(listing, 1, "0.0.0.0", 8080, 8080);
        })
        .await;
        netns::sh(
            "nft -f - <<'RULES'
            table inet engine {
                chain output {
                    type nat hook output priority -100
                    meta nfproto ipv4 tcp dport { 8080, 8081 } fib daddr type local dnat ip to 172.18.0.11
                    meta nfproto ipv6 tcp dport { 8080, 8081 } fib daddr type local dnat ip6 to [fd00:0::b]
                }
            }
RULES",
        );
        serve(container(1), 8080);
        serve(container(1), 8081);
        serve(At::Host, 9999);
        let dials = |port: u16| {
            ["172.18.0.1", "198.51.100.1", "[fd00:0::1]", "[2001:db8::1]"].map(|address| {
                tokio::task::block_in_place(|| answers(At::Host, &format!("{address}:{port}")))
            })
        };
        assert_eq!(dials(9999), [true; 4], "the host's own port");
        assert_eq!(dials(8080), [false; 4], "nothing is declared");
        stage.allow("[{ from: host, to: b, ports: [8080] }]").await;
        assert_eq!(dials(8080), [true; 4], "declared");
        assert_eq!(dials(8081), [false; 4], "another port is declared");
        assert_eq!(dials(9999), [true; 4], "the host's own port");
    });
}

/// Stands for the engine's proxy: a process of root that carries what dials a port of the host to a container.
fn proxy(listen: &str, server: SocketAddr) {
    let listener = TcpListener::bind(listen).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            thread::spawn(move || {
                let Ok(server) = TcpStream::connect_timeout(&server, PATIENCE) else {
                    return;
                };
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || io::copy(&mut from, &mut to).map(drop));
                let _gone = io::copy(&mut &server, &mut &client);
            });
        }
    });
}

/// Proves promise 1 for published ports that the engine's proxy carries: the container cannot tell who dialled, so the host must.
#[test]
fn the_engines_proxy_serves_only_those_who_may_reach_the_container_themselves() {
    let name = "the_engines_proxy_serves_only_those_who_may_reach_the_container_themselves";
    run(name, || async {
        let mut stage = Stage::open("[{ from: a, to: b, ports: [80] }]", |listing| {
            publish(listing, 1, "0.0.0.0", 8080, 80);
            publish(listing, 1, "::", 8080, 80);
            // Two containers on one port of the host, on an address each.
            publish(listing, 1, "172.18.0.1", 8081, 80);
            publish(listing, 3, "172.19.0.1", 8081, 80);
        })
        .await;
        serve(container(1), 80);
        serve(At::Host, 9999);
        let server = "172.18.0.11:80".parse().unwrap();
        proxy("0.0.0.0:8080", server);
        proxy("[2001:db8::1]:8080", server);
        proxy("172.18.0.1:8081", server);
        let dials = |at, to| tokio::task::block_in_place(|| answers(at, to));
        let dialled = || {
            [
                (container(0), "172.18.0.1:8080"),
                (container(2), "172.18.0.1:8080"),
                (container(3), "172.19.0.1:8080"),
                (At::Outside, "198.51.100.1:8080"),
                (At::Outside, "[2001:db8::1]:8080"),
                (At::Host, "127.0.0.1:8080"),
            ]
            .map(|(at, to)| dials(at, to))
        };
        assert_eq!(dialled(), [true, false, false, false, false, false]);
        assert!(!dials(container(0), "172.18.0.1:8081"), "it may not reach both");
        // The host's own ports are as they were.
        assert!(dials(container(3), "172.19.0.1:9999") && dials(At::Outside, "198.51.100.1:9999"));
        assert!(dials(At::Host, "127.0.0.1:9999"));

        stage.allow("[{ from: world, to: b, ports: [80] }]").await;
        // The proxy's own way to the container is one of the host: open for the world alone, it would be so for all of root's.
        assert_eq!(dialled(), [false; 6]);
        stage.allow("[{ from: [world, host], to: b, ports: [80] }]").await;
        assert_eq!(dialled(), [false, false, false, true, true, true]);
        stage.allow("[{ from: host, to: b, ports: [80] }]").await;
        assert_eq!(dialled(), [false, false, false, false, false, true]);
        // The host's ports are open to the caller, the containers behind them are not.
        stage
            .allow("[{ from: host, to: b, ports: [80] }, { from: a, to: host, ports: [any] }]")
            .await;
        assert_eq!(dialled(), [false, false, false, false, false, true]);
        assert!(dials(container(0), "172.18.0.1:9999"));

        // In audit all of it passes, also from where nobody is managed; where unmanaged containers are closed, theirs does not.
        stage.change(|rights| rights.mode = Mode::Audit).await;
        assert_eq!(dialled(), [true; 6]);
        stage.change(|rights| rights.unmanaged = Unmanaged::Deny).await;
        assert_eq!(dialled(), [true, false, false, true, true, true]);
        stage
            .change(|rights| (rights.mode, rights.unmanaged) = (Mode::Enforce, Unmanaged::Allow))
            .await;
        assert_eq!(dialled(), [false, false, false, false, false, true]);
    });
}

/// Proves promise 1: a helper of the kernel's that reads what is said in a connection may expect others. They need an edge of their own.
#[test]
fn a_connection_that_another_one_announces_must_be_declared() {
    run(
        "a_connection_that_another_one_announces_must_be_declared",
        || async {
            let calls = "{ from: a, to: b, ports: [21] }";
            let mut stage = Stage::open(&format!("[{calls}]"), |_| ()).await;
            netns::sh("nft -f - <<'RULES'
            table inet helpers {
                ct helper ftp { type \"ftp\" protocol tcp; }
                chain prerouting { type filter hook prerouting priority 0; tcp dport 21 ct helper set \"ftp\"; }
            }
RULES");
            serve(container(1), 21);
            serve(container(0), 8000);
            let announced = || {
                tokio::task::block_in_place(|| {
                    let mut control = within(container(0), || TcpStream::connect("172.18.0.11:21").unwrap());
                    // Port 31 * 256 + 64 of the client.
                    for line in ["USER me\r\n", "PORT 172,18,0,10,31,64\r\n"] {
                        control.write_all(line.as_bytes()).unwrap();
                        control.read_exact(&mut vec![0; line.len()]).unwrap();
                    }
                    answers(container(1), "172.18.0.10:8000")
                })
            };
            assert!(!announced());
            stage
                .allow(&format!("[{calls}, {{ from: b, to: a, ports: [8000] }}]"))
                .await;
            assert!(announced());
        },
    );
}
