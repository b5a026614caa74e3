//! Names without contents: symbolic links, and FIFOs that nobody holds. The tree has made or used them, or they lie below a
//! path that the user named. They are made again where they are gone, or lead elsewhere.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hdcr_image::{Record, Tag};
use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;

use super::contents;
use super::data;
use super::keep::policy_of;
use crate::capture::Capture;
use crate::checkpoint::FilePolicy;
use crate::error::{Error, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::rights::Turn;
use crate::rollback::since::{self, Index};
use crate::route;

/// The list of such names; one in an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NamesRecord {
    #[prost(message, repeated, tag = "1")]
    pub(crate) names: Vec<Name>,
}

/// A name without contents.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Name {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) path: Vec<u8>,
    /// Where a symbolic link leads; empty: a FIFO.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) target: Vec<u8>,
    /// Permissions of a FIFO.
    #[prost(uint32, tag = "3")]
    pub(crate) mode: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) gid: u32,
    /// The user named it, or a directory above it: it comes back whoever has changed it.
    #[prost(bool, tag = "6")]
    pub(crate) listed: bool,
}

impl Record for NamesRecord {
    const TAG: Tag = Tag(0x021c);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The object under which the list is stored.
const NAMES: ObjectId = ObjectId(0);

/// So many are kept at most; of the others a roll-back says that they are lost.
const MOST: usize = 100_000;

/// Notes one, if it is one: the latest first.
pub(super) fn note(cx: &mut Capture<'_>, path: &Path, stat: &Stat, listed: bool) {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let target = match rustix::fs::readlink(path, Vec::new()) {
        Ok(target) if kind == FileType::Symlink => target.into_bytes(),
        Ok(_) | Err(_) if kind == FileType::Fifo => Vec::new(),
        Ok(_) | Err(_) => return,
    };
    let names = &mut cx.inodes.names;
    if names.len() >= MOST || policy_of(&cx.request.files, path) == FilePolicy::Ignore {
        return;
    }
    let mode = if target.is_empty() { stat.st_mode & 0o7777 } else { 0 };
    names.push(Name {
        path: path.as_os_str().as_bytes().to_vec(),
        target,
        mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        listed,
    });
}

/// Stores them.
pub(super) fn list(cx: &mut Capture<'_>) -> Result<()> {
    let names = std::mem::take(&mut cx.inodes.names);
    if names.is_empty() { Ok(()) } else { cx.frame(NAMES, &NamesRecord { names }) }
}

/// Makes those again that are gone or lead elsewhere. Returns the paths about which nothing more is to be said.
pub(crate) fn restore(cx: &mut Restore<'_>, since: Option<&Index<'_>>) -> Result<BTreeSet<PathBuf>> {
    let mut known = BTreeSet::new();
    if !cx.has::<NamesRecord>(NAMES) {
        return Ok(known);
    }
    for name in cx.record::<NamesRecord>(NAMES)?.names {
        let path = cx.mapped(&contents::checked_path(&name.path)?);
        let concerns = since.is_none_or(|since| !since.is_doubtful(&path) && (name.listed || since.concerns(&path)));
        if !concerns || known.contains(&path) {
            continue;
        }
        cx.contents.goes_on();
        if restore_one(cx, &path, &name)? {
            known.insert(path);
        }
    }
    Ok(known)
}

/// Whether it is there now.
fn restore_one(cx: &mut Restore<'_>, path: &Path, name: &Name) -> Result<bool> {
    let (user, group) = (rustix::fs::Uid::from_raw(name.uid), rustix::fs::Gid::from_raw(name.gid));
    let _turn = Turn::to_some(cx.rights.of_user(user))?;
    let made = match route::lstat(path) {
        Err(Errno::NOENT) => cx.plan.make_name(path, |place| make(place, name)),
        Err(_) => return Ok(false),
        Ok(there) if is_it(path, &there, name) => return Ok(true),
        // Nothing but where it leads is in it.
        Ok(there) if FileType::from_raw_mode(there.st_mode) == FileType::Symlink => {
            let away = data::free_beside(path, "old", || cx.plan.number());
            cx.plan.move_away(path, &away)?;
            cx.plan.make_name(path, |place| make(place, name))
        }
        Ok(_) => {
            let cause = "it was a symbolic link or a FIFO at the checkpoint, and something else lies there now";
            cx.notes.push(since::note("rollback-left", path, cause, "look whether it fits the restored program"));
            return Ok(true);
        }
    };
    if let Err(Error::System { .. }) = &made {
        return Ok(false);
    }
    made?;
    // Where this user may not give files away it stays with who has made it.
    route::chown(path, user, group).ok();
    Ok(true)
}

fn is_it(path: &Path, there: &Stat, name: &Name) -> bool {
    let kind = FileType::from_raw_mode(there.st_mode);
    if name.target.is_empty() {
        return kind == FileType::Fifo;
    }
    kind == FileType::Symlink && route::read_link(path).is_ok_and(|target| target.as_bytes() == name.target)
}

fn make(place: &Path, name: &Name) -> std::result::Result<(), Errno> {
    if name.target.is_empty() {
        route::make_fifo(place, Mode::from_raw_mode(name.mode & 0o7777))
    } else {
        route::symlink(OsStr::from_bytes(&name.target), place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive() {
        let link = Name { path: b"/a".to_vec(), target: b"b".to_vec(), mode: 0, uid: 1, gid: 2, listed: true };
        let fifo = Name { path: b"/p".to_vec(), target: Vec::new(), mode: 0o600, uid: 1, gid: 2, listed: false };
        let record = NamesRecord { names: vec![link, fifo] };
        assert_eq!(NamesRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
