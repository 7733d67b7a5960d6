use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::net::Mac;

const CONTAINER: &str = "9db2638be180dfb0dc191ac8c3f067c83a3e934eb7ed8b1f5c095818e9e94f19";
const PLAIN: &str = "d9dd575ba83e235e234d1bfd8aa26b1aced1d776027df1f84b98528e19219f07";
const OURS: &str = "4752d8a94d23d6ec31b8b2e4a4a574a5f6ce385eb29fa4305fb0b8b63553a487";

fn names() -> NetworkNames {
    NetworkNames(BTreeMap::from([
        ("plain".to_owned(), vec![NetworkId(PLAIN.into())]),
        ("cofferdam-a-b".to_owned(), vec![NetworkId(OURS.into())]),
        ("bridge".to_owned(), vec![NetworkId("b".repeat(64))]),
        (
            "twice".to_owned(),
            vec![NetworkId("1".repeat(64)), NetworkId("2".repeat(64))],
        ),
    ]))
}

/// A container as the list of 20.10 has it, with these networks.
fn listed(state: &str, mode: &str, networks: Value) -> Container {
    let summary = json!({
        "Id": CONTAINER, "Names": ["/web/db", "/c1"], "Image": "postgres:16", "State": state,
        "Labels": {"app": "db"}, "HostConfig": {"NetworkMode": mode}, "NetworkSettings": {"Networks": networks},
    });
    listed_container(serde_json::from_value(summary).unwrap(), &names()).unwrap()
}

fn running(network: &str) -> Value {
    json!({
        "IPAMConfig": null, "NetworkID": network, "EndpointID": "0eab", "IPAddress": "172.18.0.2", "IPPrefixLen": 16,
        "GlobalIPv6Address": "fd00:9::44", "GlobalIPv6PrefixLen": 64, "MacAddress": "02:42:ac:12:00:02",
    })
}

fn waiting(network: &str, ipam: Value) -> Value {
    json!({
        "IPAMConfig": ipam, "NetworkID": network, "EndpointID": "", "IPAddress": "", "IPPrefixLen": 0,
        "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "MacAddress": "",
    })
}

#[test]
fn a_running_container() {
    let container = listed("running", "plain", json!({ "plain": running(PLAIN) }));
    assert_eq!(container.name, "c1");
    assert_eq!(container.image, "postgres:16");
    assert_eq!(container.labels["app"], "db");
    assert_eq!(container.lifecycle, Lifecycle::Running);
    assert_eq!(container.network_mode, NetworkMode::Own);
    let endpoint = &container.endpoints[&NetworkId(PLAIN.into())];
    assert_eq!(endpoint.mac, Some(Mac([2, 0x42, 0xac, 0x12, 0, 2])));
    assert_eq!(endpoint.ipv4, Some([172, 18, 0, 2].into()));
    assert_eq!(endpoint.ipv6, Some("fd00:9::44".parse().unwrap()));
}

#[test]
fn a_created_container_names_its_networks_and_wishes_for_addresses() {
    let wish = json!({"IPv4Address": "10.213.1.9", "IPv6Address": "fd00:c0f::9"});
    let networks = json!({"plain": waiting("", Value::Null), "cofferdam-a-b": waiting("", wish)});
    let container = listed("created", "plain", networks);
    assert_eq!(container.lifecycle, Lifecycle::Stopped);
    assert_eq!(container.endpoints[&NetworkId(PLAIN.into())], Endpoint::default());
    let ours = &container.endpoints[&NetworkId(OURS.into())];
    assert!(!ours.is_live());
    assert_eq!(ours.ipv4, Some([10, 213, 1, 9].into()));
    assert_eq!(ours.ipv6, Some("fd00:c0f::9".parse().unwrap()));
}

#[test]
fn an_asked_for_mac_of_a_stopped_container_is_no_live_endpoint() {
    let mut stopped = waiting(PLAIN, Value::Null);
    stopped["MacAddress"] = json!("02:42:ac:12:00:77");
    let container = listed("exited", "plain", json!({ "plain": stopped }));
    assert_eq!(container.endpoints[&NetworkId(PLAIN.into())], Endpoint::default());
    assert_eq!(container.lifecycle, Lifecycle::Stopped);
}

#[rstest]
#[case::default_is_bridge("default", "", Some("b".repeat(64)))]
#[case::unknown_name("nowhere", "", None)]
#[case::ambiguous_name("twice", "", None)]
#[case::made_anew("plain", "old", Some("old".to_owned()))]
#[case::gone("nowhere", "old", Some("old".to_owned()))]
fn names_become_ids(#[case] name: &str, #[case] id: &str, #[case] expected: Option<String>) {
    let container = listed("created", name, json!({ name: waiting(id, Value::Null) }));
    let found = container.endpoints.into_keys().next();
    assert_eq!(found, expected.map(NetworkId));
}

#[rstest]
#[case("running", Lifecycle::Running)]
#[case("paused", Lifecycle::Running)]
#[case("restarting", Lifecycle::Running)]
#[case("created", Lifecycle::Stopped)]
#[case("exited", Lifecycle::Stopped)]
#[case("removing", Lifecycle::Stopped)]
#[case("dead", Lifecycle::Stopped)]
#[case("", Lifecycle::Stopped)]
fn states(#[case] state: &str, #[case] lifecycle: Lifecycle) {
    assert_eq!(listed(state, "plain", json!({})).lifecycle, lifecycle);
}

#[test]
fn network_modes() {
    let none = json!({"none": waiting("", Value::Null)});
    assert_eq!(listed("running", "none", none).network_mode, NetworkMode::None);
    let host = json!({"host": running("x")});
    let host = listed("running", "host", host);
    assert_eq!(host.network_mode, NetworkMode::Host);
    assert!(host.endpoints.is_empty());
    assert_eq!(
        listed("running", &format!("container:{CONTAINER}"), json!({})).network_mode,
        NetworkMode::Shared(ContainerId(CONTAINER.into()))
    );
    // Detached from `none` and attached elsewhere.
    let moved = listed("running", "none", json!({ "plain": running(PLAIN) }));
    assert_eq!(moved.network_mode, NetworkMode::Own);
}

#[test]
fn malformed_fields_narrow() {
    let odd = json!({
        "NetworkID": PLAIN, "EndpointID": "1", "IPAddress": "fd00::1", "GlobalIPv6Address": "10.0.0.1",
        "MacAddress": "02:42",
    });
    let container = listed("running", "plain", json!({ "plain": odd }));
    assert_eq!(container.endpoints[&NetworkId(PLAIN.into())], Endpoint::default());

    assert!(listed_container(api::ContainerSummary::default(), &names()).is_none());
    assert!(inspected_container(api::ContainerInspectResponse::default(), &names()).is_none());
    let bare = serde_json::from_value(json!({ "Id": CONTAINER })).unwrap();
    let bare = listed_container(bare, &names()).unwrap();
    assert_eq!((bare.name.as_str(), bare.image.as_str()), ("", ""));
    assert_eq!(bare.lifecycle, Lifecycle::Stopped);
}

#[test]
fn an_inspected_container_says_what_its_user_wrote() {
    let answer = |running: bool, restarting: bool| -> api::ContainerInspectResponse {
        serde_json::from_value(json!({
            "Id": CONTAINER, "Name": "/c1", "Image": "sha256:da38",
            "State": {"Status": "running", "Running": running, "Restarting": restarting},
            "Config": {"Image": "postgres:16", "Labels": null}, "HostConfig": {"NetworkMode": "plain"},
            "NetworkSettings": {"Networks": {"plain": waiting("", Value::Null)}},
        }))
        .unwrap()
    };
    assert!(needs_names(&answer(false, false)));
    let container = inspected_container(answer(false, true), &names()).unwrap();
    assert_eq!(container.image, "postgres:16");
    assert_eq!(container.name, "c1");
    assert_eq!(container.lifecycle, Lifecycle::Running);
    let container = inspected_container(answer(false, false), &names()).unwrap();
    assert_eq!(container.lifecycle, Lifecycle::Stopped);
}

#[test]
fn endpoints_of_a_network() {
    let containers = json!({
        CONTAINER: {"Name": "c1", "EndpointID": "18bd", "MacAddress": "02:42:0a:09:00:02",
            "IPv4Address": "10.9.0.2/24", "IPv6Address": "fd00:9::44/64"},
        "ep-0123": {"Name": "ghost", "EndpointID": "0123", "MacAddress": "02:42:0a:09:00:03",
            "IPv4Address": "10.9.0.3/24", "IPv6Address": ""},
    });
    let endpoints = network_endpoints(serde_json::from_value(containers).unwrap());
    let expected = Endpoint {
        mac: Some(Mac([2, 0x42, 10, 9, 0, 2])),
        ipv4: Some([10, 9, 0, 2].into()),
        ipv6: Some("fd00:9::44".parse().unwrap()),
    };
    assert_eq!(
        endpoints,
        BTreeMap::from([(ContainerId(CONTAINER.into()), expected)])
    );
    assert!(network_endpoints(None).is_empty());
}

fn bridge(driver: &str, options: Value) -> NetworkKind {
    let parts = NetworkParts {
        id: Some(PLAIN.into()),
        name: Some("plain".into()),
        driver: Some(driver.into()),
        internal: None,
        ipam: serde_json::from_value(
            json!({"Config": [{"Subnet": "172.18.0.0/16"}, {"Subnet": "nonsense"}, {"Subnet": ""}, {}]}),
        )
        .unwrap(),
        options: serde_json::from_value(options).unwrap(),
        labels: None,
    };
    let network = network(parts).unwrap();
    assert_eq!(network.subnets, ["172.18.0.0/16".parse().unwrap()]);
    assert!(!network.internal);
    network.kind
}

#[test]
fn interfaces_of_networks() {
    let named = |name: &str| NetworkKind::Bridge(name.parse().unwrap());
    assert_eq!(bridge("bridge", Value::Null), named("br-d9dd575ba83e"));
    assert_eq!(
        bridge("bridge", json!({ BRIDGE_NAME: "" })),
        named("br-d9dd575ba83e")
    );
    assert_eq!(
        bridge("bridge", json!({ BRIDGE_NAME: "docker0" })),
        named("docker0")
    );
    assert_eq!(
        bridge("bridge", json!({ BRIDGE_NAME: "much-too-long-for-a-bridge" })),
        NetworkKind::Other("bridge".into())
    );
    assert_eq!(bridge("macvlan", json!({})), NetworkKind::Other("macvlan".into()));
    assert_eq!(bridge("", json!({})), NetworkKind::Other(String::new()));
}
