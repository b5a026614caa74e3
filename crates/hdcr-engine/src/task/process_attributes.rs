//! What `prctl(2)` and `arch_prctl(2)` set for a whole process or its address space.

use hdcr_image::{Record, Tag};

use super::attribute::{self, Answer, Attribute, Place, Value, arch_prctl, prctl};
use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Batch, Replies};
use crate::capture::Capture;
use crate::error::Result;
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

pub(crate) struct ProcessAttributes;

/// The values.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcessAttributesRecord {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Value>,
}

/// The state component of the tile registers (AMX), which a process has to ask for.
const TILES: u64 = 18;

const TABLE: &[Attribute] = &[
    Attribute {
        number: 1,
        label: "making the process a child subreaper",
        ask: prctl([37, 0, 0, 0, 0]),
        answer: Answer::Int(1),
        kept: Some,
        set: |value| prctl([36, value, 0, 0, 0]),
        usual: 0,
        stage: Stage::Process,
    },
    // The value holds flags above its lowest bit (Linux 6.18).
    Attribute {
        number: 2,
        label: "setting whether huge pages are used",
        ask: prctl([42, 0, 0, 0, 0]),
        answer: Answer::Result,
        kept: Some,
        set: |value| prctl([41, value & 1, value & !1, 0, 0]),
        usual: 0,
        stage: Stage::Process,
    },
    Attribute {
        number: 3,
        label: "setting whether equal pages are merged",
        ask: prctl([68, 0, 0, 0, 0]),
        answer: Answer::Result,
        kept: Some,
        set: |value| prctl([67, value, 0, 0, 0]),
        usual: 0,
        stage: Stage::Process,
    },
    // Before the tile registers are put in, and before a small signal stack would forbid it.
    Attribute {
        number: 4,
        label: "asking for tile registers",
        ask: arch_prctl(0x1022, 0),
        answer: Answer::Word(1),
        kept: |answer| (answer >> TILES & 1 == 1).then_some(TILES),
        set: |value| arch_prctl(0x1023, value),
        usual: 0,
        stage: Stage::Process,
    },
    // From then on no memory can be made executable: last.
    Attribute {
        number: 5,
        label: "denying writable and executable memory",
        ask: prctl([66, 0, 0, 0, 0]),
        answer: Answer::Result,
        kept: Some,
        set: |value| prctl([65, value, 0, 0, 0]),
        usual: 0,
        stage: Stage::Last,
    },
    // A change of credentials sets it anew. 2 (a core file for root alone) is the kernel's to give: it becomes 0, no core.
    Attribute {
        number: 6,
        label: "setting whether the process is dumpable",
        ask: prctl([3, 0, 0, 0, 0]),
        answer: Answer::Result,
        kept: |answer| Some(u64::from(answer == 1)),
        set: |value| prctl([4, value, 0, 0, 0]),
        usual: 1,
        stage: Stage::Last,
    },
];

impl Record for ProcessAttributesRecord {
    const TAG: Tag = Tag(0x0309);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl TaskKind for ProcessAttributes {
    type Record = ProcessAttributesRecord;
    type Asked = Vec<Place>;
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, batch: &mut Batch) -> Self::Asked {
        attribute::ask(TABLE, batch)
    }

    fn capture(
        _cx: &mut Capture<'_>,
        task: &TaskView,
        asked: Self::Asked,
        replies: &Replies,
    ) -> Result<ProcessAttributesRecord> {
        Ok(ProcessAttributesRecord { values: attribute::answers(TABLE, &asked, task, replies)? })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: ProcessAttributesRecord) -> Result<()> {
        attribute::put(TABLE, cx, task, &record.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_used_twice() {
        let mut numbers: Vec<u32> = TABLE.iter().map(|row| row.number).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), TABLE.len());
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record =
            ProcessAttributesRecord { values: vec![Value { number: 4, value: 18 }, Value { number: 6, value: 0 }] };
        assert_eq!(ProcessAttributesRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
