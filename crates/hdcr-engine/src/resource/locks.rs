//! File locks: `flock(2)`, POSIX record locks, open file description locks. Leases are refused.
//!
//! Captured: from the `lock:` lines of `/proc/PID/fdinfo` (fs/locks.c `show_fd_locks`, Linux 4.1), once an open file.
//! Description locks belong to the open file and are taken here; so does an `flock`, but it is taken by the process that
//! the kernel shows with it. POSIX locks belong to the process and are taken by it, after its last `close(2)` of a descriptor of ours to the same file, which would drop them. A lock that
//! somebody else holds meanwhile is an error that names it.

use std::os::fd::OwnedFd;

use hdcr_image::{Record, Tag};
use nix::fcntl::FcntlArg;
use nix::libc;
use rustix::fs::FlockOperation;

use super::{FileView, regfile};
use crate::batch::Arg;
use crate::capture::Capture;
use crate::error::{Error, Owner, Result};
use crate::ids::{Fd, Pid};
use crate::model::{self, ObjectId};
use crate::procfs::{self, FdInfo};
use crate::restore::Restore;
use crate::survey::Survey;
use crate::task::Stage;

/// Whose lock it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Family {
    /// `flock(2)`.
    Flock = 0,
    /// `F_OFD_SETLK`.
    Description = 1,
    /// `F_SETLK`.
    Posix = 2,
}

/// One lock.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub(crate) struct Lock {
    #[prost(enumeration = "Family", tag = "1")]
    family: i32,
    #[prost(bool, tag = "2")]
    write: bool,
    #[prost(uint64, tag = "3")]
    start: u64,
    /// 0: to the end of the file, wherever that will be.
    #[prost(uint64, tag = "4")]
    length: u64,
    /// Owner of a POSIX lock, or the process that has taken an `flock`, and the descriptor that it has.
    #[prost(int32, tag = "5")]
    pid: i32,
    #[prost(int32, tag = "6")]
    fd: i32,
}

/// All locks that hang on an open file; under the same id as the file's own record.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LocksRecord {
    #[prost(message, repeated, tag = "1")]
    locks: Vec<Lock>,
}

impl Record for LocksRecord {
    const TAG: Tag = Tag(0x0217);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// A `lock:` line.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Line {
    Lock(Lock),
    Other(String),
}

/// Parses `1: POSIX  ADVISORY  WRITE 359 00:13:11691 0 EOF`.
fn parse(line: &str) -> Line {
    let other = || Line::Other(line.to_owned());
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, family, "ADVISORY", mode, _pid, _inode, start, end] = words[..] else { return other() };
    let family = match family {
        "FLOCK" => Family::Flock,
        "OFDLCK" => Family::Description,
        "POSIX" => Family::Posix,
        _ => return other(),
    };
    let range = (|| {
        let start: u64 = start.parse().ok()?;
        let length = if end == "EOF" { 0 } else { end.parse::<u64>().ok()?.checked_sub(start)?.checked_add(1)? };
        Some((start, length))
    })();
    let Some((start, length)) = range else { return other() };
    match mode {
        "READ" | "WRITE" => {
            Line::Lock(Lock { family: family.into(), write: mode == "WRITE", start, length, pid: 0, fd: 0 })
        }
        _ => other(),
    }
}

/// Each lock with the process that took it.
fn lines(info: &FdInfo) -> impl Iterator<Item = (Line, i32)> {
    let taker =
        |line: &str| line.split_ascii_whitespace().nth(4).and_then(|word| word.parse().ok()).unwrap_or_default();
    info.lines.all("lock").map(move |line| (parse(line), taker(line)))
}

/// Whether a lease may be held: whoever opens the file then, breaks it, and its holder is told by a signal that ends it.
pub(crate) fn leased(info: &FdInfo) -> bool {
    lines(info).any(|(line, _)| matches!(line, Line::Other(_)))
}

/// Refuses leases and what else is not known.
pub(crate) fn survey(survey: &mut Survey<'_>, view: &FileView) {
    for (line, _) in lines(&view.info) {
        if let Line::Other(text) = line {
            let cause = format!("it cannot be taken again as it was ({text})");
            survey.refuse(view.refuse(
                "file-lease",
                "lease or unknown lock",
                &cause,
                "give it up before the checkpoint",
            ));
        }
    }
}

/// Captures the locks of an open file: those of the file from any descriptor, those of processes from each.
pub(crate) fn capture(cx: &mut Capture<'_>, id: ObjectId, view: &FileView) -> Result<()> {
    let holders = cx.behind(view.pid, view.fd).map_or_else(|| vec![(view.pid, view.fd)], |file| file.holders.clone());
    let mut locks: Vec<Lock> = Vec::new();
    for (pid, fd) in holders {
        let here = (pid, fd) == (view.pid, view.fd);
        let info = if here { view.info.clone() } else { procfs::fd_info(pid, fd)? };
        for (line, taker) in lines(&info) {
            match line {
                Line::Lock(lock) if lock.family() == Family::Posix => {
                    let lock = Lock { pid: pid.0, fd: fd.0, ..lock };
                    let known = |other: &Lock| Lock { fd: lock.fd, ..other.clone() } == lock;
                    if !locks.iter().any(known) {
                        locks.push(lock);
                    }
                }
                Line::Lock(lock) if lock.family() == Family::Flock => {
                    // Seen by every holder, shown with the number of the process that took it.
                    let lock = Lock { pid: pid.0, fd: fd.0, ..lock };
                    match locks.iter_mut().find(|other| other.family() == Family::Flock) {
                        None => locks.push(lock),
                        Some(known) if pid.0 == taker => *known = lock,
                        Some(_) => {}
                    }
                }
                Line::Lock(lock) if here => locks.push(lock),
                Line::Lock(_) => {}
                Line::Other(text) => {
                    return Err(Error::Changed {
                        subject: format!("pid {pid}, fd {fd}"),
                        what: format!("a lease was taken ({text})"),
                    });
                }
            }
        }
    }
    if locks.is_empty() { Ok(()) } else { cx.frame(id, &LocksRecord { locks }) }
}

/// Takes the locks of an open file that has just been made.
pub(crate) fn restore(cx: &mut Restore<'_>, id: ObjectId, file: &OwnedFd) -> Result<()> {
    if !cx.frames.contains_key(&(LocksRecord::TAG.0, id)) {
        return Ok(());
    }
    for lock in cx.record::<LocksRecord>(id)?.locks {
        let family =
            Family::try_from(lock.family).map_err(|_| Error::Unsound(format!("{id}: unknown kind of lock")))?;
        match family {
            Family::Flock => {
                take_flock(file, &lock)?;
                leave_flock(file)?;
                let batch = cx.batch(Stage::Thread, Pid(lock.pid).leader());
                let how = if lock.write { libc::LOCK_EX } else { libc::LOCK_SH } | libc::LOCK_NB;
                batch.call("taking a file lock", libc::SYS_flock, &[Arg::from(lock.fd), Arg::from(how)]);
            }
            Family::Description => take_description_lock(file, &lock)?,
            Family::Posix => {
                refuse_conflict(file, &lock)?;
                take_in_task(cx, &lock);
            }
        }
    }
    Ok(())
}

fn held(file: &OwnedFd, lock: &Lock, by: Option<i32>) -> Error {
    let path = std::fs::read_link(super::data::door(file)).ok();
    let pid = Some(if by.is_some_and(|pid| pid > 0) { by.unwrap_or_default() } else { lock.pid })
        .filter(|pid| *pid > 0)
        .map(Pid);
    let cause = match by {
        Some(pid) if pid > 0 => format!("process {pid} holds a lock on the same bytes"),
        _ => "another open file holds a lock on it".to_owned(),
    };
    let owner = Owner { pid, fd: (lock.fd > 0).then_some(Fd(lock.fd)), path, ..Owner::default() };
    Error::refuse(regfile::refuse_path("lock-held", "file lock", owner, &cause, "end the program that holds it"))
}

fn take_flock(file: &OwnedFd, lock: &Lock) -> Result<()> {
    let how = if lock.write { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    rustix::fs::flock(file, how).map_err(|error| match error {
        rustix::io::Errno::WOULDBLOCK => held(file, lock, None),
        other => Error::system("taking a file lock", "flock")(other),
    })
}

/// Only a look: a process of the tree takes the lock, as the kernel shows whose it is.
fn leave_flock(file: &OwnedFd) -> Result<()> {
    rustix::fs::flock(file, FlockOperation::Unlock).map_err(Error::system("leaving a file lock", "flock"))
}

fn c_lock(lock: &Lock) -> libc::flock {
    let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: lock.start.cast_signed(),
        l_len: lock.length.cast_signed(),
        l_pid: 0,
    }
}

fn take_description_lock(file: &OwnedFd, lock: &Lock) -> Result<()> {
    nix::fcntl::fcntl(file, FcntlArg::F_OFD_SETLK(&c_lock(lock))).map(drop).map_err(|error| {
        if matches!(error, nix::Error::EAGAIN | nix::Error::EACCES) {
            held(file, lock, None)
        } else {
            Error::system("taking a file lock", "open file description")(error)
        }
    })
}

/// Whether somebody else holds what a task will ask for.
fn refuse_conflict(file: &OwnedFd, lock: &Lock) -> Result<()> {
    let mut asked = c_lock(lock);
    let answered = nix::fcntl::fcntl(file, FcntlArg::F_GETLK(&mut asked)).is_ok();
    let free = i32::from(asked.l_type) == libc::F_UNLCK;
    if answered && !free { Err(held(file, lock, Some(asked.l_pid))) } else { Ok(()) }
}

fn take_in_task(cx: &mut Restore<'_>, lock: &Lock) {
    let batch = cx.batch(Stage::Thread, Pid(lock.pid).leader());
    // struct flock of x86-64 and aarch64: type, whence, start and length at 8 and 16, pid.
    let at = batch.room(32);
    let c = c_lock(lock);
    batch.put(at, &c.l_type.to_le_bytes());
    batch.put(at + 2, &c.l_whence.to_le_bytes());
    batch.put(at + 8, &c.l_start.to_le_bytes());
    batch.put(at + 16, &c.l_len.to_le_bytes());
    batch.call("taking a record lock", libc::SYS_fcntl, &[Arg::from(lock.fd), Arg::from(libc::F_SETLK), Arg::Data(at)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(family: Family, write: bool, start: u64, length: u64) -> Lock {
        Lock { family: family.into(), write, start, length, pid: 0, fd: 0 }
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let check = |line, wanted| assert_eq!(parse(line), Line::Lock(wanted), "{line}");
        check("1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF", lock(Family::Flock, true, 0, 0));
        check("1: POSIX  ADVISORY  READ 359 fe:00:11691 10 19", lock(Family::Posix, false, 10, 10));
        check("2: OFDLCK ADVISORY  WRITE -1 fe:00:11691 5 EOF", lock(Family::Description, true, 5, 0));
        for other in [
            "1: LEASE  ACTIVE    READ  359 00:13:1 0 EOF",
            "",
            "1: POSIX  ADVISORY  READ 1 a 9 3",
            "1: POSIX ADVISORY READ 1 a x 3",
        ] {
            assert_eq!(parse(other), Line::Other(other.to_owned()));
        }
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = LocksRecord { locks: vec![Lock { pid: 7, fd: 3, ..lock(Family::Posix, true, 1 << 40, 1) }] };
        assert_eq!(LocksRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }

    #[test]
    fn a_lock_that_is_held_is_named() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || OwnedFd::from(std::fs::File::options().read(true).write(true).open(path.path()).unwrap());
        let (ours, theirs) = (open(), open());
        take_flock(&ours, &lock(Family::Flock, false, 0, 0)).unwrap();
        take_flock(&theirs, &lock(Family::Flock, false, 0, 0)).unwrap();
        let error = take_flock(&ours, &lock(Family::Flock, true, 0, 0)).unwrap_err();
        assert!(error.to_string().contains("lock-held"), "{error}");
        take_description_lock(&ours, &lock(Family::Description, true, 5, 2)).unwrap();
        let error = take_description_lock(&theirs, &lock(Family::Description, false, 6, 0)).unwrap_err();
        assert!(error.to_string().contains("lock-held"), "{error}");
        let error = refuse_conflict(&theirs, &lock(Family::Posix, false, 6, 1)).unwrap_err();
        assert!(error.to_string().contains("lock-held"), "{error}");
        refuse_conflict(&theirs, &lock(Family::Posix, false, 7, 1)).unwrap();
    }
}
