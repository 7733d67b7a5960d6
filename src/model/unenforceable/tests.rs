use rstest::rstest;

use super::*;
use crate::inventory::{Endpoint, Facts, Listing, Network, NetworkId};
use crate::model::{Rights, standing};
use crate::policy::{Policy, SourceFile, load};

const POLICY: &str = "cofferdam: 1\nsegment: shop\nservices:\n  \
                      web: { select: { name: web } }\n  db: { select: { name: db } }\n";

fn policy() -> Policy {
    let file = SourceFile {
        path: "shop.yaml".into(),
        bytes: POLICY.into(),
    };
    load(&[file]).unwrap().policy
}

fn container(name: &str, mode: NetworkMode, powers: &[Power]) -> Container {
    Container {
        id: ContainerId(name.into()),
        name: name.into(),
        image: "i".into(),
        labels: Default::default(),
        lifecycle: Lifecycle::Running,
        network_mode: mode,
        endpoints: Default::default(),
        published: BTreeSet::new(),
        facts: Facts {
            powers: Some(powers.iter().cloned().collect()),
            unreadable: false,
        },
    }
}

fn attached(mut container: Container, network: &str) -> Container {
    container
        .endpoints
        .insert(NetworkId(network.into()), Endpoint::default());
    container
}

fn network(id: &str, kind: NetworkKind) -> Network {
    Network {
        id: NetworkId(id.into()),
        name: id.into(),
        kind,
        subnets: vec![],
        internal: false,
        labels: BTreeMap::new(),
    }
}

fn found_in(setting: OnUnenforceable, containers: Vec<Container>) -> BTreeMap<ContainerId, Vec<Finding>> {
    let rights = Rights {
        policy: policy(),
        ..Rights::default()
    };
    let mut inventory = Inventory::default();
    inventory.reset(Listing {
        containers,
        networks: vec![
            network("bridge", NetworkKind::Bridge("docker0".parse().unwrap())),
            network("mac", NetworkKind::Other("macvlan".into())),
            network("ip", NetworkKind::Other("ipvlan".into())),
            network("over", NetworkKind::Other("overlay".into())),
            network("host", NetworkKind::Other("host".into())),
        ],
        ..Listing::default()
    });
    let standings = inventory
        .containers()
        .values()
        .map(|it| (it.id.clone(), standing(&rights.policy, it)))
        .collect();
    let found = inventory.containers().values().map(|container| {
        let findings = findings(setting, &inventory, &standings, container);
        (container.id.clone(), findings)
    });
    found.filter(|(_, findings)| !findings.is_empty()).collect()
}

/// The kinds found on a container called `name`, with the others around it.
fn kinds(container: Container) -> Vec<&'static str> {
    let id = container.id.clone();
    let others = [
        self::container("db", NetworkMode::Own, &[]),
        self::container("stray", NetworkMode::Own, &[]),
    ];
    let containers = others.into_iter().chain([container]).collect();
    let mut found = found_in(OnUnenforceable::Report, containers);
    let findings = found.remove(&id).unwrap_or_default();
    assert!(found.is_empty(), "only the one: {found:?}");
    findings.iter().map(|finding| finding.what.kind()).collect()
}

const CAP: fn(Capability) -> Power = Power::Capability;

fn socket() -> Power {
    Power::EngineSocket {
        mount: "/var/run".into(),
    }
}

/// What is found on a managed container, and on an unmanaged one.
#[rstest]
#[case::nothing(NetworkMode::Own, &[], &[], &[])]
#[case::no_network(NetworkMode::None, &[], &[], &[])]
#[case::host(NetworkMode::Host, &[], &["host-network"], &["host-network"])]
#[case::privileged(NetworkMode::Own, &[Power::Privileged], &["privileged"], &["privileged"])]
#[case::net_admin(NetworkMode::Own, &[CAP(Capability::NetAdmin)], &["net-admin"], &[])]
#[case::net_admin_on_the_host(
    NetworkMode::Host, &[CAP(Capability::NetAdmin)], &["host-network", "net-admin"], &["host-network", "net-admin"]
)]
#[case::sys_admin(NetworkMode::Own, &[CAP(Capability::SysAdmin)], &["capability"], &["capability"])]
#[case::all(
    NetworkMode::Own, &[CAP(Capability::All), CAP(Capability::SysAdmin), CAP(Capability::NetAdmin)], &["capability"],
    &["capability"]
)]
#[case::socket(NetworkMode::Own, &[socket()], &["engine-socket"], &["engine-socket"])]
#[case::ptrace_alone(NetworkMode::Own, &[CAP(Capability::SysPtrace)], &[], &[])]
#[case::host_processes_alone(NetworkMode::Own, &[Power::HostProcesses], &[], &[])]
#[case::host_processes(
    NetworkMode::Own, &[Power::HostProcesses, CAP(Capability::SysPtrace)], &["host-processes"], &["host-processes"]
)]
fn each_kind(
    #[case] mode: NetworkMode,
    #[case] powers: &[Power],
    #[case] managed: &[&str],
    #[case] unmanaged: &[&str],
) {
    assert_eq!(kinds(container("web", mode.clone(), powers)), managed);
    assert_eq!(kinds(container("nobody", mode, powers)), unmanaged);
}

#[test]
fn networks_whose_packets_pass_no_rule() {
    for network in ["mac", "ip", "over"] {
        let on = |name| attached(container(name, NetworkMode::Own, &[]), network);
        assert_eq!(kinds(on("web")), ["driver"]);
        assert_eq!(kinds(on("nobody")), [""; 0], "it has no rights to be held to");
    }
    for network in ["bridge", "host", "unknown"] {
        let on = attached(container("web", NetworkMode::Own, &[]), network);
        assert_eq!(kinds(on), [""; 0]);
    }
}

#[test]
fn one_network_for_two_services() {
    let with = |name, other: &str| container(name, NetworkMode::Shared(ContainerId(other.into())), &[]);
    assert_eq!(kinds(with("web", "db")), ["shared-network"]);
    assert_eq!(kinds(with("web", "stray")), ["shared-network"]);
    assert_eq!(kinds(with("nobody", "db")), ["shared-network"]);
    assert_eq!(kinds(with("nobody", "stray")), [""; 0]);
    assert_eq!(kinds(with("nobody", "gone")), [""; 0]);
}

#[test]
fn a_container_is_found_before_it_runs() {
    let mut created = container("web", NetworkMode::Own, &[Power::Privileged]);
    created.lifecycle = Lifecycle::Stopped;
    let found = found_in(OnUnenforceable::Stop, vec![created]);
    let [finding] = &found[&ContainerId("web".into())][..] else {
        panic!("{found:?}");
    };
    assert!(!finding.is_running);
    assert!(finding.to_string().ends_with("(it does not run)"), "{finding}");
}

#[test]
fn only_managed_ones_are_acted_upon_and_what_cannot_be_cut_says_so() {
    let containers = || {
        vec![
            container("web", NetworkMode::Host, &[Power::Privileged]),
            container("nobody", NetworkMode::Own, &[Power::Privileged]),
        ]
    };
    for (setting, acts) in [
        (OnUnenforceable::Report, false),
        (OnUnenforceable::Isolate, true),
        (OnUnenforceable::Stop, true),
    ] {
        let found = found_in(setting, containers());
        let of = |name: &str| found[&ContainerId(name.into())].clone();
        assert!(of("nobody").iter().all(|finding| !finding.is_acted_upon));
        let texts: Vec<String> = of("web").iter().map(ToString::to_string).collect();
        assert!(of("web").iter().all(|finding| finding.is_acted_upon == acts));
        assert_eq!(texts[0].contains("cannot be cut"), acts, "{texts:?}");
        assert!(!texts[1].contains("cannot be cut"));
    }
}

#[test]
fn what_is_not_known_yet_is_cut_and_not_reported() {
    let mut unknown = container("web", NetworkMode::Own, &[]);
    unknown.facts.powers = None;
    let inventory = Inventory::default();
    assert!(is_to_be_cut(&inventory, &unknown));
    assert!(!is_to_be_cut(
        &inventory,
        &container("web", NetworkMode::Own, &[])
    ));
    assert!(is_to_be_cut(
        &inventory,
        &container("web", NetworkMode::Own, &[Power::Privileged])
    ));
    assert_eq!(kinds(unknown), [""; 0]);
}
