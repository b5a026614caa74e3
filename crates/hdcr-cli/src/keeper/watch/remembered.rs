//! What the job did to files, for the keeper after this one: a kill or a reboot takes the table of the watch with it.
//!
//! `STORE/.jobs/NAME.touched` says for each checkpoint what a rollback to it undoes. It is written anew at most ten times a second
//! and for at most a twentieth of the time, whole or not at all, and reaches the disk with each checkpoint. Whoever reads it
//! takes it for incomplete, as nobody has watched what came after; but for what a keeper writes whose program is dead with
//! all that it began. That counts until the program is brought back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdcr_image::JobName;
use serde::{Deserialize, Serialize};

use super::super::Keeper;
use crate::failure::{Failure, Result};
use crate::job;
use crate::process;
use crate::told::Since;

const VERSION: u32 = 1;
/// A longer one is neither written nor read: what it would say of the oldest checkpoints is left out, and that it was.
const MOST_BYTES: u64 = 64 << 20;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The part of the time that is given to it.
const PART: u32 = 20;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// Nothing of the job has lived after this was written.
    #[serde(default)]
    complete: bool,
    tables: BTreeMap<u64, Since>,
}

/// What an earlier keeper knew, and when this one writes next.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// By the number of a checkpoint that this keeper has not gone back to yet.
    earlier: Earlier,
    written: u64,
    next: Option<Instant>,
}

fn path(store: &Path, name: &JobName) -> PathBuf {
    store.join(".jobs").join(format!("{name}.touched"))
}

/// What an earlier keeper knew, by the number of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    tables: BTreeMap<u64, Since>,
    /// There was something that cannot be used.
    lost: bool,
}

impl Earlier {
    fn is_empty(&self) -> bool {
        self.tables.is_empty() && !self.lost
    }

    /// What is to be undone for a checkpoint that an earlier keeper has made; `aside` and `shelter`: if it is not known.
    pub(crate) fn of(&self, number: u64, aside: impl FnOnce() -> (String, PathBuf)) -> Option<Since> {
        let forgotten = || {
            let (aside, shelter) = aside();
            Since::forgotten(aside, shelter)
        };
        self.tables.get(&number).cloned().or_else(|| self.lost.then(forgotten))
    }
}

/// What is remembered of a job, as far as it can be trusted.
pub(crate) fn read(store: &Path, name: &JobName) -> Earlier {
    let Some(stored) = stored(store, name) else {
        return Earlier { lost: path(store, name).symlink_metadata().is_ok(), ..Earlier::default() };
    };
    let known = |since: Since| if stored.complete { since.without_lengths() } else { since.unwatched_later() };
    let tables = stored.tables.into_iter().map(|(number, since)| (number, known(since))).collect();
    Earlier { tables, lost: false }
}

/// The job is about to live again: from now on it counts as incomplete.
pub(crate) fn job_lives(store: &Path, name: &JobName) {
    if let Some(Stored { complete: true, tables, .. }) = stored(store, name)
        && let Err(failure) = write(store, name, tables, Life::GoesOn)
    {
        // What cannot be written cannot be gone on from either.
        tracing::debug!(%failure, "what is remembered of files still counts as complete");
    }
}

fn stored(store: &Path, name: &JobName) -> Option<Stored> {
    let path = path(store, name);
    let facts = fs::symlink_metadata(&path).ok()?;
    let own = facts.is_file() && facts.uid() == rustix::process::geteuid().as_raw() && facts.mode() & 0o022 == 0;
    if !own || facts.len() > MOST_BYTES {
        tracing::warn!(path = %path.display(), "not used: it is too long, or somebody else may have written it");
        return None;
    }
    let stored = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
    let stored = stored.filter(|stored| stored.version == VERSION);
    if stored.is_none() {
        tracing::warn!(path = %path.display(), "not used: it cannot be read");
    }
    stored
}

/// Forgets it: the job has ended, or begins anew.
pub(crate) fn forget(store: &Path, name: &JobName) {
    if let Err(error) = fs::remove_file(path(store, name))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "what was remembered of files was not removed");
    }
}

fn with(since: Since, later: Option<Since>) -> Since {
    match later {
        Some(later) => since.with_later(later),
        None => since,
    }
}

/// How a job stands when it is written down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::keeper) enum Life {
    /// It may do more at any moment.
    GoesOn,
    /// It has just been checkpointed.
    IsKept,
    /// All of it is dead.
    IsOver,
}

fn write(store: &Path, name: &JobName, tables: BTreeMap<u64, Since>, life: Life) -> Result<()> {
    let bytes = encoded(Stored { version: VERSION, complete: life == Life::IsOver, tables }, MOST_BYTES)?;
    job::put(&path(store, name), &bytes, life != Life::GoesOn)
}

/// As it is written; what is said of older checkpoints gives way when it is too long.
fn encoded(mut stored: Stored, most: u64) -> Result<Vec<u8>> {
    let failed = || Failure::system("encoding what was done to files");
    let long = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let bytes = serde_json::to_vec(&stored).map_err(failed())?;
    if long(&bytes) <= most {
        return Ok(bytes);
    }
    drop(bytes);
    // Some for what is said of those that gave way.
    let mut left = most - most / 8;
    for (number, since) in stored.tables.iter_mut().rev() {
        let length = long(&serde_json::to_vec(since).map_err(failed())?);
        left = left.checked_sub(length).unwrap_or_else(|| {
            tracing::warn!(
                number,
                length,
                "too long: a later keeper will not know what was done to files since a checkpoint"
            );
            *since = std::mem::take(since).shortened();
            0
        });
    }
    serde_json::to_vec(&stored).map_err(failed())
}

impl Keeper {
    /// Takes over what an earlier keeper knew of the files of this run.
    pub(in crate::keeper) fn remember_files(&mut self) {
        self.remembered.earlier = read(&self.plan.store, &self.plan.name);
        job_lives(&self.plan.store, &self.plan.name);
    }

    /// There is no checkpoint any more to which anything could be undone.
    pub(in crate::keeper) fn forget_files(&mut self) {
        self.remembered.earlier = Earlier::default();
        forget(&self.plan.store, &self.plan.name);
    }

    /// What an earlier keeper knew is to be undone for a checkpoint that this one did not make, after what this one has watched
    /// itself. From here on it watches what is done since.
    pub(super) fn known_earlier(&mut self, number: u64) -> Option<Since> {
        if self.remembered.earlier.lost && self.watch.as_ref().is_some_and(|watch| watch.since(number).is_some()) {
            return None;
        }
        let aside = || (self.aside(number), self.plan.store.clone());
        let since = self.remembered.earlier.of(number, aside)?;
        let later = self.watched_so_far();
        if let Some(watch) = &mut self.watch {
            watch.begin_from(number);
        }
        Some(with(since, later))
    }

    /// All that this keeper has watched.
    fn watched_so_far(&mut self) -> Option<Since> {
        let watch = self.watch.as_mut()?;
        watch.end();
        let changes = watch.since(watch.first()?)?;
        Some(Since::new(&changes, &self.plan.files, String::new(), PathBuf::new()))
    }

    /// Forgets what was done since checkpoints that are gone; but from where this keeper began, as long as it may go back
    /// to before that.
    pub(in crate::keeper) fn keep_what_counts(&mut self) {
        let mut numbers = self.line.numbers();
        let Some(watch) = &mut self.watch else { return };
        if !self.remembered.earlier.is_empty() {
            numbers.extend(watch.first());
        }
        watch.keep(&numbers);
    }

    /// Files are as they were at a checkpoint: what was known before is done.
    pub(in crate::keeper) fn files_are_as_at(&mut self, number: u64) {
        let line = self.line.numbers_of_line();
        self.remembered.earlier.tables.retain(|earlier, _| *earlier != number && line.contains(earlier));
        if let Some(watch) = &mut self.watch {
            watch.rolled_back();
        }
        self.write_files(Life::GoesOn);
    }

    /// When there is something to be written down.
    pub(in crate::keeper) fn files_due(&self) -> Option<Instant> {
        let watch = self.watch.as_ref()?;
        (watch.told() != self.remembered.written).then(|| self.remembered.next.unwrap_or_else(Instant::now))
    }

    /// Writes down what is due.
    pub(in crate::keeper) fn write_files_when_due(&mut self) {
        if self.files_due().is_some_and(|due| due <= Instant::now()) {
            self.write_files(Life::GoesOn);
        }
    }

    /// Writes down what the job has done when it is dead, unless something that it has begun lives on.
    pub(in crate::keeper) fn write_files_of_the_dead(&mut self) {
        let own = std::process::id().cast_signed();
        if let (Some(watch), true) = (&mut self.watch, process::below(own).is_empty()) {
            watch.end();
            self.write_files(Life::IsOver);
        }
    }

    /// Writes down what a rollback undoes, for each checkpoint there is.
    pub(in crate::keeper) fn write_files(&mut self, life: Life) {
        let Some(watch) = &self.watch else { return };
        let told = watch.told();
        let began = Instant::now();
        let later = watch.first().filter(|_| !self.remembered.earlier.is_empty()).and_then(|first| watch.since(first));
        let later = later.map(|changes| Since::new(&changes, &self.plan.files, String::new(), PathBuf::new()));
        let earlier = self.remembered.earlier.tables.iter();
        let mut tables: BTreeMap<u64, Since> =
            earlier.map(|(number, since)| (*number, with(since.clone(), later.clone()))).collect();
        for number in self.line.numbers() {
            if let Some(changes) = watch.since(number) {
                let since = Since::new(&changes, &self.plan.files, self.aside(number), self.plan.store.clone());
                tables.entry(number).or_insert(since);
            } else if self.remembered.earlier.lost {
                let forgotten = || Since::forgotten(self.aside(number), self.plan.store.clone());
                tables.entry(number).or_insert_with(forgotten);
            }
        }
        if let Err(failure) = write(&self.plan.store, &self.plan.name, tables, life) {
            tracing::warn!(%failure, "a later keeper will not know what was done to files");
        }
        self.remembered.written = told;
        let pause = (began.elapsed() * PART).max(SHORTEST_PAUSE);
        self.remembered.next = Some(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_as_incomplete_and_what_is_odd_is_not_used() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir(store.path().join(".jobs")).unwrap();
        let name = JobName::new("a").unwrap();
        let none = || (String::new(), PathBuf::new());
        assert!(read(store.path(), &name).of(7, none).is_none());
        let tables = BTreeMap::from([(7, Since::default())]);
        write(store.path(), &name, tables.clone(), Life::IsKept).unwrap();
        let found = read(store.path(), &name).tables;
        assert_eq!(found, BTreeMap::from([(7, Since::default().unwatched_later())]));
        assert!(found.values().all(|since| since.for_engine().incomplete));
        write(store.path(), &name, tables, Life::IsOver).unwrap();
        assert!(
            read(store.path(), &name).tables.values().all(|since| !since.for_engine().incomplete),
            "nothing came after"
        );
        job_lives(store.path(), &name);
        assert!(read(store.path(), &name).tables.values().all(|since| since.for_engine().incomplete));
        let path = path(store.path(), &name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let lost = |store: &Path| {
            let found = read(store, &name);
            found.tables.is_empty() && found.of(7, none).is_some_and(|since| since.for_engine().forgotten)
        };
        assert!(lost(store.path()), "anybody may have written it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(lost(store.path()));
        forget(store.path(), &name);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_too_long_is_left_out_and_that_is_said() {
        let paths: Vec<PathBuf> = (0..100).map(|number| PathBuf::from(format!("/a/{number}"))).collect();
        let changes = hdcr_policy::touched::Changes { written: paths, ..Default::default() };
        let since = Since::new(&changes, &crate::settings::Files::default(), "aside".to_owned(), PathBuf::from("/s"));
        let tables = (1..=3).map(|number| (number, since.clone())).collect();
        let length = u64::try_from(serde_json::to_vec(&since).unwrap().len()).unwrap();
        let bytes = encoded(Stored { version: VERSION, complete: true, tables }, length * 2).unwrap();
        assert!(u64::try_from(bytes.len()).unwrap() <= length * 2);
        let stored: Stored = serde_json::from_slice(&bytes).unwrap();
        let known: Vec<_> = stored.tables.values().map(Since::for_engine).collect();
        assert_eq!(known.iter().map(|since| since.forgotten).collect::<Vec<_>>(), [true, true, false]);
        assert!(known[0].incomplete && known[0].written.is_empty() && known[0].aside == "aside");
        assert_eq!(known[2].written.len(), 100);
    }
}
