//! `userfaultfd(2)` as the source of pages of a program that runs: faults and changes of its address space are told, and
//! pages are put in. As long as anybody holds the descriptor, whoever touches a missing page waits; when the last one lets
//! go of it, missing pages are zeros.
#![expect(unsafe_code, reason = "the ioctls and their argument structs have no safe wrapper")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::missing::{Copy, MISSING, request as copying};
use crate::userfaultfd::{API, Api, LAST_PAGE, WriteProtect, register, request as common};

/// `UFFD_FEATURE_EVENT_FORK`, `EVENT_REMAP`, `EVENT_REMOVE`, `EVENT_UNMAP`, `THREAD_ID` (Linux 4.11 and 4.14).
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8;
/// Flags for `userfaultfd(2)`; a child's descriptor gets the same.
pub const FLAGS: i32 = libc::O_CLOEXEC | libc::O_NONBLOCK;
/// `struct uffd_msg`.
const MESSAGE: usize = 32;
/// What `/proc/PID/fd` shows for such a descriptor.
pub const LINK: &str = "anon_inode:[userfaultfd]";

/// `struct uffdio_zeropage`.
#[repr(C)]
#[derive(Default)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Default)]
struct PlainRange {
    start: u64,
    len: u64,
}

mod request {
    // The functions that the macros make are public; this module is not.
    nix::ioctl_readwrite!(zero_page, 0xaa, 0x04, super::ZeroPage);
    nix::ioctl_read!(wake, 0xaa, 0x02, super::PlainRange);
}

/// What is told of an address space.
#[derive(Debug)]
pub enum Message {
    /// A thread waits for a page.
    Fault {
        /// The address it touched.
        at: u64,
        /// The thread, by its number here.
        tid: i32,
    },
    /// A process was cloned with a copy of it; what was missing there is missing in the copy, whose faults are told here.
    Fork(PageFaults),
    /// A mapping was moved.
    Moved {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// How many bytes of it.
        len: u64,
    },
    /// Pages were given up: from now on they are zeros.
    Removed(Range<u64>),
    /// A mapping was taken away.
    Unmapped(Range<u64>),
}

/// Why not all pages were put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// The next page is there already.
    Present,
    /// The address space is changing, and what changes waits to be read.
    Changing,
    /// The next page lies in no mapping that was registered.
    NoPlace,
    /// The address space is gone.
    Ended,
    /// Something else.
    Other(Errno),
}

impl From<Errno> for Hindrance {
    fn from(errno: Errno) -> Self {
        let known = [
            (Errno::EEXIST, Self::Present),
            (Errno::EAGAIN, Self::Changing),
            (Errno::ENOENT, Self::NoPlace),
            (Errno::ESRCH, Self::Ended),
        ];
        known.iter().find(|(known, _)| *known == errno).map_or(Self::Other(errno), |(_, hindrance)| *hindrance)
    }
}

/// The faults of an address space, whoever made it.
#[derive(Debug)]
pub struct PageFaults(OwnedFd);

impl PageFaults {
    /// Takes a userfaultfd on which nothing was asked for yet. `EPERM`: this user may not follow forks.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut argument = Api { version: API, features: FEATURES, ioctls: 0 };
        // SAFETY: the argument is a live local of the type that the request takes.
        unsafe { common::api(fd.as_raw_fd(), &raw mut argument) }.map_err(io::Error::from)?;
        Ok(Self(fd))
    }

    /// Takes a userfaultfd that was made ready already.
    pub fn ready(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Takes on a mapping, or whole pages of one.
    pub fn register(&self, range: &Range<u64>) -> io::Result<()> {
        register(&self.0, range, MISSING)
    }

    /// Puts whole pages in and wakes who waits for them: how many bytes, and why not all.
    pub fn put(&self, at: u64, bytes: &[u8]) -> (usize, Option<Hindrance>) {
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
            let result = unsafe { copying::copy(self.0.as_raw_fd(), &raw mut argument) };
            let copied = usize::try_from(argument.copied).unwrap_or(0);
            done = done.saturating_add(copied);
            match result {
                Ok(_) => {}
                // The reason comes with the next try.
                Err(Errno::EAGAIN) if copied > 0 => {}
                Err(errno) => return (done, Some(errno.into())),
            }
        }
        (done, None)
    }

    /// Puts a page of zeros in and wakes who waits for it.
    pub fn put_zeros(&self, at: u64, len: u64) -> Option<Hindrance> {
        let mut argument = ZeroPage { start: at, len, mode: 0, done: 0 };
        // SAFETY: the argument is a live local of the type that the request takes.
        unsafe { request::zero_page(self.0.as_raw_fd(), &raw mut argument) }.err().map(Hindrance::from)
    }

    /// Whether the address space is changing by something that was told, or will be. Told first of all by the kernel, to
    /// whoever asks for no page at all (fs/userfaultfd.c `userfaultfd_zeropage`).
    pub fn is_changing(&self) -> bool {
        self.put_zeros(0, 0) == Some(Hindrance::Changing)
    }

    /// Whether the address space is still there.
    pub fn lives(&self) -> bool {
        // It is never registered for this, so nothing is done (mm/userfaultfd.c `mwriteprotect_range`).
        let mut argument = WriteProtect { start: LAST_PAGE.start, len: 0x1000, mode: 0 };
        // SAFETY: the argument is a live local of the type that the request takes.
        let answer = unsafe { common::write_protect(self.0.as_raw_fd(), &raw mut argument) };
        answer != Err(Errno::ESRCH)
    }

    /// Lets those who wait in a range look again.
    pub fn wake(&self, range: &Range<u64>) -> io::Result<()> {
        let len = range.end.saturating_sub(range.start);
        let mut argument = PlainRange { start: range.start, len };
        // SAFETY: the argument is a live local of the type that the request takes.
        unsafe { request::wake(self.0.as_raw_fd(), &raw mut argument) }.map_err(io::Error::from)?;
        Ok(())
    }

    /// What is told next; `None` when nothing is. Reading an event lets the thread go on that caused it.
    pub fn next(&self) -> io::Result<Option<Message>> {
        let mut bytes = [0; MESSAGE];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(MESSAGE) => decode(&bytes).map(Some),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for PageFaults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn word(bytes: &[u8; MESSAGE], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    word.map_or(0, |word| u64::from_ne_bytes(*word))
}

fn half(bytes: &[u8; MESSAGE], at: usize) -> u32 {
    let half = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    half.map_or(0, |half| u32::from_ne_bytes(*half))
}

fn decode(bytes: &[u8; MESSAGE]) -> io::Result<Message> {
    let [kind, ..] = bytes;
    Ok(match kind {
        // UFFD_EVENT_PAGEFAULT: flags, address, thread.
        0x12 => Message::Fault { at: word(bytes, 16), tid: half(bytes, 24).cast_signed() },
        0x13 => {
            let fd = RawFd::try_from(half(bytes, 8)).map_err(|_| io::ErrorKind::InvalidData)?;
            // SAFETY: the kernel has just made this descriptor for whoever reads the message; nobody else knows it.
            Message::Fork(PageFaults(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        0x14 => Message::Moved { from: word(bytes, 8), to: word(bytes, 16), len: word(bytes, 24) },
        0x15 => Message::Removed(word(bytes, 8)..word(bytes, 16)),
        0x16 => Message::Unmapped(word(bytes, 8)..word(bytes, 16)),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    })
}

/// All that this process has open, whoever opened them: further descriptors of the same.
pub fn open_here() -> io::Result<Vec<PageFaults>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let is_one = std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == LINK);
        if let Some(number) = number.filter(|_| is_one) {
            // SAFETY: F_DUPFD_CLOEXEC takes a number, which may be closed by now, and touches no memory.
            let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
            if copy >= 0 {
                // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
                found.push(PageFaults(unsafe { OwnedFd::from_raw_fd(copy) }));
            }
        }
    }
    Ok(found)
}
