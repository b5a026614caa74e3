//! The segments of an image in the making: those that it shares, and the one that its pages are appended to.

use hdcr_layout::{ALONE_VERSION, FORMAT_VERSION, Header, PartKind};

use crate::error::{ImageError, StoreError};
use crate::frames::Output;
use crate::manifest::SegmentFacts;
use crate::name::{PartName, SnapshotId};
use crate::number::size;
use crate::sink::Sink;

/// In a chain a segment that is as long is closed, so that what nobody needs any more goes away by the piece.
const FULL: u64 = 64 << 20;
/// No segment that is closed by that rule is longer.
pub(crate) const LONGEST: u64 = FULL + (2 << 20);

/// Where stored bytes lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) generation: u64,
    pub(crate) offset: u64,
}

/// The one that grows.
#[derive(Debug)]
struct Open {
    facts: SegmentFacts,
    out: Output,
}

/// All segments.
#[derive(Debug)]
pub(crate) struct Segments {
    version: u32,
    full: u64,
    /// In order of their numbers; the open one comes behind them.
    closed: Vec<SegmentFacts>,
    open: Option<Open>,
    /// The number of the next one; `None` when there are no more.
    next: Option<u32>,
    added: u64,
    /// Whether any were given up.
    dropped: bool,
}

impl Segments {
    /// Those of an image that stands by itself.
    pub(crate) fn alone() -> Self {
        let (closed, next) = (Vec::new(), Some(0));
        Self { version: ALONE_VERSION, full: u64::MAX, closed, open: None, next, added: 0, dropped: false }
    }

    /// Those of an image that others may go on from.
    pub(crate) fn first() -> Self {
        Self { version: FORMAT_VERSION, full: FULL, ..Self::alone() }
    }

    /// Takes over those of the image before and goes on with the last one, if that can be.
    pub(crate) fn onto(sink: &mut dyn Sink, base: &SnapshotId, segments: &[SegmentFacts]) -> Result<Self, ImageError> {
        let mut all = Self::first();
        all.next = segments.last().map_or(Some(0), |last| last.number.checked_add(1));
        for facts in segments {
            let name = PartName::Pages(facts.number);
            let is_last = segments.last() == Some(facts);
            if is_last && facts.size < all.full {
                match sink.extend(base, name, facts.size) {
                    Err(StoreError::Busy { .. }) => {}
                    part => {
                        all.open = Some(Open { facts: *facts, out: Output::resume(part?, facts.size) });
                        return Ok(all);
                    }
                }
            }
            sink.share(base, name)?;
            all.closed.push(*facts);
        }
        Ok(all)
    }

    pub(crate) fn close_at(&mut self, bytes: u64) {
        self.full = bytes.min(FULL);
    }

    /// Appends stored bytes.
    pub(crate) fn store(&mut self, sink: &mut dyn Sink, bytes: &[u8]) -> Result<Place, ImageError> {
        let (out, place) = self.output(sink)?;
        out.write(bytes)?;
        self.note(bytes.len());
        Ok(place)
    }

    /// Where stored bytes are to be appended, and what their place will be. [`Segments::note`] is told how many they were.
    pub(crate) fn output(&mut self, sink: &mut dyn Sink) -> Result<(&mut Output, Place), ImageError> {
        if self.open.as_ref().is_some_and(|open| open.out.written >= self.full) {
            self.close()?;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => self.begin(sink)?,
        };
        let open = self.open.insert(open);
        let SegmentFacts { number, generation, .. } = open.facts;
        let place = Place { segment: number, generation, offset: open.out.written };
        Ok((&mut open.out, place))
    }

    /// So many bytes were appended.
    pub(crate) fn note(&mut self, len: usize) {
        self.added = self.added.saturating_add(size(len));
    }

    fn begin(&mut self, sink: &mut dyn Sink) -> Result<Open, ImageError> {
        let number = self.next.ok_or(ImageError::TooLong { what: "a chain", len: u64::from(u32::MAX) })?;
        let name = PartName::Pages(number);
        let image = sink.snapshot().image;
        let part = sink.part(name)?;
        let facts = SegmentFacts { number, generation: part.generation(), size: 0, image };
        let (version, kind, generation) = (self.version, PartKind::Pages, facts.generation);
        let header = Header { version, kind, image: image.0, number, generation };
        let out = Output::new(part, name, &header)?;
        self.next = number.checked_add(1);
        self.added = self.added.saturating_add(size(Header::SIZE));
        Ok(Open { facts, out })
    }

    fn close(&mut self) -> Result<(), ImageError> {
        if let Some(open) = self.open.take() {
            self.closed.push(SegmentFacts { size: open.out.written, ..open.facts });
            open.out.close()?;
        }
        Ok(())
    }

    /// Those that grow no more.
    pub(crate) fn closed(&self) -> &[SegmentFacts] {
        &self.closed
    }

    /// Gives up all closed ones but these.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&SegmentFacts) -> bool) {
        let before = self.closed.len();
        self.closed.retain(keep);
        self.dropped |= self.closed.len() < before;
    }

    /// Whether any were given up.
    pub(crate) fn have_dropped(&self) -> bool {
        self.dropped
    }

    /// The number of the one to be begun next.
    pub(crate) fn next(&self) -> u64 {
        self.next.map_or(u64::MAX, u64::from)
    }

    /// Whether there is one of this number.
    pub(crate) fn has(&self, number: u32) -> bool {
        let open = self.open.as_ref().map(|open| &open.facts);
        self.closed.iter().chain(open).any(|facts| facts.number == number)
    }

    /// How many bytes were added so far.
    pub(crate) fn added(&self) -> u64 {
        self.added
    }

    /// Hands on what waits, so that it can be read.
    pub(crate) fn flush(&mut self) -> Result<(), StoreError> {
        self.open.as_mut().map_or(Ok(()), |open| open.out.flush())
    }

    /// Ends the one that is open. Says as well how many bytes were added.
    pub(crate) fn finish(mut self) -> Result<(Vec<SegmentFacts>, u64), ImageError> {
        self.close()?;
        Ok((self.closed, self.added))
    }
}
