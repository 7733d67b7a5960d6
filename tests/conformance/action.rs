//! What a step may do, and what may be asserted of it. What is not listed here is not known, and fails its case.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::case::{Listen, NeutralPolicy, ServiceSpec, labels};
use crate::fact::{Fact, Transport};

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Action {
    SetPolicy(NeutralPolicy),
    SubmitInvalidPolicy(InvalidPolicy),
    StartService(Start),
    StopService(ServiceRef),
    RecreateService(ReplacementRef),
    RestartService(ServiceRef),
    Scale(Scale),
    RollingUpdate(ReplacementRef),
    RunShortLived(ShortLived),
    BurstStart(Burst),
    NetworkConnect(Attachment),
    NetworkDisconnect(Attachment),
    KillController(Signal),
    StopController(Nothing),
    StartController(Nothing),
    RestartController(Signal),
    PauseController(Nothing),
    ResumeController(Nothing),
    DeleteNftTable(Table),
    FlushRuleset(Flush),
    DeleteSetElement(Element),
    BreakNft(Nothing),
    RestoreNft(Nothing),
    RestartDockerd(Nothing),
    OpenConnection(Connection),
    SendSpoofed(Spoofed),
    SendIcmpError(IcmpError),
    Wait(Pause),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InvalidPolicy {
    pub(crate) kind: String,
}

/// A name alone, or what is to be said about it. Unlike an untagged enum it names the field that it does not know.
#[derive(Debug, Clone)]
pub(crate) enum Named<T> {
    Key(String),
    Map(T),
}

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Named<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(key) => Ok(Self::Key(key)),
            map => serde_json::from_value(map)
                .map(Self::Map)
                .map_err(serde::de::Error::custom),
        }
    }
}

/// `x/a` or `{service: x/a}`.
pub(crate) type ServiceRef = Named<ServiceKey>;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceKey {
    pub(crate) service: String,
}

impl ServiceRef {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Key(key) => key,
            Self::Map(map) => &map.service,
        }
    }
}

/// A new service, or one that was stopped, by its name: with what it had.
pub(crate) type Start = Named<ServiceSpec>;

/// New containers for a service; what is not given stays.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replacement {
    pub(crate) service: String,
    #[serde(default, deserialize_with = "some_labels")]
    pub(crate) labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(crate) listen: Option<Vec<Listen>>,
}

fn some_labels<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    labels(deserializer).map(Some)
}

pub(crate) type ReplacementRef = Named<Replacement>;

impl ReplacementRef {
    pub(crate) fn replacement(&self) -> Replacement {
        match self {
            Self::Key(key) => Replacement {
                service: key.clone(),
                labels: None,
                listen: None,
            },
            Self::Map(replacement) => replacement.clone(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scale {
    pub(crate) service: String,
    #[serde(alias = "to", alias = "count")]
    pub(crate) replicas: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShortLived {
    pub(crate) service: String,
    #[serde(default, deserialize_with = "labels")]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) entrypoint: String,
    #[serde(default = "one")]
    pub(crate) count: u32,
}

fn one() -> u32 {
    1
}

/// Many containers at once: `{services: [..]}`, or one service with a count.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Burst {
    Many(BurstList),
    One(ServiceSpec),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BurstList {
    pub(crate) services: Vec<ServiceSpec>,
}

impl Burst {
    pub(crate) fn services(&self) -> Vec<ServiceSpec> {
        match self {
            Self::Many(list) => list.services.clone(),
            Self::One(spec) => vec![spec.clone()],
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attachment {
    pub(crate) service: String,
    #[serde(default)]
    pub(crate) network_of: Option<String>,
    #[serde(default)]
    pub(crate) network: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Signal {
    #[serde(default)]
    pub(crate) signal: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    #[serde(default)]
    pub(crate) family: Option<String>,
    #[serde(default, alias = "name")]
    pub(crate) table: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Flush {
    /// Prose; the one sequel known is a restart of dockerd.
    #[serde(default)]
    pub(crate) then: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Element {
    /// Whose address; any element when not given.
    #[serde(
        default,
        alias = "of",
        alias = "address_of",
        alias = "element_of",
        alias = "set_of",
        alias = "member",
        alias = "element",
        alias = "from"
    )]
    pub(crate) service: Option<String>,
    /// Or the flow that it opens: then it is the source's.
    #[serde(default)]
    pub(crate) flow: Option<Fact>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Connection {
    pub(crate) flow: Fact,
    pub(crate) id: String,
}

/// Packets with a source that is not the sender's. A flow stands for what else is not said: `flow: x/b -> x/a udp/53`
/// sent `from: x/c` pretends to be `x/b`; with `as: x/b` and no `from` it is the flow's own source that sends.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spoofed {
    #[serde(default, alias = "sender", alias = "service")]
    pub(crate) from: Option<String>,
    /// Whose address is forged, or which.
    #[serde(
        default,
        rename = "as",
        alias = "source",
        alias = "source_of",
        alias = "source_ip",
        alias = "source_ip_of",
        alias = "source_address_of",
        alias = "src",
        alias = "src_of",
        alias = "src_ip",
        alias = "src_ip_of",
        alias = "spoof",
        alias = "spoofed",
        alias = "address_of",
        alias = "pretend"
    )]
    pub(crate) pretend: Option<String>,
    #[serde(default, alias = "dst", alias = "target")]
    pub(crate) to: Option<String>,
    #[serde(default)]
    pub(crate) flow: Option<Fact>,
    #[serde(default)]
    pub(crate) proto: Option<Transport>,
    #[serde(default)]
    pub(crate) port: Option<u16>,
    #[serde(default)]
    pub(crate) id: Option<String>,
    #[serde(default = "five")]
    pub(crate) count: u32,
}

/// A [`Spoofed`] with everything filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forgery {
    pub(crate) from: String,
    pub(crate) pretend: String,
    pub(crate) to: String,
    pub(crate) proto: Transport,
    pub(crate) port: u16,
}

impl Spoofed {
    /// # Errors
    /// What is not said.
    pub(crate) fn forgery(&self) -> Result<Forgery, String> {
        let flow = self.flow.as_ref();
        let source = || flow.map(|flow| flow.from.to_string());
        let need = |what: Option<String>, name: &str| {
            what.ok_or_else(|| format!("send_spoofed does not say {name}: {self:?}"))
        };
        let (from, pretend) = match (self.from.clone(), self.pretend.clone()) {
            (Some(from), None) => (Some(from), source()),
            (None, pretend) => (source(), pretend),
            both => both,
        };
        Ok(Forgery {
            from: need(from, "who sends")?,
            pretend: need(pretend, "whose address is forged")?,
            to: need(
                self.to.clone().or_else(|| flow.map(|flow| flow.to.to_string())),
                "to whom",
            )?,
            proto: self
                .proto
                .or(flow.map(|flow| flow.transport))
                .unwrap_or(Transport::Udp),
            port: self.port.or(flow.map(|flow| flow.port)).unwrap_or(0),
        })
    }
}

fn five() -> u32 {
    5
}

/// An ICMP error about an open connection, from its server's side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IcmpError {
    /// The connection it is about; needless when only one is open.
    #[serde(default, alias = "connection", alias = "for", alias = "about")]
    pub(crate) id: Option<String>,
    /// Or one of that flow, which is opened for it.
    #[serde(default)]
    pub(crate) flow: Option<Fact>,
    #[serde(default)]
    pub(crate) from: Option<String>,
    #[serde(default, alias = "type", alias = "error")]
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(crate) enum Pause {
    Milliseconds(u64),
    Map(PauseMap),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PauseMap {
    #[serde(default)]
    pub(crate) ms: Option<u64>,
    #[serde(default, alias = "s")]
    pub(crate) seconds: Option<u64>,
}

impl Pause {
    pub(crate) fn milliseconds(self) -> u64 {
        match self {
            Self::Milliseconds(ms) => ms,
            Self::Map(map) => map.ms.unwrap_or(0) + 1000 * map.seconds.unwrap_or(0),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum During {
    #[default]
    Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReportedVerdict {
    #[serde(alias = "allowed")]
    Allow,
    #[serde(alias = "denied")]
    Deny,
    #[serde(alias = "would-deny", alias = "would_deny")]
    Audit,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Assertion {
    NeverAllowed {
        flow: Fact,
        #[serde(default = "hundred")]
        rate_hz: u32,
        #[serde(default, rename = "during")]
        _during: During,
    },
    NeverInterrupted {
        flow: Fact,
        #[serde(default, rename = "during")]
        _during: During,
    },
    ConnectionAlive {
        id: String,
    },
    ConnectionDead {
        id: String,
        #[serde(default)]
        within_ms: Option<u64>,
    },
    Resolves {
        from: String,
        name: String,
    },
    FirstConnectionSucceeds {
        flow: Fact,
    },
    PolicyRejected {},
    NoStaleAddresses {
        #[serde(default)]
        within_ms: Option<u64>,
    },
    DriftReported {
        #[serde(default)]
        within_ms: Option<u64>,
    },
    ProgrammingErrorReported {
        #[serde(default)]
        within_ms: Option<u64>,
    },
    PacketNotDelivered {
        #[serde(default)]
        id: Option<String>,
        /// Where it must not arrive; else wherever it was sent to.
        #[serde(default, alias = "at")]
        to: Option<String>,
    },
    IcmpErrorDelivered {
        #[serde(default, alias = "connection")]
        id: Option<String>,
        #[serde(default, alias = "at")]
        to: Option<String>,
    },
    LatencyP99Ms {
        metric: String,
        #[serde(alias = "max_ms")]
        max: f64,
    },
    Reported {
        flow: Fact,
        verdict: ReportedVerdict,
        #[serde(default)]
        fields: Vec<String>,
    },
    NotReported {
        flow: Fact,
        verdict: ReportedVerdict,
    },
}

fn hundred() -> u32 {
    100
}
