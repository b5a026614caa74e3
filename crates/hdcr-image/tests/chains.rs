//! Images in a chain: what is shared is checked like all the rest, and nothing of it is trusted.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use hdcr_image::{
    Chain, Compression, ErrorClass, ImageError, ImageId, ImageReader, ImageWriter, LogFacts, Manifest, MemoryImage,
    MemorySink, MemorySource, Options, PAGE_SIZE, PartName, ReadPart, Sink, SnapshotId, StoreError, WritePart, sample,
};
use hdcr_layout::{Codec, Header, Layout, LogRecord, PageRunEntry, PartKind};
use proptest::prelude::*;

type Parts = BTreeMap<PartName, Vec<u8>>;
type Pages = BTreeMap<(u64, u64), Vec<u8>>;

const MIDDLE: ImageId = ImageId([8; 16]);
const LATER: ImageId = ImageId([9; 16]);

/// The page that the increments write.
fn page(changed: u8) -> Vec<u8> {
    let mut page: Vec<u8> = (0..4096_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    page[100] ^= changed;
    page
}

/// The parts of an image and of the second increment on it.
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
    let mut writer = ImageWriter::onto(Box::new(image.sink(MIDDLE)), Options::default(), chain, &[1]).unwrap();
    writer.pages(1, 0x40_1000, &page(0)).unwrap();
    let chain = writer.finish(sample::facts()).unwrap().chain.unwrap();
    let mut writer = ImageWriter::onto(Box::new(image.sink(LATER)), Options::default(), chain, &[1]).unwrap();
    writer.frame(sample::UNKNOWN_TAG, 3, 9, b"a record of the future").unwrap();
    writer.pages(1, 0x40_1000, &page(1)).unwrap();
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
    expected.insert((1, 0x40_1000), page(1));
    assert_eq!(read(&after).unwrap(), expected);
    let manifest = Manifest::decode(&after[&PartName::Manifest]).unwrap();
    assert_eq!((manifest.segments[0].image, manifest.log.unwrap().image), (sample::IMAGE, sample::IMAGE));
    assert_eq!(manifest.facts.base.as_ref().unwrap().image, MIDDLE);
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

type Change = fn(&mut PageRunEntry, &mut Vec<u8>, &mut PageRunEntry);

/// A page of which the first line is of other bytes than in the copy, as `change` makes it.
fn changed_lines(
    change: impl FnOnce(&mut PageRunEntry, &mut Vec<u8>, &mut PageRunEntry),
) -> Result<Vec<u8>, ImageError> {
    let whole = vec![5; 2 * 4096];
    let sum = xxhash_rust::xxh3::xxh3_64;
    let plain = PageRunEntry { generation: 1, codec: Codec::Plain, stored: 2, ..zeroes(0, 1) };
    let mut base = PageRunEntry { offset: 64, length: 8192, xxh3: sum(&whole), skip: 1, ..plain };
    let mut lines = [1_u64.to_le_bytes().as_slice(), &[6; 64]].concat();
    let mut run = PageRunEntry { address: 0x1000, offset: 64 + 8192, codec: Codec::Delta, stored: 1, ..plain };
    change(&mut base, &mut lines, &mut run);
    let mut stored = vec![0; 52];
    base.encode(&mut stored).unwrap();
    stored.extend_from_slice(&lines);
    (run.length, run.xxh3) = (u32::try_from(stored.len()).unwrap(), sum(&stored));
    let segment = [whole, stored].concat();
    let mut parts = forged(&encoded(&[LogRecord::Put { space: 1, run }]), (1, 1, 0), |manifest| {
        manifest.segments[0].size = 64 + segment.len() as u64;
    });
    let header = parts[&PartName::Pages(0)][..Header::SIZE].to_vec();
    parts.insert(PartName::Pages(0), [header, segment].concat());
    read(&parts).map(|pages| pages[&(1, 0x1000)].clone())
}

#[test]
fn changed_lines_are_not_trusted() {
    let expected = [vec![6; 64], vec![5; 4096 - 64]].concat();
    assert_eq!(changed_lines(|_, _, _| ()).unwrap(), expected);
    let pack = |lines: &mut Vec<u8>, run: &mut PageRunEntry| {
        *lines = lz4_flex::block::compress(lines);
        run.codec = Codec::PackedDelta;
    };
    assert_eq!(changed_lines(|_, lines, run| pack(lines, run)).unwrap(), expected);
    let refused: [(&str, Change); 12] = [
        ("of zeroes", |base, _, _| *base = zeroes(0, 1)),
        ("of changed lines", |base, _, _| (base.codec, base.length) = (Codec::Delta, 4096)),
        ("of itself", |base, _, run| *base = PageRunEntry { address: 0, length: 124, ..*run }),
        ("at an address", |base, _, _| base.address = 0x1000),
        ("of more pages", |base, _, _| (base.pages, base.skip) = (2, 0)),
        ("of another use", |base, _, _| base.generation = 2),
        ("outside of the segment", |base, _, _| base.offset = 1 << 40),
        ("of another segment", |base, _, _| base.segment = 7),
        ("of other bytes", |base, _, _| base.xxh3 ^= 1),
        ("too few lines", |_, lines, _| lines.truncate(71)),
        ("too many lines", |_, lines, _| lines.push(0)),
        ("lines that are not packed", |_, _, run| run.codec = Codec::PackedDelta),
    ];
    for (what, change) in refused {
        assert_eq!(changed_lines(change).unwrap_err().class(), ErrorClass::Corrupt, "{what}");
    }
    // What unpacks to more than there can be.
    let long = changed_lines(|_, lines, run| {
        *lines = lz4_flex::block::compress(&vec![0; 1 << 18]);
        run.codec = Codec::PackedDelta;
    });
    assert_eq!(long.unwrap_err().class(), ErrorClass::Corrupt);
}

/// Of a page that comes again only what differs is stored, of one that is as it was nothing.
#[test]
fn an_increment_costs_its_changed_lines() {
    let image = MemoryImage::new();
    let options = Options { compression: Compression::None };
    let pages = |changed: &dyn Fn(u8) -> u8| -> Vec<u8> { (0..8).flat_map(|at| page(changed(at))).collect() };
    let next = |id: u8, chain: Option<Chain>, bytes: &[u8]| {
        let sink = Box::new(image.sink(ImageId([id; 16])));
        let mut writer = match chain {
            None => ImageWriter::first(sink, options).unwrap(),
            Some(chain) => ImageWriter::onto(sink, options, chain, &[1]).unwrap(),
        };
        writer.pages(1, 0, bytes).unwrap();
        let committed = writer.finish(sample::facts()).unwrap();
        let seen: Vec<u8> = read(&image.parts().unwrap()).unwrap().into_values().flatten().collect();
        assert!(seen == bytes, "image {id}");
        (committed.manifest.pages.added_size, committed.chain)
    };
    let (_, chain) = next(1, None, &pages(&|_| 0));
    let (whole, chain) = next(2, chain, &pages(&|at| at));
    let (some, chain) = next(3, chain, &pages(&|at| at + at % 2));
    let (equal, chain) = next(4, chain, &pages(&|at| at));
    let (again, chain) = next(5, chain, &pages(&|at| at));
    let mut half = pages(&|at| at);
    half.iter_mut().step_by(64).skip(64).take(64 + 33).for_each(|byte| *byte ^= 1);
    let (half, _) = next(6, chain, &half);
    // Pages 1, 3, 5 and 7 have one line each; page 1 is stored whole at the end, and so is page 2, of which more than half is.
    assert!(whole > 8 * 4096 && some < 4 * (52 + 72 + 64) + 4 * 64, "{whole} {some}");
    assert!(equal <= 8 * 64 && again == 0 && half < 2 * 4096 + 300 && half > 8000, "{equal} {again} {half}");
}

/// What comes several times, as in the rounds before a stop, is one record of the log.
#[test]
fn an_increment_logs_what_it_is_at_the_end() {
    let image = MemoryImage::new();
    let mut writer = ImageWriter::first(Box::new(image.sink(sample::IMAGE)), Options::default()).unwrap();
    writer.pages(1, 0, &vec![1; 16 * 4096]).unwrap();
    let committed = writer.finish(sample::facts()).unwrap();
    let before = committed.manifest.log.unwrap().size;
    let sink = Box::new(image.sink(LATER));
    let mut writer = ImageWriter::onto(sink, Options::default(), committed.chain.unwrap(), &[1]).unwrap();
    for round in 0..20 {
        writer.pages(1, 4 * PAGE_SIZE, &page(round)).unwrap();
        writer.pages(1, 9 * PAGE_SIZE, &page(round)).unwrap();
        writer.forget(1, 9 * PAGE_SIZE..12 * PAGE_SIZE).unwrap();
    }
    let log = writer.finish(sample::facts()).unwrap().manifest.log.unwrap();
    assert_eq!(log.size, before + 2 * 64);
    let pages = read(&image.parts().unwrap()).unwrap();
    assert!(pages.len() == 13 && pages[&(1, 4 * PAGE_SIZE)] == page(19));
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

/// A sink that counts how often a part of it is opened to be read.
#[derive(Debug)]
struct Counting(MemorySink, Arc<AtomicUsize>);

impl Sink for Counting {
    fn snapshot(&self) -> &SnapshotId {
        self.0.snapshot()
    }

    fn part(&mut self, name: PartName) -> Result<Box<dyn WritePart>, StoreError> {
        self.0.part(name)
    }

    fn share(&mut self, base: &SnapshotId, name: PartName) -> Result<(), StoreError> {
        self.0.share(base, name)
    }

    fn extend(&mut self, base: &SnapshotId, name: PartName, at: u64) -> Result<Box<dyn WritePart>, StoreError> {
        self.0.extend(base, name, at)
    }

    fn reader(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.reader(name)
    }

    fn persist(&mut self, manifest: &[u8]) -> Result<(), StoreError> {
        self.0.persist(manifest)
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        Box::new(self.0).commit()
    }

    fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Box::new(self.0).abort()
    }
}

/// What is left of a segment is read piece by piece, and the segment is opened once.
#[test]
fn a_segment_is_opened_once_to_be_written_anew() {
    let image = MemoryImage::new();
    let mut expected: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut write = |writer: &mut ImageWriter, at: u64, byte: u8| {
        writer.pages(1, at * PAGE_SIZE, &page(byte)).unwrap();
        expected.insert(at, page(byte));
    };
    let mut writer = ImageWriter::first(Box::new(image.sink(sample::IMAGE)), Options::default()).unwrap();
    (0..200).step_by(2).for_each(|at| write(&mut writer, at, 0));
    let mut chain = writer.finish(sample::facts()).unwrap().chain.unwrap();
    let mut opened = Vec::new();
    for round in 1..=4_u8 {
        let count = Arc::new(AtomicUsize::new(0));
        let sink = Counting(image.sink(ImageId([round; 16])), Arc::clone(&count));
        let writer = ImageWriter::onto(Box::new(sink), Options::default(), chain, &[1]).unwrap();
        let mut writer = writer.with_segments_of(128 << 10);
        // Pages of which a few lines change, each time others of them, and some that stay.
        (0..200).step_by(2).filter(|at| at % 10 > 2).for_each(|at| write(&mut writer, at, round));
        chain = writer.finish(sample::facts()).unwrap().chain.unwrap();
        opened.push(count.load(Ordering::Relaxed));
    }
    let pages = read(&image.parts().unwrap()).unwrap();
    assert!(pages.iter().all(|((_, at), page)| expected[&(at / PAGE_SIZE)] == *page) && pages.len() == expected.len());
    assert!(opened.iter().any(|count| *count > 0) && opened.iter().all(|count| *count <= 4), "{opened:?}");
}

/// Pages that were stored together and are all there go on as they are, and those of which some are gone are packed anew.
#[test]
fn what_is_whole_is_not_packed_again() {
    let image = MemoryImage::new();
    let packed = Options { compression: Compression::Zstd(1) };
    let mut writer = ImageWriter::first(Box::new(image.sink(sample::IMAGE)), packed).unwrap();
    // 64 runs of 16 pages.
    for at in 0..64 {
        writer.pages(1, at * 16 * PAGE_SIZE, &page(1).repeat(16)).unwrap();
    }
    let mut chain = writer.finish(sample::facts()).unwrap().chain.unwrap();
    let plain = Options { compression: Compression::None };
    for round in 1..=6_u8 {
        let sink = Box::new(image.sink(ImageId([round; 16])));
        let mut writer = ImageWriter::onto(sink, plain, chain, &[1]).unwrap().with_segments_of(64);
        writer.forget(1, 0..60 * 16 * PAGE_SIZE).unwrap();
        writer.forget(1, 61 * 16 * PAGE_SIZE..(61 * 16 + 1) * PAGE_SIZE).unwrap();
        writer.pages(1, 100 * 16 * PAGE_SIZE, &page(round)).unwrap();
        chain = writer.finish(sample::facts()).unwrap().chain.unwrap();
    }
    let manifest = Manifest::decode(&image.parts().unwrap()[&PartName::Manifest]).unwrap();
    assert!(manifest.segments.iter().all(|segment| segment.number > 0), "the first one is gone");
    let mut pages = read(&image.parts().unwrap()).unwrap();
    assert_eq!(pages.remove(&(1, 100 * 16 * PAGE_SIZE)), Some(page(6)));
    assert!(pages.len() == 63 && pages.values().all(|found| *found == page(1)));
    let reader = ImageReader::open(&image.source().unwrap()).unwrap();
    let codec = |at: u64| {
        let at = at * 16 * PAGE_SIZE + PAGE_SIZE;
        reader.runs(1).iter().find(|run| run.range().contains(&at)).unwrap().entry().codec
    };
    assert_eq!([60, 61, 62, 63].map(codec), [Codec::Zstd, Codec::Plain, Codec::Zstd, Codec::Zstd]);
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
