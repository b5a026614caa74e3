//! Guard regions (`MADV_GUARD_INSTALL`, Linux 6.13): pages without contents, a touch of which is a fault. The stacks of
//! threads have them since glibc 2.42.
//!
//! `PAGEMAP_SCAN` tells which pages; which mappings may have some is told by `VmFlags` (`gu`) on newer kernels. Pages are not
//! read there: on a kernel that shows neither, the reading fails, and with it the checkpoint.

use std::fs::File;
use std::ops::Range;

use hdcr_image::hdcr_layout::MappingKind;
use hdcr_sys::pagemap;

use super::kind_of;
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::procfs::{self, MapLine};

/// The first kernel that names mappings with guards, and the first that knows guards.
const NAMED: (u32, u32) = (6, 18);
const KNOWN: (u32, u32) = (6, 13);

/// Guard regions of a process, in order.
pub(crate) fn of(pid: Pid, lines: &[MapLine]) -> Result<Vec<Range<u64>>> {
    let kernel = kernel();
    let unnamed = (KNOWN..NAMED).contains(&kernel);
    let may_have = |line: &&MapLine| {
        line.has(b"gu") || (unnamed && !matches!(kind_of(line), MappingKind::Vdso | MappingKind::Vvar))
    };
    let mut wanted = lines.iter().filter(may_have).peekable();
    if wanted.peek().is_none() {
        return Ok(Vec::new());
    }
    let failed = |operation| Error::system(operation, format!("process {pid}"));
    let pagemap = File::open(procfs::path(pid, "pagemap")).map_err(failed("opening pagemap"))?;
    let mut found = Vec::new();
    for line in wanted {
        found.extend(pagemap::guards(&pagemap, line.range.clone()).map_err(failed("looking for guard regions"))?);
    }
    Ok(found)
}

fn kernel() -> (u32, u32) {
    release(&rustix::system::uname().release().to_string_lossy())
}

fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What of the runs no guard covers; both in order.
pub(crate) fn without(runs: Vec<Range<u64>>, guards: &[Range<u64>]) -> Vec<Range<u64>> {
    if guards.is_empty() {
        return runs;
    }
    let mut left = Vec::with_capacity(runs.len());
    for run in runs {
        let mut at = run.start;
        let first = guards.partition_point(|guard| guard.end <= run.start);
        for guard in guards.iter().skip(first).take_while(|guard| guard.start < run.end) {
            if at < guard.start {
                left.push(at..guard.start);
            }
            at = guard.end;
        }
        if at < run.end {
            left.push(at..run.end);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(runs: &[Range<u64>], guards: &[Range<u64>], expected: &[Range<u64>]) {
        assert_eq!(without(runs.to_vec(), guards), expected);
    }

    #[test]
    fn guards_are_cut_out_of_runs() {
        check(&[2..8, 9..12], &[], &[2..8, 9..12]);
        check(&[2..8, 9..12], &[0..1, 3..4, 6..10, 20..30], &[2..3, 4..6, 10..12]);
        check(&[2..8, 9..12], &[2..8, 9..12], &[]);
        check(&[2..8, 9..12], &[0..3, 7..10], &[3..7, 10..12]);
    }

    #[test]
    fn releases_are_read() {
        assert_eq!(release("6.18.44-fc-v669\n"), (6, 18));
        assert_eq!(release("6.9-rc1"), (6, 9));
        assert_eq!(release(""), (0, 0));
    }
}
