//! Pinned checkpoints stay, also when the file system fails or dies at each call of a pin.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::collections::BTreeMap;
use std::path::Path;

use hdcr_image::{ErrorClass, JobName, Options, sample};
use hdcr_store::{DirectoryStore, Durability, Error, Faults};

fn job() -> JobName {
    JobName::new("sim").unwrap()
}

/// A store with three checkpoints.
fn filled(root: &Path) -> DirectoryStore {
    let store = DirectoryStore::open(root, Durability::Fsync);
    for _ in 0..3 {
        sample::write(Box::new(store.begin(&job()).unwrap()), Options::default()).unwrap();
    }
    store
}

#[test]
fn what_is_pinned_stays_until_it_is_let_go_of() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path());
    store.pin(&job(), 1, "before the change").unwrap();
    store.pin(&job(), 1, "converged").unwrap();
    store.pin(&job(), 2, "").unwrap();
    let pins: BTreeMap<u64, String> = [(1, "converged".to_owned()), (2, String::new())].into();
    assert_eq!(store.pins(&job()).unwrap(), pins);
    for gone in [store.remove(&job(), 1), store.retire(&job(), 1)] {
        let refused = gone.unwrap_err();
        assert!(matches!(refused, Error::Pinned { sequence: 1, .. }), "{refused}");
        assert_eq!(refused.class(), ErrorClass::Refused);
    }
    assert_eq!(store.prune(&job(), 1).unwrap(), []);
    assert_eq!(store.sequences(&job()).unwrap(), [1, 2, 3]);
    assert!(store.unpin(&job(), 1).unwrap() && !store.unpin(&job(), 1).unwrap());
    assert_eq!(store.prune(&job(), 1).unwrap(), [1]);
    assert!(matches!(store.pin(&job(), 1, ""), Err(Error::NoSnapshot { sequence: 1, .. })));
    assert!(matches!(store.unpin(&job(), 9), Err(Error::NoSnapshot { .. })));
    assert!(store.pins(&JobName::new("other").unwrap()).unwrap().is_empty());
}

/// Old or new, never half a note, and nothing left behind.
#[test]
fn a_pin_is_there_or_not() {
    for plan in [Faults::fail_at, Faults::die_at] {
        for at in 0..100 {
            let directory = tempfile::tempdir().unwrap();
            let store = filled(directory.path());
            store.pin(&job(), 1, "old").unwrap();
            let faults = plan(at);
            let failing = DirectoryStore::with_faults(directory.path(), Durability::Fsync, faults.clone());
            let pinned = failing.pin(&job(), 1, "new");
            let notes: Vec<String> = store.pins(&job()).unwrap().into_values().collect();
            assert!(notes == ["old"] || notes == ["new"], "{at}: {notes:?}");
            assert!(pinned.is_err() || notes == ["new"], "{at}");
            store.sweep().unwrap();
            let left = std::fs::read_dir(directory.path().join("jobs/sim")).unwrap();
            let left = left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".new"));
            assert_eq!(left.count(), 0, "{at}");
            if pinned.is_ok() {
                assert!(at > 2, "no call of it can fail");
                break;
            }
        }
    }
}
