//! A table in plain parts, for whoever writes it down and makes it again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::state::State;
use super::{Before, Identity, Kind, Mark, Now, Table, Then};

/// All that is known since a checkpoint, but for lengths of files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Past {
    /// The number of the checkpoint.
    pub number: u64,
    /// When it was taken, from the epoch.
    pub at: Duration,
    /// Some of what happened is not known.
    pub incomplete: bool,
    /// What was under names then.
    pub before: Vec<(PathBuf, Before)>,
    /// What is under names now.
    pub now: Vec<(PathBuf, Now)>,
    /// Names at the checkpoint of what was written.
    pub written: Vec<PathBuf>,
    /// Names at the checkpoint of what is gone.
    pub lost: Vec<(PathBuf, Kind)>,
    /// Files that were not made since, but have got names: how many.
    pub further: Vec<(Identity, u64)>,
    /// Those that were written under such names, and one of these.
    pub relinked: Vec<(PathBuf, Identity)>,
}

impl Table {
    /// Its checkpoints, the first first; each is copied when it is asked for.
    pub fn past(&self) -> impl DoubleEndedIterator<Item = Past> {
        self.marks.iter().map(|mark| mark.state.past(mark.sequence))
    }

    /// The files that the job has removed last.
    pub fn gone(&self) -> Vec<PathBuf> {
        self.known.gone().map(Path::to_owned).collect()
    }

    /// A table that says the same of these checkpoints as the one whose parts they are, and can be told what happened since;
    /// it is not for going back. `files`: those that the job has worked on, the latest first; `gone`: those that it has removed
    /// last.
    pub fn of(past: Vec<Past>, files: Vec<PathBuf>, gone: Vec<PathBuf>) -> Self {
        let mut table = Self::default();
        for past in past {
            let sequence = past.number;
            let state = Arc::new(State::of(past));
            table.marks.push(Mark { sequence, state, before: Vec::new(), then: Then::default() });
        }
        for file in gone {
            table.count += 1;
            table.known.worked_on(&file, false, table.count, None);
        }
        table.knows_too(files);
        table
    }
}
