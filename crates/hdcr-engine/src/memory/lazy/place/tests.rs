//! An address space of a model: parted, moved, guarded, and with callers who go on late.

use super::super::testing::{OFF, all, moved, parted, place};
use super::*;

#[test]
fn what_was_parted_gets_all_of_its_pages() {
    // A mapping that was parted at odd places, with a hole, and a page that is there already.
    let mappings = [0..7, 7..8, 8..100, 103..250, 250..256];
    let (place, space) = parted(mappings.to_vec(), 0..256);
    space.lock().unwrap().present.insert(33);
    let (wanted, bytes) = all(0..256);
    assert_eq!(place.put(&wanted, &bytes).unwrap(), Went::Done);
    let present: Vec<u64> = space.lock().unwrap().present.iter().copied().collect();
    assert_eq!(present, mappings.iter().cloned().flatten().collect::<Vec<_>>());
    // Whoever waits for a page that is there, or that has no place any more, is not left waiting.
    assert_eq!(space.lock().unwrap().woken, [33, 100, 101, 102]);
    assert!(place.is_done());
}

#[test]
fn what_moves_in_between_is_still_missing() {
    let (place, space) = place(0..64, 0..64);
    let (wanted, bytes) = all(0..64);
    space.lock().unwrap().moves = true;
    assert_eq!(place.put(&wanted, &bytes).unwrap(), Went::Later);
    assert!(!place.is_done());
    place.hear().unwrap();
    let here = Missing { at: OFF * PAGE..(OFF + 64) * PAGE, from: 0 };
    assert_eq!(place.missing_at(OFF * PAGE), Some(here.clone()));
    assert_eq!(place.put(&here, &bytes).unwrap(), Went::Done);
    assert_eq!(space.lock().unwrap().present.len(), 64);
    assert!(place.is_done());
}

#[test]
fn zeros_wait_for_what_is_changing() {
    let (place, space) = place(0..1, 0..1);
    space.lock().unwrap().moves = true;
    let missing = place.missing_at(0).unwrap();
    assert_eq!(place.put_zeros(0, Some(&missing)).unwrap(), Went::Later);
    assert!(!place.is_done());
}

/// With nobody who could be named as its cause.
#[test]
fn who_goes_on_late_is_looked_at_again() {
    let (place, space) = place(0..64, 0..64);
    space.lock().unwrap().tell(moved(0..64, OFF));
    space.lock().unwrap().slow = 10 * LOOKS;
    place.hear().unwrap();
    assert!(!place.is_at_rest(), "nobody would look again");
    space.lock().unwrap().slow = 0;
    place.hear().unwrap();
    assert!(place.is_at_rest());
    space.lock().unwrap().tell(Happening::Gone(OFF * PAGE..(OFF + 1) * PAGE));
    place.hear().unwrap();
    assert_eq!(place.missing_at(OFF * PAGE), None);
    assert!(place.missing_at((OFF + 1) * PAGE).is_some());
}

#[test]
fn nothing_is_put_over_a_guard_nor_behind_it_when_it_is_gone() {
    let (place, space) = place(0..64, 0..64);
    space.lock().unwrap().guards = vec![3..5, 60..70];
    let (wanted, bytes) = all(0..64);
    assert_eq!(place.put(&wanted, &bytes).unwrap(), Went::Done);
    let present: Vec<u64> = space.lock().unwrap().present.iter().copied().collect();
    assert_eq!(present, (0..3).chain(5..60).collect::<Vec<_>>());
    assert!(place.is_done());
    space.lock().unwrap().guards.clear();
    assert_eq!(place.missing_at(3 * PAGE), None);
}

/// Also of one that cannot be named, as among many threads, or in a child that has touched nothing yet.
#[test]
fn a_move_and_what_it_gives_up_are_one_call() {
    let (place, space) = place(0..64, 0..64);
    let gone = |pages: Range<u64>| Happening::Gone(pages.start * PAGE..pages.end * PAGE);
    let told = [moved(0..64, OFF), gone(0..64)];
    told.into_iter().rev().for_each(|happening| space.lock().unwrap().tell(happening));
    space.lock().unwrap().slow = 10 * LOOKS;
    place.hear().unwrap();
    assert_eq!(place.missing_at(OFF * PAGE).unwrap().at, OFF * PAGE..(OFF + 64) * PAGE);
    // Nobody knows whether that was before the move, and concerned what was there until then.
    space.lock().unwrap().tell(gone(OFF..OFF + 1));
    assert!(place.hear().is_err());
}
