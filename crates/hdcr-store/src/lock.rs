//! Locks that end with their holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use hdcr_image::StoreError;

use crate::disk::failed;

const TRIES: u32 = 2_000;
const PAUSE: Duration = Duration::from_millis(5);

/// Opens a lock file, making it if need be, and takes the lock within some ten seconds.
pub(crate) fn take(path: &Path) -> Result<File, StoreError> {
    loop {
        let file = wait(open(path)?, path)?;
        // Else it was removed with its directory while it was waited for: the lock of a file without a name keeps nobody out.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

/// Takes a lock only if nobody holds it.
pub(crate) fn try_take(path: &Path) -> Result<Option<File>, StoreError> {
    let file = open(path)?;
    Ok((is_taken_now(&file, path)? && is_at(&file, path)).then_some(file))
}

fn open(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|error| failed("opening", path, error))
}

pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
    let here = file.metadata().map(identity).ok();
    here.is_some() && here == std::fs::symlink_metadata(path).map(identity).ok()
}

/// Takes the lock of a directory that is not ours to put a file into.
pub(crate) fn take_directory(path: &Path) -> Result<File, StoreError> {
    let directory = File::open(path).map_err(|error| failed("opening", path, error))?;
    wait(directory, path)
}

fn wait(file: File, path: &Path) -> Result<File, StoreError> {
    for _ in 0..TRIES {
        if is_taken_now(&file, path)? {
            return Ok(file);
        }
        thread::sleep(PAUSE);
    }
    Err(StoreError::Busy { subject: path.display().to_string() })
}

/// Takes the lock of a file if nobody holds it.
pub(crate) fn is_taken_now(file: &File, path: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(failed("locking", path, error)),
    }
}

/// Keeps a part from being written over, together with others who do. Whoever goes on with it may have it for himself for a
/// moment, which is waited for. An error of kind `NotFound` says that it is being written over already: its image is gone.
pub(crate) fn hold(file: &File, path: &Path) -> Result<(), StoreError> {
    hold_after(file, path, || thread::sleep(PAUSE))
}

fn hold_after(file: &File, path: &Path, mut pause: impl FnMut()) -> Result<(), StoreError> {
    for _ in 0..TRIES {
        match file.try_lock_shared() {
            // Where a file system has no locks, nothing is written over either.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(()),
            Err(TryLockError::WouldBlock) if is_at(file, path) => pause(),
            Err(TryLockError::WouldBlock) => return Err(failed("opening", path, io::ErrorKind::NotFound.into())),
        }
    }
    Err(StoreError::Busy { subject: path.display().to_string() })
}

/// Gives up the lock of a file that stays open.
pub(crate) fn let_go(file: &File, path: &Path) -> Result<(), StoreError> {
    file.unlock().map_err(|error| failed("unlocking", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever goes on with a part has its lock for himself for a moment; its image is there all the time.
    #[test]
    fn a_part_that_is_there_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pages-0");
        let writer = File::create(&path).unwrap();
        writer.lock().unwrap();
        let reader = File::open(&path).unwrap();
        let mut pauses = 0;
        let held = hold_after(&reader, &path, || {
            pauses += 1;
            if pauses == 3 {
                writer.unlock().unwrap();
            }
        });
        assert!(held.is_ok() && pauses == 3, "{held:?} {pauses}");
        reader.unlock().unwrap();
        writer.lock().unwrap();
        let held = hold_after(&reader, &path, || ());
        assert!(matches!(held, Err(StoreError::Busy { .. })), "{held:?}");
        // It goes into the pool while it is waited for.
        let held = hold_after(&reader, &path, || std::fs::rename(&path, directory.path().join("free")).unwrap());
        assert_eq!(held.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
