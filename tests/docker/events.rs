//! The event stream: nothing is lost, and a lost engine is found again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam::docker::{Arrived, Engine, EngineEvent, subscribe};
use cofferdam::inventory::Lifecycle;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::lab::lab;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for the event that is asked for, past all others.
async fn expect<T>(events: &mut Receiver<Arrived>, mut wanted: impl FnMut(&EngineEvent) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = events.recv().await.unwrap().event;
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    };
    timeout(PATIENCE, search).await.expect("the event never came")
}

async fn connected(events: &mut Receiver<Arrived>) -> Engine {
    expect(events, |event| match event {
        EngineEvent::Connected(engine) => Some(engine.clone()),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_starting_container_is_known_from_its_first_endpoint_on() {
    lab("cft-start", 4, |lab| async move {
        let network = lab.engine.create_network(&lab.request("api", 0)).await.unwrap();
        let mut events = subscribe(lab.socket.clone());
        let engine = connected(&mut events).await;
        let container = lab.create("one", "cft-start-api").await;
        expect(&mut events, |event| {
            matches!(event, EngineEvent::ContainerCreated(id) if *id == container).then_some(())
        })
        .await;
        let starter = lab.clone();
        let starting = container.clone();
        let start = tokio::spawn(async move { starter.start(&starting).await });
        expect(&mut events, |event| match event {
            EngineEvent::EndpointConnected {
                network: n,
                container: c,
            } => (*n == network && *c == container).then_some(()),
            _ => None,
        })
        .await;
        let snapshot = engine.network(&network).await.unwrap().unwrap();
        let endpoint = snapshot.endpoints[&container].clone();
        assert!(endpoint.is_live() && endpoint.ipv4.is_some(), "{endpoint:?}");
        let listing = engine.list().await.unwrap();
        let listed = listing
            .containers
            .iter()
            .find(|listed| listed.id == container)
            .unwrap();
        assert_eq!(listed.endpoints[&network], endpoint);
        assert_eq!(listed.lifecycle, Lifecycle::Running);
        start.await.unwrap();
        expect(&mut events, |event| {
            matches!(event, EngineEvent::ContainerStarted(id) if *id == container).then_some(())
        })
        .await;

        lab.rename(&container, "two").await;
        lab.stop(&container).await;
        lab.docker.remove_container(&container.0, None).await.unwrap();
        let (mut renamed, mut stopped, mut detached) = (false, false, false);
        expect(&mut events, |event| match event {
            EngineEvent::ContainerRenamed(id) if *id == container => {
                renamed = true;
                None
            }
            EngineEvent::ContainerStopped(id) if *id == container => {
                stopped = true;
                None
            }
            EngineEvent::EndpointDisconnected { container: id, .. } if *id == container => {
                detached = true;
                None
            }
            EngineEvent::ContainerDestroyed(id) => (*id == container).then_some(()),
            _ => None,
        })
        .await;
        assert!(renamed && stopped && detached, "{renamed} {stopped} {detached}");
        lab.engine.remove_network(&network).await.unwrap();
        expect(&mut events, |event| {
            matches!(event, EngineEvent::NetworkDestroyed(id) if *id == network).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn nothing_after_connected_is_lost() {
    lab("cft-now", 5, |lab| async move {
        for round in 0..25 {
            let container = lab.create(&format!("{round}-a"), "none").await;
            let mut events = subscribe(lab.socket.clone());
            connected(&mut events).await;
            lab.rename(&container, &format!("{round}-b")).await;
            expect(&mut events, |event| {
                matches!(event, EngineEvent::ContainerRenamed(id) if *id == container).then_some(())
            })
            .await;
        }
    })
    .await;
}

/// Passes connections on to the engine until it is dropped, and with it every connection.
fn relay(at: &Path, to: PathBuf) -> JoinSet<()> {
    let listener = UnixListener::bind(at).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let to = to.clone();
            connections.spawn(async move {
                let mut engine = UnixStream::connect(&to).await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
            });
        }
    });
    tasks
}

#[tokio::test]
async fn a_lost_engine_is_told_and_found_again() {
    lab("cft-lost", 6, |lab| async move {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let mut events = subscribe(socket.clone());
        let lost = |event: &EngineEvent| match event {
            EngineEvent::Disconnected { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        let reason = expect(&mut events, lost).await;
        assert!(reason.contains("cannot reach"), "{reason}");
        for round in 0..3 {
            let engine = relay(&socket, lab.socket.clone());
            connected(&mut events).await;
            let container = lab.create(&format!("{round}-a"), "none").await;
            expect(&mut events, |event| {
                matches!(event, EngineEvent::ContainerCreated(id) if *id == container).then_some(())
            })
            .await;
            drop(engine);
            std::fs::remove_file(&socket).unwrap();
            expect(&mut events, lost).await;
        }
    })
    .await;
}
