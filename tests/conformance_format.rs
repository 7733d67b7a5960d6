//! What the conformance runner reads and writes, without an engine: cases, facts, the translation.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of #[test] functions"
)]
#![allow(dead_code, reason = "the runner uses the rest of these modules")]

#[path = "conformance/action.rs"]
mod action;
#[path = "conformance/algebra.rs"]
mod algebra;
#[path = "conformance/capability.rs"]
mod capability;
#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/fact.rs"]
mod fact;
#[path = "conformance/prose.rs"]
mod prose;
#[path = "conformance/rules.rs"]
mod rules;
#[path = "conformance/translate.rs"]
mod translate;
#[path = "conformance/words.rs"]
mod words;

use capability::{Decision, TABLE, decide};
use case::{Case, NeutralPolicy, NeutralSelector};
use fact::{Fact, Party, Transport};
use rstest::rstest;
use rules::Untranslatable;
use serde_json::{Value, json};
use translate::Translator;

const SUITE: &str = include_str!("conformance/cases.yaml");

fn suite() -> Vec<Case> {
    case::parse(SUITE)
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

fn one_case(body: &str) -> Result<Case, String> {
    let text = format!(
        "format: netseg-conformance/1\ncases:\n- {{id: T1, name: t, category: t, profile: core, requires: [], {body}}}\n"
    );
    case::parse(&text)?
        .remove(0)
        .map_err(|unreadable| unreadable.reason)
}

fn policy(value: Value) -> NeutralPolicy {
    serde_json::from_value(value).unwrap()
}

fn translated(value: Value) -> Result<Value, Untranslatable> {
    let files = Translator::default().files(&policy(value))?;
    Ok(serde_json::from_str(&files["conformance.yaml"]).unwrap())
}

/// The translation of one edge from a selector to `x/a`.
fn selected(selector: Value) -> Value {
    let edge = json!({"from": [selector], "to": [{"project": "x", "service": "a"}]});
    translated(json!({"default": "deny", "allow": [edge]})).unwrap()
}

#[test]
fn all_forty_cases_can_be_read() {
    let cases = suite();
    assert_eq!(cases.len(), 40);
    assert!(cases.iter().all(|case| case.defaults.converge_ms == 5000));
}

#[test]
fn every_case_is_runnable_or_lacks_something_by_name() {
    for case in suite() {
        if decide(&case.requires, Translator::lacking(&case), true) == Decision::Run {
            let mut translator = Translator::of(&case);
            translator
                .files(&case.policy)
                .unwrap_or_else(|error| panic!("{}: {error}", case.id));
        }
    }
}

#[test]
fn every_capability_of_the_suite_is_in_the_table() {
    let text = SUITE
        .split("\ncapabilities:\n")
        .nth(1)
        .unwrap()
        .split("\ncases:")
        .next()
        .unwrap();
    for line in text.lines() {
        let name = line.trim().split(':').next().unwrap();
        assert!(TABLE.iter().any(|(known, _)| *known == name), "{name}");
    }
}

#[test]
fn project_names_that_look_like_truth_values_are_names() {
    let cases = suite();
    assert_eq!(cases[0].topology.services[2].key(), "y/a");
}

#[rstest]
#[case("x/a -> x/b tcp/80", Party::Service("x/a".into()), Party::Service("x/b".into()), Transport::Tcp, 80, None)]
#[case("ext/c1 -> x/a tcp/80 via=published/18080", Party::External("c1".into()), Party::Service("x/a".into()), Transport::Tcp, 80, Some(18080))]
#[case("host -> -/plain udp/53", Party::Host, Party::Service("-/plain".into()), Transport::Udp, 53, None)]
#[case("x/a -> host icmp/echo", Party::Service("x/a".into()), Party::Host, Transport::Icmp, 0, None)]
#[case("x/a -> x/b sctp/81", Party::Service("x/a".into()), Party::Service("x/b".into()), Transport::Sctp, 81, None)]
fn facts_are_read_and_written(
    #[case] text: &str,
    #[case] from: Party,
    #[case] to: Party,
    #[case] transport: Transport,
    #[case] port: u16,
    #[case] published: Option<u16>,
) {
    let fact: Fact = text.parse().unwrap();
    assert_eq!(
        fact,
        Fact {
            from,
            to,
            transport,
            port,
            published
        }
    );
    assert_eq!(fact.to_string(), text);
}

#[rstest]
#[case("x/a -> x/b")]
#[case("x/a => x/b tcp/80")]
#[case("a -> x/b tcp/80")]
#[case("x/a/c -> x/b tcp/80")]
#[case("x/a -> x/b tcp/0")]
#[case("x/a -> x/b tcp/65536")]
#[case("x/a -> x/b http/80")]
#[case("x/a -> x/b icmp/8")]
#[case("x/a -> x/b tcp/80 via=proxy/1")]
#[case("x/a -> x/b tcp/80 via=published/1 twice")]
fn what_is_no_fact_is_an_error(#[case] text: &str) {
    assert!(text.parse::<Fact>().is_err());
}

#[rstest]
#[case(
    "topology: {services: [], colour: red}, policy: {default: deny}, expect: {}",
    "colour"
)]
#[case("topology: {}, policy: {default: deny, tiers: []}, expect: {}", "tiers")]
#[case("topology: {}, policy: {default: deny}, expect: {maybe: []}", "maybe")]
#[case(
    "topology: {}, policy: {default: deny}, expect: {}, steps: [{do: [{reboot_host: {}}]}]",
    "reboot_host"
)]
#[case(
    "topology: {}, policy: {default: deny}, expect: {assert: [{type: smells_good}]}",
    "smells_good"
)]
#[case(
    "topology: {}, policy: {default: deny}, expect: {assert: [{type: connection_alive, id: k, colour: red}]}",
    "colour"
)]
#[case(
    "topology: {}, policy: {default: deny}, expect: {}, steps: [{do: [{stop_controller: {gently: true}}]}]",
    "gently"
)]
#[case(
    "topology: {}, policy: {default: deny, allow: [{from: [{zone: x}], to: []}]}, expect: {}",
    "zone"
)]
fn what_is_not_known_fails_its_case(#[case] body: &str, #[case] name: &str) {
    let reason = one_case(body).unwrap_err();
    assert!(reason.contains(name), "{reason}");
}

#[test]
fn one_unreadable_case_does_not_take_the_others_along() {
    let text = "format: netseg-conformance/1\ncases:\n- {id: A, colour: red}\n- {id: B, name: b, category: c, \
                profile: core, topology: {}, policy: {default: deny}, expect: {}}\n";
    let entries = case::parse(text).unwrap();
    assert_eq!(entries[0].as_ref().unwrap_err().id, "A");
    assert_eq!(entries[1].as_ref().unwrap().id, "B");
}

#[test]
fn another_format_is_refused() {
    assert!(case::parse("format: netseg-conformance/2\ncases: []\n").is_err());
}

#[rstest]
#[case("kill_controller: {signal: SIGKILL}")]
#[case("restart_service: x/a")]
#[case("restart_service: {service: x/a}")]
#[case("scale: {service: x/a, replicas: 3}")]
#[case("rolling_update: x/a")]
#[case("rolling_update: {service: x/a, labels: {v: '2'}}")]
#[case("burst_start: {project: x, service: n, replicas: 50, listen: [{proto: tcp, port: 80}]}")]
#[case("network_connect: {service: y/rogue, network_of: x/a}")]
#[case("network_disconnect: {service: y/rogue, network: x_default}")]
#[case("wait: 500")]
#[case("wait: {ms: 500}")]
#[case("flush_ruleset: {}")]
#[case("delete_set_element: {}")]
#[case("submit_invalid_policy: {kind: syntax}")]
#[case("send_spoofed: {from: x/c, as: x/b, to: x/a, proto: udp, port: 53}")]
#[case("send_spoofed: {from: x/c, flow: x/b -> x/a tcp/80}")]
#[case("send_icmp_error: {connection: k1, type: frag_needed}")]
#[case("start_service: x/a")]
#[case("recreate_service: x/a")]
#[case("stop_controller: {}")]
#[case("stop_controller: ")]
#[case("delete_set_element: {flow: x/b -> x/a tcp/80}")]
fn actions_are_known(#[case] action: &str) {
    let body =
        format!("topology: {{}}, policy: {{default: deny}}, expect: {{}}, steps: [{{do: [{{{action}}}]}}]");
    assert_eq!(one_case(&body).unwrap().steps[0].actions.len(), 1);
}

#[test]
fn everyone_is_always_managed_and_an_empty_graph_has_no_edges() {
    let file = translated(json!({"default": "deny", "allow": []})).unwrap();
    assert_eq!(
        file,
        json!({"cofferdam": 1, "segment": "conformance", "services": {"everyone": {"select": {"name": "*"}}}})
    );
}

#[rstest]
#[case(json!({"project": "x", "service": "b"}), json!({"compose": "x/b"}))]
#[case(json!({"project": "x"}), json!({"compose": "x/*"}))]
#[case(json!({"service": "b"}), json!({"compose": "*/b"}))]
#[case(json!({"labels": {"app": "c d"}}), json!({"labels": {"app": "c d"}}))]
#[case(json!({"project": "x", "labels": {"app": "c"}}), json!({"compose": "x/*", "labels": {"app": "c"}}))]
#[case(
    json!({"expr": [{"key": "trusted", "op": "Exists"}, {"key": "legacy", "op": "DoesNotExist"}]}),
    json!({"labels": "!legacy,trusted"})
)]
#[case(
    json!({"expr": [{"key": "tier", "op": "In", "values": ["a", "b"]}, {"key": "env", "op": "NotIn", "values": ["p"]}]}),
    json!({"labels": "env notin (p),tier in (a,b)"})
)]
#[case(
    json!({"labels": {"app": "c"}, "expr": [{"key": "trusted", "op": "Exists"}]}),
    json!({"labels": "app=c,trusted"})
)]
fn selectors_become_services(#[case] neutral: Value, #[case] ours: Value) {
    let file = selected(neutral);
    let from = file["allow"][0]["from"][0].as_str().unwrap();
    assert_eq!(file["services"][from]["select"], ours);
}

#[rstest]
#[case("plain", "plain")]
#[case("p", "p-1")]
fn a_plain_container_is_chosen_by_its_name_and_by_having_no_project(
    #[case] service: &str,
    #[case] name: &str,
) {
    let file = selected(json!({"project": "-", "service": service}));
    let from = file["allow"][0]["from"][0].as_str().unwrap();
    let select = file["services"][from]["select"].as_array().unwrap();
    assert_eq!(
        select[0],
        json!({"labels": "!com.docker.compose.project", "name": name})
    );
    assert_eq!(select[1]["name"], json!(format!("{service}-2")));
}

#[rstest]
#[case(json!({"any_service": true}), "everyone")]
#[case(json!({"world": true}), "world")]
#[case(json!({"host": true}), "host")]
fn some_ends_have_names_of_their_own(#[case] neutral: Value, #[case] name: &str) {
    assert_eq!(selected(neutral)["allow"][0]["from"], json!([name]));
}

#[test]
fn addresses_become_externals() {
    let file = selected(json!({"cidr": "198.51.100.0/24", "except": ["198.51.100.64/26"]}));
    let name = file["allow"][0]["from"][0].as_str().unwrap();
    assert_eq!(
        file["externals"][name],
        json!({"cidrs": ["198.51.100.0/24"], "except": ["198.51.100.64/26"]})
    );
}

#[rstest]
#[case(json!([{"proto": "tcp", "port": 80}, {"port": 81}]), json!([80, 81]))]
#[case(json!([{"proto": "udp", "port": 53}]), json!(["53/udp"]))]
#[case(json!([{"proto": "sctp"}, {"proto": "icmp"}]), json!(["sctp", "icmp"]))]
#[case(json!([{"proto": "tcp", "port": {"from": 80, "to": 84}}]), json!(["80-84/tcp"]))]
fn ports_are_translated(#[case] neutral: Value, #[case] ours: Value) {
    let edge = json!({"from": [{"project": "x"}], "to": [{"project": "y"}], "ports": neutral});
    let file = translated(json!({"default": "deny", "allow": [edge]})).unwrap();
    assert_eq!(file["allow"][0]["ports"], ours);
}

#[test]
fn no_ports_are_all_ports_but_an_empty_list_is_not() {
    assert_eq!(
        selected(json!({"project": "x"}))["allow"][0]["ports"],
        json!("any")
    );
    let edge = json!({"from": [{"project": "x"}], "to": [{"project": "y"}], "ports": []});
    let file = translated(json!({"default": "deny", "allow": [edge]})).unwrap();
    assert_eq!(file.get("allow"), None);
}

#[rstest]
#[case(json!({"default": "deny", "audit": {"some": true}}), "audit")]
#[case(
    json!({"default": "deny", "allow": [{"from": [{"project": "x"}], "to": [{"fqdn": "a.test"}]}]}),
    "fqdn"
)]
fn what_the_product_lacks_is_named(#[case] neutral: Value, #[case] name: &'static str) {
    assert_eq!(translated(neutral).unwrap_err(), Untranslatable::Lacking(name));
}

#[test]
fn what_no_service_takes_part_in_is_no_edge() {
    let edge = |from: Value, to: Value| json!({"from": from, "to": to, "ports": [{"port": 80}]});
    let graph = |edge| translated(json!({"default": "deny", "allow": [edge]})).unwrap();
    let (world, host, x) = (
        json!({"world": true}),
        json!({"host": true}),
        json!({"project": "x"}),
    );
    assert_eq!(graph(edge(json!([world]), json!([host]))).get("allow"), None);
    let file = graph(edge(json!([world, x]), json!([host, x])));
    let name = file["allow"][0]["from"][0].as_str().unwrap();
    assert_eq!(
        file["allow"],
        json!([
            {"from": [name], "to": [name, "host"], "ports": [80]},
            {"from": ["world"], "to": [name], "ports": [80]},
        ])
    );
}

#[rstest]
#[case(json!({"expr": [{"key": "a", "op": "Exists"}, {"key": "a", "op": "DoesNotExist"}]}))]
#[case(json!({"expr": [{"key": "a", "op": "In", "values": []}]}))]
#[case(json!({"labels": {"a": "b"}, "expr": [{"key": "a", "op": "NotIn", "values": ["b"]}]}))]
#[case(json!({"cidr": "198.51.100.0/24", "except": ["198.51.0.0/16"]}))]
fn what_nothing_can_match_grants_nothing(#[case] selector: Value) {
    assert_eq!(selected(selector).get("allow"), None);
}

#[test]
fn an_empty_selector_is_not_everything() {
    assert_eq!(
        NeutralSelector::default(),
        serde_json::from_value(json!({})).unwrap()
    );
    let edge = json!({"from": [{}], "to": [{"project": "y"}]});
    let refused = translated(json!({"default": "deny", "allow": [edge]})).unwrap_err();
    assert_eq!(refused, Untranslatable::EmptySelector);
}

#[test]
fn documents_are_files_of_the_same_segment_and_selectors_keep_their_names() {
    let edge =
        |from: &str| json!({"from": [{"project": from}], "to": [{"project": "x"}], "ports": [{"port": 80}]});
    let mut translator = Translator::default();
    let first = translator
        .files(&policy(json!({"default": "deny", "allow": [edge("y")]})))
        .unwrap();
    let documents = json!([{"name": "d1", "allow": [edge("z")]}, {"name": "d2", "allow": []}]);
    let second = json!({"default": "deny", "allow": [edge("y")], "documents": documents});
    let second = translator.files(&policy(second)).unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(
        second.keys().collect::<Vec<_>>(),
        ["conformance.yaml", "document-0-d1.yaml"]
    );
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let (before, after) = (
        read(&first["conformance.yaml"]),
        read(&second["conformance.yaml"]),
    );
    assert_eq!(before["allow"], after["allow"]);
    assert_eq!(
        read(&second["document-0-d1.yaml"])["segment"],
        json!("conformance")
    );
    assert_eq!(after["services"].as_object().unwrap().len(), 4);
}

#[test]
fn a_case_is_skipped_by_name_and_never_for_what_nobody_knows() {
    let requires = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(decide(&requires(&["ipv6", "icmp"]), None, false), Decision::Run);
    assert_eq!(decide(&requires(&["sctp"]), None, true), Decision::Run);
    assert_eq!(
        decide(&requires(&["sctp"]), None, false),
        Decision::Skip("the environment lacks sctp".into())
    );
    assert_eq!(
        decide(&requires(&["ipv6", "fqdn"]), None, true),
        Decision::Skip("the product lacks fqdn".into())
    );
    assert_eq!(
        decide(&requires(&["fqdn", "telepathy"]), None, true),
        Decision::Unknown("telepathy".into())
    );
}

#[test]
fn a_service_may_be_named_by_its_key_in_one_word() {
    let spec: case::ServiceSpec = serde_json::from_value(json!({"service": "x/w", "count": 3})).unwrap();
    assert_eq!(
        (spec.key().as_str(), spec.service.as_str(), spec.replicas),
        ("x/w", "w", 3)
    );
    let spec: case::ServiceSpec = serde_json::from_value(json!({"service": "-/w"})).unwrap();
    assert_eq!((spec.key().as_str(), spec.project()), ("-/w", None));
}

#[rstest]
#[case(json!({"from": "x/c", "as": "x/b", "to": "x/a", "proto": "tcp", "port": 80}))]
#[case(json!({"from": "x/c", "flow": "x/b -> x/a tcp/80"}))]
#[case(json!({"source": "x/b", "flow": "x/c -> x/a tcp/80"}))]
fn a_forgery_may_be_told_by_a_flow(#[case] told: Value) {
    let spoofed: action::Spoofed = serde_json::from_value(told).unwrap();
    assert_eq!(
        spoofed.forgery().unwrap(),
        action::Forgery {
            from: "x/c".into(),
            pretend: "x/b".into(),
            to: "x/a".into(),
            proto: Transport::Tcp,
            port: 80
        }
    );
}

#[rstest]
#[case(
    "connect x/a:80 in a tight loop for 2s from the first instruction, by address",
    Transport::Tcp,
    80,
    2.0
)]
#[case("connect udp x/a:53 in a tight loop for 500ms", Transport::Udp, 53, 0.5)]
#[case("in a tight loop, for 0.5s, connect to x/a:80.", Transport::Tcp, 80, 0.5)]
fn what_a_short_lived_container_does_is_read(
    #[case] entrypoint: &str,
    #[case] transport: Transport,
    #[case] port: u16,
    #[case] seconds: f64,
) {
    let read = prose::tight_loop(entrypoint).unwrap();
    assert_eq!(
        read,
        prose::TightLoop {
            target: "x/a".into(),
            transport,
            port,
            seconds
        }
    );
}

#[rstest]
#[case("resolve a and connect x/a:80 for 2s")]
#[case("connect x/a:80")]
#[case("connect x/a:80 and x/b:80 for 2s")]
#[case("sleep for 2s")]
fn what_else_a_container_may_be_told_is_not_guessed(#[case] entrypoint: &str) {
    assert!(prose::tight_loop(entrypoint).is_err());
}
