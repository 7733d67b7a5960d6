//! Reading the engine's JSON as it comes. bollard fails a whole listing over one value that it does not know; a future
//! engine's news, or one container's nonsense, must narrow that container alone.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::time::Duration;

use bollard::errors::Error as WireError;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::net::UnixStream;

use super::client::{Engine, EngineError};
use super::wire;

/// A list of 10,000 containers takes about 40 MiB.
const LONGEST_ANSWER: usize = 256 * 1024 * 1024;

/// How long an answer may take, all of it. What needs a container's lock waits for its start.
const PATIENCE: Duration = Duration::from_secs(90);

impl Engine {
    /// `GET path`: the answer, or `None` where the engine has no such thing.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, WireError> {
        self.get_within(PATIENCE, path).await
    }

    async fn get_within(&self, patience: Duration, path: &str) -> Result<Option<Value>, WireError> {
        let read = |text: &str| serde_json::from_str(text).map_err(WireError::from);
        self.ask(patience, path, read).await
    }

    /// `GET path`, of which the answer is a list of such objects; what is none is left out.
    pub(super) async fn objects<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, WireError> {
        let text = self.list_text(path).await?;
        Ok(wire::objects(&text)?.collect())
    }

    /// `GET path`, of which the answer is a list, as text.
    pub(super) async fn list_text(&self, path: &str) -> Result<String, WireError> {
        let text = self.ask(PATIENCE, path, |text| Ok(text.to_owned())).await?;
        text.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the engine has no such list").into())
    }

    async fn ask<T>(
        &self,
        patience: Duration,
        path: &str,
        read: impl FnOnce(&str) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        let (major, minor) = self.api;
        let request = Request::get(format!("/v{major}.{minor}{path}")).header(HOST, "docker");
        let request = request.body(Empty::<Bytes>::new())?;
        within(patience, async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let exchange = async {
                let answer = sender.send_request(request).await?;
                let status = answer.status();
                let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
                let body = body.map_err(unreadable)?.to_bytes();
                interpret(status, &body, read)
            };
            // The connection does the work; it ends with the exchange.
            tokio::select! {
                biased;
                result = exchange => result,
                Err(error) = connection => Err(error.into()),
            }
        })
        .await
    }
}

async fn within<T>(
    patience: Duration,
    exchange: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    tokio::time::timeout(patience, exchange)
        .await
        .unwrap_or(Err(WireError::RequestTimeoutError))
}

fn unreadable(error: Box<dyn std::error::Error + Send + Sync>) -> WireError {
    let kind = if error.is::<LengthLimitError>() {
        io::ErrorKind::FileTooLarge
    } else {
        io::ErrorKind::UnexpectedEof
    };
    io::Error::new(kind, error).into()
}

/// What an answer says, read by `read`; `None` where the engine has no such thing.
pub(super) fn interpret<T>(
    status: StatusCode,
    body: &[u8],
    read: impl FnOnce(&str) -> Result<T, WireError>,
) -> Result<Option<T>, WireError> {
    // What is no UTF-8 in a name stays different from every name.
    let text = String::from_utf8_lossy(body);
    match status {
        StatusCode::OK => read(&text).map(Some),
        StatusCode::NOT_FOUND => Ok(None),
        other => {
            let message = serde_json::from_str::<Value>(&text).ok();
            let message = message.as_ref().and_then(|it| it.get("message")?.as_str());
            Err(WireError::DockerResponseServerError {
                status_code: other.as_u16(),
                message: shortened(message.unwrap_or(&text)).to_owned(),
            })
        }
    }
}

/// An answer as a value of its type; nothing where there is no such thing.
pub(super) fn understood<T: Default + DeserializeOwned>(
    answer: Option<Value>,
    attempted: &str,
) -> Result<T, EngineError> {
    let value = answer.map(serde_json::from_value).transpose();
    value
        .map(Option::unwrap_or_default)
        .map_err(|error| EngineError::request(attempted)(error.into()))
}

/// The beginning of a text, for errors and the log.
pub(super) fn shortened(text: &str) -> &str {
    const LONGEST: usize = 200;
    let end = text
        .char_indices()
        .nth(LONGEST)
        .map_or(text.len(), |(end, _)| end);
    text.get(..end).unwrap_or(text)
}

/// A field of an answer: what is not of its type is neither there nor an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    Malformed,
    Is(T),
}

impl<T> Field<T> {
    pub(super) fn get(self) -> Option<T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Malformed => None,
        }
    }

    pub(super) fn as_ref(&self) -> Option<&T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Malformed => None,
        }
    }

    pub(super) fn as_mut(&mut self) -> Option<&mut T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Malformed => None,
        }
    }

    pub(super) fn is_malformed(&self) -> bool {
        matches!(self, Self::Malformed)
    }
}

impl<T: Default> Field<T> {
    pub(super) fn unwrap_or_default(self) -> T {
        self.get().unwrap_or_default()
    }
}

/// Whether a value is of the JSON kind that a type is read from: serde would read an object's fields from a list, too.
pub(super) trait Shaped {
    fn fits(value: &Value) -> bool;
}

impl Shaped for String {
    fn fits(value: &Value) -> bool {
        value.is_string()
    }
}

impl Shaped for u16 {
    fn fits(value: &Value) -> bool {
        value.is_u64()
    }
}

impl Shaped for u32 {
    fn fits(value: &Value) -> bool {
        value.is_u64()
    }
}

impl Shaped for bool {
    fn fits(value: &Value) -> bool {
        value.is_boolean()
    }
}

impl<T: Shaped> Shaped for Box<T> {
    fn fits(value: &Value) -> bool {
        T::fits(value)
    }
}

impl<T> Shaped for Vec<T> {
    fn fits(value: &Value) -> bool {
        value.is_array()
    }
}

impl<T> Shaped for BTreeMap<String, T> {
    fn fits(value: &Value) -> bool {
        value.is_object()
    }
}

impl<'de, T: DeserializeOwned + Shaped> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(match value {
            Value::Null => Self::Absent,
            value if T::fits(&value) => T::deserialize(value).map_or(Self::Malformed, Self::Is),
            _ => Self::Malformed,
        })
    }
}

#[cfg(test)]
mod tests;
