//! `PAGEMAP_SCAN` (Linux 6.7) on `/proc/PID/pagemap`, with the plain read of the file as the other way.
#![expect(unsafe_code, reason = "the ioctl and its argument struct have no safe wrapper")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Page is present in memory.
pub const PRESENT: u64 = 1 << 3;
/// Page is in swap.
pub const SWAPPED: u64 = 1 << 4;
/// Page belongs to a file (or shared memory).
pub const FILE: u64 = 1 << 2;
/// Page is the shared zero page.
pub const ZERO: u64 = 1 << 5;

/// Page is a guard: a touch of it is a fault.
const GUARD: u64 = 1 << 8;
/// Bit of an entry that says nothing here.
pub const SOFT_DIRTY: u64 = 1 << 55;
/// Bit of an entry for a guard.
pub const GUARDED: u64 = 1 << 58;
/// Bits of an entry for what lies where; hidden from those without the right to see it.
pub const PLACE: u64 = (1 << 55) - 1;

const PAGE: u64 = 4096;

/// Page was written since it was protected.
const WRITTEN: u64 = 1 << 1;
/// `PM_SCAN_WP_MATCHING`: what is found is protected in the same step.
const PROTECT: u64 = 1;
/// `PM_SCAN_CHECK_WPASYNC`: a mapping that is not followed is an error, not silence.
const MUST_BE_FOLLOWED: u64 = 1 << 1;
/// How many regions one call gives: the kernel gathers 512 at a time.
const REGIONS: usize = 2048;

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

mod request {
    // The function that the macro makes is public; this module is not.
    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, super::ScanArgument);
}

/// Which pages are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Every page that holds private contents: present or swapped, and not the zero page.
    Filled,
    /// Only pages that no longer belong to the mapped file.
    Anonymous,
    /// Only what is not in memory: swapped out, on its way to another place, or a mark that stands for a page that is not
    /// there (protected while it was absent).
    Absent,
}

/// Ranges of pages in a mapping, in order, joined where they touch.
pub fn scan(pagemap: &File, range: Range<u64>, wanted: Wanted) -> io::Result<Vec<Range<u64>>> {
    match scan_by_ioctl(pagemap, range.clone(), wanted) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            scan_by_read(pagemap, range, wanted)
        }
        other => other,
    }
}

fn scan_by_ioctl(pagemap: &File, range: Range<u64>, wanted: Wanted) -> io::Result<Vec<Range<u64>>> {
    let not = ZERO
        | match wanted {
            Wanted::Filled => 0,
            Wanted::Anonymous => FILE,
            Wanted::Absent => PRESENT,
        };
    // Inverted categories count for the choice of any as well.
    let any = if wanted == Wanted::Absent { SWAPPED } else { PRESENT | SWAPPED };
    with_categories(pagemap, range, not, any)
}

/// Guard regions (`MADV_GUARD_INSTALL`) in a mapping, in order; none where the kernel does not tell of them.
pub fn guards(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    match with_categories(pagemap, range, 0, GUARD) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => Ok(Vec::new()),
        other => other,
    }
}

/// Ranges of pages that have none of the categories `not` and one of `any`.
fn with_categories(pagemap: &File, range: Range<u64>, not: u64, any: u64) -> io::Result<Vec<Range<u64>>> {
    let question = ScanArgument {
        category_inverted: not,
        category_mask: not,
        category_anyof_mask: any,
        return_mask: PRESENT | (any & GUARD),
        ..ScanArgument::default()
    };
    gather(pagemap, range, question)
}

/// All regions that answer a question, joined where they touch.
fn gather(pagemap: &File, range: Range<u64>, question: ScanArgument) -> io::Result<Vec<Range<u64>>> {
    let pages = usize::try_from(range.end.saturating_sub(range.start) / PAGE).unwrap_or(REGIONS);
    let mut regions = vec![Region::default(); pages.clamp(1, REGIONS)];
    let mut argument = ScanArgument { size: size_of::<ScanArgument>() as u64, end: range.end, ..question };
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        argument.start = at;
        argument.vec = regions.as_mut_ptr() as u64;
        argument.vec_len = regions.len() as u64;
        // SAFETY: the argument and the vector it points to live until the call returns, and vec_len is its true length.
        let filled =
            unsafe { request::pagemap_scan(pagemap.as_raw_fd(), &raw mut argument) }.map_err(io::Error::from)?;
        let filled = usize::try_from(filled).unwrap_or(0).min(regions.len());
        let Some(new) = regions.get(..filled) else { break };
        for region in new {
            push(&mut found, region.start..region.end);
        }
        // The kernel's walk_end is stale once its inner buffer was full: a short answer is a complete one.
        if filled < regions.len() {
            break;
        }
        let Some(last) = new.last().filter(|last| last.end > at) else { break };
        at = last.end;
    }
    Ok(found)
}

fn scan_by_read(pagemap: &File, range: Range<u64>, wanted: Wanted) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut buffer = vec![0_u8; 64 * 1024];
    let mut at = range.start;
    while at < range.end {
        let pages = ((range.end - at) / PAGE).min(8192);
        let bytes = usize::try_from(pages * 8).unwrap_or(0);
        let Some(part) = buffer.get_mut(..bytes) else { break };
        pagemap.read_exact_at(part, at / PAGE * 8)?;
        for word in part.chunks_exact(8) {
            let entry = word.try_into().map_or(0, u64::from_ne_bytes);
            let there = entry >> 62 != 0;
            let of_file = entry >> 61 & 1 == 1;
            let wanted = match wanted {
                Wanted::Filled => true,
                Wanted::Anonymous => !of_file,
                Wanted::Absent => entry >> 63 == 0,
            };
            if there && wanted {
                push(&mut found, at..at + PAGE);
            }
            at += PAGE;
        }
    }
    Ok(found)
}

/// What happens to pages that a look at written ones finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// They are protected, so that the next look finds them only if they are written again.
    Protect,
    /// Nothing.
    Leave,
}

/// Ranges of pages written since they were protected, in a mapping that is followed by a userfaultfd of the kind of
/// [`crate::userfaultfd`]; `EPERM` when it is not (then some pages may have been protected). Pages that are not there count
/// as written as long as their page table exists; without one it depends on the kernel
/// ([`crate::userfaultfd::Habits`]), and then [`exists`] has to be asked.
pub fn written(pagemap: &File, range: Range<u64>, then: Then) -> io::Result<Vec<Range<u64>>> {
    // Nothing but this one category keeps the kernel on its fast path, which is some 50 times faster.
    let flags = MUST_BE_FOLLOWED | if then == Then::Protect { PROTECT } else { 0 };
    let question = ScanArgument { flags, category_mask: WRITTEN, return_mask: WRITTEN, ..ScanArgument::default() };
    gather(pagemap, range, question)
}

/// Whether anything stands in the page table for a page: its memory, swap, or the mark of a page that was protected while
/// it was not there.
pub fn exists(pagemap: &File, page: u64) -> io::Result<bool> {
    let mut entry = [0];
    entries(pagemap, page, &mut entry)?;
    Ok(entry[0] >> 62 != 0)
}

/// The entries of pages from this one on.
pub fn entries(pagemap: &File, page: u64, into: &mut [u64]) -> io::Result<()> {
    let mut bytes = vec![0; into.len() * 8];
    pagemap.read_exact_at(&mut bytes, page / PAGE * 8)?;
    for (entry, word) in into.iter_mut().zip(bytes.chunks_exact(8)) {
        *entry = word.try_into().map_or(0, u64::from_ne_bytes);
    }
    Ok(())
}

fn push(found: &mut Vec<Range<u64>>, next: Range<u64>) {
    match found.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => found.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_see_the_same_pages() {
        let mut memory = vec![0_u8; 64 * 4096];
        let base = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let skip = usize::try_from(base - memory.as_ptr() as u64).unwrap();
        for page in [3, 4, 9, 40] {
            memory[skip + page * 4096] = 1;
        }
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let range = base..base + 60 * PAGE;
        let by_read = scan_by_read(&pagemap, range.clone(), Wanted::Filled).unwrap();
        assert!(by_read.iter().any(|run| run.contains(&(base + 3 * PAGE))));
        assert!(by_read.iter().any(|run| run.contains(&(base + 40 * PAGE))));
        assert_eq!(scan(&pagemap, range.clone(), Wanted::Filled).unwrap(), by_read);
        assert_eq!(scan(&pagemap, range, Wanted::Absent).unwrap(), []);
        drop(memory);
    }
}
