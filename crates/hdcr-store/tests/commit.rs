//! Nothing or everything: a store whose file system fails or dies at each of its calls.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hdcr_image::{ErrorClass, ImageError, ImageReader, ImageWriter, JobName, Options, Sink, Source, sample};
use hdcr_store::{DirectorySink, DirectoryStore, Durability, Error, Faults, FileSink, Selector, open_path};

fn job() -> JobName {
    JobName::new("sim").unwrap()
}

fn newest() -> Selector {
    Selector::Newest(job())
}

fn checkpoint(store: &DirectoryStore) -> Result<u64, String> {
    let sink = store.begin(&job()).map_err(|error| error.to_string())?;
    let (_, id) = sample::write(Box::new(sink), Options::default()).map_err(|error| error.to_string())?;
    Ok(id.place.unwrap().1)
}

fn verify(source: &dyn Source) {
    let reader = ImageReader::open(source).unwrap();
    // Three of the sample, and one of the page index for each of its two address spaces.
    assert_eq!(reader.verify(&mut |_| ()).unwrap().frames, 5);
}

/// All names below a directory, hidden ones too.
fn names(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut all: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn checkpoints_are_kept_found_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path().join("store"), Durability::Fsync);
    assert!(store.list().unwrap().is_empty());
    assert!(matches!(store.source(&newest()), Err(Error::NoJob { .. })));
    for expected in 1..=4 {
        assert_eq!(checkpoint(&store), Ok(expected));
    }
    verify(store.source(&newest()).unwrap().as_ref());
    verify(store.source(&"sim@2".parse().unwrap()).unwrap().as_ref());
    assert!(matches!(store.source(&"sim@9".parse().unwrap()), Err(Error::NoSnapshot { sequence: 9, .. })));
    assert_eq!(store.prune(&job(), 2).unwrap(), [1, 2]);
    store.remove(&job(), 4).unwrap();
    assert_eq!(checkpoint(&store), Ok(5), "a number is never given twice");
    let listed: Vec<_> = store.list().unwrap().into_iter().map(|e| (e.sequence, e.manifest.unwrap())).collect();
    assert_eq!(listed.iter().map(|entry| entry.0).collect::<Vec<_>>(), [3, 5]);
    assert_eq!(listed[1].1.id.to_string(), "sim@5");
    verify(open_path(&store.find(&newest()).unwrap()).unwrap().as_ref());
}

#[test]
fn only_the_owner_can_read_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path().join("store"), Durability::None);
    checkpoint(&store).unwrap();
    let image = store.find(&newest()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for part in ["manifest", "frames", "pages-0"] {
        assert_eq!(mode(&image.join(part)), 0o600);
    }
    assert_eq!(names(&image), ["frames", "manifest", "pages-0"]);
    assert!(image.ancestors().take(4).all(|path| mode(path) == 0o700));
    let file = directory.path().join("image");
    sample::write(Box::new(FileSink::create(&file, Durability::None).unwrap()), Options::default()).unwrap();
    assert_eq!(mode(&file), 0o600);
}

/// A job whose first checkpoint came to nothing is none; of one that had some, no number is given twice.
#[test]
fn a_first_checkpoint_that_is_given_up_leaves_no_job() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    drop(store.begin(&job()).unwrap());
    assert!(names(&directory.path().join("jobs")).is_empty());
    Box::new(store.begin(&job()).unwrap()).abort().unwrap();
    assert!(names(&directory.path().join("jobs")).is_empty() && store.jobs().unwrap().is_empty());
    let (first, second) = (store.begin(&job()).unwrap(), store.begin(&job()).unwrap());
    drop(first);
    sample::write(Box::new(second), Options::default()).unwrap();
    assert_eq!(store.sequences(&job()).unwrap(), [2]);
    store.remove(&job(), 2).unwrap();
    drop(store.begin(&job()).unwrap());
    assert_eq!(checkpoint(&store), Ok(4), "a number is never given twice");
}

/// Writers that come and go at the same time find a place each.
#[test]
fn writers_that_give_up_do_not_take_the_place_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    drop(store.begin(&job()).unwrap());
                }
            });
        }
    });
    assert_eq!(checkpoint(&store).map(|_| ()), Ok(()));
    verify(store.source(&newest()).unwrap().as_ref());
}

/// One call fails, for each call: an error, and nothing is left of it; the next checkpoint works.
#[test]
fn a_failed_call_leaves_nothing() {
    let mut at = 0;
    loop {
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::fail_at(at);
        let store = DirectoryStore::with_faults(directory.path(), Durability::Fsync, faults.clone());
        let written = checkpoint(&store);
        if faults.calls_made() <= at {
            assert_eq!(written, Ok(1));
            break;
        }
        assert!(written.is_err(), "call {at}");
        assert!(store.sequences(&job()).unwrap().is_empty(), "call {at}");
        let left = names(&directory.path().join("jobs/sim"));
        assert!(left.iter().all(|name| name == ".lock"), "call {at}: {left:?}");
        checkpoint(&store).unwrap();
        verify(store.source(&newest()).unwrap().as_ref());
        at += 1;
    }
    assert!(at > 12, "only {at} calls were seen");
}

/// From one call on nothing works, for each call, as when the process or the machine dies: all of the new checkpoint is
/// there or none of it, the old one is untouched, and the next writer clears up.
#[test]
fn a_death_leaves_all_or_nothing() {
    let mut at = 0;
    let mut seen = [0; 2];
    loop {
        let directory = tempfile::tempdir().unwrap();
        let sound = DirectoryStore::open(directory.path(), Durability::Fsync);
        checkpoint(&sound).unwrap();
        let faults = Faults::die_at(at);
        let written = checkpoint(&DirectoryStore::with_faults(directory.path(), Durability::Fsync, faults.clone()));
        if faults.calls_made() <= at {
            assert_eq!(written, Ok(2));
            break;
        }
        let sequences = sound.sequences(&job()).unwrap();
        assert!(sequences == [1] || sequences == [1, 2], "call {at}: {sequences:?}");
        seen[sequences.len() - 1] += 1;
        for entry in sound.list().unwrap() {
            verify(open_path(&entry.path).unwrap().as_ref());
        }
        let next = checkpoint(&sound).unwrap();
        assert!(next > *sequences.last().unwrap());
        let left = names(&directory.path().join("jobs/sim"));
        assert_eq!(left.len(), sequences.len() + 2, "call {at}: {left:?}");
        at += 1;
    }
    assert!(seen[0] > 8 && seen[1] > 0, "{seen:?}");
}

#[test]
fn a_failed_call_leaves_the_older_file() {
    for before in [false, true] {
        let mut at = 0;
        loop {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("image");
            let older = before.then(|| {
                let sink = FileSink::create(&file, Durability::None).unwrap();
                sample::write(Box::new(sink), Options::default()).unwrap();
                fs::read(&file).unwrap()
            });
            let faults = Faults::fail_at(at);
            let sink = FileSink::with_faults(&file, Durability::Fsync, faults.clone());
            let written = sink
                .map_err(|e| e.to_string())
                .and_then(|sink| sample::write(Box::new(sink), Options::default()).map_err(|error| error.to_string()));
            if faults.calls_made() <= at {
                written.unwrap();
                break;
            }
            if written.is_ok() {
                // Only the removal of the older file may fail without harm.
                verify(open_path(&file).unwrap().as_ref());
            } else {
                assert!(fs::read(&file).ok() == older, "call {at}");
                assert_eq!(names(directory.path()).len(), usize::from(before), "call {at}");
            }
            at += 1;
        }
        assert!(at > 5, "only {at} calls were seen");
    }
}

#[test]
fn a_living_writer_is_not_swept() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    let first = ImageWriter::new(Box::new(store.begin(&job()).unwrap()), Options::default()).unwrap();
    assert_eq!(checkpoint(&store), Ok(2));
    assert_eq!(store.sweep().unwrap(), 0);
    first.finish(sample::facts()).unwrap();
    assert_eq!(store.sequences(&job()).unwrap(), [1, 2]);
    fs::create_dir(directory.path().join("jobs/sim/.new-3-dead")).unwrap();
    fs::create_dir(directory.path().join("jobs/sim/.gone-1-dead")).unwrap();
    assert_eq!(store.sweep().unwrap(), 2);

    let file = directory.path().join("image");
    let living = FileSink::create(&file, Durability::None).unwrap();
    fs::write(directory.path().join(".image.new-dead"), "").unwrap();
    sample::write(Box::new(FileSink::create(&file, Durability::None).unwrap()), Options::default()).unwrap();
    sample::write(Box::new(living), Options::default()).unwrap();
    assert_eq!(names(directory.path()), ["image", "jobs"]);
}

/// Nothing of it is dropped, as after a kill.
#[test]
fn a_killed_writer_of_a_file_leaves_nothing() {
    use rustix::fs::{Mode, OFlags, open};
    let directory = tempfile::tempdir().unwrap();
    let nameless = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = directory.path().join("image");
    let _killed = std::mem::ManuallyDrop::new(FileSink::create(&file, Durability::Fsync).unwrap());
    let has_nameless = open(directory.path(), nameless, Mode::RUSR).is_ok();
    assert_eq!(names(directory.path()).len(), usize::from(!has_nameless), "{:?}", names(directory.path()));
    sample::write(Box::new(FileSink::create(&file, Durability::Fsync).unwrap()), Options::default()).unwrap();
    verify(open_path(&file).unwrap().as_ref());
}

/// The number that was given last survives a full disk, also when all checkpoints are gone.
#[test]
fn a_number_is_never_given_twice_after_a_full_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::Fsync);
    assert_eq!(checkpoint(&store), Ok(1));
    store.remove(&job(), 1).unwrap();
    let mut at = 0;
    loop {
        let faults = Faults::fail_at(at);
        let written = checkpoint(&DirectoryStore::with_faults(directory.path(), Durability::Fsync, faults.clone()));
        if faults.calls_made() <= at {
            break;
        }
        assert!(written.is_err(), "call {at}");
        assert!(store.begin(&job()).unwrap().snapshot().place.as_ref().unwrap().1 > 1, "call {at}");
        at += 1;
    }
}

#[test]
fn aborting_and_dropping_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::Fsync);
    let begin = || ImageWriter::new(Box::new(store.begin(&job()).unwrap()), Options::default()).unwrap();
    begin().abort().unwrap();
    drop(begin());
    begin().persist(sample::facts()).unwrap().abort().unwrap();
    drop(begin().persist(sample::facts()).unwrap());
    assert_eq!(names(&directory.path().join("jobs/sim")), Vec::<String>::new());
    let file = directory.path().join("image");
    drop(FileSink::create(&file, Durability::Fsync).unwrap());
    Box::new(FileSink::create(&file, Durability::Fsync).unwrap()).abort().unwrap();
    assert_eq!(names(directory.path()), ["jobs"]);
}

#[test]
fn a_vanished_store_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = DirectoryStore::open(&root, Durability::Fsync);
    let writer = ImageWriter::new(Box::new(store.begin(&job()).unwrap()), Options::default()).unwrap();
    fs::remove_dir_all(&root).unwrap();
    let error = writer.finish(sample::facts()).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Failed);
    assert!(error.to_string().contains("vanished"), "{error}");
    assert!(!root.exists());
}

#[test]
fn one_file_holds_a_whole_image() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("image.hdcr");
    sample::write(Box::new(FileSink::create(&file, Durability::Fsync).unwrap()), Options::default()).unwrap();
    verify(open_path(&file).unwrap().as_ref());
    let bytes = fs::read(&file).unwrap();
    let read = |bytes: &[u8]| -> Result<(), String> {
        fs::write(&file, bytes).unwrap();
        let source = open_path(&file).map_err(|error| error.to_string())?;
        let reader = ImageReader::open(source.as_ref()).map_err(|error| error.to_string())?;
        reader.verify(&mut |_| ()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert!(read(&bytes).is_ok());
    let mut unnoticed = Vec::new();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        if read(&changed).is_ok() {
            unnoticed.push(at);
        }
    }
    // One page of the sample was written twice; it is stored together with two others, so all of it is checked.
    assert_eq!(unnoticed, [0_usize; 0]);
    for len in (0..bytes.len()).step_by(7) {
        assert!(read(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn what_is_not_an_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    assert!(matches!(open_path(&path), Err(Error::Store(_))));
    assert!(matches!(open_path(directory.path()), Err(Error::NotAnImage { .. })));
    assert!(matches!(open_path(Path::new("/dev/null")), Err(Error::NotAnImage { .. })));
    fs::write(&path, "#!/bin/sh\n").unwrap();
    assert!(matches!(open_path(&path), Err(Error::Image(ImageError::Corrupt { .. }))));
    assert!(matches!(FileSink::create(directory.path(), Durability::None), Err(Error::BadTarget { .. })));
    fs::create_dir(directory.path().join("manifest")).unwrap();
    let source = open_path(directory.path()).unwrap();
    assert!(ImageReader::open(source.as_ref()).is_err());
}

#[test]
fn an_image_names_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), Durability::None);
    let sink = store.begin(&job()).unwrap();
    assert_eq!(sink.snapshot().to_string(), "sim@1");
}

#[test]
fn an_image_directory_can_lie_anywhere() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("image");
    fs::create_dir(&target).unwrap();
    fs::create_dir(directory.path().join(".image.new-dead")).unwrap();
    let living = DirectorySink::create(&target, Durability::Fsync).unwrap();
    let sink = DirectorySink::create(&target, Durability::Fsync).unwrap();
    assert_eq!(names(directory.path()).len(), 3);
    sample::write(Box::new(sink), Options::default()).unwrap();
    verify(open_path(&target).unwrap().as_ref());
    assert!(matches!(DirectorySink::create(&target, Durability::Fsync), Err(Error::BadTarget { .. })));
    let late = sample::write(Box::new(living), Options::default());
    assert!(late.is_err(), "an image is never put over another one");
    assert_eq!(names(directory.path()), ["image"]);
    verify(open_path(&target).unwrap().as_ref());
}
