use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::inventory::{
    Container, Endpoint, Facts, Lifecycle, Listing, MANAGED_LABEL, NetworkKind, NetworkMode, SERVICE_LABEL,
};
use crate::model::Identity;
use crate::policy::{ScopedName, SourceFile, load};

fn pools() -> Pools {
    Pools {
        ipv4: "10.213.0.0/22".parse().unwrap(),
        ipv4_prefix: 24,
        ipv6: Some("fd00::/62".parse().unwrap()),
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn service(name: &str) -> ServiceId {
    ScopedName {
        segment: "shop".parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

fn network(name: &str, subnet: &str) -> Network {
    Network {
        id: NetworkId(format!("network-{name}").into()),
        name: service(name).network_name(),
        kind: NetworkKind::Bridge(format!("cfd-{name}").parse().unwrap()),
        subnets: nets(&[subnet]),
        internal: true,
        labels: BTreeMap::from([
            (MANAGED_LABEL.to_owned(), "true".to_owned()),
            (SERVICE_LABEL.to_owned(), format!("shop/{name}")),
        ]),
    }
}

fn container(name: &str, attached: &[(&Network, &str)]) -> Container {
    let endpoint = |(network, address): &(&Network, &str)| {
        let wish = Endpoint {
            ipv4: Some(address.parse().unwrap()),
            ..Endpoint::default()
        };
        (network.id.clone(), wish)
    };
    Container {
        id: ContainerId(name.into()),
        name: name.to_owned(),
        image: "".into(),
        labels: Default::default(),
        lifecycle: Lifecycle::Stopped,
        network_mode: NetworkMode::Own,
        endpoints: attached.iter().map(endpoint).collect(),
        published: BTreeSet::new(),
        facts: Facts::default(),
    }
}

/// What a policy calls for in which something may call the service that these containers belong to.
struct Wanted {
    networks: ServiceNetworks,
    standings: BTreeMap<ContainerId, Standing>,
}

fn nothing() -> Wanted {
    Wanted {
        networks: ServiceNetworks::default(),
        standings: BTreeMap::new(),
    }
}

fn wanted(name: &str, members: &[&str]) -> Wanted {
    let text = format!(
        "cofferdam: 1\nsegment: shop\nservices:\n  {name}: {{ select: {{ name: xx }} }}\n  \
         caller: {{ select: {{ name: yy }} }}\nallow:\n  - {{ from: caller, to: {name}, ports: [80] }}\n"
    );
    let file = SourceFile {
        path: "shop.yaml".to_owned(),
        bytes: text.into_bytes(),
    };
    let mut networks = ServiceNetworks::new(&load(&[file]).unwrap().policy);
    let standing = Standing::Managed(Identity::of(service(name)));
    let mut standings = BTreeMap::new();
    for member in members {
        let container = container(member, &[]);
        networks.set(&container.id, None, Some((&container, &standing)));
        standings.insert(container.id, standing.clone());
    }
    Wanted { networks, standings }
}

fn inventory(containers: Vec<Container>, networks: Vec<Network>) -> Inventory {
    let mut inventory = Inventory::new();
    inventory.reset(Listing {
        containers,
        networks,
        ..Listing::default()
    });
    inventory
}

/// Looks at everything.
fn steps_beside(
    wanted: &Wanted,
    inventory: &Inventory,
    busy: &BTreeMap<Subject, NetworkStep>,
) -> Vec<NetworkStep> {
    let (pools, stale) = (pools(), BTreeMap::new());
    let ground = Ground {
        wanted: &wanted.networks,
        inventory,
        standings: &wanted.standings,
        pools: &pools,
        routes: &[],
        busy,
        stale: &stale,
    };
    let mut unsettled = Unsettled {
        services: wanted.networks.wanted().keys().cloned().collect(),
        containers: inventory.containers().keys().cloned().collect(),
        networks: inventory.networks().keys().cloned().collect(),
    };
    let (steps, exhausted) = network_steps(ground, &mut unsettled, &mut Allocator::default());
    assert_eq!(exhausted, None);
    let (again, _) = network_steps(ground, &mut unsettled, &mut Allocator::default());
    assert_eq!(steps, again, "what is left to do is looked at again");
    steps
}

fn steps(wanted: &Wanted, inventory: &Inventory) -> Vec<NetworkStep> {
    steps_beside(wanted, inventory, &BTreeMap::new())
}

#[test]
fn subnets_avoid_networks_and_routes_and_end_with_the_pool() {
    let pools = pools();
    let mut free = pools.free_subnets(nets(&["10.213.0.128/25", "10.213.1.0/24", "fd00:0:0:1::/80"]));
    let (ipv4, ipv6) = free.take().unwrap();
    assert_eq!(ipv4.to_string(), "10.213.2.0/24");
    assert_eq!(ipv6.unwrap().to_string(), "fd00::/64");
    let (ipv4, ipv6) = free.take().unwrap();
    assert_eq!(ipv4.to_string(), "10.213.3.0/24");
    assert_eq!(ipv6.unwrap().to_string(), "fd00:0:0:2::/64");
    let error = free.take().unwrap_err();
    assert_eq!(error.pool.to_string(), "10.213.0.0/22");
    let taken = |net: &str| pools.free_subnets(nets(&[net])).take().is_err();
    assert!(taken("10.0.0.0/8") && taken("10.213.0.0/22") && !taken("10.213.0.0/23"));
    assert!(taken("fd00::/16"), "IPv6 is not given up silently");
}

/// What an allocator hands out, one after the other, of a network on which these host numbers are used.
fn handed_out(subnet: &str) -> impl FnMut(&[u32]) -> Option<u32> {
    let subnet = subnet.parse().unwrap();
    let id = NetworkId("n".into());
    let mut allocator = Allocator::default();
    move |hosts| {
        let mut used = Used {
            subnet,
            attached: None,
            handed_out: BTreeSet::new(),
        };
        used.handed_out = hosts.iter().map(|host| used.address(*host)).collect();
        allocator.next(&id, &used)
    }
}

#[test]
fn an_address_that_was_given_up_is_the_last_to_be_used_again() {
    let mut next = handed_out("10.213.0.0/29");
    assert_eq!(next(&[]), Some(2), "the first is the gateway's");
    assert_eq!(next(&[2]), Some(3));
    assert_eq!(
        next(&[3]),
        Some(4),
        "2 is free again, but 4 and later were free for longer"
    );
    assert_eq!(next(&[3, 4]), Some(5));
    assert_eq!(next(&[3, 4, 5]), Some(2), "6 and 7 are the engine's share");
    assert_eq!(next(&[2, 3, 4, 5]), None);
}

#[test]
fn what_the_engine_gave_away_by_itself_is_beyond_ours() {
    let mut next = handed_out("10.213.0.0/24");
    assert_eq!(
        next(&[224, 225]),
        Some(2),
        "it begins at the first, not after these"
    );
    assert_eq!(next(&[2, 224]), Some(3));
    let all: Vec<u32> = (2..=222).collect();
    assert_eq!(next(&all), Some(223));
    let all: Vec<u32> = (2..=223).collect();
    assert_eq!(next(&all), None, "224 and later are the engine's share");
}

#[test]
fn a_network_is_made_then_its_members_are_attached() {
    let wanted = wanted("db", &["db-1"]);
    let bare = container("db-1", &[]);
    assert!(matches!(
        &steps(&wanted, &inventory(vec![bare.clone()], vec![]))[..],
        [NetworkStep::Create { .. }]
    ));
    let db = network("db", "10.213.0.0/24");
    let made = inventory(vec![bare], vec![db.clone()]);
    let [
        NetworkStep::Attach {
            container: id, ipv4, ..
        },
    ] = &steps(&wanted, &made)[..]
    else {
        panic!("one attachment")
    };
    assert_eq!((&*id.0, ipv4.to_string().as_str()), ("db-1", "10.213.0.2"));
    let done = inventory(vec![container("db-1", &[(&db, "10.213.0.2")])], vec![db]);
    assert_eq!(steps(&wanted, &done), []);
}

#[test]
fn what_a_stopped_container_asks_for_is_not_given_to_another() {
    let db = network("db", "10.213.0.0/24");
    let inventory = inventory(
        vec![
            container("stopped", &[(&db, "10.213.0.2")]),
            container("new", &[]),
        ],
        vec![db],
    );
    let steps = steps(&wanted("db", &["stopped", "new"]), &inventory);
    let [NetworkStep::Attach { ipv4, .. }] = &steps[..] else {
        panic!("{steps:?}")
    };
    assert_eq!(ipv4.to_string(), "10.213.0.3");
}

#[test]
fn a_network_without_use_is_left_by_all_then_removed_and_foreign_ones_never_are() {
    let db = network("db", "10.213.0.0/24");
    let mut foreign = network("web", "172.18.0.0/16");
    foreign.labels.clear();
    let held = inventory(
        vec![container(
            "stopped",
            &[(&db, "10.213.0.2"), (&foreign, "172.18.0.2")],
        )],
        vec![db.clone(), foreign.clone()],
    );
    let detach = NetworkStep::Detach {
        network: db.id.clone(),
        container: ContainerId("stopped".into()),
    };
    assert_eq!(
        steps(&nothing(), &held),
        [detach],
        "a stopped container could not start again without it"
    );
    let left = inventory(
        vec![container("stopped", &[(&foreign, "172.18.0.2")])],
        vec![db.clone(), foreign],
    );
    assert_eq!(
        steps(&nothing(), &left),
        [NetworkStep::Remove {
            network: db.id,
            name: db.name
        }]
    );
}

#[test]
fn nothing_is_planned_twice_for_one_subject() {
    let wanted = wanted("db", &["db-1"]);
    let inventory = inventory(vec![container("db-1", &[])], vec![network("db", "10.213.0.0/24")]);
    let step = steps(&wanted, &inventory).remove(0);
    let busy = BTreeMap::from([(step.subject(), step)]);
    let steps = steps_beside(&wanted, &inventory, &busy);
    assert_eq!(steps, []);
}

#[test]
fn nobody_is_attached_to_a_network_with_our_labels_that_is_no_bridge() {
    let wanted = wanted("db", &["db-1"]);
    let mut forged = network("db", "192.0.2.0/24");
    forged.kind = NetworkKind::Other("macvlan".to_owned());
    let steps = steps(
        &wanted,
        &inventory(vec![container("db-1", &[])], vec![forged.clone()]),
    );
    assert!(
        matches!(&steps[..], [NetworkStep::Create { .. }, NetworkStep::Remove { network, .. }] if *network == forged.id),
        "{steps:?}"
    );
}
