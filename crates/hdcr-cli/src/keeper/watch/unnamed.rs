//! Whether a job writes in many files that a checkpoint did not know of: said once, before a crash shows it.
//!
//! An image holds what a job has open or has worked on before. A file that was there already, and is written first after the
//! checkpoint, cannot go back to what it held: a database in such files would be spoiled by a roll-back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::Keeper;
use crate::failure::Obstacle;

/// So many files are worth a word.
const MANY: usize = 8;
/// What was changed is gone through so often at most.
const PAUSE: Duration = Duration::from_secs(2);

/// What the last checkpoints knew of.
#[derive(Debug, Default)]
pub(crate) struct Unnamed {
    told: bool,
    /// The files that the job had worked on when it stood still.
    marked: Vec<PathBuf>,
    /// The same of the last checkpoint that is complete, and its number.
    last: Option<(u64, Vec<PathBuf>)>,
    looked: Option<Instant>,
}

impl Unnamed {
    /// A checkpoint is being taken that knows these files.
    pub(in crate::keeper) fn marked(&mut self, files: Vec<PathBuf>) {
        if !self.told {
            self.marked = files;
        }
    }
}

impl Keeper {
    /// A checkpoint is complete: looks for what the one before it did not know of.
    pub(in crate::keeper) fn tell_unnamed(&mut self, number: u64) {
        if self.unnamed.told {
            return;
        }
        let marked = std::mem::take(&mut self.unnamed.marked);
        let Some((before, known)) = self.unnamed.last.replace((number, marked)) else { return };
        let now = Instant::now();
        if self.unnamed.looked.is_some_and(|looked| now.duration_since(looked) < PAUSE) {
            return;
        }
        self.unnamed.looked = Some(now);
        let Some(changes) = self.watch.as_ref().and_then(|watch| watch.since(before)) else { return };
        let Some((directory, count)) = unnamed(&changes.written, known, &self.plan.files.always) else { return };
        self.unnamed = Unnamed { told: true, ..Unnamed::default() };
        let cause = format!(
            "the program has written in {count} files of it that checkpoints did not know of before: a roll-back to one from \
             before that could not bring back what was in them"
        );
        self.tell_notes(&[Obstacle {
            code: "files-unnamed".to_owned(),
            object: "directory".to_owned(),
            pid: None,
            fd: None,
            path: Some(directory.display().to_string()),
            cause,
            remedy: "name it with --files, or the directory above it that holds all of them".to_owned(),
        }]);
    }
}

/// Where many files were written that were not known, and how many.
fn unnamed(written: &[PathBuf], known: Vec<PathBuf>, named: &[PathBuf]) -> Option<(PathBuf, usize)> {
    let known: BTreeSet<PathBuf> = known.into_iter().collect();
    let is_new = |path: &&PathBuf| !known.contains(*path) && !named.iter().any(|top| path.starts_with(top));
    let new: Vec<&Path> = written.iter().filter(is_new).map(PathBuf::as_path).collect();
    if new.len() < MANY {
        return None;
    }
    let first = new.first()?.parent()?;
    let common = first.ancestors().find(|top| new.iter().all(|path| path.starts_with(top)))?;
    // The root and what lies in it hold more than one program's files.
    if common.components().count() > 2 {
        return Some((common.to_owned(), new.len()));
    }
    let mut counts: BTreeMap<&Path, usize> = BTreeMap::new();
    for parent in new.iter().filter_map(|path| path.parent()) {
        *counts.entry(parent).or_default() += 1;
    }
    let (most, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    (count >= MANY).then(|| (most.to_owned(), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(top: &str, numbers: std::ops::Range<usize>) -> Vec<PathBuf> {
        numbers.map(|number| PathBuf::from(format!("{top}/{number}"))).collect()
    }

    #[test]
    fn many_files_that_were_not_known_are_named_by_their_directory() {
        let data = [paths("/srv/db/base/5", 0..6), paths("/srv/db/global", 0..4)].concat();
        let found = |known, named: &[&str]| {
            unnamed(&data, known, &named.iter().map(PathBuf::from).collect::<Vec<_>>())
                .map(|(path, count)| (path.display().to_string(), count))
        };
        assert_eq!(found(Vec::new(), &[]), Some(("/srv/db".to_owned(), 10)));
        assert_eq!(found(paths("/srv/db/global", 0..3), &[]), None);
        assert_eq!(found(Vec::new(), &["/srv/db"]), None);
        assert_eq!(found(Vec::new(), &["/srv/db/other"]), Some(("/srv/db".to_owned(), 10)));
        let apart = [paths("/a/x", 0..9), paths("/b/y", 0..3)].concat();
        assert_eq!(unnamed(&apart, Vec::new(), &[]), Some((PathBuf::from("/a/x"), 9)));
        let scattered = [paths("/a/x", 0..5), paths("/b/y", 0..5)].concat();
        assert_eq!(unnamed(&scattered, Vec::new(), &[]), None);
    }
}
