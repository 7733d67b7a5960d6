//! The main property: for random policies, inventories and packets, what the policy allows is what the ruleset lets pass.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of #[test] functions"
)]

use std::collections::BTreeSet;

use cofferdam::inventory::ContainerId;
use cofferdam::model::{Standing, Unmanaged};
use cofferdam::net::{Mac, Traffic, Transport};
use cofferdam::plan::Planner;
use cofferdam::plan::eval::{Body, Connection, Frame, Kernel, Packet, Verdict};
use cofferdam::plan::ruleset::{HookPoint, TableFamily};
use cofferdam::policy;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use draft::{
    At, End, OUTSIDE, PolicyDraft, bridge, containers, endpoint, expected, mac, planner, policies,
    port_index, write_policy,
};

#[path = "semantics/draft.rs"]
mod draft;

/// Sends a new connection's first packet all the way that it would take.
struct Wire<'a> {
    kernel: Kernel<'a>,
}

impl Wire<'_> {
    fn passes(&self, from: End, to: End, traffic: Traffic) -> bool {
        let interface = |end: End| match end.at {
            At::Container { network, .. } => Some(bridge(network)),
            At::Host => None,
            At::Outside => Some("eth0".parse().unwrap()),
        };
        let mut packet = Packet {
            frame: None,
            iifname: interface(from),
            oifname: interface(to),
            body: Body::Ip {
                source: from.address,
                destination: to.address,
                traffic,
            },
            connection: Connection::New,
            mark: 0,
            translated: false,
            sent_by_root: true,
        };
        // Into the bridge.
        if let At::Container { container, network } = from.at {
            packet.frame = Some(Frame {
                iif: port_index(container, network),
                oif: 0,
                source: mac(container, network),
                destination: Mac([2, 0, 0, 0, 0, 1]),
            });
            if !self.accepts(TableFamily::Bridge, HookPoint::Prerouting, &mut packet) {
                return false;
            }
        }
        let point = match (from.at, to.at) {
            (At::Host, _) => HookPoint::Output,
            (_, At::Host) => HookPoint::Input,
            _ => HookPoint::Forward,
        };
        if !self.accepts(TableFamily::Inet, point, &mut packet) {
            return false;
        }
        // Out of the bridge.
        if let At::Container { container, network } = to.at {
            let same = matches!(from.at, At::Container { network: of, .. } if of == network);
            packet.frame = Some(Frame {
                iif: packet.frame.map_or(0, |frame| frame.iif),
                oif: port_index(container, network),
                source: packet.frame.map_or(Mac([2, 0, 0, 0, 0, 1]), |frame| frame.source),
                destination: mac(container, network),
            });
            if same && !self.accepts(TableFamily::Bridge, HookPoint::Forward, &mut packet) {
                return false;
            }
            return self.accepts(TableFamily::Bridge, HookPoint::Postrouting, &mut packet);
        }
        true
    }

    fn accepts(&self, family: TableFamily, point: HookPoint, packet: &mut Packet) -> bool {
        match self.kernel.hook(family, point, packet) {
            Verdict::Accept { mark } => {
                packet.mark = mark;
                true
            }
            Verdict::Drop => false,
        }
    }
}

fn traffic() -> impl Strategy<Value = Traffic> {
    prop_oneof![
        (0..2_usize, 79..83_u16)
            .prop_map(|(transport, port)| Traffic::Port([Transport::Tcp, Transport::Udp][transport], port)),
        Just(Traffic::Icmp(8)),
        Just(Traffic::Icmp(128)),
        Just(Traffic::Icmp(13)),
        Just(Traffic::Other(47)),
    ]
}

/// One generated policy with its containers, planned.
struct Drafted {
    planner: Planner,
    containers: Vec<(BTreeSet<usize>, BTreeSet<usize>)>,
    ends: Vec<End>,
}

impl Drafted {
    /// Through the text that a user would write.
    fn new(
        policy: &PolicyDraft,
        containers: Vec<(BTreeSet<usize>, BTreeSet<usize>)>,
        unmanaged: Unmanaged,
    ) -> Result<Self, TestCaseError> {
        let files = write_policy(policy);
        let loaded = policy::load(&files)
            .map_err(|faults| TestCaseError::fail(faults.render(&files, policy::Colour::Plain)))?;
        let mut planner = planner(loaded.policy, &containers, unmanaged);
        planner.plan();
        let mut ends: Vec<End> = OUTSIDE
            .iter()
            .map(|address| End {
                address: address.parse().unwrap(),
                at: At::Outside,
            })
            .chain(["172.18.0.1", "fd00:0::1"].map(|it| End {
                address: it.parse().unwrap(),
                at: At::Host,
            }))
            .collect();
        for (container, (_, networks)) in containers.iter().enumerate() {
            for network in networks {
                let at = At::Container {
                    container,
                    network: *network,
                };
                ends.extend(
                    endpoint(container, *network)
                        .addresses()
                        .map(|address| End { address, at }),
                );
            }
        }
        Ok(Self {
            planner,
            containers,
            ends,
        })
    }

    /// Every pair of ends between which a packet of ours can go.
    fn pairs(&self) -> Vec<(End, End)> {
        let possible = |from: &End, to: &End| {
            let one_is_a_container = [from, to]
                .iter()
                .any(|end| matches!(end.at, At::Container { .. }));
            let itself = match (from.at, to.at) {
                (At::Container { container: a, .. }, At::Container { container: b, .. }) => a == b,
                _ => false,
            };
            from.address.is_ipv4() == to.address.is_ipv4() && one_is_a_container && !itself
        };
        let pairs = self
            .ends
            .iter()
            .flat_map(|from| self.ends.iter().map(move |to| (*from, *to)));
        pairs.filter(|(from, to)| possible(from, to)).collect()
    }

    fn check(&self, packets: impl IntoIterator<Item = (End, End, Traffic)>) -> Result<(), TestCaseError> {
        let elements = self.planner.ledger().elements(&BTreeSet::new());
        let ruleset = &self.planner.structure().ruleset;
        let wire = Wire {
            kernel: Kernel {
                ruleset,
                elements: &elements,
                now: draft::now(),
            },
        };
        for (from, to, traffic) in packets {
            let expected = expected(&self.planner, &from, &to, traffic);
            prop_assert_eq!(
                wire.passes(from, to, traffic),
                expected,
                "{:?} -> {:?} {:?}",
                from,
                to,
                traffic
            );
            // The same packet from a port that is not its own, and with a MAC that is not its own.
            let At::Container { container, network } = from.at else {
                continue;
            };
            for (other, (_, networks)) in self.containers.iter().enumerate() {
                let standing = self
                    .planner
                    .standings()
                    .get(&ContainerId(format!("container{container}").into()));
                if other != container && networks.contains(&network) && standing != Some(&Standing::Unmanaged)
                {
                    let forged = End {
                        at: At::Container {
                            container: other,
                            network,
                        },
                        ..from
                    };
                    prop_assert!(
                        !wire.passes(forged, to, traffic),
                        "forged {:?} -> {:?}",
                        forged,
                        to
                    );
                }
            }
        }
        Ok(())
    }
}

/// What a test runner makes of `cases` policies, a few packets through each.
fn a_sample_of_each(cases: u32) {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let index = any::<prop::sample::Index>;
    let packets = prop::collection::vec((index(), traffic()), 8);
    let strategy = (policies(), containers(), packets, any::<bool>());
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&strategy, |(policy, containers, packets, denied)| {
        let drafted = Drafted::new(&policy, containers, unmanaged(denied))?;
        let pairs = drafted.pairs();
        let pick = |(index, traffic): (prop::sample::Index, Traffic)| {
            let (from, to) = *index.get(&pairs);
            (from, to, traffic)
        };
        drafted.check(packets.into_iter().map(pick))
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn unmanaged(denied: bool) -> Unmanaged {
    if denied { Unmanaged::Deny } else { Unmanaged::Allow }
}

/// Ten thousand policies in all, half of them on each of two threads.
#[test]
fn five_thousand_policies_mean_what_their_rules_mean() {
    a_sample_of_each(5000);
}

#[test]
fn five_thousand_more_policies_mean_what_their_rules_mean() {
    a_sample_of_each(5000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_ruleset_means_what_the_policy_means(
        policy in policies(),
        containers in containers(),
        traffic in prop::collection::vec(traffic(), 1..5),
        denied in any::<bool>(),
    ) {
        let drafted = Drafted::new(&policy, containers, unmanaged(denied))?;
        let pairs = drafted.pairs().into_iter();
        let packets = pairs.flat_map(|(from, to)| traffic.iter().map(move |traffic| (from, to, *traffic)));
        drafted.check(packets)?;
    }

    #[test]
    fn a_second_plan_is_empty(draft in policies(), containers in containers()) {
        let files = write_policy(&draft);
        let loaded = policy::load(&files).map_err(|_| TestCaseError::fail("the drafted policy has faults"))?;
        let mut planner = planner(loaded.policy, &containers, Unmanaged::Allow);
        let plan = planner.plan();
        planner.kernel_applied();
        let ending = planner.start_ending(BTreeSet::new);
        prop_assert!(planner.is_ending());
        ending.iter().for_each(|ending| planner.flows_ended(ending.number));
        prop_assert!(!planner.is_ending());
        plan.links.iter().for_each(|step| planner.link_applied(*step));
        plan.networks.iter().for_each(|step| planner.network_step_started(step));
        let second = planner.plan();
        prop_assert!(second.is_empty(), "{:?}", second);
    }
}
