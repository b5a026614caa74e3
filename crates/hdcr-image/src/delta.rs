//! Changed lines: a page as what differs from another copy of it, which is stored whole.
//!
//! The stored bytes of a run of such pages are the entry of the run that holds the other copies, then for each page a map
//! of its 64 lines of 64 bytes, and the changed ones; from the first map on packed with LZ4 when that is shorter.

use hdcr_layout::{Codec, Layout, PageRunEntry};

use crate::error::ImageError;
use crate::index::PageRun;
use crate::manifest::SegmentFacts;
use crate::name::PartName;
use crate::pack::PAGE;

const LINE: usize = 64;
/// A page of which more lines changed is stored whole.
pub(crate) const WORTH: u32 = 32;
/// A map of a page's lines and all of them.
const LONGEST: usize = PAGE + 8;

/// Which lines of a page differ.
pub(crate) fn changed(old: &[u8], new: &[u8]) -> u64 {
    let lines = old.chunks_exact(LINE).zip(new.chunks_exact(LINE)).enumerate();
    lines.fold(0, |map, (at, (old, new))| if old == new { map } else { map | 1 << (at & 63) })
}

/// Appends a map and the lines it names.
pub(crate) fn append(map: u64, page: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(&map.to_le_bytes());
    let lines = page.chunks_exact(LINE).enumerate().filter(|(at, _)| map >> (at & 63) & 1 == 1);
    lines.for_each(|(_, line)| into.extend_from_slice(line));
}

pub(crate) fn is_delta(entry: &PageRunEntry) -> bool {
    matches!(entry.codec, Codec::Delta | Codec::PackedDelta)
}

fn corrupt(entry: &PageRunEntry, reason: &str) -> ImageError {
    ImageError::corrupt(PartName::Pages(entry.segment), format!("{reason} (page {:#x})", entry.address))
}

/// The run that holds the copies which checked bytes are about.
pub(crate) fn base_of(entry: &PageRunEntry, stored: &[u8], all: &[SegmentFacts]) -> Result<PageRun, ImageError> {
    let block = stored.get(..PageRunEntry::SIZE).ok_or_else(|| corrupt(entry, "changed lines without a base"))?;
    let (base, _) = PageRunEntry::decode(block).map_err(|error| corrupt(entry, &error.to_string()))?;
    let base = PageRun::check(base, all)?;
    let whole = matches!(base.entry().codec, Codec::Plain | Codec::Lz4 | Codec::Zstd);
    if !whole || base.address() != 0 || base.pages() != u32::from(entry.stored) {
        return Err(corrupt(entry, "changed lines are of something other than whole pages"));
    }
    Ok(base)
}

/// Puts the lines of checked bytes into the copies.
pub(crate) fn apply(entry: &PageRunEntry, stored: &[u8], pages: &mut [u8]) -> Result<(), ImageError> {
    let lines = stored.get(PageRunEntry::SIZE..).unwrap_or_default();
    if entry.codec == Codec::Delta {
        return put(entry, lines, pages);
    }
    let mut plain = vec![0; usize::from(entry.stored).saturating_mul(LONGEST)];
    let found = lz4_flex::block::decompress_into(lines, &mut plain);
    let found = found.map_err(|error| corrupt(entry, &error.to_string()))?;
    put(entry, plain.get(..found).unwrap_or_default(), pages)
}

fn put(entry: &PageRunEntry, lines: &[u8], pages: &mut [u8]) -> Result<(), ImageError> {
    let early = || corrupt(entry, "changed lines end early");
    let mut rest = lines;
    for page in pages.chunks_exact_mut(PAGE) {
        let (map, after) = rest.split_first_chunk::<8>().ok_or_else(early)?;
        let map = u64::from_le_bytes(*map);
        rest = after;
        for (_, line) in page.chunks_exact_mut(LINE).enumerate().filter(|(at, _)| map >> (at & 63) & 1 == 1) {
            let (new, after) = rest.split_at_checked(LINE).ok_or_else(early)?;
            line.copy_from_slice(new);
            rest = after;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(corrupt(entry, "something follows the changed lines")) }
}
