//! `cofferdam audit`: what on this host voids or weakens segmentation, and what mends it. Only asks. Exit code 0, or 1 when
//! something that nobody has accepted is as grave as `--fail-on` says or graver; 2 for a baseline that cannot be used.

mod report;
mod sarif;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use self::report::Report;
use super::{SettingsArgs, block_on, colour_of, policies, written};
use crate::audit::{Scene, Severity, audit};
use crate::daemon::control::{Answer, Request, ask};
use crate::daemon::posture::baseline;
use crate::daemon::{Refusal, chain};
use crate::docker::Engine;
use crate::inventory::{EnginePosture, Inventory, Posture};
use crate::model::Rights;
use crate::settings::Settings;

/// Say what on this host voids or weakens segmentation, how grave it is and what mends it
///
/// Only asks the engine, looks at its process's settings, and takes the policy from --policies or the daemon. Exit codes: 0
/// nothing as grave as --fail-on says; 1 something; 2 a baseline that cannot be used.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Print one JSON object
    #[arg(long, conflicts_with = "sarif")]
    json: bool,
    /// Print a SARIF 2.1.0 log
    #[arg(long)]
    sarif: bool,
    /// Exit with 1 when something as grave or graver is found that nobody has accepted
    #[arg(long, value_name = "SEVERITY", default_value = "high")]
    fail_on: FailOn,
    /// File of accepted findings, each with a reason and its last day, in place of that of the settings
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Critical,
    High,
    Medium,
    Low,
    Never,
}

impl FailOn {
    fn counts(self, severity: Severity) -> bool {
        let limit = match self {
            Self::Critical => Severity::Critical,
            Self::High => Severity::High,
            Self::Medium => Severity::Medium,
            Self::Low => Severity::Low,
            Self::Never => return false,
        };
        // The gravest comes first.
        severity <= limit
    }
}

const FOUND: u8 = 1;
const USAGE: u8 = 2;

pub(super) fn run(args: AuditArgs) -> Result<ExitCode, Refusal> {
    let named = args.settings.overrides.policies.is_some();
    let settings = args.settings.load()?;
    let file = args.baseline.as_ref().or(settings.audit_baseline.as_ref());
    let baseline = match file.map(|file| baseline(file)).transpose() {
        Ok(baseline) => baseline.unwrap_or_default(),
        Err(said) => {
            eprintln!("cofferdam: {said}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let seen = block_on(async {
        let seen = Seen::of(&settings).await?;
        Ok((seen, told(&settings, named).await))
    })?;
    let (seen, told) = seen;
    let (rights, mut remarks) = match told {
        Ok(told) => told,
        Err(code) => return Ok(code),
    };
    if seen.engine.userland_proxy.is_none() {
        remarks.push(
            "the engine's process cannot be looked at: whether it uses the userland proxy is not known"
                .to_owned(),
        );
    }
    let findings = audit(&Scene {
        inventory: &seen.inventory,
        postures: &seen.postures,
        engine: &seen.engine,
        rights: rights.as_ref(),
        registries: settings.allowed_registries.as_ref(),
    });
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let judged = baseline.judge(findings, today);
    let fails = judged.open.iter().any(|it| args.fail_on.counts(it.severity));
    let report = Report {
        judged,
        containers: seen.postures.len(),
        remarks,
    };
    let mut stdout = io::stdout();
    let shown = if args.json {
        serde_json::to_writer(&stdout, &report.object())
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout))
    } else if args.sarif {
        serde_json::to_writer_pretty(&stdout, &sarif::log(&report.judged))
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout))
    } else {
        write!(stdout, "{}", report.text(colour_of(&stdout)))
    };
    let code = match fails {
        true => ExitCode::from(FOUND),
        false => ExitCode::SUCCESS,
    };
    Ok(written(shown.map(|()| code)))
}

/// What the engine says.
struct Seen {
    inventory: Inventory,
    postures: BTreeMap<crate::inventory::ContainerId, Option<Posture>>,
    engine: EnginePosture,
}

impl Seen {
    async fn of(settings: &Settings) -> Result<Self, Refusal> {
        let engine = Engine::connect(&settings.docker_socket).await?;
        let mut inventory = Inventory::default();
        inventory.reset(engine.list().await?);
        let volumes = engine.bound_volumes().await?;
        let mut postures = BTreeMap::new();
        for id in inventory.containers().keys() {
            if let Some(posture) = engine.posture(id, &volumes).await? {
                postures.insert(id.clone(), posture);
            }
        }
        Ok(Self {
            inventory,
            postures,
            engine: engine.engine_posture().await?,
        })
    }
}

/// What is declared, as far as anybody says so, with remarks. The error: the policy that was named has faults.
async fn told(settings: &Settings, named: bool) -> Result<(Option<Rights>, Vec<String>), ExitCode> {
    if named {
        let policy = policies::read(&settings.policies)?.policy;
        return Ok((Some(settings.rights(policy.at(Timestamp::now()))), Vec::new()));
    }
    let unknown = |why: String| {
        let remark = format!("{why}: published ports are not compared with a policy");
        Ok((None, vec![remark]))
    };
    match ask(&settings.control_socket, Request::Policy).await {
        Ok(Answer::Policy(in_force)) if in_force.revision.is_some() => {
            let policy = policies::of_daemon(&in_force.sources())?.policy;
            let mut rights = settings.rights(policy.at(Timestamp::now()));
            rights.mode = in_force.mode;
            rights.unmanaged = in_force.unmanaged;
            Ok((Some(rights), Vec::new()))
        }
        Ok(Answer::Policy(_)) => unknown("the daemon has no policy yet".to_owned()),
        Ok(_) => unknown("the daemon does not tell its policy".to_owned()),
        Err(error) => unknown(format!(
            "no daemon answers ({}) and no policy is named with --policies",
            chain(&error)
        )),
    }
}
