//! Every code with its place and what was meant.

use super::*;

const HEAD: &str = "cofferdam: 1\nsegment: shop\n";
const SERVICES: &str =
    "services:\n  web: { select: { compose: shop/web } }\n  db: { select: { name: db } }\n";

#[test]
fn faults_of_whole_files() {
    assert_eq!(places(vec![b'#'; MAX_FILE_BYTES + 1]), ["CFD001 1:1"]);
    assert_eq!(places(b"cofferdam: 1\nsegment: \xff\n".to_vec()), ["CFD002 2:10"]);
    assert_eq!(places("cofferdam: 1\nsegment: [\n"), ["CFD003 2:10"]);
    assert_eq!(places("cofferdam: 1\nallow: *nothing\n"), ["CFD003 2:8"]);
    assert_eq!(places("a: &a {x: 1}\nb: { <<: *a }\n"), ["CFD003 2:6"]);
    assert_eq!(
        places("cofferdam: 1\nsegment: a\n---\nsegment: b\n"),
        ["CFD004 4:1"]
    );
    for empty in ["", "\n", "# only a comment\n", "---\n", "~\n"] {
        assert_eq!(places(empty), ["CFD005 1:1"], "{empty:?}");
    }
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    assert!(places(bomb)[0].starts_with("CFD006 "));
    assert!(places("[".repeat(5000))[0].starts_with("CFD0"));
}

/// What stands behind the head of a file; the place is that of the file with its two lines of head.
#[test]
fn every_fault_stands_at_its_place() {
    let table: &[(&str, &[&str])] = &[
        ("servces: {}\n", &["CFD010 3:1"]),
        ("mode: enforce\nmode: enforce\n", &["CFD011 4:1"]),
        ("services: []\n", &["CFD012 3:11"]),
        ("services:\n  web:\n", &["CFD012 4:6"]),
        ("services: { web: { select: web } }\n", &["CFD012 3:28"]),
        (
            "services: { web: { select: { labels: { v: 1.10 } } } }\n",
            &["CFD012 3:43"],
        ),
        (
            "services: { web: { select: { labels: { v: true } } } }\n",
            &["CFD012 3:43"],
        ),
        ("services: { web: {} }\n", &["CFD013 3:18"]),
        ("services: { web: { select: {} } }\n", &["CFD014 3:28"]),
        ("services: { web: { select: [] } }\n", &["CFD014 3:28"]),
        (
            "services: { web: { select: { labels: {} } } }\n",
            &["CFD014 3:38"],
        ),
        (
            "services: { web: { select: { labels: \" \" } } }\n",
            &["CFD014 3:38"],
        ),
        (
            "services: { Web_1: { select: { name: web } } }\n",
            &["CFD016 3:13"],
        ),
        (
            "services: { world: { select: { name: web } } }\n",
            &["CFD017 3:13"],
        ),
        ("mode: enforced\n", &["CFD018 3:7"]),
        (
            "services: { web: { select: { compose: shop } } }\n",
            &["CFD020 3:39"],
        ),
        (
            "services: { web: { select: { labels: a=b=c } } }\n",
            &["CFD020 3:38"],
        ),
        (
            "services: { web: { select: { labels: \"a, !a\" } } }\n",
            &["CFD021 3:28"],
        ),
        ("services: { web: { select: { name: a/b } } }\n", &["CFD021 3:36"]),
        (
            "services: { web: { select: { image: \"Nginx:*\" } } }\n",
            &["CFD021 3:37"],
        ),
        (
            "services: { web: { select: { compose: shop/web, labels: { com.docker.compose.service: api } } } }\n",
            &["CFD021 3:28"],
        ),
        (
            "externals: { pay: { cidrs: [203.0.113.1/24] } }\n",
            &["CFD022 3:29"],
        ),
        ("externals: { pay: { cidrs: [203.0.113.1] } }\n", &["CFD022 3:29"]),
        ("externals: { pay: { cidrs: [] } }\n", &["CFD014 3:28"]),
        (
            "externals: { pay: { cidrs: [10.0.0.0/8], except: [192.0.2.0/24] } }\n",
            &["CFD023 3:51"],
        ),
        (
            "externals: { pay: { cidrs: [10.0.0.0/8], except: [10.0.0.0/8] } }\n",
            &["CFD024 3:19"],
        ),
        ("externals: { host: { cidrs: [10.0.0.0/8] } }\n", &["CFD017 3:14"]),
        ("mode: watch\n", &["CFD018 3:7"]),
        (
            "services: { web: { select: { name: web }, mode: audti } }\n",
            &["CFD018 3:49"],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(places(format!("{HEAD}{text}")), *expected, "{text}");
    }
    assert_eq!(places("segment: a\n"), ["CFD013 1:1"]);
    assert_eq!(places("cofferdam: 2\nsegment: a\n"), ["CFD015 1:12"]);
    assert_eq!(places("cofferdam: \"1\"\nsegment: a\n"), ["CFD015 1:12"]);
    assert_eq!(places("cofferdam: 1\nsegment: 7\n"), ["CFD012 2:10"]);
    assert_eq!(places("- a\n"), ["CFD012 1:1"]);
}

/// What stands in `allow` behind head, services and `allow:`, that is in line 7.
#[test]
fn every_fault_of_an_edge_stands_at_its_place() {
    let table: &[(&str, &[&str])] = &[
        ("{ form: web, to: db, ports: [80] }", &["CFD010 7:7"]),
        ("{ from: web, to: db }", &["CFD013 7:5"]),
        ("{ from: [], to: db, ports: [80] }", &["CFD014 7:13"]),
        ("{ from: web, to: db, ports: [] }", &["CFD014 7:33"]),
        ("{ from: web, to: 7, ports: [80] }", &["CFD012 7:22"]),
        ("{ from: web, to: ops/*, ports: [80] }", &["CFD016 7:22"]),
        ("{ from: web, to: db, ports: [0] }", &["CFD030 7:34"]),
        ("{ from: web, to: db, ports: [70000] }", &["CFD030 7:34"]),
        ("{ from: web, to: db, ports: [0x50] }", &["CFD030 7:34"]),
        ("{ from: web, to: db, ports: [80, 20-10/tcp] }", &["CFD030 7:38"]),
        ("{ from: web, to: db, ports: [true] }", &["CFD012 7:34"]),
        ("{ from: wbe, to: db, ports: [80] }", &["CFD031 7:13"]),
        ("{ from: ops/web, to: db, ports: [80] }", &["CFD031 7:13"]),
        ("{ from: [web, world], to: host, ports: [80] }", &["CFD033 7:19"]),
        (
            "{ from: web, to: db, ports: [80], until: tomorrow }",
            &["CFD050 7:46"],
        ),
        (
            "{ from: web, to: db, ports: [80], until: 2026-13-01T00:00:00Z }",
            &["CFD050 7:46"],
        ),
        ("{ from: web, to: db, ports: [80], why: 7 }", &["CFD012 7:44"]),
    ];
    for (entry, expected) in table {
        assert_eq!(
            places(format!("{HEAD}{SERVICES}allow:\n  - {entry}\n")),
            *expected,
            "{entry}"
        );
    }
    assert_eq!(
        places(format!(
            "{HEAD}allow: [{{ from: \"*\", to: world, ports: any }}]\n"
        )),
        ["CFD014 3:17"]
    );
    assert_eq!(places(format!("{HEAD}allow: {{}}\n")), ["CFD012 3:8"]);
    assert_eq!(places(format!("{HEAD}allow: []\n")), ["CFD014 3:8"]);
}

#[test]
fn tests_are_checked() {
    let text = |facts: &str| format!("{HEAD}{SERVICES}tests:\n  reachable: [{facts}]\n");
    let tests = |facts: &str| places(text(facts));
    let policy = valid(&[&text(
        "\"web -> db:5432\", \"world->web:443/tcp\", \"web -> db:icmp\"",
    )]);
    let shown: Vec<String> = policy
        .tests
        .iter()
        .map(|it| {
            format!(
                "{} {} {} {:?} {}",
                it.from, it.to, it.ports, it.expected, it.location
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "shop/web shop/db 5432/tcp Reachable 0.yaml:7:15",
            "world shop/web 443/tcp Reachable 0.yaml:7:33",
            "shop/web shop/db icmp Reachable 0.yaml:7:55",
        ]
    );
    assert_eq!(tests("\"web db:5432\""), ["CFD051 7:15"]);
    assert_eq!(tests("\"web -> db\""), ["CFD051 7:15"]);
    assert_eq!(tests("\"* -> db:1\""), ["CFD051 7:15"]);
    assert_eq!(tests("\"web -> db:http\""), ["CFD030 7:15"]);
    assert_eq!(tests("\"web -> bd:1\""), ["CFD031 7:15"]);
    assert_eq!(tests("\"world -> host:1\""), ["CFD033 7:15"]);
    assert_eq!(tests(""), ["CFD014 7:14"]);
}

#[test]
fn faults_between_files() {
    let between = |a: &str, b: &str| {
        let faults = load(&[file("b.yaml", b), file("a.yaml", a)])
            .map(|loaded| loaded.policy)
            .unwrap_err();
        faults
            .iter()
            .map(|fault| format!("{} {}", fault.code, fault.location))
            .collect::<Vec<_>>()
    };
    let shop = format!("{HEAD}{SERVICES}");
    let ops = "cofferdam: 1\nsegment: ops\nservices: { prom: { select: { name: prom } } }\n";
    assert_eq!(
        between(
            &shop,
            &format!("{HEAD}services: {{ web: {{ select: {{ name: web }} }} }}\n")
        ),
        ["CFD040 b.yaml:3:13"]
    );
    assert_eq!(
        between(
            &shop,
            &format!("{HEAD}externals: {{ db: {{ cidrs: [192.0.2.0/24] }} }}\n")
        ),
        ["CFD040 b.yaml:3:14"]
    );
    assert_eq!(
        between(&format!("{HEAD}mode: enforce\n"), &format!("{HEAD}mode: audit\n")),
        ["CFD041 b.yaml:3:7"]
    );
    assert_eq!(
        between(
            "cofferdam: 1\nsegment: a-b\nservices: { c: { select: { name: c1 } } }\n",
            "cofferdam: 1\nsegment: a\nservices: { b-c: { select: { name: c2 } } }\n"
        ),
        ["CFD042 a.yaml:3:13"]
    );
    for select in [
        "name: prom",
        "name: prom, labels: a",
        "labels: \"a in (b)\", name: prom",
    ] {
        let other = format!("{HEAD}services: {{ web: {{ select: {{ {select} }} }} }}\n");
        assert_eq!(between(ops, &other), ["CFD043 b.yaml:3:28"], "{select}");
    }
    let edges = [
        ("from: web, to: ops/prom, ports: any", "CFD032 b.yaml:3:26"),
        ("from: ops/prom, to: world, ports: any", "CFD032 b.yaml:3:17"),
        ("from: world, to: ops/prom, ports: any", "CFD032 b.yaml:3:28"),
        ("from: prom, to: web, ports: any", "CFD031 b.yaml:3:17"),
        ("from: ops/pron, to: web, ports: any", "CFD031 b.yaml:3:17"),
    ];
    for (edge, expected) in edges {
        let text = format!("{HEAD}services: {{ web: {{ select: {{ name: web }} }} }}\n");
        let text = text.replace("services", &format!("allow: [{{ {edge} }}]\nservices"));
        assert_eq!(between(ops, &text), [expected], "{edge}");
    }
}

#[test]
fn what_was_meant() {
    let help = |text: &str| {
        let ops = "cofferdam: 1\nsegment: ops\nservices: { prometheus: { select: { name: prom } } }\n";
        let faults = load(&[file("a.yaml", text), file("b.yaml", ops)])
            .map(|loaded| loaded.policy)
            .unwrap_err();
        faults.into_vec()[0].help.clone().unwrap_or_default()
    };
    let edge = |from: &str| {
        help(&format!(
            "{HEAD}{SERVICES}allow: [{{ from: {from}, to: db, ports: [80] }}]\n"
        ))
    };
    assert_eq!(edge("wbe"), "did you mean `web`?");
    assert_eq!(edge("wrold"), "did you mean `world`?");
    assert_eq!(edge("prometheus"), "did you mean `ops/prometheus`?");
    assert_eq!(edge("ops/promethues"), "did you mean `ops/prometheus`?");
    assert_eq!(
        help(&format!("{HEAD}servics: {{}}\n")),
        "did you mean `services`?"
    );
    assert_eq!(
        help(&format!("{HEAD}externals: {{ a: {{ cidrs: [10.1.2.3/8] }} }}\n")),
        "did you mean the network `10.0.0.0/8` or the single address `10.1.2.3/32`?"
    );
    assert_eq!(
        help(&format!(
            "{HEAD}services: {{ a: {{ select: {{ labels: {{ v: 1.10 }} }} }} }}\n"
        )),
        "write \"1.10\" with quotes if the text is meant"
    );
}

#[test]
fn an_edge_too_many_is_refused_before_it_is_made() {
    let names: Vec<String> = (0..500)
        .map(|number| format!("s{number}: {{ select: {{ name: s{number} }} }}"))
        .collect();
    let text = format!(
        "{HEAD}services: {{ {} }}\nallow: [{{ from: \"*\", to: \"*\", ports: any }}]\n",
        names.join(", ")
    );
    assert_eq!(places(text), ["CFD006 4:9"]);
}

#[test]
fn places_hold_with_marks_line_ends_and_aliases() {
    assert_eq!(places("\u{feff}cofferdm: 1\nsegment: a\n"), ["CFD010 1:1"]);
    assert_eq!(places(format!("\u{feff}{HEAD}servces: {{}}\n")), ["CFD010 3:1"]);
    assert_eq!(
        places(format!("{HEAD}servces: {{}}\n").replace('\n', "\r\n")),
        ["CFD010 3:1"]
    );
    let ports = |list: &str| format!("{HEAD}{SERVICES}allow: [{{ from: web, to: db, ports: {list} }}]\n");
    assert_eq!(places(ports("[&p 0x1, *p]")), ["CFD030 6:41", "CFD030 6:46"]);
    let policy = valid(&[&ports("[&p 443, *p, &q 53/udp, *q]")]);
    let edge = policy.edges.first().unwrap();
    assert_eq!(
        edge.ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["443/tcp", "53/udp"]
    );
}

/// A file at the limit, full of faults or of services, is read in seconds even without optimisation.
#[test]
fn large_files_are_read_in_bounded_time() {
    let services = |prefix: char| -> String {
        (0..3000)
            .map(|n| format!("  {prefix}{n}: {{ select: {{ compose: {prefix}/{prefix}{n} }} }}\n"))
            .collect()
    };
    let unknown: String = (0..3000)
        .map(|n| format!("  - {{ from: x{n}, to: y{n}, ports: [0] }}\n"))
        .collect();
    let files = [
        file(
            "a.yaml",
            format!("cofferdam: 1\nsegment: a\nservices:\n{}", services('a')),
        ),
        file(
            "b.yaml",
            format!(
                "cofferdam: 1\nsegment: b\nservices:\n{}allow:\n{unknown}",
                services('b')
            ),
        ),
    ];
    let faults = load(&files).unwrap_err();
    assert_eq!(faults.iter().len(), 9000);
    let bytes = faults.render(&files, Colour::Plain).len();
    assert!(bytes > 1_000_000);
}
