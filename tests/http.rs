//! The HTTP server: what it answers, whom it refuses, and that clients that only want to be in the way are not.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "page/world.rs"]
#[expect(dead_code, reason = "the test of the page uses the rest")]
mod world;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cofferdam::daemon::flows::FlowVerdict;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use world::{World, found, many, service, shop};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

/// What is answered to these lines.
async fn raw(address: SocketAddr, request: &str) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let text = timeout(PATIENCE, exchange).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    Answer {
        status,
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: body.to_owned(),
    }
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> Answer {
    raw(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"),
    )
    .await
}

async fn serve() -> (World, SocketAddr) {
    let world = World::new(shop());
    let address = world.serve(0).await;
    (world, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_and_says_what_it_is() {
    let (world, address) = serve().await;
    world.audited.put(found("worker"));
    world.attempt(
        service("shop/web", 1),
        service("shop/db", 1),
        5432,
        FlowVerdict::Denied,
    );
    for (path, kind, word) in [
        ("/", "text/html; charset=utf-8", "<title>Cofferdam</title>"),
        (
            "/metrics",
            "text/plain; version=0.0.4; charset=utf-8",
            "cofferdam_state{state=\"enforcing\"} 1",
        ),
        (
            "/metrics",
            "text/plain; version=0.0.4; charset=utf-8",
            "cofferdam_denied_attempts_total{from=\"shop/web\",to=\"shop/db\",reason=\"no-edge\"} 1",
        ),
        ("/healthz", "text/plain; charset=utf-8", "enforcing"),
        ("/api/status", "application/json", "\"shop/web\""),
        ("/api/graph", "application/json", "\"edges\":[{\"from\":\"world\""),
        (
            "/api/service?name=shop%2Fweb",
            "application/json",
            "\"shop-web-1\"",
        ),
        (
            "/api/flows",
            "application/json",
            "no edge from shop/web to shop/db",
        ),
        ("/api/flows?after=1", "application/json", "\"flows\":[]"),
        ("/api/audit", "application/json", "\"code\":\"CFA002\""),
        (
            "/metrics",
            "text/plain; version=0.0.4; charset=utf-8",
            "cofferdam_audit_findings{code=\"CFA002\",severity=\"critical\"} 1",
        ),
    ] {
        let answer = get(address, path, "").await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.headers["content-type"], kind, "{path}");
        assert!(answer.body.contains(word), "{path}: {answer:?}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert!(answer.headers["content-security-policy"].starts_with("default-src 'none'"));
        assert!(!answer.headers.keys().any(|it| it.starts_with("access-control")));
    }
    let accepts = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let openmetrics = get(address, "/metrics", accepts).await;
    assert!(openmetrics.headers["content-type"].starts_with("application/openmetrics-text"));
    assert!(openmetrics.body.ends_with("# EOF\n"));
    for (path, status) in [
        ("/nothing", 404),
        ("/api/service?name=shop%2Fnothing", 404),
        ("/api/service", 400),
        ("/api/flows?after=-1", 400),
        ("/../../etc/passwd", 404),
    ] {
        assert_eq!(get(address, path, "").await.status, status, "{path}");
    }
    world.change(|status| {
        status.state = cofferdam::daemon::status::State::Degraded;
        status.reasons = vec!["no subnet is free".to_owned()];
    });
    sleep(Duration::from_millis(1100)).await;
    let unwell = get(address, "/healthz", "").await;
    assert_eq!(
        (unwell.status, &*unwell.body),
        (503, "degraded\nno subnet is free\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_reading_by_own_names_and_from_own_pages() {
    let (_world, address) = serve().await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"] {
        for path in ["/", "/metrics", "/api/status"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let answer = raw(address, &request).await;
            assert!(matches!(answer.status, 400 | 405), "{method} {path}: {answer:?}");
        }
    }
    let head = raw(
        address,
        "HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!((head.status, &*head.body), (200, ""));
    for (host, status) in [
        ("Host: localhost:9471\r\n", 200),
        ("Host: 127.0.0.1:9471\r\n", 200),
        ("Host: [::1]:9471\r\n", 200),
        ("Host: board.example\r\n", 200),
        ("Host: evil.example\r\n", 421),
        ("Host: localhost.evil.example\r\n", 421),
        ("Host: \r\n", 421),
        ("", 421),
        ("Host: localhost\r\nHost: evil.example\r\n", 421),
    ] {
        for path in ["/", "/metrics", "/api/flows", "/nothing"] {
            let answer = raw(
                address,
                &format!("GET {path} HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
            )
            .await;
            let wanted = if path == "/nothing" && status == 200 {
                404
            } else {
                status
            };
            assert_eq!(answer.status, wanted, "{host} {path}");
            assert!(status == 200 || !answer.body.contains("shop"), "{answer:?}");
        }
    }
    let absolute =
        "GET http://evil.example/api/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(raw(address, absolute).await.status, 421);
    for (headers, status) in [
        ("Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n", 200),
        ("Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n", 200),
        (
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n",
            200,
        ),
        (
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n",
            403,
        ),
        (
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n",
            403,
        ),
        ("Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n", 403),
        ("Origin: http://localhost\r\n", 200),
        ("Origin: http://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
    ] {
        assert_eq!(
            get(address, "/api/status", headers).await.status,
            status,
            "{headers}"
        );
    }
}

/// A client that listens to events.
async fn listen(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream
}

/// What it is told until these words have come.
async fn until(stream: &mut TcpStream, words: &[&str]) -> String {
    let mut text = String::new();
    let mut buffer = vec![0; 65_536];
    let reading = async {
        while !words.iter().all(|word| text.contains(word)) {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "it ended: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    if timeout(PATIENCE, reading).await.is_err() {
        panic!("{words:?} never came: {text}");
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_what_changed_and_only_that() {
    let (world, address) = serve().await;
    world.attempt(
        service("shop/web", 1),
        service("shop/db", 1),
        22,
        FlowVerdict::Denied,
    );
    let mut client = listen(address).await;
    let hello = until(&mut client, &["event: view", "event: counters", "event: flows"]).await;
    assert!(
        hello.contains("text/event-stream") && hello.contains("\"port\":22"),
        "{hello}"
    );
    world.attempt(
        service("shop/web", 1),
        service("shop/db", 1),
        23,
        FlowVerdict::Denied,
    );
    let flows = until(&mut client, &["\"port\":23"]).await;
    assert!(
        !flows.contains("\"port\":22"),
        "what was told is not told again: {flows}"
    );
    assert!(
        !flows.contains("event: view") && !flows.contains("event: counters"),
        "{flows}"
    );
    world.change(|status| status.edges[0].packets = Some(4711));
    let counters = until(&mut client, &["4711"]).await;
    assert!(!counters.contains("event: view"), "{counters}");
    world.change(|status| status.policy.revision = Some("feed".to_owned()));
    until(&mut client, &["event: view", "feed"]).await;
    // A name cannot end an event and begin another.
    world.change(|status| status.reasons = vec!["\n\nevent: flows\ndata: 1".to_owned()]);
    let view = until(&mut client, &["\\n\\nevent: flows"]).await;
    assert!(!view.contains("\nevent: flows"), "{view}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_is_read_once_a_second_for_all_and_never_for_nobody() {
    let (world, address) = serve().await;
    let readings = || *world.readings.lock().unwrap();
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(readings(), 0);
    let begun = Instant::now();
    let asked: Vec<_> = (0..50)
        .map(|_| tokio::spawn(async move { get(address, "/metrics", "").await.status }))
        .collect();
    for asked in asked {
        assert_eq!(asked.await.unwrap(), 200);
    }
    let most = 1 + begun.elapsed().as_secs() as usize + 1;
    assert!(readings() <= most, "{} readings for 50 clients", readings());
    let mut listeners = Vec::new();
    for _ in 0..5 {
        listeners.push(listen(address).await);
    }
    let before = readings();
    sleep(Duration::from_millis(4200)).await;
    let during = readings() - before;
    assert!((2..=5).contains(&during), "{during} readings in 4.2 s");
    drop(listeners);
    sleep(Duration::from_millis(1500)).await;
    let before = readings();
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(readings(), before, "nobody listens any more");
}

async fn answers_within(address: SocketAddr, limit: Duration) -> Duration {
    let begun = Instant::now();
    assert_eq!(get(address, "/healthz", "").await.status, 200);
    let elapsed = begun.elapsed();
    assert!(elapsed < limit, "answered only after {elapsed:?}");
    elapsed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_slow_and_deaf_clients_are_not_in_the_way() {
    let world = World::new(many(1000));
    let address = world.serve(0).await;
    let limit = Duration::from_secs(4);
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let beside_silent = answers_within(address, limit).await;
    // Half a request is as good as none, and whoever asks and takes nothing has had its time.
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /api/status HTTP/1.1\r\nHost: loc")
            .await
            .unwrap();
        slow.push(stream);
    }
    let beside_slow = answers_within(address, limit).await;
    let mut deaf = Vec::new();
    for _ in 0..100 {
        deaf.push(listen(address).await);
    }
    let beside_deaf = answers_within(address, limit).await;
    println!("answered after {beside_silent:?}, {beside_slow:?} and {beside_deaf:?}");
    drop((silent, slow, deaf));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_more_is_let_go() {
    let (_world, address) = serve().await;
    for beginning in ["", "GET / HT", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let begun = Instant::now();
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(12), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "after {beginning:?} it stayed open");
        println!("after {beginning:?} it was closed in {:?}", begun.elapsed());
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(100_000));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _refused = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
}
