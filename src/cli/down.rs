//! `cofferdam down`: removes every trace, and says first what becomes reachable.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;

use super::{SettingsArgs, block_on, print_json};
use crate::daemon::Refusal;
use crate::daemon::once::{Removal, Traces};

#[derive(Debug, Args)]
pub(super) struct DownArgs {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print what is removed as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: DownArgs) -> Result<ExitCode, Refusal> {
    let settings = args.settings.load()?;
    block_on(async {
        let mut removal = Removal::prepare(&settings).await?;
        let traces = removal.traces()?;
        if args.json {
            print_json(&traces)?
        } else {
            print(&traces)
        }
        if !(args.yes || confirmed()) {
            println!("Nothing was removed.");
            return Ok(ExitCode::from(2));
        }
        let failed = removal.remove().await;
        for failure in &failed {
            eprintln!("cofferdam: {failure}");
        }
        Ok(if failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(18)
        })
    })
}

fn print(traces: &Traces) {
    if !traces.tables && traces.networks.is_empty() {
        println!("There is nothing of Cofferdam on this host.");
    }
    if traces.tables {
        println!("Removes the tables `inet cofferdam` and `bridge cofferdam`.");
    }
    for (network, containers) in &traces.networks {
        println!("Removes the network {network} ({}).", list(containers));
    }
    for (network, containers) in &traces.opened {
        println!(
            "Opens {network}: {} reach each other on every port.",
            list(containers)
        );
    }
    if traces.tables {
        println!("Published ports become reachable for whoever the engine's own rules let in.");
    }
}

fn list(containers: &std::collections::BTreeSet<String>) -> String {
    if containers.is_empty() {
        return "no containers".to_owned();
    }
    containers
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Asks on a terminal; without one the answer is no.
fn confirmed() -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    print!("Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdout().flush().is_ok()
        && std::io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "y" | "Y" | "yes")
}
