//! A directory of jobs, each with its checkpoints.

use std::fs;
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hdcr_image::{ContentKey, ImageError, ImageId, ImageReader, JobName, Manifest, Source};

use crate::SnapshotId;
use crate::directory::{DirectorySink, LIVE, LockPath};
use crate::disk::{Disk, Durability, Faults, failed, random, random_suffix};
use crate::error::Error;
use crate::lock;
use crate::pins;
use crate::pool::{FREE, Pool};
use crate::selector::{Selector, sequence};
use crate::share::Sharing;
use crate::shelf::{self, Shelf};
use crate::source::{DirectorySource, open_path};

pub(crate) const NEW: &str = ".new-";
/// What the names of clones begin with (`PartName::Clone`).
const CLONE: &str = "clone-";
const GONE: &str = ".gone-";
pub(crate) const LOCK: &str = ".lock";

/// A store in a directory. It need not exist before the first checkpoint.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    root: PathBuf,
    disk: Disk,
    /// Bytes of programs that its images have in common, at most.
    programs: u64,
}

/// A committed checkpoint, as a list shows it.
#[derive(Debug)]
pub struct Entry {
    /// Its job.
    pub job: JobName,
    /// Its number.
    pub sequence: u64,
    /// Where it lies.
    pub path: PathBuf,
    /// What it says of itself, or why that cannot be read.
    pub manifest: Result<Manifest, ImageError>,
}

impl DirectoryStore {
    /// The store in this directory.
    pub fn open(root: impl Into<PathBuf>, durability: Durability) -> Self {
        Self::with_faults(root, durability, Faults::default())
    }

    /// A store whose file system fails as planned.
    pub fn with_faults(root: impl Into<PathBuf>, durability: Durability, faults: Faults) -> Self {
        Self { root: root.into(), disk: Disk { faults, durability }, programs: 0 }
    }

    /// The same, which keeps so many bytes of programs and libraries that its images have in common.
    #[must_use]
    pub fn with_programs(self, programs: u64) -> Self {
        Self { programs, ..self }
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn jobs_path(&self) -> PathBuf {
        self.root.join("jobs")
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn job_path(&self, job: &JobName) -> PathBuf {
        self.jobs_path().join(job.as_str())
    }

    /// Begins the next checkpoint of a job. Sweeps what dead writers of that job left behind.
    pub fn begin(&self, job: &JobName) -> Result<DirectorySink, Error> {
        let path = self.job_path(job);
        let lock_path = path.join(LOCK);
        let mut lock = self.take_lock(&path, &lock_path)?;
        self.sweep_locked(&path)?;
        let number = next_number(&mut lock, &path)?;
        // Over the one before, which is never longer: on a full disk that one stays.
        let digits = number.to_string();
        let length = u64::try_from(digits.len()).unwrap_or(u64::MAX);
        lock.rewind().map_err(|error| failed("writing", &lock_path, error))?;
        self.disk.write(&lock, &lock_path, digits.as_bytes())?;
        lock.set_len(length).map_err(|error| failed("writing", &lock_path, error))?;
        let temporary = path.join(format!("{NEW}{number}-{}", random_suffix()?));
        let snapshot = SnapshotId { image: ImageId(random()?), place: Some((job.clone(), number)) };
        let sharing = Sharing::new(self.disk.clone(), Some((job.clone(), path.clone())));
        let target = path.join(number.to_string());
        let sink = DirectorySink::begin(snapshot, temporary, target, LockPath::File(lock_path), sharing);
        let programs = (self.programs > 0).then(|| Shelf::of(&self.disk, &self.root, self.programs));
        Ok(sink?.with_programs(programs))
    }

    /// Locks a job, making its directory: a writer that gives up may just be removing it.
    fn take_lock(&self, job: &Path, lock: &Path) -> Result<fs::File, Error> {
        const TRIES: usize = 100;
        for _ in 1..TRIES {
            self.disk.create_dir_all(job)?;
            match lock::take(lock) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return Ok(other?),
            }
        }
        self.disk.create_dir_all(job)?;
        Ok(lock::take(lock)?)
    }

    /// Removes what dead writers left behind, in all jobs. Returns how many.
    pub fn sweep(&self) -> Result<usize, Error> {
        let mut swept = 0;
        for job in self.jobs()? {
            let path = self.job_path(&job);
            let lock = lock::take(&path.join(LOCK))?;
            swept += self.sweep_locked(&path)?;
            drop(lock);
        }
        Ok(swept)
    }

    fn sweep_locked(&self, job: &Path) -> Result<usize, Error> {
        let mut swept = sweep_prefix(&self.disk, job, NEW)?;
        for name in names_in(job)?.iter().filter(|name| name.starts_with(GONE)) {
            self.disk.remove_dir_all(&job.join(name))?;
            swept += 1;
        }
        Ok(swept + pins::sweep(&self.disk, job)?)
    }

    /// The jobs that have ever been checkpointed here, by name.
    pub fn jobs(&self) -> Result<Vec<JobName>, Error> {
        let mut jobs: Vec<JobName> =
            names_in(&self.jobs_path())?.into_iter().filter_map(|name| JobName::new(name).ok()).collect();
        jobs.sort();
        Ok(jobs)
    }

    /// The numbers of a job's committed checkpoints, oldest first.
    pub fn sequences(&self, job: &JobName) -> Result<Vec<u64>, Error> {
        sequences_in(&self.job_path(job))
    }

    /// A job's committed checkpoints, oldest first.
    pub fn list_job(&self, job: &JobName) -> Result<Vec<Entry>, Error> {
        let entry = |sequence: u64| {
            let path = self.job_path(job).join(sequence.to_string());
            let source = DirectorySource::open(&path).map_err(ImageError::from);
            let manifest = source.and_then(|source| ImageReader::manifest_of(&source));
            Entry { job: job.clone(), sequence, path, manifest }
        };
        Ok(self.sequences(job)?.into_iter().map(entry).collect())
    }

    /// All committed checkpoints, by job and then oldest first.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut all = Vec::new();
        for job in self.jobs()? {
            all.extend(self.list_job(&job)?);
        }
        Ok(all)
    }

    /// Where the checkpoint lies that a user means.
    pub fn find(&self, selector: &Selector) -> Result<PathBuf, Error> {
        let (job, wanted) = match selector {
            Selector::Path(path) => return Ok(path.clone()),
            Selector::Newest(job) => (job, None),
            Selector::Snapshot(job, sequence) => (job, Some(*sequence)),
        };
        let sequences = self.sequences(job)?;
        let root = self.root.clone();
        let newest = sequences.last().copied().ok_or(Error::NoJob { job: job.clone(), root })?;
        let sequence = wanted.unwrap_or(newest);
        if !sequences.contains(&sequence) {
            return Err(Error::NoSnapshot { job: job.clone(), sequence, root: self.root.clone() });
        }
        Ok(self.job_path(job).join(sequence.to_string()))
    }

    /// Opens the checkpoint that a user means.
    pub fn source(&self, selector: &Selector) -> Result<Box<dyn Source>, Error> {
        open_path(&self.find(selector)?)
    }

    /// Removes a checkpoint that is not pinned. Whoever has it open can go on reading it.
    pub fn remove(&self, job: &JobName, sequence: u64) -> Result<(), Error> {
        let gone = self.take_away(job, sequence)?;
        let path = self.job_path(job);
        if sequences_in(&path)?.is_empty() {
            self.disk.remove_dir_all(&path.join(FREE))?;
        }
        self.disk.remove_dir_all(&gone)?;
        shelf::sweep(&self.disk, &self.root);
        Ok(())
    }

    /// Removes a checkpoint to make room for the next ones: some of its files are kept, to be written over by them.
    pub fn retire(&self, job: &JobName, sequence: u64) -> Result<(), Error> {
        let gone = self.take_away(job, sequence)?;
        let path = self.job_path(job);
        let newest = sequences_in(&path)?.last().map(|newest| path.join(newest.to_string()));
        let newest = newest.and_then(|newest| DirectorySource::open(&newest).ok());
        if let Some(manifest) = newest.and_then(|newest| ImageReader::manifest_of(&newest).ok()) {
            Pool::of(&self.disk, &path).give(&gone, manifest.total_size());
        }
        self.disk.remove_dir_all(&gone)?;
        shelf::sweep(&self.disk, &self.root);
        Ok(())
    }

    /// Makes a checkpoint invisible that nobody has pinned.
    fn take_away(&self, job: &JobName, sequence: u64) -> Result<PathBuf, Error> {
        let path = self.job_path(job);
        let image = path.join(sequence.to_string());
        if !image.is_dir() {
            return Err(Error::NoSnapshot { job: job.clone(), sequence, root: self.root.clone() });
        }
        let lock = lock::take(&path.join(LOCK))?;
        if pins::is_pinned(&path, sequence) {
            return Err(Error::Pinned { job: job.clone(), sequence });
        }
        // What dead writers have left is in nobody's way, and who removes wants room.
        self.sweep_locked(&path).ok();
        let gone = path.join(format!("{GONE}{sequence}-{}", random_suffix()?));
        self.disk.rename(&image, &gone)?;
        drop(lock);
        Ok(gone)
    }

    /// The files of a checkpoint: the number of each, which it has in common with other checkpoints that hold the same file, and
    /// the bytes that it takes. Clones are left out, as what of them is nobody else's cannot be told, and programs, which do not go
    /// with it as long as others need them.
    pub fn files(&self, job: &JobName, sequence: u64) -> Result<Vec<(u64, u64)>, Error> {
        const BLOCK: u64 = 512;
        let path = self.job_path(job).join(sequence.to_string());
        let mut files = Vec::new();
        for name in names_in(&path)?
            .into_iter()
            .filter(|name| !name.starts_with(CLONE) && !name.starts_with(ContentKey::PREFIX))
        {
            let found = fs::symlink_metadata(path.join(&name)).map_err(|error| failed("reading", &path, error))?;
            files.push((found.ino(), found.blocks().saturating_mul(BLOCK)));
        }
        Ok(files)
    }

    /// The room that the clones of a checkpoint take at most.
    pub fn clones(&self, job: &JobName, sequence: u64) -> Result<u64, Error> {
        const BLOCK: u64 = 512;
        let path = self.job_path(job).join(sequence.to_string());
        let clones = names_in(&path)?.into_iter().filter(|name| name.starts_with(CLONE));
        let blocks = clones.filter_map(|name| fs::symlink_metadata(path.join(name)).ok()).map(|found| found.blocks());
        Ok(blocks.fold(0, u64::saturating_add).saturating_mul(BLOCK))
    }

    /// What the file system of the store has left for everybody, once what was removed is gone for good.
    pub fn room(&self) -> Result<u64, Error> {
        let wrong = |error: rustix::io::Errno| failed("looking at", &self.root, error.into());
        let root = fs::File::open(&self.root).map_err(|error| failed("opening", &self.root, error))?;
        rustix::fs::syncfs(&root).map_err(wrong)?;
        let there = rustix::fs::fstatvfs(&root).map_err(wrong)?;
        Ok(there.f_bavail.saturating_mul(there.f_frsize))
    }

    /// Retires the oldest checkpoints of a job until `keep` are left, at least one, or only pinned ones. Returns the numbers
    /// removed.
    pub fn prune(&self, job: &JobName, keep: usize) -> Result<Vec<u64>, Error> {
        let sequences = self.sequences(job)?;
        let surplus = sequences.len().saturating_sub(keep.max(1));
        let pins = self.pins(job)?;
        let old: Vec<u64> =
            sequences.into_iter().take(surplus).filter(|sequence| !pins.contains_key(sequence)).collect();
        for sequence in &old {
            self.retire(job, *sequence)?;
        }
        Ok(old)
    }
}

/// Removes the temporary directories of dead writers. The caller holds the lock around them.
pub(crate) fn sweep_prefix(disk: &Disk, directory: &Path, prefix: &str) -> Result<usize, Error> {
    let mut swept = 0;
    for name in names_in(directory)?.iter().filter(|name| name.starts_with(prefix)) {
        let path = directory.join(name);
        if path.is_dir() && is_dead(&path)? {
            disk.remove_dir_all(&path)?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Names in a directory; none when it does not exist. Names that are not UTF-8 are not ours.
pub(crate) fn names_in(path: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| failed("reading", path, error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed("reading", path, error))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

pub(crate) fn sequences_in(job: &Path) -> Result<Vec<u64>, Error> {
    let mut all: Vec<u64> = names_in(job)?.iter().filter_map(|name| sequence(name)).collect();
    all.sort_unstable();
    Ok(all)
}

/// One more than any number that was ever given, so that a name never comes to mean another checkpoint.
fn next_number(lock: &mut fs::File, job: &Path) -> Result<u64, Error> {
    let mut text = String::new();
    // Whatever else stands in the file, the directory still tells the numbers in use.
    lock.by_ref().take(32).read_to_string(&mut text).ok();
    let given = sequence(text.trim()).unwrap_or(0);
    let used = sequences_in(job)?.last().copied().unwrap_or(0);
    Ok(given.max(used).saturating_add(1))
}

/// Removes the directory of a job whose first checkpoint came to nothing, unless somebody else is at work there.
pub(crate) fn forget_empty(disk: &Disk, lock_path: &Path) -> Result<(), Error> {
    let Some(job) = lock_path.parent().filter(|job| job.is_dir()) else { return Ok(()) };
    let Some(mut lock) = lock::try_take(lock_path)? else { return Ok(()) };
    if next_number(&mut lock, job)? == 2 && names_in(job)?.iter().all(|name| name == LOCK) {
        disk.remove_file(lock_path)?;
        disk.remove_dir(job)?;
    }
    Ok(())
}

/// Whether nobody writes in a temporary directory any more. The caller holds the job's lock, so none is half made.
fn is_dead(temporary: &Path) -> Result<bool, Error> {
    let path = temporary.join(LIVE);
    match fs::OpenOptions::new().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(failed("opening", &path, error).into()),
        Ok(file) => Ok(lock::is_taken_now(&file, &path)?),
    }
}
