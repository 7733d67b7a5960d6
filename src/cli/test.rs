//! `cofferdam test`: the policies' own `tests`, offline. Exit code 0 when all of them hold, 1 when one does not or the
//! policy has faults, 2 when a path cannot be read or the report not be written.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

use super::{colour_of, print_faults, written};
use crate::daemon::source::{self, Sources};
use crate::policy::{Colour, Failure, Faults, Loaded, Location, Outcome, SourceFile, Test, count};

/// Run the policies' own tests, offline
///
/// Exit codes: 0 all of them hold; 1 one does not, or the policy has faults; 2 a path cannot be read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories or files
    #[arg(value_name = "PATH", default_value = "policies")]
    paths: Vec<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Write a JUnit XML report, one test suite for each policy file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match source::read(&args.paths) {
        Ok(sources) => written(report(args, &sources)),
        Err(error) => {
            eprintln!("error: {error}: {}", error.source);
            ExitCode::from(2)
        }
    }
}

fn report(args: &Args, sources: &Sources) -> io::Result<ExitCode> {
    let loaded = sources.load();
    let tested = loaded
        .as_ref()
        .map(|loaded| Tested::new(loaded, Timestamp::now()));
    if let Some(path) = &args.junit {
        let report = match &tested {
            Ok(tested) => tested.junit(&sources.files),
            Err(faults) => faults_as_junit(faults),
        };
        let text = report.to_string().map_err(io::Error::other)?;
        fs::write(path, text)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    }
    let mut stdout = io::stdout();
    if args.json {
        serde_json::to_writer(&stdout, &object(sources, &tested))?;
        writeln!(stdout)?;
    } else {
        match &tested {
            Ok(tested) => write!(stdout, "{}", tested.text(&sources.files, colour_of(&stdout)))?,
            Err(faults) => print_faults(faults, &sources.files)?,
        }
    }
    Ok(match tested {
        Ok(tested) if tested.failed().count() == 0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Every test of a policy with its outcome, in the order of the files.
#[derive(Debug)]
pub struct Tested<'p> {
    results: Vec<(&'p Test, Outcome<'p>)>,
}

impl<'p> Tested<'p> {
    /// Runs every test as of this moment.
    pub fn new(loaded: &'p Loaded, now: Timestamp) -> Self {
        let policy = &loaded.policy;
        let mut results: Vec<_> = policy
            .tests
            .iter()
            .map(|test| (test, policy.outcome(test, now)))
            .collect();
        results.sort_by(|(a, _), (b, _)| a.location.cmp(&b.location));
        Self { results }
    }

    fn failed(&self) -> impl Iterator<Item = &(&'p Test, Outcome<'p>)> {
        self.results
            .iter()
            .filter(|(_, outcome)| *outcome != Outcome::Holds)
    }

    /// The results by file.
    fn by_file(&self) -> BTreeMap<&str, Vec<&(&'p Test, Outcome<'p>)>> {
        let mut files: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for result in &self.results {
            files.entry(&result.0.location.file).or_default().push(result);
        }
        files
    }

    /// What does not hold, a line for each file with tests, and the total.
    pub fn text(&self, files: &[SourceFile], colour: Colour) -> String {
        let mut text: String = self
            .failed()
            .map(|(test, outcome)| Failure { test, outcome }.render(files, colour))
            .collect();
        let by_file = self.by_file();
        for (file, results) in &by_file {
            text.push_str(&format!("{file}: {}\n", summary(results.iter().copied())));
        }
        match by_file.len() {
            0 => text.push_str("the policy has no tests\n"),
            1 => {}
            files => text.push_str(&format!("{}: {}\n", count(files, "file"), summary(&self.results))),
        }
        text
    }

    /// One test suite for each file with tests.
    pub fn junit(&self, files: &[SourceFile]) -> Report {
        let mut report = Report::new("cofferdam test");
        for (file, results) in self.by_file() {
            let mut suite = TestSuite::new(file);
            for (test, outcome) in results {
                let status = match outcome.message(test) {
                    None => TestCaseStatus::success(),
                    Some(message) => {
                        let shown = Failure { test, outcome }.render(files, Colour::Plain);
                        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                        status
                            .set_type(test.expected.to_string())
                            .set_message(message)
                            .set_description(shown);
                        status
                    }
                };
                let Location { line, column, .. } = test.location;
                let mut case =
                    TestCase::new(format!("{test} is {} ({line}:{column})", test.expected), status);
                case.set_classname(file);
                suite.add_test_case(case);
            }
            report.add_test_suite(suite);
        }
        report
    }
}

/// A policy with faults has no tests to run: each file with faults is a suite with one error.
fn faults_as_junit(faults: &Faults) -> Report {
    let mut by_file: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for fault in faults {
        by_file
            .entry(&fault.location.file)
            .or_default()
            .push(fault.to_string());
    }
    let mut report = Report::new("cofferdam test");
    for (file, lines) in by_file {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status
            .set_message(count(lines.len(), "fault"))
            .set_description(lines.join("\n"));
        let mut case = TestCase::new("the policy has no faults", status);
        case.set_classname(file);
        let mut suite = TestSuite::new(file);
        suite.add_test_case(case);
        report.add_test_suite(suite);
    }
    report
}

fn summary<'r, 'p: 'r>(results: impl IntoIterator<Item = &'r (&'p Test, Outcome<'p>)>) -> String {
    let (mut held, mut all) = (0, 0);
    for (_, outcome) in results {
        all += 1;
        held += usize::from(*outcome == Outcome::Holds);
    }
    match all {
        1 if held == 1 => "1 test holds".to_owned(),
        _ if held == all => format!("all {all} tests hold"),
        1 => "1 test does not hold".to_owned(),
        _ => format!("{held} of {all} tests hold"),
    }
}

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
struct Object {
    revision: String,
    tests: Vec<TestObject>,
    passed: usize,
    failed: usize,
    /// The policy's faults, one line each; with any of them no test runs.
    faults: Vec<String>,
}

#[derive(Debug, Serialize)]
struct TestObject {
    file: String,
    line: usize,
    column: usize,
    from: String,
    to: String,
    ports: String,
    expected: String,
    holds: bool,
    message: Option<String>,
    help: Option<String>,
    /// The edge that permits what is said to be unreachable, as `file:line:column`.
    edge: Option<String>,
    /// The segment in which a missing edge would stand.
    segment: Option<String>,
}

fn object(sources: &Sources, tested: &Result<Tested<'_>, &Faults>) -> Object {
    let results = tested.as_ref().map_or(&[][..], |tested| &tested.results);
    let tests: Vec<_> = results
        .iter()
        .map(|(test, outcome)| TestObject::new(test, outcome))
        .collect();
    let passed = tests.iter().filter(|test| test.holds).count();
    let faults = tested.as_ref().err().into_iter().flat_map(|faults| faults.iter());
    Object {
        revision: sources.revision().to_string(),
        passed,
        failed: tests.len() - passed,
        tests,
        faults: faults.map(ToString::to_string).collect(),
    }
}

impl TestObject {
    fn new(test: &Test, outcome: &Outcome<'_>) -> Self {
        let (edge, segment) = match outcome {
            Outcome::Holds | Outcome::SaysNothing => (None, None),
            Outcome::Permitted(edge, _) => (Some(edge.location.to_string()), None),
            Outcome::Missing(_) => (None, test.owner().map(ToString::to_string)),
        };
        Self {
            file: test.location.file.clone(),
            line: test.location.line,
            column: test.location.column,
            from: test.from.to_string(),
            to: test.to.to_string(),
            ports: test.ports.to_string(),
            expected: test.expected.to_string(),
            holds: *outcome == Outcome::Holds,
            message: outcome.message(test),
            help: outcome.help(test),
            edge,
            segment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "cofferdam: 1\nsegment: a\nservices:\n  web: { select: { name: web } }\n  db: { select: { name: db } }\nallow: [{ from: web, to: db, ports: [5432] }]\ntests:\n  reachable: [\"web -> db:5432\"]\n";

    fn ran(text: &str) -> (serde_json::Value, String, ExitCode) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a&b.yaml"), text).unwrap();
        let junit = root.path().join("junit.xml");
        let args = Args {
            paths: vec![root.path().to_owned()],
            json: true,
            junit: Some(junit.clone()),
        };
        let code = run(&args);
        let sources = source::read(&[root.path()]).unwrap();
        let loaded = sources.load();
        let tested = loaded
            .as_ref()
            .map(|loaded| Tested::new(loaded, Timestamp::now()));
        let value = serde_json::to_value(object(&sources, &tested)).unwrap();
        (value, fs::read_to_string(junit).unwrap(), code)
    }

    #[test]
    fn what_holds_and_what_does_not_is_told_in_json_and_junit() {
        let (value, junit, code) = ran(POLICY);
        assert_eq!((&value["passed"], &value["failed"]), (&1.into(), &0.into()));
        assert!(junit.contains("failures=\"0\""), "{junit}");
        assert_eq!(code, ExitCode::SUCCESS);
        let (value, junit, code) = ran(&format!(
            "{POLICY}  unreachable: [\"web -> db:5432\", \"db -> web:1\"]\n"
        ));
        assert_eq!((&value["passed"], &value["failed"]), (&2.into(), &1.into()));
        let failed = &value["tests"][1];
        assert_eq!((&failed["line"], &failed["column"]), (&9.into(), &17.into()));
        assert!(
            failed["edge"].as_str().unwrap().ends_with("a&b.yaml:6:9"),
            "{failed}"
        );
        assert!(junit.contains("a&amp;b.yaml"), "{junit}");
        assert!(
            junit.contains("tests=\"3\"") && junit.contains("failures=\"1\""),
            "{junit}"
        );
        assert_eq!(code, ExitCode::FAILURE);
    }

    #[test]
    fn a_policy_with_faults_does_not_pass() {
        let (value, junit, code) = ran("cofferdam: 1\nsegmnt: a\n");
        assert_eq!(value["faults"].as_array().unwrap().len(), 1);
        assert!(
            junit.contains("errors=\"1\"") && junit.contains("CFD010"),
            "{junit}"
        );
        assert_eq!(code, ExitCode::FAILURE);
    }

    #[test]
    fn a_missing_path_and_an_unwritable_report_are_errors() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.yaml"), POLICY).unwrap();
        let args = |path: PathBuf, junit: Option<&str>| Args {
            paths: vec![path],
            json: false,
            junit: junit.map(PathBuf::from),
        };
        assert_eq!(
            run(&args("/nonexistent/policies".into(), None)),
            ExitCode::from(2)
        );
        assert_eq!(
            run(&args(root.path().to_owned(), Some("/nonexistent/junit.xml"))),
            ExitCode::from(2)
        );
        assert_eq!(run(&args(root.path().to_owned(), None)), ExitCode::SUCCESS);
    }
}
