//! What reading and compiling a policy costs, and planning a change of one edge in it, at three sizes.
//!
//! Each figure is the median of several runs with its spread, and the growth from size to size; every object also goes to
//! `target/reports/bench.jsonl`. Nothing here fails because of a time.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark ends by panicking, and has a clock and a file"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use cofferdam::model::{Identity, Rights};
use cofferdam::plan::compile::{Options, compile};
use cofferdam::plan::diff::transition;
use cofferdam::policy::{SourceFile, load};

/// Services; each has ten edges.
const SIZES: [usize; 3] = [10, 100, 1000];
const RUNS: usize = 7;
const OPTIONS: Options = Options {
    stamp: 1 << 30,
    nflog_group: 64,
};

/// Service number `n` is called by the ten after it; `extra` adds a port to one edge.
fn policy(services: usize, extra: &str) -> Vec<SourceFile> {
    let mut text = "cofferdam: 1\nsegment: bench\nservices:\n".to_owned();
    for number in 0..services {
        writeln!(
            text,
            "  s{number}: {{ select: {{ labels: {{ service: s{number} }} }} }}"
        )
        .unwrap();
    }
    text.push_str("allow:\n");
    for number in 0..services {
        for step in 1..=10 {
            let caller = (number + step) % services;
            let ports = if number == 0 && step == 1 { extra } else { "" };
            writeln!(
                text,
                "  - {{ from: s{caller}, to: s{number}, ports: [{}{ports}] }}",
                8000 + step
            )
            .unwrap();
        }
    }
    vec![SourceFile {
        path: "bench.yaml".to_owned(),
        bytes: text.into_bytes(),
    }]
}

fn rights(files: &[SourceFile]) -> Rights {
    Rights {
        policy: load(files).unwrap().policy,
        ..Rights::default()
    }
}

fn identities(rights: &Rights) -> BTreeSet<Identity> {
    rights.policy.services.keys().cloned().map(Identity::of).collect()
}

fn measure(mut run: impl FnMut()) -> Vec<Duration> {
    run();
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times
}

fn main() {
    // `cargo test --benches` passes other arguments; a benchmark runs only when it is asked to.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let reports = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/reports");
    std::fs::create_dir_all(&reports).unwrap();
    let mut lines = std::fs::File::create(reports.join("bench.jsonl")).unwrap();
    println!(
        "{:<28} {:>9} {:>10} {:>10} {:>10} {:>8}",
        "what", "services", "min ms", "median ms", "max ms", "growth"
    );
    for name in ["check", "compile", "change of one edge"] {
        let mut before: Option<(usize, f64)> = None;
        for services in SIZES {
            let files = policy(services, "");
            let (old, new) = (rights(&files), rights(&policy(services, ", 9000")));
            let names = identities(&old);
            let standing = compile(&old, &names, OPTIONS).ruleset;
            let times = match name {
                "check" => measure(|| drop(black_box(load(&files)))),
                "compile" => measure(|| drop(black_box(compile(&old, &names, OPTIONS)))),
                _ => measure(|| {
                    let structure = compile(&new, &names, OPTIONS);
                    drop(black_box(transition(&standing, &structure.ruleset, Vec::new())));
                }),
            };
            let ms = |at: usize| times[at].as_secs_f64() * 1000.0;
            let median = ms(RUNS / 2);
            // The exponent of the growth since the size before: 1 is linear.
            let growth = before.map(|(size, time): (usize, f64)| {
                (median / time).ln() / (services as f64 / size as f64).ln()
            });
            before = Some((services, median));
            let shown = growth.map_or_else(|| "-".to_owned(), |it| format!("{it:.2}"));
            println!(
                "{name:<28} {services:>9} {:>10.3} {median:>10.3} {:>10.3} {shown:>8}",
                ms(0),
                ms(RUNS - 1)
            );
            let line = serde_json::json!({
                "name": format!("{name}, {services} services"), "value": median, "unit": "ms",
                "min": ms(0), "max": ms(RUNS - 1), "growth": growth,
            });
            writeln!(lines, "{line}").unwrap();
        }
    }
}
