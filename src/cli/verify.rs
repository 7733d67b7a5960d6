//! `cofferdam verify`: the proof. Tries from inside the containers' network namespaces who reaches whom, and compares with
//! the policy. Exit code 0 when all of it agrees, 1 when something differs, 3 when no policy is known.

mod junit;
mod object;
mod render;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use rustix::process::{Resource, getrlimit, setrlimit};

use self::report::Report;
use super::{SettingsArgs, block_on, colour_of, policies, written};
use crate::daemon::Refusal;
use crate::daemon::control::{Answer, InForce, Request, ask};
use crate::daemon::status::{State, Status};
use crate::docker::Engine;
use crate::kernel::privilege;
use crate::model::Rights;
use crate::policy::ServiceId;
use crate::settings::Settings;
use crate::verify::look::{Looked, changed, look};
use crate::verify::plan::{Plan, Probe, plan};
use crate::verify::probe::{self, Bounds, Outcome, Table};
use crate::verify::scene::{Scene, Spot};
use crate::verify::verdict::{Agreement, Evidence, Seen, agreement, cells, real, tested};

/// Try from inside the containers who reaches whom, and compare with the policy
///
/// Opens TCP connections and closes them at once, and sends empty UDP datagrams; runs nothing in a container. What is
/// denied is counted and logged as any other denial. A container with the label io.cofferdam.verify=off is left out.
/// Exit codes: 0 all of it agrees; 1 something differs; 3 no daemon answers and no --policies are named.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write a JUnit XML report, one test suite for each service
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Try every pair of containers, not only some of each service
    #[arg(long, conflicts_with = "containers")]
    all: bool,
    /// How many containers of each service are tried
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..))]
    containers: u16,
    /// How long an answer may take, in milliseconds
    #[arg(long, value_name = "MS", default_value = "1000", value_parser = clap::value_parser!(u64).range(50..=5000))]
    timeout: u64,
    /// How many attempts may begin in a second
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How many attempts may be under way at once
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u16).range(1..=8192))]
    parallel: u16,
    /// Also try this address outside of the host, over TCP; without this nothing leaves the host
    #[arg(long, value_name = "ADDRESS:PORT")]
    world: Vec<SocketAddr>,
    #[command(flatten)]
    settings: SettingsArgs,
}

const DIFFERS: u8 = 1;
const USAGE: u8 = 2;
const NO_POLICY: u8 = 3;

/// How long the daemon may take to bring in force what it has just seen.
const SETTLING: Duration = Duration::from_secs(10);

pub(super) fn run(args: VerifyArgs) -> Result<ExitCode, Refusal> {
    let bounds = Bounds {
        timeout: Duration::from_millis(args.timeout),
        rate: args.rate,
        parallel: affordable(args.parallel.into()),
    };
    let named = args.settings.overrides.policies.is_some();
    let settings = args.settings.load()?;
    privilege::require_namespaces()?;
    let most = (!args.all).then_some(usize::from(args.containers));
    let verified = block_on(verified(&settings, named, most, bounds, args.world))?;
    let report = match verified {
        Ok(report) => report,
        Err(code) => return Ok(code),
    };
    if let Some(path) = &args.junit {
        let text = report
            .junit()
            .to_string()
            .map_err(|error| Refusal::system("make the JUnit report", error))?;
        fs::write(path, text).map_err(|error| Refusal::system(format!("write {}", path.display()), error))?;
    }
    let mut stdout = io::stdout();
    let shown = match args.json {
        true => serde_json::to_writer(&stdout, &report.object())
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout)),
        false => write!(stdout, "{}", report.text(colour_of(&stdout))),
    };
    let code = match report.agrees() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(DIFFERS),
    };
    Ok(written(shown.map(|()| code)))
}

/// Each attempt has an open file; more may be open than is usual.
fn affordable(parallel: usize) -> usize {
    /// Of this program besides.
    const OTHERS: u64 = 256;
    let wanted = parallel as u64 + OTHERS;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
        // Where it is refused, what there was is what there is.
        let _refused = setrlimit(Resource::Nofile, limit);
    }
    match getrlimit(Resource::Nofile).current {
        Some(now) => parallel
            .min(usize::try_from(now.saturating_sub(OTHERS)).unwrap_or(parallel))
            .max(1),
        None => parallel,
    }
}

async fn verified(
    settings: &Settings,
    named: bool,
    most: Option<usize>,
    bounds: Bounds,
    world: Vec<SocketAddr>,
) -> Result<Result<Report, ExitCode>, Refusal> {
    let begun = Instant::now();
    let Told {
        rights,
        isolated,
        revision,
        mut remarks,
    } = match told(settings, named).await? {
        Ok(told) => told,
        Err(code) => return Ok(Err(code)),
    };
    let engine = Engine::connect(&settings.docker_socket).await?;
    let looked = look(&engine, rights, &isolated, world).await?;
    if let Some(address) = inside(&looked.scene) {
        eprintln!("cofferdam: {address} is not outside: it is the host's or a container's");
        return Ok(Err(ExitCode::from(USAGE)));
    }
    let plan = plan(&looked.scene, most);
    let Outcome { mut seen, neighbours } = tried(&looked, &plan, bounds).await?;
    if neighbours == Table::WasFull {
        remarks.push(
            "the kernel's table of neighbours was full meanwhile (net.ipv4.neigh.default.gc_thresh3): some of what seems \
             closed may only have been lost"
                .to_owned(),
        );
    }
    let moved = changed(&engine, &looked.scene).await?;
    disregard(&looked.scene, &plan.probes, &mut seen, &moved);
    if !moved.is_empty() {
        let names: Vec<&str> = moved.iter().map(String::as_str).collect();
        remarks.push(format!(
            "changed while they were tried, so that nothing is said of what differs there: {}",
            names.join(", ")
        ));
    }
    if let Some(before) = &revision
        && let Ok(Answer::Policy(now)) = ask(&settings.control_socket, Request::Policy).await
        && now.revision.as_ref() != Some(before)
    {
        remarks.push("another policy came in force meanwhile: what differs may be of that".to_owned());
    }
    let tests = looked.scene.rights.policy.tests.iter();
    let tests = tests
        .map(|test| tested(test, &looked.scene, &plan, &seen))
        .collect();
    Ok(Ok(Report {
        cells: cells(&looked.scene, &plan, &seen),
        scene: looked.scene,
        left_out: looked.left_out,
        plan,
        seen,
        tests,
        revision,
        remarks,
        elapsed: begun.elapsed(),
    }))
}

async fn tried(looked: &Looked, plan: &Plan, bounds: Bounds) -> Result<Outcome, Refusal> {
    // It draws on a terminal only.
    let bar = ProgressBar::new(plan.probes.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    let seen = probe::run(looked, &plan.probes, bounds, || bar.inc(1)).await;
    bar.finish_and_clear();
    seen
}

/// An address that was said to be outside, and is not.
fn inside(scene: &Scene) -> Option<IpAddr> {
    let containers = scene.subjects.iter().flat_map(|it| &it.addresses);
    let known: BTreeSet<&IpAddr> = containers.chain(&scene.host).collect();
    let subnets = || scene.networks.values().flat_map(|network| &network.subnets);
    let addresses = scene.world.iter().map(SocketAddr::ip);
    addresses
        .into_iter()
        .find(|it| it.is_loopback() || known.contains(it) || subnets().any(|subnet| subnet.contains(it)))
}

/// Of a container that changed meanwhile, what differs says nothing.
fn disregard(scene: &Scene, probes: &[Probe], seen: &mut [Seen], moved: &BTreeSet<String>) {
    let has_moved = |spot: Spot| {
        let subject = scene.subject(spot);
        subject.is_some_and(|it| moved.contains(&it.container.name))
    };
    for (probe, seen) in probes.iter().zip(seen) {
        let found = agreement(probe.declared, real(probe.transport, seen));
        if matches!(found, Agreement::Leaks | Agreement::Blocked)
            && (has_moved(probe.from) || has_moved(probe.to))
        {
            seen.evidence = Evidence::Failed("a container changed meanwhile".to_owned());
        }
    }
}

/// What the daemon, or a directory, says is declared.
struct Told {
    rights: Rights,
    isolated: BTreeMap<String, BTreeSet<ServiceId>>,
    revision: Option<String>,
    remarks: Vec<String>,
}

async fn told(settings: &Settings, named: bool) -> Result<Result<Told, ExitCode>, Refusal> {
    let mut remarks = Vec::new();
    let daemon = match asked(&settings.control_socket).await? {
        Ok(daemon) => Some(daemon),
        Err(error) if named => {
            remarks.push(format!(
                "no daemon answers ({error}): whether it has cut containers is not known"
            ));
            None
        }
        Err(error) => {
            eprintln!(
                "cofferdam: no daemon answers at {} ({error}), and no policy is named with --policies",
                settings.control_socket.display()
            );
            return Ok(Err(ExitCode::from(NO_POLICY)));
        }
    };
    let in_force = daemon.as_ref().map(|(_, in_force)| in_force);
    let loaded = match (named, in_force.filter(|it| it.revision.is_some())) {
        (true, _) => policies::read(&settings.policies),
        (false, Some(in_force)) => policies::of_daemon(&in_force.sources()),
        (false, None) => {
            eprintln!("cofferdam: the daemon has no policy yet");
            Err(ExitCode::from(NO_POLICY))
        }
    };
    let policy = match loaded {
        Ok(loaded) => loaded.policy.at(Timestamp::now()),
        Err(code) => return Ok(Err(code)),
    };
    let mut rights = settings.rights(policy);
    if let Some(in_force) = in_force {
        rights.mode = in_force.mode;
        rights.unmanaged = in_force.unmanaged;
    }
    let revision = in_force.filter(|_| !named).and_then(|it| it.revision.clone());
    let mut isolated = BTreeMap::new();
    if let Some((status, _)) = &daemon {
        remarks.extend(of_status(status));
        isolated = status
            .isolated
            .iter()
            .map(|(name, services)| {
                let services = services.iter().filter_map(|it| it.parse().ok()).collect();
                (name.clone(), services)
            })
            .collect();
    }
    Ok(Ok(Told {
        rights,
        isolated,
        revision,
        remarks,
    }))
}

/// What is to be known of the daemon before its answers are compared with anything.
fn of_status(status: &Status) -> Vec<String> {
    let mut remarks = Vec::new();
    match status.state {
        State::Enforcing => {}
        State::Starting => remarks.push("the daemon has only just started".to_owned()),
        State::Waiting => remarks.push("the daemon does not reach the engine: nothing new opens".to_owned()),
        State::Degraded => {
            let reasons = status.reasons.join("; ");
            remarks.push(format!("the daemon is degraded: {reasons}"));
        }
    }
    if !status.settled {
        remarks.push(format!(
            "the daemon still brings changes in force after {} s: what differs may be of those",
            SETTLING.as_secs()
        ));
    }
    for (container, reasons) in &status.unenforceable {
        remarks.push(format!(
            "no rule can hold `{container}` to its rights: {}",
            reasons.join("; ")
        ));
    }
    remarks
}

/// Asks the daemon, until it is settled or takes too long for that. The inner error: none answers.
async fn asked(socket: &Path) -> Result<io::Result<(Status, InForce)>, Refusal> {
    let begun = Instant::now();
    let status = loop {
        match ask(socket, Request::Status).await {
            Ok(Answer::Status(status)) if status.settled || begun.elapsed() > SETTLING => break status,
            Ok(Answer::Status(_)) => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(Answer::Error(message)) => return Err(Refusal::system("ask the daemon", message)),
            Ok(_) => return Err(Refusal::system("ask the daemon", "it answers another question")),
            Err(error) => return Ok(Err(error)),
        }
    };
    match ask(socket, Request::Policy).await {
        Ok(Answer::Policy(policy)) => Ok(Ok((*status, *policy))),
        Ok(Answer::Error(message)) => Err(Refusal::system("ask the daemon", message)),
        Ok(_) => Err(Refusal::system("ask the daemon", "it answers another question")),
        Err(error) => Ok(Err(error)),
    }
}
