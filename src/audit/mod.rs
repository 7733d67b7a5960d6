//! What on a host voids or weakens segmentation, container by container, and what mends it.
//!
//! In: the inventory, how each container and the engine are set, a policy where there is one. Out: [`Finding`]s, of which a
//! [`Baseline`] accepts some for a time. What leads around every rule comes from `model::reasons`, as for the daemon. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod baseline;
mod code;
mod container;
mod engine;
mod image;
mod ports;

use std::collections::BTreeMap;

use serde::Serialize;

pub use self::baseline::{Acceptance, Baseline, BaselineError, Judged, Judging, Stale};
pub use self::code::{Code, Severity, UnknownCode};
pub use self::image::Registries;
use crate::inventory::{Container, ContainerId, EnginePosture, Inventory, Lifecycle, Posture};
use crate::model::{Rights, Standing, Unenforceable, standing};
use crate::policy::Policy;

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    pub inventory: &'a Inventory,
    /// `None` for a container whose inspection cannot be understood. One that is not there at all has gone meanwhile.
    pub postures: &'a BTreeMap<ContainerId, Option<Posture>>,
    pub engine: &'a EnginePosture,
    /// Without them nobody can say which published port is declared.
    pub rights: Option<&'a Rights>,
    /// Without them every registry will do.
    pub registries: Option<&'a Registries>,
}

/// Something that voids or weakens segmentation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub code: Code,
    /// The container's name; `None`: the engine itself.
    pub container: Option<String>,
    /// What it is about, where a container can have several of a code: a path, a capability, a port.
    pub object: Option<String>,
    /// The sentence, whose subject is the container or the engine.
    pub message: String,
    /// The flag that mends it.
    pub mend: String,
    /// What does not run voids nothing at the moment.
    pub is_running: bool,
}

/// Every finding, the gravest first.
pub fn audit(scene: &Scene<'_>) -> Vec<Finding> {
    let nothing = Policy::default();
    let policy = scene.rights.map_or(&nothing, |rights| &rights.policy);
    let containers = scene.inventory.containers();
    let standings: BTreeMap<ContainerId, Standing> = containers
        .values()
        .map(|container| (container.id.clone(), standing(policy, container)))
        .collect();
    let ground = Ground {
        engine: scene.engine,
        rights: scene.rights,
        registries: scene.registries,
    };
    let mut findings = of_engine(scene.engine);
    for container in containers.values() {
        let (Some(posture), Some(own)) = (scene.postures.get(&container.id), standings.get(&container.id))
        else {
            continue;
        };
        let reasons = crate::model::reasons(scene.inventory, &standings, container, own);
        findings.extend(of_container(&ground, container, own, &reasons, posture.as_ref()));
    }
    findings.sort();
    findings
}

/// What the findings of a container depend on beside itself.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    pub engine: &'a EnginePosture,
    /// As of a [`Scene`].
    pub rights: Option<&'a Rights>,
    pub registries: Option<&'a Registries>,
}

/// The findings of the engine's own settings, in no order.
pub fn of_engine(engine: &EnginePosture) -> Vec<Finding> {
    engine::findings(engine)
}

/// The findings of one container, in no order. The reasons are those of `model::reasons`; no posture: its inspection cannot be
/// understood.
pub fn of_container(
    ground: &Ground<'_>,
    container: &Container,
    own: &Standing,
    reasons: &[Unenforceable],
    posture: Option<&Posture>,
) -> Vec<Finding> {
    let mut report = Report {
        container: Some(shown(&container.name)),
        is_running: container.lifecycle == Lifecycle::Running,
        findings: Vec::new(),
    };
    container::unenforceable(reasons, &mut report);
    match posture {
        Some(posture) if container.facts.powers.is_some() && !container.facts.unreadable => {
            container::confinement(container, posture, ground.engine, &mut report);
            image::findings(container, posture, ground.registries, &mut report);
            if let Some(rights) = ground.rights {
                ports::undeclared(container, posture, own, rights, &mut report);
            }
            ports::everywhere(container, posture, own, ground.rights, &mut report);
        }
        _ => report.add(
            Code::Unreadable,
            None,
            "cannot be judged: the engine's answer about it is not understood",
            "look at it with `docker inspect`, and remove it if nobody knows what it is",
        ),
    }
    report.findings
}

/// Takes the findings of one container, or of the engine.
#[derive(Debug)]
struct Report {
    container: Option<String>,
    is_running: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, code: Code, object: Option<&str>, message: impl Into<String>, mend: impl Into<String>) {
        self.add_as(code, code.severity(), object, message, mend);
    }

    fn add_as(
        &mut self,
        code: Code,
        severity: Severity,
        object: Option<&str>,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.findings.push(Finding {
            severity,
            code,
            container: self.container.clone(),
            object: object.map(shown),
            message: message.into(),
            mend: mend.into(),
            is_running: self.is_running,
        });
    }
}

/// A name or path that somebody else chose, so that it can neither move a terminal's cursor nor read backwards.
fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    let invisible = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut plain = String::new();
    for (position, c) in text.chars().enumerate() {
        if position == LONGEST {
            plain.push('…');
            break;
        }
        if invisible(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests;
