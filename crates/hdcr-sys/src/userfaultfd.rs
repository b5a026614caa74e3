//! `userfaultfd(2)` as a witness of writes: `UFFD_FEATURE_WP_ASYNC` (Linux 6.7), which never stops the writer.
#![expect(unsafe_code, reason = "the ioctls and their argument structs have no safe wrapper")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};

use crate::pagemap::{self, Then};

/// `UFFD_API` of `linux/userfaultfd.h`.
pub(crate) const API: u64 = 0xaa;
/// `PAGEFAULT_FLAG_WP`, `WP_HUGETLBFS_SHMEM`, `WP_UNPOPULATED`, `WP_ASYNC`.
const FEATURES: u64 = 1 << 0 | 1 << 12 | 1 << 13 | 1 << 15;
/// `UFFDIO_REGISTER_MODE_WP`.
const MODE_WP: u64 = 1 << 1;
/// Flag of `userfaultfd(2)` without which only a privileged caller gets one.
pub const USER_MODE_ONLY: u64 = 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Api {
    pub(crate) version: u64,
    pub(crate) features: u64,
    pub(crate) ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Register {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) mode: u64,
    pub(crate) ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct WriteProtect {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) mode: u64,
}

pub(crate) mod request {
    // The functions that the macros make are public; this module is only in the crate.
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, super::Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, super::Register);
    nix::ioctl_readwrite!(write_protect, 0xaa, 0x06, super::WriteProtect);
}

/// Registers a range with a userfaultfd, for what the mode says.
pub(crate) fn register(fd: &OwnedFd, range: &Range<u64>, mode: u64) -> io::Result<()> {
    let len = range.end.saturating_sub(range.start);
    let mut argument = Register { start: range.start, len, mode, ioctls: 0 };
    // SAFETY: the argument is a live local of the type that the request takes.
    unsafe { request::register(fd.as_raw_fd(), &raw mut argument) }.map_err(io::Error::from)?;
    Ok(())
}

/// `UFFDIO_WRITEPROTECT_MODE_WP`.
const PROTECTED: u64 = 1;

/// A userfaultfd of some address space, whoever made it. Closing it ends all that it follows.
#[derive(Debug)]
pub struct WriteWitness(OwnedFd);

impl WriteWitness {
    /// Takes a userfaultfd on which nothing was asked for yet.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut argument = Api { version: API, features: FEATURES, ioctls: 0 };
        // SAFETY: the argument is a live local of the type that the request takes.
        unsafe { request::api(fd.as_raw_fd(), &raw mut argument) }.map_err(io::Error::from)?;
        Ok(Self(fd))
    }

    /// Follows writes to a whole mapping from now on: its pages may then be protected by `PAGEMAP_SCAN`.
    pub fn follow(&self, range: &Range<u64>) -> io::Result<()> {
        register(&self.0, range, MODE_WP)
    }

    /// Protects pages that are there: the next write to each shows.
    pub fn protect(&self, range: &Range<u64>) -> io::Result<()> {
        self.write_protect(range, PROTECTED)
    }

    /// Takes the protection off again. Done piece by piece it holds nobody up, where closing does it all at once.
    pub fn expose(&self, range: &Range<u64>) -> io::Result<()> {
        self.write_protect(range, 0)
    }

    fn write_protect(&self, range: &Range<u64>, mode: u64) -> io::Result<()> {
        let len = range.end.saturating_sub(range.start);
        let mut argument = WriteProtect { start: range.start, len, mode };
        // SAFETY: the argument is a live local of the type that the request takes.
        unsafe { request::write_protect(self.0.as_raw_fd(), &raw mut argument) }.map_err(io::Error::from)?;
        Ok(())
    }
}

/// The last page that an address space can have, whatever the least address is (`vm.mmap_min_addr`).
pub const LAST_PAGE: Range<u64> = 0x7fff_ffff_e000..0x7fff_ffff_f000;

/// A witness of this very process.
fn own() -> io::Result<WriteWitness> {
    let flags = i64::from(libc::O_CLOEXEC | libc::O_NONBLOCK) | USER_MODE_ONLY.cast_signed();
    // SAFETY: the call takes flags alone.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor was made by the call above, and nothing else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    WriteWitness::new(fd)
}

/// What this kernel shows of followed memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Habits {
    /// It counts pages as written that have not even a page table.
    pub tells_holes: bool,
    /// What stands in the pagemap for a page that was protected while it was not there, without [`pagemap::SOFT_DIRTY`].
    pub mark: u64,
}

/// Tries the kernel on a mapping of our own.
pub fn habits() -> io::Result<Habits> {
    const LEN: usize = 4 << 20;
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping of its own.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), LEN, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = at.expose_provenance() as u64;
    let range = start..start + LEN as u64;
    let seen = own().and_then(|witness| {
        witness.follow(&range)?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let seen = pagemap::written(&pagemap, range.clone(), Then::Leave)?;
        pagemap::written(&pagemap, range.clone(), Then::Protect)?;
        let mut entry = [0];
        pagemap::entries(&pagemap, range.start, &mut entry)?;
        Ok(Habits { tells_holes: seen.first() == Some(&range), mark: entry[0] & !pagemap::SOFT_DIRTY })
    });
    // SAFETY: the mapping was made above, and nothing of it was given away.
    if unsafe { libc::munmap(at, LEN) } != 0 {
        return Err(io::Error::last_os_error());
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const BLOCK: u64 = 2 << 20;

    fn touch(at: u64) {
        let at = std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(at).unwrap());
        // SAFETY: the tests touch their own living mapping only.
        unsafe { at.write_volatile(1) };
    }

    fn drop_pages(range: Range<u64>) {
        let at = std::ptr::with_exposed_provenance_mut(usize::try_from(range.start).unwrap());
        let len = usize::try_from(range.end - range.start).unwrap();
        // SAFETY: the range lies in a mapping of the test's own.
        assert_eq!(unsafe { libc::madvise(at, len, libc::MADV_DONTNEED) }, 0);
    }

    #[test]
    fn writes_are_seen_once_and_pages_that_vanish_with_their_table_are_not() {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let len = usize::try_from(4 * BLOCK).unwrap();
        // SAFETY: a new anonymous mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        let all = at.expose_provenance() as u64..at.expose_provenance() as u64 + 4 * BLOCK;
        let block = all.start.next_multiple_of(BLOCK);
        // SAFETY: advice about a mapping of the test's own.
        assert_eq!(unsafe { libc::madvise(at, len, libc::MADV_NOHUGEPAGE) }, 0);
        for page in (block..block + 2 * BLOCK).step_by(4096) {
            touch(page);
        }
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let blocks = block..block + 2 * BLOCK;
        assert_eq!(
            pagemap::written(&pagemap, blocks.clone(), Then::Protect).unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
        let witness = own().unwrap();
        witness.follow(&all).unwrap();
        let first = pagemap::written(&pagemap, blocks.clone(), Then::Protect).unwrap();
        assert_eq!(first.as_slice(), std::slice::from_ref(&blocks));
        assert_eq!(pagemap::written(&pagemap, blocks.clone(), Then::Leave).unwrap(), []);
        touch(block + 3 * PAGE);
        let third = block + 3 * PAGE..block + 4 * PAGE;
        assert_eq!(pagemap::written(&pagemap, blocks.clone(), Then::Protect).unwrap(), [third]);
        assert_eq!(pagemap::written(&pagemap, blocks.clone(), Then::Leave).unwrap(), []);
        drop_pages(block + 5 * PAGE..block + 7 * PAGE);
        let gone = block + 5 * PAGE..block + 7 * PAGE;
        assert_eq!(pagemap::written(&pagemap, blocks.clone(), Then::Protect).unwrap(), [gone]);
        assert!(pagemap::exists(&pagemap, block + 5 * PAGE).unwrap(), "the mark of a page that is not there");
        drop_pages(block + BLOCK..block + 2 * BLOCK);
        let seen = pagemap::written(&pagemap, blocks.clone(), Then::Leave).unwrap();
        let exists = pagemap::exists(&pagemap, block + BLOCK).unwrap();
        let habits = habits().unwrap();
        let mut entry = [0];
        pagemap::entries(&pagemap, block + 5 * PAGE, &mut entry).unwrap();
        assert_eq!(entry[0] & !pagemap::SOFT_DIRTY, habits.mark);
        pagemap::entries(&pagemap, block + 4 * PAGE, &mut entry).unwrap();
        assert_ne!(entry[0] & !pagemap::SOFT_DIRTY, habits.mark);
        let whole = block + BLOCK..block + 2 * BLOCK;
        assert!(!exists);
        assert_eq!(seen.first(), habits.tells_holes.then_some(&whole));
        witness.expose(&blocks).unwrap();
        drop(witness);
        // SAFETY: the mapping was made above, and nothing uses it any more.
        assert_eq!(unsafe { libc::munmap(at, len) }, 0);
    }
}
