//! Checkpoints that stay until somebody lets go of them: each has a file beside it, which holds why.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use hdcr_image::JobName;

use crate::disk::{Disk, random_suffix};
use crate::error::Error;
use crate::lock;
use crate::selector;
use crate::store::{DirectoryStore, LOCK, NEW, names_in};

/// What the name of a pin begins with; the number of the checkpoint follows.
const PIN: &str = "pin-";
/// The longest note, in bytes.
pub const LONGEST_NOTE: usize = 200;

fn path_of(job: &Path, sequence: u64) -> PathBuf {
    job.join(format!("{PIN}{sequence}"))
}

/// Whether a checkpoint of the job in this directory is pinned.
pub(crate) fn is_pinned(job: &Path, sequence: u64) -> bool {
    // One that cannot be looked at is taken for a pin: what is not removed can be removed later.
    path_of(job, sequence).symlink_metadata().map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |_| true)
}

impl DirectoryStore {
    /// Keeps a checkpoint until [`DirectoryStore::unpin`]; `note` says what for, in at most [`LONGEST_NOTE`] bytes, and replaces
    /// what was said before.
    ///
    /// # Errors
    /// Those of the file system, and [`Error::NoSnapshot`].
    pub fn pin(&self, job: &JobName, sequence: u64, note: &str) -> Result<(), Error> {
        let path = self.job_path(job);
        let held = self.lock_of(job, sequence)?;
        let temporary = path.join(format!("{NEW}{PIN}{sequence}-{}", random_suffix()?));
        let write = || {
            let file = self.disk().create_file(&temporary)?;
            self.disk().write(&file, &temporary, note.as_bytes())?;
            self.disk().sync_file(&file, &temporary)?;
            self.disk().rename(&temporary, &path_of(&path, sequence))?;
            self.disk().sync_dir(&path)
        };
        if let Err(error) = write() {
            // What is left of it is nobody's, and said nowhere.
            fs::remove_file(&temporary).ok();
            return Err(error.into());
        }
        drop(held);
        Ok(())
    }

    /// Lets go of a checkpoint, which stays until something else removes it; false when nobody kept it.
    ///
    /// # Errors
    /// Those of the file system, and [`Error::NoSnapshot`].
    pub fn unpin(&self, job: &JobName, sequence: u64) -> Result<bool, Error> {
        let path = self.job_path(job);
        let held = self.lock_of(job, sequence)?;
        let was = is_pinned(&path, sequence);
        if was {
            self.disk().remove_file(&path_of(&path, sequence))?;
            self.disk().sync_dir(&path)?;
        }
        drop(held);
        Ok(was)
    }

    /// The pinned checkpoints of a job, and what for. A pin whose note cannot be read is one without a note.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn pins(&self, job: &JobName) -> Result<BTreeMap<u64, String>, Error> {
        let path = self.job_path(job);
        let number = |name: &String| name.strip_prefix(PIN).and_then(selector::sequence);
        let pins = names_in(&path)?.iter().filter_map(number).collect::<Vec<_>>();
        let there = self.sequences(job)?;
        let note = |sequence: u64| {
            let mut bytes = Vec::new();
            let most = u64::try_from(LONGEST_NOTE).unwrap_or(u64::MAX);
            let read =
                fs::File::open(path_of(&path, sequence)).and_then(|file| file.take(most).read_to_end(&mut bytes));
            read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(pins.into_iter().filter(|pin| there.contains(pin)).map(|pin| (pin, note(pin))).collect())
    }

    /// The lock of a job that has this checkpoint: it neither comes nor goes meanwhile.
    fn lock_of(&self, job: &JobName, sequence: u64) -> Result<fs::File, Error> {
        let path = self.job_path(job);
        let none = || Error::NoSnapshot { job: job.clone(), sequence, root: self.root().to_owned() };
        if !path.join(sequence.to_string()).is_dir() {
            return Err(none());
        }
        let held = lock::take(&path.join(LOCK)).map_err(Error::from)?;
        if path.join(sequence.to_string()).is_dir() { Ok(held) } else { Err(none()) }
    }
}

/// Removes what pins that came to nothing have left behind. The caller holds the lock of the job.
pub(crate) fn sweep(disk: &Disk, job: &Path) -> Result<usize, Error> {
    let names = names_in(job)?;
    let left = names.iter().filter(|name| name.strip_prefix(NEW).is_some_and(|rest| rest.starts_with(PIN)));
    let mut swept = 0;
    for name in left {
        disk.remove_file(&job.join(name))?;
        swept += 1;
    }
    Ok(swept)
}
