//! What the job did to files, for the keeper after this one: a kill or a reboot takes the table of the watch with it.
//!
//! The table is written down with each checkpoint, and reaches the disk then; what is heard after it is logged at once
//! (`stored.rs`). It is written anew when the log has grown long, for at most a twentieth of the time. Whoever reads it
//! takes it for incomplete, as nobody has watched what came after; but for what a keeper writes whose program is dead with
//! all that it began. That counts until the program is brought back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdcr_image::JobName;

use super::super::{Keeper, Phase};
use super::steps::Step;
use super::stored::{self, Known, Log, MOST_LOG, Stored};
use super::{UNFINISHED, now, undone};
use crate::failure::Result;
use crate::process;
use crate::told::Since;

pub(crate) use super::stored::log_of;

/// A log that is longer than this, and than the table, has the table written anew.
const LONG: u64 = 4 << 20;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The part of the time that is given to tables.
const PART: u32 = 20;

/// What an earlier keeper knew, and what this one has written.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// By the number of a checkpoint that this keeper has not gone back to yet.
    earlier: Earlier,
    generation: u64,
    /// Of the table that was written last; none if it is of no use.
    log: Option<Log>,
    /// How long that table is.
    table: u64,
    /// When the next one is written at the earliest.
    next: Option<Instant>,
    /// The user has heard that it cannot be written.
    told: bool,
}

/// What an earlier keeper knew, by the number of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    tables: BTreeMap<u64, Since>,
    /// Since the checkpoint that it was taking, of which it has heard no number.
    unfinished: Option<Since>,
    /// Since its program began.
    start: Option<Since>,
    /// There was something that cannot be used.
    lost: bool,
    /// There was something.
    written: bool,
}

impl Earlier {
    /// What is to be undone for a program that begins anew.
    pub(super) fn since_the_start(self) -> Option<Since> {
        self.start
    }

    fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.unfinished.is_none() && !self.lost
    }

    /// As it is written down.
    fn all(&self) -> BTreeMap<u64, Since> {
        let unfinished = self.unfinished.iter().map(|since| (UNFINISHED, since.clone()));
        self.tables.iter().map(|(number, since)| (*number, since.clone())).chain(unfinished).collect()
    }

    /// What is to be undone for a checkpoint that an earlier keeper has made; `aside` and `shelter`: if it is not known.
    pub(crate) fn of(&self, number: u64, aside: impl FnOnce() -> (String, PathBuf)) -> Option<Since> {
        let forgotten = || {
            let (aside, shelter) = aside();
            Since::forgotten(aside, shelter)
        };
        let is_newest = self.tables.keys().next_back().is_none_or(|newest| *newest < number);
        let unfinished = || self.unfinished.clone().filter(|_| is_newest);
        // Of one that came after all that was written down something is missing.
        let is_missing = self.lost || self.written && is_newest;
        self.tables.get(&number).cloned().or_else(unfinished).or_else(|| is_missing.then(forgotten))
    }
}

/// What is remembered of a job, as far as it can be trusted.
pub(crate) fn read(store: &Path, name: &JobName) -> Earlier {
    let Some(stored) = stored::stored(store, name) else {
        return Earlier { lost: stored::is_there(store, name), ..Earlier::default() };
    };
    let (complete, lived, deaf) = (stored.complete, stored.lived, stored.deaf);
    let heard = stored::heard(store, name).filter(|_| !deaf);
    let trusted = |since: Since| if complete { since.without_lengths() } else { since.unwatched_later(heard) };
    let Known { tables, unfinished, start } = stored.known(store, name);
    let tables = tables.into_iter().map(|(number, since)| (number, trusted(since))).collect();
    // What came while nobody watched may be a checkpoint that was taken by hand.
    let (unfinished, start) = (unfinished.map(trusted), start.map(trusted));
    Earlier { tables, unfinished, start, lost: false, written: !complete && !lived }
}

/// The job is about to live again: from now on it counts as incomplete.
pub(crate) fn job_lives(store: &Path, name: &JobName) {
    if let Some(stored @ Stored { complete: true, .. }) = stored::stored(store, name) {
        rewrite(Stored { complete: false, deaf: true, ..stored }, store, name);
    }
}

/// The job is about to live again, and nobody will watch it.
pub(crate) fn job_lives_alone(store: &Path, name: &JobName) {
    if let Some(stored @ Stored { lived: false, .. }) = stored::stored(store, name) {
        rewrite(Stored { complete: false, deaf: true, lived: true, ..stored }, store, name);
    }
}

fn rewrite(stored: Stored, store: &Path, name: &JobName) {
    if let Err(failure) = stored.write(store, name) {
        // What cannot be written cannot be gone on from either.
        tracing::debug!(%failure, "what is remembered of files still counts as it did");
    }
}

/// How a job stands when it is written down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::keeper) enum Life {
    /// It may do more at any moment.
    GoesOn,
    /// All of it is dead.
    IsOver,
}

impl Keeper {
    /// Takes over what an earlier keeper knew of the files of this run.
    pub(in crate::keeper) fn remember_files(&mut self) {
        self.remembered.earlier = read(&self.plan.store, &self.plan.name);
        job_lives(&self.plan.store, &self.plan.name);
    }

    /// There is no checkpoint any more to which anything could be undone.
    pub(in crate::keeper) fn forget_files(&mut self) {
        self.remembered = Remembered::default();
        stored::forget(&self.plan.store, &self.plan.name);
    }

    /// What an earlier keeper knew is to be undone for a checkpoint that this one did not make, after what this one has watched
    /// itself. From here on it watches what is done since.
    pub(super) fn known_earlier(&mut self, number: u64) -> Option<Since> {
        let own = self.watch.as_ref().is_some_and(|watch| watch.since(number).is_some());
        if own && !self.remembered.earlier.tables.contains_key(&number) {
            return None;
        }
        let aside = || (undone::aside(&self.plan.name, number), self.plan.store.clone());
        let since = self.remembered.earlier.of(number, aside)?;
        // Should this roll-back fail it has its number.
        self.remembered.earlier.tables.entry(number).or_insert_with(|| since.clone());
        self.remembered.earlier.unfinished = None;
        let later = self.watched_so_far();
        if let Some(watch) = &mut self.watch {
            watch.begin_from(number);
        }
        Some(match later {
            Some(later) => since.with_later(later),
            None => since,
        })
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
        self.remembered.earlier.unfinished = None;
        if let Some(watch) = &mut self.watch {
            watch.rolled_back();
        }
        self.write_files(Life::GoesOn);
    }

    /// When the table is to be written down.
    pub(in crate::keeper) fn files_due(&self) -> Option<Instant> {
        let now = Instant::now();
        // A program that stands still does not wait for it.
        let busy = matches!(self.phase, Phase::Done(_)) || self.is_capturing();
        let watch = self.watch.as_ref().filter(|watch| !busy && !watch.goes_back)?;
        let next = self.remembered.next.unwrap_or(now);
        match self.remembered.log.as_ref().filter(|_| watch.queue.is_logged()) {
            None => Some(next),
            Some(log) if log.length() > MOST_LOG / 2 => Some(now),
            Some(log) => (log.length() > LONG.max(self.remembered.table)).then_some(next),
        }
    }

    /// Writes it down when it is due.
    pub(in crate::keeper) fn write_files_when_due(&mut self) {
        if self.files_due().is_some_and(|due| due <= Instant::now()) {
            self.write_files(Life::GoesOn);
        }
    }

    /// The job is dead, and is about to be rolled back: what it did last is logged.
    pub(super) fn log_to_the_end(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.end();
        }
        self.log_files();
    }

    /// Logs what was heard.
    pub(in crate::keeper) fn log_files(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let steps: Vec<Step> = watch.queue.take_log();
        if steps.is_empty() {
            return;
        }
        let Some(log) = &mut self.remembered.log else { return };
        if let Err(failure) = log.write(&steps) {
            tracing::debug!(%failure, "what was heard of files is not logged");
            self.remembered.log = None;
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

    /// Writes down what was done since each checkpoint there is, and begins the log of what is done from here on.
    pub(in crate::keeper) fn write_files(&mut self, life: Life) {
        let Some(watch) = &mut self.watch else { return };
        let began = Instant::now();
        let unknown = |number: &u64| self.remembered.earlier.lost && watch.since(*number).is_none();
        let mut stored = Stored {
            // Keepers that follow one another have different ones.
            generation: self.remembered.generation.max(nanoseconds(now())).wrapping_add(1),
            complete: life == Life::IsOver,
            earlier: self.remembered.earlier.all(),
            files: self.plan.files.clone(),
            ..Stored::of(&watch.queue)
        };
        stored.forgotten.extend(self.line.numbers().into_iter().filter(unknown));
        self.remembered.generation = stored.generation;
        self.remembered.log = None;
        watch.queue.begin_log();
        match self.put_files(stored) {
            Ok(()) => self.remembered.told = false,
            Err(failure) if self.remembered.told => tracing::debug!(%failure, "what was done to files is not written"),
            Err(failure) => {
                self.remembered.told = true;
                tracing::warn!(%failure, "a later keeper will not know what was done to files");
            }
        }
        let pause = (began.elapsed() * PART).max(SHORTEST_PAUSE);
        self.remembered.next = Some(Instant::now() + pause);
    }

    fn put_files(&mut self, stored: Stored) -> Result<()> {
        let (store, name) = (&self.plan.store, &self.plan.name);
        let generation = stored.generation;
        self.remembered.table = stored.write(store, name)?;
        self.remembered.log = Some(Log::begin(store, name, generation)?);
        Ok(())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::stored::scene;
    use super::*;

    fn none() -> (String, PathBuf) {
        (String::new(), PathBuf::new())
    }

    #[test]
    fn what_is_written_is_read_as_incomplete_and_what_is_odd_is_not_used() {
        let (store, name) = scene();
        assert!(read(store.path(), &name).of(7, none).is_none());
        let stored = |complete| Stored {
            complete,
            earlier: BTreeMap::from([(7, Since::default())]),
            forgotten: vec![9],
            ..Stored::default()
        };
        stored(false).write(store.path(), &name).unwrap();
        let found = read(store.path(), &name);
        assert_eq!(found.tables.get(&7), Some(&Since::default().unwatched_later(stored::heard(store.path(), &name))));
        assert!(found.of(9, none).is_some_and(|since| since.for_engine().forgotten));
        let incomplete = |store: &Path| read(store, &name).of(7, none).unwrap().for_engine().incomplete;
        assert!(incomplete(store.path()));
        stored(true).write(store.path(), &name).unwrap();
        assert!(!incomplete(store.path()), "nothing came after");
        job_lives(store.path(), &name);
        assert!(incomplete(store.path()));
        let path = store.path().join(".jobs/a.touched");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let lost = |store: &Path| {
            let found = read(store, &name);
            found.tables.is_empty() && found.of(7, none).is_some_and(|since| since.for_engine().forgotten)
        };
        assert!(lost(store.path()), "anybody may have written it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(lost(store.path()));
        stored::forget(store.path(), &name);
        assert!(!path.exists());
    }

    #[test]
    fn what_the_first_version_has_written_is_read() {
        let (store, name) = scene();
        let path = store.path().join(".jobs/a.touched");
        let since = serde_json::to_string(&Since::default()).unwrap();
        fs::write(&path, format!("{{\"version\":1,\"complete\":false,\"tables\":{{\"7\":{since}}}}}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(
            read(store.path(), &name).of(7, none),
            Some(Since::default().unwatched_later(stored::heard(store.path(), &name)))
        );
        fs::write(&path, format!("{{\"version\":3,\"tables\":{{\"7\":{since}}}}}")).unwrap();
        assert!(read(store.path(), &name).of(7, none).unwrap().for_engine().forgotten);
    }

    #[test]
    fn the_checkpoint_that_was_being_taken_is_the_one_after_all_others() {
        let since = |aside: &str| Since::forgotten(aside.to_owned(), PathBuf::new());
        let earlier = Earlier {
            tables: BTreeMap::from([(3, since("three"))]),
            unfinished: Some(since("unfinished")),
            ..Earlier::default()
        };
        assert_eq!(earlier.all().into_keys().collect::<Vec<_>>(), [3, UNFINISHED]);
        let of = |number| earlier.of(number, none).map(|since| since.for_engine().aside);
        assert_eq!([2, 3, 4].map(of), [None, Some("three".into()), Some("unfinished".into())]);
        let cut = Earlier { unfinished: None, written: true, ..earlier };
        assert!(cut.of(4, none).is_some_and(|since| since.for_engine().forgotten) && cut.of(2, none).is_none());
    }

    #[test]
    fn what_was_taken_while_nobody_watched_is_not_the_checkpoint_that_was_being_taken() {
        let (store, name) = scene();
        let earlier = BTreeMap::from([(3, Since::default()), (UNFINISHED, Since::default())]);
        Stored { earlier, ..Stored::default() }.write(store.path(), &name).unwrap();
        let found = read(store.path(), &name);
        assert!(found.of(4, none).is_some() && found.of(3, none).unwrap().for_engine().heard.is_some());
        job_lives_alone(store.path(), &name);
        let found = read(store.path(), &name);
        assert!(found.of(4, none).is_none() && found.of(3, none).unwrap().for_engine().heard.is_none());
    }
}
