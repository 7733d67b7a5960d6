use super::*;

fn request(ipv6: Option<&str>) -> NetworkRequest {
    NetworkRequest {
        name: "cofferdam-shop-db".into(),
        bridge: "cfd-0123abcd".parse().unwrap(),
        ipv4: "10.213.4.0/24".parse().unwrap(),
        ipv6: ipv6.map(|net| net.parse().unwrap()),
        labels: BTreeMap::new(),
    }
}

fn engine(api: (u32, u32)) -> EngineVersion {
    EngineVersion {
        version: "test".into(),
        api,
    }
}

fn options(body: NetworkCreateRequest) -> BTreeMap<String, String> {
    body.options.unwrap().into_iter().collect()
}

#[test]
fn the_bridge_gets_no_address_on_any_engine() {
    let old = create_body(&request(Some("fd00::/64")), &engine((1, 47)));
    assert_eq!(old.internal, Some(true));
    assert_eq!(old.labels.as_ref().unwrap()[MANAGED_LABEL], "true");
    assert_eq!(old.ipam.as_ref().unwrap().config.as_ref().unwrap().len(), 2);
    let old = options(old);
    assert_eq!(old["com.docker.network.bridge.inhibit_ipv4"], "true");
    assert_eq!(old[BRIDGE_NAME], "cfd-0123abcd");
    assert_eq!(old.len(), 2);

    let new = options(create_body(&request(Some("fd00::/64")), &engine((1, 48))));
    assert_eq!(new["com.docker.network.bridge.gateway_mode_ipv4"], "isolated");
    assert_eq!(new["com.docker.network.bridge.gateway_mode_ipv6"], "isolated");
    let new = create_body(&request(None), &engine((1, 52)));
    assert_eq!(new.enable_ipv6, Some(false));
    assert_eq!(options(new).len(), 2);
}

#[test]
fn who_asks_for_no_address_gets_none_of_ours() {
    let configs = |api| {
        let body = create_body(&request(Some("fd00::/64")), &engine(api));
        let configs = body.ipam.unwrap().config.unwrap();
        configs
            .into_iter()
            .map(|it| (it.ip_range.unwrap(), it.gateway))
            .collect::<Vec<_>>()
    };
    let ranges = ["10.213.4.224/27", "fd00::1:0:0/96"];
    let gateways = ["10.213.4.1", "fd00::1"].map(|it| Some(it.to_owned()));
    let old: Vec<_> = ranges.map(str::to_owned).into_iter().zip(gateways).collect();
    assert_eq!(configs((1, 47)), old, "the gateway is not the first of the range");
    let new: Vec<_> = ranges.map(|it| (it.to_owned(), None)).into();
    assert_eq!(configs((1, 48)), new, "an isolated bridge has no address");
}

#[test]
fn refusals_are_told_apart() {
    let answer = |status_code, message: &str| WireError::DockerResponseServerError {
        status_code,
        message: message.into(),
    };
    let meaning = |status, message| connect_refusal(&answer(status, message));
    use ConnectRefusal::*;
    assert_eq!(meaning(403, "Address already in use"), Some(AddressInUse));
    assert_eq!(
        meaning(
            403,
            "endpoint with name c1 already exists in network cofferdam-a-b"
        ),
        Some(Attached)
    );
    assert_eq!(meaning(404, "No such container: 0123"), Some(ContainerGone));
    assert_eq!(meaning(404, "network 0123 not found"), Some(NetworkGone));
    assert_eq!(
        meaning(
            400,
            "container sharing network namespace with another container or host cannot be connected to any other network"
        ),
        Some(NoStack)
    );
    assert_eq!(meaning(500, "out of veth pairs"), None);
    assert!(is_detached(&answer(
        500,
        "container 01 is not connected to the network x"
    )));
    assert!(!is_detached(&answer(500, "something else")));
}
