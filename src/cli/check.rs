//! `cofferdam check`: validates policy files and shows every fault. Exit code 0 without faults, 1 with, 2 when a path
//! cannot be read.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::{print_faults, written};
use crate::daemon::source::{self, Sources};
use crate::policy::{Fault, Faults, Loaded};

/// Validate policy files: every fault with its place and what was meant
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories or files
    #[arg(value_name = "PATH", default_value = "policies")]
    paths: Vec<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match source::read(&args.paths) {
        Ok(sources) if args.json => written(json(&sources)),
        Ok(sources) => written(text(&sources)),
        Err(error) => {
            eprintln!("error: {error}: {}", error.source);
            ExitCode::from(2)
        }
    }
}

fn text(sources: &Sources) -> io::Result<ExitCode> {
    match sources.load() {
        Ok(loaded) => {
            writeln!(io::stdout(), "{}: no faults", loaded.summary())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            print_faults(&faults, &sources.files)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn json(sources: &Sources) -> io::Result<ExitCode> {
    let result = sources.load();
    let mut stdout = io::stdout();
    serde_json::to_writer(&stdout, &Checked::new(sources, &result))?;
    writeln!(stdout)?;
    Ok(if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The object that `--json` prints. With faults there is no policy, so nothing to count.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    revision: String,
    faults: Vec<FaultObject<'a>>,
    services: usize,
    edges: usize,
}

#[derive(Debug, Serialize)]
struct FaultObject<'a> {
    code: &'static str,
    message: &'a str,
    file: &'a str,
    line: usize,
    column: usize,
    help: Option<&'a str>,
}

impl<'a> Checked<'a> {
    fn new(sources: &Sources, result: &'a Result<Loaded, Faults>) -> Self {
        let policy = result.as_ref().ok().map(|loaded| &loaded.policy);
        let faults = result.as_ref().err().into_iter().flat_map(Faults::iter);
        Self {
            revision: sources.revision().to_string(),
            faults: faults.map(FaultObject::from).collect(),
            services: policy.map_or(0, |policy| policy.services.len()),
            edges: policy.map_or(0, |policy| policy.edges.len()),
        }
    }
}

impl<'a> From<&'a Fault> for FaultObject<'a> {
    fn from(fault: &'a Fault) -> Self {
        Self {
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

    fn checked(text: &str) -> (serde_json::Value, ExitCode) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.yaml"), text).unwrap();
        let sources = source::read(&[root.path()]).unwrap();
        let value = serde_json::to_value(Checked::new(&sources, &sources.load())).unwrap();
        let args = Args {
            paths: vec![root.path().to_owned()],
            json: true,
        };
        (value, run(&args))
    }

    #[test]
    fn json_tells_places_and_numbers() {
        let (value, code) =
            checked("cofferdam: 1\nsegment: a\nservices: { web: { select: { name: web } } }\n");
        assert_eq!(
            (&value["services"], &value["faults"]),
            (&1.into(), &serde_json::json!([]))
        );
        assert_eq!(value["revision"].as_str().unwrap().len(), 64);
        assert_eq!(code, ExitCode::SUCCESS);
        let (value, code) = checked("cofferdam: 1\nsegmnt: a\n");
        let fault = &value["faults"][0];
        assert_eq!(fault["code"], "CFD010");
        assert_eq!((&fault["line"], &fault["column"]), (&2.into(), &1.into()));
        assert_eq!(fault["help"], "did you mean `segment`?");
        assert_eq!(code, ExitCode::FAILURE);
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
            json: false,
        };
        assert_eq!(run(&args), ExitCode::from(2));
    }
}
