//! Images whose digests are right and whose bytes are not: random input alone would never get past the digests.

use std::collections::BTreeMap;

use hdcr_image::{
    Chain, Digest, FramesFacts, ImageReader, LogFacts, Manifest, MemorySource, PageFacts, PartName, SegmentFacts, SnapshotId, Source,
    sample,
};
use hdcr_layout::{FrameHeader, Header, PartKind};
use xxhash_rust::xxh3::Xxh3;

/// The header of a part of the forged image.
pub fn header(kind: PartKind, generation: u64) -> Vec<u8> {
    header_in(1, kind, generation)
}

/// The same in this version of the format.
pub fn header_in(version: u32, kind: PartKind, generation: u64) -> Vec<u8> {
    let mut block = vec![0; Header::SIZE];
    let header = Header { version, kind, image: sample::IMAGE.0, number: 0, generation };
    header.encode(&mut block).expect("a header fits its size");
    block
}

/// A manifest part with this body.
pub fn manifest(body: &[u8]) -> Vec<u8> {
    let mut bytes = header(PartKind::Manifest, 0);
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let mut digest = blake3::Hasher::new();
    digest.update(&bytes).update(body);
    bytes.extend_from_slice(digest.finalize().as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A frame with a right check sum.
pub fn frame(tag: u16, version: u16, id: u64, body: &[u8]) -> Vec<u8> {
    let mut block = vec![0; FrameHeader::SIZE];
    let mut head = FrameHeader { tag, version, length: body.len() as u32, id, xxh3: 0 };
    head.encode(&mut block).expect("a header fits its size");
    let mut sum = Xxh3::new();
    sum.update(&block[..FrameHeader::CHECKED]);
    sum.update(body);
    head.xxh3 = sum.digest();
    head.encode(&mut block).expect("a header fits its size");
    block.extend_from_slice(body);
    block
}

/// An image of these frames and this segment, told as `pages` tells.
pub fn image(frames: &[u8], count: u64, segment: &[u8], pages: PageFacts) -> MemorySource {
    let frames = [header(PartKind::Frames, 0).as_slice(), frames].concat();
    let segment = [header(PartKind::Pages, 1).as_slice(), segment].concat();
    let manifest = Manifest {
        id: SnapshotId { image: sample::IMAGE, place: None },
        facts: sample::facts(),
        frames: FramesFacts { size: frames.len() as u64, count, digest: Digest(*blake3::hash(&frames).as_bytes()) },
        segments: vec![facts(segment.len())],
        pages,
        log: None,
    };
    MemorySource::new(BTreeMap::from([
        (PartName::Manifest, manifest.encode().expect("the facts are small")),
        (PartName::Frames, frames),
        (PartName::Pages(0), segment),
    ]))
}

/// An image in a chain: an empty list of frames, this log and this segment, told as `pages` tells.
pub fn chained(log: &[u8], segment: &[u8], pages: PageFacts) -> MemorySource {
    let frames = header_in(2, PartKind::Frames, 0);
    let log = [header_in(2, PartKind::Index, 1).as_slice(), log].concat();
    let segment = [header_in(2, PartKind::Pages, 1).as_slice(), segment].concat();
    let told = LogFacts { number: 0, generation: 1, size: log.len() as u64, image: sample::IMAGE };
    let manifest = Manifest {
        id: SnapshotId { image: sample::IMAGE, place: None },
        facts: sample::facts(),
        frames: FramesFacts { size: frames.len() as u64, count: 0, digest: Digest(*blake3::hash(&frames).as_bytes()) },
        segments: vec![facts(segment.len())],
        pages: PageFacts { digest: Digest(*blake3::hash(&log).as_bytes()), ..pages },
        log: Some(told),
    };
    MemorySource::new(BTreeMap::from([
        (PartName::Manifest, manifest.encode().expect("the facts are small")),
        (PartName::Frames, frames),
        (PartName::Index(0), log),
        (PartName::Pages(0), segment),
    ]))
}

fn facts(size: usize) -> SegmentFacts {
    SegmentFacts { number: 0, generation: 1, size: size as u64, image: sample::IMAGE }
}

/// Page facts of an image without an index.
pub fn no_pages() -> PageFacts {
    let digest = Digest(*blake3::hash(&[]).as_bytes());
    PageFacts { runs: 0, stored_pages: 0, zero_pages: 0, stored_size: 0, added_size: 0, digest }
}

/// Reads all that an image lets out.
pub fn read(source: &dyn Source) {
    let chain = Chain::open(source);
    let Ok(reader) = ImageReader::open(source) else { return };
    assert_eq!(chain.is_ok(), reader.manifest().log.is_some());
    let mut bytes = Vec::new();
    for space in reader.spaces() {
        for run in reader.runs(space) {
            if reader.read_run(run, &mut bytes).is_ok() && !run.is_zero() {
                assert_eq!(bytes.len() as u64, run.size());
            }
        }
    }
    assert!(reader.frames().count() as u64 <= reader.manifest().frames.count);
    let _whole = reader.verify(&mut |_| ());
}
