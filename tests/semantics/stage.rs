//! Network namespaces as containers, on bridges that are named and addressed as Docker's, and a world behind the host.
#![allow(dead_code, reason = "each test executable uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs::File;
use std::thread;

use cofferdam::kernel::links::Snapshot;
use cofferdam::plan::Planner;
use nix::sched::{CloneFlags, setns};

use super::draft::{At, bridge, endpoint, mac};
use super::netns;

/// The network of each container: three beside each other, one elsewhere.
pub(crate) const PLACES: [usize; 4] = [0, 0, 0, 1];

pub(crate) const fn container(container: usize) -> At {
    At::Container {
        container,
        network: PLACES[container],
    }
}

pub(crate) fn namespace_of(at: At) -> Option<String> {
    match at {
        At::Container { container, .. } => Some(format!("c{container}")),
        At::Host => None,
        At::Outside => Some("world".to_owned()),
    }
}

/// Docker's bridges, containers behind them, and a world behind the host.
pub(crate) fn build() {
    let mut script = String::from(
        "set -e
        sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.ping_group_range='0 2147483647'
        sysctl -qw net.ipv6.conf.default.accept_dad=0
        ip netns add world
        ip link add eth0 type veth peer name eth0 netns world
        ip addr add 198.51.100.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad; ip link set eth0 up
        ip route add 203.0.113.5/32 dev eth0 2>/dev/null || true
        ip -n world link set lo up; ip -n world link set eth0 up
        ip -n world addr add 198.51.100.10/24 dev eth0; ip -n world addr add 198.51.100.77/24 dev eth0
        ip -n world addr add 203.0.113.5/32 dev eth0; ip -n world addr add 2001:db8::5/64 dev eth0 nodad
        ip route replace 203.0.113.5/32 dev eth0
        ip -n world route add default via 198.51.100.1 src 198.51.100.10; ip -n world route add default via 2001:db8::1\n",
    );
    for network in 0..2 {
        let name = bridge(network);
        writeln!(
            script,
            "ip link add {name} type bridge; ip addr add 172.{}.0.1/16 dev {name}
            ip addr add fd00:{network}::1/64 dev {name} nodad; ip link set {name} up",
            18 + network
        )
        .unwrap();
    }
    for (container, network) in PLACES.into_iter().enumerate() {
        let own = endpoint(container, network);
        let (ipv4, ipv6) = (own.ipv4.unwrap(), own.ipv6.unwrap());
        writeln!(
            script,
            "ip netns add c{container}
            ip link add v{container} type veth peer name eth0 netns c{container}
            ip -n c{container} link set eth0 address {mac}
            ip -n c{container} link set lo up; ip -n c{container} link set eth0 up
            ip -n c{container} addr add {ipv4}/16 dev eth0; ip -n c{container} addr add {ipv6}/64 dev eth0 nodad
            ip -n c{container} route add default via 172.{octet}.0.1
            ip -n c{container} route add default via fd00:{network}::1
            ip link set v{container} master {bridge} up",
            mac = mac(container, network),
            octet = 18 + network,
            bridge = bridge(network),
        )
        .unwrap();
    }
    for name in ["world", "c0", "c1", "c2", "c3"] {
        writeln!(
            script,
            "ip netns exec {name} sysctl -qw net.ipv4.ping_group_range='0 2147483647'"
        )
        .unwrap();
    }
    netns::sh(&script);
}

pub(crate) fn enter(at: At) {
    if let Some(name) = namespace_of(at) {
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    }
}

/// Does something in a namespace of the stage.
pub(crate) fn within<T: Send>(at: At, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(at);
            body()
        });
        inside.join().unwrap()
    })
}

/// The planner takes these for what the host's links are.
pub(crate) fn tell_links(planner: &mut Planner, links: &Snapshot) {
    let bridges = links
        .bridges
        .iter()
        .map(|it| (it.index, it.name.clone()))
        .collect();
    let ports = links.ports.iter().map(|it| (it.index, it.clone())).collect();
    planner.reset_links(bridges, ports);
}
