use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::oneshot;

use super::look::Looked;
use super::*;
use crate::audit::{Code, Finding, Severity};
use crate::inventory::{Container, ContainerId, Facts, Lifecycle, Listing, NetworkMode};
use crate::model::{Rights, Standing};
use crate::plan::Planner;
use crate::settings::Overrides;

fn container(number: usize) -> Container {
    Container {
        id: ContainerId(format!("{number:064x}").into()),
        name: format!("c{number}"),
        image: "i:1".into(),
        labels: Default::default(),
        lifecycle: Lifecycle::Running,
        network_mode: if number == 7 {
            NetworkMode::Host
        } else {
            NetworkMode::Own
        },
        endpoints: Default::default(),
        published: BTreeSet::new(),
        facts: Facts::default(),
    }
}

#[test]
fn the_loop_shows_every_container_once_a_few_at_a_time() {
    let settings = Settings::merge(Overrides::default(), Overrides::default()).unwrap();
    let mut planner = Planner::new(settings.options, settings.pools, Rights::default());
    let listing = Listing {
        containers: (0..100).map(container).collect(),
        ..Listing::default()
    };
    planner.reset(listing, planner.moment());
    let _plan = planner.plan();
    let show = |after: Option<ContainerId>, rights: Option<&Arc<Rights>>| -> Looked {
        let (answer, mut looked) = oneshot::channel();
        Look { after, answer }.show(&planner, rights);
        looked.try_recv().unwrap()
    };
    let (mut after, mut names, mut on_host) = (None, Vec::new(), Vec::new());
    loop {
        let looked = show(after, None);
        assert!(looked.containers.len() <= 32 && looked.rights.is_none());
        let Some(last) = looked.containers.last() else {
            break;
        };
        after = Some(last.container.id.clone());
        for sight in looked.containers {
            assert_eq!(sight.standing, Standing::Unmanaged);
            if !sight.reasons.is_empty() {
                on_host.push(sight.container.name.clone());
            }
            names.push(sight.container.name);
        }
    }
    let all: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
    assert_eq!((names, on_host), (all, vec!["c7".to_owned()]));
    let rights = Arc::new(Rights::default());
    assert!(show(None, Some(&rights)).rights.is_some());
}

#[test]
fn the_gravest_are_told_with_words_and_all_are_counted() {
    let baseline = "accepted: [{ code: CFA002, container: c1, reason: r, until: 2026-12-31 }]";
    let baseline = Baseline::parse(baseline).unwrap();
    let finding = |code: Code, number: usize, object: usize| Finding {
        severity: code.severity(),
        code,
        container: Some(format!("c{number}")),
        object: None,
        message: format!("has {object}"),
        mend: "m".to_owned(),
        is_running: true,
    };
    let mut draft = Draft::new(
        jiff::Timestamp::UNIX_EPOCH,
        baseline.judging("2026-12-31".parse().unwrap()),
    );
    for number in 0..1000 {
        draft.take(vec![finding(Code::KeepsCapabilities, number, 0)]);
    }
    // The gravest comes last, and what is accepted is no grave thing any more.
    draft.take(vec![finding(Code::Privileged, 1, 0)]);
    draft.take(
        (0..60)
            .map(|object| finding(Code::HostPath, 5000, object))
            .collect(),
    );
    draft.take(vec![
        finding(Code::KeepsCapabilities, 6000, 0),
        finding(Code::HostNetwork, 6000, 0),
    ]);
    draft.take(Vec::new());
    let report = draft.finish(Vec::new());
    let told: Vec<&str> = report
        .subjects
        .iter()
        .filter_map(|it| it.container.as_deref())
        .collect();
    assert_eq!((told.len(), report.more), (100, 903));
    assert_eq!(told[..2], ["c6000", "c5000"]);
    assert_eq!(report.subjects[0].findings[0].code, Code::HostNetwork);
    assert_eq!(
        (report.subjects[1].findings.len(), report.subjects[1].more),
        (50, 10)
    );
    assert!(report.subjects.iter().all(|it| it.findings[0].accepted.is_none()));
    assert_eq!(
        report.open,
        BTreeMap::from([
            (Severity::Critical, 1),
            (Severity::Medium, 60),
            (Severity::Low, 1001)
        ])
    );
    assert_eq!((report.accepted, report.stale), (1, 0));
    assert_eq!(report.counts[&(Code::Privileged, Severity::Critical)], (0, 1));
}

#[test]
fn what_was_found_last_stays_when_nothing_newer_can_be_had() {
    let audited = Audited::default();
    assert_eq!(audited.report().at, None);
    let report = Report {
        at: Some(jiff::Timestamp::UNIX_EPOCH),
        containers: 3,
        ..Report::default()
    };
    audited.put(report);
    audited.failed("no engine".to_owned());
    let report = audited.report();
    assert_eq!(
        (report.containers, report.failure.as_deref()),
        (3, Some("no engine"))
    );
}
