//! `cofferdam apply`: one reconcile, then exit.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{SettingsArgs, block_on, print_json, print_text, run::start_log};
use crate::daemon::preview::Basis;
use crate::daemon::{Refusal, once};

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// Apply this saved plan: refused when the policy or the containers have changed since it was made
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: ApplyArgs) -> Result<ExitCode, Refusal> {
    start_log();
    let settings = args.settings.load()?;
    let applied = match &args.plan {
        None => block_on(once::apply(&settings))?,
        Some(path) => {
            let basis = read(path)?;
            block_on(once::apply_saved(&settings, path, &basis))?
        }
    };
    if args.json {
        print_json(&applied)?;
    } else {
        let mut text = format!(
            "revision {} is in force: {} engine calls, {} connections ended\n",
            applied.revision, applied.engine_calls, applied.flows_ended
        );
        for failure in &applied.failed {
            text += &format!("failed: {failure}\n");
        }
        print_text(&text)?;
    }
    Ok(if applied.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(18)
    })
}

/// What a saved plan was made from; what else the file says is for people.
fn read(path: &Path) -> Result<Basis, Refusal> {
    let failed = || format!("read the plan {}", path.display());
    let text = std::fs::read(path).map_err(|error| Refusal::system(failed(), error))?;
    serde_json::from_slice(&text).map_err(|error| Refusal::system(failed(), error))
}
