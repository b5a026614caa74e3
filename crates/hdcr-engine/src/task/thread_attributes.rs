//! What `prctl(2)`, `arch_prctl(2)` and `personality(2)` set for one thread.
//!
//! Also `PR_SET_IO_FLUSHER`, whose question needs a capability and which the flags in `stat` show as well.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::attribute::{self, Answer, Attribute, Place, Value, arch_prctl, prctl};
use super::{Site, Stage, TaskKind, TaskView, rings, surroundings, unsupported};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::Result;
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;
use crate::survey::Survey;

pub(crate) struct ThreadAttributes;

/// The values.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ThreadAttributesRecord {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Value>,
    #[prost(bool, tag = "2")]
    io_flusher: bool,
}

/// `PR_SPEC_PRCTL` of `<linux/prctl.h>`: the thread may choose.
const MAY_CHOOSE: u64 = 1;

fn speculation(answer: u64) -> Option<u64> {
    (answer & MAY_CHOOSE != 0).then_some(answer & !MAY_CHOOSE)
}

const TABLE: &[Attribute] = &[
    Attribute {
        number: 1,
        label: "setting the personality",
        ask: (libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0]),
        answer: Answer::Result,
        kept: Some,
        set: |value| (libc::SYS_personality, [value, 0, 0, 0, 0]),
        usual: 0,
        stage: Stage::Thread,
    },
    Attribute {
        number: 2,
        label: "setting whether the time stamp counter may be read",
        ask: prctl([25, 0, 0, 0, 0]),
        answer: Answer::Int(1),
        kept: Some,
        set: |value| prctl([26, value, 0, 0, 0]),
        usual: 1,
        stage: Stage::Thread,
    },
    Attribute {
        number: 3,
        label: "setting what memory errors do",
        ask: prctl([34, 0, 0, 0, 0]),
        answer: Answer::Result,
        kept: Some,
        set: |value| prctl(if value == 2 { [33, 0, 0, 0, 0] } else { [33, 1, value, 0, 0] }),
        usual: 2,
        stage: Stage::Thread,
    },
    Attribute {
        number: 4,
        label: "setting whether cpuid may be used",
        ask: arch_prctl(0x1011, 0),
        answer: Answer::Result,
        kept: Some,
        set: |value| arch_prctl(0x1012, value),
        usual: 1,
        stage: Stage::Thread,
    },
    Attribute {
        number: 5,
        label: "setting speculative store bypass",
        ask: prctl([52, 0, 0, 0, 0]),
        answer: Answer::Result,
        kept: speculation,
        set: |value| prctl([53, 0, value, 0, 0]),
        usual: 2,
        stage: Stage::Thread,
    },
    Attribute {
        number: 6,
        label: "setting indirect branch speculation",
        ask: prctl([52, 1, 0, 0, 0]),
        answer: Answer::Result,
        kept: speculation,
        set: |value| prctl([53, 1, value, 0, 0]),
        usual: 2,
        stage: Stage::Thread,
    },
    Attribute {
        number: 7,
        label: "setting the flush of the data cache",
        ask: prctl([52, 2, 0, 0, 0]),
        answer: Answer::Result,
        kept: speculation,
        set: |value| prctl([53, 2, value, 0, 0]),
        usual: 4,
        stage: Stage::Thread,
    },
    // A change of credentials clears it.
    Attribute {
        number: 8,
        label: "setting the parent-death signal",
        ask: prctl([2, 0, 0, 0, 0]),
        answer: Answer::Int(1),
        kept: Some,
        set: |value| prctl([1, value, 0, 0, 0]),
        usual: 0,
        stage: Stage::Last,
    },
];

/// `PR_SET_IO_FLUSHER`.
const SET_IO_FLUSHER: u64 = 57;
/// `PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE` of kernel `include/linux/sched.h` (Linux 5.6).
const FLUSHER_FLAGS: i64 = 0x0008_0000 | 0x0010_0000;
/// Field number of the flags in `/proc/PID/stat`.
const FLAGS: usize = 9;

impl Record for ThreadAttributesRecord {
    const TAG: Tag = Tag(0x0308);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Where the replies will be.
pub(crate) struct Asked {
    places: Vec<Place>,
    keyrings: [usize; 2],
    rings: [usize; rings::MOST],
}

impl TaskKind for ThreadAttributes {
    type Record = ThreadAttributesRecord;
    type Asked = Asked;
    const SITE: Site = Site::Thread;

    fn survey(survey: &mut Survey<'_>, task: &TaskView) -> Result<()> {
        unsupported::of_thread(survey, task);
        Ok(())
    }

    fn ask(_task: &TaskView, batch: &mut Batch) -> Self::Asked {
        let places = attribute::ask(TABLE, batch);
        Asked { places, keyrings: surroundings::ask_for_keyrings(batch), rings: rings::ask(batch) }
    }

    fn capture(
        _cx: &mut Capture<'_>,
        task: &TaskView,
        asked: Self::Asked,
        replies: &Replies,
    ) -> Result<ThreadAttributesRecord> {
        let Asked { places, keyrings, rings } = asked;
        rings::refuse(task, rings, replies)?;
        surroundings::refuse_keyrings(task, keyrings, replies)?;
        let flags = task.stat.field(FLAGS).ok_or_else(|| model::no_reply(task, "flags in stat"))?;
        Ok(ThreadAttributesRecord {
            values: attribute::answers(TABLE, &places, task, replies)?,
            io_flusher: flags & FLUSHER_FLAGS == FLUSHER_FLAGS,
        })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: ThreadAttributesRecord) -> Result<()> {
        if record.io_flusher {
            let args = [Arg::Value(SET_IO_FLUSHER), Arg::Value(1)];
            cx.batch(Stage::Thread, task).call("setting the I/O flusher state", libc::SYS_prctl, &args);
        }
        attribute::put(TABLE, cx, task, &record.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_decides_is_not_kept() {
        assert_eq!((speculation(3), speculation(2), speculation(9)), (Some(2), None, Some(8)));
    }

    #[test]
    fn no_number_is_used_twice() {
        let mut numbers: Vec<u32> = TABLE.iter().map(|row| row.number).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), TABLE.len());
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = ThreadAttributesRecord { values: vec![Value { number: 1, value: u64::MAX }], io_flusher: true };
        assert_eq!(ThreadAttributesRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
