//! The runner proves that it can fail: each of these cases is wrong on purpose, and must be reported so.

use std::path::Path;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::case::{Case, parse};
use crate::engine::{Lab, output};
use crate::report::Verdict;
use crate::run::{Sabotage, With, judge};
use crate::world::World;

struct SelfTest {
    name: &'static str,
    with: With,
    expect: &'static str,
    sabotage: Option<Sabotage>,
    /// What the reason must say: failing for another reason is no proof.
    reason: &'static str,
}

const TESTS: &[SelfTest] = &[
    SelfTest {
        name: "a declared flow listed as denied",
        with: With::Daemon,
        expect: "{allow: [], deny: [x/b -> x/a tcp/80]}",
        sabotage: None,
        reason: "expected deny, but",
    },
    SelfTest {
        name: "an undeclared flow listed as allowed",
        with: With::Daemon,
        expect: "{allow: [x/a -> x/b tcp/80], deny: []}",
        sabotage: None,
        reason: "expected allow, but",
    },
    SelfTest {
        name: "the daemon not running",
        with: With::NoDaemon,
        expect: "{allow: [x/b -> x/a tcp/80], deny: [x/a -> x/b tcp/80]}",
        sabotage: None,
        reason: "expected deny, but",
    },
    SelfTest {
        name: "the containers' network broken",
        with: With::Daemon,
        expect: "{allow: [x/b -> x/a tcp/80], deny: [x/a -> x/b tcp/80]}",
        sabotage: Some(take_links_down),
        reason: "expected allow, but",
    },
    SelfTest {
        name: "a flow that must never succeed, and does",
        with: With::NoDaemon,
        expect: "{allow: [], deny: [], assert: [{type: never_allowed, flow: x/b -> x/a tcp/80, rate_hz: 20}]}",
        sabotage: None,
        reason: "an exchange succeeded",
    },
];

fn take_links_down(world: &World) -> BoxFuture<'_, anyhow::Result<()>> {
    async move {
        for replica in world.running("x/a").await? {
            let pid = replica.pid.to_string();
            let links = output("nsenter", &["-t", &pid, "-n", "ip", "-o", "link", "show"], "").await?;
            let names = links
                .lines()
                .filter_map(|line| line.split_whitespace().nth(1)?.split('@').next());
            for name in names.filter(|name| name.starts_with("eth")) {
                output(
                    "nsenter",
                    &["-t", &pid, "-n", "ip", "link", "set", name, "down"],
                    "",
                )
                .await?;
            }
        }
        Ok(())
    }
    .boxed()
}

fn case(test: &SelfTest, index: usize) -> anyhow::Result<Case> {
    let text = format!(
        "format: netseg-conformance/1
cases:
- id: self-test-{index}
  name: {name}
  category: self-test
  profile: core
  topology:
    services:
    - {{project: x, service: a, labels: {{app: a}}, listen: [{{proto: tcp, port: 80}}]}}
    - {{project: x, service: b, labels: {{app: b}}, listen: [{{proto: tcp, port: 80}}]}}
  policy:
    default: deny
    allow:
    - {{from: [{{project: x, service: b}}], to: [{{project: x, service: a}}], ports: [{{proto: tcp, port: 80}}]}}
  expect: {expect}
",
        name = test.name,
        expect = test.expect,
    );
    let entries = parse(&text).map_err(anyhow::Error::msg)?;
    let entry = entries.into_iter().next().context("a self-test without a case")?;
    entry.map_err(|unreadable| anyhow::anyhow!(unreadable.reason))
}

/// True when every wrong case was reported, for its reason. Without a daemon, those that need one do not run.
pub(crate) async fn run(lab: &Lab, with: With, logs: &Path) -> anyhow::Result<bool> {
    let mut proven = true;
    for (index, test) in TESTS.iter().enumerate() {
        if test.with == With::Daemon
            && with == With::NoDaemon
            && test.reason == "expected allow, but"
            && test.sabotage.is_none()
        {
            println!("self-test {}: not run without the daemon", test.name);
            continue;
        }
        let with = if with == With::NoDaemon { with } else { test.with };
        lab.repair().await?;
        let verdict = judge(lab, &case(test, index + 1)?, with, logs, test.sabotage).await;
        match verdict {
            Verdict::Failed(reason) if reason.contains(test.reason) => {
                println!("self-test {}: reported as it must ({reason})", test.name);
            }
            other => {
                proven = false;
                println!("self-test {}: NOT REPORTED AS IT MUST: {other:?}", test.name);
            }
        }
    }
    Ok(proven)
}
