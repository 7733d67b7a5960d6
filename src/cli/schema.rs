//! `cofferdam schema`: what is read and printed, as JSON Schemas.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::ValueEnum;

use super::written;
use crate::daemon::flows::FlowRecord;
use crate::daemon::status::Status;
use crate::policy::schema;

/// Print a JSON Schema (2020-12)
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Of what: policy files, for editors; what `status --json` prints; each line of `flows --json`
    #[arg(value_enum, default_value_t = Of::Policy)]
    of: Of,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Of {
    Policy,
    Status,
    Flow,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> ExitCode {
    let schema = match args.of {
        Of::Policy => schema(),
        Of::Status => schemars::schema_for!(Status).to_value(),
        Of::Flow => schemars::schema_for!(FlowRecord).to_value(),
    };
    written(writeln!(io::stdout(), "{schema:#}").map(|()| ExitCode::SUCCESS))
}
