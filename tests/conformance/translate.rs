//! From the neutral policy to Cofferdam's files: pure.
//!
//! Every distinct selector becomes a named service of the segment `conformance`, and keeps its name for the length of
//! a case; `everyone` selects all containers, so that all are managed.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::case::{
    Direction, Expression, NeutralEdge, NeutralPolicy, NeutralPort, NeutralSelector, Operator,
};
use crate::case::{PortSpec, Stance};
use crate::fact::Transport;

/// Why a policy cannot be said in Cofferdam's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untranslatable {
    #[error("the product has no {0}, and the case does not require it")]
    Lacking(&'static str),
    #[error("no edge can join {from} and {to}: neither is a service")]
    NoService { from: String, to: String },
    #[error("a selector mixes keys that exclude each other: {0}")]
    Mixed(String),
    #[error("a selector selects nothing at all")]
    EmptySelector,
    #[error("an edge's list of {0} is empty")]
    EmptyList(&'static str),
    #[error("not a port of {0}: {1}")]
    BadPort(Transport, String),
}

/// One end of an edge: its name in the file and whether that is a service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    name: String,
    service: bool,
}

/// Names given so far: they outlive a policy, so that a change of one edge is a change of one edge.
#[derive(Debug, Default)]
pub(crate) struct Translator {
    names: BTreeMap<NeutralSelector, String>,
    services: BTreeMap<String, Value>,
    externals: BTreeMap<String, Value>,
}

const EVERYONE: &str = "everyone";
const NO_PROJECT: &str = "!com.docker.compose.project";

impl Translator {
    /// The files of the policy directory by name. They are JSON, which is YAML.
    pub(crate) fn files(
        &mut self,
        policy: &NeutralPolicy,
    ) -> Result<BTreeMap<String, String>, Untranslatable> {
        let lacking = [
            (
                "default-allow",
                policy.default == Stance::Allow || !policy.isolate.is_empty(),
            ),
            (
                "deny-rules",
                !policy.deny.is_empty() || policy.documents.iter().any(|d| !d.deny.is_empty()),
            ),
            (
                "default-allow",
                policy.documents.iter().any(|d| !d.isolate.is_empty()),
            ),
            ("audit", policy.audit.is_some()),
        ];
        if let Some((name, _)) = lacking.into_iter().find(|(_, used)| *used) {
            return Err(Untranslatable::Lacking(name));
        }
        let mut used = BTreeMap::new();
        let mut documents = Vec::new();
        for document in &policy.documents {
            documents.push((document.name.clone(), self.edges(&document.allow, &mut used)?));
        }
        let base_edges = self.edges(&policy.allow, &mut used)?;

        let mut base = head();
        let mut services = Map::from_iter([(EVERYONE.to_owned(), json!({"select": {"name": "*"}}))]);
        let mut externals = Map::new();
        for name in used.keys() {
            if let Some(service) = self.services.get(name) {
                services.insert(name.clone(), service.clone());
            }
            if let Some(external) = self.externals.get(name) {
                externals.insert(name.clone(), external.clone());
            }
        }
        base.insert("services".to_owned(), Value::Object(services));
        if !externals.is_empty() {
            base.insert("externals".to_owned(), Value::Object(externals));
        }
        if !base_edges.is_empty() {
            base.insert("allow".to_owned(), Value::Array(base_edges));
        }
        let mut files = BTreeMap::from([("conformance.yaml".to_owned(), render(base))]);
        for (index, (name, edges)) in documents.into_iter().enumerate() {
            if edges.is_empty() {
                continue;
            }
            let mut document = head();
            document.insert("allow".to_owned(), Value::Array(edges));
            let name: String = name
                .chars()
                .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
                .collect();
            files.insert(format!("document-{index}-{name}.yaml"), render(document));
        }
        Ok(files)
    }

    fn edges(
        &mut self,
        edges: &[NeutralEdge],
        used: &mut BTreeMap<String, ()>,
    ) -> Result<Vec<Value>, Untranslatable> {
        edges.iter().map(|edge| self.edge(edge, used)).collect()
    }

    fn edge(&mut self, edge: &NeutralEdge, used: &mut BTreeMap<String, ()>) -> Result<Value, Untranslatable> {
        if edge.direction != Direction::Both {
            return Err(Untranslatable::Lacking("directional"));
        }
        let mut ends = |selectors: &[NeutralSelector], what| {
            if selectors.is_empty() {
                return Err(Untranslatable::EmptyList(what));
            }
            selectors
                .iter()
                .map(|selector| self.end(selector))
                .collect::<Result<Vec<_>, _>>()
        };
        let (from, to) = (ends(&edge.from, "from")?, ends(&edge.to, "to")?);
        for source in &from {
            if let Some(target) = to.iter().find(|target| !source.service && !target.service) {
                return Err(Untranslatable::NoService {
                    from: source.name.clone(),
                    to: target.name.clone(),
                });
            }
        }
        let ports = match &edge.ports {
            None => json!("any"),
            Some(ports) if ports.is_empty() => return Err(Untranslatable::EmptyList("ports")),
            Some(ports) => ports.iter().map(port).collect::<Result<Value, _>>()?,
        };
        used.extend(from.iter().chain(&to).map(|end| (end.name.clone(), ())));
        Ok(json!({"from": names(&from), "to": names(&to), "ports": ports}))
    }

    fn end(&mut self, selector: &NeutralSelector) -> Result<End, Untranslatable> {
        let containers = selector.project.is_some()
            || selector.service.is_some()
            || !selector.labels.is_empty()
            || !selector.expr.is_empty()
            || selector.any_service;
        let kinds = [
            containers,
            selector.cidr.is_some(),
            selector.fqdn.is_some(),
            selector.world,
            selector.host,
        ];
        match kinds.iter().filter(|kind| **kind).count() {
            0 => return Err(Untranslatable::EmptySelector),
            1 => {}
            _ => return Err(Untranslatable::Mixed(format!("{selector:?}"))),
        }
        let plain = |name: &str| End {
            name: name.to_owned(),
            service: false,
        };
        if selector.fqdn.is_some() {
            return Err(Untranslatable::Lacking("fqdn"));
        } else if selector.world {
            return Ok(plain("world"));
        } else if selector.host {
            return Ok(plain("host"));
        } else if let Some(cidr) = &selector.cidr {
            let name = self.name(selector, "ext");
            let mut external = json!({"cidrs": [cidr.to_string()]});
            if !selector.except.is_empty() {
                external["except"] = selector.except.iter().map(ToString::to_string).collect();
            }
            self.externals.insert(name.clone(), external);
            return Ok(plain(&name));
        }
        let select = select(selector);
        if select == json!({"name": "*"}) {
            return Ok(End {
                name: EVERYONE.to_owned(),
                service: true,
            });
        }
        let name = self.name(selector, "sel");
        self.services.insert(name.clone(), json!({"select": select}));
        Ok(End { name, service: true })
    }

    fn name(&mut self, selector: &NeutralSelector, prefix: &str) -> String {
        let next = self.names.len() + 1;
        self.names
            .entry(selector.clone())
            .or_insert_with(|| format!("{prefix}-{next}"))
            .clone()
    }
}

fn head() -> Map<String, Value> {
    Map::from_iter([
        ("cofferdam".to_owned(), json!(1)),
        ("segment".to_owned(), json!("conformance")),
    ])
}

fn render(document: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(document))
}

fn names(ends: &[End]) -> Vec<&str> {
    ends.iter().map(|end| end.name.as_str()).collect()
}

/// The `select` of a service; a list where one alternative is not enough.
fn select(selector: &NeutralSelector) -> Value {
    let mut parts = Map::new();
    let mut terms: Vec<String> = selector.expr.iter().map(term).collect();
    let mut plain_name = None;
    match (selector.project.as_deref(), selector.service.as_deref()) {
        (Some("-"), name) => {
            terms.push(NO_PROJECT.to_owned());
            plain_name = name;
        }
        (None, None) => {}
        (project, service) => {
            let pattern = format!("{}/{}", project.unwrap_or("*"), service.unwrap_or("*"));
            parts.insert("compose".to_owned(), json!(pattern));
        }
    }
    // The map form takes any value; the grammar is needed only where the map cannot say it.
    if terms.is_empty() && !selector.labels.is_empty() {
        parts.insert("labels".to_owned(), json!(selector.labels));
    } else if !terms.is_empty() {
        terms.extend(
            selector
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}")),
        );
        parts.insert("labels".to_owned(), json!(terms.join(",")));
    }
    match plain_name {
        Some(name) => {
            let named = |pattern: String| {
                let mut parts = parts.clone();
                parts.insert("name".to_owned(), json!(pattern));
                Value::Object(parts)
            };
            // Further replicas are numbered; and Docker wants names of two characters at least.
            let first = if name.len() > 1 {
                name.to_owned()
            } else {
                format!("{name}-1")
            };
            let replicas = (2..=9).map(|number| format!("{name}-{number}"));
            std::iter::once(first).chain(replicas).map(named).collect()
        }
        None if parts.is_empty() => json!({"name": "*"}),
        None => Value::Object(parts),
    }
}

/// An expression in Kubernetes' label-selector grammar.
fn term(expression: &Expression) -> String {
    let (key, values) = (&expression.key, expression.values.join(","));
    match expression.op {
        Operator::In => format!("{key} in ({values})"),
        Operator::NotIn => format!("{key} notin ({values})"),
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
    }
}

fn port(port: &NeutralPort) -> Result<Value, Untranslatable> {
    let bad = |transport, text: &str| Err(Untranslatable::BadPort(transport, text.to_owned()));
    match (port.proto, &port.port) {
        (None, None) => Ok(json!("any")),
        (Some(transport), None) => Ok(json!(transport.to_string())),
        (Some(Transport::Icmp), Some(PortSpec::Name(name))) if name == "echo" => {
            Ok(json!("icmp/echo-request"))
        }
        (Some(Transport::Icmp), Some(other)) => bad(Transport::Icmp, &format!("{other:?}")),
        (_, Some(PortSpec::Name(_))) => Err(Untranslatable::Lacking("named-port")),
        (None | Some(Transport::Tcp), Some(PortSpec::Number(number))) => Ok(json!(number)),
        (Some(transport), Some(PortSpec::Number(number))) => Ok(json!(format!("{number}/{transport}"))),
        (transport, Some(PortSpec::Range(range))) => {
            let transport = transport.unwrap_or(Transport::Tcp);
            if range.from > range.to {
                return bad(transport, &format!("{}-{}", range.from, range.to));
            }
            Ok(json!(format!("{}-{}/{transport}", range.from, range.to)))
        }
    }
}
