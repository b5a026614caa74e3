//! What a process has registered with `membarrier(2)`.
//!
//! Linux 6.3 tells; an older kernel does not, and then everything that can be registered is: it costs little and forbids
//! nothing, while a call without its registration fails.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

pub(crate) struct Membarrier;

/// The registrations.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MembarrierRecord {
    /// The registering commands; absent: unknown.
    #[prost(uint64, optional, tag = "1")]
    registered: Option<u64>,
}

/// `MEMBARRIER_CMD_GET_REGISTRATIONS` of `<linux/membarrier.h>`.
const GET_REGISTRATIONS: u64 = 1 << 9;
/// The commands that register: global expedited, private expedited, the same with serialized cores, with rseq.
const REGISTER: [u64; 4] = [1 << 2, 1 << 4, 1 << 6, 1 << 8];

impl Record for MembarrierRecord {
    const TAG: Tag = Tag(0x030d);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The commands to give, or `None` when one is not known here.
fn commands(registered: u64) -> Option<Vec<u64>> {
    let known = REGISTER.iter().fold(0, |all, command| all | command);
    let given = REGISTER.iter().copied().filter(|command| registered & command != 0);
    (registered & !known == 0).then(|| given.collect())
}

impl TaskKind for Membarrier {
    type Record = MembarrierRecord;
    type Asked = usize;
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, batch: &mut Batch) -> usize {
        batch.try_call(libc::SYS_membarrier, &[Arg::Value(GET_REGISTRATIONS), Arg::Value(0), Arg::Value(0)])
    }

    fn capture(_cx: &mut Capture<'_>, task: &TaskView, asked: usize, replies: &Replies) -> Result<MembarrierRecord> {
        let registered = super::optional(replies, asked);
        if registered.is_some_and(|registered| commands(registered).is_none()) {
            let cause = "this kernel knows a registration that hdcr does not";
            return Err(Error::refuse(task.refuse("membarrier", "membarrier registration", cause, "use a newer hdcr")));
        }
        Ok(MembarrierRecord { registered })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: MembarrierRecord) -> Result<()> {
        let given = record.registered.map_or(Some(REGISTER.to_vec()), commands);
        let given =
            given.ok_or_else(|| Error::Unsound(format!("task {task} has an unknown membarrier registration")))?;
        let batch = cx.batch(Stage::Process, task);
        for command in given {
            let args = [Arg::Value(command), Arg::Value(0), Arg::Value(0)];
            super::put_back(
                batch,
                record.registered.is_none(),
                "registering with membarrier",
                libc::SYS_membarrier,
                &args,
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_registrations_are_not_skipped() {
        assert_eq!(commands(0), Some(vec![]));
        assert_eq!(commands(0x14), Some(vec![4, 16]));
        assert_eq!(commands(0x414), None);
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        for registered in [None, Some(0), Some(0x14)] {
            let record = MembarrierRecord { registered };
            assert_eq!(MembarrierRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        }
    }
}
