//! What `cofferdam audit` finds, as numbers. Codes and severities are few, whatever there is on the host.

use std::collections::BTreeMap;
use std::fmt::Error;

use super::collect::{Labels, Out, signed};
use crate::audit::{Code, Severity};
use crate::daemon::posture::Report;

type Kind = (Code, Severity);

/// Nothing before it was looked for the first time.
pub(super) fn findings(out: &mut Out<'_>, report: &Report) -> Result<(), Error> {
    let Some(at) = report.at else { return Ok(()) };
    // What is not there is 0, so that an alert sees it come.
    let mut open: BTreeMap<Kind, usize> = Code::ALL
        .iter()
        .map(|code| ((*code, code.severity()), 0))
        .collect();
    let found = report.counts.iter().map(|(kind, (open, _))| (*kind, *open));
    open.extend(found);
    let labels = |(code, severity): Kind| -> Labels {
        let labels = [("code", code.as_str()), ("severity", severity.as_str())];
        labels.map(|(name, value)| (name, value.to_owned())).into()
    };
    out.gauges(
        "cofferdam_audit_findings",
        "What voids or weakens segmentation on this host and nobody has accepted, as `cofferdam audit` says it",
        open.into_iter().map(|(kind, number)| (labels(kind), signed(number))),
    )?;
    let accepted = report.counts.iter().filter(|(_, (_, accepted))| *accepted > 0);
    out.gauges(
        "cofferdam_audit_accepted_findings",
        "Findings that the baseline accepts",
        accepted.map(|(kind, (_, accepted))| (labels(*kind), signed(*accepted))),
    )?;
    out.gauge(
        "cofferdam_audit_stale_acceptances",
        "Acceptances of the baseline that have ended, or that are about nothing",
        report.stale,
    )?;
    out.gauges(
        "cofferdam_audit_timestamp_seconds",
        "When the host was looked at last, since the epoch",
        [(Labels::new(), at.as_second())],
    )
}
