//! fanotify(7): what happens to files of whole file systems, told with directory, name and process, after it happened.
//!
//! Only notifications: nobody ever waits for the reader of these events. A reader that is too slow loses events, and is
//! told so ([`Event::Overflow`]).
#![expect(unsafe_code, reason = "nix has no wrapper for groups that report names instead of descriptors")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::handle::Handle;

/// A file that was open for writing was closed for the last time.
pub const CLOSE_WRITE: u64 = 0x08;
/// Owner, mode, times or number of names were changed.
pub const ATTRIB: u64 = 0x04;
/// A name was made in a directory.
pub const CREATE: u64 = 0x100;
/// A name was removed from a directory.
pub const DELETE: u64 = 0x200;
/// A name was changed (Linux 5.17).
pub const RENAME: u64 = 0x1000_0000;
/// It is about a directory.
pub const DIRECTORY: u64 = 0x4000_0000;
const OVERFLOW: u64 = 0x4000;

const METADATA: usize = 24;
const INFO_FID: u8 = 1;
const INFO_NAME: u8 = 2;
const INFO_DIRECTORY: u8 = 3;
const INFO_OLD_NAME: u8 = 10;
const INFO_NEW_NAME: u8 = 12;

/// A name in a directory of a file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file system, as `f_fsid` of statvfs(3).
    pub file_system: u64,
    /// The directory.
    pub directory: Handle,
    /// The name in it; `.` is the directory itself.
    pub name: Vec<u8>,
}

/// What happened to one file. Several things that one process did to it may have been joined.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Happened {
    /// What: the constants of this module.
    pub mask: u64,
    /// The process, as the reader numbers it; 0: not of its pid namespace.
    pub pid: i32,
    /// The name; for a rename the old one. Without it the event is about a file and not about one of its names.
    pub place: Option<Place>,
    /// The new name of a rename.
    pub to: Option<Place>,
    /// The file.
    pub file: Option<Handle>,
}

/// What is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Something happened.
    Happened(Happened),
    /// Events were lost.
    Overflow,
}

/// Whether a queue was empty after a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emptied {
    /// It was.
    Yes,
    /// There may be more.
    No,
}

/// A group of marks with its queue. Its descriptor is readable when there are events.
#[derive(Debug)]
pub struct Fanotify(OwnedFd);

impl AsFd for Fanotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Fanotify {
    /// A group without marks. Needs `CAP_SYS_ADMIN` (for marks of file systems) and Linux 5.17.
    pub fn new() -> io::Result<Self> {
        const CLOEXEC: u32 = 1;
        const NONBLOCK: u32 = 2;
        const REPORT_FID: u32 = 0x200;
        const REPORT_DIRECTORY: u32 = 0x400;
        const REPORT_NAME: u32 = 0x800;
        const REPORT_TARGET: u32 = 0x1000;
        let flags = CLOEXEC | NONBLOCK | REPORT_FID | REPORT_DIRECTORY | REPORT_NAME | REPORT_TARGET;
        // SAFETY: fanotify_init takes two integers.
        let fd = unsafe { libc::fanotify_init(flags, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wants to know what happens in the whole file system that a path lies in.
    pub fn mark_file_system(&self, path: &Path, mask: u64) -> io::Result<()> {
        const ADD: u32 = 1;
        const FILE_SYSTEM: u32 = 0x100;
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the path is a NUL-terminated string that lives over the call.
        let answer =
            unsafe { libc::fanotify_mark(self.0.as_raw_fd(), ADD | FILE_SYSTEM, mask, libc::AT_FDCWD, path.as_ptr()) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Adds the next events, in order, without waiting; whether the queue was empty after that.
    pub fn read(&self, events: &mut Vec<Event>) -> io::Result<Emptied> {
        const ROOM: usize = 256 << 10;
        /// More than any event takes: two names and three handles.
        const LONGEST: usize = 2 << 10;
        let mut buffer = vec![0_u8; ROOM];
        match rustix::io::read(&self.0, &mut buffer) {
            Ok(count) => {
                events.extend(parse(buffer.get(..count).unwrap_or_default()));
                Ok(if count + LONGEST < ROOM { Emptied::Yes } else { Emptied::No })
            }
            Err(rustix::io::Errno::AGAIN) => Ok(Emptied::Yes),
            Err(rustix::io::Errno::INTR) => Ok(Emptied::No),
            Err(error) => Err(error.into()),
        }
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn length(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_ne_bytes(number(bytes, at)?)).ok()
}

/// Cuts a buffer into events; what makes no sense ends it, as events that were lost.
fn parse(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let whole =
            length(bytes, 0).filter(|length| *length >= METADATA).and_then(|length| bytes.split_at_checked(length));
        let Some((event, rest)) = whole else {
            events.push(Event::Overflow);
            break;
        };
        events.push(one(event).unwrap_or(Event::Overflow));
        bytes = rest;
    }
    events
}

/// `struct fanotify_event_metadata` and the records behind it.
fn one(event: &[u8]) -> Option<Event> {
    let mask = u64::from_ne_bytes(number(event, 8)?);
    if mask & OVERFLOW != 0 {
        return Some(Event::Overflow);
    }
    let pid = i32::from_ne_bytes(number(event, 20)?);
    let mut happened = Happened { mask, pid, ..Happened::default() };
    let mut infos = event.get(METADATA..)?;
    while let Some([kind, _]) = number(infos, 0) {
        let length = usize::from(u16::from_ne_bytes(number(infos, 2)?));
        let (info, rest) = infos.split_at_checked(length.max(4))?;
        match kind {
            INFO_FID => happened.file = Some(handle(info)?.0),
            INFO_NAME | INFO_OLD_NAME | INFO_DIRECTORY => happened.place = Some(place(info)?),
            INFO_NEW_NAME => happened.to = Some(place(info)?),
            _ => {}
        }
        infos = rest;
    }
    Some(Event::Happened(happened))
}

/// `struct file_handle` of a record, and what follows it.
fn handle(info: &[u8]) -> Option<(Handle, &[u8])> {
    let size = length(info, 12)?;
    let kind = i32::from_ne_bytes(number(info, 16)?);
    let (bytes, rest) = info.get(20..)?.split_at_checked(size)?;
    Some((Handle { kind, bytes: bytes.to_vec() }, rest))
}

fn place(info: &[u8]) -> Option<Place> {
    let (directory, name) = handle(info)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let [low, high] = [4, 8].map(|at| number(info, at).map(u32::from_ne_bytes).map(u64::from));
    Some(Place { file_system: low? | high? << 32, directory, name: name.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = 7_u64.to_ne_bytes().to_vec();
        body.extend(u32::try_from(handle.len()).unwrap().to_ne_bytes());
        body.extend(1_i32.to_ne_bytes());
        body.extend(handle);
        body.extend(name);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut info = vec![kind, 0];
        info.extend(u16::try_from(body.len() + 4).unwrap().to_ne_bytes());
        info.extend(body);
        info
    }

    fn event(mask: u64, infos: &[Vec<u8>]) -> Vec<u8> {
        let infos = infos.concat();
        let mut event = u32::try_from(METADATA + infos.len()).unwrap().to_ne_bytes().to_vec();
        event.extend([3, 0, 24, 0]);
        event.extend(mask.to_ne_bytes());
        event.extend((-1_i32).to_ne_bytes());
        event.extend(42_i32.to_ne_bytes());
        event.extend(infos);
        event
    }

    #[test]
    fn events_are_read_and_nonsense_is_a_loss() {
        let renamed = event(
            RENAME,
            &[
                info(INFO_OLD_NAME, b"dir1", b"old\0"),
                info(INFO_NEW_NAME, b"dir2", b"new\0"),
                info(INFO_FID, b"file", b""),
            ],
        );
        let both = [renamed.clone(), event(OVERFLOW, &[])].concat();
        let events = parse(&both);
        let [Event::Happened(first), Event::Overflow] = events.as_slice() else { panic!("{events:?}") };
        let (from, to) = (first.place.as_ref().unwrap(), first.to.as_ref().unwrap());
        assert_eq!((first.pid, from.name.as_slice(), to.name.as_slice()), (42, &b"old"[..], &b"new"[..]));
        assert_eq!((from.file_system, from.directory.bytes.as_slice()), (7, &b"dir1"[..]));
        assert_eq!(first.file.as_ref().unwrap().bytes, b"file");
        for cut in 1..renamed.len() {
            assert_eq!(parse(&renamed[..cut]), [Event::Overflow], "{cut}");
        }
        for place in 0..renamed.len() {
            let mut bad = renamed.clone();
            bad[place] = 0xff;
            assert!(!parse(&bad).is_empty());
        }
    }
}
