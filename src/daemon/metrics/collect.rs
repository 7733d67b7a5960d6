//! What the status and the flow log tell, as metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Error;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;

use super::{MOST_SETS, OTHER, Sources, audited};
use crate::daemon::flows::FlowVerdict;
use crate::daemon::status::{ContainerStatus, EdgeStatus, State, Status};

#[derive(Debug)]
pub(super) struct Told(pub(super) Sources);

pub(super) type Labels = Vec<(&'static str, String)>;

impl Collector for Told {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Out(encoder);
        let status = &self.0.status;
        policy(&mut out, status)?;
        health(&mut out, status)?;
        containers(&mut out, status)?;
        edges(&mut out, status)?;
        audited::findings(&mut out, &self.0.audit)?;
        self.flows(&mut out)
    }
}

impl Told {
    fn flows(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let Sources {
            status,
            totals,
            missed,
            ..
        } = &self.0;
        out.counter(
            "cofferdam_denied_packets",
            "Packets that were denied, as the kernel counts them since the tables were made",
            status.denied_packets.unwrap_or_default(),
        )?;
        out.counter(
            "cofferdam_audited_packets",
            "Packets that no edge permits and that passed because of audit, as the kernel counts them since the tables were made",
            status.audited_packets.unwrap_or_default(),
        )?;
        for (verdict, name, help) in [
            (
                FlowVerdict::Denied,
                "cofferdam_denied_attempts",
                "Connections that were tried and denied, from the flow log: a packet that is sent again is no new one",
            ),
            (
                FlowVerdict::Audited,
                "cofferdam_audited_attempts",
                "Connections that no edge permits and that passed because of audit, from the flow log",
            ),
            (
                FlowVerdict::Identity,
                "cofferdam_identity_violations",
                "Attempts with an address, an Ethernet address and a port that are not bound together, from the flow log",
            ),
        ] {
            let set = |from: &str, to: &str, reason: &str| -> Labels {
                let labels = [("from", from), ("to", to), ("reason", reason)];
                labels.map(|(name, value)| (name, value.to_owned())).into()
            };
            let sums = totals.of(verdict);
            let mut samples: Vec<_> = sums
                .map(|(flow, sum)| (set(&flow.from, &flow.to, flow.reason), sum))
                .collect();
            if totals.other(verdict) > 0 {
                samples.push((set(OTHER, OTHER, OTHER), totals.other(verdict)));
            }
            out.counters(name, help, samples)?;
        }
        for (name, help, value) in [
            (
                "cofferdam_flow_log_unlogged_packets",
                "Denied packets beyond the kernel's rate for one end: counted, but not in the flow log",
                missed.unlogged_packets,
            ),
            (
                "cofferdam_flow_log_lost_packets",
                "Denied packets that the kernel logged and that were not read in time",
                missed.lost_packets,
            ),
            (
                "cofferdam_flow_log_forgotten_flows",
                "Flows that made room for others in the flow log",
                missed.forgotten_flows,
            ),
        ] {
            out.counter(name, help, value)?;
        }
        Ok(())
    }
}

fn policy(out: &mut Out<'_>, status: &Status) -> Result<(), Error> {
    let version = [("version", status.version.clone())];
    out.info("cofferdam_build", "The version of the daemon", version.into())?;
    let policy = &status.policy;
    let git = policy.git.as_ref();
    let revision = policy.revision.clone().unwrap_or_default();
    let commit = git.and_then(|it| it.commit.clone()).unwrap_or_default();
    let labels = vec![("revision", revision), ("commit", commit)];
    out.info(
        "cofferdam_policy",
        "The policy in force; empty: there is none",
        labels,
    )?;
    let accepted = policy.accepted.map(|it| (Labels::new(), it.as_second()));
    out.gauges(
        "cofferdam_policy_accepted_timestamp_seconds",
        "When the revision in force was accepted, since the epoch",
        accepted,
    )?;
    let fetched = git.and_then(|it| it.fetched.as_deref()?.parse::<Timestamp>().ok());
    out.gauges(
        "cofferdam_policy_fetched_timestamp_seconds",
        "When the repository of the policy was reached last, since the epoch",
        fetched.map(|it| (Labels::new(), it.as_second())),
    )?;
    let reasons = refused(status);
    let samples = REFUSED.map(|reason| {
        let value = i64::from(reasons.contains(reason));
        (vec![("reason", reason.to_owned())], value)
    });
    out.gauges(
        "cofferdam_policy_refused",
        "1 where a newer policy was refused, by the reason",
        samples,
    )?;
    let revision = policy.refused.as_ref().and_then(|it| it.revision.clone());
    let commit = git.and_then(|it| it.refused.as_ref()).map(|it| it.commit.clone());
    if revision.is_some() || commit.is_some() {
        let labels = vec![
            ("revision", revision.unwrap_or_default()),
            ("commit", commit.unwrap_or_default()),
        ];
        out.info(
            "cofferdam_policy_refused_revision",
            "The newer policy that was refused",
            labels,
        )?;
    }
    out.gauge(
        "cofferdam_policy_last_good",
        "Whether the policy in force is the last good one, for want of a valid one",
        usize::from(policy.last_good.is_some()),
    )
}

/// Why a newer policy is not in force.
const REFUSED: [&str; 3] = ["faults", "unreadable", "commit"];

fn refused(status: &Status) -> BTreeSet<&'static str> {
    let mut reasons = BTreeSet::new();
    if let Some(refused) = &status.policy.refused {
        // What has no revision could not be read as a whole.
        reasons.insert(match refused.revision {
            Some(_) => "faults",
            None => "unreadable",
        });
    }
    if let Some(git) = &status.policy.git {
        reasons.extend(git.refused.as_ref().map(|_| "commit"));
        reasons.extend(git.failure.as_ref().map(|_| "unreadable"));
    }
    reasons
}

fn health(out: &mut Out<'_>, status: &Status) -> Result<(), Error> {
    let states = [State::Starting, State::Waiting, State::Enforcing, State::Degraded];
    let states = states.map(|state| {
        let name = format!("{state:?}").to_lowercase();
        (vec![("state", name)], i64::from(state == status.state))
    });
    out.gauges("cofferdam_state", "1 for the state that the daemon is in", states)?;
    let settled = usize::from(status.settled);
    for (name, help, value) in [
        (
            "cofferdam_degraded_reasons",
            "What is not as it should be",
            status.reasons.len(),
        ),
        (
            "cofferdam_settled",
            "Whether everything that was seen is in force",
            settled,
        ),
        (
            "cofferdam_engine_connected",
            "Whether the engine is connected",
            usize::from(status.engine.is_some()),
        ),
    ] {
        out.gauge(name, help, value)?;
    }
    for (name, help, value) in [
        (
            "cofferdam_passes",
            "Passes of the daemon's loop",
            status.passes.count,
        ),
        (
            "cofferdam_repairs",
            "How often changes by others were put back",
            status.passes.repairs,
        ),
    ] {
        out.counter(name, help, value)?;
    }
    Ok(())
}

fn containers(out: &mut Out<'_>, status: &Status) -> Result<(), Error> {
    let mut standings: BTreeMap<&str, usize> = ["managed", "unmanaged", "quarantined", "isolated"]
        .map(|it| (it, 0))
        .into();
    let mut endpoints: BTreeMap<&str, usize> = ["bound", "pending", "quarantined", "isolated"]
        .map(|it| (it, 0))
        .into();
    let mut seen = BTreeSet::new();
    let managed = status.services.values().flat_map(|it| &it.containers);
    // A container of several services is one container.
    for container in managed.filter(|it| seen.insert(it.id.as_str())) {
        *standings.entry("managed").or_default() += 1;
        for endpoint in container.endpoints.iter().filter(|it| it.is_wanted()) {
            let state = if endpoint.bound { "bound" } else { "pending" };
            *endpoints.entry(state).or_default() += 1;
        }
    }
    for container in &status.others {
        let standing = standing(status, container);
        *standings.entry(standing).or_default() += 1;
        if standing != "unmanaged" {
            *endpoints.entry(standing).or_default() += container.endpoints.len();
        }
    }
    let labelled = |label: &'static str, counts: BTreeMap<&str, usize>| -> Vec<(Labels, i64)> {
        let samples = counts
            .into_iter()
            .map(|(name, number)| (vec![(label, name.to_owned())], signed(number)));
        samples.collect()
    };
    out.gauges(
        "cofferdam_containers",
        "Containers by their standing",
        labelled("standing", standings),
    )?;
    out.gauges(
        "cofferdam_endpoints",
        "Endpoints of containers that services select: bound in the kernel, pending, or of containers that are denied everything",
        labelled("state", endpoints),
    )?;
    let kinds = status
        .unenforceable_counts
        .iter()
        .map(|(kind, number)| (kind.as_str(), *number));
    out.gauges(
        "cofferdam_unenforceable_containers",
        "Containers that no rule can hold, by kind",
        labelled("kind", kinds.collect()),
    )?;
    let audited = status.audit.services.len();
    out.gauge(
        "cofferdam_audited_services",
        "Services that are in audit by themselves",
        audited,
    )?;
    out.gauge(
        "cofferdam_audit_host",
        "Whether every service is in audit",
        usize::from(status.audit.host.is_some()),
    )
}

fn standing(status: &Status, container: &ContainerStatus) -> &'static str {
    if status.quarantined.contains_key(&container.name) {
        "quarantined"
    } else if status.isolated.contains_key(&container.name) {
        "isolated"
    } else {
        "unmanaged"
    }
}

fn edges(out: &mut Out<'_>, status: &Status) -> Result<(), Error> {
    let labels = |edge: &EdgeStatus| -> Labels {
        vec![
            ("from", edge.from.clone()),
            ("to", edge.to.clone()),
            ("ports", edge.ports.join(",")),
        ]
    };
    // Edges that say the same have one counter; an order by their names keeps the same ones in front.
    let sorted: BTreeMap<Labels, &EdgeStatus> =
        status.edges.iter().map(|edge| (labels(edge), edge)).collect();
    for (name, help, value) in [
        (
            "cofferdam_edge_opening_packets",
            "Packets that opened connections by this edge, as the kernel counts them since the tables were made. Each connection has one or, where \
             it is sent again, a few; packets of connections that are open are not counted",
            (|edge| edge.packets) as fn(&EdgeStatus) -> Option<u64>,
        ),
        (
            "cofferdam_edge_opening_bytes",
            "Bytes of the packets that opened connections by this edge, not of the connections' contents",
            |edge| edge.bytes,
        ),
    ] {
        let known = sorted
            .iter()
            .filter_map(|(labels, edge)| Some((labels, value(edge)?)));
        let mut samples: Vec<(Labels, u64)> = Vec::new();
        let mut rest = None;
        for (labels, value) in known {
            if samples.len() < MOST_SETS {
                samples.push((labels.clone(), value));
            } else {
                *rest.get_or_insert(0_u64) += value;
            }
        }
        let other = |rest| {
            let labels = ["from", "to", "ports"].map(|label| (label, OTHER.to_owned()));
            (labels.into(), rest)
        };
        samples.extend(rest.map(other));
        out.counters(name, help, samples)?;
    }
    out.gauge("cofferdam_edges", "Edges in force", sorted.len())?;
    let mut endings: Vec<(i64, Labels)> = sorted
        .iter()
        .filter_map(|(labels, edge)| {
            let until = edge.until.as_ref()?.parse::<Timestamp>().ok()?;
            Some((until.as_second(), labels.clone()))
        })
        .collect();
    // The earliest first.
    endings.sort();
    endings.truncate(MOST_SETS);
    out.gauges(
        "cofferdam_edge_end_timestamp_seconds",
        "When an edge ends by itself, since the epoch",
        endings.into_iter().map(|(second, labels)| (labels, second)),
    )
}

pub(super) fn signed(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Writes families of metrics.
pub(super) struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: usize) -> Result<(), Error> {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(signed(value)).encode(encoder)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    fn info(&mut self, name: &str, help: &str, labels: Labels) -> Result<(), Error> {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        Info::new(labels).encode(encoder)
    }

    /// Nothing at all is said of a family without samples.
    pub(super) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, i64)>,
    ) -> Result<(), Error> {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            let gauge = ConstGauge::new(value);
            if labels.is_empty() {
                return gauge.encode(family);
            }
            gauge.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Result<(), Error> {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
