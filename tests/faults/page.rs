//! The page of a real daemon in a real browser.
//!
//! Proves promise 5 (what is true is visible): a packet that the kernel denied stands on the page within two seconds, the page
//! draws the policy's edges and no other, and page, metrics and `flows` tell the same number.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::browser::Browser;
use crate::engine::Lab;
use crate::figure::Figure;
use crate::shop::{POLICY, Shop, Spec, UNDECLARED, closed};

const NETWORK: &str = "shop_default";
const ADDRESS: &str = "127.0.0.1:9471";
/// From the packet to the page.
const SOON: Duration = Duration::from_secs(2);
/// What is drawn from the client to the server although no edge permits it.
const RED: &str =
    "document.querySelector('.refusal.denied[data-from=\"shop/client\"][data-to=\"shop/server\"]')";

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mut shop = Shop::open_with(lab, "page", POLICY, &["--http-listen", ADDRESS]).await?;
    shop.network(NETWORK, 93).await?;
    let server = shop.start(&Spec::service("server", "server").on(NETWORK)).await?;
    let client = shop.start(&Spec::service("client", "client").on(NETWORK)).await?;
    shop.converge().await?;
    let folder = tempfile::tempdir()?;
    let browser = Browser::open(folder.path(), (1400, 900), "light").await;
    browser.page.goto(&format!("http://{ADDRESS}/")).await?;
    browser
        .until("return document.querySelectorAll('#graph .edge').length > 0")
        .await;

    let (address, port) = (server.v4(NETWORK)?.to_string(), UNDECLARED.to_string());
    let knock = async |times: &str| {
        let words = ["knock", "tcp", &address, &port, &port, times];
        shop.probed(Some(client.pid), &words).await
    };
    let begun = Instant::now();
    knock("1").await?;
    browser
        .until(&format!("return {RED}?.dataset.attempts === '1'"))
        .await;
    let first = begun.elapsed();
    let listed = "return document.getElementById('flows').innerText.includes('no edge from shop/client to shop/server')";
    browser.until(listed).await;
    knock("999").await?;
    browser
        .until(&format!("return {RED}?.dataset.attempts === '1000'"))
        .await;

    let drawn =
        "return [...document.querySelectorAll('#graph .edge')].map(it => [it.dataset.from, it.dataset.to])";
    let drawn = browser.run(drawn).await;
    let services = browser
        .run("return [...document.querySelectorAll('.node.service')].length")
        .await;
    browser.close().await;
    let told = told(&shop).await?;
    let counted = counted().await?;
    let mut wrong = Vec::new();
    if first > SOON {
        wrong.push(format!("the first one was shown after {first:?}"));
    }
    if drawn != json!([["shop/client", "shop/server"]]) || services != json!(3) {
        wrong.push(format!("{services} services and these edges are drawn: {drawn}"));
    }
    if (told, counted) != (1000, 1000) {
        wrong.push(format!(
            "1000 are on the page, {told} are told, {counted} are counted"
        ));
    }
    let figure = Figure {
        name: "page: a denied packet, and a thousand".to_owned(),
        tried: 1000,
        repair_ms: u64::try_from(first.as_millis()).ok(),
        failed: (!wrong.is_empty()).then(|| wrong.join("; ")),
        ..Figure::default()
    };
    Ok(closed(shop, "page", vec![figure]).await)
}

/// What `cofferdam flows` says.
async fn told(shop: &Shop) -> anyhow::Result<u64> {
    let (text, _) = shop.daemon.asked(&["flows", "--json"]).await?;
    let lines = text.lines().filter(|line| line.starts_with('{'));
    let records: Vec<Value> = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(records.iter().filter_map(|it| it["attempts"].as_u64()).sum())
}

/// What the metrics say.
async fn counted() -> anyhow::Result<u64> {
    // The reading that is shared may be a second old.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut stream = TcpStream::connect(ADDRESS).await?;
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let name = "cofferdam_denied_attempts_total{from=\"shop/client\",to=\"shop/server\",reason=\"no-edge\"} ";
    match text.lines().find_map(|line| line.strip_prefix(name)) {
        Some(number) => number.parse().with_context(|| number.to_owned()),
        None => bail!("{name} is missing from {text}"),
    }
}
