//! Writing an image into a directory.

use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdcr_image::{ContentKey, ImageId, PartName, ReadPart, Sink, SnapshotId, StoreError, WritePart};

use crate::disk::{Disk, Durability, Faults, failed, random, random_suffix};
use crate::error::Error;
use crate::file::directory_around;
use crate::lock;
use crate::pool::Recycled;
use crate::share::{Sharing, TAIL};
use crate::shelf::Shelf;
use crate::source::DirectorySource;
use crate::store::{forget_empty, sweep_prefix};

/// The file that a living writer holds locked.
pub(crate) const LIVE: &str = ".live";

/// What is held locked while names appear and disappear.
#[derive(Clone, Debug)]
pub(crate) enum LockPath {
    /// A file of a job.
    File(PathBuf),
    /// The directory around an image outside of a store.
    Directory(PathBuf),
}

impl LockPath {
    pub(crate) fn take(&self) -> Result<File, StoreError> {
        match self {
            Self::File(path) => lock::take(path),
            Self::Directory(path) => lock::take_directory(path),
        }
    }
}

/// An image directory in the making.
#[derive(Debug)]
pub struct DirectorySink {
    disk: Disk,
    snapshot: SnapshotId,
    temporary: PathBuf,
    target: PathBuf,
    lock: LockPath,
    sharing: Sharing,
    /// Where programs lie that images have in common.
    programs: Option<Shelf>,
    files: Vec<(PathBuf, Arc<File>)>,
    /// Those of them that are written over, locked until they are whole.
    recycled: Vec<(PathBuf, Arc<File>)>,
    /// Parts of other images that are gone on with, and where those images' bytes end.
    extended: Vec<(PathBuf, Arc<File>, u64)>,
    /// Held until the end; `None` once nothing is left to remove.
    live: Option<File>,
}

impl DirectorySink {
    /// Begins an image that will be this directory, which must not exist or be empty.
    pub fn create(target: &Path, durability: Durability) -> Result<Self, Error> {
        let bad = |why| Error::BadTarget { path: target.to_owned(), why };
        let name = target.file_name().ok_or_else(|| bad("it is not the name of a directory"))?;
        let free = match std::fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if !free {
            return Err(bad("it is already there, and not an empty directory"));
        }
        let disk = Disk { faults: Faults::default(), durability };
        let parent = directory_around(target)?;
        let lock = LockPath::Directory(parent.clone());
        let held = lock.take()?;
        let prefix = format!(".{}.new-", name.to_string_lossy());
        sweep_prefix(&disk, &parent, &prefix)?;
        let temporary = parent.join(format!("{prefix}{}", random_suffix()?));
        let snapshot = SnapshotId { image: ImageId(random()?), place: None };
        let sharing = Sharing::new(disk, None);
        let sink = Self::begin(snapshot, temporary, target.to_owned(), lock, sharing);
        drop(held);
        Ok(sink?)
    }

    /// Makes the temporary directory. The caller holds the job's lock.
    pub(crate) fn begin(
        snapshot: SnapshotId,
        temporary: PathBuf,
        target: PathBuf,
        lock: LockPath,
        sharing: Sharing,
    ) -> Result<Self, StoreError> {
        let disk = sharing.disk().clone();
        disk.create_dir(&temporary)?;
        let mut sink = Self {
            disk,
            snapshot,
            temporary,
            target,
            lock,
            sharing,
            programs: None,
            files: Vec::new(),
            recycled: Vec::new(),
            extended: Vec::new(),
            live: None,
        };
        let path = sink.temporary.join(LIVE);
        match sink.disk.create_file(&path) {
            Ok(live) => {
                lock::is_taken_now(&live, &path)?;
                sink.live = Some(live);
                Ok(sink)
            }
            Err(error) => {
                sink.remove().ok();
                Err(error)
            }
        }
    }

    pub(crate) fn with_programs(mut self, programs: Option<Shelf>) -> Self {
        self.programs = programs;
        self
    }

    fn remove(&mut self) -> Result<(), StoreError> {
        self.live = None;
        self.files.clear();
        self.recycled.clear();
        // What was written behind the bytes of others is nobody's, and on a full disk it would stay there.
        for (path, file, end) in self.extended.drain(..) {
            self.disk.truncate(&file, &path, end).ok();
        }
        self.sharing.end();
        self.disk.remove_dir_all(&self.temporary)
    }

    /// A job that has never had a checkpoint leaves nothing in the store.
    fn forget_job(&self) {
        let first = self.snapshot.place.as_ref().is_some_and(|(_, number)| *number == 1);
        if let (LockPath::File(path), true) = (&self.lock, first) {
            // Whatever is left harms nobody, and the next writer goes on from it.
            forget_empty(&self.disk, path).ok();
        }
    }

    /// What is much too long for what it holds now gives back the rest.
    fn cut_tails(&self) -> Result<(), StoreError> {
        for (path, file) in &self.recycled {
            let read = |error| failed("reading", path, error);
            let mut end = file.as_ref();
            let used = end.stream_position().map_err(read)?;
            let found = file.metadata().map_err(read)?.len();
            if found > used.saturating_mul(2).saturating_add(TAIL) {
                self.disk.truncate(file, path, used)?;
            }
        }
        Ok(())
    }

    /// Renames the directory in. What fails afterwards is undone.
    fn publish(&mut self) -> Result<(), StoreError> {
        let live = self.temporary.join(LIVE);
        self.disk.remove_file(&live)?;
        self.disk.rename(&self.temporary, &self.target)?;
        let parent = self.target.parent().unwrap_or(Path::new("."));
        if let Err(error) = self.disk.sync_dir(parent) {
            // Better no image than one that is there today and gone after a power cut.
            if let Err(error) = self.disk.rename(&self.target, &self.temporary) {
                // It is there after all, and what it has written is not to be cut off.
                self.extended.clear();
                return Err(error);
            }
            return Err(error);
        }
        Ok(())
    }
}

impl Sink for DirectorySink {
    fn snapshot(&self) -> &SnapshotId {
        &self.snapshot
    }

    fn home(&self) -> Option<&Path> {
        Some(&self.temporary)
    }

    fn part(&mut self, name: PartName) -> Result<Box<dyn WritePart>, StoreError> {
        let path = self.temporary.join(name.to_string());
        let pool = self.sharing.pool().filter(|_| matches!(name, PartName::Pages(_)));
        let (file, generation) = match pool.and_then(|pool| pool.take(&path)) {
            Some(Recycled { file, generation }) => {
                let file = Arc::new(file);
                self.recycled.push((path.clone(), Arc::clone(&file)));
                (file, generation)
            }
            None => (Arc::new(self.disk.create_file(&path)?), 1),
        };
        self.files.push((path.clone(), Arc::clone(&file)));
        Ok(Box::new(DirectoryPart { disk: self.disk.clone(), path, file, generation, waiting: 0 }))
    }

    fn can_share(&self, base: &SnapshotId) -> bool {
        self.sharing.can_share(base, &self.temporary)
    }

    fn share(&mut self, base: &SnapshotId, name: PartName) -> Result<(), StoreError> {
        self.sharing.share(base, name, &self.temporary.join(name.to_string()))
    }

    fn extend(&mut self, base: &SnapshotId, name: PartName, at: u64) -> Result<Box<dyn WritePart>, StoreError> {
        let path = self.temporary.join(name.to_string());
        let file = Arc::new(self.sharing.extend(base, name, at, &path)?);
        self.extended.push((path.clone(), Arc::clone(&file), at));
        self.files.push((path.clone(), Arc::clone(&file)));
        Ok(Box::new(DirectoryPart { disk: self.disk.clone(), path, file, generation: 1, waiting: 0 }))
    }

    fn attach(&mut self, name: PartName, file: File) -> Result<(), StoreError> {
        let path = self.temporary.join(name.to_string());
        self.disk.link(&file, &path)?;
        self.files.push((path, Arc::new(file)));
        Ok(())
    }

    fn room_in_common(&mut self) -> Option<u64> {
        self.programs.as_mut().map(Shelf::room)
    }

    fn take_in_common(&mut self, key: &ContentKey, size: u64) -> bool {
        let to = self.temporary.join(key.part());
        self.programs.as_ref().is_some_and(|programs| programs.take(key, size, &to))
    }

    fn keep_in_common(&mut self, file: &File, size: u64) -> Result<Option<ContentKey>, StoreError> {
        self.programs.as_mut().map_or(Ok(None), |programs| programs.copy(file, size, &self.temporary))
    }

    fn reader(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        DirectorySource::open(&self.temporary)?.own_part(name)
    }

    fn persist(&mut self, manifest: &[u8]) -> Result<(), StoreError> {
        let path = self.temporary.join(PartName::Manifest.to_string());
        let file = self.disk.create_file(&path)?;
        self.disk.write(&file, &path, manifest)?;
        self.files.push((path, Arc::new(file)));
        self.cut_tails()?;
        for (path, file) in &self.files {
            self.disk.sync_file(file, path)?;
        }
        self.programs.as_ref().map_or(Ok(()), Shelf::sync)?;
        self.disk.sync_dir(&self.temporary)?;
        if let Some(programs) = &mut self.programs {
            programs.fill();
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        // Whoever opens it must find it free, from the first moment on.
        self.recycled.iter().try_for_each(|(path, file)| lock::let_go(file, path))?;
        self.sharing.note(&self.snapshot)?;
        let held = self.lock.take()?;
        let published = self.publish();
        if published.is_ok() {
            self.live = None;
            self.files.clear();
            self.recycled.clear();
            self.extended.clear();
            self.sharing.end();
            self.temporary = PathBuf::new();
        }
        drop(held);
        published
    }

    fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        let removed = self.remove();
        self.temporary = PathBuf::new();
        self.forget_job();
        removed
    }
}

impl Drop for DirectorySink {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            // Nobody is there to tell; the next writer sweeps what is left.
            self.remove().ok();
            self.forget_job();
        }
    }
}

#[derive(Debug)]
struct DirectoryPart {
    disk: Disk,
    path: PathBuf,
    file: Arc<File>,
    generation: u64,
    /// Bytes that the disk has not begun with.
    waiting: u64,
}

impl WritePart for DirectoryPart {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.disk.write(&self.file, &self.path, bytes)?;
        self.disk.begin_writing(&self.file, &mut self.waiting, bytes.len());
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}
