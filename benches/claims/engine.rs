//! A simulated engine: it speaks as much of the engine's API as the daemon asks for, over a Unix socket, replays a made-up
//! host, and starts and stops its containers as fast as it is told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_util::Stream;
use futures_util::stream::unfold;
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::scene::{Host, address, bridge_name, container_id, mac, network_id};

type Events = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;
type Body = Either<Full<Bytes>, StreamBody<Events>>;

pub(crate) struct Engine {
    host: Host,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopped: Vec<bool>,
    readers: Vec<UnboundedSender<Bytes>>,
    /// What was asked since the last time.
    listings: usize,
    inspections: usize,
    /// What was told of a container and led to no question since.
    told: BTreeMap<usize, Instant>,
    behind: Duration,
}

/// What the daemon asked since the last time.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) listings: usize,
    pub(crate) inspections: usize,
    /// The longest time from an event to the question that it led to.
    pub(crate) behind: Duration,
}

impl Engine {
    /// Listens on that socket until the process ends.
    pub(crate) fn start(host: Host, socket: &Path) -> Arc<Self> {
        let state = State {
            stopped: vec![false; host.endpoints],
            ..State::default()
        };
        let engine = Arc::new(Self {
            host,
            state: Mutex::new(state),
        });
        let _left = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let served = engine.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let engine = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let answer = engine.answer(&request);
                        async { Ok::<_, Infallible>(answer) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    // The daemon closes when it has its answer.
                    let _closed = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        engine
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let path = match path.strip_prefix("/v1.") {
            Some(rest) => rest.find('/').map_or("", |slash| &rest[slash..]),
            None => path,
        };
        let query = request.uri().query().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let mut networks = 0..self.host.networks();
        let answer = match parts.as_slice() {
            ["_ping"] => return text("OK"),
            ["version"] => json!({ "Version": "28.5.2", "ApiVersion": "1.51", "MinAPIVersion": "1.24" }),
            ["events"] => return self.events(),
            ["containers", "json"] => self.containers(query),
            ["containers", id, "json"] => match self.number(id) {
                Some(number) => self.inspection(number),
                None => return missing(),
            },
            ["networks"] => networks.map(|it| self.network(it, false)).collect(),
            ["networks", id] => match networks.find(|it| *network_id(*it).0 == **id) {
                Some(number) => self.network(number, true),
                None => return missing(),
            },
            _ => return missing(),
        };
        text(&answer.to_string())
    }

    fn number(&self, id: &str) -> Option<usize> {
        let number = usize::from_str_radix(id, 16).ok()?;
        (number < self.host.endpoints).then_some(number)
    }

    fn events(&self) -> Response<Body> {
        let (sender, receiver) = unbounded_channel();
        self.state.lock().unwrap().readers.push(sender);
        let events = unfold(receiver, |mut receiver| async {
            let event = receiver.recv().await?;
            Some((Ok(Frame::data(event)), receiver))
        });
        Response::new(Either::Right(StreamBody::new(Box::pin(events))))
    }

    fn containers(&self, query: &str) -> Value {
        let stopped = self.state.lock().unwrap().stopped.clone();
        let summary = |number: usize| self.summary(number, stopped[number]);
        if query.contains("filters") {
            let asked = |number: &usize| query.contains(&*container_id(*number).0);
            return (0..self.host.endpoints)
                .find(asked)
                .into_iter()
                .map(summary)
                .collect();
        }
        self.state.lock().unwrap().listings += 1;
        (0..self.host.endpoints).map(summary).collect()
    }

    fn labels(&self, number: usize) -> Value {
        json!({ "service": format!("s{}", number % self.host.services) })
    }

    fn networks_of(number: usize, stopped: bool) -> Value {
        let network = Host::network_of(number);
        let or_none = |text: String| if stopped { String::new() } else { text };
        json!({ format!("net{network}"): {
            "NetworkID": network_id(network).0.to_string(),
            "EndpointID": or_none(container_id(number).0.to_string()),
            "IPAddress": or_none(address(number).to_string()),
            "MacAddress": or_none(mac(number).to_string()),
            "GlobalIPv6Address": "",
        } })
    }

    fn summary(&self, number: usize, stopped: bool) -> Value {
        json!({
            "Id": container_id(number).0.to_string(),
            "Names": [format!("/c{number}")],
            "Image": "bench",
            "Labels": self.labels(number),
            "State": if stopped { "exited" } else { "running" },
            "HostConfig": { "NetworkMode": format!("net{}", Host::network_of(number)) },
            "NetworkSettings": { "Networks": Self::networks_of(number, stopped) },
            "Ports": [], "Mounts": [],
        })
    }

    fn inspection(&self, number: usize) -> Value {
        let stopped = {
            let mut state = self.state.lock().unwrap();
            state.inspections += 1;
            if let Some(since) = state.told.remove(&number) {
                state.behind = state.behind.max(since.elapsed());
            }
            state.stopped[number]
        };
        json!({
            "Id": container_id(number).0.to_string(),
            "Name": format!("/c{number}"),
            "Config": { "Image": "bench", "Labels": self.labels(number) },
            "State": { "Running": !stopped, "Restarting": false, "Pid": if stopped { 0 } else { 4_000_000 + number } },
            "HostConfig": {
                "NetworkMode": format!("net{}", Host::network_of(number)),
                "PidMode": "", "Privileged": false, "CapAdd": null, "CapDrop": null,
            },
            "NetworkSettings": { "Networks": Self::networks_of(number, stopped), "Ports": {} },
            "Mounts": [],
        })
    }

    fn network(&self, number: usize, with_endpoints: bool) -> Value {
        let mut endpoints = serde_json::Map::new();
        if with_endpoints {
            let on_it = |it: &usize| Host::network_of(*it) == number;
            for container in self.running().into_iter().filter(on_it) {
                let endpoint = json!({
                    "Name": format!("c{container}"),
                    "EndpointID": container_id(container).0.to_string(),
                    "MacAddress": mac(container).to_string(),
                    "IPv4Address": format!("{}/16", address(container)),
                    "IPv6Address": "",
                });
                endpoints.insert(container_id(container).0.to_string(), endpoint);
            }
        }
        json!({
            "Id": network_id(number).0.to_string(),
            "Name": format!("net{number}"),
            "Driver": "bridge",
            "Internal": false,
            "IPAM": { "Config": [{ "Subnet": format!("172.{}.0.0/16", 16 + number) }] },
            "Options": { "com.docker.network.bridge.name": bridge_name(number).to_string() },
            "Labels": {},
            "Containers": endpoints,
        })
    }

    /// A container ends, as Engine 23 and later tell it.
    pub(crate) fn stop(&self, number: usize) {
        self.change(number, true, [("network", "disconnect"), ("container", "die")]);
    }

    /// A container starts.
    pub(crate) fn begin(&self, number: usize) {
        self.change(number, false, [("network", "connect"), ("container", "start")]);
    }

    fn change(&self, number: usize, stopped: bool, events: [(&str, &str); 2]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let mut state = self.state.lock().unwrap();
        state.stopped[number] = stopped;
        state.told.entry(number).or_insert_with(Instant::now);
        for (kind, action) in events {
            let id = container_id(number).0.to_string();
            let actor = if kind == "network" {
                json!({ "ID": network_id(Host::network_of(number)).0.to_string(), "Attributes": { "container": id } })
            } else {
                json!({ "ID": id, "Attributes": {} })
            };
            let event = json!({
                "Type": kind, "Action": action, "Actor": actor, "scope": "local",
                "time": now.as_secs(), "timeNano": u64::try_from(now.as_nanos()).unwrap(),
            });
            let line = Bytes::from(format!("{event}\n"));
            state.readers.retain(|reader| reader.send(line.clone()).is_ok());
        }
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        let state = self.state.lock().unwrap();
        (0..self.host.endpoints)
            .filter(|it| !state.stopped[*it])
            .collect()
    }

    pub(crate) fn asked(&self) -> Asked {
        let mut state = self.state.lock().unwrap();
        Asked {
            listings: std::mem::take(&mut state.listings),
            inspections: std::mem::take(&mut state.inspections),
            behind: std::mem::take(&mut state.behind),
        }
    }
}

fn text(text: &str) -> Response<Body> {
    Response::new(Either::Left(Full::new(Bytes::from(text.to_owned()))))
}

fn missing() -> Response<Body> {
    let mut answer = text(r#"{"message":"there is no such thing"}"#);
    *answer.status_mut() = hyper::StatusCode::NOT_FOUND;
    answer
}
