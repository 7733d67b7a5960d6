//! Identities: endpoints with the same set of services have the same rights.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::inventory::Container;
use crate::policy::{Membership, Policy, ServiceId, Subject};

/// The services that an endpoint belongs to; never empty. A clone shares them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(Arc<BTreeSet<ServiceId>>);

/// Longer names become a hash: a chain's name may have 255 bytes and holds two of them.
const LONGEST_SLUG: usize = 100;

impl Identity {
    /// The identity of containers that belong to one service only.
    pub fn of(service: ServiceId) -> Self {
        Self(Arc::new(BTreeSet::from([service])))
    }

    /// `None` where there is no service.
    pub fn new(services: BTreeSet<ServiceId>) -> Option<Self> {
        if services.is_empty() {
            None
        } else {
            Some(Self(Arc::new(services)))
        }
    }

    /// Its services.
    pub fn services(&self) -> &BTreeSet<ServiceId> {
        &self.0
    }

    /// Its part of a chain's name: `shop/api`, or a hash where there are several services.
    pub fn slug(&self) -> String {
        let text = self.to_string();
        if self.0.len() == 1 && text.len() <= LONGEST_SLUG {
            return text;
        }
        let digest = Sha256::digest(text.as_bytes());
        let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("several/{hex}")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, service) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("+")?;
            }
            write!(f, "{service}")?;
        }
        Ok(())
    }
}

/// What the policy says of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Managed(Identity),
    /// No service selects it.
    Unmanaged,
    /// Services of two segments claim it: it is denied everything.
    /// Also what could not be read well enough to tell its services; then the set is empty.
    Quarantined(BTreeSet<ServiceId>),
    /// It cannot be held to its rights, and the settings say that it is cut then: it is denied everything.
    Isolated(Identity),
}

impl Standing {
    /// The services that claim the container; `None` where no rule is about it.
    pub fn services(&self) -> Option<&BTreeSet<ServiceId>> {
        match self {
            Self::Managed(identity) | Self::Isolated(identity) => Some(identity.services()),
            Self::Quarantined(services) => Some(services),
            Self::Unmanaged => None,
        }
    }
}

/// The standing of a container under a policy.
pub fn standing(policy: &Policy, container: &Container) -> Standing {
    // What it is called decides its rights. To go on without a part of that could widen them.
    if container.facts.unreadable {
        return Standing::Quarantined(BTreeSet::new());
    }
    let subject = Subject {
        name: &container.name,
        image: &container.image,
        labels: &container.labels,
    };
    match policy.services_of(subject) {
        Membership::Unmanaged => Standing::Unmanaged,
        Membership::Member(services) => {
            Identity::new(services).map_or(Standing::Unmanaged, Standing::Managed)
        }
        Membership::Quarantined(services) => Standing::Quarantined(services),
    }
}
