//! `cofferdam socket-filter`: a socket in front of the engine's, for the calls that Cofferdam makes and nothing else.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args};
use nix::unistd::{Gid, Group};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};

use super::block_on;
use super::run::{raise_priority, start_log};
use crate::confine::{Means, Needs, confine};
use crate::daemon::Refusal;
use crate::filter::{Filter, Stops, serve};
use crate::listener::{Access, bound};

#[derive(Debug, Args)]
pub(super) struct SocketFilterArgs {
    /// Where to listen
    #[arg(long, env = "COFFERDAM_FILTER_LISTEN", value_name = "PATH")]
    listen: PathBuf,
    /// Docker Engine's own Unix socket
    #[arg(
        long,
        env = "COFFERDAM_FILTER_ENGINE",
        value_name = "PATH",
        default_value = "/var/run/docker.sock"
    )]
    engine: PathBuf,
    /// The socket's mode; whoever may write to it may connect
    #[arg(long, env = "COFFERDAM_FILTER_MODE", value_name = "OCTAL", default_value = "600", value_parser = mode)]
    mode: u32,
    /// The socket's group [default: that of this process]
    #[arg(long, env = "COFFERDAM_FILTER_GROUP", value_name = "NAME", value_parser = group)]
    group: Option<Gid>,
    /// Let containers be stopped, which Cofferdam does where its setting `unenforceable` is `stop`
    #[arg(long, env = "COFFERDAM_FILTER_ALLOW_STOP", value_name = "BOOL", num_args = 0..=1, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    allow_stop: bool,
    /// Give up all files, programs and ports
    #[arg(long, env = "COFFERDAM_LANDLOCK", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    landlock: bool,
    /// Give up system calls that are not needed
    #[arg(long, env = "COFFERDAM_SECCOMP", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    seccomp: bool,
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode & !0o666 == 0 => Ok(mode),
        _ => Err("a mode of a socket, such as 660".to_owned()),
    }
}

fn group(name: &str) -> Result<Gid, String> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err("there is no such group".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn run(args: SocketFilterArgs) -> Result<ExitCode, Refusal> {
    start_log();
    // The daemon waits for it, and containers for the daemon.
    raise_priority();
    let failed = |error: io::Error| Refusal::system(format!("listen at {}", args.listen.display()), error);
    // Also where that is the engine's own.
    if UnixStream::connect(&args.listen).is_ok() {
        let message = "another process listens there";
        return Err(failed(io::Error::new(io::ErrorKind::AddrInUse, message)));
    }
    let access = Access {
        mode: args.mode,
        group: args.group,
    };
    let listener = bound(&args.listen, access).map_err(failed)?;
    let means = Means {
        landlock: args.landlock,
        seccomp: args.seccomp,
    };
    for lack in confine(&Needs::sockets_alone(), means)? {
        warn!("{lack}");
    }
    block_on(async {
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let ends = |kind| signal(kind).map_err(|error| Refusal::system("listen to signals", error));
        let (mut terminate, mut interrupt) = (ends(SignalKind::terminate())?, ends(SignalKind::interrupt())?);
        info!(listen = %args.listen.display(), engine = %args.engine.display(), "the calls of Cofferdam pass");
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            debug!(%error, "systemd cannot be told");
        }
        let stops = if args.allow_stop {
            Stops::Passed
        } else {
            Stops::Refused
        };
        let filter = Filter::new(args.engine, stops);
        tokio::select! {
            () = serve::serve(listener, filter) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
