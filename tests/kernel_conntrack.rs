//! Established flows in a real kernel: listed with their true destination, and ended.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use cofferdam::kernel::conntrack::{Conntrack, Detail, Flow};
use cofferdam::net::Family;
use netns::{run, sh};

mod netns;

/// Tracks everything, and opens a second address that leads to the first.
const TRACKING: &str = "
    ip addr add 10.0.0.1/24 dev lo && ip addr add fd00::1/64 dev lo nodad
    nft add table inet t
    nft add chain inet t track '{ type filter hook input priority 0; policy accept; }'
    nft add rule inet t track ct state new counter
    nft add table ip nat
    nft add chain ip nat out '{ type nat hook output priority -100; }'
    nft add rule ip nat out ip daddr 10.0.0.99 tcp dport 8443 dnat to 10.0.0.1:443";

/// One echo request in each family.
const ECHO: &str = r#"python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
s.sendto(bytes.fromhex("0800f7fd00010001"), ("10.0.0.1", 0))
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
s.sendto(bytes.fromhex("8000000000010001"), ("fd00::1", 0))'"#;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn with_port(conntrack: &mut Conntrack, port: u16) -> Vec<Flow> {
    let flows = conntrack.flows().unwrap();
    flows
        .into_iter()
        .filter(|flow| flow.server_port() == Some(port))
        .collect()
}

#[test]
fn a_live_tcp_flow_is_seen_through_dnat_and_ended() {
    run("a_live_tcp_flow_is_seen_through_dnat_and_ended", || {
        sh(TRACKING);
        let listener = TcpListener::bind("10.0.0.1:443").unwrap();
        let client = TcpStream::connect("10.0.0.99:8443").unwrap();
        let _server = listener.accept().unwrap();
        let mut conntrack = Conntrack::open().unwrap();
        let flows = with_port(&mut conntrack, 443);
        let [flow] = flows.as_slice() else {
            panic!("{flows:?}")
        };
        assert_eq!((flow.family, flow.protocol), (Family::V4, 6));
        assert_eq!(flow.original.destination, address("10.0.0.99"));
        assert_eq!(flow.server(), address("10.0.0.1"));
        assert_eq!(flow.client(), client.local_addr().unwrap().ip());
        let port = client.local_addr().unwrap().port();
        assert_eq!(
            flow.original.detail,
            Detail::Ports {
                source: port,
                destination: 8443
            }
        );
        let stale = Flow {
            id: flow.id ^ 1,
            ..*flow
        };
        conntrack.delete(&stale).unwrap();
        assert_eq!(
            with_port(&mut conntrack, 443).len(),
            1,
            "another flow of the same addresses stays"
        );
        conntrack.delete(flow).unwrap();
        assert!(with_port(&mut conntrack, 443).is_empty());
        conntrack.delete(flow).unwrap();
    });
}

#[test]
fn flows_of_both_families_and_icmp_end_with_their_address() {
    run("flows_of_both_families_and_icmp_end_with_their_address", || {
        sh(TRACKING);
        let send = |from: &str, to: &str| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"x", to).unwrap();
            socket
        };
        let _sinks = [
            UdpSocket::bind("10.0.0.1:53").unwrap(),
            UdpSocket::bind("[fd00::1]:53").unwrap(),
        ];
        let _others = [
            send("10.0.0.1", "10.0.0.1:53"),
            send("fd00::1", "[fd00::1]:53"),
            send("127.0.0.1", "127.0.0.1:9"),
        ];
        sh(ECHO);
        let mut conntrack = Conntrack::open().unwrap();
        let flows = conntrack.flows().unwrap();
        let pings: Vec<_> = flows
            .iter()
            .filter_map(|flow| Some((flow.family, flow.icmp_type()?)))
            .collect();
        assert!(
            pings.contains(&(Family::V4, 8)) && pings.contains(&(Family::V6, 128)),
            "{flows:#?}"
        );
        assert_eq!(with_port(&mut conntrack, 53).len(), 2);
        for (text, family) in [("10.0.0.1", Family::V4), ("fd00::1", Family::V6)] {
            let ended = conntrack.purge_address(address(text)).unwrap();
            assert!(ended >= 2, "{ended} of {flows:#?}");
            let left = conntrack.flows().unwrap();
            assert!(
                left.iter()
                    .all(|flow| flow.family != family || !flow.involves(address(text))),
                "{left:#?}"
            );
        }
        assert_eq!(
            with_port(&mut conntrack, 9).len(),
            1,
            "a flow of other addresses stays"
        );
        assert_eq!(conntrack.purge_address(address("10.0.0.1")).unwrap(), 0);
    });
}

#[test]
fn thousands_of_flows_are_ended_at_once() {
    run("thousands_of_flows_are_ended_at_once", || {
        sh(TRACKING);
        let sockets: Vec<_> = (1..=8)
            .map(|n| UdpSocket::bind((format!("127.0.0.{n}"), 0)).unwrap())
            .collect();
        for port in 10_000..11_250_u16 {
            for socket in &sockets {
                // The answer of a closed port comes as an error of the next call.
                let _refused = socket.send_to(b"x", ("127.0.0.100", port));
                let _refused = socket.take_error();
            }
        }
        let mut conntrack = Conntrack::open().unwrap();
        let start = Instant::now();
        let ended = conntrack.purge_address(address("127.0.0.100")).unwrap();
        let elapsed = start.elapsed();
        assert!(ended > 4_000, "{ended}");
        assert!(elapsed < Duration::from_secs(2), "{ended} flows took {elapsed:?}");
        assert!(conntrack.flows().unwrap().is_empty());
    });
}
