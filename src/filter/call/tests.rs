use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn parse(method: Method, target: &str, body: &str) -> Result<Call, Refusal> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    Call::parse(&method, path, query, body.as_bytes())
}

fn create() -> Value {
    json!({
        "Name": "cofferdam-shop-db",
        "Driver": "bridge",
        "Internal": true,
        "EnableIPv6": true,
        "IPAM": { "Config": [
            { "Subnet": "10.213.0.0/24", "IPRange": "10.213.0.224/27", "Gateway": "10.213.0.1" },
            { "Subnet": "fd63:6f66:6665::/64", "IPRange": "fd63:6f66:6665::1:0:0/96", "Gateway": "fd63:6f66:6665::1" },
        ] },
        "Options": {
            "com.docker.network.bridge.name": bridge_of("shop", "db"),
            "com.docker.network.bridge.inhibit_ipv4": "true",
        },
        "Labels": { "io.cofferdam.managed": "true", "io.cofferdam.service": "shop/db" },
    })
}

fn bridge_of(segment: &str, name: &str) -> String {
    let service = crate::policy::ScopedName {
        segment: segment.parse().unwrap(),
        name: name.parse().unwrap(),
    };
    crate::model::bridge_name(&service).unwrap().to_string()
}

fn connect() -> Value {
    json!({
        "Container": ID,
        "EndpointConfig": { "IPAMConfig": { "IPv4Address": "10.213.0.2" }, "Aliases": ["db", "db.shop"] },
    })
}

/// What is at this place of the value is another one; `null` takes it away.
fn changed(mut value: Value, pointer: &str, to: Value) -> String {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = value.pointer_mut(parent).unwrap();
    match parent.as_object_mut() {
        Some(object) if to.is_null() => drop(object.remove(key)),
        Some(object) => drop(object.insert(key.to_owned(), to)),
        None => parent[key.parse::<usize>().unwrap()] = to,
    }
    value.to_string()
}

#[test]
fn a_call_is_made_anew_from_what_was_understood() {
    let events = "/v1.41/events?since=1700000000.000000001&filters=%7B%22type%22%3A%5B%22network%22%5D%2C%22event%22%3A%5B%22create%22%5D%7D";
    for (target, made) in [
        ("/_ping", "/_ping"),
        ("/v1.41/_ping", "/v1.41/_ping"),
        ("/version?", "/version"),
        ("/v1.48/info", "/v1.48/info"),
        ("/v1.44/volumes", "/v1.44/volumes"),
        ("/v1.44/volumes/shop_data.1", "/v1.44/volumes/shop_data.1"),
        ("/v1.53/networks", "/v1.53/networks"),
        ("/v1.41/networks/bridge", "/v1.41/networks/bridge"),
        ("/v1.41/containers/json?all=1", "/v1.41/containers/json?all=1"),
        ("/v1.41/containers/json?%61ll=%31", "/v1.41/containers/json?all=1"),
    ] {
        assert_eq!(parse(Method::GET, target, "").unwrap().target(), made, "{target}");
    }
    let call = parse(Method::GET, events, "").unwrap();
    assert!(
        call.target().contains("since=1700000000.000000001"),
        "{}",
        call.target()
    );
    assert_eq!(parse(Method::GET, &call.target(), ""), Ok(call));
    let one = format!("/v1.41/containers/json?all=1&filters=%7B%22id%22%3A%5B%22{ID}%22%5D%7D");
    assert_eq!(parse(Method::GET, &one, "").unwrap().target(), one);
    let stop = format!("/containers/{ID}/stop?t={STOP_GRACE}");
    let call = parse(Method::POST, &stop, "").unwrap();
    assert!(call.stops() && call.target() == stop);
    for (method, target, body) in [
        (Method::DELETE, format!("/v1.41/networks/{ID}"), String::new()),
        (
            Method::POST,
            "/v1.41/networks/create".to_owned(),
            create().to_string(),
        ),
        (
            Method::POST,
            format!("/v1.41/networks/{ID}/connect"),
            connect().to_string(),
        ),
        (
            Method::POST,
            "/v1.41/networks/cofferdam-shop-db/disconnect".to_owned(),
            json!({ "Container": "gone", "Force": true }).to_string(),
        ),
    ] {
        let call = parse(method.clone(), &target, &body).unwrap();
        assert_eq!((call.method(), call.target()), (method, target));
        let sent: Value = serde_json::from_str(&call.body().unwrap_or("\"\"".to_owned())).unwrap();
        let came: Value = serde_json::from_str(if body.is_empty() { "\"\"" } else { &body }).unwrap();
        assert_eq!(sent, came);
    }
}

#[test]
fn every_change_names_the_network_that_must_be_ours() {
    let changes = |method, target: &str, body: &str| {
        let call = parse(method, target, body).unwrap();
        call.changes().map(|named| match named {
            Named::Id(id) => id.len(),
            Named::Name(name) => name.len(),
        })
    };
    let disconnect = json!({ "Container": ID, "Force": true }).to_string();
    let network = format!("/networks/{ID}");
    assert_eq!(changes(Method::DELETE, &network, ""), Some(64));
    assert_eq!(
        changes(
            Method::POST,
            &format!("{network}/connect"),
            &connect().to_string()
        ),
        Some(64)
    );
    assert_eq!(
        changes(Method::POST, &format!("{network}/disconnect"), &disconnect),
        Some(64)
    );
    assert_eq!(
        changes(Method::POST, "/networks/cofferdam-a-b/disconnect", &disconnect),
        Some(13)
    );
    assert_eq!(changes(Method::GET, &network, ""), None);
}

#[test]
fn another_way_to_write_a_path_is_another_call() {
    for target in [
        "//_ping",
        "/_ping/",
        "/./_ping",
        "/x/../_ping",
        "/_PING",
        "/%5fping",
        "/v1.41//_ping",
        "/V1.41/_ping",
        "/v1.041/_ping",
        "/v1.41/v1.41/_ping",
        "/v01.41/_ping",
        "/v1.40/_ping",
        "/v1.99/_ping",
        "/v1/_ping",
        "/v/_ping",
        "/v1.41",
        "/v1.41/",
        "/",
        "*",
        "",
        "_ping",
        "/containers%2fjson?all=1",
        "/containers/json/?all=1",
        "/containers/0123/json",
        "/containers/../json",
        "/networks/cofferdam-shop-db",
        "/networks/host",
        "/networks/bridge/",
        "/volumes/",
        "/volumes/..",
        "/volumes/a%2fb",
    ] {
        assert_eq!(parse(Method::GET, target, ""), Err(Refusal::Unknown), "{target}");
    }
    for target in [
        "/networks/host/disconnect",
        "/networks/cofferdam-/disconnect",
        "/networks/cofferdam-a../disconnect",
    ] {
        assert_eq!(
            parse(Method::POST, target, "{}"),
            Err(Refusal::Unknown),
            "{target}"
        );
    }
}

#[test]
fn another_query_is_another_call() {
    for target in [
        "/_ping?x=1",
        "/containers/json",
        "/containers/json?all=0",
        "/containers/json?all=1&all=1",
        "/containers/json?all=1&size=1",
        "/containers/json?all=1&filters={}",
        "/containers/json?all=1&filters={\"id\":[\"0123\"]}",
        "/containers/json?all=1&filters={\"label\":[\"a\"]}",
        "/events",
        "/events?since=1.0",
        "/events?since=1.0&filters={\"type\":[\"container\"]}",
        "/events?since=1.0&filters={\"type\":[\"container\"],\"event\":[\"exec_create\"]}",
        "/events?since=1.0&filters={\"type\":[\"image\"],\"event\":[\"create\"]}",
        "/events?since=1.0&filters={\"type\":[],\"event\":[\"create\"]}",
        "/events?since=now&filters={\"type\":[\"container\"],\"event\":[\"create\"]}",
        "/events?since=1.0&until=2.0&filters={\"type\":[\"container\"],\"event\":[\"create\"]}",
    ] {
        assert_eq!(parse(Method::GET, target, ""), Err(Refusal::Query), "{target}");
    }
    for query in ["", "?t=0", "?t=3000", "?t=2&signal=KILL"] {
        let target = format!("/containers/{ID}/stop{query}");
        assert_eq!(parse(Method::POST, &target, ""), Err(Refusal::Query), "{target}");
    }
}

#[test]
fn a_network_is_made_as_the_daemon_makes_it_or_not_at_all() {
    let made = |body: &str| parse(Method::POST, "/v1.41/networks/create", body);
    assert!(made(&create().to_string()).is_ok());
    let options = "/Options/com.docker.network.bridge";
    let name = format!("{options}.name");
    for (pointer, to) in [
        ("/Name", json!("cofferdam-shop-web")),
        ("/Driver", json!("macvlan")),
        ("/Driver", Value::Null),
        ("/Internal", json!(false)),
        ("/Internal", Value::Null),
        ("/internal", json!(false)),
        ("/EnableIPv6", json!(false)),
        ("/Attachable", json!(true)),
        ("/Ingress", json!(false)),
        ("/ConfigFrom", json!({ "Network": "x" })),
        ("/ConfigOnly", json!(false)),
        ("/Scope", json!("swarm")),
        ("/CheckDuplicate", json!(true)),
        ("/IPAM/Driver", json!("evil")),
        ("/IPAM/Options", json!({})),
        ("/IPAM/Config", json!([])),
        ("/IPAM/Config/0/Gateway", json!("10.213.0.9")),
        ("/IPAM/Config/0/IPRange", json!("10.213.0.0/24")),
        ("/IPAM/Config/0/IPRange", Value::Null),
        ("/IPAM/Config/0/IPRange", json!("10.213.0.0/25")),
        ("/IPAM/Config/0/Subnet", json!("0.0.0.0/0")),
        ("/IPAM/Config/0/Subnet", json!("10.213.0.1/24")),
        ("/IPAM/Config/1/Subnet", json!("::/0")),
        ("/IPAM/Config/1", json!({ "Subnet": "10.213.1.0/24" })),
        (name.as_str(), json!("docker0")),
        ("/Options/parent", json!("eth0")),
        ("/Options/com.docker.network.bridge.enable_icc", json!("true")),
        ("/Options/com.docker.network.bridge.inhibit_ipv4", Value::Null),
        ("/Options/com.docker.network.bridge.inhibit_ipv4", json!("false")),
        (
            "/Options/com.docker.network.bridge.gateway_mode_ipv4",
            json!("nat"),
        ),
        ("/Labels/io.cofferdam.managed", json!("yes")),
        ("/Labels/io.cofferdam.service", json!("shop/web")),
        ("/Labels/io.cofferdam.service", json!("../db")),
        ("/Labels/com.docker.compose.project", json!("x")),
    ] {
        let body = changed(create(), pointer, to.clone());
        assert!(
            matches!(made(&body), Err(Refusal::Json(_) | Refusal::Body(_))),
            "{pointer} {to}: {:?}",
            made(&body)
        );
    }
    // An engine takes the last of two, and any spelling.
    let text = create().to_string();
    for twice in [
        text.replacen('{', "{\"Internal\":false,", 1),
        text.replacen('{', "{\"INTERNAL\":false,", 1),
        format!("{text}{text}"),
        format!("{text} x"),
        String::new(),
        "null".to_owned(),
    ] {
        assert!(matches!(made(&twice), Err(Refusal::Json(_))), "{twice}");
    }
    let isolated = changed(
        create(),
        "/Options/com.docker.network.bridge.inhibit_ipv4",
        Value::Null,
    );
    let isolated: Value = serde_json::from_str(&isolated).unwrap();
    let mode = |value: Value, family| {
        changed(
            value,
            &format!("{options}.gateway_mode_{family}"),
            json!("isolated"),
        )
    };
    let ipv4: Value = serde_json::from_str(&mode(isolated, "ipv4")).unwrap();
    assert!(made(&ipv4.to_string()).is_err(), "the other family is open");
    assert!(made(&mode(ipv4, "ipv6")).is_ok());
}

#[test]
fn a_container_is_attached_as_the_daemon_does_it_or_not_at_all() {
    let target = format!("/v1.41/networks/{ID}/connect");
    let attached = |body: &str| parse(Method::POST, &target, body);
    assert!(attached(&connect().to_string()).is_ok());
    let endpoint = "/EndpointConfig";
    for (pointer, to) in [
        ("/Container".to_owned(), json!("0123")),
        ("/Container".to_owned(), json!("web")),
        ("/EndpointConfig".to_owned(), Value::Null),
        (format!("{endpoint}/Links"), json!(["a:b"])),
        (format!("{endpoint}/MacAddress"), json!("02:00:00:00:00:01")),
        (format!("{endpoint}/DriverOpts"), json!({})),
        (format!("{endpoint}/GwPriority"), json!(100)),
        (format!("{endpoint}/Aliases"), Value::Null),
        (format!("{endpoint}/Aliases"), json!(vec!["a"; 9])),
        (format!("{endpoint}/IPAMConfig"), Value::Null),
        (format!("{endpoint}/IPAMConfig/LinkLocalIPs"), json!([])),
        (format!("{endpoint}/IPAMConfig/IPv4Address"), json!("x")),
    ] {
        let body = changed(connect(), &pointer, to.clone());
        assert!(
            matches!(attached(&body), Err(Refusal::Json(_) | Refusal::Body(_))),
            "{pointer} {to}"
        );
    }
    let target = format!("/v1.41/networks/{ID}/disconnect");
    for wrong in [
        json!({ "Container": ID, "Force": false }),
        json!({ "Container": "", "Force": true }),
        json!({ "Force": true }),
    ] {
        assert!(
            parse(Method::POST, &target, &wrong.to_string()).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn a_call_without_a_body_has_none() {
    assert_eq!(parse(Method::GET, "/_ping", "x"), Err(Refusal::Superfluous));
    let network = format!("/networks/{ID}");
    assert_eq!(parse(Method::DELETE, &network, "{}"), Err(Refusal::Superfluous));
    for method in [
        Method::HEAD,
        Method::PUT,
        Method::OPTIONS,
        Method::PATCH,
        Method::CONNECT,
        Method::TRACE,
    ] {
        assert_eq!(parse(method, "/_ping", ""), Err(Refusal::Unknown));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]

    /// What passes is what comes out again: nothing is understood that would be sent in another sense.
    #[test]
    fn what_passes_is_read_again_as_the_same(
        method in prop_oneof![Just(Method::GET), Just(Method::POST), Just(Method::DELETE), Just(Method::HEAD)],
        target in "(/v1\\.[0-9]{2})?/(_ping|version|info|volumes|networks|events|containers)(/(json|create|bridge|[0-9a-f]{64}))?(/(json|stop|connect|start))?(\\?(all|t|since)=[0-9.]{1,3})?",
    ) {
        if let Ok(call) = parse(method, &target, "") {
            let again = parse(call.method(), &call.target(), &call.body().unwrap_or_default());
            prop_assert_eq!(again, Ok(call));
        }
    }
}
