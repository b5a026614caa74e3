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
        let pages = u64::from(entry.pages);
        match entry.codec {
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

/// The runs of one space, none over another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    runs: BTreeMap<u64, PageRunEntry>,
    counts: Counts,
}

impl Index {
    /// Puts a run over whatever was there.
    pub(crate) fn insert(&mut self, entry: PageRunEntry) {
        let end = entry.end().unwrap_or(u64::MAX);
        if let Some(same) = self.runs.get_mut(&entry.address).filter(|same| same.pages == entry.pages) {
            let gone = std::mem::replace(same, entry);
            self.counts = self.counts.minus(Counts::of(&gone)).plus(Counts::of(&entry));
            return;
        }
        self.cut(entry.address..end);
        self.add(entry);
    }

    /// Takes all pages of a range out, and says whether there were any.
    pub(crate) fn cut(&mut self, range: Range<u64>) -> bool {
        let over = |entry: &PageRunEntry| entry.end().unwrap_or(u64::MAX) > range.start;
        let last = self.runs.range(..range.end).next_back().map(|(_, entry)| entry);
        if !last.is_some_and(over) {
            return false;
        }
        let before = self.runs.range(..range.start).next_back().map(|(_, entry)| *entry).filter(over);
        let within = self.runs.range(range.clone()).map(|(_, entry)| *entry);
        let touched: Vec<PageRunEntry> = before.into_iter().chain(within).collect();
        for entry in &touched {
            self.runs.remove(&entry.address);
            self.counts = self.counts.minus(Counts::of(entry));
            let end = entry.end().unwrap_or(u64::MAX);
            for rest in [entry.address..range.start.min(end), range.end.max(entry.address)..end] {
                if let Some(rest) = piece(entry, &rest) {
                    self.add(rest);
                }
            }
        }
        !touched.is_empty()
    }

    fn add(&mut self, entry: PageRunEntry) {
        self.runs.insert(entry.address, entry);
        self.counts = self.counts.plus(Counts::of(&entry));
    }

    /// The runs that lie in a range, or the parts of them that do.
    pub(crate) fn within(&self, range: &Range<u64>) -> Vec<PageRunEntry> {
        let before = self.runs.range(..range.start).next_back().map(|(_, entry)| entry);
        let inside = self.runs.range(range.clone()).map(|(_, entry)| entry);
        let part = |entry: &PageRunEntry| {
            let end = entry.end().unwrap_or(u64::MAX).min(range.end);
            let start = entry.address.max(range.start);
            if start < end { piece(entry, &(start..end)) } else { None }
        };
        before.into_iter().chain(inside).filter_map(part).collect()
    }

    /// Whether exactly this is there.
    pub(crate) fn has(&self, run: &PageRunEntry) -> bool {
        run.end().is_some_and(|end| self.within(&(run.address..end)) == [*run])
    }

    pub(crate) fn runs(&self) -> impl Iterator<Item = &PageRunEntry> {
        self.runs.values()
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
        /// Against a model that keeps each page by itself.
        #[test]
        fn later_pages_win(steps in prop::collection::vec((0_u64..40, 1_u16..20, 0_u8..5), 1..30)) {
            let mut index = Index::default();
            let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
            for (step, (first, pages, kind)) in steps.into_iter().enumerate() {
                let offset = if kind == 1 { 0 } else { step as u64 + 1 };
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
            let counted = index.runs().map(Counts::of).fold(Counts::default(), Counts::plus);
            prop_assert_eq!(index.counts(), counted);
            prop_assert_eq!(found, model);
        }
    }
}
