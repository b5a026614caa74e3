//! The three addresses by which the kernel writes into a thread's memory: `set_tid_address(2)`, the robust futex list and
//! rseq(2).
//!
//! All three go back after memory is filled: from then on the kernel writes to them.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::Result;
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

pub(crate) struct ThreadIds;

/// The addresses.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ThreadIdsRecord {
    /// Where the kernel writes 0 at the thread's end; 0: nowhere.
    #[prost(uint64, tag = "1")]
    clear_tid: u64,
    #[prost(uint64, tag = "2")]
    robust_head: u64,
    #[prost(uint64, tag = "3")]
    robust_len: u64,
    #[prost(message, optional, tag = "4")]
    rseq: Option<RseqArea>,
}

/// A registration of `rseq(2)`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RseqArea {
    #[prost(uint64, tag = "1")]
    at: u64,
    #[prost(uint32, tag = "2")]
    size: u32,
    #[prost(uint32, tag = "3")]
    signature: u32,
}

/// `PR_GET_TID_ADDRESS` of `<linux/prctl.h>`.
const GET_TID_ADDRESS: u64 = 40;

impl ThreadIdsRecord {
    /// Addresses in which the kernel writes, or from which it reads, by itself.
    pub(crate) fn written_by_kernel(&self) -> Vec<u64> {
        let ends = |at: u64, len: u64| [at, at.saturating_add(len.saturating_sub(1))];
        let rseq = self.rseq.iter().flat_map(|area| ends(area.at, area.size.into()));
        rseq.chain(ends(self.clear_tid, 4)).chain(ends(self.robust_head, self.robust_len)).collect()
    }

    /// Where the list of robust futexes begins; 0: there is none.
    pub(crate) fn robust_head(&self) -> u64 {
        if self.robust_len == 0 { 0 } else { self.robust_head }
    }
}

impl Record for ThreadIdsRecord {
    const TAG: Tag = Tag(0x0304);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl TaskKind for ThreadIds {
    type Record = ThreadIdsRecord;
    type Asked = (usize, usize);
    const SITE: Site = Site::Thread;

    fn ask(_task: &TaskView, batch: &mut Batch) -> Self::Asked {
        let address = batch.room(8);
        (batch.try_call(libc::SYS_prctl, &[Arg::Value(GET_TID_ADDRESS), Arg::Data(address)]), address)
    }

    fn capture(
        cx: &mut Capture<'_>,
        task: &TaskView,
        (call, address): Self::Asked,
        replies: &Replies,
    ) -> Result<ThreadIdsRecord> {
        super::reply(task, replies, call, "PR_GET_TID_ADDRESS")?;
        let clear_tid = replies.word(address).ok_or_else(|| model::no_reply(task, "PR_GET_TID_ADDRESS"))?;
        let (robust_head, robust_len) = cx.frozen.robust_list(task.tid)?;
        let rseq = cx.frozen.rseq(task.tid)?.map(|area| RseqArea {
            at: area.at.0,
            size: area.size,
            signature: area.signature,
        });
        Ok(ThreadIdsRecord { clear_tid, robust_head: robust_head.0, robust_len, rseq })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: ThreadIdsRecord) -> Result<()> {
        let batch = cx.batch(Stage::Thread, task);
        batch.call("setting the thread's tid address", libc::SYS_set_tid_address, &[Arg::Value(record.clear_tid)]);
        // The kernel takes one length only; a thread without a list has length 0 and needs none.
        if record.robust_len != 0 {
            let args = [Arg::Value(record.robust_head), Arg::Value(record.robust_len)];
            batch.call("setting the robust list", libc::SYS_set_robust_list, &args);
        }
        if let Some(area) = record.rseq {
            let args =
                [Arg::Value(area.at), Arg::Value(area.size.into()), Arg::Value(0), Arg::Value(area.signature.into())];
            batch.call("registering rseq", libc::SYS_rseq, &args);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_as_it_was() {
        let rseq = Some(RseqArea { at: u64::MAX, size: 32, signature: 0x5305_3053 });
        for rseq in [rseq, None] {
            let record = ThreadIdsRecord { clear_tid: 1, robust_head: 2, robust_len: 24, rseq };
            assert_eq!(ThreadIdsRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        }
    }
}
