//! The grammar of facts: `<src> -> <dst> <proto>/<port>[ via=published/<host_port>]`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        })
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            "icmp" => Ok(Self::Icmp),
            _ => Err(format!("unknown protocol {text:?}")),
        }
    }
}

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    /// `project/service`, or `-/name` for a plain container.
    Service(String),
    External(String),
    Host,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => f.write_str(key),
            Self::External(name) => write!(f, "ext/{name}"),
            Self::Host => f.write_str("host"),
        }
    }
}

impl FromStr for Party {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            None if text == "host" => Ok(Self::Host),
            Some(("ext", name)) if !name.is_empty() => Ok(Self::External(name.to_owned())),
            Some((project, name)) if !project.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Service(text.to_owned()))
            }
            _ => Err(format!("not project/service, -/name, ext/name or host: {text:?}")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Fact {
    pub(crate) from: Party,
    pub(crate) to: Party,
    pub(crate) transport: Transport,
    /// The container's port; 0 for ICMP echo.
    pub(crate) port: u16,
    /// The host's port when the client dials a published one.
    pub(crate) published: Option<u16>,
}

impl Fact {
    /// The port that the client dials.
    pub(crate) fn dialled(&self) -> u16 {
        self.published.unwrap_or(self.port)
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}/", self.from, self.to, self.transport)?;
        match self.transport {
            Transport::Icmp => f.write_str("echo")?,
            _ => write!(f, "{}", self.port)?,
        }
        match self.published {
            Some(port) => write!(f, " via=published/{port}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Fact {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Fact {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (from, to, service, via) = match words.as_slice() {
            [from, "->", to, service] => (from, to, service, None),
            [from, "->", to, service, via] => (from, to, service, Some(*via)),
            _ => return Err(format!("not a fact: {text:?}")),
        };
        let (transport, port) = service
            .split_once('/')
            .ok_or_else(|| format!("not <proto>/<port>: {service:?} in {text:?}"))?;
        let transport: Transport = transport.parse()?;
        let number = |what: &str| match what.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("not a port: {what:?} in {text:?}")),
        };
        let port = match (transport, port) {
            (Transport::Icmp, "echo") => 0,
            (Transport::Icmp, _) => return Err(format!("ICMP has only echo: {text:?}")),
            (_, port) => number(port)?,
        };
        let published = match via {
            None => None,
            Some(via) => match via.strip_prefix("via=published/") {
                Some(port) => Some(number(port)?),
                None => return Err(format!("unknown {via:?} in {text:?}")),
            },
        };
        Ok(Self {
            from: from.parse()?,
            to: to.parse()?,
            transport,
            port,
            published,
        })
    }
}
