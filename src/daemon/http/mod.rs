//! Metrics, the page and what it asks for, over HTTP. In: what the daemon tells. Out: answers to `GET`; nothing can be
//! changed.
//!
//! It runs on a thread of its own with a low priority, and shares one reading of the kernel's counters among all who ask,
//! so that nobody who asks holds the daemon up. There is no authentication: it listens on loopback unless told otherwise,
//! answers only to hosts' names that are its own (a page elsewhere whose name is made to point here gets nothing), and
//! not to scripts and pictures of other sites.

mod events;
mod feed;
mod guard;
mod page;
mod view;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::process::setpriority_process;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tower_service::Service as _;
use tracing::{debug, info, warn};

use self::feed::Feed;
use super::clients::Clients;
use super::metrics;
use super::status::{self, Status};
use super::told::Told;
use crate::settings::http::{Hosts, HttpSettings};

/// Whoever asks gets its turn after everything else of the daemon.
const NICENESS: i32 = 5;
/// A client must have said what it wants within this time, also the next time.
const ASKING: Duration = Duration::from_secs(5);
/// A client that takes nothing for so long is gone.
const TAKING: Duration = Duration::from_secs(10);
/// The longest request.
const REQUEST: usize = 16 * 1024;
/// An address that cannot be had is tried again after this time.
const RETRY: Duration = Duration::from_secs(10);

/// What may be wrong with the server, for the status.
pub type Trouble = watch::Receiver<Option<String>>;

/// Serves on a thread of its own, for ever. An address that cannot be had keeps nothing else from working: it is told, and
/// tried again.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(settings: HttpSettings, told: Told) -> io::Result<Trouble> {
    let listen = settings.listen;
    let first = bind(listen);
    let trouble = move |result: &io::Result<_>| {
        let error = result.as_ref().err()?;
        let what = "metrics and the page are not served";
        Some(format!("{what}: cannot listen at {listen}: {error}"))
    };
    let (sender, receiver) = watch::channel(trouble(&first));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let body = move || {
        // Of this thread alone.
        if let Err(error) = setpriority_process(None, NICENESS) {
            debug!(%error, "the HTTP server runs at the daemon's priority");
        }
        runtime.block_on(async move {
            let mut bound = first;
            loop {
                match bound.and_then(TcpListener::from_std) {
                    Ok(listener) => {
                        info!(address = %settings.listen, "metrics and the page are served");
                        sender.send_replace(None);
                        return serve(listener, settings.hosts, told).await;
                    }
                    Err(error) => warn!(address = %settings.listen, %error, "cannot listen: trying again"),
                }
                sleep(RETRY).await;
                bound = bind(settings.listen);
                sender.send_replace(trouble(&bound));
            }
        });
    };
    std::thread::Builder::new().name("http".to_owned()).spawn(body)?;
    Ok(receiver)
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves what is told.
pub async fn serve(listener: TcpListener, hosts: Hosts, told: Told) {
    let asked = told.clone();
    let read = move || -> Reading {
        let told = asked.clone();
        Box::pin(async move { told.completed().await })
    };
    serve_with(listener, hosts, told, read).await;
}

/// A status that is being completed with what the kernel says.
pub type Reading = Pin<Box<dyn Future<Output = Result<Status, String>> + Send>>;

/// Serves what is told, with a status that comes from elsewhere.
pub async fn serve_with(
    listener: TcpListener,
    hosts: Hosts,
    told: Told,
    read: impl Fn() -> Reading + Send + Sync + 'static,
) {
    let app = router(hosts, Arc::new(Feed::new(told, read)));
    let mut clients = Clients::default();
    loop {
        clients.room().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let asked = Arc::new(AtomicBool::new(false));
                let task = tokio::spawn(connection(stream, app.clone(), Arc::clone(&asked)));
                clients.add(asked, task.abort_handle());
            }
            Err(error) => {
                warn!(%error, "cannot accept an HTTP client");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, app: Router, asked: Arc<AtomicBool>) {
    // Also for whoever keeps its window shut.
    let patience = u32::try_from(TAKING.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = setsockopt(&stream, sockopt::TcpUserTimeout, &patience) {
        debug!(%error, "an HTTP client may be slow");
    }
    let service = hyper::service::service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        app.clone().call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASKING)
        .max_buf_size(REQUEST)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "an HTTP client went away");
    }
}

type Shared = State<Arc<Feed>>;

fn router(hosts: Hosts, feed: Arc<Feed>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(prometheus))
        .route("/healthz", get(healthz))
        .route("/api/status", get(whole_status))
        .route("/api/graph", get(graph))
        .route("/api/service", get(service))
        .route("/api/audit", get(audit))
        .route("/api/flows", get(flows))
        .route("/api/events", get(events::stream))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here\n") })
        .method_not_allowed_fallback(|| async {
            let allowed = [(ALLOW, "GET, HEAD")];
            (
                StatusCode::METHOD_NOT_ALLOWED,
                allowed,
                "nothing can be changed here\n",
            )
        })
        .with_state(feed)
        .layer(middleware::from_fn_with_state(Arc::new(hosts), guard::check))
}

async fn page() -> Response {
    let page = page::assembled();
    let policy = HeaderValue::try_from(&page.policy);
    let policy = policy.unwrap_or(HeaderValue::from_static("default-src 'none'"));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, page.html.as_str()).into_response()
}

async fn prometheus(State(feed): Shared, headers: HeaderMap) -> Response {
    let snapshot = match feed.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(message) => return unavailable(&message),
    };
    let accepted = headers.get("accept").and_then(|it| it.to_str().ok());
    let sources = feed.told().sources(Arc::clone(&snapshot.status));
    if accepted.is_some_and(|it| it.contains("application/openmetrics-text")) {
        (
            [(CONTENT_TYPE, metrics::OPENMETRICS)],
            metrics::openmetrics(&sources),
        )
            .into_response()
    } else {
        ([(CONTENT_TYPE, metrics::TEXT)], metrics::text(&sources)).into_response()
    }
}

/// Whether the policy is in force and nothing is wrong, as `status --check`.
async fn healthz(State(feed): Shared) -> Response {
    match feed.snapshot().await {
        Ok(snapshot) if snapshot.status.state == status::State::Enforcing => "enforcing\n".into_response(),
        Ok(snapshot) => {
            let mut text = format!("{:?}\n", snapshot.status.state).to_lowercase();
            for reason in &snapshot.status.reasons {
                text.push_str(reason);
                text.push('\n');
            }
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        Err(message) => unavailable(&message),
    }
}

async fn whole_status(State(feed): Shared) -> Response {
    match feed.snapshot().await {
        Ok(snapshot) => json(&*snapshot.status),
        Err(message) => unavailable(&message),
    }
}

async fn graph(State(feed): Shared) -> Response {
    match feed.snapshot().await {
        Ok(snapshot) => json_text(snapshot.view.text.to_string()),
        Err(message) => unavailable(&message),
    }
}

#[derive(Deserialize)]
struct Which {
    name: String,
}

async fn service(State(feed): Shared, Query(which): Query<Which>) -> Response {
    match feed.snapshot().await {
        Ok(snapshot) => match snapshot.status.services.get(&which.name) {
            Some(service) => json(service),
            None => (StatusCode::NOT_FOUND, "the policy in force has no such service\n").into_response(),
        },
        Err(message) => unavailable(&message),
    }
}

/// What voids or weakens segmentation, as it was found last.
async fn audit(State(feed): Shared) -> Response {
    json(&*feed.told().audited.report())
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn flows(State(feed): Shared, Query(After { after }): Query<After>) -> Response {
    json(&feed.told().flows_after(after).await)
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => json_text(text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn json_text(text: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], text).into_response()
}

fn unavailable(message: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{message}\n")).into_response()
}
