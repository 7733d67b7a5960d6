//! `cofferdam flows`: what was denied, audited or forged, by name.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use globset::{Glob, GlobMatcher};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;

use super::{ControlArgs, block_on, colour_of, no_daemon};
use crate::daemon::Refusal;
use crate::daemon::control::{Answer, Request, ask};
use crate::daemon::flows::{FlowEnd, FlowRecord, FlowVerdict, FlowsAnswer, Missed};
use crate::policy::Colour;

#[derive(Debug, Args)]
pub(super) struct FlowsArgs {
    /// Go on with what comes, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only from these: a service, a container, an address, `world` or `host`; `*` stands for anything
    #[arg(long, value_name = "WHO", value_parser = pattern)]
    from: Option<GlobMatcher>,
    /// Only to these
    #[arg(long, value_name = "WHO", value_parser = pattern)]
    to: Option<GlobMatcher>,
    /// Only what concerns a service of this segment
    #[arg(long, value_name = "SEGMENT")]
    segment: Option<String>,
    /// Only these
    #[arg(long, value_enum, value_name = "VERDICT")]
    verdict: Vec<Verdict>,
    /// Only what was seen since then: `10m`, `2h`, or a time
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<Timestamp>,
    /// Print one JSON object on each line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: ControlArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verdict {
    Denied,
    Audited,
    Identity,
}

fn pattern(text: &str) -> Result<GlobMatcher, String> {
    Glob::new(text)
        .map(|glob| glob.compile_matcher())
        .map_err(|error| error.to_string())
}

pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = text.parse::<SignedDuration>() {
        return Timestamp::now()
            .checked_sub(ago.abs())
            .map_err(|error| error.to_string());
    }
    text.parse()
        .map_err(|_| "neither a duration such as `10m` nor a time such as `2026-12-01T08:00:00Z`".to_owned())
}

/// While following, the daemon is asked this often.
const PAUSE: Duration = Duration::from_millis(500);
/// A flow that goes on gets a new line after this long.
const AGAIN: Duration = Duration::from_secs(10);

pub(super) fn run(args: &FlowsArgs) -> Result<ExitCode, Refusal> {
    block_on(show(args))
}

async fn show(args: &FlowsArgs) -> Result<ExitCode, Refusal> {
    let mut printer = Printer {
        colour: colour_of(&io::stdout()),
        json: args.json,
        printed: BTreeMap::new(),
    };
    let (mut after, mut since) = (0, None);
    loop {
        let answer = match ask(&args.control.control_socket, Request::Flows { after }).await {
            Ok(Answer::Flows(answer)) => answer,
            Ok(Answer::Error(message)) => return Err(Refusal::system("read the flows", message)),
            Ok(_) => return Err(Refusal::system("read the flows", "the answer is none")),
            Err(_) if args.follow && since.is_some() => {
                sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Ok(no_daemon(&args.control.control_socket, &error)),
        };
        // Another daemon counts anew.
        if since.is_some_and(|since| since != answer.since) {
            (after, since) = (0, None);
            continue;
        }
        (after, since) = (answer.last, Some(answer.since));
        let wanted: Vec<&FlowRecord> = answer.flows.iter().filter(|it| args.wants(it)).collect();
        if let Err(error) = printer.print(&wanted) {
            return match error.kind() {
                io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
                _ => Err(Refusal::system("print the flows", error)),
            };
        }
        if !args.follow {
            summary(&answer, wanted.len());
            return Ok(ExitCode::SUCCESS);
        }
        sleep(PAUSE).await;
    }
}

/// On standard error, what the listing does not say.
fn summary(answer: &FlowsAnswer, shown: usize) {
    if shown == 0 && answer.flows.is_empty() {
        eprintln!("nothing was denied, audited or forged since {}", answer.since);
    } else if shown == 0 {
        eprintln!("none of {} flows is asked for", answer.flows.len());
    }
    let Missed {
        unlogged_packets,
        lost_packets,
        forgotten_flows,
    } = answer.missed;
    for (number, what) in [
        (
            unlogged_packets,
            "packets were beyond the rate of their sender: counted, not looked at",
        ),
        (lost_packets, "packets were logged and not read in time"),
        (forgotten_flows, "older flows made room for others"),
    ] {
        if number > 0 {
            eprintln!("not shown: {number} {what}");
        }
    }
}

impl FlowsArgs {
    fn wants(&self, record: &FlowRecord) -> bool {
        let is = |pattern: &Option<GlobMatcher>, end: &FlowEnd| {
            pattern
                .as_ref()
                .is_none_or(|it| names(end).iter().any(|name| it.is_match(name)))
        };
        let segment = self.segment.as_ref().is_none_or(|segment| {
            let services = record.from.services.iter().chain(&record.to.services);
            services
                .filter_map(|it| it.split_once('/'))
                .any(|(of, _)| of == segment)
        });
        let verdict = match record.verdict {
            FlowVerdict::Denied => Verdict::Denied,
            FlowVerdict::Audited => Verdict::Audited,
            FlowVerdict::Identity => Verdict::Identity,
        };
        is(&self.from, &record.from)
            && is(&self.to, &record.to)
            && segment
            && (self.verdict.is_empty() || self.verdict.contains(&verdict))
            && self.since.is_none_or(|since| record.last_seen >= since)
    }
}

/// Everything that an end may be called.
fn names(end: &FlowEnd) -> Vec<String> {
    use crate::daemon::flows::EndKind;
    let mut names: Vec<String> = end.services.iter().cloned().collect();
    names.extend(end.container.clone());
    names.extend(end.container_id.clone());
    names.extend(end.address.map(|it| it.to_string()));
    names.extend(match end.kind {
        EndKind::World => Some("world".to_owned()),
        EndKind::Host => Some("host".to_owned()),
        EndKind::Unknown => Some("unknown".to_owned()),
        EndKind::Service | EndKind::Unmanaged | EndKind::Closed => None,
    });
    names
}

struct Printer {
    colour: Colour,
    json: bool,
    /// When a flow had its last line.
    printed: BTreeMap<String, Instant>,
}

impl Printer {
    fn print(&mut self, records: &[&FlowRecord]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for record in records {
            if self.json {
                serde_json::to_writer(&mut out, record)?;
                writeln!(out)?;
                continue;
            }
            let flow = format!("{} -> {} {}", record.from, record.target(), record.verdict);
            let now = Instant::now();
            let lately = self
                .printed
                .get(&flow)
                .is_some_and(|last| now.duration_since(*last) < AGAIN);
            if !lately {
                writeln!(out, "{}", line(record, self.colour))?;
                self.printed.insert(flow, now);
            }
        }
        self.printed.retain(|_, last| last.elapsed() < AGAIN);
        out.flush()
    }
}

/// `14:03:07  denied    shop/web (web-2) -> shop/db:5432/tcp  3 attempts: no edge from shop/web to shop/db`
fn line(record: &FlowRecord, colour: Colour) -> String {
    let time = record.last_seen.to_zoned(TimeZone::system());
    let (start, end) = match (colour, record.verdict) {
        (Colour::Plain, _) => ("", ""),
        (Colour::Coloured, FlowVerdict::Denied | FlowVerdict::Identity) => ("\x1b[31m", "\x1b[0m"),
        (Colour::Coloured, FlowVerdict::Audited) => ("\x1b[33m", "\x1b[0m"),
    };
    let attempts = match record.attempts {
        1 => "1 attempt".to_owned(),
        many => format!("{many} attempts"),
    };
    format!(
        "{}  {start}{:<8}{end}  {} -> {}  {attempts}: {}",
        time.strftime("%b %d %H:%M:%S"),
        record.verdict,
        record.from,
        record.target(),
        record.reason
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::daemon::flows::{Direction, EndKind};

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        flows: FlowsArgs,
    }

    fn record(verdict: FlowVerdict) -> FlowRecord {
        let end = |kind, service: Option<&str>, container: Option<&str>, address: &str| FlowEnd {
            kind,
            services: service.into_iter().map(str::to_owned).collect(),
            container: container.map(str::to_owned),
            container_id: container.map(|name| format!("{name}-id")),
            address: Some(address.parse().unwrap()),
        };
        FlowRecord {
            seq: 1,
            verdict,
            direction: Direction::Outbound,
            from: end(EndKind::Service, Some("shop/web"), Some("web-2"), "10.0.0.2"),
            to: end(EndKind::World, None, None, "198.51.100.7"),
            protocol: "tcp".to_owned(),
            port: Some(443),
            icmp_type: None,
            many_ports: false,
            reason: "no edge from shop/web to world".to_owned(),
            attempts: 3,
            packets: 4,
            first_seen: Timestamp::UNIX_EPOCH,
            last_seen: "2026-01-27T12:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn each_filter_takes_its_own_and_leaves_the_rest() {
        let takes = |words: &str, verdict| {
            let words = ["flows"].into_iter().chain(words.split_whitespace());
            Only::try_parse_from(words).unwrap().flows.wants(&record(verdict))
        };
        for (wanted, unwanted) in [
            ("--from shop/web", "--from shop/db"),
            ("--from web-*", "--from db-*"),
            ("--from 10.0.0.2", "--from world"),
            ("--to world", "--to host"),
            ("--to 198.51.100.*", "--to shop/web"),
            ("--segment shop", "--segment sho"),
            ("--verdict denied", "--verdict audited"),
            ("--verdict identity --verdict denied", "--verdict identity"),
            ("--since 2026-01-27T11:59:59Z", "--since 2026-01-27T12:00:01Z"),
            ("", "--since 10m"),
        ] {
            assert!(takes(wanted, FlowVerdict::Denied), "{wanted}");
            assert!(!takes(unwanted, FlowVerdict::Denied), "{unwanted}");
        }
        for wrong in ["--since yesterday", "--from [", "--verdict open"] {
            let words = ["flows"].into_iter().chain(wrong.split_whitespace());
            assert!(Only::try_parse_from(words).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_for_people() {
        let text = line(&record(FlowVerdict::Denied), Colour::Plain);
        assert!(
            text.ends_with(
                "denied    shop/web (web-2) -> world (198.51.100.7):443/tcp  3 attempts: no edge from shop/web to world"
            ),
            "{text}"
        );
        assert!(line(&record(FlowVerdict::Audited), Colour::Coloured).contains("\x1b[33maudited"));
    }
}
