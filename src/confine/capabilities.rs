//! Capabilities: those that are kept are kept for the programs that are started, too (ambient), and no program can get another.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// Gives up all but these, of which the process may have none.
pub(super) fn keep(kept: &[Capability]) -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = kept.iter().copied().filter(|it| permitted.contains(it)).collect();
    // Root gets from every program it starts what is in here. It takes a capability to leave one, so where there is none, whoever
    // started this has seen to it.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::runtime::thread_all_supported().difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    // Each is a part of the next. What is as it should be is left alone: a service manager may forbid the call.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        if caps::read(None, set)? != kept {
            caps::set(None, set, &kept)?;
        }
    }
    for capability in &kept {
        caps::raise(None, CapSet::Ambient, *capability)?;
    }
    Ok(())
}
