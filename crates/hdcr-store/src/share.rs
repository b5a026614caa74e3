//! Parts that an image has in common with the one before: the same files, by hard links.
//!
//! A part is only ever appended to, so each image says how many bytes of it are its own and what lies behind means nothing
//! to it. One writer of a job at a time goes on with parts of it; the job's lock for that is held until it ends.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hdcr_image::{ImageReader, JobName, Manifest, PartName, SnapshotId, StoreError};
use rustix::fs::{Mode, OFlags};

use crate::disk::{Disk, failed};
use crate::lock;
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
}

impl Sharing {
    pub(crate) fn new(disk: Disk, job: Option<(JobName, PathBuf)>) -> Self {
        Self { disk, job, base: None, extending: None }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Lets others go on with what was extended.
    pub(crate) fn end(&mut self) {
        self.extending = None;
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
            let file = open_part(&path, PartName::Manifest, OFlags::RDONLY)?;
            self.disk.link(&file, &probe)?;
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
        let from = self.settle(base)?;
        let file = open_part(&from, name, OFlags::RDONLY)?;
        self.disk.link(&file, new)
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
        let mut file = open_part(&from, name, OFlags::RDWR)?;
        let path = from.join(name.to_string());
        let found = file.metadata().map_err(|error| failed("reading", &path, error))?;
        if found.len() < at {
            let short = io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than its image says");
            return Err(failed("sharing", &path, short));
        }
        if found.len() > at {
            self.refuse_covered(base, name, found.ino(), at)?;
            self.disk.truncate(&file, &path, at)?;
        }
        file.seek(SeekFrom::Start(at)).map_err(|error| failed("writing", &path, error))?;
        self.disk.link(&file, new)?;
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
    Err(failed("opening", &path, io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")))
}
