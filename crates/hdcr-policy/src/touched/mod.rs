//! Which files a job has created, changed, renamed or removed since each of its checkpoints, and what a rollback has to
//! undo of it.
//!
//! Told in the order in which things happened ([`Table::tell`]), asked by the number of a checkpoint ([`Table::since`]).
//! Files are known by the names that they had at the checkpoint: a file that was renamed since is an old one at another
//! place, a file that was made since is a new one wherever it is. What somebody else does to one of these names is told
//! too, and ends what may be done about it.

mod known;
mod past;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use known::{Known, Then};
pub use past::Past;
use state::State;
pub use state::{Before, Now};

/// What identifies a file within its file system, in the bytes of the file system's own.
pub type Identity = Vec<u8>;

/// A file or a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A file, or anything else that is no directory.
    File,
    /// A directory.
    Directory,
}

/// Whether a rename has replaced something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replaced {
    /// There was something.
    Yes,
    /// There was nothing.
    No,
    /// Not known.
    Unknown,
}

/// What a look at a file shows. Times are counted from the epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// Its length.
    pub size: u64,
    /// When its contents were changed last, as a program may set it.
    pub modified: Duration,
    /// When anything of it was changed last, as only the kernel sets it.
    pub changed: Duration,
}

/// Something that has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The job has made it.
    Created(PathBuf, Kind, Identity),
    /// The job has given a file that was there already a further name, or one that had none its first.
    Linked(PathBuf, Identity),
    /// The job had it open for writing and closed it; the look is from then, if it was still there.
    Written(PathBuf, Option<Look>),
    /// The job has removed the name.
    Removed(PathBuf, Kind),
    /// The job has renamed it.
    Renamed {
        /// The old name.
        from: PathBuf,
        /// The new name.
        to: PathBuf,
        /// What it is.
        kind: Kind,
        /// Whether there was something under the new name.
        replaced: Replaced,
        /// The file that was renamed.
        identity: Identity,
    },
    /// The job has exchanged two (`RENAME_EXCHANGE`): each side is as it was before.
    Exchanged(Side, Side),
    /// It was looked at; nothing has happened.
    Seen(PathBuf, Look),
    /// Somebody else has made, written, removed or renamed it.
    Foreign(PathBuf),
    /// Nobody knows who has.
    Unsure(PathBuf),
    /// Somebody else has made something go, and there is nothing there now.
    ForeignGone(PathBuf),
    /// Events were lost.
    Lost,
}

/// What was under a name before it was exchanged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    /// The name.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Which file it is.
    pub identity: Identity,
}

/// A file that is at another place than at the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Where it is.
    pub at: PathBuf,
    /// Where it was.
    pub home: PathBuf,
    /// Which file it is.
    pub identity: Identity,
}

/// A file that did not exist at the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct New {
    /// Where it is.
    pub at: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Which file it is.
    pub identity: Identity,
    /// The name is new; the file may have been there at the checkpoint, under another one.
    pub further: bool,
}

/// The length of a file at the checkpoint, as it was seen before the first write since.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Length {
    /// The name at the checkpoint.
    pub path: PathBuf,
    /// The length.
    pub size: u64,
    /// When it was changed last.
    pub modified: Duration,
}

/// Why nothing can be done about a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Doubt {
    /// Somebody else has worked on it too.
    Foreign,
    /// Renamed to this name; whether it replaced something is not known.
    Replaced,
}

/// What is different from a checkpoint because of the job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Some of what happened is not known.
    pub incomplete: bool,
    /// To be moved aside, what lies in a new directory together with that directory; outer ones last.
    pub new: Vec<New>,
    /// To be moved back.
    pub moved: Vec<Moved>,
    /// Directories that were removed, outer ones first.
    pub directories: Vec<PathBuf>,
    /// Files that were removed or replaced: their names at the checkpoint.
    pub lost: Vec<PathBuf>,
    /// Files that were written: their names at the checkpoint.
    pub written: Vec<PathBuf>,
    /// Files that may have been there at the checkpoint, and were written under names that they have got since: one of these.
    pub relinked: Vec<(PathBuf, Identity)>,
    /// What is known of the length of the written ones.
    pub lengths: Vec<Length>,
    /// What is left alone and has to be named.
    pub doubtful: Vec<(PathBuf, Doubt)>,
}

/// What was there when a checkpoint was taken. It is taken while the program stands still: nothing that there may be much of
/// is copied then.
#[derive(Clone, Debug)]
struct Mark {
    sequence: u64,
    state: Arc<State>,
    /// The marks before this one, as they were at this one.
    before: Vec<(u64, Arc<State>)>,
    then: Then,
}

/// What a job has done to files since its checkpoints.
#[derive(Clone, Debug, Default)]
pub struct Table {
    marks: Vec<Mark>,
    known: Known,
    count: u64,
}

impl Table {
    /// Begins to count from a checkpoint taken at a time.
    pub fn mark(&mut self, sequence: u64, at: Duration) {
        self.forget(|mark| mark.sequence == sequence);
        let before = self.marks.iter().map(|mark| (mark.sequence, Arc::clone(&mark.state))).collect();
        self.marks.push(Mark { sequence, state: Arc::new(State::new(at)), before, then: Then::default() });
    }

    /// Forgets marks; what was known at them is a part of what was known at the one before.
    fn forget(&mut self, goes: impl Fn(&Mark) -> bool) {
        for number in
            (0..self.marks.len()).rev().filter(|number| self.marks.get(*number).is_some_and(&goes)).collect::<Vec<_>>()
        {
            let gone = self.marks.remove(number);
            let (older, later) = self.marks.split_at_mut(number);
            if let Some(older) = older.last_mut() {
                let later: Vec<&Then> = later.iter().map(|mark| &mark.then).collect();
                older.then.join(gone.then, &later, &self.known);
            }
        }
    }

    /// Gives a mark another number: a checkpoint gets its own when it is complete.
    pub fn rename_mark(&mut self, from: u64, to: u64) {
        if from != to {
            self.forget(|mark| mark.sequence == to);
        }
        for mark in self.marks.iter_mut().filter(|mark| mark.sequence == from) {
            mark.sequence = to;
        }
    }

    /// The first of the checkpoints from which it counts.
    pub fn first(&self) -> Option<u64> {
        self.marks.first().map(|mark| mark.sequence)
    }

    /// When it was last told to count.
    pub fn marked(&self) -> Option<Duration> {
        self.marks.last().map(|mark| mark.state.at())
    }

    /// All checkpoints from which it counts, the first first.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.marks.iter().map(|mark| mark.sequence)
    }

    /// Forgets the checkpoints that are not in the list.
    pub fn keep(&mut self, sequences: &[u64]) {
        self.forget(|mark| !sequences.contains(&mark.sequence));
    }

    /// Tells what happened.
    pub fn tell(&mut self, event: &Event) {
        let event = self.informed(event);
        for mark in &mut self.marks {
            Arc::make_mut(&mut mark.state).tell(&event);
        }
        self.count += 1;
        match &event {
            Event::Created(path, Kind::File, _) | Event::Linked(path, _) => self.note(path, true),
            // One that cannot be seen under its name may lie in a directory that was renamed by then, of which is still to
            // be heard; so is of its removal.
            Event::Written(path, look) => {
                let there = look.is_some() || !self.known.is_gone(path);
                self.note(path, there);
            }
            Event::Removed(path, Kind::File) => self.note(path, false),
            Event::Renamed { from, to, kind: Kind::File, .. } => {
                self.note(from, false);
                self.note(to, true);
            }
            Event::Renamed { from, to, kind: Kind::Directory, .. } => {
                self.known.moved(from, to, self.marks.last_mut().map(|mark| &mut mark.then));
            }
            Event::Exchanged(one, other) => self.exchange_known(one, other),
            Event::Removed(path, Kind::Directory) => {
                self.known.moved_away(path, self.marks.last_mut().map(|mark| &mut mark.then));
            }
            Event::Created(_, Kind::Directory, _)
            | Event::Seen(..)
            | Event::Foreign(_)
            | Event::ForeignGone(_)
            | Event::Unsure(_)
            | Event::Lost => {}
        }
    }

    /// Adds what is known of the target of a rename. Of a process with several threads it may be told that a rename has
    /// replaced nothing, because something else came between the two.
    fn informed(&self, event: &Event) -> Event {
        let mut event = event.clone();
        if let Event::Renamed { to, replaced: replaced @ (Replaced::Unknown | Replaced::No), .. } = &mut event
            && self.known.has(to)
        {
            *replaced = Replaced::Yes;
        }
        event
    }

    fn note(&mut self, path: &Path, there: bool) {
        let then = self.marks.last_mut().map(|mark| &mut mark.then);
        self.known.worked_on(path, there, self.count, then);
    }

    fn exchange_known(&mut self, one: &Side, other: &Side) {
        self.known.exchanged(&one.path, &other.path, self.marks.last_mut().map(|mark| &mut mark.then));
        for (side, to) in [(one, &other.path), (other, &one.path)] {
            self.note(to, side.kind == Kind::File);
        }
    }

    /// Every file that the job has worked on and that is there, the latest first.
    pub fn touched(&self) -> Vec<PathBuf> {
        self.known.latest()
    }

    /// The job has worked on these files too, before it was counted from any checkpoint; the latest first.
    pub fn knows_too(&mut self, files: Vec<PathBuf>) {
        for file in files.into_iter().rev() {
            if !self.known.has(&file) {
                self.count += 1;
                self.known.worked_on(&file, true, self.count, None);
            }
        }
    }

    /// The directories that the job works in: the latest ones, at most so many.
    pub fn directories(&self, most: usize) -> BTreeSet<PathBuf> {
        self.known.directories(most)
    }

    /// Whether anything is known about a name, so that what others do to it matters.
    pub fn knows(&self, path: &Path) -> bool {
        self.known.has(path) || self.marks.iter().any(|mark| mark.state.knows(path))
    }

    /// What is different from a checkpoint; `None`: it was never marked, or is forgotten.
    pub fn since(&self, sequence: u64) -> Option<Changes> {
        self.marks.iter().find(|mark| mark.sequence == sequence).map(|mark| mark.state.changes())
    }

    /// A roll-back has made files and directories anew that were gone: for older checkpoints each is what it was, but another
    /// one, also under the names that it had in between.
    pub fn placed(&mut self, made: &[(PathBuf, Identity)]) {
        let mut instead: BTreeMap<Identity, Identity> = BTreeMap::new();
        for mark in &mut self.marks {
            for (path, identity) in made.iter().filter(|(path, _)| mark.state.has(path)).collect::<Vec<_>>() {
                let old = Arc::make_mut(&mut mark.state).placed(path, identity);
                instead.extend(old.filter(|old| !old.is_empty()).map(|old| (old, identity.clone())));
            }
        }
        // The old one lives on where it has another name.
        for mark in &self.marks {
            mark.state.identities().for_each(|identity| drop(instead.remove(identity)));
        }
        let earlier = self.marks.iter_mut().flat_map(|mark| &mut mark.before);
        for (_, state) in earlier.filter(|(_, state)| state.identities().any(|identity| instead.contains_key(identity)))
        {
            Arc::make_mut(state).replaced(&instead);
        }
    }

    /// Goes back to how it was at a checkpoint, as its files have done.
    pub fn roll_back(&mut self, sequence: u64) {
        let Some(at) = self.marks.iter().position(|mark| mark.sequence == sequence) else { return };
        while let Some(mut mark) = self.marks.pop() {
            self.known.go_back(std::mem::take(&mut mark.then));
            if self.marks.len() > at {
                continue;
            }
            for now in &mut self.marks {
                if let Some((_, old)) = mark.before.iter().find(|(sequence, _)| *sequence == now.sequence) {
                    now.state = Arc::clone(old);
                }
            }
            mark.state = Arc::new(State::new(mark.state.at()));
            self.marks.push(mark);
            return;
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
