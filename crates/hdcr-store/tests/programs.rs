//! Contents that the images of a store have in common.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use hdcr_image::{ContentKey, ImageReader, ImageWriter, ManifestFacts, Options};
use hdcr_store::{DirectoryStore, Durability, JobName, Selector};

fn store(root: &Path, limit: u64) -> DirectoryStore {
    DirectoryStore::open(root, Durability::Fsync).with_programs(limit)
}

/// A checkpoint that holds what a file does, if there is room; its key.
fn hold(store: &DirectoryStore, job: &str, file: &Path) -> Option<ContentKey> {
    let job = JobName::new(job).unwrap();
    let mut writer = ImageWriter::first(Box::new(store.begin(&job).unwrap()), Options::default()).unwrap();
    let opened = File::open(file).unwrap();
    let size = opened.metadata().unwrap().len();
    let key = ContentKey::of(&opened).unwrap();
    let sink = writer.in_common();
    let kept = if sink.take_in_common(&key, size) { Some(key) } else { sink.keep_in_common(&opened, size).unwrap() };
    writer.finish(ManifestFacts::default()).unwrap();
    kept
}

fn shelf(root: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(root.join(".programs")).into_iter().flatten().flatten();
    let mut all: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().nlink())).collect();
    all.sort();
    all
}

#[test]
fn each_is_kept_once_and_goes_with_the_last_image_that_needs_it() {
    let directory = tempfile::tempdir().unwrap();
    let (root, program) = (directory.path().join("store"), directory.path().join("program"));
    fs::write(&program, vec![7; 100_000]).unwrap();
    let store = store(&root, 1 << 20);
    let key = hold(&store, "a", &program).unwrap();
    assert_eq!(shelf(&root), [(key.to_string(), 2)]);
    assert_eq!(hold(&store, "a", &program), Some(key));
    assert_eq!(hold(&store, "b", &program), Some(key));
    assert_eq!(shelf(&root), [(key.to_string(), 4)]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&root.join(".programs")), mode(&root.join(".programs").join(key.to_string()))), (0o700, 0o600));
    let [a, b] = ["a", "b"].map(|name| JobName::new(name).unwrap());
    store.remove(&a, 1).unwrap();
    store.remove(&b, 1).unwrap();
    let image = ImageReader::open(&store.source(&Selector::Snapshot(a.clone(), 2)).unwrap()).unwrap();
    let mut found = Vec::new();
    image.content_of(&key, 100_000).unwrap().unwrap().read_to_end(&mut found).unwrap();
    assert_eq!(found, vec![7; 100_000]);
    assert!(image.content_of(&key, 99_999).unwrap().is_none(), "it is not so long");
    assert!(image.content_of(&ContentKey([3; 32]), 1).is_err(), "it is not there");
    store.remove(&a, 2).unwrap();
    assert_eq!(shelf(&root), []);
}

#[test]
fn an_image_is_whole_without_the_shelf_and_there_is_an_end_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let write = |name: &str, size: usize| {
        let path = directory.path().join(name);
        fs::write(&path, vec![size.to_le_bytes()[0]; size]).unwrap();
        path
    };
    let small = write("small", 10_000);
    let large = write("large", 50_001);
    let kept = store(&root, 60_000);
    let key = hold(&kept, "a", &small).unwrap();
    assert_eq!(hold(&kept, "a", &large), None);
    fs::remove_dir_all(root.join(".programs")).unwrap();
    let image = ImageReader::open(&kept.source(&"a@1".parse().unwrap()).unwrap()).unwrap();
    assert!(image.content_of(&key, 10_000).unwrap().is_some());
    assert_eq!(hold(&store(&root, 0), "b", &small), None);
}

#[test]
fn what_was_begun_and_given_up_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (root, program) = (directory.path().join("store"), directory.path().join("program"));
    fs::write(&program, "text").unwrap();
    let store = store(&root, 1 << 20);
    let mut writer =
        ImageWriter::first(Box::new(store.begin(&JobName::new("a").unwrap()).unwrap()), Options::default()).unwrap();
    assert!(writer.in_common().keep_in_common(&File::open(&program).unwrap(), 4).unwrap().is_some());
    assert!(writer.in_common().keep_in_common(&File::open(&program).unwrap(), 5).is_err(), "it is shorter");
    writer.abort().unwrap();
    assert_eq!(shelf(&root), []);
    assert!(!root.join("jobs/a").exists());
}
