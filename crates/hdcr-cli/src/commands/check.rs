//! `hdcr check`: what stands in the way of a checkpoint or a restore. Touches nothing.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Surrounding;
use super::checkpoint::{must_exist, pid, restored};
use super::restore::{descriptors, place};
use crate::asking;
use crate::busy::BUSY;
use crate::cli::CheckArgs;
use crate::failure::{Class, Failure, Obstacle, Result, told_once};
use crate::kinds::{Lazy, StdioTarget};
use crate::names;
use crate::namespace::{self, Outside};
use crate::output::{Report, counted, in_the_way};
use crate::parts;
use crate::process;
use crate::task::{CheckpointTask, Greeting, RestoreTask, Target, Who};

/// What a process is checked for.
const CHECKPOINT: &str = "checkpoint";

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
            _ => format!("{}: {} is refused, {}", self.target, self.operation, in_the_way(&self.refusals)),
        }];
        lines.extend(told_once(&self.refusals).into_iter().map(|obstacle| format!("  {obstacle}")));
        lines.extend(told_once(&self.notes).into_iter().map(|note| format!("  note: {note}")));
        lines.join("\n")
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
        Ok(Some(status)) => Ok(status.pid),
        Ok(None) => restored(at, target),
        Err(failure) if failure.code == "keeper-stuck" => Err(failure),
        Err(_) => Ok(None),
    }
}

/// Says that a target is nothing at all, whatever its user took it for.
fn is_something(at: &Surrounding<'_>, target: &OsStr) -> Result<()> {
    let manifest = place(at, target).and_then(|place| parts::manifest(&place).map(drop));
    let target = target.to_string_lossy();
    manifest.map_err(|failure| match &*failure.code {
        "no-such-checkpoint" if !target.contains('@') => Failure {
            message: format!("{target} is no process, no running job, no checkpoint, and no file or directory"),
            remedy: names::nearest(&target, at.registry().and_then(|registry| registry.names()).unwrap_or_default())
                .map(|near| format!("did you mean {near}? `hdcr ps` lists running jobs, `hdcr list` checkpoints"))
                .or(failure.remedy),
            ..failure
        },
        _ => failure,
    })
}

pub(crate) fn run(at: &Surrounding<'_>, args: &CheckArgs) -> Result<u8> {
    // A path or a number of a checkpoint names what is there or is not; a job may be about to begin.
    let target = args.target.to_string_lossy();
    let may_begin = pid(&target).is_none() && !target.contains(['@', '/']);
    let passes = |failure: &Failure| {
        (failure.class == Class::Changed && failure.code != "keeper-stuck")
            || (may_begin && failure.code == "no-such-checkpoint")
    };
    let seen = until_possible(args.wait.unwrap_or_default(), passes, || look(at, args))?;
    let (checked, status) = match seen {
        Seen::Elsewhere(status) => return Ok(status),
        Seen::Checked(checked) => {
            let status = if checked.possible { 0 } else { Class::Refused.status() };
            (checked, status)
        }
    };
    at.output.result(&checked)?;
    Ok(status)
}

/// What one look has found.
#[derive(Debug)]
enum Seen {
    Checked(Checked),
    /// It was done, and told, in other namespaces.
    Elsewhere(u8),
}

/// Looks again while something stands in the way of a checkpoint, or may pass, for so long at most; what changed under our
/// eyes is looked at a few times in any case. An image does not get better by waiting.
fn until_possible(
    limit: Duration,
    passes: impl Fn(&Failure) -> bool,
    mut look: impl FnMut() -> Result<Seen>,
) -> Result<Seen> {
    const PAUSE: Duration = Duration::from_millis(50);
    const AGAIN: usize = 3;
    let end = Instant::now() + limit;
    let mut looks = 0;
    loop {
        let seen = look();
        looks += 1;
        let again = match &seen {
            Ok(Seen::Checked(checked)) => !checked.possible && checked.operation == CHECKPOINT && Instant::now() < end,
            Ok(Seen::Elsewhere(_)) => false,
            Err(failure) => {
                let moved = failure.class == Class::Changed && failure.code != BUSY && looks < AGAIN;
                passes(failure) && (moved || Instant::now() < end)
            }
        };
        if !again {
            return seen;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The checkpoint that is not made.
fn task_of(at: &Surrounding<'_>, args: &CheckArgs, who: Who, timeout: Duration) -> Result<CheckpointTask> {
    // A checkpoint into the store can do what one into a file cannot.
    let target = Target::Store { root: at.settings.store.clone(), job: "check".to_owned() };
    let files = at.settings.files(&args.files)?;
    Ok(CheckpointTask::of_any(who, target, files, timeout, at.settings.surroundings.jobs()))
}

/// Looks once.
fn look(at: &Surrounding<'_>, args: &CheckArgs) -> Result<Seen> {
    let timeout = at.settings.checkpoint_timeout(None);
    let who = match (at.entered, living(at, &args.target.to_string_lossy(), timeout)?) {
        (Some(entered), _) => Some(Who::Tree(entered)),
        (None, Some(outer)) => match namespace::enter(outer)? {
            Some(status) => return Ok(Seen::Elsewhere(status)),
            None => Some(Who::Tree(outer)),
        },
        (None, None) => None,
    };
    if who.is_none() && at.inside.is_none() {
        is_something(at, &args.target)?;
    }
    // It is restored into a pid namespace of its own: there it has to be looked at, too.
    if who.is_none() && at.inside.is_none() && !namespace::may_choose_pids() {
        let done = namespace::outside(std::env::args_os().skip(1), &mut |_| Ok(Outside::Waits));
        return done.map(Seen::Elsewhere);
    }
    let is_kept = who.is_none_or(|who| match who {
        Who::Tree(pid) => process::is_kept(pid),
        Who::Below(_) => true,
    });
    let (operation, found) = if let Some(who) = who {
        let task = task_of(at, args, who, timeout)?;
        (CHECKPOINT, parts::check_processes(&task)?)
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
            by_gates: None,
            greeting: Greeting::by_hand(0),
        };
        // As a restore here would have them; who has none can ask all the same.
        let stdio = descriptors(&StdioTarget::Inherit).or_else(|_| descriptors(&StdioTarget::Null))?;
        ("restore", parts::check_image(&task, stdio)?)
    };
    let (refusals, mut notes, processes) = found;
    if operation == CHECKPOINT && !parts::can_watch() {
        notes.push(parts::unwatched());
    } else if operation == CHECKPOINT && !is_kept {
        notes.push(parts::unwatched_by_hand());
    }
    let possible = refusals.is_empty();
    Ok(Seen::Checked(Checked {
        target: args.target.to_string_lossy().into_owned(),
        operation,
        possible,
        processes,
        refusals,
        notes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(operation: &'static str, possible: bool) -> Seen {
        let (refusals, notes) = (Vec::new(), Vec::new());
        Seen::Checked(Checked { target: "4711".to_owned(), operation, possible, processes: 1, refusals, notes })
    }

    /// The looks that were had, and whether the last one found that it is possible.
    fn looked(limit: Duration, mut found: Vec<Result<Seen>>) -> (usize, Result<bool>) {
        let mut looks = 0;
        found.reverse();
        let passes = |failure: &Failure| failure.class == Class::Changed;
        let seen = until_possible(limit, passes, || {
            looks += 1;
            found.pop().unwrap()
        });
        (looks, seen.map(|seen| matches!(seen, Seen::Checked(checked) if checked.possible)))
    }

    #[test]
    fn what_may_pass_is_looked_at_again_for_its_time() {
        let long = Duration::from_mins(1);
        let changed = |code| Err(Failure::new(Class::Changed, code, "it moved"));
        let all =
            || vec![Ok(checked(CHECKPOINT, false)), changed(BUSY), changed("changed"), Ok(checked(CHECKPOINT, true))];
        assert_eq!(looked(long, all()), (4, Ok(true)));
        assert_eq!(looked(Duration::ZERO, all()), (1, Ok(false)));
        assert_eq!(looked(long, vec![Ok(checked("restore", false)), Ok(checked("restore", true))]), (1, Ok(false)));
        assert_eq!(looked(Duration::ZERO, vec![changed(BUSY), Ok(checked(CHECKPOINT, true))]).0, 1);
        let (looks, end) = looked(long, vec![Err(Failure::refused("not-permitted", "it is not yours"))]);
        assert_eq!((looks, end.unwrap_err().code), (1, "not-permitted".to_owned()));
    }

    #[test]
    fn what_changed_under_our_eyes_is_looked_at_again_without_being_asked() {
        let changed = || Err(Failure::new(Class::Changed, "changed", "it moved"));
        assert_eq!(looked(Duration::ZERO, vec![changed(), changed(), Ok(checked(CHECKPOINT, true))]), (3, Ok(true)));
        assert_eq!(looked(Duration::ZERO, vec![changed(), changed(), changed()]).0, 3);
    }
}
