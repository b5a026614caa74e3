//! Writing an image into a directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdcr_image::{PartName, Sink, SnapshotId, StoreError, WritePart};

use crate::disk::Disk;
use crate::lock;

/// The file that a living writer holds locked.
pub(crate) const LIVE: &str = ".live";

/// An image directory in the making.
#[derive(Debug)]
pub struct DirectorySink {
    disk: Disk,
    snapshot: SnapshotId,
    temporary: PathBuf,
    target: PathBuf,
    job_lock: PathBuf,
    files: Vec<(PathBuf, Arc<File>)>,
    /// Held until the end; `None` once nothing is left to remove.
    live: Option<File>,
}

impl DirectorySink {
    /// Makes the temporary directory. The caller holds the job's lock.
    pub(crate) fn begin(
        disk: Disk,
        snapshot: SnapshotId,
        temporary: PathBuf,
        target: PathBuf,
        job_lock: PathBuf,
    ) -> Result<Self, StoreError> {
        disk.create_dir(&temporary)?;
        let mut sink = Self { disk, snapshot, temporary, target, job_lock, files: Vec::new(), live: None };
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

    fn remove(&mut self) -> Result<(), StoreError> {
        self.live = None;
        self.files.clear();
        self.disk.remove_dir_all(&self.temporary)
    }

    /// Renames the directory in. What fails afterwards is undone.
    fn publish(&mut self) -> Result<(), StoreError> {
        let live = self.temporary.join(LIVE);
        self.disk.remove_file(&live)?;
        self.disk.rename(&self.temporary, &self.target)?;
        let parent = self.target.parent().unwrap_or(Path::new("."));
        if let Err(error) = self.disk.sync_dir(parent) {
            // Better no image than one that is there today and gone after a power cut.
            self.disk.rename(&self.target, &self.temporary)?;
            return Err(error);
        }
        Ok(())
    }
}

impl Sink for DirectorySink {
    fn snapshot(&self) -> &SnapshotId {
        &self.snapshot
    }

    fn part(&mut self, name: PartName) -> Result<Box<dyn WritePart>, StoreError> {
        let path = self.temporary.join(name.to_string());
        let file = Arc::new(self.disk.create_file(&path)?);
        self.files.push((path.clone(), Arc::clone(&file)));
        Ok(Box::new(DirectoryPart { disk: self.disk.clone(), path, file }))
    }

    fn persist(&mut self, manifest: &[u8]) -> Result<(), StoreError> {
        let path = self.temporary.join(PartName::Manifest.to_string());
        let file = self.disk.create_file(&path)?;
        self.disk.write(&file, &path, manifest)?;
        self.files.push((path, Arc::new(file)));
        for (path, file) in &self.files {
            self.disk.sync_file(file, path)?;
        }
        self.disk.sync_dir(&self.temporary)
    }

    fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        let job_lock = lock::take(&self.job_lock)?;
        let published = self.publish();
        if published.is_ok() {
            self.live = None;
            self.files.clear();
            self.temporary = PathBuf::new();
        }
        drop(job_lock);
        published
    }

    fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        let removed = self.remove();
        self.temporary = PathBuf::new();
        removed
    }
}

impl Drop for DirectorySink {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            // Nobody is there to tell; the next writer sweeps what is left.
            self.remove().ok();
        }
    }
}

#[derive(Debug)]
struct DirectoryPart {
    disk: Disk,
    path: PathBuf,
    file: Arc<File>,
}

impl WritePart for DirectoryPart {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.disk.write(&self.file, &self.path, bytes)
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}
