//! The edge that is missing: what it would say, and in whose file it would stand.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{End, Question};
use crate::model::yaml::scalar;
use crate::policy::{Name, Policy, Ports, ScopedName};

/// An edge that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The segment that owns it.
    pub segment: Name,
    /// The file that declares the service on whose side it stands.
    pub file: String,
    /// Why it stands there.
    pub because: String,
    /// Ready to paste.
    pub yaml: String,
    /// What is to be known before it is pasted.
    pub remarks: Vec<String>,
}

/// The edge that would permit it. `None` where no edge can: an end is closed, or none of them is a service.
pub(super) fn edge(policy: &Policy, question: &Question) -> Option<Missing> {
    let (mine, theirs) = (services(&question.from)?, services(&question.to)?);
    // The callee's segment owns who may reach its services; towards others the caller's does.
    let (owner, because) = match (theirs.first(), mine.first()) {
        (Some(callee), _) => (
            callee,
            format!("`{}` owns who may reach `{callee}`", callee.segment),
        ),
        (None, Some(caller)) => (
            caller,
            format!(
                "`{}` owns where `{caller}` may go outside of the services",
                caller.segment
            ),
        ),
        (None, None) => return None,
    };
    let segment = owner.segment.clone();
    let file = policy.services.get(owner)?.location.file.clone();
    let mut writer = Writer {
        policy,
        segment: &segment,
        externals: Vec::new(),
        remarks: Vec::new(),
    };
    let from = writer.end(&question.from, &mine);
    let to = writer.end(&question.to, &theirs);
    let ports = written(question.ports);
    let mut yaml = String::new();
    if !writer.externals.is_empty() {
        yaml.push_str("externals:\n");
        for external in &writer.externals {
            yaml += &format!("  {external}\n");
        }
    }
    yaml += &format!("allow:\n  - {{ from: {from}, to: {to}, ports: [{ports}] }}\n");
    let remarks = writer.remarks;
    Some(Missing {
        segment,
        file,
        because,
        yaml,
        remarks,
    })
}

/// The services that an edge can name for the end; `None` where no edge can name it.
fn services(end: &End) -> Option<BTreeSet<ScopedName>> {
    match end {
        End::World | End::Host | End::External(_) | End::Outside(_) => Some(BTreeSet::new()),
        End::Service(_) | End::Container { .. } => end.identity().map(|it| it.services().clone()),
    }
}

struct Writer<'a> {
    policy: &'a Policy,
    segment: &'a Name,
    externals: Vec<String>,
    remarks: Vec<String>,
}

impl Writer<'_> {
    fn end(&mut self, end: &End, services: &BTreeSet<ScopedName>) -> String {
        match end {
            End::World => "world".to_owned(),
            End::Host => "host".to_owned(),
            End::External(name) if name.segment == *self.segment => scalar(name.name.as_str()),
            End::External(name) => {
                self.remarks.push(format!(
                    "externals are each segment's own: declare `{}` in segment `{}` too, with the addresses of `{name}`",
                    name.name, self.segment
                ));
                scalar(name.name.as_str())
            }
            End::Outside(address) => self.address(*address),
            End::Service(_) | End::Container { .. } => {
                let mut names = services.iter();
                let Some(first) = names.next() else {
                    return String::new();
                };
                let others: Vec<String> = names.map(|id| format!("`{id}`")).collect();
                if !others.is_empty() {
                    self.remarks.push(format!(
                        "`{end}` belongs to several services: instead of `{first}` the edge may name {}",
                        others.join(" or ")
                    ));
                }
                self.name(first)
            }
        }
    }

    fn name(&self, id: &ScopedName) -> String {
        if id.segment == *self.segment {
            scalar(id.name.as_str())
        } else {
            scalar(&id.to_string())
        }
    }

    /// An external of the segment that has the address, or a new one.
    fn address(&mut self, address: IpAddr) -> String {
        let mut here = self
            .policy
            .externals
            .iter()
            .filter(|(id, _)| id.segment == *self.segment);
        if let Some((id, _)) = here.find(|(_, set)| set.contains(address)) {
            self.remarks.push(format!(
                "`{id}` is an external with that address; it may have others too"
            ));
            return scalar(id.name.as_str());
        }
        let net = ipnet::IpNet::from(address);
        self.externals
            .push(format!("some-name: {{ cidrs: [\"{net}\"] }}"));
        self.remarks
            .push("give the external a name that says who it is".to_owned());
        "some-name".to_owned()
    }
}

/// As policies write it: a number alone is TCP.
fn written(ports: Ports) -> String {
    let text = ports.to_string();
    text.strip_suffix("/tcp").map(str::to_owned).unwrap_or(text)
}
