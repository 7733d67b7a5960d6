//! `allow` entries to edges: names are looked up, `*` and lists are expanded, and the owner is checked.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::document::{AllowEntry, Document, PeerText};
use super::fault::Code;
use super::resolve::Segments;
use super::suggest::{self, did_you_mean};
use super::text::{Report, Site, Sited};
use super::{Edge, Name, Peer, Ports, ScopedName, Test};

/// How many edges a policy may have once lists and `*` are expanded.
const MAX_EDGES: usize = 200_000;

/// The edges of all documents so far.
#[derive(Debug)]
pub(super) struct Edges<'s, 'd> {
    segments: &'s Segments<'d>,
    unread: &'s [&'s str],
    /// By what they permit and until when; the first entry that says it is kept.
    edges: BTreeMap<(Peer, Peer, BTreeSet<Ports>, Option<Timestamp>), Edge>,
    tests: Vec<Test>,
}

impl<'s, 'd> Edges<'s, 'd> {
    pub(super) fn new(segments: &'s Segments<'d>, unread: &'s [&'s str]) -> Self {
        Self {
            segments,
            unread,
            edges: BTreeMap::new(),
            tests: Vec::new(),
        }
    }

    /// The edges, and the tests in their order.
    pub(super) fn into_parts(self) -> (BTreeSet<Edge>, Vec<Test>) {
        (self.edges.into_values().collect(), self.tests)
    }

    /// Adds a document's edges and its tests.
    pub(super) fn add(&mut self, document: &Document, report: &mut Report<'_>) {
        let Some(segment) = &document.segment else {
            return;
        };
        for entry in &document.allow {
            self.add_entry(entry, &segment.value, report);
        }
        for fact in &document.tests {
            let end = |peer: &PeerText| Sited {
                value: peer.clone(),
                site: fact.site,
            };
            let from = self.peers(&end(&fact.value.from), &segment.value, report);
            let to = self.peers(&end(&fact.value.to), &segment.value, report);
            for (from, to) in from.into_iter().zip(to) {
                if !matches!(from, Peer::Service(_)) && !matches!(to, Peer::Service(_)) {
                    no_service(&from, &to, fact.site, report);
                    continue;
                }
                self.tests.push(Test {
                    from,
                    to,
                    ports: fact.value.ports,
                    expected: fact.value.expected,
                    location: report.location(fact.site),
                    range: fact.site.start..fact.site.end,
                });
            }
        }
    }

    fn add_entry(&mut self, entry: &AllowEntry, segment: &Name, report: &mut Report<'_>) {
        let mut resolve = |ends: &[Sited<PeerText>]| -> Vec<(Site, Peer)> {
            ends.iter()
                .flat_map(|end| {
                    self.peers(end, segment, report)
                        .into_iter()
                        .map(|peer| (end.site, peer))
                })
                .collect()
        };
        let from = resolve(&entry.from);
        let to = resolve(&entry.to);
        let more = from.len().saturating_mul(to.len());
        if self.edges.len().saturating_add(more) > MAX_EDGES {
            report
                .add(
                    Code::Excessive,
                    entry.site,
                    format!("with this entry the policy has more than {MAX_EDGES} edges, one for each pair"),
                )
                .help(
                    "overlapping services say the same with fewer edges: declare one service for all of them",
                );
            return;
        }
        let ports: BTreeSet<Ports> = entry.ports.iter().map(|ports| ports.value).collect();
        let until = entry.until.as_ref().map(|until| until.value);
        for (to_site, to) in &to {
            for (from_site, from) in &from {
                if !check_owner((*from_site, from), (*to_site, to), segment, report) {
                    continue;
                }
                let key = (from.clone(), to.clone(), ports.clone(), until);
                self.edges.entry(key).or_insert_with(|| Edge {
                    from: from.clone(),
                    to: to.clone(),
                    ports: ports.clone(),
                    until,
                    why: entry.why.clone(),
                    location: report.location(entry.site),
                });
            }
        }
    }

    /// What an end stands for; unknown names are reported.
    fn peers(&self, end: &Sited<PeerText>, segment: &Name, report: &mut Report<'_>) -> Vec<Peer> {
        let (segment, here) = self
            .segments
            .get_key_value(segment)
            .map_or((segment, None), |(segment, here)| (segment, Some(here)));
        match &end.value {
            PeerText::World => vec![Peer::World],
            PeerText::Host => vec![Peer::Host],
            PeerText::Every => {
                let all: Vec<Peer> = here
                    .into_iter()
                    .flat_map(|here| here.services.keys())
                    .map(|name| Peer::Service(scoped(segment, name)))
                    .collect();
                if all.is_empty() {
                    report
                        .add(
                            Code::Empty,
                            end.site,
                            format!("segment `{segment}` has no service that `*` could mean"),
                        )
                        .help("`*` is every service of this segment");
                }
                all
            }
            PeerText::Here(name) => {
                if let Some((name, _)) = here.and_then(|here| here.services.get_key_value(name)) {
                    return vec![Peer::Service(scoped(segment, name))];
                }
                if let Some((name, _)) = here.and_then(|here| here.externals.get_key_value(name)) {
                    return vec![Peer::External(scoped(segment, name))];
                }
                self.report_unknown(name.as_str(), name, segment, end.site, report);
                Vec::new()
            }
            PeerText::In(other, name) => {
                let declared = self.segments.get_key_value(other);
                let service = declared.and_then(|(other, contents)| {
                    let (name, _) = contents.services.get_key_value(name)?;
                    Some(scoped(other, name))
                });
                if let Some(service) = service {
                    return vec![Peer::Service(service)];
                }
                if declared.is_some_and(|(_, contents)| contents.externals.contains_key(name)) {
                    let fault = report.add(
                        Code::UnknownName,
                        end.site,
                        format!("`{other}/{name}` is an external, not a service"),
                    );
                    if other == segment {
                        fault.help(format!("did you mean `{name}`?"));
                    } else {
                        fault.help(format!(
                            "externals are each segment's own: declare it in segment `{segment}`"
                        ));
                    }
                    return Vec::new();
                }
                self.report_unknown(&format!("{other}/{name}"), name, segment, end.site, report);
                Vec::new()
            }
        }
    }

    fn report_unknown(
        &self,
        written: &str,
        name: &Name,
        segment: &Name,
        site: Site,
        report: &mut Report<'_>,
    ) {
        let suggestion = if report.is_long() {
            None
        } else {
            self.suggestion(written, name, segment)
        };
        let mut help = did_you_mean(suggestion);
        if let Some(first) = self.unread.first() {
            let note = format!("`{first}` has faults of its own and may declare it");
            help = Some(help.map_or_else(|| note.clone(), |help| format!("{help} ({note})")));
        }
        let message = if written.contains('/') {
            format!("no service is called `{written}`")
        } else {
            format!("segment `{segment}` has no service or external `{written}`")
        };
        report.add(Code::UnknownName, site, message).help_if(help);
    }

    /// The same name here or in another segment, else the name most like it.
    fn suggestion(&self, written: &str, name: &Name, segment: &Name) -> Option<String> {
        let mut here: Vec<&str> = vec!["world", "host"];
        if let Some(contents) = self.segments.get(segment) {
            here.extend(
                contents
                    .services
                    .keys()
                    .chain(contents.externals.keys())
                    .map(Name::as_str),
            );
        }
        let others = self.segments.iter().filter(|(other, _)| *other != segment);
        let elsewhere: Vec<(&Name, String)> = others
            .flat_map(|(other, contents)| {
                contents
                    .services
                    .keys()
                    .map(move |service| (service, format!("{other}/{service}")))
            })
            .collect();
        if here.contains(&name.as_str()) {
            return Some(name.to_string());
        }
        if let Some((_, full)) = elsewhere.iter().find(|(service, _)| *service == name) {
            return Some(full.clone());
        }
        let known = here
            .iter()
            .copied()
            .chain(elsewhere.iter().map(|(_, full)| full.as_str()));
        suggest::closest(written, known).map(str::to_owned)
    }
}

/// A full name; both parts are as they are declared, so that all mentions share them.
fn scoped(segment: &Name, name: &Name) -> ScopedName {
    ScopedName {
        segment: segment.clone(),
        name: name.clone(),
    }
}

/// Whether the edge stands in the segment that owns it: the callee's, or the caller's when the callee is no service.
fn check_owner(
    (from_site, from): (Site, &Peer),
    (to_site, to): (Site, &Peer),
    segment: &Name,
    report: &mut Report<'_>,
) -> bool {
    match (from, to) {
        (_, Peer::Service(callee)) if callee.segment == *segment => true,
        (_, Peer::Service(callee)) => {
            let owner = &callee.segment;
            report
                .add(
                    Code::WrongSegment,
                    to_site,
                    format!("an edge into `{callee}` stands in segment `{owner}`"),
                )
                .help(format!(
                    "the callee's segment owns who may reach its services: move it to a file of `{owner}`"
                ));
            false
        }
        (Peer::Service(caller), _) if caller.segment == *segment => true,
        (Peer::Service(caller), _) => {
            let owner = &caller.segment;
            report
                .add(
                    Code::WrongSegment,
                    from_site,
                    format!("an edge from `{caller}` to {} stands in segment `{owner}`", kind(to)),
                )
                .help(format!(
                    "edges to world, host and externals stand in the caller's segment: move it to a file of `{owner}`"
                ));
            false
        }
        _ => {
            no_service(from, to, from_site, report);
            false
        }
    }
}

fn no_service(from: &Peer, to: &Peer, site: Site, report: &mut Report<'_>) {
    report
        .add(
            Code::NoService,
            site,
            format!("`{from} -> {to}` has no service at either end"),
        )
        .help("a policy is about services: traffic between others is not its concern");
}

fn kind(peer: &Peer) -> &'static str {
    match peer {
        Peer::Service(_) => "a service",
        Peer::World => "world",
        Peer::Host => "host",
        Peer::External(_) => "an external",
    }
}
