//! `cofferdam status`: what is in force.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{block_on, print_json};
use crate::daemon::Refusal;
use crate::daemon::control::{Answer, Request, ask};
use crate::daemon::status::{State, Status};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The daemon's control socket
    #[arg(
        long,
        env = "COFFERDAM_CONTROL_SOCKET",
        value_name = "PATH",
        default_value = "/run/cofferdam/control.sock"
    )]
    control_socket: PathBuf,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Exit with 1 unless the policy is in force and nothing is wrong
    #[arg(long)]
    check: bool,
}

/// No daemon answers.
const NO_DAEMON: u8 = 3;

pub(super) fn run(args: &StatusArgs) -> Result<ExitCode, Refusal> {
    let status = match block_on(async { Ok(ask(&args.control_socket, Request::Status).await) })? {
        Ok(Answer::Status(status)) => status,
        Ok(Answer::Policy(_)) => return Err(Refusal::system("read the status", "the answer is none")),
        Ok(Answer::Error(message)) => return Err(Refusal::system("read the status", message)),
        Err(error) => {
            eprintln!(
                "cofferdam: no daemon answers at {} ({error}): rules that it left stand as they are",
                args.control_socket.display()
            );
            return Ok(ExitCode::from(NO_DAEMON));
        }
    };
    if args.json {
        print_json(&status)?
    } else {
        print!("{}", text(&status))
    }
    Ok(if args.check && status.state != State::Enforcing {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = render(&mut out, status);
    out
}

fn render(out: &mut String, status: &Status) -> std::fmt::Result {
    let state = match status.state {
        State::Starting => "starting",
        State::Waiting => "waiting for the engine: the rules stand, nothing new opens",
        State::Enforcing => "enforcing",
        State::Degraded => "DEGRADED",
    };
    writeln!(
        out,
        "state     {state}{}",
        if status.settled {
            ""
        } else {
            " (changes under way)"
        }
    )?;
    for reason in &status.reasons {
        writeln!(out, "          {reason}")?;
    }
    let revision = status.policy.revision.as_deref().unwrap_or("none");
    writeln!(
        out,
        "policy    {} from {}",
        revision.get(..12).unwrap_or(revision),
        status.policy.directory
    )?;
    writeln!(
        out,
        "engine    {}",
        status.engine.as_deref().unwrap_or("not connected")
    )?;
    let passes = &status.passes;
    writeln!(
        out,
        "passes    {} ({} repairs), last: {} in {} ms",
        passes.count, passes.repairs, passes.last_cause, passes.last_elapsed_ms
    )?;
    if let Some(drift) = &status.drift {
        let repaired = drift.repaired_us.map_or_else(
            || "not put back yet".to_owned(),
            |us| format!("put back within {} ms", us.div_ceil(1000)),
        );
        writeln!(out, "drift     {drift}, {} ({repaired})", drift.at)?;
    }
    if let Some(denied) = status.denied_packets {
        writeln!(out, "denied    {denied} packets")?;
    }
    if let Some(audited) = status.audited_packets.filter(|it| *it > 0) {
        writeln!(out, "audited   {audited} packets")?;
    }
    writeln!(out, "\nservices")?;
    for (name, service) in &status.services {
        writeln!(out, "  {name}: {}", count(service.containers.len(), "container"))?;
        for container in &service.containers {
            let bound = container
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.bound)
                .count();
            let endpoints = container.endpoints.len();
            write!(
                out,
                "    {} ({bound} of {} bound)",
                container.name,
                count(endpoints, "endpoint")
            )?;
            if !container.services.is_empty() {
                write!(out, ", belongs to {}", container.services.join(" and "))?;
            }
            writeln!(out)?;
        }
    }
    writeln!(out, "\nedges")?;
    let hits = |packets: Option<u64>| packets.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let width = status
        .edges
        .iter()
        .map(|edge| hits(edge.packets).len())
        .max()
        .unwrap_or(0);
    for edge in &status.edges {
        let ports = edge.ports.join(", ");
        let hits = hits(edge.packets);
        let until = edge.until.as_deref().map(|until| format!(", until {until}"));
        writeln!(
            out,
            "  {hits:>width$}  {} -> {}: {ports}  ({}{})",
            edge.from,
            edge.to,
            edge.declared,
            until.unwrap_or_default()
        )?;
    }
    for (title, found) in [
        ("quarantined", &status.quarantined),
        ("isolated", &status.isolated),
        ("not enforceable", &status.unenforceable),
    ] {
        if !found.is_empty() {
            writeln!(out, "\n{title}")?;
        }
        for (container, reasons) in found {
            writeln!(out, "  {container}: {}", reasons.join("; "))?;
        }
        if title == "not enforceable" && !found.is_empty() {
            let kinds = status.unenforceable_counts.iter();
            let kinds: Vec<String> = kinds.map(|(kind, number)| format!("{kind} {number}")).collect();
            writeln!(
                out,
                "  in all {}: {}",
                count(found.len(), "container"),
                kinds.join(", ")
            )?;
        }
    }
    for (container, networks) in &status.many_networks {
        writeln!(
            out,
            "\n{container} is on {networks} service networks: its start takes longer with each"
        )?;
    }
    Ok(())
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
