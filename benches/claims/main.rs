//! What Cofferdam claims of its speed, measured: `make bench`, or `make bench ARGS="--quick policy"` for one part, small.
//!
//! Every figure stands beside the baseline of the same run. Parts that touch the kernel run in namespaces of their own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark ends by panicking, and acts on the system"
)]

use harness::{Effort, Report};
use jiff::Timestamp;

mod burst;
mod daemon;
mod dfw;
mod engine;
mod harness;
#[path = "../../tests/host/mod.rs"]
mod host;
mod kernel;
mod path;
mod peer;
mod policy;
mod product;
mod real;
mod resident;
mod scene;
mod start;
mod traffic;
mod witness;

/// Where a part runs.
enum Place {
    Here,
    /// In a network and mount namespace of its own.
    Namespace,
    /// In the namespaces of a private Docker Engine.
    Engine,
    /// In those of one that makes no rules, with the peer's program at hand.
    Peer,
}

/// The parts in their order.
const PARTS: [(&str, Place); 7] = [
    ("policy", Place::Here),
    ("kernel", Place::Namespace),
    ("path", Place::Namespace),
    ("daemon", Place::Namespace),
    ("start", Place::Engine),
    ("burst", Place::Engine),
    ("peer", Place::Peer),
];

fn run(part: &str, report: &mut Report) {
    match part {
        "policy" => policy::run(report),
        "kernel" => kernel::run(report),
        "path" => path::run(report),
        "daemon" => daemon::run(report),
        "start" => start::run(report),
        "burst" => burst::run(report),
        "peer" => peer::run(report),
        other => panic!("there is no part `{other}`"),
    }
}

fn main() {
    let began = Timestamp::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, words)) if first == resident::RESIDENT => resident::run(words, began),
        Some((first, _)) if first == resident::CLOCK => return println!("{}", began.as_nanosecond()),
        _ => {}
    }
    let given = |flag: &str| arguments.iter().any(|it| it == flag);
    // `cargo test --benches` passes other arguments; a benchmark runs only when it is asked to.
    if !given("--bench") {
        return;
    }
    let effort = if given("--quick") {
        Effort::Quick
    } else {
        Effort::Full
    };
    if let Some(part) = harness::inside() {
        run(&part, &mut Report::open(effort));
        return;
    }
    Report::begin();
    let named: Vec<&String> = arguments.iter().filter(|it| !it.starts_with("--")).collect();
    for (part, place) in PARTS {
        if !named.is_empty() && !named.iter().any(|it| *it == part) {
            continue;
        }
        match place {
            Place::Here => run(part, &mut Report::open(effort)),
            Place::Namespace => harness::in_namespace(part, effort),
            Place::Engine => harness::in_engine(part, effort, ""),
            Place::Peer => {
                dfw::install();
                harness::in_engine(part, effort, "--iptables=false");
            }
        }
    }
}
