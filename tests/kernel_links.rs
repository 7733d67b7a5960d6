//! Bridges, ports and the containers' ends in a real kernel.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::time::Duration;

use cofferdam::kernel::links::{Bridge, LinkEvent, LinkWatch, Links, NetfilterCalls, Peer, Port, Snapshot};
use cofferdam::net::Mac;
use netns::{run_async, sh};
use tokio::sync::mpsc;
use tokio::time::timeout;

mod netns;

const PATIENCE: Duration = Duration::from_secs(3);
const MAC: Mac = Mac([0x02, 0x42, 0x0a, 0xd5, 0x05, 0x0a]);

/// Two bridges, a veth whose other end is in namespace `a`, one whose ends are both here, and a veth outside bridges.
const TOPOLOGY: &str = "
    ip link add br0 type bridge && ip link set br0 up
    ip link add br1 type bridge && ip addr add 10.7.0.1/24 dev br1 && ip link set br1 up
    ip netns add a
    ip link add va type veth peer name eth0 netns a
    ip -n a link set eth0 address 02:42:0a:d5:05:0a
    ip -n a link set eth0 up
    ip link set va master br0 up
    ip link add vb type veth peer name vc && ip link set vb master br1 && ip link add vd type veth peer name ve";

fn index(name: &str) -> u32 {
    sh(&format!("cat /sys/class/net/{name}/ifindex"))
        .trim()
        .parse()
        .unwrap()
}

fn bridge(name: &str) -> Bridge {
    Bridge {
        index: index(name),
        name: name.parse().unwrap(),
    }
}

fn port(name: &str, bridge: &str, peer: Option<Mac>) -> Port {
    Port {
        index: index(name),
        name: name.parse().unwrap(),
        bridge: index(bridge),
        // The first other namespace that the kernel has to give a number.
        peer: peer.map(|mac| Peer { namespace: 0, mac }),
    }
}

#[test]
fn a_listing_has_bridges_ports_and_the_containers_addresses() {
    run_async(
        "a_listing_has_bridges_ports_and_the_containers_addresses",
        || async {
            let links = Links::open().unwrap();
            assert_eq!(links.list().await.unwrap(), Snapshot::default());
            sh(TOPOLOGY);
            let listed = links.list().await.unwrap();
            assert_eq!(listed.bridges, [bridge("br0"), bridge("br1")]);
            let mut ports = vec![port("va", "br0", Some(MAC)), port("vb", "br1", None)];
            ports.sort();
            assert_eq!(listed.ports, ports);
            // Two listings at once wait for each other.
            let (one, two) = tokio::join!(links.list(), links.list());
            assert_eq!((one.unwrap(), two.unwrap()), (listed.clone(), listed));
        },
    );
}

async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    timeout(PATIENCE, events.recv())
        .await
        .expect("an event within the patience")
        .unwrap()
}

/// The events up to the wanted one; those of other interfaces come in between.
async fn until(events: &mut mpsc::Receiver<LinkEvent>, wanted: LinkEvent) -> Vec<LinkEvent> {
    let mut seen = Vec::new();
    loop {
        match timeout(PATIENCE, events.recv()).await {
            Ok(Some(event)) => seen.push(event),
            _ => panic!("no {wanted:?} in {seen:#?}"),
        }
        if seen.last() == Some(&wanted) {
            return seen;
        }
    }
}

#[test]
fn a_port_is_followed_from_its_coming_to_its_going() {
    run_async("a_port_is_followed_from_its_coming_to_its_going", || async {
        let (sender, mut events) = mpsc::channel(64);
        let watch = LinkWatch::open().unwrap();
        let task = tokio::spawn(watch.run(sender));
        sh("ip link add br0 type bridge && ip link set br0 up && ip netns add a");
        assert_eq!(next(&mut events).await, LinkEvent::Bridge(bridge("br0")));
        let br0 = index("br0");
        let calls = |calls| LinkEvent::Calls { bridge: br0, calls };
        assert_eq!(next(&mut events).await, calls(false));
        // The order of Docker: a pair of ends, one into the bridge, the other into the namespace, then its address, up.
        sh("ip link add va type veth peer name vb && ip link set va master br0 up");
        assert_eq!(next(&mut events).await, LinkEvent::Port(port("va", "br0", None)));
        sh(
            "ip link set vb netns a && ip -n a link set vb address 02:42:0a:d5:05:0a && ip -n a link set vb up",
        );
        until(&mut events, LinkEvent::Port(port("va", "br0", Some(MAC)))).await;
        let isolated = |isolated| LinkEvent::Isolated {
            port: index("va"),
            isolated,
        };
        // Settings that others change, in every way that there is; one call that is off is as good as both.
        sh("ip link set br0 type bridge nf_call_iptables 1 nf_call_ip6tables 1");
        assert_eq!(next(&mut events).await, calls(true));
        sh("echo 0 >/sys/class/net/br0/bridge/nf_call_ip6tables");
        assert_eq!(next(&mut events).await, calls(false));
        for (command, on) in [
            ("bridge link set dev va isolated on", true),
            ("ip link set va type bridge_slave isolated off", false),
            ("echo 1 >/sys/class/net/va/brport/isolated", true),
            ("bridge link set dev va isolated off", false),
        ] {
            sh(command);
            assert_eq!(next(&mut events).await, isolated(on), "{command}");
        }
        // What is no news is not told.
        sh("ip link set va mtu 1400");
        assert!(timeout(Duration::from_millis(300), events.recv()).await.is_err());
        let va = index("va");
        sh("ip link set va nomaster");
        until(&mut events, LinkEvent::PortGone(va)).await;
        sh("ip link set va master br0");
        until(&mut events, LinkEvent::Port(port("va", "br0", Some(MAC)))).await;
        sh("ip netns delete a");
        until(&mut events, LinkEvent::PortGone(va)).await;
        sh("ip link delete br0");
        until(&mut events, LinkEvent::BridgeGone(br0)).await;
        drop(events);
        timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    });
}

#[test]
fn a_slow_receiver_is_told_to_list_again() {
    run_async("a_slow_receiver_is_told_to_list_again", || async {
        let (sender, mut events) = mpsc::channel(2);
        let watch = LinkWatch::open().unwrap();
        let _task = tokio::spawn(watch.run(sender));
        for number in 0..6 {
            sh(&format!("ip link add br{number} type bridge"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let seen = until(&mut events, LinkEvent::Resync).await;
        assert_eq!(seen.len(), 3, "{seen:#?}");
    });
}

#[test]
fn bridges_and_ports_are_set() {
    run_async("bridges_and_ports_are_set", || async {
        sh(TOPOLOGY);
        let links = Links::open().unwrap();
        let br0 = index("br0");
        let setting = || {
            sh("cat /sys/class/net/br0/bridge/nf_call_iptables /sys/class/net/br0/bridge/nf_call_ip6tables")
        };
        for (ipv4, ipv6, text) in [
            (true, true, "1\n1\n"),
            (false, true, "0\n1\n"),
            (false, false, "0\n0\n"),
        ] {
            let wanted = NetfilterCalls { ipv4, ipv6 };
            links.set_netfilter_calls(br0, wanted).await.unwrap();
            assert_eq!(links.netfilter_calls(br0).await.unwrap(), wanted);
            assert_eq!(setting(), text);
        }
        let va = index("va");
        assert_eq!(links.isolated(va).await.unwrap(), Some(false));
        links.set_isolated(va, true).await.unwrap();
        assert_eq!(sh("cat /sys/class/net/va/brport/isolated"), "1\n");
        assert_eq!(links.isolated(va).await.unwrap(), Some(true));
        links.set_isolated(va, false).await.unwrap();
        assert_eq!(sh("cat /sys/class/net/va/brport/isolated"), "0\n");
    });
}

#[test]
fn what_cannot_be_set_is_an_error() {
    run_async("what_cannot_be_set_is_an_error", || async {
        sh(TOPOLOGY);
        let links = Links::open().unwrap();
        let on = NetfilterCalls {
            ipv4: true,
            ipv6: true,
        };
        let error = links.set_netfilter_calls(9999, on).await.unwrap_err();
        assert!(error.is_gone(), "{error:?}");
        assert!(links.netfilter_calls(9999).await.unwrap_err().is_gone());
        let error = links.set_netfilter_calls(index("vd"), on).await.unwrap_err();
        assert!(!error.is_gone(), "{error:?}");
        assert!(links.netfilter_calls(index("vd")).await.is_err());
        assert!(
            links.set_isolated(index("vd"), true).await.is_err(),
            "not a bridge's port"
        );
        assert!(links.set_isolated(9999, true).await.unwrap_err().is_gone());
        assert_eq!(links.isolated(index("vd")).await.unwrap(), None);
    });
}

#[test]
fn the_main_tables_routes_are_read() {
    run_async("the_main_tables_routes_are_read", || async {
        sh(TOPOLOGY);
        sh(
            "ip route add default via 10.7.0.254; ip route add blackhole 10.99.0.0/16
            ip addr add fd00:7::1/64 dev br1 nodad; ip route add 10.55.0.0/16 dev br1 table 77",
        );
        let links = Links::open().unwrap();
        let routes = links.routes().await.unwrap();
        let br1 = Some(index("br1"));
        for (net, interface) in [
            ("0.0.0.0/0", br1),
            ("10.7.0.0/24", br1),
            ("10.99.0.0/16", None),
            ("fd00:7::/64", br1),
        ] {
            assert!(
                routes.contains(&(net.parse().unwrap(), interface)),
                "{net} in {routes:?}"
            );
        }
        for absent in ["10.55.0.0/16", "127.0.0.0/8"] {
            assert!(
                !routes.iter().any(|(net, _)| *net == absent.parse().unwrap()),
                "{absent} in {routes:?}"
            );
        }
    });
}
