//! Open files and directories below `/proc`, `/sys` and the cgroup file system: opened again by path.
//!
//! Captured: path, flags, offset. What such a file showed at its opening is not captured: a program that reads on sees
//! the present. Files of a process of the tree are opened again by the task that holds them, when that process exists.
//! Refused: files of processes outside the tree, the kernel log, files that are held by several processes and belong to
//! one of the tree.

use std::os::fd::OwnedFd;
use std::path::Path;

use hdcr_image::{Record, Tag};
use nix::libc;
use rustix::fs::{Mode, OFlags, SeekFrom};

use super::{FileKind, FileView, contents, regfile};
use crate::batch::Arg;
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::{Fd, Pid};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;
use crate::task::Stage;

pub(crate) struct ProcFile;

/// What is kept of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcFileRecord {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    #[prost(uint32, tag = "2")]
    flags: u32,
    #[prost(uint64, tag = "3")]
    offset: u64,
    /// For a file of a process of the tree: the process that holds it, else 0.
    #[prost(int32, tag = "4")]
    holder: i32,
    /// Its descriptors there that are kept over an exec, and those that are not.
    #[prost(int32, repeated, tag = "5")]
    kept: Vec<i32>,
    #[prost(int32, repeated, tag = "6")]
    closed: Vec<i32>,
}

impl Record for ProcFileRecord {
    const TAG: Tag = Tag(0x0214);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The process that a path below `/proc` belongs to.
fn process_of(link: &[u8]) -> Option<Pid> {
    let rest = link.strip_prefix(b"/proc/")?;
    let word = rest.split(|b| *b == b'/').next()?;
    std::str::from_utf8(word).ok()?.parse().ok().map(Pid)
}

/// Files whose reading takes something away, or which show more than a place.
fn refused(link: &[u8]) -> bool {
    [&b"/proc/kmsg"[..], b"/proc/kcore", b"/proc/sysrq-trigger"].contains(&link) || link.ends_with(b" (deleted)")
}

impl FileKind for ProcFile {
    type Record = ProcFileRecord;

    fn claims(view: &FileView) -> bool {
        let below = |top: &str| view.is(top) || view.starts_with(&format!("{top}/"));
        below("/proc") || below("/sys")
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        if refused(&view.link)
            || (view.starts_with("/sys/kernel/")
                && regfile::refused_fs(&door(view)).is_some_and(|found| found.1 != SYSFS))
        {
            let cause = "what was read from it, or what it stood for, cannot be had again";
            survey.refuse(view.refuse("pseudo-file", "file of the kernel", cause, "close it before the checkpoint"));
        } else if let Some(pid) = process_of(&view.link).filter(|pid| !survey.pids.contains(pid)) {
            let cause = format!("it belongs to process {pid}, which is not in the tree");
            survey.refuse(view.refuse("proc-of-stranger", "file of /proc", &cause, "close it before the checkpoint"));
        }
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<ProcFileRecord> {
        let mut record = ProcFileRecord {
            path: view.link.clone(),
            flags: regfile::flags_of(view),
            offset: view.info.pos,
            ..ProcFileRecord::default()
        };
        if process_of(&view.link).is_none() {
            return Ok(record);
        }
        let holders =
            cx.behind(view.pid, view.fd).map_or_else(|| vec![(view.pid, view.fd)], |file| file.holders.clone());
        if holders.iter().any(|(pid, _)| *pid != view.pid) {
            let cause = "several processes share it, and it belongs to one of the tree";
            return Err(Error::refuse(view.refuse(
                "proc-file-shared",
                "file of /proc",
                cause,
                "close it before the checkpoint",
            )));
        }
        record.holder = view.pid.0;
        for (pid, Fd(number)) in holders {
            let info = crate::procfs::fd_info(pid, Fd(number))?;
            let closed = info.flags & u64::from(OFlags::CLOEXEC.bits()) != 0;
            if closed { record.closed.push(number) } else { record.kept.push(number) }
        }
        Ok(record)
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: ProcFileRecord) -> Result<OwnedFd> {
        let path = contents::checked_path(&record.path)?;
        if !["/proc", "/sys"].iter().any(|root| path.starts_with(root)) {
            return Err(Error::Unsound(format!("{} is no file of the kernel", path.display())));
        }
        if record.holder != 0 {
            return in_the_task(cx, id, &record);
        }
        let flags = OFlags::from_bits_retain(record.flags & regfile::AT_OPEN) | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(Error::system("opening a file of the kernel", path.display()))?;
        if record.offset != 0 && !flags.contains(OFlags::PATH) {
            rustix::fs::seek(&file, SeekFrom::Start(record.offset))
                .map_err(Error::system("setting a file's offset", path.display()))?;
        }
        Ok(file)
    }
}

const SYSFS: &str = "file of sysfs outside of /sys";

fn door(view: &FileView) -> std::path::PathBuf {
    crate::procfs::path(view.pid, &format!("fd/{}", view.fd))
}

/// Gives a stand-in, and has the task open the file when all processes exist.
fn in_the_task(cx: &mut Restore<'_>, id: ObjectId, record: &ProcFileRecord) -> Result<OwnedFd> {
    let batch = cx.batch(Stage::InTable, Pid(record.holder).leader());
    let path = batch.bytes(&[&record.path[..], b"\0"].concat());
    let flags = u64::from(record.flags | OFlags::CLOEXEC.bits());
    let opened = batch.call(
        "opening a file of /proc",
        libc::SYS_openat,
        &[Arg::from(libc::AT_FDCWD), Arg::Data(path), Arg::Value(flags)],
    );
    if record.offset != 0 {
        let offset = Arg::Value(record.offset);
        batch.try_call(
            "setting a file's offset",
            libc::SYS_lseek,
            &[Arg::Result(opened), offset, Arg::from(libc::SEEK_SET)],
        );
    }
    let numbers = record
        .kept
        .iter()
        .map(|number| (number, 0))
        .chain(record.closed.iter().map(|number| (number, libc::O_CLOEXEC)));
    for (number, flags) in numbers {
        batch.call(
            "placing a file of /proc",
            libc::SYS_dup3,
            &[Arg::Result(opened), Arg::from(*number), Arg::from(flags)],
        );
    }
    batch.call("closing a file of /proc", libc::SYS_close, &[Arg::Result(opened)]);
    let place = Path::new("/dev/null");
    rustix::fs::open(place, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::system("opening a stand-in", id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_and_owners_are_seen() {
        let record = ProcFileRecord {
            path: b"/proc/12/fd".to_vec(),
            flags: 0o200_000,
            offset: 3,
            holder: 12,
            kept: vec![4],
            closed: vec![5],
        };
        assert_eq!(ProcFileRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        assert_eq!(process_of(b"/proc/12/fd"), Some(Pid(12)));
        assert_eq!(process_of(b"/proc/12"), Some(Pid(12)));
        assert_eq!(process_of(b"/proc/meminfo"), None);
        assert_eq!(process_of(b"/process/1"), None);
    }
}
