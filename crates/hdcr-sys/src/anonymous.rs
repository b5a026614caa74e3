//! Shared anonymous memory as a descriptor.
//!
//! The kernel gives such memory no descriptor (mm/shmem.c `shmem_zero_setup`), but a link in `/proc/self/map_files` leads
//! to its file as long as it is mapped.
#![expect(unsafe_code, reason = "rustix and nix have no wrapper for these calls")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;

/// Makes a shared anonymous object of this many bytes (rounded up to pages) and opens it for reading and writing. Pages
/// are charged when they are touched. Needs `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`: `EPERM` without.
pub fn shared(size: u64) -> io::Result<OwnedFd> {
    let length = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = length.max(1).checked_next_multiple_of(4096).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice touches no memory that anything of ours uses.
    let at = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let opened = open(at.addr(), length);
    // SAFETY: this is the mapping made above, and no reference into it was ever made.
    let result = unsafe { libc::munmap(at, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { opened.map(OwnedFd::from) }
}

fn open(at: usize, length: usize) -> io::Result<File> {
    let link = format!("/proc/self/map_files/{:x}-{:x}", at, at.saturating_add(length));
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(link)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_object_outlives_its_mapping() {
        match shared(10_000) {
            Ok(object) => {
                let file = File::from(object);
                file.write_all_at(b"here", 12_000).unwrap();
                let mut bytes = [0; 4];
                file.read_exact_at(&mut bytes, 12_000).unwrap();
                assert_eq!((&bytes, file.metadata().unwrap().len()), (b"here", 12_288));
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
        }
    }
}
