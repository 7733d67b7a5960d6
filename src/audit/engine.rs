//! Findings of the engine's own settings.

use super::{Code, Finding, Report};
use crate::inventory::{EnginePosture, EngineSeccomp, Users};

pub(super) fn findings(engine: &EnginePosture) -> Vec<Finding> {
    let mut report = Report {
        container: None,
        is_running: true,
        findings: Vec::new(),
    };
    for address in &engine.open_api {
        report.add(
            Code::OpenApi,
            Some(address),
            format!(
                "serves its API at {} to whoever reaches it: that is root on this host",
                super::shown(address)
            ),
            "drop the `-H tcp://…`, or `--tlsverify` with certificates of your own",
        );
    }
    match &engine.seccomp {
        EngineSeccomp::Off => report.add(
            Code::EngineSeccomp,
            None,
            "starts containers without seccomp unless they ask for it",
            "drop `--seccomp-profile unconfined`; the kernel must have seccomp",
        ),
        EngineSeccomp::Custom(file) => report.add_as(
            Code::EngineSeccomp,
            super::Severity::Low,
            Some(file),
            format!(
                "starts containers with another seccomp profile than its own, {}",
                super::shown(file)
            ),
            "drop `--seccomp-profile`, or compare the profile with the engine's and accept this",
        ),
        EngineSeccomp::Default => {}
    }
    if !engine.has_apparmor && !engine.has_selinux {
        report.add(
            Code::NoMandatory,
            None,
            "uses neither AppArmor nor SELinux: nothing but capabilities and seccomp holds what is root in a container",
            "install AppArmor (`apt install apparmor`), or `--selinux-enabled` on a host with SELinux",
        );
    }
    if engine.users == Users::Host {
        report.add(
            Code::NoUserMap,
            None,
            "maps no users: root in a container is root on the host",
            "`userns-remap` in the engine's settings, or a rootless engine",
        );
    }
    if engine.icc == Some(true) {
        report.add(
            Code::Icc,
            None,
            "lets containers on the default bridge reach one another where no guard says otherwise",
            "`--icc=false`; or `unmanaged: deny`, which guards every network",
        );
    }
    if engine.userland_proxy == Some(true) {
        report.add(
            Code::UserlandProxy,
            None,
            "carries published ports through a process of root, behind which nobody can tell who dialled",
            "`--userland-proxy=false`",
        );
    }
    if !engine.live_restore {
        report.add(
            Code::LiveRestore,
            None,
            "ends every container when it ends, so that its security updates are put off",
            "`live-restore` in the engine's settings",
        );
    }
    report.findings
}
