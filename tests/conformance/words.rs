//! Sets in Cofferdam's words: the `select` of a service, the `ports` of an edge.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::algebra::{Condition, Containers, ECHO, Traffic, whole};
use crate::fact::Transport;
use crate::rules::{PROJECT, SERVICE, Untranslatable};

/// The `select` of a service; a list where one alternative is not enough.
pub(crate) fn select(containers: &Containers) -> Result<Value, Untranslatable> {
    let single = |key: &str| match containers.labels.get(key) {
        Some(Condition::In(values)) if values.len() == 1 => values.first(),
        _ => None,
    };
    let mut parts = Map::new();
    let mut rest = containers.labels.clone();
    if single(PROJECT).is_some() || single(SERVICE).is_some() {
        let mut part = |key: &str| match single(key) {
            Some(value) => {
                rest.remove(key);
                value.clone()
            }
            None => "*".to_owned(),
        };
        let pattern = format!("{}/{}", part(PROJECT), part(SERVICE));
        parts.insert("compose".to_owned(), json!(pattern));
    }
    // The map form takes any value; the grammar is needed only where the map cannot say it.
    let pairs: Option<BTreeMap<&String, &String>> = rest
        .iter()
        .map(|(key, condition)| match condition {
            Condition::In(values) if values.len() == 1 => Some((key, values.first()?)),
            _ => None,
        })
        .collect();
    match pairs {
        Some(pairs) if pairs.is_empty() => {}
        Some(pairs) => drop(parts.insert("labels".to_owned(), json!(pairs))),
        None => {
            let terms = rest.iter().map(|(key, condition)| term(key, condition));
            let terms: Vec<String> = terms.collect::<Result<Vec<_>, _>>()?.concat();
            parts.insert("labels".to_owned(), json!(terms.join(",")));
        }
    }
    let Some(name) = &containers.plain else {
        // A condition that holds for all leaves nothing to say.
        let nothing = parts.is_empty();
        return Ok(if nothing {
            json!({"name": "*"})
        } else {
            Value::Object(parts)
        });
    };
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
    Ok(std::iter::once(first).chain(replicas).map(named).collect())
}

/// Terms of Kubernetes' label-selector grammar.
fn term(key: &str, condition: &Condition) -> Result<Vec<String>, Untranslatable> {
    let list = |values: &BTreeSet<String>| {
        for value in values {
            let sayable = |c: char| !c.is_whitespace() && !"=!(),<>".contains(c);
            if !value.chars().all(sayable) {
                return Err(Untranslatable::Unsayable(value.clone()));
            }
        }
        // A place left empty between commas is the empty value; alone it needs one comma.
        let joined = values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        Ok(if joined.is_empty() { ",".to_owned() } else { joined })
    };
    Ok(match condition {
        Condition::In(values) if values.len() == 1 => {
            list(values)?;
            vec![format!(
                "{key}={}",
                values.iter().map(String::as_str).collect::<String>()
            )]
        }
        Condition::In(values) => vec![format!("{key} in ({})", list(values)?)],
        Condition::Absent => vec![format!("!{key}")],
        Condition::Out { not, exists } => {
            let mut terms = Vec::new();
            if *exists {
                terms.push(key.to_owned());
            }
            if !not.is_empty() {
                terms.push(format!("{key} notin ({})", list(not)?));
            }
            terms
        }
    })
}

/// Of ICMP only all of it and echo requests can be written; no fact knows more.
pub(crate) fn ports(traffic: &Traffic) -> Vec<Value> {
    let Traffic::Some(ranges) = traffic else {
        return vec![json!("any")];
    };
    let one = |transport: Transport, (first, last): (u16, u16)| match transport {
        _ if (first, last) == whole(transport) => Some(json!(transport.to_string())),
        Transport::Icmp => ((first, last) == ECHO).then(|| json!("icmp/echo-request")),
        Transport::Tcp if first == last => Some(json!(first)),
        _ if first == last => Some(json!(format!("{first}/{transport}"))),
        _ => Some(json!(format!("{first}-{last}/{transport}"))),
    };
    ranges
        .iter()
        .flat_map(|(transport, list)| list.iter().filter_map(|range| one(*transport, *range)))
        .collect()
}

/// `any` stands alone.
pub(crate) fn written(ports: &[Value]) -> Value {
    match ports {
        _ if ports.contains(&json!("any")) => json!("any"),
        _ => json!(ports),
    }
}
