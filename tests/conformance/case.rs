//! The format `netseg-conformance/1`: what a case file may say, and nothing else.
//!
//! In: the text of a case file. Out: [`Case`]s, or for each why it cannot be read: one unreadable case fails alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::action::{Action, Assertion};
use crate::fact::{Fact, Transport};

pub(crate) const FORMAT: &str = "netseg-conformance/1";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    #[serde(default)]
    defaults: Defaults,
    /// What each capability means, for readers.
    #[serde(default)]
    #[expect(dead_code, reason = "documentation inside the file")]
    capabilities: BTreeMap<String, String>,
    cases: Vec<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProbeMode {
    ContainerAddress,
    ServiceName,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Defaults {
    pub(crate) converge_ms: u64,
    pub(crate) probe_timeout_ms: u64,
    pub(crate) probe_retries: u32,
    pub(crate) probe_modes: Vec<ProbeMode>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            converge_ms: 5000,
            probe_timeout_ms: 1000,
            probe_retries: 1,
            probe_modes: vec![ProbeMode::ContainerAddress, ProbeMode::ServiceName],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profile {
    Core,
    Extended,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(rename = "category")]
    _category: String,
    #[serde(rename = "profile")]
    _profile: Profile,
    #[serde(default)]
    pub(crate) requires: Vec<String>,
    #[serde(rename = "origin", default)]
    _origin: Value,
    #[serde(rename = "note", default)]
    _note: Option<String>,
    pub(crate) topology: Topology,
    pub(crate) policy: NeutralPolicy,
    pub(crate) expect: Expect,
    #[serde(default)]
    pub(crate) steps: Vec<Step>,
    #[serde(skip)]
    pub(crate) defaults: Defaults,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    #[serde(rename = "do", default, deserialize_with = "actions")]
    pub(crate) actions: Vec<Action>,
    #[serde(default)]
    pub(crate) within_ms: Option<u64>,
    #[serde(default)]
    pub(crate) expect: Expect,
    #[serde(rename = "note", default)]
    _note: Option<String>,
    #[serde(rename = "name", default)]
    _name: Option<String>,
}

/// An action without arguments may be written `{stop_controller: {}}`, `stop_controller:` or `stop_controller`.
fn actions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Action>, D::Error> {
    let complete = |action: Value| match action {
        Value::String(name) => serde_json::json!({ name: {} }),
        Value::Object(map) if map.len() == 1 => map
            .into_iter()
            .map(|(name, arguments)| match arguments {
                Value::Null => (name, serde_json::json!({})),
                arguments => (name, arguments),
            })
            .collect(),
        other => other,
    };
    let raw = Vec::<Value>::deserialize(deserializer)?;
    let read = |action| serde_json::from_value(complete(action)).map_err(serde::de::Error::custom);
    raw.into_iter().map(read).collect()
}

impl Step {
    /// A step that does nothing but expect.
    pub(crate) fn of(expect: Expect) -> Self {
        Self {
            actions: Vec::new(),
            within_ms: None,
            expect,
            _note: None,
            _name: None,
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    #[serde(default)]
    pub(crate) allow: Vec<Fact>,
    #[serde(default)]
    pub(crate) deny: Vec<Fact>,
    #[serde(default, rename = "assert")]
    pub(crate) assertions: Vec<Assertion>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IpFamily {
    #[default]
    Ipv4,
    Ipv6,
    #[serde(alias = "dual-stack", alias = "dualstack")]
    Dual,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Topology {
    #[serde(default)]
    pub(crate) services: Vec<ServiceSpec>,
    #[serde(default)]
    pub(crate) externals: Vec<External>,
    #[serde(default)]
    pub(crate) ip_family: IpFamily,
    #[serde(default)]
    pub(crate) host: Option<HostSpec>,
}

/// `{listen: [..]}`, or the list alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum HostSpec {
    List(Vec<Listen>),
    Map(HostMap),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostMap {
    #[serde(default)]
    listen: Vec<Listen>,
}

impl HostSpec {
    pub(crate) fn listen(&self) -> &[Listen] {
        match self {
            Self::List(listen) => listen,
            Self::Map(map) => &map.listen,
        }
    }
}

/// One compose-like service, or a plain container when it has no project (or `-`). `service: p/s` names both at once.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(crate) struct ServiceSpec {
    #[serde(default)]
    pub(crate) project: Option<String>,
    #[serde(alias = "name")]
    pub(crate) service: String,
    #[serde(default, deserialize_with = "labels")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default = "one", alias = "count")]
    pub(crate) replicas: u32,
    #[serde(default)]
    pub(crate) listen: Vec<Listen>,
    #[serde(default)]
    pub(crate) networks: Vec<String>,
    #[serde(default)]
    pub(crate) publish: Vec<Publish>,
    #[serde(default)]
    pub(crate) network_mode: Option<String>,
    /// Takes the address that this service left behind.
    #[serde(default)]
    pub(crate) reuse_address_of: Option<String>,
}

impl<'de> Deserialize<'de> for ServiceSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut spec = Self::deserialize(deserializer)?;
        if let (None, Some((project, service))) = (&spec.project, spec.service.split_once('/')) {
            (spec.project, spec.service) = (Some(project.to_owned()), service.to_owned());
        }
        Ok(spec)
    }
}

impl ServiceSpec {
    pub(crate) fn project(&self) -> Option<&str> {
        self.project.as_deref().filter(|project| *project != "-")
    }

    /// As facts write it: `project/service` or `-/name`.
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.project().unwrap_or("-"), self.service)
    }
}

fn one() -> u32 {
    1
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    pub(crate) proto: Transport,
    #[serde(default)]
    pub(crate) port: Value,
    /// What policies may call the port.
    #[serde(default)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Publish {
    #[serde(default = "tcp")]
    pub(crate) proto: Transport,
    pub(crate) container_port: u16,
    pub(crate) host_port: u16,
    #[serde(default)]
    pub(crate) host_ip: Option<std::net::IpAddr>,
}

fn tcp() -> Transport {
    Transport::Tcp
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct External {
    pub(crate) name: String,
    pub(crate) ip: std::net::IpAddr,
    #[serde(default, alias = "ipv6")]
    pub(crate) ip6: Option<std::net::Ipv6Addr>,
    #[serde(default)]
    pub(crate) listen: Vec<Listen>,
    /// It only dials.
    #[serde(rename = "client", default)]
    _client: bool,
    #[serde(default)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stance {
    Deny,
    Allow,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NeutralPolicy {
    pub(crate) default: Stance,
    #[serde(default)]
    pub(crate) allow: Vec<NeutralEdge>,
    #[serde(default)]
    pub(crate) isolate: Vec<Isolation>,
    #[serde(default)]
    pub(crate) deny: Vec<NeutralEdge>,
    #[serde(default)]
    pub(crate) documents: Vec<Document>,
    #[serde(default)]
    pub(crate) audit: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) allow: Vec<NeutralEdge>,
    #[serde(default)]
    pub(crate) isolate: Vec<Isolation>,
    #[serde(default)]
    pub(crate) deny: Vec<NeutralEdge>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    #[default]
    Both,
    Ingress,
    Egress,
}

/// A direction in which a service may be isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    Ingress,
    Egress,
}

/// Isolates what it selects, where nothing else is isolated.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Isolation {
    pub(crate) select: Selected,
    directions: Vec<Side>,
}

impl Isolation {
    pub(crate) fn on(&self, side: Side) -> bool {
        self.directions.contains(&side)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Selected {
    Any(Vec<NeutralSelector>),
    One(NeutralSelector),
}

impl Selected {
    pub(crate) fn list(&self) -> &[NeutralSelector] {
        match self {
            Self::Any(list) => list,
            Self::One(selector) => std::slice::from_ref(selector),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NeutralEdge {
    pub(crate) from: Vec<NeutralSelector>,
    pub(crate) to: Vec<NeutralSelector>,
    /// `None` is every protocol and port; an empty list is not.
    #[serde(default)]
    pub(crate) ports: Option<Vec<NeutralPort>>,
    #[serde(default)]
    pub(crate) direction: Direction,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NeutralSelector {
    #[serde(default)]
    pub(crate) project: Option<String>,
    #[serde(default)]
    pub(crate) service: Option<String>,
    #[serde(default, deserialize_with = "labels")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) expr: Vec<Expression>,
    #[serde(default)]
    pub(crate) any_service: bool,
    #[serde(default)]
    pub(crate) cidr: Option<ipnet::IpNet>,
    #[serde(default)]
    pub(crate) except: Vec<ipnet::IpNet>,
    #[serde(default)]
    pub(crate) fqdn: Option<String>,
    #[serde(default)]
    pub(crate) world: bool,
    #[serde(default)]
    pub(crate) host: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expression {
    pub(crate) key: String,
    #[serde(alias = "operator")]
    pub(crate) op: Operator,
    #[serde(default)]
    pub(crate) values: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NeutralPort {
    #[serde(default)]
    pub(crate) proto: Option<Transport>,
    #[serde(default)]
    pub(crate) port: Option<PortSpec>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum PortSpec {
    Number(u16),
    Range(Range),
    Name(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Range {
    pub(crate) from: u16,
    pub(crate) to: u16,
}

/// Label values are strings even where YAML would read a number or a truth value.
pub(crate) fn labels<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let raw = BTreeMap::<String, Value>::deserialize(deserializer)?;
    let text = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Null => Ok(String::new()),
        other => Err(serde::de::Error::custom(format!("not a label value: {other}"))),
    };
    raw.into_iter()
        .map(|(key, value)| Ok((key, text(value)?)))
        .collect()
}

/// One entry of a file: a case, or its id (if it has one) and why it is none.
pub(crate) type Entry = Result<Case, Unreadable>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) id: String,
    pub(crate) reason: String,
}

/// The cases of one file; `Err` when the file as a whole is not of the format.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry>, String> {
    // `y` is a project's name, not a truth value; and a suite may be larger than what a stranger may send.
    let options = serde_yaml::options! { strict_booleans: true, budget: None };
    let file: File = serde_yaml::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    if file.format != FORMAT {
        return Err(format!("the format is {:?}, not {FORMAT}", file.format));
    }
    let entry = |(index, value): (usize, Value)| {
        let id = value.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = id.unwrap_or_else(|| format!("case-{}", index + 1));
        match serde_json::from_value::<Case>(value) {
            Ok(case) => Ok(Case {
                defaults: file.defaults.clone(),
                ..case
            }),
            Err(error) => Err(Unreadable {
                id,
                reason: format!("the case cannot be read: {error}"),
            }),
        }
    };
    Ok(file.cases.into_iter().enumerate().map(entry).collect())
}
