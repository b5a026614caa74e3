//! The local descriptor table of a process (`modify_ldt(2)`): what Wine and old language runtimes put segments in.
//!
//! One small question tells whether there is a table at all; only then is the whole read, by a batch of its own.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

pub(crate) struct Ldt;

/// The table.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LdtRecord {
    /// Descriptors of 8 bytes, as the processor reads them, without empty ones at the end.
    #[prost(fixed64, repeated, tag = "1")]
    descriptors: Vec<u64>,
}

/// The largest table.
const ENTRIES: usize = 8192;
const READ: u64 = 0;
/// Writes an entry, with all bits that a descriptor has.
const WRITE: u64 = 0x11;

impl Record for LdtRecord {
    const TAG: Tag = Tag(0x030f);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// A descriptor as the `struct user_desc` that makes the kernel build it.
pub(crate) fn user_desc(entry: u32, descriptor: u64) -> [u8; 16] {
    let field = |from: u32, bits: u32| model::low32(descriptor >> from) & ((1 << bits) - 1);
    let base = field(16, 24) | field(56, 8) << 24;
    let limit = field(0, 16) | field(48, 4) << 16;
    let not = |bit: u32| bit ^ 1;
    let flags = field(54, 1) // 32-bit segment
        | field(42, 2) << 1 // contents
        | not(field(41, 1)) << 3 // read or execute only
        | field(55, 1) << 4 // limit in pages
        | not(field(47, 1)) << 5 // not present
        | field(52, 1) << 6; // free for the program's use
    let mut bytes = [0; 16];
    for (slot, byte) in bytes.iter_mut().zip([entry, base, limit, flags].into_iter().flat_map(u32::to_le_bytes)) {
        *slot = byte;
    }
    bytes
}

impl TaskKind for Ldt {
    type Record = LdtRecord;
    type Asked = usize;
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, batch: &mut Batch) -> usize {
        let first = batch.room(8);
        batch.try_call(libc::SYS_modify_ldt, &[Arg::Value(READ), Arg::Data(first), Arg::Value(8)])
    }

    fn capture(cx: &mut Capture<'_>, task: &TaskView, asked: usize, replies: &Replies) -> Result<LdtRecord> {
        // No table, or a kernel without them.
        if super::optional(replies, asked).unwrap_or(0) == 0 {
            return Ok(LdtRecord::default());
        }
        let mut batch = Batch::new();
        let table = batch.room(ENTRIES * 8);
        let call =
            batch.try_call(libc::SYS_modify_ldt, &[Arg::Value(READ), Arg::Data(table), Arg::Value(ENTRIES as u64 * 8)]);
        let replies = cx.frozen.run(&[(task.tid, batch)])?;
        let replies = replies.first().ok_or_else(|| model::no_reply(task, "modify_ldt"))?;
        super::reply(task, replies, call, "modify_ldt")?;
        let words = (0..ENTRIES).map(|entry| replies.word(table.checked_add(entry * 8)?)).collect::<Option<Vec<u64>>>();
        let mut descriptors = words.ok_or_else(|| model::no_reply(task, "modify_ldt"))?;
        let end = descriptors.iter().rposition(|descriptor| *descriptor != 0).map_or(0, |at| at + 1);
        descriptors.truncate(end);
        Ok(LdtRecord { descriptors })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: LdtRecord) -> Result<()> {
        if record.descriptors.len() > ENTRIES {
            return Err(Error::Unsound(format!("task {task} has too long a descriptor table")));
        }
        for (entry, descriptor) in (0..).zip(&record.descriptors).filter(|(_, descriptor)| **descriptor != 0) {
            let batch = cx.batch(Stage::Process, task);
            let new = batch.bytes(&user_desc(entry, *descriptor));
            let args = [Arg::Value(WRITE), Arg::Data(new), Arg::Value(16)];
            batch.call("writing the local descriptor table", libc::SYS_modify_ldt, &args);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_becomes_the_call_that_makes_it() {
        // A flat 32-bit data segment of 4 GiB, usable: base 0x12345678.
        let descriptor = 0x12df_f334_5678_ffff;
        let desc = user_desc(5, descriptor);
        let word = |at: usize| u32::from_le_bytes(desc[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8)), (5, 0x1234_5678, 0xf_ffff));
        assert_eq!(word(12), 1 | 1 << 4 | 1 << 6);
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = LdtRecord { descriptors: vec![0, u64::MAX] };
        assert_eq!(LdtRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
