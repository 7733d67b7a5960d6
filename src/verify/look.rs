//! Reads the scene: which containers there are, what is in their network namespaces, and what listens there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use futures_util::{StreamExt as _, stream};

use super::scene::{Scene, Spot, Subject, is_excused};
use crate::daemon::{Refusal, chain, host_addresses};
use crate::docker::Engine;
use crate::inventory::{Container, ContainerId, Lifecycle, Network, NetworkId, NetworkKind, NetworkMode};
use crate::kernel::links::Links;
use crate::kernel::namespace::{Namespace, Visitor};
use crate::kernel::neighbour_table;
use crate::kernel::sockets::{self, Sockets};
use crate::model::{Identity, Rights, Standing, standing};
use crate::net::Transport;
use crate::policy::ServiceId;

/// Inspections at once.
const PARALLEL: usize = 8;

/// The scene, and the ways into it.
#[derive(Debug)]
pub struct Looked {
    pub scene: Scene,
    /// Those of the scene's containers, in the same order.
    places: Vec<Inside>,
    own: Inside,
    pub visitor: Visitor,
    /// Networks whose bridges hand their packets to the host's connection tracking.
    pub watched: BTreeSet<NetworkId>,
    pub left_out: LeftOut,
}

/// A network namespace, and the neighbours that it knew before anything was tried.
#[derive(Debug)]
struct Inside {
    namespace: Namespace,
    known: BTreeSet<IpAddr>,
}

impl Looked {
    /// Where probes of a spot start, and whom it knew.
    pub fn place(&self, spot: Spot) -> Option<(&Namespace, &BTreeSet<IpAddr>)> {
        let inside = match spot {
            Spot::Container(index) => self.places.get(index)?,
            Spot::Host => &self.own,
            Spot::World(_) => return None,
        };
        Some((&inside.namespace, &inside.known))
    }
}

/// Containers that are not probed, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct LeftOut {
    /// They carry the label.
    pub excused: BTreeSet<String>,
    /// They have no network of their own.
    pub without_network: BTreeSet<String>,
    /// Why not, for each.
    pub failed: BTreeMap<String, String>,
}

/// Looks. `isolated` are the containers that the daemon has cut, with their services.
///
/// # Errors
/// A [`Refusal`]: without the engine, or the right to enter namespaces, nothing can be said.
pub async fn look(
    engine: &Engine,
    rights: Rights,
    isolated: &BTreeMap<String, BTreeSet<ServiceId>>,
    world: Vec<SocketAddr>,
) -> Result<Looked, Refusal> {
    let visitor = Visitor::start().map_err(Refusal::kernel)?;
    let own = Inside {
        namespace: Namespace::own().map_err(Refusal::kernel)?,
        known: neighbour_table::known().map_err(Refusal::kernel)?,
    };
    let listing = engine.list().await?;
    let mut left_out = LeftOut::default();
    let mut wanted = Vec::new();
    for container in listing.containers {
        if container.lifecycle != Lifecycle::Running {
            continue;
        }
        let name = container.name.clone();
        if is_excused(&container) {
            left_out.excused.insert(name);
        } else if container.network_mode != NetworkMode::Own {
            left_out.without_network.insert(name);
        } else {
            wanted.push(container);
        }
    }
    let found: Vec<_> = stream::iter(wanted)
        .map(|container| visit(engine, &visitor, &own.namespace, container))
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    let mut subjects = Vec::new();
    for (container, visited) in found {
        match visited {
            Ok(Visited {
                inside,
                addresses,
                sockets,
            }) => {
                let standing = match isolated.get(&container.name).cloned().and_then(Identity::new) {
                    Some(identity) => Standing::Isolated(identity),
                    None => standing(&rights.policy, &container),
                };
                let served = served(&sockets);
                let subject = Subject {
                    container,
                    standing,
                    addresses,
                    served,
                };
                subjects.push((subject, inside));
            }
            Err(why) => {
                left_out.failed.insert(container.name, why);
            }
        }
    }
    subjects.sort_by(|(a, _), (b, _)| a.container.name.cmp(&b.container.name));
    let (subjects, places) = subjects.into_iter().unzip();
    let networks: BTreeMap<NetworkId, Network> = listing
        .networks
        .into_iter()
        .map(|network| (network.id.clone(), network))
        .collect();
    let watched = watched(&networks).await?;
    let host_sockets = sockets::of_process(std::process::id()).map_err(Refusal::kernel)?;
    let scene = Scene {
        rights,
        subjects,
        networks,
        host: host_addresses(),
        host_served: served(&host_sockets),
        world,
    };
    Ok(Looked {
        scene,
        places,
        own,
        visitor,
        watched,
        left_out,
    })
}

struct Visited {
    inside: Inside,
    addresses: BTreeSet<IpAddr>,
    sockets: Sockets,
}

/// Looks at one container; the error says why it cannot be probed.
async fn visit(
    engine: &Engine,
    visitor: &Visitor,
    own: &Namespace,
    container: Container,
) -> (Container, Result<Visited, String>) {
    let visited = async {
        let pid = engine.init_pid(&container.id).await.map_err(|it| chain(&it))?;
        let pid = pid.ok_or("it does not run")?;
        let namespace = Namespace::of_process(pid).map_err(|it| chain(&it))?;
        if namespace.is(own) {
            return Err("it is in the host's network namespace".to_owned());
        }
        let seen = || (host_addresses(), neighbour_table::known());
        let seen = visitor.within(&namespace, seen).await;
        let (mut addresses, known) = seen.map_err(|it| chain(&it))?;
        let known = known.map_err(|it| it.to_string())?;
        let endpoints = container.endpoints.values();
        let claimed: BTreeSet<IpAddr> = endpoints.flat_map(|it| it.addresses()).collect();
        addresses.retain(|address| claimed.contains(address));
        // A process that took over the number of one that ended is somewhere else.
        if addresses.is_empty() && !claimed.is_empty() {
            return Err("its network namespace has none of its addresses".to_owned());
        }
        let sockets = sockets::of_process(pid).map_err(|it| chain(&it))?;
        let still = Namespace::of_process(pid).map_err(|it| chain(&it))?;
        if !still.is(&namespace) {
            return Err("it restarted just now".to_owned());
        }
        Ok(Visited {
            inside: Inside { namespace, known },
            addresses,
            sockets,
        })
    };
    let visited = visited.await;
    (container, visited)
}

fn served(sockets: &Sockets) -> BTreeSet<(Transport, u16)> {
    let of = |transport| {
        sockets
            .served(transport)
            .into_iter()
            .map(move |port| (transport, port))
    };
    of(Transport::Tcp).chain(of(Transport::Udp)).collect()
}

async fn watched(networks: &BTreeMap<NetworkId, Network>) -> Result<BTreeSet<NetworkId>, Refusal> {
    let links = Links::open().map_err(Refusal::kernel)?;
    let snapshot = links
        .list()
        .await
        .map_err(|error| Refusal::system("list the host's links", error))?;
    let calling = snapshot.bridges.iter();
    let calling: BTreeSet<_> = calling
        .filter(|bridge| snapshot.calling.contains(&bridge.index))
        .map(|bridge| &bridge.name)
        .collect();
    let is_watched = |network: &&Network| match &network.kind {
        NetworkKind::Bridge(name) => calling.contains(name),
        NetworkKind::Other(_) => false,
    };
    let watched = networks.values().filter(is_watched);
    Ok(watched.map(|network| network.id.clone()).collect())
}

/// The containers of which something changed since the scene was read, by name: what was seen of them may be of others.
///
/// # Errors
/// When the engine does not answer.
pub async fn changed(engine: &Engine, scene: &Scene) -> Result<BTreeSet<String>, Refusal> {
    let listing = engine.list().await?;
    let now: BTreeMap<&ContainerId, &Container> = listing.containers.iter().map(|it| (&it.id, it)).collect();
    let subjects = scene.subjects.iter().map(|it| &it.container);
    let same = |container: &Container| {
        now.get(&container.id)
            .is_some_and(|it| it.endpoints == container.endpoints && it.lifecycle == container.lifecycle)
    };
    Ok(subjects
        .filter(|it| !same(it))
        .map(|it| it.name.clone())
        .collect())
}
