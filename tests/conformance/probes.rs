//! Facts against the wire: from every source replica to every destination replica, by address and by name.
//!
//! `plan` turns facts into questions, one probe process per source asks them all at once, `judge` reads the answers.
//! A question without an answer is an error of the run, never a verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, bail};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::case::{Case, IpFamily, ProbeMode};
use crate::engine::output;
use crate::fact::{Fact, Party, Transport};
use crate::world::{HOST_V4, HOST_V6, OURS, Running, World, container_name};

/// Each asks up to 64 flows at a time; together they stay below the kernel's 1024 neighbours, beyond which an address
/// does not answer for want of an entry and not because of the policy.
const PROBES_AT_ONCE: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    pub(crate) fn holds(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

pub(crate) fn families(case: &Case) -> Vec<Family> {
    match case.topology.ip_family {
        IpFamily::Ipv4 => vec![Family::V4],
        IpFamily::Ipv6 => vec![Family::V6],
        IpFamily::Dual => vec![Family::V4, Family::V6],
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Allow,
    Deny,
}

/// Where a probe process runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    /// For people.
    pub(crate) name: String,
    /// `None` is the host.
    pub(crate) pid: Option<i64>,
}

/// The services as they ran at one moment, so that all questions of one round agree.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    replicas: BTreeMap<String, Vec<Running>>,
}

impl Snapshot {
    pub(crate) async fn take(world: &World, keys: BTreeSet<&str>) -> anyhow::Result<Self> {
        let mut replicas = BTreeMap::new();
        for key in keys {
            replicas.insert(key.to_owned(), world.running(key).await?);
        }
        Ok(Self { replicas })
    }

    pub(crate) fn of(&self, key: &str) -> anyhow::Result<&[Running]> {
        self.replicas
            .get(key)
            .map(Vec::as_slice)
            .with_context(|| format!("no service {key}"))
    }
}

/// What the answers to one question must show.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Demand {
    /// Every address in `all` answers, and one of `some` if there are any.
    Allowed {
        all: BTreeSet<IpAddr>,
        some: BTreeSet<IpAddr>,
    },
    /// None of these answers.
    Denied {
        none: BTreeSet<IpAddr>,
    },
    /// A name: of what it resolves to, those that are the destination's all answer, and there is one.
    NameAllowed {
        theirs: BTreeSet<IpAddr>,
    },
    NameDenied {
        theirs: BTreeSet<IpAddr>,
    },
}

#[derive(Debug)]
struct Question {
    fact: Fact,
    source: Source,
    target: String,
    /// `PROTO PLACE PORT FAMILY`, as the probe reads it.
    lines: Vec<String>,
    demand: Demand,
}

/// Place, verdict and reason, as the probe says them.
#[derive(Debug)]
struct Answer {
    address: Option<IpAddr>,
    verdict: String,
    reason: String,
}

/// The first wrong fact, if any.
pub(crate) async fn first_wrong(
    world: &World,
    case: &Case,
    facts: &[(Expected, Fact)],
) -> anyhow::Result<Option<String>> {
    if facts.is_empty() {
        return Ok(None);
    }
    let snapshot = Snapshot::take(world, parties(facts.iter().map(|(_, fact)| fact))).await?;
    let mut questions = Vec::new();
    for (expected, fact) in facts {
        for family in families(case) {
            let planned = plan(world, &snapshot, case, *expected, fact, family)?;
            if planned.is_empty() {
                bail!("{fact}: there is nothing to probe");
            }
            questions.extend(planned);
        }
    }
    // What must work is asked alone: the many that wait for nothing would else crowd it out.
    let allowed = |question: &Question| {
        matches!(
            question.demand,
            Demand::Allowed { .. } | Demand::NameAllowed { .. }
        )
    };
    let (open, closed): (Vec<_>, Vec<_>) = questions.into_iter().partition(allowed);
    for questions in [open, closed] {
        let answers = ask(world, case, &questions, case.defaults.probe_retries).await?;
        for (question, answers) in questions.iter().zip(&answers) {
            if let Some(reason) = judge(question, answers)? {
                return Ok(Some(reason));
            }
        }
    }
    Ok(None)
}

fn parties<'a>(facts: impl Iterator<Item = &'a Fact>) -> BTreeSet<&'a str> {
    let service = |party: &'a Party| match party {
        Party::Service(key) => Some(key.as_str()),
        Party::External(_) | Party::Host => None,
    };
    facts
        .flat_map(|fact| [service(&fact.from), service(&fact.to)])
        .flatten()
        .collect()
}

/// Every source of a flow, with the replica behind it when it is a container.
pub(crate) fn sources<'a>(
    world: &World,
    snapshot: &'a Snapshot,
    fact: &Fact,
) -> anyhow::Result<Vec<(Source, Option<&'a Running>)>> {
    match &fact.from {
        Party::Host => Ok(vec![(
            Source {
                name: "host".to_owned(),
                pid: None,
            },
            None,
        )]),
        Party::External(name) => {
            let host = world
                .externals
                .get(name)
                .with_context(|| format!("no external {name}"))?;
            Ok(vec![(
                Source {
                    name: fact.from.to_string(),
                    pid: Some(host.pid),
                },
                None,
            )])
        }
        Party::Service(key) => {
            let source = |running: &'a Running| {
                (
                    Source {
                        name: running.name.clone(),
                        pid: Some(running.pid),
                    },
                    Some(running),
                )
            };
            Ok(snapshot.of(key)?.iter().map(source).collect())
        }
    }
}

/// The addresses of the host that a source dials: where its own link ends, or the one that is no bridge's.
fn host_addresses(world: &World, fact: &Fact) -> anyhow::Result<Vec<IpAddr>> {
    match &fact.from {
        Party::External(name) => Ok(world
            .externals
            .get(name)
            .with_context(|| format!("no external {name}"))?
            .gateways
            .clone()),
        Party::Service(_) | Party::Host => Ok(vec![HOST_V4, HOST_V6]),
    }
}

fn plan(
    world: &World,
    snapshot: &Snapshot,
    case: &Case,
    expected: Expected,
    fact: &Fact,
    family: Family,
) -> anyhow::Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (source, replica) in sources(world, snapshot, fact)? {
        let mut by_address =
            |target: String, all: BTreeSet<IpAddr>, some: BTreeSet<IpAddr>, rest: BTreeSet<IpAddr>| {
                let every: BTreeSet<IpAddr> = all.iter().chain(&some).chain(&rest).copied().collect();
                let (asked, demand) = match expected {
                    Expected::Allow => (all.union(&some).copied().collect(), Demand::Allowed { all, some }),
                    Expected::Deny => (every.clone(), Demand::Denied { none: every }),
                };
                let line = |address: &IpAddr| format!("{} {address} {} 4", fact.transport, port(fact));
                let lines = BTreeSet::<IpAddr>::iter(&asked).map(line).collect();
                questions.push(Question {
                    fact: fact.clone(),
                    source: source.clone(),
                    target,
                    lines,
                    demand,
                });
            };
        let own = |addresses: Vec<IpAddr>| -> BTreeSet<IpAddr> {
            let of_family: BTreeSet<IpAddr> =
                addresses.iter().copied().filter(|ip| family.holds(*ip)).collect();
            // An endpoint outside Docker may have one family only: then that one is meant.
            if of_family.is_empty() {
                addresses.into_iter().collect()
            } else {
                of_family
            }
        };
        if fact.published.is_some() {
            let dialled = own(host_addresses(world, fact)?);
            by_address(fact.to.to_string(), dialled, BTreeSet::new(), BTreeSet::new());
            continue;
        }
        match &fact.to {
            Party::External(name) => {
                let host = world
                    .externals
                    .get(name)
                    .with_context(|| format!("no external {name}"))?;
                by_address(
                    fact.to.to_string(),
                    own(host.addresses.clone()),
                    BTreeSet::new(),
                    BTreeSet::new(),
                );
            }
            Party::Host => {
                let gateways = replica.map(gateways).unwrap_or_default();
                let gateways = gateways.into_iter().filter(|ip| family.holds(*ip)).collect();
                by_address(
                    "host".to_owned(),
                    own(host_addresses(world, fact)?),
                    BTreeSet::new(),
                    gateways,
                );
            }
            Party::Service(key) => {
                let itself = |other: &Running| replica.is_some_and(|replica| replica.name == other.name);
                let others: Vec<&Running> = snapshot.of(key)?.iter().filter(|other| !itself(other)).collect();
                if others.is_empty() && replica.is_none_or(|_| fact.from != fact.to) {
                    bail!("{key} has no container to probe");
                }
                if case.defaults.probe_modes.contains(&ProbeMode::ContainerAddress) {
                    for other in &others {
                        let (all, some, rest) = split(replica, other, family);
                        if all.is_empty() && some.is_empty() && expected == Expected::Allow {
                            bail!("{} has no IPv{} address", other.name, family.digit());
                        }
                        by_address(other.name.clone(), all, some, rest);
                    }
                }
                if case.defaults.probe_modes.contains(&ProbeMode::ServiceName) && !others.is_empty() {
                    let theirs = others.iter().flat_map(|other| other.addresses()).collect();
                    questions.extend(by_name(world, &source, replica, fact, family, expected, theirs)?);
                }
            }
        }
    }
    Ok(questions)
}

fn port(fact: &Fact) -> String {
    match fact.transport {
        Transport::Icmp => "echo".to_owned(),
        Transport::Tcp | Transport::Udp | Transport::Sctp => fact.dialled().to_string(),
    }
}

fn gateways(replica: &Running) -> BTreeSet<IpAddr> {
    replica
        .networks
        .values()
        .flat_map(|endpoint| endpoint.gateways.iter().copied())
        .collect()
}

/// A destination's addresses: those that must all answer if the flow is allowed, those of which one must, the rest.
///
/// On a network of the case that both are on, nothing stands between them but the policy. On the controller's own
/// networks two callers of a third service may meet without being meant to talk there, so one of those is enough.
fn split(
    replica: Option<&Running>,
    other: &Running,
    family: Family,
) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    let (mut all, mut some, mut rest) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (network, endpoint) in &other.networks {
        let shared = replica.is_some_and(|replica| replica.networks.contains_key(network));
        let set = match (shared, network.starts_with(OURS)) {
            (true, false) => &mut all,
            (true, true) => &mut some,
            (false, _) => &mut rest,
        };
        set.extend(endpoint.addresses.iter().copied().filter(|ip| family.holds(*ip)));
    }
    if all.is_empty() && some.is_empty() {
        some = std::mem::take(&mut rest);
    }
    (all, some, rest)
}

/// The question by name, if the pair has one: container to service, in TCP or UDP.
fn by_name(
    world: &World,
    source: &Source,
    replica: Option<&Running>,
    fact: &Fact,
    family: Family,
    expected: Expected,
    theirs: BTreeSet<IpAddr>,
) -> anyhow::Result<Option<Question>> {
    let (Party::Service(from), Party::Service(to), Some(_)) = (&fact.from, &fact.to, replica) else {
        return Ok(None);
    };
    if !matches!(fact.transport, Transport::Tcp | Transport::Udp) || world.spec(to)?.network_mode.is_some() {
        return Ok(None);
    }
    let name = name_of(world, from, to)?;
    let line = format!("{} name:{name} {} {}", fact.transport, port(fact), family.digit());
    let demand = match expected {
        Expected::Allow => Demand::NameAllowed { theirs },
        Expected::Deny => Demand::NameDenied { theirs },
    };
    Ok(Some(Question {
        fact: fact.clone(),
        source: source.clone(),
        target: format!("the name {name}"),
        lines: vec![line],
        demand,
    }))
}

/// How one service calls another: its compose name in the same project, `<service>.<project>` from elsewhere.
pub(crate) fn name_of(world: &World, from: &str, to: &str) -> anyhow::Result<String> {
    let (from, to) = (world.spec(from)?, world.spec(to)?);
    Ok(match (from.project(), to.project()) {
        (_, None) => container_name(to, 1),
        (Some(ours), Some(theirs)) if ours == theirs => to.service.clone(),
        (_, Some(theirs)) => format!("{}.{theirs}", to.service),
    })
}

/// Asks everything at once, one process for each source.
async fn ask(
    world: &World,
    case: &Case,
    questions: &[Question],
    retries: u32,
) -> anyhow::Result<Vec<Vec<Answer>>> {
    let mut input: BTreeMap<&Source, String> = BTreeMap::new();
    for (index, question) in questions.iter().enumerate() {
        let text = input.entry(&question.source).or_default();
        for (line, words) in question.lines.iter().enumerate() {
            text.push_str(&format!("{index}.{line} {words}\n"));
        }
    }
    let timeout = case.defaults.probe_timeout_ms.to_string();
    let retries = retries.to_string();
    let outputs: Vec<String> = stream::iter(input)
        .map(|(source, input)| {
            let (timeout, retries) = (&timeout, &retries);
            async move {
                let server = nameserver(source);
                let mut words = vec!["check", timeout, retries];
                words.extend(server.as_deref());
                run_probe(world, source, &words, &input).await
            }
        })
        .buffer_unordered(PROBES_AT_ONCE)
        .try_collect()
        .await?;
    let mut answers: Vec<Vec<Answer>> = questions.iter().map(|_| Vec::new()).collect();
    for line in outputs.iter().flat_map(|output| output.lines()) {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().with_context(|| format!("the probe said {line:?}"));
        let (id, address, verdict, reason) = (next()?, next()?, next()?, next()?);
        let index: usize = id.split('.').next().unwrap_or(id).parse()?;
        let list = answers
            .get_mut(index)
            .with_context(|| format!("an answer to no question: {line:?}"))?;
        let (verdict, reason) = (verdict.to_owned(), reason.to_owned());
        list.push(Answer {
            address: address.parse().ok(),
            verdict,
            reason,
        });
    }
    Ok(answers)
}

/// The nameserver that a container's programs ask.
pub(crate) fn nameserver(source: &Source) -> Option<String> {
    let path = format!("/proc/{}/root/etc/resolv.conf", source.pid?);
    let text = std::fs::read_to_string(path).ok()?;
    let mut servers = text.lines().filter_map(|line| line.strip_prefix("nameserver "));
    servers.next().map(|server| server.trim().to_owned())
}

/// Runs the probe in a source's network namespace.
pub(crate) async fn run_probe(
    world: &World,
    source: &Source,
    words: &[&str],
    input: &str,
) -> anyhow::Result<String> {
    let probe = world
        .lab
        .probe
        .to_str()
        .context("the probe's path is not UTF-8")?;
    let ran = match source.pid {
        None => output(probe, words, input).await,
        Some(pid) => {
            let pid = pid.to_string();
            let mut all = vec!["-t", &pid, "-n", "--", probe];
            all.extend(words);
            output("nsenter", &all, input).await
        }
    };
    ran.with_context(|| format!("cannot probe from {}", source.name))
}

/// What is wrong with the answers to a question; `Err` when they do not answer it.
fn judge(question: &Question, answers: &[Answer]) -> anyhow::Result<Option<String>> {
    let Question {
        fact, source, target, ..
    } = question;
    if let Some(broken) = answers
        .iter()
        .find(|answer| !matches!(answer.verdict.as_str(), "allow" | "deny"))
    {
        bail!(
            "{fact}: the probe from {} to {target} could not run: {}",
            source.name,
            broken.reason
        );
    }
    let allowed = |address: &IpAddr| -> anyhow::Result<bool> {
        let answer = answers.iter().find(|answer| answer.address == Some(*address));
        let answer =
            answer.with_context(|| format!("{fact}: no answer about {address} from {}", source.name))?;
        Ok(answer.verdict == "allow")
    };
    let reason_for = |address: &IpAddr| {
        let answer = answers.iter().find(|answer| answer.address == Some(*address));
        answer.map_or("not tried", |answer| answer.reason.as_str())
    };
    let denied = |place: String, reason: &str| {
        Some(format!(
            "{fact}: expected allow, but {} to {target}{place} got: {reason}",
            source.name
        ))
    };
    match &question.demand {
        Demand::Allowed { all, some } => {
            for address in all {
                if !allowed(address)? {
                    return Ok(denied(format!(" at {address}"), reason_for(address)));
                }
            }
            let mut answered = some.is_empty();
            for address in some {
                answered |= allowed(address)?;
            }
            let first = some.iter().next();
            Ok(match first {
                Some(first) if !answered => denied(format!(" at {some:?}"), reason_for(first)),
                _ => None,
            })
        }
        Demand::Denied { none } => {
            for address in none {
                if allowed(address)? {
                    return Ok(Some(format!(
                        "{fact}: expected deny, but {} reached {target} at {address}",
                        source.name
                    )));
                }
            }
            Ok(None)
        }
        Demand::NameAllowed { theirs } => {
            let [first, ..] = answers else {
                bail!("{fact}: no answer about {target} from {}", source.name)
            };
            let mut found = answers
                .iter()
                .filter(|answer| answer.address.is_some_and(|ip| theirs.contains(&ip)))
                .peekable();
            if found.peek().is_none() {
                let other = first
                    .address
                    .map(|ip| format!("it resolves to {ip}, which is not {}", fact.to));
                return Ok(denied(
                    String::new(),
                    &other.unwrap_or_else(|| first.reason.clone()),
                ));
            }
            let wrong = found.find(|answer| answer.verdict != "allow");
            Ok(wrong.and_then(|wrong| {
                let at = wrong.address.map(|ip| format!(" at {ip}")).unwrap_or_default();
                denied(at, &wrong.reason)
            }))
        }
        Demand::NameDenied { theirs } => {
            if answers.is_empty() {
                bail!("{fact}: no answer about {target} from {}", source.name);
            }
            let reached = |answer: &&Answer| {
                answer.verdict == "allow" && answer.address.is_some_and(|ip| theirs.contains(&ip))
            };
            Ok(answers.iter().find(reached).map(|answer| {
                let at = answer.address.map(|ip| ip.to_string()).unwrap_or_default();
                format!(
                    "{fact}: expected deny, but {} reached {target} at {at}",
                    source.name
                )
            }))
        }
    }
}

/// Every address at which a flow could be tried, for each of its sources: for what runs in the background.
pub(crate) fn targets(
    world: &World,
    snapshot: &Snapshot,
    fact: &Fact,
    family: Family,
) -> anyhow::Result<Vec<(Source, BTreeSet<IpAddr>)>> {
    let mut found = Vec::new();
    for (source, replica) in sources(world, snapshot, fact)? {
        let addresses: Vec<IpAddr> = if fact.published.is_some() || fact.to == Party::Host {
            host_addresses(world, fact)?
        } else {
            match &fact.to {
                Party::Service(key) => {
                    let others = snapshot
                        .of(key)?
                        .iter()
                        .filter(|other| replica.is_none_or(|own| own.name != other.name));
                    others.flat_map(Running::addresses).collect()
                }
                Party::External(name) => world
                    .externals
                    .get(name)
                    .with_context(|| format!("no external {name}"))?
                    .addresses
                    .clone(),
                Party::Host => Vec::new(),
            }
        };
        found.push((
            source,
            addresses.into_iter().filter(|ip| family.holds(*ip)).collect(),
        ));
    }
    Ok(found)
}

/// One attempt without a retry, from every source, at each destination's first address that should work.
pub(crate) async fn first_connections(
    world: &World,
    case: &Case,
    fact: &Fact,
) -> anyhow::Result<Option<String>> {
    let snapshot = Snapshot::take(world, parties(std::iter::once(fact))).await?;
    let mut questions = Vec::new();
    for family in families(case) {
        questions.extend(plan(world, &snapshot, case, Expected::Allow, fact, family)?);
    }
    let answers = ask(world, case, &questions, 0).await?;
    for (question, answers) in questions.iter().zip(&answers) {
        if let Some(reason) = judge(question, answers)? {
            return Ok(Some(format!("the first connection failed: {reason}")));
        }
    }
    Ok(None)
}
