//! How pages become runs.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::collections::BTreeMap;

use hdcr_image::{
    Compression, ImageError, ImageReader, ImageWriter, MemoryImage, MemorySource, Options, Outline, PAGE_SIZE, PageRun,
    PartName, sample,
};
use hdcr_layout::{FrameHeader, Header};
use proptest::prelude::*;

const PAGE: usize = 4096;

fn write(compression: Compression, calls: impl FnOnce(&mut ImageWriter)) -> ImageReader {
    let image = MemoryImage::new();
    let mut writer = ImageWriter::new(Box::new(image.sink(sample::IMAGE)), Options { compression }).unwrap();
    calls(&mut writer);
    writer.finish(sample::facts()).unwrap();
    ImageReader::open(&image.source().unwrap()).unwrap()
}

fn shape(reader: &ImageReader, space: u64) -> Vec<(u64, u32, bool)> {
    let shape = |run: &PageRun| (run.address() / PAGE_SIZE, run.pages(), run.is_zero());
    reader.runs(space).iter().map(shape).collect()
}

#[test]
fn neighbours_join_up_to_256_kib() {
    let reader = write(Compression::Lz4, |writer| {
        // 600 pages in pieces of 7, then zeroes in two calls, then another space.
        for piece in (0..600_u64).step_by(7) {
            let pages = usize::try_from(7.min(600 - piece)).unwrap();
            writer.pages(1, piece * PAGE_SIZE, &vec![1; pages * PAGE]).unwrap();
        }
        writer.pages(1, 600 * PAGE_SIZE, &[0; 3 * PAGE]).unwrap();
        writer.pages(1, 603 * PAGE_SIZE, &[0; 2 * PAGE]).unwrap();
        writer.pages(2, 605 * PAGE_SIZE, &[0; PAGE]).unwrap();
        writer.pages(2, 0, &vec![2; 256 * PAGE]).unwrap();
    });
    let whole = |pages: u64| (0..pages).step_by(64).map(|at| (at, 64, false));
    let expected: Vec<_> = whole(576).chain([(576, 24, false), (600, 5, true)]).collect();
    assert_eq!(shape(&reader, 1), expected);
    assert_eq!(shape(&reader, 2), whole(256).chain([(605, 1, true)]).collect::<Vec<_>>());
    assert!(reader.runs(3).is_empty());
    let pages = reader.manifest().pages;
    assert_eq!((pages.runs, pages.stored_pages, pages.zero_pages), (16, 856, 6));
    assert!(pages.stored_size < 20_000);
}

/// Longer than what is held of a part at once, with a body of another kind of record across its border.
#[test]
fn a_long_index_is_read_whole() {
    const RUNS: u64 = 50_000;
    let image = MemoryImage::new();
    let mut writer = ImageWriter::new(Box::new(image.sink(sample::IMAGE)), Options::default()).unwrap();
    let body = vec![7; 900 << 10];
    writer.frame(hdcr_image::Tag(0x7f01), 1, 1, &body).unwrap();
    writer.frame(hdcr_image::Tag(0x7f01), 1, 2, &body).unwrap();
    for space in [1, 2] {
        for page in 0..RUNS {
            writer.pages(space, page * 2 * PAGE_SIZE, &[0; PAGE]).unwrap();
        }
    }
    writer.finish(sample::facts()).unwrap();
    let mut parts = image.parts().unwrap();
    assert!(parts[&PartName::Frames].len() > 5 << 20);
    let reader = ImageReader::open(&MemorySource::new(parts.clone())).unwrap();
    let expected: Vec<_> = (0..RUNS).map(|page| (page * 2, 1, true)).collect();
    assert_eq!(shape(&reader, 1), expected);
    assert_eq!(shape(&reader, 2), expected);
    assert!(reader.frames().all(|frame| frame.body == body) && reader.frames().count() == 2);
    let outline = Outline::of(&MemorySource::new(parts.clone())).unwrap();
    assert!(outline.frames().eq(reader.frames()) && outline.manifest() == reader.manifest());
    let frames = parts.get_mut(&PartName::Frames).unwrap();
    for at in (0..frames.len()).step_by(1_000_003) {
        frames[at] ^= 1;
        let found = ImageReader::open(&MemorySource::new(BTreeMap::from([
            (PartName::Manifest, image.parts().unwrap()[&PartName::Manifest].clone()),
            (PartName::Frames, frames.clone()),
        ])));
        assert!(found.is_err(), "byte {at}");
        frames[at] ^= 1;
    }
    // Another body with the right sum of its own: the digest alone tells, and what only glances does not look at that.
    let (start, len) = (Header::SIZE, FrameHeader::SIZE + body.len());
    frames[start + len - 1] ^= 1;
    let frame = &frames[start..start + len];
    let sum = xxhash_rust::xxh3::xxh3_64(&[&frame[..FrameHeader::CHECKED], &frame[FrameHeader::SIZE..]].concat());
    frames[start + FrameHeader::CHECKED..start + FrameHeader::SIZE].copy_from_slice(&sum.to_le_bytes());
    let error = ImageReader::open(&MemorySource::new(parts.clone())).unwrap_err();
    assert!(error.to_string().contains("digest"), "{error}");
    assert_eq!(Outline::of(&MemorySource::new(parts)).unwrap().frames().count(), 2);
}

#[test]
fn zero_pages_are_not_stored() {
    let reader = write(Compression::None, |writer| {
        writer.pages(1, 0, &vec![0; 64 * PAGE]).unwrap();
    });
    assert!(reader.manifest().segments.is_empty());
    assert_eq!(shape(&reader, 1), [(0, 64, true)]);
}

#[test]
fn what_is_forgotten_does_not_come_back() {
    let reader = write(Compression::Lz4, |writer| {
        writer.pages(1, 0, &vec![3; 10 * PAGE]).unwrap();
        writer.forget(1, 2 * PAGE_SIZE..5 * PAGE_SIZE).unwrap();
        writer.pages(1, 8 * PAGE_SIZE, &[0; PAGE]).unwrap();
    });
    assert_eq!(shape(&reader, 1), [(0, 2, false), (5, 3, false), (8, 1, true), (9, 1, false)]);
    let mut bytes = Vec::new();
    for run in reader.runs(1).iter().filter(|run| !run.is_zero()) {
        reader.read_run(run, &mut bytes).unwrap();
        assert_eq!(bytes, vec![3; usize::try_from(run.size()).unwrap()]);
    }
}

#[test]
fn pieces_of_pages_are_refused() {
    write(Compression::Lz4, |writer| {
        assert!(matches!(writer.pages(1, 1, &[0; PAGE]), Err(ImageError::NotPages { .. })));
        assert!(matches!(writer.pages(1, 0, &[0; PAGE + 1]), Err(ImageError::NotPages { .. })));
        assert!(matches!(writer.pages(1, u64::MAX - 4095, &[0; PAGE]), Err(ImageError::NotPages { .. })));
        assert!(writer.forget(1, 1..PAGE_SIZE).is_err());
        writer.pages(1, 0, &[]).unwrap();
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against plain memory: whatever is written in whatever order, the last bytes of each page come back.
    #[test]
    fn memory_comes_back(
        calls in prop::collection::vec((0_u64..600, 1_usize..400, 0_u8..4), 1..12),
        compression in prop::sample::select(vec![Compression::None, Compression::Lz4]),
    ) {
        let mut memory: Vec<Option<u8>> = vec![None; 1000];
        let reader = write(compression, |writer| {
            for (first, count, fill) in &calls {
                let from = usize::try_from(*first).unwrap();
                let mut bytes = vec![*fill; count * PAGE];
                // Every third page is zero.
                bytes.chunks_mut(PAGE).step_by(3).for_each(|page| page.fill(0));
                writer.pages(1, first * PAGE_SIZE, &bytes).unwrap();
                for (page, byte) in memory[from..].iter_mut().zip(bytes.iter().step_by(PAGE)) {
                    *page = Some(*byte);
                }
            }
        });
        let mut found = vec![None; 1000];
        let mut bytes = Vec::new();
        for run in reader.runs(1) {
            reader.read_run(run, &mut bytes).unwrap();
            if run.is_zero() {
                bytes.resize(usize::try_from(run.size()).unwrap(), 0);
            }
            let from = usize::try_from(run.address() / PAGE_SIZE).unwrap();
            for (page, content) in found[from..].iter_mut().zip(bytes.chunks(PAGE)) {
                prop_assert!(content.iter().all(|byte| *byte == content[0]));
                prop_assert_eq!(page.replace(content[0]), None);
            }
        }
        prop_assert_eq!(found, memory);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Groups hold every stored page once, and give what single runs give.
    #[test]
    fn groups_are_the_runs(steps in prop::collection::vec((0_u64..900, 1_usize..300, 0_u8..4), 1..20), plain in any::<bool>()) {
        let compression = if plain { Compression::None } else { Compression::Lz4 };
        let reader = write(compression, |writer| {
            for (number, (first, pages, kind)) in (1_u8..).zip(&steps) {
                let mut bytes = vec![if *kind == 0 { 0 } else { number }; pages * PAGE];
                for (word, place) in (0_u32..).zip(bytes.chunks_exact_mut(64).take(64)) {
                    if *kind == 3 {
                        place.get_mut(..4).unwrap().copy_from_slice(&word.wrapping_mul(2_654_435_761).to_le_bytes());
                    }
                }
                writer.pages(1, first * PAGE_SIZE, &bytes).unwrap();
            }
        });
        let mut buffers = hdcr_image::GroupBuffers::default();
        let mut found = Vec::new();
        for group in reader.groups(1) {
            let pages = reader.read_group(1, group, &mut buffers).unwrap();
            found.extend(pages.into_iter().map(|(at, bytes)| (at, bytes.to_vec())));
        }
        let mut expected = Vec::new();
        for run in reader.runs(1).iter().filter(|run| !run.is_zero()) {
            let mut bytes = Vec::new();
            reader.read_run(run, &mut bytes).unwrap();
            expected.push((run.address(), bytes));
        }
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn what_is_alike_is_stored_once_as_it_is_at_the_end() {
    let reader = write(Compression::None, |writer| {
        writer.pages(1, 0, &vec![1; 10 * PAGE]).unwrap();
        writer.pages(2, 0, &vec![9; 4 * PAGE]).unwrap();
        writer.alike(2, 1, 2 * PAGE_SIZE..8 * PAGE_SIZE).unwrap();
        writer.alike(3, 2, 0..4 * PAGE_SIZE).unwrap();
        writer.pages(1, 3 * PAGE_SIZE, &vec![2; PAGE]).unwrap();
        writer.pages(1, 5 * PAGE_SIZE, &vec![0; PAGE]).unwrap();
    });
    let bytes = |space| {
        let mut all = Vec::new();
        for run in reader.runs(space) {
            let mut bytes = Vec::new();
            reader.read_run(run, &mut bytes).unwrap();
            all.extend(
                (0..u64::from(run.pages()))
                    .zip(bytes.chunks(PAGE).map(|page| page.first().copied()).chain(std::iter::repeat(Some(0))))
                    .map(|(page, byte)| (run.address() / PAGE_SIZE + page, byte.unwrap())),
            );
        }
        all
    };
    assert_eq!(bytes(2), [(0, 9), (1, 9), (2, 1), (3, 2), (4, 1), (5, 0), (6, 1), (7, 1)]);
    assert_eq!(bytes(3), [(0, 9), (1, 9), (2, 1), (3, 2)]);
    assert_eq!(reader.manifest().pages.stored_size, 15 * PAGE_SIZE);
}

/// Every other page was replaced: what is left of a run is unpacked once, not for each page.
#[test]
fn pieces_of_a_run_are_unpacked_together() {
    let reader = write(Compression::Lz4, |writer| {
        writer.pages(1, 0, &vec![1; 256 * PAGE]).unwrap();
        for at in (0..256).step_by(2) {
            writer.pages(1, at * PAGE_SIZE, &[2; PAGE]).unwrap();
        }
    });
    assert_eq!(reader.runs(1).len(), 256);
    assert_eq!(reader.groups(1).first(), Some(&(0..256)));
    let mut buffers = hdcr_image::GroupBuffers::default();
    let pages = reader.read_group(1, 0..256, &mut buffers).unwrap();
    for (at, (address, bytes)) in (0_u64..).zip(&pages) {
        assert_eq!((*address, *bytes), (at * PAGE_SIZE, [if at % 2 == 0 { 2 } else { 1 }; PAGE].as_slice()));
    }
    assert_eq!(pages.len(), 256);
}

/// However many threads compress, and whatever is replaced and forgotten meanwhile, the bytes are the same.
#[test]
fn threads_change_nothing() {
    let parts = |threads: usize, in_chain: bool| {
        let image = MemoryImage::new();
        let sink = Box::new(image.sink(sample::IMAGE));
        let writer = if in_chain { ImageWriter::first } else { ImageWriter::new };
        let mut writer = writer(sink, Options::default()).unwrap().with_threads(threads);
        for round in 0..40_u8 {
            let from = u64::from(round) * 37 % 100 * PAGE_SIZE;
            let bytes: Vec<u8> = (0..60 * PAGE)
                .map(|at| if (at / PAGE).is_multiple_of(7) { 0 } else { round ^ at.to_le_bytes()[1] })
                .collect();
            writer.pages(1, from, &bytes).unwrap();
            if round % 9 == 8 {
                writer.forget(1, from..from + 5 * PAGE_SIZE).unwrap();
            }
        }
        writer.alike(2, 1, 0..50 * PAGE_SIZE).unwrap();
        writer.finish(sample::facts()).unwrap();
        image.parts().unwrap()
    };
    for in_chain in [false, true] {
        let alone = parts(1, in_chain);
        assert!(parts(2, in_chain) == alone && parts(5, in_chain) == alone);
    }
}
