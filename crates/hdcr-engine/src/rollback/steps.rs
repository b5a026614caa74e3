//! What reaches the disk and when: every sync of a roll-back goes through here, so that a test can see the order.
//!
//! The order that a power cut asks for: kept copies, then the journal, then the files themselves, then the directories in
//! which names have changed, and only then the end of the journal.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::resource::data;
use crate::rights::Turn;
use crate::route;

/// Whether there is one wait for all that a file system has to write.
pub(super) fn waits_as_one(directory: &Path) -> bool {
    // Where the files are somebody else's, nobody says that he has them on his disk.
    const FUSE: u64 = 0x6573_5546;
    rustix::fs::statfs(directory).is_ok_and(|fs| data::magic(&fs) != FUSE)
}

/// The steps of a roll-back.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    #[cfg(test)]
    pub(super) taken: std::cell::RefCell<Vec<String>>,
    #[cfg(test)]
    pub(super) fate: super::deaths::Fate,
}

impl Steps {
    /// Something is done.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "only a test keeps the steps"))]
    pub(super) fn step(&self, what: &str, path: &Path) {
        tracing::trace!(what, path = %path.display());
        #[cfg(test)]
        self.fate.step();
        #[cfg(test)]
        self.taken.borrow_mut().push(format!("{what} {}", path.file_name().unwrap_or_default().display()));
    }

    /// The contents of a file are on the disk.
    pub(super) fn sync(&self, file: impl AsFd, path: &Path) -> Result<()> {
        self.step("sync", path);
        match rustix::fs::fsync(file) {
            // A file system that keeps nothing.
            Ok(()) | Err(Errno::INVAL | Errno::ROFS) => Ok(()),
            Err(error) => Err(Error::system("waiting for the disk", path.display())(error)),
        }
    }

    /// All that the file system of a directory had to write is on the disk; `false`: it has no such wait.
    pub(super) fn sync_file_system_of(&self, directory: &Path) -> Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(route::directory(directory)?, ".", flags, Mode::empty());
        let Ok(opened) = open() else { return Ok(false) };
        if !waits_as_one(directory) {
            return Ok(false);
        }
        self.step("sync all of", directory);
        let done = rustix::fs::syncfs(&opened);
        done.map(|()| true).map_err(Error::system("waiting for the disk", directory.display()))
    }

    /// The names in the directory of a path are on the disk.
    pub(super) fn sync_directory_of(&self, path: &Path) -> Result<()> {
        let Some(directory) = path.parent() else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(route::directory(directory)?, ".", flags, Mode::empty());
        let opened = match open() {
            Err(Errno::ACCESS) => {
                let _turn = Turn::home()?;
                open()
            }
            other => other,
        };
        match opened {
            Ok(opened) => self.sync(opened, directory),
            // One that may be written and not read, or that has gone since.
            Err(Errno::ACCESS | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(Error::system("waiting for the disk", directory.display())(error)),
        }
    }
}
