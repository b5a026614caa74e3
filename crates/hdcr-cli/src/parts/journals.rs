//! Where the roll-back of files keeps what it replaces: a directory of its own for each job, held by one restore at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_engine::rollback::{self, repair};
use hdcr_image::{JobName, Manifest};

use super::{manifest, obstacles};
use crate::failure::{Failure, Obstacle, Result};
use crate::job::{is_at, make_private};
use crate::task::Place;
use crate::told::Since;

/// How often a journal is looked for whose directory goes away.
const LOOKS: usize = 16;

/// The name of the journal of an image.
pub(super) fn journal_name(place: &Place, manifest: &Manifest) -> String {
    match place {
        Place::Store { job, .. } => job.clone(),
        Place::Path(_) => manifest.id.image.to_string(),
    }
}

/// The same when the image may be gone or damaged since: just then a repair is due.
fn name_of_late(place: &Place) -> Result<String> {
    match place {
        Place::Store { job, .. } => Ok(job.clone()),
        Place::Path(_) => Ok(journal_name(place, &manifest(place)?)),
    }
}

/// A journal that nobody else can take.
#[derive(Debug)]
pub(super) struct HeldJournal {
    directory: PathBuf,
    has_reserve: bool,
    _lock: File,
}

impl HeldJournal {
    /// Takes a journal by its name, and tells of what restores of other jobs that died have left.
    pub(super) fn take(journals: &Path, name: &str) -> Result<Self> {
        make_private(journals)?;
        for entry in fs::read_dir(journals).map_err(Failure::system("looking for restores that died"))?.flatten() {
            let path = entry.path();
            let other = path.is_dir() && path.file_name() != Some(std::ffi::OsStr::new(name));
            if other && is_left(&path) {
                remove_left(&path);
            }
            let left = other && rollback::has_died_in(&path);
            if left && let Ok(Some(_lock)) = lock(&path) {
                // Only its own job's next restore undoes it: its program may have gone on by hand since.
                tracing::warn!(path = %path.display(), "a restore of another job died and left files half rolled back");
            }
        }
        let directory = journals.join(name);
        for _ in 0..LOOKS {
            make_private(&directory)?;
            let held = lock(&directory)?
                .ok_or_else(|| Failure::refused("restore-runs", format!("another restore of {name} is at work")))?;
            if is_at(&held, &directory) {
                return Ok(Self { has_reserve: rollback::reserve::is_in(&directory), directory, _lock: held });
            }
        }
        Err(Failure::refused("restore-runs", format!("other restores of {name} come and go")))
    }

    /// Where it lies.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes the journal of a restore whose process has ended, if it has left one: who stood by for it may be about to.
    fn take_over(place: &Place, journals: &Path) -> Result<Option<Self>> {
        const PAUSE: Duration = Duration::from_millis(10);
        const TRIES: usize = 100;
        let name = name_of_late(place)?;
        if !journals.join(&name).is_dir() {
            return Ok(None);
        }
        for _ in 0..TRIES {
            match Self::take(journals, &name) {
                Err(failure) if failure.code == "restore-runs" => std::thread::sleep(PAUSE),
                taken => return taken.map(Some),
            }
        }
        Self::take(journals, &name).map(Some)
    }
}

impl Drop for HeldJournal {
    fn drop(&mut self) {
        if self.has_reserve {
            rollback::reserve::refill(&self.directory);
        }
        // Not when something was moved aside into it.
        fs::remove_dir(&self.directory).ok();
    }
}

/// Where roll-backs of a store keep what they replace.
pub(crate) fn journals(root: &Path) -> PathBuf {
    root.join(".rollback")
}

/// Whether a journal's directory is one of an image by path that nobody has used for some time.
fn is_left(directory: &Path) -> bool {
    const LONG: Duration = Duration::from_mins(1);
    let name = directory.file_name().unwrap_or_default().as_encoded_bytes();
    // Those of jobs are in use as long as there are checkpoints.
    let of_image = name.len() == 32 && name.iter().all(u8::is_ascii_hexdigit);
    let since = || fs::metadata(directory).and_then(|found| found.modified()).ok()?.elapsed().ok();
    of_image && since().is_some_and(|since| since > LONG)
}

/// Removes it if it is empty; it is held meanwhile, as by whoever uses it.
fn remove_left(directory: &Path) {
    let is_empty = || fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty()
        && let Ok(Some(_held)) = lock(directory)
        && let Err(error) = fs::remove_dir(directory)
    {
        tracing::debug!(%error, "an empty directory of roll-backs stays");
    }
}

/// Keeps room for the roll-back of a job.
pub(super) fn keep_room(root: &Path, job: &str) -> Result<()> {
    let directory = journals(root).join(job);
    make_private(&directory)?;
    rollback::reserve::keep(&directory)
        .map_err(Failure::system(format_args!("keeping room in {}", directory.display())))
}

/// Writes something short about a job, if need be with the room that is kept for its roll-back.
pub(crate) fn with_room(
    root: &Path,
    job: &JobName,
    mut write: impl FnMut() -> std::io::Result<()>,
) -> std::io::Result<()> {
    let directory = journals(root).join(job.as_str());
    let is_kept = rollback::reserve::is_in(&directory);
    let written = rollback::reserve::with_room(&directory, 1, &mut write);
    if is_kept {
        rollback::reserve::refill(&directory);
    }
    written
}

/// Gives up the room that is kept for a job which has nothing left to go back to.
pub(crate) fn forget_room(root: &Path, job: &JobName) {
    let directory = journals(root).join(job.as_str());
    let Ok(Some(_held)) = lock(&directory) else { return };
    rollback::reserve::forget(&directory);
    fs::remove_dir(&directory).ok();
}

/// Locks a directory; `None` when somebody else has it locked.
fn lock(directory: &Path) -> Result<Option<File>> {
    let doing = || Failure::system::<std::io::Error>(format!("locking {}", directory.display()));
    let file = File::open(directory).map_err(doing())?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(doing()(error)),
    }
}

/// Puts files back that a restore by another process had begun to roll back when it died.
pub(crate) fn repair_files(place: &Place, journals: &Path) {
    let repaired = HeldJournal::take_over(place, journals).and_then(|journal| {
        if let Some(journal) = journal {
            repair(&journal.directory)?;
        }
        Ok(())
    });
    match repaired {
        Ok(()) => {}
        // Whoever has the journal has put right what was in it, and what is in it now is theirs.
        Err(failure) if failure.code == "restore-runs" => tracing::debug!(%failure, "no file was touched"),
        Err(failure) => tracing::warn!(%failure, "files could not be put back; the next restore tries again"),
    }
}

/// Makes the roll-back of files final whose restoring process said that the program runs, and then died.
pub(crate) fn settle_files(place: &Place, journals: &Path) {
    let settled = HeldJournal::take_over(place, journals).and_then(|journal| {
        if let Some(journal) = journal {
            rollback::settle(&journal.directory)?;
        }
        Ok(())
    });
    if let Err(failure) = settled {
        tracing::warn!(%failure, "the journal of the roll-back is still there");
    }
}

/// Forgets what roll-backs of a job have kept for it. What one that died has left half done is undone first.
pub(crate) fn forget_files(journals: &Path, job: &JobName) -> Result<()> {
    let directory = journals.join(job.as_str());
    if !directory.is_dir() {
        return Ok(());
    }
    let _held =
        lock(&directory)?.ok_or_else(|| Failure::refused("restore-runs", format!("a restore of {job} is at work")))?;
    repair(&directory)?;
    fs::remove_dir_all(&directory).map_err(Failure::system(format_args!("removing {}", directory.display())))
}

/// Puts files back as they were before a job began that has no checkpoint; what its user should know.
pub(crate) fn files_as_before(root: &Path, job: &JobName, since: &Since) -> Result<Vec<Obstacle>> {
    let directory = journals(root).join(job.as_str());
    make_private(&directory)?;
    let _held =
        lock(&directory)?.ok_or_else(|| Failure::refused("restore-runs", format!("a restore of {job} is at work")))?;
    let notes = rollback::to_the_start(&directory, &since.for_engine())?;
    Ok(obstacles(&notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a restore that died has left is put right also when its image is gone by then.
    #[test]
    fn a_journal_needs_no_image_of_its_job() {
        let root = tempfile::tempdir().unwrap();
        let at = journals(root.path());
        let place = Place::Store { root: root.path().to_owned(), job: "sim".to_owned(), number: 3 };
        for end in [repair_files, settle_files] {
            end(&place, &at);
            assert!(!at.exists(), "nothing was left, and something was made");
            let directory = at.join("sim");
            make_private(&directory).unwrap();
            fs::write(directory.join("rollback.journal"), "").unwrap();
            assert!(rollback::has_died_in(&directory));
            end(&place, &at);
            assert!(!directory.exists());
            fs::remove_dir(&at).unwrap();
        }
    }
    #[test]
    fn empty_directories_of_images_go_when_nobody_has_used_them_for_long() {
        let root = tempfile::tempdir().unwrap();
        let at = journals(root.path());
        let old = std::time::UNIX_EPOCH;
        let names = ["00112233445566778899aabbccddeeff", "10112233445566778899aabbccddeeff", "sim"];
        for name in names {
            make_private(&at.join(name)).unwrap();
        }
        fs::write(at.join(names[1]).join("newer-1-log"), "").unwrap();
        for name in [names[1], names[2]] {
            File::open(at.join(name)).unwrap().set_modified(old).unwrap();
        }
        drop(HeldJournal::take(&at, "job").unwrap());
        assert!(names.iter().all(|name| at.join(name).is_dir()), "in use, full, or of a job");
        File::open(at.join(names[0])).unwrap().set_modified(old).unwrap();
        drop(HeldJournal::take(&at, "job").unwrap());
        assert!(!at.join(names[0]).exists() && at.join(names[1]).is_dir() && at.join(names[2]).is_dir());
    }
}
