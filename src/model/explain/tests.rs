use std::collections::BTreeSet;

use super::*;
use crate::model::{Identity, Standing, Unmanaged};
use crate::policy::{SourceFile, load};

const SHOP: &str = "cofferdam: 1
segment: shop
services:
  web: { select: { name: web } }
  api: { select: { name: api } }
  db: { select: { name: db } }
  trial: { select: { name: trial }, mode: audit }
  probe: { select: { name: probe }, mode: audit }
externals:
  payments: { cidrs: [203.0.113.0/24] }
  bank: { cidrs: [203.0.113.0/25, \"2001:db8::/64\"] }
allow:
  - { from: world, to: web, ports: [443] }
  - { from: web, to: api, ports: [8000-8010, icmp/timestamp-request] }
  - { from: [web, api], to: db, ports: [5432], why: orders }
  - { from: api, to: db, ports: [5433], until: 2026-01-01T00:00:00Z }
  - { from: api, to: bank, ports: [443] }
  - { from: web, to: world, ports: [udp] }
";
const OPS: &str = "cofferdam: 1\nsegment: ops\nservices: { prometheus: { select: { name: prom } } }\n";

fn rights() -> Rights {
    let file = |path: &str, text: &str| SourceFile {
        path: path.to_owned(),
        bytes: text.into(),
    };
    Rights {
        policy: load(&[file("shop.yaml", SHOP), file("ops.yaml", OPS)])
            .unwrap()
            .policy,
        ..Rights::default()
    }
}

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn ask_with(rights: &Rights, from: &str, to: &str, knowledge: Knowledge<'_>) -> Explanation {
    let question = Question::parse(from, to, &rights.policy, knowledge).unwrap();
    explain(rights, question, now()).unwrap()
}

fn ask(from: &str, to: &str) -> Explanation {
    ask_with(&rights(), from, to, Knowledge::PolicyAlone)
}

#[test]
fn each_question_has_its_outcome() {
    use Outcome::{Audited, Denied, Partly, Permitted, Untouched};
    for (from, to, outcome) in [
        ("shop/web", "shop/api:8000", Permitted),
        ("shop/web", "shop/api:8011", Denied),
        ("shop/web", "shop/api:8005-8011", Partly),
        ("shop/web", "shop/api:8000/udp", Denied),
        ("shop/api", "shop/web:8000", Denied),
        ("shop/web", "shop/api:icmp/timestamp-request", Permitted),
        ("shop/web", "shop/api:icmp", Partly),
        ("shop/web", "shop/api:any", Partly),
        ("shop/api", "shop/db:5433", Denied),
        ("shop/api", "shop/payments:443", Partly),
        ("shop/api", "shop/bank:443", Permitted),
        ("shop/api", "203.0.113.7:443", Permitted),
        ("shop/api", "203.0.113.200:443", Denied),
        ("shop/api", "[2001:db8::7]:443", Permitted),
        ("shop/api", "world:443", Partly),
        ("shop/web", "world:53/udp", Permitted),
        ("shop/web", "world:443", Denied),
        ("[2001:db8::9]", "shop/web:443", Permitted),
        ("host", "shop/web:443", Denied),
        ("shop/trial", "shop/probe:1", Audited),
        ("shop/trial", "world:1", Audited),
        ("shop/trial", "shop/db:1", Denied),
        ("world", "host:22", Untouched),
    ] {
        assert_eq!(ask(from, to).outcome, outcome, "{from} -> {to}");
    }
}

#[test]
fn what_differs_within_the_question_is_told_apart() {
    let parts = |from, to| -> Vec<String> {
        let describe = |part: Part| {
            let families: Vec<char> = part.families.iter().map(|it| it.digit()).collect();
            let to = part.to.unwrap_or_default();
            format!("{families:?} {to} {} {}", part.traffic, part.ruling.passes())
        };
        ask(from, to).parts.into_iter().map(describe).collect()
    };
    assert_eq!(
        parts("shop/web", "shop/api:8005-8011"),
        ["['4', '6']  8005-8010/tcp true", "['4', '6']  8011/tcp false"]
    );
    assert_eq!(
        parts("shop/api", "shop/payments:443"),
        [
            "['4'] 203.0.113.0-203.0.113.127 443/tcp true",
            "['4'] 203.0.113.128-203.0.113.255 443/tcp false"
        ]
    );
    assert_eq!(
        parts("shop/web", "shop/api:icmp"),
        [
            "['4']  icmp types 0-12 false",
            "['4']  icmp type 13 true",
            "['4']  icmp types 14-255 false",
            "['6']  icmp types 0-255 false"
        ]
    );
}

#[test]
fn the_missing_edge_is_the_one_that_permits_it() {
    for (from, to, file, yaml) in [
        (
            "ops/prometheus",
            "shop/db:9100",
            "shop.yaml",
            "allow:\n  - { from: ops/prometheus, to: db, ports: [9100] }\n",
        ),
        (
            "shop/db",
            "world:53/udp",
            "shop.yaml",
            "allow:\n  - { from: db, to: world, ports: [53/udp] }\n",
        ),
        (
            "host",
            "ops/prometheus:icmp/echo-request",
            "ops.yaml",
            "allow:\n  - { from: host, to: prometheus, ports: [icmp/echo-request] }\n",
        ),
        (
            "shop/db",
            "203.0.113.200:8000-8010",
            "shop.yaml",
            "allow:\n  - { from: db, to: payments, ports: [8000-8010] }\n",
        ),
        (
            "[2001:db8:1::1]",
            "ops/prometheus:9090",
            "ops.yaml",
            "externals:\n  some-name: { cidrs: [\"2001:db8:1::1/128\"] }\nallow:\n  - { from: some-name, to: prometheus, ports: [9090] }\n",
        ),
    ] {
        let missing = ask(from, to).missing.unwrap();
        assert_eq!((missing.file.as_str(), missing.yaml.as_str()), (file, yaml));
        // As another file of the segment it is just what opens it.
        let text = format!("cofferdam: 1\nsegment: {}\n{}", missing.segment, missing.yaml);
        let sources =
            [("shop.yaml", SHOP), ("ops.yaml", OPS), ("new.yaml", &text)].map(|(path, text)| SourceFile {
                path: path.to_owned(),
                bytes: text.into(),
            });
        let rights = Rights {
            policy: load(&sources).unwrap().policy,
            ..Rights::default()
        };
        assert_eq!(
            ask_with(&rights, from, to, Knowledge::PolicyAlone).outcome,
            Outcome::Permitted,
            "{from} -> {to}"
        );
    }
}

#[test]
fn what_is_between_them_is_listed_and_what_has_ended_too() {
    let answer = ask("shop/api", "shop/db:5433");
    assert_eq!(answer.between.len(), 1);
    assert_eq!(answer.between[0].why.as_deref(), Some("orders"));
    assert_eq!(answer.ended.len(), 1);
}

#[test]
fn containers_are_explained_as_what_they_are() {
    let mut rights = rights();
    let services = |names: &[&str]| -> BTreeSet<_> {
        let all = rights.policy.services.keys();
        all.filter(|id| names.contains(&id.name.as_str()))
            .cloned()
            .collect()
    };
    let managed = |names| Standing::Managed(Identity::new(services(names)).unwrap());
    let two = managed(&["api", "trial"]);
    let mut host = Host {
        containers: [
            ("two", two),
            ("db1", managed(&["db"])),
            (
                "cut",
                Standing::Isolated(Identity::new(services(&["api"])).unwrap()),
            ),
            ("torn", Standing::Quarantined(services(&["api", "prometheus"]))),
            ("other", Standing::Unmanaged),
            ("another", Standing::Unmanaged),
        ]
        .map(|(name, standing)| (name.to_owned(), Place::Own(standing)))
        .into(),
        ..Host::default()
    };
    host.own.insert("192.0.2.1".parse().unwrap());
    let address = "172.18.0.2".parse().unwrap();
    host.addresses.insert(address, ["two".to_owned()].into());
    let contested = "172.18.0.3".parse().unwrap();
    host.addresses
        .insert(contested, ["two", "db1"].map(str::to_owned).into());
    for (name, place) in [
        ("beside", Place::Shared("two".to_owned())),
        ("agent", Place::Host),
        ("none", Place::Nowhere),
    ] {
        host.containers.insert(name.to_owned(), place);
    }
    let known = Knowledge::Of(&host);
    let outcome = |rights: &Rights, from, to| ask_with(rights, from, to, known).outcome;
    assert_eq!(outcome(&rights, "two", "db1:5432"), Outcome::Permitted);
    assert_eq!(outcome(&rights, "172.18.0.2", "db1:5432"), Outcome::Permitted);
    assert_eq!(outcome(&rights, "beside", "db1:5432"), Outcome::Permitted);
    let agent = ask_with(&rights, "agent", "db1:5432", known);
    assert_eq!(agent.question.from, End::Host);
    Question::parse("none", "db1:5432", &rights.policy, known).unwrap_err();
    for (from, to) in [
        ("172.18.0.3", "db1:5432"),
        ("cut", "db1:5432"),
        ("torn", "db1:5432"),
        ("other", "db1:5432"),
    ] {
        let answer = ask_with(&rights, from, to, known);
        assert_eq!(
            (answer.outcome, answer.missing),
            (Outcome::Denied, None),
            "{from} -> {to}"
        );
    }
    assert_eq!(
        ask_with(&rights, "192.0.2.1", "db1:1", known).question.from,
        End::Host
    );
    assert_eq!(outcome(&rights, "other", "another:1"), Outcome::Untouched);
    rights.unmanaged = Unmanaged::Deny;
    assert_eq!(outcome(&rights, "other", "another:1"), Outcome::Denied);
}

#[test]
fn what_is_not_known_is_said() {
    let rights = rights();
    let host = Host::default();
    let alone = Knowledge::PolicyAlone;
    for (from, to, knowledge, says) in [
        ("shop/wbe", "shop/db:1", alone, "did you mean `shop/web`?"),
        ("web", "shop/db:1", alone, "no daemon says"),
        (
            "web",
            "shop/db:1",
            Knowledge::Of(&host),
            "no container is called `web`; did you mean `shop/web`?",
        ),
        ("shop/web", "shop/db", alone, "is not `B:PORT`"),
        ("shop/web", "2001:db8::1", alone, "is not `B:PORT`"),
        ("shop/web", "shop/db:0", alone, "no port 0"),
        ("shop/web", "shop/db:53/upd", alone, "did you mean `53/udp`"),
    ] {
        let error = Question::parse(from, to, &rights.policy, knowledge)
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }
    let question = Question::parse("203.0.113.1", "[2001:db8::1]:1", &rights.policy, alone).unwrap();
    assert!(explain(&rights, question, now()).is_err());
}

#[test]
fn a_missing_edge_names_services_that_look_like_numbers() {
    let text = "cofferdam: 1\nsegment: s\nservices:\n  \"0\": { select: { name: zero } }\n  \"1e3\": { select: { name: thousand } }\n";
    let load = |text: &str| {
        let file = SourceFile {
            path: "s.yaml".to_owned(),
            bytes: text.into(),
        };
        load(&[file]).unwrap().policy
    };
    let of = |policy| Rights {
        policy,
        ..Rights::default()
    };
    let answer = ask_with(&of(load(text)), "s/0", "s/1e3:80", Knowledge::PolicyAlone);
    let missing = answer.missing.unwrap();
    let mended = of(load(&format!("{text}{}", missing.yaml)));
    let answer = ask_with(&mended, "s/0", "s/1e3:80", Knowledge::PolicyAlone);
    assert_eq!(answer.outcome, Outcome::Permitted);
}
