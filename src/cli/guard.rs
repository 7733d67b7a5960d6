//! `cofferdam guard`: closed rules before the engine starts, then exit.

use std::process::ExitCode;

use clap::Args;

use super::{SettingsArgs, block_on, print_json, print_text, run::start_log};
use crate::daemon::Refusal;
use crate::daemon::guard::{Guard, guard};

#[derive(Debug, Args)]
pub(super) struct GuardArgs {
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: GuardArgs) -> Result<ExitCode, Refusal> {
    start_log();
    let settings = args.settings.load()?;
    let done = block_on(guard(&settings))?;
    if args.json {
        print_json(&done)?;
    } else {
        let text = match done {
            Guard::Stood => "the rules stand already: nothing was changed".to_owned(),
            Guard::Loaded {
                revision: Some(revision),
            } => format!(
                "Docker's networks are closed until `cofferdam run` opens what revision {revision} declares"
            ),
            Guard::Loaded { revision: None } => {
                "Docker's networks are closed; no valid policy was found".to_owned()
            }
        };
        print_text(&format!("{text}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
