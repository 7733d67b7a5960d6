use super::*;
use crate::policy::{SourceFile, load};

fn policy(texts: &[&str]) -> Policy {
    let file = |(number, text): (usize, &&str)| SourceFile {
        path: format!("{number}.yaml"),
        bytes: text.as_bytes().to_vec(),
    };
    let files: Vec<SourceFile> = texts.iter().enumerate().map(file).collect();
    load(&files).unwrap().policy
}

const SHOP: &str = "cofferdam: 1
segment: shop
services:
  web: { select: { name: web } }
  api: { select: { name: api }, mode: audit }
  db: { select: { name: db } }
  end: { select: { name: end } }
externals: { payments: { cidrs: [203.0.113.0/24] } }
allow:
  - { from: world, to: web, ports: [443, 80] }
  - { from: web, to: api, ports: [8000] }
  - { from: web, to: api, ports: [9000-9010, 53/udp] }
  - { from: api, to: db, ports: [5432] }
  - { from: api, to: payments, ports: [443] }
  - { from: ops/prometheus, to: \"*\", ports: [9100] }
";
const OPS: &str = "cofferdam: 1
segment: ops
services: { prometheus: { select: { name: prom } }, logs: { select: { name: logs } } }
allow: [{ from: host, to: prometheus, ports: [any] }, { from: [shop/web, shop/api, shop/db, shop/end], to: logs, ports: [514/udp] }]
";

#[test]
fn the_picture_in_each_format() {
    let graph = Graph::of(&policy(&[SHOP, OPS]), &Scope::Everything);
    insta::assert_snapshot!("dot", graph.dot());
    insta::assert_snapshot!("mermaid", graph.mermaid());
}

fn names(graph: &Graph) -> Vec<String> {
    let services = graph.segments.values().flat_map(BTreeMap::keys);
    let outside = graph.outside.iter().map(ToString::to_string);
    services.map(ToString::to_string).chain(outside).collect()
}

#[test]
fn a_part_of_it() {
    let policy = policy(&[SHOP, OPS]);
    let around = |name: &str, depth| Graph::of(&policy, &Scope::Around(name.parse().unwrap(), depth));
    assert_eq!(names(&around("shop/db", 0)), ["shop/db"]);
    assert_eq!(
        names(&around("shop/db", 1)),
        ["ops/logs", "ops/prometheus", "shop/api", "shop/db"]
    );
    // Nothing is reached through the world.
    assert!(!names(&around("shop/db", 2)).contains(&"world".to_owned()));
    assert!(names(&around("shop/db", 3)).contains(&"world".to_owned()));
    // Nor through what every service has in common.
    assert!(!names(&around("shop/end", 3)).contains(&"host".to_owned()));
    let ops = Graph::of(&policy, &Scope::Segment("ops".parse().unwrap()));
    assert!(names(&ops).contains(&"shop/web".to_owned()));
    assert!(!names(&ops).contains(&"world".to_owned()));
    // Among the neighbours nothing is drawn.
    assert_eq!(ops.arcs.len(), 3, "{:?}", ops.arcs);
}

#[test]
fn what_every_service_may_is_one_arc_even_at_two_hundred() {
    let services: String = (0..200)
        .map(|i| format!("  s{i}: {{ select: {{ name: s{i} }} }}\n"))
        .collect();
    let text = format!(
        "cofferdam: 1\nsegment: big\nservices:\n{services}  hub: {{ select: {{ name: hub }} }}\nallow:\n  - {{ from: \"*\", to: hub, ports: [80] }}\n  - {{ from: world, to: \"*\", ports: [443] }}\n  - {{ from: s1, to: s2, ports: [1, 2, 3, 4, 5, 6, 7, 8] }}\n"
    );
    let graph = Graph::of(&policy(&[&text]), &Scope::Everything);
    assert_eq!(graph.arcs.len(), 3);
    assert!(
        graph
            .arcs
            .values()
            .any(|label| label == "1, 2, 3, 4, 5, 6, 2 more")
    );
}

#[test]
fn no_text_ends_early() {
    assert_eq!(dot::quoted("a\"b\\n\n"), "\"a\\\"b\\\\n \"");
    assert_eq!(mermaid::quoted("a\"<b>#\n"), "\"a#34;#60;b#62;#35; \"");
}

#[test]
fn what_was_tried_is_drawn_beside_what_may_be() {
    let policy = policy(&[SHOP, OPS]);
    let service = |name: &str| Node::Peer(Peer::Service(name.parse().unwrap()));
    let tried = |from: Node, to: Node, what: &str, outcome| Tried {
        from,
        to,
        outcome,
        what: what.to_owned(),
        attempts: 3,
    };
    let hostile = "x\"]; <script>`#";
    let all = [
        tried(service("shop/web"), service("shop/db"), "5432", Outcome::Denied),
        tried(service("shop/web"), service("shop/db"), "9090", Outcome::Denied),
        tried(
            service("shop/api"),
            Node::Peer(Peer::World),
            "443",
            Outcome::Audited,
        ),
        tried(
            Node::Stranger(hostile.to_owned()),
            service("shop/db"),
            "5432",
            Outcome::Denied,
        ),
    ];
    let mut graph = Graph::of(&policy, &Scope::Around("shop/db".parse().unwrap(), 0));
    graph.add_tried(all);
    insta::assert_snapshot!("tried_dot", graph.dot());
    insta::assert_snapshot!("tried_mermaid", graph.mermaid());
}
