//! Whether this process may program the network at all.

use caps::{CapSet, Capability};

/// Why the process may not.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error("could not read this process's capabilities")]
    Read(#[source] caps::errors::CapsError),
    #[error("the capability CAP_NET_ADMIN is missing: run as root, or grant it to the service")]
    Missing,
    #[error(
        "the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN are needed to look from inside the containers' network \
         namespaces: run as root"
    )]
    MissingForNamespaces,
}

/// Refuses a process that cannot enter the network namespaces of containers.
pub fn require_namespaces() -> Result<(), PrivilegeError> {
    for needed in [Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN] {
        if !caps::has_cap(None, CapSet::Effective, needed).map_err(PrivilegeError::Read)? {
            return Err(PrivilegeError::MissingForNamespaces);
        }
    }
    Ok(())
}

/// Refuses a process that cannot change nftables, links and conntrack.
pub fn require_net_admin() -> Result<(), PrivilegeError> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).map_err(PrivilegeError::Read)? {
        Ok(())
    } else {
        Err(PrivilegeError::Missing)
    }
}
