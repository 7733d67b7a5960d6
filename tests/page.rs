//! The page in a real Chromium. Each test has a network namespace of its own in which there is nothing but the server.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

#[path = "page/browser.rs"]
mod browser;
#[path = "netns/mod.rs"]
mod netns;
#[path = "page/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use browser::Browser;
use cofferdam::daemon::flows::{EndKind, FlowRecord, FlowVerdict};
use cofferdam::daemon::status::{EdgeStatus, State, Status};
use fantoccini::key::Key;
use serde_json::{Value, json};
use world::{World, add_service, edge, end, flow, found, many, service, shop};

const URL: &str = "http://127.0.0.1:9471/";
/// The edges that are drawn.
const DRAWN: &str = "return [...document.querySelectorAll('#graph .edge')].map(it => [it.dataset.from, it.dataset.to]).sort()";

/// The edges that are drawn, as pairs.
async fn drawn(browser: &Browser) -> BTreeSet<(String, String)> {
    let pairs = browser.run(DRAWN).await;
    serde_json::from_value::<BTreeSet<(String, String)>>(pairs).unwrap()
}

fn declared(status: &Status) -> BTreeSet<(String, String)> {
    let pair = |edge: &EdgeStatus| (edge.from.clone(), edge.to.clone());
    status.edges.iter().map(pair).collect()
}

/// Runs a test with this world and a browser that shows it.
fn seen<F: Future<Output = Browser>>(
    name: &str,
    size: (u32, u32),
    status: fn() -> Status,
    body: impl FnOnce(World, Browser) -> F,
) {
    // A browser each, and one at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    netns::run_async(name, || async move {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(status());
        world.serve(9471).await;
        let browser = Browser::open(folder.path(), size, "light").await;
        browser.page.goto(URL).await.unwrap();
        browser
            .until("return document.querySelectorAll('#graph .node').length > 0")
            .await;
        let browser = body(world, browser).await;
        let broken = browser.run("return [...document.scripts].length").await;
        assert_eq!(broken, json!(6), "a script was added");
        browser.close().await;
        asked_nobody_else(folder.path());
    });
}

/// The browser's own log of requests has none of the page's to anybody but the server. What a browser does on its own, asking
/// for news of itself, has no page for its initiator.
fn asked_nobody_else(folder: &Path) {
    let log: Value = serde_json::from_slice(&fs::read(folder.join("net.json")).unwrap()).unwrap();
    let events = log["events"].as_array().unwrap();
    let of_the_page = |params: &&Value| {
        let is = |key: &str| {
            params[key]
                .as_str()
                .is_some_and(|it| it.contains("127.0.0.1:9471"))
        };
        is("initiator") || is("network_isolation_key") || is("url")
    };
    let asked = events.iter().map(|event| &event["params"]).filter(of_the_page);
    let urls: BTreeSet<&str> = asked.filter_map(|params| params["url"].as_str()).collect();
    for wanted in [URL.to_owned(), format!("{URL}api/events")] {
        assert!(urls.contains(wanted.as_str()), "{wanted} is missing: {urls:?}");
    }
    let elsewhere: Vec<_> = urls.iter().filter(|url| !url.starts_with(URL)).collect();
    assert!(elsewhere.is_empty(), "requests for elsewhere: {elsewhere:?}");
}

#[test]
fn the_graph_shows_the_policys_edges_and_no_other_and_follows_it() {
    let name = "the_graph_shows_the_policys_edges_and_no_other_and_follows_it";
    seen(name, (1400, 900), shop, |world, browser| async move {
        assert_eq!(drawn(&browser).await, declared(&shop()));
        let text = browser.run("return document.body.innerText").await.to_string();
        for word in [
            "Enforcing",
            "3f9a1c72be",
            "7 bound",
            "28.5.2",
            "world",
            "8000 · 921",
        ] {
            assert!(text.contains(word), "{word} is missing in {text}");
        }
        // The matrix says the same.
        browser.run("document.getElementById('tab-matrix').click()").await;
        browser
            .until("return document.querySelectorAll('#matrix td.may').length > 0")
            .await;
        let cells = "return [...document.querySelectorAll('#matrix td.may')].map(it => [it.dataset.from, it.dataset.to])";
        let cells: BTreeSet<(String, String)> = serde_json::from_value(browser.run(cells).await).unwrap();
        assert_eq!(cells, declared(&shop()));
        browser.run("document.getElementById('tab-graph').click()").await;

        // One edge ends, one comes, one is used.
        world.change(|status| {
            status.edges.remove(0);
            status
                .edges
                .push(edge("shop/worker", "shop/api", &["8000/tcp"], 0));
            status.edges[0].packets = Some(1000);
            status.state = State::Degraded;
            status.reasons = vec!["the rules could not be changed".to_owned()];
        });
        browser
            .until("return document.body.innerText.includes('the rules could not be changed')")
            .await;
        let wanted = declared(&world.status.lock().unwrap());
        assert_eq!(drawn(&browser).await, wanted);
        let (class, _) = browser
            .until("return document.querySelector('.edge[data-from=\"shop/web\"]').getAttribute('class')")
            .await;
        // New counters of another policy are no use.
        assert!(class.as_str().unwrap().starts_with("edge used"), "{class}");
        world.change(|status| status.edges[0].packets = Some(1001));
        browser
            .until("return document.querySelector('.edge[data-from=\"shop/web\"].busy') !== null")
            .await;
        browser
    });
}

#[test]
fn a_denied_flow_appears_within_two_seconds() {
    seen(
        "a_denied_flow_appears_within_two_seconds",
        (1400, 900),
        shop,
        |world, browser| async move {
            let denied = "return document.querySelectorAll('#flows li.denied').length";
            assert_eq!(browser.run(denied).await, json!(0));
            let mut slowest = Duration::ZERO;
            for port in [5432, 22, 80] {
                world.attempt(
                    service("shop/web", 2),
                    service("shop/db", 1),
                    port,
                    FlowVerdict::Denied,
                );
                let shown = format!(
                    "return [...document.querySelectorAll('#flows li.denied')].some(it => it.innerText.includes('{port}/tcp'))"
                );
                let (_, elapsed) = browser.until(&shown).await;
                slowest = slowest.max(elapsed);
            }
            println!("a denied flow appeared after {slowest:?} at most");
            assert!(slowest < Duration::from_secs(2), "{slowest:?}");
            let (text, _) = browser
                .until("return document.getElementById('flows').innerText")
                .await;
            for word in [
                "shop/web",
                "shop/db",
                "no edge from shop/web to shop/db",
                "shop-web-2",
            ] {
                assert!(
                    text.as_str().unwrap().contains(word),
                    "{word} is missing in {text}"
                );
            }
            // In the graph it is red, and no edge.
            let refusal = ".refusal.denied[data-from=\"shop/web\"][data-to=\"shop/db\"]";
            browser
                .until(&format!(
                    "return document.querySelector('{refusal}')?.dataset.attempts === '3'"
                ))
                .await;
            assert_eq!(drawn(&browser).await, declared(&shop()));
            // A thousand are a thousand.
            for _ in 0..997 {
                world.attempt(
                    service("shop/web", 2),
                    service("shop/db", 1),
                    5432,
                    FlowVerdict::Denied,
                );
            }
            browser
                .until(&format!(
                    "return document.querySelector('{refusal}')?.dataset.attempts === '1000'"
                ))
                .await;
            browser
                .until("return document.getElementById('denied-count').innerText.startsWith('1,000 ')")
                .await;
            // From somebody who is no part of the policy.
            world.attempt(
                end(EndKind::Unmanaged, "172.17.0.9"),
                service("shop/db", 1),
                5432,
                FlowVerdict::Denied,
            );
            browser
                .until("return document.querySelector('.node.ghost') !== null")
                .await;
            assert_eq!(drawn(&browser).await, declared(&shop()));
            browser
        },
    );
}

#[test]
fn hostile_names_are_inert() {
    seen(
        "hostile_names_are_inert",
        (390, 844),
        hostile,
        |world, browser| async move {
            let script = hostile()
                .services
                .keys()
                .find(|it| it.contains("<script>"))
                .unwrap()
                .clone();
            let mut bad = service(&script, 1);
            bad.container = Some("<img src=x onerror=window.owned=4>\u{202e}\u{0}".to_owned());
            world.flows.put(FlowRecord {
                reason: "<b onclick=window.owned=5>no</b>".to_owned(),
                protocol: "<i>".to_owned(),
                ..flow(bad, service("__proto__", 1), 1, FlowVerdict::Denied)
            });
            browser
                .until("return document.querySelectorAll('#flows li').length === 1")
                .await;
            world.audited.put(found(&script));
            browser.until("return state.audit?.at ? true : null").await;
            // Every one of them is chosen, too, in the graph and in the matrix.
            let chosen = "for (const name of Object.keys(state.view.services)) { select(name); showScene(); showDetail(state); showFlows(state); } \
                      openTab('matrix'); showScene(); return document.querySelectorAll('#matrix tbody tr').length";
            let rows = browser.run(chosen).await;
            assert!(
                rows.as_u64().unwrap() >= hostile().services.len() as u64,
                "{rows}"
            );
            let audit = "openTab('audit'); showScene(); return document.getElementById('audit').innerText.split('<script>').length";
            assert_eq!(
                browser.run(audit).await,
                json!(4),
                "a name, a message and a remark"
            );
            browser.run("openTab('graph')").await;
            browser
                .until("return document.querySelectorAll('#graph .node').length >= 11")
                .await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(browser.run("return window.owned ?? null").await, Value::Null);
            let elements = "return document.querySelectorAll('img, b:not(.when b), i:not(.line), iframe, object, embed').length";
            assert_eq!(browser.run(elements).await, json!(0), "a name became an element");
            let text = browser.run("return document.body.innerText").await;
            let text = text.as_str().unwrap();
            assert!(text.contains("<script>window.owned=1</script>"), "{text}");
            assert!(text.contains("\\u202e") && !text.contains('\u{202e}'), "{text}");
            // On a phone, and with a name of 200 characters, nothing sticks out.
            let width = browser
                .run("return [document.documentElement.scrollWidth, innerWidth]")
                .await;
            assert_eq!(width, json!([390, 390]));
            browser
        },
    );
}

#[test]
fn what_weakens_the_host_is_listed_by_container() {
    let name = "what_weakens_the_host_is_listed_by_container";
    seen(name, (1400, 900), shop, |world, browser| async move {
        // With the keyboard: to the left of the first tab is the last one.
        browser.run("document.getElementById('tab-graph').focus()").await;
        let keys = char::from(Key::Left).to_string();
        browser
            .page
            .active_element()
            .await
            .unwrap()
            .send_keys(&keys)
            .await
            .unwrap();
        let text = "return document.getElementById('audit').innerText";
        browser
            .until(&format!("{text}.includes('is being looked at')"))
            .await;
        world.audited.put(found("worker"));
        browser.until(&format!("{text}.includes('worker')")).await;
        assert_eq!(
            browser
                .run("return document.getElementById('audit-count').innerText")
                .await,
            json!("1")
        );
        let said = browser.run(text).await;
        let said = said.as_str().unwrap();
        for word in [
            "0 containers: 1 critical, 0 high, 1 medium, 0 low, 1 accepted.",
            "has every right",
            "drop --it",
            "accepted until 2999-12-31: known",
            "does not run",
        ] {
            assert!(said.contains(word), "{word} is missing in {said}");
        }
        let listed = "return [...document.querySelectorAll('.subject')].map(it => \
            [it.dataset.container, ...[...it.querySelectorAll('li')].map(it => it.className + ' ' + it.dataset.code)])";
        assert_eq!(
            browser.run(listed).await,
            json!([
                ["web", "critical CFA002", "accepted CFA012"],
                ["worker", "medium CFA014"]
            ])
        );
        browser.run("state.filter = 'work'; showScene()").await;
        assert_eq!(browser.run(listed).await, json!([["worker", "medium CFA014"]]));
        browser.run("state.filter = ''").await;
        browser
    });
}

#[test]
fn two_hundred_services_are_usable_with_the_keyboard() {
    let name = "two_hundred_services_are_usable_with_the_keyboard";
    seen(
        name,
        (1400, 900),
        || many(200),
        |_world, browser| async move {
            // By segment, until one is chosen.
            assert_eq!(
                browser
                    .run("return document.querySelectorAll('.node.segment').length")
                    .await,
                json!(10)
            );
            let page = &browser.page;
            let press = async |keys: &str| {
                page.active_element()
                    .await
                    .unwrap()
                    .send_keys(keys)
                    .await
                    .unwrap()
            };
            press("/").await;
            press("orders/api").await;
            browser.until("return document.querySelectorAll('.node.service').length > 2 && document.querySelectorAll('.node.segment').length === 0").await;
            let wanted: BTreeSet<_> = declared(&many(200))
                .into_iter()
                .filter(|(from, to)| from.contains("orders/api") || to.contains("orders/api"))
                .collect();
            assert_eq!(drawn(&browser).await, wanted);
            press(&char::from(Key::Escape).to_string()).await;
            browser
                .until("return document.querySelectorAll('.node.segment').length === 10")
                .await;
            // To the graph with the tabulator, through it with arrows, into a segment with enter.
            browser
                .run("document.querySelector('.node.segment').focus()")
                .await;
            press(&char::from(Key::Right).to_string()).await;
            press(&char::from(Key::Enter).to_string()).await;
            browser
                .until("return document.querySelectorAll('.node.service').length >= 20")
                .await;
            browser
                .run("document.querySelector('.node.service').focus()")
                .await;
            press(&char::from(Key::Enter).to_string()).await;
            browser.until("return !document.getElementById('detail').hidden && document.querySelector('#detail .bound') !== null").await;
            press(&char::from(Key::Escape).to_string()).await;
            browser
                .until("return document.getElementById('detail').hidden")
                .await;
            // All of them at once.
            let (_, elapsed) = {
                browser.run("setSegment('*')").await;
                browser
                    .until("return document.querySelectorAll('.node.service').length === 200")
                    .await
            };
            println!("200 services were drawn in {elapsed:?}");
            assert_eq!(drawn(&browser).await, declared(&many(200)));
            browser
        },
    );
}

/// Names that want to be code, to turn the text around, or to break the layout.
fn hostile() -> Status {
    let mut status = shop();
    let names = [
        "x/<script>window.owned=1</script>".to_owned(),
        "x/<img src=x onerror=window.owned=2>".to_owned(),
        "x/\u{202e}gpj.exe".to_owned(),
        format!("x/{}", "w".repeat(200)),
        "__proto__".to_owned(),
        "constructor".to_owned(),
    ];
    for name in &names {
        add_service(&mut status, name, 1);
        let mut edge = edge(name, "shop/web", &["80/tcp"], 5);
        edge.why = Some("</title><script>window.owned=3</script>".to_owned());
        status.edges.push(edge);
    }
    status.reasons = vec![names[0].clone(), names[3].clone()];
    status
        .quarantined
        .insert(names[1].clone(), vec![names[2].clone()]);
    status
        .unenforceable
        .insert(names[2].clone(), vec![names[0].clone()]);
    status
}
