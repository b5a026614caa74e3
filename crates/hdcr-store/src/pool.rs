//! Segments of images that are gone, to be written over: a new file costs several times what writing over one does.
//!
//! A file is taken into the pool only when nothing else names it and nobody reads it, and is looked at again when it
//! leaves: both under its exclusive lock. Whoever reads or links a part of an image holds its shared lock meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hdcr_image::hdcr_layout::{Header, PartKind};
use rustix::fs::{Mode, OFlags};

use crate::disk::{Disk, random_suffix};
use crate::lock;

/// The directory of a job that holds them.
pub(crate) const FREE: &str = ".free";
const FILES: usize = 64;

/// The pool of a job.
#[derive(Debug)]
pub(crate) struct Pool {
    disk: Disk,
    path: PathBuf,
}

/// A file to be written over from its start on. It is locked until it says so.
#[derive(Debug)]
pub(crate) struct Recycled {
    pub(crate) file: File,
    /// Of its next use.
    pub(crate) generation: u64,
}

impl Pool {
    pub(crate) fn of(disk: &Disk, job: &Path) -> Self {
        Self { disk: disk.clone(), path: job.join(FREE) }
    }

    /// Takes the segments of an image that is gone, as far as there is room: for about as many bytes as the newest image has.
    /// What cannot be had stays where it is.
    pub(crate) fn give(&self, gone: &Path, newest: u64) {
        let limit = newest.saturating_add(newest / 4);
        let held = self.names();
        let size = |name: &String| fs::symlink_metadata(self.path.join(name)).map_or(0, |found| found.len());
        let mut bytes: u64 = held.iter().map(size).sum();
        let mut files = held.len();
        for name in names_in(gone).iter().filter(|name| name.starts_with("pages-")) {
            let path = gone.join(name);
            // Most are shared with images that stay.
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.nlink() == 1) {
                continue;
            }
            let Some(file) = free(&path) else { continue };
            let more = file.metadata().map_or(u64::MAX, |found| found.len());
            bytes = bytes.saturating_add(more);
            files = files.saturating_add(1);
            if bytes > limit || files > FILES {
                return;
            }
            let Ok(suffix) = random_suffix() else { return };
            let ready = self.path.is_dir() || self.disk.create_dir(&self.path).is_ok();
            if !ready || self.disk.rename(&path, &self.path.join(suffix)).is_err() {
                return;
            }
        }
    }

    /// Moves a file of the pool to this name; `None` when there is none that can be used.
    pub(crate) fn take(&self, to: &Path) -> Option<Recycled> {
        for name in self.names().iter().take(FILES) {
            // Somebody else may have been faster.
            if self.disk.rename(&self.path.join(name), to).is_err() {
                continue;
            }
            let file = free(to);
            let generation = file.as_ref().and_then(next_generation);
            if let (Some(file), Some(generation)) = (file, generation) {
                return Some(Recycled { file, generation });
            }
            if to.is_dir() {
                self.disk.remove_dir_all(to).ok()?;
            } else {
                self.disk.remove_file(to).ok()?;
            }
        }
        None
    }

    fn names(&self) -> Vec<String> {
        names_in(&self.path)
    }
}

fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Opens and locks a file that is ours alone; `None` when it is not.
pub(crate) fn free(path: &Path) -> Option<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    lock::is_taken_now(&file, path).ok().filter(|taken| *taken)?;
    let found = file.metadata().ok()?;
    let ours = found.is_file()
        && found.nlink() == 1
        && found.uid() == rustix::process::geteuid().as_raw()
        && found.permissions().mode() & 0o7777 == 0o600;
    ours.then_some(file)
}

/// One more than that of the use that the file has seen.
fn next_generation(file: &File) -> Option<u64> {
    let mut block = [0; Header::SIZE];
    file.read_exact_at(&mut block, 0).ok()?;
    let (header, _) = Header::decode(&block).ok()?;
    if header.kind == PartKind::Pages { header.generation.checked_add(1) } else { None }
}
