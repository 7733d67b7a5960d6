//! Faults, races and hostile containers on a real engine: what is undeclared never passes, and what is declared comes back.
//!
//! `cargo test --test faults` brings a private engine up, runs every scenario inside its namespaces with a leak probe, prints
//! the figures as a table and writes them to `target/reports/faults.jsonl`. A leak fails, and so does a scenario that could
//! not be carried out. `COFFERDAM_FAULTS=race,identity` chooses scenarios; with `COFFERDAM_THROUGH_FILTER`
//! the daemon reaches the engine by `socket-filter` only.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the pure rooms of the library ban clocks, files and processes"
)]
// The laboratory is shared with the conformance runner, which uses other parts of it.
#![allow(dead_code, reason = "shared with the conformance runner")]

#[path = "faults/boot.rs"]
mod boot;
#[path = "page/browser.rs"]
#[expect(clippy::unwrap_used, reason = "it is made for tests that fail by panicking")]
mod browser;
#[path = "faults/crashes.rs"]
mod crashes;
#[path = "conformance/daemon.rs"]
mod daemon;
#[path = "conformance/engine.rs"]
mod engine;
#[path = "faults/figure.rs"]
mod figure;
#[path = "faults/firewall.rs"]
mod firewall;
#[path = "faults/flows.rs"]
mod flows;
#[path = "faults/frame.rs"]
mod frame;
#[path = "faults/held.rs"]
mod held;
#[path = "faults/identity.rs"]
mod identity;
#[path = "faults/kernel.rs"]
mod kernel;
#[path = "faults/outage.rs"]
mod outage;
#[path = "faults/page.rs"]
mod page;
#[path = "faults/proxy.rs"]
mod proxy;
#[path = "faults/race.rs"]
mod race;
#[path = "faults/rollout.rs"]
mod rollout;
#[path = "faults/shop.rs"]
mod shop;
#[path = "faults/state.rs"]
mod state;
#[path = "faults/unenforceable.rs"]
mod unenforceable;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use engine::Lab;
use figure::Report;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if has("--list") {
        if !has("--ignored") {
            println!("faults: test");
        }
        return ExitCode::SUCCESS;
    }
    let outcome = match std::env::var_os("COFFERDAM_ENGINE_DIR") {
        Some(directory) => inside(directory.into()),
        None => outside(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn outside() -> anyhow::Result<bool> {
    engine::build_faulty()?;
    engine::run_inside().await
}

#[tokio::main]
async fn inside(directory: PathBuf) -> anyhow::Result<bool> {
    let probe = std::env::var_os("COFFERDAM_PROBE").context("COFFERDAM_PROBE is not set")?;
    let lab = Lab::enter(directory, probe.into()).await?;
    let chosen: Option<Vec<String>> = std::env::var("COFFERDAM_FAULTS")
        .ok()
        .filter(|list| !list.is_empty())
        .map(|list| list.split(',').map(|name| name.trim().to_owned()).collect());
    let wanted = |name: &str| {
        chosen
            .as_ref()
            .is_none_or(|names| names.iter().any(|it| it == name))
    };
    let mut report = Report::create(&engine::target_directory().join("reports"))?;
    // Each scenario: a name and `async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>>`.
    macro_rules! scenarios {
        ($($module:ident),* $(,)?) => { $(
            if wanted(stringify!($module)) {
                lab.repair().await?;
                report.take(stringify!($module), $module::run(&lab).await)?;
            }
        )* };
    }
    scenarios!(
        race,
        identity,
        crashes,
        firewall,
        // Leaves the engine without its NAT until it is started again, which the next one does.
        kernel,
        outage,
        boot,
        unenforceable,
        rollout,
        flows,
        page
    );
    Ok(report.finish())
}
