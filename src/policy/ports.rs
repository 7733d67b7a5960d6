//! The forms of a port: `8080`, `9000-9010/tcp`, `53/udp`, `udp`, `icmp`, `icmp/echo-request`, `any`.

use std::str::FromStr;

use super::Ports;
use super::suggest;
use crate::net::{Family, IcmpType, PortRange, Traffic, Transport};

/// Why a text is not a [`Ports`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PortsError {
    pub message: String,
    /// What was probably meant.
    pub help: Option<String>,
}

impl PortsError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
        }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

const WORDS: [&str; 5] = ["any", "icmp", "tcp", "udp", "sctp"];

impl FromStr for Ports {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "any" => return Ok(Self::Any),
            "icmp" => return Ok(Self::Icmp(None)),
            _ => {}
        }
        if let Some(transport) = transport(text) {
            return Ok(Self::Transport(transport, PortRange::ALL));
        }
        match text.split_once('/') {
            Some(("icmp", name)) => icmp(name),
            Some((ports, protocol)) => {
                let transport = transport(protocol).ok_or_else(|| unknown_protocol(ports, protocol))?;
                Ok(Self::Transport(transport, range(ports)?))
            }
            None => Ok(Self::Transport(Transport::Tcp, range(text)?)),
        }
    }
}

impl Ports {
    /// Whether a new connection of addresses of this family is among these.
    pub fn permits(self, traffic: Traffic, family: Family) -> bool {
        match (self, traffic) {
            (Self::Any, _) | (Self::Icmp(None), Traffic::Icmp(_)) => true,
            (Self::Transport(transport, range), Traffic::Port(protocol, port)) => {
                transport == protocol && range.contains(port)
            }
            (Self::Icmp(Some(icmp)), Traffic::Icmp(number)) => icmp.number(family) == Some(number),
            _ => false,
        }
    }
}

fn transport(text: &str) -> Option<Transport> {
    Transport::ALL
        .into_iter()
        .find(|transport| transport.as_str() == text)
}

fn icmp(name: &str) -> Result<Ports, PortsError> {
    let known = IcmpType::ALL.into_iter().find(|icmp| icmp.as_str() == name);
    known.map(|icmp| Ports::Icmp(Some(icmp))).ok_or_else(|| {
        let names = IcmpType::ALL.map(IcmpType::as_str);
        let error = PortsError::new(format!("`{name}` is not an ICMP message that a policy can name"));
        match suggest::closest(name, names) {
            Some(closest) => error.help(format!("did you mean `icmp/{closest}`?")),
            None => error.help(format!("known are {}", suggest::listed(&names, "and"))),
        }
    })
}

fn unknown_protocol(ports: &str, protocol: &str) -> PortsError {
    let error = PortsError::new(format!("`{protocol}` is not a protocol with ports"));
    let known = Transport::ALL.map(Transport::as_str);
    if transport(ports).is_some() {
        return error.help(format!("did you mean `{protocol}/{ports}`?"));
    }
    match suggest::closest(protocol, known) {
        Some(closest) => error.help(format!("did you mean `{ports}/{closest}`?")),
        None => error.help("protocols with ports are `tcp`, `udp` and `sctp`"),
    }
}

fn range(text: &str) -> Result<PortRange, PortsError> {
    let Some((first, last)) = text.split_once('-').filter(|(first, _)| !first.is_empty()) else {
        return port(text).map(PortRange::single);
    };
    let (first, last) = (port(first.trim())?, port(last.trim())?);
    if first > last {
        return Err(
            PortsError::new(format!("the range `{text}` ends before it begins"))
                .help(format!("did you mean `{last}-{first}`?")),
        );
    }
    Ok(PortRange { first, last })
}

fn port(text: &str) -> Result<u16, PortsError> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(text.strip_prefix('-').unwrap_or(text)) {
        let error = PortsError::new(format!("`{text}` is not a port"));
        if let Some((_, container)) = text
            .split_once(':')
            .filter(|(host, port)| digits(host) && digits(port))
        {
            return Err(error.help(format!(
                "ports are the container's, whatever is published: did you mean `{container}`?"
            )));
        }
        return Err(match suggest::closest(text, WORDS) {
            Some(closest) => error.help(format!("did you mean `{closest}`?")),
            None => error.help(
                "the forms are `8080`, `9000-9010/tcp`, `53/udp`, `udp`, `icmp`, `icmp/echo-request`, `any`",
            ),
        });
    }
    if text.len() > 1 && text.starts_with('0') {
        let plain = text.trim_start_matches('0');
        return Err(
            PortsError::new(format!("`{text}` is not a port: it begins with a zero"))
                .help(format!("did you mean `{plain}`?")),
        );
    }
    match text.parse() {
        Ok(0) => Err(PortsError::new("there is no port 0")
            .help("`tcp` or `udp` alone means all ports of the protocol")),
        Ok(port) => Ok(port),
        Err(_) => Err(PortsError::new(format!(
            "`{text}` is not a port: ports are 1 to 65535"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_the_same() {
        for text in [
            "8080/tcp",
            "9000-9010/tcp",
            "53/udp",
            "1-65535/sctp",
            "tcp",
            "udp",
            "sctp",
            "icmp",
            "icmp/echo-request",
            "icmp/timestamp-request",
            "any",
        ] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        assert_eq!("443".parse::<Ports>(), "443/tcp".parse());
        assert_eq!("9000-9010".parse::<Ports>(), "9000-9010/tcp".parse());
    }

    #[test]
    fn impossible_ports_are_refused_with_what_was_meant() {
        let table = [
            ("0", "no port 0", "`tcp` or `udp`"),
            ("0/udp", "no port 0", "`tcp` or `udp`"),
            ("65536", "1 to 65535", ""),
            ("-5", "1 to 65535", ""),
            ("9010-9000", "ends before it begins", "`9000-9010`"),
            ("0-100", "no port 0", ""),
            ("53/upd", "not a protocol", "`53/udp`"),
            ("53/UDP", "not a protocol", "`53/udp`"),
            ("udp/53", "not a protocol", "`53/udp`"),
            ("8443:443", "not a port", "`443`"),
            ("080", "begins with a zero", "`80`"),
            ("0x50", "not a port", ""),
            ("1e3", "not a port", ""),
            ("icmp/echo", "not an ICMP", ""),
            ("icmp/echo-reqest", "not an ICMP", "`icmp/echo-request`"),
            ("icmp6", "not a port", "`icmp`"),
            ("all", "not a port", "`any`"),
            ("", "not a port", ""),
            ("80,443", "not a port", "forms are"),
        ];
        for (text, message, help) in table {
            let error = text.parse::<Ports>().unwrap_err();
            assert!(error.message.contains(message), "{text}: {error:?}");
            assert!(
                error.help.as_deref().unwrap_or("").contains(help),
                "{text}: {error:?}"
            );
        }
    }

    #[test]
    fn traffic_is_permitted_by_protocol_port_and_type() {
        let permits = |ports: &str, traffic, family| ports.parse::<Ports>().unwrap().permits(traffic, family);
        let tcp = |port| Traffic::Port(Transport::Tcp, port);
        assert!(permits("443", tcp(443), Family::V4));
        assert!(!permits("443", Traffic::Port(Transport::Udp, 443), Family::V4));
        assert!(permits("9000-9010", tcp(9010), Family::V6));
        assert!(!permits("9000-9010", tcp(9011), Family::V6));
        assert!(permits("udp", Traffic::Port(Transport::Udp, 0), Family::V4));
        assert!(permits("icmp", Traffic::Icmp(200), Family::V6));
        assert!(permits("icmp/echo-request", Traffic::Icmp(128), Family::V6));
        assert!(!permits("icmp/echo-request", Traffic::Icmp(8), Family::V6));
        assert!(!permits("icmp/timestamp-request", Traffic::Icmp(13), Family::V6));
        assert!(permits("any", Traffic::Other(47), Family::V4));
        assert!(!permits("tcp", Traffic::Other(47), Family::V4));
    }
}
