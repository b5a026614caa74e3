//! Open directories, and the directories that a task works in: `cwd` and `root`.
//!
//! Captured: path, flags, position of `readdir(3)`, whether it has been removed. A removed one comes back as a removed
//! one. Refused: one whose changes are told by a signal. Not captured: entries. The position is the file system's own number: it stays right in the same directory only.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use hdcr_image::{Record, Tag};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::contents::{self, Life};
use super::{FileKind, FileView, data, held, regfile, reopen};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::Pid;
use crate::model::{self, ObjectId};
use crate::openfile::{self, path_flag};
use crate::restore::Restore;
use crate::route;
use crate::survey::Survey;

pub(crate) struct Directory;

/// What is kept of an open directory.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DirectoryRecord {
    /// The directory's object.
    #[prost(uint64, tag = "1")]
    pub(crate) place: u64,
    #[prost(uint64, tag = "2")]
    position: u64,
    #[prost(uint32, tag = "3")]
    flags: u32,
}

impl Record for DirectoryRecord {
    const TAG: Tag = Tag(0x0212);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// What is kept of a directory itself, once however many descriptors and tasks are in it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PlaceRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) path: Vec<u8>,
    #[prost(bool, tag = "2")]
    removed: bool,
    #[prost(uint32, tag = "3")]
    mode: u32,
    #[prost(uint32, tag = "4")]
    uid: u32,
    #[prost(uint32, tag = "5")]
    gid: u32,
    /// Lies where a reboot removes it: made again when it is missing.
    #[prost(bool, tag = "6")]
    volatile: bool,
    /// Which one it is, for what its path alone must not be trusted with; 0: not known.
    #[prost(uint64, tag = "7")]
    device: u64,
    #[prost(uint64, tag = "8")]
    inode: u64,
}

impl Record for PlaceRecord {
    const TAG: Tag = Tag(0x0216);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Captures a directory by what a link of `/proc` says, once.
pub(crate) fn note(cx: &mut Capture<'_>, link: &[u8], stat: &Stat, owner: &Owner) -> Result<ObjectId> {
    let id = match cx.shared("directory", stat.st_dev, stat.st_ino) {
        Ok(id) => return Ok(id),
        Err(id) => id,
    };
    let (life, path) = contents::life_of(link, stat);
    // A directory has one name: without it, it has been removed.
    let removed = stat.st_nlink == 0 || link.ends_with(b" (deleted)") && life != Life::Named;
    if !removed && life != Life::Named {
        return Err(Error::refuse(hidden(link, owner)));
    }
    let as_path = model::path_of(&path);
    let record = PlaceRecord {
        removed,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        volatile: super::keep::volatile(&as_path, false),
        path,
        device: stat.st_dev,
        inode: stat.st_ino,
    };
    cx.frame(id, &record)?;
    Ok(id)
}

fn hidden(link: &[u8], owner: &Owner) -> Refusal {
    let owner = Owner { path: Some(model::path_of(link)), ..owner.clone() };
    let cause = "another file system is mounted over it, or it lies outside of this root";
    regfile::refuse_path("path-hidden", "directory", owner, cause, "leave it before the checkpoint")
}

/// A directory that tells somebody of its changes (`F_NOTIFY`). Only to whom is to be seen, not of which: a directory has an
/// owner for signals for that reason alone, and keeps it when it has told all that it was to tell.
fn tells(view: &FileView, file: &OwnedFd) -> Result<Option<Refusal>> {
    if view.info.flags & path_flag() != 0 || openfile::told(view, file)?.0.pid == 0 {
        return Ok(None);
    }
    let cause = "it has changes in this directory told by a signal (F_NOTIFY), and of which ones is not to be seen";
    Ok(Some(view.refuse("directory-notify", "directory", cause, "use inotify(7), or close it before the checkpoint")))
}

impl FileKind for Directory {
    type Record = DirectoryRecord;

    fn claims(view: &FileView) -> bool {
        view.starts_with("/") && FileType::from_raw_mode(view.stat.st_mode) == FileType::Directory
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        if is_hidden(&view.link, &view.stat) {
            survey.refuse(hidden(&view.link, &Owner { pid: Some(view.pid), fd: Some(view.fd), ..Owner::default() }));
        }
        if let Some(refusal) = tells(view, &view.duplicate()?)? {
            survey.refuse(refusal);
        }
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<DirectoryRecord> {
        if let Some(refusal) = tells(view, file)? {
            return Err(Error::refuse(refusal));
        }
        let owner = Owner { pid: Some(view.pid), fd: Some(view.fd), ..Owner::default() };
        let place = note(cx, &view.link, &view.stat, &owner)?;
        Ok(DirectoryRecord { place: place.0, position: view.info.pos, flags: regfile::flags_of(view) })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: DirectoryRecord) -> Result<OwnedFd> {
        let _turn = cx.turn_of_holders(id)?;
        let flags = OFlags::from_bits_retain(record.flags & regfile::AT_OPEN) | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = ObjectId(record.place);
        let known = is_open(cx, place);
        let door = data::door(open(cx, place)?);
        let file = match rustix::fs::open(&door, flags, Mode::empty()) {
            Err(Errno::ACCESS) => held_open(cx, place, flags),
            other => other,
        };
        let file = file.map_err(Error::system("opening a directory again", place))?;
        if record.position != 0 && !flags.contains(OFlags::PATH) {
            rustix::fs::seek(&file, SeekFrom::Start(record.position))
                .map_err(Error::system("setting a directory's position", place))?;
        }
        if !known {
            // Nobody has its number yet. The file leads there as well, and programs have many: each would be held twice.
            cx.parts.remove(&place);
            cx.leads.insert(place, id);
        }
        Ok(file)
    }
}

/// Captures the directory behind a link of `/proc/PID` (`cwd`, `root`).
pub(crate) fn note_link(cx: &mut Capture<'_>, pid: Pid, name: &str) -> Result<ObjectId> {
    let link = crate::procfs::link(pid, name)?;
    let stat = crate::procfs::stat_through(pid, name)
        .map_err(Error::system("looking at a directory", model::path_of(&link).display()))?;
    note(cx, &link, &stat, &Owner { pid: Some(pid), ..Owner::default() })
}

/// Refuses a directory behind a link of `/proc/PID` that no path leads to, while the program runs.
pub(crate) fn survey_link(survey: &mut Survey<'_>, pid: Pid, (name, link): (&str, &[u8])) {
    // A process that ends meanwhile has none.
    let Ok(stat) = crate::procfs::stat_through(pid, name) else { return };
    if is_hidden(link, &stat) {
        survey.refuse(hidden(link, &Owner { pid: Some(pid), ..Owner::default() }));
    }
}

/// Whether a directory that is not removed is not at its path.
fn is_hidden(link: &[u8], stat: &Stat) -> bool {
    let (life, _) = contents::life_of(link, stat);
    stat.st_nlink > 0 && life != Life::Named && !link.ends_with(b" (deleted)")
}

/// A descriptor (`O_PATH`) for the directory with an id; it stays ours.
pub(crate) fn service(cx: &mut Restore<'_>, id: ObjectId) -> Result<RawFd> {
    open(cx, id).map(AsRawFd::as_raw_fd)
}

/// The open file of the tree that leads to a directory.
fn leading<'a>(cx: &'a Restore<'_>, id: ObjectId) -> Option<&'a OwnedFd> {
    cx.leads.get(&id).and_then(|file| cx.made.get(file))
}

fn is_open(cx: &Restore<'_>, id: ObjectId) -> bool {
    cx.parts.contains_key(&id) || leading(cx, id).is_some()
}

fn open<'a>(cx: &'a mut Restore<'_>, id: ObjectId) -> Result<&'a OwnedFd> {
    if !is_open(cx, id) {
        let record = cx.record::<PlaceRecord>(id)?;
        let file = make(cx, &record)?;
        let file = cx.lift(file)?;
        cx.parts.insert(id, vec![file]);
    }
    let file = cx.parts.get(&id).and_then(|files| files.first()).or_else(|| leading(cx, id));
    file.ok_or_else(|| Error::Unsound(format!("{id} is no directory")))
}

/// Opens a directory that the program's user may not open: the very one that somebody else had opened for it.
fn held_open(cx: &Restore<'_>, place: ObjectId, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let record = cx.record::<PlaceRecord>(place).map_err(|_| Errno::ACCESS)?;
    let path = contents::checked_path(&record.path).map_err(|_| Errno::ACCESS)?;
    out_of_reach(&record, &cx.mapped(&path), flags)
}

fn out_of_reach(record: &PlaceRecord, path: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let file = held::beyond_links(path, flags)?;
    if is_the_one(record, &file) { Ok(file) } else { Err(Errno::ACCESS) }
}

/// The very directory, behind a link that somebody else may have put there.
fn through_links(record: &PlaceRecord, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok();
    file.filter(|file| is_the_one(record, file)).ok_or_else(|| Error::refuse(route::barred("directory", path)))
}

fn is_the_one(record: &PlaceRecord, file: &OwnedFd) -> bool {
    let same = |stat: Stat| record.inode != 0 && (stat.st_dev, stat.st_ino) == (record.device, record.inode);
    rustix::fs::fstat(file).is_ok_and(same)
}

fn look(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    held::look(path, OFlags::DIRECTORY)
}

fn make(cx: &mut Restore<'_>, record: &PlaceRecord) -> Result<OwnedFd> {
    let path = cx.mapped(&contents::checked_path(&record.path)?);
    if record.removed {
        return make_removed(cx, record, &path);
    }
    match look(&path) {
        Err(Errno::ACCESS) => out_of_reach(record, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)
            .map_err(Error::system("opening a directory", path.display())),
        Err(Errno::LOOP) => through_links(record, &path),
        Err(Errno::NOENT) if record.volatile => make_directory(cx, record, &path),
        Err(Errno::NOENT | Errno::NOTDIR) => {
            let owner = Owner { path: Some(path), ..Owner::default() };
            let remedy = "make it again, or name another with --map-path";
            Err(Error::refuse(regfile::refuse_path("directory-missing", "directory", owner, "it is gone", remedy)))
        }
        other => other.map_err(Error::system("opening a directory", path.display())),
    }
}

fn make_directory(cx: &mut Restore<'_>, record: &PlaceRecord, path: &Path) -> Result<OwnedFd> {
    let missing: Vec<PathBuf> = path.ancestors().take_while(|place| route::directory(place).is_err()).map(Path::to_owned).collect();
    for place in missing.iter().rev() {
        cx.plan.make_directory(place, record.mode)?;
        let made = route::open(place, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        reopen::own(
            &made.map_err(Error::system("making a directory", place.display()))?,
            record.uid,
            record.gid,
            record.mode,
            place,
        )?;
    }
    look(path).map_err(Error::system("opening a directory", path.display()))
}

/// Makes a directory and removes it: under its own name where that is free.
fn make_removed(cx: &mut Restore<'_>, record: &PlaceRecord, path: &Path) -> Result<OwnedFd> {
    let name = path.file_name().unwrap_or_default();
    let free = reopen::nearest_directory(path).join(name);
    let hidden = if route::lstat(&free).is_ok() { Some(reopen::hidden_directory(cx, &free)?) } else { None };
    let place = hidden.as_ref().map_or(free, |hidden| hidden.join(name));
    cx.plan.make_directory(&place, 0o700)?;
    let open = route::open(&place, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
    let file = open.map_err(Error::system("making a directory", place.display()))?;
    reopen::own(&file, record.uid, record.gid, record.mode, &place)?;
    for made in [Some(&place), hidden.as_ref()].into_iter().flatten() {
        route::rmdir(made).map_err(Error::system("removing a directory", made.display()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_come_back_as_they_were() {
        let record = DirectoryRecord { place: 4, position: u64::MAX / 3, flags: 0o200_000 };
        assert_eq!(DirectoryRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        let place =
            PlaceRecord { path: b"/tmp/x".to_vec(), removed: true, mode: 0o40755, uid: 1, gid: 2, volatile: true, device: 3, inode: 4 };
        assert_eq!(PlaceRecord::decode(&place.encode().unwrap(), 1).unwrap(), place);
    }
}
