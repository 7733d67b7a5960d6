//! Documents to a [`Policy`]: segments come together, names are looked up, ownership is checked.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{Document, ServiceEntry};
use super::fault::Code;
use super::selector::Part;
use super::text::{Report, Site, Sited};
use super::{Mode, Name, Policy, ScopedName, Selector, Service, ServiceId, edges};
use crate::net::AddressSet;

/// What all files of a segment declare together.
#[derive(Debug, Default)]
pub(super) struct Segment<'d> {
    pub(super) services: BTreeMap<Name, &'d ServiceEntry>,
    pub(super) externals: BTreeMap<Name, (Site, &'d AddressSet)>,
    mode: Option<&'d Sited<Mode>>,
}

/// Every segment by name.
pub(super) type Segments<'d> = BTreeMap<Name, Segment<'d>>;

/// Brings the documents together, in their order. `unread` names the files that have no complete document. The policy
/// is only of use when the report stays without faults.
pub(super) fn policy(
    documents: &[Document],
    unread: &[&str],
    report: &mut Report<'_>,
) -> (Policy, BTreeSet<Name>) {
    let mut segments = Segments::new();
    for document in documents {
        if let Some(name) = &document.segment {
            let segment = segments.entry(name.value.clone()).or_default();
            check_mode(document, segment, &name.value, report);
            declare(document, segment, &name.value, report);
        }
    }
    check_network_names(&segments, report);
    check_ownership(&segments, report);
    let mut edges = edges::Edges::new(&segments, unread);
    for document in documents {
        edges.add(document, report);
    }
    let (edges, tests) = edges.into_parts();
    let mut policy = Policy {
        edges,
        tests,
        ..Policy::default()
    };
    for (segment, contents) in &segments {
        let id = |name: &Name| ScopedName {
            segment: segment.clone(),
            name: name.clone(),
        };
        let of_segment = contents.mode.map(|mode| mode.value);
        for (name, entry) in &contents.services {
            let selectors = entry.selectors.iter();
            let service = Service {
                selectors: selectors.map(|selector| selector.value.clone()).collect(),
                mode: entry.mode.or(of_segment).unwrap_or_default(),
                location: report.location(entry.name.site),
            };
            policy.services.insert(id(name), service);
        }
        for (name, (_, addresses)) in &contents.externals {
            policy.externals.insert(id(name), (*addresses).clone());
        }
    }
    (policy, segments.into_keys().collect())
}

fn check_mode<'d>(document: &'d Document, segment: &mut Segment<'d>, name: &Name, report: &mut Report<'_>) {
    match (&document.mode, segment.mode) {
        (Some(mode), None) => segment.mode = Some(mode),
        (Some(mode), Some(first)) if mode.value != first.value => {
            let other = report.other(first.site, "another file of the segment says this");
            report
                .add(
                    Code::ModesContradict,
                    mode.site,
                    format!("the files of segment `{name}` contradict each other about its mode"),
                )
                .help("write `mode` in one of the segment's files only")
                .others
                .push(other);
        }
        _ => {}
    }
}

fn declare<'d>(document: &'d Document, segment: &mut Segment<'d>, name: &Name, report: &mut Report<'_>) {
    let services = document.services.iter().map(|entry| &entry.name);
    let externals = document.externals.iter().map(|entry| &entry.name);
    let mut refused = BTreeSet::new();
    let mut within: BTreeMap<&Name, Site> = BTreeMap::new();
    for service in services.clone() {
        within.entry(&service.value).or_insert(service.site);
    }
    for declared in services.chain(externals) {
        let before = segment.services.get(&declared.value).map(|entry| entry.name.site);
        let before = before.or_else(|| segment.externals.get(&declared.value).map(|(site, _)| *site));
        let first = within
            .get(&declared.value)
            .filter(|first| **first < declared.site);
        if let Some(first) = before.or(first.copied()) {
            refused.insert(declared.site);
            let other = report.other(first, "it is declared here first");
            report
                .add(
                    Code::DeclaredTwice,
                    declared.site,
                    format!("`{name}/{}` is declared twice", declared.value),
                )
                .help("a service or external is declared once, in one of the segment's files")
                .others
                .push(other);
        }
    }
    for entry in document
        .services
        .iter()
        .filter(|entry| !refused.contains(&entry.name.site))
    {
        segment.services.insert(entry.name.value.clone(), entry);
    }
    for entry in document
        .externals
        .iter()
        .filter(|entry| !refused.contains(&entry.name.site))
    {
        let value = (entry.name.site, &entry.addresses);
        segment.externals.insert(entry.name.value.clone(), value);
    }
}

/// Every service with its full name and place.
fn services<'s>(
    segments: &'s Segments<'_>,
) -> impl Iterator<Item = (ServiceId, Site, &'s [Sited<Selector>])> {
    segments.iter().flat_map(|(segment, contents)| {
        contents.services.iter().map(move |(name, entry)| {
            let id = ScopedName {
                segment: segment.clone(),
                name: name.clone(),
            };
            (id, entry.name.site, entry.selectors.as_slice())
        })
    })
}

/// `a-b/c` and `a/b-c` would share a network.
fn check_network_names(segments: &Segments<'_>, report: &mut Report<'_>) {
    let mut taken: BTreeMap<String, (ServiceId, Site)> = BTreeMap::new();
    for (id, site, _) in services(segments) {
        let network = id.network_name();
        if let Some((first, first_site)) = taken.get(&network) {
            let other = report.other(*first_site, format!("`{first}` has it already"));
            report
                .add(
                    Code::NetworkName,
                    site,
                    format!("the network of `{id}` would be called `{network}`, as that of `{first}`"),
                )
                .help("rename one of the two services or segments")
                .others
                .push(other);
        } else {
            taken.insert(network, (id, site));
        }
    }
}

/// A container that two segments claim is quarantined: where the text alone shows it, it is a fault.
fn check_ownership(segments: &Segments<'_>, report: &mut Report<'_>) {
    let all: Vec<(ServiceId, &Sited<Selector>)> = services(segments)
        .flat_map(|(id, _, selectors)| selectors.iter().map(move |selector| (id.clone(), selector)))
        .collect();
    // By one exact condition of each, because a selector is compared only with those that it can imply.
    let mut by_condition: BTreeMap<Option<(Part<'_>, &str)>, Vec<usize>> = BTreeMap::new();
    for (index, (_, selector)) in all.iter().enumerate() {
        by_condition
            .entry(selector.value.exact().last())
            .or_default()
            .push(index);
    }
    let mut shared: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (index, (id, selector)) in all.iter().enumerate() {
        let conditions = selector.value.exact().map(Some).chain(std::iter::once(None));
        let candidates = conditions
            .filter_map(|condition| by_condition.get(&condition))
            .flatten();
        for &other in candidates {
            let (other_id, wider) = &all[other];
            if other_id.segment != id.segment && selector.value.implies(&wider.value) {
                shared.insert((index.min(other), index.max(other)));
            }
        }
    }
    let mut reported: BTreeSet<(&ServiceId, &ServiceId)> = BTreeSet::new();
    for (first, second) in shared {
        let ((first, mine), (second, theirs)) = (&all[first], &all[second]);
        if reported.insert((first, second)) {
            let other = report.other(mine.site, format!("`{first}` selects them here"));
            report
                .add(
                    Code::SharedOwnership,
                    theirs.site,
                    format!("containers of `{second}` would belong to `{first}` too"),
                )
                .help("a container that two segments claim is denied everything: let one segment own it")
                .others
                .push(other);
        }
    }
}
