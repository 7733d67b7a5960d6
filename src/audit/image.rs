//! Findings of images: a tag that may be another image tomorrow, a registry that nobody allowed.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::{Code, Report, shown};
use crate::inventory::{Container, Posture};

/// Registries, or parts of them, that images may come from: `registry.example`, `ghcr.io/team`, `docker.io/library`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries(pub BTreeSet<String>);

impl FromStr for Registries {
    type Err = String;

    /// Prefixes with commas between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut prefixes = BTreeSet::new();
        for prefix in text.split(',').map(str::trim) {
            let parts = prefix.split('/');
            let valid = (1..=255).contains(&prefix.len())
                && parts.clone().all(|part| {
                    !part.is_empty()
                        && part
                            .chars()
                            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':'))
                });
            let first = parts.into_iter().next().unwrap_or_default();
            if !valid || !is_registry(first) {
                return Err(format!(
                    "`{prefix}` is no registry: write it as in `registry.example:5000`, `ghcr.io/team` or `docker.io/library`, with \
                     commas between them"
                ));
            }
            prefixes.insert(prefix.to_ascii_lowercase());
        }
        Ok(Self(prefixes))
    }
}

impl Registries {
    /// By whole parts: `ghcr.io/team` does not allow `ghcr.io/team-b`.
    fn allow(&self, repository: &str) -> bool {
        self.0.iter().any(|prefix| {
            repository
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// What Docker takes for a registry's name and not for the first part of a repository's.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':'])
}

/// How an image was named.
#[derive(Debug, PartialEq, Eq)]
enum Reference {
    /// By its id, which says nothing of where it comes from.
    Id,
    Named {
        /// With the registry: `docker.io/library/nginx`.
        repository: String,
        is_pinned: bool,
    },
}

impl Reference {
    fn new(text: &str, id: &str) -> Self {
        let digits = id.strip_prefix("sha256:").unwrap_or(id);
        let short = text.strip_prefix("sha256:").unwrap_or(text);
        if short.len() >= 12 && digits.starts_with(short) {
            return Self::Id;
        }
        let (name, digest) = text
            .split_once('@')
            .map_or((text, None), |(name, digest)| (name, Some(digest)));
        // A colon behind the last slash begins the tag; one before it a port.
        let tag = name.rfind(':').filter(|colon| !name[*colon..].contains('/'));
        let name = tag.map_or(name, |colon| &name[..colon]);
        let repository = match name.split_once('/') {
            Some((first, _)) if is_registry(first) => name.to_owned(),
            Some(_) => format!("docker.io/{name}"),
            None => format!("docker.io/library/{name}"),
        };
        let repository = match repository.strip_prefix("index.docker.io/") {
            Some(rest) => format!("docker.io/{rest}"),
            None => repository,
        };
        Self::Named {
            repository: repository.to_ascii_lowercase(),
            is_pinned: digest.is_some_and(|it| it.starts_with("sha256:") && it.len() == 71),
        }
    }
}

pub(super) fn findings(
    container: &Container,
    posture: &Posture,
    registries: Option<&Registries>,
    report: &mut Report,
) {
    let image = shown(&container.image);
    let reference = Reference::new(&container.image, &posture.image);
    if let Reference::Named { is_pinned: false, .. } = reference {
        report.add(
            Code::MutableTag,
            Some(&image),
            format!("comes from the image {image}, whose tag may be another image tomorrow"),
            "name the image with its digest: `name@sha256:…`",
        );
    }
    let Some(registries) = registries else { return };
    let why = match &reference {
        Reference::Named { repository, .. } if registries.allow(repository) => return,
        Reference::Named { repository, .. } => format!("{} is no allowed registry's", shown(repository)),
        Reference::Id => "an id does not tell the registry".to_owned(),
    };
    report.add(
        Code::Registry,
        Some(&image),
        format!("comes from the image {image}: {why}"),
        "take the image from an allowed registry, or add its registry to `allowed-registries`",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let id = format!("sha256:{}", "a1".repeat(32));
        let digest = format!("sha256:{}", "b2".repeat(32));
        let named = |repository: &str, is_pinned| Reference::Named {
            repository: repository.into(),
            is_pinned,
        };
        for (text, expected) in [
            ("nginx", named("docker.io/library/nginx", false)),
            ("nginx:1.27", named("docker.io/library/nginx", false)),
            ("team/app", named("docker.io/team/app", false)),
            ("index.docker.io/team/app", named("docker.io/team/app", false)),
            ("localhost/app", named("localhost/app", false)),
            ("registry:5000/app", named("registry:5000/app", false)),
            ("ghcr.io/team/app:v1", named("ghcr.io/team/app", false)),
            ("a1a1a1a1a1a1", Reference::Id),
            ("a1a1", named("docker.io/library/a1a1", false)),
            (id.as_str(), Reference::Id),
            ("app@sha256:short", named("docker.io/library/app", false)),
        ] {
            assert_eq!(Reference::new(text, &id), expected, "{text}");
        }
        for text in ["app", "app:v1"] {
            let pinned = Reference::new(&format!("{text}@{digest}"), &id);
            assert_eq!(pinned, named("docker.io/library/app", true), "{text}");
        }
    }

    #[test]
    fn registries_are_allowed_by_whole_parts() {
        let allowed: Registries = "ghcr.io/team, registry.example:5000".parse().unwrap();
        for yes in ["ghcr.io/team/app", "registry.example:5000/a/b"] {
            assert!(allowed.allow(yes), "{yes}");
        }
        for no in [
            "ghcr.io/team-b/app",
            "ghcr.io/teamster",
            "registry.example:50001/app",
            "registry.example/app",
            "docker.io/ghcr.io/team/app",
        ] {
            assert!(!allowed.allow(no), "{no}");
        }
        for wrong in ["", "team", "ghcr.io//team", "*", "ghcr.io/,", "a b.c"] {
            assert!(wrong.parse::<Registries>().is_err(), "{wrong}");
        }
    }
}
