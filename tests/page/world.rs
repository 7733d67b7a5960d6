//! A daemon that is made up: what it tells is what the test says.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use cofferdam::audit::{Baseline, Code, Finding};
use cofferdam::daemon::control::InForce;
use cofferdam::daemon::flows::{Direction, EndKind, FlowEnd, FlowLog, FlowRecord, FlowVerdict};
use cofferdam::daemon::http::{Reading, serve_with};
use cofferdam::daemon::metrics::Measures;
use cofferdam::daemon::posture::{Audited, Draft, Report};
use cofferdam::daemon::status::{
    ContainerStatus, EdgeStatus, EndpointState, EndpointStatus, ServiceStatus, State, Status,
};
use cofferdam::daemon::told::Told;
use cofferdam::settings::http::Hosts;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What the made-up daemon tells.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) status: Arc<Mutex<Status>>,
    pub(crate) flows: FlowLog,
    pub(crate) audited: Audited,
    /// How often the status was read.
    pub(crate) readings: Arc<Mutex<usize>>,
}

impl World {
    pub(crate) fn new(status: Status) -> Self {
        Self {
            status: Arc::new(Mutex::new(status)),
            flows: FlowLog::new(Timestamp::now()),
            audited: Audited::default(),
            readings: Arc::default(),
        }
    }

    /// Serves it; the port is chosen by the kernel where it is 0. Returns where.
    pub(crate) async fn serve(&self, port: u16) -> std::net::SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let told = Told {
            status: watch::channel(Arc::new(Status::starting())).1,
            policy: watch::channel(Arc::new(InForce::default())).1,
            flows: self.flows.clone(),
            usage: cofferdam::daemon::usage::Usage::default(),
            measures: Measures::default(),
            audited: self.audited.clone(),
        };
        let world = self.clone();
        let read = move || -> Reading {
            let world = world.clone();
            Box::pin(async move {
                *world.readings.lock().unwrap() += 1;
                Ok(world.status.lock().unwrap().clone())
            })
        };
        let hosts = Hosts(BTreeSet::from(["board.example".to_owned()]));
        tokio::spawn(serve_with(listener, hosts, told, read));
        address
    }

    /// One more attempt.
    pub(crate) fn attempt(&self, from: FlowEnd, to: FlowEnd, port: u16, verdict: FlowVerdict) {
        self.flows.put(flow(from, to, port, verdict));
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap());
    }
}

pub(crate) fn flow(from: FlowEnd, to: FlowEnd, port: u16, verdict: FlowVerdict) -> FlowRecord {
    let name = |end: &FlowEnd| {
        end.services
            .iter()
            .next()
            .cloned()
            .unwrap_or(format!("{:?}", end.kind).to_lowercase())
    };
    FlowRecord {
        seq: 0,
        verdict,
        direction: Direction::Internal,
        reason: match verdict {
            FlowVerdict::Identity => "the address is bound to another port".to_owned(),
            _ => format!("no edge from {} to {}", name(&from), name(&to)),
        },
        from,
        to,
        protocol: "tcp".to_owned(),
        port: Some(port),
        icmp_type: None,
        many_ports: false,
        attempts: 1,
        packets: 1,
        first_seen: Timestamp::now(),
        last_seen: Timestamp::now(),
    }
}

pub(crate) fn service(name: &str, number: u8) -> FlowEnd {
    FlowEnd {
        kind: EndKind::Service,
        services: BTreeSet::from([name.to_owned()]),
        container: Some(format!("{}-{number}", name.replace('/', "-"))),
        container_id: None,
        address: format!("172.20.0.{number}").parse().ok(),
    }
}

pub(crate) fn end(kind: EndKind, address: &str) -> FlowEnd {
    FlowEnd {
        kind,
        services: BTreeSet::new(),
        container: None,
        container_id: None,
        address: address.parse().ok(),
    }
}

pub(crate) fn edge(from: &str, to: &str, ports: &[&str], packets: u64) -> EdgeStatus {
    EdgeStatus {
        from: from.to_owned(),
        to: to.to_owned(),
        ports: ports.iter().map(|it| (*it).to_owned()).collect(),
        declared: "shop.yaml:12:5".to_owned(),
        why: None,
        until: None,
        counter: format!("{from}{to}"),
        packets: Some(packets),
        bytes: Some(packets * 60),
        last_used: None,
    }
}

pub(crate) fn add_service(status: &mut Status, name: &str, containers: u8) {
    let container = |number: u8| ContainerStatus {
        name: format!("{}-{number}", name.replace('/', "-")),
        id: format!("{name}{number}"),
        services: Vec::new(),
        network_mode: None,
        endpoints: vec![EndpointStatus {
            network: "shop_default".to_owned(),
            addresses: vec![format!("172.20.0.{}", number + 1).parse().unwrap()],
            bound: true,
            state: EndpointState::Bound,
        }],
    };
    let containers = (1..=containers).map(container).collect();
    status
        .services
        .insert(name.to_owned(), ServiceStatus { containers });
}

/// What a look at the host would tell: of a container with a finding and one that is accepted, and of one with another name.
pub(crate) fn found(other: &str) -> Report {
    let finding = |code: Code, container: &str, object: &str| Finding {
        severity: code.severity(),
        code,
        container: Some(container.to_owned()),
        object: None,
        message: format!("has {object}"),
        mend: "drop `--it`".to_owned(),
        is_running: container == "web",
    };
    let baseline = "accepted: [{ code: CFA012, container: web, reason: known, until: 2999-12-31 }]";
    let baseline = Baseline::parse(baseline).unwrap();
    let mut draft = Draft::new(Timestamp::now(), baseline.judging("2026-11-27".parse().unwrap()));
    draft.take(vec![
        finding(Code::WritableRoot, "web", "a writable root"),
        finding(Code::Privileged, "web", "every right"),
    ]);
    draft.take(vec![finding(Code::HostPath, other, other)]);
    draft.finish(vec![other.to_owned()])
}

/// The shop of the README.
pub(crate) fn shop() -> Status {
    let mut status = Status::starting();
    status.state = State::Enforcing;
    status.settled = true;
    status.engine = Some("28.5.2".to_owned());
    status.policy.revision = Some("3f9a1c72be04d1a9".to_owned());
    status.policy.accepted = Some(Timestamp::now());
    status.policy.directory = "/etc/cofferdam/policies".to_owned();
    status.passes.count = 42;
    status.passes.last_cause = "network read".to_owned();
    status.denied_packets = Some(0);
    for (name, containers) in [("web", 2), ("api", 2), ("worker", 1), ("cache", 1), ("db", 1)] {
        add_service(&mut status, &format!("shop/{name}"), containers);
    }
    status.edges = vec![
        edge("world", "shop/web", &["80/tcp"], 1843),
        edge("shop/web", "shop/api", &["8000/tcp"], 921),
        edge("shop/api", "shop/cache", &["6379/tcp"], 411),
        edge("shop/worker", "shop/cache", &["6379/tcp"], 77),
        edge("shop/api", "shop/db", &["5432/tcp"], 388),
        edge("shop/worker", "shop/db", &["5432/tcp"], 0),
    ];
    status
}

/// So many services in ten segments, which the last one's gate leads to.
pub(crate) fn many(services: usize) -> Status {
    let mut status = shop();
    status.services.clear();
    status.edges.clear();
    let segments = [
        "billing", "mail", "media", "orders", "report", "search", "stock", "team", "users", "gate",
    ];
    let roles = [
        "web", "api", "db", "cache", "queue", "worker", "cron", "auth", "feed", "sync",
    ];
    let calls = [
        (0, 1),
        (0, 7),
        (1, 2),
        (1, 3),
        (1, 4),
        (5, 4),
        (5, 2),
        (6, 2),
        (8, 1),
        (9, 2),
    ];
    let name = |segment: usize, role: usize, copy: usize| match copy {
        0 => format!("{}/{}", segments[segment], roles[role]),
        copy => format!("{}/{}-{copy}", segments[segment], roles[role]),
    };
    for n in 0..services {
        add_service(
            &mut status,
            &name(n % 10, n / 10 % 10, n / 100),
            u8::try_from(n % 3 + 1).unwrap(),
        );
    }
    for segment in 0..10 {
        for copy in 0..services.div_ceil(100) {
            for (n, (from, to)) in calls.iter().enumerate() {
                let used = ((segment * 37 + n * 13) % 11) as u64 * 40;
                let edge = edge(
                    &name(segment, *from, copy),
                    &name(segment, *to, copy),
                    &["8080/tcp"],
                    used,
                );
                status.edges.push(edge);
            }
        }
        if segment < 9 {
            status
                .edges
                .push(edge(&name(9, 0, 0), &name(segment, 0, 0), &["443/tcp"], 512));
            status.edges.push(edge(
                &name(segment, 5, 0),
                &name(1, 1, 0),
                &["25/tcp"],
                segment as u64,
            ));
        }
    }
    status.edges.retain(|edge| {
        [&edge.from, &edge.to]
            .iter()
            .all(|it| status.services.contains_key(*it))
    });
    status
        .edges
        .push(edge("world", &name(9, 0, 0), &["443/tcp"], 12_345));
    status
}
