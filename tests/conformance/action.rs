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
    StartService(ServiceSpec),
    StopService(ServiceRef),
    RecreateService(Replacement),
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

/// `x/a` or `{service: x/a}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum ServiceRef {
    Key(String),
    Map(ServiceKey),
}

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

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum ReplacementRef {
    Key(String),
    Map(Replacement),
}

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
    #[serde(default, alias = "of", alias = "address_of")]
    pub(crate) service: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Connection {
    pub(crate) flow: Fact,
    pub(crate) id: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spoofed {
    pub(crate) from: String,
    /// Whose address is forged.
    #[serde(
        rename = "as",
        alias = "source",
        alias = "source_of",
        alias = "src_of",
        alias = "spoof",
        alias = "address_of",
        alias = "pretend"
    )]
    pub(crate) pretend: String,
    pub(crate) to: String,
    #[serde(default = "udp")]
    pub(crate) proto: Transport,
    #[serde(default)]
    pub(crate) port: u16,
    #[serde(default)]
    pub(crate) id: Option<String>,
    #[serde(default = "five")]
    pub(crate) count: u32,
}

fn udp() -> Transport {
    Transport::Udp
}

fn five() -> u32 {
    5
}

/// An ICMP error about an open connection, from its server's side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IcmpError {
    /// The connection it is about.
    #[serde(alias = "connection")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) from: Option<String>,
    #[serde(default)]
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
    #[serde(default)]
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
    DriftReported {},
    ProgrammingErrorReported {},
    PacketNotDelivered {
        #[serde(default)]
        id: Option<String>,
    },
    IcmpErrorDelivered {
        #[serde(default)]
        id: Option<String>,
    },
    LatencyP99Ms {
        metric: String,
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
