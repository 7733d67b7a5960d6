//! Which ports of a service are tried: what is declared, what listens, and a few that are neither. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use crate::net::{PortRange, Transport};
use crate::policy::{Peer, Policy, Ports};

/// What is tried of one transport; a container decides on how many ports it listens.
const MOST: usize = 64;

/// Above these, sockets of UDP are those of clients (the kernel's default for ports that it chooses).
const CHOSEN_BY_KERNEL: PortRange = PortRange {
    first: 32768,
    last: 60999,
};

/// The ports of one target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tried {
    pub ports: BTreeSet<(Transport, u16)>,
    /// A port behind which somebody answers, where there is one.
    pub likely: Option<u16>,
    /// How many are left out because there are too many.
    pub cut: usize,
}

/// The ports to try of whoever `is_target` is about.
pub fn tried(
    policy: &Policy,
    is_target: impl Fn(&Peer) -> bool,
    served: &BTreeSet<(Transport, u16)>,
) -> Tried {
    let edges = policy.edges.iter().filter(|edge| is_target(&edge.to));
    let tests = policy.tests.iter().filter(|test| is_target(&test.to));
    let named: BTreeSet<Ports> = edges
        .flat_map(|edge| edge.ports.iter().copied())
        .chain(tests.map(|test| test.ports))
        .collect();
    let mut tried = Tried::default();
    for transport in [Transport::Tcp, Transport::Udp] {
        let ranges = named.iter().filter_map(|ports| match ports {
            Ports::Transport(of, range) if *of == transport && *range != PortRange::ALL => Some(*range),
            _ => None,
        });
        let declared: BTreeSet<u16> = ranges.clone().flat_map(ends).collect();
        let client = |port: &u16| transport == Transport::Udp && CHOSEN_BY_KERNEL.contains(*port);
        let listening = served.iter().filter(|(of, _)| *of == transport);
        let listening: BTreeSet<u16> = listening
            .map(|(_, port)| *port)
            .filter(|port| !client(port))
            .collect();
        if transport == Transport::Tcp {
            let both = listening.intersection(&declared).next();
            tried.likely = both.or(listening.first()).or(declared.first()).copied();
        }
        let others = listening.difference(&declared).copied();
        let all: Vec<u16> = declared.iter().copied().chain(others).collect();
        tried.cut += all.len().saturating_sub(MOST);
        let known: Vec<PortRange> = ranges.collect();
        let is_free =
            |port: &u16| !listening.contains(port) && !known.iter().any(|range| range.contains(*port));
        let low = (1..1024).find(is_free).filter(|_| transport == Transport::Tcp);
        let high = (61000..=u16::MAX).rev().find(is_free);
        tried.ports.extend(
            all.into_iter()
                .take(MOST)
                .chain(low)
                .chain(high)
                .map(|port| (transport, port)),
        );
    }
    tried
}

/// The first and the last port, and of more than one also those beside them.
fn ends(range: PortRange) -> BTreeSet<u16> {
    let mut ends = BTreeSet::from([range.first, range.last]);
    if range.first != range.last {
        ends.extend(range.first.checked_sub(1).filter(|port| *port > 0));
        ends.extend(range.last.checked_add(1));
    }
    ends
}
