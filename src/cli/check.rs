//! `cofferdam check`: validates policy files and shows every fault, and what a reviewer would ask. Exit code 0 without
//! faults, 1 with, 2 when a path cannot be read, 3 for warnings alone where they are denied.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use super::{colour_of, print_faults, sarif, written};
use crate::daemon::source::{self, Sources};
use crate::policy::{Fault, Faults, Reviewed, Severity, count};

/// Only warnings, and `--deny-warnings`.
const WARNINGS_DENIED: u8 = 3;

/// Validate policy files: every fault with its place and what was meant, and what a reviewer would ask
///
/// Exit codes: 0 no faults, warnings or not; 1 faults; 2 a path cannot be read; 3 no faults but warnings, with --deny-warnings.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Directories or files
    #[arg(value_name = "PATH", default_value = "policies")]
    paths: Vec<PathBuf>,

    /// Print one JSON object
    #[arg(long, conflicts_with = "sarif")]
    json: bool,

    /// Print a SARIF 2.1.0 log, for code hosts that show findings beside the lines
    #[arg(long)]
    sarif: bool,

    /// Exit with 3 when there are warnings
    #[arg(long)]
    deny_warnings: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match source::read(&args.paths) {
        Ok(sources) => {
            let reviewed = sources.review(Timestamp::now());
            written(print(args, &sources, &reviewed).map(|()| exit_code(args, &reviewed)))
        }
        Err(error) => {
            eprintln!("error: {error}: {}", error.source);
            ExitCode::from(2)
        }
    }
}

fn exit_code(args: &Args, reviewed: &Reviewed) -> ExitCode {
    if reviewed.loaded.is_err() {
        ExitCode::FAILURE
    } else if args.deny_warnings && !reviewed.warnings.is_empty() {
        ExitCode::from(WARNINGS_DENIED)
    } else {
        ExitCode::SUCCESS
    }
}

fn print(args: &Args, sources: &Sources, reviewed: &Reviewed) -> io::Result<()> {
    let mut stdout = io::stdout();
    if args.json {
        serde_json::to_writer(&stdout, &Checked::new(sources, reviewed))?;
        writeln!(stdout)
    } else if args.sarif {
        let faults = reviewed.loaded.as_ref().err().into_iter().flat_map(Faults::iter);
        let log = sarif::Log::new(faults.chain(reviewed.warnings.iter()), &sources.files);
        serde_json::to_writer_pretty(&stdout, &log)?;
        writeln!(stdout)
    } else {
        text(sources, reviewed)
    }
}

fn text(sources: &Sources, reviewed: &Reviewed) -> io::Result<()> {
    let warnings = &reviewed.warnings;
    let mut stderr = io::stderr();
    let colour = colour_of(&stderr);
    write!(stderr, "{}", warnings.render(&sources.files, colour))?;
    match &reviewed.loaded {
        Err(faults) => {
            print_faults(faults, &sources.files)?;
            if !warnings.is_empty() {
                writeln!(stderr, "{}", warnings.summary())?;
            }
            match faults.iter().next() {
                Some(first) => writeln!(
                    stderr,
                    "for more about a code: cofferdam explain-code {}",
                    first.code
                ),
                None => Ok(()),
            }
        }
        Ok(loaded) => {
            let warned = match warnings.iter().len() {
                0 => String::new(),
                warnings => format!(", {}", count(warnings, "warning")),
            };
            writeln!(io::stdout(), "{}: no faults{warned}", loaded.summary())
        }
    }
}

/// The object that `--json` prints. With faults there is no policy, so nothing to count.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    revision: String,
    faults: Vec<FaultObject<'a>>,
    warnings: Vec<FaultObject<'a>>,
    services: usize,
    edges: usize,
}

#[derive(Debug, Serialize)]
struct FaultObject<'a> {
    severity: Severity,
    code: &'static str,
    message: &'a str,
    file: &'a str,
    line: usize,
    column: usize,
    help: Option<&'a str>,
}

impl<'a> Checked<'a> {
    fn new(sources: &Sources, reviewed: &'a Reviewed) -> Self {
        let policy = reviewed.loaded.as_ref().ok().map(|loaded| &loaded.policy);
        let faults = reviewed.loaded.as_ref().err().into_iter().flat_map(Faults::iter);
        Self {
            revision: sources.revision().to_string(),
            faults: faults.map(FaultObject::from).collect(),
            warnings: reviewed.warnings.iter().map(FaultObject::from).collect(),
            services: policy.map_or(0, |policy| policy.services.len()),
            edges: policy.map_or(0, |policy| policy.edges.len()),
        }
    }
}

impl<'a> From<&'a Fault> for FaultObject<'a> {
    fn from(fault: &'a Fault) -> Self {
        Self {
            severity: fault.code.severity(),
            code: fault.code.as_str(),
            message: &fault.message,
            file: &fault.location.file,
            line: fault.location.line,
            column: fault.location.column,
            help: fault.help.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> (serde_json::Value, ExitCode, ExitCode) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.yaml"), text).unwrap();
        let sources = source::read(&[root.path()]).unwrap();
        let reviewed = sources.review(Timestamp::now());
        let value = serde_json::to_value(Checked::new(&sources, &reviewed)).unwrap();
        let args = |deny_warnings| Args {
            paths: vec![root.path().to_owned()],
            json: true,
            deny_warnings,
            ..Args::default()
        };
        (value, run(&args(false)), run(&args(true)))
    }

    #[test]
    fn json_tells_places_and_numbers() {
        let policy = "cofferdam: 1\nsegment: a\nservices: { web: { select: { name: web } } }\n";
        let edge = "allow: [{ from: world, to: web, ports: [443] }]\n";
        let (value, code, denied) = checked(&format!("{policy}{edge}"));
        assert_eq!(
            (&value["services"], &value["faults"], &value["warnings"]),
            (&1.into(), &serde_json::json!([]), &serde_json::json!([]))
        );
        assert_eq!(value["revision"].as_str().unwrap().len(), 64);
        assert_eq!((code, denied), (ExitCode::SUCCESS, ExitCode::SUCCESS));
        let (value, code, denied) = checked(policy);
        let warning = &value["warnings"][0];
        assert_eq!(
            (&warning["code"], &warning["severity"]),
            (&"CFD101".into(), &"warning".into())
        );
        assert_eq!((&warning["line"], &warning["column"]), (&3.into(), &13.into()));
        assert_eq!((code, denied), (ExitCode::SUCCESS, ExitCode::from(3)));
        let (value, code, denied) = checked("cofferdam: 1\nsegmnt: a\n");
        let fault = &value["faults"][0];
        assert_eq!(
            (&fault["code"], &fault["severity"]),
            (&"CFD010".into(), &"error".into())
        );
        assert_eq!((&fault["line"], &fault["column"]), (&2.into(), &1.into()));
        assert_eq!(fault["help"], "did you mean `segment`?");
        assert_eq!((code, denied), (ExitCode::FAILURE, ExitCode::FAILURE));
    }

    #[test]
    fn the_directory_is_policies_unless_told_otherwise() {
        use clap::{Args as _, FromArgMatches as _};
        let parse = |words: &[&str]| {
            let matches = Args::augment_args(clap::Command::new("check")).get_matches_from(words);
            Args::from_arg_matches(&matches).unwrap()
        };
        assert_eq!(parse(&["check"]).paths, [PathBuf::from("policies")]);
        let args = parse(&["check", "--json", "a", "b.yaml"]);
        assert_eq!((args.paths.len(), args.json), (2, true));
    }

    #[test]
    fn a_missing_path_is_no_fault_but_an_error() {
        let args = Args {
            paths: vec![PathBuf::from("/nonexistent/policies")],
            ..Args::default()
        };
        assert_eq!(run(&args), ExitCode::from(2));
    }
}
