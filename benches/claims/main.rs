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

mod daemon;
mod engine;
mod harness;
mod kernel;
mod path;
mod policy;
mod scene;

/// The parts in their order, and whether each needs a namespace.
const PARTS: [(&str, bool); 4] = [
    ("policy", false),
    ("kernel", true),
    ("path", true),
    ("daemon", true),
];

fn run(part: &str, report: &mut Report) {
    match part {
        "policy" => policy::run(report),
        "kernel" => kernel::run(report),
        "path" => path::run(report),
        "daemon" => daemon::run(report),
        other => panic!("there is no part `{other}`"),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
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
    for (part, needs_namespace) in PARTS {
        if !named.is_empty() && !named.iter().any(|it| *it == part) {
            continue;
        }
        match needs_namespace {
            true => harness::in_namespace(part, effort),
            false => run(part, &mut Report::open(effort)),
        }
    }
}
