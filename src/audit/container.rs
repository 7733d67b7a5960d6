//! Findings of one container: what no rule holds, and what is taken off its confinement.

use super::{Code, Report, Severity, shown};
use crate::inventory::{Access, Capability, Container, EnginePosture, HostNamespace, Posture, Users};
use crate::model::Unenforceable;

/// Paths that lead to the host's users, programs, kernel or engine, each with what is above and below it.
const SENSITIVE: [&str; 20] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/opt/containerd",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/cofferdam",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/dpkg",
    "/var/lib/systemd",
    "/var/run",
    "/var/spool/cron",
];

/// Below those, and of no use to anybody who can only read them.
const HARMLESS: [&str; 4] = ["/etc/localtime", "/etc/timezone", "/etc/ssl/certs", "/usr/share"];

/// What the daemon reports and acts upon, too.
pub(super) fn unenforceable(reasons: &[Unenforceable], report: &mut Report) {
    for reason in reasons {
        let (code, object, mend) = match reason {
            Unenforceable::HostNetwork => (
                Code::HostNetwork,
                None,
                "drop `--network host`, attach it to a network and publish the ports it serves".to_owned(),
            ),
            Unenforceable::SharedNetwork { with } => (
                Code::SharedNetwork,
                Some(with.clone()),
                "drop `--network container:…`, or let one service select both containers".to_owned(),
            ),
            Unenforceable::Driver { network, .. } => (
                Code::UnseenNetwork,
                Some(network.clone()),
                "attach it to a network with the driver `bridge` instead".to_owned(),
            ),
            Unenforceable::Privileged => (
                Code::Privileged,
                None,
                "drop `--privileged` and give the one `--device` or `--cap-add` that it needs".to_owned(),
            ),
            Unenforceable::Capability(it) | Unenforceable::HostProcesses(it) => {
                (Code::HostCapability, Some(it.name().to_owned()), without(*it))
            }
            Unenforceable::HostNetworkAdmin => (
                Code::HostCapability,
                Some(Capability::NetAdmin.name().to_owned()),
                without(Capability::NetAdmin),
            ),
            Unenforceable::NetworkAdmin => (Code::NetAdmin, None, without(Capability::NetAdmin)),
            Unenforceable::EngineSocket { mount } => {
                (Code::EngineSocket, Some(mount.clone()), SOCKET_MEND.to_owned())
            }
        };
        report.add(code, object.as_deref(), shown(&reason.to_string()), mend);
    }
}

const SOCKET_MEND: &str =
    "drop the mount; what only reads can do with a proxy that lets nothing but those reads through";

fn without(capability: Capability) -> String {
    let name = capability.name();
    format!("drop `--cap-add {name}`; `--cap-drop ALL` and the few it needs is better still")
}

/// What its own settings tell.
pub(super) fn confinement(
    container: &Container,
    posture: &Posture,
    engine: &EnginePosture,
    report: &mut Report,
) {
    capabilities(posture, report);
    users(posture, engine, report);
    mounts(posture, report);
    namespaces(posture, report);
    security(container, posture, engine, report);
}

fn capabilities(posture: &Posture, report: &mut Report) {
    // A privileged container has them all, and more, whatever is dropped; that is said already.
    if posture.is_privileged {
        return;
    }
    let held = &posture.capabilities;
    if held.has("NET_RAW") {
        report.add(
            Code::NetRaw,
            None,
            "has NET_RAW: it can forge frames and answers to ARP on networks that are not guarded, and sends what is dropped on the others",
            "`--cap-drop NET_RAW`; most programs never notice",
        );
    }
    for name in held.extra().filter(|name| !is_told_elsewhere(name)) {
        report.add(
            Code::AddedCapability,
            Some(name),
            format!("has {}, which containers do not have by default", shown(name)),
            format!("drop `--cap-add {}` if it runs without", shown(name)),
        );
    }
    if !held.starts_from_none() {
        report.add(
            Code::KeepsCapabilities,
            None,
            "keeps the engine's default capabilities, whether it needs them or not",
            "`--cap-drop ALL`, and `--cap-add` for the few it needs",
        );
    }
}

/// Those that have findings of their own.
fn is_told_elsewhere(name: &str) -> bool {
    use Capability::{All, DacReadSearch, NetAdmin, SysAdmin, SysModule, SysRawio};
    [All, DacReadSearch, NetAdmin, SysAdmin, SysModule, SysRawio]
        .iter()
        .any(|it| it.name() == name)
}

fn users(posture: &Posture, engine: &EnginePosture, report: &mut Report) {
    let is_mapped = match engine.users {
        Users::Host => false,
        Users::Mapped => !posture.keeps_host_users && !posture.is_privileged,
        Users::Rootless => true,
    };
    if is_root(&posture.user) && !is_mapped {
        let why = match engine.users {
            Users::Mapped => "it keeps the host's users although the engine maps them",
            _ => "the engine maps no users",
        };
        report.add(
            Code::Root,
            None,
            format!("runs as root, which is root on the host, too: {why}"),
            match engine.users {
                Users::Mapped => "drop `--userns host`, or `--user UID` with another user than 0",
                _ => "`--user UID` with another user than 0, or `userns-remap` in the engine's settings",
            },
        );
    }
    if posture.has_writable_root {
        report.add(
            Code::WritableRoot,
            None,
            "can write to its own root file system: what breaks in can bring its tools along",
            "`--read-only`, with `--tmpfs /tmp` and volumes for what it writes",
        );
    }
}

/// The user is whatever stands before the colon; a name is taken at its word.
fn is_root(user: &str) -> bool {
    let user = user.split_once(':').map_or(user, |(user, _)| user);
    user.is_empty() || user == "root" || user.parse::<i64>() == Ok(0)
}

fn mounts(posture: &Posture, report: &mut Report) {
    for path in &posture.sockets {
        // The daemon sees bind mounts; through a volume only this does.
        let is_told = report
            .findings
            .iter()
            .any(|it| it.code == Code::EngineSocket && it.object.as_deref() == Some(&shown(path)));
        if !is_told {
            let path = shown(path);
            report.add(
                Code::EngineSocket,
                Some(&path),
                format!("can open the engine's socket (volume that binds {path}): it can start containers with any rights"),
                SOCKET_MEND,
            );
        }
    }
    for (path, access) in &posture.paths {
        if posture.sockets.contains(path) {
            continue;
        }
        let (code, severity) = match (is_sensitive(path, *access), access) {
            (true, Access::Write) => (Code::SensitivePath, Severity::High),
            (true, Access::Read) => (Code::SensitivePath, Severity::Medium),
            (false, Access::Write) => (Code::HostPath, Severity::Medium),
            (false, Access::Read) => (Code::HostPath, Severity::Low),
        };
        let does = match access {
            Access::Write => "read and write",
            Access::Read => "read",
        };
        let what = match code {
            Code::SensitivePath => ", from where the host's secrets, programs or kernel are in reach",
            _ => "",
        };
        let path = shown(path);
        report.add_as(
            code,
            severity,
            Some(&path),
            format!("can {does} the host's {path}{what}"),
            match access {
                Access::Write => "use a volume; or mount only what it needs, with `:ro`",
                Access::Read => "use a volume or a Docker config or secret; or mount only the file it needs",
            },
        );
    }
    for device in &posture.devices {
        let device = shown(device);
        report.add(
            Code::Device,
            Some(&device),
            format!("has the host's device {device}, and with it whatever the driver lets root do"),
            "drop the `--device`, or give it to a container that does nothing else",
        );
    }
}

fn is_sensitive(path: &str, access: Access) -> bool {
    let below = |path: &str, above: &str| {
        path.strip_prefix(above.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if access == Access::Read && HARMLESS.iter().any(|it| below(path, it)) {
        return false;
    }
    SENSITIVE.iter().any(|it| below(path, it) || below(it, path))
}

fn namespaces(posture: &Posture, report: &mut Report) {
    for namespace in &posture.host_namespaces {
        let (code, message, mend) = match namespace {
            HostNamespace::Pid => (
                Code::HostPid,
                "sees every process of the host, with its arguments and, as root, its environment and files",
                "drop `--pid host`",
            ),
            HostNamespace::Ipc => (
                Code::HostIpc,
                "shares the host's memory segments and queues: a way between containers that no network rule sees",
                "drop `--ipc host`",
            ),
            HostNamespace::Uts => (
                Code::HostUts,
                "shares the host's name, and can change it with SYS_ADMIN",
                "drop `--uts host`",
            ),
        };
        report.add(code, None, message, mend);
    }
}

fn security(container: &Container, posture: &Posture, engine: &EnginePosture, report: &mut Report) {
    // A privileged container has none of it, and that is said already.
    if posture.is_privileged {
        return;
    }
    let own = &posture.security;
    if own.seccomp_off {
        report.add(
            Code::Seccomp,
            None,
            "runs without seccomp: every system call of the kernel is open to whatever breaks in",
            "drop `--security-opt seccomp=unconfined`, or name a profile with the calls it needs",
        );
    }
    if own.apparmor_off {
        report.add(
            Code::AppArmor,
            None,
            "runs without AppArmor's profile for containers",
            "drop `--security-opt apparmor=unconfined`",
        );
    }
    // The engine takes it off by itself with the host's processes or IPC, with SELinux or without.
    if own.selinux_off && engine.has_selinux {
        report.add(
            Code::Selinux,
            None,
            "runs without SELinux's separation of containers",
            "drop `--security-opt label=disable`",
        );
    }
    if own.system_paths_open {
        report.add(
            Code::SystemPaths,
            None,
            "sees what the engine hides of /proc and /sys",
            "drop `--security-opt systempaths=unconfined`",
        );
    }
    if !own.no_new_privileges && !engine.no_new_privileges {
        report.add(
            Code::NewPrivileges,
            None,
            format!(
                "may gain rights by programs with set-user-ID that are in the image {}",
                shown(&container.image)
            ),
            "`--security-opt no-new-privileges`, or the same for all in the engine's settings",
        );
    }
}
