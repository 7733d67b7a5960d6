//! What was tried and is not permitted, on top of the allow-graph.

use std::collections::{BTreeMap, BTreeSet};

use super::{Graph, MOST_PORTS, Node};
use crate::policy::Peer;

/// What one end tried with another, of what no edge permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    pub from: Node,
    pub to: Node,
    pub outcome: Outcome,
    /// `9090`, `53/udp`, `icmp`.
    pub what: String,
    pub attempts: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It did not pass.
    Denied,
    /// It passed, since both ends are in audit.
    Audited,
}

/// All that was tried between two ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sum {
    what: BTreeSet<String>,
    attempts: u64,
}

impl Sum {
    /// `9090, 53/udp (12 times)`
    pub(super) fn label(&self) -> String {
        let mut words: Vec<&str> = self.what.iter().map(String::as_str).take(MOST_PORTS).collect();
        let more = self.what.len().saturating_sub(MOST_PORTS);
        let more = format!("{more} more");
        if self.what.len() > MOST_PORTS {
            words.push(&more);
        }
        let times = match self.attempts {
            1 => "once".to_owned(),
            many => format!("{many} times"),
        };
        format!("{} ({times})", words.join(", "))
    }
}

/// By what became of it and between whom.
pub(super) type Sums = BTreeMap<(Node, Node, Outcome), Sum>;

impl Graph {
    /// Draws what was tried, as far as one of its ends is in the picture.
    pub fn add_tried(&mut self, tried: impl IntoIterator<Item = Tried>) {
        for one in tried {
            if !self.shows(&one.from) && !self.shows(&one.to) {
                continue;
            }
            for node in [&one.from, &one.to] {
                self.show(node);
            }
            let sum = self.tried.entry((one.from, one.to, one.outcome)).or_default();
            sum.what.insert(one.what);
            sum.attempts = sum.attempts.saturating_add(one.attempts);
        }
    }

    fn shows(&self, node: &Node) -> bool {
        match node {
            Node::Every(segment) => self.every.contains(segment),
            Node::Peer(Peer::Service(id)) => {
                let services = self.segments.get(&id.segment);
                services.is_some_and(|services| services.contains_key(id))
            }
            Node::Peer(outside) => self.outside.contains(outside),
            Node::Stranger(name) => self.strangers.contains(name),
        }
    }

    fn show(&mut self, node: &Node) {
        match node {
            Node::Peer(Peer::Service(id)) => {
                let services = self.segments.entry(id.segment.clone()).or_default();
                services.entry(id.clone()).or_default();
            }
            Node::Peer(outside) => drop(self.outside.insert(outside.clone())),
            Node::Stranger(name) => drop(self.strangers.insert(name.clone())),
            Node::Every(_) => {}
        }
    }
}
