//! Keeping a chain small: of a closed segment that is mostly dead the rest is written anew, a little with each increment,
//! until nothing of it is alive and images name it no more.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use hdcr_layout::{Codec, PageRunEntry};

use crate::delta::is_delta;
use crate::error::ImageError;
use crate::index::Index;
use crate::manifest::SegmentFacts;
use crate::number::{len, size};
use crate::pack::{Bases, PAGE, Packer};
use crate::reader::{Identity, identity};
use crate::segments::LONGEST;
use crate::shadow::Shadow;
use crate::sink::Sink;

/// With each increment as much is written anew as it has written itself, and at least this.
const LEAST: u64 = 64 << 10;
/// Pages that are stored together again.
const TOGETHER: usize = 16;
/// Bytes of a segment for which there is one bit.
const GRAIN: u64 = 128;

/// Pages that were stored together, and who may refer to them.
#[derive(Debug)]
struct Item {
    of: Identity,
    refs: Vec<(u64, Range<u64>)>,
}

/// What is under way, from increment to increment.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// Which segment was to be the next one when the index was looked through.
    seen: Option<u64>,
    /// What is to be written anew.
    items: VecDeque<Item>,
    /// Copies of pages that were stored.
    pub(crate) shadow: Shadow,
}

/// Which bytes of each closed segment something refers to, by grains.
struct Alive {
    bits: BTreeMap<u32, Vec<u64>>,
}

impl Alive {
    fn new(closed: &[SegmentFacts]) -> Self {
        // Longer ones are not of this writer's making: they stay.
        let ours = closed.iter().filter(|facts| facts.size <= LONGEST);
        let words = |facts: &SegmentFacts| len(facts.size.div_ceil(GRAIN.saturating_mul(64)));
        Self { bits: ours.map(|facts| (facts.number, vec![0; words(facts)])).collect() }
    }

    /// Notes that the pages of a run are in use: their share of the stored bytes, and be it less than one.
    fn mark(&mut self, run: &PageRunEntry) {
        let Some(words) = self.bits.get_mut(&run.segment) else { return };
        let share = |pages: u64| {
            let bytes = u64::from(run.length).saturating_mul(pages).checked_div(u64::from(run.stored));
            run.offset.saturating_add(bytes.unwrap_or(0))
        };
        let skip = u64::from(run.skip);
        let first = share(skip).checked_div(GRAIN).unwrap_or(0);
        let last = share(skip.saturating_add(u64::from(run.pages))).div_ceil(GRAIN).max(first.saturating_add(1));
        for bit in first..last {
            if let Some(word) = words.get_mut(len(bit.checked_div(64).unwrap_or(0))) {
                *word |= 1 << (bit & 63);
            }
        }
    }

    fn bytes(&self, segment: u32) -> Option<u64> {
        let words = self.bits.get(&segment)?;
        Some(words.iter().map(|word| u64::from(word.count_ones()).saturating_mul(GRAIN)).sum())
    }
}

impl Upkeep {
    /// Looks after the segments, at the end of an image.
    pub(crate) fn tend(&mut self, packer: &mut Packer, sink: &mut dyn Sink) -> Result<(), ImageError> {
        let budget = packer.segments.added().max(LEAST);
        let mut batch = Batch::default();
        let mut moved = 0_u64;
        while moved < budget {
            if self.items.is_empty() && self.seen != Some(packer.segments.next()) {
                batch.settle(packer, sink)?;
                self.plan(packer);
            }
            let Some(item) = self.items.pop_front() else { break };
            moved = moved.saturating_add(batch.take(packer, sink, &item)?);
            if self.items.is_empty() {
                // Now the segment can go, unless somebody has come to refer to it meanwhile.
                self.seen = None;
            }
        }
        batch.settle(packer, sink)
    }

    /// Looks through the index: closed segments that nothing refers to go, and the emptiest of the others is next.
    fn plan(&mut self, packer: &mut Packer) {
        let mut alive = Alive::new(packer.segments.closed());
        let runs = || packer.ledger.spaces().values().flat_map(Index::runs).filter(|run| run.codec != Codec::Zero);
        let mut bases = Bases::new();
        for run in runs() {
            alive.mark(&run);
            let base = if is_delta(&run) { packer.bases.get(&identity(&run)) } else { None };
            if let Some(base) = base {
                alive.mark(base);
                bases.insert(identity(&run), *base);
            }
        }
        packer.bases = bases;
        packer.segments.retain(|facts| alive.bytes(facts.number) != Some(0));
        let share = |facts: &SegmentFacts| {
            let bytes = alive.bytes(facts.number)?;
            (bytes.saturating_mul(2) < facts.size).then_some((bytes, facts.number))
        };
        let emptiest = packer.segments.closed().iter().filter_map(share).min();
        let emptiest = emptiest.map(|(_, victim)| victim);
        if let Some(victim) = emptiest {
            self.items = items(packer.ledger.spaces(), &packer.bases, victim);
        }
        // Nothing new is to refer to what goes.
        self.shadow.retain(|segment| Some(segment) != emptiest && packer.segments.has(segment));
        self.seen = Some(packer.segments.next());
    }
}

/// All that is stored in a segment and referred to, in the order of the first who does; and what changes something there.
fn items(spaces: &BTreeMap<u64, Index>, bases: &Bases, victim: u32) -> VecDeque<Item> {
    let mut places: BTreeMap<Identity, usize> = BTreeMap::new();
    let mut items: Vec<Item> = Vec::new();
    for (space, index) in spaces {
        let concerned = |run: &PageRunEntry| {
            let changes = || is_delta(run) && bases.get(&identity(run)).is_some_and(|base| base.segment == victim);
            run.codec != Codec::Zero && (run.segment == victim || changes())
        };
        for run in index.runs().filter(concerned) {
            let of = identity(&run);
            let at = *places.entry(of).or_insert(items.len());
            let range = run.address..run.end().unwrap_or(run.address);
            match items.get_mut(at) {
                Some(item) => item.refs.push((*space, range)),
                None => items.push(Item { of, refs: vec![(*space, range)] }),
            }
        }
    }
    items.into()
}

/// Pages that will be stored together, and who refers to them.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Space, and a run whose `skip` counts from the start of the batch.
    refs: Vec<(u64, PageRunEntry)>,
}

impl Batch {
    /// Adds what is still in use of an item. Returns how many bytes of pages.
    fn take(&mut self, packer: &mut Packer, sink: &mut dyn Sink, item: &Item) -> Result<u64, ImageError> {
        let mut refs: Vec<(u64, PageRunEntry)> = Vec::new();
        for (space, range) in &item.refs {
            let now = packer.ledger.spaces().get(space).map(|index| index.within(range)).unwrap_or_default();
            let same = |run: &PageRunEntry| run.codec != Codec::Zero && identity(run) == item.of;
            refs.extend(now.into_iter().filter(same).map(|run| (*space, run)));
        }
        let Some((_, first)) = refs.first() else { return Ok(0) };
        let mut used = vec![false; usize::from(first.stored)];
        for (_, run) in &refs {
            used.iter_mut().skip(usize::from(run.skip)).take(len(u64::from(run.pages))).for_each(|used| *used = true);
        }
        let count = used.iter().filter(|used| **used).count();
        if count == used.len() && count >= TOGETHER && !is_delta(first) {
            // Nothing is won by packing the same pages again.
            let moved = packer.move_stored(sink, first)?;
            for (space, run) in refs {
                let PageRunEntry { address, pages, skip, .. } = run;
                packer.ledger.put(space, PageRunEntry { address, pages, skip, ..moved });
            }
            return Ok(size(count.saturating_mul(PAGE)));
        }
        let pages = packer.read(sink, first)?;
        let held = self.bytes.len().checked_div(PAGE).unwrap_or(0);
        if held.saturating_add(count) > TOGETHER {
            self.settle(packer, sink)?;
        }
        let start = self.bytes.len().checked_div(PAGE).unwrap_or(0);
        for (space, run) in refs {
            let before = used.iter().take(usize::from(run.skip)).filter(|used| **used).count();
            let skip = u16::try_from(start.saturating_add(before)).unwrap_or(u16::MAX);
            self.refs.push((space, PageRunEntry { skip, ..run }));
        }
        let live = pages.chunks_exact(PAGE).zip(&used).filter(|(_, used)| **used);
        live.for_each(|(page, _)| self.bytes.extend_from_slice(page));
        Ok(size(count.saturating_mul(PAGE)))
    }

    /// Stores the pages and lets the index name them there. Neighbours become one run.
    fn settle(&mut self, packer: &mut Packer, sink: &mut dyn Sink) -> Result<(), ImageError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let stored = packer.store(sink, &self.bytes)?;
        self.bytes.clear();
        let mut refs = std::mem::take(&mut self.refs);
        refs.sort_by_key(|(space, run)| (*space, run.address));
        let mut joined: Vec<(u64, PageRunEntry)> = Vec::new();
        for (space, run) in refs {
            let follows = |(other, last): &&mut (u64, PageRunEntry)| {
                let next = u32::from(last.skip).saturating_add(last.pages);
                *other == space && last.end() == Some(run.address) && next == u32::from(run.skip)
            };
            match joined.last_mut().filter(follows) {
                Some((_, last)) => last.pages = last.pages.saturating_add(run.pages),
                None => joined.push((space, run)),
            }
        }
        for (space, run) in joined {
            packer.ledger.put(space, PageRunEntry { address: run.address, pages: run.pages, skip: run.skip, ..stored });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hdcr_layout::PAGE_SIZE;

    use super::*;
    use crate::compress::Compression;
    use crate::ledger::Ledger;
    use crate::memory::MemoryImage;
    use crate::name::{ImageId, PartName};
    use crate::pages::PageWriter;
    use crate::segments::Segments;

    /// Many pages of few stored bytes.
    fn run(skip: u16, pages: u32) -> PageRunEntry {
        PageRunEntry {
            address: 0,
            offset: 10 * GRAIN,
            generation: 1,
            xxh3: 0,
            pages,
            segment: 3,
            length: 20,
            codec: Codec::Zstd,
            stored: 256,
            skip,
            reserved: 0,
        }
    }

    /// Also where its share of the stored bytes is less than one, and lies where a grain begins.
    #[test]
    fn a_page_in_use_keeps_its_segment() {
        let facts = SegmentFacts { number: 3, generation: 1, size: 20 * GRAIN, image: ImageId([1; 16]) };
        for (skip, pages) in [(0, 1), (5, 1), (255, 1), (0, 256)] {
            let mut alive = Alive::new(&[facts]);
            alive.mark(&run(skip, pages));
            assert_eq!(alive.bytes(3), Some(GRAIN), "{skip} {pages}");
        }
    }

    /// Whatever went wrong before: an image of which pages are lost is not made.
    #[test]
    fn a_segment_that_is_named_is_there() {
        let named = |run: PageRunEntry, base: Option<PageRunEntry>| {
            let mut sink = MemoryImage::new().sink(ImageId([1; 16]));
            let ledger = Ledger::first(&mut sink).unwrap();
            let mut packer = Packer::new(Compression::None, Segments::first(), ledger).unwrap();
            let stored = packer.store(&mut sink, &[1; PAGE]).unwrap();
            packer.ledger.put(1, PageRunEntry { address: PAGE_SIZE, ..stored });
            packer.ledger.put(1, run);
            packer.bases.extend(base.map(|base| (identity(&run), base)));
            PageWriter::new(packer, Some(Upkeep::default())).finish(&mut sink).map(|_| ())
        };
        let whole = PageRunEntry { offset: 64, pages: 1, segment: 0, length: 1, stored: 1, skip: 0, ..run(0, 1) };
        let lines = PageRunEntry { codec: Codec::Delta, ..whole };
        named(whole, None).unwrap();
        named(lines, Some(whole)).unwrap();
        let elsewhere = PageRunEntry { segment: 3, ..whole };
        for (run, base) in [(elsewhere, None), (lines, Some(elsewhere)), (lines, None)] {
            let refused = named(run, base).unwrap_err();
            let part = PartName::Pages(if base.is_none() { run.segment } else { 3 });
            assert!(matches!(&refused, ImageError::Corrupt { part: named, .. } if *named == part), "{refused}");
        }
    }
}
