//! What a scenario measured, and the table of all of it.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

/// One line of the table.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Figure {
    /// `scenario: what was done`.
    pub(crate) name: String,
    /// How often the fault was tried.
    pub(crate) tried: u64,
    /// Undeclared exchanges that succeeded; any fails.
    pub(crate) leaks: u64,
    /// The declared flow's longest gap, where one was held.
    pub(crate) longest_gap_ms: Option<u64>,
    /// From the fault to the state as it must be.
    pub(crate) repair_ms: Option<u64>,
    /// Anything else that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
    /// Why it failed other than by a leak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
}

/// Collects the figures.
#[derive(Debug)]
pub(crate) struct Report {
    lines: File,
    passed: usize,
    failed: usize,
}

impl Report {
    pub(crate) fn create(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        Ok(Self {
            lines: File::create(directory.join("faults.jsonl"))?,
            passed: 0,
            failed: 0,
        })
    }

    /// Prints and writes a scenario's figures; one that could not be carried out failed.
    pub(crate) fn take(
        &mut self,
        scenario: &str,
        outcome: anyhow::Result<Vec<Figure>>,
    ) -> anyhow::Result<()> {
        let figures = outcome.unwrap_or_else(|error| {
            let failed = Some(format!("could not be carried out: {error:#}"));
            vec![Figure {
                name: scenario.to_owned(),
                failed,
                ..Figure::default()
            }]
        });
        for figure in figures {
            writeln!(self.lines, "{}", serde_json::to_string(&figure)?)?;
            let ok = figure.leaks == 0 && figure.failed.is_none() && figure.tried > 0;
            let milliseconds = |value: Option<u64>| value.map_or("-".to_owned(), |it| format!("{it} ms"));
            println!(
                "{} {:<62} tried {:>6}  leaks {:>3}  longest gap {:>8}  repair {:>8}  {}{}",
                if ok { "ok  " } else { "FAIL" },
                figure.name,
                figure.tried,
                figure.leaks,
                milliseconds(figure.longest_gap_ms),
                milliseconds(figure.repair_ms),
                figure.note.unwrap_or_default(),
                figure.failed.map(|why| format!(" {why}")).unwrap_or_default(),
            );
            if ok { self.passed += 1 } else { self.failed += 1 }
        }
        Ok(())
    }

    /// The closing line; whether all was well.
    pub(crate) fn finish(self) -> bool {
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0 && self.passed > 0
    }
}
