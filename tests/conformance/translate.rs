//! From the neutral policy to Cofferdam's files: pure.
//!
//! Every distinct selector becomes a named service of the segment `conformance`, and keeps its name for the length of
//! a case; `everyone` selects all containers, so that all are managed.
//!
//! Cofferdam has no denials, no one-sided edges, no isolation by selection and no port names. What is said with them is
//! turned into an allow-graph where that is exact, for containers that come later too (see [`crate::algebra`]): a
//! selector without an opposite, or a port name that changes its port within the case, is still lacking.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::action::Action;
use crate::algebra::{Addresses, Containers, End, Flows, NoOpposite, Traffic};
use crate::case::{Case, Direction, NeutralEdge, NeutralPolicy, Side, Stance};
use crate::rules::{Port, PortNames, Rule, Untranslatable, all_rules, end, rules};
use crate::words::{ports, select, written};

const EVERYONE: &str = "everyone";
/// Names given so far: they outlive a policy, so that a change of one edge is a change of one edge.
#[derive(Debug, Default)]
pub(crate) struct Translator {
    ports: PortNames,
    /// By what the name stands for, as it is written.
    names: BTreeMap<String, String>,
    services: BTreeMap<String, Value>,
    externals: BTreeMap<String, Value>,
}

impl Translator {
    pub(crate) fn of(case: &Case) -> Self {
        Self {
            ports: PortNames::of(case),
            ..Self::default()
        }
    }

    /// The first capability that a policy of the case needs and that cannot be translated away, if any.
    pub(crate) fn lacking(case: &Case) -> Option<&'static str> {
        let mut translator = Self::of(case);
        let later = case.steps.iter().flat_map(|step| &step.actions);
        let later = later.filter_map(|action| match action {
            Action::SetPolicy(policy) => Some(policy),
            _ => None,
        });
        std::iter::once(&case.policy)
            .chain(later)
            .find_map(|policy| match translator.files(policy) {
                Err(Untranslatable::Lacking(name)) => Some(name),
                _ => None,
            })
    }

    /// The files of the policy directory by name. They are JSON, which is YAML.
    pub(crate) fn files(
        &mut self,
        policy: &NeutralPolicy,
    ) -> Result<BTreeMap<String, String>, Untranslatable> {
        // `{all: true}` is the only form that the format describes.
        let audited = match &policy.audit {
            None => false,
            Some(audit) if *audit == json!({"all": true}) => true,
            Some(_) => return Err(Untranslatable::Lacking("audit")),
        };
        let mut used = BTreeSet::new();
        let (base_edges, documents) = if is_plain(policy) {
            let mut documents = Vec::new();
            for document in &policy.documents {
                documents.push((document.name.clone(), self.edges(&document.allow, &mut used)?));
            }
            (self.edges(&policy.allow, &mut used)?, documents)
        } else {
            (self.graph(policy, &mut used)?, Vec::new())
        };

        let mut base = head(audited);
        let mut services = Map::from_iter([(EVERYONE.to_owned(), json!({"select": {"name": "*"}}))]);
        let mut externals = Map::new();
        for name in &used {
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
            let mut document = head(audited);
            document.insert("allow".to_owned(), Value::Array(edges));
            let name: String = name
                .chars()
                .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
                .collect();
            files.insert(format!("document-{index}-{name}.yaml"), render(document));
        }
        Ok(files)
    }

    /// Edges that open what they say, one for one.
    fn edges(
        &mut self,
        edges: &[NeutralEdge],
        used: &mut BTreeSet<String>,
    ) -> Result<Vec<Value>, Untranslatable> {
        let mut rendered = Vec::new();
        for rule in rules(edges)? {
            let known = rule.ports.iter().filter_map(|port| match port {
                Port::Known(traffic) => Some(traffic),
                Port::Named(..) => None,
            });
            let all: Vec<Value> = known.flat_map(ports).collect();
            if !all.is_empty() {
                rendered.extend(self.edge(&rule.from, &rule.to, all, used)?);
            }
            for (to, traffic) in self.named(&rule)? {
                rendered.extend(self.edge(&rule.from, &[to], ports(&traffic), used)?);
            }
        }
        Ok(rendered)
    }

    fn named(&self, rule: &Rule) -> Result<Vec<(End, Traffic)>, Untranslatable> {
        let mut found = Vec::new();
        for port in &rule.ports {
            if let Port::Named(transport, name) = port {
                for to in &rule.to {
                    found.extend(self.ports.resolve(to, *transport, name)?);
                }
            }
        }
        Ok(found)
    }

    /// What between two ends that are no services is nobody's to govern, so no edge says it.
    fn edge(
        &mut self,
        from: &[End],
        to: &[End],
        ports: Vec<Value>,
        used: &mut BTreeSet<String>,
    ) -> Result<Vec<Value>, Untranslatable> {
        let (from, outside): (Vec<&End>, Vec<&End>) = from.iter().partition(|end| end.is_service());
        let (to_services, to_outside): (Vec<&End>, Vec<&End>) = to.iter().partition(|end| end.is_service());
        fn every<'a>(some: &[&'a End], more: &[&'a End]) -> Vec<&'a End> {
            [some, more].concat()
        }
        let parts = if to_outside.is_empty() {
            vec![(every(&from, &outside), to_services)]
        } else {
            vec![(from, every(&to_services, &to_outside)), (outside, to_services)]
        };
        let mut edges = Vec::new();
        for (from, to) in parts {
            if !from.is_empty() && !to.is_empty() {
                let (from, to) = (self.names(&from, used)?, self.names(&to, used)?);
                edges.push(json!({"from": from, "to": to, "ports": written(&ports)}));
            }
        }
        Ok(edges)
    }

    fn names(&mut self, ends: &[&End], used: &mut BTreeSet<String>) -> Result<Vec<String>, Untranslatable> {
        let mut names = Vec::new();
        for end in ends {
            let name = self.name(end)?;
            used.insert(name.clone());
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn name(&mut self, end: &End) -> Result<String, Untranslatable> {
        match end {
            End::World => Ok("world".to_owned()),
            End::Host => Ok("host".to_owned()),
            End::Containers(all) if *all == Containers::default() => Ok(EVERYONE.to_owned()),
            End::Containers(containers) => {
                let service = json!({"select": select(containers)?});
                let name = self.new_name(&service, "sel");
                self.services.insert(name.clone(), service);
                Ok(name)
            }
            End::Addresses(Addresses { within, except }) => {
                let text = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Value>();
                let mut external = json!({"cidrs": text(within)});
                if !except.is_empty() {
                    external["except"] = text(except);
                }
                let name = self.new_name(&external, "ext");
                self.externals.insert(name.clone(), external);
                Ok(name)
            }
        }
    }

    fn new_name(&mut self, what: &Value, prefix: &str) -> String {
        let next = self.names.len() + 1;
        self.names
            .entry(what.to_string())
            .or_insert_with(|| format!("{prefix}-{next}"))
            .clone()
    }

    /// The allow-graph of a policy with directions, isolation or denials.
    ///
    /// A flow passes if its source may send it and its destination may get it, each because it is not isolated on that side
    /// or because an edge of that side matches, and no denial matches.
    fn graph(
        &mut self,
        policy: &NeutralPolicy,
        used: &mut BTreeSet<String>,
    ) -> Result<Vec<Value>, Untranslatable> {
        let documents = &policy.documents;
        let mut both = Vec::new();
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for rule in all_rules(std::iter::once(&policy.allow).chain(documents.iter().map(|d| &d.allow)))? {
            let flows = self.flows(&rule)?;
            match rule.direction {
                Direction::Both => both.extend(flows),
                Direction::Egress => sent.extend(flows),
                Direction::Ingress => received.extend(flows),
            }
        }
        let isolated = |side: Side| -> Result<Vec<Containers>, Untranslatable> {
            if policy.default == Stance::Deny {
                return Ok(vec![Containers::default()]);
            }
            let entries = policy
                .isolate
                .iter()
                .chain(documents.iter().flat_map(|d| &d.isolate));
            let mut sets = Vec::new();
            for selector in entries
                .filter(|entry| entry.on(side))
                .flat_map(|entry| entry.select.list())
            {
                if let Some(End::Containers(containers)) = end(selector)? {
                    sets.push(containers);
                }
            }
            Ok(sets)
        };
        let free = |side| -> Result<Vec<End>, Untranslatable> {
            let rest = Containers::in_none_of(&isolated(side)?).map_err(|_| default_allow())?;
            let outside = [End::World, End::Host];
            Ok(rest.into_iter().map(End::Containers).chain(outside).collect())
        };
        let flows = |from: End, to: End| Flows {
            from,
            to,
            traffic: Traffic::Any,
        };
        for from in free(Side::Egress)? {
            sent.extend(End::anything().into_iter().map(|to| flows(from.clone(), to)));
        }
        for to in free(Side::Ingress)? {
            received.extend(End::anything().into_iter().map(|from| flows(from, to.clone())));
        }
        // What two edges of both sides have in common, each of them opens by itself.
        let mut open: BTreeSet<Flows> = both.iter().cloned().collect();
        let meet = |some: &[Flows], others: &[Flows]| -> Vec<Flows> {
            let pairs = some
                .iter()
                .flat_map(|one| others.iter().filter_map(|other| one.and(other)));
            pairs.collect()
        };
        open.extend(meet(&sent, &received));
        open.retain(|flows| flows.from.is_service() || flows.to.is_service());

        let denied = std::iter::once(&policy.deny).chain(documents.iter().map(|d| &d.deny));
        for rule in all_rules(denied)? {
            for denied in self.flows(&rule)? {
                let mut left = BTreeSet::new();
                for flows in open {
                    left.extend(flows.without(&denied).map_err(deny_rules)?);
                }
                open = left;
            }
        }
        let mut edges = Vec::new();
        for flows in open {
            let ports = ports(&flows.traffic);
            if !ports.is_empty() {
                edges.extend(self.edge(&[flows.from], &[flows.to], ports, used)?);
            }
        }
        Ok(edges)
    }

    fn flows(&self, rule: &Rule) -> Result<Vec<Flows>, Untranslatable> {
        let mut targets = self.named(rule)?;
        for port in &rule.ports {
            if let Port::Known(traffic) = port {
                targets.extend(rule.to.iter().map(|to| (to.clone(), traffic.clone())));
            }
        }
        let flows = targets.into_iter().flat_map(|(to, traffic)| {
            rule.from.iter().map(move |from| Flows {
                from: from.clone(),
                to: to.clone(),
                traffic: traffic.clone(),
            })
        });
        Ok(flows.collect())
    }
}

fn default_allow() -> Untranslatable {
    Untranslatable::Lacking("default-allow")
}

fn deny_rules(_: NoOpposite) -> Untranslatable {
    Untranslatable::Lacking("deny-rules")
}

/// Whether each edge opens what it says, and nothing else counts.
fn is_plain(policy: &NeutralPolicy) -> bool {
    let both = |edges: &[NeutralEdge]| edges.iter().all(|edge| edge.direction == Direction::Both);
    policy.default == Stance::Deny
        && policy.deny.is_empty()
        && both(&policy.allow)
        && policy
            .documents
            .iter()
            .all(|document| document.deny.is_empty() && both(&document.allow))
}

fn head(audited: bool) -> Map<String, Value> {
    let mut head = Map::from_iter([
        ("cofferdam".to_owned(), json!(1)),
        ("segment".to_owned(), json!("conformance")),
    ]);
    if audited {
        head.insert("mode".to_owned(), json!("audit"));
    }
    head
}

fn render(document: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(document))
}
