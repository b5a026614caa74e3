//! What the job did to files, for the keeper after this one: a kill or a reboot takes the table of the watch with it.
//!
//! `STORE/.jobs/NAME.touched` says for each checkpoint what a rollback to it undoes. It is written anew at most every second
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
/// A longer one is neither written nor read.
const MOST_BYTES: u64 = 32 << 20;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
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
    earlier: BTreeMap<u64, Since>,
    written: u64,
    next: Option<Instant>,
}

fn path(store: &Path, name: &JobName) -> PathBuf {
    store.join(".jobs").join(format!("{name}.touched"))
}

/// What is remembered of a job; nothing when there is nothing that can be trusted.
pub(crate) fn read(store: &Path, name: &JobName) -> BTreeMap<u64, Since> {
    let Some(stored) = stored(store, name) else { return BTreeMap::new() };
    let known = |since: Since| if stored.complete { since.without_lengths() } else { since.unwatched_later() };
    stored.tables.into_iter().map(|(number, since)| (number, known(since))).collect()
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
    let bytes = serde_json::to_vec(&Stored { version: VERSION, complete: life == Life::IsOver, tables });
    let bytes = bytes.map_err(Failure::system("encoding what was done to files"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MOST_BYTES {
        forget(store, name);
        return Ok(());
    }
    job::put(&path(store, name), &bytes, life != Life::GoesOn)
}

impl Keeper {
    /// Takes over what an earlier keeper knew of the files of this run.
    pub(in crate::keeper) fn remember_files(&mut self) {
        self.remembered.earlier = read(&self.plan.store, &self.plan.name);
        job_lives(&self.plan.store, &self.plan.name);
    }

    /// There is no checkpoint any more to which anything could be undone.
    pub(in crate::keeper) fn forget_files(&mut self) {
        self.remembered.earlier.clear();
        forget(&self.plan.store, &self.plan.name);
    }

    /// What an earlier keeper knew is to be undone for a checkpoint that this one did not make, after what this one has watched
    /// itself. From here on it watches what is done since.
    pub(super) fn known_earlier(&mut self, number: u64) -> Option<Since> {
        let since = self.remembered.earlier.get(&number).cloned()?;
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
        self.remembered.earlier.retain(|earlier, _| *earlier != number && line.contains(earlier));
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
        let earlier = self.remembered.earlier.iter();
        let mut tables: BTreeMap<u64, Since> =
            earlier.map(|(number, since)| (*number, with(since.clone(), later.clone()))).collect();
        for number in self.line.numbers() {
            if let Some(changes) = watch.since(number) {
                let since = Since::new(&changes, &self.plan.files, self.aside(number), self.plan.store.clone());
                tables.entry(number).or_insert(since);
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
        assert!(read(store.path(), &name).is_empty());
        let tables = BTreeMap::from([(7, Since::default())]);
        write(store.path(), &name, tables.clone(), Life::IsKept).unwrap();
        let found = read(store.path(), &name);
        assert_eq!(found, BTreeMap::from([(7, Since::default().unwatched_later())]));
        assert!(found.values().all(|since| since.for_engine().incomplete));
        write(store.path(), &name, tables, Life::IsOver).unwrap();
        assert!(read(store.path(), &name).values().all(|since| !since.for_engine().incomplete), "nothing came after");
        job_lives(store.path(), &name);
        assert!(read(store.path(), &name).values().all(|since| since.for_engine().incomplete));
        let path = path(store.path(), &name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(read(store.path(), &name).is_empty(), "anybody may have written it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(read(store.path(), &name).is_empty());
        forget(store.path(), &name);
        assert!(!path.exists());
    }
}
