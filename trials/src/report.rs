//! What the runner says: one line a trial, the tail of the log of what failed, and the closing line.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::guest::Guest;

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "lowercase")]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// One finished trial.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finished {
    pub(crate) name: String,
    pub(crate) mode: String,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    pub(crate) milliseconds: u128,
    pub(crate) checkpoint_milliseconds: Vec<u128>,
    pub(crate) restore_milliseconds: Vec<u128>,
    /// Kept when the trial failed.
    pub(crate) folder: Option<PathBuf>,
    #[serde(skip)]
    pub(crate) log: Vec<String>,
}

/// Counts and prints.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    passed: u32,
    skipped: u32,
    failed: Vec<String>,
}

/// How many lines of a failed trial's log are shown.
const TAIL: usize = 25;

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Report { json, passed: 0, skipped: 0, failed: Vec::new() }
    }

    pub(crate) fn add(&mut self, trial: &Finished) -> Result<()> {
        let name = format!("{}/{}", trial.name, trial.mode);
        match &trial.outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
            Outcome::Failed(why) => self.failed.push(format!("{name}: {why}")),
        }
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(trial)?)?;
            return Ok(());
        }
        let seconds = Duration::from_millis(u64::try_from(trial.milliseconds)?).as_secs_f64();
        match &trial.outcome {
            Outcome::Passed => writeln!(out, "passed   {name} ({seconds:.1} s)")?,
            Outcome::Skipped(why) => writeln!(out, "skipped  {name}: {why}")?,
            Outcome::Failed(why) => {
                writeln!(out, "FAILED   {name} ({seconds:.1} s): {why}")?;
                for line in trial.log.iter().skip(trial.log.len().saturating_sub(TAIL)) {
                    writeln!(out, "         | {line}")?;
                }
                if let Some(folder) = &trial.folder {
                    writeln!(out, "         kept in {}", folder.display())?;
                }
            }
        }
        Ok(())
    }

    /// The closing line; true when nothing failed.
    pub(crate) fn close(&self) -> Result<bool> {
        let mut out = io::stdout().lock();
        if !self.json {
            for failure in &self.failed {
                writeln!(out, "failed:  {failure}")?;
            }
            writeln!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped)?;
        }
        Ok(self.failed.is_empty())
    }
}

/// Prints the guests, one a line.
pub(crate) fn list(guests: &[Guest]) -> Result<()> {
    let mut out = io::stdout().lock();
    for guest in guests {
        let builds = match guest.builds.len() {
            1 => String::new(),
            more => format!(" [{more} builds]"),
        };
        writeln!(out, "{:<20} {}{builds}", guest.name, guest.about)?;
    }
    Ok(())
}

/// Prints programs or scenarios, one a line.
pub(crate) fn list_more(kind: &str, all: &[(String, String)]) -> Result<()> {
    let mut out = io::stdout().lock();
    for (name, about) in all {
        writeln!(out, "{name:<20} {kind}: {about}")?;
    }
    Ok(())
}

/// Prints words, one a line.
pub(crate) fn print_words(words: &BTreeSet<String>) -> Result<()> {
    let mut out = io::stdout().lock();
    for word in words {
        writeln!(out, "{word}")?;
    }
    Ok(())
}

/// The error that ends the runner itself.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nothing is left to do when standard error is closed.
    drop(writeln!(io::stderr(), "trials: {error:#}"));
}
