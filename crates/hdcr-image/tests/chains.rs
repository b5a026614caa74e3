//! Images in a chain: what is shared is checked like all the rest, and nothing of it is trusted.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hdcr_image::{
    Chain, ErrorClass, ImageError, ImageId, ImageReader, ImageWriter, LogFacts, Manifest, MemoryImage, MemorySource,
    Options, PAGE_SIZE, PartName, sample,
};
use hdcr_layout::{Codec, Header, LogRecord, PageRunEntry, PartKind};
use proptest::prelude::*;

type Parts = BTreeMap<PartName, Vec<u8>>;
type Pages = BTreeMap<(u64, u64), Vec<u8>>;

const LATER: ImageId = ImageId([9; 16]);

/// The parts of an image and of an increment on it.
fn two() -> (Parts, Parts) {
    static PARTS: LazyLock<(Parts, Parts)> = LazyLock::new(write_two);
    PARTS.clone()
}

fn write_two() -> (Parts, Parts) {
    let image = MemoryImage::new();
    let mut writer = ImageWriter::first(Box::new(image.sink(sample::IMAGE)), Options::default()).unwrap();
    for (space, address, bytes) in sample::pages() {
        writer.pages(space, address, &bytes).unwrap();
    }
    let chain = writer.finish(sample::facts()).unwrap().chain.unwrap();
    let before = image.parts().unwrap();
    let mut writer = ImageWriter::onto(Box::new(image.sink(LATER)), Options::default(), chain, &[1]).unwrap();
    writer.frame(sample::UNKNOWN_TAG, 3, 9, b"a record of the future").unwrap();
    writer.pages(1, 0x40_1000, &[7; 4096]).unwrap();
    writer.forget(1, 0x40_0000..0x40_1000).unwrap();
    writer.finish(sample::facts()).unwrap();
    (before, image.parts().unwrap())
}

fn read(parts: &Parts) -> Result<Pages, ImageError> {
    let source = MemorySource::new(parts.clone());
    let reader = ImageReader::open(&source)?;
    reader.verify(&mut |_| ())?;
    let mut pages = Pages::new();
    let mut bytes = Vec::new();
    for space in reader.spaces() {
        for run in reader.runs(space) {
            reader.read_run(run, &mut bytes)?;
            if run.is_zero() {
                bytes.resize(usize::try_from(run.size().min(1 << 20)).unwrap(), 0);
            }
            pages.extend(
                bytes.chunks(4096).zip(run.range().step_by(4096)).map(|(page, at)| ((space, at), page.to_vec())),
            );
        }
    }
    Chain::open(&source)?;
    Ok(pages)
}

#[test]
fn an_increment_holds_what_is_kept_and_what_is_new() {
    let (before, after) = two();
    let mut expected = read(&before).unwrap();
    expected.retain(|(space, at), _| *space == 1 && *at != 0x40_0000);
    expected.insert((1, 0x40_1000), vec![7; 4096]);
    assert_eq!(read(&after).unwrap(), expected);
    let manifest = Manifest::decode(&after[&PartName::Manifest]).unwrap();
    assert_eq!((manifest.segments[0].image, manifest.log.unwrap().image), (sample::IMAGE, sample::IMAGE));
    assert_eq!(manifest.facts.base.as_ref().unwrap().image, sample::IMAGE);
    assert!(manifest.pages.added_size < 400 && manifest.version() == 2);
    assert!(after[&PartName::Pages(0)].starts_with(&before[&PartName::Pages(0)]));
    assert!(after[&PartName::Index(0)].starts_with(&before[&PartName::Index(0)]));
}

#[test]
fn each_flipped_bit_and_each_cut_is_found() {
    let (_, parts) = two();
    let whole = read(&parts).unwrap();
    for (name, bytes) in &parts {
        for at in (0..bytes.len()).step_by(if matches!(name, PartName::Pages(_)) { 7 } else { 1 }) {
            let mut changed = parts.clone();
            changed.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
            match read(&changed) {
                Err(error) => assert!(matches!(error.class(), ErrorClass::Corrupt | ErrorClass::Refused), "{error}"),
                Ok(seen) => {
                    // Bytes that nothing names any more.
                    assert!(seen == whole && matches!(name, PartName::Pages(_)), "{name} {at}");
                }
            }
            changed.get_mut(name).unwrap().truncate(at);
            assert!(read(&changed).is_err(), "{name} cut at {at}");
        }
        let mut longer = parts.clone();
        longer.get_mut(name).unwrap().push(0);
        let shared = matches!(name, PartName::Pages(_) | PartName::Index(_));
        assert_eq!(read(&longer).is_ok(), shared, "{name}: what lies behind means nothing");
    }
}

#[test]
fn parts_of_another_image_or_use_are_refused() {
    let (before, after) = two();
    for name in [PartName::Frames, PartName::Manifest] {
        let mut mixed = after.clone();
        mixed.insert(name, before[&name].clone());
        assert!(read(&mixed).is_err(), "{name}");
    }
    for name in [PartName::Pages(0), PartName::Index(0)] {
        let mut changed = after.clone();
        changed.get_mut(&name).unwrap()[16] ^= 1;
        assert!(matches!(read(&changed), Err(ImageError::Foreign { .. })), "{name}");
        let mut changed = after.clone();
        changed.get_mut(&name).unwrap()[32] ^= 2;
        assert!(matches!(read(&changed), Err(ImageError::Stale { .. })), "{name}");
        let mut changed = after.clone();
        changed.insert(name, before[&name].clone());
        assert!(read(&changed).is_err(), "{name}");
    }
}

/// The increment with this log, whose digest is right, and told as `told` tells.
fn forged(log: &[u8], told: (u64, u64, u64), change: impl FnOnce(&mut Manifest)) -> Parts {
    let (_, mut parts) = two();
    let mut manifest = Manifest::decode(&parts[&PartName::Manifest]).unwrap();
    let bytes = [&parts[&PartName::Index(0)][..Header::SIZE], log].concat();
    let facts = manifest.log.unwrap();
    manifest.log = Some(LogFacts { size: bytes.len() as u64, ..facts });
    manifest.pages.digest = blake3::hash(&bytes).into();
    (manifest.pages.runs, manifest.pages.stored_pages, manifest.pages.zero_pages) = told;
    change(&mut manifest);
    parts.insert(PartName::Manifest, manifest.encode().unwrap());
    parts.insert(PartName::Index(0), bytes);
    parts
}

fn zeroes(address: u64, pages: u32) -> PageRunEntry {
    PageRunEntry {
        address,
        offset: 0,
        generation: 0,
        xxh3: 0,
        pages,
        segment: 0,
        length: 0,
        codec: Codec::Zero,
        stored: 0,
        skip: 0,
        reserved: 0,
    }
}

fn encoded(records: &[LogRecord]) -> Vec<u8> {
    let mut bytes = vec![0; records.len() * LogRecord::SIZE];
    for (record, block) in records.iter().zip(bytes.chunks_mut(LogRecord::SIZE)) {
        record.encode(block).unwrap();
    }
    bytes
}

#[test]
fn a_log_with_a_right_digest_is_not_trusted() {
    let put = |run| LogRecord::Put { space: 1, run };
    let good = encoded(&[put(zeroes(0x1000, 3)), LogRecord::Cut { space: 1, start: 0x2000, end: 0x3000 }]);
    assert_eq!(read(&forged(&good, (2, 0, 2), |_| ())).unwrap().len(), 2);
    read(&forged(&good, (1, 0, 3), |_| ())).unwrap_err();
    read(&forged(&good[..100], (2, 0, 2), |_| ())).unwrap_err();
    read(&forged(&good, (2, 0, 2), |manifest| manifest.log = None)).unwrap_err();
    for size in [0, 63, 65, u64::MAX, u64::MAX - 63] {
        let resized = |manifest: &mut Manifest| {
            let facts = manifest.log.unwrap();
            manifest.log = Some(LogFacts { size, ..facts });
        };
        read(&forged(&good, (2, 0, 2), resized)).unwrap_err();
    }
    // A whole piece of memory in one record, and nothing of it anywhere.
    read(&forged(&encoded(&[put(zeroes(0, u32::MAX))]), (1, 0, u64::from(u32::MAX)), |_| ())).unwrap();
    let stored =
        PageRunEntry { generation: 1, offset: 64, length: 4096, codec: Codec::Plain, stored: 1, ..zeroes(0, 1) };
    let refused = |change: fn(&mut PageRunEntry)| {
        let mut run = stored;
        change(&mut run);
        read(&forged(&encoded(&[put(run)]), (1, 1, 0), |_| ())).unwrap_err();
        // The same is no harm once something has taken its place.
        let all = [put(run), put(zeroes(0, 1))];
        assert!(run.address != 0 || read(&forged(&encoded(&all), (1, 0, 1), |_| ())).is_ok());
    };
    refused(|run| run.segment = 1);
    refused(|run| run.generation = 2);
    refused(|run| run.offset = 0);
    refused(|run| run.offset = 1 << 40);
    refused(|run| run.xxh3 = 1);
}

#[test]
fn the_owner_of_a_segment_is_checked() {
    for owner in [LATER, ImageId([0; 16])] {
        let segment = |manifest: &mut Manifest| manifest.segments[0].image = owner;
        let error = read(&forged(&[], (0, 0, 0), segment)).unwrap_err();
        assert!(matches!(error, ImageError::Foreign { .. }), "{error}");
    }
}

#[test]
fn a_header_of_the_wrong_kind_is_refused() {
    let (_, mut parts) = two();
    let (version, kind) = (2, PartKind::Pages);
    let header = Header { version, kind, image: sample::IMAGE.0, number: 0, generation: 1 };
    let mut block = [0; Header::SIZE];
    header.encode(&mut block).unwrap();
    let mut log = parts[&PartName::Index(0)].clone();
    log[..Header::SIZE].copy_from_slice(&block);
    parts.insert(PartName::Index(0), log);
    assert_eq!(read(&parts).unwrap_err().class(), ErrorClass::Corrupt);
}

/// A log that says the same again and again is begun anew, and an increment costs what it adds.
#[test]
fn a_long_log_is_begun_anew() {
    let image = MemoryImage::new();
    let mut writer = ImageWriter::first(Box::new(image.sink(sample::IMAGE)), Options::default()).unwrap();
    writer.pages(1, 0, &vec![1; 1 << 20]).unwrap();
    let mut chain = writer.finish(sample::facts()).unwrap().chain.unwrap();
    let (mut longest, mut number) = (0, 0);
    for round in 1..=60_u8 {
        let mut writer =
            ImageWriter::onto(Box::new(image.sink(ImageId([round; 16]))), Options::default(), chain, &[1]).unwrap();
        for at in (0..255).step_by(2) {
            writer.pages(1, at * PAGE_SIZE, &[round; 4096]).unwrap();
        }
        let committed = writer.finish(sample::facts()).unwrap();
        chain = committed.chain.unwrap();
        let log = committed.manifest.log.unwrap();
        (longest, number) = (log.size.max(longest), log.number);
        if round % 15 == 0 {
            assert_eq!(read(&image.parts().unwrap()).unwrap()[&(1, 0)], vec![round; 4096]);
        }
    }
    assert!(longest < 4500 * 64 && number > 0, "{longest} {number}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_log_makes_a_reader_panic(
        raw in prop::collection::vec(any::<u8>(), 0..640),
        records in prop::collection::vec((0..3_u64, 0..12_u64, 1..6_u32, any::<bool>(), 0..200_u64), 0..20),
    ) {
        let told = (raw.len() as u64 / 64, 0, 0);
        let _outcome: Result<Pages, ImageError> = read(&forged(&raw, told, |_| ()));
        let record = |(space, page, pages, cut, offset): (u64, u64, u32, bool, u64)| {
            let address = page * PAGE_SIZE;
            if cut {
                return LogRecord::Cut { space, start: address, end: address + u64::from(pages) * PAGE_SIZE };
            }
            let packed = PageRunEntry {
                generation: 1,
                offset,
                length: 30,
                codec: Codec::Lz4,
                stored: 6,
                ..zeroes(address, pages)
            };
            LogRecord::Put { space, run: if offset % 3 == 0 { zeroes(address, pages) } else { packed } }
        };
        let records: Vec<LogRecord> = records.into_iter().map(record).collect();
        let _outcome: Result<Pages, ImageError> = read(&forged(&encoded(&records), told, |_| ()));
    }
}
