//! Writing a whole image into one file.
//!
//! Where the file system can, the file has no name until it is whole, so that a writer that is killed leaves nothing; else
//! it has a temporary one beside its own, which the next writer sweeps.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hdcr_image::bundle::BundleWriter;
use hdcr_image::{ImageId, PartName, Sink, SnapshotId, StoreError, WritePart};

use crate::disk::{Disk, Durability, Faults, Replaced, failed, random, random_suffix};
use crate::error::Error;
use crate::lock;

/// An image file in the making.
#[derive(Debug)]
pub struct FileSink {
    disk: Disk,
    snapshot: SnapshotId,
    target: PathBuf,
    directory: PathBuf,
    shared: Arc<Shared>,
    /// The file has a temporary name.
    named: bool,
    visible: bool,
}

#[derive(Debug)]
struct Shared {
    disk: Disk,
    /// The name that the file has, or will have when another one has to make way for it.
    temporary: PathBuf,
    file: File,
    bundle: Mutex<Option<BundleWriter>>,
}

impl Shared {
    fn append(&self, part: PartName, bytes: &[u8]) -> Result<(), StoreError> {
        let mut bundle = self.bundle.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || failed("writing", &self.temporary, io::ErrorKind::InvalidInput.into());
        let bundle = bundle.as_mut().ok_or_else(closed)?;
        self.disk.write(&self.file, &self.temporary, bytes)?;
        bundle.appended(part, bytes.len());
        Ok(())
    }
}

impl FileSink {
    /// Begins an image that will be this file, taking the place of a regular file of that name.
    pub fn create(target: &Path, durability: Durability) -> Result<Self, Error> {
        Self::with_faults(target, durability, Faults::default())
    }

    /// As [`FileSink::create`], on a file system that fails as planned.
    pub fn with_faults(target: &Path, durability: Durability, faults: Faults) -> Result<Self, Error> {
        let disk = Disk { faults, durability };
        let bad = |why| Error::BadTarget { path: target.to_owned(), why };
        let name = target.file_name().ok_or_else(|| bad("it is not the name of a file"))?;
        if std::fs::metadata(target).is_ok_and(|found| !found.is_file()) {
            return Err(bad("something other than a regular file is there"));
        }
        let directory = directory_around(target)?;
        let prefix = format!(".{}.new-", name.to_string_lossy());
        sweep(&disk, &directory, &prefix)?;
        let (temporary, file, named) = match create_unnamed(&disk, &directory, &prefix)? {
            Some((temporary, file)) => (temporary, file, false),
            None => create_locked(&disk, &directory, &prefix).map(|(temporary, file)| (temporary, file, true))?,
        };
        Self::begin(disk, target, directory, (temporary, file, named))
    }

    fn begin(
        disk: Disk,
        target: &Path,
        directory: PathBuf,
        (temporary, file, named): (PathBuf, File, bool),
    ) -> Result<Self, Error> {
        let snapshot = SnapshotId { image: ImageId(random()?), place: None };
        let bundle = BundleWriter::new(snapshot.image)?;
        let header = bundle.header().to_vec();
        let shared = Shared { disk: disk.clone(), temporary, file, bundle: Mutex::new(Some(bundle)) };
        let shared = Arc::new(shared);
        let sink = Self { disk, snapshot, target: target.to_owned(), directory, shared, named, visible: false };
        sink.disk.write(&sink.shared.file, &sink.shared.temporary, &header)?;
        Ok(sink)
    }

    /// Gives the file its name. What fails afterwards is undone, and an older file of that name is there again.
    fn publish(&mut self) -> Result<(), StoreError> {
        if self.named {
            return self.replace();
        }
        let (file, target) = (&self.shared.file, &self.target);
        match self.disk.link(file, target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                return self.disk.sync_dir(&self.directory).or_else(|error| {
                    self.disk.remove_file(target)?;
                    Err(error)
                });
            }
        }
        self.disk.link(file, &self.shared.temporary)?;
        self.named = true;
        self.replace()
    }

    /// Renames the file over another one.
    fn replace(&self) -> Result<(), StoreError> {
        let (temporary, target) = (&self.shared.temporary, &self.target);
        let replaced = self.disk.put_in_place(temporary, target)?;
        if let Err(error) = self.disk.sync_dir(&self.directory) {
            match replaced {
                Replaced::Nothing => self.disk.rename(target, temporary)?,
                Replaced::Kept => drop(self.disk.put_in_place(temporary, target)?),
                Replaced::Lost => {}
            }
            return Err(error);
        }
        if replaced == Replaced::Kept {
            // The image is committed; what was there before is swept by the next writer if it stays now.
            self.disk.remove_file(temporary).ok();
        }
        Ok(())
    }
}

/// Makes a file without a name and takes its lock, before anybody can see it. `None`: the file system has no such files.
fn create_unnamed(disk: &Disk, directory: &Path, prefix: &str) -> Result<Option<(PathBuf, File)>, Error> {
    let path = directory.join(format!("{prefix}{}", random_suffix()?));
    let Some(file) = disk.create_unnamed(directory)? else { return Ok(None) };
    Ok(lock::is_taken_now(&file, &path)?.then_some((path, file)))
}

/// The directory that an image outside of a store is to lie in.
pub(crate) fn directory_around(target: &Path) -> Result<PathBuf, Error> {
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new(".")).to_owned();
    if directory.is_dir() {
        Ok(directory)
    } else {
        Err(Error::BadTarget { path: target.to_owned(), why: "the directory around it does not exist" })
    }
}

/// Makes a temporary file and takes its lock; anew when a sweep came in between.
fn create_locked(disk: &Disk, directory: &Path, prefix: &str) -> Result<(PathBuf, File), Error> {
    for _ in 0..16 {
        let path = directory.join(format!("{prefix}{}", random_suffix()?));
        let file = disk.create_file(&path)?;
        let ours = file.metadata().map_err(|error| failed("reading", &path, error))?.ino();
        let taken = lock::is_taken_now(&file, &path)?;
        if taken && std::fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == ours) {
            return Ok((path, file));
        }
    }
    Err(Error::Store(StoreError::Busy { subject: directory.join(prefix).display().to_string() }))
}

fn sweep(disk: &Disk, directory: &Path, prefix: &str) -> Result<(), Error> {
    let entries = std::fs::read_dir(directory).map_err(|error| failed("reading", directory, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| failed("reading", directory, error))?;
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        // For writing, too: a network file system gives no lock else.
        let dead = match File::options().read(true).write(true).open(&path) {
            Ok(file) => lock::is_taken_now(&file, &path)?,
            Err(_) => false,
        };
        if dead {
            disk.remove_file(&path)?;
        }
    }
    Ok(())
}

impl Sink for FileSink {
    fn snapshot(&self) -> &SnapshotId {
        &self.snapshot
    }

    fn part(&mut self, name: PartName) -> Result<Box<dyn WritePart>, StoreError> {
        if matches!(name, PartName::Index(_)) {
            // An image in one file stands by itself.
            return Err(StoreError::shares_nothing(self.target.display().to_string()));
        }
        Ok(Box::new(FilePart { name, shared: Arc::clone(&self.shared) }))
    }

    fn persist(&mut self, manifest: &[u8]) -> Result<(), StoreError> {
        self.shared.append(PartName::Manifest, manifest)?;
        let bundle = self.shared.bundle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let end = bundle.map(BundleWriter::finish).unwrap_or_default();
        self.disk.write(&self.shared.file, &self.shared.temporary, &end)?;
        self.disk.sync_file(&self.shared.file, &self.shared.temporary)
    }

    fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        self.publish()?;
        self.visible = true;
        Ok(())
    }

    fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        self.visible = true;
        if self.named { self.disk.remove_file(&self.shared.temporary) } else { Ok(()) }
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        if !self.visible && self.named {
            // Nobody is there to tell; the next writer of this file sweeps what is left.
            self.disk.remove_file(&self.shared.temporary).ok();
        }
    }
}

#[derive(Debug)]
struct FilePart {
    name: PartName,
    shared: Arc<Shared>,
}

impl WritePart for FilePart {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.shared.append(self.name, bytes)
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hdcr_image::{ImageReader, ImageWriter, Options, sample};

    use super::*;
    use crate::source::open_path;

    /// Where a file system has no files without names.
    fn named(target: &Path) -> FileSink {
        let disk = Disk::default();
        let directory = target.parent().unwrap().to_owned();
        let prefix = format!(".{}.new-", target.file_name().unwrap().to_str().unwrap());
        sweep(&disk, &directory, &prefix).unwrap();
        let (temporary, file) = create_locked(&disk, &directory, &prefix).unwrap();
        FileSink::begin(disk, target, directory, (temporary, file, true)).unwrap()
    }

    #[test]
    fn a_temporary_name_goes_and_that_of_a_living_writer_stays() {
        let directory = tempfile::tempdir().unwrap();
        let count = || std::fs::read_dir(directory.path()).unwrap().count();
        let target = directory.path().join("image");
        let living = named(&target);
        std::fs::write(directory.path().join(".image.new-dead"), "").unwrap();
        let writer = ImageWriter::new(Box::new(named(&target)), Options::default()).unwrap();
        assert_eq!(count(), 2, "two living writers");
        writer.finish(sample::facts()).unwrap();
        sample::write(Box::new(living), Options::default()).unwrap();
        drop(named(&target));
        assert_eq!(count(), 1);
        ImageReader::open(open_path(&target).unwrap().as_ref()).unwrap();
    }
}
