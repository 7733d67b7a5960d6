//! Containers as services: by Compose project and service, else by name, with selectors that select just them.

use std::collections::{BTreeMap, BTreeSet};

use super::words::{suggested, unique};
use crate::inventory::{Container, ContainerId};
use crate::model::yaml::quoted;
use crate::policy::{Name, ScopedName, ServiceId};

pub(super) const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";

/// The segment of containers that Compose did not make.
const PLAIN: &str = "containers";
/// The one segment where there are several projects.
const LEARNED: &str = "learned";

/// Into how many segments, and so files, services go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One file, of this segment, or of one that the only project gives its name.
    One(Option<Name>),
    /// A segment for each project.
    Projects,
}

/// What makes containers one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Compose {
        project: String,
        service: String,
    },
    /// Numbered ones: the name up to the number.
    Numbered {
        prefix: String,
    },
    Named {
        name: String,
    },
}

/// A service as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The value of `select`.
    pub(super) select: String,
    pub(super) containers: BTreeSet<ContainerId>,
}

/// The services, and which container belongs to which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Services {
    pub(super) found: BTreeMap<ServiceId, Found>,
    pub(super) of: BTreeMap<ContainerId, ServiceId>,
    /// Containers that no selector can name.
    pub(super) nameless: BTreeSet<ContainerId>,
}

/// Makes services of the wanted containers and of whatever else belongs to the same ones.
pub(super) fn services(
    all: &BTreeMap<ContainerId, Container>,
    wanted: &BTreeSet<ContainerId>,
    layout: &Layout,
) -> Services {
    let numbered = numbered(all);
    let mut members: BTreeMap<Key, BTreeSet<ContainerId>> = BTreeMap::new();
    let mut services = Services::default();
    for container in all.values() {
        match key(container, &numbered) {
            Some(key) => {
                members.entry(key).or_default().insert(container.id.clone());
            }
            None if wanted.contains(&container.id) => {
                services.nameless.insert(container.id.clone());
            }
            None => {}
        }
    }
    members.retain(|_, containers| !containers.is_disjoint(wanted));
    let names = names(members.keys(), layout);
    for (key, containers) in members {
        let Some(id) = names.get(&key) else { continue };
        for container in &containers {
            services.of.insert(container.clone(), id.clone());
        }
        let select = key.select();
        services.found.insert(id.clone(), Found { select, containers });
    }
    services
}

/// The service of a container that belongs to none of a policy, for people.
pub(super) fn label(container: &Container) -> String {
    let label = |key| container.labels.get(key).filter(|value| !value.is_empty());
    match (label(PROJECT), label(SERVICE)) {
        (Some(project), Some(service)) => format!("{project}/{service}"),
        _ => container.name.clone(),
    }
}

fn key(container: &Container, numbered: &BTreeMap<String, String>) -> Option<Key> {
    let label = |key| container.labels.get(key).filter(|value| !value.is_empty());
    if let (Some(project), Some(service)) = (label(PROJECT), label(SERVICE)) {
        return Some(Key::Compose {
            project: project.to_string(),
            service: service.to_string(),
        });
    }
    if let Some(prefix) = numbered.get(&container.name) {
        return Some(Key::Numbered {
            prefix: prefix.clone(),
        });
    }
    let inner = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let is_name = container.name.len() >= 2
        && container.name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && container.name.chars().all(inner);
    is_name.then(|| Key::Named {
        name: container.name.clone(),
    })
}

/// The names of numbered containers, with the prefix that they share: `x-1` and `x-2`, from one image, where `x-*` matches no other container.
fn numbered(all: &BTreeMap<ContainerId, Container>) -> BTreeMap<String, String> {
    let mut families: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in all.values() {
        if let Some(prefix) = prefix(&container.name) {
            families.entry(prefix).or_default().insert(&container.name);
        }
    }
    let is_family = |prefix: &str, names: &BTreeSet<&str>| {
        let mut like: Vec<&Container> = Vec::new();
        like.extend(all.values().filter(|it| it.name.starts_with(prefix)));
        names.len() > 1
            && like.iter().all(|container| {
                names.contains(container.name.as_str())
                    && !container.labels.contains_key(PROJECT)
                    && like.first().is_some_and(|first| first.image == container.image)
            })
    };
    let mut numbered = BTreeMap::new();
    for (prefix, names) in families {
        if is_family(prefix, &names) {
            numbered.extend(names.iter().map(|name| ((*name).to_owned(), prefix.to_owned())));
        }
    }
    numbered
}

/// `worker-` of `worker-12`.
fn prefix(name: &str) -> Option<&str> {
    let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let has_number = prefix.len() < name.len();
    let is_name = prefix.len() > 1
        && prefix.starts_with(|c: char| c.is_ascii_alphanumeric())
        && prefix.ends_with(['-', '_'])
        && prefix
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    (has_number && is_name).then_some(prefix)
}

impl Key {
    /// What the names of the segment and the service are made from.
    fn text(&self) -> (&str, &str) {
        match self {
            Self::Compose { project, service } => (project, service),
            Self::Numbered { prefix } => (PLAIN, prefix.trim_end_matches(['-', '_', '.'])),
            Self::Named { name } => (PLAIN, name),
        }
    }

    fn select(&self) -> String {
        match self {
            Self::Compose { project, service } => {
                let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
                let any = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                if project.chars().all(lower) && service.chars().all(any) {
                    return format!("{{ compose: {} }}", quoted(&format!("{project}/{service}")));
                }
                // Not as Compose writes them: exact labels match whatever they hold.
                format!(
                    "{{ labels: {{ {}: {}, {}: {} }} }}",
                    quoted(PROJECT),
                    quoted(project),
                    quoted(SERVICE),
                    quoted(service)
                )
            }
            Self::Numbered { prefix } => format!("{{ name: {} }}", quoted(&format!("{prefix}*"))),
            Self::Named { name } => format!("{{ name: {} }}", quoted(name)),
        }
    }
}

/// A name for each, no two alike. What is a name already keeps it; of others the first in order does.
fn names<'k>(keys: impl Iterator<Item = &'k Key> + Clone, layout: &Layout) -> BTreeMap<Key, ServiceId> {
    let segments: BTreeSet<&str> = keys.clone().map(|key| key.text().0).collect();
    let only = match (segments.first(), segments.len()) {
        (Some(only), 1) => Some(suggested(only, "segment").0),
        _ => None,
    };
    let one = match layout {
        Layout::One(Some(name)) => Some(name.to_string()),
        Layout::One(None) => Some(only.clone().unwrap_or_else(|| LEARNED.to_owned())),
        Layout::Projects => None,
    };
    let mut of_project: BTreeMap<&str, String> = BTreeMap::new();
    let mut ordered: Vec<&&str> = segments.iter().collect();
    ordered.sort_by_key(|text| (!suggested(text, "segment").1, **text));
    for text in ordered {
        let name = suggested(text, "segment").0;
        let name = match &one {
            Some(one) => one.clone(),
            None => unique(&name, |it| of_project.values().any(|taken| taken == it)),
        };
        of_project.insert(text, name);
    }
    let full = |key: &Key| {
        let (project, service) = key.text();
        // In one segment for several projects a service has its project in its name, too.
        let is_mixed =
            one.is_some() && only.is_none() && !matches!(key, Key::Named { .. } | Key::Numbered { .. });
        match is_mixed {
            true => {
                let (project, service) = (suggested(project, "project"), suggested(service, "service"));
                let (name, same) = suggested(&format!("{}-{}", project.0, service.0), "service");
                (name, same && project.1 && service.1)
            }
            false => suggested(service, "service"),
        }
    };
    let mut keys: Vec<&Key> = keys.collect();
    keys.sort_by_key(|key| (!full(key).1, *key));
    let mut names: BTreeMap<Key, ServiceId> = BTreeMap::new();
    // `a-b/c` and `a/b-c` would share a network, so the two together must be unique.
    let mut networks: BTreeSet<String> = BTreeSet::new();
    for key in keys {
        let Some(segment) = of_project.get(key.text().0) else {
            continue;
        };
        let scoped = |name: &str| -> Option<ScopedName> {
            Some(ScopedName {
                segment: segment.parse().ok()?,
                name: name.parse().ok()?,
            })
        };
        let name = unique(&full(key).0, |name| {
            scoped(name).is_none_or(|id| networks.contains(&id.network_name()))
        });
        if let Some(id) = scoped(&name) {
            networks.insert(id.network_name());
            names.insert(key.clone(), id);
        }
    }
    names
}
