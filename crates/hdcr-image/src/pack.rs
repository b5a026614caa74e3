//! Where pages end up: compressed, appended to a segment, named by the index.

use std::collections::{BTreeMap, VecDeque};

use hdcr_layout::{Codec, Layout, PageRunEntry};
use xxhash_rust::xxh3::xxh3_64;

use crate::compress::{Compression, Compressor};
use crate::delta::{self, is_delta};
use crate::error::ImageError;
use crate::index::PageRun;
use crate::ledger::Ledger;
use crate::manifest::SegmentFacts;
use crate::name::PartName;
use crate::number::len;
use crate::reader::{Identity, check_sum, identity, plain_size, unpack};
use crate::segments::{Place, Segments};
use crate::sink::{ReadPart, Sink};
use crate::workers::Packed;

pub(crate) const PAGE: usize = 4096;

/// Compressor, segments and index.
pub(crate) struct Packer {
    compressor: Compressor,
    pub(crate) segments: Segments,
    pub(crate) ledger: Ledger,
    /// What each run of changed lines changes.
    pub(crate) bases: Bases,
    readers: Readers,
    /// The whole pages that were read last of those that changed lines are about.
    whole: Option<(Identity, Vec<u8>)>,
}

/// Segments that are being read, last used first.
#[derive(Default)]
struct Readers {
    open: VecDeque<(u32, Box<dyn ReadPart>)>,
}

/// As many are kept open.
const READERS: usize = 4;

impl Readers {
    /// The stored bytes of a run, checked.
    fn read(&mut self, sink: &dyn Sink, run: &PageRunEntry) -> Result<Vec<u8>, ImageError> {
        let mut stored = vec![0; len(u64::from(run.length))];
        let known = self.open.iter().position(|(number, _)| *number == run.segment);
        let known = known.and_then(|at| self.open.remove(at));
        let part = match known {
            // What grows may have been opened before the run was there.
            Some((_, part)) if part.read_at(run.offset, &mut stored).is_ok() => part,
            _ => {
                let part = sink.reader(PartName::Pages(run.segment))?;
                part.read_at(run.offset, &mut stored)?;
                part
            }
        };
        self.open.push_front((run.segment, part));
        self.open.truncate(READERS);
        check_sum(run, &stored)?;
        Ok(stored)
    }
}

pub(crate) type Bases = BTreeMap<Identity, PageRunEntry>;

/// What an image in the making can name. An index that names something else is not written: the image would be committed,
/// and those before it removed.
pub(crate) struct There<'a> {
    segments: BTreeMap<u32, &'a SegmentFacts>,
    bases: &'a Bases,
}

impl<'a> There<'a> {
    pub(crate) fn new(segments: &'a [SegmentFacts], bases: &'a Bases) -> Self {
        Self { segments: segments.iter().map(|facts| (facts.number, facts)).collect(), bases }
    }

    /// Refuses what is stored nowhere.
    pub(crate) fn check(&self, run: &PageRunEntry) -> Result<(), ImageError> {
        let found = self.segments.get(&run.segment).map(|facts| std::slice::from_ref(*facts));
        PageRun::check(*run, found.unwrap_or_default())?;
        if !is_delta(run) {
            return Ok(());
        }
        let base = self.bases.get(&identity(run)).filter(|base| !is_delta(base));
        self.check(base.ok_or_else(|| lost(run))?)
    }
}

fn lost(run: &PageRunEntry) -> ImageError {
    ImageError::corrupt(PartName::Pages(run.segment), "changed lines of nothing known")
}

/// Changed lines of pages in a row.
#[derive(Debug)]
pub(crate) struct Changes {
    /// What they change: as many pages, at no address.
    pub(crate) base: PageRunEntry,
    /// Maps and lines.
    pub(crate) lines: Vec<u8>,
}

impl Changes {
    /// Those of no page yet.
    pub(crate) fn begin(base: PageRunEntry) -> Self {
        Self { base: PageRunEntry { pages: 0, ..base }, lines: Vec::new() }
    }

    /// Whether the next page's changes, of a page that lies there, can follow.
    pub(crate) fn takes(&self, base: &PageRunEntry) -> bool {
        let next = u32::from(self.base.skip).saturating_add(self.base.pages);
        identity(&self.base) == identity(base) && u32::from(base.skip) == next
    }

    pub(crate) fn add(&mut self, map: u64, page: &[u8]) {
        delta::append(map, page, &mut self.lines);
        self.base.pages = self.base.pages.saturating_add(1);
    }
}

impl Packer {
    pub(crate) fn new(compression: Compression, segments: Segments, ledger: Ledger) -> Result<Self, ImageError> {
        let (compressor, bases, readers) = (Compressor::new(compression)?, Bases::new(), Readers::default());
        Ok(Self { compressor, segments, ledger, bases, readers, whole: None })
    }

    /// Goes on with changed lines that there are.
    pub(crate) fn with(self, bases: Bases) -> Self {
        Self { bases, ..self }
    }

    /// Stores whole pages together. What comes back names all of them, at no address yet.
    pub(crate) fn store(&mut self, sink: &mut dyn Sink, bytes: &[u8]) -> Result<PageRunEntry, ImageError> {
        let pages = bytes.len().checked_div(PAGE).unwrap_or(0);
        let pages = u16::try_from(pages).unwrap_or(u16::MAX);
        let (out, place) = self.segments.output(sink)?;
        // Right where it is to be: no copy.
        let room = out.room(self.compressor.room(bytes.len()))?;
        let packed = self.compressor.compress_into(bytes, room)?;
        let (codec, length, xxh3) = if let Some((codec, used)) = packed {
            let xxh3 = xxh3_64(room.get(..used).unwrap_or_default());
            out.take(used);
            (codec, used, xxh3)
        } else {
            out.write(bytes)?;
            (Codec::Plain, bytes.len(), xxh3_64(bytes))
        };
        self.segments.note(length);
        Ok(run_at(place, (codec, length, xxh3), pages))
    }

    /// Compresses otherwise from now on.
    pub(crate) fn compress_by(&mut self, compression: Compression) -> Result<(), ImageError> {
        self.compressor.change(compression)
    }

    /// Stores what a thread has compressed.
    pub(crate) fn store_packed(&mut self, sink: &mut dyn Sink, packed: &Packed) -> Result<PageRunEntry, ImageError> {
        let pages = packed.bytes.len().checked_div(PAGE).unwrap_or(0);
        let pages = u16::try_from(pages).unwrap_or(u16::MAX);
        place(&mut self.segments, sink, (packed.codec, packed.stored(), packed.xxh3), pages)
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compressor.compression()
    }

    /// Stores changed lines.
    pub(crate) fn store_changes(&mut self, sink: &mut dyn Sink, changes: &Changes) -> Result<PageRunEntry, ImageError> {
        let mut stored = vec![0; PageRunEntry::SIZE];
        let head = changes.base.encode(&mut stored);
        head.map_err(|error| ImageError::layout(PartName::Pages(changes.base.segment), error))?;
        let packed = self.compressor.pack(&changes.lines)?;
        let codec = if packed.is_some() { Codec::PackedDelta } else { Codec::Delta };
        stored.extend_from_slice(packed.unwrap_or(&changes.lines));
        let pages = u16::try_from(changes.base.pages).unwrap_or(u16::MAX);
        let run = place(&mut self.segments, sink, (codec, &stored, xxh3_64(&stored)), pages)?;
        self.bases.insert(identity(&run), changes.base);
        Ok(run)
    }

    /// Stores the pages that were stored together with a run once more, as they are. What comes back names all of them, at
    /// no address yet.
    pub(crate) fn move_stored(&mut self, sink: &mut dyn Sink, run: &PageRunEntry) -> Result<PageRunEntry, ImageError> {
        self.segments.flush()?;
        let stored = self.readers.read(sink, run)?;
        place(&mut self.segments, sink, (run.codec, &stored, run.xxh3), run.stored)
    }

    /// Reads all pages that were stored together with a run back.
    pub(crate) fn read(&mut self, sink: &dyn Sink, run: &PageRunEntry) -> Result<Vec<u8>, ImageError> {
        self.segments.flush()?;
        let stored = self.readers.read(sink, run)?;
        if !is_delta(run) {
            return unpacked(run, stored);
        }
        let base = self.bases.get(&identity(run)).ok_or_else(|| lost(run))?;
        let known = self.whole.take().filter(|(of, _)| *of == identity(base));
        let whole = match known {
            Some((_, whole)) => whole,
            None => unpacked(base, self.readers.read(sink, base)?)?,
        };
        let start = usize::from(base.skip).saturating_mul(PAGE);
        let pages = whole.get(start..start.saturating_add(plain_size(run))).map(<[u8]>::to_vec);
        let mut pages = pages.ok_or_else(|| lost(run))?;
        self.whole = Some((identity(base), whole));
        delta::apply(run, &stored, &mut pages)?;
        Ok(pages)
    }
}

/// Appends stored bytes. What comes back names all of the pages, at no address yet.
fn place(
    segments: &mut Segments,
    sink: &mut dyn Sink,
    (codec, stored, xxh3): (Codec, &[u8], u64),
    pages: u16,
) -> Result<PageRunEntry, ImageError> {
    let place = segments.store(sink, stored)?;
    Ok(run_at(place, (codec, stored.len(), xxh3), pages))
}

fn run_at(place: Place, (codec, length, xxh3): (Codec, usize, u64), pages: u16) -> PageRunEntry {
    PageRunEntry {
        address: 0,
        offset: place.offset,
        generation: place.generation,
        xxh3,
        pages: u32::from(pages),
        segment: place.segment,
        length: u32::try_from(length).unwrap_or(u32::MAX),
        codec,
        stored: pages,
        skip: 0,
        reserved: 0,
    }
}

fn unpacked(run: &PageRunEntry, stored: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    if run.codec == Codec::Plain {
        return Ok(stored);
    }
    let mut plain = vec![0; plain_size(run)];
    unpack(run, &stored, &mut plain)?;
    Ok(plain)
}
