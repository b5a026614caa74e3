//! Where pages end up: compressed, appended to a segment, named by the index.

use hdcr_layout::{Codec, PageRunEntry};
use xxhash_rust::xxh3::xxh3_64;

use crate::compress::{Compression, Compressor};
use crate::error::ImageError;
use crate::ledger::Ledger;
use crate::name::PartName;
use crate::number::len;
use crate::reader::{check_sum, plain_size, unpack};
use crate::segments::Segments;
use crate::sink::Sink;

pub(crate) const PAGE: usize = 4096;

/// Compressor, segments and index.
pub(crate) struct Packer {
    compressor: Compressor,
    pub(crate) segments: Segments,
    pub(crate) ledger: Ledger,
}

impl Packer {
    pub(crate) fn new(compression: Compression, segments: Segments, ledger: Ledger) -> Result<Self, ImageError> {
        Ok(Self { compressor: Compressor::new(compression)?, segments, ledger })
    }

    /// Stores whole pages together. What comes back names all of them, at no address yet.
    pub(crate) fn store(&mut self, sink: &mut dyn Sink, bytes: &[u8]) -> Result<PageRunEntry, ImageError> {
        let (codec, stored) = self.compressor.compress(bytes)?.unwrap_or((Codec::Plain, bytes));
        let place = self.segments.store(sink, stored)?;
        let pages = bytes.len().checked_div(PAGE).unwrap_or(0);
        Ok(PageRunEntry {
            address: 0,
            offset: place.offset,
            generation: place.generation,
            xxh3: xxh3_64(stored),
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
            segment: place.segment,
            length: u32::try_from(stored.len()).unwrap_or(u32::MAX),
            codec,
            stored: u16::try_from(pages).unwrap_or(u16::MAX),
            skip: 0,
            reserved: 0,
        })
    }

    /// Reads all pages that were stored together with a run back.
    pub(crate) fn read(&mut self, sink: &dyn Sink, run: &PageRunEntry) -> Result<Vec<u8>, ImageError> {
        self.segments.flush()?;
        let part = sink.reader(PartName::Pages(run.segment))?;
        let mut stored = vec![0; len(u64::from(run.length))];
        part.read_at(run.offset, &mut stored)?;
        check_sum(run, &stored)?;
        if run.codec == Codec::Plain {
            return Ok(stored);
        }
        let mut plain = vec![0; plain_size(run)];
        unpack(run, &stored, &mut plain)?;
        Ok(plain)
    }
}
