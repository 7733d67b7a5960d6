//! `cofferdam schema`: the policy format as a JSON Schema.

use std::process::ExitCode;

use super::print_json;
use crate::daemon::Refusal;
use crate::policy::schema;

/// Print the JSON Schema (2020-12) of policy files, for editors
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Runs the command.
pub(super) fn run(_args: &Args) -> Result<ExitCode, Refusal> {
    print_json(&schema()).map(|()| ExitCode::SUCCESS)
}
