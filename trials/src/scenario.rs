//! Scenarios: a story each, told by a script of `trials/scenarios`, of what users of such tools have met.
//!
//! A script runs in an empty folder of its own. It ends with 0, with 77 when this machine lacks what it needs, or with
//! another status; its last line says why. What it leaves running is ended here.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::report::{Finished, Outcome, Report};
use crate::wait;

/// Longest time for one scenario.
const LIMIT: Duration = Duration::from_mins(2);

/// Longest time for what is left to end.
const CLEANING: Duration = Duration::from_secs(20);

/// Exit status of a scenario that this machine cannot do.
const LACKING: i32 = 77;

/// What to run.
#[derive(Debug)]
pub(crate) struct Scenarios {
    pub(crate) sources: PathBuf,
    pub(crate) hdcr: Option<PathBuf>,
    pub(crate) names: Vec<String>,
    pub(crate) keep: bool,
}

/// Runs all that are wanted, one after the other.
pub(crate) fn run_all(wanted: &Scenarios, report: &mut Report) -> Result<()> {
    let folder = fs::canonicalize(wanted.sources.join("scenarios")).context("the folder of scenarios")?;
    for (name, about) in list(&wanted.sources)? {
        if wanted.names.is_empty() || wanted.names.iter().any(|wanted| name.starts_with(wanted)) {
            report.add(&run_one(wanted, &folder, &name, &about)?)?;
        }
    }
    Ok(())
}

/// Names the scenarios, each with its first line.
pub(crate) fn list(sources: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(sources.join("scenarios")).context("list the scenarios")? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "py") && name != "scenario" {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let about = text.lines().next().unwrap_or_default().trim_matches('"').to_owned();
            ensure!(!about.is_empty(), "{} does not begin with what it is about", path.display());
            found.push((name, about));
        }
    }
    found.sort();
    Ok(found)
}

fn run_one(wanted: &Scenarios, scripts: &Path, name: &str, about: &str) -> Result<Finished> {
    let began = Instant::now();
    let folder = tempfile::Builder::new().prefix(&format!("hdcr-scenario-{name}-")).tempdir()?;
    let mut log = vec![about.to_owned()];
    let outcome = match &wanted.hdcr {
        None => Outcome::Skipped("no hdcr binary was given".to_owned()),
        Some(hdcr) => {
            let hdcr = fs::canonicalize(hdcr).context("find the hdcr binary")?;
            tell(&scripts.join(format!("{name}.py")), &hdcr, folder.path(), &mut log)?
        }
    };
    let is_kept = wanted.keep || matches!(outcome, Outcome::Failed(_));
    Ok(Finished {
        name: name.to_owned(),
        mode: "scenario".to_owned(),
        outcome,
        milliseconds: began.elapsed().as_millis(),
        checkpoint_milliseconds: Vec::new(),
        restore_milliseconds: Vec::new(),
        folder: is_kept.then(|| folder.keep()),
        log,
    })
}

fn tell(script: &Path, hdcr: &Path, folder: &Path, log: &mut Vec<String>) -> Result<Outcome> {
    let place = folder.join("place");
    fs::create_dir(&place)?;
    let out = File::create(folder.join("log"))?;
    let mut child = Command::new("python3")
        .arg(script)
        .env("HDCR", hdcr)
        .env("HDCR_STORE", folder.join("store"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(&place)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .context("start python3")?;
    let ended = end_of(&mut child);
    clean()?;
    let text = fs::read(folder.join("log"))?;
    log.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
    let last = log.last().cloned().unwrap_or_default();
    Ok(match ended? {
        Some(0) => Outcome::Passed,
        Some(LACKING) => Outcome::Skipped(last),
        _ => Outcome::Failed(last),
    })
}

/// Waits for the end of a script, which is asked to end at the deadline: it then says what it waited for.
fn end_of(child: &mut Child) -> Result<Option<i32>> {
    if let Ok(status) = wait::until("the scenario", LIMIT, || Ok(child.try_wait()?)) {
        return Ok(status.code());
    }
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM).context("ask a scenario to end")?;
    }
    Ok(wait::end_of(child, "the scenario that was asked to end", CLEANING)?.code())
}

/// Ends what a scenario has left: orphans come to the runner.
fn clean() -> Result<()> {
    let this = rustix::process::getpid().as_raw_nonzero();
    let children = format!("/proc/{this}/task/{this}/children");
    wait::until("the end of what a scenario has left", CLEANING, || {
        while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
        let left = fs::read_to_string(&children).context("look for what is left")?;
        for word in left.split_whitespace() {
            let Some(pid) = word.parse().ok().and_then(Pid::from_raw) else { bail!("a pid was expected: {word}") };
            kill_process(pid, Signal::KILL).ok();
        }
        Ok(left.trim().is_empty().then_some(()))
    })
}
