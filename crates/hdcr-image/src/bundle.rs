//! All parts of an image in one file: where each part's bytes lie.
//!
//! Parts grow at the same time, so each is a list of extents. They follow one another without a gap; behind them stand
//! the directory and a trailer that finds it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use hdcr_layout::{ALONE_VERSION, Header, LayoutError, PartKind};

use crate::error::{ImageError, StoreError};
use crate::name::{ImageId, PartName};
use crate::number::{len, size};
use crate::sink::{ReadPart, Source};

/// One piece of a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Extent {
    part: PartName,
    offset: u64,
    length: u64,
}

const EXTENT: usize = 24;
const TRAILER: usize = 56;
const TRAILER_MAGIC: [u8; 8] = *b"HDCREND\n";

/// Keeps account of a bundle while its bytes are appended to a file.
#[derive(Debug)]
pub struct BundleWriter {
    header: Vec<u8>,
    extents: Vec<Extent>,
    end: u64,
}

impl BundleWriter {
    /// Begins a bundle. Its first bytes are [`BundleWriter::header`].
    pub fn new(image: ImageId) -> Result<Self, ImageError> {
        let mut header = vec![0; Header::SIZE];
        let (version, kind) = (ALONE_VERSION, PartKind::Bundle);
        let block = Header { version, kind, image: image.0, number: 0, generation: 0 };
        block.encode(&mut header).map_err(|error| ImageError::layout(PartName::Bundle, error))?;
        Ok(Self { end: size(header.len()), header, extents: Vec::new() })
    }

    /// The bytes at the start of the file.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Notes that bytes of a part were appended to the file.
    pub fn appended(&mut self, part: PartName, length: usize) {
        let length = size(length);
        match self.extents.last_mut().filter(|last| last.part == part) {
            Some(last) => last.length = last.length.saturating_add(length),
            None => self.extents.push(Extent { part, offset: self.end, length }),
        }
        self.end = self.end.saturating_add(length);
    }

    /// Where bytes of a part that was appended lie in the file.
    pub fn places(&self, part: PartName, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut before = 0_u64;
        let mut found = Vec::new();
        for extent in self.extents.iter().filter(|extent| extent.part == part) {
            let end = before.saturating_add(extent.length);
            let (first, last) = (range.start.max(before), range.end.min(end));
            if first < last {
                let place = |at: u64| extent.offset.saturating_add(at.saturating_sub(before));
                found.push(place(first)..place(last));
            }
            before = end;
        }
        found
    }

    /// The bytes at the end of the file.
    pub fn finish(self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.extents.iter().flat_map(encode_extent).collect();
        let length = size(bytes.len());
        let digest = digest(&self.header, &bytes, self.end, length);
        bytes.extend_from_slice(&self.end.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&digest);
        bytes.extend_from_slice(&TRAILER_MAGIC);
        bytes
    }
}

fn encode_extent(extent: &Extent) -> Vec<u8> {
    let (kind, number) = match extent.part {
        PartName::Manifest => (PartKind::Manifest, 0),
        PartName::Frames => (PartKind::Frames, 0),
        PartName::Pages(number) => (PartKind::Pages, number),
        PartName::Index(number) => (PartKind::Index, number),
        // No clone is a piece of a file.
        PartName::Clone(_) | PartName::Bundle => (PartKind::Bundle, 0),
    };
    let mut bytes = Vec::with_capacity(EXTENT);
    bytes.extend_from_slice(&kind.number().to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&extent.offset.to_le_bytes());
    bytes.extend_from_slice(&extent.length.to_le_bytes());
    bytes
}

fn begin_digest(header: &[u8], offset: u64, length: u64) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(&offset.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher
}

fn digest(header: &[u8], directory: &[u8], offset: u64, length: u64) -> [u8; 32] {
    *begin_digest(header, offset, length).update(directory).finalize().as_bytes()
}

/// A bundle to be read.
#[derive(Debug)]
pub struct BundleSource {
    file: Arc<dyn ReadPart>,
    parts: BTreeMap<PartName, Vec<Extent>>,
}

impl BundleSource {
    /// Reads and checks the directory of a bundle.
    pub fn open(file: Arc<dyn ReadPart>) -> Result<Self, ImageError> {
        let total = file.size()?;
        let header_size = size(Header::SIZE);
        let mut header = vec![0; len(total.min(header_size))];
        file.read_at(0, &mut header)?;
        let (block, _) = Header::decode(&header).map_err(|error| ImageError::layout(PartName::Bundle, error))?;
        if block.version != ALONE_VERSION {
            return Err(ImageError::layout(PartName::Bundle, LayoutError::Version { found: block.version }));
        }
        if block.kind != PartKind::Bundle || block.number != 0 || block.generation != 0 {
            return Err(corrupt("it is one part of an image, not a whole one"));
        }
        let trailer_at = total.checked_sub(size(TRAILER)).filter(|at| *at >= header_size);
        let trailer_at = trailer_at.ok_or_else(|| corrupt("it ends early"))?;
        let mut trailer = [0; TRAILER];
        file.read_at(trailer_at, &mut trailer)?;
        let (offset, length, told) = split_trailer(&trailer).ok_or_else(|| corrupt("it does not end as it should"))?;
        if offset < header_size || offset.checked_add(length) != Some(trailer_at) {
            return Err(corrupt("its directory is not where it should be"));
        }
        let parts = read_directory(file.as_ref(), &header, (offset, length), &told)?;
        Ok(Self { file, parts })
    }
}

fn corrupt(reason: &str) -> ImageError {
    ImageError::corrupt(PartName::Bundle, reason)
}

fn split_trailer(trailer: &[u8; TRAILER]) -> Option<(u64, u64, [u8; 32])> {
    let (offset, rest) = trailer.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (digest, magic) = rest.split_first_chunk::<32>()?;
    (*magic == TRAILER_MAGIC).then_some((u64::from_le_bytes(*offset), u64::from_le_bytes(*length), *digest))
}

/// Bytes of a directory that are read at once: a file that is long and holds nothing must not take memory.
const PIECE: usize = 4096 * EXTENT;

fn read_directory(
    file: &dyn ReadPart,
    header: &[u8],
    (offset, length): (u64, u64),
    told: &[u8; 32],
) -> Result<BTreeMap<PartName, Vec<Extent>>, ImageError> {
    let mut hasher = begin_digest(header, offset, length);
    let mut parts = BTreeMap::new();
    let mut end_of_parts = size(Header::SIZE);
    let mut done = 0;
    while done < length {
        let mut piece = vec![0; len(length.saturating_sub(done)).min(PIECE)];
        file.read_at(offset.saturating_add(done), &mut piece)?;
        hasher.update(&piece);
        parse_directory(&piece, &mut end_of_parts, &mut parts)?;
        done = done.saturating_add(size(piece.len()));
    }
    if hasher.finalize().as_bytes() != told {
        return Err(corrupt("the digest of its directory does not match"));
    }
    if end_of_parts != offset {
        return Err(corrupt("its parts do not fill it"));
    }
    Ok(parts)
}

fn parse_directory(
    directory: &[u8],
    at: &mut u64,
    parts: &mut BTreeMap<PartName, Vec<Extent>>,
) -> Result<(), ImageError> {
    if !directory.len().is_multiple_of(EXTENT) {
        return Err(corrupt("its directory is cut off"));
    }
    for bytes in directory.chunks_exact(EXTENT) {
        let extent = parse_extent(bytes).ok_or_else(|| corrupt("its directory names an unknown part"))?;
        if extent.offset != *at {
            return Err(corrupt("its parts do not follow one another"));
        }
        *at = at.checked_add(extent.length).ok_or_else(|| corrupt("a part is too long"))?;
        parts.entry(extent.part).or_default().push(extent);
    }
    Ok(())
}

fn parse_extent(bytes: &[u8]) -> Option<Extent> {
    let (kind, rest) = bytes.split_first_chunk::<4>()?;
    let (number, rest) = rest.split_first_chunk::<4>()?;
    let (offset, length) = rest.split_first_chunk::<8>()?;
    let part = match (PartKind::from_number(u32::from_le_bytes(*kind))?, u32::from_le_bytes(*number)) {
        (PartKind::Manifest, 0) => PartName::Manifest,
        (PartKind::Frames, 0) => PartName::Frames,
        (PartKind::Pages, number) => PartName::Pages(number),
        (PartKind::Manifest | PartKind::Frames | PartKind::Bundle | PartKind::Index | PartKind::Alone, _) => {
            return None;
        }
    };
    let length = u64::from_le_bytes(length.try_into().ok()?);
    Some(Extent { part, offset: u64::from_le_bytes(*offset), length })
}

impl Source for BundleSource {
    fn part(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        let extents = self
            .parts
            .get(&name)
            .ok_or_else(|| StoreError::new("opening", name.to_string(), io::ErrorKind::NotFound.into()))?;
        let mut start = 0_u64;
        let mut placed = Vec::new();
        for extent in extents {
            placed.push((start, *extent));
            start = start.saturating_add(extent.length);
        }
        Ok(Box::new(BundlePart { name, file: Arc::clone(&self.file), extents: placed, size: start }))
    }
}

/// A part of a bundle: its extents, each with its place in the part.
#[derive(Debug)]
struct BundlePart {
    name: PartName,
    file: Arc<dyn ReadPart>,
    extents: Vec<(u64, Extent)>,
    size: u64,
}

impl ReadPart for BundlePart {
    fn size(&self) -> Result<u64, StoreError> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        let mut at = offset;
        let mut rest = into;
        let first = self.extents.partition_point(|(start, extent)| start.saturating_add(extent.length) <= offset);
        for (start, extent) in self.extents.iter().skip(first) {
            let skip = at.saturating_sub(*start);
            let here = len(extent.length.saturating_sub(skip)).min(rest.len());
            let (now, later) = rest.split_at_mut(here);
            if !now.is_empty() {
                self.file.read_at(extent.offset.saturating_add(skip), now)?;
            }
            at = at.saturating_add(size(here));
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        Err(StoreError::new("reading", self.name.to_string(), io::ErrorKind::UnexpectedEof.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bundle whose directory is very long and all holes.
    #[derive(Debug)]
    struct Hollow {
        header: Vec<u8>,
        length: u64,
    }

    impl ReadPart for Hollow {
        fn size(&self) -> Result<u64, StoreError> {
            Ok(size(self.header.len()).saturating_add(self.length).saturating_add(size(TRAILER)))
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
            assert!(into.len() < 1 << 20, "{} bytes at once", into.len());
            let mut trailer = size(self.header.len()).to_le_bytes().to_vec();
            trailer.extend(self.length.to_le_bytes());
            trailer.extend([0; 32]);
            trailer.extend(TRAILER_MAGIC);
            let bytes = match offset {
                0 => self.header.clone(),
                _ if offset == size(self.header.len()).saturating_add(self.length) => trailer,
                _ => vec![0; into.len()],
            };
            into.copy_from_slice(&bytes);
            Ok(())
        }
    }

    #[test]
    fn a_long_directory_of_holes_takes_no_memory() {
        let header = BundleWriter::new(ImageId([7; 16])).unwrap().header().to_vec();
        let hollow = Hollow { header, length: size(EXTENT) << 26 };
        assert!(matches!(BundleSource::open(Arc::new(hollow)), Err(ImageError::Corrupt { .. })));
    }
}
