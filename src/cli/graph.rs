//! `cofferdam graph`: the allow-graph as a picture.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::flows::moment;
use super::{SettingsArgs, block_on, no_daemon, policies};
use crate::daemon::Refusal;
use crate::daemon::control::{Answer, Request, ask};
use crate::daemon::flows::{EndKind, FlowEnd, FlowRecord, FlowVerdict};
use crate::model::graph::{Graph, Node, Outcome, Scope, Tried};
use crate::policy::{Name, Peer, Policy, ServiceId, closest};

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
    /// The policy that the daemon has in force, with what was denied lately in red and what was audited in orange
    #[arg(long)]
    live: bool,
    /// With --live: only what was tried since then, `10m` or a time
    #[arg(long, value_name = "WHEN", requires = "live", default_value = "1h", value_parser = moment)]
    since: Timestamp,
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
    let (policy, tried) = match args.live {
        true => match live(&settings.control_socket, args.since)? {
            Ok(live) => live,
            Err(code) => return Ok(code),
        },
        false => match policies::read(&settings.policies) {
            Ok(loaded) => (loaded.policy, Vec::new()),
            Err(code) => return Ok(code),
        },
    };
    let policy = policy.at(Timestamp::now());
    let scope = match (args.service, args.segment) {
        (Some(service), _) => Scope::Around(service, args.depth),
        (None, Some(segment)) => Scope::Segment(segment),
        (None, None) => Scope::Everything,
    };
    if let Err(message) = is_there(&policy, &scope) {
        eprintln!("cofferdam: {message}");
        return Ok(ExitCode::from(USAGE));
    }
    let mut graph = Graph::of(&policy, &scope);
    graph.add_tried(tried);
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

/// The daemon's policy, and what was tried under it.
fn live(socket: &Path, since: Timestamp) -> Result<Result<(Policy, Vec<Tried>), ExitCode>, Refusal> {
    let asked = block_on(async {
        let policy = ask(socket, Request::Policy).await;
        Ok((policy, ask(socket, Request::Flows { after: 0 }).await))
    })?;
    let (policy, flows) = match asked {
        (Ok(Answer::Policy(policy)), Ok(Answer::Flows(flows))) => (policy, flows.flows),
        (Ok(_), Ok(_)) => return Err(Refusal::system("read the daemon's policy", "the answer is none")),
        (Err(error), _) | (_, Err(error)) => return Ok(Err(no_daemon(socket, &error))),
    };
    let lately = flows.into_iter().filter(|flow| flow.last_seen >= since);
    let tried = lately.map(|flow| tried(&flow)).collect();
    Ok(policies::of_daemon(&policy.sources()).map(|loaded| (loaded.policy, tried)))
}

fn tried(flow: &FlowRecord) -> Tried {
    let node = |end: &FlowEnd| {
        let service = end.services.first().and_then(|it| it.parse::<ServiceId>().ok());
        match (end.kind, service) {
            (EndKind::World, _) => Node::Peer(Peer::World),
            (EndKind::Host, _) => Node::Peer(Peer::Host),
            (_, Some(service)) => Node::Peer(Peer::Service(service)),
            (_, None) => Node::Stranger(end.to_string()),
        }
    };
    let what = match (flow.port, flow.protocol.as_str()) {
        (Some(port), "tcp") => port.to_string(),
        (Some(port), protocol) => format!("{port}/{protocol}"),
        (None, _) if flow.many_ports => "many ports".to_owned(),
        (None, protocol) => protocol.to_owned(),
    };
    Tried {
        from: node(&flow.from),
        to: node(&flow.to),
        outcome: match flow.verdict {
            FlowVerdict::Audited => Outcome::Audited,
            FlowVerdict::Denied | FlowVerdict::Identity => Outcome::Denied,
        },
        what,
        attempts: flow.attempts,
    }
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
