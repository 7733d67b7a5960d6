use std::net::IpAddr;

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::parse::LONGEST_NAME;
use super::*;
use crate::inventory::{Capability, NetworkKind, Power};
use crate::net::{Mac, Transport};

const CONTAINER: &str = "9db2638be180dfb0dc191ac8c3f067c83a3e934eb7ed8b1f5c095818e9e94f19";
const PLAIN: &str = "d9dd575ba83e235e234d1bfd8aa26b1aced1d776027df1f84b98528e19219f07";
const OURS: &str = "4752d8a94d23d6ec31b8b2e4a4a574a5f6ce385eb29fa4305fb0b8b63553a487";

fn names() -> NetworkNames {
    let named = BTreeMap::from([
        ("plain".to_owned(), vec![NetworkId(PLAIN.into())]),
        ("cofferdam-a-b".to_owned(), vec![NetworkId(OURS.into())]),
        ("bridge".to_owned(), vec![NetworkId("b".repeat(64).into())]),
        (
            "twice".to_owned(),
            vec![NetworkId("1".repeat(64).into()), NetworkId("2".repeat(64).into())],
        ),
    ]);
    NetworkNames {
        ids: BTreeSet::new(),
        named,
    }
}

/// A container as the list of 20.10 has it, with these networks.
fn listed(state: &str, mode: &str, networks: Value) -> Container {
    let summary = json!({
        "Id": CONTAINER, "Names": ["/web/db", "/c1"], "Image": "postgres:16", "State": state,
        "Labels": {"app": "db"}, "HostConfig": {"NetworkMode": mode}, "NetworkSettings": {"Networks": networks},
    });
    listed_container(
        serde_json::from_value(summary).unwrap(),
        &names(),
        Facts::default(),
    )
    .unwrap()
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
    assert_eq!(&*container.image, "postgres:16");
    assert_eq!(container.labels.get("app").map(|it| &**it), Some("db"));
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
    let found = container.endpoints.keys().next().cloned();
    assert_eq!(found, expected.map(|id| NetworkId(id.into())));
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

    assert!(listed_container(Summary::default(), &names(), Facts::default()).is_none());
    assert!(inspected_container(Inspection::default(), &names(), &[]).is_none());
    let bare = serde_json::from_value(json!({ "Id": CONTAINER })).unwrap();
    let bare = listed_container(bare, &names(), Facts::default()).unwrap();
    assert_eq!((bare.name.as_str(), &*bare.image), ("", ""));
    assert_eq!(bare.lifecycle, Lifecycle::Stopped);
}

#[test]
fn an_inspected_container_says_what_its_user_wrote() {
    let answer = |running: bool, restarting: bool| -> Inspection {
        serde_json::from_value(json!({
            "Id": CONTAINER, "Name": "/c1", "Image": "sha256:da38",
            "State": {"Status": "running", "Running": running, "Restarting": restarting},
            "Config": {"Image": "postgres:16", "Labels": null}, "HostConfig": {"NetworkMode": "plain"},
            "NetworkSettings": {"Networks": {"plain": waiting("", Value::Null)}},
        }))
        .unwrap()
    };
    assert!(answer(false, false).needs_names());
    let container = inspected_container(answer(false, true), &names(), &[]).unwrap();
    assert_eq!(&*container.image, "postgres:16");
    assert_eq!(container.name, "c1");
    assert_eq!(container.lifecycle, Lifecycle::Running);
    let container = inspected_container(answer(false, false), &names(), &[]).unwrap();
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
    let answer = json!({"Id": PLAIN, "Containers": containers});
    let endpoints = network(serde_json::from_value(answer).unwrap())
        .unwrap()
        .endpoints;
    let expected = Endpoint {
        mac: Some(Mac([2, 0x42, 10, 9, 0, 2])),
        ipv4: Some([10, 9, 0, 2].into()),
        ipv6: Some("fd00:9::44".parse().unwrap()),
    };
    assert_eq!(
        endpoints,
        BTreeMap::from([(ContainerId(CONTAINER.into()), expected)])
    );
}

fn bridge(driver: &str, options: Value) -> NetworkKind {
    let answer = json!({
        "Id": PLAIN, "Name": "plain", "Driver": driver, "Options": options,
        "IPAM": {"Config": [{"Subnet": "172.18.0.0/16"}, {"Subnet": "nonsense"}, {"Subnet": ""}, {}, {"Subnet": 5}]},
    });
    let network = network(serde_json::from_value(answer).unwrap()).unwrap().network;
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

/// The list as `GET /containers/json` answers it.
fn list(items: Value) -> Vec<Container> {
    let text = items.to_string();
    let containers = objects::<Summary>(&text)
        .unwrap()
        .filter_map(|summary| listed_container(summary, &names(), Facts::default()));
    containers.collect()
}

#[test]
fn one_container_from_the_future_does_not_hide_the_others() {
    let plain = |id: &str, state: Value, labels: Value| {
        json!({
            "Id": id, "Names": ["/c"], "Image": "i", "State": state, "Labels": labels,
            "HostConfig": {"NetworkMode": "plain"}, "NetworkSettings": {"Networks": {"plain": waiting("", Value::Null)}},
        })
    };
    let listed = list(json!([
        plain("a1", json!("running"), json!({})),
        plain("a2", json!("hibernating"), json!({})),
        plain("a3", json!(-7), json!({})),
        plain("a4", json!("running"), json!({"app": 5})),
        "not an object", 17, null, [],
        {"Id": 5}, {"Id": ""}, {"Id": "../../images"}, {"Id": "x".repeat(10_000_000)},
        {"Id": "a5", "Names": ["/".to_owned() + &"n".repeat(10_000_000)], "Image": {"a": 1}},
        {"Id": "a6", "Names": "c", "HostConfig": {"NetworkMode": ["host"]}, "NetworkSettings": {"Networks": 5}},
    ]));
    let seen: Vec<_> = listed
        .iter()
        .map(|it| (&*it.id.0, it.lifecycle, it.facts.unreadable, it.endpoints.len()))
        .collect();
    assert_eq!(
        seen,
        [
            ("a1", Lifecycle::Running, false, 1),
            ("a2", Lifecycle::Stopped, false, 1),
            ("a3", Lifecycle::Stopped, false, 1),
            ("a4", Lifecycle::Running, true, 1),
            ("a5", Lifecycle::Stopped, true, 0),
            ("a6", Lifecycle::Stopped, true, 0),
        ]
    );
    assert!(listed.iter().all(|it| it.name.len() <= LONGEST_NAME));
    assert!(objects::<Summary>("null").unwrap().next().is_none());
    for no_list in [r#"{"message": "no"}"#, r#""[]""#, "", "[{}", "[{}] {}"] {
        assert!(
            objects::<Summary>(no_list).is_err(),
            "everything gone is not what it says"
        );
    }
}

#[test]
fn half_an_attachment_has_no_rights() {
    for (field, value) in [
        ("NetworkID", json!(5)),
        ("EndpointID", json!({})),
        ("MacAddress", json!(-1)),
        ("MacAddress", json!("02:42:ac:12:00:02:07:08")),
    ] {
        let mut odd = running(PLAIN);
        odd[field] = value;
        let container = listed("created", "plain", json!({ "plain": odd }));
        assert!(container.endpoints.values().all(|it| !it.is_live()), "{field}");
    }
    assert!(
        listed("running", "plain", json!({"plain": 5, "cofferdam-a-b": []}))
            .endpoints
            .is_empty()
    );
    // What the engine writes for a network without settings of its own.
    assert_eq!(
        listed("created", "plain", json!({ "plain": null }))
            .endpoints
            .len(),
        1
    );
}

fn inspected(host_config: Value, mounts: Value) -> Option<BTreeSet<Power>> {
    let answer = json!({"Id": CONTAINER, "Name": "/c", "HostConfig": host_config, "Mounts": mounts});
    let sockets = ["/run/docker.sock", "/srv/engine/docker.sock"].map(PathBuf::from);
    let answer = serde_json::from_value(answer).unwrap();
    inspected_container(answer, &names(), &sockets)
        .unwrap()
        .facts
        .powers
}

#[rstest]
#[case(json!({}), json!([]), &[])]
#[case(json!({"Privileged": true}), json!(null), &[Power::Privileged])]
#[case(json!({"CapAdd": ["CAP_NET_ADMIN"], "PidMode": ""}), json!([]), &[Power::Capability(Capability::NetAdmin)])]
#[case(json!({"CapAdd": ["NET_RAW"], "PidMode": "container:x"}), json!([]), &[])]
#[case(json!({"PidMode": "host"}), json!([]), &[Power::HostProcesses])]
fn powers_of_an_inspected_container(#[case] config: Value, #[case] mounts: Value, #[case] powers: &[Power]) {
    assert_eq!(inspected(config, mounts), Some(powers.iter().cloned().collect()));
}

#[rstest]
#[case("/var/run/docker.sock", true)]
#[case("/run/docker.sock", true)]
#[case("/var/run", true)]
#[case("/run/", true)]
#[case("/", true)]
#[case("/srv/engine", true)]
#[case("/srv/./engine/../engine/docker.sock", true)]
#[case("/srv/engine2", false)]
#[case("/run/docker", false)]
#[case("/var/lib", false)]
#[case("", false)]
fn mounts_of_the_engines_socket(#[case] source: &str, #[case] found: bool) {
    let powers = inspected(
        json!({}),
        json!([{"Type": "bind", "Source": source, "Destination": "/x", "RW": false}]),
    );
    assert_eq!(powers.unwrap().len(), usize::from(found));
    let volume = inspected(json!({}), json!([{"Type": "volume", "Source": source}]));
    assert_eq!(volume, Some(BTreeSet::new()));
}

#[test]
fn powers_that_cannot_be_read_are_not_known() {
    for config in [
        json!(null),
        json!({"Privileged": "yes"}),
        json!({"CapAdd": "ALL"}),
        json!({"CapDrop": [1]}),
        json!({"PidMode": 5}),
    ] {
        assert_eq!(inspected(config.clone(), json!([])), None, "{config}");
    }
    assert_eq!(inspected(json!({}), json!("none")), None);
    assert_eq!(
        inspected(json!({}), json!([{"Type": "bind", "Source": "/srv"}, 5])),
        None
    );
}

/// JSON of any shape, often with the names that the engine uses.
fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just("running".to_owned()),
        Just(PLAIN.to_owned()),
        Just("container:".to_owned()),
        Just("10.0.0.1/99".to_owned()),
        "\\PC{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "Id",
        "Names",
        "Name",
        "Image",
        "Labels",
        "State",
        "HostConfig",
        "NetworkMode",
        "NetworkSettings",
        "Networks",
        "plain",
        "NetworkID",
        "EndpointID",
        "IPAMConfig",
        "IPAddress",
        "MacAddress",
        "Config",
        "Mounts",
        "Source",
        "Type",
        "CapAdd",
        "Privileged",
        "PidMode",
        "Driver",
        "IPAM",
        "Options",
        "Subnet",
        "Containers",
        "Running",
    ]);
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A well-formed answer, and a place in it where something else stands.
fn spoilt(mut answer: Value, path: &[prop::sample::Index], with: Value) -> Value {
    let mut here = &mut answer;
    for step in path {
        let inside = match here {
            Value::Object(map) => map.len(),
            Value::Array(items) => items.len(),
            _ => 0,
        };
        if inside == 0 {
            break;
        }
        here = match here {
            Value::Object(map) => map.iter_mut().nth(step.index(inside)).unwrap().1,
            other => &mut other[step.index(inside)],
        };
    }
    *here = with;
    answer
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_panics(answer in any_json()) {
        let _ = list(json!([answer.clone()]));
        let text = answer.to_string();
        let networks = objects::<NetworkAnswer>(&text).into_iter().flatten();
        let _ = networks.filter_map(network).count();
        let _ = object::<NetworkAnswer>(answer.clone()).and_then(network);
        let _ = object::<Inspection>(answer).and_then(|it| inspected_container(it, &names(), &[]));
    }

    #[test]
    fn a_spoilt_answer_never_has_more_rights(
        path in prop::collection::vec(any::<prop::sample::Index>(), 1..5),
        with in any_json(),
    ) {
        let sound = json!({
            "Id": CONTAINER, "Names": ["/c1"], "Image": "postgres:16", "State": "running", "Labels": {"app": "db"},
            "HostConfig": {"NetworkMode": "plain"}, "NetworkSettings": {"Networks": {"plain": running(PLAIN)}},
        });
        let before = list(json!([sound.clone()])).remove(0);
        let answer = spoilt(sound, &path, with.clone());
        for after in list(json!([answer.clone()])) {
            let same = |a: &Container| (a.name.clone(), a.image.clone(), a.labels.clone());
            // It says that it is something else, it says nothing of itself, or it is denied everything.
            let odd_type = ["Names", "Image", "Labels", "HostConfig"].iter().any(|field| {
                let value = &answer[field];
                match *field {
                    "Names" => !value.is_array() && !value.is_null(),
                    "Image" => !value.is_string() && !value.is_null(),
                    _ => !value.is_object() && !value.is_null(),
                }
            });
            prop_assert!(!odd_type || after.facts.unreadable, "{answer}");
            if same(&after) == same(&before) && after.id == before.id {
                // An endpoint on a network that there is not has no rights: what counts is that no address is new.
                let was: Vec<_> = before.endpoints.values().flat_map(Endpoint::addresses).collect();
                for endpoint in after.endpoints.values() {
                    let kept = endpoint.addresses().all(|it| was.contains(&it));
                    prop_assert!(kept || answer.to_string().contains("10.0.0.1"), "{answer}");
                }
            }
        }
    }
}

#[test]
fn a_published_port_has_the_hosts_addresses_that_it_is_bound_to() {
    let (any4, any6) = (IpAddr::from([0, 0, 0, 0]), IpAddr::from([0_u16; 8]));
    let one = IpAddr::from([192, 0, 2, 1]);
    let published = |address| Published {
        address,
        transport: Transport::Tcp,
        host_port: 8443,
        container_port: 443,
    };
    for (text, addresses) in [
        (json!("0.0.0.0"), vec![any4]),
        (json!("::"), vec![any6]),
        (json!("192.0.2.1"), vec![one]),
        // What cannot be read may be any.
        (json!(""), vec![any4, any6]),
        (json!(null), vec![any4, any6]),
        (json!(7), vec![any4, any6]),
    ] {
        let expected: BTreeSet<Published> = addresses.into_iter().map(published).collect();
        let listed = json!([{"IP": text, "PrivatePort": 443, "PublicPort": 8443, "Type": "tcp"}, {"PrivatePort": 80, "Type": "tcp"}]);
        assert_eq!(
            listed_ports(serde_json::from_value(listed).unwrap()),
            expected,
            "{text}"
        );
        let inspected = json!({"443/tcp": [{"HostIp": text, "HostPort": "8443"}], "80/tcp": null});
        assert_eq!(
            inspected_ports(serde_json::from_value(inspected).unwrap()),
            expected,
            "{text}"
        );
    }
}
