//! Who lives at which address and behind which port, for those who tell of packets.

use super::*;
use crate::inventory::Published;

/// A container, as far as packets show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    pub name: String,
    pub standing: Standing,
    /// On bridge networks.
    pub places: Box<[Place]>,
    pub published: BTreeSet<Published>,
}

/// A live endpoint of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub endpoint: Endpoint,
    /// The bridge port that leads to it, once that is known.
    pub port: Option<u32>,
}

/// What has changed since the last time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moves {
    /// Whoever is not named is gone.
    pub everybody: bool,
    /// `None`: gone.
    pub containers: BTreeMap<ContainerId, Option<Resident>>,
    /// The subnets of all bridge networks, where one of them has changed.
    pub subnets: Option<Vec<IpNet>>,
}

impl Moves {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Planner {
    /// Who has come, changed or gone since this was last asked for.
    pub fn moves(&mut self) -> Moves {
        let moved = std::mem::take(&mut self.moved);
        let mut moves = Moves {
            everybody: moved.everything,
            ..Moves::default()
        };
        for id in moved.containers {
            let resident = self.inventory.container(&id).map(|it| self.resident(it));
            moves.containers.insert(id, resident);
        }
        if moved.everything {
            let all = self.inventory.containers().values();
            let all = all.map(|it| (it.id.clone(), Some(self.resident(it))));
            moves.containers.extend(all);
        }
        if moved.everything || !moved.networks.is_empty() {
            let bridges = self.inventory.networks().values();
            let bridges = bridges.filter(|it| matches!(it.kind, NetworkKind::Bridge(_)));
            moves.subnets = Some(bridges.flat_map(|it| it.subnets.iter().copied()).collect());
        }
        moves
    }

    fn resident(&self, container: &Container) -> Resident {
        let view = self.view();
        let on_bridges = container.endpoints.iter().filter(|(network, endpoint)| {
            let network = self.inventory.network(network);
            endpoint.is_live() && network.is_some_and(|it| matches!(it.kind, NetworkKind::Bridge(_)))
        });
        let places = on_bridges.map(|(network, endpoint)| Place {
            endpoint: endpoint.clone(),
            port: view.port_of(&container.id, network, endpoint),
        });
        let standing = self.standings.get(&container.id);
        Resident {
            name: container.name.clone(),
            standing: standing.cloned().unwrap_or(Standing::Unmanaged),
            places: places.collect(),
            published: container.published.clone(),
        }
    }
}
