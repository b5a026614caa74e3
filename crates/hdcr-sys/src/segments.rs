//! Segments of System V shared memory (`shmget(2)`, `shmat(2)`, `shmctl(2)`): made again, attached here, and filled.
#![expect(unsafe_code, reason = "rustix and nix have no wrapper for these calls")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::ptr;

use crate::chosen;
use crate::semaphores::Rights;

fn done(answer: libc::c_int) -> io::Result<i32> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

const PAGE: u64 = 4096;

/// Makes a segment that was not there, and gives its number. `wanted` is the number that it is to have where that is free,
/// which this process must be permitted to say.
pub fn make(key: i32, size: u64, wanted: Option<i32>) -> io::Result<i32> {
    let size = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes numbers alone.
    let make = || done(unsafe { libc::shmget(key, size, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) });
    match wanted {
        Some(wanted) => chosen::under(chosen::SEGMENT, wanted, || make().inspect_err(|_| take_number()), remove),
        None => make(),
    }
}

/// The number that was asked for is given to the next segment, whoever makes it: to one of ours, then, which goes at once.
fn take_number() {
    // SAFETY: the call takes numbers alone.
    if let Ok(id) = done(unsafe { libc::shmget(libc::IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600) }) {
        remove(id).ok();
    }
}

/// Gives a segment its owner and its mode.
pub fn set_rights(id: i32, rights: Rights) -> io::Result<()> {
    // SAFETY: an all-zero shmid_ds is a valid one.
    let mut segment: libc::shmid_ds = unsafe { std::mem::zeroed() };
    (segment.shm_perm.uid, segment.shm_perm.gid, segment.shm_perm.mode) = (rights.uid, rights.gid, rights.mode);
    // SAFETY: IPC_SET reads one shmid_ds, which is our own.
    done(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut segment) }).map(|_| ())
}

/// Keeps the pages of a segment in memory (`SHM_LOCK`), or no more.
pub fn lock(id: i32, locked: bool) -> io::Result<()> {
    let command = if locked { libc::SHM_LOCK } else { libc::SHM_UNLOCK };
    // SAFETY: these two take no further argument.
    done(unsafe { libc::shmctl(id, command, ptr::null_mut()) }).map(|_| ())
}

/// Removes a segment, when the last process has let go of it.
pub fn remove(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no further argument.
    done(unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) }).map(|_| ())
}

/// A segment that this process has attached. Its bytes go through `/proc/self/mem`, as others may change them at any time.
#[derive(Debug)]
pub struct Attached {
    at: usize,
    /// Up to the end of its last page.
    length: u64,
    memory: File,
}

/// The size of a segment, in bytes.
fn size(id: i32) -> io::Result<u64> {
    // SAFETY: an all-zero shmid_ds is a valid one.
    let mut segment: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: IPC_STAT fills one shmid_ds, which is our own.
    done(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut segment) })?;
    u64::try_from(segment.shm_segsz).map_err(|_| io::ErrorKind::InvalidData.into())
}

impl Attached {
    /// Attaches a segment at a place of the kernel's choice.
    pub fn new(id: i32, writable: bool) -> io::Result<Self> {
        let memory = File::options().read(true).write(writable).open("/proc/self/mem")?;
        let length = size(id)?.next_multiple_of(PAGE);
        let flags = if writable { 0 } else { libc::SHM_RDONLY };
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory that anything of ours uses.
        let at = unsafe { libc::shmat(id, ptr::null(), flags) };
        if at.addr() == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at: at.addr(), length, memory })
    }

    /// Where bytes of the segment are here. What lies behind its end is something else.
    fn place(&self, offset: u64, length: usize) -> io::Result<u64> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        let at = u64::try_from(self.at).ok().and_then(|at| at.checked_add(offset));
        at.filter(|_| end.is_some_and(|end| end <= self.length)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Reads bytes from an offset.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let place = self.place(offset, into.len())?;
        self.memory.read_exact_at(into, place)
    }

    /// Writes bytes at an offset.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(bytes, self.place(offset, bytes.len())?)
    }

    /// Makes the first bytes zeros, and gives their memory back. `length`: whole pages, none of them behind its end.
    pub fn clear(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let at = ptr::without_provenance_mut(self.at);
        // SAFETY: the pages belong to the segment that is attached here, into which no reference was ever made.
        done(unsafe { libc::madvise(at, length, libc::MADV_REMOVE) }).map(|_| ())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: it is attached here, and no reference into it was ever made. An error would leave it attached.
        let _gone = done(unsafe { libc::shmdt(ptr::without_provenance(self.at)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_made_filled_and_removed() {
        let Ok(id) = make(libc::IPC_PRIVATE, 5000, None) else { return };
        set_rights(id, Rights { uid: 0, gid: 0, mode: 0o640 }).ok();
        let first = Attached::new(id, true).unwrap();
        first.write(4999, b"x").unwrap();
        remove(id).unwrap();
        let second = Attached::new(id, false).unwrap();
        let mut byte = [0];
        second.read(4999, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        first.clear(8192).unwrap();
        second.read(4999, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        assert!(second.write(0, b"x").is_err());
        first.write(8191, b"x").unwrap();
        for behind in [8192, 8191 + (1 << 40), u64::MAX] {
            assert!(first.write(behind, b"x").is_err() && first.read(behind, &mut byte).is_err(), "{behind}");
        }
        assert!(first.write(8191, b"xy").is_err());
        drop((first, second));
        // A process that another test is just starting has it attached for a moment.
        assert!((0..1_000_000).any(|_| Attached::new(id, true).is_err()), "it is still there");
    }

    #[test]
    fn a_segment_is_made_under_its_number() {
        let wanted = 32_768 * 11 + 91;
        // Where this may not be said, there is nothing to be tried.
        let Ok(id) = make(libc::IPC_PRIVATE, 1, Some(wanted)) else { return };
        remove(id).unwrap();
        assert_eq!(id, wanted);
        // One that cannot be made leaves no wish behind for the next one that is, a stranger's.
        make(libc::IPC_PRIVATE, 0, Some(wanted + 32_768)).unwrap_err();
        let other = make(libc::IPC_PRIVATE, 1, None).unwrap();
        remove(other).unwrap();
        assert_ne!(other, wanted + 32_768);
    }
}
