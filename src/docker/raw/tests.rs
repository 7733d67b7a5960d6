use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;
use crate::docker::EngineError;
use crate::inventory::Lifecycle;

/// An engine that answers each path with these bytes, and the first two requests as any engine does.
fn engine(socket: &Path, answers: &'static [(&'static str, &'static [u8])]) {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).await.is_err() {
                        return;
                    }
                    request.push(byte[0]);
                }
                let line = String::from_utf8_lossy(&request);
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                let version = br#"{"Version": "99.0", "ApiVersion": "1.41"}"#.as_slice();
                let found = answers.iter().find(|(suffix, _)| path.ends_with(suffix));
                let body = if path.ends_with("/version") {
                    version
                } else {
                    found.map_or(&b""[..], |(_, body)| body)
                };
                let status = if body.is_empty() {
                    "404 Not Found"
                } else {
                    "200 OK"
                };
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
                let _gone = stream.write_all(head.as_bytes()).await;
                let _gone = stream.write_all(body).await;
            });
        }
    });
}

async fn connect(answers: &'static [(&'static str, &'static [u8])]) -> (tempfile::TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    engine(&socket, answers);
    let engine = Engine::connect(&socket).await.unwrap();
    (folder, engine)
}

#[tokio::test]
async fn a_listing_survives_one_container_of_a_future_engine() {
    let (_folder, engine) = connect(&[
        (
            "/containers/json?all=1",
            br#"[{"Id": "a1", "Names": ["/old"], "State": "running"},
                 {"Id": "a2", "Names": ["/new"], "State": "hibernating", "Health": {"Status": 5}},
                 {"Id": "a3", "Names": ["/no-"], "State": {}, "Labels": "none"}]"#,
        ),
        (
            "/networks",
            b"[{\"Id\": \"b1\", \"Name\": \"caf\xc3\"}, {\"Id\": -1}, 7]",
        ),
        (
            "/containers/a1/json",
            br#"{"Id": "a1", "HostConfig": {"Privileged": true}}"#,
        ),
        ("/containers/a2/json", br#"{"Id": "a2", "HostConfig": {}}"#),
        ("/containers/a3/json", b"[]"),
    ])
    .await;
    let listing = engine.list().await.unwrap();
    let told: Vec<_> = listing
        .containers
        .iter()
        .map(|it| (it.name.as_str(), it.lifecycle, it.facts.unreadable))
        .collect();
    // `a3` is not one that can be inspected: it is gone.
    assert_eq!(
        told,
        [
            ("old", Lifecycle::Running, false),
            ("new", Lifecycle::Stopped, false)
        ]
    );
    assert_eq!(listing.containers[0].facts.powers.as_ref().unwrap().len(), 1);
    assert_eq!(listing.networks.len(), 1);
}

#[tokio::test]
async fn what_is_no_listing_is_an_error_and_no_empty_one() {
    for answer in [&b"{}"[..], b"[{]", b"\"\"", b"[[[[[[", b"\xff\xfe"] {
        let answers: &'static [(&str, &[u8])] = Box::leak(Box::new([("/containers/json?all=1", answer)]));
        let (_folder, engine) = connect(answers).await;
        let error = engine.list().await.unwrap_err();
        assert!(matches!(error, EngineError::Request { .. }), "{error:?}");
    }
    let (_folder, engine) = connect(&[]).await;
    engine.list().await.unwrap_err();
}

#[tokio::test]
async fn an_engine_that_never_ends_its_answer_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    engine(&socket, &[]);
    let mut engine = Engine::connect(&socket).await.unwrap();
    let endless = folder.path().join("endless.sock");
    let listener = UnixListener::bind(&endless).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _gone = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")
            .await;
        std::future::pending::<()>().await;
    });
    engine.socket = Arc::from(endless.as_path());
    assert!(matches!(
        engine.get_within(Duration::from_millis(200), "/networks").await,
        Err(WireError::RequestTimeoutError)
    ));
}

#[test]
fn errors_are_short() {
    let long = format!(r#"{{"message": "{}"}}"#, "é".repeat(5_000_000));
    let error = interpret(StatusCode::INTERNAL_SERVER_ERROR, long.as_bytes(), |_| Ok(())).unwrap_err();
    assert!(error.to_string().len() < 1000);
    assert!(matches!(
        interpret(StatusCode::NOT_FOUND, b"", |_| Ok(())),
        Ok(None)
    ));
}
