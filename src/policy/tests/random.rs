//! Whatever stands in a file, loading it neither panics nor lets a fault through.

use proptest::prelude::*;

use super::*;

/// A policy from a text with a fault would be the worst: whatever loads must be free of faults and complete.
fn check_total(bytes: Vec<u8>) {
    let files = [file("a.yaml", bytes), file("b.yaml", OPS)];
    let now = "2026-06-01T00:00:00Z".parse().unwrap();
    let reviewed = review(&files, Vec::new(), now);
    assert_eq!(
        reviewed.warnings.render(&files, Colour::Plain).is_empty(),
        reviewed.warnings.is_empty()
    );
    let loaded = load(&files);
    assert_eq!(loaded, reviewed.loaded, "warnings change nothing");
    match loaded {
        Ok(loaded) => {
            for test in &loaded.policy.tests {
                let outcome = loaded.policy.outcome(test, now);
                assert_eq!(outcome == Outcome::Holds, outcome.message(test).is_none());
            }
            for edge in &loaded.policy.edges {
                assert!(!edge.ports.is_empty());
                for end in [&edge.from, &edge.to] {
                    match end {
                        Peer::Service(id) => assert!(loaded.policy.services.contains_key(id)),
                        Peer::External(id) => assert!(!loaded.policy.externals[id].is_empty()),
                        Peer::World | Peer::Host => {}
                    }
                }
            }
            assert!(
                loaded
                    .policy
                    .services
                    .values()
                    .all(|service| !service.selectors.is_empty())
            );
        }
        Err(faults) => {
            assert!(faults.iter().len() > 0);
            assert!(!faults.render(&files, Colour::Plain).is_empty());
            assert!(!faults.render(&files, Colour::Coloured).is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_total(bytes);
    }

    #[test]
    fn mutated_policies_never_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..12_usize, "[ -~\n\t\u{e9}\u{1f512}\\]\\[{}:,*&!|>'\"#-]{0,4}"), 1..6)
    ) {
        let mut bytes = SHOP.as_bytes().to_vec();
        for (at, removed, inserted) in edits {
            let start = at.index(bytes.len());
            let end = (start + removed).min(bytes.len());
            bytes.splice(start..end, inserted.into_bytes());
        }
        check_total(bytes);
    }

    #[test]
    fn one_planted_fault_refuses_the_whole(line in 0..9_usize) {
        let planted = SHOP.replacen("allow:\n", &format!("allow:\n  - {}\n", [
            "{ from: web, to: api, ports: [0] }", "{ from: web, to: api }", "{ from: [], to: api, ports: any }",
            "{ from: nobody, to: api, ports: any }", "{ from: web, to: ops/prometheus, ports: any }",
            "{ from: world, to: host, ports: any }", "{ from: web, to: api, ports: any, until: tomorrow }",
            "{ from: web, to: api, ports: any, port: 1 }", "~",
        ][line]), 1);
        prop_assert!(load(&[file("a.yaml", planted), file("b.yaml", OPS)]).is_err());
    }
}
