//! What the product and the environment can do. The only place that decides what is skipped.

/// Whether a capability that a case requires is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Present,
    /// The product cannot do it yet.
    ProductLacks,
    /// The runner says it as an allow-graph, where that is exact: [`crate::translate`] knows where it is not.
    Translated,
    /// Depends on the machine: sockets that its kernel may not have.
    IfSocketsOpen,
}

use Standing::{IfSocketsOpen, Present, ProductLacks, Translated};

/// Every capability of the format. One that is not listed is unknown, and its case fails.
pub(crate) const TABLE: &[(&str, Standing)] = &[
    ("address-control", Present),
    ("anti-spoof", Present),
    ("audit", Present),
    ("cidr", Present),
    ("cidr-except", Present),
    ("default-allow", Translated),
    ("deny-log", ProductLacks),
    ("deny-rules", Translated),
    ("directional", Translated),
    ("drift-repair", Present),
    ("external", Present),
    ("fail-closed", Present),
    ("fault-injection", Present),
    ("fqdn", ProductLacks),
    ("hairpin", Present),
    ("host", Present),
    ("icmp", Present),
    ("ipv6", Present),
    ("label-expr", Present),
    ("live-restore-or-restart", Present),
    ("manages-networks", Present),
    ("named-port", Translated),
    ("plain-container", Present),
    ("policy-level", ProductLacks),
    ("port-range", Present),
    ("published-port", Present),
    ("revoke-established", Present),
    ("scale-50", Present),
    ("sctp", IfSocketsOpen),
    ("shared-bridge", Present),
    ("shared-netns", Present),
];

/// What to do with a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Run,
    Skip(String),
    /// It asks for something that nobody has heard of.
    Unknown(String),
}

/// Decides by what a case requires and by what its policies cannot be translated without.
pub(crate) fn decide(requires: &[String], lacking: Option<&str>, environment_has_sctp: bool) -> Decision {
    let mut skip = None;
    for name in requires {
        let standing = TABLE
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, standing)| *standing);
        let reason = match standing {
            None => return Decision::Unknown(name.clone()),
            Some(Present) => continue,
            Some(Translated) if lacking != Some(name) => continue,
            Some(IfSocketsOpen) if environment_has_sctp => continue,
            Some(IfSocketsOpen) => format!("the environment lacks {name}"),
            Some(ProductLacks | Translated) => format!("the product lacks {name}"),
        };
        skip.get_or_insert(reason);
    }
    skip.map_or(Decision::Run, Decision::Skip)
}
