//! `cofferdam schema`: the policy format as a JSON Schema.

use std::io::{self, Write};
use std::process::ExitCode;

use super::written;
use crate::policy::schema;

/// Print the JSON Schema (2020-12) of policy files, for editors
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Runs the command.
pub(super) fn run(_args: &Args) -> ExitCode {
    written(writeln!(io::stdout(), "{:#}", schema()).map(|()| ExitCode::SUCCESS))
}
