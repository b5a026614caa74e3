//! From pages to stored runs: zero pages are found, neighbours joined, the rest compressed and written.

use std::collections::BTreeMap;
use std::ops::Range;

use hdcr_layout::{Codec, Header, PAGE_SIZE, PageRunEntry, PartKind, RUN_PAGES};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::ImageError;
use crate::frames::Output;
use crate::index::Index;
use crate::manifest::SegmentFacts;
use crate::name::PartName;
use crate::number::{len, size};
use crate::sink::Sink;

/// How pages are compressed. A run that would not become smaller is stored as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4: fast enough for any disk.
    #[default]
    Lz4,
    /// Zstandard at this level: smaller, and several times slower.
    Zstd(i32),
}

const PAGE: usize = 4096;
const RUN: usize = 256 * PAGE;
const ZERO_PAGE: [u8; PAGE] = [0; PAGE];
/// A zero run is split here so that its count always fits.
const ZERO_RUN_PAGES: u64 = 1 << 30;
const _: () = assert!(PAGE_SIZE == 4096 && RUN_PAGES == 256);

/// Turns a run into its stored bytes.
struct Compressor {
    compression: Compression,
    table: Option<CompressTable>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    stored: Vec<u8>,
}

impl Compressor {
    fn new(compression: Compression) -> Result<Self, ImageError> {
        let zstd = match compression {
            Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(level).map_err(ImageError::Compress)?),
            Compression::None | Compression::Lz4 => None,
        };
        Ok(Self { compression, table: None, zstd, stored: Vec::new() })
    }

    /// The stored bytes, or `None` when they would not be fewer.
    fn compress(&mut self, bytes: &[u8]) -> Result<Option<(Codec, &[u8])>, ImageError> {
        let (codec, used) = match self.compression {
            Compression::None => return Ok(None),
            Compression::Lz4 => (Codec::Lz4, self.lz4(bytes)?),
            Compression::Zstd(_) => (Codec::Zstd, self.zstd(bytes)?),
        };
        let stored = self.stored.get(..used).filter(|stored| !stored.is_empty() && stored.len() < bytes.len());
        Ok(stored.map(|stored| (codec, stored)))
    }

    fn lz4(&mut self, bytes: &[u8]) -> Result<usize, ImageError> {
        let room = get_maximum_output_size(bytes.len());
        if self.stored.len() < room {
            self.stored.resize(room, 0);
        }
        let table = self.table.get_or_insert_with(CompressTable::large);
        compress_into_with_table(bytes, &mut self.stored, table)
            .map_err(|error| ImageError::Compress(std::io::Error::other(error)))
    }

    fn zstd(&mut self, bytes: &[u8]) -> Result<usize, ImageError> {
        self.stored.resize(zstd::zstd_safe::compress_bound(bytes.len()), 0);
        let Some(zstd) = &mut self.zstd else {
            return Ok(0);
        };
        zstd.compress_to_buffer(bytes, &mut self.stored).map_err(ImageError::Compress)
    }
}

/// Pages that wait for their neighbours.
#[derive(Debug, Default)]
struct Pending {
    space: u64,
    address: u64,
    bytes: Vec<u8>,
    zero_pages: u64,
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
    /// Bytes that the stored pages take, compressed.
    pub(crate) size: u64,
    pub(crate) spaces: BTreeMap<u64, Index>,
}

/// Writes pages.
pub(crate) struct PageWriter {
    compressor: Compressor,
    pending: Pending,
    output: Option<Output>,
    stored_size: u64,
    spaces: BTreeMap<u64, Index>,
    /// What is taken over at the end: into which space, from which, where.
    alike: Vec<(u64, u64, Range<u64>)>,
}

impl std::fmt::Debug for PageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageWriter")
            .field("output", &self.output)
            .field("stored_size", &self.stored_size)
            .finish_non_exhaustive()
    }
}

/// The only segment of an image so far, in its first use.
const SEGMENT: u32 = 0;
const GENERATION: u64 = 1;

impl PageWriter {
    pub(crate) fn new(compression: Compression) -> Result<Self, ImageError> {
        Ok(Self {
            compressor: Compressor::new(compression)?,
            pending: Pending::default(),
            output: None,
            stored_size: 0,
            spaces: BTreeMap::new(),
            alike: Vec::new(),
        })
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
            let alike = rest.chunks_exact(PAGE).take_while(|page| (*page == ZERO_PAGE) == zero).count();
            let (here, after) = rest.split_at(alike.saturating_mul(PAGE).min(rest.len()));
            if zero {
                self.zeroes(sink, space, at, size(alike))?;
            } else {
                self.data(sink, space, at, here)?;
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
        if let Some(index) = self.spaces.get_mut(&space) {
            index.cut(range);
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

    fn data(&mut self, sink: &mut dyn Sink, space: u64, address: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            if !self.pending.takes(space, at, false) || self.pending.bytes.len() >= RUN {
                self.flush(sink)?;
                self.pending.space = space;
                self.pending.address = at;
            }
            let room = RUN.saturating_sub(self.pending.bytes.len());
            let (here, after) = rest.split_at(room.min(rest.len()));
            if here.len() == RUN {
                self.store(sink, space, at, here)?;
            } else {
                self.pending.bytes.extend_from_slice(here);
            }
            at = at.saturating_add(size(here.len()));
            rest = after;
        }
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
        self.pending.bytes = pending.bytes;
        self.pending.bytes.clear();
        Ok(())
    }

    fn record_zeroes(&mut self, space: u64, address: u64, pages: u64) {
        let index = self.spaces.entry(space).or_default();
        let mut done = 0_u64;
        while done < pages {
            let count = pages.saturating_sub(done).min(ZERO_RUN_PAGES);
            index.insert(PageRunEntry {
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
            });
            done = done.saturating_add(count);
        }
    }

    fn store(&mut self, sink: &mut dyn Sink, space: u64, address: u64, bytes: &[u8]) -> Result<(), ImageError> {
        if self.output.is_none() {
            self.output = Some(begin(sink)?);
        }
        let Some(output) = &mut self.output else {
            return Ok(());
        };
        let (codec, stored) = self.compressor.compress(bytes)?.unwrap_or((Codec::Plain, bytes));
        let pages = bytes.len().checked_div(PAGE).unwrap_or(0);
        let entry = PageRunEntry {
            address,
            offset: output.written,
            generation: GENERATION,
            xxh3: xxh3_64(stored),
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
            segment: SEGMENT,
            length: u32::try_from(stored.len()).unwrap_or(u32::MAX),
            codec,
            stored: u16::try_from(pages).unwrap_or(u16::MAX),
            skip: 0,
            reserved: 0,
        };
        output.write(stored)?;
        self.stored_size = self.stored_size.saturating_add(size(stored.len()));
        self.spaces.entry(space).or_default().insert(entry);
        Ok(())
    }

    /// Stores what waits and says what there is.
    pub(crate) fn finish(mut self, sink: &mut dyn Sink) -> Result<Stored, ImageError> {
        self.flush(sink)?;
        for (space, from, range) in std::mem::take(&mut self.alike) {
            let theirs = self.spaces.get(&from).map(|index| index.within(&range)).unwrap_or_default();
            let index = self.spaces.entry(space).or_default();
            index.cut(range);
            for entry in theirs {
                index.insert(entry);
            }
        }
        let mut segments = Vec::new();
        if let Some(output) = self.output.take() {
            segments.push(SegmentFacts { number: SEGMENT, generation: GENERATION, size: output.written });
            output.close()?;
        }
        Ok(Stored { segments, size: self.stored_size, spaces: self.spaces })
    }
}

fn begin(sink: &mut dyn Sink) -> Result<Output, ImageError> {
    let image = sink.snapshot().image.0;
    let header = Header { kind: PartKind::Pages, image, number: SEGMENT, generation: GENERATION };
    let name = PartName::Pages(SEGMENT);
    Output::new(sink.part(name)?, name, &header)
}
