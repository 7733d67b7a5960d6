//! A declared connection that is kept busy through a scenario, and the kernel's tables as text that can be compared.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::engine::output;
use crate::shop::{Container, Shop};

/// One TCP connection.
#[derive(Debug)]
pub(crate) struct Held {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Held {
    /// Opens it from a container; a request every 20 ms.
    pub(crate) async fn open(
        shop: &Shop,
        from: &Container,
        address: &str,
        port: u16,
    ) -> anyhow::Result<Self> {
        let mut child = shop
            .probe(Some(from.pid))
            .args(["hold", "tcp", address, &port.to_string(), "20"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot hold a connection")?;
        let stdin = child.stdin.take().context("a probe without input")?;
        let stdout = child.stdout.take().context("a probe without output")?;
        let mut held = Self {
            _child: child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        };
        let said = held.line().await?;
        if !said.starts_with("open ") {
            bail!("the declared connection cannot be opened: {said}");
        }
        Ok(held)
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        tokio::time::timeout(Duration::from_secs(8), self.lines.next_line())
            .await
            .context("the held connection says nothing")??
            .context("the held connection's probe ended")
    }

    /// The longest time without an answer so far, in ms.
    ///
    /// # Errors
    /// When it broke.
    pub(crate) async fn longest_gap_ms(&mut self) -> anyhow::Result<u64> {
        self.stdin.write_all(b"report\n").await?;
        let said = self.line().await?;
        let words: Vec<&str> = said.splitn(5, ' ').collect();
        match words.as_slice() {
            ["report", _, _, longest, "-"] => Ok(longest.parse()?),
            _ => bail!("the held connection broke: {said}"),
        }
    }
}

/// Both our tables, without what differs from one making to the next: handles, counters' values, order of elements.
pub(crate) async fn tables() -> anyhow::Result<String> {
    let mut text = String::new();
    for family in ["inet", "bridge"] {
        let listed = output("nft", &["-j", "list", "table", family, "cofferdam"], "").await?;
        let mut listed: Value = serde_json::from_str(&listed)?;
        let mut objects: Vec<String> = Vec::new();
        for object in listed["nftables"].as_array_mut().into_iter().flatten() {
            if object.get("metainfo").is_some() {
                continue;
            }
            normalise(object);
            if let Some(set) = object.get_mut("set").filter(|set| is_filled_by_packets(set))
                && let Some(set) = set.as_object_mut()
            {
                set.remove("elem");
                // How many there are, which later versions of nft tell.
                set.remove("count");
            }
            let rule = object.get("rule").is_some();
            let line = object.to_string();
            // Rules are in order within their chain; all else is a set.
            objects.push(if rule {
                format!("~{:06} {line}", objects.len())
            } else {
                line
            });
        }
        let (mut rules, mut others): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|line| line.starts_with('~'));
        others.sort();
        // Chains may be listed in another order: keep only the order within each.
        let chain = |line: &str| {
            let json: Value = serde_json::from_str(line.get(8..).unwrap_or_default()).unwrap_or_default();
            json["rule"]["chain"].as_str().unwrap_or_default().to_owned()
        };
        rules.sort_by_key(|line| chain(line));
        for line in others {
            text.push_str(&line);
            text.push('\n');
        }
        for line in rules {
            text.push_str(line.get(8..).unwrap_or_default());
            text.push('\n');
        }
    }
    Ok(text)
}

/// Whether rules put the set's elements in, for some seconds: what the reports' shares are kept in.
pub(crate) fn is_filled_by_packets(set: &Value) -> bool {
    set.get("timeout").is_some()
}

fn normalise(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            map.remove("packets");
            map.remove("bytes");
            map.values_mut().for_each(normalise);
            if let Some(Value::Array(elements)) = map.get_mut("elem") {
                elements.sort_by_key(ToString::to_string);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(normalise),
        _ => {}
    }
}

/// The first lines in which two states differ.
pub(crate) fn difference(wanted: &str, found: &str) -> Option<String> {
    if wanted == found {
        return None;
    }
    let only = |one: &str, other: &str| {
        let line = one.lines().find(|line| !other.lines().any(|it| it == *line));
        line.unwrap_or("(only the order)")
            .chars()
            .take(300)
            .collect::<String>()
    };
    Some(format!(
        "missing {} / not wanted {}",
        only(wanted, found),
        only(found, wanted)
    ))
}
