//! One test's own part of the engine.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::PathBuf;

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder,
    StartContainerOptions, StopContainerOptionsBuilder,
};
use cofferdam::docker::{Attachment, Engine, NetworkRequest};
use cofferdam::inventory::{ContainerId, SERVICE_LABEL};

/// One test's part of the engine: everything that it makes has its name in front.
#[derive(Clone)]
pub(crate) struct Lab {
    name: &'static str,
    /// The third byte of its subnets' first address.
    number: u8,
    pub(crate) socket: PathBuf,
    pub(crate) image: String,
    command: Vec<String>,
    pub(crate) docker: Docker,
    pub(crate) engine: Engine,
}

/// Runs a test in a lab of its own, and clears the lab before and after it whatever the outcome.
pub(crate) async fn lab<F: Future<Output = ()> + Send + 'static>(
    name: &'static str,
    number: u8,
    body: impl FnOnce(Lab) -> F,
) {
    let setting = |key: &str| {
        std::env::var(key)
            .unwrap_or_else(|_| panic!("{key} is not set: see the head of tests/docker/main.rs"))
    };
    let socket = PathBuf::from(setting("COFFERDAM_TEST_SOCKET"));
    let command = std::env::var("COFFERDAM_TEST_COMMAND").unwrap_or_else(|_| "sleep 600".to_owned());
    let docker =
        Docker::connect_with_unix(&socket.to_string_lossy(), 120, bollard::API_DEFAULT_VERSION).unwrap();
    let lab = Lab {
        name,
        number,
        image: setting("COFFERDAM_TEST_IMAGE"),
        command: command.split_whitespace().map(str::to_owned).collect(),
        docker: docker.negotiate_version().await.unwrap(),
        engine: Engine::connect(&socket).await.unwrap(),
        socket,
    };
    lab.clear().await;
    let outcome = tokio::spawn(body(lab.clone())).await;
    lab.clear().await;
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

impl Lab {
    async fn clear(&self) {
        let listing = self.engine.list().await.unwrap();
        let mine = |name: &str| name.starts_with(&format!("{}-", self.name));
        for container in listing
            .containers
            .iter()
            .filter(|container| mine(&container.name))
        {
            let force = RemoveContainerOptionsBuilder::default().force(true).build();
            self.docker
                .remove_container(&container.id.0, Some(force))
                .await
                .unwrap();
        }
        for network in listing.networks.iter().filter(|network| mine(&network.name)) {
            self.engine.remove_network(&network.id).await.unwrap();
        }
    }

    pub(crate) fn request(&self, service: &str, subnet: u8) -> NetworkRequest {
        NetworkRequest {
            name: format!("{}-{service}", self.name),
            bridge: format!("cft-{:02x}{subnet:02x}", self.number).parse().unwrap(),
            ipv4: format!("10.197.{}.0/28", self.number.wrapping_mul(8).wrapping_add(subnet))
                .parse()
                .unwrap(),
            ipv6: Some(
                format!("fd00:cf:{:x}:{subnet:x}::/64", self.number)
                    .parse()
                    .unwrap(),
            ),
            labels: BTreeMap::from([(SERVICE_LABEL.to_owned(), format!("shop/{service}"))]),
        }
    }

    /// The n-th address of a network of this lab's.
    pub(crate) fn attachment(&self, subnet: u8, n: u8) -> Attachment {
        let third = self.number.wrapping_mul(8).wrapping_add(subnet);
        Attachment {
            ipv4: [10, 197, third, n].into(),
            ipv6: Some(
                format!("fd00:cf:{:x}:{subnet:x}::{n:x}", self.number)
                    .parse()
                    .unwrap(),
            ),
            aliases: vec!["api".to_owned()],
        }
    }

    pub(crate) async fn create(&self, name: &str, mode: &str) -> ContainerId {
        self.create_from(name, mode, &self.image).await
    }

    pub(crate) async fn create_from(&self, name: &str, mode: &str, image: &str) -> ContainerId {
        let name = format!("{}-{name}", self.name);
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(self.command.clone()),
            labels: Some(HashMap::from([("app".to_owned(), "api".to_owned())])),
            host_config: Some(HostConfig {
                network_mode: Some(mode.to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        ContainerId(
            self.docker
                .create_container(Some(options), body)
                .await
                .unwrap()
                .id
                .into(),
        )
    }

    pub(crate) async fn start(&self, id: &ContainerId) {
        self.docker
            .start_container(&id.0, None::<StartContainerOptions>)
            .await
            .unwrap();
    }

    pub(crate) async fn stop(&self, id: &ContainerId) {
        let at_once = StopContainerOptionsBuilder::default().t(0).build();
        self.docker.stop_container(&id.0, Some(at_once)).await.unwrap();
    }

    pub(crate) async fn rename(&self, id: &ContainerId, name: &str) {
        let options = RenameContainerOptionsBuilder::default()
            .name(&format!("{}-{name}", self.name))
            .build();
        self.docker.rename_container(&id.0, options).await.unwrap();
    }
}
