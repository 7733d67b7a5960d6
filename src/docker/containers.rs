//! The one thing that is ever done to a container itself: stop it.

use bollard::query_parameters::StopContainerOptionsBuilder;

use super::client::{Engine, refusal};
use super::networks::NetworkError;
use crate::inventory::ContainerId;

/// Seconds from the request to end to the kill.
const GRACE: i32 = 2;

impl Engine {
    /// Stops a container, which then stays so whatever its restart policy. One that does not run, or is gone, is fine.
    pub async fn stop_container(&self, container: &ContainerId) -> Result<(), NetworkError> {
        let options = StopContainerOptionsBuilder::default().t(GRACE).build();
        match self.docker.stop_container(&container.0, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if refusal(&error).is_some_and(|(status, _)| matches!(status, 304 | 404)) => Ok(()),
            Err(source) => Err(NetworkError::Other {
                attempted: format!("stop container {container}"),
                source,
            }),
        }
    }
}
