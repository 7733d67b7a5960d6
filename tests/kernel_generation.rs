//! Every nftables transaction is announced with the process that made it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and acts on the system"
)]

use std::time::Duration;

use cofferdam::kernel::elements::Elements;
use cofferdam::kernel::generation::{Generation, GenerationEvent, GenerationWatch, Touched};
use cofferdam::plan::ruleset::{ChainName, ElementAction, ElementChange, Key, SetName, SetRef, TableFamily};
use netns::{run_async, sh};
use tokio::sync::mpsc;
use tokio::time::timeout;

mod netns;

const PATIENCE: Duration = Duration::from_secs(3);

async fn next(events: &mut mpsc::Receiver<GenerationEvent>) -> Option<Generation> {
    match timeout(PATIENCE, events.recv()).await.ok()?? {
        GenerationEvent::Made(generation) => Some(generation),
        GenerationEvent::Overrun => panic!("an overrun"),
    }
}

#[test]
fn a_foreign_nft_is_seen_by_name() {
    run_async("a_foreign_nft_is_seen_by_name", || async {
        let (sender, mut events) = mpsc::channel(16);
        let watch = GenerationWatch::open().unwrap();
        // What happens between the subscription and the first look is not lost.
        sh("nft add table inet other");
        let task = tokio::spawn(watch.run(sender));
        let first = next(&mut events).await.unwrap();
        assert_eq!(first.process, "nft");
        assert_ne!(first.pid, std::process::id());
        sh("nft add chain inet other forward '{ type filter hook forward priority 0; }'; nft list ruleset");
        let second = next(&mut events).await.unwrap();
        assert!(second.id > first.id);
        // Listing makes no generation.
        assert!(timeout(Duration::from_millis(300), events.recv()).await.is_err());
        drop(events);
        timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    });
}

#[test]
fn what_a_transaction_did_to_our_tables_is_told_and_whose_it_was() {
    run_async(
        "what_a_transaction_did_to_our_tables_is_told_and_whose_it_was",
        || async {
            let (sender, mut events) = mpsc::channel(64);
            let _task = tokio::spawn(GenerationWatch::open().unwrap().run(sender));
            let ours = "add table inet cofferdam; add chain inet cofferdam c { type filter hook forward priority 0; }; \
                        add set inet cofferdam s { type ipv4_addr; }; add rule inet cofferdam c accept";
            let foreign = "add table ip cofferdam; add table inet other; add chain inet other cofferdam; \
                           add rule inet other cofferdam accept";
            let touched = Some(Touched::Tables);
            for (commands, expected) in [
                (ours, touched),
                (foreign, None),
                (
                    "add element inet cofferdam s { 10.0.0.1 }",
                    Some(Touched::Elements),
                ),
                (
                    "delete element inet cofferdam s { 10.0.0.1 }",
                    Some(Touched::Elements),
                ),
                ("insert rule inet cofferdam c accept", Some(Touched::Rules)),
                ("flush chain inet cofferdam c", Some(Touched::Rules)),
                ("add chain inet cofferdam d", Some(Touched::Chains)),
                ("add table inet cofferdam { flags dormant; }", touched),
                ("delete table inet other", None),
                ("flush ruleset", touched),
            ] {
                sh(&format!("nft '{commands}'"));
                let made = next(&mut events).await.unwrap();
                assert_eq!(made.touched, expected, "{commands}");
            }
            sh(&format!("nft '{ours}'"));
            next(&mut events).await.unwrap();
            let mut elements = Elements::open().unwrap();
            let change = ElementChange {
                set: SetRef {
                    table: TableFamily::Inet,
                    set: SetName::from("s"),
                },
                key: Key::Ipv4([10, 0, 0, 9].into()),
                action: ElementAction::Add(None),
            };
            let (before, digest) = (elements.generation().unwrap(), elements.structure().unwrap());
            elements.commit(&[change]).unwrap();
            let made = next(&mut events).await.unwrap();
            assert_eq!(
                (made.port, made.id, made.touched),
                (elements.port(), before + 1, Some(Touched::Elements))
            );
            assert_eq!(elements.generation().unwrap(), made.id);
            assert_eq!(elements.structure().unwrap(), digest, "elements are no structure");
            // The same rule in the place of the first is another one.
            sh("nft flush chain inet cofferdam c; nft add rule inet cofferdam c accept");
            assert_ne!(elements.structure().unwrap(), digest);
        },
    );
}

#[test]
fn chains_that_are_read_again_are_read_as_with_all_others() {
    run_async(
        "chains_that_are_read_again_are_read_as_with_all_others",
        || async {
            sh(
                "nft 'add table inet cofferdam; add table bridge cofferdam; add table inet other; \
                 add chain inet cofferdam c { type filter hook forward priority 0; }; add chain inet cofferdam d; \
                 add chain inet other d; add rule inet other d accept; \
                 add rule inet cofferdam c jump d; add rule inet cofferdam d accept comment \"first\"; \
                 add rule inet cofferdam d drop; add chain bridge cofferdam d; add rule bridge cofferdam d accept'",
            );
            let mut elements = Elements::open().unwrap();
            let mut digest = elements.structure().unwrap();
            let chain = |family, name: &str| (family, ChainName::from(name));
            let (c, d) = (chain(TableFamily::Inet, "c"), chain(TableFamily::Inet, "d"));
            for (commands, changed) in [
                ("add rule inet cofferdam d reject", vec![d.clone()]),
                (
                    "flush chain inet cofferdam c; flush chain inet cofferdam d",
                    vec![c, d.clone()],
                ),
                (
                    "add chain inet cofferdam e; add rule inet cofferdam e drop",
                    vec![chain(TableFamily::Inet, "e")],
                ),
                ("delete chain inet cofferdam d", vec![d.clone()]),
                (
                    "flush chain bridge cofferdam d",
                    vec![chain(TableFamily::Bridge, "d")],
                ),
                ("add rule inet other d accept", Vec::new()),
            ] {
                sh(&format!("nft '{commands}'"));
                let whole = elements.structure().unwrap();
                assert_eq!(digest == whole, changed.is_empty(), "{commands}");
                let changed = changed.into_iter().collect();
                elements.structure_of(&changed, &mut digest).unwrap();
                assert_eq!(digest, whole, "{commands}");
            }
            // What others change elsewhere is not taken for ours.
            sh("nft 'add rule inet cofferdam c accept; add rule inet cofferdam e accept'");
            let changed = [chain(TableFamily::Inet, "e")].into();
            elements.structure_of(&changed, &mut digest).unwrap();
            assert_ne!(digest, elements.structure().unwrap());
        },
    );
}

#[test]
fn a_slow_receiver_hears_of_the_overrun() {
    run_async("a_slow_receiver_hears_of_the_overrun", || async {
        let (sender, mut events) = mpsc::channel(1);
        let watch = GenerationWatch::open().unwrap();
        let elements: Vec<String> = (0..50_000_u32)
            .map(|n| std::net::Ipv4Addr::from(n).to_string())
            .collect();
        let text = format!(
            "add table inet other\nadd set inet other s {{ type ipv4_addr; }}\nadd element inet other s {{ {} }}\n",
            elements.join(",")
        );
        std::fs::write("/run/large.nft", text).unwrap();
        for _ in 0..6 {
            sh("nft -f /run/large.nft; nft delete table inet other");
        }
        let _task = tokio::spawn(watch.run(sender));
        let mut overrun = false;
        while let Ok(Some(event)) = timeout(Duration::from_secs(1), events.recv()).await {
            overrun |= event == GenerationEvent::Overrun;
        }
        assert!(overrun);
    });
}
