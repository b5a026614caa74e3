//! The frames part: a header, then frames one after another.

use std::ops::Range;

use hdcr_layout::{FrameHeader, Header, PartKind, tag};
use xxhash_rust::xxh3::Xxh3;

use crate::error::{ImageError, StoreError};
use crate::manifest::{FramesFacts, Manifest};
use crate::name::{ImageId, PartName};
use crate::number::{len, size};
use crate::record::{KnownTag, Record, RecordError, Tag, check_version};
use crate::sink::{ReadPart, WritePart};

/// The longest body of a frame, in bytes.
pub const FRAME_LIMIT: usize = 256 << 20;

/// How much is gathered before it is given to the store: no more than stays in a processor's own cache meanwhile.
pub(crate) const BUFFER: usize = 256 << 10;
/// How much of a long part is held while it is read.
const WINDOW: usize = 1 << 20;
/// The same where most of it is passed over.
const GLANCE: usize = 64 << 10;
/// The digests of a part that is as long are found by another thread, while this one looks into it.
const APART: u64 = 1 << 20;
/// As much is given to the store as it is: a call costs less than a copy.
const DIRECT: usize = 8 << 10;

/// What is said of an index that the manifest does not vouch for.
pub(crate) const OTHER_INDEX: &str = "the page index is not the one in the manifest";

/// A part being written through a buffer.
#[derive(Debug)]
pub(crate) struct Output {
    part: Box<dyn WritePart>,
    /// Never shorter than before: what is behind the used bytes means nothing, and need not be cleared again.
    buffer: Vec<u8>,
    used: usize,
    pub(crate) written: u64,
}

impl Output {
    /// Begins the part with its header.
    pub(crate) fn new(part: Box<dyn WritePart>, name: PartName, header: &Header) -> Result<Self, ImageError> {
        let mut block = vec![0; Header::SIZE];
        header.encode(&mut block).map_err(|error| ImageError::layout(name, error))?;
        Ok(Self { part, written: size(block.len()), used: block.len(), buffer: block })
    }

    /// Goes on with a part that has as many bytes.
    pub(crate) fn resume(part: Box<dyn WritePart>, written: u64) -> Self {
        Self { part, written, used: 0, buffer: Vec::new() }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.len() >= DIRECT {
            self.flush()?;
            self.written = self.written.saturating_add(size(bytes.len()));
            return self.part.write(bytes);
        }
        self.room(bytes.len())?.copy_from_slice(bytes);
        self.take(bytes.len());
        Ok(())
    }

    /// Room for so many bytes behind what waits; how many of them were put there says [`Output::take`].
    pub(crate) fn room(&mut self, len: usize) -> Result<&mut [u8], StoreError> {
        if self.used.saturating_add(len) > BUFFER {
            self.flush()?;
        }
        let end = self.used.saturating_add(len);
        if self.buffer.len() < end {
            self.buffer.resize(end.max(BUFFER), 0);
        }
        Ok(self.buffer.get_mut(self.used..end).unwrap_or_default())
    }

    /// So many bytes were put into the room.
    pub(crate) fn take(&mut self, len: usize) {
        self.used = self.used.saturating_add(len).min(self.buffer.len());
        self.written = self.written.saturating_add(size(len));
    }

    /// What waits.
    fn waiting(&self) -> &[u8] {
        self.buffer.get(..self.used).unwrap_or_default()
    }

    /// Hands on what waits.
    pub(crate) fn flush(&mut self) -> Result<(), StoreError> {
        if self.used > 0 {
            let waiting = self.buffer.get(..self.used).unwrap_or_default();
            self.part.write(waiting)?;
            self.used = 0;
        }
        Ok(())
    }

    pub(crate) fn close(mut self) -> Result<(), StoreError> {
        self.flush()?;
        self.part.close()
    }
}

/// Writes frames.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    out: Output,
    digest: blake3::Hasher,
    count: u64,
}

impl FrameWriter {
    pub(crate) fn new(part: Box<dyn WritePart>, image: ImageId, version: u32) -> Result<Self, ImageError> {
        let header = header_of(image, version);
        let out = Output::new(part, PartName::Frames, &header)?;
        let mut digest = blake3::Hasher::new();
        digest.update(out.waiting());
        Ok(Self { out, digest, count: 0 })
    }

    pub(crate) fn frame(&mut self, tag: Tag, version: u16, id: u64, body: &[u8]) -> Result<(), ImageError> {
        let too_long = || ImageError::TooLong { what: "a frame", len: size(body.len()) };
        if body.len() > FRAME_LIMIT {
            return Err(too_long());
        }
        let length = u32::try_from(body.len()).map_err(|_| too_long())?;
        let mut header = FrameHeader { tag: tag.0, version, length, id, xxh3: 0 };
        header.xxh3 = check_sum(&encoded(&header)?, body);
        let block = encoded(&header)?;
        self.digest.update(&block);
        self.digest.update(body);
        self.out.write(&block)?;
        self.out.write(body)?;
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<FramesFacts, ImageError> {
        let facts = FramesFacts { size: self.out.written, count: self.count, digest: self.digest.finalize().into() };
        self.out.close()?;
        Ok(facts)
    }
}

fn header_of(image: ImageId, version: u32) -> Header {
    Header { version, kind: PartKind::Frames, image: image.0, number: 0, generation: 0 }
}

fn encoded(header: &FrameHeader) -> Result<[u8; FrameHeader::SIZE], ImageError> {
    let mut block = [0; FrameHeader::SIZE];
    header.encode(&mut block).map_err(|error| ImageError::layout(PartName::Frames, error))?;
    Ok(block)
}

fn check_sum(block: &[u8], body: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(block.get(..FrameHeader::CHECKED).unwrap_or_default());
    sum.update(body);
    sum.digest()
}

/// One entry of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// Its kind.
    pub tag: Tag,
    /// Version of its encoding.
    pub version: u16,
    /// Which object it is about.
    pub id: u64,
    /// The record.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// Reads the record. Another kind or a higher version is refused by name.
    pub fn decode<R: Record>(&self) -> Result<R, RecordError> {
        if self.tag != R::TAG {
            return Err(RecordError::Other { name: R::NAME, tag: self.tag });
        }
        check_version(&KnownTag::of::<R>(), self.version)?;
        R::decode(self.body, self.version)
    }
}

/// Where a frame lies in the part.
#[derive(Clone, Debug)]
struct Place {
    header: FrameHeader,
    body: Range<usize>,
}

/// The checked frames part, without those frames that were taken out of it.
#[derive(Debug)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

impl Frames {
    /// Checks all of the part against the manifest; nothing of it is let out before. Frames that `take` takes are not kept: an
    /// index of pages may be longer than all else, and is held once. What it took counts for nothing when this fails.
    pub(crate) fn read(
        part: &dyn ReadPart,
        manifest: &Manifest,
        take: &mut dyn FnMut(&Frame<'_>) -> Result<bool, ImageError>,
    ) -> Result<Self, ImageError> {
        let facts = &manifest.frames;
        let mut window = Window::new(part, facts.size, WINDOW);
        check_frames_header(&mut window, manifest)?;
        if facts.size < APART {
            check_digests(&mut window, manifest)?;
            return Self::all(&mut window, facts, take);
        }
        let check = || check_digests(&mut Window::new(part, facts.size, WINDOW), manifest);
        std::thread::scope(|scope| {
            let Ok(other) = std::thread::Builder::new().spawn_scoped(scope, check) else {
                check()?;
                return Self::all(&mut window, facts, take);
            };
            let frames = Self::all(&mut window, facts, take);
            // A thread that has died has vouched for nothing.
            other.join().map_err(|_| corrupt("its digest was not found"))??;
            frames
        })
    }

    /// All frames of a part.
    fn all(
        window: &mut Window<'_>,
        facts: &FramesFacts,
        take: &mut dyn FnMut(&Frame<'_>) -> Result<bool, ImageError>,
    ) -> Result<Self, ImageError> {
        let (mut frames, mut count) = (Self { bytes: Vec::new(), places: Vec::new() }, 0_u64);
        let mut at = size(Header::SIZE);
        while at < facts.size {
            let (header, body) = next_frame(window, at)?;
            at = at.saturating_add(size(FrameHeader::SIZE)).saturating_add(size(body.len()));
            count = count.saturating_add(1);
            let frame = Frame { tag: Tag(header.tag), version: header.version, id: header.id, body };
            if !take(&frame)? {
                frames.keep(header, body);
            }
        }
        if count != facts.count {
            return Err(corrupt("the count of frames is not the one in the manifest"));
        }
        Ok(frames)
    }

    /// The frames but for those of one kind, which are passed over. Each is checked by its own sum; nothing vouches for the
    /// whole, and nobody may rely on it.
    pub(crate) fn glance(part: &dyn ReadPart, manifest: &Manifest, leave_out: Tag) -> Result<Self, ImageError> {
        let facts = &manifest.frames;
        let mut window = Window::new(part, facts.size, GLANCE);
        check_frames_header(&mut window, manifest)?;
        let mut frames = Self { bytes: Vec::new(), places: Vec::new() };
        let mut at = size(Header::SIZE);
        while at < facts.size {
            let (header, whole) = header_at(&mut window, at)?;
            if header.tag != leave_out.0 {
                let (header, body) = next_frame(&mut window, at)?;
                frames.keep(header, body);
            }
            at = at.saturating_add(size(whole));
        }
        Ok(frames)
    }

    fn keep(&mut self, header: FrameHeader, body: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(body);
        self.places.push(Place { header, body: start..self.bytes.len() });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Frame<'_>> {
        self.places.iter().map(|place| Frame {
            tag: Tag(place.header.tag),
            version: place.header.version,
            id: place.header.id,
            body: self.bytes.get(place.body.clone()).unwrap_or_default(),
        })
    }
}

/// A part as it is read: all of a short one is held, of a long one a piece.
struct Window<'a> {
    part: &'a dyn ReadPart,
    size: u64,
    /// As much is read at once.
    piece: usize,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(part: &'a dyn ReadPart, size: u64, piece: usize) -> Self {
        Self { part, size, piece, start: 0, bytes: Vec::new() }
    }

    /// Bytes of the part; fewer where it ends.
    fn get(&mut self, at: u64, wanted: usize) -> Result<&[u8], ImageError> {
        let end = at.saturating_add(size(wanted)).min(self.size);
        let at = at.min(end);
        let held = self.start..self.start.saturating_add(size(self.bytes.len()));
        if at < held.start || end > held.end {
            let more = len(self.size.saturating_sub(at)).min(wanted.max(self.piece));
            self.bytes.resize(more, 0);
            // Or a piece that could not be read would be taken for one that was.
            self.start = u64::MAX;
            self.part.read_at(at, &mut self.bytes)?;
            self.start = at;
        }
        let from = len(at.saturating_sub(self.start));
        Ok(self.bytes.get(from..from.saturating_add(len(end.saturating_sub(at)))).unwrap_or_default())
    }
}

fn corrupt(reason: &str) -> ImageError {
    ImageError::corrupt(PartName::Frames, reason)
}

fn check_frames_header(window: &mut Window<'_>, manifest: &Manifest) -> Result<(), ImageError> {
    let block = window.get(0, Header::SIZE)?;
    check_header(PartName::Frames, block, &header_of(manifest.id.image, manifest.version()))
}

/// Compares the digest of the part with the manifest, and that of the index of pages, where that is among the frames.
fn check_digests(window: &mut Window<'_>, manifest: &Manifest) -> Result<(), ImageError> {
    let (mut whole, mut index) = (blake3::Hasher::new(), blake3::Hasher::new());
    whole.update(window.get(0, Header::SIZE)?);
    let mut at = size(Header::SIZE);
    while at < window.size {
        let (header, length) = header_at(window, at)?;
        let frame = window.get(at, length)?;
        whole.update(frame);
        if header.tag == tag::PAGE_INDEX {
            index.update(&header.id.to_le_bytes());
            index.update(frame.get(FrameHeader::SIZE..).unwrap_or_default());
        }
        at = at.saturating_add(size(length));
    }
    if whole.finalize().as_bytes() != &manifest.frames.digest.0 {
        return Err(corrupt("its digest is not the one in the manifest"));
    }
    if manifest.log.is_none() && index.finalize().as_bytes() != &manifest.pages.digest.0 {
        return Err(corrupt(OTHER_INDEX));
    }
    Ok(())
}

/// The header of a frame, and how long the frame is with it: no longer than the part.
fn header_at(window: &mut Window<'_>, at: u64) -> Result<(FrameHeader, usize), ImageError> {
    let layout = |error| ImageError::layout(PartName::Frames, error);
    let (header, used) = FrameHeader::decode(window.get(at, FrameHeader::SIZE)?).map_err(layout)?;
    let length = len(u64::from(header.length));
    let whole = used.saturating_add(length);
    if length > FRAME_LIMIT || at.saturating_add(size(whole)) > window.size {
        return Err(corrupt("a frame is longer than the part"));
    }
    Ok((header, whole))
}

fn next_frame<'a>(window: &'a mut Window<'_>, at: u64) -> Result<(FrameHeader, &'a [u8]), ImageError> {
    let (header, whole) = header_at(window, at)?;
    let whole = window.get(at, whole)?;
    let body = whole.get(FrameHeader::SIZE..).unwrap_or_default();
    if check_sum(whole, body) != header.xxh3 {
        return Err(corrupt("the check sum of a frame does not match"));
    }
    Ok((header, body))
}

/// Compares the block at the start of a part with what it must be. Every bit of it counts.
pub(crate) fn check_header(part: PartName, bytes: &[u8], expected: &Header) -> Result<(), ImageError> {
    let (found, _) = Header::decode(bytes).map_err(|error| ImageError::layout(part, error))?;
    if found.kind != expected.kind || found.number != expected.number {
        return Err(ImageError::corrupt(part, "it is another part of an image"));
    }
    if found.version != expected.version {
        return Err(ImageError::corrupt(part, "it is of another version than its image"));
    }
    if found.image != expected.image {
        return Err(ImageError::Foreign { part, found: ImageId(found.image), expected: ImageId(expected.image) });
    }
    if found.generation != expected.generation {
        return Err(ImageError::Stale { part, found: found.generation, expected: expected.generation });
    }
    Ok(())
}
