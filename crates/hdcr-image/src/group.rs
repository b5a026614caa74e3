//! Reading many runs at once: few reads of a segment, no buffer allocated twice, and only checked bytes handed over.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hdcr_layout::{Codec, PageRunEntry};

use crate::delta::{apply, is_delta};
use crate::error::ImageError;
use crate::index::PageRun;
use crate::number::len;
use crate::reader::{ImageReader, check_sum, identity, plain_size, unpack};

/// Groups have as many bytes of pages at most, but for one that is a single run.
const GROUP: usize = 1 << 20;
/// So many bytes are unpacked for them at most: runs of which pieces were replaced are unpacked whole.
const UNPACKED: usize = 4 << 20;
const PAGE: usize = 4096;

/// Room for the bytes of a group, to be used for one group after another.
#[derive(Debug, Default)]
pub struct GroupBuffers {
    stored: Vec<u8>,
    plain: Vec<u8>,
}

/// Where what was stored together lies in the buffers.
struct Place<'r> {
    run: &'r PageRun,
    stored: Range<usize>,
    /// In the other buffer, when they were compressed.
    plain: Option<Range<usize>>,
}

/// What was stored together, and for each run of a group where it is in that list.
struct Places<'r> {
    places: Vec<Place<'r>>,
    runs: Vec<(&'r PageRun, usize)>,
}

/// Makes room without writing to what is there.
fn grow(buffer: &mut Vec<u8>, wanted: usize) {
    if buffer.len() < wanted {
        buffer.resize(wanted, 0);
    }
}

impl ImageReader {
    /// The runs of a space in groups, by their places in [`ImageReader::runs`].
    pub fn groups(&self, space: u64) -> Vec<Range<usize>> {
        self.groups_of(space, 0..self.runs(space).len())
    }

    /// Some runs of a space in groups, by their places in [`ImageReader::runs`].
    pub fn groups_of(&self, space: u64, runs: Range<usize>) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut seen = BTreeSet::new();
        let (mut bytes, mut unpacked) = (GROUP, 0_usize);
        let some = runs.clone().zip(self.runs(space).get(runs).unwrap_or_default());
        for (at, run) in some.filter(|(_, run)| !run.is_zero()) {
            let end = at.saturating_add(1);
            let more = if seen.contains(&identity(run.entry())) { 0 } else { plain_size(run.entry()) };
            bytes = bytes.saturating_add(len(run.size()));
            unpacked = unpacked.saturating_add(more);
            if let Some(last) = groups.last_mut().filter(|_| bytes <= GROUP && unpacked <= UNPACKED) {
                last.end = end;
            } else {
                seen.clear();
                (bytes, unpacked) = (len(run.size()), plain_size(run.entry()));
                groups.push(at..end);
            }
            seen.insert(identity(run.entry()));
        }
        groups
    }

    /// The pages of a group: address and bytes of each stored run, in order. Nothing of it is handed over unless all of it
    /// is whole.
    pub fn read_group<'b>(
        &self,
        space: u64,
        group: Range<usize>,
        buffers: &'b mut GroupBuffers,
    ) -> Result<Vec<(u64, &'b [u8])>, ImageError> {
        let runs = self.runs(space).get(group).unwrap_or_default();
        let Places { places, runs } = places(runs);
        grow(&mut buffers.stored, places.last().map_or(0, |place| place.stored.end));
        let plain = places.iter().filter_map(|place| place.plain.as_ref()).map(|plain| plain.end).max();
        grow(&mut buffers.plain, plain.unwrap_or(0));
        let mut rest = places.as_slice();
        while let Some(first) = rest.first() {
            let (near, others) = rest.split_at(adjacent(rest));
            let end = near.last().map_or(first.stored.end, |last| last.stored.end);
            if let Some(into) = buffers.stored.get_mut(first.stored.start..end) {
                self.read_segment(first.run.entry(), into)?;
            }
            rest = others;
        }
        let mut base = Base::default();
        for place in &places {
            let stored = buffers.stored.get(place.stored.clone()).unwrap_or_default();
            check_sum(place.run.entry(), stored)?;
            let Some(into) = place.plain.clone().and_then(|plain| buffers.plain.get_mut(plain)) else { continue };
            if is_delta(place.run.entry()) {
                self.unpack_delta(place.run.entry(), stored, (into, &mut base))?;
            } else {
                unpack(place.run.entry(), stored, into)?;
            }
        }
        let buffers: &'b GroupBuffers = buffers;
        let pages = |(run, at): &(&PageRun, usize)| {
            let all = places.get(*at).and_then(|place| match &place.plain {
                Some(plain) => buffers.plain.get(plain.clone()),
                None => buffers.stored.get(place.stored.clone()),
            });
            let skip = usize::from(run.entry().skip).saturating_mul(PAGE);
            let pages = all.and_then(|all| all.get(skip..)).and_then(|all| all.get(..len(run.size())));
            (run.address(), pages.unwrap_or_default())
        };
        Ok(runs.iter().map(pages).collect())
    }
}

/// Whole pages that changed lines were about: those of neighbours are often of the same run.
#[derive(Default)]
struct Base {
    of: Option<PageRunEntry>,
    pages: Vec<u8>,
}

impl ImageReader {
    fn unpack_delta(
        &self,
        entry: &PageRunEntry,
        stored: &[u8],
        (into, known): (&mut [u8], &mut Base),
    ) -> Result<(), ImageError> {
        let base = *self.base_of(entry, stored)?.entry();
        if known.of.as_ref().map(identity) != Some(identity(&base)) {
            known.of = None;
            self.read_stored(&base, &mut known.pages)?;
            known.of = Some(base);
        }
        let pages = known.pages.get(usize::from(base.skip).saturating_mul(PAGE)..).unwrap_or_default();
        let count = into.len().min(pages.len());
        let (to, from) = (into.get_mut(..count), pages.get(..count));
        to.zip(from).into_iter().for_each(|(to, from)| to.copy_from_slice(from));
        apply(entry, stored, into)
    }
}

fn places(runs: &[PageRun]) -> Places<'_> {
    let (mut stored, mut plain) = (0_usize, 0_usize);
    let mut all = Places { places: Vec::new(), runs: Vec::new() };
    let mut known = BTreeMap::new();
    for run in runs.iter().filter(|run| !run.is_zero()) {
        let entry = run.entry();
        let at = *known.entry(identity(entry)).or_insert(all.places.len());
        all.runs.push((run, at));
        if at < all.places.len() {
            continue;
        }
        let stored_end = stored.saturating_add(len(u64::from(entry.length)));
        let unpacked = (entry.codec != Codec::Plain).then(|| plain..plain.saturating_add(plain_size(entry)));
        plain = unpacked.as_ref().map_or(plain, |unpacked| unpacked.end);
        all.places.push(Place { run, stored: stored..stored_end, plain: unpacked });
        stored = stored_end;
    }
    all
}

/// How many of the first places lie behind one another in one segment.
fn adjacent(places: &[Place<'_>]) -> usize {
    let follows = |before: &PageRunEntry, after: &PageRunEntry| {
        before.segment == after.segment && before.offset.checked_add(u64::from(before.length)) == Some(after.offset)
    };
    let pairs = places.iter().zip(places.iter().skip(1));
    let more = pairs.take_while(|(before, after)| follows(before.run.entry(), after.run.entry())).count();
    more.saturating_add(1).min(places.len())
}
