//! From the bytes of pages to the bytes that are stored.

use hdcr_layout::Codec;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::error::ImageError;

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

/// Turns a run into its stored bytes.
pub(crate) struct Compressor {
    compression: Compression,
    /// For inputs below 64 KiB, which it is cheaper to clear for.
    small: Option<CompressTable>,
    large: Option<CompressTable>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    stored: Vec<u8>,
}

impl Compressor {
    pub(crate) fn new(compression: Compression) -> Result<Self, ImageError> {
        let zstd = match compression {
            Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(level).map_err(ImageError::Compress)?),
            Compression::None | Compression::Lz4 => None,
        };
        Ok(Self { compression, small: None, large: None, zstd, stored: Vec::new() })
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// The stored bytes, or `None` when they would not be fewer.
    pub(crate) fn compress(&mut self, bytes: &[u8]) -> Result<Option<(Codec, &[u8])>, ImageError> {
        let (codec, used) = match self.compression {
            Compression::None => return Ok(None),
            Compression::Lz4 => (Codec::Lz4, self.lz4(bytes)?),
            Compression::Zstd(_) => (Codec::Zstd, self.zstd(bytes)?),
        };
        let stored = self.stored.get(..used).filter(|stored| !stored.is_empty() && stored.len() < bytes.len());
        Ok(stored.map(|stored| (codec, stored)))
    }

    /// Packs changed lines; `None` when they would not be shorter.
    pub(crate) fn pack(&mut self, bytes: &[u8]) -> Result<Option<&[u8]>, ImageError> {
        if self.compression == Compression::None {
            return Ok(None);
        }
        let used = self.lz4(bytes)?;
        Ok(self.stored.get(..used).filter(|stored| stored.len() < bytes.len()))
    }

    fn lz4(&mut self, bytes: &[u8]) -> Result<usize, ImageError> {
        let room = get_maximum_output_size(bytes.len());
        if self.stored.len() < room {
            self.stored.resize(room, 0);
        }
        let table = if bytes.len() < usize::from(u16::MAX) {
            self.small.get_or_insert_with(CompressTable::small)
        } else {
            self.large.get_or_insert_with(CompressTable::large)
        };
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
