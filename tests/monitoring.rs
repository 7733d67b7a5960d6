//! What is shipped for Prometheus and Grafana, held against what the daemon tells, and judged by Prometheus' own tool.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "page/world.rs"]
#[expect(dead_code, reason = "the test of the page uses the rest")]
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cofferdam::daemon::flows::{EndKind, FlowVerdict};
use cofferdam::daemon::metrics::{self, Sources};
use cofferdam::daemon::status::{GitStatus, Status};
use world::{World, end, found, service, shop};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/monitoring")
}

/// Metrics with everything in them that there can be.
fn full() -> String {
    let mut status: Status = shop();
    status.edges[0].until = Some("2026-12-01T00:00:00Z".to_owned());
    status.unenforceable_counts.insert("privileged".to_owned(), 1);
    status.policy.git = Some(GitStatus {
        fetched: Some("2026-11-27T00:00:00Z".to_owned()),
        ..GitStatus::default()
    });
    let world = World::new(status.clone());
    for verdict in [FlowVerdict::Denied, FlowVerdict::Audited, FlowVerdict::Identity] {
        world.attempt(
            service("shop/web", 1),
            end(EndKind::World, "192.0.2.1"),
            80,
            verdict,
        );
    }
    let measures = metrics::Measures::default();
    measures.pass("listing", Duration::from_millis(2));
    measures.answered("connect", Duration::from_millis(2));
    measures.lead(Duration::from_millis(2));
    let (totals, missed) = world.flows.totals();
    metrics::text(&Sources {
        status: status.into(),
        totals,
        missed,
        measures,
        audit: found("worker").into(),
    })
}

/// Names of metrics that a text has in it.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("cofferdam_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_metric_that_is_asked_for_is_there() {
    let metrics = full();
    let told: BTreeSet<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for (file, least) in [
        ("grafana-dashboard.json", 15),
        ("alerts.yaml", 14),
        ("alerts.test.yaml", 14),
    ] {
        let asked = names(&fs::read_to_string(folder().join(file)).unwrap());
        assert!(asked.len() >= least, "{file}: {asked:?}");
        let missing: Vec<_> = asked
            .iter()
            .filter(|name| !told.contains(name.as_str()))
            .collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}");
    }
    let dashboard = fs::read(folder().join("grafana-dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_slice(&dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    // And every one that is told is explained.
    let documented = fs::read_to_string(folder().join("../../docs/monitoring.md")).unwrap();
    for name in told {
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|it| name.strip_suffix(it))
            .unwrap_or(name);
        assert!(
            documented.contains(&format!("`{name}`")),
            "docs/monitoring.md does not explain {name}"
        );
    }
}

#[test]
fn promtool_finds_nothing_wrong_with_rules_and_metrics() {
    let metrics = tempfile::NamedTempFile::new().unwrap();
    fs::write(metrics.path(), full()).unwrap();
    let output = Command::new(folder().join("check.sh"))
        .arg(metrics.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    println!("{said}");
}
