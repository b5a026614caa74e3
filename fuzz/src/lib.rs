//! Images whose digests are right and whose bytes are not: random input alone would never get past the digests.

use std::collections::BTreeMap;

use hdcr_image::{
    Digest, FramesFacts, ImageReader, Manifest, MemorySource, PageFacts, PartName, SegmentFacts, SnapshotId, Source,
    sample,
};
use hdcr_layout::{FrameHeader, Header, PartKind};
use xxhash_rust::xxh3::Xxh3;

/// The header of a part of the forged image.
pub fn header(kind: PartKind, generation: u64) -> Vec<u8> {
    let mut block = vec![0; Header::SIZE];
    let header = Header { kind, image: sample::IMAGE.0, number: 0, generation };
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
        segments: vec![SegmentFacts { number: 0, generation: 1, size: segment.len() as u64 }],
        pages,
    };
    MemorySource::new(BTreeMap::from([
        (PartName::Manifest, manifest.encode().expect("the facts are small")),
        (PartName::Frames, frames),
        (PartName::Pages(0), segment),
    ]))
}

/// Page facts of an image without an index.
pub fn no_pages() -> PageFacts {
    let digest = Digest(*blake3::hash(&[]).as_bytes());
    PageFacts { runs: 0, stored_pages: 0, zero_pages: 0, stored_size: 0, digest }
}

/// Reads all that an image lets out.
pub fn read(source: &dyn Source) {
    let Ok(reader) = ImageReader::open(source) else { return };
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
