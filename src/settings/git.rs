//! The settings of a Git repository as the policy's source.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A setting that `none` turns off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice<T> {
    Off,
    On(T),
}

impl<T> Choice<T> {
    /// The value, where there is one.
    pub fn on(self) -> Option<T> {
        match self {
            Self::Off => None,
            Self::On(value) => Some(value),
        }
    }
}

impl<T: FromStr> FromStr for Choice<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            Ok(Self::Off)
        } else {
            text.parse().map(Self::On)
        }
    }
}

/// Reads a type from its text.
macro_rules! from_text {
    ($($name:ty),+) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

from_text!(
    Choice<GitUrl>,
    Choice<PathBuf>,
    Choice<std::net::SocketAddr>,
    Choice<super::http::Hosts>,
    Choice<crate::audit::Registries>,
    GitRef,
    GitPath
);

/// Where a repository is: a path, or a URL of a protocol that is allowed. Shown without what may be a password.
#[derive(Clone, PartialEq, Eq)]
pub struct GitUrl(String);

/// What git may speak; also its `GIT_ALLOW_PROTOCOL`.
pub const PROTOCOLS: [&str; 5] = ["file", "git", "http", "https", "ssh"];

impl GitUrl {
    /// As git is told.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GitUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = !text.starts_with('-') && !text.chars().any(char::is_control);
        let known = match text.split_once("://") {
            Some((scheme, rest)) => PROTOCOLS.contains(&scheme) && !rest.is_empty(),
            // An absolute path, or ssh's `host:path`; `helper::anything` would start a program.
            None => {
                text.starts_with('/')
                    || text.split_once(':').is_some_and(|(host, path)| {
                        !host.is_empty() && !path.is_empty() && !path.starts_with(':')
                    })
            }
        };
        if plain && known {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "an absolute path, `host:path`, or a URL that begins with {}://",
                PROTOCOLS.join("://, ")
            ))
        }
    }
}

impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return f.write_str(&self.0);
        };
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
        let host = match authority.rsplit_once('@') {
            // A user of ssh is no secret.
            Some((user, _)) if scheme == "ssh" && !user.contains(':') => authority,
            Some((_, host)) => host,
            None => authority,
        };
        write!(f, "{scheme}://{host}")?;
        path.map_or(Ok(()), |path| write!(f, "/{path}"))
    }
}

impl fmt::Debug for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A branch, or a full name such as `refs/tags/live`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitRef(String);

impl GitRef {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `refs/heads/main`.
    pub fn full(&self) -> String {
        if self.0.starts_with("refs/") {
            self.0.clone()
        } else {
            format!("refs/heads/{}", self.0)
        }
    }
}

impl FromStr for GitRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fine = |c: char| c.is_alphanumeric() || "-_./+=%#".contains(c);
        let parts = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
        let valid = text.chars().all(fine)
            && !text.starts_with('-')
            && !text.ends_with('.')
            && !text.contains("..")
            && text.split('/').all(parts);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err("a branch such as `main`, or a full name such as `refs/tags/live`".to_owned())
        }
    }
}

/// A directory or file in the repository; empty is all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitPath(String);

impl GitPath {
    /// Without slashes at its ends.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GitPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = Vec::new();
        for part in Path::new(text).components() {
            match part {
                Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
                Component::CurDir => {}
                _ => return Err("a directory of the repository, such as `policies`, or `.`".to_owned()),
            }
        }
        Ok(Self(parts.join("/")))
    }
}

/// A repository as the policy's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitSettings {
    pub url: GitUrl,
    pub reference: GitRef,
    pub path: GitPath,
    /// Between two fetches.
    pub interval: Duration,
    /// Who may sign: a file in the format of ssh-keygen's allowed signers. `None`: no signature is asked for.
    pub signers: Option<PathBuf>,
    pub rewind: Rewind,
}

/// What becomes of a revision that does not come after the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rewind {
    #[default]
    Refused,
    Allowed,
}

/// A file that says who may sign must not come from what is signed.
///
/// # Errors
/// Where it may.
pub fn outside(signers: &Path, state: &Path) -> Result<(), String> {
    if !signers.is_absolute() {
        return Err(format!(
            "require-signed {} must be an absolute path",
            signers.display()
        ));
    }
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dotted = signers.components().any(|part| part == Component::ParentDir);
    if dotted || signers.starts_with(state) || real(signers).starts_with(real(state)) {
        return Err(format!(
            "require-signed {} must not lie in the state directory, where the repository is",
            signers.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_allowed_protocols_are_taken_and_passwords_not_shown() {
        for (text, shown) in [
            ("/srv/policy.git", "/srv/policy.git"),
            ("git@example.org:ops/policy.git", "git@example.org:ops/policy.git"),
            (
                "ssh://git@example.org/policy.git",
                "ssh://git@example.org/policy.git",
            ),
            (
                "https://bot:secret@example.org:8443/p",
                "https://example.org:8443/p",
            ),
            ("https://token@example.org", "https://example.org"),
            ("file:///srv/policy.git", "file:///srv/policy.git"),
        ] {
            let url: GitUrl = text.parse().unwrap();
            assert_eq!((url.as_str(), url.to_string()), (text, shown.to_owned()));
        }
        for text in [
            "",
            "policy",
            "-oX:y",
            "--upload-pack=x",
            "ext::sh -c x",
            "ftp://a/b",
            "https://",
            "a:\nb",
        ] {
            assert!(text.parse::<GitUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn references_and_paths_stay_within_the_repository() {
        assert_eq!("main".parse::<GitRef>().unwrap().full(), "refs/heads/main");
        assert_eq!("refs/tags/v1".parse::<GitRef>().unwrap().full(), "refs/tags/v1");
        for text in [
            "", "-x", "a..b", "a:b", "+a b", "a^", "a~1", "a@{1}", "a*", "/a", "a/", ".a", "a.lock",
        ] {
            assert!(text.parse::<GitRef>().is_err(), "{text}");
        }
        let path = |text: &str| text.parse::<GitPath>().map(|it| it.as_str().to_owned());
        assert_eq!(path("./policies/eu/").as_deref(), Ok("policies/eu"));
        assert_eq!(path(".").as_deref(), Ok(""));
        assert!(path("../x").is_err());
        assert!(path("/etc").is_err());
    }

    #[test]
    fn signers_lie_outside_of_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir_all(state.join("git")).unwrap();
        std::os::unix::fs::symlink(state.join("git"), folder.path().join("link")).unwrap();
        std::fs::write(state.join("git/signers"), "").unwrap();
        assert!(outside(&folder.path().join("signers"), &state).is_ok());
        assert!(outside(&state.join("git/signers"), &state).is_err());
        assert!(outside(&folder.path().join("link/signers"), &state).is_err());
        assert!(outside(&folder.path().join("x/../state/signers"), &state).is_err());
        assert!(outside(Path::new("signers"), &state).is_err());
    }
}
