//! The connection to an engine, and what can go wrong with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as WireError;
use bollard::models::SystemVersion;

use super::listing::Inspected;

/// The oldest API that we speak: Engine 20.10.
pub(crate) const OLDEST_API: (u32, u32) = (1, 41);

/// The newest API that bollard's types know.
pub(crate) const NEWEST_API: (u32, u32) = (1, 53);

/// API of Engine 28.0, the first with the gateway mode `isolated`.
const GATEWAY_MODE_API: (u32, u32) = (1, 48);

/// `cofferdam socket-filter` names itself so among the engine's components, with the socket that it stands in front of.
pub(crate) const FILTER_COMPONENT: &str = "Cofferdam socket filter";
pub(crate) const FILTER_SOCKET: &str = "Socket";

/// How long the first answer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long any later answer may take to begin. Most take milliseconds, but what needs a container's lock waits for
/// its start, and one on 251 networks took 57 s to start.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// Why an engine could not be reached or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot reach a Docker Engine at {}; is it running, and may this process use its socket?", .socket.display())]
    Unreachable { socket: PathBuf, source: WireError },
    #[error(
        "the Docker Engine at {} is too old: version {version} with API {}.{}, needed is 20.10 with API 1.41 or later",
        .socket.display(), .api.0, .api.1
    )]
    TooOld {
        socket: PathBuf,
        version: String,
        api: (u32, u32),
    },
    #[error("the Docker Engine at {} did not tell its API version, but `{api}`", .socket.display())]
    NotAnEngine { socket: PathBuf, api: String },
    #[error("cannot {attempted}")]
    Request { attempted: String, source: WireError },
}

impl EngineError {
    /// Whether the same request may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::TooOld { .. } | Self::NotAnEngine { .. } => false,
            Self::Request { source, .. } => is_transient(source),
        }
    }

    pub(super) fn request(attempted: impl Into<String>) -> impl FnOnce(WireError) -> Self {
        let attempted = attempted.into();
        move |source| Self::Request { attempted, source }
    }
}

/// Whether the fault lies in the connection or in the engine's present state rather than in the request.
pub(super) fn is_transient(error: &WireError) -> bool {
    match error {
        WireError::DockerResponseServerError { status_code, .. } => *status_code >= 500,
        WireError::RequestTimeoutError
        | WireError::IOError { .. }
        | WireError::HyperResponseError { .. }
        | WireError::HyperLegacyError { .. }
        | WireError::SocketNotFoundError(_) => true,
        _ => false,
    }
}

/// The status and the message of an engine's refusal.
pub(super) fn refusal(error: &WireError) -> Option<(u16, &str)> {
    match error {
        WireError::DockerResponseServerError { status_code, message } => Some((*status_code, message)),
        _ => None,
    }
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineVersion {
    /// As the engine writes it, for people: `20.10.24+dfsg1`.
    pub version: String,
    /// The newest API that it speaks, major and minor.
    pub api: (u32, u32),
}

impl EngineVersion {
    /// Whether a bridge's gateway mode can be `isolated`.
    pub(super) fn has_isolated_gateways(&self) -> bool {
        self.api >= GATEWAY_MODE_API
    }
}

/// A connection to one engine with an API version that both sides speak. Every request opens the socket anew, so it
/// outlives the engine's restarts; but a restarted engine may be another version.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) docker: Docker,
    version: Arc<EngineVersion>,
    pub(super) socket: Arc<Path>,
    /// The engine's own socket, where a filter stands in front of it.
    pub(super) behind: Option<Arc<Path>>,
    /// The version that every request names.
    pub(super) api: (u32, u32),
    /// What never changes of containers that were inspected.
    pub(super) inspected: Inspected,
}

impl Engine {
    /// Connects to the engine that listens on a Unix socket and agrees with it on an API version.
    pub async fn connect(socket: &Path) -> Result<Self, EngineError> {
        let unreachable = |source| EngineError::Unreachable {
            socket: socket.to_owned(),
            source,
        };
        let docker = Docker::connect_with_unix(
            &socket.to_string_lossy(),
            CONNECT_TIMEOUT.as_secs(),
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(unreachable)?;
        let docker = docker.negotiate_version().await.map_err(unreachable)?;
        let answer = docker.version().await.map_err(unreachable)?;
        let behind = behind(&answer);
        let version = accept(socket, answer)?;
        let api = version.api.min(NEWEST_API);
        Ok(Self {
            docker: pin_version(docker, api).with_timeout(REQUEST_TIMEOUT),
            version: Arc::new(version),
            socket: Arc::from(socket),
            behind,
            api,
            inspected: Inspected::default(),
        })
    }

    /// What the engine said of itself when the connection was made.
    pub fn info(&self) -> &EngineVersion {
        &self.version
    }
}

/// Has every request name its API version, so that a newer engine answers in the shape that we know. bollard agrees on a
/// version too but then sends bare paths (`GET /containers/json`), which an engine answers in its newest version.
fn pin_version(docker: Docker, (major, minor): (u32, u32)) -> Docker {
    docker.with_request_modifier(move |mut request| {
        let uri = request.uri();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        if let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) {
            // The parts come from a valid URI, so the whole is one.
            if let Ok(pinned) = format!("{scheme}://{authority}/v{major}.{minor}{path}").parse() {
                *request.uri_mut() = pinned;
            }
        }
        request
    })
}

/// The socket that a filter stands in front of, if it is a filter that answers.
fn behind(answer: &SystemVersion) -> Option<Arc<Path>> {
    let mut components = answer.components.iter().flatten();
    let filter = components.find(|it| it.name == FILTER_COMPONENT)?;
    let socket = filter.details.as_ref()?.get(FILTER_SOCKET)?;
    Some(Arc::from(Path::new(socket)))
}

/// What the engine says of itself, if we can work with it.
fn accept(socket: &Path, answer: SystemVersion) -> Result<EngineVersion, EngineError> {
    let api = answer.api_version.unwrap_or_default();
    let api = parse_api(&api).ok_or_else(|| EngineError::NotAnEngine {
        socket: socket.to_owned(),
        api,
    })?;
    let version = answer.version.unwrap_or_default();
    if api < OLDEST_API {
        return Err(EngineError::TooOld {
            socket: socket.to_owned(),
            version,
            api,
        });
    }
    Ok(EngineVersion { version, api })
}

/// `1.41` as numbers.
fn parse_api(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_are_numbers_not_text() {
        assert_eq!(parse_api("1.41"), Some((1, 41)));
        assert!(parse_api("1.5") < parse_api("1.41"));
        assert_eq!(parse_api(""), None);
        assert_eq!(parse_api("1.41-rc"), None);
    }

    #[test]
    fn engines_before_20_10_are_refused() {
        let accept = |version: &str, api: &str| {
            let answer = SystemVersion {
                version: Some(version.into()),
                api_version: Some(api.into()),
                ..SystemVersion::default()
            };
            accept(Path::new("/run/docker.sock"), answer)
        };
        assert!(!accept("20.10.24+dfsg1", "1.41").unwrap().has_isolated_gateways());
        assert!(accept("28.5.2", "1.51").unwrap().has_isolated_gateways());
        let old = accept("19.03.15", "1.40").unwrap_err();
        assert!(!old.is_retryable());
        assert_eq!(
            old.to_string(),
            "the Docker Engine at /run/docker.sock is too old: version 19.03.15 with API 1.40, needed is 20.10 with \
             API 1.41 or later"
        );
        assert!(matches!(
            accept("4.9", "latest"),
            Err(EngineError::NotAnEngine { .. })
        ));
    }

    #[tokio::test]
    async fn no_socket_is_unreachable_and_worth_another_try() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("docker.sock");
        let error = Engine::connect(&absent).await.unwrap_err();
        assert!(matches!(error, EngineError::Unreachable { .. }), "{error:?}");
        assert!(error.is_retryable());

        // A socket's file that nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(&absent).unwrap());
        let error = Engine::connect(&absent).await.unwrap_err();
        assert!(matches!(error, EngineError::Unreachable { .. }), "{error:?}");
    }

    #[test]
    fn refusals_are_final_and_faults_are_not() {
        let answer = |status_code| WireError::DockerResponseServerError {
            status_code,
            message: String::new(),
        };
        assert!(is_transient(&answer(500)));
        assert!(!is_transient(&answer(404)));
        assert!(is_transient(&WireError::RequestTimeoutError));
    }
}
