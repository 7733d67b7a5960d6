//! The status as Prometheus text. In: a [`Status`]. Out: what a scraper, or node_exporter's textfile collector, reads.
//!
//! Labels are few: kinds of findings, states, and those edges that end by themselves.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::status::{State, Status};

/// The most edges with an end that are told; the earliest first.
const MOST_ENDINGS: usize = 1000;

type Labels = Vec<(String, String)>;

/// The metrics of a status, in the OpenMetrics text format.
pub fn text(status: &Status) -> String {
    let mut registry = Registry::with_prefix("cofferdam");
    let mut info = vec![("version".to_owned(), status.version.clone())];
    info.extend(
        status
            .policy
            .revision
            .iter()
            .map(|it| ("revision".to_owned(), it.clone())),
    );
    let git = status.policy.git.as_ref();
    info.extend(
        git.and_then(|it| it.commit.clone())
            .map(|it| ("commit".to_owned(), it)),
    );
    registry.register("policy", "The policy in force", Info::new(info));

    let states = by_label(
        "state",
        [State::Starting, State::Waiting, State::Enforcing, State::Degraded].map(|state| {
            let name = format!("{state:?}").to_lowercase();
            (name, i64::from(state == status.state))
        }),
    );
    registry.register("state", "1 for the state that the daemon is in", states);
    let refused = status.policy.refused.is_some() || git.is_some_and(|it| it.refused.is_some());
    for (name, help, value) in [
        (
            "degraded_reasons",
            "What is not as it should be",
            status.reasons.len(),
        ),
        (
            "policy_refused",
            "Whether a newer policy was refused",
            usize::from(refused),
        ),
        (
            "policy_last_good",
            "Whether the policy in force is the last good one, for want of a valid one",
            usize::from(status.policy.last_good.is_some()),
        ),
        (
            "quarantined_containers",
            "Containers that services of two segments claim",
            status.quarantined.len(),
        ),
        (
            "isolated_containers",
            "Containers that were cut from guarded networks",
            status.isolated.len(),
        ),
    ] {
        registry.register(name, help, gauge(value));
    }
    let kinds = status.unenforceable_counts.iter();
    registry.register(
        "unenforceable_containers",
        "Containers that no rule can hold, by kind",
        by_label(
            "kind",
            kinds.map(|(kind, number)| (kind.clone(), signed(*number))),
        ),
    );
    for (name, help, value) in [
        ("passes", "Passes of the daemon's loop", Some(status.passes.count)),
        (
            "repairs",
            "How often changes by others were put back",
            Some(status.passes.repairs),
        ),
        (
            "denied_packets",
            "Packets that were denied",
            status.denied_packets,
        ),
        (
            "audited_packets",
            "Packets that passed only because of audit",
            status.audited_packets,
        ),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(value.unwrap_or(0));
        registry.register(name, help, counter);
    }
    registry.register(
        "edge_end_timestamp_seconds",
        "When an edge ends by itself, since the epoch",
        endings(status),
    );
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn endings(status: &Status) -> Family<Labels, Gauge> {
    let mut ending: Vec<(i64, Labels)> = Vec::new();
    for edge in &status.edges {
        let until = edge
            .until
            .as_ref()
            .and_then(|it| it.parse::<jiff::Timestamp>().ok());
        let Some(until) = until else { continue };
        let labels = [
            ("from", edge.from.clone()),
            ("to", edge.to.clone()),
            ("ports", edge.ports.join(",")),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value));
        ending.push((until.as_second(), labels.into()));
    }
    ending.sort();
    let family = Family::<Labels, Gauge>::default();
    for (second, labels) in ending.into_iter().take(MOST_ENDINGS) {
        family.get_or_create(&labels).set(second);
    }
    family
}

fn by_label(label: &str, values: impl IntoIterator<Item = (String, i64)>) -> Family<Labels, Gauge> {
    let family = Family::<Labels, Gauge>::default();
    for (value, number) in values {
        family.get_or_create(&vec![(label.to_owned(), value)]).set(number);
    }
    family
}

fn gauge(value: usize) -> Gauge {
    let gauge = Gauge::<i64>::default();
    gauge.set(signed(value));
    gauge
}

fn signed(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::EdgeStatus;

    #[test]
    fn the_status_as_text() {
        let mut status = Status::starting();
        status.state = State::Degraded;
        status.reasons = vec!["one".to_owned()];
        status.policy.revision = Some("abc".to_owned());
        status.denied_packets = Some(7);
        status.unenforceable_counts = [("privileged".to_owned(), 2)].into();
        let edge = |to: &str, until: Option<&str>| EdgeStatus {
            from: "shop/web".to_owned(),
            to: to.to_owned(),
            ports: vec!["80/tcp".to_owned()],
            declared: "shop.yaml:1:1".to_owned(),
            why: None,
            until: until.map(str::to_owned),
            counter: String::new(),
            packets: None,
            bytes: None,
        };
        status.edges = vec![
            edge("shop/\"api\"\n", Some("2026-12-01T00:00:00Z")),
            edge("shop/db", None),
        ];
        let text = text(&status);
        for line in [
            "cofferdam_state{state=\"degraded\"} 1",
            "cofferdam_state{state=\"enforcing\"} 0",
            "cofferdam_degraded_reasons 1",
            "cofferdam_denied_packets_total 7",
            "cofferdam_unenforceable_containers{kind=\"privileged\"} 2",
            "cofferdam_edge_end_timestamp_seconds{from=\"shop/web\",to=\"shop/\\\"api\\\"\\n\",ports=\"80/tcp\"} 1796083200",
            "# EOF",
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is missing from\n{text}"
            );
        }
        assert!(text.contains("revision=\"abc\""), "{text}");
        assert!(!text.contains("shop/db"), "an edge without an end needs no line");
    }
}
