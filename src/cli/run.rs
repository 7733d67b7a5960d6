//! `cofferdam run`: the daemon.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use rustix::process::setpriority_process;
use tracing::{debug, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{SettingsArgs, block_on};
use crate::confine::confine;
use crate::daemon::confine::needs;
use crate::daemon::{self, Refusal};
use crate::kernel::bridge_netfilter;

/// What each container waits for at its start is done before the work of what is running already.
const NICENESS: i32 = -10;

pub(super) fn run(args: SettingsArgs) -> Result<ExitCode, Refusal> {
    start_log();
    raise_priority();
    cofferdam_heap::share();
    let settings = args.load()?;
    load_bridge_netfilter()?;
    for lack in confine(&needs(&settings), settings.means)? {
        warn!("{lack}");
    }
    block_on(daemon::run::run(settings))?;
    Ok(ExitCode::SUCCESS)
}

/// Puts this process, and its session, before others.
pub(super) fn raise_priority() {
    // Of this thread alone, and every thread and process that it starts inherits it: there is no other thread yet.
    if let Err(error) = setpriority_process(None, NICENESS) {
        debug!(%error, "it runs at the priority that it was given");
    }
    // Where the kernel shares the processor out by session first, the niceness counts only within ours.
    if let Err(error) = std::fs::write("/proc/self/autogroup", NICENESS.to_string()) {
        debug!(%error, "the session's priority stays as it is");
    }
}

/// Loading a module takes a power that the daemon does not keep. Whether it is there is for the daemon to see.
fn load_bridge_netfilter() -> Result<(), Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Refusal::system("start the runtime", error))?;
    if let Err(error) = runtime.block_on(bridge_netfilter::ensure()) {
        debug!(%error, "not there yet");
    }
    Ok(())
}

/// For people on a terminal, with fields to the systemd journal where standard error is its, JSON otherwise; `RUST_LOG`
/// chooses the level.
pub(super) fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    if is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_field_prefix(None);
        return tracing_subscriber::registry().with(filter).with(journal).init();
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    if io::stderr().is_terminal() {
        log.compact().init()
    } else {
        log.json().flatten_event(true).init()
    }
}

/// Whether systemd connected standard error with its journal: `JOURNAL_STREAM` is the device and inode of that (systemd.exec(5)).
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let stream = named.as_deref().and_then(|it| it.split_once(':'));
    let (Some((device, inode)), Ok(stderr)) = (stream, rustix::fs::fstat(io::stderr())) else {
        return false;
    };
    device.parse() == Ok(stderr.st_dev) && inode.parse() == Ok(stderr.st_ino)
}
