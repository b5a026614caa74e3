//! The three thread-local segments of `set_thread_area(2)`. A 64-bit libc uses none of them.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

pub(crate) struct ThreadArea;

/// The segments in use.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ThreadAreaRecord {
    /// `struct user_desc` each.
    #[prost(bytes = "vec", repeated, tag = "1")]
    segments: Vec<Vec<u8>>,
}

/// `GDT_ENTRY_TLS_MIN` of kernel `arch/x86/include/asm/segment.h`.
const FIRST: u32 = 12;
const USER_DESC: usize = 16;
/// Flags of an empty entry as the kernel shows it: read only, not present.
const EMPTY_FLAGS: u32 = 0x28;

impl Record for ThreadAreaRecord {
    const TAG: Tag = Tag(0x0310);
    const VERSION: u16 = 1;
    model::prost_record!();
}

fn is_empty(desc: &[u8]) -> bool {
    let (values, flags) = (desc.get(4..12), desc.get(12..16));
    values.is_some_and(|values| values.iter().all(|byte| *byte == 0)) && flags == Some(&EMPTY_FLAGS.to_le_bytes()[..])
}

impl TaskKind for ThreadArea {
    type Record = ThreadAreaRecord;
    type Asked = [(usize, usize); 3];
    const SITE: Site = Site::Thread;

    fn ask(_task: &TaskView, batch: &mut Batch) -> Self::Asked {
        [0, 1, 2].map(|entry: u32| {
            let desc = batch.room(USER_DESC);
            if let Some(slot) = batch.data.get_mut(desc..desc + 4) {
                slot.copy_from_slice(&(FIRST + entry).to_le_bytes());
            }
            (batch.try_call(libc::SYS_get_thread_area, &[Arg::Data(desc)]), desc)
        })
    }

    fn capture(
        _cx: &mut Capture<'_>,
        task: &TaskView,
        asked: Self::Asked,
        replies: &Replies,
    ) -> Result<ThreadAreaRecord> {
        let mut segments = Vec::new();
        for (call, at) in asked {
            replies.result(call).ok_or_else(|| model::no_reply(task, "get_thread_area"))?;
            let desc = replies.bytes(at, USER_DESC).ok_or_else(|| model::no_reply(task, "get_thread_area"))?;
            if super::optional(replies, call).is_some() && !is_empty(desc) {
                segments.push(desc.to_vec());
            }
        }
        Ok(ThreadAreaRecord { segments })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: ThreadAreaRecord) -> Result<()> {
        for desc in &record.segments {
            if desc.len() != USER_DESC {
                return Err(Error::Unsound(format!("task {task} has a thread-local segment of an odd size")));
            }
            let batch = cx.batch(Stage::Thread, task);
            let new = batch.bytes(desc);
            batch.call("setting a thread-local segment", libc::SYS_set_thread_area, &[Arg::Data(new)]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_entry_is_known() {
        let mut desc = [0; USER_DESC];
        assert!(!is_empty(&desc));
        desc[0] = 12;
        desc[12] = 0x28;
        assert!(is_empty(&desc));
        assert!(!is_empty(&desc[..12]));
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = ThreadAreaRecord { segments: vec![vec![1; 16]] };
        assert_eq!(ThreadAreaRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
