//! `cofferdam explain-code`: what a code of `check` means, with a wrong and a right example. Exit code 2 for what is no code.

use std::io::{self, Write};
use std::process::ExitCode;

use super::written;
use crate::policy::Code;

/// Explain a code of `check`, with a wrong and a right example
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The code, such as CFD031
    #[arg(value_name = "CODE")]
    code: Code,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> ExitCode {
    let text = args.code.explanation().trim_end();
    written(writeln!(io::stdout(), "{text}").map(|()| ExitCode::SUCCESS))
}
