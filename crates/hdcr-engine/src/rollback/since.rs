//! What a job did to files since the checkpoint that it is rolled back to, undone: names first, before anything of the
//! restore is opened, then the contents of files that nothing of the restored tree holds.
//!
//! It comes as plain data from whoever has watched the job. Everything that is moved is looked at first: another file
//! than the one that was watched is left alone and named. All is in the journal of the roll-back, and is undone with it.

mod further;
mod home;
mod unheard;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::{Action, Changed, Newer as Bytes, Target, rename};
use crate::error::{Error, Owner, Refusal, Result};
use crate::resource::{held, newer, reopen, touched};
use crate::restore::Restore;
use crate::rights::{Rights, Turn};
use crate::route;

/// A file by its handle: kind (four bytes of this machine) and bytes of `name_to_handle_at(2)`; empty: not known.
pub type Identity = Vec<u8>;

/// Something that is newer than the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Newer {
    /// Where it is.
    pub at: PathBuf,
    /// It is a directory, and goes with all that is in it.
    pub directory: bool,
    /// It is a new name, perhaps of a file that was there at the checkpoint.
    pub further: bool,
    /// Which one.
    pub identity: Identity,
}

/// Something that is at another place than at the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Where it is.
    pub at: PathBuf,
    /// Where it was.
    pub home: PathBuf,
    /// Which one.
    pub identity: Identity,
}

/// The length of a file at the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Length {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub size: u64,
    /// When it was changed last: seconds and nanoseconds.
    pub modified: (i64, u32),
    /// All that was written since came behind that, and may be of somebody else, too: it is kept.
    pub kept: bool,
}

/// What a job did to files since a checkpoint. Names are those of the checkpoint where nothing else is said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Since {
    /// The name of the directory into which newer files are moved.
    pub aside: OsString,
    /// Where that directory lies, for files of the same mount. The program must not meet it where it works: what lists its
    /// directory (an archiver, `git add`) would take it for its own.
    pub shelter: PathBuf,
    /// To be moved aside.
    pub newer: Vec<Newer>,
    /// To be moved back.
    pub moved: Vec<Moved>,
    /// Directories that were removed, outer ones first.
    pub directories: Vec<PathBuf>,
    /// Files that were removed or replaced.
    pub lost: Vec<PathBuf>,
    /// Files that were written.
    pub written: Vec<PathBuf>,
    /// Written under names that they have got since: perhaps files that were there at the checkpoint.
    pub relinked: Vec<(PathBuf, Identity)>,
    /// What is known of the length of the written ones.
    pub lengths: Vec<Length>,
    /// What is left alone, and why.
    pub doubtful: Vec<(PathBuf, &'static str)>,
    /// Not all that happened is known.
    pub incomplete: bool,
    /// It was known once, and could not be kept.
    pub forgotten: bool,
    /// Where not all is known: when something was heard last, by the clock of the day. What the program did in its last
    /// moment was done then.
    pub heard: Option<Duration>,
    /// Where nobody minds what the program does.
    pub ignored: Vec<PathBuf>,
}

/// What was put under a name of the program about then, within so long, is its own.
const LAST_MOMENT: Duration = Duration::from_secs(1);

impl Since {
    /// Files that somebody else may have written since, too.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &Path> {
        self.doubtful.iter().map(|(path, _)| path.as_path())
    }
}

/// What a [`Since`] says of a file, found at once: there may be very many.
pub(crate) struct Index<'a> {
    incomplete: bool,
    changed: BTreeSet<&'a Path>,
    directories: BTreeSet<&'a Path>,
    doubtful: BTreeSet<&'a Path>,
    lengths: BTreeMap<&'a Path, &'a Length>,
    /// Which were written under another name, perhaps.
    relinked: BTreeSet<Identity>,
}

impl<'a> Index<'a> {
    pub(crate) fn new(since: &'a Since) -> Self {
        Self {
            incomplete: since.incomplete,
            changed: since.written.iter().chain(&since.lost).map(PathBuf::as_path).collect(),
            directories: since.directories.iter().map(PathBuf::as_path).collect(),
            doubtful: since.foreign().collect(),
            lengths: since.lengths.iter().rev().map(|length| (length.path.as_path(), length)).collect(),
            relinked: further::relinked(since),
        }
    }

    /// Whether the contents of a file have to come back.
    pub(crate) fn concerns(&self, path: &Path) -> bool {
        let removed = || path.ancestors().any(|above| self.directories.contains(above));
        self.incomplete || self.has_changed(path) || !self.directories.is_empty() && removed()
    }

    /// Whether the job has written it, or made it go.
    pub(crate) fn has_changed(&self, path: &Path) -> bool {
        self.changed.contains(path) || self.is_relinked(path)
    }

    /// Whether it was written under another name, perhaps.
    pub(crate) fn is_relinked(&self, path: &Path) -> bool {
        !self.relinked.is_empty() && further::at(path).is_some_and(|identity| self.relinked.contains(&identity))
    }

    /// Whether it is left as it is.
    pub(crate) fn is_doubtful(&self, path: &Path) -> bool {
        self.doubtful.contains(path)
    }
}

/// Something that a rollback leaves as it is, for the user to know.
pub(crate) fn note(code: &'static str, path: &Path, cause: impl Into<String>, remedy: &str) -> Refusal {
    Refusal {
        code,
        object: "file".to_owned(),
        owner: Owner { path: Some(path.to_owned()), ..Owner::default() },
        cause: cause.into(),
        remedy: remedy.to_owned(),
    }
}

const LOOK: &str = "look whether it fits the restored program";

fn is_directory(path: &Path) -> bool {
    route::lstat(path).is_ok_and(|there| FileType::from_raw_mode(there.st_mode) == FileType::Directory)
}

/// Puts names back: newer files aside, removed directories made again, renamed files home.
pub(crate) fn names(cx: &mut Restore<'_>, since: &Since) -> Result<()> {
    // Who has said where it lies may have said so by links.
    let shelter = since.shelter.canonicalize().unwrap_or_else(|_| since.shelter.clone());
    for (path, why) in &since.doubtful {
        cx.notes.push(note("rollback-doubtful", path, *why, LOOK));
    }
    if since.incomplete {
        let cause = if since.forgotten {
            "what is known of what the program did to files since the checkpoint was too long to be kept for a later keeper, \
             or can no longer be read: new and renamed files stay"
        } else {
            "not everything that the program did to files since the checkpoint is known"
        };
        cx.notes.push(note("rollback-incomplete", Path::new("/"), cause, LOOK));
    }
    let gone = further::remove(cx, since)?;
    let newer = since.newer.iter().filter(|newer| !gone.contains(newer.at.as_path()));
    let (directories, files): (Vec<_>, Vec<_>) = newer.partition(|newer| newer.directory);
    // There may be thousands: the disk is waited for once.
    let mut ways = BTreeMap::new();
    for newer in files {
        if let Some(to) = way_aside(cx, newer, since, &shelter, &ways)? {
            ways.insert(to, newer);
        }
        cx.contents.goes_on();
    }
    cx.plan.sync()?;
    for (to, newer) in ways {
        go_aside(cx, newer, to)?;
        cx.contents.goes_on();
    }
    for newer in home::bring(cx, directories.into_iter().cloned().collect(), since, &shelter)? {
        aside(cx, &newer, since, &shelter)?;
    }
    Ok(())
}

/// The watched file, if it lies at a path, or what the program has put there in its last moment (`heard`: when that began);
/// one that is gone needs nothing.
fn there(cx: &mut Restore<'_>, path: &Path, identity: &Identity, heard: Option<Duration>) -> Option<OwnedFd> {
    let file = match reopen::look(path) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return None,
        Err(Errno::LOOP) => {
            cx.notes.push(route::barred("file", path));
            return None;
        }
        Err(error) => {
            cx.notes.push(note("rollback-left", path, format!("it cannot be looked at: {error}"), LOOK));
            return None;
        }
    };
    let found =
        hdcr_sys::handle::of(&file).map(|handle| [&handle.kind.to_ne_bytes(), handle.bytes.as_slice()].concat());
    let same = identity.is_empty()
        || found.is_ok_and(|found| found == *identity)
        || heard.is_some_and(|heard| is_of_last_moment(&file, heard));
    if !same {
        cx.notes.push(note("rollback-left", path, "another file than the one of the program lies there now", LOOK));
    }
    same.then_some(file)
}

/// Whether it was changed or renamed last about when the last was heard.
fn is_of_last_moment(file: &OwnedFd, heard: Duration) -> bool {
    let facts = rustix::fs::fstat(file);
    facts.is_ok_and(|facts| last_moment(heard).contains(&changed((facts.st_ctime, facts.st_ctime_nsec))))
}

/// About when the last was heard: an event may have been on its way for a while.
fn last_moment(heard: Duration) -> RangeInclusive<Duration> {
    heard.saturating_sub(LAST_MOMENT)..=heard.saturating_add(LAST_MOMENT)
}

/// When anything of a file was changed last, its name too, from the epoch: seconds and nanoseconds.
fn changed((seconds, nanoseconds): (i64, u64)) -> Duration {
    Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0))
}

/// Where it was moved to, if it was.
fn aside(cx: &mut Restore<'_>, newer: &Newer, since: &Since, around: &Path) -> Result<Option<PathBuf>> {
    let Some(to) = way_aside(cx, newer, since, around, &Ways::new())? else { return Ok(None) };
    cx.plan.sync()?;
    go_aside(cx, newer, to)
}

/// The longest name of a file, in bytes (`NAME_MAX`, limits.h(0p)).
pub(crate) const LONGEST_NAME: usize = 255;

/// What goes where.
type Ways<'s> = BTreeMap<PathBuf, &'s Newer>;

/// Where it will be moved to, unless it stays; others go elsewhere.
fn way_aside(
    cx: &mut Restore<'_>,
    newer: &Newer,
    since: &Since,
    around: &Path,
    others: &Ways<'_>,
) -> Result<Option<PathBuf>> {
    let (Some(name), Some(above)) = (newer.at.file_name(), newer.at.parent()) else { return Ok(None) };
    let _turn = turn_of_owner(cx, &newer.at)?;
    if since.aside.is_empty() || there(cx, &newer.at, &newer.identity, since.heard).is_none() {
        return Ok(None);
    }
    let shelter = shelter(above, around);
    let directory = shelter.join(&since.aside);
    let to = place_in_shelter(cx, (shelter, &directory), name, others)?;
    cx.plan.will_move_aside(&newer.at, &to)?;
    Ok(Some(to))
}

fn go_aside(cx: &mut Restore<'_>, newer: &Newer, to: PathBuf) -> Result<Option<PathBuf>> {
    let _turn = turn_of_owner(cx, &newer.at)?;
    if let Err(error) = rename(&newer.at, &to) {
        if !held::DENIED.contains(&error) {
            return Err(Error::system("moving a file", newer.at.display())(error));
        }
        let cause = format!("it was made after the checkpoint and could not be moved to {}: {error}", to.display());
        cx.notes.push(note("rollback-left", &newer.at, cause, LOOK));
        return Ok(None);
    }
    let cause = format!("it was made after the checkpoint; moved to {}", to.display());
    cx.notes.push(note("rollback-aside", &newer.at, cause, "remove it when it is not needed"));
    Ok(Some(to))
}

/// With the rights of the process of the tree that what lies somewhere belongs to.
fn turn_of_owner(cx: &Restore<'_>, path: &Path) -> Result<Turn> {
    let user = route::lstat(path).map(|stat| rustix::fs::Uid::from_raw(stat.st_uid));
    Turn::to_some(user.map_or_else(|_| cx.rights.of_root(), |user| cx.rights.of_user(user)))
}

/// A free name in the directory for newer files, which is made when it is not there: by this process, whose place the
/// shelter is, and for the user in whose name the files are moved.
fn place_in_shelter(
    cx: &mut Restore<'_>,
    (shelter, directory): (&Path, &Path),
    name: &OsStr,
    others: &Ways<'_>,
) -> Result<PathBuf> {
    let user = Rights::now()?;
    let _turn = Turn::home()?;
    if !is_directory(directory) {
        let home = Rights::now()?;
        let own = (user != home).then_some((user.uid, user.gid));
        make_for(cx, directory, shelter, 0o700, own)?;
    }
    let mut to = directory.join(name);
    while others.contains_key(&to) || route::lstat(&to).is_ok() {
        let suffix = format!(".{}", cx.plan.number());
        // A name that is as long as can be stays so long.
        let kept = name.as_bytes().len().min(LONGEST_NAME.saturating_sub(suffix.len()));
        let mut other = OsStr::from_bytes(name.as_bytes().get(..kept).unwrap_or_default()).to_owned();
        other.push(suffix);
        to = directory.join(other);
    }
    Ok(to)
}

/// Where the files of a directory can be moved to at once: the shelter, or, on another mount, the top of theirs.
fn shelter<'a>(of: &'a Path, shelter: &'a Path) -> &'a Path {
    let mount = |path: &Path| {
        let stat = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID);
        stat.ok().map(|stat| (stat.stx_mnt_id, stat.stx_dev_major, stat.stx_dev_minor))
    };
    let own = mount(of);
    if own.is_some() && mount(shelter) == own {
        return shelter;
    }
    of.ancestors().take_while(|above| mount(above) == own).last().unwrap_or(of)
}

/// Makes a directory with the owner of another one.
fn make_like(cx: &mut Restore<'_>, path: &Path, like: &Path, mode: u32) -> Result<()> {
    make_for(cx, path, like, mode, None)
}

fn make_for(cx: &mut Restore<'_>, path: &Path, like: &Path, mode: u32, own: Option<(u32, u32)>) -> Result<()> {
    let owner = rustix::fs::stat(like).map_err(Error::system("looking at a directory", like.display()))?;
    let (uid, gid) = own.unwrap_or((owner.st_uid, owner.st_gid));
    cx.plan.make_directory(path, mode)?;
    let directory = route::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
    let directory = directory.map_err(Error::system("making a directory", path.display()))?;
    reopen::own(&directory, uid, gid, mode, path)
}

/// A directory that the job has removed. What was in it comes from the image, as far as it is there.
fn make_again(cx: &mut Restore<'_>, path: &Path) -> Result<()> {
    let Some(above) = path.parent() else { return Ok(()) };
    match route::directory(above) {
        Ok(_) if route::lstat(path).is_err() => {}
        Err(Errno::LOOP) => {
            cx.notes.push(route::barred("directory", path));
            return Ok(());
        }
        Ok(_) | Err(_) => return Ok(()),
    }
    let mode = rustix::fs::stat(above).map_or(0o755, |stat| stat.st_mode & 0o777);
    make_like(cx, path, above, mode)?;
    let cause = "it was removed after the checkpoint; made again with owner and mode of the directory above";
    cx.notes.push(note("rollback-directory", path, cause, LOOK));
    Ok(())
}

/// Puts the contents of files back that nothing of the restored tree holds: from the image where it has them, else cut
/// back to a length that is known, else named.
pub(crate) fn contents(cx: &mut Restore<'_>, since: Option<&Since>) -> Result<()> {
    let index = since.map(Index::new);
    let mut known = touched::restore(cx, index.as_ref())?;
    known.extend(crate::resource::names::restore(cx, index.as_ref())?);
    let Some(since) = since else { return Ok(()) };
    for path in since.lost.iter().filter(|path| !known.contains(*path)) {
        let cause = "it was removed or replaced after the checkpoint, and the image does not hold it";
        cx.notes.push(note("rollback-lost", path, cause, "keep it with --files"));
    }
    let back = further::tell(cx, since, index.as_ref(), &known);
    let is_known = |path: &Path| {
        known.contains(path) || !back.is_empty() && further::at(path).is_some_and(|it| back.contains(&it))
    };
    for path in since.written.iter().filter(|path| !is_known(path)) {
        let _turn = turn_of_owner(cx, path)?;
        let length = index.as_ref().and_then(|index| index.lengths.get(path.as_path()).copied());
        if let Some(refusal) = cut(cx, path, length)? {
            cx.notes.push(refusal);
        }
    }
    unheard::tell(cx, since, &known);
    Ok(())
}

fn cut(cx: &mut Restore<'_>, path: &Path, length: Option<&Length>) -> Result<Option<Refusal>> {
    const CODE: &str = "rollback-written";
    let say = |cause: &str| Ok(Some(note(CODE, path, cause, "keep it with --files")));
    let file: OwnedFd = match route::open(path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::LOOP) if route::is_barred(path) => return Ok(Some(route::barred("file", path))),
        // What was written and is lost is named as that: this was made without a name left, or has lost it before it was written,
        // as temporary files have.
        Err(Errno::NOENT) => return Ok(None),
        Err(_) => return say("it was written after the checkpoint, and cannot be opened now"),
    };
    let stat = rustix::fs::fstat(&file).map_err(Error::system("looking at a file", path.display()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || reopen::is_open(cx, &stat) {
        return Ok(None);
    }
    match length {
        Some(length) if stat.st_size.cast_unsigned() > length.size => {
            let (seconds, nanoseconds) = length.modified;
            let changed = Changed { seconds, nanoseconds };
            let file = Target::named(&file, path)?;
            let grown = stat.st_size.cast_unsigned().saturating_sub(length.size);
            let kept = if length.kept { newer::kept(cx, path, grown) } else { Bytes::Go };
            cx.plan.add(Action::Cut { path: path.to_owned(), file, size: length.size, changed }, kept)?;
            if length.kept {
                return Ok(None);
            }
            say(
                "it was written after the checkpoint for the first time; cut back to its length, what was before that is not verified",
            )
        }
        Some(_) | None => say("it was written after the checkpoint, and the image does not hold it"),
    }
}

#[cfg(test)]
mod tests;
