//! `cofferdam graph`: the allow-graph as a picture.

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::{SettingsArgs, policies};
use crate::daemon::Refusal;
use crate::model::graph::{Graph, Scope};
use crate::policy::{Name, Policy, ServiceId, closest};

#[derive(Debug, Args)]
pub(super) struct GraphArgs {
    /// What is printed; svg needs Graphviz
    #[arg(long, value_enum, default_value_t = Format::Dot)]
    format: Format,
    /// Only this service and what has edges with it: segment/service
    #[arg(long, value_name = "SERVICE", conflicts_with = "segment")]
    service: Option<ServiceId>,
    /// How many edges away from the service
    #[arg(long, value_name = "N", default_value_t = 1, requires = "service")]
    depth: usize,
    /// Only this segment's services and what has edges with them
    #[arg(long, value_name = "SEGMENT")]
    segment: Option<Name>,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Dot,
    Mermaid,
    Svg,
}

/// Wrong usage: there is no such service or segment.
const USAGE: u8 = 2;

pub(super) fn run(args: GraphArgs) -> Result<ExitCode, Refusal> {
    let settings = args.settings.load()?;
    let policy = match policies::read(&settings.policies) {
        Ok(loaded) => loaded.policy.at(Timestamp::now()),
        Err(code) => return Ok(code),
    };
    let scope = match (args.service, args.segment) {
        (Some(service), _) => Scope::Around(service, args.depth),
        (None, Some(segment)) => Scope::Segment(segment),
        (None, None) => Scope::Everything,
    };
    if let Err(message) = is_there(&policy, &scope) {
        eprintln!("cofferdam: {message}");
        return Ok(ExitCode::from(USAGE));
    }
    let graph = Graph::of(&policy, &scope);
    let text = match args.format {
        Format::Dot => graph.dot().into_bytes(),
        Format::Mermaid => graph.mermaid().into_bytes(),
        Format::Svg => svg(&graph.dot())?,
    };
    std::io::stdout()
        .write_all(&text)
        .map_err(|error| Refusal::system("write the graph", error))?;
    Ok(ExitCode::SUCCESS)
}

/// A part that is not there would be an empty picture, which says that nothing is permitted.
fn is_there(policy: &Policy, scope: &Scope) -> Result<(), String> {
    let (what, name, known): (_, String, Vec<String>) = match scope {
        Scope::Around(id, _) if !policy.services.contains_key(id) => {
            let known = policy.services.keys().map(ToString::to_string);
            ("service", id.to_string(), known.collect())
        }
        Scope::Segment(segment) if !policy.services.keys().any(|id| id.segment == *segment) => {
            let known = policy.services.keys().map(|id| id.segment.to_string());
            ("segment", segment.to_string(), known.collect())
        }
        _ => return Ok(()),
    };
    let likely = closest(&name, known.iter().map(String::as_str));
    let likely = likely
        .map(|it| format!("; did you mean `{it}`?"))
        .unwrap_or_default();
    Err(format!("the policy has no {what} `{name}`{likely}"))
}

/// Graphviz draws it.
fn svg(dot: &str) -> Result<Vec<u8>, Refusal> {
    let failed = |error| Refusal::system("draw the graph with Graphviz' `dot`", error);
    let spawned = Command::new("dot")
        .arg("-Tsvg")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            let help = "it is not installed: install the package graphviz, or print --format dot or mermaid";
            failed(Box::<dyn std::error::Error + Send + Sync>::from(help))
        }
        _ => failed(error.into()),
    })?;
    let input = child.stdin.take();
    let text = dot.to_owned();
    // Beside reading, so that neither waits for the other.
    let writer = std::thread::spawn(move || input.map(|mut input| input.write_all(text.as_bytes())));
    let output = child.wait_with_output().map_err(|error| failed(error.into()))?;
    writer.join().ok();
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(format!("it ended with {}", output.status).into()))
    }
}
