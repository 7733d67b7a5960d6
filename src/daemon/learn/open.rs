//! A container's open connections as flows: who dialled whom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::inventory::ContainerId;
use crate::kernel::sockets::{Connection, Sockets};
use crate::model::learn::{Grounds, Open};

/// Which network namespace a process is in.
pub(super) fn namespace(process: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

/// A container's connection as client and server; `None` for what stays within it, and where neither side tells.
pub(super) fn open(
    id: &ContainerId,
    sockets: &Sockets,
    connection: &Connection,
    all: &BTreeMap<ContainerId, Sockets>,
    grounds: Grounds<'_>,
) -> Option<Open> {
    let Connection { local, remote } = *connection;
    if local.ip().is_loopback() || grounds.container(local.ip()).as_ref() != Some(id) {
        return None;
    }
    // Its own address is no way out.
    if grounds.container(remote.ip()).as_ref() == Some(id) {
        return None;
    }
    let inbound = Open {
        client: remote,
        server: local,
    };
    let outbound = Open {
        client: local,
        server: remote,
    };
    if sockets.accepted(connection) {
        return Some(inbound);
    }
    let theirs = grounds.container(remote.ip()).and_then(|other| all.get(&other));
    let mirrored = Connection {
        local: remote,
        remote: local,
    };
    if theirs.is_some_and(|it| it.accepted(&mirrored)) {
        return Some(outbound);
    }
    // Nobody listens any more: only the one who dialled has a port from the range for that.
    let is_ephemeral = |address: SocketAddr| address.port() >= 32_768;
    match (is_ephemeral(local), is_ephemeral(remote)) {
        (true, false) => Some(outbound),
        (false, true) => Some(inbound),
        // A container that listens nowhere there has dialled.
        _ => theirs.is_none().then_some(outbound),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::inventory::{Container, Endpoint, Facts, Lifecycle, NetworkId, NetworkMode};
    use crate::model::learn::Ground;
    use crate::net::Mac;

    fn container(number: u8) -> Container {
        let endpoint = Endpoint {
            mac: Some(Mac([2, 0, 0, 0, 0, number])),
            ipv4: Some([172, 18, 0, number].into()),
            ipv6: None,
        };
        Container {
            id: ContainerId(number.to_string().into()),
            name: format!("c{number}"),
            image: "".into(),
            labels: Default::default(),
            lifecycle: Lifecycle::Running,
            network_mode: NetworkMode::Own,
            endpoints: [(NetworkId("n".into()), endpoint)].into_iter().collect(),
            published: BTreeSet::new(),
            facts: Facts::default(),
        }
    }

    fn sockets(listening: &[&str]) -> Sockets {
        Sockets {
            listening: listening.iter().map(|it| it.parse().unwrap()).collect(),
            ..Sockets::default()
        }
    }

    #[test]
    fn whoever_listens_was_dialled() {
        let ground = Ground::new(&[container(2), container(3)], &[], []);
        let grounds = Grounds::still(&ground);
        let found = |listens: [&[&str]; 2], local: &str, remote: &str| {
            let all: BTreeMap<ContainerId, Sockets> = [2, 3]
                .map(|number: u8| ContainerId(number.to_string().into()))
                .into_iter()
                .zip(listens.map(sockets))
                .collect();
            let id = ContainerId("2".into());
            let connection = Connection {
                local: local.parse().unwrap(),
                remote: remote.parse().unwrap(),
            };
            let open = open(&id, &all[&id], &connection, &all, grounds)?;
            Some(format!("{} -> {}", open.client, open.server))
        };
        let (local, remote) = ("172.18.0.2:8000", "172.18.0.3:9000");
        let there = Some(format!("{local} -> {remote}"));
        let back = Some(format!("{remote} -> {local}"));
        assert_eq!(found([&["0.0.0.0:8000"], &[]], local, remote), back);
        assert_eq!(found([&[], &["[::]:9000"]], local, remote), there);
        // Nobody listens any more, and both ports are as good as each other.
        assert_eq!(found([&[], &[]], local, remote), None);
        assert_eq!(
            found([&[], &[]], "172.18.0.2:40000", remote).as_deref(),
            Some("172.18.0.2:40000 -> 172.18.0.3:9000")
        );
        // Who is outside cannot be asked.
        assert_eq!(
            found([&[], &[]], local, "203.0.113.7:443").as_deref(),
            Some("172.18.0.2:8000 -> 203.0.113.7:443")
        );
        for (local, remote) in [
            // Within, or not its own address.
            ("127.0.0.1:8000", "127.0.0.1:9000"),
            ("172.18.0.2:8000", "172.18.0.2:9000"),
            ("172.18.0.3:8000", "172.18.0.2:9000"),
            ("192.0.2.1:8000", "172.18.0.3:9000"),
        ] {
            assert_eq!(
                found([&["0.0.0.0:8000"], &[]], local, remote),
                None,
                "{local} {remote}"
            );
        }
    }
}
