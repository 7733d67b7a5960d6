//! `cofferdam learn`: from what is seen on this host a policy to review, or what a policy lacks of it. Changes nothing. Exit
//! code 0; with `--against` 2 when something is missing.

mod json;
mod output;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use tokio::signal::unix::{SignalKind, signal};

use self::output::Target;
use super::policies;
use super::{SettingsArgs, block_on, print_json};
use crate::daemon::Refusal;
use crate::daemon::learn::{Progress, learn};
use crate::model::learn::against::{self, missing};
use crate::model::learn::document::{Document, documents};
use crate::model::learn::{Layout, Lesson, Scope};
use crate::policy::{Colour, Loaded, Name, SourceFile, load};

#[derive(Debug, Args)]
pub(super) struct LearnArgs {
    /// How long to watch, such as 90s, 5m or 2h [default: until Ctrl-C]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    span: Option<Duration>,
    /// Only flows with an end in this Compose project; may be given several times
    #[arg(long, value_name = "NAME")]
    project: Vec<String>,
    /// Only flows with an end on this Docker network; may be given several times
    #[arg(long, value_name = "NAME")]
    network: Vec<String>,
    /// Print only what the policy in this directory does not permit
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Put every service into this segment
    #[arg(long, value_name = "NAME", conflicts_with = "against")]
    segment: Option<Name>,
    /// Write to this new file; into this directory one file for each Compose project
    #[arg(long, short, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// Print what was seen as JSON
    #[arg(long, conflicts_with = "output")]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Something is missing.
const MISSING: u8 = 2;
const FAULTS: u8 = 1;

fn duration(text: &str) -> Result<Duration, String> {
    let span: SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from(span)
        .ok()
        .filter(|span| !span.is_zero())
        .ok_or_else(|| "a duration is longer than nothing".to_owned())
}

pub(super) fn run(args: LearnArgs) -> Result<ExitCode, Refusal> {
    // What is wrong is said before anybody waits.
    let policy = match args.against.as_deref().map(policies::read) {
        None => None,
        Some(Ok(loaded)) => Some(loaded),
        Some(Err(code)) => return Ok(code),
    };
    let target = Target::new(args.output.as_deref())?;
    let scope = Scope {
        projects: args.project.iter().cloned().collect(),
        networks: args.network.iter().cloned().collect(),
    };
    let settings = args.settings.load()?;
    let lesson = block_on(async {
        let end = end(args.span).map_err(|error| Refusal::system("wait for signals", error))?;
        let shown = Line::new(args.span);
        let lesson = learn(&settings, end, |progress| shown.show(progress, &scope)).await;
        shown.clear();
        lesson
    })?;
    match policy {
        Some(policy) => against(&lesson, &scope, &policy, &target, args.json),
        None => {
            let layout = match (&args.segment, &target) {
                (None, Target::Directory(_)) => Layout::Projects,
                (Some(segment), _) => Layout::One(Some(segment.clone())),
                (None, _) => Layout::One(match args.project.as_slice() {
                    [only] => only.parse().ok(),
                    _ => None,
                }),
            };
            whole(&lesson, &documents(&lesson, &scope, &layout), &target, args.json)
        }
    }
}

/// The end of watching: the time is over, or somebody says so.
fn end(span: Option<Duration>) -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        let over = async {
            match span {
                Some(span) => tokio::time::sleep(span).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// The line that says how far it is, on a terminal.
struct Line {
    span: Option<Duration>,
    is_shown: bool,
}

impl Line {
    fn new(span: Option<Duration>) -> Self {
        let line = Self {
            span,
            is_shown: std::io::stderr().is_terminal(),
        };
        line.print("watching; Ctrl-C ends");
        line
    }

    fn show(&self, progress: Progress<'_>, scope: &Scope) {
        if !self.is_shown {
            return;
        }
        let seconds = |span: Duration| SignedDuration::from_secs(span.as_secs().try_into().unwrap_or(0));
        let flows = progress.lesson.count(scope);
        let of = self
            .span
            .map(|span| format!(" of {:#}", seconds(span)))
            .unwrap_or_default();
        let elapsed = seconds(progress.elapsed);
        self.print(&format!("{flows} flows after {elapsed:#}{of}; Ctrl-C ends"));
    }

    fn print(&self, text: &str) {
        if self.is_shown {
            let _gone = write!(std::io::stderr(), "\r\x1b[K{text}");
        }
    }

    fn clear(&self) {
        self.print("");
    }
}

fn whole(
    lesson: &Lesson,
    documents: &[Document],
    target: &Target,
    is_json: bool,
) -> Result<ExitCode, Refusal> {
    let files: Vec<SourceFile> = documents
        .iter()
        .map(|document| SourceFile {
            path: format!("{}.yaml", document.segment),
            bytes: document.text.clone().into_bytes(),
        })
        .collect();
    let code = match load(&files) {
        Ok(_) => ExitCode::SUCCESS,
        Err(faults) => {
            eprint!("{}", faults.render(&files, Colour::Plain));
            eprintln!(
                "cofferdam: what was learnt is no valid policy as it stands: {}",
                faults.summary()
            );
            ExitCode::from(FAULTS)
        }
    };
    if is_json {
        print_json(&json::whole(lesson, documents))?;
    } else if documents.is_empty() {
        eprintln!("cofferdam: no flow was seen: there is nothing to write");
    } else {
        target.write(
            documents
                .iter()
                .map(|it| (it.segment.to_string(), it.text.as_str())),
            "",
        )?;
    }
    Ok(code)
}

fn against(
    lesson: &Lesson,
    scope: &Scope,
    policy: &Loaded,
    target: &Target,
    is_json: bool,
) -> Result<ExitCode, Refusal> {
    let policy = policy.policy.at(Timestamp::now());
    let missing = missing(lesson, scope, &policy);
    let texts = against::texts(&missing, &policy);
    let notes = against::notes(lesson, &missing);
    if is_json {
        print_json(&json::against(lesson, &missing, &texts))?;
    } else {
        let parts = texts
            .iter()
            .map(|(segment, text)| (format!("{segment}-missing"), text.as_str()));
        let mut rest: String = notes.iter().map(|note| format!("# {note}\n")).collect();
        if missing.is_empty() {
            rest.insert_str(0, "# Nothing is missing: the policy permits all that was seen.\n");
        }
        target.write(parts, &rest)?;
    }
    Ok(match missing.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(MISSING),
    })
}
