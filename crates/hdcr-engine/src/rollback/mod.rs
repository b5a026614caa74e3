//! Rolling file contents back with the memory: the last step of a restore, planned, journaled, undone when it fails.
//!
//! While a restore opens files it only adds actions to a [`Plan`]. [`Plan::prepare`] keeps what they will replace,
//! [`Plan::apply`] does them, each in place so that descriptors and mappings stay valid, [`Plan::finish`] makes them
//! final. A plan that is dropped before that undoes all it has done; when its process is killed, the next restore over
//! the same journal does so first ([`repair`]).
//!
//! Nothing waits for a disk here. When the power fails in the middle, files may be left half rolled back; the program is
//! gone too, and its next restore gives them the contents of the image whatever state they are in.

mod journal;
pub mod since;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

pub(crate) use journal::{Entry, Journal, Undo};

use crate::error::{Error, Result};
use crate::model::ObjectId;
use crate::resource::data;
use crate::restore::Contents;

/// The time of a file's last change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Changed {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What is done at the end of a restore.
#[derive(Debug)]
pub(crate) enum Action {
    /// The file gets the contents of an object.
    Contents { path: PathBuf, file: OwnedFd, id: ObjectId, size: u64, changed: Changed },
    /// The file is cut back to a length.
    Cut { path: PathBuf, file: OwnedFd, size: u64, changed: Changed },
    /// A new file, complete under a name of ours, gets its true name.
    Place { path: PathBuf, from: PathBuf, device: u64, inode: u64 },
    /// A file that is newer than the checkpoint is moved out of the way.
    Aside { path: PathBuf, to: PathBuf },
}

/// The actions of one restore.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    journal: Option<Journal>,
    done: Vec<Entry>,
    actions: Vec<Action>,
    copies: u64,
    finished: bool,
}

/// Undoes a roll-back that died, if there is one; `true` when there was.
pub fn repair(directory: &Path) -> Result<bool> {
    if !Journal::is_in(directory) {
        return Ok(false);
    }
    let (mut journal, entries) = Journal::open(directory)?;
    undo(&entries, Some(&journal))?;
    journal.clear(entries.iter().map(|entry| entry.copy).max().unwrap_or_default())?;
    Ok(!entries.is_empty())
}

/// Makes a roll-back final whose process died after its tree had been let go and before it could do so itself.
pub fn settle(directory: &Path) -> Result<()> {
    if !Journal::is_in(directory) {
        return Ok(());
    }
    let (mut journal, entries) = Journal::open(directory)?;
    journal.clear(entries.iter().map(|entry| entry.copy).max().unwrap_or_default())
}

impl Plan {
    /// A plan with its journal and its kept copies in a directory, after the repair of what died there.
    pub(crate) fn at(directory: &Path) -> Result<Self> {
        repair(directory)?;
        let (journal, _) = Journal::open(directory)?;
        let mut plan = Self::default();
        plan.journal = Some(journal);
        Ok(plan)
    }

    /// Adds an action.
    pub(crate) fn add(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// The actions so far.
    #[cfg(test)]
    pub(crate) fn actions(&self) -> &[Action] {
        &self.actions
    }

    /// A number that this plan has not given yet.
    pub(crate) fn number(&mut self) -> u64 {
        self.copies += 1;
        self.copies
    }

    /// Writes down how something is undone that is done next.
    pub(crate) fn will_undo(&mut self, entry: Entry) -> Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.add(&entry)?;
        }
        self.done.push(entry);
        Ok(())
    }

    /// Says before it is made that a file has to be removed again.
    pub(crate) fn will_make(&mut self, path: &Path, identity: Option<&Stat>) -> Result<()> {
        self.will_undo(Entry {
            undo: Undo::Remove.into(),
            path: bytes(path),
            device: identity.map_or(0, |stat| stat.st_dev),
            inode: identity.map_or(0, |stat| stat.st_ino),
            ..Entry::default()
        })
    }

    /// Makes a missing directory, to be removed again when the restore fails.
    pub(crate) fn make_directory(&mut self, path: &Path, mode: u32) -> Result<()> {
        self.will_undo(Entry { undo: Undo::RemoveDirectory.into(), path: bytes(path), ..Entry::default() })?;
        rustix::fs::mkdir(path, Mode::from_raw_mode(mode & 0o7777))
            .map_err(Error::system("making a directory", path.display()))
    }

    /// Keeps all that the actions will replace.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        for action in std::mem::take(&mut self.actions) {
            let entry = self.keep(&action);
            self.actions.push(action);
            if let Some(entry) = entry? {
                self.will_undo(entry)?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, action: &Action) -> Result<Option<Entry>> {
        match action {
            Action::Contents { path, file, .. } => self.keep_bytes(path, file, 0).map(Some),
            Action::Cut { path, file, size, .. } => self.keep_bytes(path, file, *size).map(Some),
            Action::Place { path, device, inode, .. } => Ok(Some(Entry {
                undo: Undo::Remove.into(),
                path: bytes(path),
                device: *device,
                inode: *inode,
                ..Entry::default()
            })),
            Action::Aside { path, to } => {
                Ok(Some(Entry { undo: Undo::MoveBack.into(), path: bytes(path), moved: bytes(to), ..Entry::default() }))
            }
        }
    }

    fn keep_bytes(&mut self, path: &Path, file: &OwnedFd, from: u64) -> Result<Entry> {
        let stat = rustix::fs::fstat(file).map_err(Error::system("looking at a file", path.display()))?;
        let (number, size) = (self.number(), stat.st_size.cast_unsigned());
        let place = self.copy(path, number);
        self.will_make(&place, None)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let copy = rustix::fs::open(&place, flags, Mode::RUSR | Mode::WUSR)
            .map_err(Error::system("keeping a file", place.display()))?;
        data::copy(file, from..size, &copy, 0, path)?;
        Ok(Entry {
            undo: Undo::WriteBack.into(),
            path: bytes(path),
            moved: bytes(&place),
            device: stat.st_dev,
            inode: stat.st_ino,
            size,
            mtime: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            copy: number,
            from,
        })
    }

    /// Beside the journal, or else beside the file.
    fn copy(&self, path: &Path, number: u64) -> PathBuf {
        self.journal.as_ref().map_or_else(|| data::beside(path, "kept", number), |journal| journal.copy(number))
    }

    /// Does all actions. May be called again after it failed.
    pub(crate) fn apply(&mut self, contents: &dyn Contents) -> Result<()> {
        self.actions.iter().try_for_each(|action| apply(action, contents))
    }

    /// Makes it final: from here on nothing is undone.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.finished = true;
        let copies = std::mem::take(&mut self.done);
        if let Some(journal) = &mut self.journal {
            journal.clear(self.copies)?;
        }
        for entry in copies.iter().filter(|entry| entry.undo() == Undo::WriteBack) {
            remove(&path(&entry.moved))?;
        }
        Ok(())
    }

    /// Puts everything back as it was before this restore.
    pub(crate) fn undo(&mut self) -> Result<()> {
        let entries = std::mem::take(&mut self.done);
        self.actions.clear();
        undo(&entries, self.journal.as_ref())?;
        self.journal.as_mut().map_or(Ok(()), |journal| journal.clear(self.copies))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.undo()
        {
            tracing::error!(%error, "a roll-back of files could not be undone; the next restore tries again");
        }
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}

fn apply(action: &Action, contents: &dyn Contents) -> Result<()> {
    match action {
        Action::Contents { path, file, id, size, changed } => {
            data::fill(file, contents, *id, *size, path)?;
            set_time(file, *changed, path)
        }
        Action::Cut { path, file, size, changed } => {
            rustix::fs::ftruncate(file, *size).map_err(Error::system("cutting a file back", path.display()))?;
            set_time(file, *changed, path)
        }
        Action::Place { path, from, .. } => match rename(from, path) {
            Err(Errno::NOENT) if path.exists() => Ok(()),
            other => other.map_err(Error::system("giving a file its name", path.display())),
        },
        Action::Aside { path, to } => match rename(path, to) {
            Err(Errno::NOENT) => Ok(()),
            other => other.map_err(Error::system("moving a newer file aside", path.display())),
        },
    }
}

fn rename(from: &Path, to: &Path) -> std::result::Result<(), Errno> {
    match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot promise it.
        Err(Errno::INVAL) if !to.exists() => rustix::fs::rename(from, to),
        other => other,
    }
}

/// Puts the time of the last change back.
pub(crate) fn set_time(file: &OwnedFd, changed: Changed, path: &Path) -> Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let modified = Timespec { tv_sec: changed.seconds, tv_nsec: changed.nanoseconds.into() };
    match rustix::fs::futimens(file, &Timestamps { last_access: omit, last_modification: modified }) {
        // Only the owner may; the contents are what counts.
        Ok(()) | Err(Errno::PERM | Errno::ACCESS) => Ok(()),
        Err(error) => Err(Error::system("setting the time of a file", path.display())(error)),
    }
}

fn undo(entries: &[Entry], journal: Option<&Journal>) -> Result<()> {
    let mut result = Ok(());
    for entry in entries.iter().rev() {
        let undone = undo_one(entry, journal);
        if result.is_ok() {
            result = undone;
        }
    }
    result
}

fn undo_one(entry: &Entry, journal: Option<&Journal>) -> Result<()> {
    let target = path(&entry.path);
    match entry.undo() {
        Undo::Nothing => Ok(()),
        Undo::Remove => {
            let there = rustix::fs::lstat(&target);
            let ours =
                there.is_ok_and(|stat| entry.inode == 0 || (stat.st_dev, stat.st_ino) == (entry.device, entry.inode));
            if ours { remove(&target) } else { Ok(()) }
        }
        Undo::RemoveDirectory => match rustix::fs::rmdir(&target) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(Error::system("removing a directory", target.display())(error)),
        },
        Undo::MoveBack => match rename(&path(&entry.moved), &target) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::EXIST) => warn_of_stranger(&target),
            Err(error) => Err(Error::system("moving a file back", target.display())(error)),
        },
        Undo::WriteBack => write_back(entry, &target, journal),
    }
}

fn write_back(entry: &Entry, target: &Path, journal: Option<&Journal>) -> Result<()> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::open(target, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return warn_of_stranger(target),
        other => other.map_err(Error::system("undoing a roll-back", target.display()))?,
    };
    let stat = rustix::fs::fstat(&file).map_err(Error::system("undoing a roll-back", target.display()))?;
    if (stat.st_dev, stat.st_ino) != (entry.device, entry.inode) {
        return warn_of_stranger(target);
    }
    let place = journal.map_or_else(|| path(&entry.moved), |journal| journal.copy(entry.copy));
    let copy = File::open(&place).map_err(Error::system("undoing a roll-back", place.display()))?;
    rustix::fs::ftruncate(&file, entry.size).map_err(Error::system("undoing a roll-back", target.display()))?;
    data::copy(&copy.into(), 0..entry.size.saturating_sub(entry.from), &file, entry.from, target)?;
    set_time(&file, Changed { seconds: entry.mtime, nanoseconds: entry.mtime_ns }, target)
}

/// Somebody has put another file there since, or taken ours away: theirs is not touched.
#[expect(clippy::unnecessary_wraps, reason = "the result of the undoing that it ends")]
fn warn_of_stranger(target: &Path) -> Result<()> {
    tracing::warn!(path = %target.display(), "not undone: it is no longer the file that was rolled back");
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(OsStr::from_bytes(path.as_os_str().as_bytes())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::system("removing a file", path.display())(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
