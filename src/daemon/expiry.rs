//! Edges with an end. The kernel's own rules let nothing new through from that second on; here the edge leaves the policy, so
//! that its open connections end too, and a day before that it is announced.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tracing::{info, warn};

use crate::policy::{Edge, Policy};

/// How long before its end an edge is announced.
const NOTICE: SignedDuration = SignedDuration::from_hours(24);
/// The clock may be set: nobody sleeps longer than this.
const LONGEST: Duration = Duration::from_secs(3600);

/// The accepted policy whole, with the edges that have ended and those that will.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    policy: Policy,
    announced: BTreeSet<Edge>,
    ended: BTreeSet<Edge>,
}

impl Expiry {
    /// Takes a policy that was accepted.
    pub(super) fn set(&mut self, policy: Policy) {
        self.announced.retain(|edge| policy.edges.contains(edge));
        self.ended.retain(|edge| policy.edges.contains(edge));
        self.policy = policy;
    }

    /// The policy as it is now. Says once of each edge that it ends within a day, and that it has ended.
    pub(super) fn in_force(&mut self, now: Timestamp) -> Policy {
        for edge in &self.policy.edges {
            let Some(until) = edge.until else { continue };
            let (from, to, declared) = (&edge.from, &edge.to, &edge.location);
            if until <= now {
                if self.ended.insert(edge.clone()) {
                    info!(%from, %to, %until, %declared, "an edge has ended");
                }
            } else if is_soon(until, now) && self.announced.insert(edge.clone()) {
                let why = edge.why.as_deref();
                warn!(%from, %to, %until, %declared, why, "an edge ends within a day");
            }
        }
        self.policy.at(now)
    }

    /// How long to wait until there is something to say or to end.
    pub(super) fn next(&self, now: Timestamp) -> Duration {
        let ends = self.policy.edges.iter().filter_map(|edge| edge.until);
        let moments = ends.flat_map(|until| [until, until.saturating_sub(NOTICE).unwrap_or(until)]);
        let next = moments.filter(|moment| now < *moment).min();
        let wait = next.and_then(|moment| Duration::try_from(moment.duration_since(now)).ok());
        wait.map_or(LONGEST, |wait| wait.min(LONGEST))
    }
}

/// Whether an edge that ends then is to be announced.
fn is_soon(until: Timestamp, now: Timestamp) -> bool {
    now < until && until.duration_since(now) <= NOTICE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{SourceFile, load};

    fn policy(edges: &str) -> Policy {
        let text = format!(
            "cofferdam: 1\nsegment: s\nservices:\n  aa: {{ select: {{ name: aa }} }}\n  bb: {{ select: {{ name: bb }} }}\nallow:\n{edges}"
        );
        let files = [SourceFile {
            path: "s.yaml".to_owned(),
            bytes: text.into(),
        }];
        load(&files).unwrap().policy
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn an_edge_is_announced_a_day_before_and_gone_at_its_second() {
        let mut expiry = Expiry::default();
        expiry.set(policy(
            "  - { from: aa, to: bb, ports: [80] }\n  - { from: aa, to: bb, ports: [81], until: 2026-12-02T00:00:00Z }\n",
        ));
        assert_eq!(expiry.next(at("2026-11-30T23:59:00Z")), Duration::from_secs(60));
        assert_eq!(expiry.in_force(at("2026-11-30T23:59:00Z")).edges.len(), 2);
        assert!(expiry.announced.is_empty());
        assert_eq!(expiry.in_force(at("2026-12-01T00:00:00Z")).edges.len(), 2);
        assert_eq!(expiry.announced.len(), 1);
        assert_eq!(
            expiry.next(at("2026-12-01T00:00:00Z")),
            LONGEST,
            "the clock may be set"
        );
        assert_eq!(
            expiry.next(at("2026-12-01T23:59:59.5Z")),
            Duration::from_millis(500)
        );
        assert_eq!(expiry.in_force(at("2026-12-01T23:59:59.999Z")).edges.len(), 2);
        assert_eq!(expiry.in_force(at("2026-12-02T00:00:00Z")).edges.len(), 1);
        assert_eq!(expiry.next(at("2026-12-02T00:00:00Z")), LONGEST);
        // A clock that goes back opens it again: it says what time it is.
        assert_eq!(expiry.in_force(at("2026-12-01T12:00:00Z")).edges.len(), 2);
    }
}
