//! What several commands print or need of a policy: reading it, edges as JSON, colour.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use crate::daemon::source;
use crate::policy::{Colour, Edge, Loaded, SourceFile, load};

/// Why there is no policy to speak of; it has been said on standard error.
pub(super) const FAULTS: u8 = 1;

/// Reads and validates a policy directory. Faults are printed.
///
/// # Errors
/// The exit code 1: for faults, and where the path cannot be read.
pub(super) fn read(path: &Path) -> Result<Loaded, ExitCode> {
    let sources = source::read(&[path]).map_err(|error| {
        eprintln!("cofferdam: {error}: {}", error.source);
        ExitCode::from(FAULTS)
    })?;
    sources.load().map_err(|faults| {
        eprint!("{}", faults.render(&sources.files, colour(std::io::stderr())));
        eprintln!("{}", faults.summary());
        ExitCode::from(FAULTS)
    })
}

/// The policy that these files of a daemon hold.
///
/// # Errors
/// The exit code, when this program does not understand what the daemon does.
pub(super) fn of_daemon(files: &[SourceFile]) -> Result<Loaded, ExitCode> {
    load(files).map_err(|faults| {
        eprint!("{}", faults.render(files, colour(std::io::stderr())));
        eprintln!("cofferdam: the daemon's policy is not valid for this version of the program");
        ExitCode::from(FAULTS)
    })
}

/// Colour only on a terminal, and not where `NO_COLOR` is set.
pub(super) fn colour(stream: impl IsTerminal) -> Colour {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if stream.is_terminal() && !refused {
        Colour::Coloured
    } else {
        Colour::Plain
    }
}

/// An edge in JSON.
#[derive(Debug, Serialize)]
pub(super) struct EdgeObject {
    from: String,
    to: String,
    ports: Vec<String>,
    declared: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

impl From<&Edge> for EdgeObject {
    fn from(edge: &Edge) -> Self {
        Self {
            from: edge.from.to_string(),
            to: edge.to.to_string(),
            ports: edge.ports.iter().map(ToString::to_string).collect(),
            declared: edge.location.to_string(),
            why: edge.why.clone(),
            until: edge.until,
        }
    }
}
