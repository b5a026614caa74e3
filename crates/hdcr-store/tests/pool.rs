//! Segments that are written over: never while anybody needs what is in them.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hdcr_image::{Compression, ImageReader, ImageWriter, JobName, Options, PAGE_SIZE, PartName, Source, sample};
use hdcr_store::{DirectoryStore, Durability, Faults, Selector, open_path};

fn job() -> JobName {
    JobName::new("sim").unwrap()
}

/// A whole image of so many pages of this byte.
fn full(store: &DirectoryStore, byte: u8, pages: u64) -> Result<u64, String> {
    let text = |error: hdcr_image::ImageError| error.to_string();
    let options = Options { compression: Compression::None };
    let sink = store.begin(&job()).map_err(|error| error.to_string())?;
    let mut writer = ImageWriter::new(Box::new(sink), options).map_err(text)?;
    for page in 0..pages {
        writer.pages(1, page * PAGE_SIZE, &[byte; 4096]).map_err(text)?;
    }
    let committed = writer.finish(sample::facts()).map_err(text)?;
    Ok(committed.id.place.unwrap().1)
}

fn seen(path: &Path) -> (u8, usize) {
    read(open_path(path).unwrap().as_ref())
}

fn read(source: &dyn Source) -> (u8, usize) {
    let reader = ImageReader::open(source).unwrap();
    reader.verify(&mut |_| ()).unwrap();
    let (mut all, mut bytes) = (Vec::new(), Vec::new());
    for run in reader.runs(1) {
        reader.read_run(run, &mut bytes).unwrap();
        all.extend_from_slice(&bytes);
    }
    assert!(all.iter().all(|byte| *byte == all[0]));
    (all[0], all.len() / 4096)
}

fn path_of(store: &DirectoryStore, number: u64) -> PathBuf {
    store.find(&Selector::Snapshot(job(), number)).unwrap()
}

fn inode(store: &DirectoryStore, number: u64) -> u64 {
    fs::metadata(path_of(store, number).join("pages-0")).unwrap().ino()
}

/// Does something to a file, perhaps with another one.
type Spoil = fn(&Path, &Path);

fn free(directory: &Path) -> PathBuf {
    directory.join("jobs/sim/.free")
}

fn count(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

#[test]
fn the_segment_of_an_image_that_went_is_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::Fsync);
    for byte in 1..=3 {
        full(&store, byte, 100).unwrap();
    }
    let first = inode(&store, 1);
    assert_eq!(store.prune(&job(), 2).unwrap(), [1]);
    assert_eq!(count(&free(directory.path())), 1);
    full(&store, 4, 90).unwrap();
    assert_eq!(inode(&store, 4), first);
    assert_eq!((count(&free(directory.path())), seen(&path_of(&store, 4))), (0, (4, 90)));
    let manifest = store.list().unwrap().pop().unwrap().manifest.unwrap();
    assert_eq!(manifest.segments[0].generation, 2);
    assert_eq!((seen(&path_of(&store, 2)), seen(&path_of(&store, 3))), ((2, 100), (3, 100)));
    // What a user removes is gone, and with the last image all that was kept.
    store.prune(&job(), 1).unwrap();
    assert_eq!(count(&free(directory.path())), 1, "about as many bytes as the newest has");
    store.remove(&job(), 4).unwrap();
    assert!(!free(directory.path()).exists());
}

#[test]
fn whoever_reads_an_image_that_went_reads_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    full(&store, 1, 50).unwrap();
    full(&store, 2, 50).unwrap();
    let source = open_path(&path_of(&store, 1)).unwrap();
    let reader = ImageReader::open(source.as_ref()).unwrap();
    store.prune(&job(), 1).unwrap();
    assert_eq!(count(&free(directory.path())), 0);
    full(&store, 3, 50).unwrap();
    let mut bytes = Vec::new();
    reader.read_run(&reader.runs(1)[0], &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
    // One that came later, when the file was in the pool already.
    drop(reader);
    let opened = open_path(&path_of(&store, 2)).unwrap();
    store.prune(&job(), 1).unwrap();
    assert!(opened.part(PartName::Pages(0)).is_err());
    let kept = fs::read_dir(free(directory.path())).unwrap().next().unwrap().unwrap().path();
    let held = fs::File::open(&kept).unwrap();
    held.lock_shared().unwrap();
    full(&store, 4, 50).unwrap();
    assert!(
        count(&free(directory.path())) == 0 && fs::metadata(path_of(&store, 4).join("pages-0")).unwrap().nlink() == 1
    );
    assert_eq!(held.metadata().unwrap().nlink(), 0, "it is not used");
}

#[test]
fn only_a_file_of_ours_alone_is_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    let elsewhere = directory.path().join("elsewhere");
    let spoil: [(&str, Spoil); 6] = [
        ("another name", |file, other| fs::hard_link(file, other).unwrap()),
        ("others may read it", |file, _| fs::set_permissions(file, PermissionsExt::from_mode(0o640)).unwrap()),
        ("no segment", |file, _| fs::write(file, "x".repeat(100)).unwrap()),
        ("empty", |file, _| fs::write(file, "").unwrap()),
        ("a link", |file, other| {
            fs::rename(file, other).unwrap();
            symlink(other, file).unwrap();
        }),
        ("a directory", |file, _| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
    ];
    for (what, spoil) in spoil {
        full(&store, 1, 5).unwrap();
        full(&store, 2, 5).unwrap();
        store.prune(&job(), 1).unwrap();
        let kept = fs::read_dir(free(directory.path())).unwrap().next().unwrap().unwrap().path();
        spoil(&kept, &elsewhere);
        let before = fs::read(&elsewhere).ok();
        let number = full(&store, 3, 5).unwrap();
        assert_eq!(seen(&path_of(&store, number)), (3, 5), "{what}");
        assert_eq!(fs::read(&elsewhere).ok(), before, "{what}");
        fs::remove_file(&elsewhere).ok();
    }
}

/// Whatever fails, or from wherever on nothing works: what is visible is whole.
#[test]
fn whatever_fails_with_a_pool_the_images_are_whole() {
    for plan in [Faults::fail_at, Faults::die_at] {
        let mut at = 0;
        loop {
            let directory = tempfile::tempdir().unwrap();
            let sound = DirectoryStore::open(directory.path(), Durability::None);
            for byte in 1..=3 {
                full(&sound, byte, 5).unwrap();
            }
            sound.prune(&job(), 2).unwrap();
            let faults = plan(at);
            let failing = DirectoryStore::with_faults(directory.path(), Durability::Fsync, faults.clone());
            let written = full(&failing, 4, 5);
            let pruned = failing.prune(&job(), 1);
            let all: Vec<u8> = sound.list().unwrap().iter().map(|entry| seen(&entry.path).0).collect();
            assert!([2, 3, 4].windows(all.len()).any(|part| part == all) && !all.is_empty(), "call {at}: {all:?}");
            assert!(written.is_err() || all.contains(&4), "call {at}: {all:?}");
            full(&sound, 5, 5).unwrap();
            full(&sound, 6, 5).unwrap();
            let left = sound.list().unwrap();
            let last: Vec<u8> = left.iter().rev().take(2).map(|entry| seen(&entry.path).0).collect();
            assert_eq!(last, [6, 5], "call {at}");
            if faults.calls_made() <= at {
                pruned.unwrap();
                break;
            }
            at += 1;
        }
        assert!(at > 16, "only {at} calls were seen");
    }
}

/// Readers beside a writer that writes over what goes: they see an image as it was, or none.
#[test]
fn readers_beside_a_writer_see_whole_images() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    full(&store, 1, 40).unwrap();
    let ended = AtomicBool::new(false);
    let mut over = 0;
    let whole = thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| read_until(&store, &ended))).collect();
        for byte in 2..=120 {
            let waiting = count(&free(directory.path()));
            full(&store, byte, 30 + u64::from(byte % 7)).unwrap();
            over += waiting.saturating_sub(count(&free(directory.path())));
            store.prune(&job(), 1 + usize::from(byte % 3)).unwrap();
        }
        ended.store(true, Ordering::Release);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>()
    });
    assert!(whole > 0 && over > 0, "{whole} read, {over} written over");
}

/// How many images were read before the writer ended.
fn read_until(store: &DirectoryStore, ended: &AtomicBool) -> usize {
    let mut whole = 0;
    let mut last = false;
    while !last {
        last = ended.load(Ordering::Acquire);
        let Ok(path) = store.find(&Selector::Newest(job())) else { continue };
        let Ok(source) = open_path(&path) else { continue };
        let Ok(reader) = ImageReader::open(source.as_ref()) else { continue };
        // From here on it stays, whatever is removed and written over.
        let number = reader.manifest().id.place.as_ref().unwrap().1;
        let (mut all, mut bytes) = (Vec::new(), Vec::new());
        for run in reader.runs(1) {
            reader.read_run(run, &mut bytes).unwrap();
            all.extend_from_slice(&bytes);
        }
        assert!(all.iter().all(|byte| u64::from(*byte) == number), "image {number}");
        whole += 1;
    }
    whole
}
