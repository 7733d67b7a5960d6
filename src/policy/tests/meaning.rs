//! What policies mean for connections and containers.

use std::collections::BTreeSet;

use super::*;
use crate::net::{Family, Traffic, Transport};

#[test]
fn a_policy_means_what_it_says() {
    let policy = valid(&[SHOP, OPS]);
    assert_eq!(policy.services.len(), 4);
    assert_eq!(policy.edges.len(), 9);
    let why: Vec<&str> = policy
        .edges
        .iter()
        .filter_map(|edge| edge.why.as_deref())
        .collect();
    assert_eq!(why, ["customers"]);
    let set = |names: &[&str]| names.iter().map(|name| id(name)).collect::<BTreeSet<_>>();
    let (web, api, prometheus, both) = (
        set(&["shop/web"]),
        set(&["shop/api"]),
        set(&["ops/prometheus"]),
        set(&["shop/web", "shop/scraped"]),
    );
    let (web, api, prometheus, both) = (
        Party::Services(&web),
        Party::Services(&api),
        Party::Services(&prometheus),
        Party::Services(&both),
    );
    let outside = |address: &str| Party::Outside(address.parse().unwrap());
    let tcp = |port| Traffic::Port(Transport::Tcp, port);
    let allows =
        |from: Party<'_>, to: Party<'_>, traffic| policy.allows(&from, &to, traffic, Family::V4).is_some();
    assert!(allows(outside("198.51.100.1"), web, tcp(443)));
    assert!(!allows(outside("198.51.100.1"), api, tcp(443)));
    assert!(!allows(Party::Unmanaged, web, tcp(443)));
    assert!(!allows(Party::Host, web, tcp(443)));
    assert!(allows(Party::Host, web, Traffic::Icmp(8)));
    assert!(allows(web, api, tcp(9010)));
    assert!(!allows(api, web, tcp(9010)));
    assert!(allows(api, api, tcp(8080)));
    assert!(allows(prometheus, both, tcp(9100)));
    assert!(!allows(prometheus, web, tcp(9100)));
    assert!(allows(both, api, tcp(8080)));
    assert!(allows(api, outside("203.0.113.7"), tcp(443)));
    assert!(!allows(api, outside("203.0.113.66"), tcp(443)));
    assert!(!allows(web, outside("203.0.113.7"), tcp(443)));
    assert!(allows(web, outside("203.0.113.66"), Traffic::Icmp(0)));
    let callers: Vec<String> = policy
        .callers_of(&id("shop/api"))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(callers, ["shop/api", "shop/web"]);
    assert_eq!(id("shop/web").network_name(), "cofferdam-shop-web");
}

#[test]
fn containers_belong_to_services_of_one_segment() {
    let policy = valid(&[SHOP, OPS]);
    let of = |name: &str, image: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        let labels = labels.collect();
        policy.services_of(Subject {
            name,
            image,
            labels: &labels,
        })
    };
    let set = |names: &[&str]| names.iter().map(|name| id(name)).collect::<BTreeSet<_>>();
    assert_eq!(of("x", "y", &[]), Membership::Unmanaged);
    assert_eq!(of("api-1", "y", &[]), Membership::Member(set(&["shop/api"])));
    assert_eq!(
        of("x", "y", &[("app", "api"), ("metrics", "true")]),
        Membership::Member(set(&["shop/api", "shop/scraped"]))
    );
    assert_eq!(
        of("api-1", "prom/prometheus", &[]),
        Membership::Quarantined(set(&["shop/api", "ops/prometheus"]))
    );
}
