use proptest::prelude::*;

use super::*;
use crate::inventory::{Facts, NetworkKind, NetworkMode, Power};
use crate::net::Mac;

fn container_id(n: u8) -> ContainerId {
    ContainerId(format!("{n:064x}").into())
}

fn network_id(n: u8) -> NetworkId {
    NetworkId(format!("{n:064x}").into())
}

fn container(n: u8) -> Container {
    Container {
        id: container_id(n),
        name: format!("c{n}"),
        image: "shop/api:1".into(),
        labels: Default::default(),
        lifecycle: Lifecycle::Stopped,
        network_mode: NetworkMode::Own,
        endpoints: Default::default(),
        published: BTreeSet::new(),
        facts: Facts::default(),
    }
}

fn network(n: u8) -> Network {
    Network {
        id: network_id(n),
        name: format!("n{n}"),
        kind: NetworkKind::Bridge(format!("br-{n}").parse().unwrap()),
        subnets: vec!["10.213.1.0/24".parse().unwrap()],
        internal: true,
        labels: BTreeMap::new(),
    }
}

fn live(n: u8) -> Endpoint {
    Endpoint {
        mac: Some(Mac([2, 0x42, 10, 213, 1, n])),
        ipv4: Some([10, 213, 1, n].into()),
        ipv6: None,
    }
}

#[test]
fn powers_that_were_read_once_stay_known() {
    let mut inventory = Inventory::new();
    let mut read = container(1);
    read.facts.powers = Some([Power::Privileged].into());
    inventory.upsert_container(read.clone());
    assert!(inventory.upsert_container(container(1)).is_empty());
    let listing = Listing {
        containers: vec![container(1), container(2)],
        networks: vec![],
        ..Listing::default()
    };
    inventory.reset(listing);
    assert_eq!(inventory.container(&container_id(1)), Some(&read));
    assert_eq!(inventory.container(&container_id(2)).unwrap().facts.powers, None);
}

#[test]
fn equal_values_are_no_change() {
    let mut inventory = Inventory::new();
    assert_eq!(
        inventory.upsert_container(container(1)),
        Changes::of_container(&container_id(1))
    );
    assert!(inventory.upsert_container(container(1)).is_empty());
    assert_eq!(
        inventory.upsert_network(network(1)),
        Changes::of_network(&network_id(1))
    );
    assert!(inventory.upsert_network(network(1)).is_empty());
    let set = |inventory: &mut Inventory| inventory.set_endpoint(&container_id(1), &network_id(1), live(9));
    assert!(!set(&mut inventory).is_empty());
    assert!(set(&mut inventory).is_empty());
    assert!(inventory.rename_container(&container_id(1), "c1").is_empty());
    assert!(!inventory.rename_container(&container_id(1), "c1-old").is_empty());
    assert!(inventory.remove_container(&container_id(2)).is_empty());
    assert!(inventory.remove_network(&network_id(2)).is_empty());
}

#[test]
fn an_endpoint_waits_for_its_container_and_counts_for_nobody_else() {
    let mut inventory = Inventory::new();
    inventory.upsert_container(container(1));
    assert!(
        inventory
            .set_endpoint(&container_id(2), &network_id(1), live(9))
            .is_empty()
    );
    assert!(inventory.containers()[&container_id(1)].endpoints.is_empty());
    assert_eq!(
        inventory.unknown_containers().collect::<Vec<_>>(),
        [&container_id(2)]
    );

    inventory.upsert_container(container(3));
    assert!(inventory.containers()[&container_id(3)].endpoints.is_empty());

    inventory.upsert_container(container(2));
    let known = &inventory.containers()[&container_id(2)];
    assert_eq!(known.endpoints, [(network_id(1), live(9))].into_iter().collect());
    assert_eq!(known.lifecycle, Lifecycle::Running);
    assert_eq!(inventory.unknown_containers().count(), 0);
}

#[test]
fn an_early_endpoint_that_went_again_never_counts() {
    let mut inventory = Inventory::new();
    inventory.set_endpoint(&container_id(1), &network_id(1), live(9));
    inventory.remove_endpoint(&container_id(1), &network_id(1));
    inventory.set_endpoint(&container_id(2), &network_id(1), live(8));
    inventory.remove_container(&container_id(2));
    inventory.set_endpoint(&container_id(3), &network_id(1), live(7));
    inventory.set_lifecycle(&container_id(3), Lifecycle::Stopped);
    for n in 1..=3 {
        inventory.upsert_container(container(n));
        assert!(inventory.containers()[&container_id(n)].endpoints.is_empty());
    }
}

#[test]
fn a_reading_with_a_live_endpoint_beats_an_early_one() {
    let mut inventory = Inventory::new();
    inventory.set_endpoint(&container_id(1), &network_id(1), live(9));
    let mut read = container(1);
    read.endpoints.insert(network_id(1), live(10));
    inventory.upsert_container(read.clone());
    assert_eq!(inventory.container(&container_id(1)), Some(&read));
}

#[test]
fn a_stopped_container_gives_its_addresses_back() {
    let mut inventory = Inventory::new();
    inventory.upsert_container(container(1));
    inventory.set_endpoint(&container_id(1), &network_id(1), live(9));
    assert_eq!(
        inventory.containers()[&container_id(1)].lifecycle,
        Lifecycle::Running
    );
    inventory.set_lifecycle(&container_id(1), Lifecycle::Stopped);
    let stopped = &inventory.containers()[&container_id(1)];
    assert_eq!(stopped.endpoints[&network_id(1)], Endpoint::default());
}

#[test]
fn what_a_listing_lacks_is_gone() {
    let mut inventory = Inventory::new();
    inventory.upsert_container(container(1));
    inventory.upsert_container(container(2));
    inventory.upsert_network(network(1));
    let changes = inventory.reset(Listing {
        containers: vec![container(2), container(3)],
        networks: vec![],
        ..Listing::default()
    });
    assert_eq!(
        changes.containers,
        BTreeSet::from([container_id(1), container_id(3)])
    );
    assert_eq!(changes.networks, BTreeSet::from([network_id(1)]));
}

#[test]
fn of_what_changed_meanwhile_a_listing_says_nothing() {
    let mut inventory = Inventory::new();
    inventory.upsert_container(container(1));
    let listing = Listing {
        containers: vec![container(1), container(2), container(3)],
        networks: vec![network(1)],
        ..Listing::default()
    };
    // Since the listing began: 1 was attached, 4 came, and so did endpoints of 2 and 5, which are not known yet.
    inventory.set_endpoint(&container_id(2), &network_id(2), live(7));
    inventory.set_endpoint(&container_id(1), &network_id(2), live(9));
    inventory.upsert_container(container(4));
    inventory.set_endpoint(&container_id(5), &network_id(2), live(8));
    let attached = inventory.containers()[&container_id(1)].clone();
    let newer = Changes {
        containers: [1, 2, 4, 5].map(container_id).into(),
        networks: BTreeSet::from([network_id(1)]),
    };
    let changes = inventory.reset_except(listing, &newer);
    assert_eq!(changes.containers, [2, 3].map(container_id).into());
    let known: Vec<_> = inventory.containers().keys().cloned().collect();
    assert_eq!(known, [1, 2, 3, 4].map(container_id));
    assert_eq!(inventory.containers()[&container_id(1)], attached);
    // A service's only container must not be missing from the first pass because it has just been renamed.
    let of_two = &inventory.containers()[&container_id(2)];
    assert_eq!(of_two.endpoints[&network_id(2)], live(7));
    assert_eq!(inventory.unknown_containers().count(), 1);
    inventory.upsert_container(container(5));
    let of_five = &inventory.containers()[&container_id(5)].endpoints;
    assert_eq!(of_five[&network_id(2)], live(8));
}

#[derive(Debug, Clone)]
enum Event {
    Upsert(Container),
    Remove(u8),
    Lifecycle(u8, Lifecycle),
    Rename(u8, String),
    UpsertNetwork(Network),
    RemoveNetwork(u8),
    SetEndpoint(u8, u8, Endpoint),
    RemoveEndpoint(u8, u8),
    Reset(Listing),
}

fn apply(inventory: &mut Inventory, event: Event) -> Changes {
    match event {
        Event::Upsert(container) => inventory.upsert_container(container),
        Event::Remove(n) => inventory.remove_container(&container_id(n)),
        Event::Lifecycle(n, lifecycle) => inventory.set_lifecycle(&container_id(n), lifecycle),
        Event::Rename(n, name) => inventory.rename_container(&container_id(n), &name),
        Event::UpsertNetwork(network) => inventory.upsert_network(network),
        Event::RemoveNetwork(n) => inventory.remove_network(&network_id(n)),
        Event::SetEndpoint(c, n, endpoint) => {
            inventory.set_endpoint(&container_id(c), &network_id(n), endpoint)
        }
        Event::RemoveEndpoint(c, n) => inventory.remove_endpoint(&container_id(c), &network_id(n)),
        Event::Reset(listing) => inventory.reset(listing),
    }
}

fn endpoints() -> impl Strategy<Value = Endpoint> {
    prop_oneof![Just(Endpoint::default()), (1u8..4).prop_map(live)]
}

fn lifecycles() -> impl Strategy<Value = Lifecycle> {
    prop_oneof![Just(Lifecycle::Stopped), Just(Lifecycle::Running)]
}

fn containers() -> impl Strategy<Value = Container> {
    let attached = proptest::collection::btree_map(0u8..3, endpoints(), 0..3);
    (0u8..4, lifecycles(), attached).prop_map(|(n, lifecycle, attached)| Container {
        lifecycle,
        endpoints: attached.into_iter().map(|(n, e)| (network_id(n), e)).collect(),
        ..container(n)
    })
}

fn networks() -> impl Strategy<Value = Network> {
    (0u8..3, any::<bool>()).prop_map(|(n, internal)| Network {
        internal,
        ..network(n)
    })
}

fn listings() -> impl Strategy<Value = Listing> {
    let containers = proptest::collection::vec(containers(), 0..4);
    let networks = proptest::collection::vec(networks(), 0..4);
    (containers, networks).prop_map(|(containers, networks)| Listing {
        containers,
        networks,
        ..Listing::default()
    })
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        containers().prop_map(Event::Upsert),
        (0u8..4).prop_map(Event::Remove),
        (0u8..4, lifecycles()).prop_map(|(n, lifecycle)| Event::Lifecycle(n, lifecycle)),
        (0u8..4, "[ab]").prop_map(|(n, name)| Event::Rename(n, name)),
        networks().prop_map(Event::UpsertNetwork),
        (0u8..3).prop_map(Event::RemoveNetwork),
        (0u8..4, 0u8..3, endpoints()).prop_map(|(c, n, e)| Event::SetEndpoint(c, n, e)),
        (0u8..4, 0u8..3).prop_map(|(c, n)| Event::RemoveEndpoint(c, n)),
        listings().prop_map(Event::Reset),
    ]
}

/// The objects of `after` and `before` that differ, found the slow way.
fn differences(before: &Inventory, after: &Inventory) -> Changes {
    let mut changes = Changes::default();
    for n in 0..4 {
        if before.container(&container_id(n)) != after.container(&container_id(n)) {
            changes.containers.insert(container_id(n));
        }
        if before.network(&network_id(n)) != after.network(&network_id(n)) {
            changes.networks.insert(network_id(n));
        }
    }
    changes
}

proptest! {
    #[test]
    fn a_reset_forgets_every_history(
        history in proptest::collection::vec(events(), 0..24),
        listing in listings(),
    ) {
        let mut travelled = Inventory::new();
        for event in history {
            apply(&mut travelled, event);
        }
        travelled.reset(listing.clone());
        let mut fresh = Inventory::new();
        fresh.reset(listing.clone());
        prop_assert_eq!(&travelled, &fresh);
        prop_assert!(travelled.reset(listing).is_empty());
        prop_assert_eq!(&travelled, &fresh);
    }

    #[test]
    fn every_mutator_reports_exactly_what_it_changed(history in proptest::collection::vec(events(), 0..24)) {
        let mut inventory = Inventory::new();
        for event in history {
            let before = inventory.clone();
            let changes = apply(&mut inventory, event);
            prop_assert_eq!(changes, differences(&before, &inventory));
        }
    }
}
