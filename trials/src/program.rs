//! Real programs: one file of `trials/programs` or `trials/lot` each. Run once undisturbed, then under `hdcr run`, killed again and
//! again and rolled back; in the end both runs must have left the same bytes.

mod description;
mod rollback;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;

use crate::program::description::Description;
pub(crate) use crate::program::description::Folder;
use crate::program::rollback::Job;
use crate::report::{Finished, Outcome, Report};
use crate::wait;

/// Longest time for a program, undisturbed or with all its rollbacks.
const LIMIT: Duration = Duration::from_mins(4);

/// What to run.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) sources: PathBuf,
    pub(crate) hdcr: Option<PathBuf>,
    pub(crate) folder: Folder,
    pub(crate) names: Vec<String>,
    pub(crate) kills: u32,
    pub(crate) keep: bool,
    pub(crate) steps: Steps,
}

/// How far it is, for whoever looks on.
#[derive(Debug)]
pub(crate) struct Steps {
    /// Counts the steps of each program: [`steps`].
    pub(crate) bar: ProgressBar,
    /// Each is told in a line as well, when it happens.
    pub(crate) aloud: bool,
}

impl Steps {
    /// Says what is being done.
    pub(crate) fn doing(&self, what: &str) -> Result<()> {
        self.bar.set_message(what.to_owned());
        self.tell(&format!("{what} ..."))
    }

    /// Says what has happened.
    pub(crate) fn tell(&self, what: &str) -> Result<()> {
        if self.aloud {
            self.bar.suspend(|| writeln!(io::stdout(), "  {what}"))?;
        }
        Ok(())
    }
}

/// How many steps a program takes: undisturbed, the first checkpoint, each kill, the end.
pub(crate) fn steps(kills: u32) -> u64 {
    3 + u64::from(kills)
}

/// Runs all that are wanted, one after the other: each may use both processors.
pub(crate) fn run_all(wanted: &Programs, report: &mut Report) -> Result<()> {
    let descriptions = description::find(&wanted.sources, wanted.folder, &wanted.names)?;
    for description in &descriptions {
        report.add(&run_one(wanted, description)?)?;
    }
    Ok(())
}

/// Runs all that are wanted and hands back what came of each.
pub(crate) fn all(wanted: &Programs) -> Result<Vec<Finished>> {
    let descriptions = description::find(&wanted.sources, wanted.folder, &wanted.names)?;
    descriptions.iter().map(|d| run_one(wanted, d)).collect()
}

/// The Debian packages of programs that were picked by lot.
pub(crate) fn packages(sources: &Path, names: &[String]) -> Result<BTreeSet<String>> {
    let descriptions = description::find(sources, Folder::Lot, names)?;
    Ok(descriptions.into_iter().flat_map(|d| d.packages).collect())
}

/// Names the programs.
pub(crate) fn list(sources: &Path) -> Result<Vec<(String, String)>> {
    let all = description::find(sources, Folder::Chosen, &[])?;
    Ok(all.into_iter().map(|d| (d.name, d.about)).collect())
}

fn run_one(wanted: &Programs, program: &Description) -> Result<Finished> {
    let began = Instant::now();
    let folder = tempfile::Builder::new().prefix(&format!("hdcr-program-{}-", program.name)).tempdir()?;
    let mut log = Vec::new();
    let outcome = match (program.missing(), &wanted.hdcr) {
        (Some(what), _) => Outcome::Skipped(format!("{what} is not installed")),
        (None, None) => Outcome::Skipped("no hdcr binary was given".to_owned()),
        (None, Some(hdcr)) => {
            let result = compare(program, hdcr, folder.path(), wanted, &mut log);
            match result {
                Ok(()) => Outcome::Passed,
                Err(error) => Outcome::Failed(format!("{error:#}")),
            }
        }
    };
    let is_kept = wanted.keep || matches!(outcome, Outcome::Failed(_));
    Ok(Finished {
        name: program.name.clone(),
        mode: "rolled-back".to_owned(),
        outcome,
        milliseconds: began.elapsed().as_millis(),
        checkpoint_milliseconds: Vec::new(),
        restore_milliseconds: Vec::new(),
        folder: is_kept.then(|| folder.keep()),
        log,
    })
}

fn compare(program: &Description, hdcr: &Path, folder: &Path, wanted: &Programs, log: &mut Vec<String>) -> Result<()> {
    let (kills, steps) = (wanted.kills, &wanted.steps);
    // Both runs see the same path, or a path in a result would be a difference.
    let place = folder.join("place");
    let undisturbed = folder.join("undisturbed");
    prepare(program, &place)?;
    let began = Instant::now();
    steps.doing("running it undisturbed")?;
    let (status, expected) = undisturbed_run(program, &place, log)?;
    steps.bar.inc(1);
    // A program that is told to end waits for that; another one must not end before its last kill.
    let ends_after = program.finish.is_empty().then(|| began.elapsed());
    fs::rename(&place, &undisturbed)?;
    prepare(program, &place)?;
    let job = Job { program, hdcr, place: &place, store: folder.join("store"), kills, ends_after, steps };
    let disturbed_status = job.run(log)?;
    ensure!(disturbed_status == status, "ended with {disturbed_status:?}, undisturbed with {status:?}");
    for (name, bytes) in expected {
        log.push(format!("{name}: {} bytes expected", bytes.len()));
        let found = fs::read(place.join(&name)).with_context(|| format!("read {name}"))?;
        ensure!(
            found == bytes,
            "{name} differs: {} bytes, undisturbed {}, first at {:?}",
            found.len(),
            bytes.len(),
            found.iter().zip(&bytes).position(|(a, b)| a != b)
        );
    }
    Ok(())
}

/// A fresh folder with the program's files; its `setup` has run.
fn prepare(program: &Description, place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    for (name, text) in &program.files {
        fs::write(place.join(name), text)?;
    }
    step(&program.setup, place, "setup")
}

type Results = Vec<(String, Vec<u8>)>;

fn undisturbed_run(program: &Description, place: &Path, log: &mut Vec<String>) -> Result<(Option<i32>, Results)> {
    let began = Instant::now();
    let mut child = program.start(place, &[])?;
    let ran = step(&program.begin, place, "begin").and_then(|()| step(&program.finish, place, "finish"));
    let ended = ran.and_then(|()| wait::end_of(&mut child, "the undisturbed program", LIMIT));
    if ended.is_err() {
        rollback::clean(&mut child)?;
    }
    let status = ended?;
    log.push(format!("undisturbed: {status}, {} ms", began.elapsed().as_millis()));
    let mut results = Vec::new();
    for name in &program.results {
        let bytes = fs::read(place.join(name)).with_context(|| format!("undisturbed run left no {name}"))?;
        ensure!(!bytes.is_empty(), "undisturbed run left an empty {name}");
        results.push((name.clone(), bytes));
    }
    Ok((status.code(), results))
}

/// A step of the trial's own, outside of the program.
fn step(script: &str, place: &Path, what: &str) -> Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let out = Command::new("bash")
        .args(["-e", "-c", script])
        .current_dir(place)
        .stdin(Stdio::null())
        .output()
        .context("start bash")?;
    ensure!(out.status.success(), "{what}: {} {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}
