//! Denied flows by name.
//!
//! Proves promise 5 (what is true is visible): what was tried is told with both names and the missing edge, in the number in
//! which it was tried; a scan hides nobody else's denial and costs next to nothing; a forger is told by its own name.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cofferdam::kernel::nflog::Nflog;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::engine::{Lab, output};
use crate::figure::Figure;
use crate::shop::{Container, DECLARED, POLICY, Shop, Spec, Staff, UNDECLARED, closed};

const NETWORK: &str = "shop_default";
/// How often every port is tried: long enough for what the first moment costs not to be all of it.
const TIMES: u32 = 10;
/// From the packet to the record.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let mut shop = Shop::open(lab, "flows", POLICY).await?;
    let Staff {
        server,
        client,
        stranger,
    } = shop.staff(NETWORK, 92).await?;
    let mut scene = Scene {
        shop,
        server,
        client,
        stranger,
    };
    let mut figures = vec![scene.declared().await?];
    for proto in ["tcp", "udp"] {
        figures.push(scene.thousand(proto).await?);
    }
    figures.push(scene.ways().await?);
    figures.push(scene.audited().await?);
    figures.push(scene.forged().await?);
    figures.push(scene.gone().await?);
    figures.push(scene.drawn().await?);
    figures.push(scene.schemas().await?);
    figures.push(scene.story().await?);
    figures.push(scene.followed().await?);
    figures.push(scene.scan().await?);
    figures.push(scene.untold().await?);
    Ok(closed(scene.shop, "flows", figures).await)
}

struct Scene {
    shop: Shop,
    server: Container,
    client: Container,
    stranger: Container,
}

/// What `cofferdam flows --json` prints, with these arguments beside.
async fn told(shop: &Shop, arguments: &str) -> anyhow::Result<Vec<Value>> {
    let words: Vec<&str> = ["flows", "--json"]
        .into_iter()
        .chain(arguments.split_whitespace())
        .collect();
    let (text, _) = shop.daemon.asked(&words).await?;
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn number(record: &Value, field: &str) -> u64 {
    record[field].as_u64().unwrap_or_default()
}

impl Scene {
    /// Waits until the records with these arguments satisfy a condition.
    async fn until(
        &self,
        arguments: &str,
        holds: impl Fn(&[Value]) -> bool,
    ) -> anyhow::Result<(Vec<Value>, Duration)> {
        let begun = Instant::now();
        loop {
            let records = told(&self.shop, arguments).await?;
            if holds(&records) {
                return Ok((records, begun.elapsed()));
            }
            if begun.elapsed() > PATIENCE {
                bail!("`flows {arguments}` tells {records:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What is declared passes, and nothing is told of it.
    async fn declared(&self) -> anyhow::Result<Figure> {
        let address = self.server.v4(NETWORK)?;
        let flow = format!("tcp/{address}/{DECLARED}");
        for _ in 0..10 {
            if !self.shop.reaches(Some(self.client.pid), &flow).await? {
                bail!("the declared flow does not pass");
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let records = told(&self.shop, "").await?;
        Ok(Figure {
            name: "flows: what passes is not told".to_owned(),
            tried: 10,
            failed: (!records.is_empty()).then(|| format!("{records:?}")),
            ..Figure::default()
        })
    }

    /// A thousand attempts are a thousand.
    async fn thousand(&self, proto: &str) -> anyhow::Result<Figure> {
        let address = self.server.v4(NETWORK)?.to_string();
        let port = UNDECLARED.to_string();
        let knock = ["knock", proto, &address, &port, &port, "1000"];
        self.shop.probed(Some(self.client.pid), &knock).await?;
        let of_proto = |record: &&Value| record["protocol"] == proto;
        let count = |records: &[Value]| {
            records
                .iter()
                .filter(of_proto)
                .map(|it| number(it, "attempts"))
                .sum::<u64>()
        };
        let arguments = "--from shop/client --to shop/server --verdict denied";
        let (records, took) = self.until(arguments, |records| count(records) >= 1000).await?;
        let record = records.iter().find(of_proto).context("no record")?;
        let expected = [
            ("direction", "internal"),
            ("reason", "no edge from shop/client to shop/server has"),
        ];
        let told = count(&records);
        let wrong = expected
            .iter()
            .find(|(field, begin)| !record[field].as_str().is_some_and(|it| it.starts_with(begin)));
        let named = record["from"]["container"] == "client"
            && record["to"]["services"][0] == "shop/server"
            && record["port"] == UNDECLARED;
        Ok(Figure {
            name: format!("flows: a thousand attempts, {proto}"),
            tried: 1000,
            repair_ms: u64::try_from(took.as_millis()).ok(),
            failed: (told != 1000 || wrong.is_some() || !named).then(|| format!("{told} are told: {record}")),
            ..Figure::default()
        })
    }

    /// Every way in and out, both families, and what has no port.
    async fn ways(&self) -> anyhow::Result<Figure> {
        let at = |container: &Container| container.on(NETWORK).cloned();
        let (server, client) = (at(&self.server)?, at(&self.client)?);
        let text =
            |address: Option<std::net::Ipv4Addr>| address.map(|it| it.to_string()).context("no address");
        let text6 =
            |address: Option<std::net::Ipv6Addr>| address.map(|it| it.to_string()).context("no address");
        let (server4, server6) = (text(server.v4)?, text6(server.v6)?);
        let (gateway4, gateway6) = (text(client.gateway)?, text6(client.gateway6)?);
        let inside = Some(self.client.pid);
        // A world to go to, in which nobody answers.
        let ip = async |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            output("ip", &words, "").await.map(drop)
        };
        ip("link add elsewhere type veth peer name nobody").await?;
        ip("addr add 198.51.100.1/24 dev elsewhere").await?;
        ip("addr add 2001:db8:99::1/64 dev elsewhere nodad").await?;
        ip("link set elsewhere up").await?;
        ip("link set nobody up").await?;
        let ways = [
            (inside, server6.as_str(), "internal", "shop/client", "shop/server"),
            (inside, &gateway4, "outbound", "shop/client", "host"),
            (inside, &gateway6, "outbound", "shop/client", "host"),
            (inside, "198.51.100.7", "outbound", "shop/client", "world"),
            (inside, "2001:db8:99::7", "outbound", "shop/client", "world"),
            (None, &server4, "inbound", "host", "shop/server"),
            (None, &server6, "inbound", "host", "shop/server"),
        ];
        let mut failed = None;
        for (pid, address, direction, from, to) in ways {
            // Nobody has called at this port before.
            self.shop
                .probed(pid, &["knock", "tcp", address, "7777", "7777", "2"])
                .await?;
            let arguments = format!("--from {from} --to {address} --verdict denied");
            let (records, _) = self
                .until(&arguments, |records| {
                    records.iter().any(|it| it["port"] == 7777 && it["attempts"] == 2)
                })
                .await?;
            let record = records
                .iter()
                .find(|it| it["port"] == 7777)
                .context("no record")?;
            let reason = format!("no edge from {from} to {to}");
            let right = record["direction"] == direction
                && record["reason"]
                    .as_str()
                    .is_some_and(|it| it.starts_with(&reason));
            if !right {
                failed = Some(format!("{from} -> {address}: {record}"));
            }
        }
        self.shop
            .reaches(Some(self.stranger.pid), &format!("icmp/{server4}/echo"))
            .await?;
        let (records, _) = self
            .until("--from stranger --to shop/server", |records| {
                records
                    .iter()
                    .any(|it| it["protocol"] == "icmp" && it["icmp_type"] == 8)
            })
            .await?;
        if records
            .iter()
            .any(|it| it["reason"] != "no edge from shop/stranger to shop/server")
        {
            failed = Some(format!("{records:?}"));
        }
        Ok(Figure {
            name: "flows: each way in and out".to_owned(),
            tried: 8,
            failed,
            ..Figure::default()
        })
    }

    /// In audit the same is told as audited, and passes.
    async fn audited(&mut self) -> anyhow::Result<Figure> {
        let audit = POLICY.replace("segment: shop\n", "segment: shop\nmode: audit\n");
        self.shop.policy(&audit).await?;
        let flow = format!("tcp/{}/{UNDECLARED}", self.server.v4(NETWORK)?);
        let from = Some(self.stranger.pid);
        self.shop.until_reached(from, &flow, PATIENCE).await?;
        let (records, took) = self
            .until("--verdict audited --from stranger", |records| !records.is_empty())
            .await?;
        let record = &records[0];
        let right = record["port"] == UNDECLARED
            && record["reason"] == "no edge from shop/stranger to shop/server"
            && record["attempts"].as_u64() >= Some(1);
        self.shop.policy(POLICY).await?;
        let leaked = self.shop.reaches(from, &flow).await?;
        Ok(Figure {
            name: "flows: in audit".to_owned(),
            tried: 1,
            leaks: u64::from(leaked),
            repair_ms: u64::try_from(took.as_millis()).ok(),
            failed: (!right).then(|| record.to_string()),
            ..Figure::default()
        })
    }

    /// A container that forges an address is told by its own name.
    async fn forged(&self) -> anyhow::Result<Figure> {
        let (client, server) = (
            self.client.v4(NETWORK)?.to_string(),
            self.server.v4(NETWORK)?.to_string(),
        );
        let port = DECLARED.to_string();
        let spoof = ["spoof", "udp", &client, &server, &port, "5"];
        self.shop.probed(Some(self.stranger.pid), &spoof).await?;
        let (records, took) = self
            .until("--verdict identity --from stranger --to shop/server", |records| {
                records.iter().any(|it| number(it, "packets") >= 5)
            })
            .await?;
        let reason = records[0]["reason"].as_str().unwrap_or_default();
        let right = reason == format!("{client} is client's, not stranger's");
        // Nobody but the forger.
        let others = told(&self.shop, "--verdict identity").await?.len() - records.len();
        Ok(Figure {
            name: "flows: a forged address".to_owned(),
            tried: 5,
            repair_ms: u64::try_from(took.as_millis()).ok(),
            failed: (!right || others > 0).then(|| format!("{others} others; {reason}")),
            ..Figure::default()
        })
    }

    /// A container that was gone before anybody asked.
    async fn gone(&self) -> anyhow::Result<Figure> {
        let address = self.server.v4(NETWORK)?.to_string();
        let port = UNDECLARED.to_string();
        let brief = Spec::service("stranger", "brief")
            .on(NETWORK)
            .command(&["knock", "udp", &address, &port, &port, "3"]);
        let brief = self.shop.start(&brief).await;
        // It may be over before it is looked at: then only the name remains to remove it by.
        if let Ok(brief) = &brief {
            self.shop.printed(&brief.id, PATIENCE).await?;
        }
        self.shop.remove("brief").await?;
        let (records, took) = self
            .until("--from brief --to shop/server", |records| {
                records.iter().any(|it| number(it, "packets") >= 3)
            })
            .await?;
        let right = records[0]["from"]["services"][0] == "shop/stranger";
        Ok(Figure {
            name: "flows: by a container that is gone".to_owned(),
            tried: 3,
            repair_ms: u64::try_from(took.as_millis()).ok(),
            failed: (!right).then(|| format!("{records:?}")),
            ..Figure::default()
        })
    }

    /// `graph --live` shows what is declared, and what was tried in red.
    async fn drawn(&self) -> anyhow::Result<Figure> {
        let (live, _) = self.shop.daemon.asked(&["graph", "--live"]).await?;
        let (lately, _) = self
            .shop
            .daemon
            .asked(&["graph", "--live", "--since", "0s"])
            .await?;
        let missing = [
            "\"shop/client\" -> \"shop/server\" [label=\"8080, 8080/udp, icmp\"]",
            "\"shop/client\" -> \"shop/server\" [label=\"7777, 9090, 9090/udp (2002 times)\", color=\"#cc2222\"",
            "color=\"#d08000\"",
        ]
        .into_iter()
        .find(|part| !live.contains(part));
        let failed = match missing {
            Some(part) => Some(format!("{part} is missing from {live}")),
            None => lately
                .contains("#cc2222")
                .then(|| format!("what is old is drawn: {lately}")),
        };
        Ok(Figure {
            name: "flows: in the graph".to_owned(),
            tried: 1,
            failed,
            ..Figure::default()
        })
    }

    /// What `status` and `flows` print is what their schemas say, and the status knows which edge was used.
    async fn schemas(&self) -> anyhow::Result<Figure> {
        let status = self.shop.daemon.status().await?;
        let flows = told(&self.shop, "").await?;
        let mut complaints = Vec::new();
        for (of, values) in [("status", vec![&status]), ("flow", flows.iter().collect())] {
            let (schema, _) = self.shop.daemon.asked(&["schema", of]).await?;
            let schema: Value = serde_json::from_str(&schema)?;
            let validator =
                jsonschema::draft202012::new(&schema).map_err(|error| anyhow::anyhow!("{error}"))?;
            for value in &values {
                complaints.extend(validator.iter_errors(value).map(|error| format!("{of}: {error}")));
            }
            // The twin: a schema that takes anything would be of no use.
            if values.is_empty() || validator.is_valid(&serde_json::json!({})) {
                complaints.push(format!("{of}: nothing was held against its schema"));
            }
        }
        let edge = &status["edges"][0];
        if !edge["last_used"].is_string() || edge["packets"].as_u64() < Some(10) {
            complaints.push(format!("the edge was used: {edge}"));
        }
        Ok(Figure {
            name: "flows: as the schemas say".to_owned(),
            tried: u64::try_from(flows.len())? + 1,
            failed: (!complaints.is_empty()).then(|| complaints.join("; ")),
            ..Figure::default()
        })
    }

    /// The flows, the metrics, the status and `explain` tell the same story.
    async fn story(&self) -> anyhow::Result<Figure> {
        let daemon = &self.shop.daemon;
        let records = told(&self.shop, "--from shop/client --to shop/server --verdict denied").await?;
        let attempts: u64 = records.iter().map(|it| number(it, "attempts")).sum();
        let (metrics, _) = daemon.asked(&["status", "--metrics"]).await?;
        let line = format!(
            "cofferdam_denied_attempts_total{{from=\"shop/client\",to=\"shop/server\",reason=\"no-edge\"}} {attempts}"
        );
        let mut faults = Vec::new();
        if !metrics.lines().any(|it| it == line) {
            let denied = metrics.lines().filter(|it| it.contains("denied_attempts"));
            faults.push(format!("not {line}, but {:?}", denied.collect::<Vec<_>>()));
        }
        // Every packet that the kernel dropped is in a record: nothing was beyond its sender's share so far.
        let all = told(&self.shop, "--verdict denied").await?;
        let packets: u64 = all.iter().map(|it| number(it, "packets")).sum();
        let status = daemon.status().await?;
        let dropped = number(&status, "denied_packets");
        // The host's own reports to multicast groups are no flows.
        if packets > dropped || dropped - packets > 50 || number(&status, "unlogged_packets") != 0 {
            faults.push(format!("{packets} packets are told, {dropped} were dropped"));
        }
        let port = format!("shop/server:{UNDECLARED}");
        let explained = daemon.explained(&["shop/client", &port]).await?;
        if explained["outcome"] != "denied" {
            faults.push(format!("explain: {explained}"));
        }
        Ok(Figure {
            name: "flows: one story".to_owned(),
            tried: attempts,
            failed: (!faults.is_empty()).then(|| faults.join("; ")),
            note: Some(format!("{packets} of {dropped} dropped packets in records")),
            ..Figure::default()
        })
    }

    /// `--follow` tells while it happens, the log has a line of its own for it.
    async fn followed(&self) -> anyhow::Result<Figure> {
        let mut follower = self
            .shop
            .daemon
            .asking(&["flows", "--follow", "--json", "--to", "shop/server"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = follower.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(output).lines();
        let address = self.server.v4(NETWORK)?.to_string();
        let knock = ["knock", "tcp", &address, "6666", "6666", "1"];
        self.shop.probed(Some(self.stranger.pid), &knock).await?;
        let begun = Instant::now();
        let told = async {
            while let Some(line) = lines.next_line().await? {
                let record: Value = serde_json::from_str(&line)?;
                if record["port"] == 6666 && record["from"]["container"] == "stranger" {
                    return anyhow::Ok(true);
                }
            }
            Ok(false)
        };
        let told = tokio::time::timeout(PATIENCE, told).await.unwrap_or(Ok(false))?;
        let took = begun.elapsed();
        follower.kill().await?;
        let log = self.shop.daemon.log();
        let line = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["destination.port"] == 6666);
        let line = line.unwrap_or_default();
        let right = line["cofferdam.verdict"] == "denied"
            && line["destination.address"] == address.as_str()
            && line["network.transport"] == "tcp"
            && line["cofferdam.source.service"] == "shop/stranger"
            && line["cofferdam.destination.container"] == "server"
            && line["target"] == "cofferdam::flows";
        Ok(Figure {
            name: "flows: followed, and in the log".to_owned(),
            tried: 1,
            repair_ms: u64::try_from(took.as_millis()).ok(),
            failed: (!told || !right).then(|| format!("followed: {told}; the log's line: {line}")),
            ..Figure::default()
        })
    }

    /// Another process has the group: `status` says so, the rules go on, and the flows are told as soon as it is free.
    async fn untold(&mut self) -> anyhow::Result<Figure> {
        let address = self.server.v4(NETWORK)?.to_string();
        self.shop.daemon.stop(Signal::SIGTERM).await?;
        let group = Nflog::open(64)?;
        self.shop.daemon.start()?;
        let declared = format!("tcp/{address}/{DECLARED}");
        let client = Some(self.client.pid);
        self.shop.until_reached(client, &declared, PATIENCE).await?;
        let begun = Instant::now();
        let reason = loop {
            // The rules of the stopped daemon let the declared flow pass before the new one answers.
            let said = match self.shop.daemon.status().await {
                Ok(status) => format!("{}, {}", status["state"], status["reasons"]),
                Err(error) => format!("{error:#}"),
            };
            if said.starts_with("\"degraded\"") && said.contains("another process reads NFLOG group 64") {
                break None;
            }
            if begun.elapsed() > PATIENCE {
                break Some(format!("status says {said}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let undeclared = format!("tcp/{address}/{UNDECLARED}");
        let leaked = self.shop.reaches(client, &undeclared).await?;
        let reached = self.shop.reaches(client, &declared).await?;
        drop(group);
        let begun = Instant::now();
        // It is tried again every 10 s.
        let again = loop {
            self.shop
                .probed(client, &["knock", "tcp", &address, "5555", "5555", "1"])
                .await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            if !told(&self.shop, "--from shop/client").await?.is_empty() {
                break true;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                break false;
            }
        };
        let failed = reason.or_else(|| (!reached).then(|| "the declared flow does not pass".to_owned()));
        Ok(Figure {
            name: "flows: another process has the group".to_owned(),
            tried: 1,
            leaks: u64::from(leaked),
            repair_ms: u64::try_from(begun.elapsed().as_millis()).ok(),
            failed: failed.or_else(|| (!again).then(|| "they are not told again".to_owned())),
            ..Figure::default()
        })
    }

    /// Every port at full speed, and one attempt of another service in the middle of it.
    async fn scan(&mut self) -> anyhow::Result<Figure> {
        let (server, client) = (
            self.server.v4(NETWORK)?.to_string(),
            self.client.v4(NETWORK)?.to_string(),
        );
        let idle = self.shop.daemon.processor_ms()?;
        let begun = Instant::now();
        let scanner = Some(self.stranger.pid);
        let times = TIMES.to_string();
        let scan = ["knock", "tcp", &server, "1", "65535", &times];
        let other = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let knock = ["knock", "tcp", &client, "4444", "4444", "1"];
            self.shop.probed(Some(self.server.pid), &knock).await
        };
        let (scanned, other) = tokio::join!(self.shop.probed(scanner, &scan), other);
        scanned?;
        other?;
        let elapsed = begun.elapsed();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let spent = self.shop.daemon.processor_ms()?.saturating_sub(idle);
        let (_, took) = self
            .until("--from shop/server --to shop/client", |records| {
                records
                    .iter()
                    .any(|it| it["port"] == 4444 && number(it, "attempts") == 1)
            })
            .await?;
        let records = told(&self.shop, "--from stranger --to shop/server --verdict denied").await?;
        let attempts: u64 = records.iter().map(|it| number(it, "attempts")).sum();
        let many = records.iter().any(|it| it["many_ports"] == true);
        let (_, text) = self.shop.daemon.asked(&["flows", "--from", "stranger"]).await?;
        let unlogged = text.contains("beyond the rate of their sender");
        let share = 100.0 * spent as f64 / elapsed.as_secs_f64() / 1000.0;
        let failed = if !many || records.len() > 300 {
            Some(format!("{} records, none of many ports: {many}", records.len()))
        } else if !unlogged {
            Some(format!("what was not looked at is not counted: {text}"))
        } else {
            (share > 5.0).then(|| format!("{share:.1} % of a core"))
        };
        Ok(Figure {
            name: "flows: a scan beside one attempt".to_owned(),
            tried: u64::from(TIMES) * 65_535,
            repair_ms: u64::try_from(took.as_millis()).ok(),
            note: Some(format!(
                "{attempts} looked at in {:.1} s for {spent} ms, {share:.1} % of a core",
                elapsed.as_secs_f64()
            )),
            failed,
            ..Figure::default()
        })
    }
}
