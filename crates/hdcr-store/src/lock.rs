//! Locks that end with their holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use hdcr_image::StoreError;

use crate::disk::failed;

const TRIES: u32 = 2_000;
const PAUSE: Duration = Duration::from_millis(5);

/// Opens a lock file, making it if need be, and takes the lock within some ten seconds.
pub(crate) fn take(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|error| failed("opening", path, error))?;
    wait(file, path)
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
