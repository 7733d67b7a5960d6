//! The two ends of a question, read from text: `shop/web`, a container's name, an address, `world`, `host`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::model::{Identity, Standing};
use crate::net::AddressSet;
use crate::policy::{Peer, Policy, Ports, ScopedName, closest};

/// One end of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Containers that belong to this service and to no other.
    Service(ScopedName),
    Container {
        name: String,
        standing: Standing,
    },
    /// Every address outside this host's containers, the host excluded.
    World,
    Host,
    /// Every address of the external.
    External(ScopedName),
    /// An address that is neither this host's nor a container's.
    Outside(IpAddr),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(id) | Self::External(id) => write!(f, "{id}"),
            Self::Container { name, .. } => f.write_str(name),
            Self::World => f.write_str("world"),
            Self::Host => f.write_str("host"),
            Self::Outside(address) => write!(f, "{address}"),
        }
    }
}

/// Where a container's packets come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A network stack of its own.
    Own(Standing),
    /// Another container's, by name: it has that one's addresses, and so its rights.
    Shared(String),
    /// The host's.
    Host,
    /// It has no network.
    Nowhere,
}

/// Whose names and addresses this host's are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    pub containers: BTreeMap<String, Place>,
    /// The addresses of containers, by the containers' names: more than one where they contest it.
    pub addresses: BTreeMap<IpAddr, BTreeSet<String>>,
    /// The host's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// What is to be known of a container besides its rights, such as that no rule can hold it.
    pub notes: BTreeMap<String, Vec<String>>,
}

/// What is known of the host besides the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge<'a> {
    /// Only the policy: a name must be a service's, an address is taken for one outside.
    PolicyAlone,
    Of(&'a Host),
}

/// Why a text is not a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    #[error(
        "`{0}` is not `B:PORT`: write `shop/db:5432`, `shop/dns:53/udp`, `shop/web:icmp` or `[2001:db8::1]:443`"
    )]
    NoPort(String),
    #[error("{message}{}", .help.as_ref().map(|help| format!(": {help}")).unwrap_or_default())]
    Ports { message: String, help: Option<String> },
    #[error("the policy has no service or external `{name}`{}", did_you_mean(.likely.as_deref()))]
    Unknown { name: String, likely: Option<String> },
    #[error("no container is called `{name}`{}", did_you_mean(.likely.as_deref()))]
    NoContainer { name: String, likely: Option<String> },
    #[error(
        "`{name}` would be a container's name, and no daemon says which containers there are: \
         a service is written `segment/service`{}",
        did_you_mean(.likely.as_deref())
    )]
    NoDaemon { name: String, likely: Option<String> },
    #[error("`{0}` has no network")]
    NoNetwork(String),
    #[error(
        "`{container}` belongs to `{service}`, which this policy does not declare: its place under this policy is not known"
    )]
    OtherPolicy { container: String, service: ScopedName },
}

fn did_you_mean(likely: Option<&str>) -> String {
    likely
        .map(|it| format!("; did you mean `{it}`?"))
        .unwrap_or_default()
}

/// Who opens what to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub from: End,
    pub to: End,
    pub ports: Ports,
    /// What the ends were taken for, where that is not what was written.
    pub remarks: Vec<String>,
}

impl Question {
    /// Reads `A` and `B:PORT`.
    ///
    /// # Errors
    /// What is not understood, or not known.
    pub fn parse(
        from: &str,
        to: &str,
        policy: &Policy,
        knowledge: Knowledge<'_>,
    ) -> Result<Self, QuestionError> {
        let no_port = || QuestionError::NoPort(to.to_owned());
        let (end, ports) = match to.strip_prefix('[') {
            Some(rest) => rest.split_once("]:"),
            None => to.split_once(':'),
        }
        .filter(|(end, ports)| !end.is_empty() && !ports.is_empty())
        .ok_or_else(no_port)?;
        if to.parse::<IpAddr>().is_ok() {
            return Err(no_port());
        }
        let ports = ports.parse::<Ports>().map_err(|error| QuestionError::Ports {
            message: error.message,
            help: error.help,
        })?;
        let from = from
            .strip_prefix('[')
            .and_then(|it| it.strip_suffix(']'))
            .unwrap_or(from);
        let mut reader = Reader {
            policy,
            knowledge,
            remarks: Vec::new(),
        };
        let (from, to) = (reader.end(from)?, reader.end(end)?);
        Ok(Self {
            from,
            to,
            ports,
            remarks: reader.remarks,
        })
    }
}

struct Reader<'a> {
    policy: &'a Policy,
    knowledge: Knowledge<'a>,
    remarks: Vec<String>,
}

impl Reader<'_> {
    fn end(&mut self, text: &str) -> Result<End, QuestionError> {
        match text {
            "world" => return Ok(End::World),
            "host" => return Ok(End::Host),
            _ => {}
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return self.address(address.to_canonical());
        }
        let policy = self.policy;
        let names = || policy.services.keys().chain(policy.externals.keys());
        if text.contains('/') {
            return match text.parse::<ScopedName>() {
                Ok(id) if policy.services.contains_key(&id) => Ok(End::Service(id)),
                Ok(id) if policy.externals.contains_key(&id) => Ok(End::External(id)),
                _ => {
                    let known: Vec<String> = names().map(ToString::to_string).collect();
                    Err(QuestionError::Unknown {
                        name: text.to_owned(),
                        likely: closest(text, known.iter().map(String::as_str)).map(str::to_owned),
                    })
                }
            };
        }
        let scoped = names()
            .find(|id| id.name.as_str() == text)
            .map(ToString::to_string);
        let Knowledge::Of(host) = self.knowledge else {
            return Err(QuestionError::NoDaemon {
                name: text.to_owned(),
                likely: scoped,
            });
        };
        if !host.containers.contains_key(text) {
            let containers = host.containers.keys().map(String::as_str);
            return Err(QuestionError::NoContainer {
                name: text.to_owned(),
                likely: scoped.or_else(|| closest(text, containers).map(str::to_owned)),
            });
        }
        self.container(text, host)
    }

    fn address(&mut self, address: IpAddr) -> Result<End, QuestionError> {
        let Knowledge::Of(host) = self.knowledge else {
            self.remarks.push(format!(
                "no daemon was asked whose {address} is: it is taken for an address outside of this host"
            ));
            return Ok(End::Outside(address));
        };
        if host.own.contains(&address) {
            self.remarks.push(format!("{address} is the host's"));
            return Ok(End::Host);
        }
        let names: Vec<&String> = host.addresses.get(&address).into_iter().flatten().collect();
        match names.as_slice() {
            [] => Ok(End::Outside(address)),
            [name] => {
                self.remarks.push(format!("{address} is `{name}`'s"));
                self.container(name, host)
            }
            several => {
                let names: Vec<String> = several.iter().map(|it| format!("`{it}`")).collect();
                self.remarks.push(format!(
                    "{address} is claimed by {}: it has no rights",
                    names.join(" and ")
                ));
                Ok(End::Container {
                    name: address.to_string(),
                    standing: Standing::Quarantined(BTreeSet::new()),
                })
            }
        }
    }

    fn container(&mut self, name: &str, host: &Host) -> Result<End, QuestionError> {
        let notes = host.notes.get(name).into_iter().flatten();
        self.remarks.extend(notes.map(|note| format!("`{name}`: {note}")));
        let (owner, place) = match host.containers.get(name) {
            Some(Place::Shared(other)) => {
                self.remarks.push(format!(
                    "`{name}` is on the network of `{other}` and has its addresses and rights"
                ));
                (other.as_str(), host.containers.get(other))
            }
            place => (name, place),
        };
        match place {
            Some(Place::Own(standing)) => {
                let services = standing.services().into_iter().flatten();
                for service in services {
                    if !self.policy.services.contains_key(service) {
                        return Err(QuestionError::OtherPolicy {
                            container: owner.to_owned(),
                            service: service.clone(),
                        });
                    }
                }
                Ok(End::Container {
                    name: owner.to_owned(),
                    standing: standing.clone(),
                })
            }
            Some(Place::Host) => {
                self.remarks
                    .push(format!("`{name}` is on the host's network: it is the host"));
                Ok(End::Host)
            }
            Some(Place::Nowhere | Place::Shared(_)) | None => Err(QuestionError::NoNetwork(name.to_owned())),
        }
    }
}

impl End {
    /// Whether the policy can say anything of it: it belongs to a service.
    pub fn identity(&self) -> Option<Identity> {
        match self {
            Self::Service(id) => Some(Identity::of(id.clone())),
            Self::Container {
                standing: Standing::Managed(identity),
                ..
            } => Some(identity.clone()),
            _ => None,
        }
    }

    /// Whether edges of this end are about it, in whole or in part.
    pub(super) fn touches(&self, peer: &Peer, policy: &Policy) -> bool {
        let addresses = |name: &ScopedName| policy.externals.get(name);
        match (self, peer) {
            (Self::Service(id), Peer::Service(of)) => id == of,
            (Self::Container { standing, .. }, Peer::Service(of)) => {
                standing.services().is_some_and(|services| services.contains(of))
            }
            (Self::World, Peer::World | Peer::External(_))
            | (Self::Host, Peer::Host)
            | (Self::External(_) | Self::Outside(_), Peer::World) => true,
            (Self::External(mine), Peer::External(of)) => match (addresses(mine), addresses(of)) {
                (Some(mine), Some(theirs)) => overlap(mine, theirs),
                _ => false,
            },
            (Self::Outside(address), Peer::External(of)) => {
                addresses(of).is_some_and(|set| set.contains(*address))
            }
            _ => false,
        }
    }
}

fn overlap(one: &AddressSet, other: &AddressSet) -> bool {
    let v4 = one
        .v4
        .iter()
        .any(|a| other.v4.iter().any(|b| a.0 <= b.1 && b.0 <= a.1));
    v4 || one
        .v6
        .iter()
        .any(|a| other.v6.iter().any(|b| a.0 <= b.1 && b.0 <= a.1))
}
