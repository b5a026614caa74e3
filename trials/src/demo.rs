//! The demonstration: what a newcomer sees first. The same code path as the program trials, told aloud.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::program::{self, Folder, Programs, Steps};
use crate::report::Outcome;

/// How many times the computation is killed.
const KILLS: u32 = 3;

/// Seen on a terminal alone; it moves also while a step takes its time.
fn bar() -> ProgressBar {
    const BEAT: Duration = Duration::from_millis(200);
    let bar = ProgressBar::new(program::steps(KILLS));
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {wide_bar} {pos}/{len} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(BEAT);
    bar
}

/// Runs it and tells what came of it; true when the results were the same.
pub(crate) fn run(sources: &Path, hdcr: Option<PathBuf>) -> Result<bool> {
    let mut out = io::stdout().lock();
    writeln!(out, "A computation runs undisturbed, then again under `hdcr run --every 1s`, where it is killed")?;
    writeln!(
        out,
        "with SIGKILL {KILLS} times at random moments and rolls back by itself. Both must end with the same bytes."
    )?;
    writeln!(out)?;
    out.flush()?;
    let steps = Steps { bar: bar(), aloud: true };
    let (sources, folder, names) = (sources.join("demo"), Folder::Chosen, Vec::new());
    let wanted = Programs { sources, hdcr, folder, names, kills: KILLS, keep: false, steps };
    let all = program::all(&wanted);
    wanted.steps.bar.finish_and_clear();
    for finished in all? {
        writeln!(out)?;
        writeln!(out, "What was said and measured:")?;
        for line in &finished.log {
            writeln!(out, "  {line}")?;
        }
        writeln!(out)?;
        match finished.outcome {
            Outcome::Passed => writeln!(out, "The results are the same, byte for byte.")?,
            Outcome::Skipped(why) => {
                writeln!(out, "Not shown: {why}.")?;
                return Ok(false);
            }
            Outcome::Failed(why) => {
                writeln!(out, "FAILED: {why}")?;
                return Ok(false);
            }
        }
    }
    Ok(true)
}
