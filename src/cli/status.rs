//! `cofferdam status`: what is in force.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::{ControlArgs, block_on, no_daemon, print_json, print_text};
use crate::daemon::Refusal;
use crate::daemon::control::{Answer, Request, ask};
use crate::daemon::status::{EdgeStatus, EndpointState, EndpointStatus, State, Status};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    control: ControlArgs,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Print metrics, as Prometheus and node_exporter's textfile collector read them
    #[arg(long, conflicts_with = "json")]
    metrics: bool,
    /// Exit with 1 unless the policy is in force and nothing is wrong
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<ExitCode, Refusal> {
    let status = match block_on(async { Ok(ask(&args.control.control_socket, Request::Status).await) })? {
        Ok(Answer::Status(status)) => status,
        Ok(Answer::Policy(_) | Answer::Flows(_) | Answer::Metrics(_)) => {
            return Err(Refusal::system("read the status", "the answer is none"));
        }
        Ok(Answer::Error(message)) => return Err(Refusal::system("read the status", message)),
        Err(error) => {
            return Ok(no_daemon(&args.control.control_socket, &error));
        }
    };
    if args.json {
        print_json(&status)?
    } else if args.metrics {
        print_text(&metrics(&args.control.control_socket)?)?
    } else {
        print_text(&text(&status, Timestamp::now()))?
    }
    Ok(if args.check && status.state != State::Enforcing {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}

fn metrics(socket: &Path) -> Result<String, Refusal> {
    match block_on(async { Ok(ask(socket, Request::Metrics).await) })? {
        Ok(Answer::Metrics(text)) => Ok(text),
        Ok(Answer::Error(message)) => Err(Refusal::system("read the metrics", message)),
        Ok(_) => Err(Refusal::system("read the metrics", "the answer has none")),
        Err(error) => Err(Refusal::system("read the metrics", error)),
    }
}

fn text(status: &Status, now: Timestamp) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = render(&mut out, status, now);
    out
}

fn render(out: &mut String, status: &Status, now: Timestamp) -> std::fmt::Result {
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
    let place = match &status.policy.git {
        Some(git) => &git.url,
        None => &status.policy.directory,
    };
    writeln!(out, "policy    {} from {place}", short(revision))?;
    if let Some(git) = &status.policy.git {
        let commit = git.commit.as_deref().map_or("none", short);
        let fetched = git.fetched.as_deref().unwrap_or("never");
        writeln!(
            out,
            "          commit {commit} of {}, reached last: {fetched}",
            git.reference
        )?;
    }
    if let Some(last) = &status.policy.last_good {
        writeln!(
            out,
            "          the last good one, accepted {}, in force since {}: {}",
            last.accepted, last.since, last.why
        )?;
    }
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
    audit(out, status, now)?;
    writeln!(out, "\nservices")?;
    for (name, service) in &status.services {
        writeln!(out, "  {name}: {}", count(service.containers.len(), "container"))?;
        for container in &service.containers {
            write!(
                out,
                "    {} ({})",
                container.name,
                endpoints(&container.endpoints)
            )?;
            if !container.services.is_empty() {
                write!(out, ", belongs to {}", container.services.join(" and "))?;
            }
            writeln!(out)?;
        }
    }
    edges(out, &status.edges, now)?;
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

/// `3 endpoints: 2 bound, 1 pending`; `2 endpoints bound`.
fn endpoints(endpoints: &[EndpointStatus]) -> String {
    let mut states: BTreeMap<EndpointState, usize> = BTreeMap::new();
    for endpoint in endpoints {
        *states.entry(endpoint.state).or_default() += 1;
    }
    let word = |state| match state {
        EndpointState::Bound => "bound",
        EndpointState::Pending => "pending",
        EndpointState::Quarantined => "quarantined",
        EndpointState::Isolated => "isolated",
        EndpointState::Unguarded => "on a network that is not guarded",
    };
    let all = count(endpoints.len(), "endpoint");
    let states: Vec<_> = states.into_iter().collect();
    match states.as_slice() {
        [] => "no endpoint".to_owned(),
        [(state, _)] => format!("{all} {}", word(*state)),
        several => {
            let each = several
                .iter()
                .map(|(state, number)| format!("{number} {}", word(*state)));
            format!("{all}: {}", each.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Those that were used, by their hits; after them those that never were.
fn edges(out: &mut String, edges: &[EdgeStatus], now: Timestamp) -> std::fmt::Result {
    let hits = |edge: &EdgeStatus| edge.packets.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let width = edges.iter().map(|edge| hits(edge).len()).max().unwrap_or(0);
    let (unused, used): (Vec<&EdgeStatus>, Vec<&EdgeStatus>) =
        edges.iter().partition(|edge| edge.packets == Some(0));
    for (title, edges) in [
        ("edges", used),
        ("edges that were not used since the daemon began", unused),
    ] {
        if title == "edges" || !edges.is_empty() {
            writeln!(out, "\n{title}")?;
        }
        for edge in edges {
            let mut notes = vec![edge.declared.clone()];
            notes.extend(edge.until.as_ref().map(|until| format!("until {until}")));
            let last = edge.last_used.as_ref().and_then(|it| it.parse().ok());
            notes.extend(last.map(|last| format!("last used {} ago", lasted(last, now))));
            writeln!(
                out,
                "  {:>width$}  {} -> {}: {}  ({})",
                hits(edge),
                edge.from,
                edge.to,
                edge.ports.join(", "),
                notes.join(", ")
            )?;
        }
    }
    Ok(())
}

/// The first digits of a revision or commit.
fn short(revision: &str) -> &str {
    revision.get(..12).unwrap_or(revision)
}

/// Who is in audit, for how long, and what passed there.
fn audit(out: &mut String, status: &Status, now: Timestamp) -> std::fmt::Result {
    let audit = &status.audit;
    let packets = status.audited_packets.filter(|packets| *packets > 0);
    if audit.host.is_none() && audit.services.is_empty() && packets.is_none() {
        return Ok(());
    }
    let packets = packets.unwrap_or_default();
    writeln!(out, "audited   {packets} packets that no edge permits passed")?;
    let since = |time: Timestamp| format!("in audit for {} (since {time})", lasted(time, now));
    if let Some(time) = audit.host {
        writeln!(out, "          every service {}", since(time))?;
    }
    for (service, time) in &audit.services {
        writeln!(out, "          {service} {}", since(*time))?;
    }
    Ok(())
}

/// `3 days`, `5 hours`, `12 minutes`: rounded down.
fn lasted(since: Timestamp, now: Timestamp) -> String {
    let seconds = usize::try_from(now.as_second() - since.as_second()).unwrap_or_default();
    match seconds {
        0..60 => count(seconds, "second"),
        60..3600 => count(seconds / 60, "minute"),
        3600..86_400 => count(seconds / 3600, "hour"),
        _ => count(seconds / 86_400, "day"),
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::LastGood;

    #[test]
    fn endpoints_by_state_and_edges_by_use() {
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let endpoint = |state| EndpointStatus {
            network: "n".to_owned(),
            addresses: Vec::new(),
            bound: state == EndpointState::Bound,
            state,
        };
        let of =
            |states: &[EndpointState]| endpoints(&states.iter().copied().map(endpoint).collect::<Vec<_>>());
        assert_eq!(of(&[]), "no endpoint");
        assert_eq!(of(&[EndpointState::Bound]), "1 endpoint bound");
        assert_eq!(
            of(&[EndpointState::Pending, EndpointState::Bound, EndpointState::Bound]),
            "3 endpoints: 2 bound, 1 pending"
        );
        let edge = |to: &str, packets, last: Option<&str>| EdgeStatus {
            from: "s/a".to_owned(),
            to: to.to_owned(),
            ports: vec!["80/tcp".to_owned()],
            declared: "s.yaml:7:5".to_owned(),
            packets: Some(packets),
            last_used: last.map(str::to_owned),
            ..EdgeStatus::default()
        };
        let mut text = String::new();
        let all = [
            edge("s/b", 0, None),
            edge("s/c", 12, Some("2026-11-27T11:58:00Z")),
        ];
        edges(&mut text, &all, now).unwrap();
        assert_eq!(
            text,
            "\nedges\n  12  s/a -> s/c: 80/tcp  (s.yaml:7:5, last used 2 minutes ago)\n\n\
             edges that were not used since the daemon began\n   0  s/a -> s/b: 80/tcp  (s.yaml:7:5)\n"
        );
    }

    #[test]
    fn audit_and_the_last_good_policy_are_told_with_their_times() {
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let mut status = Status::starting();
        assert!(!text(&status, now).contains("audit"));
        assert!(!text(&status, now).contains("last good"));
        let ago = |seconds: i64| Timestamp::from_second(now.as_second() - seconds).unwrap();
        status.audit.host = Some(ago(3 * 86_400 + 5));
        status.audit.services.insert("shop/web".to_owned(), ago(3600));
        status.audited_packets = Some(7);
        status.policy.last_good = Some(LastGood {
            accepted: "2026-11-20T00:00:00Z".to_owned(),
            since: "2026-11-27T11:00:00Z".to_owned(),
            why: "cannot read the policy /p".to_owned(),
        });
        let text = text(&status, now);
        for line in [
            "audited   7 packets that no edge permits passed",
            "          every service in audit for 3 days (since 2026-11-24T11:59:55Z)",
            "          shop/web in audit for 1 hour (since 2026-11-27T11:00:00Z)",
            "          the last good one, accepted 2026-11-20T00:00:00Z, in force since 2026-11-27T11:00:00Z: cannot read the policy /p",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
