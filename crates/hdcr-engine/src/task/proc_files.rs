//! What only files of `/proc/PID` set: `oom_score_adj`, `coredump_filter`, and the nice value of a session's `autogroup`.
//!
//! The process writes them itself, as long as it still has the root directory and the rights of the restoring user. The nice
//! value of an autogroup belongs to a session: its leader alone puts it back; with a dead leader it stays 0.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView, own};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::model;
use crate::procfs;
use crate::restore::{Restore, TaskBatch};

pub(crate) struct ProcFiles;

/// The values.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcFilesRecord {
    #[prost(sint32, tag = "1")]
    oom_score_adj: i32,
    /// Bits of core(5); absent where the kernel writes no core files.
    #[prost(uint64, optional, tag = "2")]
    coredump_filter: Option<u64>,
    /// Only of a session leader, and only when it was changed.
    #[prost(sint32, optional, tag = "3")]
    autogroup_nice: Option<i32>,
}

impl Record for ProcFilesRecord {
    const TAG: Tag = Tag(0x030c);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// A file's text, or `None` when this kernel has no such file (or the process no memory behind it).
fn text(pid: Pid, name: &str) -> Result<Option<String>> {
    match procfs::at_once(&procfs::path(pid, name).to_string_lossy()) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system("reading /proc", format!("process {pid}, {name}"))(error)),
    }
}

/// The nice value in a line such as `/autogroup-35 nice 0`.
fn autogroup_nice(line: &str) -> Option<i32> {
    line.rsplit_once(" nice ")?.1.parse().ok()
}

fn write(batch: &mut TaskBatch, label: &'static str, path: &[u8], value: &str) {
    let path = batch.bytes(&[path, b"\0"].concat());
    let at_cwd = Arg::from(libc::AT_FDCWD);
    let flags = Arg::from(libc::O_WRONLY | libc::O_CLOEXEC);
    let file = Arg::Result(batch.call(label, libc::SYS_openat, &[at_cwd, Arg::Data(path), flags]));
    let text = batch.bytes(value.as_bytes());
    batch.call(label, libc::SYS_write, &[file, Arg::Data(text), Arg::Value(value.len() as u64)]);
    batch.call(label, libc::SYS_close, &[file]);
}

impl TaskKind for ProcFiles {
    type Record = ProcFilesRecord;
    type Asked = ();
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, _batch: &mut Batch) {}

    fn capture(_cx: &mut Capture<'_>, task: &TaskView, (): (), _replies: &Replies) -> Result<ProcFilesRecord> {
        let missing = |what| move || model::no_reply(task, what);
        // By a living thread: an ended leader has no memory whose filter could be read.
        let thread = Pid(task.tid.0);
        let score = text(thread, "oom_score_adj")?.and_then(|text| text.parse().ok());
        let filter = match text(thread, "coredump_filter")? {
            Some(text) => Some(u64::from_str_radix(&text, 16).map_err(|_| missing("coredump_filter")())?),
            None => None,
        };
        let leads_session = task.stat.sid == task.pid.0;
        let nice = if leads_session { text(thread, "autogroup")?.as_deref().and_then(autogroup_nice) } else { None };
        Ok(ProcFilesRecord {
            oom_score_adj: score.ok_or_else(missing("oom_score_adj"))?,
            coredump_filter: filter,
            autogroup_nice: nice.filter(|nice| *nice != 0),
        })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: ProcFilesRecord) -> Result<()> {
        let batch = cx.batch(Stage::Process, task);
        let score = record.oom_score_adj.to_string();
        write(batch, "setting oom_score_adj", b"/proc/self/oom_score_adj", &score);
        if let Some(filter) = record.coredump_filter {
            write(batch, "setting the core dump filter", b"/proc/self/coredump_filter", &format!("{filter:#x}"));
        }
        if let Some(nice) = record.autogroup_nice {
            write(batch, "setting the nice value of the session", b"/proc/self/autogroup", &nice.to_string());
        }
        Ok(())
    }

    fn obstacles(task: Tid, record: &ProcFilesRecord) -> Result<Vec<Refusal>> {
        let own = own::number("oom_score_adj")?;
        // The true floor cannot be seen; it is never above the value now, and 0 for all that nobody lowered.
        if record.oom_score_adj >= own.min(0) || own::rules_system(own::CAP_SYS_RESOURCE)? {
            return Ok(Vec::new());
        }
        Ok(vec![Refusal {
            code: "oom-score-below-own",
            object: format!("oom_score_adj {}", record.oom_score_adj),
            owner: Owner { pid: Some(Pid(task.0)), ..Owner::default() },
            cause: format!("it is below the {own} of this user, which takes CAP_SYS_RESOURCE"),
            remedy: "run hdcr with CAP_SYS_RESOURCE".to_owned(),
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nice_value_of_a_session_is_read() {
        assert_eq!(autogroup_nice("/autogroup-35 nice -7"), Some(-7));
        assert_eq!(autogroup_nice("/autogroup-35"), None);
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = ProcFilesRecord { oom_score_adj: -1000, coredump_filter: Some(0x33), autogroup_nice: Some(-1) };
        assert_eq!(ProcFilesRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
