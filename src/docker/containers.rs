//! Single containers: the process that their network namespace belongs to, and the one thing that is ever done to a
//! container itself: stop it.

use bollard::query_parameters::StopContainerOptionsBuilder;

use super::client::{Engine, EngineError, refusal};
use super::networks::NetworkError;
use super::wire;
use crate::inventory::ContainerId;

/// Seconds from the request to end to the kill.
pub(crate) const STOP_GRACE: i32 = 2;

impl Engine {
    /// Stops a container, which then stays so whatever its restart policy. One that does not run, or is gone, is fine.
    pub async fn stop_container(&self, container: &ContainerId) -> Result<(), NetworkError> {
        let options = StopContainerOptionsBuilder::default().t(STOP_GRACE).build();
        match self.docker.stop_container(&container.0, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if refusal(&error).is_some_and(|(status, _)| matches!(status, 304 | 404)) => Ok(()),
            Err(source) => Err(NetworkError::Other {
                attempted: format!("stop container {container}"),
                source,
            }),
        }
    }

    /// The first process of a container, as this host numbers it; `None` where it does not run.
    pub async fn init_pid(&self, container: &ContainerId) -> Result<Option<u32>, EngineError> {
        if !wire::is_id(&container.0) {
            return Ok(None);
        }
        let answer = self.get(&format!("/containers/{}/json", container.0)).await;
        let answer = answer.map_err(EngineError::request(format!("inspect container {container}")))?;
        let pid = answer.as_ref().and_then(|it| it.pointer("/State/Pid")?.as_u64());
        Ok(pid
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid != 0))
    }
}
