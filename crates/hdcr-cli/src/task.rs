//! What a worker process is asked for, and what it answers.

use std::path::PathBuf;
use std::time::Duration;

use hdcr::Reason;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Obstacle, told_once};
use crate::kinds::{Keep, Lazy, PathMap, Then};
use crate::output::{Report, counted};
use crate::progress::Step;
use crate::settings::Files;
use crate::told::{Since, Touched};

/// Which processes are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Who {
    /// A process with everything below it.
    Tree(i32),
    /// Everything below a keeper but the worker.
    Below(i32),
}

/// Where an image goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Target {
    /// Into a store, as the next checkpoint of a job.
    Store {
        #[serde(with = "crate::paths")]
        root: PathBuf,
        job: String,
    },
    /// Into one file.
    File(#[serde(with = "crate::paths")] PathBuf),
    /// Into a new directory.
    Directory(#[serde(with = "crate::paths")] PathBuf),
}

/// Where an image lies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Place {
    /// In a store.
    Store {
        #[serde(with = "crate::paths")]
        root: PathBuf,
        job: String,
        number: u64,
    },
    /// In a file or a directory.
    Path(#[serde(with = "crate::paths")] PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store { job, number, .. } => write!(f, "{job}@{number}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A checkpoint to be taken.
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of the keeper to a question of the worker")]
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointTask {
    pub(crate) who: Who,
    pub(crate) target: Target,
    /// The checkpoint that this run was restored from, or made last.
    pub(crate) came_from: Option<Place>,
    pub(crate) files: Files,
    pub(crate) timeout: Duration,
    pub(crate) then: Then,
    /// Whoever started the worker watches the job: it is told when the job stands still, and tells which files the job
    /// has worked on.
    pub(crate) watched: bool,
    /// Where running jobs are known, and processes that are being checkpointed.
    #[serde(with = "crate::paths")]
    pub(crate) jobs: PathBuf,
    /// Remove what of the job is not to be kept.
    pub(crate) keep: Option<Keep>,
    /// And these.
    #[serde(default)]
    pub(crate) gives_up: Vec<u64>,
    /// What the program can be rolled back to: kept before others.
    #[serde(default)]
    pub(crate) line: Vec<u64>,
    /// Memory whose contents are left out: process, start, end.
    #[serde(default)]
    pub(crate) omitted: Vec<(i32, u64, u64)>,
    /// The program wants to be asked before it is stopped.
    #[serde(default)]
    pub(crate) asks: bool,
    /// Socket addresses at which the keeper listens to the program.
    #[serde(default)]
    pub(crate) keepers: Vec<Vec<u8>>,
    /// Somebody wants to hear how far it is.
    pub(crate) progress: bool,
    /// The worker takes the next one, too: it knows how long the program has waited in calls, and more.
    pub(crate) stays: bool,
    /// Somebody takes it from gate to gate, and at each it waits for a [`Permit`], up to so long.
    #[serde(default)]
    pub(crate) by_gates: Option<Duration>,
    /// Made on top of the one before, and holds anew only what was written in between; so soon after that one.
    pub(crate) series: Option<Duration>,
}

impl CheckpointTask {
    /// A checkpoint of a program that no keeper looks after: nobody knows what came before, or goes on from it.
    pub(crate) fn of_any(who: Who, target: Target, files: Files, timeout: Duration, jobs: PathBuf) -> Self {
        Self {
            who,
            target,
            came_from: None,
            files,
            timeout,
            then: Then::GoOn,
            watched: false,
            jobs,
            keep: None,
            gives_up: Vec::new(),
            line: Vec::new(),
            omitted: Vec::new(),
            asks: false,
            keepers: Vec::new(),
            progress: false,
            stays: false,
            by_gates: None,
            series: None,
        }
    }
}

/// A restore to be made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct RestoreTask {
    pub(crate) place: Place,
    /// Below it each job has a directory for what a roll-back of files replaces.
    #[serde(with = "crate::paths")]
    pub(crate) journals: PathBuf,
    pub(crate) map_path: Vec<PathMap>,
    /// What the job did to files since then, when it was watched.
    pub(crate) since: Option<Since>,
    pub(crate) timeout: Duration,
    /// The process that starts the worker ends when the tree runs.
    pub(crate) detach: bool,
    /// Which memory may come when the tree runs.
    #[serde(default)]
    pub(crate) lazy: Lazy,
    /// Somebody wants to hear how far it is.
    pub(crate) progress: bool,
    /// It waits before the program is let go for a [`Permit`], up to so long.
    #[serde(default)]
    pub(crate) by_gates: Option<Duration>,
    /// What the program is told of its restore.
    pub(crate) greeting: Greeting,
}

/// Where a worker waits that is taken from gate to gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Gate {
    /// The program stands still; it is read next.
    Stopped,
    /// All is read; the program is let go next.
    Read,
    /// The program is built and its files are rolled back; it is let go next.
    Built,
}

/// What a restored program is told by whoever restores it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// How often the job was brought back or begun anew, this time included.
    pub(crate) count: u64,
    pub(crate) reason: Reason,
    /// Where its keeper listens.
    pub(crate) control: Option<String>,
}

impl Greeting {
    /// Of a restore by hand: nobody keeps the program.
    pub(crate) fn by_hand(count: u64) -> Self {
        Self { count, reason: Reason::Hand, control: None }
    }
}

/// The first message to a worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    Checkpoint(CheckpointTask),
    /// Comes with three descriptors: what standard input, output and error of the program become.
    Restore(RestoreTask),
}

/// A committed checkpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Checkpointed {
    /// `NAME@NUMBER`, or the id of an image outside of a store.
    pub(crate) snapshot: String,
    /// Its number in the store.
    pub(crate) number: Option<u64>,
    /// Where it lies when not in the store, as it is shown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) path: Option<String>,
    pub(crate) processes: usize,
    /// Size of the image.
    pub(crate) bytes: u64,
    /// Of that, what it does not share with the one before.
    #[serde(default)]
    pub(crate) added: u64,
    /// Bytes of memory and of files that were read for it.
    #[serde(default)]
    pub(crate) read: u64,
    /// How long the program stood still.
    pub(crate) stopped_us: u64,
    /// And before that, so that it could be copied while it ran.
    #[serde(default)]
    pub(crate) prepared_us: u64,
    /// It holds anew only what was written since the one before.
    #[serde(default)]
    pub(crate) increment: bool,
    /// How its memory was read.
    #[serde(default)]
    pub(crate) snapshot_by: String,
    /// How long all of it took.
    pub(crate) total_us: u64,
    /// The parts of that.
    #[serde(default)]
    pub(crate) took: Vec<Took>,
    /// Processor time of the worker for it.
    #[serde(default)]
    pub(crate) worked_us: u64,
    /// Calls on the program's tasks.
    pub(crate) calls: u64,
    pub(crate) then: Then,
    /// The processes that were left stopped, by their numbers in their own pid namespace.
    #[serde(default)]
    pub(crate) left_stopped: Vec<i32>,
    /// What a user should know.
    pub(crate) notes: Vec<Obstacle>,
    /// Numbers of older checkpoints that were given up for it.
    pub(crate) removed: Vec<u64>,
}

/// One part of a checkpoint with its time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Took {
    /// In words, such as `writing`.
    pub(crate) part: String,
    pub(crate) us: u64,
}

impl Report for Checkpointed {
    fn text(&self) -> String {
        let notes = told_once(&self.notes).into_iter().map(|note| format!("\n  note: {note}"));
        std::iter::once(self.line()).chain(self.way_on()).chain(notes).collect()
    }

    fn brief(&self) -> String {
        self.line()
    }
}

impl Checkpointed {
    /// What took the time: the parts that took a tenth of it or more, the longest first.
    pub(crate) fn longest(&self) -> String {
        let all: u64 = self.took.iter().map(|took| took.us).sum();
        let mut parts: Vec<&Took> = self.took.iter().filter(|took| took.us >= all / 10).collect();
        parts.sort_by_key(|took| std::cmp::Reverse(took.us));
        let words = |took: &&Took| format!("{} {}", took.part, crate::duration::show(Duration::from_micros(took.us)));
        parts.iter().map(words).collect::<Vec<_>>().join(", ")
    }

    /// How what was left stopped is let go on.
    fn way_on(&self) -> Option<String> {
        let pids: Vec<String> = self.left_stopped.iter().map(ToString::to_string).collect();
        (!pids.is_empty()).then(|| format!("\n  `kill -CONT {}` lets it go on", pids.join(" ")))
    }

    /// Without the notes.
    pub(crate) fn line(&self) -> String {
        let time = |us| crate::duration::show(Duration::from_micros(us));
        let place = self.path.as_ref().unwrap_or(&self.snapshot);
        let then = match self.then {
            Then::GoOn => "",
            Then::Kill => ", then killed",
            Then::Stop => ", left stopped",
        };
        let mut size = crate::duration::show_size(self.bytes);
        if self.increment {
            size = format!("size {size}, new {}", crate::duration::show_size(self.added));
        }
        let before =
            if self.prepared_us == 0 { String::new() } else { format!(" (and {} before)", time(self.prepared_us)) };
        format!(
            "{place}: {}, {size}, stopped for {}{before}, {} in all{then}",
            counted(self.processes, "process", "processes"),
            time(self.stopped_us),
            time(self.total_us)
        )
    }
}

/// A restored tree.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Restored {
    /// The processes without a parent in the tree; they are children of the one that started the worker.
    pub(crate) roots: Vec<i32>,
    pub(crate) processes: usize,
    pub(crate) total_us: u64,
    /// Calls on its tasks.
    pub(crate) calls: u64,
    /// What became of files that a user should know.
    pub(crate) notes: Vec<Obstacle>,
    /// Memory of which the image has no contents: process, start, end.
    #[serde(default)]
    pub(crate) omitted: Vec<(i32, u64, u64)>,
    /// Memory is still to come: the worker says when its files are settled, and when all is there.
    #[serde(default)]
    pub(crate) filling: bool,
    /// The files that the program had worked on.
    #[serde(default)]
    pub(crate) touched: Touched,
}

/// All memory of a restored tree is there.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Filled {
    /// How long that took from the beginning of the restore.
    pub(crate) total_us: u64,
    /// How often the program had to wait for a page.
    pub(crate) faults: u64,
}

/// What a worker may do that has asked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Permit {
    /// The program is ready to be stopped.
    Granted,
    /// It does not want to be.
    Denied(Failure),
}

/// An answer of a worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// How far it is.
    Progress(Step),
    /// The program would be stopped now; the worker waits for a [`Permit`].
    Asking,
    /// It waits here for a [`Permit`].
    At(Gate),
    /// The program is about to be stopped; it goes on within the time for that.
    Halting,
    /// The program of a watched job stands still; the worker will want to be told of files.
    Frozen,
    /// The program goes on; what follows is only the writing.
    Thawed,
    Checkpointed(Checkpointed),
    /// Files are rolled back, and the program is let go next: when nothing more is heard it may have run.
    GoesNext,
    Restored(Restored),
    /// The files of a restored tree are settled; its memory is being filled.
    Settled,
    Filled(Filled),
    /// It ends when it has given its answer, which follows, and takes no other task.
    Leaving,
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_that_took_the_time_are_told_the_longest_first() {
        let took = |part: &str, us| Took { part: part.to_owned(), us };
        let parts = vec![took("looking", 100), took("reading", 2_000_000), took("writing", 5_000_000)];
        let done = Checkpointed { took: parts, ..Checkpointed::default() };
        assert_eq!(done.longest(), "writing 5.0 s, reading 2.0 s");
    }
}
