//! `cofferdam plan`: what a policy would change, on this host or from one directory to another. Changes nothing. Exit code
//! 0 when nothing changes, 2 when something does, 1 when a policy has faults.

mod json;
mod render;

use std::io::stdout;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use self::render::{Shown, markdown, text};
use super::policies::{self, colour};
use super::{SettingsArgs, block_on, print_json, print_text};
use crate::daemon::Refusal;
use crate::daemon::control::{Answer, InForce, Request, ask};
use crate::daemon::preview::{Basis, VERSION, preview};
use crate::plan::compare::compare;
use crate::policy::Loaded;
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Compare with the policy in this directory instead of the one in force, without looking at the host
    #[arg(long, value_name = "OLD_DIR")]
    from: Option<PathBuf>,
    /// Print the changes as JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the changes as Markdown, for a pull request
    #[arg(long)]
    markdown: bool,
    /// Save the plan for `cofferdam apply --plan`
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    save: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Something changes.
const CHANGES: u8 = 2;

pub(super) fn run(args: PlanArgs) -> Result<ExitCode, Refusal> {
    let settings = args.settings.load()?;
    // Both are read, so that the faults of both are shown.
    let old = args.from.as_deref().map(policies::read);
    let new = policies::read(&settings.policies);
    let shown = match (old, new) {
        (Some(Err(code)), _) | (_, Err(code)) => return Ok(code),
        (Some(Ok(old)), Ok(new)) => between(&old, &new),
        (None, Ok(new)) => match here(&settings, new)? {
            Ok(shown) => shown,
            Err(code) => return Ok(code),
        },
    };
    if let Some(path) = &args.save {
        save(path, &shown)?;
    }
    if args.json {
        print_json(&json::Object::from(&shown))?;
    } else if args.markdown {
        print_text(&markdown(&shown))?;
    } else {
        print_text(&text(&shown, colour(stdout())))?;
    }
    Ok(match shown.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(CHANGES),
    })
}

fn between(old: &Loaded, new: &Loaded) -> Shown {
    let now = Timestamp::now();
    Shown {
        changes: Some(compare(&old.policy.at(now), &new.policy.at(now))),
        impact: None,
        basis: None,
    }
}

/// Against what is in force here.
fn here(settings: &Settings, new: Loaded) -> Result<Result<Shown, ExitCode>, Refusal> {
    let in_force =
        match in_force(&settings.control_socket)?.map(|it| (policies::of_daemon(&it.sources()), it)) {
            None => None,
            Some((Err(code), _)) => return Ok(Err(code)),
            Some((Ok(loaded), in_force)) => Some((loaded, in_force)),
        };
    let now = Timestamp::now();
    let policy = new.policy.at(now);
    let changes = in_force
        .as_ref()
        .map(|(old, _)| compare(&old.policy.at(now), &policy));
    let old = in_force.as_ref().map(|(old, in_force)| {
        let mut rights = settings.rights(old.policy.at(now));
        (rights.mode, rights.unmanaged) = (in_force.mode, in_force.unmanaged);
        rights
    });
    let preview = block_on(preview(settings, old, settings.rights(policy)))?;
    Ok(Ok(Shown {
        changes,
        impact: Some(preview.impact),
        basis: Some(Basis {
            version: VERSION,
            revision: new.revision.to_string(),
            in_force: in_force.and_then(|(_, it)| it.revision),
            world: preview.world,
        }),
    }))
}

/// What the daemon has in force; `None` where none answers, or where it has none yet.
fn in_force(socket: &Path) -> Result<Option<InForce>, Refusal> {
    match block_on(async { Ok(ask(socket, Request::Policy).await) })? {
        Ok(Answer::Policy(policy)) => Ok(Some(*policy).filter(|it| it.revision.is_some())),
        Ok(Answer::Error(message)) => Err(Refusal::system("ask the daemon for its policy", message)),
        Ok(Answer::Status(_) | Answer::Flows(_) | Answer::Metrics(_)) | Err(_) => Ok(None),
    }
}

fn save(path: &Path, shown: &Shown) -> Result<(), Refusal> {
    let failed = || format!("save the plan as {}", path.display());
    let mut text = serde_json::to_vec_pretty(&json::Object::from(shown))
        .map_err(|error| Refusal::system(failed(), error))?;
    text.push(b'\n');
    std::fs::write(path, text).map_err(|error| Refusal::system(failed(), error))
}
