//! Landlock: files, programs, TCP ports, and signals to processes that are none of ours. The kernel has it since 5.13, and more of it
//! with each later version; what it lacks is told.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::Needs;

/// What is asked for: everything up to Linux 6.12. A later kernel gives no more than this, so that it takes nothing away that was
/// not tried.
const ASKED: ABI = ABI::V6;

/// To which TCP ports connections may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    None,
    All,
}

/// Restricts this thread and what it starts to what is needed. A path that is not there is not opened by it.
pub(super) fn restrict(needs: &Needs) -> Result<Option<String>, RulesetError> {
    let files = AccessFs::from_all(ASKED);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut ports = AccessNet::from_all(ASKED);
    if needs.connections == Connections::All {
        ports.remove(AccessNet::ConnectTcp);
    }
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(files)?
        .handle_access(ports)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(&needs.read, read))?
        .add_rules(path_beneath_rules(&needs.write, files & !AccessFs::Execute))?
        .add_rules(path_beneath_rules(&needs.run, read | AccessFs::Execute))?
        .add_rules(
            needs
                .listen
                .map(|port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::BindTcp))),
        )?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => None,
        RulesetStatus::PartiallyEnforced => Some(
            "this kernel's Landlock is older than Linux 6.12: not all of files, TCP ports and signals are restricted".to_owned(),
        ),
        RulesetStatus::NotEnforced => Some(
            "this kernel has no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK, `landlock` in the list lsm=): files and programs are \
             restricted by their permissions alone"
                .to_owned(),
        ),
    })
}
