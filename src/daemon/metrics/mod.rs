//! What the daemon tells Prometheus. In: a [`Status`] with the kernel's counters, the flow log's sums, and what the loop
//! measured. Out: the text format that scrapers, node_exporter's textfile collector and `promtool check metrics` read, or
//! OpenMetrics.
//!
//! Labels are bounded: what has names in it gets at most [`MOST_SETS`] sets of labels of its own, and everything beyond is
//! added up in one whose labels are all `other`, which no service can be called.

mod audited;
mod awaited;
mod collect;
mod measures;
mod process;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

pub use self::awaited::{Answered, Awaited, Bound};
pub use self::measures::Measures;

use self::collect::Told;
use super::flows::{FlowTotals, Missed};
use super::posture::Report;
use super::status::Status;

/// The most sets of labels of one metric that have names in them.
pub const MOST_SETS: usize = 1000;
/// What stands for everything beyond them.
pub const OTHER: &str = "other";

/// The content type of [`text`].
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The content type of [`openmetrics`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that metrics are made from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// With the kernel's counters.
    pub status: Arc<Status>,
    pub totals: FlowTotals,
    pub missed: Missed,
    pub measures: Measures,
    pub audit: Arc<Report>,
}

/// The metrics in the OpenMetrics text format.
pub fn openmetrics(sources: &Sources) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Told(sources.clone())));
    registry.register_collector(Box::new(sources.measures.clone()));
    registry.register_collector(Box::new(process::Process));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

/// The metrics in Prometheus' own text format: there a counter is called as its samples are, an info is a gauge, and
/// nothing marks the end.
pub fn text(sources: &Sources) -> String {
    let openmetrics = openmetrics(sources);
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = ("", "");
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap_or((rest, ""));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            let help = if help.0 == name { help.1 } else { "" };
            let _ = write!(
                text,
                "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"
            );
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
