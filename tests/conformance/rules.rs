//! What a neutral policy says, as sets: selectors, ports and port names read, nothing decided.

use std::collections::{BTreeMap, BTreeSet};

use crate::action::{Action, Named, Replacement};
use crate::algebra::{Addresses, Condition, Containers, ECHO, End, Traffic, whole};
use crate::case::{
    Case, Direction, Expression, Listen, NeutralEdge, NeutralPort, NeutralSelector, Operator, PortSpec,
    ServiceSpec,
};
use crate::fact::Transport;

/// Why a policy cannot be said in Cofferdam's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untranslatable {
    #[error("the product has no {0}, and the case does not require it")]
    Lacking(&'static str),
    #[error("a selector mixes keys that exclude each other: {0}")]
    Mixed(String),
    #[error("a selector selects nothing at all")]
    EmptySelector,
    #[error("not a port of {0}: {1}")]
    BadPort(Transport, String),
    #[error("the grammar of label selectors cannot say the value {0:?}")]
    Unsayable(String),
}

pub(crate) const PROJECT: &str = "com.docker.compose.project";
pub(crate) const SERVICE: &str = "com.docker.compose.service";

/// A port of a rule: known, or by the name that its destination gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Port {
    Known(Traffic),
    Named(Transport, String),
}

#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) from: Vec<End>,
    pub(crate) to: Vec<End>,
    pub(crate) ports: Vec<Port>,
    pub(crate) direction: Direction,
}

/// The port names of each service, in each form that the service takes in the course of a case.
#[derive(Debug, Default)]
pub(crate) struct PortNames(BTreeMap<ServiceKey, BTreeSet<BTreeSet<NamedPort>>>);

/// Project and service.
type ServiceKey = (Option<String>, String);
type NamedPort = (String, Transport, u16);

impl PortNames {
    pub(crate) fn of(case: &Case) -> Self {
        let mut names = Self::default();
        for spec in &case.topology.services {
            names.declare(spec);
        }
        for action in case.steps.iter().flat_map(|step| &step.actions) {
            match action {
                Action::StartService(Named::Map(spec)) => names.declare(spec),
                Action::BurstStart(burst) => burst.services().iter().for_each(|spec| names.declare(spec)),
                Action::RecreateService(update) => names.change(&update.replacement()),
                Action::RollingUpdate(update) => names.change(&update.replacement()),
                _ => {}
            }
        }
        names
    }

    fn declare(&mut self, spec: &ServiceSpec) {
        let key = (spec.project().map(str::to_owned), spec.service.clone());
        self.add(key, &spec.listen);
    }

    fn change(&mut self, replacement: &Replacement) {
        let Some(listen) = &replacement.listen else { return };
        if let Some((project, service)) = replacement.service.split_once('/') {
            let project = (project != "-").then(|| project.to_owned());
            self.add((project, service.to_owned()), listen);
        }
    }

    fn add(&mut self, key: ServiceKey, listen: &[Listen]) {
        let named = listen.iter().filter_map(|listen| {
            let port = u16::try_from(listen.port.as_u64()?).ok()?;
            Some((listen.name.clone()?, listen.proto, port))
        });
        self.0.entry(key).or_default().insert(named.collect());
    }

    /// The services among `to` that give this name to a port, each with its ports.
    pub(crate) fn resolve(
        &self,
        to: &End,
        transport: Transport,
        name: &str,
    ) -> Result<Vec<(End, Traffic)>, Untranslatable> {
        let mut found = Vec::new();
        for ((project, service), forms) in &self.0 {
            let only = End::Containers(one_service(project.as_deref(), service));
            let Some(only) = to.and(&only) else { continue };
            let ports = |form: &BTreeSet<NamedPort>| -> BTreeSet<u16> {
                let this = form.iter().filter(|(n, t, _)| n == name && *t == transport);
                this.map(|(_, _, port)| *port).collect()
            };
            let ports: BTreeSet<BTreeSet<u16>> = forms.iter().map(ports).collect();
            if ports.len() > 1 {
                return Err(Untranslatable::Lacking("named-port"));
            }
            for port in ports.into_iter().flatten() {
                found.push((only.clone(), Traffic::one(transport, (port, port))));
            }
        }
        Ok(found)
    }
}

fn one_service(project: Option<&str>, service: &str) -> Containers {
    let mut containers = Containers::default();
    match project {
        Some(project) => {
            let labels = [(PROJECT, project), (SERVICE, service)];
            containers.labels = labels
                .map(|(key, value)| (key.to_owned(), Condition::equals(value)))
                .into();
        }
        None => {
            containers.labels.insert(PROJECT.to_owned(), Condition::Absent);
            containers.plain = Some(service.to_owned());
        }
    }
    containers
}

pub(crate) fn all_rules<'a>(
    lists: impl Iterator<Item = &'a Vec<NeutralEdge>>,
) -> Result<Vec<Rule>, Untranslatable> {
    let lists = lists.map(|edges| rules(edges)).collect::<Result<Vec<_>, _>>()?;
    Ok(lists.concat())
}

/// A list without a selector or a port in it matches nothing, and so does its edge.
pub(crate) fn rules(edges: &[NeutralEdge]) -> Result<Vec<Rule>, Untranslatable> {
    let ends = |selectors: &[NeutralSelector]| -> Result<Vec<End>, Untranslatable> {
        let ends = selectors.iter().map(end).collect::<Result<Vec<_>, _>>()?;
        Ok(ends.into_iter().flatten().collect())
    };
    let rule = |edge: &NeutralEdge| {
        Ok(Rule {
            from: ends(&edge.from)?,
            to: ends(&edge.to)?,
            ports: match &edge.ports {
                None => vec![Port::Known(Traffic::Any)],
                Some(ports) => ports.iter().map(port).collect::<Result<_, _>>()?,
            },
            direction: edge.direction,
        })
    };
    edges.iter().map(rule).collect()
}

/// What a selector selects; `None` when nothing can be that.
pub(crate) fn end(selector: &NeutralSelector) -> Result<Option<End>, Untranslatable> {
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
    let mixed = || Untranslatable::Mixed(format!("{selector:?}"));
    match kinds.iter().filter(|kind| **kind).count() {
        0 => return Err(Untranslatable::EmptySelector),
        1 => {}
        _ => return Err(mixed()),
    }
    if !selector.except.is_empty() && selector.cidr.is_none() {
        return Err(mixed());
    }
    if selector.fqdn.is_some() {
        return Err(Untranslatable::Lacking("fqdn"));
    } else if selector.world {
        return Ok(Some(End::World));
    } else if selector.host {
        return Ok(Some(End::Host));
    } else if let Some(cidr) = &selector.cidr {
        return Ok(Addresses::new(&[*cidr], &selector.except).map(End::Addresses));
    }
    let mut set = match (selector.project.as_deref(), selector.service.as_deref()) {
        (Some("-"), None) => Containers {
            labels: BTreeMap::from([(PROJECT.to_owned(), Condition::Absent)]),
            plain: None,
        },
        (Some("-"), Some(name)) => one_service(None, name),
        _ => Containers::default(),
    };
    let mut conditions: Vec<(&str, Condition)> = Vec::new();
    if let Some(project) = selector.project.as_deref().filter(|project| *project != "-") {
        conditions.push((PROJECT, Condition::equals(project)));
    }
    if let Some(service) = selector.service.as_deref().filter(|_| set.plain.is_none()) {
        conditions.push((SERVICE, Condition::equals(service)));
    }
    for (key, value) in &selector.labels {
        conditions.push((key, Condition::equals(value)));
    }
    for expression in &selector.expr {
        match condition(expression) {
            Some(condition) => conditions.push((&expression.key, condition)),
            None => return Ok(None),
        }
    }
    for (key, condition) in conditions {
        if !set.require(key, &condition) {
            return Ok(None);
        }
    }
    Ok(Some(End::Containers(set)))
}

/// `None` when no label can be that.
fn condition(expression: &Expression) -> Option<Condition> {
    let values: BTreeSet<String> = expression.values.iter().cloned().collect();
    match expression.op {
        Operator::In => (!values.is_empty()).then_some(Condition::In(values)),
        Operator::NotIn => Some(Condition::Out {
            not: values,
            exists: false,
        }),
        Operator::Exists => Some(Condition::exists()),
        Operator::DoesNotExist => Some(Condition::Absent),
    }
}

fn port(port: &NeutralPort) -> Result<Port, Untranslatable> {
    let bad = |transport, text: &str| Err(Untranslatable::BadPort(transport, text.to_owned()));
    let known = |transport, range| Ok(Port::Known(Traffic::one(transport, range)));
    match (port.proto, &port.port) {
        (None, None) => Ok(Port::Known(Traffic::Any)),
        (Some(transport), None) => known(transport, whole(transport)),
        (Some(Transport::Icmp), Some(PortSpec::Name(name))) if name == "echo" => known(Transport::Icmp, ECHO),
        (Some(Transport::Icmp), Some(other)) => bad(Transport::Icmp, &format!("{other:?}")),
        (transport, Some(spec)) => {
            let transport = transport.unwrap_or(Transport::Tcp);
            match spec {
                PortSpec::Number(0) => bad(transport, "0"),
                PortSpec::Number(number) => known(transport, (*number, *number)),
                PortSpec::Range(range) if range.from == 0 || range.from > range.to => {
                    bad(transport, &format!("{}-{}", range.from, range.to))
                }
                PortSpec::Range(range) => known(transport, (range.from, range.to)),
                // A number that was written as text; no port is called that.
                PortSpec::Name(name) => match name.parse() {
                    Ok(number) if number > 0 => known(transport, (number, number)),
                    _ => Ok(Port::Named(transport, name.clone())),
                },
            }
        }
    }
}
