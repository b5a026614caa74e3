//! `hdcr ps`: the jobs of this user that run now.

use std::time::Duration;

use serde::Serialize;

use super::Surrounding;
use super::list::command;
use crate::asking;
use crate::by_hand;
use crate::duration;
use crate::failure::{Failure, Result};
use crate::orphan::{self, Orphan};
use crate::output::Report;
use crate::paths::shown;
use crate::process;
use crate::registry::Status;
use crate::table::{Cut, Table};

/// All that answered.
#[derive(Debug, Serialize)]
struct Found {
    jobs: Vec<Status>,
    /// Jobs whose keeper lives and does not answer.
    silent: Vec<Silent>,
    /// Programs whose keeper is dead.
    orphans: Vec<Orphan>,
    /// Programs of this store that were restored by hand.
    by_hand: Vec<Restored>,
}

/// A program that has no keeper, and never had one.
#[derive(Debug, Serialize)]
struct Restored {
    name: String,
    pid: i32,
    /// The checkpoint it came from.
    number: u64,
    command: String,
    store: std::path::PathBuf,
}

/// A keeper that does not answer, and why.
#[derive(Debug, Serialize)]
struct Silent {
    name: String,
    error: Failure,
}

impl Found {
    fn row(job: &Status) -> Vec<String> {
        let newest = match (job.newest, job.newest_age_s) {
            (Some(number), Some(age)) => format!("@{number}, {} ago", duration::show(Duration::from_secs(age))),
            (Some(number), None) => format!("@{number}"),
            (None, _) => "none".to_owned(),
        };
        let phase = if job.phase == "running" && is_stopped(job.pid) { STOPPED } else { &job.phase };
        let state = format!("{phase}{}", if job.trouble.is_some() { "!" } else { "" });
        let every = duration::show(Duration::try_from_secs_f64(job.every_s).unwrap_or_default());
        vec![
            job.name.clone(),
            job.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            state,
            duration::show(Duration::from_secs(job.ran_s)),
            newest,
            match &job.algorithm {
                Some(algorithm) => format!("{every} ({})", short(algorithm)),
                None if job.every_auto => format!("{every} (auto)"),
                None => every,
            },
            format!("{}/{}", job.restarts, job.restarts_allowed),
            job.command.clone(),
        ]
    }

    fn restored_row(restored: &Restored) -> Vec<String> {
        let none = "-".to_owned();
        let (name, pid, from) = (restored.name.clone(), restored.pid.to_string(), format!("from @{}", restored.number));
        let state = if is_stopped(Some(restored.pid)) { "by hand, stopped" } else { "by hand" };
        vec![name, pid, state.to_owned(), none.clone(), from, none.clone(), none, restored.command.clone()]
    }

    fn orphan_row(orphan: &Orphan) -> Vec<String> {
        let none = "-".to_owned();
        let (name, pid, command) = (orphan.name.clone(), orphan.pid.to_string(), orphan.command.clone());
        vec![name, pid, "orphan!".to_owned(), none.clone(), none.clone(), none.clone(), none, command]
    }
}

impl Found {
    fn lines(&self, width: Option<usize>) -> String {
        let kept = self.jobs.iter().map(Self::row).chain(self.orphans.iter().map(Self::orphan_row));
        let rows: Vec<Vec<String>> = kept.chain(self.by_hand.iter().map(Self::restored_row)).collect();
        let mut lines = Vec::new();
        if rows.is_empty() && self.silent.is_empty() {
            lines.push("no jobs are running".to_owned());
        } else if !rows.is_empty() {
            let head = ["NAME", "PID", "STATE", "RAN", "CHECKPOINT", "EVERY", "RESTARTS", "COMMAND"];
            let table = Table::new(&head, rows).cut(&[(7, Cut::End), (0, Cut::End)]).spare(&[6, 5, 3]);
            lines.push(table.text(width));
        }
        for job in &self.jobs {
            let trouble = job.trouble.as_ref();
            lines.extend(trouble.map(|trouble| format!("{}: the last checkpoint failed: {trouble}", job.name)));
            if let (Some(algorithm), Some(decided)) = (&job.algorithm, &job.decided) {
                lines.push(format!("{}: algorithm {algorithm}: {decided}", job.name));
            }
            lines.extend(job.slow.as_ref().map(|slow| format!("{}: {slow}", job.name)));
            lines.extend(job.at_work.as_ref().map(|doing| format!("{}: {doing}", job.name)));
        }
        lines.extend(self.silent.iter().map(|silent| silent.error.to_string()));
        lines.extend(self.orphans.iter().map(|orphan| orphan.refusal().to_string()));
        lines.join("\n")
    }
}

impl Report for Found {
    fn text(&self) -> String {
        self.lines(None)
    }

    fn fitted(&self, width: usize) -> String {
        self.lines(Some(width))
    }
}

/// What an algorithm is called in a narrow column: of a command, its first word without its folder.
fn short(algorithm: &str) -> &str {
    let word = algorithm.split_whitespace().next().unwrap_or(algorithm);
    word.rsplit('/').next().unwrap_or(word)
}

/// The state of a job whose program does not run on by itself (SIGSTOP, `checkpoint --stop`).
const STOPPED: &str = "stopped";

fn is_stopped(pid: Option<i32>) -> bool {
    pid.and_then(process::stat).is_some_and(|stat| stat.state == b'T')
}

fn restored(store: &std::path::Path, name: &hdcr_image::JobName, program: &by_hand::ByHand) -> Restored {
    let words = std::fs::read(format!("/proc/{}/cmdline", program.pid)).unwrap_or_default();
    let words: Vec<Vec<u8>> =
        words.strip_suffix(b"\0").unwrap_or(&words).split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    Restored {
        name: name.to_string(),
        pid: program.pid,
        number: program.number,
        command: command(&words),
        store: shown(store),
    }
}

pub(crate) fn run(at: &Surrounding<'_>) -> Result<u8> {
    let registry = at.registry()?;
    let mut found = Found { jobs: Vec::new(), silent: Vec::new(), orphans: Vec::new(), by_hand: Vec::new() };
    for name in registry.names()? {
        match asking::status(&registry, &name, Duration::from_secs(5)) {
            Ok(status) => found.jobs.extend(status.map(|job| Status { store: shown(&job.store), ..job })),
            Err(error) => found.silent.push(Silent { name, error }),
        }
    }
    found.orphans = orphan::all(&registry)?;
    found.orphans.iter_mut().for_each(|orphan| orphan.store = shown(&orphan.store));
    let store = &at.settings.store;
    found.by_hand = by_hand::all(store).into_iter().map(|(name, program)| restored(store, &name, &program)).collect();
    at.output.result(&found)?;
    Ok(0)
}
