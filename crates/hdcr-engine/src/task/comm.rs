//! The name of a thread (`PR_SET_NAME`), as the bytes it is. `/proc/PID/stat` shows it, with newlines and
//! backslashes escaped by a backslash (`proc_task_name`): one with a backslash there is read from `comm`.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::model;
use crate::procfs;
use crate::restore::Restore;

pub(crate) struct Comm;

/// The name.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CommRecord {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
}

/// Longest name without its end.
const LONGEST: usize = 15;

impl Record for CommRecord {
    const TAG: Tag = Tag(0x0305);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The file's text without the newline that the kernel puts behind the name.
fn name_of(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

impl TaskKind for Comm {
    type Record = CommRecord;
    type Asked = ();
    const SITE: Site = Site::Thread;

    fn ask(_task: &TaskView, _batch: &mut Batch) {}

    fn capture(_cx: &mut Capture<'_>, task: &TaskView, (): (), _replies: &Replies) -> Result<CommRecord> {
        let shown = &task.stat.comm;
        if !shown.contains(&b'\\') {
            return Ok(CommRecord { name: shown.clone() });
        }
        let text = procfs::read_thread(task.pid, task.tid, "comm")?;
        Ok(CommRecord { name: name_of(&text).to_vec() })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: CommRecord) -> Result<()> {
        if record.name.len() > LONGEST || record.name.contains(&0) {
            return Err(Error::Unsound(format!("task {task} has a name that no thread can have")));
        }
        let batch = cx.batch(Stage::Thread, task);
        let name = batch.room(LONGEST + 1);
        batch.put(name, &record.name);
        batch.call("setting the thread's name", libc::SYS_prctl, &[Arg::from(libc::PR_SET_NAME), Arg::Data(name)]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_newline_is_cut() {
        assert_eq!(name_of(b"a\n\n"), b"a\n");
        assert_eq!(name_of(b"\n"), b"");
        assert_eq!(name_of(b""), b"");
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = CommRecord { name: b"odd \xff\\\n".to_vec() };
        assert_eq!(CommRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
