//! Files that have got names since the checkpoint, beside those that they had.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hdcr_sys::handle::{self, Handle};
use rustix::fs::{Mode, OFlags};

use super::{Identity, Index, LOOK, Newer, Since, note, reopen, there, turn_of_owner};
use crate::error::{Error, Result};
use crate::resource::data;
use crate::restore::Restore;
use crate::rights::Turn;
use crate::route;

const KEEP: &str = "keep it with --files";

/// Who lies at a path.
pub(super) fn at(path: &Path) -> Option<Identity> {
    let handle = handle::of(reopen::look(path).ok()?).ok()?;
    Some([&handle.kind.to_ne_bytes(), handle.bytes.as_slice()].concat())
}

/// Which files were written, perhaps, under another name than the one of the checkpoint.
pub(super) fn relinked(since: &Since) -> BTreeSet<Identity> {
    let has_others = |path: &&PathBuf| route::lstat(path).is_ok_and(|there| there.st_nlink > 1);
    let written = since.written.iter().filter(has_others).filter_map(|path| at(path));
    since.relinked.iter().map(|(_, identity)| identity.clone()).chain(written).collect()
}

/// Removes the new names of files that have others, which stay. Which names are done with.
pub(super) fn remove<'s>(cx: &mut Restore<'_>, since: &'s Since) -> Result<BTreeSet<&'s Path>> {
    let mut done = BTreeSet::new();
    if !since.newer.iter().any(|newer| newer.further) {
        return Ok(done);
    }
    let directories: BTreeSet<&Path> =
        since.newer.iter().filter(|newer| newer.directory).map(|newer| newer.at.as_path()).collect();
    let mut new: BTreeMap<&Identity, u64> = BTreeMap::new();
    for newer in since.newer.iter().filter(|newer| at(&newer.at).as_ref() == Some(&newer.identity)) {
        *new.entry(&newer.identity).or_default() += 1;
    }
    let mut go: Vec<(&Newer, OwnedFd)> = Vec::new();
    for newer in since.newer.iter().filter(|newer| newer.further && !newer.identity.is_empty()) {
        let _turn = turn_of_owner(cx, &newer.at)?;
        let Some(file) = there(cx, &newer.at, &newer.identity, None) else {
            done.insert(newer.at.as_path());
            continue;
        };
        let names = rustix::fs::fstat(&file).map_err(Error::system("looking at a file", newer.at.display()))?.st_nlink;
        let stays = names > new.get(&newer.identity).copied().unwrap_or_default();
        if stays && cx.plan.will_unname(&newer.at, &file)? {
            go.push((newer, file));
        } else if newer.at.ancestors().skip(1).any(|above| directories.contains(above)) {
            // It goes with its directory.
            done.insert(newer.at.as_path());
        }
        cx.contents.goes_on();
    }
    if !go.is_empty() {
        cx.plan.sync()?;
    }
    for (newer, file) in go {
        let _turn = turn_of_owner(cx, &newer.at)?;
        cx.plan.unname(&newer.at, &file)?;
        cx.plan.unnamed.insert(newer.identity.clone());
        done.insert(newer.at.as_path());
        let cause = "it was made after the checkpoint, as a further name of a file that was there; the name was removed, and the \
                     file has its others";
        cx.notes.push(note("rollback-aside", &newer.at, cause, "make it again with ln(1) when it is needed"));
    }
    Ok(done)
}

/// Names those that were written under a name that they had not at the checkpoint, and that do not come back; `known`: about
/// these names nothing more is to be said. Which files have come back.
pub(super) fn tell(
    cx: &mut Restore<'_>,
    since: &Since,
    index: Option<&Index<'_>>,
    known: &BTreeSet<PathBuf>,
) -> BTreeSet<Identity> {
    let Some(index) = index.filter(|index| !index.relinked.is_empty()) else { return BTreeSet::new() };
    let back: BTreeSet<Identity> =
        known.iter().filter_map(|path| at(path)).filter(|identity| index.relinked.contains(identity)).collect();
    let new: BTreeSet<&Identity> = since.newer.iter().map(|newer| &newer.identity).collect();
    for (path, identity) in since.relinked.iter().filter(|(_, identity)| !back.contains(identity)) {
        if new.contains(identity) && !cx.plan.unnamed.contains(identity) {
            // All its names are new.
            continue;
        }
        let Some((name, file)) = find(path, identity) else { continue };
        let stat = rustix::fs::fstat(&file);
        if stat.is_ok_and(|stat| stat.st_nlink > 0 && !reopen::is_open(cx, &stat)) && !since.written.contains(&name) {
            let cause = format!(
                "it was written after the checkpoint under a name that it had not then ({}), and the image does not hold it",
                path.display()
            );
            cx.notes.push(note("rollback-written", &name, cause, if name == *path { LOOK } else { KEEP }));
        }
    }
    back
}

/// A file, and a name of it: that one, if no other is known.
fn find(path: &Path, identity: &Identity) -> Option<(PathBuf, OwnedFd)> {
    let (kind, bytes) = identity.split_first_chunk::<4>()?;
    let handle = Handle { kind: i32::from_ne_bytes(*kind), bytes: bytes.to_vec() };
    let above = path.ancestors().skip(1).find_map(|above| route::directory(above).ok())?;
    let _turn = Turn::home().ok()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::open(data::door(&above), flags, Mode::empty()).ok()?;
    let file = handle::open(&mount, &handle, (OFlags::PATH | OFlags::NOFOLLOW).bits().cast_signed()).ok()?;
    let name = rustix::fs::readlink(data::door(&file), Vec::new()).ok();
    let name = name.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name.as_bytes())));
    let name = name.filter(|name| at(name).as_ref() == Some(identity));
    Some((name.unwrap_or_else(|| path.to_owned()), file))
}
