//! YAML nodes to a [`Document`]: the fields of the format, each checked by itself.
//!
//! Nothing stops at the first fault: what cannot be read is reported and left out, and reading goes on.

use jiff::Timestamp;

use super::document::{AllowEntry, Document, ExternalEntry, Fact, PeerText, ServiceEntry};
use super::fault::Code;
use super::fields::{self, Fields};
use super::suggest::{self, did_you_mean};
use super::text::{Report, Sited};
use super::yaml::{Node, Value};
use super::{Expectation, Mode, Ports, externals, names, selectors};

const TOP: [&str; 7] = [
    "cofferdam",
    "segment",
    "mode",
    "services",
    "externals",
    "allow",
    "tests",
];

/// Reads one file's document.
pub(super) fn document(node: &Node, report: &mut Report<'_>) -> Document {
    let mut document = Document {
        segment: None,
        mode: None,
        services: Vec::new(),
        externals: Vec::new(),
        allow: Vec::new(),
        tests: Vec::new(),
    };
    let Some(fields) = Fields::of(node, "a policy", &TOP, report) else {
        return document;
    };
    if let Some(version) = fields.need("cofferdam", report) {
        check_version(version, report);
    }
    if let Some(segment) = fields.need("segment", report) {
        document.segment = fields::text(segment, "`segment` is a name", report)
            .and_then(|text| names::declared(&text, "segment", report));
    }
    document.mode = fields.get("mode").and_then(|node| mode(node, report));
    if let Some(services) = fields.get("services") {
        for (key, value) in fields::map(services, "`services`", report).unwrap_or_default() {
            document.services.extend(service(key, value, report));
        }
    }
    if let Some(node) = fields.get("externals") {
        for (key, value) in fields::map(node, "`externals`", report).unwrap_or_default() {
            document.externals.extend(external(key, value, report));
        }
    }
    if let Some(allow) = fields.get("allow") {
        for entry in fields::list(allow, "`allow`", report) {
            document.allow.extend(edge(entry, report));
        }
    }
    if let Some(node) = fields.get("tests") {
        document.tests = tests(node, report);
    }
    document
}

fn check_version(node: &Node, report: &mut Report<'_>) {
    match &node.value {
        Value::Number(text) if text == "1" => {}
        Value::Number(text) | Value::Text(text) => {
            report
                .add(
                    Code::Version,
                    node.site,
                    format!("format version `{text}` is not known to this version of Cofferdam"),
                )
                .help("the format described here is `cofferdam: 1`");
        }
        _ => fields::wrong_type(node, "`cofferdam` is the format version, a number", report),
    }
}

fn mode(node: &Node, report: &mut Report<'_>) -> Option<Sited<Mode>> {
    let text = fields::text(node, "`mode` is `enforce` or `audit`", report)?;
    let value = match text.value.as_str() {
        "enforce" => Mode::Enforce,
        "audit" => Mode::Audit,
        other => {
            let suggestion = suggest::closest(other, ["enforce", "audit"]);
            report
                .add(Code::BadMode, text.site, format!("`{other}` is not a mode"))
                .help(
                    did_you_mean(suggestion).unwrap_or_else(|| "modes are `enforce` and `audit`".to_owned()),
                );
            return None;
        }
    };
    Some(Sited {
        value,
        site: text.site,
    })
}

fn service(key: &Sited<String>, node: &Node, report: &mut Report<'_>) -> Option<ServiceEntry> {
    let name = names::declared(key, "service", report);
    let mut selectors = Vec::new();
    let mut own_mode = None;
    if let Some(fields) = Fields::of(node, "a service", &["select", "mode"], report) {
        own_mode = fields.get("mode").and_then(|node| mode(node, report));
        if let Some(select) = fields.need("select", report) {
            for one in fields::one_or_many(select, "`select`", report) {
                selectors.extend(selectors::selector(one, report));
            }
        }
    }
    name.map(|name| ServiceEntry {
        name,
        selectors,
        mode: own_mode.map(|mode| mode.value),
    })
}

fn external(key: &Sited<String>, node: &Node, report: &mut Report<'_>) -> Option<ExternalEntry> {
    let name = names::declared(key, "external", report);
    let (addresses, cidrs) = externals::addresses(&key.value, node, report);
    name.map(|name| ExternalEntry {
        name,
        addresses,
        cidrs,
    })
}

fn edge(node: &Node, report: &mut Report<'_>) -> Option<AllowEntry> {
    let known = ["from", "to", "ports", "until", "why"];
    let fields = Fields::of(node, "an `allow` entry", &known, report)?;
    let ends = |name: &'static str, report: &mut Report<'_>| {
        let mut peers = Vec::new();
        if let Some(end) = fields.need(name, report) {
            for one in fields::one_or_many(end, &format!("`{name}`"), report) {
                let text = fields::text(one, &format!("`{name}` is a name or a list of names"), report);
                peers.extend(text.and_then(|text| names::peer(&text, report)));
            }
        }
        peers
    };
    let from = ends("from", report);
    let to = ends("to", report);
    let mut ports = Vec::new();
    if let Some(list) = fields.need("ports", report) {
        for one in fields::one_or_many(list, "`ports`", report) {
            ports.extend(port(one, report));
        }
    }
    let end = fields.get("until").and_then(|node| until(node, report));
    let why = fields
        .get("why")
        .and_then(|why| fields::text(why, "`why` is text", report));
    Some(AllowEntry {
        site: node.site,
        from,
        to,
        ports,
        until: end,
        why: why.map(|why| why.value),
    })
}

fn port(node: &Node, report: &mut Report<'_>) -> Option<Sited<Ports>> {
    let (Value::Number(text) | Value::Text(text)) = &node.value else {
        fields::wrong_type(node, "`ports` holds numbers and forms such as `53/udp`", report);
        return None;
    };
    match text.parse() {
        Ok(value) => Some(Sited {
            value,
            site: node.site,
        }),
        Err(error) => {
            let error: super::ports::PortsError = error;
            report
                .add(Code::BadPorts, node.site, error.message)
                .help_if(error.help);
            None
        }
    }
}

fn until(node: &Node, report: &mut Report<'_>) -> Option<Sited<Timestamp>> {
    let text = fields::text(
        node,
        "`until` is a time as text, such as 2026-12-01T00:00:00Z",
        report,
    )?;
    let time = text.value.parse().ok();
    if time.is_none() {
        report
            .add(
                Code::BadTime,
                text.site,
                format!("`{}` is not a time (RFC 3339)", text.value),
            )
            .help(
                "write date, time and offset, such as `2026-12-01T00:00:00Z` or `2026-12-01T00:00:00+01:00`",
            );
    }
    time.map(|value| Sited {
        value,
        site: text.site,
    })
}

fn tests(node: &Node, report: &mut Report<'_>) -> Vec<Sited<Fact>> {
    let Some(fields) = Fields::of(node, "`tests`", &["reachable", "unreachable"], report) else {
        return Vec::new();
    };
    let mut facts = Vec::new();
    for (name, expected) in [
        ("reachable", Expectation::Reachable),
        ("unreachable", Expectation::Unreachable),
    ] {
        let Some(list) = fields.get(name) else {
            continue;
        };
        for one in fields::list(list, &format!("`{name}`"), report) {
            let text = fields::text(
                one,
                &format!("`{name}` holds texts such as \"web -> api:8080\""),
                report,
            );
            facts.extend(text.and_then(|text| fact(&text, expected, report)));
        }
    }
    facts
}

/// `web -> api:8080`, `world -> web:443/tcp`, `a -> b:icmp`.
fn fact(text: &Sited<String>, expected: Expectation, report: &mut Report<'_>) -> Option<Sited<Fact>> {
    let site = text.site;
    let parts = text.value.split_once("->").and_then(|(from, to)| {
        let (to, ports) = to.split_once(':')?;
        Some((from.trim(), to.trim(), ports.trim()))
    });
    let Some((from, to, ports)) = parts else {
        report
            .add(Code::BadTest, site, format!("`{}` is not a test", text.value))
            .help("write `from -> to:port`, such as `web -> api:8080` or `web -> api:53/udp`");
        return None;
    };
    let ports = match ports.parse::<Ports>() {
        Ok(ports) => Some(ports),
        Err(error) => {
            report
                .add(Code::BadPorts, site, error.message)
                .help_if(error.help);
            None
        }
    };
    let mut end = |name: &str| {
        let peer = names::peer(
            &Sited {
                value: name.to_owned(),
                site,
            },
            report,
        )?;
        if peer.value == PeerText::Every {
            report.add(
                Code::BadTest,
                site,
                "a test names one service at each end, not `*`",
            );
            return None;
        }
        Some(peer.value)
    };
    let (from, to) = (end(from), end(to));
    Some(Sited {
        value: Fact {
            from: from?,
            to: to?,
            ports: ports?,
            expected,
        },
        site,
    })
}
