//! Image patterns, and image references as Docker reads them.
//!
//! A reference is compared in the forms that people write: `postgres:16`, `library/postgres:16` and
//! `docker.io/library/postgres:16` are the same image. Without a tag or digest it means `:latest`.

use super::pattern::Pattern;

const HUB: &str = "docker.io/";
const OFFICIAL: &str = "library/";

/// A pattern for image references.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ImagePattern(Pattern);

impl ImagePattern {
    /// Reads `postgres:*`, `ghcr.io/acme/*`, `redis` (that is `redis:latest`), `nginx@sha256:...`.
    ///
    /// # Errors
    /// What makes it impossible: characters that no reference can have.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        check(text)?;
        let text = text
            .strip_prefix("index.docker.io/")
            .map_or_else(|| text.to_owned(), |rest| format!("{HUB}{rest}"));
        let text = match text.strip_prefix(HUB) {
            Some(rest) if !rest.contains('/') && !repository(rest).contains('*') => {
                format!("{HUB}{OFFICIAL}{rest}")
            }
            _ => text,
        };
        // A pattern that ends with `*` covers the tags already.
        let text = if has_tag(&text) || text.ends_with('*') {
            text
        } else {
            format!("{text}:latest")
        };
        Pattern::new(&text).map(Self)
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(super) fn matches(&self, reference: &str) -> bool {
        spellings(reference)
            .iter()
            .any(|spelling| self.0.matches(spelling))
    }
}

/// The name before the tag or digest.
fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name.get(last..).and_then(|part| part.find(':')) {
        Some(colon) => name.get(..last + colon).unwrap_or(name),
        None => name,
    }
}

fn has_tag(reference: &str) -> bool {
    repository(reference).len() < reference.len()
}

/// Whether the first part of a reference names a registry (`reference.splitDockerDomain` in Docker).
fn is_registry(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.chars().any(|c| c.is_ascii_uppercase())
}

/// Every way to write the reference: as given, familiar and complete, each with and without the digest after a tag.
fn spellings(reference: &str) -> Vec<String> {
    let mut all = vec![reference.to_owned()];
    if reference.starts_with("sha256:") {
        return all;
    }
    let tagged = if has_tag(reference) {
        reference.to_owned()
    } else {
        format!("{reference}:latest")
    };
    let path = match tagged.split_once('/') {
        Some(("docker.io" | "index.docker.io", rest)) => Some(rest),
        Some((first, _)) if is_registry(first) => None,
        _ => Some(tagged.as_str()),
    };
    match path {
        None => all.push(tagged.clone()),
        Some(path) => {
            let familiar = path
                .strip_prefix(OFFICIAL)
                .filter(|rest| !rest.contains('/'))
                .unwrap_or(path);
            let official = if familiar.contains('/') {
                familiar.to_owned()
            } else {
                format!("{OFFICIAL}{familiar}")
            };
            all.push(format!("{HUB}{official}"));
            all.push(official);
            all.push(familiar.to_owned());
        }
    }
    let without_digest: Vec<String> = all
        .iter()
        .filter_map(|form| form.split_once('@'))
        .filter(|(name, _)| has_tag(name))
        .map(|(name, _)| name.to_owned())
        .collect();
    all.extend(without_digest);
    all
}

/// Refuses what no reference can match.
fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("an image pattern must not be empty".to_owned());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:@+*?".contains(c);
    if let Some(wrong) = text.chars().find(|&c| !allowed(c)) {
        return Err(format!("an image reference cannot contain {wrong:?}"));
    }
    let name = repository(text);
    let path = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => rest,
        _ => name,
    };
    if let Some(wrong) = path.chars().find(char::is_ascii_uppercase) {
        return Err(format!(
            "an image's name is lower-case: it cannot contain {wrong:?}"
        ));
    }
    if name.split('/').any(str::is_empty) {
        return Err("an image's name has no empty part".to_owned());
    }
    let rest = text.get(name.len()..).unwrap_or("");
    if rest == ":" || rest.ends_with('@') {
        return Err("the tag or digest is missing".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_match_as_docker_reads_them() {
        let table: &[(&str, &[&str], &[&str])] = &[
            (
                "postgres:*",
                &[
                    "postgres:16",
                    "postgres",
                    "library/postgres:16",
                    "docker.io/library/postgres:16",
                    "docker.io/postgres",
                    "index.docker.io/library/postgres:16",
                    "postgres:16@sha256:00",
                ],
                &[
                    "ghcr.io/acme/postgres:16",
                    "acme/postgres:16",
                    "postgres-exporter:1",
                    "sha256:00",
                ],
            ),
            (
                "redis",
                &["redis", "redis:latest", "docker.io/library/redis"],
                &["redis:7", "redis@sha256:00"],
            ),
            ("docker.io/redis", &["redis"], &["redis:7", "quay.io/redis"]),
            (
                "shop/*",
                &["shop/web", "shop/web:3", "docker.io/shop/web:3"],
                &["web", "ghcr.io/shop/web"],
            ),
            (
                "localhost:5000/web",
                &["localhost:5000/web:latest"],
                &["localhost:5000/web:2", "web"],
            ),
            ("library/nginx:1.?", &["nginx:1.2"], &["nginx:1.25"]),
            ("nginx@sha256:*", &["nginx@sha256:ab"], &["nginx:1"]),
            (
                "docker.io/*:16",
                &["postgres:16", "acme/db:16"],
                &["ghcr.io/acme/db:16"],
            ),
        ];
        for (text, yes, no) in table {
            let pattern = ImagePattern::new(text).unwrap();
            for reference in *yes {
                assert!(pattern.matches(reference), "{text} {reference}");
            }
            for reference in *no {
                assert!(!pattern.matches(reference), "{text} {reference}");
            }
        }
    }

    #[test]
    fn impossible_references_are_refused() {
        for text in [
            "",
            "Postgres:16",
            "acme/Web",
            "a b",
            "a//b",
            "/a",
            "a:",
            "web[12]",
            "a@",
        ] {
            assert!(ImagePattern::new(text).is_err(), "{text}");
        }
        assert!(ImagePattern::new("Registry/web:V1").is_ok());
    }
}
