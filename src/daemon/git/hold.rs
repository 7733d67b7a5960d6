//! Whether the policies' own `tests` hold. Exact for single ports; a range is reachable when one entry covers it.

use crate::net::PortRange;
use crate::policy::{Edge, Expectation, Peer, Policy, Ports, Test};

/// The first line of `tests` that does not hold, with its place.
///
/// # Errors
/// When there is one.
pub fn tests_hold(policy: &Policy) -> Result<(), String> {
    for test in &policy.tests {
        let between = policy.edges.iter().filter(|edge| connects(edge, test));
        let entries = || between.clone().flat_map(|edge| &edge.ports);
        let (holds, wanted) = match test.expected {
            Expectation::Reachable => (entries().any(|it| covers(*it, test.ports)), "reachable"),
            Expectation::Unreachable => (!entries().any(|it| touches(*it, test.ports)), "unreachable"),
        };
        if !holds {
            return Err(format!(
                "{}: the test that {} -> {}:{} is {wanted} does not hold",
                test.location, test.from, test.to, test.ports
            ));
        }
    }
    Ok(())
}

fn connects(edge: &Edge, test: &Test) -> bool {
    // Whoever is an external is of the world, too.
    let is = |peer: &Peer, end: &Peer| peer == end || matches!((peer, end), (Peer::External(_), Peer::World));
    is(&test.from, &edge.from) && is(&test.to, &edge.to)
}

/// Whether everything of `wanted` is in `entry`.
fn covers(entry: Ports, wanted: Ports) -> bool {
    match (entry, wanted) {
        (Ports::Any, _) | (Ports::Icmp(None), Ports::Icmp(_)) => true,
        (Ports::Transport(a, all), Ports::Transport(b, part)) => {
            a == b && all.contains(part.first) && all.contains(part.last)
        }
        (entry, wanted) => entry == wanted,
    }
}

/// Whether anything of `wanted` is in `entry`.
fn touches(entry: Ports, wanted: Ports) -> bool {
    let meet = |a: PortRange, b: PortRange| a.first <= b.last && b.first <= a.last;
    match (entry, wanted) {
        (Ports::Any, _) | (_, Ports::Any) => true,
        (Ports::Transport(a, x), Ports::Transport(b, y)) => a == b && meet(x, y),
        (Ports::Icmp(a), Ports::Icmp(b)) => a.is_none() || b.is_none() || a == b,
        _ => false,
    }
}
