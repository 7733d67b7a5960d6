//! Random flows between random containers.

use proptest::prelude::*;

use super::*;
use crate::net::Traffic;
use crate::policy::Party;

/// A flow as it is drawn: between containers, the host or the world, by one of the ports.
type Drawn = (usize, usize, usize);

const PORTS: usize = 6;

fn port(number: usize) -> Ports {
    match number {
        0 => tcp(80),
        1 => tcp(81),
        2 => tcp(5432),
        3 => udp(53),
        4 => udp(80),
        _ => Ports::Icmp(Some(IcmpType::EchoRequest)),
    }
}

fn named(names: &[(String, Option<(String, String)>)]) -> Vec<Container> {
    let named = names.iter().enumerate().map(|(number, (name, compose))| {
        let compose = compose
            .as_ref()
            .map(|(project, service)| (project.as_str(), service.as_str()));
        // The engine never gives a name twice.
        container(number, &format!("{name}{}-{number}", "c"), compose)
    });
    named.collect()
}

fn contact(drawn: Drawn, count: usize) -> Option<(Place, Contact)> {
    let (from, to, ports) = (drawn.0, drawn.1, port(drawn.2));
    let outside: IpAddr = OUTSIDE[0].parse().unwrap();
    let host: IpAddr = GATEWAY.parse().unwrap();
    let place = |end: usize| match end {
        end if end < count => address(end),
        end if end == count => host,
        _ => outside,
    };
    let by = if from < count {
        Place::Bridge
    } else {
        Place::Routed
    };
    (from < count || to < count).then(|| {
        let contact = Contact::Pair {
            from: place(from),
            to: place(to),
            ports,
        };
        (by, contact)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// What is written permits what was seen and, between those services, nothing else.
    #[test]
    fn what_is_written_permits_just_what_was_seen(
        names in proptest::collection::vec(
            ("[a-zA-Z0-9][a-z._-]{0,3}", proptest::option::of((".{1,3}|shop|ops", ".{1,3}|web|db"))), 1..6),
        drawn in proptest::collection::vec((0_usize..8, 0_usize..8, 0..PORTS), 1..20),
        single in any::<bool>(),
    ) {
        let containers = named(&names);
        let count = containers.len();
        let mut class = Class::new(containers);
        let mut expected = BTreeSet::new();
        for (from, to, ports) in drawn {
            let (from, to) = (from % (count + 2), to % (count + 2));
            if let Some((place, contact)) = contact((from, to, ports), count) {
                class.see(place, contact, 1, 1);
                expected.insert((from, to, ports));
            }
        }
        let layout = if single { Layout::One(None) } else { Layout::Projects };
        let documents = class.documents(&layout);
        let policy = loaded(&documents).policy;
        let now = at(1);
        for test in &policy.tests {
            prop_assert_eq!(policy.outcome(test, now), crate::policy::Outcome::Holds, "{}", test);
        }
        prop_assert!(missing(&class.lesson, &Scope::default(), &policy).is_empty());

        // By service: of two replicas one speaks for both.
        let standings: Vec<Standing> = (0..count)
            .map(|number| standing(&policy, &class.lesson.containers[&id(number)]))
            .collect();
        let empty = BTreeSet::new();
        let party = |end: usize| match standings.get(end) {
            Some(standing) => match standing.services() {
                Some(services) => Party::Services(services),
                None => Party::Services(&empty),
            },
            None if end == count => Party::Host,
            None => Party::Outside(OUTSIDE[0].parse().unwrap()),
        };
        let same = |one: usize, other: usize| {
            one == other || (one < count && other < count && standings[one] == standings[other])
        };
        for from in 0..count + 2 {
            for to in 0..count + 2 {
                for ports in 0..PORTS {
                    let Some(_) = contact((from, to, ports), count) else { continue };
                    let traffic = match port(ports) {
                        Ports::Transport(transport, range) => Traffic::Port(transport, range.first),
                        _ => Traffic::Icmp(8),
                    };
                    let permitted = policy.allows(&party(from), &party(to), traffic, Family::V4).is_some();
                    let was_seen = expected
                        .iter()
                        .any(|seen| same(seen.0, from) && same(seen.1, to) && seen.2 == ports);
                    prop_assert_eq!(permitted, was_seen, "{} -> {}: {}", from, to, port(ports));
                }
            }
        }
    }
}
