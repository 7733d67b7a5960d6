//! `cofferdam doctor`: whether this host has what Cofferdam needs, and what to do where it has not. Changes nothing. Exit code 0, or
//! 1 when something fails.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{SettingsArgs, block_on, colour_of, print_json, print_text};
use crate::daemon::Refusal;
use crate::daemon::doctor::{Check, Outcome, examine};
use crate::policy::Colour;

/// Check what this host has of what Cofferdam needs: kernel, nft, engine, pools, clock, policy, daemon
///
/// Changes nothing. Exit codes: 0 nothing fails, warnings or not; 1 something fails.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Serialize)]
struct Object {
    worst: Outcome,
    checks: Vec<Check>,
}

pub(super) fn run(args: DoctorArgs) -> Result<ExitCode, Refusal> {
    let settings = args.settings.load()?;
    let checks = block_on(async { Ok(examine(&settings).await) })?;
    let worst = checks.iter().map(|it| it.outcome).max().unwrap_or(Outcome::Ok);
    if args.json {
        print_json(&Object { worst, checks })?;
    } else {
        print_text(&text(&checks, colour_of(&io::stdout())))?;
    }
    Ok(match worst {
        Outcome::Ok | Outcome::Warn => ExitCode::SUCCESS,
        Outcome::Fail => ExitCode::FAILURE,
    })
}

fn text(checks: &[Check], colour: Colour) -> String {
    let width = checks.iter().map(|it| it.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for check in checks {
        let (word, paint) = match check.outcome {
            Outcome::Ok => ("ok  ", "\x1b[32m"),
            Outcome::Warn => ("warn", "\x1b[33m"),
            Outcome::Fail => ("fail", "\x1b[31m"),
        };
        let word = match colour {
            Colour::Plain => word.to_owned(),
            Colour::Coloured => format!("{paint}{word}\x1b[0m"),
        };
        // What others said may have lines of its own.
        let found = check
            .found
            .replace('\n', &format!("\n{:width$}", "", width = width + 7));
        let _ = writeln!(text, "{word}  {:<width$} {found}", check.name);
        if let Some(remedy) = check.remedy {
            let _ = writeln!(text, "      {:<width$} -> {remedy}", "");
        }
    }
    text
}
