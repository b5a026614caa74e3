//! The kinds of open file that can be captured and restored, one file each, and the list of them.
//!
//! An open file (open file description) is captured once, however many descriptors lead to it. What is not claimed by a
//! kind is refused by name before anything is stopped.

use std::os::fd::OwnedFd;

use hdcr_image::{KnownTag, Record, Tag};
use rustix::fs::Stat;

use crate::capture::Capture;
use crate::error::{Error, Refusal, Result};
use crate::ids::{Fd, Pid};
use crate::model::ObjectId;
use crate::procfs::FdInfo;
use crate::restore::Restore;
use crate::survey::Survey;

/// An open file as it is seen through one of its descriptors, before and under the freeze.
#[derive(Clone, Debug)]
pub(crate) struct FileView {
    /// A process that holds it.
    pub(crate) pid: Pid,
    /// Its number there.
    pub(crate) fd: Fd,
    /// What the link in `/proc/PID/fd` says.
    pub(crate) link: Vec<u8>,
    /// What `/proc/PID/fdinfo` says.
    pub(crate) info: FdInfo,
    /// `stat(2)` through the link.
    pub(crate) stat: Stat,
}

impl FileView {
    /// Whether the link has this text.
    pub(crate) fn is(&self, link: &str) -> bool {
        self.link == link.as_bytes()
    }

    /// Whether the link starts with this text.
    pub(crate) fn starts_with(&self, link: &str) -> bool {
        self.link.starts_with(link.as_bytes())
    }

    /// A duplicate, here, while the process runs. Only for questions that change nothing.
    pub(crate) fn duplicate(&self) -> Result<OwnedFd> {
        use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
        let subject = format!("pid {}, fd {}", self.pid, self.fd);
        let gone = || Error::Changed { subject: subject.clone(), what: "the process is gone".to_owned() };
        let door = crate::procfs::door(self.pid);
        let pid = rustix::process::Pid::from_raw(door).ok_or_else(gone)?;
        let flags = if door == self.pid.0 { PidfdFlags::empty() } else { crate::procfs::pidfd_thread() };
        let process = pidfd_open(pid, flags).map_err(Error::system("pidfd_open", &subject))?;
        pidfd_getfd(process, self.fd.0, PidfdGetfdFlags::empty()).map_err(Error::system("pidfd_getfd", &subject))
    }

    /// A refusal that names this descriptor.
    pub(crate) fn refuse(&self, code: &'static str, object: &str, cause: &str, remedy: &str) -> Refusal {
        Refusal {
            code,
            object: object.to_owned(),
            owner: crate::error::Owner {
                pid: Some(self.pid),
                fd: Some(self.fd),
                path: Some(crate::model::path_of(&self.link)),
                ..crate::error::Owner::default()
            },
            cause: cause.to_owned(),
            remedy: remedy.to_owned(),
        }
    }
}

/// A kind of open file.
pub(crate) trait FileKind {
    /// What the image keeps of it, besides what every open file has (status flags, owner for signals).
    type Record: Record + std::fmt::Debug;
    /// Whether this open file is of this kind. Exactly one kind claims each.
    fn claims(view: &FileView) -> bool;
    /// What stands in the way of capturing or restoring it. Looks only; the program runs.
    fn survey(_survey: &mut Survey<'_>, _view: &FileView) -> Result<()> {
        Ok(())
    }
    /// Captures it. `file` is a duplicate in this process: nothing that is done to it may be seen by the program.
    fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<Self::Record>;
    /// Makes it again in this process. Status flags and signal owner are put in afterwards for every kind. What can only
    /// be done by a task (`EPOLL_CTL_ADD`, POSIX locks) is appended to the batch of that task: [`Restore::batch`].
    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: Self::Record) -> Result<OwnedFd>;
}

/// A row of the list of kinds, with the types erased.
#[derive(Clone, Copy)]
pub(crate) struct FileEntry {
    pub(crate) name: &'static str,
    pub(crate) tag: Tag,
    pub(crate) version: u16,
    pub(crate) claims: fn(&FileView) -> bool,
    pub(crate) survey: fn(&mut Survey<'_>, &FileView) -> Result<()>,
    /// Captures and adds the frame with this id.
    pub(crate) capture: fn(&mut Capture<'_>, ObjectId, &FileView, &OwnedFd) -> Result<()>,
    /// Decodes a frame's body of a version and makes the file.
    pub(crate) restore: fn(&mut Restore<'_>, ObjectId, u16, &[u8]) -> Result<OwnedFd>,
    /// Prints a frame's body, for `hdcr show`.
    pub(crate) show: fn(u16, &[u8]) -> String,
}

impl FileEntry {
    const fn of<K: FileKind>(name: &'static str) -> Self {
        Self {
            name,
            tag: K::Record::TAG,
            version: K::Record::VERSION,
            claims: K::claims,
            survey: |survey, view| {
                locks::survey(survey, view);
                K::survey(survey, view)
            },
            capture: |cx, id, view, file| {
                let record = K::capture(cx, view, file)?;
                locks::capture(cx, id, view)?;
                cx.frame(id, &record)
            },
            restore: |cx, id, version, body| {
                let record = crate::model::decode::<K::Record>(version, body)?;
                let file = K::restore(cx, id, record)?;
                locks::restore(cx, id, &file)?;
                Ok(file)
            },
            show: |version, body| match crate::model::decode::<K::Record>(version, body) {
                Ok(record) => format!("{record:?}"),
                Err(error) => error.to_string(),
            },
        }
    }
}

/// Makes the modules, the table, and a compile-time check that no two kinds share a tag.
macro_rules! kinds {
    ($($module:ident::$kind:ident),* $(,)?) => {
        $(pub(crate) mod $module;)*
        /// Every kind of open file. The first that claims one has it.
        pub(crate) const FILES: &[FileEntry] = &[$(FileEntry::of::<$module::$kind>(stringify!($module))),*];
        const _: () = {
            let mut a = 0;
            while a < FILES.len() {
                let mut b = a + 1;
                while b < FILES.len() {
                    assert!(FILES[a].tag.0 != FILES[b].tag.0, "two kinds share a tag");
                    b += 1;
                }
                a += 1;
            }
        };
    };
}

pub(crate) mod backing;
pub(crate) mod clone;
pub(crate) mod contents;
pub(crate) mod data;
pub(crate) mod held;
pub(crate) mod keep;
pub(crate) mod late;
pub(crate) mod listed;
pub(crate) mod locks;
pub(crate) mod names;
pub(crate) mod newer;
pub(crate) mod outside;
mod patient;
pub(crate) mod permitted;
pub(crate) mod reopen;
#[cfg(test)]
pub(crate) mod scene;
pub(crate) mod shmem;
pub(crate) mod touched;
pub(crate) mod unchanged;
pub(crate) mod windows;

pub(crate) use socket::nobody_answers;

kinds! {
    pathfd::PathFd,
    procfile::ProcFile,
    regfile::RegFile,
    directory::Directory,
    eventfd::EventFd,
    device::Device,
    pipe::Pipe,
    fifo::Fifo,
    pty::Terminal,
    socket::Socket,
    timerfd::TimerFd,
    signalfd::SignalFd,
    inotify::Inotify,
    epoll::Epoll,
    pidfd::PidFd,
    opaque::Opaque,
}

/// The kind that claims an open file.
pub(crate) fn kind_of(view: &FileView) -> Option<&'static FileEntry> {
    FILES.iter().find(|kind| (kind.claims)(view))
}

/// The kind with a tag.
pub(crate) fn kind_with(tag: Tag) -> Option<&'static FileEntry> {
    FILES.iter().find(|kind| kind.tag == tag)
}

/// The records of shared objects, which several open files or mappings refer to.
pub(crate) const OBJECTS: &[KnownTag] = &[
    KnownTag::of::<contents::InodeRecord>(),
    KnownTag::of::<listed::ListedRecord>(),
    KnownTag::of::<touched::TouchedRecord>(),
    KnownTag::of::<names::NamesRecord>(),
    KnownTag::of::<late::LateRecord>(),
    KnownTag::of::<clone::CloneRecord>(),
    KnownTag::of::<directory::PlaceRecord>(),
    KnownTag::of::<locks::LocksRecord>(),
    KnownTag::of::<pipe::PipeRecord>(),
    KnownTag::of::<fifo::FifoRecord>(),
    KnownTag::of::<pty::PtyRecord>(),
    KnownTag::of::<socket::ConnectionRecord>(),
];

/// The number of the service descriptor that leads to a terminal of the tree, by its device number.
pub(crate) fn terminal_of(cx: &Restore<'_>, device: u64) -> Option<i32> {
    pty::slave_of(cx, device)
}

#[cfg(test)]
pub(crate) mod testing {
    //! A view for tests that need no process.

    use super::*;
    use crate::procfs::KeyValues;

    pub(crate) fn view(link: &str, flags: u64) -> FileView {
        let info = FdInfo { pos: 0, flags, mnt_id: 0, lines: KeyValues::default() };
        let stat = rustix::fs::stat("/dev/null").unwrap();
        FileView { pid: Pid(1), fd: Fd(3), link: link.as_bytes().to_vec(), info, stat }
    }
}
