//! `hdcr check`: what stands in the way of a checkpoint or a restore. Touches nothing.

use std::time::Duration;

use serde::Serialize;

use super::Surrounding;
use super::checkpoint::{must_exist, pid};
use super::restore::{descriptors, place};
use crate::asking;
use crate::cli::CheckArgs;
use crate::failure::{Class, Failure, Obstacle, Result, told_once};
use crate::kinds::{Lazy, StdioTarget, Then};
use crate::namespace::{self, Outside};
use crate::output::{Report, counted, in_the_way};
use crate::parts;
use crate::task::{CheckpointTask, Greeting, RestoreTask, Target, Who};

/// What was found.
#[derive(Debug, Serialize)]
struct Checked {
    target: String,
    /// `checkpoint` or `restore`.
    operation: &'static str,
    possible: bool,
    processes: usize,
    refusals: Vec<Obstacle>,
    notes: Vec<Obstacle>,
}

impl Report for Checked {
    fn text(&self) -> String {
        let processes = counted(self.processes, "process", "processes");
        let mut lines = vec![match self.refusals.len() {
            0 => format!("{}: {} of {processes} is possible", self.target, self.operation),
            count => format!("{}: {} is refused, {}", self.target, self.operation, in_the_way(count)),
        }];
        lines.extend(told_once(&self.refusals).into_iter().map(|obstacle| format!("  {obstacle}")));
        lines.extend(told_once(&self.notes).into_iter().map(|note| format!("  note: {note}")));
        lines.join("\n")
    }
}

/// What follows when nobody hears what a program does to files.
fn unwatched() -> Obstacle {
    Obstacle {
        code: "files-unwatched".to_owned(),
        object: "files".to_owned(),
        pid: None,
        fd: None,
        path: None,
        cause: "this user may not watch what the program does to files (fanotify takes CAP_SYS_ADMIN): only files that are \
                open at a checkpoint, and those of --files, are rolled back"
            .to_owned(),
        remedy: "name with --files what the program opens and closes as it goes, or run it as root".to_owned(),
    }
}

/// The process that is meant, as it is numbered here: by its number, or by the name of a job that runs.
fn living(at: &Surrounding<'_>, target: &str, timeout: Duration) -> Result<Option<i32>> {
    if at.entered.is_some() {
        return Ok(None);
    }
    if let Some(pid) = pid(target) {
        must_exist(pid)?;
        return Ok(Some(pid));
    }
    // A name with another character than those of a job is none.
    match asking::status(&at.registry()?, target, timeout) {
        Ok(status) => Ok(status.and_then(|status| status.pid)),
        Err(failure) if failure.code == "keeper-stuck" => Err(failure),
        Err(_) => Ok(None),
    }
}

/// Says that a target is nothing at all, whatever its user took it for.
fn is_something(at: &Surrounding<'_>, target: &str) -> Result<()> {
    let manifest = place(at, target).and_then(|place| parts::manifest(&place).map(drop));
    manifest.map_err(|failure| match &*failure.code {
        "no-such-checkpoint" if !target.contains('@') => Failure {
            message: format!("{target} is no process, no running job, no checkpoint, and no file or directory"),
            ..failure
        },
        _ => failure,
    })
}

pub(crate) fn run(at: &Surrounding<'_>, args: &CheckArgs) -> Result<u8> {
    let timeout = at.settings.checkpoint_timeout(None);
    let who = match (at.entered, living(at, &args.target, timeout)?) {
        (Some(entered), _) => Some(Who::Tree(entered)),
        (None, Some(outer)) => match namespace::enter(outer)? {
            Some(status) => return Ok(status),
            None => Some(Who::Tree(outer)),
        },
        (None, None) => None,
    };
    if who.is_none() && at.inside.is_none() {
        is_something(at, &args.target)?;
    }
    // It is restored into a pid namespace of its own: there it has to be looked at, too.
    if who.is_none() && at.inside.is_none() && !namespace::may_choose_pids() {
        return namespace::outside(std::env::args_os().skip(1), &mut |_| Ok(Outside::Waits));
    }
    let (operation, found) = if let Some(who) = who {
        let target = Target::File(std::path::PathBuf::new());
        let files = at.settings.files(&args.files)?;
        let task = CheckpointTask {
            who,
            target,
            came_from: None,
            files,
            timeout,
            then: Then::GoOn,
            watched: false,
            jobs: at.settings.surroundings.jobs(),
            keep: None,
            line: Vec::new(),
            omitted: Vec::new(),
            asks: false,
            keepers: Vec::new(),
            progress: false,
            stays: false,
            series: None,
        };
        ("checkpoint", parts::check_processes(&task)?)
    } else {
        let map_path = args.map_path.clone();
        let task = RestoreTask {
            place: place(at, &args.target)?,
            journals: at.settings.journals(),
            map_path,
            since: None,
            timeout,
            detach: false,
            lazy: Lazy::default(),
            progress: false,
            greeting: Greeting::by_hand(0),
        };
        ("restore", parts::check_image(&task, descriptors(&StdioTarget::Null)?)?)
    };
    let (refusals, mut notes, processes) = found;
    if operation == "checkpoint" && !parts::can_watch() {
        notes.push(unwatched());
    }
    let possible = refusals.is_empty();
    at.output.result(&Checked { target: args.target.clone(), operation, possible, processes, refusals, notes })?;
    Ok(if possible { 0 } else { Class::Refused.status() })
}
