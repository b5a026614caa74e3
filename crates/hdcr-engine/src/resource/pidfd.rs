//! `pidfd_open(2)`: a process of the tree as a descriptor.
//!
//! Captured: the process, or the thread (`PIDFD_THREAD`). Opened by the tasks themselves, once all are born: descriptors
//! that shared one opening have one each afterwards. Refused: a process outside of the tree, and one that is gone. Reads:
//! `/proc/PID/fdinfo` (kernel/fork.c `pidfd_show_fdinfo`, since Linux 5.4).

use std::os::fd::OwnedFd;

use hdcr_image::{Record, Tag};
use nix::libc;
use rustix::fs::{Mode, OFlags};

use super::{FileKind, FileView};
use crate::batch::Arg;
use crate::capture::Capture;
use crate::error::{Error, Refusal, Result};
use crate::ids::Tid;
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;
use crate::task::Stage;

/// `PIDFD_THREAD` (`O_EXCL`), `PIDFD_NONBLOCK`.
const FLAGS: u64 = 0o200 | 0o4000;

pub(crate) struct PidFd;

/// What is kept of a pidfd.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PidFdRecord {
    #[prost(int32, tag = "1")]
    pid: i32,
    #[prost(uint32, tag = "2")]
    flags: u32,
}

impl Record for PidFdRecord {
    const TAG: Tag = Tag(0x0264);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The process that it leads to; `None` when that is gone.
fn process(view: &FileView) -> Result<Option<i32>> {
    let text = view.info.lines.get("Pid").ok_or_else(|| model::unreadable(view, "Pid"))?;
    let pid: i32 = text.parse().map_err(|_| model::unreadable(view, "Pid"))?;
    Ok((pid > 0).then_some(pid))
}

fn refusal(view: &FileView, pid: Option<i32>) -> Refusal {
    let remedy = "close it before the checkpoint";
    match pid {
        Some(pid) => {
            let cause = format!("it leads to process {pid}, which is not of the tree");
            view.refuse("pidfd-outside", "process descriptor", &cause, remedy)
        }
        None => view.refuse(
            "pidfd-gone",
            "process descriptor",
            "its process is gone, and none can lead there again",
            remedy,
        ),
    }
}

impl FileKind for PidFd {
    type Record = PidFdRecord;

    fn claims(view: &FileView) -> bool {
        view.is("anon_inode:[pidfd]")
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        let pid = process(view)?;
        if pid.is_none_or(|pid| !survey.tids.contains(&pid)) {
            survey.refuse(refusal(view, pid));
        }
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<PidFdRecord> {
        let pid = process(view)?;
        let mut processes = cx.frozen.processes().iter();
        let mut holds = |wanted: i32| processes.any(|of| of.pid.0 == wanted || of.threads.contains(&Tid(wanted)));
        match pid {
            Some(pid) if holds(pid) => Ok(PidFdRecord { pid, flags: model::low32(view.info.flags & FLAGS) }),
            _ => Err(Error::refuse(refusal(view, pid))),
        }
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: PidFdRecord) -> Result<OwnedFd> {
        for (pid, number) in cx.holders.get(&id).cloned().unwrap_or_default() {
            let batch = cx.batch(Stage::InTable, pid.leader());
            let close =
                batch.call("looking at a descriptor", libc::SYS_fcntl, &[Arg::from(number), Arg::from(libc::F_GETFD)]);
            let args = [Arg::from(record.pid), Arg::Value(record.flags.into())];
            let opened = batch.call("opening a process descriptor", libc::SYS_pidfd_open, &args);
            batch.call("placing a process descriptor", libc::SYS_dup2, &[Arg::Result(opened), Arg::from(number)]);
            let args = [Arg::from(number), Arg::from(libc::F_SETFD), Arg::Result(close)];
            batch.call("flags of a process descriptor", libc::SYS_fcntl, &args);
            batch.call("closing a descriptor", libc::SYS_close, &[Arg::Result(opened)]);
        }
        // Stands for it until the processes exist.
        let stand_in = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        stand_in.map_err(Error::system("opening /dev/null", id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::testing;

    #[test]
    fn a_process_that_is_gone_or_outside_is_told_apart() {
        let view = |pid: &str| {
            let mut view = testing::view("anon_inode:[pidfd]", 2);
            view.info.lines = crate::procfs::KeyValues::parse(format!("Pid:\t{pid}\n").as_bytes());
            view
        };
        assert_eq!(process(&view("17")).unwrap(), Some(17));
        assert_eq!(process(&view("-1")).unwrap(), None);
        assert!(process(&view("x")).is_err());
    }
}
