//! Reading many runs at once: few reads of a segment, no buffer allocated twice, and only checked bytes handed over.

use std::ops::Range;

use hdcr_layout::{Codec, PageRunEntry};

use crate::error::ImageError;
use crate::index::PageRun;
use crate::number::len;
use crate::reader::{ImageReader, check_sum, plain_size, unpack};

/// Groups have as many bytes of pages at most, but for one that is a single run.
const GROUP: usize = 1 << 20;
const PAGE: usize = 4096;

/// Room for the bytes of a group, to be used for one group after another.
#[derive(Debug, Default)]
pub struct GroupBuffers {
    stored: Vec<u8>,
    plain: Vec<u8>,
}

/// Where the bytes of a run lie in the buffers.
struct Place<'r> {
    run: &'r PageRun,
    stored: Range<usize>,
    /// In the other buffer, when they were compressed.
    plain: Option<Range<usize>>,
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
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut bytes = GROUP;
        for (at, run) in self.runs(space).iter().enumerate().filter(|(_, run)| !run.is_zero()) {
            let more = plain_size(run.entry());
            let end = at.saturating_add(1);
            if let Some(last) = groups.last_mut().filter(|_| bytes.saturating_add(more) <= GROUP) {
                last.end = end;
            } else {
                bytes = 0;
                groups.push(at..end);
            }
            bytes = bytes.saturating_add(more);
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
        let places = places(runs);
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
        for place in &places {
            let stored = buffers.stored.get(place.stored.clone()).unwrap_or_default();
            check_sum(place.run.entry(), stored)?;
            if let Some(into) = place.plain.clone().and_then(|plain| buffers.plain.get_mut(plain)) {
                unpack(place.run.entry(), stored, into)?;
            }
        }
        let buffers: &'b GroupBuffers = buffers;
        let pages = |place: &Place<'_>| {
            let all = match &place.plain {
                Some(plain) => buffers.plain.get(plain.clone()),
                None => buffers.stored.get(place.stored.clone()),
            };
            let skip = usize::from(place.run.entry().skip).saturating_mul(PAGE);
            let pages = all.and_then(|all| all.get(skip..)).and_then(|all| all.get(..len(place.run.size())));
            (place.run.address(), pages.unwrap_or_default())
        };
        Ok(places.iter().map(pages).collect())
    }
}

fn places(runs: &[PageRun]) -> Vec<Place<'_>> {
    let (mut stored, mut plain) = (0_usize, 0_usize);
    let mut places = Vec::new();
    for run in runs.iter().filter(|run| !run.is_zero()) {
        let entry = run.entry();
        let stored_end = stored.saturating_add(len(u64::from(entry.length)));
        let unpacked = (entry.codec != Codec::Plain).then(|| plain..plain.saturating_add(plain_size(entry)));
        plain = unpacked.as_ref().map_or(plain, |unpacked| unpacked.end);
        places.push(Place { run, stored: stored..stored_end, plain: unpacked });
        stored = stored_end;
    }
    places
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
