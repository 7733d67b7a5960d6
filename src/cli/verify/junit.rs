//! What was found, as JUnit XML.

use std::collections::BTreeMap;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::report::{Report, difference};
use crate::verify::verdict::{Mark, Tested};

impl Report {
    /// One suite for each target, and one for the policy's tests.
    pub(super) fn junit(&self) -> quick_junit::Report {
        let mut report = quick_junit::Report::new("cofferdam verify");
        let mut suites: BTreeMap<String, TestSuite> = BTreeMap::new();
        let failed = |kind: &str, message: String, details: String| {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status
                .set_type(kind)
                .set_message(message)
                .set_description(details);
            status
        };
        let mut add = |suite: String, name: String, status: TestCaseStatus| {
            let mut case = TestCase::new(name, status);
            case.set_classname(&suite);
            suites
                .entry(suite.clone())
                .or_insert_with(|| TestSuite::new(suite))
                .add_test_case(case);
        };
        for (place, cell) in &self.cells {
            let status = match cell.mark() {
                Mark::Unknown => TestCaseStatus::skipped(),
                mark if mark.differs() => {
                    failed("difference", difference(place, cell), self.details(place, cell))
                }
                _ => TestCaseStatus::success(),
            };
            add(place.to.to_string(), place.to_string(), status);
        }
        for (test, tested) in self.tests() {
            let status = match (tested, self.failure(tested)) {
                (_, Some(why)) => failed(&test.expected.to_string(), format!("`{test}` is not so"), why),
                (Tested::NotTried | Tested::Audited, None) => TestCaseStatus::skipped(),
                (_, None) => TestCaseStatus::success(),
            };
            let name = format!("{test} is {} ({})", test.expected, test.location);
            add("tests of the policy".to_owned(), name, status);
        }
        for suite in suites.into_values() {
            report.add_test_suite(suite);
        }
        report
    }
}
