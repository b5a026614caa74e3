//! The files that a job has worked on and that are there: now, and as it was at each mark.
//!
//! What is gone is forgotten, so that a program may make and remove as many files as it likes. What was known at a mark is
//! kept as the difference: nothing is copied when a mark is made.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use super::state;

/// So many directories are known at most, and so many of them stay when there are more.
const DIRECTORIES: usize = 1024;
const STAY: usize = 128;
/// So many names of what is gone are known at most, the latest: more may be told of them when they are closed.
const GONE: usize = 4096;

/// Files by their names: when each was worked on last.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    now: BTreeMap<PathBuf, u64>,
    /// Directories in which files were worked on, and when: the latest ones.
    directories: BTreeMap<PathBuf, u64>,
    /// The files that have gone last, and when.
    gone: BTreeMap<PathBuf, u64>,
    gone_in_order: VecDeque<(u64, PathBuf)>,
}

/// What was known at a mark of the names that have changed since, up to the next mark.
#[derive(Clone, Debug, Default)]
pub(super) struct Then(BTreeMap<PathBuf, Option<u64>>);

impl Then {
    /// A name is about to change.
    fn note(&mut self, path: &Path, old: Option<u64>, now: Option<u64>) {
        match self.0.entry(path.to_owned()) {
            Entry::Vacant(entry) if old != now => drop(entry.insert(old)),
            // As it was: nothing is to be said of it.
            Entry::Occupied(entry) if *entry.get() == now => drop(entry.remove()),
            Entry::Vacant(_) | Entry::Occupied(_) => {}
        }
    }

    /// The mark after this one is forgotten; `later` are those after that.
    pub(super) fn join(&mut self, gone: Self, later: &[&Self], known: &Known) {
        for (path, old) in gone.0 {
            let after = later.iter().find_map(|then| then.0.get(&path)).copied();
            let after = after.unwrap_or_else(|| known.now.get(&path).copied());
            match self.0.entry(path) {
                Entry::Vacant(entry) if old != after => drop(entry.insert(old)),
                Entry::Occupied(entry) if *entry.get() == after => drop(entry.remove()),
                Entry::Vacant(_) | Entry::Occupied(_) => {}
            }
        }
    }
}

impl Known {
    fn set(&mut self, path: &Path, now: Option<u64>, then: Option<&mut Then>) {
        let old = match (now, self.now.get_mut(path)) {
            (Some(now), Some(there)) => Some(std::mem::replace(there, now)),
            (Some(now), None) => self.now.insert(path.to_owned(), now),
            (None, _) => self.now.remove(path),
        };
        if now.is_some() {
            self.gone.remove(path);
        }
        if let Some(then) = then {
            then.note(path, old, now);
        }
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        self.now.contains_key(path)
    }

    /// The files that have gone last, the latest last.
    pub(super) fn gone(&self) -> impl Iterator<Item = &Path> {
        let counts = |(count, path): &&(u64, PathBuf)| self.gone.get(path) == Some(count);
        self.gone_in_order.iter().filter(counts).map(|(_, path)| path.as_path())
    }

    /// Whether a file went a short while ago, and nothing was told of its name since.
    pub(super) fn is_gone(&self, path: &Path) -> bool {
        self.gone.contains_key(path)
    }

    fn goes(&mut self, path: &Path, count: u64) {
        self.gone.insert(path.to_owned(), count);
        self.gone_in_order.push_back((count, path.to_owned()));
        while self.gone_in_order.len() > GONE
            && let Some((count, path)) = self.gone_in_order.pop_front()
        {
            if self.gone.get(&path) == Some(&count) {
                self.gone.remove(&path);
            }
        }
    }

    /// A file was worked on; whether it is there now.
    pub(super) fn worked_on(&mut self, path: &Path, there: bool, count: u64, then: Option<&mut Then>) {
        self.set(path, there.then_some(count), then);
        if !there {
            self.goes(path, count);
        }
        let Some(directory) = path.parent() else { return };
        if let Some(last) = self.directories.get_mut(directory) {
            *last = count;
            return;
        }
        self.directories.insert(directory.to_owned(), count);
        if self.directories.len() > DIRECTORIES {
            let latest = self.directories(STAY);
            self.directories.retain(|directory, _| latest.contains(directory));
        }
    }

    /// A directory was renamed.
    pub(super) fn moved(&mut self, from: &Path, to: &Path, mut then: Option<&mut Then>) {
        for (name, count) in self.take_below(from, then.as_deref_mut()) {
            self.set(&state::carried(&name, from, to), Some(count), then.as_deref_mut());
        }
        let mut directories = state::take_below(&mut self.directories, from);
        directories.extend(self.directories.remove_entry(from));
        self.directories.extend(directories.into_iter().map(|(name, count)| (state::carried(&name, from, to), count)));
    }

    /// A directory was removed, with all that is in it.
    pub(super) fn moved_away(&mut self, directory: &Path, then: Option<&mut Then>) {
        drop(self.take_below(directory, then));
        drop(state::take_below(&mut self.directories, directory));
        self.directories.remove(directory);
    }

    /// Two names were exchanged, with what is below them.
    pub(super) fn exchanged(&mut self, one: &Path, other: &Path, mut then: Option<&mut Then>) {
        let of_one = self.take_below(one, then.as_deref_mut());
        let of_other = self.take_below(other, then.as_deref_mut());
        for (name, count) in of_one {
            self.set(&state::carried(&name, one, other), Some(count), then.as_deref_mut());
        }
        for (name, count) in of_other {
            self.set(&state::carried(&name, other, one), Some(count), then.as_deref_mut());
        }
    }

    fn take_below(&mut self, directory: &Path, then: Option<&mut Then>) -> Vec<(PathBuf, u64)> {
        let taken = state::take_below(&mut self.now, directory);
        if let Some(then) = then {
            for (name, count) in &taken {
                then.note(name, Some(*count), None);
            }
        }
        taken
    }

    /// As it was at a mark; those of later marks have gone back already.
    pub(super) fn go_back(&mut self, then: Then) {
        for (path, old) in then.0 {
            self.set(&path, old, None);
        }
    }

    /// All files, the latest first.
    pub(super) fn latest(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> = self.now.iter().collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        all.into_iter().map(|(path, _)| path.clone()).collect()
    }

    /// The latest directories, at most so many.
    pub(super) fn directories(&self, most: usize) -> BTreeSet<PathBuf> {
        let mut sorted: Vec<_> = self.directories.iter().collect();
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        sorted.into_iter().take(most).map(|(path, _)| path.to_owned()).collect()
    }

    /// How many names are remembered.
    #[cfg(test)]
    pub(super) fn names(&self) -> usize {
        self.now.len() + self.directories.len()
    }
}

#[cfg(test)]
impl Then {
    pub(super) fn names(&self) -> usize {
        self.0.len()
    }
}
