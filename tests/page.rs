//! The page in a real Chromium. Each test has a network namespace of its own in which there is nothing but the server.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "page/browser.rs"]
mod browser;
#[path = "netns/mod.rs"]
mod netns;
#[path = "page/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use browser::Browser;
use cofferdam::daemon::flows::{EndKind, FlowVerdict};
use cofferdam::daemon::status::Status;
use serde_json::Value;
use world::{World, add_service, edge, end, many, service, shop};

const URL: &str = "http://127.0.0.1:9471/";
/// The edges that are drawn.
const DRAWN: &str = "return [...document.querySelectorAll('#graph .edge')].map(it => [it.dataset.from, it.dataset.to]).sort()";

/// For looking at it: `PAGE=many cargo test --test page -- --ignored --nocapture look` serves it until it is killed.
#[tokio::test]
#[ignore = "serves a made-up page for people to look at, for ever"]
async fn look() {
    let status = match std::env::var("PAGE").as_deref() {
        Ok("many") => many(200),
        Ok("hostile") => hostile(),
        _ => shop(),
    };
    let world = World::new(status);
    let address = world.serve(9471).await;
    println!("http://{address}/");
    let web = service("shop/web", 1);
    for port in [22, 3306, 5432, 5432] {
        world.attempt(web.clone(), service("shop/db", 1), port, FlowVerdict::Denied);
    }
    world.attempt(
        end(EndKind::World, "203.0.113.9"),
        service("shop/db", 1),
        5432,
        FlowVerdict::Denied,
    );
    world.attempt(
        service("shop/worker", 1),
        end(EndKind::World, "198.51.100.7"),
        443,
        FlowVerdict::Audited,
    );
    loop {
        tokio::time::sleep(Duration::from_secs(3)).await;
        world.attempt(web.clone(), service("shop/cache", 1), 6379, FlowVerdict::Denied);
        world.change(|status| {
            *status.denied_packets.get_or_insert(0) += 1;
            for edge in status.edges.iter_mut().take(2) {
                *edge.packets.get_or_insert(0) += 3;
            }
        });
    }
}

/// Names that want to be code, to turn the text around, or to break the layout.
fn hostile() -> Status {
    let mut status = shop();
    let names = [
        "x/<script>window.owned=1</script>".to_owned(),
        "x/<img src=x onerror=window.owned=2>".to_owned(),
        "x/\u{202e}gpj.exe".to_owned(),
        format!("x/{}", "w".repeat(200)),
        "__proto__".to_owned(),
        "constructor".to_owned(),
    ];
    for name in &names {
        add_service(&mut status, name, 1);
        let mut edge = edge(name, "shop/web", &["80/tcp"], 5);
        edge.why = Some("</title><script>window.owned=3</script>".to_owned());
        status.edges.push(edge);
    }
    status.reasons = vec![names[0].clone(), names[3].clone()];
    status
        .quarantined
        .insert(names[1].clone(), vec![names[2].clone()]);
    status
        .unenforceable
        .insert(names[2].clone(), vec![names[0].clone()]);
    status
}
