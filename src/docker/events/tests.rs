use futures_util::stream;
use serde_json::json;

use super::*;

fn created(n: usize) -> EngineEvent {
    EngineEvent::ContainerCreated(ContainerId(n.to_string().into()))
}

#[test]
fn pauses_double_up_to_the_longest() {
    for random in [0, 1, 12_345_678, u64::MAX] {
        for failures in [0, 1, 5, 7, 100, u32::MAX] {
            let pause = pause(failures, random);
            assert!(
                pause >= BACKOFF.0 && pause <= BACKOFF.1,
                "{pause:?} after {failures}"
            );
        }
        assert!(pause(3, random) >= Duration::from_millis(400));
        assert!(pause(3, random) <= Duration::from_millis(800));
        assert!(pause(40, random) >= BACKOFF.1 / 2);
    }
    assert_ne!(pause(9, 1), pause(9, 2));
}

#[test]
fn events_narrow_to_what_concerns_us() {
    let event = |typ: &str, action: &str, attributes: serde_json::Value| {
        let message =
            json!({"Type": typ, "Action": action, "Actor": {"ID": "f00", "Attributes": attributes}});
        narrow(serde_json::from_value(message).unwrap()).map(|event| format!("{event:?}"))
    };
    let text = |event: EngineEvent| Some(format!("{event:?}"));
    let id = || ContainerId("f00".into());
    assert_eq!(
        event("container", "die", json!({"exitCode": "0"})),
        text(EngineEvent::ContainerStopped(id()))
    );
    assert_eq!(event("container", "exec_start: sh", json!({})), None);
    assert_eq!(event("image", "create", json!({})), None);
    assert_eq!(
        event(
            "network",
            "connect",
            json!({"container": "c0de", "name": "plain"})
        ),
        text(EngineEvent::EndpointConnected {
            network: NetworkId("f00".into()),
            container: ContainerId("c0de".into()),
        })
    );
    assert_eq!(event("network", "connect", json!({"container": ""})), None);
    assert_eq!(event("network", "connect", json!(null)), None);
    let nobody = json!({"Type": "container", "Action": "start", "Actor": {"ID": ""}});
    assert!(narrow(serde_json::from_value(nobody).unwrap()).is_none());
}

#[test]
fn the_replay_starts_before_now_in_the_engines_form() {
    let now = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_001, 5);
    assert_eq!(options(now).since.as_deref(), Some("1700000000.000000005"));
}

#[tokio::test]
async fn a_slow_consumer_gets_one_resync_for_all_that_was_dropped() {
    let (sender, mut receiver) = mpsc::channel(4);
    let events = stream::iter((0..100).map(|n| Ok(Arrived::now(created(n))))).chain(stream::pending());
    let reader = tokio::spawn(async move { forward(events, &sender).await });
    // The reader goes through all of them although nobody takes any.
    while receiver.len() < 4 {
        tokio::task::yield_now().await;
    }
    for n in 0..4 {
        let event = receiver.recv().await.unwrap().event;
        assert_eq!(format!("{event:?}"), format!("{:?}", created(n)));
    }
    let last = receiver.recv().await.map(|it| it.event);
    assert!(matches!(last, Some(EngineEvent::Resync)));
    tokio::task::yield_now().await;
    assert!(receiver.is_empty());
    drop(receiver);
    reader.abort();
}

#[tokio::test]
async fn no_engine_is_told_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = subscribe(folder.path().join("docker.sock"));
    for _ in 0..2 {
        match events.recv().await.unwrap().event {
            EngineEvent::Disconnected { reason, retry_in } => {
                assert!(reason.contains("docker.sock"), "{reason}");
                assert!(retry_in >= BACKOFF.0 && retry_in <= BACKOFF.0 * 2);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_task_ends_with_its_consumer() {
    let folder = tempfile::tempdir().unwrap();
    let events = subscribe(folder.path().join("docker.sock"));
    drop(events);
    let tasks = tokio::runtime::Handle::current().metrics();
    for _ in 0..100 {
        if tasks.num_alive_tasks() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the reader goes on for nobody");
}

#[test]
fn an_event_happened_when_the_engine_says_so_unless_that_makes_no_sense() {
    let age = |stamp: Option<i64>| Arrived::stamped(created(1), stamp).at.elapsed();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_nanos()).unwrap();
    assert!((500..5000).contains(&age(Some(now - 500_000_000)).as_millis()));
    for senseless in [
        None,
        Some(-1),
        Some(0),
        Some(now + 60_000_000_000),
        Some(now - 60_000_000_000),
    ] {
        assert!(age(senseless) < Duration::from_millis(400), "{senseless:?}");
    }
}
