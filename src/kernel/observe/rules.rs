//! The text of the observing tables, one command a line.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{FAMILIES, TABLE};
use crate::net::{Family, Transport};

/// What a packet is to be asked for in each family.
struct Words {
    digit: char,
    /// `ip`, as in `ip saddr`.
    ip: &'static str,
    kind: &'static str,
    /// What a frame or packet of the family is.
    is: [&'static str; 2],
    multicast: &'static str,
    /// Fragments after the first have no ports.
    fragment: &'static str,
    echo: &'static str,
    /// Near wherever Docker makes its networks, so that one that is new is near, too.
    near: &'static str,
}

const WORDS: [Words; 2] = [
    Words {
        digit: '4',
        ip: "ip",
        kind: "ipv4_addr",
        is: ["ether type ip", "meta nfproto ipv4"],
        multicast: "ip daddr >= 224.0.0.0",
        fragment: "ip frag-off & 0x1fff != 0",
        echo: "icmp type echo-request",
        near: "10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16",
    },
    Words {
        digit: '6',
        ip: "ip6",
        kind: "ipv6_addr",
        is: ["ether type ip6", "meta nfproto ipv6"],
        multicast: "ip6 daddr ff00::/8",
        fragment: "frag frag-off 1-8191",
        echo: "icmpv6 type echo-request",
        near: "fc00::/7, fe80::/10",
    },
];

/// The counter that is made last.
pub(super) const READY: &str = "ready";

/// Elements of a set. The kernel makes a sized hash table at once, at 16 bytes for each.
const MANY: u32 = 65_535;
const SOME: u32 = 8192;

/// A set for each kind of contact, with what its elements are made of: `A` stands for an address.
const SETS: [(&str, &str, u32); 9] = [
    ("pair", "A . A . inet_proto . inet_service", MANY),
    ("out", "A . inet_proto . inet_service", SOME),
    ("far", "A . inet_proto . inet_service . A", SOME),
    ("into", "A . inet_proto . inet_service", SOME),
    ("who", "A . inet_proto . inet_service . A", SOME),
    ("echo", "A . A", SOME),
    ("other", "A . A . inet_proto", SOME),
    ("answer", "A . A . inet_proto . inet_service", SOME),
    (
        "unclear",
        "A . A . inet_proto . inet_service . inet_service",
        SOME,
    ),
];

/// Base chains: after the translation of destinations, before the daemon's tables and other filters.
const HOOKS: [(&str, &str, i32); 4] = [
    ("bridge", "prerouting", -301),
    ("inet", "forward", -50),
    ("inet", "input", -50),
    ("inet", "output", -50),
];

/// The tables with sets and chains, none of which a packet meets yet.
pub(super) fn tables() -> String {
    let mut text = String::new();
    for family in FAMILIES {
        let mut add = |what: &str, rest: &str| {
            let _infallible = writeln!(text, "add {what} {family} {TABLE} {rest}");
        };
        add("table", "{ flags owner; }");
        add("counter", "lost");
        add("counter", "many");
        if family == "inet" {
            add("set", "published { type inet_proto . inet_service; }");
        }
        for words in &WORDS {
            let Words {
                digit, kind, near, ..
            } = words;
            add(
                "set",
                &format!(
                    "near{digit} {{ type {kind}; flags interval; auto-merge; elements = {{ {near} }}; }}"
                ),
            );
            for (name, of, size) in SETS {
                let of = of.replace('A', kind);
                add(
                    "set",
                    &format!("{name}{digit} {{ type {of}; size {size}; flags dynamic; counter; }}"),
                );
            }
            for chain in ["seen", "new", "either"] {
                add("chain", &format!("{chain}{digit}"));
            }
            for (chain, rule) in rules(family, words) {
                add("rule", &format!("{chain}{digit} {rule}"));
            }
        }
    }
    text
}

/// An `update` that fails for want of room breaks the rule off, so that what follows counts it as lost.
fn rules(family: &str, words: &Words) -> Vec<(&'static str, String)> {
    let Words {
        digit,
        ip,
        multicast,
        fragment,
        echo,
        ..
    } = words;
    let mut rules = vec![
        // Of an open TCP connection no packet comes further than the second rule.
        (
            "seen",
            format!("meta l4proto tcp tcp flags & (syn | ack) == syn goto new{digit}"),
        ),
        ("seen", "meta l4proto tcp return".to_owned()),
        ("seen", format!("{multicast} counter name many return")),
        ("seen", format!("{fragment} return")),
        ("seen", format!("meta l4proto {{ udp, sctp }} goto either{digit}")),
        (
            "seen",
            format!("{echo} update @echo{digit} {{ {ip} saddr . {ip} daddr }} return"),
        ),
        ("seen", "meta l4proto { icmp, ipv6-icmp, igmp } return".to_owned()),
        (
            "seen",
            format!("update @other{digit} {{ {ip} saddr . {ip} daddr . meta l4proto }} return"),
        ),
        ("seen", "counter name lost".to_owned()),
    ];
    let near = |end: &str| format!("{ip} {end} @near{digit}");
    let far = |end: &str| format!("{ip} {end} != @near{digit}");
    let service = "meta l4proto . th dport";
    for (from, to, update) in [
        (
            near("saddr"),
            near("daddr"),
            format!("update @pair{digit} {{ {ip} saddr . {ip} daddr . {service} }} return"),
        ),
        (
            near("saddr"),
            far("daddr"),
            format!("update @far{digit} {{ {ip} saddr . {service} . {ip} daddr }}"),
        ),
        (
            near("saddr"),
            far("daddr"),
            format!("update @out{digit} {{ {ip} saddr . {service} }} return"),
        ),
        (
            far("saddr"),
            near("daddr"),
            format!("update @who{digit} {{ {ip} daddr . {service} . {ip} saddr }}"),
        ),
        (
            far("saddr"),
            near("daddr"),
            format!("update @into{digit} {{ {ip} daddr . {service} }} return"),
        ),
        (far("saddr"), far("daddr"), "return".to_owned()),
    ] {
        rules.push(("new", format!("{from} {to} {update}")));
    }
    rules.push(("new", "counter name lost".to_owned()));
    rules.extend(either(family, words).into_iter().map(|rule| ("either", rule)));
    rules
}

/// Datagrams say of themselves neither who began nor who serves.
fn either(family: &str, Words { digit, ip, .. }: &Words) -> Vec<String> {
    if family == "inet" {
        return vec!["ct direction reply return".to_owned(), format!("goto new{digit}")];
    }
    let answer =
        format!("update @answer{digit} {{ {ip} daddr . {ip} saddr . meta l4proto . th sport }} return");
    let mut rules = vec![
        format!("th dport < 1024 th sport >= 1024 goto new{digit}"),
        format!("th dport < 32768 th sport >= 32768 goto new{digit}"),
    ];
    for answers in [
        "th dport >= 1024 th sport < 1024",
        "th dport >= 32768 th sport < 32768",
    ] {
        // What is far is asked for where it is forwarded.
        rules.push(format!("{answers} {ip} daddr != @near{digit} return"));
        rules.push(format!("{answers} {answer}"));
        rules.push(format!("{answers} counter name lost return"));
    }
    // The first one decides. A look into a set with counters counts, too: of these the answers are among the number.
    rules.push(format!(
        "{ip} daddr . {ip} saddr . meta l4proto . th dport . th sport @unclear{digit} return"
    ));
    rules.push(format!(
        "update @unclear{digit} {{ {ip} saddr . {ip} daddr . meta l4proto . th sport . th dport }} return"
    ));
    rules.push("counter name lost".to_owned());
    rules
}

/// The base chains, when everything else stands.
pub(super) fn hooks() -> String {
    let mut text = String::new();
    for (family, hook, priority) in HOOKS {
        let mut add = |what: &str, rest: &str| {
            let _infallible = writeln!(text, "add {what} {family} {TABLE} {hook} {rest}");
        };
        add(
            "chain",
            &format!("{{ type filter hook {hook} priority {priority}; policy accept; }}"),
        );
        match hook {
            "prerouting" => add(
                "rule",
                "meta pkttype { broadcast, multicast } counter name many return",
            ),
            "input" => {
                add("rule", "iif lo return");
                // Of what is the host's own only that matters which leads to a container.
                add("rule", "meta l4proto . th dport != @published return");
            }
            "output" => add("rule", "oif lo return"),
            _ => {}
        }
        for Words { digit, ip, is, .. } in &WORDS {
            let is = is[usize::from(family == "inet")];
            let to = match hook {
                "forward" | "output" => format!("{ip} daddr @near{digit} "),
                _ => String::new(),
            };
            add("rule", &format!("{is} {to}jump seen{digit}"));
        }
    }
    let _infallible = writeln!(text, "add counter inet {TABLE} {READY}");
    text
}

/// More near addresses and published ports.
pub(super) fn included(near: &[IpNet], published: &[(Transport, u16)]) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        for net in near {
            let digit = Family::of(net.addr()).digit();
            let _infallible = writeln!(
                text,
                "add element {family} {TABLE} near{digit} {{ {} }}",
                net.trunc()
            );
        }
    }
    for (transport, port) in published {
        let _infallible = writeln!(
            text,
            "add element inet {TABLE} published {{ {transport} . {port} }}"
        );
    }
    text
}
