//! From pages to stored runs: zero pages are found, neighbours joined, the rest compressed and written.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use hdcr_layout::{Codec, PAGE_SIZE, PageRunEntry, RUN_PAGES};

use crate::compress::Compression;
use crate::delta;
use crate::error::ImageError;
use crate::index::Index;
use crate::log::LogState;
use crate::manifest::SegmentFacts;
use crate::number::{len, size};
use crate::pack::{Bases, Changes, PAGE, Packer, There};
use crate::sink::Sink;
use crate::squash::Upkeep;
use crate::workers::{Ticket, Workers, gone};

/// A run is compressed and checked as one: longer ones cost more page faults of the buffers that they pass through, and whoever waits
/// for one page waits for all of its run.
const RUN: usize = 64 * PAGE;
/// In a chain pages are replaced a few at a time, and each piece that is left of a run is unpacked with all of it.
const CHAIN_RUN: usize = 16 * PAGE;
const ZERO_PAGE: [u8; PAGE] = [0; PAGE];
/// A zero run is split here so that its count always fits.
const ZERO_RUN_PAGES: u64 = 1 << 30;
const _: () = assert!(PAGE_SIZE == 4096 && RUN_PAGES == 256);

/// Pages that wait for their neighbours.
#[derive(Debug, Default)]
struct Pending {
    space: u64,
    address: u64,
    bytes: Vec<u8>,
    zero_pages: u64,
    changes: Option<Changes>,
}

impl Pending {
    /// Whether these pages follow on what waits, which is then of the same kind.
    fn takes(&self, space: u64, address: u64, zero: bool) -> bool {
        let waiting = if zero { self.zero_pages.saturating_mul(PAGE_SIZE) } else { size(self.bytes.len()) };
        waiting > 0 && self.space == space && self.address.checked_add(waiting) == Some(address)
    }
}

/// What became of all pages.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) segments: Vec<SegmentFacts>,
    /// Bytes that this image added to segments and log.
    pub(crate) added: u64,
    pub(crate) spaces: BTreeMap<u64, Index>,
    /// `None` for an image that stands by itself.
    pub(crate) log: Option<LogState>,
    pub(crate) bases: Bases,
    pub(crate) upkeep: Upkeep,
}

/// Writes pages.
pub(crate) struct PageWriter {
    packer: Packer,
    /// Looks after a chain; `None` for an image that stands by itself.
    upkeep: Option<Upkeep>,
    pending: Pending,
    /// The most bytes that are stored together.
    run: usize,
    /// Whether copies of pages are kept: what a whole image holds would only push out each other.
    remembers: bool,
    /// What is taken over at the end: into which space, from which, where.
    alike: Vec<(u64, u64, Range<u64>)>,
    /// `None`: this thread compresses.
    workers: Option<Workers>,
    /// What waits for those threads, in order.
    queue: VecDeque<Waiting>,
}

/// Whether pages that follow may yet be stored together with these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    Known,
}

/// Something that the index is to hear of in its turn.
#[derive(Debug)]
enum Waiting {
    /// Pages at an address of a space, which are being compressed.
    Pages(u64, u64, Ticket),
    /// Zeroes of a space.
    Zeroes(u64, PageRunEntry),
}

impl std::fmt::Debug for PageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageWriter").field("segments", &self.packer.segments).finish_non_exhaustive()
    }
}

impl PageWriter {
    pub(crate) fn new(packer: Packer, upkeep: Option<Upkeep>) -> Self {
        let run = if upkeep.is_some() { CHAIN_RUN } else { RUN };
        let (alike, workers, queue) = (Vec::new(), None, VecDeque::new());
        Self { packer, upkeep, pending: Pending::default(), run, remembers: false, alike, workers, queue }
    }

    /// The writer of an increment.
    pub(crate) fn onto(packer: Packer, mut upkeep: Upkeep) -> Self {
        upkeep.shadow.renew();
        Self { remembers: true, ..Self::new(packer, Some(upkeep)) }
    }

    /// Compresses by so many other threads. An increment does not need them.
    pub(crate) fn compress_by(&mut self, threads: usize) {
        let compression = self.packer.compression();
        if threads > 1 && compression != Compression::None && !self.remembers {
            self.workers = Workers::start(compression, threads);
        }
    }

    /// Compresses otherwise from now on. Not together with other threads that compress.
    pub(crate) fn compress_as(&mut self, compression: Compression) -> Result<(), ImageError> {
        self.packer.compress_by(compression)
    }

    /// Lets a space hold what one of the image before held; `false`: there is nothing of it.
    pub(crate) fn bring(&mut self, sink: &mut dyn Sink, space: u64, from: u64) -> Result<bool, ImageError> {
        self.flush(sink)?;
        Ok(self.packer.ledger.bring(space, from))
    }

    pub(crate) fn limit_shadow(&mut self, bytes: u64) {
        if let Some(upkeep) = &mut self.upkeep {
            upkeep.shadow.limit(bytes);
        }
    }

    pub(crate) fn close_segments_at(&mut self, bytes: u64) {
        if self.upkeep.is_some() {
            self.packer.segments.close_at(bytes);
        }
    }

    /// Takes whole pages. They replace what the space held at these addresses.
    pub(crate) fn pages(
        &mut self,
        sink: &mut dyn Sink,
        space: u64,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        let whole = bytes.len().is_multiple_of(PAGE) && address.is_multiple_of(PAGE_SIZE);
        if !whole || address.checked_add(size(bytes.len())).is_none() {
            return Err(ImageError::NotPages { address, len: bytes.len() });
        }
        let mut at = address;
        let mut rest = bytes;
        while let Some(first) = rest.get(..PAGE) {
            let zero = first == ZERO_PAGE;
            let others = rest.chunks_exact(PAGE).skip(1);
            let alike = others.take_while(|page| (*page == ZERO_PAGE) == zero).count().saturating_add(1);
            let (here, after) = rest.split_at(alike.saturating_mul(PAGE).min(rest.len()));
            if zero {
                self.zeroes(sink, space, at, size(alike))?;
            } else if self.remembers {
                self.known(sink, space, at, here)?;
            } else {
                let end = if after.is_empty() { End::Open } else { End::Known };
                self.data(sink, (space, at), here, end)?;
            }
            at = at.saturating_add(size(here.len()));
            rest = after;
        }
        Ok(())
    }

    /// Notes that a space holds in a range what another one holds there at the end.
    pub(crate) fn alike(&mut self, space: u64, from: u64, range: Range<u64>) -> Result<(), ImageError> {
        if !range.start.is_multiple_of(PAGE_SIZE) || !range.end.is_multiple_of(PAGE_SIZE) || range.start > range.end {
            let bytes = len(range.end.saturating_sub(range.start));
            return Err(ImageError::NotPages { address: range.start, len: bytes });
        }
        self.alike.push((space, from, range));
        Ok(())
    }

    /// Takes a range of a space out again.
    pub(crate) fn forget(&mut self, sink: &mut dyn Sink, space: u64, range: Range<u64>) -> Result<(), ImageError> {
        if !range.start.is_multiple_of(PAGE_SIZE) || !range.end.is_multiple_of(PAGE_SIZE) || range.start > range.end {
            let bytes = len(range.end.saturating_sub(range.start));
            return Err(ImageError::NotPages { address: range.start, len: bytes });
        }
        self.flush(sink)?;
        self.settle(sink, 0)?;
        if !range.is_empty() {
            self.packer.ledger.cut(space, range);
        }
        Ok(())
    }

    fn zeroes(&mut self, sink: &mut dyn Sink, space: u64, address: u64, pages: u64) -> Result<(), ImageError> {
        if !self.pending.takes(space, address, true) || self.pending.zero_pages > ZERO_RUN_PAGES {
            self.flush(sink)?;
            self.pending.space = space;
            self.pending.address = address;
        }
        self.pending.zero_pages = self.pending.zero_pages.saturating_add(pages);
        Ok(())
    }

    fn data(
        &mut self,
        sink: &mut dyn Sink,
        (space, address): (u64, u64),
        bytes: &[u8],
        end: End,
    ) -> Result<(), ImageError> {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            if !self.pending.takes(space, at, false) || self.pending.bytes.len() >= self.run {
                self.flush(sink)?;
                self.pending.space = space;
                self.pending.address = at;
            }
            let room = self.run.saturating_sub(self.pending.bytes.len());
            let (here, after) = rest.split_at(room.min(rest.len()));
            // What nothing is joined with need not be copied.
            let last = after.is_empty() && end == End::Known;
            if here.len() == self.run || (last && self.pending.bytes.is_empty()) {
                self.store(sink, space, at, here)?;
            } else {
                self.pending.bytes.extend_from_slice(here);
            }
            at = at.saturating_add(size(here.len()));
            rest = after;
        }
        Ok(())
    }

    /// Takes pages of an increment: of those of which there is a copy only what differs is stored.
    fn known(&mut self, sink: &mut dyn Sink, space: u64, address: u64, bytes: &[u8]) -> Result<(), ImageError> {
        for (page, at) in bytes.chunks_exact(PAGE).zip((address..).step_by(PAGE)) {
            let copy = self.upkeep.as_mut().and_then(|upkeep| upkeep.shadow.compare((space, at), page));
            match copy.filter(|(map, _)| map.count_ones() <= delta::WORTH) {
                None => self.data(sink, (space, at), page, End::Open)?,
                Some((0, whole)) => {
                    self.flush(sink)?;
                    self.packer.ledger.put_anew(space, PageRunEntry { address: at, ..whole });
                }
                Some((map, base)) => self.changes(sink, (space, at), (map, &base), page)?,
            }
        }
        Ok(())
    }

    fn changes(
        &mut self,
        sink: &mut dyn Sink,
        (space, address): (u64, u64),
        (map, base): (u64, &PageRunEntry),
        page: &[u8],
    ) -> Result<(), ImageError> {
        let waiting = self.pending.changes.as_ref().filter(|changes| {
            let end = u64::from(changes.base.pages).saturating_mul(PAGE_SIZE).saturating_add(self.pending.address);
            self.pending.space == space && end == address && changes.takes(base)
        });
        if waiting.is_none() {
            self.flush(sink)?;
            (self.pending.space, self.pending.address) = (space, address);
        }
        self.pending.changes.get_or_insert_with(|| Changes::begin(*base)).add(map, page);
        Ok(())
    }

    /// Stores what waits.
    fn flush(&mut self, sink: &mut dyn Sink) -> Result<(), ImageError> {
        let pending = std::mem::take(&mut self.pending);
        let (space, address) = (pending.space, pending.address);
        if pending.zero_pages > 0 {
            self.record_zeroes(space, address, pending.zero_pages);
        }
        if !pending.bytes.is_empty() {
            self.store(sink, space, address, &pending.bytes)?;
        }
        if let Some(changes) = &pending.changes {
            let stored = self.packer.store_changes(sink, changes)?;
            self.packer.ledger.put(space, PageRunEntry { address, ..stored });
        }
        self.pending.bytes = pending.bytes;
        self.pending.bytes.clear();
        Ok(())
    }

    fn record_zeroes(&mut self, space: u64, address: u64, pages: u64) {
        let mut done = 0_u64;
        while done < pages {
            let count = pages.saturating_sub(done).min(ZERO_RUN_PAGES);
            let run = PageRunEntry {
                address: address.saturating_add(done.saturating_mul(PAGE_SIZE)),
                offset: 0,
                generation: 0,
                xxh3: 0,
                pages: u32::try_from(count).unwrap_or(u32::MAX),
                segment: 0,
                length: 0,
                codec: Codec::Zero,
                stored: 0,
                skip: 0,
                reserved: 0,
            };
            match &self.workers {
                Some(_) => self.queue.push_back(Waiting::Zeroes(space, run)),
                None => self.packer.ledger.put(space, run),
            }
            done = done.saturating_add(count);
        }
    }

    fn store(&mut self, sink: &mut dyn Sink, space: u64, address: u64, bytes: &[u8]) -> Result<(), ImageError> {
        if let Some(workers) = &mut self.workers {
            let depth = workers.depth;
            self.queue.push_back(Waiting::Pages(space, address, workers.hand_out(bytes)?));
            return self.settle(sink, depth);
        }
        let stored = self.packer.store(sink, bytes)?;
        if let Some(upkeep) = self.upkeep.as_mut().filter(|_| self.remembers) {
            let places = (address..).step_by(PAGE).zip(0..stored.stored);
            for ((at, skip), page) in places.zip(bytes.chunks_exact(PAGE)) {
                upkeep.shadow.keep((space, at), page, PageRunEntry { pages: 1, skip, ..stored });
            }
        }
        self.packer.ledger.put(space, PageRunEntry { address, ..stored });
        Ok(())
    }

    /// Stores what other threads have compressed, until no more than this waits.
    fn settle(&mut self, sink: &mut dyn Sink, depth: usize) -> Result<(), ImageError> {
        while self.queue.len() > depth {
            match self.queue.pop_front() {
                None => break,
                Some(Waiting::Zeroes(space, run)) => self.packer.ledger.put(space, run),
                Some(Waiting::Pages(space, address, ticket)) => {
                    let packed = ticket.recv().map_err(|_| gone())??;
                    let stored = self.packer.store_packed(sink, &packed)?;
                    self.packer.ledger.put(space, PageRunEntry { address, ..stored });
                    if let Some(workers) = &mut self.workers {
                        workers.take_back(packed.bytes);
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores what waits and says what there is.
    pub(crate) fn finish(mut self, sink: &mut dyn Sink) -> Result<Stored, ImageError> {
        self.flush(sink)?;
        self.settle(sink, 0)?;
        for (space, from, range) in std::mem::take(&mut self.alike) {
            self.packer.ledger.alike(space, from, &range);
        }
        if let Some(upkeep) = &mut self.upkeep {
            upkeep.tend(&mut self.packer, sink)?;
        }
        let Packer { segments, ledger, bases, .. } = self.packer;
        let is_all = segments.have_dropped();
        let (segments, stored) = segments.finish()?;
        let there = There::new(&segments, &bases);
        if is_all {
            ledger.spaces().values().flat_map(Index::runs).try_for_each(|run| there.check(&run))?;
        }
        let (spaces, log) = ledger.finish(&there)?;
        let (log, logged) = log.map_or((None, 0), |(log, added)| (Some(log), added));
        let upkeep = self.upkeep.unwrap_or_default();
        Ok(Stored { segments, added: stored.saturating_add(logged), spaces, log, bases, upkeep })
    }
}
