//! The status as the page wants it: what seldom changes (who there is and which edges), apart from what always does
//! (counters).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::daemon::status::{ContainerStatus, GitStatus, LastGood, Refused, State, Status};

/// What seldom changes.
#[derive(Debug, Serialize)]
pub(super) struct View<'a> {
    version: &'a str,
    state: State,
    settled: bool,
    reasons: &'a [String],
    engine: Option<&'a str>,
    policy: PolicyView<'a>,
    /// By `segment/service`.
    services: BTreeMap<&'a str, ServiceView>,
    edges: Vec<EdgeView<'a>>,
    quarantined: &'a BTreeMap<String, Vec<String>>,
    isolated: &'a BTreeMap<String, Vec<String>>,
    unenforceable: &'a BTreeMap<String, Vec<String>>,
    unmanaged: usize,
    repairs: u64,
    drift: Option<String>,
    audit_host: bool,
}

#[derive(Debug, Serialize)]
struct PolicyView<'a> {
    revision: Option<&'a str>,
    accepted: Option<String>,
    directory: &'a str,
    refused: Option<&'a Refused>,
    last_good: Option<&'a LastGood>,
    git: Option<GitView<'a>>,
}

/// Without the times of fetches, which change all the time.
#[derive(Debug, Serialize)]
struct GitView<'a> {
    url: &'a str,
    reference: &'a str,
    commit: Option<&'a str>,
    refused: Option<String>,
    failure: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct ServiceView {
    containers: usize,
    endpoints: usize,
    bound: usize,
    audit: bool,
}

#[derive(Debug, Serialize)]
struct EdgeView<'a> {
    from: &'a str,
    to: &'a str,
    ports: &'a [String],
    declared: &'a str,
    why: Option<&'a str>,
    until: Option<&'a str>,
}

/// What changes all the time. `edges` are in the order of the view's: packets that opened connections, and when the last one
/// did.
#[derive(Debug, Serialize)]
pub(super) struct Counters<'a> {
    edges: Vec<(Option<u64>, Option<&'a str>)>,
    denied_packets: Option<u64>,
    audited_packets: Option<u64>,
    passes: u64,
    last_cause: &'a str,
    last_elapsed_ms: u64,
}

impl<'a> View<'a> {
    pub(super) fn of(status: &'a Status) -> Self {
        let services = status.services.iter().map(|(name, service)| {
            let endpoints = || {
                let all = service.containers.iter().flat_map(|it| &it.endpoints);
                all.filter(|it| it.is_wanted())
            };
            let view = ServiceView {
                containers: service.containers.len(),
                endpoints: endpoints().count(),
                bound: endpoints().filter(|it| it.bound).count(),
                audit: status.audit.services.contains_key(name),
            };
            (name.as_str(), view)
        });
        let edges = status.edges.iter().map(|edge| EdgeView {
            from: &edge.from,
            to: &edge.to,
            ports: &edge.ports,
            declared: &edge.declared,
            why: edge.why.as_deref(),
            until: edge.until.as_deref(),
        });
        let denied: BTreeSet<&String> = status.quarantined.keys().chain(status.isolated.keys()).collect();
        let is_unmanaged = |container: &&ContainerStatus| !denied.contains(&container.name);
        Self {
            version: &status.version,
            state: status.state,
            settled: status.settled,
            reasons: &status.reasons,
            engine: status.engine.as_deref(),
            policy: PolicyView::of(status),
            services: services.collect(),
            edges: edges.collect(),
            quarantined: &status.quarantined,
            isolated: &status.isolated,
            unenforceable: &status.unenforceable,
            unmanaged: status.others.iter().filter(is_unmanaged).count(),
            repairs: status.passes.repairs,
            drift: status
                .drift
                .as_ref()
                .map(|drift| format!("{}: {drift}", drift.at)),
            audit_host: status.audit.host.is_some(),
        }
    }
}

impl<'a> PolicyView<'a> {
    fn of(status: &'a Status) -> Self {
        let policy = &status.policy;
        let git = |git: &'a GitStatus| GitView {
            url: &git.url,
            reference: &git.reference,
            commit: git.commit.as_deref(),
            refused: git
                .refused
                .as_ref()
                .map(|it| format!("{}: {}", it.commit, it.why)),
            failure: git.failure.as_deref(),
        };
        Self {
            revision: policy.revision.as_deref(),
            accepted: policy.accepted.map(|it| it.to_string()),
            directory: &policy.directory,
            refused: policy.refused.as_ref(),
            last_good: policy.last_good.as_ref(),
            git: policy.git.as_ref().map(git),
        }
    }
}

impl<'a> Counters<'a> {
    pub(super) fn of(status: &'a Status) -> Self {
        Self {
            edges: status
                .edges
                .iter()
                .map(|edge| (edge.packets, edge.last_used.as_deref()))
                .collect(),
            denied_packets: status.denied_packets,
            audited_packets: status.audited_packets,
            passes: status.passes.count,
            last_cause: &status.passes.last_cause,
            last_elapsed_ms: status.passes.last_elapsed_ms,
        }
    }
}
