//! The demonstration: what a newcomer sees first. The same code path as the program trials, told aloud.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::program::{self, Folder, Programs};
use crate::report::Outcome;

/// How many times the computation is killed.
const KILLS: u32 = 3;

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
    let (sources, folder, names) = (sources.join("demo"), Folder::Chosen, Vec::new());
    let wanted = Programs { sources, hdcr, folder, names, kills: KILLS, keep: false };
    for finished in program::all(&wanted)? {
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
