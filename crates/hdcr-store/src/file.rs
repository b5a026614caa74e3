//! Writing a whole image into one file.
//!
//! Where the file system can, the file has no name until it is whole, so that a writer that is killed leaves nothing; else
//! it has a temporary one beside its own, which the next writer sweeps.
//!
//! An image that makes way for the next one of its name is kept as a spare, `.FILE.free`, for the one after that to be written
//! over: a new file costs several times as much.

use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hdcr_image::bundle::BundleWriter;
use hdcr_image::hdcr_layout::{Header, MAGIC};
use hdcr_image::{ImageId, PartName, Sink, SnapshotId, StoreError, WritePart};
use rustix::fs::FallocateFlags;

use crate::disk::{Disk, Durability, Faults, Replaced, failed, random, random_suffix};
use crate::error::Error;
use crate::lock;
use crate::pool::free;

/// An image file in the making.
#[derive(Debug)]
pub struct FileSink {
    disk: Disk,
    snapshot: SnapshotId,
    target: PathBuf,
    directory: PathBuf,
    shared: Arc<Shared>,
    /// Where an image that makes way is kept.
    spare: PathBuf,
    /// As long it must be to be worth that.
    least: u64,
    /// The file has a temporary name.
    named: bool,
    visible: bool,
}

/// Where a file in the making lies: the name that it has or will get when another one has to make way for it.
#[derive(Debug)]
struct Place {
    temporary: PathBuf,
    file: File,
    named: bool,
}

/// Files of fewer bytes are as quickly made anew, and a spare beside them would only puzzle people.
const WORTH: u64 = 16 << 20;

#[derive(Debug)]
struct Shared {
    disk: Disk,
    /// The name that the file has, or will have when another one has to make way for it.
    temporary: PathBuf,
    file: File,
    /// With the bytes that the disk has not begun with.
    bundle: Mutex<Option<(BundleWriter, u64)>>,
}

impl Shared {
    fn append(&self, part: PartName, bytes: &[u8]) -> Result<(), StoreError> {
        let mut bundle = self.bundle.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || failed("writing", &self.temporary, io::ErrorKind::InvalidInput.into());
        let (bundle, waiting) = bundle.as_mut().ok_or_else(closed)?;
        self.disk.write(&self.file, &self.temporary, bytes)?;
        bundle.appended(part, bytes.len());
        self.disk.begin_writing(&self.file, waiting, bytes.len());
        Ok(())
    }
}

impl FileSink {
    /// Begins an image that will be this file, taking the place of an older image, or of an empty file, of that name.
    pub fn create(target: &Path, durability: Durability) -> Result<Self, Error> {
        Self::with_faults(target, durability, Faults::default())
    }

    /// As [`FileSink::create`], on a file system that fails as planned.
    pub fn with_faults(target: &Path, durability: Durability, faults: Faults) -> Result<Self, Error> {
        Self::with_spares_of(WORTH, target, durability, faults)
    }

    /// The same, and images of so many bytes are worth to be written over.
    fn with_spares_of(least: u64, target: &Path, durability: Durability, faults: Faults) -> Result<Self, Error> {
        let disk = Disk { faults, durability };
        let bad = |why| Error::BadTarget { path: target.to_owned(), why };
        let name = target.file_name().ok_or_else(|| bad("it is not the name of a file"))?;
        if let Some(why) = keeps(target) {
            return Err(bad(why));
        }
        let directory = directory_around(target)?;
        let prefix = format!(".{}.new-", name.to_string_lossy());
        sweep(&disk, &directory, &prefix)?;
        let spare = directory.join(format!(".{}.free", name.to_string_lossy()));
        let place = match take_spare(&disk, &spare, &directory.join(format!("{prefix}{}", random_suffix()?))) {
            Some(place) => place,
            None => match create_unnamed(&disk, &directory, &prefix)? {
                Some(place) => place,
                None => create_locked(&disk, &directory, &prefix)?,
            },
        };
        Self::begin(disk, (target, directory, spare), least, place)
    }

    fn begin(
        disk: Disk,
        (target, directory, spare): (&Path, PathBuf, PathBuf),
        least: u64,
        Place { temporary, file, named }: Place,
    ) -> Result<Self, Error> {
        let snapshot = SnapshotId { image: ImageId(random()?), place: None };
        let bundle = BundleWriter::new(snapshot.image)?;
        let header = bundle.header().to_vec();
        let shared = Shared { disk: disk.clone(), temporary, file, bundle: Mutex::new(Some((bundle, 0))) };
        let shared = Arc::new(shared);
        let target = target.to_owned();
        let sink = Self { disk, snapshot, target, directory, shared, spare, least, named, visible: false };
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

    /// What another program has put there meanwhile is not replaced either.
    fn may_replace(&self) -> Result<(), StoreError> {
        let refused = |why| failed("replacing", &self.target, io::Error::new(io::ErrorKind::AlreadyExists, why));
        keeps(&self.target).map_or(Ok(()), |why| Err(refused(why)))
    }

    /// Renames the file over another one.
    fn replace(&self) -> Result<(), StoreError> {
        self.may_replace()?;
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
            let kept = is_worth(temporary, self.least) && self.disk.rename(temporary, &self.spare).is_ok();
            if !kept {
                self.disk.remove_file(temporary).ok();
            }
        }
        Ok(())
    }
}

/// Why what is there already must stay; `None`: there is nothing, or nothing that an image may not replace.
fn keeps(target: &Path) -> Option<&'static str> {
    let found = std::fs::metadata(target).ok()?;
    if !found.is_file() {
        return Some("something other than a regular file is there");
    }
    if found.len() == 0 {
        return None;
    }
    let mut begin = MAGIC;
    match File::open(target).and_then(|file| file.read_exact_at(&mut begin, 0)) {
        Ok(()) if begin == MAGIC => None,
        Ok(()) => Some("a file that is no image is there, and it would be lost"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Some("a file that is no image is there, and it would be lost")
        }
        Err(_) => Some("a file that cannot be read is there, and may be no image"),
    }
}

/// Whether a file that made way is an image of ours that can be written over, of so many bytes at least.
fn is_worth(path: &Path, least: u64) -> bool {
    free(path).is_some_and(|file| {
        let mut block = [0; Header::SIZE];
        let is_image = file.read_exact_at(&mut block, 0).is_ok() && Header::decode(&block).is_ok();
        is_image && file.metadata().is_ok_and(|found| found.len() >= least)
    })
}

/// Gives the spare a temporary name to be written over under; `None` when there is none that nobody else has.
fn take_spare(disk: &Disk, spare: &Path, temporary: &Path) -> Option<Place> {
    let file = free(spare)?;
    // Its lock is held, so no other writer has it, and none sweeps it.
    disk.rename(spare, temporary).ok()?;
    if lock::is_at(&file, temporary) {
        return Some(Place { temporary: temporary.to_owned(), file, named: true });
    }
    // Another writer was faster and has left its own there.
    disk.rename(temporary, spare).ok();
    None
}

/// Makes a file without a name and takes its lock, before anybody can see it. `None`: the file system has no such files.
fn create_unnamed(disk: &Disk, directory: &Path, prefix: &str) -> Result<Option<Place>, Error> {
    let path = directory.join(format!("{prefix}{}", random_suffix()?));
    let Some(file) = disk.create_unnamed(directory)? else { return Ok(None) };
    let taken = lock::is_taken_now(&file, &path)?;
    Ok(taken.then_some(Place { temporary: path, file, named: false }))
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
fn create_locked(disk: &Disk, directory: &Path, prefix: &str) -> Result<Place, Error> {
    for _ in 0..16 {
        let path = directory.join(format!("{prefix}{}", random_suffix()?));
        let file = disk.create_file(&path)?;
        let ours = file.metadata().map_err(|error| failed("reading", &path, error))?.ino();
        let taken = lock::is_taken_now(&file, &path)?;
        if taken && std::fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == ours) {
            return Ok(Place { temporary: path, file, named: true });
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

    fn unused(&mut self, name: PartName, range: Range<u64>) {
        let bundle = self.shared.bundle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((bundle, _)) = bundle.as_ref() else { return };
        for hole in bundle.places(name, &range) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let length = hole.end.saturating_sub(hole.start);
            // A file system that cannot keeps what is in it.
            rustix::fs::fallocate(&self.shared.file, flags, hole.start, length).ok();
        }
    }

    fn persist(&mut self, manifest: &[u8]) -> Result<(), StoreError> {
        self.shared.append(PartName::Manifest, manifest)?;
        let bundle = self.shared.bundle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let end = bundle.map(|(bundle, _)| bundle.finish()).unwrap_or_default();
        let Shared { file, temporary, .. } = self.shared.as_ref();
        self.disk.write(file, temporary, &end)?;
        // What it was before may have been longer.
        let read = |error| failed("reading", temporary, error);
        let mut position = file;
        let used = position.stream_position().map_err(read)?;
        if file.metadata().map_err(read)?.len() > used {
            self.disk.truncate(file, temporary, used)?;
        }
        self.disk.sync_file(&self.shared.file, &self.shared.temporary)
    }

    fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        self.publish()?;
        // Whoever opens it need not wait.
        lock::let_go(&self.shared.file, &self.target).ok();
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
        let place = create_locked(&disk, &directory, &prefix).unwrap();
        let spare = directory.join(".image.free");
        FileSink::begin(disk, (target, directory, spare), WORTH, place).unwrap()
    }

    fn with_spares(target: &Path, faults: Faults) -> Result<FileSink, Error> {
        FileSink::with_spares_of(1, target, Durability::Fsync, faults)
    }

    fn inode(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn the_one_before_the_last_is_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image");
        let spare = directory.path().join(".image.free");
        let write = || sample::write(Box::new(with_spares(&target, Faults::default()).unwrap()), Options::default());
        write().unwrap();
        assert!(!spare.exists(), "nothing has made way");
        let first = inode(&target);
        write().unwrap();
        assert_eq!(inode(&spare), first);
        // A longer one is cut off at its end.
        File::options().append(true).open(&spare).unwrap().set_len(1 << 20).unwrap();
        let second = inode(&target);
        write().unwrap();
        assert_eq!((inode(&target), inode(&spare)), (first, second));
        let source = open_path(&target).unwrap();
        ImageReader::open(source.as_ref()).unwrap().verify(&mut |_| ()).unwrap();
        // Whoever reads an image keeps it from being written over, also when it has made way meanwhile.
        write().unwrap();
        write().unwrap();
        assert_ne!(inode(&target), first);
        ImageReader::open(source.as_ref()).unwrap().verify(&mut |_| ()).unwrap();
        drop(with_spares(&target, Faults::default()).unwrap());
        assert!(std::fs::read_dir(directory.path()).unwrap().count() <= 2, "one that is given up leaves nothing");
    }

    #[test]
    fn what_is_not_ours_alone_is_not_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image");
        let write = || sample::write(Box::new(with_spares(&target, Faults::default()).unwrap()), Options::default());
        write().unwrap();
        let linked = directory.path().join("linked");
        std::fs::hard_link(&target, &linked).unwrap();
        write().unwrap();
        write().unwrap();
        ImageReader::open(open_path(&linked).unwrap().as_ref()).unwrap().verify(&mut |_| ()).unwrap();
    }

    #[test]
    fn only_an_image_or_nothing_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image");
        let begin = || with_spares(&target, Faults::default());
        let write = || sample::write(Box::new(begin().unwrap()), Options::default());
        for text in ["results of a user, as long as they may be", "short"] {
            std::fs::write(&target, text).unwrap();
            assert!(matches!(begin(), Err(Error::BadTarget { .. })), "{text}");
            assert_eq!(std::fs::read_to_string(&target).unwrap(), text);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        std::fs::write(&target, "").unwrap();
        write().unwrap();
        write().unwrap();
        // Nor what came while the image was written.
        for put in [begin().unwrap(), named(&target)] {
            std::fs::remove_file(&target).unwrap();
            std::fs::write(&target, "results").unwrap();
            assert!(sample::write(Box::new(put), Options::default()).is_err());
            assert_eq!(std::fs::read_to_string(&target).unwrap(), "results");
        }
    }

    #[test]
    fn what_was_replaced_while_it_was_written_takes_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image");
        let mut writer = ImageWriter::new(Box::new(named(&target)), Options::default()).unwrap();
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        for _ in 0..4 {
            let bytes: Vec<u8> = (0..2 << 20).map(|_| noise()).collect();
            writer.pages(1, 0x1000_0000, &bytes).unwrap();
        }
        writer.finish(sample::facts()).unwrap();
        let source = open_path(&target).unwrap();
        ImageReader::open(source.as_ref()).unwrap().verify(&mut |_| ()).unwrap();
        let found = std::fs::metadata(&target).unwrap();
        assert!(found.len() > 8 << 20 && found.blocks() * 512 < 3 << 20, "{} in {}", found.blocks() * 512, found.len());
    }

    /// Whatever call fails, there is a whole image, and nothing is left but a spare.
    #[test]
    fn a_failed_call_over_a_spare_leaves_a_whole_image() {
        for for_good in [false, true] {
            for at in 0.. {
                let directory = tempfile::tempdir().unwrap();
                let target = directory.path().join("image");
                let write = |faults| {
                    sample::write(Box::new(with_spares(&target, faults)?), Options::default()).map_err(Error::from)
                };
                write(Faults::default()).unwrap();
                write(Faults::default()).unwrap();
                let faults = if for_good { Faults::die_at(at) } else { Faults::fail_at(at) };
                write(faults.clone()).ok();
                ImageReader::open(open_path(&target).unwrap().as_ref()).unwrap().verify(&mut |_| ()).unwrap();
                write(Faults::default()).unwrap();
                let left = std::fs::read_dir(directory.path()).unwrap().count();
                assert!(left <= 2, "{left} files after a failure of call {at}");
                if faults.calls_made() <= at {
                    break;
                }
            }
        }
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
