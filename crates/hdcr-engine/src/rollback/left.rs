//! What roll-backs leave behind for their user: newer files that were moved aside, and newer parts that were cut off.
//!
//! Those of the last roll-backs of a job stay, older ones go, and so do newer ones where there is not as much room left as the
//! last roll-back has moved aside: the program is about to write that once more. A list beside the journal says which they are, and each is
//! looked at before: what somebody else has put there is not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::journal::{self, Come, Entry, Journal, Then, Undo};
use super::reserve;
use super::steps::Steps;
use super::witness::Witness;
use super::{bytes, path, rename, undo};
use crate::error::{Error, Result};
use crate::rights::{Rights, Turn};
use crate::route;

const NAME: &str = "left.list";

fn list(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// Of so many roll-backs that have left something it stays.
const ROLL_BACKS: u64 = 8;

/// Ends a roll-back for good: nothing is undone from here on, what it leaves is put where it stays, what nobody wants goes.
/// May be done again when it died.
pub(super) fn settle(journal: &mut Journal, entries: &[Entry], steps: &Steps) -> Result<()> {
    journal.end(Come::Final, steps)?;
    put_away(journal, entries, steps)?;
    list_and_remove(journal, entries, steps)
}

/// Gives newer bytes the names under which they stay. Until that is done the copies must not go.
pub(super) fn put_away(journal: &Journal, entries: &[Entry], steps: &Steps) -> Result<()> {
    for entry in entries.iter().filter(|entry| !entry.newer.is_empty()) {
        let place = path(&entry.newer);
        steps.step("move", &place);
        match rename(&journal.copy(entry.copy), &place) {
            Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
            Err(error) => return Err(Error::system("keeping the newer part of a file", place.display())(error)),
        }
    }
    Ok(())
}

/// Lists what stays, and removes what nobody wants.
pub(super) fn list_and_remove(journal: &Journal, entries: &[Entry], steps: &Steps) -> Result<()> {
    let mut left = Vec::new();
    for entry in entries {
        if !entry.newer.is_empty() {
            left.extend(leave(&path(&entry.newer), Undo::Remove, None)?);
        }
        let moved = path(&entry.moved);
        match entry.then() {
            Then::Nothing => {}
            Then::Stays => {
                left.extend(leave(&moved, Undo::Remove, entry.rights().as_ref())?);
                if let Some(shelter) = moved.parent().filter(|above| is_shelter(above)) {
                    left.extend(leave(shelter, Undo::RemoveDirectory, entry.rights().as_ref())?);
                }
            }
            Then::Goes => {
                let _turn = Turn::to_some(entry.rights().as_ref())?;
                steps.step("remove", &moved);
                // Done again after a death, it may be somebody else's by now.
                if Witness::at(&moved).is_some_and(|there| Witness::in_entry(entry).fits(&there)) {
                    undo::remove(&moved)?;
                }
            }
        }
    }
    turn_over(journal.directory(), &left, steps)
}

fn is_shelter(directory: &Path) -> bool {
    directory.file_name().is_some_and(|name| name.as_bytes().starts_with(b".hdcr-aside-"))
}

/// Something that is left for the user.
fn leave(place: &Path, undo: Undo, rights: Option<&Rights>) -> Result<Option<Entry>> {
    let entry = Entry { undo: undo.into(), path: bytes(place), ..Entry::default() };
    {
        let _turn = Turn::to_some(rights)?;
        if let Some(witness) = Witness::at(place) {
            return Ok(Some(witness.into_entry(entry).with_rights(rights)));
        }
    }
    // In a directory of ours, where the program's user may not go.
    let _turn = Turn::home()?;
    Ok(Witness::at(place).map(|witness| witness.into_entry(entry)))
}

/// Remembers what this roll-back leaves, and removes what older ones have left.
fn turn_over(directory: &Path, now: &[Entry], steps: &Steps) -> Result<()> {
    if now.is_empty() {
        return Ok(());
    }
    let place = list(directory);
    // The number of a copy counts the roll-backs here.
    let mut all = journal::parse(&std::fs::read(&place).unwrap_or_default());
    let number = all.iter().map(|entry| entry.copy).max().unwrap_or_default().saturating_add(1);
    all.extend(now.iter().map(|entry| Entry { copy: number, ..entry.clone() }));
    let write = |all: &[Entry]| reserve::with_room_for(directory, 1, || write(&place, all, steps));
    write(&all)?;
    let before = all.len();
    // What could not be removed is tried again the next time.
    all.retain(|entry| entry.copy.saturating_add(ROLL_BACKS) > number || !remove(entry));
    make_room(&mut all, number);
    if all.len() == before { Ok(()) } else { write(&all) }
}

/// Gives up what was moved aside, the oldest first, until there is as much room as what the last roll-back has moved takes, and no
/// longer than that makes room.
fn make_room(all: &mut Vec<Entry>, last: u64) {
    let mut needs: BTreeMap<u64, u64> = BTreeMap::new();
    let mut counted = BTreeSet::new();
    for entry in all.iter().filter(|entry| entry.copy == last && was_moved_aside(entry)) {
        let need = needs.entry(entry.device).or_default();
        *need = need.saturating_add(taken_by(entry, &mut counted));
    }
    all.retain(|entry| {
        let need = needs.get(&entry.device).copied().filter(|_| was_moved_aside(entry)).unwrap_or_default();
        let place = path(&entry.path);
        let Some(room) = room_at(&place).filter(|room| *room < need) else { return true };
        // An empty one makes no room.
        if taken_by(entry, &mut BTreeSet::new()) == 0 {
            return true;
        }
        tracing::warn!(path = %place.display(), "what was moved aside is given up: there is too little room left");
        if !remove(entry) {
            return true;
        }
        if !grows(&place, room) {
            needs.remove(&entry.device);
        }
        false
    });
}

/// Whether a file system has more room than before, which some show a little later.
fn grows(place: &Path, before: u64) -> bool {
    const STEP: Duration = Duration::from_millis(20);
    const STEPS: usize = 100;
    if let Some(Ok(above)) = place.parent().map(File::open) {
        rustix::fs::syncfs(&above).ok();
    }
    (0..STEPS).any(|step| {
        if step > 0 {
            std::thread::sleep(STEP);
        }
        room_at(place).is_none_or(|room| room > before)
    })
}

/// Whether it is something that the program had made, and not what was cut off a file of many.
fn was_moved_aside(entry: &Entry) -> bool {
    entry.undo() == Undo::Remove && path(&entry.path).parent().is_some_and(is_shelter)
}

/// The room for everybody on the file system of a path.
fn room_at(place: &Path) -> Option<u64> {
    let there = rustix::fs::statvfs(place.parent()?).ok()?;
    Some(there.f_bavail.saturating_mul(there.f_frsize))
}

/// The room that something takes, with all that is in it: each file once.
fn taken_by(entry: &Entry, counted: &mut BTreeSet<(u64, u64)>) -> u64 {
    let _turn = Turn::home();
    let mut waiting = vec![path(&entry.path)];
    let mut taken = 0_u64;
    while let Some(place) = waiting.pop() {
        let Ok(found) = place.symlink_metadata() else { continue };
        if found.nlink() < 2 || found.is_dir() || counted.insert((found.dev(), found.ino())) {
            taken = taken.saturating_add(found.blocks().saturating_mul(512));
        }
        if found.is_dir() {
            waiting.extend(std::fs::read_dir(&place).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    taken
}

fn write(place: &Path, entries: &[Entry], steps: &Steps) -> Result<()> {
    let failed = |error| Error::system("remembering what a roll-back leaves", place.display())(error);
    let part = place.with_extension("part");
    let mut file = File::create(&part).map_err(failed)?;
    for entry in entries {
        file.write_all(&journal::framed(entry)).map_err(failed)?;
    }
    steps.sync(&file, &part)?;
    steps.step("move", &part);
    std::fs::rename(&part, place).map_err(failed)
}

/// Removes one; `true` when there is nothing of ours any more.
fn remove(entry: &Entry) -> bool {
    let place = path(&entry.path);
    let Ok(_turn) = Turn::to_some(entry.rights().as_ref()) else { return false };
    let Some(there) = Witness::at(&place) else { return true };
    if !Witness::in_entry(entry).fits(&there) {
        return true;
    }
    let is_directory =
        route::lstat(&place).is_ok_and(|there| FileType::from_raw_mode(there.st_mode) == FileType::Directory);
    let removed = match (entry.undo(), is_directory) {
        // The shelter itself: what is in it now is of a later roll-back.
        (Undo::RemoveDirectory, _) => return route::rmdir(&place).is_ok(),
        (_, true) => route::remove_all(&place),
        (_, false) => route::unlink(&place).map_err(Into::into),
    };
    removed.inspect_err(|error| tracing::warn!(%error, path = %place.display(), "left over from a roll-back")).is_ok()
}
