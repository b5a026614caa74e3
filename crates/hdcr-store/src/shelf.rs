//! Programs and libraries that the images of a store have in common: each once, under the digest of what it holds.
//!
//! An image names those that it needs itself, by hard links, and is whole without the shelf. The link count of the file system
//! is the collector: what only the shelf names goes when a checkpoint is removed.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hdcr_image::{ContentKey, StoreError};
use rustix::fs::Advice;

use crate::disk::{Disk, failed};

/// Below the root of a store.
const SHELF: &str = ".programs";

/// The shelf of a store, for one image in the making.
#[derive(Debug)]
pub(crate) struct Shelf {
    disk: Disk,
    path: PathBuf,
    /// Bytes that lie there at most.
    limit: u64,
    /// Bytes that do, once they are counted.
    held: Option<u64>,
    /// What the image holds that is not there yet.
    fresh: Vec<(ContentKey, PathBuf)>,
}

impl Shelf {
    pub(crate) fn of(disk: &Disk, root: &Path, limit: u64) -> Self {
        Self { disk: disk.clone(), path: root.join(SHELF), limit, held: None, fresh: Vec::new() }
    }

    /// The bytes for which there is room.
    pub(crate) fn room(&mut self) -> u64 {
        let Self { path, limit, held, .. } = self;
        let held =
            *held.get_or_insert_with(|| contents(path).map(|(_, found)| found.len()).fold(0, u64::saturating_add));
        limit.saturating_sub(held)
    }

    /// Gives what lies there one name more. `false`: it does not lie there, or not so long, or has as many names as it can.
    pub(crate) fn take(&self, key: &ContentKey, size: u64, to: &Path) -> bool {
        let from = self.path.join(key.to_string());
        let fits = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == size);
        fits(to) || fits(&from) && self.disk.link_again(&from, to).is_ok()
    }

    /// Copies a file to one of this image, in its directory.
    pub(crate) fn copy(&mut self, file: &File, size: u64, image: &Path) -> Result<Option<ContentKey>, StoreError> {
        if size > self.room() {
            return Ok(None);
        }
        let path = image.join(".content");
        let mut copy = self.disk.create_file(&path)?;
        let key = match copied(file, &mut copy, size) {
            Ok(key) => key,
            Err(error) => {
                self.disk.remove_file(&path)?;
                return Err(failed("copying to", &path, error));
            }
        };
        let named = image.join(key.part());
        self.disk.rename(&path, &named)?;
        self.held = self.held.map(|held| held.saturating_add(size));
        self.fresh.push((key, named));
        // The disk begins with it (`begin_writing`): who waits for it later has less to wait for.
        rustix::fs::fadvise(&copy, 0, NonZeroU64::new(size), Advice::DontNeed).ok();
        Ok(Some(key))
    }

    /// Makes durable what was copied. There may be more than can be open at once.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.fresh.iter().try_for_each(|(_, path)| {
            let file = File::open(path).map_err(|error| failed("opening", path, error))?;
            self.disk.sync_file(&file, path)
        })
    }

    /// Lets others have what is durable now. An image is whole without.
    pub(crate) fn fill(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() {
            return;
        }
        let put = || -> Result<(), StoreError> {
            self.disk.create_dir_all(&self.path)?;
            for (key, from) in &fresh {
                // Somebody else may have been faster.
                self.disk.link_again(from, &self.path.join(key.to_string())).ok();
            }
            self.disk.sync_dir(&self.path)
        };
        put().ok();
    }
}

/// All that lies on a shelf.
fn contents(path: &Path) -> impl Iterator<Item = (PathBuf, fs::Metadata)> + use<> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| Some((entry.path(), fs::symlink_metadata(entry.path()).ok()?)));
    all.filter(|(_, found)| found.is_file())
}

/// Makes a new file the first `size` bytes of another one, by reference where the file system can; what they are.
fn copied(from: &File, to: &mut File, size: u64) -> io::Result<ContentKey> {
    let is_cloned = rustix::fs::ioctl_ficlone(&*to, from).is_ok();
    if !is_cloned {
        let mut from = from;
        from.rewind()?;
        io::copy(&mut from.take(size), to)?;
    }
    if to.metadata()?.len() != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    to.rewind()?;
    ContentKey::of(to)
}

/// Removes what no image of the store names any more. The bytes that they took.
pub(crate) fn sweep(disk: &Disk, root: &Path) -> u64 {
    let unused = contents(&root.join(SHELF)).filter(|(_, found)| found.nlink() == 1);
    let gone = unused.filter(|(path, _)| disk.remove_file(path).is_ok());
    gone.map(|(_, found)| found.len()).fold(0, u64::saturating_add)
}
