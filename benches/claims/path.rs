//! What a packet pays: new connections, throughput (of iperf3) and latency between two network namespaces on a bridge.
//!
//! Every measurement stands right beside one of the baseline, and their ratio is what counts: a busy machine slows both. The
//! goals are held against the ratio of what a second of processor time achieves, at both ends and in the kernel on their behalf:
//! that of what a second on the wall does is told beside, and means something where nothing else runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam::daemon::executor::Kernel;
use cofferdam::inventory::links::Port;
use cofferdam::model::Rights;
use cofferdam::plan::Planner;

use crate::harness::{Effort, Goal, Report, Sample, sh};
use crate::kernel::carry_out;
use crate::scene::{self, Host, Shape, address, bridge_name, mac};
use crate::traffic::{Ends, Rate};

const SERVER: usize = 0;
const CLIENT: usize = 1;
/// What service 1 may dial of service 0.
const DECLARED: u16 = 8001;
/// The same, for iperf3.
const IPERF3: u16 = 9000;
/// What another service may.
const UNDECLARED: u16 = 8002;

/// What stands in the way of packets.
enum Way {
    /// The bridge hands its frames to nobody.
    Plain,
    /// The bridge hands its frames to the hooks of `inet`, and nobody is there.
    Called,
    /// As on every Docker host: a rule of somebody else's translates addresses, so connections are tracked.
    Tracked,
    /// One rule after the other, for so many grants; that of the two namespaces is in the middle.
    Linear(usize),
    Ours(Box<Planner>),
}

struct Stage {
    kernel: Kernel,
    runtime: tokio::runtime::Runtime,
    ends: Ends,
    ports: BTreeMap<usize, Port>,
    bridges: BTreeMap<usize, u32>,
}

pub(crate) fn run(report: &mut Report) {
    let mut stage = Stage::build();
    stage.ends.serve(&[DECLARED, UNDECLARED]);
    let _iperf3 = stage.ends.serve_iperf3(IPERF3);
    let effort = report.effort;
    let mut ways = stage.ways(effort);
    let rounds = effort.of(3, 7);
    let mut found: Vec<[Found; 3]> = ways.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for ((_, way), found) in ways.iter_mut().zip(&mut found) {
            stage.take(&mut Way::Called);
            for (kind, found) in KINDS.iter().zip(found.iter_mut()) {
                found.baselines.push((kind.measure)(&stage.ends, effort));
            }
            stage.take(way);
            for (kind, found) in KINDS.iter().zip(found.iter_mut()) {
                found.values.push((kind.measure)(&stage.ends, effort));
            }
        }
    }
    for (at, kind) in KINDS.iter().enumerate() {
        let found: Vec<&Found> = found.iter().map(|it| &it[at]).collect();
        tell(report, kind, &ways, &found);
    }
}

struct Kind {
    name: &'static str,
    unit: &'static str,
    measure: fn(&Ends, Effort) -> Rate,
    /// Of the baseline.
    goal: f64,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "new connections",
        unit: "1/s",
        measure: |ends, effort| ends.connections(time(effort)),
        goal: 0.97,
    },
    Kind {
        name: "throughput",
        unit: "MiB/s",
        measure: |ends, effort| ends.throughput(IPERF3, effort.of("64M", "512M")),
        goal: 0.99,
    },
    Kind {
        name: "round trips",
        unit: "1/s",
        measure: |ends, effort| ends.round_trips(time(effort)),
        goal: 0.99,
    },
];

fn time(effort: Effort) -> Duration {
    effort.of(Duration::from_millis(50), Duration::from_millis(300))
}

/// Each value and the baseline that was measured right before it.
#[derive(Default)]
struct Found {
    baselines: Vec<Rate>,
    values: Vec<Rate>,
}

fn tell(report: &mut Report, kind: &Kind, ways: &[(String, Way)], found: &[&Found]) {
    let Kind { name: what, unit, .. } = kind;
    let baselines = found.iter().flat_map(|it| &it.baselines).map(|it| it.on_the_wall);
    let baseline = Sample::new(baselines.collect());
    report.figure(
        &format!("{what}, br_netfilter without rules"),
        unit,
        &baseline,
        None,
        Goal::None,
    );
    let mut sizes = Vec::new();
    for ((name, way), found) in ways.iter().zip(found) {
        let ratios = |of: fn(&Rate) -> f64| {
            let pairs = found.values.iter().zip(&found.baselines);
            Sample::new(pairs.map(|(value, base)| of(value) / of(base)).collect())
        };
        let values = Sample::new(found.values.iter().map(|it| it.on_the_wall).collect());
        report.figure(
            &format!("{what}, {name}"),
            unit,
            &values,
            Some(baseline.median()),
            Goal::None,
        );
        let on_the_wall = ratios(|it| it.on_the_wall);
        report.figure(
            &format!("{what}, {name}: ratio, wall"),
            "",
            &on_the_wall,
            Some(1.0),
            Goal::None,
        );
        let ratios = ratios(|it| it.of_processor_time);
        let goal = match way {
            Way::Ours(_) => Goal::AtLeast(kind.goal),
            _ => Goal::None,
        };
        report.figure(
            &format!("{what}, {name}: ratio, processor"),
            "",
            &ratios,
            Some(1.0),
            goal,
        );
        if let Some(services) = name.strip_prefix("ring of ").and_then(|it| it.split(' ').next()) {
            sizes.push((services.parse().unwrap(), 1.0 / ratios.median()));
        }
    }
    // Of what one of them costs.
    report.growth(&format!("{what}, cost of a ring"), &sizes, Goal::AtMost(0.02));
}

impl Stage {
    /// A bridge named as Docker's, and two containers on it.
    fn build() -> Self {
        let bridge = bridge_name(0);
        let mut script = format!(
            "set -e
            modprobe br_netfilter 2>/dev/null || true
            sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0
            ip link add {bridge} type bridge; ip addr add 172.16.0.1/16 dev {bridge}; ip link set {bridge} up\n"
        );
        for number in [SERVER, CLIENT] {
            let (own, mac) = (address(number), mac(number));
            writeln!(
                script,
                "ip netns add c{number}
                ip link add v{number} type veth peer name eth0 netns c{number}
                ip -n c{number} link set eth0 address {mac}; ip -n c{number} link set lo up
                ip -n c{number} addr add {own}/16 dev eth0; ip -n c{number} link set eth0 up
                ip link set v{number} master {bridge} up
                ip netns exec c{number} sysctl -qw net.ipv4.ip_local_port_range='10000 65535'"
            )
            .unwrap();
        }
        sh(&script);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let kernel = runtime.block_on(async { Kernel::open().unwrap() });
        let links = runtime.block_on(kernel.links().list()).unwrap();
        let real = |number: usize| {
            let port = links
                .ports
                .iter()
                .find(|it| it.name.as_str() == format!("v{number}"));
            (number, port.unwrap().clone())
        };
        let index = links.bridges.iter().find(|it| it.name == bridge).unwrap().index;
        Self {
            ports: [SERVER, CLIENT].map(real).into(),
            bridges: [(0, index)].into(),
            kernel,
            runtime,
            ends: Ends {
                client: namespace(CLIENT),
                server: namespace(SERVER),
                at: (address(SERVER), DECLARED).into(),
            },
        }
    }

    fn ways(&self, effort: Effort) -> Vec<(String, Way)> {
        let ours = |shape: Shape| {
            // With iperf3's port.
            let shape = Shape {
                changed: true,
                ..shape
            };
            let mut planner = scene::planner(shape.rights());
            let host = Host {
                endpoints: shape.services * 10,
                services: shape.services,
            };
            host.tell(&mut planner, &self.ports, &self.bridges);
            Way::Ours(Box::new(planner))
        };
        let mut nothing = scene::planner(Rights::default());
        let two = Host {
            endpoints: 2,
            services: 2,
        };
        two.tell(&mut nothing, &self.ports, &self.bridges);
        let large = effort.of(30, 1000);
        let mut ways = vec![
            ("plain bridge".to_owned(), Way::Plain),
            (
                "br_netfilter and connection tracking without rules".to_owned(),
                Way::Tracked,
            ),
            ("empty policy".to_owned(), Way::Ours(Box::new(nothing))),
        ];
        for services in effort.of([11, 20, 30], [30, 300, 1000]) {
            let name = format!("ring of {services} services, {} endpoints", services * 10);
            ways.push((name, ours(Shape::ring(services))));
        }
        let inbound = Shape {
            into_first: large - 1,
            ..Shape::ring(large)
        };
        ways.push((format!("service with {} inbound edges", large - 1), ours(inbound)));
        ways.push((format!("{} rules in a row", large * 10), Way::Linear(large * 10)));
        ways
    }

    /// Puts this in the way of packets, in place of whatever was there, and makes sure that it is.
    fn take(&mut self, way: &mut Way) {
        let tables = "nft delete table inet cofferdam 2>/dev/null; nft delete table bridge cofferdam 2>/dev/null; \
                      nft delete table inet other 2>/dev/null;";
        let calls = i32::from(!matches!(way, Way::Plain));
        let bridge = bridge_name(0);
        sh(&format!(
            "{tables} ip link set {bridge} type bridge nf_call_iptables {calls} nf_call_ip6tables {calls}"
        ));
        match way {
            Way::Plain | Way::Called => {}
            Way::Tracked => load(
                "table inet other { chain nat { type nat hook postrouting priority 100
                ip saddr 192.0.2.0/24 masquerade\n}\n}",
            ),
            Way::Linear(count) => load(&linear(*count)),
            Way::Ours(planner) => {
                planner.kernel_lost();
                let carried_out = async { carry_out(&mut self.kernel, planner).await.unwrap() };
                assert_eq!(self.runtime.block_on(carried_out), "replace");
            }
        }
        let is_governed = match way {
            Way::Ours(planner) => !planner.rights().policy.edges.is_empty(),
            Way::Linear(_) => true,
            _ => false,
        };
        assert!(self.ends.passes(DECLARED), "what is declared does not pass");
        assert_eq!(
            self.ends.passes(UNDECLARED),
            !is_governed,
            "what is not declared is not denied"
        );
    }
}

fn linear(count: usize) -> String {
    let mut text = "table inet other { chain forward { type filter hook forward priority 0; policy drop
        ct state established,related accept\n"
        .to_owned();
    for number in 0..count {
        let (from, to, port) = match number == count / 2 {
            true => (address(CLIENT), address(SERVER), DECLARED),
            false => (address(number + 2), address(number + 3), 9000),
        };
        writeln!(text, "ip saddr {from} ip daddr {to} tcp dport {port} accept").unwrap();
    }
    let (from, to) = (address(CLIENT), address(SERVER));
    writeln!(text, "ip saddr {from} ip daddr {to} tcp dport {IPERF3} accept").unwrap();
    text + "}\n}"
}

fn namespace(container: usize) -> PathBuf {
    format!("/run/netns/c{container}").into()
}

fn load(ruleset: &str) {
    std::fs::write("/run/ruleset.nft", ruleset).unwrap();
    sh("nft -f /run/ruleset.nft");
}
