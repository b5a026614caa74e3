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

    /// Compresses otherwise from now on.
    pub(crate) fn change(&mut self, compression: Compression) -> Result<(), ImageError> {
        if self.compression != compression {
            let Self { small, large, stored, .. } = std::mem::replace(self, Self::new(compression)?);
            (self.small, self.large, self.stored) = (small, large, stored);
        }
        Ok(())
    }

    /// The stored bytes, or `None` when they would not be fewer.
    pub(crate) fn compress(&mut self, bytes: &[u8]) -> Result<Option<(Codec, &[u8])>, ImageError> {
        let mut stored = std::mem::take(&mut self.stored);
        let room = self.room(bytes.len());
        if stored.len() < room {
            stored.resize(room, 0);
        }
        let done = self.compress_into(bytes, &mut stored);
        self.stored = stored;
        Ok(done?.and_then(|(codec, used)| Some((codec, self.stored.get(..used)?))))
    }

    /// How much room so many bytes may take while they are compressed.
    pub(crate) fn room(&self, len: usize) -> usize {
        match self.compression {
            Compression::None => 0,
            Compression::Lz4 => get_maximum_output_size(len),
            Compression::Zstd(_) => zstd::zstd_safe::compress_bound(len),
        }
    }

    /// Puts the stored bytes into this room and says how many they are; `None` when they would not be fewer.
    pub(crate) fn compress_into(
        &mut self,
        bytes: &[u8],
        into: &mut [u8],
    ) -> Result<Option<(Codec, usize)>, ImageError> {
        let (codec, used) = match self.compression {
            Compression::None => return Ok(None),
            Compression::Lz4 => (Codec::Lz4, self.lz4(bytes, into)?),
            Compression::Zstd(_) => (Codec::Zstd, self.zstd(bytes, into)?),
        };
        Ok((used > 0 && used < bytes.len()).then_some((codec, used)))
    }

    /// Packs changed lines; `None` when they would not be shorter.
    pub(crate) fn pack(&mut self, bytes: &[u8]) -> Result<Option<&[u8]>, ImageError> {
        if self.compression == Compression::None {
            return Ok(None);
        }
        let mut stored = std::mem::take(&mut self.stored);
        let room = get_maximum_output_size(bytes.len());
        if stored.len() < room {
            stored.resize(room, 0);
        }
        let used = self.lz4(bytes, &mut stored);
        self.stored = stored;
        Ok(self.stored.get(..used?).filter(|stored| stored.len() < bytes.len()))
    }

    fn lz4(&mut self, bytes: &[u8], into: &mut [u8]) -> Result<usize, ImageError> {
        let table = if bytes.len() < usize::from(u16::MAX) {
            self.small.get_or_insert_with(CompressTable::small)
        } else {
            self.large.get_or_insert_with(CompressTable::large)
        };
        compress_into_with_table(bytes, into, table).map_err(|error| ImageError::Compress(std::io::Error::other(error)))
    }

    fn zstd(&mut self, bytes: &[u8], into: &mut [u8]) -> Result<usize, ImageError> {
        let Some(zstd) = &mut self.zstd else {
            return Ok(0);
        };
        zstd.compress_to_buffer(bytes, into).map_err(ImageError::Compress)
    }
}
