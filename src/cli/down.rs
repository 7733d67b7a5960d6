//! `cofferdam down`: removes every trace, and says first what becomes reachable.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;

use super::{SettingsArgs, block_on, print_json, print_text};
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
            print_text(&text(&traces))?
        }
        if !(args.yes || confirmed()) {
            print_text("Nothing was removed.\n")?;
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

fn text(traces: &Traces) -> String {
    let mut lines = Vec::new();
    if !traces.tables && traces.networks.is_empty() {
        lines.push("There is nothing of Cofferdam on this host.".to_owned());
    }
    if traces.tables {
        lines.push("Removes the tables `inet cofferdam` and `bridge cofferdam`.".to_owned());
    }
    for (network, containers) in &traces.networks {
        lines.push(format!("Removes the network {network} ({}).", list(containers)));
    }
    for (network, containers) in &traces.opened {
        lines.push(format!(
            "Opens {network}: {} reach each other on every port.",
            list(containers)
        ));
    }
    for (port, behind) in &traces.published {
        lines.push(format!(
            "Opens {port}: whoever the engine's own rules let in reaches {}, port {}.",
            behind.container, behind.port
        ));
    }
    if traces.tables {
        lines.push(
            "Every container reaches this host, and what lies outside where its networks lead there."
                .to_owned(),
        );
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
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
    let asked = print_text("Go on? [y/N] ").is_ok();
    let mut answer = String::new();
    asked
        && std::io::stdout().flush().is_ok()
        && std::io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "y" | "Y" | "yes")
}
