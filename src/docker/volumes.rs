//! Named volumes that are paths of the host: what is mounted from one is what a bind mount of that path would bring in.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::client::{Engine, EngineError};
use super::raw::understood;
use super::wire::Inspection;

/// Named volumes that are paths of the host (`type=none,o=bind`), with the path.
pub type BoundVolumes = BTreeMap<String, String>;

/// `GET /volumes`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Volumes {
    volumes: Option<Vec<Volume>>,
}

/// `GET /volumes/NAME`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Volume {
    name: String,
    options: Option<BTreeMap<String, String>>,
}

impl Volume {
    /// The host's path that it is.
    fn bound(self) -> Option<String> {
        let mut options = self.options?;
        let binds = options
            .get("o")
            .is_some_and(|it| it.split(',').any(|word| matches!(word, "bind" | "rbind")));
        options
            .remove("device")
            .filter(|device| binds && device.starts_with('/'))
    }
}

impl Engine {
    /// The named volumes that are paths of the host.
    pub async fn bound_volumes(&self) -> Result<BoundVolumes, EngineError> {
        let answer = self.get("/volumes").await;
        let answer = answer.map_err(EngineError::request("list the volumes"))?;
        let listed: Volumes = understood(answer, "list the volumes")?;
        let named = |volume: Volume| Some((volume.name.clone(), volume.bound()?));
        Ok(listed.volumes.into_iter().flatten().filter_map(named).collect())
    }

    /// Has the mounts of volumes that are paths of the host say that path.
    pub(super) async fn follow_volumes(&self, answer: &mut Inspection) -> Result<(), EngineError> {
        let mut bound = BoundVolumes::new();
        for name in answer.local_volumes() {
            let attempted = format!("read volume {name}");
            let volume = self.get(&format!("/volumes/{name}")).await;
            let volume = volume.map_err(EngineError::request(attempted.clone()))?;
            let volume: Volume = understood(volume, &attempted)?;
            if let Some(path) = volume.bound() {
                bound.insert(name.to_owned(), path);
            }
        }
        answer.follow(&bound);
        Ok(())
    }
}
