//! Runs, medians, spread and growth. Each figure is a row of the table on standard output and a line of
//! `target/reports/bench.jsonl`. Nothing fails because of a time.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};

use crate::host::Engine;
use crate::real::IMAGE;

const INSIDE: &str = "COFFERDAM_BENCH_INSIDE";

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Once and small: whether the benchmark still works.
    Quick,
    Full,
}

impl Effort {
    pub(crate) fn of<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Told beside the others.
    None,
}

impl Goal {
    fn bound(self) -> Option<f64> {
        match self {
            Self::AtMost(bound) | Self::AtLeast(bound) => Some(bound),
            Self::None => None,
        }
    }

    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(bound) => Some(value <= bound),
            Self::AtLeast(bound) => Some(value >= bound),
            Self::None => None,
        }
    }
}

/// What several runs gave, in ascending order.
#[derive(Debug, Clone)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn one(value: f64) -> Self {
        Self::new(vec![value])
    }

    /// Milliseconds of `runs` runs, after one that does not count.
    pub(crate) fn times(runs: usize, mut run: impl FnMut()) -> Self {
        run();
        let timed = (0..runs).map(|_| {
            let begun = Instant::now();
            run();
            milliseconds(begun.elapsed())
        });
        Self::new(timed.collect())
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0[(last as f64 * part).round() as usize]
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// In ms; negative where `to` was earlier.
pub(crate) fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

/// The exponent of a power of the size that fits best: 0 is flat, 1 is linear.
pub(crate) fn exponent(points: &[(usize, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .map(|(size, value)| ((*size as f64).ln(), value.max(f64::MIN_POSITIVE).ln()))
        .collect();
    let count = logs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|it| it.0), mean(|it| it.1));
    let covariance: f64 = logs.iter().map(|it| (it.0 - x) * (it.1 - y)).sum();
    let variance: f64 = logs.iter().map(|it| (it.0 - x).powi(2)).sum();
    covariance / variance
}

/// Where figures go.
#[derive(Debug)]
pub(crate) struct Report {
    lines: File,
    pub(crate) effort: Effort,
}

impl Report {
    /// A new report, without the lines of an earlier run.
    pub(crate) fn begin() {
        create_dir_all(path().parent().unwrap()).unwrap();
        File::create(path()).unwrap();
        println!(
            "{:<66} {:>10} {:>21} {:<7} {:>10} {:>9}",
            "what", "median", "spread", "unit", "baseline", "goal"
        );
    }

    pub(crate) fn open(effort: Effort) -> Self {
        let lines = OpenOptions::new().append(true).create(true).open(path()).unwrap();
        Self { lines, effort }
    }

    pub(crate) fn figure(
        &mut self,
        name: &str,
        unit: &str,
        sample: &Sample,
        baseline: Option<f64>,
        goal: Goal,
    ) {
        let value = sample.median();
        let (least, most) = (sample.quantile(0.0), sample.quantile(1.0));
        let met = goal.is_met(value);
        let shown = |it: Option<f64>| it.map_or_else(|| "-".to_owned(), short);
        let verdict = match met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "",
        };
        println!(
            "{name:<66} {:>10} {:>21} {unit:<7} {:>10} {:>9} {verdict}",
            short(value),
            format!("{} .. {}", short(least), short(most)),
            shown(baseline),
            shown(goal.bound()),
        );
        let line = serde_json::json!({
            "name": name, "value": value, "unit": unit, "baseline": baseline, "goal": goal.bound(), "met": met,
            "min": least, "max": most, "runs": sample.0.len(),
        });
        writeln!(self.lines, "{line}").unwrap();
    }

    /// The growth of what was measured at several sizes.
    pub(crate) fn growth(&mut self, name: &str, points: &[(usize, f64)], goal: Goal) {
        if points.len() > 1 {
            let sample = Sample::one(exponent(points));
            self.figure(&format!("{name}: growth"), "power", &sample, None, goal);
        }
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        it if it >= 1000.0 => format!("{value:.0}"),
        it if it >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/reports/bench.jsonl")
}

/// The part that this process is to run in the namespace that was made for it.
pub(crate) fn inside() -> Option<String> {
    std::env::var(INSIDE).ok()
}

/// Runs a part in a network and mount namespace of its own, with its own `/sys` and `/run`: nothing of the host is changed.
pub(crate) fn in_namespace(part: &str, effort: Effort) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "`{part}` changes the kernel's network settings in a namespace of its own and must run as root"
    );
    let script = "mount -t sysfs sysfs /sys && mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg("--bench")
        .env(INSIDE, part)
        .stdin(Stdio::null());
    if effort == Effort::Quick {
        command.arg("--quick");
    }
    let status = command.status().unwrap();
    assert!(status.success(), "`{part}` inside its namespace: {status}");
}

/// Runs a part in the namespaces of a private engine with these flags, which goes with it.
pub(crate) fn in_engine(part: &str, effort: Effort, flags: &str) {
    let this = std::env::current_exe().unwrap();
    let this = this.to_str().unwrap();
    let engine = Engine::up_with("bench", &[IMAGE, this], flags);
    let mut words = vec![this, "--bench"];
    if effort == Effort::Quick {
        words.push("--quick");
    }
    let status = engine.command(&words).env(INSIDE, part).status().unwrap();
    assert!(status.success(), "`{part}` inside the engine: {status}");
}

/// Two threads.
pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Runs a command line, which must succeed; returns its standard output.
pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}
