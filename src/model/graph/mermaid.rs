//! A Mermaid flowchart.

use std::collections::{BTreeMap, BTreeSet};

use super::{Graph, Node, Outcome};
use crate::policy::{Mode, Peer};

pub(super) fn render(graph: &Graph) -> String {
    let ids = ids(graph);
    let id = |node: &Node| ids.get(node).map_or("unknown", String::as_str);
    let mut out = String::from("flowchart LR\n");
    for peer in &graph.outside {
        let node = Node::Peer(peer.clone());
        let text = quoted(&peer.to_string());
        out += &match peer {
            Peer::World => format!("  {}(({text}))\n", id(&node)),
            Peer::Host => format!("  {}[[{text}]]\n", id(&node)),
            Peer::External(_) | Peer::Service(_) => format!("  {}>{text}]\n", id(&node)),
        };
    }
    let segments: BTreeSet<_> = graph.segments.keys().chain(&graph.every).collect();
    let mut audited = Vec::new();
    for (number, segment) in segments.into_iter().enumerate() {
        out += &format!("  subgraph g{number} [{}]\n", quoted(segment.as_str()));
        if graph.every.contains(segment) {
            let node = Node::Every(segment.clone());
            out += &format!("    {}{{{{{}}}}}\n", id(&node), quoted("every service"));
        }
        for (service, mode) in graph.segments.get(segment).into_iter().flatten() {
            let node = Node::Peer(Peer::Service(service.clone()));
            out += &format!("    {}({})\n", id(&node), quoted(service.name.as_str()));
            if *mode == Mode::Audit {
                audited.push(id(&node).to_owned());
            }
        }
        out += "  end\n";
    }
    for ((from, to), label) in &graph.arcs {
        out += &format!("  {} -->|{}| {}\n", id(from), quoted(label), id(to));
    }
    for name in &graph.strangers {
        out += &format!("  {}({})\n", id(&Node::Stranger(name.clone())), quoted(name));
    }
    for ((from, to, _), sum) in &graph.tried {
        out += &format!("  {} -.->|{}| {}\n", id(from), quoted(&sum.label()), id(to));
    }
    for (number, (_, _, outcome)) in graph.tried.keys().enumerate() {
        let colour = match outcome {
            Outcome::Denied => "#cc2222",
            Outcome::Audited => "#d08000",
        };
        let link = graph.arcs.len() + number;
        out += &format!("  linkStyle {link} stroke:{colour},color:{colour}\n");
    }
    if !audited.is_empty() {
        out += "  classDef audit stroke-dasharray: 5 5\n";
        out += &format!("  class {} audit\n", audited.join(","));
    }
    out
}

/// Names of policies may be words of Mermaid, such as `end`: nodes are numbered.
fn ids(graph: &Graph) -> BTreeMap<Node, String> {
    let outside = graph.outside.iter().cloned().map(Node::Peer);
    let services = graph.segments.values().flat_map(BTreeMap::keys);
    let services = services.cloned().map(|id| Node::Peer(Peer::Service(id)));
    let every = graph.every.iter().cloned().map(Node::Every);
    let strangers = graph.strangers.iter().cloned().map(Node::Stranger);
    let nodes: BTreeSet<Node> = outside.chain(services).chain(every).chain(strangers).collect();
    let number = |(number, node): (usize, Node)| (node, format!("n{number}"));
    nodes.into_iter().enumerate().map(number).collect()
}

/// A text of Mermaid: entities for all that could end it or be taken for markup.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '#' | '<' | '>' | '&' | '`' | '\\' => out += &format!("#{};", u32::from(c)),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
