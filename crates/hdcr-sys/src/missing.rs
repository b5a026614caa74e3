//! `userfaultfd(2)` as a source of missing pages: whoever holds it puts pages into an address space, several at a time and
//! without a page fault each.
#![expect(unsafe_code, reason = "the ioctls and their argument structs have no safe wrapper")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::userfaultfd::{API, Api, register, request as common};

/// `UFFDIO_REGISTER_MODE_MISSING`.
pub(crate) const MISSING: u64 = 1;
/// `UFFD_USER_MODE_ONLY`: for `userfaultfd(2)`. Pages can be put in without any right; what is not served is only the
/// fault of a system call.
pub const USER_MODE_ONLY: i32 = 1;

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Copy {
    pub(crate) to: u64,
    pub(crate) from: u64,
    pub(crate) len: u64,
    pub(crate) mode: u64,
    pub(crate) copied: i64,
}

pub(crate) mod request {
    // The functions that the macros make are public; this module is only in the crate.
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, super::Copy);
}

/// A userfaultfd of some address space, whoever made it. Closing it ends all registrations.
#[derive(Debug)]
pub struct MissingPages(OwnedFd);

impl MissingPages {
    /// Takes a userfaultfd on which nothing was asked for yet.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut argument = Api { version: API, ..Api::default() };
        // SAFETY: the argument is a live local of the type that the request takes.
        unsafe { common::api(fd.as_raw_fd(), &raw mut argument) }.map_err(io::Error::from)?;
        Ok(Self(fd))
    }

    /// Takes on a mapping, or whole pages of one. Memory of files on disk cannot be (`EINVAL`).
    pub fn register(&self, range: &Range<u64>) -> io::Result<()> {
        register(&self.0, range, MISSING)
    }

    /// Puts whole pages into a registered range. A page that is there already is an error (`EEXIST`), and stays.
    pub fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0_usize;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let mut argument = Copy {
                to: at.saturating_add(done as u64),
                from: rest.as_ptr() as u64,
                len: rest.len() as u64,
                mode: 0,
                copied: 0,
            };
            // SAFETY: the argument is a live local, and the kernel only reads the bytes that it points to.
            let result = unsafe { request::copy(self.0.as_raw_fd(), &raw mut argument) };
            // What was copied before a hindrance is told beside the error (mm/userfaultfd.c).
            done = done.saturating_add(usize::try_from(argument.copied).unwrap_or(0));
            match result {
                Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd as _;

    use super::*;

    #[test]
    fn pages_are_put_where_none_is_and_stay_where_one_is() {
        let flags = libc::O_CLOEXEC | USER_MODE_ONLY;
        // SAFETY: the call takes flags alone.
        let fd = i32::try_from(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) }).unwrap();
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was made by the call above, and nothing else knows it.
        let source = MissingPages::new(unsafe { OwnedFd::from_raw_fd(fd) }).unwrap();
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 8 * 4096, prot, flags, -1, 0) };
        let start = at.expose_provenance() as u64;
        let bytes: Vec<u8> = (0..2 * 4096).map(|at| u8::try_from(at % 251).unwrap()).collect();
        assert!(source.put(start, &bytes).is_err(), "nothing is registered");
        source.register(&(start..start + 8 * 4096)).unwrap();
        source.put(start + 4096, &bytes).unwrap();
        let again = source.put(start, &bytes).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
        // SAFETY: all of it was put in above: page 0 before the hindrance, pages 1 and 2 at first.
        let seen = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), 3 * 4096) };
        assert_eq!(&seen[..4096], &bytes[..4096]);
        assert_eq!(&seen[4096..], &bytes);
        drop(source);
        // SAFETY: the mapping was made above, and nothing uses it any more.
        assert_eq!(unsafe { libc::munmap(at, 8 * 4096) }, 0);
    }
}
