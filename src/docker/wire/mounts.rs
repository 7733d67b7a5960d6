//! What is mounted in an inspected container, with volumes followed to the paths of the host that they are.

use serde::Deserialize;

use super::{Inspection, is_volume_name};
use crate::docker::raw::Field;
use crate::docker::volumes::BoundVolumes;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Mount {
    pub(super) r#type: Field<String>,
    name: Field<String>,
    driver: Field<String>,
    pub(super) source: Field<String>,
}

impl Mount {
    /// The name of the volume, where it is one of the engine's own driver: another driver's is asked elsewhere, and may hang.
    fn local_volume(&self) -> Option<&str> {
        let is_volume = self.r#type.as_ref().is_some_and(|it| it == "volume");
        let is_local = self.driver.as_ref().is_none_or(|it| it == "local");
        let name = self.name.as_ref().filter(|name| is_volume_name(name));
        name.filter(|_| is_volume && is_local).map(String::as_str)
    }
}

impl Inspection {
    /// The mounted volumes of the engine's own driver.
    pub(in crate::docker) fn local_volumes(&self) -> impl Iterator<Item = &str> {
        let mounts = self.mounts.as_ref().into_iter().flatten();
        mounts.filter_map(|mount| mount.as_ref()?.local_volume())
    }

    /// Has the mounts of these volumes say the host's path that the volume is.
    pub(in crate::docker) fn follow(&mut self, bound: &BoundVolumes) {
        for mount in self.mounts.as_mut().into_iter().flatten() {
            let Some(mount) = mount.as_mut() else { continue };
            if let Some(path) = mount.local_volume().and_then(|name| bound.get(name)) {
                mount.source = Field::Is(path.clone());
                mount.r#type = Field::Is("bind".to_owned());
            }
        }
    }
}
