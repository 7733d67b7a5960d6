//! The report as SARIF: containers are in no file, so that places are logical ones. Accepted findings are there as suppressed.

use std::collections::BTreeMap;

use crate::audit::{Acceptance, Code, Finding, Judged, Severity};
use crate::cli::sarif::{Level, Log, Message, Outcome, Place, Rule, Suppression};

pub(super) fn log(judged: &Judged<'_>) -> Log {
    let rules = Code::ALL
        .iter()
        .map(|code| Rule::new(code.as_str(), code.explanation(), level(code.severity())));
    let open = judged.open.iter().map(|finding| outcome(finding, None));
    let accepted = judged.accepted.iter();
    let accepted = accepted.map(|(finding, acceptance)| outcome(finding, Some(acceptance)));
    Log::of(rules.collect(), open.chain(accepted).collect())
}

fn level(severity: Severity) -> Level {
    match severity {
        Severity::Critical | Severity::High => Level::Error,
        Severity::Medium => Level::Warning,
        Severity::Low => Level::Note,
    }
}

fn outcome(finding: &Finding, acceptance: Option<&Acceptance>) -> Outcome {
    let place = match &finding.container {
        Some(name) => Place::logical("container", name.clone()),
        None => Place::logical("engine", "engine".to_owned()),
    };
    let subject = match &finding.container {
        Some(name) => format!("{name} "),
        None => "The engine ".to_owned(),
    };
    let identity = [finding.code.as_str()]
        .into_iter()
        .chain(finding.container.as_deref())
        .chain(finding.object.as_deref());
    Outcome {
        rule_id: finding.code.as_str(),
        rule_index: Code::ALL
            .iter()
            .position(|code| *code == finding.code)
            .unwrap_or(0),
        level: level(finding.severity),
        message: Message {
            text: format!(
                "{subject}{} ({}).\nWhat mends it: {}.",
                finding.message,
                finding.severity.as_str(),
                finding.mend
            ),
        },
        locations: [place],
        related_locations: Vec::new(),
        partial_fingerprints: BTreeMap::from([("cofferdam/v1", identity.collect::<Vec<_>>().join(" "))]),
        suppressions: acceptance
            .map(|acceptance| Suppression {
                kind: "external",
                justification: format!("{} (until {})", acceptance.reason, acceptance.until),
            })
            .into_iter()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Baseline;

    #[test]
    fn what_was_accepted_is_suppressed() {
        let finding = |name: &str| Finding {
            severity: Severity::High,
            code: Code::SensitivePath,
            container: Some(name.to_owned()),
            object: Some("/etc".to_owned()),
            message: "can read and write the host's /etc".to_owned(),
            mend: "use a volume".to_owned(),
            is_running: true,
        };
        let baseline = Baseline::parse(
            "accepted: [{ code: CFA013, container: backup, reason: copies it, until: 2026-12-31 }]\n",
        );
        let baseline = baseline.unwrap();
        let judged = baseline.judge(
            vec![finding("backup"), finding("web")],
            "2026-12-01".parse().unwrap(),
        );
        let log = serde_json::to_value(log(&judged)).unwrap();
        let run = &log["runs"][0];
        let results = run["results"].as_array().unwrap();
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        assert_eq!(rules.len(), Code::ALL.len());
        for result in results {
            let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(rules[index]["id"], "CFA013");
            assert_eq!(result["level"], "error");
            assert!(result["locations"][0].get("physicalLocation").is_none());
        }
        assert_eq!(results[0]["locations"][0]["logicalLocations"][0]["name"], "web");
        assert!(results[0].get("suppressions").is_none());
        let suppression = &results[1]["suppressions"][0];
        assert_eq!(suppression["kind"], "external");
        assert_eq!(suppression["justification"], "copies it (until 2026-12-31)");
        assert_eq!(
            results[1]["partialFingerprints"]["cofferdam/v1"],
            "CFA013 backup /etc"
        );
    }
}
