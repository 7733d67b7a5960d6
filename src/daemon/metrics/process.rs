//! The process itself, by the names that Prometheus' client libraries have for it.

use std::fmt::Error;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

#[derive(Debug)]
pub(super) struct Process;

/// What `/proc/self` says.
struct Used {
    cpu_seconds: f64,
    resident_bytes: u64,
}

impl Used {
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The process's name, in parentheses, may have anything in it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let ticks = sysconf(SysconfVar::CLK_TCK).ok()??;
        let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
        #[expect(clippy::cast_precision_loss, reason = "a float's 53 bits of ticks are enough")]
        let cpu_seconds = field(11)?.saturating_add(field(12)?) as f64 / ticks as f64;
        Some(Self {
            cpu_seconds,
            resident_bytes: field(21)?.saturating_mul(page),
        })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(used) = Used::read() else {
            return Ok(());
        };
        ConstGauge::new(used.resident_bytes).encode(encoder.encode_descriptor(
            "process_resident_memory_bytes",
            "Resident memory of the process",
            None,
            MetricType::Gauge,
        )?)?;
        ConstCounter::new(used.cpu_seconds).encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            "User and system time of the process",
            None,
            MetricType::Counter,
        )?)
    }
}
