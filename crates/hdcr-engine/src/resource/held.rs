//! Files that a program held open although its user may not open them: somebody else had opened them for it, as a shell of
//! root opens a log and then becomes the user.
//!
//! The program had them, so it gets them back; but only the very file that it had, known by its device, its number and its
//! handle, and never by way of a link. Anything else is named.

use std::os::fd::OwnedFd;
use std::path::Path;

use hdcr_image::Record;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::contents::{self, InodeRecord};
use super::{data, regfile};
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::rights::{Rights, Turn};
use crate::{route, stored};

pub(crate) const DENIED: [Errno; 2] = [Errno::ACCESS, Errno::PERM];

/// Whether a call failed because this user may not.
pub(crate) fn is_denied(error: &Error) -> bool {
    matches!(error, Error::System { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Opens a path only to look at it.
pub(crate) fn look(path: &Path, more: OFlags) -> std::result::Result<OwnedFd, Errno> {
    route::open(path, OFlags::PATH | more, Mode::empty())
}

/// Looks where the path goes through a link that somebody else may have put there: at the file that was captured, if it
/// leads there.
pub(crate) fn through_links(record: &InodeRecord, path: &Path) -> Result<OwnedFd> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok();
    file.filter(|file| is_the_one(record, file)).ok_or_else(|| Error::refuse(route::barred("file", path)))
}

/// Looks where the program's user may not go: at the file that was captured, if it is there still, or if a standard stream
/// of the restoring command leads to it.
pub(crate) fn out_of_reach(stdio: &[OwnedFd], record: &InodeRecord, path: &Path) -> Result<OwnedFd> {
    let file = beyond_links(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC).ok();
    let file = file.filter(|file| is_the_one(record, file));
    let own = || stdio.iter().find(|own| is_the_one(record, own));
    file.or_else(|| rustix::io::fcntl_dupfd_cloexec(own()?, 3).ok()).ok_or_else(|| not_permitted(record))
}

/// Opens with the rights of this process, without following any link.
pub(crate) fn beyond_links(path: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let _turn = Turn::home().map_err(|_| Errno::ACCESS)?;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|_| Errno::ACCESS)
}

/// Whether this is the file that was captured, and not one that has got its number since.
pub(crate) fn is_the_one(record: &InodeRecord, file: &OwnedFd) -> bool {
    let number = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino) == (record.device, record.inode);
    let handle = || data::handle_of(file).is_some_and(|handle| handle == (record.handle_type, record.handle.clone()));
    rustix::fs::fstat(file).is_ok_and(number) && (record.handle.is_empty() || handle())
}

/// Opens the file behind a descriptor anew, in a way in which the program had it.
pub(crate) fn open(record: &InodeRecord, file: &OwnedFd, flags: OFlags) -> Result<OwnedFd> {
    let door = data::door(file);
    let open = || rustix::fs::open(&door, flags, Mode::empty());
    match open() {
        Err(error) if DENIED.contains(&error) && is_the_one(record, file) => {
            let _turn = Turn::home()?;
            open().map_err(|_| not_permitted(record))
        }
        Err(error) if DENIED.contains(&error) => Err(not_permitted(record)),
        other => other.map_err(Error::system("opening a file again", model::path_of(&record.path).display())),
    }
}

/// Opens a file to roll it back: with the rights of the program's user, or because the program could write to it, or as the
/// standard output of the restoring command leads to it.
pub(crate) fn writer(cx: &Restore<'_>, id: ObjectId, record: &InodeRecord, file: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(data::door(file), flags, Mode::empty()) {
        Err(error) if DENIED.contains(&error) => {}
        other => {
            let path = model::path_of(&record.path);
            return other.map_err(Error::system("opening a file to roll it back", path.display()));
        }
    }
    if was_written(cx, id)? && is_the_one(record, file) {
        if let Ok(writer) = open(record, file, flags) {
            return Ok(writer);
        }
        if let Some(writer) = own_output(cx, file) {
            return Ok(writer);
        }
    }
    Err(not_permitted(record))
}

/// A descriptor to read a file with that is open for writing only; `None`: it can be read as it is.
pub(crate) fn reader(file: &OwnedFd, rights: Option<&Rights>, subject: &Path) -> Result<Option<OwnedFd>> {
    let failed = || Error::system::<Errno>("reading a file", subject.display());
    if rustix::fs::fcntl_getfl(file).map_err(failed())? & OFlags::RWMODE != OFlags::WRONLY {
        return Ok(None);
    }
    let open = || rustix::fs::open(data::door(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    {
        let _turn = Turn::to_some(rights)?;
        if let Ok(reader) = open() {
            return Ok(Some(reader));
        }
    }
    let _turn = Turn::home()?;
    open().map(Some).map_err(failed())
}

/// Whether the program had it open for writing.
fn was_written(cx: &Restore<'_>, id: ObjectId) -> Result<bool> {
    for open in stored::ids(cx.frames, regfile::RegFileRecord::TAG) {
        if stored::one::<regfile::RegFileRecord>(cx.frames, open)?.writes_to(id) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn own_output(cx: &Restore<'_>, file: &OwnedFd) -> Option<OwnedFd> {
    let wanted = rustix::fs::fstat(file).ok()?;
    let leads = |output: &&OwnedFd| {
        let writes = rustix::fs::fcntl_getfl(output).is_ok_and(|flags| flags & OFlags::RWMODE != OFlags::RDONLY);
        writes && rustix::fs::fstat(output).is_ok_and(|stat| contents::same(&stat, &wanted))
    };
    let output = cx.stdio.iter().find(leads)?;
    rustix::io::fcntl_dupfd_cloexec(output, 3).ok()
}

fn not_permitted(record: &InodeRecord) -> Error {
    Error::refuse(refusal(record))
}

/// Whether not even root may write what is in it (chattr(1)).
pub(super) fn is_sealed(path: &Path, flags: AtFlags) -> bool {
    let sealed = StatxAttributes::APPEND | StatxAttributes::IMMUTABLE;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::TYPE);
    stat.is_ok_and(|stat| stat.stx_attributes.intersects(sealed))
}

/// The refusal of a file that cannot be opened.
pub(crate) fn refusal(record: &InodeRecord) -> Refusal {
    let path = model::path_of(&record.path);
    let owner = Owner { path: Some(path.clone()), ..Owner::default() };
    if is_sealed(&path, AtFlags::SYMLINK_NOFOLLOW) {
        let cause = "its attributes (append-only or immutable) let nobody put it back to how it was at the checkpoint";
        let remedy = "take them away (`chattr -a -i`) and try again";
        return regfile::refuse_path("file-not-permitted", "file", owner, cause, remedy);
    }
    let cause =
        "the program's user may not open it so, and it is not known to be the file that was open at the checkpoint";
    regfile::refuse_path(
        "file-not-permitted",
        "file",
        owner,
        cause,
        "give that user the right to open it (chown, chmod), name a file in its place (`--map-path OLD=NEW`), or restore as root",
    )
}
