//! The socket, and the way to the engine and back. Each connection is for one request; each call opens the engine's socket anew.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::answer;
use super::call::{Call, Named, Passed, Refusal};
use crate::inventory::MANAGED_LABEL;

/// Calls at once. The daemon makes some ten; each command as many.
const CALLS: usize = 256;
/// A client must have said what it wants within this time.
const ASKING: Duration = Duration::from_secs(5);
/// The longest head of a request, and the most lines in it.
const HEAD: usize = 16 * 1024;
const HEADERS: usize = 32;
/// The longest body of a request: the longest that Cofferdam sends has some aliases.
const BODY: usize = 64 * 1024;
/// The longest answer that is looked into: about one container, one network or the version.
const ANSWER: usize = 16 * 1024 * 1024;
/// How long the engine may take to say whose a network is.
const PATIENCE: Duration = Duration::from_secs(90);

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Whether containers may be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stops {
    Refused,
    Passed,
}

/// What stands between a client and an engine.
#[derive(Debug)]
pub struct Filter {
    /// The engine's own socket.
    engine: PathBuf,
    stops: Stops,
    ours: Ours,
}

/// Networks that are known to be ours, so that the engine is asked once for each: its labels never change, and its id never comes
/// again.
#[derive(Debug, Default)]
struct Ours(Mutex<BTreeSet<String>>);

impl Ours {
    /// More than there can be on a host; then they are asked for again.
    const MOST: usize = 4096;

    fn has(&self, network: &str) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(network)
    }

    fn insert(&self, network: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::MOST {
            known.clear();
        }
        known.insert(network.to_owned());
    }
}

type Fault = Box<dyn std::error::Error + Send + Sync>;
type Body = BoxBody<Bytes, hyper::Error>;

/// Why a request has no answer of the engine's.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the socket filter could not read the request: {0}")]
    Unread(Fault),
    #[error("the socket filter has no answer of the engine at {}: {source}", engine.display())]
    Engine { engine: PathBuf, source: Fault },
}

/// Serves for ever.
pub async fn serve(listener: UnixListener, filter: Filter) {
    let filter = Arc::new(filter);
    let room = Arc::new(Semaphore::new(CALLS));
    loop {
        // It is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let filter = Arc::clone(&filter);
                tokio::spawn(async move {
                    connection(stream, filter).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a client");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, filter: Arc<Filter>) {
    let service = hyper::service::service_fn(move |request| {
        let filter = Arc::clone(&filter);
        async move { Ok::<_, Infallible>(filter.answer(request).await) }
    });
    // One request for each connection: what a client sends behind it is never looked at.
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASKING)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a client went away");
    }
}

impl Filter {
    /// In front of the engine at that socket.
    pub fn new(engine: PathBuf, stops: Stops) -> Self {
        Self {
            engine,
            stops,
            ours: Ours::default(),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let called = format!("{} {}", request.method(), request.uri());
        let failure = match self.pass(request).await {
            Ok(response) => return response,
            Err(failure) => failure,
        };
        let (status, message) = match failure {
            Failure::Refused(refusal) => {
                warn!(call = shortened(&called), reason = %refusal, "refused");
                let message = format!("the socket filter refuses {}: {refusal}", shortened(&called));
                (StatusCode::FORBIDDEN, message)
            }
            Failure::Unread(_) => (StatusCode::BAD_REQUEST, failure.to_string()),
            Failure::Engine { .. } => {
                debug!(call = shortened(&called), error = %failure, "no answer");
                (StatusCode::BAD_GATEWAY, failure.to_string())
            }
        };
        let body = json!({ "message": message }).to_string();
        with(status, Some(JSON), whole(body.into()))
    }

    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let (head, body) = request.into_parts();
        // A target is a path: no other server's, and none that is understood in another way.
        if head.uri.scheme().is_some() || head.uri.authority().is_some() {
            return Err(Refusal::Unknown.into());
        }
        if head.headers.contains_key(UPGRADE) {
            return Err(Refusal::Upgrade.into());
        }
        let collected = timeout(ASKING, Limited::new(body, BODY).collect()).await;
        let body = match collected {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::Long.into()),
            Ok(Err(error)) => return Err(Failure::Unread(error)),
            Err(elapsed) => return Err(Failure::Unread(elapsed.into())),
        };
        let call = Call::parse(&head.method, head.uri.path(), head.uri.query(), &body)?;
        if call.stops() && self.stops == Stops::Refused {
            return Err(Refusal::Stop.into());
        }
        if let Some(named) = call.changes() {
            self.require_ours(named).await?;
        }
        let answer = self.ask(call.method(), &call.target(), call.body()).await?;
        self.passed_on(call.passed(), answer).await
    }

    /// Refuses to change a network that is somebody else's.
    async fn require_ours(&self, named: Named<'_>) -> Result<(), Failure> {
        let (Named::Id(network) | Named::Name(network)) = named;
        if self.ours.has(network) {
            return Ok(());
        }
        let look = async {
            let answer = self
                .ask(Method::GET, &format!("/networks/{network}"), None)
                .await?;
            let status = answer.status();
            Ok::<_, Failure>((status, self.collected(answer).await?))
        };
        let (status, body) = timeout(PATIENCE, look)
            .await
            .unwrap_or_else(|elapsed| Err(self.failed(elapsed)))?;
        match status {
            // The engine says so itself, or has a container forget it.
            StatusCode::NOT_FOUND => return Ok(()),
            StatusCode::OK if is_ours(&body) => {}
            _ => return Err(Refusal::NotOurs.into()),
        }
        // A name may be another network's soon.
        if let Named::Id(id) = named {
            self.ours.insert(id);
        }
        Ok(())
    }

    /// Makes a request of the engine.
    async fn ask(
        &self,
        method: Method,
        target: &str,
        body: Option<String>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, "docker");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, JSON);
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(|error| self.failed(error))?;
        let stream = UnixStream::connect(&self.engine)
            .await
            .map_err(|error| self.failed(error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.failed(error))?;
        let ended = Ended(tokio::spawn(connection).abort_handle());
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| self.failed(error))?;
        // The connection ends with whoever reads the answer.
        Ok(answer.map(|body| {
            body.map_frame(move |frame| {
                let _held = &ended;
                frame
            })
            .boxed()
        }))
    }

    async fn collected(&self, answer: Response<Body>) -> Result<Bytes, Failure> {
        let body = Limited::new(answer.into_body(), ANSWER).collect().await;
        Ok(body.map_err(|error| self.failed(error))?.to_bytes())
    }

    async fn passed_on(&self, passed: Passed, answer: Response<Body>) -> Result<Response<Body>, Failure> {
        let status = answer.status();
        let kind = answer.headers().get(CONTENT_TYPE).cloned();
        match (passed, status) {
            (Passed::Created, StatusCode::CREATED) => {
                let body = self.collected(answer).await?;
                let network: Value = serde_json::from_slice(&body).unwrap_or_default();
                if let Some(id) = network.get("Id").and_then(Value::as_str) {
                    self.ours.insert(id);
                }
                Ok(with(status, kind, whole(body)))
            }
            (Passed::Container | Passed::Version, StatusCode::OK) => {
                let body = self.collected(answer).await?;
                let narrowed = answer::narrowed(passed, &body, &self.engine);
                let narrowed = narrowed.ok_or_else(|| self.failed("an answer that is no JSON"))?;
                Ok(with(status, kind, whole(narrowed.into())))
            }
            _ => Ok(with(status, kind, answer.into_body())),
        }
    }

    fn failed(&self, source: impl Into<Fault>) -> Failure {
        Failure::Engine {
            engine: self.engine.clone(),
            source: source.into(),
        }
    }
}

/// Whether an answer about a network shows our mark.
fn is_ours(body: &[u8]) -> bool {
    let network: Value = serde_json::from_slice(body).unwrap_or_default();
    network.get("Labels").and_then(|labels| labels.get(MANAGED_LABEL)) == Some(&"true".into())
}

/// Ends a connection to the engine, should nobody wait for it any more.
struct Ended(AbortHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn with(status: StatusCode, kind: Option<HeaderValue>, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never: Infallible| match never {})
        .boxed()
}

/// The beginning of what a client wrote: a target is printable as it is.
fn shortened(text: &str) -> &str {
    const LONGEST: usize = 200;
    text.get(..text.floor_char_boundary(LONGEST)).unwrap_or(text)
}
