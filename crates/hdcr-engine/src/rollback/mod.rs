//! Rolling file contents back with the memory: the last step of a restore, planned, journaled, undone when it fails.
//!
//! While a restore opens files it only adds actions to a [`Plan`]. [`Plan::prepare`] keeps what they will replace,
//! [`Plan::apply`] does them, each in place so that descriptors and mappings stay valid, [`Plan::finish`] makes them
//! final. A plan that is dropped before that undoes all it has done; when its process is killed, the next restore over
//! the same journal does so first ([`repair`]).
//!
//! What is kept and the journal reach the disk before a file is touched, and the files before the journal ends: a power cut
//! in the middle is repaired like a death. Everything is done with the rights that were in force when it was planned
//! ([`crate::rights`]), also when it is another process that undoes it.
//!
//! | step | by | what a death in it leaves | who finds it |
//! | --- | --- | --- | --- |
//! | files are opened, missing ones made beside their names, newer ones moved aside | the plan | names of ours and moved files, each written down before | [`repair`] removes and moves back |
//! | what will be replaced is copied; copies, then the journal are on the disk | [`Plan::prepare`] | copies | [`repair`] removes them |
//! | files are written, cut, named; then synced, then their directories | [`Plan::apply`] | files half old, half new | [`repair`] writes the copies back |
//! | the tree is let go: from here on the program may have seen the files | the restore | files as at the checkpoint, the journal | who has let it go says so: [`settle`]; who does not know ends the tree first, then [`repair`] |
//! | the journal says that nothing is undone any more | [`Plan::finish`], [`settle`] | as before that, or as after it | likewise |
//! | newer bytes get the name under which they stay, what stays is listed, the rest is removed, the journal last | the same | some of it done | [`repair`] and [`settle`] do the rest |
//!
//! `deaths.rs` dies at each of these steps, and at each step of the repair and of the settling.

mod act;
mod further;
mod journal;
mod left;
pub mod reserve;
pub mod since;
mod start;
mod steps;
mod target;
mod undo;
mod unique;
mod witness;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::Errno;

pub(crate) use act::set_time;
use journal::Come;
pub(crate) use journal::{Entry, Journal, Then, Undo};
pub use start::to_the_start;
use steps::Steps;
pub(crate) use target::Target;
pub(crate) use witness::Witness;

use crate::error::{Error, Refusal, Result};
use crate::model::ObjectId;
use crate::resource::data;
use crate::resource::held;
use crate::restore::Contents;
use crate::rights::{Rights, Turn};
use crate::route;

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
    Contents { path: PathBuf, file: Target, id: ObjectId, size: u64, changed: Changed },
    /// The file gets the head and the tail that an object holds, and a length.
    Edges { path: PathBuf, file: Target, id: ObjectId, size: u64, changed: Changed },
    /// The file is cut back to a length.
    Cut { path: PathBuf, file: Target, size: u64, changed: Changed },
    /// A new file, complete under a name of ours, gets its true name.
    Place { path: PathBuf, from: PathBuf },
    /// A file that is newer than the checkpoint is moved out of the way.
    Aside { path: PathBuf, to: PathBuf },
}

impl Action {
    /// Whose turn it is.
    fn path(&self) -> &Path {
        match self {
            Self::Contents { path, .. }
            | Self::Edges { path, .. }
            | Self::Cut { path, .. }
            | Self::Place { path, .. }
            | Self::Aside { path, .. } => path,
        }
    }

    /// The length that a file has afterwards.
    fn size(&self) -> u64 {
        match self {
            Self::Contents { size, .. } | Self::Edges { size, .. } | Self::Cut { size, .. } => *size,
            Self::Place { .. } | Self::Aside { .. } => 0,
        }
    }
}

/// The actions of one restore.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    journal: Option<Journal>,
    done: Vec<Entry>,
    actions: Vec<Planned>,
    /// Of so many actions, the first ones, all is kept that they will replace.
    prepared: usize,
    copies: u64,
    base: Option<u64>,
    finished: bool,
    /// Files that were there before, of which new names were removed.
    unnamed: BTreeSet<since::Identity>,
    steps: Steps,
    /// What a user should know.
    notes: Vec<Refusal>,
    /// Few actions are brought to the disk as many are.
    #[cfg(test)]
    together: bool,
}

/// An action, and how it is done.
#[derive(Debug)]
struct Planned {
    action: Action,
    rights: Option<Rights>,
    newer: Newer,
}

/// What becomes of the bytes that an action takes away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Newer {
    /// They are of the program alone, which writes them again.
    Go,
    /// They may be of somebody else, too: kept there until the next roll-back.
    Stay(PathBuf),
}

/// Undoes a roll-back that died, if there is one; `true` when there was.
pub fn repair(directory: &Path) -> Result<bool> {
    if !Journal::is_in(directory) {
        return Ok(false);
    }
    let steps = Steps::default();
    let (mut journal, entries) = Journal::open(directory)?;
    match journal.come() {
        Come::Open => {
            undo::undo(&entries, Some(&journal), &[], &steps).map_err(|error| undo::stuck(directory, &error))?;
            journal.end(Come::Undone, &steps)?;
        }
        Come::Undone => {}
        Come::Final => {
            left::put_away(&journal, &entries, &steps)?;
            if let Err(error) = left::list_and_remove(&journal, &entries, &steps) {
                tracing::warn!(%error, path = %directory.display(), "left over from a roll-back");
            }
        }
    }
    journal.clear(last_copy(&entries), &steps)?;
    Ok(journal.come() != Come::Final && !entries.is_empty())
}

fn last_copy(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.copy).max().unwrap_or_default()
}

/// Makes a roll-back final whose process died after its tree had been let go and before it could do so itself.
pub fn settle(directory: &Path) -> Result<()> {
    if !Journal::is_in(directory) {
        return Ok(());
    }
    let (mut journal, entries) = Journal::open(directory)?;
    let steps = Steps::default();
    left::settle(&mut journal, &entries, &steps)?;
    journal.clear(last_copy(&entries), &steps)
}

/// Whether a roll-back has died in a directory, and nobody has repaired it.
pub fn has_died_in(directory: &Path) -> bool {
    Journal::is_in(directory)
}

/// Whether a roll-back that was to be final is: nothing of it would be undone.
fn is_final(directory: &Path) -> bool {
    !Journal::is_in(directory)
        || Journal::open(directory).is_ok_and(|(journal, entries)| entries.is_empty() || journal.come() == Come::Final)
}

/// The rights that are in force, when they are not those of this process.
fn in_force() -> Result<Option<Rights>> {
    let now = Rights::now()?;
    let _turn = Turn::home()?;
    Ok(Some(now).filter(|now| Rights::now().is_ok_and(|home| home != *now)))
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

    /// Adds an action, to be done with the rights that are in force now.
    pub(crate) fn add(&mut self, action: Action, newer: Newer) -> Result<()> {
        self.actions.push(Planned { action, rights: in_force()?, newer });
        Ok(())
    }

    /// The actions so far.
    #[cfg(test)]
    pub(crate) fn actions(&self) -> Vec<&Action> {
        self.actions.iter().map(|planned| &planned.action).collect()
    }

    /// As a death leaves it: nothing is undone.
    #[cfg(test)]
    pub(crate) fn die(mut self) {
        self.finished = true;
    }

    /// What a user should know of it, once.
    pub(crate) fn notes(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.notes)
    }

    /// A number that this plan has not given yet.
    pub(crate) fn number(&mut self) -> u64 {
        self.copies += 1;
        self.copies
    }

    /// Writes down how something is undone that is done next, with the rights that are in force now.
    fn write_down(&mut self, entry: Entry) -> Result<()> {
        let rights = in_force()?;
        self.write_down_for(entry, rights.as_ref())
    }

    fn write_down_for(&mut self, entry: Entry, rights: Option<&Rights>) -> Result<()> {
        let entry = entry.with_rights(rights);
        self.steps.step("say", &path(&entry.path));
        if let Some(journal) = &mut self.journal {
            journal.add(&entry)?;
        }
        self.done.push(entry);
        Ok(())
    }

    /// Likewise, when it must not be done before that is on the disk: it is about something that is not ours.
    pub(crate) fn will_undo(&mut self, entry: Entry) -> Result<()> {
        self.write_down(entry)?;
        self.sync()
    }

    /// Files that get their true names at the end, and where they are until then.
    pub(crate) fn to_be_placed(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.actions.iter().filter_map(|planned| match &planned.action {
            Action::Place { path, from } => Some((path.as_path(), from.as_path())),
            Action::Contents { .. } | Action::Edges { .. } | Action::Cut { .. } | Action::Aside { .. } => None,
        })
    }

    /// Says before it is made that a file has to be removed again. Without a witness: the name is one that only we give.
    pub(crate) fn will_make(&mut self, path: &Path, witness: Option<Witness>) -> Result<()> {
        let entry = Entry { undo: Undo::Remove.into(), path: bytes(path), ..Entry::default() };
        self.write_down(witness.unwrap_or_default().into_entry(entry))
    }

    /// Says that a file of the program gets a second name there for a moment.
    pub(crate) fn will_link(&mut self, path: &Path, witness: Witness) -> Result<()> {
        let entry = Entry { undo: Undo::RemoveSecondName.into(), path: bytes(path), ..Entry::default() };
        self.write_down(witness.into_entry(entry))
    }

    /// Says that a socket is made there next. Who it is is not known before.
    pub(crate) fn will_bind(&mut self, path: &Path) -> Result<()> {
        // The clock of file systems, which stands still between two ticks.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let (mtime, mtime_ns) = (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or_default());
        self.write_down(Entry {
            undo: Undo::RemoveSocket.into(),
            path: bytes(path),
            mtime,
            mtime_ns,
            ..Entry::default()
        })
    }

    /// Says that something newer is moved aside, to be moved back when the restore fails, and else to stay for the user. It
    /// may be moved when that is on the disk ([`Plan::sync`]).
    pub(crate) fn will_move_aside(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.write_down(Entry { then: Then::Stays.into(), ..moving(from, to) })
    }

    /// Says that something goes where it was at the checkpoint, to be moved back when the restore fails: likewise.
    pub(crate) fn will_move(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.write_down(moving(from, to))
    }

    /// All that was said so far is on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.journal.as_ref().map_or(Ok(()), |journal| journal.sync(&self.steps))
    }

    /// Moves a file out of the way, to be moved back when the restore fails, and else to be removed.
    pub(crate) fn move_away(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.will_undo(Entry { then: Then::Goes.into(), ..moving(from, to) })?;
        self.steps.step("move", from);
        rename(from, to).map_err(Error::system("moving a file away", from.display()))
    }

    /// Makes a missing directory, to be removed again when the restore fails.
    pub(crate) fn make_directory(&mut self, path: &Path, mode: u32) -> Result<()> {
        let failed = || Error::system::<Errno>("making a directory", path.display());
        let entry = |path: &Path| Entry { undo: Undo::RemoveDirectory.into(), path: bytes(path), ..Entry::default() };
        let mode = Mode::from_raw_mode(mode & 0o7777);
        if data::ours(path.file_name().unwrap_or_default().as_bytes()) {
            self.write_down(entry(path))?;
            self.steps.step("make", path);
            return self.with_room_for(1, || route::mkdir(path, mode).map_err(failed()));
        }
        // Under a name of ours first: an empty directory that somebody else makes there meanwhile is not removed for ours.
        let from = data::free_beside(path, "new", || self.unique());
        self.write_down(entry(&from))?;
        self.steps.step("make", &from);
        self.with_room_for(1, || route::mkdir(&from, mode).map_err(failed()))?;
        let witness = Witness::at(&from).ok_or(Errno::NOENT).map_err(failed())?;
        self.write_down(witness.into_entry(entry(path)))?;
        self.steps.step("move", &from);
        rename(&from, path).map_err(failed())
    }

    /// Makes something that has no contents, to be removed again when the restore fails.
    pub(crate) fn make_name(
        &mut self,
        path: &Path,
        make: impl Fn(&Path) -> std::result::Result<(), Errno>,
    ) -> Result<()> {
        let failed = || Error::system::<Errno>("making a name", path.display());
        let from = data::free_beside(path, "new", || self.unique());
        self.will_make(&from, None)?;
        self.steps.step("make", &from);
        self.with_room_for(1, || make(&from).map_err(failed()))?;
        let witness = Witness::at(&from).ok_or(Errno::NOENT).map_err(failed())?;
        self.will_make(path, Some(witness))?;
        self.steps.step("move", &from);
        rename(&from, path).map_err(failed())
    }

    /// Keeps all that the actions so far will replace. When this is done, a power cut may come. May be called again when
    /// there are more.
    pub(crate) fn prepare(&mut self, contents: &dyn Contents) -> Result<()> {
        let fresh = self.actions.split_off(self.prepared.min(self.actions.len()));
        let kept = self.keep_all(&fresh, contents);
        let any = !fresh.is_empty();
        self.actions.extend(fresh);
        kept?;
        self.prepared = self.actions.len();
        match &self.journal {
            Some(journal) if any => journal.sync(&self.steps),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the disk is waited for once for all of them.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "a test has few"))]
    fn are_many(&self, actions: &[Planned]) -> bool {
        #[cfg(test)]
        if self.together {
            return true;
        }
        actions.len() > act::MANY
    }

    fn keep_all(&mut self, actions: &[Planned], contents: &dyn Contents) -> Result<()> {
        let directory = self.journal.as_ref().map(|journal| journal.directory().to_owned());
        let Some(directory) = directory.filter(|_| self.are_many(actions)) else {
            return actions.iter().try_for_each(|planned| {
                let entry = self.keep(planned, true)?;
                self.write_down_for(entry, planned.rights.as_ref())
            });
        };
        // What says that a copy is written back must not be on the disk before the copy is.
        let together = steps::waits_as_one(&directory);
        let mut entries = Vec::new();
        for planned in actions {
            entries.push(self.keep(planned, !together)?);
            contents.goes_on();
        }
        if together {
            self.steps.sync_file_system_of(&directory)?;
        }
        let rights = actions.iter().map(|planned| planned.rights.as_ref());
        entries.into_iter().zip(rights).try_for_each(|(entry, rights)| self.write_down_for(entry, rights))
    }

    /// Keeps what an action will replace. `now`: until it is on the disk.
    fn keep(&mut self, planned: &Planned, now: bool) -> Result<Entry> {
        match &planned.action {
            Action::Contents { path, file, .. } | Action::Edges { path, file, .. } => {
                self.keep_bytes((path, file), 0, planned, now)
            }
            Action::Cut { path, file, size, .. } => self.keep_bytes((path, file), *size, planned, now),
            Action::Place { path, from } => {
                let _turn = Turn::to_some(planned.rights.as_ref())?;
                let witness = Witness::at(from).ok_or(Errno::NOENT);
                let witness = witness.map_err(Error::system("looking at a new file", from.display()))?;
                Ok(witness.into_entry(Entry { undo: Undo::Remove.into(), path: bytes(path), ..Entry::default() }))
            }
            Action::Aside { path, to } => {
                let _turn = Turn::to_some(planned.rights.as_ref())?;
                Ok(Entry { then: Then::Stays.into(), ..moving(path, to) })
            }
        }
    }

    fn keep_bytes(&mut self, (path, file): (&Path, &Target), from: u64, planned: &Planned, now: bool) -> Result<Entry> {
        let file = {
            let _turn = Turn::to_some(planned.rights.as_ref())?;
            file.reach(path)?
        };
        let file: &OwnedFd = &file;
        let stat = rustix::fs::fstat(file).map_err(Error::system("looking at a file", path.display()))?;
        let (number, size) = (self.number(), stat.st_size.cast_unsigned());
        let from = from.min(size);
        let place = self.copy(path, number);
        self.will_make(&place, None)?;
        // Whatever has this name has no journal any more that wants it. It may have a second name, under which it stays.
        undo::remove(&place)?;
        self.steps.step("keep", &place);
        let reader = held::reader(file, planned.rights.as_ref(), path)?;
        let keep = |size: u64| {
            self.with_room_for(reserve::room_of(&stat, from..size), || {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let copy = rustix::fs::open(&place, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(Error::system("keeping a file", place.display()))?;
                data::copy(reader.as_ref().unwrap_or(file), from..size, &copy, 0, path)?;
                if now { self.steps.sync(&copy, &place) } else { Ok(()) }
            })
        };
        let size = match keep(size) {
            Err(error) if reserve::has_no_room(&error) => {
                let (size, note) = reserve::less(planned, path, from..size, &place)?;
                keep(size)?;
                self.notes.push(note);
                size
            }
            kept => kept.map(|()| size)?,
        };
        let entry = Entry {
            undo: Undo::WriteBack.into(),
            path: bytes(path),
            moved: bytes(&place),
            size,
            mtime: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            copy: number,
            from,
            newer: match &planned.newer {
                Newer::Stay(place) => bytes(place),
                Newer::Go => Vec::new(),
            },
            ..Entry::default()
        };
        Ok(Witness::of(file, path)?.into_entry(entry))
    }

    /// Where the disk is full, from the reserve.
    fn with_room_for<T>(&self, bytes: u64, write: impl FnMut() -> Result<T>) -> Result<T> {
        let mut write = write;
        match &self.journal {
            Some(journal) => reserve::with_room_for(journal.directory(), bytes, write),
            None => write(),
        }
    }

    /// Beside the journal, or else beside the file.
    fn copy(&self, path: &Path, number: u64) -> PathBuf {
        self.journal.as_ref().map_or_else(|| data::beside(path, "kept", number), |journal| journal.copy(number))
    }

    /// Where the newer part of a file is found after the roll-back, if it is kept.
    pub(crate) fn place_of_newer(&mut self, path: &Path) -> Option<PathBuf> {
        let directory = self.journal.as_ref()?.directory().to_owned();
        let name = path.file_name().unwrap_or_default();
        let short = OsStr::from_bytes(name.as_bytes().get(..name.len().min(200)).unwrap_or_default());
        loop {
            let place = directory.join(format!("newer-{}-", self.number())).into_os_string();
            let place = PathBuf::from([place.as_os_str(), short].into_iter().collect::<std::ffi::OsString>());
            if place.symlink_metadata().is_err() {
                return Some(place);
            }
        }
    }

    /// Does all actions, and waits until they are on the disk. May be called again after it failed.
    pub(crate) fn apply(&mut self, contents: &dyn Contents) -> Result<()> {
        for planned in &self.actions {
            let _turn = Turn::to_some(planned.rights.as_ref())?;
            act::apply(&planned.action, contents, &self.steps)?;
            contents.goes_on();
        }
        act::sync_all(&self.actions, self.are_many(&self.actions), contents, &self.steps)
    }

    /// Makes it final: from here on nothing is undone.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.finished = true;
        let entries = std::mem::take(&mut self.done);
        if let Some(journal) = &mut self.journal {
            left::settle(journal, &entries, &self.steps)?;
            return journal.clear(self.copies, &self.steps);
        }
        entries
            .iter()
            .filter(|entry| entry.undo() == Undo::WriteBack)
            .try_for_each(|entry| undo::remove(&path(&entry.moved)))
    }

    /// Puts everything back as it was before this restore.
    pub(crate) fn undo(&mut self) -> Result<()> {
        // Once: when it fails, what is kept is for the next restore.
        self.finished = true;
        undo::undo(&self.done, self.journal.as_ref(), &self.actions, &self.steps)?;
        if let Some(journal) = &mut self.journal {
            journal.end(Come::Undone, &self.steps)?;
            journal.clear(self.copies, &self.steps)?;
        }
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

/// How a move is undone; of what lies there now.
fn moving(from: &Path, to: &Path) -> Entry {
    let entry = Entry { undo: Undo::MoveBack.into(), path: bytes(from), moved: bytes(to), ..Entry::default() };
    Witness::at(from).unwrap_or_default().into_entry(entry)
}

/// The directory of a path, to rename in: where it cannot be reached with the rights in force, reached without links. What
/// may be done in it is still up to them.
fn directory_of(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let above = path.parent().ok_or(Errno::INVAL)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match route::directory(above) {
        Err(Errno::ACCESS) => held::beyond_links(above, flags),
        other => other,
    }
}

pub(crate) fn rename(from: &Path, to: &Path) -> std::result::Result<(), Errno> {
    let (Some(old), Some(new)) = (from.file_name(), to.file_name()) else { return Err(Errno::INVAL) };
    let (source, target) = (directory_of(from)?, directory_of(to)?);
    match rustix::fs::renameat_with(&source, old, &target, new, RenameFlags::NOREPLACE) {
        // A file system that cannot promise it.
        Err(Errno::INVAL) if rustix::fs::statat(&target, new, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_err() => {
            rustix::fs::renameat(&source, old, &target, new)
        }
        other => other,
    }
}

#[cfg(test)]
mod deaths;
#[cfg(test)]
mod tests;
