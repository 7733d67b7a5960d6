//! What was seen, added up: contacts and open connections become flows between containers, the host and the world.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;

use super::ground::{Grounds, Owner};
use super::{Contact, Direction, End, Evidence, Flow, Ignored, Place};
use crate::inventory::ContainerId;
use crate::net::{Family, PortRange, Transport};
use crate::policy::Ports;

/// A connection that was open, as one of its ends knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Open {
    pub client: SocketAddr,
    pub server: SocketAddr,
}

/// When connections were found to be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At the beginning: nobody counted them.
    Before,
    /// At the end: only those are news whose flow is not known.
    After,
}

/// Everything that was seen.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    flows: BTreeMap<Flow, Evidence>,
    /// Datagrams of which nobody can tell yet who serves.
    unclear: BTreeMap<Unclear, Evidence>,
    /// Protocols without ports.
    others: BTreeMap<(End, End, u8), u64>,
    /// What was dialled at a port of the host, and what the engine's proxy may have carried to the container.
    carried: BTreeMap<(ContainerId, Ports), Carried>,
    /// Open connections that are counted.
    open: BTreeSet<(SocketAddr, Flow)>,
    served: BTreeMap<ContainerId, BTreeSet<(Transport, u16)>>,
    ignored: Ignored,
    /// The kernel's sets of addresses outside were full.
    samples_are_cut: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Unclear {
    from: End,
    to: End,
    transport: Transport,
    source: u16,
    port: u16,
}

#[derive(Debug, Clone, Copy, Default)]
struct Carried {
    by_containers: u64,
    by_world: u64,
}

/// What it comes to.
#[derive(Debug, Clone, Default)]
pub struct Settled {
    pub flows: BTreeMap<Flow, Evidence>,
    /// From the host to a container, no more than containers dialled at the host's ports: the engine's proxy.
    pub proxied: Vec<(Flow, u64)>,
    /// Other protocols of IP, by number.
    pub others: Vec<(End, End, u8, u64)>,
    pub ignored: Ignored,
}

impl Observation {
    /// Takes in what the kernel counted more than before.
    pub fn take(
        &mut self,
        place: Place,
        contact: &Contact,
        count: u64,
        grounds: Grounds<'_>,
        now: Timestamp,
    ) {
        match *contact {
            Contact::Pair { from, to, ports } => {
                self.contact(place, (Some(from), Some(to)), ports, count, grounds, now);
            }
            Contact::Out { from, ports } => {
                self.contact(place, (Some(from), None), ports, count, grounds, now);
            }
            Contact::In { to, ports } => {
                self.contact(place, (None, Some(to)), ports, count, grounds, now);
            }
            // The same once more, with the address.
            Contact::Far { from, ports, to } => {
                self.contact(place, (Some(from), Some(to)), ports, 0, grounds, now);
            }
            Contact::Who { to, ports, from } => {
                self.contact(place, (Some(from), Some(to)), ports, 0, grounds, now);
            }
            Contact::Answer { from, to, ports } => self.answer((from, to), ports, count, grounds, now),
            Contact::Unclear {
                from,
                to,
                transport,
                source,
                port,
            } => {
                let Some((from_end, to_end)) = self.ends(place, from, to, grounds) else {
                    return;
                };
                let key = Unclear {
                    from: from_end,
                    to: to_end,
                    transport,
                    source,
                    port,
                };
                let evidence = self.unclear.entry(key).or_insert_with(|| Evidence::new(now));
                note(evidence, count, &[from, to], grounds, now);
            }
            Contact::Other { from, to, protocol } => {
                if let Some((from, to)) = self.ends(place, from, to, grounds) {
                    *self.others.entry((from, to, protocol)).or_default() += count;
                }
            }
        }
    }

    /// Notes what the kernel itself left out since the last time.
    pub fn left_out(&mut self, multicast: u64, lost: u64) {
        self.ignored.multicast += multicast;
        self.ignored.lost += lost;
    }

    /// Notes that there were more addresses outside than were kept.
    pub fn samples_are_cut(&mut self) {
        self.samples_are_cut = true;
    }

    /// Notes the ports on which a container takes what others send.
    pub fn serves(&mut self, container: &ContainerId, ports: impl IntoIterator<Item = (Transport, u16)>) {
        self.served.entry(container.clone()).or_default().extend(ports);
    }

    /// Whether something took what came to that port when it was last looked at; `None` where that is not known.
    pub fn is_served(&self, flow: &Flow) -> Option<bool> {
        let (End::Container(id), Ports::Transport(transport, range)) = (&flow.to, flow.ports) else {
            return None;
        };
        let served = self.served.get(id).filter(|_| transport != Transport::Sctp)?;
        Some(served.contains(&(transport, range.first)))
    }

    /// Takes in a TCP connection that was open. Either end may tell of it, or both.
    pub fn take_open(&mut self, open: Open, when: When, grounds: Grounds<'_>, now: Timestamp) {
        let Open { client, server } = open;
        let ports = Ports::Transport(Transport::Tcp, PortRange::single(server.port()));
        let Some((from, to)) = self.ends(Place::Namespace, client.ip(), server.ip(), grounds) else {
            return;
        };
        for (flow, by_way_of) in behind(from, to, server.ip(), ports, grounds) {
            if when == When::After && self.flows.contains_key(&flow) {
                continue;
            }
            if !self.open.insert((client, flow.clone())) {
                continue;
            }
            self.carry(&flow, by_way_of, 1);
            let evidence = self.evidence(flow, now);
            evidence.by_way_of.extend(by_way_of);
            note(evidence, 0, &[client.ip(), server.ip()], grounds, now);
            evidence.open += 1;
        }
    }

    fn contact(
        &mut self,
        place: Place,
        (from, to): (Option<IpAddr>, Option<IpAddr>),
        ports: Ports,
        count: u64,
        grounds: Grounds<'_>,
        now: Timestamp,
    ) {
        let owner = |address: Option<IpAddr>| match address {
            Some(address) => grounds.owner(address),
            None => Owner::End(End::Outside),
        };
        let Some((from_end, to_end)) = self.judged(place, owner(from), owner(to), count) else {
            return;
        };
        let at = to.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
        for (flow, by_way_of) in behind(from_end, to_end, at, ports, grounds) {
            self.carry(&flow, by_way_of, count);
            // The host's own ports, and what it opens itself, are no policy's concern.
            if ![&flow.from, &flow.to]
                .iter()
                .any(|end| matches!(end, End::Container(_)))
            {
                continue;
            }
            let evidence = self.evidence(flow, now);
            evidence.by_way_of.extend(by_way_of);
            let known: Vec<IpAddr> = [from, to].into_iter().flatten().collect();
            note(evidence, count, &known, grounds, now);
        }
    }

    fn answer(
        &mut self,
        (from, to): (IpAddr, IpAddr),
        ports: Ports,
        count: u64,
        grounds: Grounds<'_>,
        now: Timestamp,
    ) {
        // It was sent by `to`, so that one is a container on a bridge.
        let Some((to_end, from_end)) = self.ends(Place::Bridge, to, from, grounds) else {
            return;
        };
        let flow = Flow {
            from: from_end,
            to: to_end,
            ports,
        };
        let evidence = self.evidence(flow, now);
        note(evidence, 0, &[from, to], grounds, now);
        evidence.answers += count;
    }

    fn ends(&mut self, place: Place, from: IpAddr, to: IpAddr, grounds: Grounds<'_>) -> Option<(End, End)> {
        self.judged(place, grounds.owner(from), grounds.owner(to), 1)
    }

    /// The ends, where they are of interest at this place.
    fn judged(&mut self, place: Place, from: Owner, to: Owner, count: u64) -> Option<(End, End)> {
        match (place, from, to) {
            // Whatever a container sends is seen where it comes in.
            (Place::Routed, Owner::End(End::Container(_)) | Owner::Contested | Owner::Unknown, _) => None,
            (_, Owner::Contested | Owner::Unknown, _) | (_, _, Owner::Contested | Owner::Unknown) => {
                self.ignored.contested += count;
                None
            }
            (_, Owner::Nobody, _) | (_, _, Owner::Nobody) => {
                self.ignored.multicast += count;
                None
            }
            // Only containers send by a bridge's port: everything else there is forged, or another program's.
            (Place::Bridge, Owner::End(End::Host | End::Outside), _) => {
                self.ignored.foreign += count;
                None
            }
            (_, Owner::End(from), Owner::End(to)) => Some((from, to)),
        }
    }

    fn evidence(&mut self, flow: Flow, now: Timestamp) -> &mut Evidence {
        self.flows.entry(flow).or_insert_with(|| Evidence::new(now))
    }

    /// Notes that a port of the host was dialled.
    fn carry(&mut self, flow: &Flow, by_way_of: Option<u16>, count: u64) {
        let (Some(_), End::Container(server)) = (by_way_of, &flow.to) else {
            return;
        };
        let carried = self.carried.entry((server.clone(), flow.ports)).or_default();
        match flow.from {
            End::Container(_) => carried.by_containers += count,
            End::Outside => carried.by_world += count.max(1),
            End::Host => {}
        }
    }

    /// What all of it comes to: who serves is decided, and what the engine's proxy carried is no flow of the host's.
    pub fn settle(&self) -> Settled {
        let mut flows = self.flows.clone();
        for (unclear, evidence) in &self.unclear {
            self.decide(unclear, evidence, &mut flows);
        }
        let mut proxied = Vec::new();
        flows.retain(|flow, evidence| {
            let (End::Host, End::Container(server)) = (&flow.from, &flow.to) else {
                return true;
            };
            let carried = self.carried.get(&(server.clone(), flow.ports));
            let carried = carried.copied().unwrap_or_default();
            let dialled = evidence.count + evidence.open;
            // What the world dials through the proxy needs an edge from the host, too.
            let is_proxy =
                carried.by_world == 0 && carried.by_containers > 0 && dialled <= carried.by_containers;
            if is_proxy {
                proxied.push((flow.clone(), dialled));
            }
            !is_proxy
        });
        for (flow, evidence) in &mut flows {
            let by_answers_alone = evidence.count + evidence.open == 0;
            if by_answers_alone && self.is_served(flow) == Some(false) {
                evidence.direction = Direction::Likely;
            }
            evidence.addresses.more |=
                self.samples_are_cut && [&flow.from, &flow.to].contains(&&End::Outside);
        }
        Settled {
            flows,
            proxied,
            others: self
                .others
                .iter()
                .map(|((from, to, protocol), count)| (from.clone(), to.clone(), *protocol, *count))
                .collect(),
            ignored: self.ignored,
        }
    }

    fn decide(&self, unclear: &Unclear, evidence: &Evidence, flows: &mut BTreeMap<Flow, Evidence>) {
        let flow = |from: &End, to: &End, port: u16| Flow {
            from: from.clone(),
            to: to.clone(),
            ports: Ports::Transport(unclear.transport, PortRange::single(port)),
        };
        let there = flow(&unclear.from, &unclear.to, unclear.port);
        let back = flow(&unclear.to, &unclear.from, unclear.source);
        let serves = |end: &End, port: u16| match end {
            End::Container(id) => self
                .served
                .get(id)
                .is_some_and(|ports| ports.contains(&(unclear.transport, port))),
            End::Host | End::Outside => false,
        };
        let answers = (
            serves(&unclear.to, unclear.port),
            serves(&unclear.from, unclear.source),
        );
        let mut evidence = evidence.clone();
        let flow = match answers {
            (true, false) => there,
            (false, true) => back,
            // Of what is known otherwise this is a part.
            _ if flows.contains_key(&back) => back,
            _ if flows.contains_key(&there) => there,
            _ => {
                evidence.direction = Direction::Likely;
                there
            }
        };
        match flows.get_mut(&flow) {
            Some(known) => known.merge(&evidence),
            None => {
                flows.insert(flow, evidence);
            }
        }
    }
}

/// The flow itself, or where a port of the host is published those to the containers behind it, with that port.
fn behind(from: End, to: End, at: IpAddr, ports: Ports, grounds: Grounds<'_>) -> Vec<(Flow, Option<u16>)> {
    if to == End::Host
        && from != End::Host
        && let Ports::Transport(_, range) = ports
    {
        let behind = grounds.behind(at, ports);
        if !behind.is_empty() {
            let flow = |(server, ports)| Flow {
                from: from.clone(),
                to: End::Container(server),
                ports,
            };
            return behind
                .into_iter()
                .map(|it| (flow(it), Some(range.first)))
                .collect();
        }
    }
    vec![(Flow { from, to, ports }, None)]
}

fn note(evidence: &mut Evidence, count: u64, addresses: &[IpAddr], grounds: Grounds<'_>, now: Timestamp) {
    evidence.count += count;
    evidence.first = evidence.first.min(now);
    evidence.last = evidence.last.max(now);
    for address in addresses {
        evidence.families.insert(Family::of(*address));
        if grounds.owner(*address) == Owner::End(End::Outside) {
            evidence.addresses.insert(*address);
        }
    }
}
