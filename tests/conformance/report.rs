//! One line a case on the terminal, one object a line in `target/reports/conformance.jsonl`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// The first wrong fact, or why the case could not be judged.
    Failed(String),
    /// The capability that is lacking.
    Skipped(String),
}

#[derive(Debug)]
pub(crate) struct Report {
    file: File,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    pub(crate) fn create(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join("conformance.jsonl");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file,
            passed: 0,
            failed: 0,
            skipped: 0,
        })
    }

    pub(crate) fn case(
        &mut self,
        id: &str,
        name: &str,
        verdict: &Verdict,
        took: Duration,
    ) -> anyhow::Result<()> {
        let seconds = took.as_secs_f64();
        let (word, reason) = match verdict {
            Verdict::Passed => {
                self.passed += 1;
                ("passed", "")
            }
            Verdict::Failed(reason) => {
                self.failed += 1;
                ("failed", reason.as_str())
            }
            Verdict::Skipped(reason) => {
                self.skipped += 1;
                ("skipped", reason.as_str())
            }
        };
        // A reason may quote output of several lines.
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        let shown = if reason.is_empty() {
            String::new()
        } else {
            format!(": {reason}")
        };
        println!("{id} {word:<7} {seconds:5.1}s  {name}{shown}");
        let line = serde_json::json!({
            "id": id, "verdict": word, "reason": reason, "seconds": (seconds * 10.0).round() / 10.0,
        });
        writeln!(self.file, "{line}").context("cannot write the report")
    }

    /// The counts, alone on their line; true when nothing failed.
    pub(crate) fn finish(self) -> bool {
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        );
        self.failed == 0
    }
}
