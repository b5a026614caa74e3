//! Clones of files as parts of an image: named when it is written, gone with it, looked at before it is used.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use hdcr_image::{
    ErrorClass, ImageError, ImageId, ImageReader, ImageWriter, JobName, ManifestFacts, MemoryImage, Options, Tag,
};
use hdcr_store::{DirectoryStore, Durability, Faults, FileSink, Selector};

const OBJECT: u64 = 7;

fn job() -> JobName {
    JobName::new("sim").unwrap()
}

fn newest() -> Selector {
    Selector::Newest(job())
}

/// A file without a name, as a clone is, in a directory.
fn nameless(directory: &Path) -> fs::File {
    let mut file = tempfile::tempfile_in(directory).unwrap();
    file.write_all(b"what it held").unwrap();
    file
}

fn write(store: &DirectoryStore, around: &Path) -> Result<u64, String> {
    let sink = store.begin(&job()).map_err(|error| error.to_string())?;
    let write = || -> Result<_, ImageError> {
        let mut writer = ImageWriter::new(Box::new(sink), Options::default())?;
        writer.frame(Tag(0x7000), 1, 1, b"record")?;
        // Later ones come first.
        for object in [OBJECT + 2, OBJECT] {
            writer.attach(object, nameless(around), 12)?;
        }
        writer.finish(ManifestFacts::default())
    };
    Ok(write().map_err(|error| error.to_string())?.id.place.unwrap().1)
}

fn read(store: &DirectoryStore) -> Result<String, ImageError> {
    let reader = ImageReader::open(store.source(&newest()).unwrap().as_ref())?;
    assert_eq!((reader.manifest().clones.len(), reader.manifest().cloned_size()), (2, 24));
    assert!(reader.clone_of(OBJECT + 1)?.is_none());
    let mut text = String::new();
    reader.clone_of(OBJECT)?.unwrap().read_to_string(&mut text).unwrap();
    Ok(text)
}

#[test]
fn a_clone_is_a_part_of_its_image() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path().join("store"), Durability::Fsync);
    assert_eq!(write(&store, directory.path()), Ok(1));
    assert_eq!(read(&store).unwrap(), "what it held");
    let image = store.find(&newest()).unwrap();
    let names = ["clone-7", "clone-9", "frames", "manifest"];
    let found = |path: &Path| {
        let mut all: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    };
    assert_eq!(found(&image), names);
    // What of a clone is nobody else's cannot be told.
    assert_eq!(store.files(&job(), 1).unwrap().len(), 2);
    // No clone is written over by the next images.
    assert_eq!(write(&store, directory.path()), Ok(2));
    store.retire(&job(), 1).unwrap();
    assert!(!image.exists() && found(image.parent().unwrap()).iter().all(|name| name != ".free"));
    assert_eq!(read(&store).unwrap(), "what it held");
}

#[test]
fn a_failed_call_leaves_no_clone() {
    for call in 0..200 {
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::fail_at(call);
        let store = DirectoryStore::with_faults(directory.path().join("store"), Durability::Fsync, faults.clone());
        let written = write(&store, directory.path());
        let whole = DirectoryStore::open(directory.path().join("store"), Durability::Fsync);
        if written.is_ok() {
            assert!(call > 10, "faults were made");
            assert_eq!(read(&whole).unwrap(), "what it held");
            return;
        }
        assert!(whole.source(&newest()).is_err(), "call {call}: half an image");
        let left = fs::read_dir(whole.root().join("jobs/sim")).into_iter().flatten().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != ".lock").collect();
        assert!(left.is_empty(), "call {call}: {left:?}");
    }
    panic!("it never succeeded");
}

#[test]
fn a_clone_that_is_not_what_it_was_makes_an_image_unsound() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path().join("store"), Durability::None);
    write(&store, directory.path()).unwrap();
    let place = store.find(&newest()).unwrap().join("clone-9");
    let broken = |make: &dyn Fn()| {
        fs::remove_file(&place).ok();
        make();
        read(&store).unwrap_err()
    };
    assert_eq!(broken(&|| ()).class(), ErrorClass::Failed);
    assert_eq!(broken(&|| fs::write(&place, "shorter").unwrap()).class(), ErrorClass::Corrupt);
    fs::write(directory.path().join("else"), "what it held").unwrap();
    assert_eq!(
        broken(&|| std::os::unix::fs::symlink(directory.path().join("else"), &place).unwrap()).class(),
        ErrorClass::Failed
    );
    broken(&|| fs::create_dir(&place).unwrap());
}

#[test]
fn who_has_no_directory_takes_no_clone() {
    let directory = tempfile::tempdir().unwrap();
    let memory = Box::new(MemoryImage::new().sink(ImageId([1; 16])));
    let file = Box::new(FileSink::create(&directory.path().join("x.hdcr"), Durability::None).unwrap());
    for sink in [memory as Box<dyn hdcr_image::Sink>, file] {
        assert!(sink.home().is_none());
        let mut writer = ImageWriter::new(sink, Options::default()).unwrap();
        assert!(writer.attach(OBJECT, nameless(directory.path()), 12).is_err());
    }
}
