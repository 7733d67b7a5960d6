//! What a case says in words of its own: what a short-lived container does, and in what way a policy is invalid.

use anyhow::{Context, bail};

use crate::fact::Transport;

/// The one program that short-lived containers run: a tight loop of exchanges from the first instruction, by address.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TightLoop {
    pub(crate) target: String,
    pub(crate) transport: Transport,
    pub(crate) port: u16,
    pub(crate) seconds: f64,
}

const PLAIN: &[&str] = &[
    "a",
    "address",
    "addresses",
    "and",
    "as",
    "by",
    "connect",
    "dial",
    "exit",
    "exits",
    "first",
    "for",
    "from",
    "immediately",
    "in",
    "instruction",
    "its",
    "loop",
    "of",
    "on",
    "start",
    "tcp",
    "the",
    "then",
    "tight",
    "to",
    "try",
    "udp",
    "with",
    "connects",
];

/// Reads `connect x/a:80 in a tight loop for 2s from the first instruction, by address` and what is worded like it.
///
/// # Errors
/// When a word is not known: the container might then be meant to do something else.
pub(crate) fn tight_loop(entrypoint: &str) -> anyhow::Result<TightLoop> {
    let unknown = || format!("the runner does not know the entrypoint {entrypoint:?}");
    let (mut target, mut seconds, mut transport) = (None, None, Transport::Tcp);
    for word in entrypoint
        .split([' ', ',', ';'])
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| !word.is_empty())
    {
        let time = |suffix: &str, unit: f64| -> Option<f64> {
            Some(word.strip_suffix(suffix)?.parse::<f64>().ok()? * unit)
        };
        if let Some((service, port)) = word.split_once(':') {
            let port = port.parse::<u16>().with_context(unknown)?;
            if target.replace((service.to_owned(), port)).is_some() {
                bail!("{}", unknown());
            }
        } else if let Some(time) = time("ms", 0.001).or_else(|| time("s", 1.0)) {
            seconds = Some(time);
        } else if word.eq_ignore_ascii_case("udp") {
            transport = Transport::Udp;
        } else if !PLAIN.contains(&word.to_lowercase().as_str()) {
            bail!("{}", unknown());
        }
    }
    if !["connect", "dial", "try"]
        .iter()
        .any(|verb| entrypoint.contains(verb))
    {
        bail!("{}", unknown());
    }
    let (target, port) = target.with_context(unknown)?;
    Ok(TightLoop {
        target,
        transport,
        port,
        seconds: seconds.with_context(unknown)?,
    })
}

/// A policy file that must be refused, for each kind of fault. The first of these whose words a kind has in it is meant.
const INVALID: &[(&[&str], &str)] = &[
    (&["version"], "cofferdam: 99\nsegment: broken\n"),
    (&["duplicate"], "cofferdam: 1\nsegment: broken\nsegment: twice\n"),
    (
        &["except"],
        "cofferdam: 1\nsegment: broken\nexternals: {e: {cidrs: [10.0.0.0/24], except: [192.0.2.0/24]}}\n",
    ),
    (
        &["cidr", "subnet", "prefix", "address"],
        "cofferdam: 1\nsegment: broken\nexternals: {e: {cidrs: [10.0.0.0/33]}}\n",
    ),
    (
        &["range", "inverted", "reversed", "end_port", "endport"],
        "cofferdam: 1\nsegment: broken\nservices: {a: {select: {compose: q/a}}}\nallow: [{from: a, to: a, ports: [90-80/tcp]}]\n",
    ),
    (
        &["empty_port", "no_port"],
        "cofferdam: 1\nsegment: broken\nservices: {a: {select: {compose: q/a}}}\nallow: [{from: a, to: a, ports: []}]\n",
    ),
    (
        &["port"],
        "cofferdam: 1\nsegment: broken\nservices: {a: {select: {compose: q/a}}}\nallow: [{from: a, to: a, ports: [70000]}]\n",
    ),
    (
        &["proto"],
        "cofferdam: 1\nsegment: broken\nservices: {a: {select: {compose: q/a}}}\nallow: [{from: a, to: a, ports: [80/tpc]}]\n",
    ),
    (
        &["operator", "expr"],
        "cofferdam: 1\nsegment: broken\nservices: {a: {select: {labels: \"tier within (a)\"}}}\n",
    ),
    (
        &["selector", "empty"],
        "cofferdam: 1\nsegment: broken\nservices: {a: {select: []}}\n",
    ),
    (
        &["service", "reference", "dangling", "undefined", "undeclared"],
        "cofferdam: 1\nsegment: broken\nservices: {a: {select: {compose: q/a}}}\nallow: [{from: nobody, to: a, ports: [80]}]\n",
    ),
    (&["type"], "cofferdam: 1\nsegment: broken\nallow: yes\n"),
    (
        &["field", "key", "schema", "typo", "unknown", "semantic"],
        "cofferdam: 1\nsegment: broken\nalow: []\n",
    ),
    (
        &["truncated", "partial", "half"],
        "cofferdam: 1\nsegment: broken\nservices: {a: {sel",
    ),
    (&["binary", "utf", "garbage"], "\u{0}\u{1}\u{2}\n"),
    (
        &[
            "syntax",
            "yaml",
            "malformed",
            "pars",
            "invalid",
            "broken",
            "corrupt",
        ],
        "cofferdam: 1\nsegment: [broken\n",
    ),
];

/// The policy file for a kind of fault, by the words in its name.
pub(crate) fn invalid_text(kind: &str) -> Option<&'static str> {
    let kind = kind.to_lowercase().replace(['-', ' '], "_");
    let meant = |(words, _): &&(&[&str], &str)| words.iter().any(|word| kind.contains(word));
    INVALID.iter().find(meant).map(|(_, text)| *text)
}
