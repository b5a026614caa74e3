//! What a program says of its memory that no event tells: that a child is not to get it.

use std::ops::Range;

use crate::ids::Pid;
use crate::procfs::{self, MapLine};

/// What a process has said about its children.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ForChildren {
    /// A child finds zeros there (`MADV_WIPEONFORK`), or nothing at all (`MADV_DONTFORK`).
    not_inherited: Vec<Range<u64>>,
}

impl ForChildren {
    /// As of now. Costs about what the fork itself does: both go through all page tables. Nothing when it cannot be read.
    pub(crate) fn of(pid: Pid) -> Self {
        let lines = procfs::read(pid, "smaps").ok().and_then(|text| procfs::parse_smaps(&text));
        Self::in_lines(lines.unwrap_or_default())
    }

    fn in_lines(lines: Vec<MapLine>) -> Self {
        let kept_back = |line: &MapLine| line.has(b"wf") || line.has(b"dc");
        Self { not_inherited: lines.into_iter().filter(kept_back).map(|line| line.range).collect() }
    }

    /// What a child does not get.
    pub(crate) fn not_inherited(&self) -> &[Range<u64>] {
        &self.not_inherited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_does_not_get_is_known() {
        let smaps = b"10000-12000 rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me ac um \n\
            12000-13000 rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me wf ac um \n\
            20000-24000 rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me dc ac \n";
        let told = ForChildren::in_lines(procfs::parse_smaps(smaps).unwrap());
        assert_eq!(told.not_inherited(), [0x12000..0x13000, 0x20000..0x24000]);
        assert_eq!(ForChildren::of(Pid(i32::MAX)), ForChildren::default());
    }
}
