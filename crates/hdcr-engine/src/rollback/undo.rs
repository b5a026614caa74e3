//! Undoing a roll-back, by the process that has done it or by one that finds its journal.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use hdcr_sys::handle::{self, Handle};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::steps::Steps;
use super::{Action, Changed, Entry, Journal, Planned, Target, Undo, Witness, path, rename, set_time};
use crate::error::{Error, Owner, Refusal, Result};
use crate::resource::data;
use crate::rights::Turn;
use crate::route;

/// Undoes what entries say, the last one first; `planned` has files that may be open still. All are tried; the first error
/// is told.
pub(super) fn undo(entries: &[Entry], journal: Option<&Journal>, planned: &[Planned], steps: &Steps) -> Result<()> {
    let mut result = Ok(());
    let open = open_files(planned);
    // What is still needed by the next attempt.
    let mut needed = Vec::new();
    for entry in entries.iter().rev() {
        if entry.undo() == Undo::Remove && needed.contains(&&entry.path) {
            continue;
        }
        let undone = Turn::to_some(entry.rights().as_ref()).and_then(|_turn| undo_one(entry, journal, &open, steps));
        if undone.is_err() && entry.undo() == Undo::WriteBack {
            needed.push(&entry.moved);
        }
        if result.is_ok() {
            result = undone;
        }
    }
    result
}

/// Nothing is restored over files of which half is as it was before and half as at a checkpoint: a user decides.
pub(super) fn stuck(directory: &Path, error: &Error) -> Error {
    Error::refuse(Refusal {
        code: "rollback-stuck",
        object: "roll-back that died".to_owned(),
        owner: Owner { path: Some(directory.to_owned()), ..Owner::default() },
        cause: format!("it could not be undone: {error}"),
        remedy:
            "let the file be written and try again; or remove this directory, and with it what the files held before"
                .to_owned(),
    })
}

/// Files that are open still, by device and number.
type OpenFiles<'a> = BTreeMap<(u64, u64), &'a OwnedFd>;

fn open_files(planned: &[Planned]) -> OpenFiles<'_> {
    let files = planned.iter().filter_map(|planned| match &planned.action {
        Action::Contents { file: Target::Open(file), .. }
        | Action::Edges { file: Target::Open(file), .. }
        | Action::Cut { file: Target::Open(file), .. } => Some(file),
        Action::Contents { .. }
        | Action::Edges { .. }
        | Action::Cut { .. }
        | Action::Place { .. }
        | Action::Aside { .. } => None,
    });
    files.filter_map(|file| rustix::fs::fstat(file).ok().map(|stat| ((stat.st_dev, stat.st_ino), file))).collect()
}

fn undo_one(entry: &Entry, journal: Option<&Journal>, open: &OpenFiles<'_>, steps: &Steps) -> Result<()> {
    let target = path(&entry.path);
    let ours = |place: &Path| Witness::at(place).is_some_and(|there| Witness::in_entry(entry).fits(&there));
    match entry.undo() {
        Undo::RemoveSocket if is_dead_socket(entry, &target) => remove(&target),
        Undo::Nothing | Undo::NoneAsFinal | Undo::NoneAsUndone | Undo::RemoveSocket => Ok(()),
        Undo::Remove | Undo::RemoveSecondName | Undo::RemoveDirectory if !ours(&target) => Ok(()),
        // The last name of a file is not one that we gave it.
        Undo::RemoveSecondName if route::lstat(&target).is_ok_and(|there| there.st_nlink < 2) => Ok(()),
        Undo::Remove | Undo::RemoveSecondName => {
            steps.step("remove", &target);
            remove(&target)?;
            steps.sync_directory_of(&target)
        }
        Undo::RemoveDirectory => {
            steps.step("remove", &target);
            match route::rmdir(&target) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(()),
                Err(error) => Err(Error::system("removing a directory", target.display())(error)),
            }
        }
        Undo::MoveBack => move_back(entry, &target, steps),
        Undo::NameAgain => super::further::name_again(entry, &target, steps),
        Undo::WriteBack => write_back(entry, &target, journal, open, steps),
    }
}

/// A socket that was made since the entry was written, and that nobody answers at.
fn is_dead_socket(entry: &Entry, target: &Path) -> bool {
    let Ok(there) = route::lstat(target) else { return false };
    let since = (there.st_ctime, there.st_ctime_nsec.cast_signed()) >= (entry.mtime, i64::from(entry.mtime_ns));
    FileType::from_raw_mode(there.st_mode) == FileType::Socket && since && crate::resource::nobody_answers(target)
}

fn move_back(entry: &Entry, target: &Path, steps: &Steps) -> Result<()> {
    let moved = path(&entry.moved);
    let Some(there) = in_reach(&moved) else { return Ok(()) };
    if !Witness::in_entry(entry).fits(&there) {
        warn_of_stranger(&moved);
        return Ok(());
    }
    steps.step("move", &moved);
    match rename(&moved, target) {
        Ok(()) => {
            steps.sync_directory_of(target)?;
            steps.sync_directory_of(&moved)
        }
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::EXIST) => {
            warn_of_stranger(target);
            Ok(())
        }
        Err(error) => Err(Error::system("moving a file back", target.display())(error)),
    }
}

/// What lies at a path that the program's user may not reach: in a directory of ours.
fn in_reach(place: &Path) -> Option<Witness> {
    Witness::at(place).or_else(|| {
        let file =
            crate::resource::held::beyond_links(place, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC).ok()?;
        Witness::of(file, place).ok()
    })
}

/// Opens the file of an entry: as it is open here still, whatever its name is now, else by its name.
fn reopen(entry: &Entry, target: &Path, open_files: &OpenFiles<'_>) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let open = || route::open(target, flags, Mode::empty());
    let is_it = |file: &OwnedFd| Witness::of(file, target).is_ok_and(|now| Witness::in_entry(entry).fits(&now));
    if let Some(file) = open_files.get(&(entry.device, entry.inode)).filter(|file| is_it(file)) {
        return file.try_clone().map(Some).map_err(Error::system("undoing a roll-back", target.display()));
    }
    match open() {
        Ok(file) if is_it(&file) => return Ok(Some(file)),
        Err(Errno::LOOP) if !route::is_barred(target) => return Ok(elsewhere(entry, target, flags)),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(elsewhere(entry, target, flags)),
        Err(Errno::ACCESS | Errno::PERM | Errno::LOOP) => {}
        Err(error) => return Err(Error::system("undoing a roll-back", target.display())(error)),
    }
    if route::is_barred(target) {
        // Whatever link leads there: that very one, or none.
        let file = rustix::fs::open(target, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok();
        let file = file.filter(|file| is_it(file));
        return Ok(
            file.and_then(|file| rustix::fs::open(data::door(&file), flags - OFlags::NOFOLLOW, Mode::empty()).ok())
        );
    }
    // It was rolled back although its user may not open it: that very one, then, by no link.
    match crate::resource::held::beyond_links(target, flags) {
        Ok(file) => Ok(Some(file).filter(|file| is_it(file))),
        Err(error) => Err(Error::system("undoing a roll-back", target.display())(error)),
    }
}

/// The file of an entry under whatever name it has now.
pub(super) fn elsewhere(entry: &Entry, target: &Path, flags: OFlags) -> Option<OwnedFd> {
    if entry.handle.is_empty() {
        return None;
    }
    let above = target.ancestors().skip(1).find_map(|above| route::directory(above).ok())?;
    let look = || {
        let _turn = Turn::home().ok()?;
        let mount = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mount = rustix::fs::open(data::door(&above), mount, Mode::empty()).ok()?;
        let handle = Handle { kind: entry.handle_kind, bytes: entry.handle.clone() };
        handle::open(&mount, &handle, (OFlags::PATH | OFlags::NOFOLLOW).bits().cast_signed()).ok()
    };
    let file = look().filter(|file| Witness::of(file, target).is_ok_and(|now| Witness::in_entry(entry).fits(&now)))?;
    let lives = rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_nlink > 0);
    let open = || rustix::fs::open(data::door(&file), flags - OFlags::NOFOLLOW, Mode::empty()).ok();
    if lives { open() } else { None }
}

fn write_back(
    entry: &Entry,
    target: &Path,
    journal: Option<&Journal>,
    open: &OpenFiles<'_>,
    steps: &Steps,
) -> Result<()> {
    let failed = || Error::system::<std::io::Error>("undoing a roll-back", target.display());
    let Some(file) = reopen(entry, target, open)? else {
        warn_of_stranger(target);
        return Ok(());
    };
    let place = journal.map_or_else(|| path(&entry.moved), |journal| journal.copy(entry.copy));
    let copy = {
        let _turn = Turn::home()?;
        File::open(&place)
    };
    let copy = match copy {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::error!(path = %target.display(), "not undone: what was kept of it is gone");
            return Ok(());
        }
        other => other.map_err(failed())?,
    };
    // One that is open for appending only takes what comes behind its end.
    steps.step("cut", target);
    rustix::fs::ftruncate(&file, entry.from).map_err(|error| failed()(error.into()))?;
    steps.step("write", target);
    data::copy(&copy.into(), 0..entry.size.saturating_sub(entry.from), &file, entry.from, target)?;
    rustix::fs::ftruncate(&file, entry.size).map_err(|error| failed()(error.into()))?;
    steps.step("time", target);
    set_time(&file, Changed { seconds: entry.mtime, nanoseconds: entry.mtime_ns }, target)?;
    steps.sync(&file, target)
}

/// Somebody has put another file there since, or taken ours away: theirs is not touched.
pub(super) fn warn_of_stranger(target: &Path) {
    tracing::warn!(path = %target.display(), "not undone: it is no longer the file that was rolled back");
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match route::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::system("removing a file", path.display())(error)),
    }
}
