//! What the kernel would do with a packet under a ruleset and its elements: the rules' meaning, for proofs. The main
//! property is that it equals the policy's own (`policy::meaning`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;

use super::ruleset::{
    Addresses, BindingSource, ChainName, Elements, EtherType, HookPoint, Interfaces, Key, Rule, Ruleset,
    SetName, SetRef, Side, Statement, Table, TableFamily,
};
use crate::net::{Family, IfName, Mac, Traffic, Transport};

/// What conntrack says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    New,
    Established,
    Related,
    Invalid,
    Untracked,
}

/// The Ethernet frame around a packet, as the bridge sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Interface index of the port that it came in by.
    pub iif: u32,
    /// Interface index of the port that it leaves by; 0 where there is none (yet).
    pub oif: u32,
    pub source: Mac,
    pub destination: Mac,
}

/// What is inside the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    Ip {
        source: IpAddr,
        destination: IpAddr,
        traffic: Traffic,
    },
    Arp {
        sender_mac: Mac,
        sender: Ipv4Addr,
        target: Ipv4Addr,
    },
    /// Any other EtherType.
    Other,
}

/// A packet at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub frame: Option<Frame>,
    pub iifname: Option<IfName>,
    pub oifname: Option<IfName>,
    pub body: Body,
    pub connection: Connection,
    pub mark: u32,
    /// Whether its destination has been translated.
    pub translated: bool,
    /// Whether a process of the host's root sent it.
    pub sent_by_root: bool,
}

/// The end of a packet's way through one hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on, with this mark.
    Accept {
        mark: u32,
    },
    Drop,
}

/// A ruleset together with its elements.
#[derive(Debug, Clone, Copy)]
pub struct Kernel<'a> {
    pub ruleset: &'a Ruleset,
    pub elements: &'a Elements,
    /// The host's clock.
    pub now: Timestamp,
}

enum Outcome {
    Verdict(Verdict),
    /// The end of the chain was reached.
    Return,
}

impl Kernel<'_> {
    /// Sends a packet through our base chains at a hook of one table. No base chain there: accept.
    pub fn hook(&self, family: TableFamily, point: HookPoint, packet: &Packet) -> Verdict {
        let mut mark = packet.mark;
        let Some(table) = self.ruleset.tables.get(&family) else {
            return Verdict::Accept { mark };
        };
        let mut bases: Vec<_> = table
            .chains
            .iter()
            .filter(|(_, chain)| chain.hook.is_some_and(|it| it.point == point))
            .collect();
        bases.sort_by_key(|(_, chain)| chain.hook.map(|it| it.priority));
        for (name, _) in bases {
            let walk = Walk {
                kernel: self,
                family,
                table,
                packet,
            };
            match walk.chain(name, &mut mark) {
                Outcome::Verdict(Verdict::Drop) => return Verdict::Drop,
                Outcome::Verdict(Verdict::Accept { .. }) | Outcome::Return => {}
            }
        }
        Verdict::Accept { mark }
    }
}

struct Walk<'a> {
    kernel: &'a Kernel<'a>,
    family: TableFamily,
    table: &'a Table,
    packet: &'a Packet,
}

impl Walk<'_> {
    fn chain(&self, name: &ChainName, mark: &mut u32) -> Outcome {
        // A verdict that names no chain of ours cannot be loaded; to drop is the closed reading.
        let Some(chain) = self.table.chains.get(name) else {
            return Outcome::Verdict(Verdict::Drop);
        };
        for rule in &chain.rules {
            match self.rule(rule, mark) {
                Step::NextRule => {}
                Step::Verdict(verdict) => return Outcome::Verdict(verdict),
                Step::Goto(target) => return self.chain(&target, mark),
            }
        }
        Outcome::Return
    }

    fn rule(&self, rule: &Rule, mark: &mut u32) -> Step {
        for statement in &rule.statements {
            match statement {
                Statement::Accept => return Step::Verdict(Verdict::Accept { mark: *mark }),
                Statement::Drop => return Step::Verdict(Verdict::Drop),
                Statement::Goto(target) => return Step::Goto(target.clone()),
                Statement::Jump(target) => match self.chain(target, mark) {
                    Outcome::Verdict(verdict) => return Step::Verdict(verdict),
                    Outcome::Return => {}
                },
                Statement::Stamp(bits) => *mark |= bits,
                // Whether a share is used up decides about reports alone.
                Statement::Counter(_) | Statement::Share { .. } | Statement::Log { .. } => {}
                Statement::ConnectionState { established, related } => match self.packet.connection {
                    Connection::Established => return Step::Goto(established.clone()),
                    Connection::Related => match self.chain(related, mark) {
                        Outcome::Verdict(verdict) => return Step::Verdict(verdict),
                        Outcome::Return => return Step::NextRule,
                    },
                    Connection::Invalid => return Step::Verdict(Verdict::Drop),
                    Connection::New | Connection::Untracked => return Step::NextRule,
                },
                Statement::AddressMap(side, family, set) => {
                    let key = self.address(*side, *family).map(address_key);
                    return match key.and_then(|key| self.verdict(set, &key)) {
                        Some(target) => Step::Goto(target),
                        None => Step::NextRule,
                    };
                }
                Statement::EtherTypeMap(map) => {
                    return match self.ether_type().and_then(|it| map.get(&it)) {
                        Some(target) => Step::Goto(target.clone()),
                        None => Step::NextRule,
                    };
                }
                condition => {
                    if !self.holds(condition, *mark) {
                        return Step::NextRule;
                    }
                }
            }
        }
        Step::NextRule
    }

    fn holds(&self, condition: &Statement, mark: u32) -> bool {
        match condition {
            Statement::Interface(side, test) => self.interface(*side, test),
            Statement::Port(side, set) => {
                let port = self.packet.frame.map(|frame| match side {
                    Side::Source => frame.iif,
                    Side::Destination => frame.oif,
                });
                port.is_some_and(|port| self.contains(set, &Key::IfIndex(port)))
            }
            Statement::Address(side, family, within) => {
                self.address(*side, *family).is_some_and(|address| match within {
                    Addresses::In(set) => self.contains_address(set, address),
                    Addresses::Ranges(ranges) => ranges.contains(address),
                })
            }
            Statement::ArpAddress(side, set) => match (self.packet.body, side) {
                (Body::Arp { sender, .. }, Side::Source) => self.contains_address(set, sender.into()),
                (Body::Arp { target, .. }, Side::Destination) => self.contains_address(set, target.into()),
                (Body::Ip { .. } | Body::Other, _) => false,
            },
            Statement::Service(side, family, set) => match (self.address(*side, *family), self.packet.body) {
                (
                    Some(address),
                    Body::Ip {
                        traffic: Traffic::Port(transport, port),
                        ..
                    },
                ) => self.contains(set, &service_key(address, transport, port)),
                _ => false,
            },
            Statement::HostPort(set) => match self.packet.body {
                Body::Ip {
                    source,
                    traffic: Traffic::Port(transport, port),
                    ..
                } => self.contains(set, &Key::HostPort(Family::of(source), transport, port)),
                Body::Ip { .. } | Body::Arp { .. } | Body::Other => false,
            },
            Statement::SentByRoot => self.packet.sent_by_root,
            Statement::Before(end) => self.kernel.now.as_second() < end.as_second(),
            Statement::Translated => self.packet.translated,
            Statement::EtherSource(set) => self
                .packet
                .frame
                .is_some_and(|frame| self.contains(set, &Key::Mac(frame.source))),
            Statement::Binding(source, set) => {
                self.binding(*source).is_some_and(|key| self.contains(set, &key))
            }
            Statement::EtherType(ether_type) => self.ether_type() == Some(*ether_type),
            Statement::Ports(ports) => match self.packet.body {
                Body::Ip {
                    traffic: Traffic::Port(transport, port),
                    ..
                } => ports
                    .iter()
                    .any(|(of, range)| *of == transport && range.contains(port)),
                Body::Ip { .. } | Body::Arp { .. } | Body::Other => false,
            },
            Statement::Icmp(family, types) => match self.packet.body {
                Body::Ip {
                    source,
                    traffic: Traffic::Icmp(number),
                    ..
                } => Family::of(source) == *family && types.as_ref().is_none_or(|it| it.contains(&number)),
                Body::Ip { .. } | Body::Arp { .. } | Body::Other => false,
            },
            // What comes in by one interface and leaves by another is routed, and has lost a hop.
            Statement::OnLink => {
                let (from, to) = (&self.packet.iifname, &self.packet.oifname);
                self.ether_type() == Some(EtherType::Ip6) && (from.is_none() || to.is_none() || from == to)
            }
            Statement::Protocol(number) => match self.packet.body {
                Body::Ip { traffic, source, .. } => protocol(traffic, Family::of(source)) == *number,
                Body::Arp { .. } | Body::Other => false,
            },
            Statement::Stamped(bits) => mark & bits != 0,
            // Everything else is an action, handled by the caller.
            _ => false,
        }
    }

    fn interface(&self, side: Side, test: &Interfaces) -> bool {
        let name = match side {
            Side::Source => &self.packet.iifname,
            Side::Destination => &self.packet.oifname,
        };
        let Some(name) = name else {
            return matches!(test, Interfaces::NotIn(_));
        };
        match test {
            Interfaces::In(set) => self.contains(set, &Key::IfName(name.clone())),
            Interfaces::NotIn(set) => !self.contains(set, &Key::IfName(name.clone())),
            Interfaces::Like(patterns) => patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.as_str().starts_with(prefix),
                None => name.as_str() == pattern,
            }),
        }
    }

    fn address(&self, side: Side, family: Family) -> Option<IpAddr> {
        let Body::Ip {
            source, destination, ..
        } = self.packet.body
        else {
            return None;
        };
        let address = match side {
            Side::Source => source,
            Side::Destination => destination,
        };
        (Family::of(address) == family).then_some(address)
    }

    fn binding(&self, source: BindingSource) -> Option<Key> {
        let frame = self.packet.frame?;
        let key = |port, mac, address| match address {
            IpAddr::V4(address) => Key::Binding4(port, mac, address),
            IpAddr::V6(address) => Key::Binding6(port, mac, address),
        };
        match (source, self.packet.body) {
            (BindingSource::Sender(family), Body::Ip { source, .. }) if Family::of(source) == family => {
                Some(key(frame.iif, frame.source, source))
            }
            (BindingSource::Receiver(family), Body::Ip { destination, .. })
                if Family::of(destination) == family =>
            {
                Some(key(frame.oif, frame.destination, destination))
            }
            (BindingSource::ArpFrame, Body::Arp { sender, .. }) => {
                Some(key(frame.iif, frame.source, sender.into()))
            }
            (
                BindingSource::ArpBody,
                Body::Arp {
                    sender_mac, sender, ..
                },
            ) => Some(key(frame.iif, sender_mac, sender.into())),
            _ => None,
        }
    }

    fn ether_type(&self) -> Option<EtherType> {
        match self.packet.body {
            Body::Ip {
                source: IpAddr::V4(_),
                ..
            } => Some(EtherType::Ip),
            Body::Ip {
                source: IpAddr::V6(_),
                ..
            } => Some(EtherType::Ip6),
            Body::Arp { .. } => Some(EtherType::Arp),
            Body::Other => None,
        }
    }

    fn set(&self, set: &SetName) -> Option<&BTreeMap<Key, Option<ChainName>>> {
        self.kernel.elements.get(&SetRef {
            table: self.family,
            set: set.clone(),
        })
    }

    fn contains(&self, set: &SetName, key: &Key) -> bool {
        self.set(set).is_some_and(|elements| elements.contains_key(key))
    }

    /// In a set of addresses, or within one of a set's networks.
    fn contains_address(&self, set: &SetName, address: IpAddr) -> bool {
        let within = |key: &Key| matches!(key, Key::Net(net) if net.contains(&address));
        self.contains(set, &address_key(address)) || self.set(set).is_some_and(|it| it.keys().any(within))
    }

    fn verdict(&self, map: &SetName, key: &Key) -> Option<ChainName> {
        self.set(map)?.get(key)?.clone()
    }
}

enum Step {
    NextRule,
    Goto(ChainName),
    Verdict(Verdict),
}

fn address_key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => Key::Ipv4(address),
        IpAddr::V6(address) => Key::Ipv6(address),
    }
}

fn service_key(address: IpAddr, transport: Transport, port: u16) -> Key {
    match address {
        IpAddr::V4(address) => Key::Service4(address, transport, port),
        IpAddr::V6(address) => Key::Service6(address, transport, port),
    }
}

fn protocol(traffic: Traffic, family: Family) -> u8 {
    match (traffic, family) {
        (Traffic::Port(transport, _), _) => transport.number(),
        (Traffic::Icmp(_), Family::V4) => 1,
        (Traffic::Icmp(_), Family::V6) => 58,
        (Traffic::Other(number), _) => number,
    }
}
