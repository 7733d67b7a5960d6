//! Who had which address, and who was behind which bridge port, now and a moment ago: a packet is told of after it was sent, and
//! its container may be gone by then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::inventory::{ContainerId, Published};
use crate::model::Standing;
use crate::net::{Mac, Transport};
use crate::plan::{Moves, Place, Resident};

/// How long it is known who had an address before.
const MEMORY: Duration = Duration::from_secs(60);
/// Containers that are remembered after their end.
const MOST_GONE: usize = 4096;

/// A container, as flows name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Party {
    pub(super) id: ContainerId,
    pub(super) name: String,
    pub(super) standing: Standing,
    places: Box<[Place]>,
    published: BTreeSet<Published>,
}

impl Party {
    fn new(id: &ContainerId, resident: Resident) -> Self {
        Self {
            id: id.clone(),
            name: resident.name,
            standing: resident.standing,
            places: resident.places,
            published: resident.published,
        }
    }

    fn spots(&self) -> Vec<Spot> {
        let of = |place: &Place| {
            let addresses = place.endpoint.addresses().map(Spot::Address);
            addresses.chain(place.port.map(Spot::Port)).collect::<Vec<_>>()
        };
        self.places.iter().flat_map(of).collect()
    }

    /// Whether a frame tells the truth: this port, this Ethernet address and this address belong together, or will as soon as
    /// they are bound.
    pub(super) fn is_truth(&self, port: u32, mac: Mac, address: IpAddr) -> bool {
        self.places.iter().any(|place| {
            let is_its = place.endpoint.addresses().any(|it| it == address);
            let own = is_its || address == mac.link_local() || address.is_unspecified();
            place.port == Some(port) && place.endpoint.mac == Some(mac) && own
        })
    }
}

/// Who had it, and from when to when.
#[derive(Debug)]
struct Stay {
    party: Arc<Party>,
    from: Instant,
    until: Option<Instant>,
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Book {
    present: BTreeMap<ContainerId, Arc<Party>>,
    addresses: BTreeMap<IpAddr, Vec<Stay>>,
    ports: BTreeMap<u32, Vec<Stay>>,
    published: BTreeMap<(Transport, u16), BTreeMap<ContainerId, u16>>,
    subnets: Vec<IpNet>,
    /// What ended, and when, the oldest first.
    gone: VecDeque<(Instant, Spot)>,
}

/// Where a stay was.
#[derive(Debug, Clone, Copy)]
enum Spot {
    Address(IpAddr),
    Port(u32),
}

impl Book {
    /// Takes what has changed.
    pub(super) fn take(&mut self, moves: Moves, now: Instant) {
        if moves.everybody {
            let gone: BTreeSet<ContainerId> = self.present.keys().cloned().collect();
            let gone = gone.into_iter().filter(|id| !moves.containers.contains_key(id));
            gone.for_each(|id| self.set(&id, None, now));
        }
        for (id, resident) in moves.containers {
            self.set(&id, resident, now);
        }
        if let Some(subnets) = moves.subnets {
            self.subnets = subnets;
        }
        self.forget(now);
    }

    fn set(&mut self, id: &ContainerId, resident: Option<Resident>, now: Instant) {
        let party = resident.map(|resident| Party::new(id, resident));
        if self.present.get(id).map(Arc::as_ref) == party.as_ref() {
            return;
        }
        let before = self.present.remove(id);
        if let Some(old) = &before {
            for port in &old.published {
                let key = (port.transport, port.host_port);
                if let Some(behind) = self.published.get_mut(&key) {
                    behind.remove(id);
                    if behind.is_empty() {
                        self.published.remove(&key);
                    }
                }
            }
        }
        // A container that changed leaves every place, and comes to it again as what it is now.
        for spot in before.iter().flat_map(|it| it.spots()) {
            let stays = self.stays(spot).into_iter().flatten();
            let current = stays.filter(|stay| stay.until.is_none() && stay.party.id == *id);
            current.for_each(|stay| stay.until = Some(now));
            self.gone.push_back((now, spot));
        }
        let Some(party) = party.map(Arc::new) else {
            return;
        };
        for spot in party.spots() {
            let stay = Stay {
                party: Arc::clone(&party),
                from: now,
                until: None,
            };
            let stays = match spot {
                Spot::Address(address) => self.addresses.entry(address).or_default(),
                Spot::Port(port) => self.ports.entry(port).or_default(),
            };
            // It is nearly always one.
            if stays.is_empty() {
                stays.reserve_exact(1);
            }
            stays.push(stay);
        }
        for port in &party.published {
            let behind = self
                .published
                .entry((port.transport, port.host_port))
                .or_default();
            behind.insert(id.clone(), port.container_port);
        }
        self.present.insert(id.clone(), party);
    }

    fn stays(&mut self, spot: Spot) -> Option<&mut Vec<Stay>> {
        match spot {
            Spot::Address(address) => self.addresses.get_mut(&address),
            Spot::Port(port) => self.ports.get_mut(&port),
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some((when, spot)) = self.gone.front().copied() {
            let is_old = now.saturating_duration_since(when) > MEMORY;
            if !is_old && self.gone.len() <= MOST_GONE {
                return;
            }
            self.gone.pop_front();
            let Some(stays) = self.stays(spot) else { continue };
            stays.retain(|stay| stay.until.is_none_or(|until| until > when));
            if stays.is_empty() {
                match spot {
                    Spot::Address(address) => drop(self.addresses.remove(&address)),
                    Spot::Port(port) => drop(self.ports.remove(&port)),
                }
            }
        }
    }

    /// Who had the address at that moment.
    pub(super) fn at_address(&self, address: IpAddr, when: Instant) -> Option<&Arc<Party>> {
        at(self.addresses.get(&address)?, when)
    }

    /// Who was behind the bridge port at that moment.
    pub(super) fn at_port(&self, port: u32, when: Instant) -> Option<&Arc<Party>> {
        at(self.ports.get(&port)?, when)
    }

    /// Who is behind the host's published port, and the port there.
    pub(super) fn behind(&self, transport: Transport, host_port: u16) -> Option<(&Arc<Party>, u16)> {
        let (id, port) = self.published.get(&(transport, host_port))?.first_key_value()?;
        Some((self.present.get(id)?, *port))
    }

    /// Whether a Docker network has this address.
    pub(super) fn is_within(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|net| net.contains(&address))
    }
}

/// The one who was there; else the last one who had left; else who came right after.
fn at(stays: &[Stay], when: Instant) -> Option<&Arc<Party>> {
    let there = |stay: &&Stay| stay.from <= when && stay.until.is_none_or(|until| when <= until);
    let left = || stays.iter().rev().find(|stay| stay.from <= when);
    let stay = stays.iter().rev().find(there).or_else(left).or(stays.first());
    stay.map(|stay| &stay.party)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Endpoint;

    fn id(name: &str) -> ContainerId {
        ContainerId(name.repeat(64).into())
    }

    fn resident(name: &str, address: &str, port: u32) -> Option<Resident> {
        Some(Resident {
            name: name.to_owned(),
            standing: Standing::Unmanaged,
            places: Box::new([Place {
                endpoint: Endpoint {
                    ipv4: Some(address.parse().unwrap()),
                    ..Endpoint::default()
                },
                port: Some(port),
            }]),
            published: BTreeSet::new(),
        })
    }

    fn one(id: ContainerId, resident: Option<Resident>) -> Moves {
        Moves {
            containers: BTreeMap::from([(id, resident)]),
            ..Moves::default()
        }
    }

    #[test]
    fn an_address_is_whose_it_was_at_the_time() {
        let (mut book, start) = (Book::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let address: IpAddr = "10.0.0.2".parse().unwrap();
        book.take(one(id("a"), resident("first", "10.0.0.2", 7)), at(10));
        book.take(one(id("a"), None), at(20));
        book.take(one(id("b"), resident("second", "10.0.0.2", 9)), at(30));
        let name = |book: &Book, when| book.at_address(address, when).map(|it| it.name.clone());
        assert_eq!(name(&book, at(15)).as_deref(), Some("first"));
        assert_eq!(name(&book, at(25)).as_deref(), Some("first"), "gone since");
        assert_eq!(name(&book, at(31)).as_deref(), Some("second"));
        assert_eq!(book.at_port(7, at(25)).unwrap().name, "first");
        // After a minute only who is there is known.
        book.take(Moves::default(), at(90));
        assert_eq!(name(&book, at(15)).as_deref(), Some("second"));
        assert_eq!(book.at_port(7, at(15)), None);
        book.take(
            Moves {
                everybody: true,
                ..Moves::default()
            },
            at(100),
        );
        book.take(Moves::default(), at(200));
        assert_eq!(name(&book, at(200)), None);
        assert!(book.addresses.is_empty() && book.ports.is_empty() && book.gone.is_empty());
    }

    #[test]
    fn a_storm_of_short_containers_is_not_remembered_for_ever() {
        let (mut book, start) = (Book::default(), Instant::now());
        for number in 0..20_000_u32 {
            let id = ContainerId(format!("{number:064}").into());
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
            book.take(one(id.clone(), resident("c", &address, number)), start);
            book.take(one(id, None), start);
        }
        assert!(book.addresses.len() <= MOST_GONE && book.gone.len() <= MOST_GONE);
    }
}
