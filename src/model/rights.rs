//! A policy with what the host's settings add to its meaning, and the verdict that follows.

use std::collections::BTreeSet;

use super::{Identity, OnUnenforceable, Unmanaged};
use crate::net::{Family, Traffic};
use crate::policy::{Edge, Mode, Party, Policy, ServiceId};

/// A policy with what the host's settings add to its meaning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rights {
    pub policy: Policy,
    /// `audit`: no service enforces, whatever the policy says.
    pub mode: Mode,
    pub unmanaged: Unmanaged,
    pub unenforceable: OnUnenforceable,
}

/// What becomes of a new connection between two parties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// This edge permits it.
    Allowed(&'a Edge),
    /// No edge permits it, but every managed end is in audit: it passes and is reported.
    Audited,
    /// Neither end is managed, and the settings leave such connections alone.
    Untouched,
    Denied,
}

impl Verdict<'_> {
    /// Whether the connection comes about.
    pub fn passes(self) -> bool {
        self != Self::Denied
    }
}

impl Rights {
    /// Whether what no edge permits passes at this end: every one of its services must be in audit.
    pub fn is_audited(&self, identity: &Identity) -> bool {
        self.all_in_audit(identity.services())
    }

    /// Whether every container stands the same under both, and every network is guarded or not under both: they differ in their
    /// edges, externals and modes at most.
    pub fn stand_as(&self, other: &Self) -> bool {
        self.unmanaged == other.unmanaged
            && self.unenforceable == other.unenforceable
            && self.policy.selects_as(&other.policy)
    }

    fn all_in_audit(&self, services: &BTreeSet<ServiceId>) -> bool {
        let in_audit = |id| {
            self.policy
                .services
                .get(id)
                .is_some_and(|it| it.mode == Mode::Audit)
        };
        self.mode == Mode::Audit || services.iter().all(in_audit)
    }

    /// What becomes of `traffic` that `from` opens to `to`.
    pub fn judge(&self, from: &Party<'_>, to: &Party<'_>, traffic: Traffic, family: Family) -> Verdict<'_> {
        if let Some(edge) = self.policy.allows(from, to, traffic, family) {
            return Verdict::Allowed(edge);
        }
        let ends = [from, to];
        let enforces = ends.iter().any(|end| match end {
            Party::Services(services) => !self.all_in_audit(services),
            Party::Unmanaged => self.unmanaged == Unmanaged::Deny,
            Party::Host | Party::Outside(_) => false,
        });
        if enforces {
            Verdict::Denied
        } else if ends.iter().any(|end| matches!(end, Party::Services(_))) {
            Verdict::Audited
        } else {
            Verdict::Untouched
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Transport;
    use crate::policy::{SourceFile, load};

    #[test]
    fn what_no_edge_permits_passes_only_where_both_ends_are_in_audit() {
        let text = "cofferdam: 1\nsegment: s\nservices:\n  a: { select: { name: aa }, mode: audit }\n  b: { select: { name: bb }, mode: audit }\n  c: { select: { name: cc } }\nallow:\n  - { from: a, to: c, ports: [80] }\n";
        let files = [SourceFile {
            path: "s.yaml".to_owned(),
            bytes: text.into(),
        }];
        let policy = load(&files).unwrap().policy;
        let of = |names: &[&str]| -> BTreeSet<_> {
            let ids = policy.services.keys();
            ids.filter(|id| names.contains(&id.name.as_str()))
                .cloned()
                .collect()
        };
        let (a, b, c, ac) = (of(&["a"]), of(&["b"]), of(&["c"]), of(&["a", "c"]));
        let world = Party::Outside("192.0.2.1".parse().unwrap());
        let mut rights = Rights {
            policy: policy.clone(),
            ..Rights::default()
        };
        let judge = |rights: &Rights, from, to, port| match rights.judge(
            &from,
            &to,
            Traffic::Port(Transport::Tcp, port),
            Family::V4,
        ) {
            Verdict::Allowed(_) => "allowed",
            Verdict::Audited => "audited",
            Verdict::Untouched => "untouched",
            Verdict::Denied => "denied",
        };
        let services = |set| Party::Services(set);
        assert_eq!(judge(&rights, services(&a), services(&c), 80), "allowed");
        assert_eq!(judge(&rights, services(&a), services(&c), 81), "denied");
        assert_eq!(judge(&rights, services(&a), services(&b), 80), "audited");
        assert_eq!(judge(&rights, services(&a), world, 80), "audited");
        assert_eq!(judge(&rights, Party::Unmanaged, services(&b), 80), "audited");
        assert_eq!(judge(&rights, Party::Host, services(&c), 80), "denied");
        assert_eq!(
            judge(&rights, services(&ac), services(&b), 80),
            "denied",
            "of two modes the stricter"
        );
        assert_eq!(judge(&rights, Party::Unmanaged, world, 80), "untouched");
        rights.unmanaged = Unmanaged::Deny;
        assert_eq!(judge(&rights, Party::Unmanaged, services(&b), 80), "denied");
        rights.unmanaged = Unmanaged::Allow;
        rights.mode = Mode::Audit;
        assert_eq!(judge(&rights, Party::Host, services(&c), 80), "audited");
    }
}
