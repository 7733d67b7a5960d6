use std::collections::BTreeSet;
use std::net::IpAddr;

use rstest::rstest;

use super::*;
use crate::inventory::{
    Access, Capabilities, Capability, Container, EngineSeccomp, Facts, HostNamespace, Listing, NetworkMode,
    Power, Published, Security, Users,
};
use crate::model::Unmanaged;
use crate::net::Transport;
use crate::policy::{SourceFile, load};

const POLICY: &str = "cofferdam: 1\nsegment: shop\nservices:\n  web: { select: { name: web } }\n  \
                      db: { select: { name: db } }\nallow:\n  - { from: world, to: web, ports: [80] }\n  \
                      - { from: host, to: web, ports: [81] }\n  - { from: web, to: db, ports: [5432] }\n";

fn rights() -> Rights {
    let file = SourceFile {
        path: "shop.yaml".into(),
        bytes: POLICY.into(),
    };
    Rights {
        policy: load(&[file]).unwrap().policy,
        ..Rights::default()
    }
}

/// A container without any finding.
fn clean(name: &str) -> (Container, Posture) {
    let container = Container {
        id: ContainerId("c".into()),
        name: name.into(),
        image: format!("registry.example/app@sha256:{}", "ab".repeat(32)).into(),
        labels: Default::default(),
        lifecycle: Lifecycle::Running,
        network_mode: NetworkMode::Own,
        endpoints: Default::default(),
        published: BTreeSet::new(),
        facts: Facts {
            powers: Some(BTreeSet::new()),
            unreadable: false,
        },
    };
    let posture = Posture {
        user: "1000:1000".into(),
        capabilities: Capabilities::new(&[], &["ALL".to_owned()]),
        security: Security {
            no_new_privileges: true,
            ..Security::default()
        },
        image: format!("sha256:{}", "cd".repeat(32)),
        ..Posture::default()
    };
    (container, posture)
}

/// An engine without any finding.
fn strict() -> EnginePosture {
    EnginePosture {
        icc: Some(false),
        userland_proxy: Some(false),
        live_restore: true,
        seccomp: EngineSeccomp::Default,
        has_apparmor: true,
        has_selinux: true,
        users: Users::Mapped,
        ..EnginePosture::default()
    }
}

fn of(
    container: Container,
    posture: Option<Posture>,
    engine: &EnginePosture,
    rights: Option<&Rights>,
) -> Vec<Finding> {
    let postures = BTreeMap::from([(container.id.clone(), posture)]);
    let mut inventory = Inventory::default();
    inventory.reset(Listing {
        containers: vec![container],
        ..Listing::default()
    });
    let registries: Registries = "registry.example".parse().unwrap();
    audit(&Scene {
        inventory: &inventory,
        postures: &postures,
        engine,
        rights,
        registries: Some(&registries),
    })
}

fn codes(findings: &[Finding]) -> Vec<(Code, Severity, Option<&str>)> {
    findings
        .iter()
        .map(|it| (it.code, it.severity, it.object.as_deref()))
        .collect()
}

#[test]
fn what_is_confined_has_no_finding() {
    let (container, posture) = clean("web");
    let found = of(container, Some(posture), &strict(), Some(&rights()));
    assert_eq!(found, []);
}

type Change = fn(&mut Container, &mut Posture);

#[test]
fn each_has_its_code_and_no_other() {
    let cases: &[(Code, Change)] = &[
        (Code::NetRaw, |_, p| {
            p.capabilities = Capabilities::new(&["NET_RAW".into()], &["ALL".into()])
        }),
        (Code::AddedCapability, |_, p| {
            p.capabilities = Capabilities::new(&["SYS_TIME".into()], &["ALL".into()])
        }),
        (Code::KeepsCapabilities, |_, p| {
            p.capabilities = Capabilities::new(&[], &["NET_RAW".into()])
        }),
        (Code::Root, |_, p| {
            p.user = String::new();
            p.keeps_host_users = true;
        }),
        (Code::WritableRoot, |_, p| p.has_writable_root = true),
        (Code::Device, |_, p| _ = p.devices.insert("/dev/sda".into())),
        (Code::Seccomp, |_, p| p.security.seccomp_off = true),
        (Code::AppArmor, |_, p| p.security.apparmor_off = true),
        (Code::Selinux, |_, p| p.security.selinux_off = true),
        (Code::SystemPaths, |_, p| p.security.system_paths_open = true),
        (Code::NewPrivileges, |_, p| p.security.no_new_privileges = false),
        (Code::HostPid, |_, p| {
            _ = p.host_namespaces.insert(HostNamespace::Pid)
        }),
        (Code::HostIpc, |_, p| {
            _ = p.host_namespaces.insert(HostNamespace::Ipc)
        }),
        (Code::HostUts, |_, p| {
            _ = p.host_namespaces.insert(HostNamespace::Uts)
        }),
        (Code::Registry, |c, _| {
            c.image = format!("other/app@sha256:{}", "ab".repeat(32)).into()
        }),
        (Code::Registry, |c, p| c.image = p.image.as_str().into()),
        (Code::MutableTag, |c, _| c.image = "registry.example/app:1".into()),
        (Code::HostNetwork, |c, _| c.network_mode = NetworkMode::Host),
        (Code::Privileged, |c, p| {
            p.is_privileged = true;
            power(c, Power::Privileged);
        }),
        (Code::HostCapability, |c, _| {
            power(c, Power::Capability(Capability::SysAdmin))
        }),
        (Code::NetAdmin, |c, _| {
            power(c, Power::Capability(Capability::NetAdmin))
        }),
        (Code::EngineSocket, |c, p| {
            let mount = "/run".to_owned();
            p.sockets.insert(mount.clone());
            p.paths.insert(mount.clone(), Access::Write);
            power(c, Power::EngineSocket { mount });
        }),
        (Code::EngineSocket, |_, p| {
            p.sockets.insert("/run".into());
            p.paths.insert("/run".into(), Access::Write);
        }),
    ];
    for (code, change) in cases {
        let (mut container, mut posture) = clean("web");
        change(&mut container, &mut posture);
        let found = of(container, Some(posture), &strict(), Some(&rights()));
        let found: Vec<_> = found.iter().map(|it| it.code).collect();
        assert_eq!(found, [*code]);
    }
}

fn power(container: &mut Container, power: Power) {
    if let Some(powers) = &mut container.facts.powers {
        powers.insert(power);
    }
}

#[rstest]
#[case("/", Access::Read, Code::SensitivePath, Severity::Medium)]
#[case("/etc", Access::Write, Code::SensitivePath, Severity::High)]
#[case("/etc/shadow", Access::Read, Code::SensitivePath, Severity::Medium)]
#[case("/var", Access::Write, Code::SensitivePath, Severity::High)]
#[case("/etc/localtime", Access::Read, Code::HostPath, Severity::Low)]
#[case("/etc/localtime", Access::Write, Code::SensitivePath, Severity::High)]
#[case("/etcetera", Access::Read, Code::HostPath, Severity::Low)]
#[case("/srv/app", Access::Write, Code::HostPath, Severity::Medium)]
fn paths_are_graver_the_nearer_to_the_host(
    #[case] path: &str,
    #[case] access: Access,
    #[case] code: Code,
    #[case] severity: Severity,
) {
    let (container, mut posture) = clean("web");
    posture.paths.insert(path.into(), access);
    let found = of(container, Some(posture), &strict(), Some(&rights()));
    assert_eq!(codes(&found), [(code, severity, Some(path))]);
}

#[rstest]
#[case("", true)]
#[case("root", true)]
#[case("0", true)]
#[case("00:5", true)]
#[case("+0", true)]
#[case("root:1000", true)]
#[case("1000", false)]
#[case("1000:0", false)]
#[case("app", false)]
fn root_is_whoever_docker_takes_for_it(#[case] user: &str, #[case] is_root: bool) {
    let (container, mut posture) = clean("web");
    posture.user = user.into();
    let engine = EnginePosture {
        users: Users::Host,
        ..strict()
    };
    let found = of(container.clone(), Some(posture.clone()), &engine, Some(&rights()));
    assert_eq!(found.iter().any(|it| it.code == Code::Root), is_root);
    for users in [Users::Mapped, Users::Rootless] {
        let engine = EnginePosture { users, ..strict() };
        let found = of(container.clone(), Some(posture.clone()), &engine, Some(&rights()));
        assert_eq!(found, []);
    }
}

fn publishing(name: &str, address: &str, container_port: u16) -> (Container, Posture) {
    let (mut container, posture) = clean(name);
    container.published.insert(Published {
        address: address.parse::<IpAddr>().unwrap(),
        transport: Transport::Tcp,
        host_port: 8080,
        container_port,
    });
    (container, posture)
}

#[rstest]
#[case::to_the_world("web", "192.0.2.1", 80, &[])]
#[case::everywhere("web", "0.0.0.0", 80, &[(Code::AllAddresses, Severity::Low)])]
#[case::loopback_is_not_the_world("web", "127.0.0.1", 80, &[(Code::UndeclaredPort, Severity::Medium)])]
#[case::to_the_host("web", "127.0.0.1", 81, &[])]
#[case::everywhere_for_the_host("web", "::", 81, &[(Code::AllAddresses, Severity::Medium)])]
#[case::only_services("db", "192.0.2.1", 5432, &[(Code::UndeclaredPort, Severity::Medium)])]
#[case::unselected("x", "192.0.2.1", 80, &[(Code::UndeclaredPort, Severity::Medium)])]
fn ports_are_compared_with_edges(
    #[case] name: &str,
    #[case] address: &str,
    #[case] port: u16,
    #[case] expected: &[(Code, Severity)],
) {
    let (container, posture) = publishing(name, address, port);
    let found = of(container, Some(posture), &strict(), Some(&rights()));
    let found: Vec<_> = found.iter().map(|it| (it.code, it.severity)).collect();
    assert_eq!(found, expected);
}

#[test]
fn without_a_policy_no_port_is_undeclared() {
    let (container, posture) = publishing("x", "0.0.0.0", 80);
    let found = of(container, Some(posture), &strict(), None);
    assert_eq!(
        codes(&found),
        [(Code::AllAddresses, Severity::Medium, Some("8080:80/tcp"))]
    );
}

#[test]
fn what_is_stopped_will_publish_what_it_asks_for() {
    let (mut container, mut posture) = publishing("x", "0.0.0.0", 80);
    posture.ports = std::mem::take(&mut container.published);
    container.lifecycle = Lifecycle::Stopped;
    let mut rights = rights();
    rights.unmanaged = Unmanaged::Deny;
    let found = of(container, Some(posture), &strict(), Some(&rights));
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|it| !it.is_running));
    assert!(
        found[0].message.ends_with("no service selects the container"),
        "{found:?}"
    );
}

#[test]
fn what_cannot_be_read_is_not_taken_for_harmless() {
    let (container, posture) = clean("web");
    let found = of(container.clone(), None, &strict(), None);
    assert_eq!(codes(&found), [(Code::Unreadable, Severity::High, None)]);
    let mut unread = container;
    unread.facts.powers = None;
    let found = of(unread, Some(posture), &strict(), None);
    assert_eq!(codes(&found), [(Code::Unreadable, Severity::High, None)]);
}

#[test]
fn each_setting_of_the_engine_has_its_code() {
    let (container, posture) = clean("web");
    let engine = EnginePosture {
        open_api: BTreeSet::from(["http://0.0.0.0:2375".to_owned()]),
        icc: Some(true),
        userland_proxy: Some(true),
        ..EnginePosture::default()
    };
    let found = of(container, Some(posture), &engine, None);
    let codes: BTreeSet<Code> = found.iter().map(|it| it.code).collect();
    let all: BTreeSet<Code> = Code::ALL.iter().copied().filter(|it| it.is_of_engine()).collect();
    assert_eq!(codes, all);
    assert_eq!(found[0].code, Code::OpenApi, "the gravest first");
    let unknown = EnginePosture {
        icc: None,
        userland_proxy: None,
        ..strict()
    };
    let (container, posture) = clean("web");
    assert_eq!(of(container, Some(posture), &unknown, None), []);
}

/// Names that others chose neither move the cursor nor turn the line around.
#[test]
fn hostile_names_are_shown_as_they_are() {
    let (container, mut posture) = clean("web");
    posture
        .paths
        .insert("/srv/\u{1b}[2J\n\u{202e}x".into(), Access::Read);
    posture.devices.insert("/dev/a\rb".into());
    for finding in of(container, Some(posture), &strict(), None) {
        for text in [&finding.message, &finding.mend, finding.object.as_ref().unwrap()] {
            assert!(!text.contains(['\u{1b}', '\n', '\r', '\u{202e}']), "{text:?}");
        }
    }
    assert_eq!(shown(&"a".repeat(300)).chars().count(), 201);
}

#[test]
fn every_code_is_explained_with_a_wrong_and_a_right_example() {
    for code in Code::ALL {
        let text = code.explanation();
        assert!(text.starts_with(&format!("# {code}: ")), "{text}");
        assert!(
            text.contains("\nWrong:\n\n```text\n") && text.contains("\nRight:\n\n```text\n"),
            "{text}"
        );
        assert_eq!(code.as_str().to_lowercase().parse(), Ok(*code));
    }
    assert!("CFA999".parse::<Code>().is_err());
}
