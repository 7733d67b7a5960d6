//! `cofferdam explain-code`: what a code of `check` or `audit` means, with a wrong and a right example. Exit code 2 for what is no
//! code.

use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;

use super::written;
use crate::{audit, policy};

/// Explain a code of `check` or `audit`, with a wrong and a right example
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The code, such as CFD031 or CFA001
    #[arg(value_name = "CODE")]
    code: Code,
}

/// A code of either.
#[derive(Debug, Clone, Copy)]
enum Code {
    Check(policy::Code),
    Audit(audit::Code),
}

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_of_audit = text
            .get(..3)
            .is_some_and(|start| start.eq_ignore_ascii_case("CFA"));
        if is_of_audit {
            let code = text.parse().map(Self::Audit);
            code.map_err(|error: audit::UnknownCode| error.to_string())
        } else {
            let code = text.parse().map(Self::Check);
            code.map_err(|error: policy::UnknownCode| error.to_string())
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &Args) -> ExitCode {
    let text = match args.code {
        Code::Check(code) => code.explanation(),
        Code::Audit(code) => code.explanation(),
    };
    written(writeln!(io::stdout(), "{}", text.trim_end()).map(|()| ExitCode::SUCCESS))
}
