//! Our rules beside those of Engine 29 with its nftables backend: tables `ip docker-bridges` and `ip6 docker-bridges`, which no Debian
//! release has yet. They are made here as that engine makes them: a map from each bridge to chains of its own, a drop of what is not
//! published, of direct access from elsewhere, and the translation of published ports. Containers are network namespaces.
//!
//! Proves promises 1 and 3 beside such an engine: we only take away from what it permits, what it drops stays dropped, and neither
//! notices when the other's tables are made anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cofferdam::inventory::Listing;
use draft::{At, endpoint};
use netns::sh;
use rules::{Stage, answers, build, publish, run, serve};
use stage::container;

#[path = "semantics/draft.rs"]
mod draft;
mod netns;
#[path = "semantics/rules.rs"]
mod rules;
#[expect(dead_code, reason = "shared with the probe")]
#[path = "probe/socket.rs"]
mod socket;
#[path = "semantics/stage.rs"]
mod stage;

/// Published ports: the container, the host's port, the container's.
const PUBLISHED: [(usize, u16, u16); 3] = [(1, 8080, 80), (1, 8081, 81), (3, 8090, 80)];
const POLICY: &str = "[{ from: a, to: b, ports: [80] }, { from: world, to: b, ports: [80] }, { from: a, to: world, ports: [9000] }]";

/// What differs between the engine's two tables.
struct Family {
    name: &'static str,
    loopback: &'static str,
    /// The bridges' subnets.
    subnets: [&'static str; 2],
    /// An address of the host, and one of the world.
    host: &'static str,
    world: &'static str,
    /// The containers' addresses, as in a URL.
    containers: [&'static str; 4],
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "ip",
        loopback: "127.0.0.0/8",
        subnets: ["172.18.0.0/16", "172.19.0.0/16"],
        host: "198.51.100.1",
        world: "198.51.100.10",
        containers: ["172.18.0.10", "172.18.0.11", "172.18.0.12", "172.19.0.13"],
    },
    Family {
        name: "ip6",
        loopback: "::1",
        subnets: ["fd00:0::/64", "fd00:1::/64"],
        host: "[2001:db8::1]",
        world: "[2001:db8::5]",
        containers: ["[fd00:0::a]", "[fd00:0::b]", "[fd00:0::c]", "[fd00:1::d]"],
    },
];

/// The engine's table of a family, as `nft` lists it.
fn table(family: &Family) -> String {
    let ip = family.name;
    let mut text = format!("table {ip} docker-bridges {{\n");
    let bridges = [0, 1].map(|network| draft::bridge(network).to_string());
    for (map, chain) in [
        ("filter-forward-in-jumps", "filter-forward-in"),
        ("filter-forward-out-jumps", "filter-forward-out"),
        ("nat-postrouting-in-jumps", "nat-postrouting-in"),
        ("nat-postrouting-out-jumps", "nat-postrouting-out"),
    ] {
        let elements = bridges
            .each_ref()
            .map(|name| format!("\"{name}\" : jump {chain}__{name}"));
        let elements = elements.join(", ");
        writeln!(
            text,
            "map {map} {{ type ifname : verdict; elements = {{ {elements} }}; }}"
        )
        .unwrap();
    }
    writeln!(
        text,
        "chain filter-FORWARD {{
            type filter hook forward priority filter; policy accept;
            oifname vmap @filter-forward-in-jumps
            iifname vmap @filter-forward-out-jumps
        }}
        chain nat-OUTPUT {{
            type nat hook output priority -100; policy accept;
            {ip} daddr != {} fib daddr type local counter jump nat-prerouting-and-output
        }}
        chain nat-POSTROUTING {{
            type nat hook postrouting priority srcnat; policy accept;
            iifname vmap @nat-postrouting-out-jumps
            oifname vmap @nat-postrouting-in-jumps
        }}
        chain nat-PREROUTING {{
            type nat hook prerouting priority dstnat; policy accept;
            fib daddr type local counter jump nat-prerouting-and-output
        }}
        chain nat-prerouting-and-output {{",
        family.loopback
    )
    .unwrap();
    let bridge_of = |container: usize| &bridges[stage::PLACES[container]];
    for (container, host, port) in PUBLISHED {
        let (name, address) = (bridge_of(container), family.containers[container]);
        writeln!(
            text,
            "iifname != \"{name}\" tcp dport {host} counter dnat to {address}:{port} comment \"DNAT\""
        )
        .unwrap();
    }
    text.push_str("}\nchain raw-PREROUTING { type filter hook prerouting priority raw; policy accept;\n");
    for container in [1, 3] {
        let (name, address) = (bridge_of(container), plain(family.containers[container]));
        writeln!(
            text,
            "{ip} daddr {address} iifname != \"{name}\" counter drop comment \"DROP DIRECT ACCESS\""
        )
        .unwrap();
    }
    text.push_str("}\n");
    for (network, name) in bridges.iter().enumerate() {
        let mut open = String::new();
        for (container, _, port) in PUBLISHED.iter().filter(|it| stage::PLACES[it.0] == network) {
            let address = plain(family.containers[*container]);
            writeln!(open, "{ip} daddr {address} tcp dport {port} counter accept").unwrap();
        }
        writeln!(
            text,
            "chain filter-forward-in__{name} {{
                ct state established,related counter accept
                iifname \"{name}\" counter accept comment \"ICC\"
                {open}
                counter drop comment \"UNPUBLISHED PORT DROP\"
            }}
            chain filter-forward-out__{name} {{
                ct state established,related counter accept
                counter accept comment \"OUTGOING\"
            }}
            chain nat-postrouting-in__{name} {{ }}
            chain nat-postrouting-out__{name} {{
                oifname != \"{name}\" {ip} saddr {} counter masquerade comment \"MASQUERADE\"
            }}",
            family.subnets[network]
        )
        .unwrap();
    }
    text.push_str("}\n");
    text
}

fn plain(address: &str) -> &str {
    address.trim_matches(['[', ']'])
}

/// As the engine does it at each of its starts.
fn load_tables(again: bool) {
    let mut text = String::new();
    for family in &FAMILIES {
        if again {
            writeln!(text, "delete table {} docker-bridges", family.name).unwrap();
        }
        text.push_str(&table(family));
    }
    sh(&format!("nft -f - <<'RULES'\n{text}RULES"));
}

/// The engine's tables as they are, without counters.
fn engines_tables() -> String {
    sh("nft -s list table ip docker-bridges; nft -s list table ip6 docker-bridges")
}

/// A connection that is tried; whether the engine's rules let it pass, and whether both ours and theirs do.
struct Dial {
    /// Of [`DIALS`].
    line: &'static str,
    from: At,
    to: String,
    engine: bool,
    both: bool,
}

/// From where, to where, with the engine's rules alone, with ours besides. Of the ends `a`, `b`, `c` are on one network, `d` is on another.
const DIALS: &str = "
    a      b:80        passes  passes  declared, on one bridge
    a      b:81        passes  -       another port
    b      a:80        passes  -       the other way
    c      b:80        passes  -       from an unmanaged neighbour
    host   b:81        passes  -       from the host
    world  host:8080   passes  passes  declared, by the published port
    world  host:8081   passes  -       by a published port that is not declared
    d      host:8080   passes  -       from another network by the published port
    world  b:80        -       -       past the published port
    d      b:80        -       -       from another network past it
    a      d:80        -       -       to another network
    a      host:8090   passes  -       to an unmanaged container, published
    c      host:8090   passes  passes  between unmanaged ones, published
    c      d:80        -       -       between unmanaged ones, past it
    a      world:9000  passes  passes  declared, to the world
    b      world:9000  passes  -       to the world
    c      world:9000  passes  passes  unmanaged, to the world
";

fn dials() -> Vec<Dial> {
    let lines = DIALS.lines().filter(|line| !line.is_empty());
    let of_both = lines.flat_map(|line| FAMILIES.each_ref().map(|family| (line.trim(), family)));
    of_both.map(|(line, family)| Dial::new(line, family)).collect()
}

impl Dial {
    fn new(line: &'static str, family: &Family) -> Self {
        let mut words = line.split_whitespace();
        let (from, to) = (words.next().unwrap(), words.next().unwrap());
        let is_open = |word: Option<&str>| word.unwrap() == "passes";
        let container_of = |end: &str| ["a", "b", "c", "d"].iter().position(|it| *it == end);
        let (end, port) = to.split_once(':').unwrap();
        let address = match (end, container_of(end)) {
            ("host", _) => family.host,
            ("world", _) => family.world,
            (_, index) => family.containers[index.unwrap()],
        };
        Self {
            line,
            from: match from {
                "host" => At::Host,
                "world" => At::Outside,
                end => container(container_of(end).unwrap()),
            },
            to: format!("{address}:{port}"),
            engine: is_open(words.next()),
            both: is_open(words.next()),
        }
    }
}

/// Tries all of them, and those that ought to pass again before they count as lost.
fn compare(when: &str, expected: impl Fn(&Dial) -> bool) {
    let all = dials();
    let wrong: Vec<String> = thread::scope(|scope| {
        let tried = all.iter().map(|dial| {
            let expected = expected(dial);
            let body = move || {
                let attempts = if expected { 4 } else { 1 };
                let passed = (0..attempts).any(|_| answers(dial.from, &dial.to));
                let (line, to) = (dial.line, &dial.to);
                (passed != expected).then(|| format!("{line}, {to}: passed is {passed}"))
            };
            scope.spawn(body)
        });
        let tried: Vec<_> = tried.collect();
        tried.into_iter().filter_map(|it| it.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{when}: {wrong:#?}");
}

fn published(listing: &mut Listing) {
    for (container, host, port) in PUBLISHED {
        for address in ["0.0.0.0", "::"] {
            publish(listing, container, address, host, port);
        }
    }
}

/// What an unmanaged neighbour and the world get through while something is done: nothing. Returns how often they tried, and whether
/// the declared flow, their twin, passed all the time.
fn undeclared_during(action: impl FnOnce()) -> usize {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let probe = |from: At, to: String, expected: bool| {
            let over = &over;
            scope.spawn(move || {
                let mut tried = 0;
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(answers(from, &to), expected, "from {from:?} to {to}");
                    tried += 1;
                    thread::sleep(Duration::from_millis(2));
                }
                tried
            })
        };
        let probes = FAMILIES.each_ref().map(|family| {
            let b = family.containers[1];
            [
                probe(container(2), format!("{b}:80"), false),
                probe(container(0), format!("{b}:81"), false),
                probe(At::Outside, format!("{b}:81"), false),
                probe(container(0), format!("{b}:80"), true),
            ]
        });
        thread::sleep(Duration::from_millis(300));
        action();
        thread::sleep(Duration::from_millis(300));
        over.store(true, Ordering::Relaxed);
        probes.into_iter().flatten().map(|it| it.join().unwrap()).sum()
    })
}

#[test]
fn the_engines_nftables_backend_and_ours_go_together() {
    run("the_engines_nftables_backend_and_ours_go_together", || async {
        build();
        for (at, port) in [(0, 80), (1, 80), (1, 81), (3, 80)] {
            serve(container(at), port);
        }
        serve(At::Outside, 9000);
        for (index, address) in FAMILIES[0].containers.iter().enumerate() {
            let own = endpoint(index, stage::PLACES[index]);
            assert_eq!(own.ipv4.unwrap().to_string(), *address);
        }
        load_tables(false);
        let theirs = engines_tables();
        let blocking = |body: &mut dyn FnMut()| tokio::task::block_in_place(body);
        blocking(&mut || compare("with the engine's tables alone", |dial| dial.engine));

        let mut stage = Stage::rules(POLICY, published).await;
        blocking(&mut || compare("with both", |dial| dial.both));

        // The engine starts anew: with its tables replaced at once, and with a time without any.
        blocking(&mut || {
            let tried = undeclared_during(|| {
                load_tables(true);
                sh("nft delete table ip docker-bridges; nft delete table ip6 docker-bridges");
                thread::sleep(Duration::from_millis(500));
                load_tables(false);
            });
            println!("{tried} connections were tried while the engine's tables were made anew");
            compare("with the engine's tables made anew", |dial| dial.both);
        });
        assert_eq!(stage.kernel.difference(&stage.planner).unwrap(), None);

        // Ours are made anew, and changed.
        stage.planner.kernel_lost();
        stage.carry_out().await;
        blocking(&mut || compare("with ours made anew", |dial| dial.both));
        stage.allow("[{ from: b, to: a, ports: [9999] }]").await;
        let ends_here = |dial: &Dial| dial.both && dial.line.contains("unmanaged");
        blocking(&mut || compare("with another policy", ends_here));
        assert_eq!(engines_tables(), theirs, "the engine's tables are its own");

        stage.kernel.remove_tables().await.unwrap();
        blocking(&mut || compare("without ours", |dial| dial.engine));
        assert_eq!(engines_tables(), theirs, "the engine's tables are its own");
    });
}
