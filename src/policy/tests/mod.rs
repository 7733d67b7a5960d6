//! Tests of the whole room: texts in, policies or faults out.

mod explain;
mod faults;
mod meaning;
mod outcome;
mod random;
mod warnings;

use std::collections::BTreeSet;

use super::*;

fn file(path: &str, text: impl Into<Vec<u8>>) -> SourceFile {
    SourceFile {
        path: path.to_owned(),
        bytes: text.into(),
    }
}

/// The faults of one file as `CFD031 6:11`.
fn places(text: impl Into<Vec<u8>>) -> Vec<String> {
    let faults = load(&[file("a.yaml", text)])
        .map(|loaded| loaded.policy)
        .unwrap_err();
    faults
        .iter()
        .map(|fault| format!("{} {}:{}", fault.code, fault.location.line, fault.location.column))
        .collect()
}

fn valid(texts: &[&str]) -> Policy {
    let files: Vec<SourceFile> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| file(&format!("{index}.yaml"), *text))
        .collect();
    load(&files)
        .map(|loaded| loaded.policy)
        .unwrap_or_else(|faults| panic!("{faults}"))
}

fn id(text: &str) -> ServiceId {
    let (segment, name) = text.split_once('/').unwrap();
    ScopedName {
        segment: segment.parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

const SHOP: &str = r#"
cofferdam: 1
segment: shop
mode: enforce
services:
  web:     { select: { compose: shop/web } }
  api:     { select: [{ labels: { app: api } }, { name: "api-*" }] }
  scraped: { select: { labels: "metrics in (on, true), !internal" }, mode: enforce }
externals:
  pay: { cidrs: [203.0.113.0/24, "2001:db8:77::/48"], except: [203.0.113.66/32] }
allow:
  - { from: world, to: web, ports: [443, "80"], why: customers }
  - { from: [web, api], to: api, ports: [8080, 9000-9010/tcp, 53/udp] }
  - { from: web, to: api, ports: [8080, 9000-9010, 53/udp] }
  - { from: api, to: pay, ports: 443 }
  - { from: ops/prometheus, to: scraped, ports: [9100] }
  - { from: host, to: shop/web, ports: icmp/echo-request }
  - { from: "*", to: world, ports: [icmp], until: 2026-12-01T00:00:00Z }
tests:
  reachable: ["web -> api:8080", "world -> web:443"]
  unreachable: ["api -> pay:any"]
"#;
const OPS: &str = "cofferdam: 1\nsegment: ops\nservices: { prometheus: { select: { image: \"prom/*\" } } }\n";

#[test]
fn the_revision_is_of_paths_and_bytes_in_any_order() {
    let (a, b) = (file("a.yaml", SHOP), file("b.yaml", OPS));
    let first = revision(&[a.clone(), b.clone()]);
    assert_eq!(first, revision(&[b.clone(), a.clone()]));
    assert_ne!(first, revision(std::slice::from_ref(&a)));
    assert_ne!(first, revision(&[file("c.yaml", SHOP), b.clone()]));
    assert_eq!(load(&[b, a]).map(|loaded| loaded.revision), Ok(first));
}

#[test]
fn codes_are_unique() {
    let texts: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(texts.len(), Code::ALL.len());
}
