//! The calls that Cofferdam makes. In: the parts of a request. Out: a [`Call`], or why it is refused. The engine is sent what the call
//! says, made anew, and never the bytes that came: so the two cannot understand different things.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use hyper::Method;

use super::body::{Connect, Create, Disconnect};
use crate::docker::{NEWEST_API, OLDEST_API, STOP_GRACE, WATCHED_EVENTS, WATCHED_TYPES, is_volume_name};

/// Why a call does not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("Cofferdam makes no such call")]
    Unknown,
    #[error("Cofferdam makes no such call with this query")]
    Query,
    #[error("this call has no body")]
    Superfluous,
    #[error("the body is too long")]
    Long,
    #[error("the body is not one that Cofferdam sends: {0}")]
    Json(String),
    #[error("the body is not one that Cofferdam sends: {0} is another")]
    Body(&'static str),
    #[error("Cofferdam asks for no other protocol")]
    Upgrade,
    #[error("the network is not one of Cofferdam's")]
    NotOurs,
    #[error("containers may be stopped only where the filter runs with --allow-stop")]
    Stop,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The API's version that the path names.
    api: Option<(u32, u32)>,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Ping,
    Version,
    Info,
    Events {
        since: String,
        filters: Filters,
    },
    Containers {
        id: Option<String>,
    },
    Container(String),
    Stop(String),
    Networks,
    Network(String),
    Volumes,
    Volume(String),
    Create(Create),
    Remove(String),
    Connect(String, Connect),
    /// By its id, or by the name of one that is gone: `Engine::forget_network`.
    Disconnect(String, Disconnect),
}

type Filters = BTreeMap<String, Vec<String>>;

/// How a network that is to be changed is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    Id(&'a str),
    /// One that must be ours where it exists.
    Name(&'a str),
}

/// What of an answer is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    All,
    /// Without what the daemon has no use for.
    Container,
    /// With the word that a filter answered.
    Version,
    /// All of it, and the network that it names is ours.
    Created,
}

impl Call {
    /// Understands a request whose target is a path and nothing else.
    ///
    /// # Errors
    /// What is not a call of Cofferdam's, whatever the reason.
    pub fn parse(method: &Method, path: &str, query: Option<&str>, body: &[u8]) -> Result<Self, Refusal> {
        let segments = path.strip_prefix('/').ok_or(Refusal::Unknown)?;
        let segments: Vec<&str> = segments.split('/').collect();
        let (api, segments) = match segments.split_first() {
            Some((first, rest)) if first.starts_with('v') && !rest.is_empty() => {
                (Some(version(first).ok_or(Refusal::Unknown)?), rest)
            }
            _ => (None, segments.as_slice()),
        };
        let query = Query::parse(query)?;
        let what = match (method, segments) {
            (&Method::GET, ["_ping"]) => query.none(What::Ping),
            (&Method::GET, ["version"]) => query.none(What::Version),
            (&Method::GET, ["info"]) => query.none(What::Info),
            (&Method::GET, ["volumes"]) => query.none(What::Volumes),
            (&Method::GET, ["volumes", name]) if is_volume_name(name) => {
                query.none(What::Volume((*name).to_owned()))
            }
            (&Method::GET, ["events"]) => query.events(),
            (&Method::GET, ["containers", "json"]) => query.containers(),
            (&Method::GET, ["containers", id, "json"]) if is_id(id) => {
                query.none(What::Container((*id).to_owned()))
            }
            (&Method::POST, ["containers", id, "stop"]) if is_id(id) => query.stop(id),
            (&Method::GET, ["networks"]) => query.none(What::Networks),
            (&Method::GET, ["networks", id]) if is_readable_network(id) => {
                query.none(What::Network((*id).to_owned()))
            }
            (&Method::DELETE, ["networks", id]) if is_id(id) => query.none(What::Remove((*id).to_owned())),
            (&Method::POST, ["networks", "create"]) => query.none(What::Create(Create::parse(body)?)),
            (&Method::POST, ["networks", id, "connect"]) if is_id(id) => {
                query.none(What::Connect((*id).to_owned(), Connect::parse(body)?))
            }
            (&Method::POST, ["networks", id, "disconnect"]) if is_id(id) || is_name_of_ours(id) => {
                query.none(What::Disconnect((*id).to_owned(), Disconnect::parse(body)?))
            }
            _ => Err(Refusal::Unknown),
        }?;
        let has_body = matches!(what, What::Create(_) | What::Connect(..) | What::Disconnect(..));
        if !has_body && !body.is_empty() {
            return Err(Refusal::Superfluous);
        }
        Ok(Self { api, what })
    }

    /// The method.
    pub fn method(&self) -> Method {
        match self.what {
            What::Create(_) | What::Connect(..) | What::Disconnect(..) | What::Stop(_) => Method::POST,
            What::Remove(_) => Method::DELETE,
            _ => Method::GET,
        }
    }

    /// The path and query.
    pub fn target(&self) -> String {
        let prefix = self
            .api
            .map_or(String::new(), |(major, minor)| format!("/v{major}.{minor}"));
        let rest = match &self.what {
            What::Ping => "/_ping".to_owned(),
            What::Version => "/version".to_owned(),
            What::Info => "/info".to_owned(),
            What::Volumes => "/volumes".to_owned(),
            What::Volume(name) => format!("/volumes/{name}"),
            What::Networks => "/networks".to_owned(),
            What::Events { since, filters } => {
                let query = [("since", since.clone()), ("filters", json(filters))];
                format!("/events?{}", encoded(&query))
            }
            What::Containers { id: None } => "/containers/json?all=1".to_owned(),
            What::Containers { id: Some(id) } => {
                let filters = Filters::from([("id".to_owned(), vec![id.clone()])]);
                let query = [("all", "1".to_owned()), ("filters", json(&filters))];
                format!("/containers/json?{}", encoded(&query))
            }
            What::Container(id) => format!("/containers/{id}/json"),
            What::Stop(id) => format!("/containers/{id}/stop?t={STOP_GRACE}"),
            What::Network(id) | What::Remove(id) => format!("/networks/{id}"),
            What::Create(_) => "/networks/create".to_owned(),
            What::Connect(id, _) => format!("/networks/{id}/connect"),
            What::Disconnect(id, _) => format!("/networks/{id}/disconnect"),
        };
        prefix + &rest
    }

    /// The body, where the call has one.
    pub fn body(&self) -> Option<String> {
        match &self.what {
            What::Create(body) => Some(json(body)),
            What::Connect(_, body) => Some(json(body)),
            What::Disconnect(_, body) => Some(json(body)),
            _ => None,
        }
    }

    /// The network that the call would change, which must be ours.
    pub fn changes(&self) -> Option<Named<'_>> {
        match &self.what {
            What::Remove(id) | What::Connect(id, _) => Some(Named::Id(id)),
            What::Disconnect(id, _) if is_id(id) => Some(Named::Id(id)),
            What::Disconnect(name, _) => Some(Named::Name(name)),
            _ => None,
        }
    }

    /// Whether it would stop a container.
    pub fn stops(&self) -> bool {
        matches!(self.what, What::Stop(_))
    }

    /// What of the answer is passed on.
    pub fn passed(&self) -> Passed {
        match self.what {
            What::Container(_) => Passed::Container,
            What::Version => Passed::Version,
            What::Create(_) => Passed::Created,
            _ => Passed::All,
        }
    }
}

/// `v1.41`, as we would write it.
fn version(segment: &str) -> Option<(u32, u32)> {
    let (major, minor) = segment.strip_prefix('v')?.split_once('.')?;
    let version = (major.parse().ok()?, minor.parse().ok()?);
    let canonical = format!("v{}.{}", version.0, version.1) == segment;
    (canonical && (OLDEST_API..=NEWEST_API).contains(&version)).then_some(version)
}

/// Whether this is a whole id, which an engine never takes for the beginning of another or for a name.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
}

/// A network's id, that of a swarm's, or the default network's name.
fn is_readable_network(text: &str) -> bool {
    let swarm = text.len() == 25
        && text
            .bytes()
            .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
    is_id(text) || swarm || text == "bridge"
}

/// `cofferdam-shop-web`, as [`crate::policy::ScopedName::network_name`] makes it.
fn is_name_of_ours(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= 256
        && text.strip_prefix("cofferdam-").is_some_and(|rest| {
            let ends = [rest.bytes().next(), rest.bytes().last()];
            rest.bytes().all(inner) && ends.iter().all(|it| it.is_some_and(|byte| byte != b'-'))
        })
}

/// The query's parameters, each at most once.
struct Query(BTreeMap<String, String>);

impl Query {
    fn parse(text: Option<&str>) -> Result<Self, Refusal> {
        let mut parameters = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(text.unwrap_or_default().as_bytes()) {
            if parameters.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(Refusal::Query);
            }
        }
        Ok(Self(parameters))
    }

    fn none(self, what: What) -> Result<What, Refusal> {
        self.exhausted().map(|()| what)
    }

    fn take(&mut self, name: &str) -> Result<String, Refusal> {
        self.0.remove(name).ok_or(Refusal::Query)
    }

    fn exhausted(self) -> Result<(), Refusal> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Refusal::Query)
        }
    }

    fn events(mut self) -> Result<What, Refusal> {
        let since = self.take("since")?;
        let filters = filters(&self.take("filters")?)?;
        self.exhausted()?;
        let (seconds, fraction) = since.split_once('.').ok_or(Refusal::Query)?;
        let digits =
            |text: &str| (1..=20).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_digit());
        let within = |name: &str, known: &[&str]| {
            let values = filters.get(name).map_or(&[][..], Vec::as_slice);
            !values.is_empty() && values.iter().all(|it| known.contains(&it.as_str()))
        };
        // Others would tell what is run in containers, with all its words.
        let holds = filters.len() == 2
            && within("type", &WATCHED_TYPES)
            && within("event", &WATCHED_EVENTS)
            && digits(seconds)
            && digits(fraction);
        if holds {
            Ok(What::Events { since, filters })
        } else {
            Err(Refusal::Query)
        }
    }

    fn containers(mut self) -> Result<What, Refusal> {
        if self.take("all")? != "1" {
            return Err(Refusal::Query);
        }
        let id = match self.0.remove("filters") {
            None => None,
            Some(text) => {
                let filters: Vec<(String, Vec<String>)> = filters(&text)?.into_iter().collect();
                match filters.as_slice() {
                    [(name, ids)] if name == "id" && ids.len() == 1 => {
                        ids.first().filter(|id| is_id(id)).cloned()
                    }
                    _ => None,
                }
                .map_or(Err(Refusal::Query), |id| Ok(Some(id)))?
            }
        };
        self.none(What::Containers { id })
    }

    fn stop(mut self, id: &str) -> Result<What, Refusal> {
        if self.take("t")? != STOP_GRACE.to_string() {
            return Err(Refusal::Query);
        }
        self.none(What::Stop(id.to_owned()))
    }
}

fn filters(text: &str) -> Result<Filters, Refusal> {
    serde_json::from_str(text).map_err(|_| Refusal::Query)
}

/// Values of types that always have a form in JSON.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn encoded(parameters: &[(&str, String)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish()
}

#[cfg(test)]
mod tests;
