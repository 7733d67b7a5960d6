use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::audit::{Baseline, Code, Finding};
use crate::daemon::flows::FlowTotals;
use crate::daemon::flows::record::{Direction, EndKind, FlowEnd, FlowRecord, FlowVerdict};
use crate::daemon::posture::Draft;
use crate::daemon::status::{
    ContainerStatus, EdgeStatus, EndpointStatus, GitStatus, RefusedCommit, ServiceStatus, State,
};

fn edge(from: &str, to: &str) -> EdgeStatus {
    EdgeStatus {
        from: from.to_owned(),
        to: to.to_owned(),
        ports: vec!["80/tcp".to_owned()],
        declared: "shop.yaml:1:1".to_owned(),
        why: None,
        until: None,
        counter: format!("{from}{to}"),
        packets: Some(3),
        bytes: Some(180),
        last_used: None,
    }
}

fn flow(from: &str, to: &str) -> FlowRecord {
    let end = |service: &str| FlowEnd {
        kind: EndKind::Service,
        services: BTreeSet::from([service.to_owned()]),
        container: Some(format!("{service}-1")),
        container_id: None,
        address: "10.0.0.1".parse().ok(),
    };
    FlowRecord {
        seq: 1,
        verdict: FlowVerdict::Denied,
        direction: Direction::Internal,
        from: end(from),
        to: end(to),
        protocol: "tcp".to_owned(),
        port: Some(80),
        icmp_type: None,
        many_ports: false,
        reason: format!("no edge from {from} to {to}"),
        attempts: 1,
        packets: 1,
        first_seen: jiff::Timestamp::UNIX_EPOCH,
        last_seen: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn sources(status: Status) -> Sources {
    Sources {
        status: Arc::new(status),
        totals: FlowTotals::default(),
        missed: Missed::default(),
        measures: Measures::default(),
        audit: Arc::default(),
    }
}

fn has(text: &str, line: &str) {
    assert!(
        text.lines().any(|it| it == line),
        "{line} is missing from\n{text}"
    );
}

/// Each sample's value by its name and labels, checked on the way: every family is announced once, before its samples.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut announced = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(announced.insert(name, kind).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|base| announced.get(base) == Some(&"histogram"));
            let kind = announced.get(family.unwrap_or(name));
            assert!(kind.is_some(), "{name} was not announced");
            assert_eq!(name.ends_with("_total"), kind == Some(&"counter"), "{name}");
            let value = value.parse().unwrap();
            assert!(
                samples.insert(sample.to_owned(), value).is_none(),
                "{sample} twice"
            );
        }
    }
    samples
}

#[test]
fn the_status_as_text() {
    let mut status = Status::starting();
    status.state = State::Degraded;
    status.reasons = vec!["one".to_owned()];
    status.policy.revision = Some("abc".to_owned());
    status.policy.accepted = Some("2026-11-27T00:00:00Z".parse().unwrap());
    status.denied_packets = Some(7);
    status.unenforceable_counts = [("privileged".to_owned(), 2)].into();
    let endpoint = |bound| EndpointStatus {
        network: "n".to_owned(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        bound,
        state: crate::daemon::status::EndpointState::default(),
    };
    let container = ContainerStatus {
        name: "web-1".to_owned(),
        id: "1".to_owned(),
        services: Vec::new(),
        network_mode: None,
        endpoints: vec![endpoint(true), endpoint(false)],
    };
    let service = ServiceStatus {
        containers: vec![container],
    };
    // Of two services, and one container all the same.
    status.services.insert("shop/web".to_owned(), service.clone());
    status.services.insert("shop/all".to_owned(), service);
    let mut ending = edge("shop/web", "shop/\"api\"\n");
    ending.until = Some("2026-12-01T00:00:00Z".to_owned());
    status.edges = vec![ending, edge("shop/web", "shop/db")];
    let mut sources = sources(status);
    sources.totals.add(&flow("shop/web", "shop/db"), 4);
    sources.totals.add(&flow("shop/web", "shop/db"), 5);
    sources.measures.pass("listing", Duration::from_millis(3));
    sources.measures.answered("connect", Duration::from_millis(7));
    sources.measures.lead(Duration::ZERO);
    let text = text(&sources);
    for line in [
        "cofferdam_state{state=\"degraded\"} 1",
        "cofferdam_state{state=\"enforcing\"} 0",
        "cofferdam_degraded_reasons 1",
        "cofferdam_denied_packets_total 7",
        "cofferdam_policy_info{revision=\"abc\",commit=\"\"} 1",
        "cofferdam_policy_accepted_timestamp_seconds 1795737600",
        "cofferdam_unenforceable_containers{kind=\"privileged\"} 2",
        "cofferdam_containers{standing=\"managed\"} 1",
        "cofferdam_endpoints{state=\"bound\"} 1",
        "cofferdam_endpoints{state=\"pending\"} 1",
        "cofferdam_edge_opening_packets_total{from=\"shop/web\",to=\"shop/db\",ports=\"80/tcp\"} 3",
        "cofferdam_edge_end_timestamp_seconds{from=\"shop/web\",to=\"shop/\\\"api\\\"\\n\",ports=\"80/tcp\"} 1796083200",
        "cofferdam_denied_attempts_total{from=\"shop/web\",to=\"shop/db\",reason=\"no-edge\"} 9",
        "cofferdam_pass_duration_seconds_bucket{le=\"0.005\",cause=\"listing\"} 1",
        "cofferdam_event_to_kernel_seconds_bucket{le=\"0.005\",event=\"connect\"} 0",
        "cofferdam_bound_before_start_seconds_bucket{le=\"0.0\"} 1",
    ] {
        has(&text, line);
    }
    let samples = parse(&text);
    let ends = samples.keys().filter(|it| it.starts_with("cofferdam_edge_end"));
    assert_eq!(ends.count(), 1, "an edge without an end needs no line");
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    has(&openmetrics(&sources), "# EOF");
}

#[test]
fn a_refused_policy_is_told_by_reason_and_revision() {
    let mut status = Status::starting();
    status.policy.revision = Some("good".to_owned());
    let text_of = |status: &Status| text(&sources(status.clone()));
    let before = text_of(&status);
    has(&before, "cofferdam_policy_info{revision=\"good\",commit=\"\"} 1");
    has(&before, "cofferdam_policy_refused{reason=\"commit\"} 0");
    assert!(!before.contains("refused_revision"), "{before}");
    status.policy.git = Some(GitStatus {
        commit: Some("c0ffee".to_owned()),
        refused: Some(RefusedCommit {
            commit: "bad".to_owned(),
            why: "a signature is wrong".to_owned(),
        }),
        ..GitStatus::default()
    });
    let refused = text_of(&status);
    has(
        &refused,
        "cofferdam_policy_info{revision=\"good\",commit=\"c0ffee\"} 1",
    );
    has(&refused, "cofferdam_policy_refused{reason=\"commit\"} 1");
    has(&refused, "cofferdam_policy_refused{reason=\"faults\"} 0");
    has(
        &refused,
        "cofferdam_policy_refused_revision_info{revision=\"\",commit=\"bad\"} 1",
    );
}

#[test]
fn five_thousand_services_with_hostile_names_stay_bounded_and_well_formed() {
    let hostile = [
        "<script>alert(1)</script>",
        "\u{202e}txt.exe",
        "quote\"brace}newline\nback\\slash",
        "# HELP x y",
    ];
    let name = |n: usize| format!("s{n}/{}{}", hostile[n % hostile.len()], "x".repeat(200));
    let mut status = Status::starting();
    let mut totals = FlowTotals::default();
    for n in 0..5000 {
        status.services.insert(name(n), ServiceStatus::default());
        let mut ending = edge(&name(n), &name(n + 1));
        ending.until = Some("2026-12-01T00:00:00Z".to_owned());
        status.edges.push(ending);
        totals.add(&flow(&name(n), &name(n + 2)), 2);
    }
    let mut sources = sources(status);
    sources.totals = totals;
    let text = text(&sources);
    let samples = parse(&text);
    let sum = |name: &str| -> f64 {
        let of = samples
            .iter()
            .filter(|(it, _)| it.split('{').next() == Some(name));
        of.map(|(_, value)| value).sum()
    };
    // Nothing is lost for being beyond the bound.
    assert!((sum("cofferdam_edge_opening_packets_total") - 15_000.0).abs() < 0.5);
    assert!((sum("cofferdam_denied_attempts_total") - 10_000.0).abs() < 0.5);
    has(
        &text,
        "cofferdam_edge_opening_packets_total{from=\"other\",to=\"other\",ports=\"other\"} 12000",
    );
    has(
        &text,
        "cofferdam_denied_attempts_total{from=\"other\",to=\"other\",reason=\"other\"} 8000",
    );
    assert!(samples.len() < 4 * MOST_SETS + 200, "{} samples", samples.len());
    // Inside of labels alone.
    assert!(!text.lines().any(|line| line.starts_with("# HELP x y")));
    // The same ones have labels of their own each time.
    assert!(samples.keys().eq(parse(&super::text(&sources)).keys()));
}

#[test]
fn findings_are_counted_by_code_and_what_is_accepted_apart() {
    let finding = |code: Code, container: Option<&str>| Finding {
        severity: code.severity(),
        code,
        container: container.map(str::to_owned),
        object: None,
        message: "m".to_owned(),
        mend: "m".to_owned(),
        is_running: true,
    };
    let mut sources = sources(Status::starting());
    // Before it was looked nothing is said: 0 would be a lie.
    assert!(!text(&sources).contains("cofferdam_audit_findings"));
    let baseline = "accepted:\n\
        - { code: CFA002, container: known, reason: r, until: 2026-12-31 }\n\
        - { code: CFA001, container: gone, reason: r, until: 2026-12-31 }\n";
    let baseline = Baseline::parse(baseline).unwrap();
    let report = |today: &str| {
        let judging = baseline.judging(today.parse().unwrap());
        let mut draft = Draft::new("2026-11-27T00:00:00Z".parse().unwrap(), judging);
        draft.take(vec![finding(Code::Icc, None)]);
        draft.take(vec![finding(Code::Privileged, Some("known"))]);
        draft.take(vec![
            finding(Code::NetRaw, Some("<script>")),
            finding(Code::Privileged, Some("<script>")),
        ]);
        draft.finish(Vec::new())
    };
    sources.audit = Arc::new(report("2026-12-31"));
    let told = text(&sources);
    for line in [
        "cofferdam_audit_findings{code=\"CFA002\",severity=\"critical\"} 1",
        "cofferdam_audit_findings{code=\"CFA008\",severity=\"medium\"} 1",
        "cofferdam_audit_findings{code=\"CFA104\",severity=\"medium\"} 1",
        "cofferdam_audit_findings{code=\"CFA001\",severity=\"critical\"} 0",
        "cofferdam_audit_accepted_findings{code=\"CFA002\",severity=\"critical\"} 1",
        "cofferdam_audit_stale_acceptances 1",
        "cofferdam_audit_timestamp_seconds 1795737600",
    ] {
        has(&told, line);
    }
    assert!(!told.contains("script"), "a container's name is no label");
    assert_eq!(
        parse(&told)
            .keys()
            .filter(|it| it.starts_with("cofferdam_audit_findings{"))
            .count(),
        Code::ALL.len()
    );
    // The day after, the acceptance is over.
    sources.audit = Arc::new(report("2027-01-01"));
    let told = text(&sources);
    has(
        &told,
        "cofferdam_audit_findings{code=\"CFA002\",severity=\"critical\"} 2",
    );
    has(&told, "cofferdam_audit_stale_acceptances 2");
    assert!(!told.contains("cofferdam_audit_accepted_findings"), "{told}");
}
