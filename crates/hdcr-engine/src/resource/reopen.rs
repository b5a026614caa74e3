//! The inodes of an image, found or made again: the way back of [`super::contents`].
//!
//! Each is opened once; open files and mappings then open it anew through `/proc/self/fd`, which cannot lead to another
//! inode, whatever happens to its name meanwhile. Contents of files that have a name are not touched here: that is
//! planned in [`crate::rollback`] and done last.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use hdcr_image::Record;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::contents::{self, InodeRecord, Keep, Life, ParentDirectory};
use super::late::LateRecord;
use super::{data, held, newer, shmem, touched};
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::restore::{Restore, StoredFrame};
use crate::rights::Turn;
use crate::rollback::{Action, Changed, Newer, Target, Witness};
use crate::{route, stored};

mod anew;
mod judge;
mod private;

pub(crate) use judge::obstacles;
use judge::{Verdict, is_another, judge};
pub(crate) use private::{executable, stand_in};
use private::{in_memory, reopenable};

/// An inode that has been found or made.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Leads to it: opened with `O_PATH`, or for reading and writing when it was made here.
    pub(crate) base: OwnedFd,
    /// Opened by `O_TMPFILE`, so that the first open file takes this very description.
    pub(crate) nameless: bool,
    read: Option<OwnedFd>,
    write: Option<OwnedFd>,
}

/// All of a restore.
#[derive(Debug, Default)]
pub(crate) struct OpenedInodes {
    /// Those that the tree holds.
    held: BTreeMap<ObjectId, Opened>,
    /// Those that it does not hold: of them there may be more than can be open.
    unheld: BTreeSet<ObjectId>,
    /// Files that are copied instead of what the image holds.
    originals: BTreeMap<ObjectId, OwnedFd>,
    /// Device and number of each that was opened.
    numbers: BTreeSet<(u64, u64)>,
}

impl OpenedInodes {
    /// All objects that were opened.
    pub(super) fn ids(&self) -> Vec<ObjectId> {
        self.held.keys().chain(&self.unheld).copied().collect()
    }

    fn met(&mut self, opened: &Opened) {
        if let Ok(stat) = rustix::fs::fstat(&opened.base) {
            self.numbers.insert((stat.st_dev, stat.st_ino));
        }
    }
}

impl Opened {
    pub(crate) fn new(base: OwnedFd) -> Self {
        Self { base, nameless: false, read: None, write: None }
    }
}

/// The record of an inode, with what was added to it when the tree ran again.
pub(crate) fn record_of(frames: &BTreeMap<(u16, ObjectId), StoredFrame>, id: ObjectId) -> Result<InodeRecord> {
    let mut record = stored::one::<InodeRecord>(frames, id)?;
    if frames.contains_key(&(LateRecord::TAG.0, id)) {
        let late = stored::one::<LateRecord>(frames, id)?;
        let contents = late.contents || late.in_common;
        (record.digest, record.sampled, record.contents) = (late.digest, late.sampled, contents);
    }
    Ok(record)
}

/// Finds or makes the inode with an id, once.
pub(crate) fn open<'a>(cx: &'a mut Restore<'_>, id: ObjectId) -> Result<&'a Opened> {
    if !cx.inodes.held.contains_key(&id) {
        let record = record_of(cx.frames, id)?;
        let opened = make(cx, id, &record)?;
        cx.inodes.met(&opened);
        cx.inodes.held.insert(id, opened);
    }
    cx.inodes.held.get(&id).ok_or_else(|| Error::Unsound(format!("{id} is no inode")))
}

/// Likewise, of an inode that the tree does not hold: nothing of it stays open.
pub(crate) fn unheld(cx: &mut Restore<'_>, id: ObjectId) -> Result<()> {
    if cx.inodes.held.contains_key(&id) || !cx.inodes.unheld.insert(id) {
        return Ok(());
    }
    let record = record_of(cx.frames, id)?;
    let opened = make(cx, id, &record)?;
    cx.inodes.met(&opened);
    Ok(())
}

/// How the file of an action is reached again, which the tree may hold or not.
fn target(cx: &Restore<'_>, writer: OwnedFd, path: &Path) -> Result<Target> {
    if cx.unheld { Target::named(&writer, path) } else { Ok(Target::Open(writer)) }
}

/// Acts with the rights of the process that a file which nobody holds belongs to.
pub(crate) fn turn_of_user(cx: &Restore<'_>, id: ObjectId) -> Result<Turn> {
    let user = record_of(cx.frames, id)?.uid;
    Turn::to_some(cx.rights.of_user(rustix::fs::Uid::from_raw(user)))
}

/// Opens an inode anew.
pub(crate) fn open_anew(cx: &mut Restore<'_>, id: ObjectId, flags: OFlags) -> Result<OwnedFd> {
    let record = record_of(cx.frames, id)?;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    held::open(&record, &open(cx, id)?.base, flags)
}

/// A descriptor for mappings of an inode; it stays ours.
pub(crate) fn service(cx: &mut Restore<'_>, id: ObjectId, write: bool) -> Result<RawFd> {
    let slot =
        |opened: &Opened| if write { opened.write.as_ref() } else { opened.read.as_ref() }.map(AsRawFd::as_raw_fd);
    if let Some(ready) = slot(open(cx, id)?) {
        return Ok(ready);
    }
    let file = open_anew(cx, id, if write { OFlags::RDWR } else { OFlags::RDONLY })?;
    let file = cx.lift(file)?;
    let number = file.as_raw_fd();
    if let Some(opened) = cx.inodes.held.get_mut(&id) {
        if write {
            opened.write = Some(file);
        } else {
            opened.read = Some(file);
        }
    }
    Ok(number)
}

/// Whether an inode has been opened for the restored tree, whose records say what becomes of it.
pub(crate) fn is_open(cx: &Restore<'_>, stat: &Stat) -> bool {
    cx.inodes.numbers.contains(&(stat.st_dev, stat.st_ino))
}

/// The enumerations of a record, checked.
pub(crate) fn kind_of(record: &InodeRecord) -> Result<(Life, Keep)> {
    let known = Life::try_from(record.life).ok().zip(Keep::try_from(record.keep).ok());
    known.ok_or_else(|| Error::Unsound(format!("{}: unknown kind of file", model::path_of(&record.path).display())))
}

fn make(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    match kind_of(record)?.0 {
        Life::Memfd => shmem::make_memfd(cx, id, record),
        Life::Anonymous => shmem::make_anonymous(cx, id, record),
        Life::Unlinked if record.text && !record.contents => Err(gone(record)),
        Life::Unlinked => without_name(cx, id, record),
        Life::Nameless => nameless(cx, id, record),
        Life::Elsewhere => elsewhere(cx, id, record),
        Life::Named => named(cx, id, record),
        Life::Device => device(cx, record),
    }
}

/// A file that was renamed while it was in use: the inode itself, else under its later name if that was found.
fn elsewhere(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    if let Some(file) = by_handle(record) {
        let path = record.checked_path()?;
        let opened = existing(cx, id, record, &path, file)?;
        return Ok(under_old_name(cx, &path, opened));
    }
    if !record.later_path.is_empty() {
        return named(cx, id, &InodeRecord { path: record.later_path.clone(), ..record.clone() });
    }
    if record.contents {
        cx.notes.push(renamed(record));
        return without_name(cx, id, record);
    }
    let cause = "it had another name that is not known, and is gone";
    Err(refuse(record, "file-missing", cause, "keep it with --files"))
}

fn refuse(record: &InodeRecord, code: &'static str, cause: &str, remedy: &str) -> Error {
    Error::refuse(Refusal {
        code,
        object: "file".to_owned(),
        owner: Owner { path: Some(model::path_of(&record.path)), ..Owner::default() },
        cause: cause.to_owned(),
        remedy: remedy.to_owned(),
    })
}

fn renamed(record: &InodeRecord) -> Refusal {
    Refusal {
        code: "file-renamed",
        object: "file".to_owned(),
        owner: Owner { path: Some(model::path_of(&record.path)), ..Owner::default() },
        cause: "it was renamed, and this user cannot find out its new name; the program has a copy of it without a name: what it \
             writes there is lost when it ends"
            .to_owned(),
        remedy: "restore as root".to_owned(),
    }
}

/// Opens a path without following a link at its end and without a permission on the file itself.
pub(crate) fn look(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    held::look(path, OFlags::empty())
}

fn stat_of(file: &OwnedFd, path: &Path) -> Result<Stat> {
    rustix::fs::fstat(file).map_err(Error::system("looking at a file", path.display()))
}

fn device(cx: &mut Restore<'_>, record: &InodeRecord) -> Result<Opened> {
    let path = cx.mapped(&record.checked_path()?);
    let file = look(&path).map_err(Error::system("opening a device", path.display()))?;
    let stat = stat_of(&file, &path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == record.rdev {
        return Ok(Opened::new(file));
    }
    Err(refuse(record, "device-replaced", "another device lies at its path", "make the device node again"))
}

/// The inode by its handle, if it still exists under some name.
fn by_handle(record: &InodeRecord) -> Option<OwnedFd> {
    if record.handle.is_empty() {
        return None;
    }
    let path = record.checked_path().ok()?;
    let mount = path.ancestors().skip(1).find_map(|directory| {
        rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    })?;
    // This finds the very inode, whatever leads to it.
    let _turn = Turn::home().ok()?;
    let handle = hdcr_sys::handle::Handle { kind: record.handle_type, bytes: record.handle.clone() };
    let flags = i32::try_from((OFlags::PATH | OFlags::NOFOLLOW).bits()).ok()?;
    let file = hdcr_sys::handle::open(&mount, &handle, flags).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    let ours = stat.st_ino == record.inode
        && stat.st_nlink > 0
        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    ours.then_some(file)
}

/// Opens an inode under the name that it had when the program opened it, so that links of `/proc` show that name: it is
/// linked there for a moment, if the name is free.
fn under_old_name(cx: &mut Restore<'_>, path: &Path, opened: Opened) -> Opened {
    let Ok(stat) = rustix::fs::fstat(&opened.base) else { return opened };
    let Ok((above, name)) = route::place(path) else { return opened };
    let free = rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW).is_err();
    if !free {
        return opened;
    }
    let told = Witness::of(&opened.base, path).and_then(|witness| cx.plan.will_link(path, witness));
    if told.is_err() {
        return opened;
    }
    let place = data::door(&opened.base);
    let linked = rustix::fs::linkat(CWD, &place, &above, name, AtFlags::SYMLINK_FOLLOW);
    if linked.is_err() {
        return opened;
    }
    let again = look(path).ok().filter(|file| rustix::fs::fstat(file).is_ok_and(|now| contents::same(&now, &stat)));
    if rustix::fs::unlinkat(&above, name, AtFlags::empty()).is_err() {
        return opened;
    }
    again.map_or(opened, Opened::new)
}

fn named(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    let path = cx.mapped(&record.checked_path()?);
    match look(&path) {
        Ok(file) => existing(cx, id, record, &path, file),
        Err(Errno::NOENT | Errno::NOTDIR) => missing(cx, id, record, &path),
        Err(Errno::ACCESS) => existing(cx, id, record, &path, held::out_of_reach(&cx.stdio, record, &path)?),
        Err(Errno::LOOP) => existing(cx, id, record, &path, held::through_links(record, &path)?),
        Err(error) => Err(Error::system("opening a file", path.display())(error)),
    }
}

fn gone(record: &InodeRecord) -> Error {
    let cause = "it is gone, and the image does not hold its contents";
    refuse(record, "file-missing", cause, "put it back, or keep it with --files")
}

fn no_regular_file(record: &InodeRecord) -> Error {
    refuse(record, "file-replaced", "something that is no regular file lies at its path", "move it away")
}

fn existing(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord, path: &Path, file: OwnedFd) -> Result<Opened> {
    let stat = stat_of(&file, path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(no_regular_file(record));
    }
    let changed = Changed { seconds: record.mtime, nanoseconds: record.mtime_ns };
    let verdict = judge(record, &file, &stat, path)?;
    if !matches!(verdict, Verdict::Use) && is_open(cx, &stat) {
        let cause =
            "by now it is one file with another one of the program (a hard link), and both cannot have their contents";
        return Err(refuse(record, "file-replaced", cause, "give it a file of its own again"));
    }
    match verdict {
        Verdict::Use => {}
        Verdict::Contents => {
            // Where the user has mapped the path to, there it is meant to be; and what the tree does not hold is known by
            // its name alone, as programs replace files by newer ones.
            let another = !cx.unheld && record.checked_path()? == path && is_another(record, &file, &stat);
            if another && let Some(moved) = moved(cx, record, path)? {
                return existing(cx, id, record, &moved.0, moved.1);
            }
            let writer = held::writer(cx, id, record, &file)?;
            let newer = match kind_of(record)?.1 {
                _ if another => newer::of_another(cx, path),
                Keep::Length => newer::of_rewritten(cx, id, path, &stat)?,
                Keep::Contents | Keep::Unchanged | Keep::AsItIs => newer::of(cx, id, record, path, &stat)?,
            };
            let file = target(cx, writer, path)?;
            let action = Action::Contents { path: path.to_owned(), file, id, size: record.size, changed };
            cx.plan.add(action, newer)?;
            if record.text && !cx.unheld {
                // What is executed cannot be written, and must not become something else while it is.
                return stand_in(cx, id, record);
            }
        }
        Verdict::Cut | Verdict::Edges => {
            let writer = held::writer(cx, id, record, &file)?;
            let newer = newer::of(cx, id, record, path, &stat)?;
            let (path, file, size) = (path.to_owned(), target(cx, writer, path)?, record.size);
            let action = if matches!(verdict, Verdict::Edges) {
                Action::Edges { path, file, id, size, changed }
            } else {
                Action::Cut { path, file, size, changed }
            };
            cx.plan.add(action, newer)?;
        }
        Verdict::Refuse(code, cause, remedy) => {
            if let Some(other) = instead(cx, id, record, path) {
                return other;
            }
            if !anew::goes_on(cx.frames, (id, record), Some((&file, &stat)))? {
                return Err(refuse(record, code, cause, remedy));
            }
            cx.notes.push(anew::note(path, cause));
        }
    }
    Ok(Opened::new(file))
}

/// The file of the record under the name that it has now, while another one lies at its own.
fn moved(cx: &mut Restore<'_>, record: &InodeRecord, path: &Path) -> Result<Option<(PathBuf, OwnedFd)>> {
    let Some(file) = by_handle(record) else { return Ok(None) };
    let now = std::fs::read_link(data::door(&file)).map_err(Error::system("looking for a file", path.display()))?;
    let same = look(&now).is_ok_and(|there| match (stat_of(&there, &now), stat_of(&file, &now)) {
        (Ok(there), Ok(file)) => contents::same(&there, &file),
        _ => false,
    });
    if !same {
        return Ok(None);
    }
    let cause =
        format!("the program's file is {} now, and goes back there; what lies here is left alone", now.display());
    cx.notes.push(crate::rollback::since::note(
        "rollback-moved",
        path,
        cause,
        "move it back if the program opens it by name",
    ));
    Ok(Some((now, file)))
}

/// What does when the file at the path is another one: the old inode under its new name, or a private copy.
fn instead(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord, path: &Path) -> Option<Result<Opened>> {
    if let Some(file) = by_handle(record)
        && let Ok(stat) = rustix::fs::fstat(&file)
    {
        match judge(record, &file, &stat, path) {
            Ok(Verdict::Use) => return Some(Ok(Opened::new(file))),
            Ok(Verdict::Cut) => {
                let writer = held::writer(cx, id, record, &file).ok()?;
                let name = std::fs::read_link(data::door(&file)).ok()?;
                let changed = Changed { seconds: record.mtime, nanoseconds: record.mtime_ns };
                let newer = newer::of(cx, id, record, &name, &stat).ok()?;
                let target = target(cx, writer, &name).ok()?;
                cx.plan.add(Action::Cut { path: name, file: target, size: record.size, changed }, newer).ok()?;
                return Some(Ok(Opened::new(file)));
            }
            Ok(Verdict::Contents | Verdict::Edges | Verdict::Refuse(..)) | Err(_) => {}
        }
    }
    (record.contents && (record.stand_in || record.volatile)).then(|| stand_in(cx, id, record))
}

fn missing(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord, path: &Path) -> Result<Opened> {
    let (_, keep) = kind_of(record)?;
    if let Some(file) = touched::named_again(cx, id, record, path)? {
        return existing(cx, id, record, path, file);
    }
    if record.contents && (keep == Keep::Contents || record.volatile) {
        return create(cx, id, record, path);
    }
    // A log that was only renamed goes on where it is.
    if let Some(other) = instead(cx, id, record, path) {
        return other;
    }
    if record.contents && keep == Keep::Length {
        return create(cx, id, record, path);
    }
    if !anew::goes_on(cx.frames, (id, record), None)? {
        return Err(gone(record));
    }
    cx.notes.push(anew::note(path, "it is gone, and the image does not hold its contents"));
    create(cx, id, &InodeRecord { size: if record.edges { record.size } else { 0 }, ..record.clone() }, path)
}

/// Makes a file that is gone: complete under a name of ours, which it keeps until the end of the restore.
fn create(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord, path: &Path) -> Result<Opened> {
    make_parents(cx, record, path)?;
    let (from, file) = create_beside(cx, path, "new")?;
    dress(cx, &file, id, record, &from)?;
    let file = reopenable(file, record, &from)?;
    cx.plan.add(Action::Place { path: path.to_owned(), from }, Newer::Go)?;
    Ok(Opened::new(file))
}

fn make_parents(cx: &mut Restore<'_>, record: &InodeRecord, path: &Path) -> Result<()> {
    let mut ancestors: Vec<&Path> = path.ancestors().skip(1).collect();
    ancestors.reverse();
    let facts = record.parents.iter().cloned().map(Some).chain(std::iter::repeat(None));
    for (directory, facts) in ancestors.into_iter().zip(facts) {
        match route::directory(directory) {
            Err(Errno::NOENT) => {}
            Err(Errno::LOOP) => return Err(Error::refuse(route::barred("directory", directory))),
            Ok(_) | Err(_) => continue,
        }
        let facts = facts.unwrap_or(ParentDirectory { mode: 0o755, uid: record.uid, gid: record.gid });
        cx.plan.make_directory(directory, facts.mode)?;
        let open = route::open(directory, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let open = open.map_err(Error::system("making a directory", directory.display()))?;
        own(&open, facts.uid, facts.gid, facts.mode, directory)?;
    }
    Ok(())
}

/// Gives an owner and a mode; a user who may not give files away, or in whose user namespace that owner is nobody, keeps
/// them.
pub(crate) fn own(file: &OwnedFd, uid: u32, gid: u32, mode: u32, path: &Path) -> Result<()> {
    let now = stat_of(file, path)?;
    if (now.st_uid, now.st_gid) != (uid, gid) {
        let (owner, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        match rustix::fs::fchown(file, Some(owner), Some(group)) {
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(error) => return Err(Error::system("giving a file its owner", path.display())(error)),
        }
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777))
        .map_err(Error::system("giving a file its mode", path.display()))
}

/// A new file of ours beside a path, with a name that is not taken.
fn create_beside(cx: &mut Restore<'_>, path: &Path, word: &str) -> Result<(PathBuf, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    for _ in 0..1000 {
        let place = data::beside(path, word, cx.plan.unique());
        if route::lstat(&place).is_ok() {
            continue;
        }
        cx.plan.will_make(&place, None)?;
        match route::open(&place, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok((place, file)),
            Err(Errno::EXIST) => {}
            Err(Errno::LOOP) => return Err(Error::refuse(route::barred("file", path))),
            Err(error) => return Err(Error::system("making a file", place.display())(error)),
        }
    }
    Err(Error::system("making a file", path.display())(Errno::EXIST))
}

/// Gives a new file contents, owner, mode and time.
fn dress(cx: &Restore<'_>, file: &OwnedFd, id: ObjectId, record: &InodeRecord, path: &Path) -> Result<()> {
    if let Some(original) = cx.inodes.originals.get(&id) {
        private::copied(original, file, record.size, path)?;
    } else {
        data::fill(file, cx.contents, id, record.size, path)?;
        private::must_be_whole(cx, file, id, record)?;
    }
    own(file, record.uid, record.gid, record.mode, path)?;
    crate::rollback::set_time(file, Changed { seconds: record.mtime, nanoseconds: record.mtime_ns }, path)
}

/// The directory nearest to the one in which a file lay.
pub(crate) fn nearest_directory(path: &Path) -> PathBuf {
    let found = path.ancestors().skip(1).find(|directory| route::directory(directory).is_ok());
    found.unwrap_or(Path::new("/")).to_owned()
}

/// A new directory of ours beside a path, in which a file can have any name.
pub(crate) fn hidden_directory(cx: &mut Restore<'_>, path: &Path) -> Result<PathBuf> {
    loop {
        let hidden = path.with_file_name(format!(".hdcr-copy-{}", cx.plan.unique()));
        if route::lstat(&hidden).is_err() {
            cx.plan.make_directory(&hidden, 0o700)?;
            return Ok(hidden);
        }
    }
}

/// Makes a file without a name that had one: in its directory when its name is free there, so that links of `/proc` show
/// what they did; else under the same name in a directory of ours, which is gone at once too.
fn without_name(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    let path = cx.mapped(&record.checked_path()?);
    let place = nearest_directory(&path).join(path.file_name().unwrap_or_default());
    let hidden = match hidden_directory(cx, &place) {
        Ok(hidden) => hidden,
        Err(Error::System { .. }) if record.stand_in => return in_memory(cx, id, record),
        Err(error) if held::is_denied(&error) => return in_memory(cx, id, record),
        Err(error) => return Err(error),
    };
    let from = hidden.join(path.file_name().unwrap_or_default());
    cx.plan.will_make(&from, None)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let file = route::open(&from, flags, Mode::RUSR | Mode::WUSR);
    let file = file.map_err(Error::system("making a file", from.display()))?;
    cx.plan.will_make(&place, Some(Witness::of(&file, &from)?))?;
    let moved = crate::rollback::rename(&from, &place);
    let name = moved.map_or(&from, |()| &place);
    route::unlink(name).map_err(Error::system("removing the name of a file", name.display()))?;
    route::rmdir(&hidden).map_err(Error::system("removing a directory", hidden.display()))?;
    dress(cx, &file, id, record, &path)?;
    Ok(Opened::new(reopenable(file, record, &path)?))
}

fn nameless(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    let path = cx.mapped(&record.checked_path()?);
    let directory = nearest_directory(&path);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = route::directory(&directory)
        .and_then(|directory| rustix::fs::openat(directory, ".", flags, Mode::RUSR | Mode::WUSR));
    match file {
        Ok(file) => {
            dress(cx, &file, id, record, &path)?;
            Ok(Opened { nameless: true, ..Opened::new(file) })
        }
        Err(_) => without_name(cx, id, record),
    }
}

#[cfg(test)]
mod tests;
