//! The docker room against a real engine: the one at `COFFERDAM_TEST_SOCKET`, with containers of the image
//! `COFFERDAM_TEST_IMAGE` that run `COFFERDAM_TEST_COMMAND` (`sleep 600` without it).
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers fail the test"
)]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the pure rooms must not read the environment or hold what is not ordered"
)]

mod events;
mod lab;

use std::collections::BTreeMap;

use bollard::models::ContainerConfig;
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    RestartContainerOptionsBuilder, StartContainerOptions, TagImageOptionsBuilder,
};
use cofferdam::docker::{Attachment, NetworkError};
use cofferdam::inventory::{
    ContainerId, Endpoint, Inventory, Lifecycle, NetworkId, NetworkKind, NetworkMode,
};

use crate::lab::lab;

fn endpoint_of(attachment: &Attachment, found: &Endpoint) -> Endpoint {
    Endpoint {
        mac: found.mac,
        ipv4: Some(attachment.ipv4),
        ipv6: attachment.ipv6,
    }
}

#[tokio::test]
async fn listing_and_inspection_say_the_same() {
    lab("cft-list", 1, |lab| async move {
        let ours = lab.engine.create_network(&lab.request("api", 0)).await.unwrap();
        let plain = lab.engine.create_network(&lab.request("plain", 1)).await.unwrap();
        let plain_name = "cft-list-plain";

        let created = lab.create("created", plain_name).await;
        let wish = lab.attachment(0, 9);
        lab.engine
            .connect_container(&ours, &created, &wish)
            .await
            .unwrap();
        let running = lab.create("running", plain_name).await;
        lab.start(&running).await;
        let stopped = lab.create("stopped", plain_name).await;
        lab.engine
            .connect_container(&ours, &stopped, &lab.attachment(0, 10))
            .await
            .unwrap();
        lab.start(&stopped).await;
        lab.stop(&stopped).await;
        let bare = lab.create("bare", "none").await;
        let sharing = lab.create("sharing", &format!("container:{}", running.0)).await;
        let standard = lab.create("standard", "default").await;

        let mut inventory = Inventory::new();
        let listing = lab.engine.list().await.unwrap();
        inventory.reset(listing);
        for id in [&created, &running, &stopped, &bare, &sharing, &standard] {
            let inspected = lab.engine.container(id).await.unwrap();
            assert_eq!(inventory.container(id), inspected.as_ref());
            let container = inspected.unwrap();
            assert_eq!(*container.image, *lab.image);
            assert_eq!(container.labels.get("app").map(|it| &**it), Some("api"));
        }
        let read = |id: &ContainerId| inventory.container(id).unwrap();

        // Never started: the engine names the networks only, and the wish.
        assert_eq!(read(&created).lifecycle, Lifecycle::Stopped);
        assert_eq!(read(&created).endpoints[&plain], Endpoint::default());
        assert_eq!(
            read(&created).endpoints[&ours],
            endpoint_of(&wish, &Endpoint::default())
        );
        // Stopped: the wish stays.
        assert_eq!(read(&stopped).lifecycle, Lifecycle::Stopped);
        let wish = endpoint_of(&lab.attachment(0, 10), &Endpoint::default());
        assert_eq!(read(&stopped).endpoints[&ours], wish);
        let live = &read(&running).endpoints[&plain];
        assert!(
            live.is_live() && live.ipv4.is_some() && live.ipv6.is_some(),
            "{live:?}"
        );
        assert_eq!(read(&running).lifecycle, Lifecycle::Running);
        assert_eq!(read(&bare).network_mode, NetworkMode::None);
        assert_eq!(read(&sharing).network_mode, NetworkMode::Shared(running.clone()));
        let bridge = inventory
            .networks()
            .values()
            .find(|network| network.name == "bridge")
            .unwrap();
        assert_eq!(bridge.kind, NetworkKind::Bridge("docker0".parse().unwrap()));
        assert!(read(&standard).endpoints.contains_key(&bridge.id));

        let network = inventory.network(&ours).unwrap();
        assert_eq!(network.kind, NetworkKind::Bridge(lab.request("api", 0).bridge));
        assert_eq!(network.owner(), Some(("shop", "api")));
        assert_eq!(network.subnets.len(), 2);
        assert!(network.internal);
        let snapshot = lab.engine.network(&plain).await.unwrap().unwrap();
        assert_eq!(
            snapshot.endpoints,
            BTreeMap::from([(running.clone(), live.clone())])
        );

        let nobody = ContainerId("0".repeat(64).into());
        assert_eq!(lab.engine.container(&nobody).await.unwrap(), None);
        assert_eq!(
            lab.engine
                .network(&NetworkId("0".repeat(64).into()))
                .await
                .unwrap(),
            None
        );
    })
    .await;
}

#[tokio::test]
async fn an_image_keeps_the_name_that_the_user_wrote() {
    lab("cft-image", 2, |lab| async move {
        let tag = |repo: &str| TagImageOptionsBuilder::default().repo(repo).tag("1").build();
        lab.docker
            .tag_image(&lab.image, Some(tag("cft-image")))
            .await
            .unwrap();
        let old = lab.create_from("old", "none", "cft-image:1").await;
        // The tag moves on to another image.
        let commit = CommitContainerOptionsBuilder::default()
            .container(&old.0)
            .repo("cft-image")
            .tag("1")
            .comment("another")
            .build();
        lab.docker
            .commit_container(commit, ContainerConfig::default())
            .await
            .unwrap();
        let listing = lab.engine.list().await.unwrap();
        let listed = listing
            .containers
            .iter()
            .find(|container| container.id == old)
            .unwrap();
        let image = listed.image.clone();
        lab.docker
            .remove_image("cft-image:1", None::<RemoveImageOptions>, None)
            .await
            .unwrap();
        assert_eq!(&*image, "cft-image:1");
    })
    .await;
}

#[tokio::test]
async fn networks_and_attachments() {
    lab("cft-net", 3, |lab| async move {
        let engine = &lab.engine;
        let request = lab.request("api", 0);
        let network = engine.create_network(&request).await.unwrap();

        // The name, the bridge, the subnet: each is taken now.
        let again = engine.create_network(&lab.request("api", 1)).await;
        assert!(matches!(again, Err(NetworkError::NameTaken { .. })), "{again:?}");
        let same_name = engine.list().await.unwrap().networks;
        assert_eq!(
            same_name
                .iter()
                .filter(|other| other.name == request.name)
                .count(),
            1
        );
        let mut same_bridge = lab.request("other", 1);
        same_bridge.bridge = request.bridge.clone();
        let same_bridge = engine.create_network(&same_bridge).await;
        assert!(
            matches!(same_bridge, Err(NetworkError::NameTaken { .. })),
            "{same_bridge:?}"
        );
        let mut overlap = lab.request("other", 1);
        overlap.ipv4 = request.ipv4;
        let overlap = engine.create_network(&overlap).await;
        assert!(
            matches!(overlap, Err(NetworkError::PoolOverlaps { .. })),
            "{overlap:?}"
        );

        // Attached while created, and live from the start on.
        let plain = engine.create_network(&lab.request("plain", 1)).await.unwrap();
        let first = lab.create("first", "cft-net-plain").await;
        let wish = lab.attachment(0, 5);
        engine.connect_container(&network, &first, &wish).await.unwrap();
        lab.start(&first).await;
        let read = async |id: &ContainerId| {
            let container = engine.container(id).await.unwrap().unwrap();
            container.endpoints[&network].clone()
        };
        let live = read(&first).await;
        assert!(live.is_live());
        assert_eq!(live, endpoint_of(&wish, &live));

        // Attached while running.
        let second = lab.create("second", "cft-net-plain").await;
        lab.start(&second).await;
        let taken = engine.connect_container(&network, &second, &wish).await;
        assert!(
            matches!(taken, Err(NetworkError::AddressInUse { .. })),
            "{taken:?}"
        );
        let gateway = engine
            .connect_container(&network, &second, &lab.attachment(0, 1))
            .await;
        // From Engine 28 on our bridges have no address at all, and the first one is a container's as well.
        if engine.info().api < (1, 48) {
            assert!(
                matches!(gateway, Err(NetworkError::AddressInUse { .. })),
                "{gateway:?}"
            );
        } else {
            gateway.unwrap();
            engine.disconnect_container(&network, &second).await.unwrap();
        }
        let wish = lab.attachment(0, 6);
        engine.connect_container(&network, &second, &wish).await.unwrap();
        engine.connect_container(&network, &second, &wish).await.unwrap();
        let before = read(&second).await;
        assert_eq!(before, endpoint_of(&wish, &before));
        let restart = RestartContainerOptionsBuilder::default().t(0).build();
        lab.docker
            .restart_container(&second.0, Some(restart))
            .await
            .unwrap();
        // From Engine 28 on the MAC is another one at each start.
        let after = read(&second).await;
        assert!(after.is_live());
        assert_eq!(endpoint_of(&wish, &after), after);

        // What is not there.
        let nobody = ContainerId("0".repeat(64).into());
        let nowhere = NetworkId("0".repeat(64).into());
        let gone = engine.connect_container(&network, &nobody, &wish).await;
        assert!(
            matches!(gone, Err(NetworkError::ContainerGone { .. })),
            "{gone:?}"
        );
        let gone = engine.connect_container(&nowhere, &second, &wish).await;
        assert!(matches!(gone, Err(NetworkError::NetworkGone { .. })), "{gone:?}");
        for mode in ["host", "none", &format!("container:{}", first.0)] {
            let other = lab.create("stackless", mode).await;
            lab.start(&other).await;
            let refused = engine
                .connect_container(&network, &other, &lab.attachment(0, 7))
                .await;
            assert!(
                matches!(refused, Err(NetworkError::NoStack { .. })),
                "{mode}: {refused:?}"
            );
            let force = RemoveContainerOptionsBuilder::default().force(true).build();
            lab.docker.remove_container(&other.0, Some(force)).await.unwrap();
        }

        let in_use = engine.remove_network(&network).await;
        assert!(
            matches!(in_use, Err(NetworkError::HasEndpoints { .. })),
            "{in_use:?}"
        );
        for container in [&first, &second, &second, &nobody] {
            engine.disconnect_container(&network, container).await.unwrap();
        }
        engine.remove_network(&network).await.unwrap();
        engine.remove_network(&network).await.unwrap();
        engine.disconnect_container(&network, &second).await.unwrap();
        assert!(engine.network(&plain).await.unwrap().is_some());
    })
    .await;
}

/// Compose joins a network without asking for an address: it must not get one that a stopped container was promised, since that
/// could not start then.
#[tokio::test]
async fn the_engine_gives_nobody_an_address_that_was_promised() {
    lab("cft-share", 8, |lab| async move {
        let engine = &lab.engine;
        let network = engine.create_network(&lab.request("api", 0)).await.unwrap();
        engine.create_network(&lab.request("plain", 1)).await.unwrap();
        let promised = lab.create("promised", "cft-share-plain").await;
        let wish = lab.attachment(0, 2);
        engine
            .connect_container(&network, &promised, &wish)
            .await
            .unwrap();
        let mut others = Vec::new();
        for n in 0..2 {
            let other = lab.create(&format!("other-{n}"), "cft-share-api").await;
            lab.start(&other).await;
            let found = engine.container(&other).await.unwrap().unwrap();
            others.push(found.endpoints[&network].clone());
        }
        lab.start(&promised).await;
        let found = engine.container(&promised).await.unwrap().unwrap();
        assert_eq!(
            found.endpoints[&network],
            endpoint_of(&wish, &found.endpoints[&network])
        );
        for other in others {
            let (ipv4, ipv6) = (other.ipv4.unwrap(), other.ipv6.unwrap());
            assert!(ipv4.octets()[3] >= 12, "{ipv4} of a /28 is one of ours");
            assert_eq!(ipv6.segments()[5], 1, "{ipv6} is one of ours");
        }
    })
    .await;
}

#[tokio::test]
async fn a_network_that_is_gone_can_be_forgotten() {
    lab("cft-gone", 7, |lab| async move {
        let engine = &lab.engine;
        let network = engine.create_network(&lab.request("api", 0)).await.unwrap();
        let plain = engine.create_network(&lab.request("plain", 1)).await.unwrap();
        for starts in [0, 1] {
            let name = format!("started-{starts}");
            let container = lab.create(&name, "cft-gone-plain").await;
            let network = if starts == 0 {
                network.clone()
            } else {
                engine.create_network(&lab.request("api", 0)).await.unwrap()
            };
            engine
                .connect_container(&network, &container, &lab.attachment(0, 5))
                .await
                .unwrap();
            for _ in 0..starts {
                lab.start(&container).await;
                lab.stop(&container).await;
            }
            engine.remove_network(&network).await.unwrap();
            let start = lab
                .docker
                .start_container(&container.0, None::<StartContainerOptions>)
                .await;
            assert!(start.is_err(), "started {starts} times before");
            engine.forget_network("cft-gone-api", &container).await.unwrap();
            engine.forget_network("cft-gone-api", &container).await.unwrap();
            lab.start(&container).await;
            let read = engine.container(&container).await.unwrap().unwrap();
            assert_eq!(read.endpoints.keys().collect::<Vec<_>>(), [&plain]);
        }
    })
    .await;
}
