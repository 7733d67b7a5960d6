//! What a container may do beyond its network.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use tracing::warn;

use super::Inspection;
use crate::docker::raw::{Field, shortened};
use crate::inventory::{Capability, Power};

/// What an inspected container may do beyond its network; `None` where the answer does not tell.
pub(in crate::docker) fn powers(answer: &Inspection, sockets: &[PathBuf]) -> Option<BTreeSet<Power>> {
    let config = answer.host_config.as_ref()?;
    let unknown = config.privileged.is_malformed()
        || config.pid_mode.is_malformed()
        || config.cap_add.is_malformed()
        || config.cap_drop.is_malformed()
        || answer.mounts.is_malformed();
    if unknown {
        warn!("a container whose powers cannot be read");
        return None;
    }
    let list = |field: &Field<Vec<String>>| field.as_ref().cloned().unwrap_or_default();
    let mut powers: BTreeSet<Power> = Capability::granted(&list(&config.cap_add), &list(&config.cap_drop))
        .into_iter()
        .map(Power::Capability)
        .collect();
    if config.privileged == Field::Is(true) {
        powers.insert(Power::Privileged);
    }
    if config.pid_mode.as_ref().is_some_and(|mode| mode == "host") {
        powers.insert(Power::HostProcesses);
    }
    for mount in answer.mounts.as_ref().into_iter().flatten() {
        let mount = mount.as_ref()?;
        let source = mount.source.as_ref().filter(|source| !source.is_empty());
        // A volume's source lies in the engine's own directory; one that is a path of the host was followed to it.
        let binds = mount.r#type.as_ref().is_none_or(|kind| kind == "bind");
        if let Some(source) = source.filter(|source| binds && holds_a_socket(source, sockets)) {
            let mount = shortened(source).to_owned();
            powers.insert(Power::EngineSocket { mount });
        }
    }
    Some(powers)
}

/// Whether one of the engine's sockets is at the path or below it.
pub(in crate::docker) fn holds_a_socket(source: &str, sockets: &[PathBuf]) -> bool {
    let source = resolved(Path::new(source));
    sockets.iter().any(|socket| resolved(socket).starts_with(&source))
}

/// `/var/run` is `/run`; `..` and `.` are followed by name.
fn resolved(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    match plain.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => plain,
    }
}
