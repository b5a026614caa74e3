//! Parts that an image has in common with the one before: the same files, by hard links.
//!
//! A part is only ever appended to, so each image says how many bytes of it are its own and what lies behind means nothing
//! to it. One writer of a job at a time goes on with parts of it; the job's lock for that is held until it ends, and holds
//! the number of the last image that did.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use hdcr_image::{ImageReader, JobName, Manifest, PartName, SnapshotId, StoreError};
use rustix::fs::{Mode, OFlags};

use crate::disk::{Disk, failed};
use crate::lock;
use crate::pool::Pool;
use crate::source::DirectorySource;
use crate::store::sequences_in;

/// Held by the one writer of a job that goes on with parts of another image.
const EXTENDING: &str = ".extending";

/// What an image in the making takes from others of its job.
#[derive(Debug)]
pub(crate) struct Sharing {
    disk: Disk,
    /// `None` for an image outside of a store.
    job: Option<(JobName, PathBuf)>,
    /// The base, once it was found to be what it should be.
    base: Option<SnapshotId>,
    extending: Option<File>,
    /// Something could not be extended: another image has more of it.
    parted: bool,
}

/// A file may be so much longer than what is used of it before it is cut off: to write over it is cheaper than to write it anew.
pub(crate) const TAIL: u64 = 66 << 20;

impl Sharing {
    pub(crate) fn new(disk: Disk, job: Option<(JobName, PathBuf)>) -> Self {
        Self { disk, job, base: None, extending: None, parted: false }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Lets others go on with what was extended.
    pub(crate) fn end(&mut self) {
        self.extending = None;
    }

    /// The segments that can be written over; `None` outside of a store.
    pub(crate) fn pool(&self) -> Option<Pool> {
        self.job.as_ref().map(|(_, job)| Pool::of(&self.disk, job))
    }

    /// Notes who has what was extended, before it is there: whoever goes on from that image needs no look at the others.
    pub(crate) fn note(&self, snapshot: &SnapshotId) -> Result<(), StoreError> {
        let (Some(file), Some((_, job)), Some((_, number))) = (&self.extending, &self.job, &snapshot.place) else {
            return Ok(());
        };
        let path = job.join(EXTENDING);
        // Where chains part, the last one to extend something is not the one that has the most of everything.
        let number = if self.parted { 0 } else { *number };
        let mut file = file;
        file.rewind().map_err(|error| failed("writing", &path, error))?;
        self.disk.write(file, &path, format!("{number:<20}").as_bytes())
    }

    /// Whether that image was the last one of which something was extended.
    fn is_last(&self, base: &SnapshotId) -> bool {
        let mut text = [0; 20];
        let read = self.extending.as_ref().is_some_and(|file| file.read_exact_at(&mut text, 0).is_ok());
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse::<u64>().ok());
        read && number.is_some() && number == base.place.as_ref().map(|place| place.1)
    }

    /// Where the base lies; `None` when it is not one that parts could be taken from.
    pub(crate) fn place_of(&self, base: &SnapshotId) -> Option<PathBuf> {
        let (job, path) = self.job.as_ref()?;
        let (_, sequence) = base.place.as_ref().filter(|(theirs, _)| theirs == job)?;
        Some(path.join(sequence.to_string()))
    }

    /// Whether parts of that image can be had: it is there, and its files can have more names.
    pub(crate) fn can_share(&self, base: &SnapshotId, temporary: &Path) -> bool {
        let tried = self.find(base).and_then(|path| {
            let probe = temporary.join(".probe");
            self.disk.link_again(&path.join(PartName::Manifest.to_string()), &probe)?;
            self.disk.remove_file(&probe)
        });
        tried.is_ok()
    }

    /// The directory of the base, whose manifest was seen to be its.
    fn find(&self, base: &SnapshotId) -> Result<PathBuf, StoreError> {
        let path = self.place_of(base).ok_or_else(|| StoreError::shares_nothing(format!("parts of {base}")))?;
        if self.base.as_ref() == Some(base) {
            return Ok(path);
        }
        let found = manifest_of(&path);
        if found.is_some_and(|manifest| manifest.id == *base) {
            return Ok(path);
        }
        Err(failed("sharing parts of", &path, io::ErrorKind::NotFound.into()))
    }

    fn settle(&mut self, base: &SnapshotId) -> Result<PathBuf, StoreError> {
        let path = self.find(base)?;
        self.base = Some(base.clone());
        Ok(path)
    }

    /// Gives a part of the base a name in the new image.
    pub(crate) fn share(&mut self, base: &SnapshotId, name: PartName, new: &Path) -> Result<(), StoreError> {
        let from = self.settle(base)?.join(name.to_string());
        // By its name, which is the base's until the base goes: a file that is in the pool by then has two names and is not
        // written over.
        self.disk.link_again(&from, new)?;
        let found = std::fs::symlink_metadata(new).map_err(|error| failed("reading", new, error))?;
        if found.is_file() { Ok(()) } else { Err(not_a_file(&from)) }
    }

    /// The same, and leaves the file where the bytes of the base end.
    pub(crate) fn extend(
        &mut self,
        base: &SnapshotId,
        name: PartName,
        at: u64,
        new: &Path,
    ) -> Result<File, StoreError> {
        let from = self.settle(base)?;
        self.take_turn()?;
        let mut file = held(&from, name, OFlags::RDWR)?;
        let path = from.join(name.to_string());
        let found = file.metadata().map_err(|error| failed("reading", &path, error))?;
        if found.len() < at {
            let short = io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than its image says");
            return Err(failed("sharing", &path, short));
        }
        if found.len() > at && !self.is_last(base) {
            let parted = std::mem::replace(&mut self.parted, true);
            self.refuse_covered(base, name, found.ino(), at)?;
            // Somebody may still read an image that is gone.
            if !lock::is_taken_now(&file, &path)? {
                return Err(StoreError::Busy { subject: path.display().to_string() });
            }
            self.parted = parted;
        }
        if found.len() > at.saturating_add(TAIL) {
            self.disk.truncate(&file, &path, at)?;
        }
        file.seek(SeekFrom::Start(at)).map_err(|error| failed("writing", &path, error))?;
        self.disk.link(&file, new)?;
        lock::let_go(&file, &path)?;
        Ok(file)
    }

    /// Nobody else goes on with a part of this job from now on.
    fn take_turn(&mut self) -> Result<(), StoreError> {
        let Some((_, job)) = self.job.as_ref().filter(|_| self.extending.is_none()) else { return Ok(()) };
        let path = job.join(EXTENDING);
        let taken = lock::try_take(&path)?;
        self.extending = Some(taken.ok_or_else(|| StoreError::Busy { subject: path.display().to_string() })?);
        Ok(())
    }

    /// What lies behind the base's bytes may be left by a writer that gave up, or be another image's: one that went on from
    /// the same base. Then it stays.
    fn refuse_covered(&self, base: &SnapshotId, name: PartName, inode: u64, at: u64) -> Result<(), StoreError> {
        let Some((_, job)) = &self.job else { return Ok(()) };
        let sequences = sequences_in(job).map_err(|error| failed("reading", job, io::Error::other(error)))?;
        for sequence in sequences.into_iter().filter(|number| base.place.as_ref().is_none_or(|own| own.1 != *number)) {
            let image = job.join(sequence.to_string());
            let path = image.join(name.to_string());
            let same = std::fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == inode);
            if same && manifest_of(&image).is_none_or(|manifest| covered(&manifest, name) > at) {
                return Err(StoreError::Busy { subject: path.display().to_string() });
            }
        }
        Ok(())
    }
}

fn manifest_of(image: &Path) -> Option<Manifest> {
    ImageReader::manifest_of(&DirectorySource::open(image).ok()?).ok()
}

/// How many bytes of a part an image covers.
fn covered(manifest: &Manifest, name: PartName) -> u64 {
    let segment = |segment: &&hdcr_image::SegmentFacts| PartName::Pages(segment.number) == name;
    let log = manifest.log.filter(|log| PartName::Index(log.number) == name).map(|log| log.size);
    manifest.segments.iter().find(segment).map(|segment| segment.size).or(log).unwrap_or(0)
}

/// Opens a part of a committed image and keeps it from being written over as long as the file is open and not let go.
fn held(image: &Path, name: PartName, access: OFlags) -> Result<File, StoreError> {
    let file = open_part(image, name, access)?;
    let path = image.join(name.to_string());
    lock::hold(&file, &path)?;
    let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
    let here = file.metadata().map(identity).map_err(|error| failed("reading", &path, error))?;
    if std::fs::symlink_metadata(&path).map(identity).ok() == Some(here) {
        return Ok(file);
    }
    // The image went before the lock was taken.
    Err(failed("sharing", &path, io::ErrorKind::NotFound.into()))
}

/// Opens a part of a committed image, which is a regular file.
fn open_part(image: &Path, name: PartName, access: OFlags) -> Result<File, StoreError> {
    let path = image.join(name.to_string());
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(&path, flags, Mode::empty());
    let file = File::from(file.map_err(|error| failed("opening", &path, error.into()))?);
    let kind = file.metadata().map_err(|error| failed("reading", &path, error))?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(not_a_file(&path))
}

fn not_a_file(path: &Path) -> StoreError {
    failed("opening", path, io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}
