//! Memory that the program has asked to leave out: its mappings are kept, its contents are not, and are zeros after a restore.
//!
//! Whatever is read is read by mappings, so a mapping with such a part is taken for several where contents are meant.

use std::collections::BTreeMap;
use std::ops::Range;

use hdcr_image::hdcr_layout::MappingKind;
use hdcr_image::{Record, Tag};

use super::{PAGE, kind_of};
use crate::ids::Pid;
use crate::model;
use crate::procfs::MapLine;
use crate::snapshot::pageset::PageSet;

/// What of the memory of which process is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Omitted(BTreeMap<Pid, PageSet>);

impl Omitted {
    /// Leaves out the pages that lie wholly in a range.
    pub fn add(&mut self, pid: Pid, range: &Range<u64>) {
        let (Some(start), end) = (range.start.checked_next_multiple_of(PAGE), range.end / PAGE * PAGE) else { return };
        if start < end {
            self.0.entry(pid).or_default().add(&(start..end));
        }
    }

    /// Of one process.
    pub(crate) fn of(&self, pid: Pid) -> PageSet {
        self.0.get(&pid).cloned().unwrap_or_default()
    }
}

/// Mappings without what is left out of them. Only private anonymous memory can be: of anything else others know more.
pub(crate) fn without(lines: &[MapLine], omitted: &PageSet) -> Vec<MapLine> {
    let mut left = Vec::with_capacity(lines.len());
    for line in lines {
        if !can_be(line) {
            left.push(line.clone());
            continue;
        }
        left.extend(omitted.missing(&line.range).into_iter().map(|range| MapLine { range, ..line.clone() }));
    }
    left
}

fn can_be(line: &MapLine) -> bool {
    kind_of(line) == MappingKind::Anonymous && !line.shared()
}

/// What the image says of it. Its id is that of the address space.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OmittedRecord {
    /// Start and end of each part of a mapping.
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ranges: Vec<u64>,
}

impl Record for OmittedRecord {
    const TAG: Tag = Tag(0x0113);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl OmittedRecord {
    /// What is left out of these mappings; `None`: nothing.
    pub(crate) fn of(lines: &[MapLine], omitted: &PageSet) -> Option<Self> {
        let parts = lines.iter().filter(|line| can_be(line)).flat_map(|line| omitted.within(&line.range));
        let ranges: Vec<u64> = parts.flat_map(|part| [part.start, part.end]).collect();
        (!ranges.is_empty()).then_some(Self { ranges })
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges.chunks_exact(2).filter_map(|pair| Some(*pair.first()?..*pair.get(1)?))
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        let bytes: u64 = self.parts().map(|part| part.end.saturating_sub(part.start)).sum();
        let parts: Vec<String> = self.parts().map(|part| format!("{:#x}-{:#x}", part.start, part.end)).collect();
        format!("{bytes} bytes are left out as the program has asked: {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(range: Range<u64>, inode: u64, perms: [u8; 4]) -> MapLine {
        MapLine {
            range,
            perms,
            offset: 0,
            device: (0, 0),
            inode,
            name: Vec::new(),
            vm_flags: Vec::new(),
            protection_key: 0,
        }
    }

    #[test]
    fn whole_pages_of_private_memory_are_left_out_and_nothing_else() {
        let mut omitted = Omitted::default();
        omitted.add(Pid(7), &(PAGE + 1..4 * PAGE + 1));
        omitted.add(Pid(7), &(u64::MAX - 1..u64::MAX));
        omitted.add(Pid(7), &(9 * PAGE + 1..9 * PAGE + 7));
        let omitted = omitted.of(Pid(7));
        assert!(omitted.ranges().eq(std::iter::once(2 * PAGE..4 * PAGE)));
        let lines = [
            line(0..3 * PAGE, 0, *b"rw-p"),
            line(3 * PAGE..5 * PAGE, 0, *b"rw-s"),
            line(5 * PAGE..PAGE * 6, 3, *b"rw-p"),
        ];
        let left: Vec<Range<u64>> = without(&lines, &omitted).into_iter().map(|line| line.range).collect();
        assert_eq!(left, [0..2 * PAGE, 3 * PAGE..5 * PAGE, 5 * PAGE..6 * PAGE]);
        let record = OmittedRecord::of(&lines, &omitted).unwrap();
        assert!(record.parts().eq(std::iter::once(2 * PAGE..3 * PAGE)));
        assert_eq!(OmittedRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        assert_eq!(OmittedRecord::of(&lines[1..], &omitted), None);
    }
}
