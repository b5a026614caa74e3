//! Bytes that nobody of good will wrote: an error each time, never a panic, never memory without bound.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::collections::BTreeMap;
use std::sync::Arc;

use hdcr_image::bundle::{BundleSource, BundleWriter};
use hdcr_image::{
    ImageError, ImageReader, KnownTag, List, Manifest, MemoryImage, MemorySource, Options, PartName, Record,
    RecordError, Source, Tag, decode_wire, sample,
};
use hdcr_layout::{Codec, FrameHeader, Header, Layout, PageRunEntry, PartKind, tag};
use proptest::prelude::*;

type Parts = BTreeMap<PartName, Vec<u8>>;

fn sample_parts() -> Parts {
    let image = MemoryImage::new();
    sample::write(Box::new(image.sink(sample::IMAGE)), Options::default()).unwrap();
    image.parts().unwrap()
}

fn read(parts: Parts) -> Result<(), ImageError> {
    read_source(&MemorySource::new(parts))
}

fn read_source(source: &dyn Source) -> Result<(), ImageError> {
    let reader = ImageReader::open(source)?;
    let mut bytes = Vec::new();
    for space in reader.spaces() {
        for run in reader.runs(space) {
            reader.read_run(run, &mut bytes)?;
        }
    }
    reader.verify(&mut |_| ()).map(|_| ())
}

/// An image whose digests all match although its frames and pages are somebody else's.
fn forged(body: &[u8], pages: &[u8], told: (u64, u64, u64)) -> Parts {
    let mut parts = sample_parts();
    let mut frames = vec![0; Header::SIZE];
    let header = Header { version: 1, kind: PartKind::Frames, image: sample::IMAGE.0, number: 0, generation: 0 };
    header.encode(&mut frames).unwrap();
    let mut head =
        FrameHeader { tag: tag::PAGE_INDEX, version: 1, length: u32::try_from(body.len()).unwrap(), id: 5, xxh3: 0 };
    let mut block = [0; FrameHeader::SIZE];
    head.encode(&mut block).unwrap();
    head.xxh3 = xxhash_rust::xxh3::xxh3_64(&[&block[..FrameHeader::CHECKED], body].concat());
    head.encode(&mut block).unwrap();
    frames.extend_from_slice(&block);
    frames.extend_from_slice(body);
    let mut segment = parts[&PartName::Pages(0)][..Header::SIZE].to_vec();
    segment.extend_from_slice(pages);
    let mut manifest = Manifest::decode(&parts[&PartName::Manifest]).unwrap();
    manifest.frames.size = frames.len() as u64;
    manifest.frames.count = 1;
    manifest.frames.digest = blake3::hash(&frames).into();
    manifest.segments[0].size = segment.len() as u64;
    (manifest.pages.runs, manifest.pages.stored_pages, manifest.pages.zero_pages) = told;
    manifest.pages.digest = blake3::hash(&[&5_u64.to_le_bytes(), body].concat()).into();
    parts.insert(PartName::Manifest, manifest.encode().unwrap());
    parts.insert(PartName::Frames, frames);
    parts.insert(PartName::Pages(0), segment);
    parts
}

fn run(codec: Codec, stored: &[u8]) -> PageRunEntry {
    PageRunEntry {
        address: 0x1000,
        offset: 64,
        generation: 1,
        xxh3: xxhash_rust::xxh3::xxh3_64(stored),
        pages: 1,
        segment: 0,
        length: u32::try_from(stored.len()).unwrap(),
        codec,
        stored: 1,
        skip: 0,
        reserved: 0,
    }
}

fn forged_run(entry: PageRunEntry, pages: &[u8]) -> Result<(), ImageError> {
    read(forged(&Record::encode(&List(vec![entry])).unwrap(), pages, (1, u64::from(entry.pages), 0)))
}

#[test]
fn a_forgery_with_right_digests_reads_only_what_is_there() {
    let packed = lz4_flex::block::compress(&[7; 4096]);
    forged_run(run(Codec::Lz4, &packed), &packed).unwrap();
    let refused = |change: fn(&mut PageRunEntry)| {
        let mut entry = run(Codec::Lz4, &packed);
        change(&mut entry);
        forged_run(entry, &packed).unwrap_err();
    };
    refused(|entry| entry.segment = 1);
    refused(|entry| entry.generation = 2);
    refused(|entry| entry.offset = 0);
    refused(|entry| entry.offset += 1);
    refused(|entry| entry.offset = u64::MAX - 4095);
    refused(|entry| entry.stored = 2);
    refused(|entry| entry.codec = Codec::Zstd);
    refused(|entry| entry.address = u64::MAX - 4095);
    let list = vec![run(Codec::Lz4, &packed); 2];
    read(forged(&Record::encode(&List(list)).unwrap(), &packed, (2, 2, 0))).unwrap_err();
}

/// Zstandard and LZ4 data that unpack to another length than the pages have.
#[test]
fn compressed_data_of_another_length_is_refused() {
    for len in [0, 1, 4095, 4097, 1 << 20] {
        let packed = lz4_flex::block::compress(&vec![7; len]);
        assert!(packed.len() > 4096 || forged_run(run(Codec::Lz4, &packed), &packed).is_err(), "{len}");
        let packed = zstd::bulk::compress(&vec![7; len], 1).unwrap();
        assert!(forged_run(run(Codec::Zstd, &packed), &packed).is_err(), "{len}");
    }
}

/// A zero run costs nothing, however long it says it is.
#[test]
fn a_huge_zero_run_takes_no_memory() {
    let entry = PageRunEntry {
        offset: 0,
        generation: 0,
        xxh3: 0,
        pages: u32::MAX,
        length: 0,
        stored: 0,
        ..run(Codec::Zero, &[])
    };
    let told = (1, 0, u64::from(u32::MAX));
    read(forged(&Record::encode(&List(vec![entry])).unwrap(), &[], told)).unwrap();
}

#[test]
fn a_frame_longer_than_its_part_is_refused() {
    let mut parts = sample_parts();
    let mut manifest = Manifest::decode(&parts[&PartName::Manifest]).unwrap();
    let frames = parts.get_mut(&PartName::Frames).unwrap();
    // The length of the first frame stands behind its tag and version.
    frames[Header::SIZE + 4..Header::SIZE + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    manifest.frames.digest = blake3::hash(frames).into();
    parts.insert(PartName::Manifest, manifest.encode().unwrap());
    let error = read(parts).unwrap_err();
    assert!(error.to_string().contains("longer than the part"), "{error}");
}

#[test]
fn unknown_and_newer_records_are_refused_by_name() {
    let source = MemorySource::new(sample_parts());
    let reader = ImageReader::open(&source).unwrap();
    let task = KnownTag::of::<hdcr_layout::Task>();
    let future = KnownTag { tag: sample::UNKNOWN_TAG, version: 2, name: "future" };
    assert_eq!(
        reader.refuse_unknown(&[task]).unwrap_err(),
        RecordError::Unknown { tag: sample::UNKNOWN_TAG, version: 3 }
    );
    let error = reader.refuse_unknown(&[task, future]).unwrap_err();
    assert_eq!(error, RecordError::Newer { name: "future", version: 3, known: 2 });
    reader.refuse_unknown(&[task, KnownTag { version: 3, ..future }]).unwrap();
    let frame = reader.frames().next().unwrap();
    assert_eq!(frame.decode::<hdcr_layout::Task>().unwrap().tid, 100);
    assert_eq!(frame.decode::<List<hdcr_layout::Task>>().unwrap().0.len(), 1);
    let other = frame.decode::<hdcr_layout::Registers>().unwrap_err();
    assert_eq!(other, RecordError::Other { name: "Registers", tag: Tag(tag::TASK) });
}

#[derive(Clone, PartialEq, prost::Message)]
struct Old {
    #[prost(uint32, tag = "1")]
    a: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct New {
    #[prost(uint32, tag = "1")]
    a: u32,
    #[prost(uint32, tag = "2")]
    b: u32,
}

#[test]
fn a_field_that_is_not_known_is_not_dropped() {
    let body = hdcr_image::encode_wire(&New { a: 1, b: 2 });
    assert!(matches!(decode_wire::<Old>("old", &body), Err(RecordError::Malformed { name: "old", .. })));
    assert_eq!(decode_wire::<New>("new", &body), Ok(New { a: 1, b: 2 }));
}

/// A checked type over a private message.
#[derive(PartialEq, Debug)]
struct Even(u32);

impl From<&Even> for Old {
    fn from(even: &Even) -> Self {
        Self { a: even.0 }
    }
}

impl TryFrom<Old> for Even {
    type Error = RecordError;

    fn try_from(wire: Old) -> Result<Self, RecordError> {
        if !wire.a.is_multiple_of(2) {
            return Err(RecordError::malformed("even", "it is odd"));
        }
        Ok(Self(wire.a))
    }
}

hdcr_image::wire_record!(Even, Old, tag 999, version 1, "even");

#[test]
fn a_wire_record_is_checked() {
    assert_eq!(Even::decode(&Record::encode(&Even(4)).unwrap(), 1), Ok(Even(4)));
    assert!(Even::decode(&Record::encode(&Even(5)).unwrap(), 1).is_err());
}

fn bundle(parts: &Parts) -> Vec<u8> {
    let mut writer = BundleWriter::new(sample::IMAGE).unwrap();
    let mut bytes = writer.header().to_vec();
    // In small pieces by turns, as parts that grow at the same time.
    for round in 0..100 {
        for (name, part) in parts {
            for piece in part.chunks(500).skip(round).take(1) {
                writer.appended(*name, piece.len());
                bytes.extend_from_slice(piece);
            }
        }
    }
    bytes.extend_from_slice(&writer.finish());
    bytes
}

fn read_bundle(bytes: Vec<u8>) -> Result<(), ImageError> {
    let holder = MemorySource::new(BTreeMap::from([(PartName::Bundle, bytes)]));
    let file = Arc::from(holder.part(PartName::Bundle)?);
    read_source(&BundleSource::open(file)?)
}

#[test]
fn a_bundle_of_pieces_is_read_and_each_flipped_bit_found() {
    let bytes = bundle(&sample_parts());
    read_bundle(bytes.clone()).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        read_bundle(changed).unwrap_err();
    }
    for len in 0..bytes.len() {
        read_bundle(bytes[..len].to_vec()).unwrap_err();
    }
    read_bundle([bytes, vec![0]].concat()).unwrap_err();
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0_usize..300) {
        prop_assert!(Manifest::decode(&bytes).is_err());
        prop_assert!(read_bundle(bytes.clone()).is_err());
        for name in sample_parts().into_keys() {
            let mut parts = sample_parts();
            let part = parts.get_mut(&name).unwrap();
            let end = (at + bytes.len()).min(part.len());
            part[at.min(end)..end].copy_from_slice(&bytes[..end - at.min(end)]);
            let _outcome: Result<(), ImageError> = read(parts);
        }
        let told = (u64::try_from(bytes.len() / PageRunEntry::SIZE).unwrap(), 0, 0);
        let _outcome: Result<(), ImageError> = read(forged(&bytes, &bytes, told));
    }

    #[test]
    fn no_stored_bytes_make_a_decompressor_panic(bytes in prop::collection::vec(any::<u8>(), 1..4000), zstd in any::<bool>()) {
        let magic: &[u8] = if zstd { &[0x28, 0xb5, 0x2f, 0xfd] } else { &[] };
        let stored = [magic, &bytes].concat();
        let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
        let _outcome: Result<(), ImageError> = forged_run(run(codec, &stored), &stored);
    }
}
