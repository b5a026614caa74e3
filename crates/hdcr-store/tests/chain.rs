//! Chains of images in a store, against plain memory: whatever was written, kept, given up or removed, each image that is
//! left reads as the memory was.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

mod model;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hdcr_image::{Chain, Compression, ImageError, ImageWriter, JobName, Options, PAGE_SIZE, Sink, sample};
use hdcr_store::{DirectoryStore, Durability, Faults, FileSink, Selector, open_path};
use model::{End, Round, Step, World, check, contents};
use proptest::prelude::*;

fn step() -> impl Strategy<Value = Step> {
    let pages = (0..3_u64, 0..40_u64, 1..12_u64, 0..8_u8);
    let ranges = (0..3_u64, 0..3_u64, 0..40_u64, 0..20_u64);
    prop_oneof![
        6 => pages.prop_map(|(space, first, count, kind)| Step::Pages { space, first, count, kind }),
        1 => ranges.clone().prop_map(|(space, _, first, count)| Step::Forget { space, first, count }),
        1 => ranges.prop_map(|(space, from, first, count)| Step::Alike { space, from, first, count }),
        1 => (0..3_u64, 0..3_u64).prop_map(|(space, from)| Step::Bring { space, from }),
    ]
}

fn round() -> impl Strategy<Value = Round> {
    let end = prop_oneof![
        6 => Just(End::Commit),
        1 => Just(End::Reopen),
        1 => Just(End::GiveUp),
        1 => Just(End::GiveUpLate),
    ];
    let keep = prop_oneof![3 => Just(0b111_u8), 1 => 0..8_u8];
    (prop::collection::vec(step(), 0..8), keep, end, any::<Option<u8>>(), prop::option::weighted(0.15, any::<u8>()))
        .prop_map(|(steps, keep, end, remove, onto)| Round { steps, keep, end, remove, onto })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn each_image_that_is_left_is_the_memory_of_its_time(rounds in prop::collection::vec(round(), 1..24)) {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::new(DirectoryStore::open(directory.path(), Durability::None));
        for round in &rounds {
            world.play(round);
        }
        world.check_all();
    }
}

fn job() -> JobName {
    JobName::new("sim").unwrap()
}

fn page(byte: u8) -> Vec<u8> {
    vec![byte; 4096]
}

fn first(store: &DirectoryStore) -> Chain {
    let mut writer = ImageWriter::first(Box::new(store.begin(&job()).unwrap()), Options::default()).unwrap();
    for at in 0..8_u8 {
        writer.pages(1, u64::from(at) * PAGE_SIZE, &page(at)).unwrap();
    }
    writer.finish(sample::facts()).unwrap().chain.unwrap()
}

fn next(store: &DirectoryStore, chain: Chain, byte: u8) -> Result<Chain, String> {
    next_of(store, chain, byte, 64 << 20)
}

/// Segments are closed when they have so many bytes.
fn next_of(store: &DirectoryStore, chain: Chain, byte: u8, segments: u64) -> Result<Chain, String> {
    let text = |error: ImageError| error.to_string();
    let sink = store.begin(&job()).map_err(|error| error.to_string())?;
    let mut writer = ImageWriter::onto(Box::new(sink), Options::default(), chain, &[1]).map_err(text)?;
    writer = writer.with_segments_of(segments);
    writer.pages(1, 3 * PAGE_SIZE, &page(byte)).map_err(text)?;
    Ok(writer.finish(sample::facts()).map_err(text)?.chain.unwrap())
}

fn reopened(store: &DirectoryStore, sequence: u64) -> Chain {
    let path = store.find(&Selector::Snapshot(job(), sequence)).unwrap();
    Chain::open(open_path(&path).unwrap().as_ref()).unwrap()
}

fn inode(store: &DirectoryStore, sequence: u64, part: &str) -> (u64, u64) {
    let path = store.find(&Selector::Snapshot(job(), sequence)).unwrap();
    let found = fs::symlink_metadata(path.join(part)).unwrap();
    (found.ino(), found.nlink())
}

/// The byte of page 3, and that the others are what they were.
fn seen(path: &Path) -> u8 {
    let pages = contents(path);
    assert_eq!(pages.len(), 8);
    assert!((0..8_u8).filter(|at| *at != 3).all(|at| pages[&(1, u64::from(at))] == page(at)));
    pages[&(1, 3)][0]
}

#[test]
fn an_increment_costs_what_it_adds_and_is_whole_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::Fsync);
    let chain = first(&store);
    next(&store, chain, 100).unwrap();
    assert_eq!(inode(&store, 1, "pages-0"), inode(&store, 2, "pages-0"));
    assert_eq!(inode(&store, 1, "index-0").1, 2);
    let listed = store.list().unwrap();
    let manifests: Vec<_> = listed.iter().map(|entry| entry.manifest.as_ref().unwrap()).collect();
    assert_eq!(manifests[1].facts.base.as_ref(), Some(&manifests[0].id));
    assert!(manifests[1].added_size() < 512, "{}", manifests[1].added_size());
    assert!(manifests[1].total_size() > manifests[0].total_size());
    store.remove(&job(), 1).unwrap();
    assert_eq!(inode(&store, 2, "pages-0").1, 1);
    assert_eq!(seen(&listed[1].path), 100);
}

/// Two that go on from one image, as after a roll-back: neither writes over what the other one has.
#[test]
fn chains_that_part_do_not_touch_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    let chain = first(&store);
    next(&store, chain, 100).unwrap();
    next(&store, reopened(&store, 1), 101).unwrap();
    next(&store, reopened(&store, 2), 102).unwrap();
    next(&store, reopened(&store, 1), 103).unwrap();
    next(&store, reopened(&store, 3), 104).unwrap();
    let bytes: Vec<u8> = store.list().unwrap().iter().map(|entry| seen(&entry.path)).collect();
    assert_eq!(bytes, [3, 100, 101, 102, 103, 104]);
}

/// Two at the same time: the second one begins parts of its own.
#[test]
fn one_writer_at_a_time_goes_on_with_a_part() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    let chain = first(&store);
    let sink = store.begin(&job()).unwrap();
    let mut slow = ImageWriter::onto(Box::new(sink), Options::default(), chain, &[1]).unwrap();
    next(&store, reopened(&store, 1), 101).unwrap();
    slow.pages(1, 3 * PAGE_SIZE, &page(100)).unwrap();
    slow.finish(sample::facts()).unwrap();
    assert_ne!(inode(&store, 3, "index-1").0, inode(&store, 1, "index-0").0);
    next(&store, reopened(&store, 3), 102).unwrap();
    let bytes: Vec<u8> = store.list().unwrap().iter().map(|entry| seen(&entry.path)).collect();
    assert_eq!(bytes, [3, 100, 101, 102]);
}

#[test]
fn what_is_not_in_this_job_cannot_be_shared() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path().join("a"), Durability::None);
    let chain = first(&store);
    assert!(store.begin(&job()).unwrap().can_share(chain.snapshot()));
    let other = JobName::new("other").unwrap();
    assert!(!store.begin(&other).unwrap().can_share(chain.snapshot()));
    let elsewhere = DirectoryStore::open(directory.path().join("b"), Durability::None);
    first(&elsewhere);
    assert!(!elsewhere.begin(&job()).unwrap().can_share(chain.snapshot()), "another image of that name");
    let file = directory.path().join("image");
    let sink = FileSink::create(&file, Durability::None).unwrap();
    assert!(!sink.can_share(chain.snapshot()));
    ImageWriter::onto(Box::new(sink), Options::default(), chain, &[1]).unwrap_err();
    let sink = FileSink::create(&file, Durability::None).unwrap();
    ImageWriter::first(Box::new(sink), Options::default()).unwrap_err();
    store.remove(&job(), 1).unwrap();
    assert!(!store.begin(&job()).unwrap().can_share(reopened(&elsewhere, 1).snapshot()));
    assert!(!file.exists());
}

#[test]
fn an_image_by_itself_is_no_chain() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    sample::write(Box::new(store.begin(&job()).unwrap()), Options::default()).unwrap();
    let path = store.find(&Selector::Newest(job())).unwrap();
    assert!(matches!(Chain::open(open_path(&path).unwrap().as_ref()), Err(ImageError::Alone { .. })));
}

/// A store that fails, or dies, at each call of an increment: the images before are as they were, and the next increment
/// goes on from what is there.
#[test]
fn whatever_fails_in_an_increment_the_images_are_whole() {
    for plan in [Faults::fail_at, Faults::die_at] {
        let mut at = 0;
        loop {
            let directory = tempfile::tempdir().unwrap();
            let sound = DirectoryStore::open(directory.path(), Durability::None);
            next(&sound, first(&sound), 100).unwrap();
            // Something behind the end, which is written over.
            drop(half_done(&sound, reopened(&sound, 2)));
            // And something in the pool.
            drop(first(&sound));
            sound.retire(&job(), 4).unwrap();
            let faults = plan(at);
            let failing = DirectoryStore::with_faults(directory.path(), Durability::Fsync, faults.clone());
            let written = next_of(&failing, reopened(&sound, 2), 101, 1);
            if faults.calls_made() <= at {
                written.unwrap();
                let newest = sound.find(&Selector::Newest(job())).unwrap();
                let sizes = ["pages-0", "pages-1"].map(|part| fs::metadata(newest.join(part)).unwrap().len());
                assert!(sizes.iter().all(|size| *size > 100), "both are written over: {sizes:?}");
                break;
            }
            let listed = sound.list().unwrap();
            let bytes: Vec<u8> = listed.iter().map(|entry| seen(&entry.path)).collect();
            assert!(bytes == [3, 100] || bytes == [3, 100, 101], "call {at}: {bytes:?}");
            next(&sound, reopened(&sound, listed.last().unwrap().sequence), 102).unwrap();
            next(&sound, reopened(&sound, 2), 103).unwrap();
            let bytes: Vec<u8> = sound.list().unwrap().iter().map(|entry| seen(&entry.path)).collect();
            assert!(bytes.ends_with(&[102, 103]) && bytes.starts_with(&[3, 100]), "call {at}: {bytes:?}");
            at += 1;
        }
        assert!(at > 16, "only {at} calls were seen");
    }
}

fn half_done(store: &DirectoryStore, chain: Chain) -> ImageWriter {
    let mut writer =
        ImageWriter::onto(Box::new(store.begin(&job()).unwrap()), Options::default(), chain, &[1]).unwrap();
    let mut noise = Vec::new();
    for word in 0..(4_u64 << 20) / 8 {
        noise.extend_from_slice(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    writer.pages(1, 1 << 30, &noise).unwrap();
    writer
}

#[test]
fn what_a_writer_left_behind_is_cut_off_or_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    let chain = first(&store);
    let id = chain.snapshot().clone();
    let segment = store.find(&Selector::Newest(job())).unwrap().join("pages-0");
    let before = fs::metadata(&segment).unwrap().len();
    drop(half_done(&store, chain));
    // On a full disk nothing of it may stay.
    assert_eq!(fs::metadata(&segment).unwrap().len(), before);
    // A writer that is killed leaves what it has written.
    let mut killed = fs::OpenOptions::new().append(true).open(&segment).unwrap();
    killed.write_all(&vec![7; 1 << 20]).unwrap();
    let longer = fs::metadata(&segment).unwrap().len();
    let chain = reopened(&store, 1);
    assert_eq!(chain.snapshot(), &id);
    let chain = next(&store, chain, 100).unwrap();
    drop(half_done(&store, chain));
    assert!(fs::metadata(&segment).unwrap().len() < longer + 4096);
    check(&store);
}

/// Bytes of all files of the job, each counted once however many names it has.
fn bytes_on_disk(store: &DirectoryStore) -> u64 {
    let mut files = BTreeMap::new();
    for number in store.sequences(&job()).unwrap() {
        let path = store.find(&Selector::Snapshot(job(), number)).unwrap();
        for name in fs::read_dir(path).unwrap() {
            let found = name.unwrap().metadata().unwrap();
            files.insert(found.ino(), found.len());
        }
    }
    files.values().sum()
}

/// Whatever is written and however long, the disk holds about twice what is alive, and what the images that are kept hold.
#[test]
fn a_thousand_increments_take_no_more_room_than_a_few() {
    const LIVE: u64 = 1024;
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    let options = Options { compression: Compression::None };
    let mut seed = 1_u64;
    let mut noise = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut memory = vec![0_u64; usize::try_from(LIVE).unwrap()];
    let bytes_of = |word: u64| word.to_le_bytes().repeat(512);
    let mut chain: Option<Chain> = None;
    let (mut largest, mut names) = (0, 0);
    for round in 0..1000 {
        let sink = Box::new(store.begin(&job()).unwrap());
        let mut writer = match chain.take() {
            None => ImageWriter::first(sink, options).unwrap(),
            Some(chain) => ImageWriter::onto(sink, options, chain, &[1]).unwrap(),
        };
        writer = writer.with_segments_of(256 << 10);
        for at in 0..if round == 0 { LIVE } else { 32 } {
            let page = if round == 0 { at } else { noise() % LIVE };
            let word = noise() | 1;
            memory[usize::try_from(page).unwrap()] = word;
            writer.pages(1, page * PAGE_SIZE, &bytes_of(word)).unwrap();
        }
        chain = writer.finish(sample::facts()).unwrap().chain;
        store.prune(&job(), 3).unwrap();
        if round % 8 == 7 {
            largest = bytes_on_disk(&store).max(largest);
        }
        let newest = store.find(&Selector::Newest(job())).unwrap();
        names = fs::read_dir(newest).unwrap().count().max(names);
    }
    // The last three images, the log, the segments that are half full.
    assert!(largest < 2 * LIVE * PAGE_SIZE + (3 << 20), "{largest} bytes");
    assert!(names < 2 * 16 + 16, "{names} parts");
    let pages = contents(&store.find(&Selector::Newest(job())).unwrap());
    let expected = (0..LIVE).zip(&memory).map(|(page, word)| ((1, page), bytes_of(*word)));
    assert!(pages == expected.collect());
}
