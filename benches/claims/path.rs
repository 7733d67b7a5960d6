//! What a packet pays: new connections, throughput and latency between two network namespaces on a bridge.
//!
//! Every measurement stands right beside one of the baseline, and their ratio is what counts: a busy machine slows both. The
//! goals are held against the ratio of what a second of processor time achieves, at both ends and in the kernel on their behalf:
//! that of what a second on the wall does is told beside, and means something where nothing else runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::daemon::executor::Kernel;
use cofferdam::inventory::links::Port;
use cofferdam::model::Rights;
use cofferdam::plan::Planner;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::{Effort, Goal, Report, Sample, sh};
use crate::kernel::carry_out;
use crate::scene::{self, Host, Shape, address, bridge_name, mac};

const SERVER: usize = 0;
const CLIENT: usize = 1;
/// What service 1 may dial of service 0.
const DECLARED: u16 = 8001;
/// What another service may.
const UNDECLARED: u16 = 8002;
const DENIED_AFTER: Duration = Duration::from_millis(300);

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
    ports: BTreeMap<usize, Port>,
    bridges: BTreeMap<usize, u32>,
}

pub(crate) fn run(report: &mut Report) {
    let mut stage = Stage::build();
    serve();
    let mut ways = stage.ways(report.effort);
    let rounds = report.effort.of(3, 7);
    let time = report
        .effort
        .of(Duration::from_millis(50), Duration::from_millis(300));
    let mut found: Vec<[Found; 3]> = ways.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for ((_, way), found) in ways.iter_mut().zip(&mut found) {
            stage.take(&mut Way::Called);
            for (kind, found) in KINDS.iter().zip(found.iter_mut()) {
                found.baselines.push((kind.measure)(time));
            }
            stage.take(way);
            for (kind, found) in KINDS.iter().zip(found.iter_mut()) {
                found.values.push((kind.measure)(time));
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
    measure: fn(Duration) -> Rate,
    /// Of the baseline.
    goal: f64,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "new connections",
        unit: "1/s",
        measure: connections,
        goal: 0.97,
    },
    Kind {
        name: "throughput",
        unit: "MiB/s",
        measure: throughput,
        goal: 0.99,
    },
    Kind {
        name: "round trips",
        unit: "1/s",
        measure: round_trips,
        goal: 0.99,
    },
];

/// Each value and the baseline that was measured right before it.
#[derive(Default)]
struct Found {
    baselines: Vec<Rate>,
    values: Vec<Rate>,
}

/// What was achieved in a second.
#[derive(Clone, Copy)]
struct Rate {
    on_the_wall: f64,
    of_processor_time: f64,
}

impl Rate {
    /// Runs on the client's thread while the server's are there.
    fn of(run: impl FnOnce() -> f64) -> Self {
        let (begun, before) = (Instant::now(), processor_time());
        let achieved = run();
        Self {
            on_the_wall: achieved / begun.elapsed().as_secs_f64(),
            of_processor_time: achieved / (processor_time() - before),
        }
    }
}

/// Seconds that the threads of this process have run so far.
fn processor_time() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
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
        }
    }

    fn ways(&self, effort: Effort) -> Vec<(String, Way)> {
        let ours = |shape: Shape| {
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
        // More services take longer to load than the daemon lets nft run: see RESULTS.md.
        let large = effort.of(30, 300);
        let mut ways = vec![
            ("plain bridge".to_owned(), Way::Plain),
            (
                "br_netfilter and connection tracking without rules".to_owned(),
                Way::Tracked,
            ),
            ("empty policy".to_owned(), Way::Ours(Box::new(nothing))),
        ];
        for services in effort.of([11, 20, 30], [20, 100, 300]) {
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
        assert!(passes(DECLARED), "what is declared does not pass");
        assert_eq!(
            passes(UNDECLARED),
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
    text + "}\n}"
}

fn load(ruleset: &str) {
    std::fs::write("/run/ruleset.nft", ruleset).unwrap();
    sh("nft -f /run/ruleset.nft");
}

fn enter(container: usize) {
    let namespace = File::open(format!("/run/netns/c{container}")).unwrap();
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
}

fn at(port: u16) -> SocketAddr {
    (address(SERVER), port).into()
}

/// In the client's namespace, on a thread of its own.
fn as_client<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        enter(CLIENT);
        body()
    });
    thread.join().unwrap()
}

fn passes(port: u16) -> bool {
    as_client(move || TcpStream::connect_timeout(&at(port), DENIED_AFTER).is_ok())
}

/// Answers by what the first byte asks for; the server ends with the process.
fn serve() {
    for port in [DECLARED, UNDECLARED] {
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::spawn(move || {
            enter(SERVER);
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            ready.send(()).unwrap();
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream);
            }
        });
        is_ready.recv().unwrap();
    }
}

/// One connection after the other: a thread for each would cost more than what is measured.
fn answer(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 17];
    stream.set_nodelay(true).unwrap();
    let Ok(1..) = stream.read(&mut buffer[..1]) else {
        return;
    };
    match buffer[0] {
        b'c' => {
            let _gone = stream.write_all(b"c");
        }
        b'p' => while stream.write_all(b"p").is_ok() && matches!(stream.read(&mut buffer[..1]), Ok(1..)) {},
        _ => {
            let mut total = 0_u64;
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                total += length as u64;
            }
            let _gone = stream.write_all(&total.to_be_bytes());
        }
    }
}

/// Connect, request, response, close.
fn connections(time: Duration) -> Rate {
    let reset = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let run = move || {
        let begun = Instant::now();
        let mut count = 0.0;
        while begun.elapsed() < time {
            let mut stream = TcpStream::connect(at(DECLARED)).unwrap();
            stream.write_all(b"c").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            // No port waits for late packets, whatever the number of connections.
            setsockopt(&stream, sockopt::Linger, &reset).unwrap();
            count += 1.0;
        }
        count
    };
    as_client(move || Rate::of(run))
}

/// One stream's MiB, as the receiver counts them.
fn throughput(time: Duration) -> Rate {
    let run = move || {
        let mut stream = TcpStream::connect(at(DECLARED)).unwrap();
        let block = vec![b's'; 1 << 17];
        let begun = Instant::now();
        while begun.elapsed() < time {
            stream.write_all(&block).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let mut total = [0; 8];
        stream.read_exact(&mut total).unwrap();
        u64::from_be_bytes(total) as f64 / f64::from(1 << 20)
    };
    as_client(move || Rate::of(run))
}

/// A byte there and a byte back on one connection.
fn round_trips(time: Duration) -> Rate {
    let run = move || {
        let mut stream = TcpStream::connect(at(DECLARED)).unwrap();
        stream.set_nodelay(true).unwrap();
        let begun = Instant::now();
        let mut count = 0.0;
        while begun.elapsed() < time {
            stream.write_all(b"p").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            count += 1.0;
        }
        count
    };
    as_client(move || Rate::of(run))
}
