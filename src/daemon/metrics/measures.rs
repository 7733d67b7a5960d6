//! What the loop measures while it works. Recording takes a lock that is only ever held for as long as a few handles are
//! copied, so that nobody who reads metrics holds the loop up.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::histogram::Histogram;

/// From a quarter of a millisecond to 10 s.
const DURATIONS: [f64; 14] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// The first one is for starts that nothing came before.
const LEADS: [f64; 11] = [0.0, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// The measurements since the daemon began.
#[derive(Debug, Clone, Default)]
pub struct Measures(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    passes: ByName,
    events: ByName,
    leads: Histogram,
    engine_losses: AtomicU64,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            passes: ByName::default(),
            events: ByName::default(),
            leads: Histogram::new(LEADS),
            engine_losses: AtomicU64::new(0),
        }
    }
}

/// A histogram of durations for each of a few names.
#[derive(Debug, Default)]
struct ByName(Mutex<BTreeMap<&'static str, Histogram>>);

impl ByName {
    fn observe(&self, name: &'static str, duration: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = all.entry(name).or_insert_with(|| Histogram::new(DURATIONS));
        histogram.observe(duration.as_secs_f64());
    }

    fn all(&self) -> BTreeMap<&'static str, Histogram> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Measures {
    /// A pass is over.
    pub fn pass(&self, cause: &'static str, elapsed: Duration) {
        self.0.passes.observe(cause, elapsed);
    }

    /// The kernel holds what an event of the engine asked for.
    pub fn answered(&self, event: &'static str, elapsed: Duration) {
        self.0.events.observe(event, elapsed);
    }

    /// A container started so long after its endpoints were bound; zero where they were not.
    pub fn lead(&self, lead: Duration) {
        self.0.leads.observe(lead.as_secs_f64());
    }

    /// The connection to the engine was lost.
    pub fn engine_lost(&self) {
        self.0.engine_losses.fetch_add(1, Ordering::Relaxed);
    }
}

impl Collector for Measures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        for (name, help, label, histograms) in [
            (
                "cofferdam_pass_duration_seconds",
                "How long passes of the loop took, by what caused them",
                "cause",
                self.0.passes.all(),
            ),
            (
                "cofferdam_event_to_kernel_seconds",
                "From the time of an engine event to the end of the pass after which the kernel held what it asked for: of connect the proof \
                 of the endpoint's identity, of the others that it is gone",
                "event",
                self.0.events.all(),
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (value, histogram) in histograms {
                histogram.encode(family.encode_family(&[(label, value)])?)?;
            }
        }
        let leads = encoder.encode_descriptor(
            "cofferdam_bound_before_start_seconds",
            "From the end of the pass that bound a container's last endpoint in the kernel to the time of the engine's start event; 0: it was not \
             bound by then",
            None,
            MetricType::Histogram,
        )?;
        self.0.leads.encode(leads)?;
        let losses = ConstCounter::new(self.0.engine_losses.load(Ordering::Relaxed));
        losses.encode(encoder.encode_descriptor(
            "cofferdam_engine_connection_losses",
            "How often the connection to the engine was lost",
            None,
            MetricType::Counter,
        )?)
    }
}
