//! Which pages an image holds, by address: later pages take the place of earlier ones.

use std::collections::BTreeMap;
use std::ops::Range;

use hdcr_layout::{Codec, PAGE_SIZE, PageRunEntry};

use crate::error::ImageError;
use crate::manifest::{PageFacts, SegmentFacts};
use crate::name::PartName;

/// Pages in a row of one address space, checked: nothing in it leads outside of its segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRun {
    entry: PageRunEntry,
}

impl PageRun {
    /// Address of the first page.
    pub fn address(&self) -> u64 {
        self.entry.address
    }

    /// How many pages.
    pub fn pages(&self) -> u32 {
        self.entry.pages
    }

    /// How many bytes.
    pub fn size(&self) -> u64 {
        u64::from(self.entry.pages).saturating_mul(PAGE_SIZE)
    }

    /// The addresses.
    pub fn range(&self) -> Range<u64> {
        self.address()..self.address().saturating_add(self.size())
    }

    /// Whether all of it is zero, and therefore not stored.
    pub fn is_zero(&self) -> bool {
        self.entry.codec == Codec::Zero
    }

    /// The entry as it stands in the image.
    pub fn entry(&self) -> &PageRunEntry {
        &self.entry
    }

    pub(crate) fn check(entry: PageRunEntry, segments: &[SegmentFacts]) -> Result<Self, ImageError> {
        if entry.codec == Codec::Zero {
            return Ok(Self { entry });
        }
        let part = PartName::Pages(entry.segment);
        let segment = segments.iter().find(|segment| segment.number == entry.segment);
        let segment = segment.ok_or_else(|| ImageError::corrupt(part, "a page run names it, the manifest does not"))?;
        if segment.generation != entry.generation {
            return Err(ImageError::Stale { part, found: segment.generation, expected: entry.generation });
        }
        let end = entry.offset.saturating_add(u64::from(entry.length));
        if entry.offset < u64::try_from(hdcr_layout::Header::SIZE).unwrap_or(u64::MAX) || end > segment.size {
            return Err(ImageError::corrupt(part, "a page run leads outside of it"));
        }
        Ok(Self { entry })
    }
}

/// How much an index holds: what [`crate::PageFacts`] tells as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) runs: u64,
    /// Pages whose bytes are stored.
    pub(crate) stored: u64,
    pub(crate) zero: u64,
}

impl Counts {
    pub(crate) fn of(entry: &PageRunEntry) -> Self {
        Self::of_pages(entry.codec, entry.pages)
    }

    fn of_pages(codec: Codec, pages: u32) -> Self {
        let pages = u64::from(pages);
        match codec {
            Codec::Zero => Self { runs: 1, stored: 0, zero: pages },
            Codec::Plain | Codec::Lz4 | Codec::Zstd | Codec::Delta | Codec::PackedDelta => {
                Self { runs: 1, stored: pages, zero: 0 }
            }
        }
    }

    pub(crate) fn plus(self, more: Self) -> Self {
        Self {
            runs: self.runs.saturating_add(more.runs),
            stored: self.stored.saturating_add(more.stored),
            zero: self.zero.saturating_add(more.zero),
        }
    }

    pub(crate) fn are_told_by(self, facts: &PageFacts) -> bool {
        (self.runs, self.stored, self.zero) == (facts.runs, facts.stored_pages, facts.zero_pages)
    }

    fn minus(self, less: Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(less.runs),
            stored: self.stored.saturating_sub(less.stored),
            zero: self.zero.saturating_sub(less.zero),
        }
    }
}

/// Runs that begin in as many bytes lie together.
const BLOCK: u64 = 2 << 20;
/// A block makes room for so many more at once, and no more: most are never added to again.
const MORE: usize = 8;

/// A run as it is kept, in 32 bytes: a program whose pages are written here and there has as many of them as pages.
#[derive(Clone, Copy, Debug)]
struct Slim {
    xxh3: u64,
    offset: u32,
    length: u32,
    pages: u32,
    /// Segment and generation, by their place in the list of them.
    home: u32,
    offset_above: u16,
    /// From the start of the block on.
    page: u16,
    stored: u16,
    codec: u8,
    skip: u8,
}

const _: () = assert!(size_of::<Slim>() == 32);

impl Slim {
    fn codec(&self) -> Codec {
        // There is no other number than that of one.
        Codec::from_number(u16::from(self.codec)).unwrap_or(Codec::Zero)
    }
}

/// Segments with their generations.
#[derive(Clone, Debug, Default)]
struct Homes {
    list: Vec<(u32, u64)>,
    places: BTreeMap<(u32, u64), u32>,
}

impl Homes {
    fn place(&mut self, home: (u32, u64)) -> u32 {
        if let Some(place) = self.places.get(&home) {
            return *place;
        }
        let place = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.list.push(home);
        self.places.insert(home, place);
        place
    }

    fn full(&self, block: u64, slim: &Slim) -> PageRunEntry {
        let home = usize::try_from(slim.home).ok().and_then(|place| self.list.get(place));
        let (segment, generation) = home.copied().unwrap_or_default();
        let within = u64::from(slim.page).saturating_mul(PAGE_SIZE);
        PageRunEntry {
            address: block.saturating_mul(BLOCK).saturating_add(within),
            offset: u64::from(slim.offset) | u64::from(slim.offset_above) << 32,
            generation,
            xxh3: slim.xxh3,
            pages: slim.pages,
            segment,
            length: slim.length,
            codec: slim.codec(),
            stored: slim.stored,
            skip: u16::from(slim.skip),
            reserved: 0,
        }
    }
}

/// The runs of one space, none over another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// By their number; none is empty.
    blocks: BTreeMap<u64, Vec<Slim>>,
    homes: Homes,
    counts: Counts,
}

fn block_of(address: u64) -> (u64, u16) {
    let page = address.checked_rem(BLOCK).and_then(|within| within.checked_div(PAGE_SIZE));
    (address.checked_div(BLOCK).unwrap_or(0), page.and_then(|page| u16::try_from(page).ok()).unwrap_or(0))
}

impl Index {
    fn slim(&mut self, entry: &PageRunEntry) -> Slim {
        // An offset that is longer leads out of any segment, and so does the one that takes its place.
        let offset = entry.offset.min((1 << 48) - 1);
        Slim {
            xxh3: entry.xxh3,
            offset: u32::try_from(offset & u64::from(u32::MAX)).unwrap_or(u32::MAX),
            length: entry.length,
            pages: entry.pages,
            home: self.homes.place((entry.segment, entry.generation)),
            offset_above: u16::try_from(offset >> 32).unwrap_or(u16::MAX),
            page: block_of(entry.address).1,
            stored: entry.stored,
            codec: u8::try_from(entry.codec.number()).unwrap_or(u8::MAX),
            skip: u8::try_from(entry.skip).unwrap_or(u8::MAX),
        }
    }

    fn full(&self, block: u64, slim: &Slim) -> PageRunEntry {
        self.homes.full(block, slim)
    }

    /// Puts a run over whatever was there.
    pub(crate) fn insert(&mut self, entry: PageRunEntry) {
        let end = entry.end().unwrap_or(u64::MAX);
        let (number, page) = block_of(entry.address);
        let slim = self.slim(&entry);
        let block = self.blocks.get_mut(&number);
        let at = block.as_ref().and_then(|block| block.binary_search_by_key(&page, |slim| slim.page).ok());
        let same = block.zip(at).and_then(|(block, at)| block.get_mut(at)).filter(|same| same.pages == entry.pages);
        if let Some(same) = same {
            let gone = std::mem::replace(same, slim);
            self.counts = self.counts.minus(Counts::of_pages(gone.codec(), gone.pages)).plus(Counts::of(&entry));
            return;
        }
        self.cut(entry.address..end);
        self.add(&entry);
    }

    /// The last run that begins before an address.
    fn before(&self, address: u64) -> Option<PageRunEntry> {
        let (number, page) = block_of(address);
        let here = self.blocks.get(&number).and_then(|block| {
            let before = block.partition_point(|slim| slim.page < page).checked_sub(1)?;
            Some((number, block.get(before)?))
        });
        let found = here.or_else(|| {
            let (number, block) = self.blocks.range(..number).next_back()?;
            Some((*number, block.last()?))
        });
        found.map(|(number, slim)| self.full(number, slim))
    }

    /// Takes all pages of a range out, and says whether there were any.
    pub(crate) fn cut(&mut self, range: Range<u64>) -> bool {
        let over = |entry: &PageRunEntry| entry.end().unwrap_or(u64::MAX) > range.start;
        if range.is_empty() || !self.before(range.end).is_some_and(|last| over(&last)) {
            return false;
        }
        // Only the first and the last of them can stick out.
        let first = self.before(range.start).filter(over);
        let last = self.before(range.end);
        if let Some(first) = &first {
            self.take_out(&(first.address..first.address.saturating_add(1)));
        }
        self.take_out(&range);
        for entry in [first, last.filter(|last| Some(last.address) != first.map(|first| first.address))] {
            let Some(entry) = entry else { continue };
            let end = entry.end().unwrap_or(u64::MAX);
            for rest in [entry.address..range.start.min(end), range.end.max(entry.address)..end] {
                if let Some(rest) = piece(&entry, &rest) {
                    self.add(&rest);
                }
            }
        }
        true
    }

    /// Takes out the runs that begin in a range.
    fn take_out(&mut self, range: &Range<u64>) {
        let Some(last) = range.end.checked_sub(1).filter(|_| !range.is_empty()) else { return };
        let ((first_block, first), (last_block, last)) = (block_of(range.start), block_of(last));
        let mut gone = Counts::default();
        let mut empty = Vec::new();
        for (number, block) in self.blocks.range_mut(first_block..=last_block) {
            let from = if *number == first_block { block.partition_point(|slim| slim.page < first) } else { 0 };
            let all = block.len();
            let to = if *number == last_block { block.partition_point(|slim| slim.page <= last) } else { all };
            for slim in block.drain(from..to.max(from)) {
                gone = gone.plus(Counts::of_pages(slim.codec(), slim.pages));
            }
            if block.is_empty() {
                empty.push(*number);
            }
        }
        for number in &empty {
            self.blocks.remove(number);
        }
        self.counts = self.counts.minus(gone);
    }

    fn add(&mut self, entry: &PageRunEntry) {
        let slim = self.slim(entry);
        let block = self.blocks.entry(block_of(entry.address).0).or_default();
        if block.len() == block.capacity() {
            block.reserve_exact(MORE);
        }
        let at = block.partition_point(|other| other.page < slim.page);
        block.insert(at, slim);
        self.counts = self.counts.plus(Counts::of(entry));
    }

    /// The runs that lie in a range, or the parts of them that do.
    pub(crate) fn within(&self, range: &Range<u64>) -> Vec<PageRunEntry> {
        let Some(last) = range.end.checked_sub(1).filter(|_| !range.is_empty()) else { return Vec::new() };
        let ((first_block, first), (last_block, last)) = (block_of(range.start), block_of(last));
        let blocks = self.blocks.range(first_block..=last_block);
        let inside = blocks.flat_map(|(number, block)| {
            let from = if *number == first_block { block.partition_point(|slim| slim.page < first) } else { 0 };
            let all = block.len();
            let to = if *number == last_block { block.partition_point(|slim| slim.page <= last) } else { all };
            block.get(from..to).unwrap_or_default().iter().map(|slim| self.full(*number, slim))
        });
        let part = |entry: PageRunEntry| {
            let end = entry.end().unwrap_or(u64::MAX).min(range.end);
            let start = entry.address.max(range.start);
            if start < end { piece(&entry, &(start..end)) } else { None }
        };
        self.before(range.start).into_iter().chain(inside).filter_map(part).collect()
    }

    /// Whether exactly this is there.
    pub(crate) fn has(&self, run: &PageRunEntry) -> bool {
        run.end().is_some_and(|end| self.within(&(run.address..end)) == [*run])
    }

    pub(crate) fn runs(&self) -> impl Iterator<Item = PageRunEntry> {
        self.blocks.iter().flat_map(|(number, block)| block.iter().map(|slim| self.full(*number, slim)))
    }

    /// The runs, whose memory is given back as they are taken.
    pub(crate) fn into_runs(self) -> impl Iterator<Item = PageRunEntry> {
        let homes = self.homes;
        self.blocks
            .into_iter()
            .flat_map(|(number, block)| block.into_iter().map(move |slim| (number, slim)))
            .map(move |(number, slim)| homes.full(number, &slim))
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }
}

/// The part of a run that lies in a range of its own addresses.
fn piece(entry: &PageRunEntry, range: &Range<u64>) -> Option<PageRunEntry> {
    let pages = |len: u64| len.checked_div(PAGE_SIZE);
    let skipped = pages(range.start.checked_sub(entry.address)?)?;
    let count = u32::try_from(pages(range.end.checked_sub(range.start)?)?).ok()?;
    if count == 0 {
        return None;
    }
    let skip = match entry.codec {
        Codec::Zero => 0,
        Codec::Plain | Codec::Lz4 | Codec::Zstd | Codec::Delta | Codec::PackedDelta => {
            entry.skip.checked_add(u16::try_from(skipped).ok()?)?
        }
    };
    Some(PageRunEntry { address: range.start, pages: count, skip, ..*entry })
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may fail by panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(first: u64, pages: u16, offset: u64) -> PageRunEntry {
        PageRunEntry {
            address: first * PAGE_SIZE,
            offset,
            generation: 0,
            xxh3: 0,
            pages: u32::from(pages),
            segment: 0,
            length: 1,
            codec: if offset == 0 { Codec::Zero } else { Codec::Lz4 },
            stored: if offset == 0 { 0 } else { pages },
            skip: 0,
            reserved: 0,
        }
    }

    proptest! {
        /// Against a model that keeps each page by itself, on both sides of the border of a block.
        #[test]
        fn later_pages_win(steps in prop::collection::vec((490_u64..530, 1_u16..20, 0_u8..5), 1..30)) {
            let mut index = Index::default();
            let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
            for (step, (first, pages, kind)) in steps.into_iter().enumerate() {
                // Beyond what fits 32 bits, too.
                let offset = if kind == 1 { 0 } else { (step as u64 + 1) << 31 };
                let range = first..first + u64::from(pages);
                if kind == 0 {
                    index.cut(first * PAGE_SIZE..range.end * PAGE_SIZE);
                    model.retain(|page, _| !range.contains(page));
                    continue;
                }
                index.insert(run(first, pages, offset));
                model.extend(range.map(|page| (page, (offset, if kind == 1 { 0 } else { page - first }))));
            }
            let mut found = BTreeMap::new();
            for entry in index.runs() {
                for page in 0..u64::from(entry.pages) {
                    let within = if entry.codec == Codec::Zero { 0 } else { u64::from(entry.skip) + page };
                    let old = found.insert(entry.address / PAGE_SIZE + page, (entry.offset, within));
                    prop_assert_eq!(old, None);
                }
            }
            let counted = index.runs().map(|entry| Counts::of(&entry)).fold(Counts::default(), Counts::plus);
            prop_assert_eq!(index.counts(), counted);
            prop_assert!(index.blocks.values().all(|block| !block.is_empty()));
            let range = 505 * PAGE_SIZE..520 * PAGE_SIZE;
            let within: u64 = index.within(&range).iter().map(|entry| u64::from(entry.pages)).sum();
            prop_assert_eq!(within, model.keys().filter(|page| (505..520).contains(*page)).count() as u64);
            prop_assert_eq!(found, model);
        }
    }
}
