//! `sigaltstack(2)`: the alternate signal stack of a thread.
//!
//! Asked of the thread itself, as no file of `/proc` shows it. `SS_ONSTACK` is not a setting but a fact about the stack
//! pointer: it comes back with the registers and is not put in (`EPERM`, kernel/signal.c `do_sigaltstack`).

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::Result;
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

pub(crate) struct AltStack;

/// `stack_t`, without the padding.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AltStackRecord {
    #[prost(uint64, tag = "1")]
    base: u64,
    #[prost(uint32, tag = "2")]
    flags: u32,
    #[prost(uint64, tag = "3")]
    size: u64,
}

/// `SS_ONSTACK` of `<signal.h>`.
const ON_STACK: u32 = 1;
/// `sizeof(stack_t)` on x86-64.
const STACK_T: usize = 24;

impl Record for AltStackRecord {
    const TAG: Tag = Tag(0x0301);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl TaskKind for AltStack {
    type Record = AltStackRecord;
    type Asked = usize;
    const SITE: Site = Site::Thread;

    fn ask(_task: &TaskView, batch: &mut Batch) -> usize {
        let old = batch.room(STACK_T);
        batch.call(libc::SYS_sigaltstack, &[Arg::Value(0), Arg::Data(old)]);
        old
    }

    fn capture(_cx: &mut Capture<'_>, task: &TaskView, old: usize, replies: &Replies) -> Result<AltStackRecord> {
        let words = (|| Some((replies.word(old)?, replies.word(old + 8)?, replies.word(old + 16)?)))();
        let (base, flags, size) = words.ok_or_else(|| model::no_reply(task, "sigaltstack"))?;
        Ok(AltStackRecord { base, flags: model::low32(flags) & !ON_STACK, size })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: AltStackRecord) -> Result<()> {
        let batch = cx.batch(Stage::Thread, task);
        let new = batch.room(STACK_T);
        batch.put(new, &record.base.to_le_bytes());
        batch.put(new + 8, &record.flags.to_le_bytes());
        batch.put(new + 16, &record.size.to_le_bytes());
        batch.call("setting the alternate signal stack", libc::SYS_sigaltstack, &[Arg::Data(new), Arg::Value(0)]);
        Ok(())
    }
}
