//! Whether this process may program the network at all.

use caps::{CapSet, Capability};

/// Why the process may not.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error("could not read this process's capabilities")]
    Read(#[source] caps::errors::CapsError),
    #[error("the capability CAP_NET_ADMIN is missing: run as root, or grant it to the service")]
    Missing,
}

/// Refuses a process that cannot change nftables, links and conntrack.
pub fn require_net_admin() -> Result<(), PrivilegeError> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).map_err(PrivilegeError::Read)? {
        Ok(())
    } else {
        Err(PrivilegeError::Missing)
    }
}
