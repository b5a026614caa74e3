//! The calls that change a file system, each of which a test can make fail.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hdcr_image::StoreError;
use rustix::fs::{Advice, AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// So many bytes are worth to be handed to the disk.
const ENOUGH: u64 = 8 << 20;

/// How much a commit promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// A committed image survives a power cut.
    #[default]
    Fsync,
    /// It survives the death of any process, and is faster to write. Not for some images of a chain only: what one shares with the
    /// one before is not synced again.
    None,
}

/// Which of the calls fails, for a test of what is left behind. The default: none.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    plan: Option<Arc<Plan>>,
}

#[derive(Debug)]
struct Plan {
    at: u64,
    for_good: bool,
    made: AtomicU64,
}

impl Faults {
    /// The call of this number fails as on a full disk, counted from 0.
    pub fn fail_at(at: u64) -> Self {
        Self::plan(at, false)
    }

    /// From the call of this number on nothing works any more, as if the process had died.
    pub fn die_at(at: u64) -> Self {
        Self::plan(at, true)
    }

    fn plan(at: u64, for_good: bool) -> Self {
        Self { plan: Some(Arc::new(Plan { at, for_good, made: AtomicU64::new(0) })) }
    }

    /// How many calls were made; 0 without a plan.
    pub fn calls_made(&self) -> u64 {
        self.plan.as_ref().map_or(0, |plan| plan.made.load(Ordering::Relaxed))
    }

    fn step(&self) -> io::Result<()> {
        let Some(plan) = &self.plan else {
            return Ok(());
        };
        let now = plan.made.fetch_add(1, Ordering::Relaxed);
        if now == plan.at || (now > plan.at && plan.for_good) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// What became of a file whose name another one took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Replaced {
    /// There was none.
    Nothing,
    /// It has the other one's name now.
    Kept,
    /// It is gone.
    Lost,
}

/// The file system, with its faults.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) faults: Faults,
    pub(crate) durability: Durability,
}

impl Disk {
    fn run<T>(
        &self,
        operation: &'static str,
        path: &Path,
        call: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StoreError> {
        self.faults.step().and_then(|()| call()).map_err(|error| failed(operation, path, error))
    }

    /// Makes a directory that only its owner can look into.
    pub(crate) fn create_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.run("creating", path, || DirBuilder::new().mode(0o700).create(path))
    }

    /// Makes a directory with those above it; those that were made are durable afterwards.
    pub(crate) fn create_dir_all(&self, path: &Path) -> Result<(), StoreError> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dir_all(parent)?;
        }
        match self.create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync_dir(parent.unwrap_or(Path::new("."))),
        }
    }

    /// Makes a new file that only its owner can read.
    pub(crate) fn create_file(&self, path: &Path) -> Result<File, StoreError> {
        self.run("creating", path, || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path))
    }

    /// Makes a file without a name that only its owner can read; `None` where the file system has none.
    pub(crate) fn create_unnamed(&self, directory: &Path) -> Result<Option<File>, StoreError> {
        self.run("creating a file in", directory, || {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => Ok(Some(file.into())),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Gives a file this name, which nobody else may have: the first one, or one more.
    pub(crate) fn link(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.run("naming", path, || {
            let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(rustix::fs::linkat(CWD, opened, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
        })
    }

    /// Gives the file of one name another one as well, which nobody else may have. A symbolic link is not followed.
    pub(crate) fn link_again(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.run("sharing", from, || Ok(rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty())?))
    }

    /// Appends to a file.
    pub(crate) fn write(&self, mut file: &File, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        if let Err(error) = self.faults.step() {
            // A full disk has often taken some of the bytes.
            let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
            return Err(failed("writing", path, file.write_all(half).err().unwrap_or(error)));
        }
        file.write_all(bytes).map_err(|error| failed("writing", path, error))
    }

    /// Lets the disk begin with what was just written, once there is enough of it: nobody waits for it, and the commit has less
    /// to wait for.
    pub(crate) fn begin_writing(&self, mut file: &File, waiting: &mut u64, more: usize) {
        *waiting = waiting.saturating_add(u64::try_from(more).unwrap_or(u64::MAX));
        if self.durability == Durability::None || *waiting < ENOUGH {
            return;
        }
        let length = NonZeroU64::new(std::mem::take(waiting));
        if let Some((end, length)) = file.stream_position().ok().zip(length) {
            // On Linux this begins to write what is dirty there; it does no harm where it does not.
            rustix::fs::fadvise(file, end.saturating_sub(length.get()), Some(length), Advice::DontNeed).ok();
        }
    }

    /// Cuts a file off.
    pub(crate) fn truncate(&self, file: &File, path: &Path, length: u64) -> Result<(), StoreError> {
        self.run("cutting", path, || file.set_len(length))
    }

    /// Makes a file's bytes durable, if that was asked for.
    pub(crate) fn sync_file(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        if self.durability == Durability::None {
            return Ok(());
        }
        self.run("syncing", path, || file.sync_all())
    }

    /// Makes the names in a directory durable, if that was asked for.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), StoreError> {
        if self.durability == Durability::None {
            return Ok(());
        }
        self.run("syncing", path, || File::open(path)?.sync_all())
    }

    /// Renames a file or a directory. A directory never takes the place of one that holds something.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.run("renaming", from, || std::fs::rename(from, to))
    }

    /// Renames a file over another one, which gets the first one's name where the file system can exchange them.
    pub(crate) fn put_in_place(&self, from: &Path, to: &Path) -> Result<Replaced, StoreError> {
        self.run("renaming", from, || {
            if !to.exists() {
                return std::fs::rename(from, to).map(|()| Replaced::Nothing);
            }
            let exchanged = rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE);
            match exchanged {
                Ok(()) => Ok(Replaced::Kept),
                Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(from, to).map(|()| Replaced::Lost),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Removes a file.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<(), StoreError> {
        self.run("removing", path, || std::fs::remove_file(path))
    }

    /// Removes an empty directory.
    pub(crate) fn remove_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.run("removing", path, || std::fs::remove_dir(path))
    }

    /// Removes a directory with all that is in it; it need not exist.
    pub(crate) fn remove_dir_all(&self, path: &Path) -> Result<(), StoreError> {
        self.run("removing", path, || match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }
}

pub(crate) fn failed(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::new(operation, path.display().to_string(), source)
}

/// Bytes that nobody else has.
pub(crate) fn random() -> Result<[u8; 16], StoreError> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| StoreError::new("reading", "random bytes", error.into()))?;
    }
    Ok(bytes)
}

/// A short random suffix for a temporary name.
pub(crate) fn random_suffix() -> Result<String, StoreError> {
    let [a, b, c, d, ..] = random()?;
    Ok(format!("{:08x}", u32::from_le_bytes([a, b, c, d])))
}
