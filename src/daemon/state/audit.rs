//! Since when services, or the whole host, are in audit.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::Rights;
use crate::policy::Mode;

/// What no edge permits passes there since these moments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct AuditSince {
    /// Every service, since the setting `mode` says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub host: Option<Timestamp>,
    /// By `segment/service`: those that the policy itself puts in audit.
    #[schemars(with = "BTreeMap<String, String>")]
    pub services: BTreeMap<String, Timestamp>,
}

impl AuditSince {
    /// Takes over what is so from now on. What was so keeps its time. Returns whether anything changed.
    pub fn observe(&mut self, rights: &Rights, now: Timestamp) -> bool {
        let services = rights.policy.services.iter();
        let services = services
            .filter(|(_, service)| service.mode == Mode::Audit)
            .map(|(id, _)| {
                let id = id.to_string();
                let since = self.services.get(&id).copied().unwrap_or(now);
                (id, since)
            })
            .collect();
        let next = Self {
            host: (rights.mode == Mode::Audit).then(|| self.host.unwrap_or(now)),
            services,
        };
        let changed = *self != next;
        *self = next;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{SourceFile, load};

    #[test]
    fn what_stays_in_audit_keeps_its_time() {
        let rights = |modes: [&str; 2], mode| {
            let [a, b] = modes;
            let text = format!(
                "cofferdam: 1\nsegment: s\nservices:\n  a: {{ select: {{ name: aa }}, mode: {a} }}\n  b: {{ select: {{ name: bb }}, mode: {b} }}\n"
            );
            let files = [SourceFile {
                path: "s.yaml".to_owned(),
                bytes: text.into(),
            }];
            Rights {
                policy: load(&files).unwrap().policy,
                mode,
                ..Rights::default()
            }
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut audit = AuditSince::default();
        assert!(!audit.observe(&rights(["enforce", "enforce"], Mode::Enforce), at(0)));
        assert!(audit.observe(&rights(["audit", "enforce"], Mode::Enforce), at(1)));
        assert!(audit.observe(&rights(["audit", "audit"], Mode::Audit), at(2)));
        assert!(!audit.observe(&rights(["audit", "audit"], Mode::Audit), at(3)));
        let expected = [("s/a".to_owned(), at(1)), ("s/b".to_owned(), at(2))];
        assert_eq!((audit.host, &audit.services), (Some(at(2)), &expected.into()));
        assert!(audit.observe(&rights(["enforce", "audit"], Mode::Enforce), at(4)));
        assert!(audit.observe(&rights(["audit", "audit"], Mode::Enforce), at(5)));
        assert_eq!((audit.host, audit.services["s/a"]), (None, at(5)));
        let text = serde_json::to_string(&audit).unwrap();
        assert_eq!(serde_json::from_str::<AuditSince>(&text).unwrap(), audit);
    }
}
