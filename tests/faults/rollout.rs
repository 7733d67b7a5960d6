//! What changes by itself or only reports: edges with an end, services in audit.
//!
//! Proves promise 4 (nothing widens by accident): an edge is gone at its second whether or not a daemon runs, and audit
//! passes nothing at a service that enforces.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

use crate::engine::Lab;
use crate::figure::Figure;
use crate::held::Held;
use crate::shop::{Container, POLICY, Shop, Staff, closed};

const NETWORK: &str = "shop_default";
/// From the policy's writing to the edge's end.
const NOTICE: SignedDuration = SignedDuration::from_secs(8);

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mut shop = Shop::open(lab, "rollout", POLICY).await?;
    let Staff {
        server,
        client,
        stranger,
    } = shop.staff(NETWORK, 90).await?;
    let scene = (&server, &client, &stranger);
    let mut figures = Vec::new();
    for daemon in [Down::Never, Down::AtTheEnd] {
        figures.push(ending(&mut shop, scene, daemon).await?);
    }
    figures.push(audit(&mut shop, scene).await?);
    Ok(closed(shop, "rollout", figures).await)
}

/// Whether the daemon is there when the edge ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Down {
    Never,
    AtTheEnd,
}

/// `client -> server:9090` ends by itself, its open connection too; `client -> server:8080` goes on.
async fn ending(
    shop: &mut Shop,
    (server, client, _): (&Container, &Container, &Container),
    daemon: Down,
) -> anyhow::Result<Figure> {
    let mut figure = Figure {
        name: match daemon {
            Down::Never => "rollout: an edge ends by itself".to_owned(),
            Down::AtTheEnd => "rollout: an edge ends while the daemon is down".to_owned(),
        },
        ..Figure::default()
    };
    let address = server.v4(NETWORK)?.to_string();
    let (lasting, passing) = (format!("tcp/{address}/8080"), format!("tcp/{address}/9090"));
    // In whole seconds, as the kernel counts.
    let until = Timestamp::from_second(Timestamp::now().checked_add(NOTICE)?.as_second())?;
    let edge = format!("  - {{ from: client, to: server, ports: [9090], until: {until} }}\n");
    shop.policy(&format!("{POLICY}{edge}")).await?;
    shop.until_reached(Some(client.pid), &passing, Duration::from_secs(5))
        .await
        .context("before its end the edge is not open")?;
    let mut held = Held::open(shop, client, &address, 9090).await?;
    if daemon == Down::AtTheEnd {
        shop.daemon.stop(Signal::SIGKILL).await?;
    }
    let wait = until.duration_since(Timestamp::now());
    if wait.is_negative() {
        bail!("the edge ended before it could be tried");
    }
    tokio::time::sleep(wait.unsigned_abs()).await;
    // From its second on nothing new passes, whoever runs.
    for _ in 0..20 {
        figure.tried += 1;
        figure.leaks += u64::from(shop.reaches(Some(client.pid), &passing).await?);
        if !shop.reaches(Some(client.pid), &lasting).await? {
            figure.failed = Some("the edge without an end is closed, too".to_owned());
        }
        if daemon == Down::Never && figure.tried == 2 {
            break;
        }
    }
    let begun = Instant::now();
    if daemon == Down::AtTheEnd {
        shop.daemon.start()?;
    }
    while held.longest_gap_ms().await.is_ok_and(|gap| gap < 1000) {
        if begun.elapsed() > Duration::from_secs(10) {
            figure.failed = Some("the open connection did not end".to_owned());
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    figure.repair_ms = u64::try_from(begun.elapsed().as_millis()).ok();
    shop.policy(POLICY).await?;
    Ok(figure)
}

/// All in audit; then one service enforces alone; then all do.
async fn audit(
    shop: &mut Shop,
    (server, client, stranger): (&Container, &Container, &Container),
) -> anyhow::Result<Figure> {
    let mut figure = Figure {
        name: "rollout: audit, then one service enforces".to_owned(),
        ..Figure::default()
    };
    let at = |container: &Container| container.addresses(NETWORK);
    // In audit, undeclared: client to the stranger, stranger to the server; over both families.
    let to_stranger: Vec<String> = at(stranger)?.iter().map(|it| format!("tcp/{it}/8080")).collect();
    let to_server: Vec<String> = at(server)?.iter().map(|it| format!("tcp/{it}/8080")).collect();
    let all = POLICY.replace("segment: shop\n", "segment: shop\nmode: audit\n");
    let one = all.replace(
        "compose: shop/server } }",
        "compose: shop/server }, mode: enforce }",
    );
    if one == all || all == POLICY {
        bail!("the policies of this scenario are the same");
    }
    for (policy, what, stranger_opens, server_opens) in [
        (all.as_str(), "all in audit", true, true),
        (&one, "the server enforces", true, false),
        (POLICY, "all enforce", false, false),
    ] {
        shop.policy(policy).await?;
        let before = audited(shop).await?;
        for (from, flows, expected) in [
            (client, &to_stranger, stranger_opens),
            (stranger, &to_server, server_opens),
            // The declared twin.
            (client, &to_server, true),
        ] {
            for flow in flows {
                let opened = match expected {
                    true => shop
                        .until_reached(Some(from.pid), flow, Duration::from_secs(5))
                        .await
                        .is_ok(),
                    false => shop.reaches(Some(from.pid), flow).await?,
                };
                figure.tried += u64::from(!expected);
                figure.leaks += u64::from(opened && !expected);
                if expected && !opened {
                    figure.failed = Some(format!("{what}: {} to {flow} does not pass", from.name));
                }
            }
        }
        let counted = audited(shop).await? - before;
        if (counted > 0) != stranger_opens {
            figure.failed = Some(format!("{what}: {counted} packets were counted as audited"));
        }
    }
    Ok(figure)
}

/// Packets that passed only because of audit.
async fn audited(shop: &Shop) -> anyhow::Result<u64> {
    let status = shop.daemon.status().await?;
    status["audited_packets"]
        .as_u64()
        .context("the status has no count of audited packets")
}
