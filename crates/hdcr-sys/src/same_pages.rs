//! Pages that two address spaces share: the same memory behind the same addresses (`/proc/PID/pagemap`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
/// `PM_PRESENT`.
const PRESENT: u64 = 1 << 63;
/// `PM_FILE`: of a file, or shared memory.
const FILE: u64 = 1 << 61;
/// Bits 0-54: the frame of memory; zero without `CAP_SYS_ADMIN`.
const FRAME: u64 = (1 << 55) - 1;
/// Entries that are read at once.
const ENTRIES: u64 = 8192;

/// Ranges of pages within `range` that are the same anonymous memory in both. Nothing is found without the right to see
/// where memory lies.
pub fn same_pages(one: &File, other: &File, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let (mut near, mut far) = (Vec::new(), Vec::new());
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let entries = ((range.end - at) / PAGE).min(ENTRIES);
        if entries == 0 {
            break;
        }
        read(one, at, entries, &mut near)?;
        read(other, at, entries, &mut far)?;
        for (one, other) in near.chunks_exact(8).zip(far.chunks_exact(8)) {
            let entry = one.try_into().map_or(0, u64::from_ne_bytes);
            let is_same = one == other && entry & PRESENT != 0 && entry & FILE == 0 && entry & FRAME != 0;
            match found.last_mut() {
                Some(last) if is_same && last.end == at => last.end = at + PAGE,
                _ if is_same => found.push(at..at + PAGE),
                _ => {}
            }
            at += PAGE;
        }
    }
    Ok(found)
}

fn read(pagemap: &File, at: u64, entries: u64, into: &mut Vec<u8>) -> io::Result<()> {
    into.resize(usize::try_from(entries * 8).unwrap_or(0), 0);
    pagemap.read_exact_at(into, at / PAGE * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_shares_its_own_pages_with_itself() {
        let memory = vec![1_u8; 16 * 4096];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let range = start..start + 8 * PAGE;
        let (one, other) = (File::open("/proc/self/pagemap").unwrap(), File::open("/proc/self/pagemap").unwrap());
        let found = same_pages(&one, &other, &range).unwrap();
        // Without the right to see frames nothing is the same.
        assert!(found == [range.clone()] || found.is_empty(), "{found:x?}");
        drop(memory);
    }
}
