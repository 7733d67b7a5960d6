//! The conformance runner: cases of the format `netseg-conformance/1`, on a real engine and the real wire.
//!
//! `cargo test --test conformance` brings a private engine up, runs this program again inside its namespaces and takes
//! everything down. Settings:
//!
//! | variable | meaning |
//! |---|---|
//! | `COFFERDAM_CASES` | a case file or a directory of them; else `tests/conformance/` |
//! | `COFFERDAM_ONLY` | only these cases: `C061,C066`; the runner's test of itself is then left out |
//! | `COFFERDAM_SELFTEST` | `only`, `off`, or `on` |
//! | `COFFERDAM_THROUGH_FILTER` | set: the daemon reaches the engine by `socket-filter` only |
//! | `COFFERDAM_IP_FAMILY` | `dual`: cases made for IPv4 have networks of both families, and are probed over both |
//! | `COFFERDAM_PATIENCE` | on a machine with other work: so many times the time that a case gives for convergence |
//! | `COFFERDAM_LACKS` | what this engine cannot do as it is set: cases that require it are skipped (`hairpin`) |
//! | `COFFERDAM_DAEMON` | `none`: judge plain Docker, for work on the runner |
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the pure rooms of the library ban clocks, files and processes"
)]

#[path = "conformance/action.rs"]
mod action;
#[path = "conformance/algebra.rs"]
mod algebra;
#[path = "conformance/background.rs"]
mod background;
#[path = "conformance/capability.rs"]
mod capability;
#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/daemon.rs"]
mod daemon;
#[path = "conformance/engine.rs"]
mod engine;
#[path = "conformance/explain.rs"]
mod explain;
#[path = "conformance/external.rs"]
mod external;
#[path = "conformance/fact.rs"]
mod fact;
#[path = "conformance/judge.rs"]
mod judge;
#[path = "conformance/perform.rs"]
mod perform;
#[path = "conformance/probes.rs"]
mod probes;
#[path = "conformance/prose.rs"]
mod prose;
#[path = "conformance/report.rs"]
mod report;
#[path = "conformance/rules.rs"]
mod rules;
#[path = "conformance/run.rs"]
mod run;
#[path = "conformance/selftest.rs"]
mod selftest;
#[path = "conformance/translate.rs"]
mod translate;
#[path = "conformance/words.rs"]
mod words;
#[path = "conformance/world.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use capability::Decision;
use case::{Entry, IpFamily, Unreadable};
use engine::{Lab, target_directory};
use report::{Report, Verdict};
use run::With;
use translate::Translator;

/// Longer than any case of the format waits for anything.
const CASE_PATIENCE: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if has("--list") {
        // What nextest asks a test program without a harness.
        if !has("--ignored") {
            println!("conformance: test");
        }
        return ExitCode::SUCCESS;
    }
    let outcome = match std::env::var_os("COFFERDAM_ENGINE_DIR") {
        Some(directory) => inside(directory.into()),
        None => outside(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The process that cargo starts: it only brings the engine up, waits, and takes it down.
#[tokio::main(flavor = "current_thread")]
async fn outside() -> anyhow::Result<bool> {
    // Unreadable files are found before the engine costs anything.
    load()?;
    engine::run_inside().await
}

#[tokio::main]
async fn inside(directory: PathBuf) -> anyhow::Result<bool> {
    let probe = std::env::var_os("COFFERDAM_PROBE").context("COFFERDAM_PROBE is not set")?;
    let lab = Lab::enter(directory, probe.into()).await?;
    external::give_host_an_address().await?;
    let with = match setting("COFFERDAM_DAEMON").as_deref() {
        None => With::Daemon,
        Some("none") => With::NoDaemon,
        Some(other) => bail!("COFFERDAM_DAEMON is {other:?}; the only other daemon is \"none\""),
    };
    let only: Option<Vec<String>> =
        setting("COFFERDAM_ONLY").map(|list| list.split(',').map(|id| id.trim().to_owned()).collect());
    let selftest = match setting("COFFERDAM_SELFTEST").as_deref() {
        None => {
            if only.is_some() {
                "off"
            } else {
                "on"
            }
        }
        Some(known @ ("only" | "on" | "off")) => known,
        Some(other) => bail!("COFFERDAM_SELFTEST is {other:?}, not only, on or off"),
    }
    .to_owned();
    let reports = target_directory().join("reports");
    let logs = reports.join("conformance");
    if logs.exists() {
        std::fs::remove_dir_all(&logs).context("cannot remove the logs of the last run")?;
    }
    let mut report = Report::create(&reports)?;
    if selftest != "only" {
        for entry in load()? {
            let id = match &entry {
                Ok(case) => &case.id,
                Err(unreadable) => &unreadable.id,
            };
            if only.as_ref().is_none_or(|only| only.contains(id)) {
                one(&lab, entry, with, &logs, &mut report).await?;
            }
        }
    }
    let proven = selftest == "off" || selftest::run(&lab, with, &logs).await?;
    Ok(report.finish() && proven)
}

async fn one(lab: &Lab, entry: Entry, with: With, logs: &Path, report: &mut Report) -> anyhow::Result<()> {
    let begun = Instant::now();
    let case = match entry {
        Ok(case) => case,
        Err(unreadable) => {
            return report.case(
                &unreadable.id,
                "-",
                &Verdict::Failed(unreadable.reason),
                begun.elapsed(),
            );
        }
    };
    let lacking = Translator::lacking(&case);
    let without = setting("COFFERDAM_LACKS").filter(|name| case.requires.contains(name));
    if let Some(name) = without {
        let verdict = Verdict::Skipped(format!("the engine lacks {name}"));
        return report.case(&case.id, &case.name, &verdict, begun.elapsed());
    }
    let verdict = match capability::decide(&case.requires, lacking, lab.sctp) {
        Decision::Skip(reason) => Verdict::Skipped(reason),
        Decision::Unknown(name) => {
            Verdict::Failed(format!("the runner does not know the capability {name:?}"))
        }
        Decision::Run => match lab.repair().await {
            Err(error) => Verdict::Failed(format!("the engine is gone: {error:#}")),
            Ok(()) => {
                let judged = run::judge(lab, &case, with, logs, None);
                match tokio::time::timeout(CASE_PATIENCE, judged).await {
                    Ok(verdict) => verdict,
                    Err(_) => Verdict::Failed(format!("not done after {} s", CASE_PATIENCE.as_secs())),
                }
            }
        },
    };
    report.case(&case.id, &case.name, &verdict, begun.elapsed())
}

/// All cases of the file or of the directory and those in it, in order of file names. What cannot be read as a file of
/// the format is one failed case of the file's name.
fn load() -> anyhow::Result<Vec<Entry>> {
    let place = setting("COFFERDAM_CASES").map(PathBuf::from);
    let place = place.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance"));
    let mut files = Vec::new();
    if place.is_dir() {
        files_in(&place, &mut files)?;
        files.sort();
    } else {
        files.push(place.clone());
    }
    let mut entries = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        match case::parse(&text) {
            Ok(cases) => entries.extend(cases.into_iter().map(|entry| entry.map(adapted))),
            Err(reason) => entries.push(Err(Unreadable {
                id: file
                    .file_name()
                    .unwrap_or(file.as_os_str())
                    .to_string_lossy()
                    .into_owned(),
                reason,
            })),
        }
    }
    if entries.is_empty() {
        bail!("{} holds no cases", place.display());
    }
    Ok(entries)
}

/// The case with the address families and the patience that the settings ask for. Where an external host has IPv4 alone, probes
/// do not ask for more.
fn adapted(mut case: case::Case) -> case::Case {
    let topology = &mut case.topology;
    let both = topology.externals.iter().all(|external| external.ip6.is_some());
    if setting("COFFERDAM_IP_FAMILY").as_deref() == Some("dual")
        && topology.ip_family == IpFamily::Ipv4
        && both
    {
        topology.ip_family = IpFamily::Dual;
    }
    if let Some(times) = setting("COFFERDAM_PATIENCE").and_then(|times| times.parse::<u64>().ok()) {
        case.defaults.converge_ms *= times;
        for within in case.steps.iter_mut().filter_map(|step| step.within_ms.as_mut()) {
            *within *= times;
        }
    }
    case
}

fn files_in(directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            files_in(&path, files)?;
        } else if matches!(extension, Some("yaml" | "yml")) {
            files.push(path);
        }
    }
    Ok(())
}
