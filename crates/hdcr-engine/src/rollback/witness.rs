//! Which file lies somewhere: by more than its number, which another file gets when it is gone.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::journal::Entry;
use crate::error::{Error, Result};
use crate::route;

/// A file by its device and number, and, as far as its file system tells them, by its birth and by its handle, in which
/// there is a generation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Witness {
    pub(crate) device: u64,
    /// 0: whatever has the name, as only we give such names.
    pub(crate) inode: u64,
    born: (i64, u32),
    handle_kind: i32,
    handle: Vec<u8>,
}

impl Witness {
    /// Of an open file; `O_PATH` does.
    pub(crate) fn of(file: impl AsFd, subject: &Path) -> Result<Self> {
        let stat = rustix::fs::fstat(file.as_fd()).map_err(Error::system("looking at a file", subject.display()))?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let born = rustix::fs::statx(file.as_fd(), "", flags, StatxFlags::BTIME).ok();
        let born = born.filter(|statx| statx.stx_mask & StatxFlags::BTIME.bits() != 0);
        let handle = hdcr_sys::handle::of(file.as_fd()).ok();
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            born: born.map_or((0, 0), |statx| (statx.stx_btime.tv_sec, statx.stx_btime.tv_nsec)),
            handle_kind: handle.as_ref().map_or(0, |handle| handle.kind),
            handle: handle.map(|handle| handle.bytes).unwrap_or_default(),
        })
    }

    /// Of what lies at a path, if anything does.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        let file = route::open(path, OFlags::PATH, Mode::empty()).ok()?;
        Self::of(&file, path).ok()
    }

    /// Whether another look shows the same file; what either does not know counts for nothing.
    pub(crate) fn fits(&self, now: &Self) -> bool {
        let born = self.born == (0, 0) || now.born == (0, 0) || self.born == now.born;
        let same = (self.handle_kind, &self.handle) == (now.handle_kind, &now.handle);
        let handle = self.handle.is_empty() || now.handle.is_empty() || same;
        self.inode == 0 || (self.device, self.inode) == (now.device, now.inode) && born && handle
    }

    /// As a part of an entry.
    pub(crate) fn into_entry(self, entry: Entry) -> Entry {
        let Self { device, inode, born: (born, born_ns), handle_kind, handle } = self;
        Entry { device, inode, born, born_ns, handle_kind, handle, ..entry }
    }

    /// That of an entry.
    pub(crate) fn in_entry(entry: &Entry) -> Self {
        Self {
            device: entry.device,
            inode: entry.inode,
            born: (entry.born, entry.born_ns),
            handle_kind: entry.handle_kind,
            handle: entry.handle.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_with_the_same_number_is_another_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "x").unwrap();
        let witness = Witness::at(&path).unwrap();
        std::fs::write(&path, "longer").unwrap();
        assert!(witness.fits(&Witness::at(&path).unwrap()), "it may change");
        assert!(witness.fits(&Witness { born: (0, 0), handle: Vec::new(), ..witness.clone() }));
        assert!(!witness.fits(&Witness { born: (1, 2), ..witness.clone() }));
        assert!(!witness.fits(&Witness { handle: vec![1], ..witness.clone() }));
        assert!(Witness::default().fits(&witness));
        let entry = witness.clone().into_entry(Entry::default());
        assert_eq!(Witness::in_entry(&entry), witness);
    }
}
