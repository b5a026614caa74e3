//! Pages that two address spaces share: the same memory behind the same addresses (`/proc/PID/pagemap`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
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

/// What stands behind the pages of one address space, kept so that several others can be compared with it.
#[derive(Debug)]
pub struct Frames {
    pagemap: File,
    /// Where entries were read, and the entries.
    read: BTreeMap<u64, Vec<u8>>,
}

impl Frames {
    /// Takes an opened `/proc/PID/pagemap`. Memory must not change while it is compared.
    pub fn new(pagemap: File) -> Self {
        Self { pagemap, read: BTreeMap::new() }
    }

    /// Ranges of pages within `range` that are the same anonymous memory in both. Nothing is found without the right to
    /// see where memory lies.
    pub fn same(&mut self, other: &File, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let mut far = Vec::new();
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            // Pieces begin at the same places whoever asks.
            let piece = ENTRIES * PAGE;
            let start = at / piece * piece;
            let entries = ((start + piece).min(range.end) - at) / PAGE;
            if entries == 0 {
                break;
            }
            let near = match self.read.entry(start) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(read(&self.pagemap, start, ENTRIES)?),
            };
            let skip = usize::try_from((at - start) / PAGE).unwrap_or(0);
            read_into(other, at, entries, &mut far)?;
            for (one, other) in near.chunks_exact(8).skip(skip).zip(far.chunks_exact(8)) {
                let entry = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
                let is_same = same(entry(one), entry(other));
                match found.last_mut() {
                    Some(last) if is_same && last.end == at => last.end = at + PAGE,
                    _ if is_same => found.push(at..at + PAGE),
                    _ => {}
                }
                at += PAGE;
            }
            if near.len() < 8 * (skip + 1) {
                break;
            }
        }
        Ok(found)
    }
}

/// Whether two entries tell of the same anonymous memory. The other bits are about the page tables that lead to it: one
/// process may be followed, and the other not.
fn same(one: u64, other: u64) -> bool {
    let told = |entry: u64| entry & (PRESENT | FILE | FRAME);
    told(one) == told(other) && one & PRESENT != 0 && one & FILE == 0 && one & FRAME != 0
}

/// As many entries as there are, up to the end of what can be mapped.
fn read(pagemap: &File, at: u64, entries: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(entries * 8).unwrap_or(0)];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match pagemap.read_at(rest, at / PAGE * 8 + done as u64)? {
            0 => break,
            more => done += more,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

fn read_into(pagemap: &File, at: u64, entries: u64, into: &mut Vec<u8>) -> io::Result<()> {
    into.resize(usize::try_from(entries * 8).unwrap_or(0), 0);
    pagemap.read_exact_at(into, at / PAGE * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_followed_shares_pages_with_who_is_not() {
        // `PM_UFFD_WP`.
        let followed = 1 << 57;
        assert!(same(PRESENT | 0x77, PRESENT | 0x77 | followed));
        assert!(!same(PRESENT | 0x77, PRESENT | 0x78));
        assert!(!same(PRESENT, PRESENT), "frames are not shown");
        assert!(!same(PRESENT | FILE | 0x77, PRESENT | FILE | 0x77) && !same(0x77, 0x77));
    }

    #[test]
    fn a_process_shares_its_own_pages_with_itself() {
        let memory = vec![1_u8; 16 * 4096];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let range = start..start + 8 * PAGE;
        let other = File::open("/proc/self/pagemap").unwrap();
        let mut frames = Frames::new(File::open("/proc/self/pagemap").unwrap());
        for _ in 0..2 {
            let found = frames.same(&other, &range).unwrap();
            // Without the right to see frames nothing is the same.
            assert!(found == [range.clone()] || found.is_empty(), "{found:x?}");
        }
        drop(memory);
    }
}
