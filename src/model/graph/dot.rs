//! DOT, for Graphviz.

use super::{Graph, Node, Outcome};
use crate::policy::{Mode, Peer};

pub(super) fn render(graph: &Graph) -> String {
    let mut out = String::from(
        "digraph cofferdam {\n  rankdir=LR; concentrate=true; nodesep=0.25; ranksep=0.9;\n  \
         fontname=\"sans-serif\";\n  \
         node [fontname=\"sans-serif\", fontsize=11, shape=box, style=rounded];\n  \
         edge [fontname=\"sans-serif\", fontsize=9, color=\"#555555\"];\n",
    );
    for peer in &graph.outside {
        let shape = match peer {
            Peer::World => "shape=ellipse, style=filled, fillcolor=\"#dbe9f6\"",
            Peer::Host => "shape=box3d, style=filled, fillcolor=\"#eeeeee\"",
            Peer::External(_) | Peer::Service(_) => "shape=component, style=filled, fillcolor=\"#fdf1d6\"",
        };
        out += &format!("  {} [{shape}];\n", quoted(&peer.to_string()));
    }
    let segments = graph.segments.keys().chain(&graph.every);
    for segment in segments.collect::<std::collections::BTreeSet<_>>() {
        out += &format!(
            "  subgraph {} {{\n    label={}; color=\"#999999\"; style=rounded;\n",
            quoted(&format!("cluster_{segment}")),
            quoted(segment.as_str())
        );
        if graph.every.contains(segment) {
            out += &format!(
                "    {} [label={}, shape=plaintext];\n",
                id(&Node::Every(segment.clone())),
                quoted("every service")
            );
        }
        for (service, mode) in graph.segments.get(segment).into_iter().flatten() {
            let style = match mode {
                Mode::Enforce => "",
                Mode::Audit => ", style=\"rounded,dashed\"",
            };
            out += &format!(
                "    {} [label={}{style}];\n",
                quoted(&service.to_string()),
                quoted(service.name.as_str())
            );
        }
        out += "  }\n";
    }
    for ((from, to), label) in &graph.arcs {
        out += &format!("  {} -> {} [label={}];\n", id(from), id(to), quoted(label));
    }
    for name in &graph.strangers {
        let node = id(&Node::Stranger(name.clone()));
        out += &format!(
            "  {node} [label={}, style=\"rounded,dotted\", color=\"#888888\"];\n",
            quoted(name)
        );
    }
    for ((from, to, outcome), sum) in &graph.tried {
        let colour = match outcome {
            Outcome::Denied => "#cc2222",
            Outcome::Audited => "#d08000",
        };
        // Off the layout's mind: the picture stays where the policy put it.
        out += &format!(
            "  {} -> {} [label={}, color=\"{colour}\", fontcolor=\"{colour}\", style=dashed, constraint=false];\n",
            id(from),
            id(to),
            quoted(&sum.label())
        );
    }
    out += "}\n";
    out
}

fn id(node: &Node) -> String {
    match node {
        Node::Every(segment) => quoted(&format!("{segment}/*")),
        Node::Peer(peer) => quoted(&peer.to_string()),
        // No peer's name holds a space.
        Node::Stranger(name) => quoted(&format!("container {name}")),
    }
}

/// A string of DOT: whatever it holds, it ends where it ends, and no backslash of it is an escape.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
