//! Private copies: of programs and libraries that have changed, or cannot be executed any more.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::{Opened, dress, open_anew, without_name};
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::resource::contents::InodeRecord;
use crate::resource::{data, held, late};
use crate::restore::Restore;

/// A program cannot be executed or mapped for execution through a descriptor that may write; it is opened anew.
pub(super) fn reopenable(file: OwnedFd, record: &InodeRecord, path: &Path) -> Result<OwnedFd> {
    if !record.stand_in {
        return Ok(file);
    }
    rustix::fs::open(data::door(&file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::system("opening a file", path.display()))
}

/// A private copy of the old contents of a program or library that has changed.
pub(crate) fn stand_in(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    let cause =
        "it has changed since the checkpoint, or is gone: the program goes on with a private copy of what it was";
    cx.notes.push(private_copy(record, cause, "start the program anew when it is to run with what lies there now"));
    let mode = if record.stand_in { record.mode | 0o500 } else { record.mode };
    without_name(cx, id, &InodeRecord { mode, ..record.clone() })
}

fn private_copy(record: &InodeRecord, cause: &str, remedy: &str) -> Refusal {
    Refusal {
        code: "file-private-copy",
        object: "file".to_owned(),
        owner: Owner { path: Some(model::path_of(&record.path)), ..Owner::default() },
        cause: cause.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// A private copy of a program that has lost its permission to be executed.
pub(crate) fn executable(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    let cause = "it has lost its permission to be executed: the program goes on with a private copy of it";
    cx.notes.push(private_copy(record, cause, "chmod +x it"));
    let record = InodeRecord { mode: record.mode | 0o500, ..record.clone() };
    if !record.contents {
        // It was found to be what it was.
        let file = open_anew(cx, id, OFlags::RDONLY).map_err(|error| unreadable(&record, error))?;
        cx.inodes.originals.insert(id, file);
    }
    let made = without_name(cx, id, &record);
    cx.inodes.originals.remove(&id);
    made
}

pub(super) fn in_memory(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    let name = record.name();
    let short = std::ffi::OsStr::from_bytes(name.get(..name.len().min(200)).unwrap_or_default());
    let file = rustix::fs::memfd_create(short, MemfdFlags::CLOEXEC)
        .map_err(Error::system("making a private copy", Path::new(short).display()))?;
    dress(cx, &file, id, record, Path::new(short))?;
    Ok(Opened::new(reopenable(file, record, Path::new(short))?))
}

/// A program that may be neither executed nor read, and of which there is nothing else.
fn unreadable(record: &InodeRecord, error: Error) -> Error {
    if !held::is_denied(&error) {
        return error;
    }
    let cause = "it has lost its permission to be executed, and this user may not read it to make a private copy";
    let refusal = private_copy(record, cause, "chmod +x it");
    Error::refuse(Refusal { code: "program-not-executable", object: "program".to_owned(), ..refusal })
}

/// Gives an empty file what another one holds.
pub(super) fn copied(from: &OwnedFd, to: &OwnedFd, size: u64, subject: &Path) -> Result<()> {
    data::copy(from, 0..size, to, 0, subject)?;
    rustix::fs::ftruncate(to, size).map_err(Error::system("setting the length of a file", subject.display()))
}

/// Refuses contents that images have in common, and that are not what was kept: nobody vouches for that file.
pub(super) fn must_be_whole(cx: &Restore<'_>, file: &OwnedFd, id: ObjectId, record: &InodeRecord) -> Result<()> {
    if late::key(cx.frames, id)?.is_none() {
        return Ok(());
    }
    let path = model::path_of(&record.path);
    if data::digest(file, record.size, &path)? == record.digest {
        return Ok(());
    }
    Err(Error::Unsound(format!("{}: what is kept of its contents is not what it held", path.display())))
}
