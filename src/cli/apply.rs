//! `cofferdam apply`: one reconcile, then exit.

use std::process::ExitCode;

use clap::Args;

use super::{SettingsArgs, block_on, print_json, run::start_log};
use crate::daemon::{Refusal, once};

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: ApplyArgs) -> Result<ExitCode, Refusal> {
    start_log();
    let settings = args.settings.load()?;
    let applied = block_on(once::apply(&settings))?;
    if args.json {
        print_json(&applied)?;
    } else {
        println!(
            "revision {} is in force: {} engine calls, {} connections ended",
            applied.revision, applied.engine_calls, applied.flows_ended
        );
        for failure in &applied.failed {
            println!("failed: {failure}");
        }
    }
    Ok(if applied.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(18)
    })
}
