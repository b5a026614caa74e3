//! Files that the tree has worked on and does not hold at the moment: whoever watches it knows their names.
//!
//! Captured as if the tree held them: contents when small, as far as the room for all of them goes, else the length. A
//! restore brings back those that were changed since, and only names what cannot come back.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use hdcr_image::{Record, Tag};
use rustix::fs::{AtFlags, CWD, FileType};

use super::contents::{self, InodeRecord, Life, Met, Uses};
use super::{data, held, names, reopen};
use crate::capture::Capture;
use crate::error::{Error, Owner, Result};
use crate::model::{self, ObjectId};
use crate::restore::{Restore, StoredFrame};
use crate::rollback::Witness;
use crate::rollback::since::{self, Index};
use crate::route;
use crate::stored;

/// The list of such files; one in an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TouchedRecord {
    /// Their objects.
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
    /// Their further names (hard links).
    #[prost(message, repeated, tag = "2")]
    pub(crate) second_names: Vec<SecondName>,
}

/// A further name of a file.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SecondName {
    /// Its object.
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// The path.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) path: Vec<u8>,
}

impl Record for TouchedRecord {
    const TAG: Tag = Tag(0x021a);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The object under which the list is stored.
const TOUCHED: ObjectId = ObjectId(0);

/// Notes the files that were handed over, the latest first.
pub(crate) fn note(cx: &mut Capture<'_>, touched: &[PathBuf]) {
    for path in touched {
        let Ok(stat) = rustix::fs::lstat(path) else { continue };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            names::note(cx, path, &stat, false);
            continue;
        }
        let owner = Owner { path: Some(path.clone()), ..Owner::default() };
        let met = Met { link: path.as_os_str().as_bytes(), stat: &stat, door: Some(path.clone()), owner };
        let id = contents::note(cx, &met, Uses { touched: true, ..Uses::default() });
        if stat.st_nlink > 1 && contents::has_other_name(cx, id, path) {
            cx.inodes.second_names.push((id, path.clone()));
        }
    }
}

/// What is said of one of which the image holds its length, its head and its tail.
const BEYOND: &str = "it was written after the checkpoint, and is larger than what is kept of such files: its length, its head and \
     its tail are as they were, and what was written over between them stays";

/// Stores which of the objects are such files.
pub(super) fn list(cx: &mut Capture<'_>, ids: Vec<u64>) -> Result<()> {
    let listed: BTreeSet<u64> = ids.iter().copied().collect();
    let names = std::mem::take(&mut cx.inodes.second_names).into_iter().filter(|(id, _)| listed.contains(&id.0));
    let name = |(id, path): (ObjectId, PathBuf)| SecondName { id: id.0, path: path.into_os_string().into_vec() };
    let second_names = names.map(name).collect();
    if ids.is_empty() { Ok(()) } else { cx.frame(TOUCHED, &TouchedRecord { ids, second_names }) }
}

/// The objects of such files: what stands in their way stands in nobody else's.
pub(crate) fn listed(frames: &BTreeMap<(u16, ObjectId), StoredFrame>) -> Result<BTreeSet<u64>> {
    if !frames.contains_key(&(TouchedRecord::TAG.0, TOUCHED)) {
        return Ok(BTreeSet::new());
    }
    Ok(stored::one::<TouchedRecord>(frames, TOUCHED)?.ids.into_iter().collect())
}

/// The names of such files now, as far as they can be read: whoever goes on watching has to know them.
pub(crate) fn names(cx: &Restore<'_>) -> Vec<PathBuf> {
    if !cx.has::<TouchedRecord>(TOUCHED) {
        return Vec::new();
    }
    let Ok(listed) = cx.record::<TouchedRecord>(TOUCHED) else { return Vec::new() };
    let first =
        listed.ids.into_iter().filter_map(|id| cx.record::<InodeRecord>(ObjectId(id)).ok()?.checked_path().ok());
    let second = listed.second_names.iter().filter_map(|name| contents::checked_path(&name.path).ok());
    first.chain(second).map(|path| cx.mapped(&path)).collect()
}

/// Brings back those that were changed since; without a watch those that are not as they were. Returns the paths about
/// which nothing more is to be said.
pub(crate) fn restore(cx: &mut Restore<'_>, since: Option<&Index<'_>>) -> Result<BTreeSet<PathBuf>> {
    let mut known = BTreeSet::new();
    for id in cx.inodes.ids() {
        known.insert(cx.mapped(&model::path_of(&cx.record::<InodeRecord>(id)?.path)));
    }
    if !cx.has::<TouchedRecord>(TOUCHED) {
        return Ok(known);
    }
    let listed = cx.record::<TouchedRecord>(TOUCHED)?;
    let mut others: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for SecondName { id, path } in &listed.second_names {
        others.entry(*id).or_default().push(cx.mapped(&contents::checked_path(path)?));
    }
    let (mut brought, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for id in listed.ids.into_iter().map(ObjectId) {
        let record = cx.record::<InodeRecord>(id)?;
        let path = cx.mapped(&record.checked_path()?);
        let others = others.get(&id.0).map_or(&[][..], Vec::as_slice);
        // What was written under one name is under all of them.
        let concerns = |since: &Index<'_>| since.concerns(&path) || others.iter().any(|other| since.concerns(other));
        if since.is_some_and(|since| since.is_doubtful(&path) || !concerns(since)) {
            known.insert(path);
            continue;
        }
        cx.contents.goes_on();
        let _turn = reopen::turn_of_user(cx, id)?;
        if let Some(since) = since.filter(|_| !others.is_empty()) {
            first_name(cx, (&record, &path), others, since)?;
        }
        match reopen::unheld(cx, id) {
            Ok(()) if record.edges && since.is_some_and(|since| since.has_changed(&path)) => {
                cx.notes.push(since::note(
                    "rollback-written",
                    &path,
                    BEYOND,
                    "keep it with --files, raise --file-limit, or have the checkpoints on its file system if that has reflinks",
                ));
            }
            Ok(()) => {}
            Err(Error::Refused(refusals)) => {
                cx.notes.extend(refusals.0);
                refused.insert(id);
            }
            Err(error) => return Err(error),
        }
        brought.insert(id);
        known.insert(path);
    }
    let (names, made) = (listed.second_names, cx.plan.to_be_placed());
    let made = made.filter(|_| !names.is_empty()).map(|(path, from)| (path.to_owned(), from.to_owned())).collect();
    for SecondName { id, path } in names {
        let (id, path) = (ObjectId(id), cx.mapped(&contents::checked_path(&path)?));
        let Some(since) = since else { continue };
        let is_back = brought.contains(&id) && !refused.contains(&id);
        if since.is_doubtful(&path) || !since.concerns(&path) || second_name(cx, (id, &path), is_back, &made)? {
            known.insert(path);
        }
    }
    Ok(known)
}

/// Gives a file that is held, and whose name is free, that name again if it still lies under another one.
pub(super) fn named_again(
    cx: &mut Restore<'_>,
    id: ObjectId,
    record: &InodeRecord,
    first: &Path,
) -> Result<Option<OwnedFd>> {
    if !cx.has::<TouchedRecord>(TOUCHED) {
        return Ok(None);
    }
    let names = cx.record::<TouchedRecord>(TOUCHED)?.second_names.into_iter().filter(|name| name.id == id.0);
    for SecondName { path, .. } in names {
        let other = cx.mapped(&contents::checked_path(&path)?);
        let Ok(file) = reopen::look(&other) else { continue };
        let Ok((above, name)) = route::place(first) else { continue };
        if !held::is_the_one(record, &file) {
            continue;
        }
        cx.plan.will_link(first, Witness::of(&file, &other)?)?;
        if rustix::fs::linkat(CWD, data::door(&file), &above, name, AtFlags::SYMLINK_FOLLOW).is_ok() {
            return Ok(reopen::look(first).ok());
        }
    }
    Ok(None)
}

/// Gives a file its first name again if that is gone and it still has another: it is the same file then.
fn first_name(
    cx: &mut Restore<'_>,
    (record, first): (&InodeRecord, &Path),
    others: &[PathBuf],
    since: &Index<'_>,
) -> Result<()> {
    let Ok((above, name)) = route::place(first) else { return Ok(()) };
    if !matches!(rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW), Err(rustix::io::Errno::NOENT)) {
        return Ok(());
    }
    for other in others.iter().filter(|other| !since.is_doubtful(other)) {
        let Ok(file) = reopen::look(other) else { continue };
        let stat = rustix::fs::fstat(&file).map_err(Error::system("looking at a file", other.display()))?;
        // It is another one by now when an earlier roll-back has made it anew.
        let is_it = (stat.st_dev, stat.st_ino) == (record.device, record.inode) || !since.concerns(other);
        if is_it && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            cx.plan.will_link(first, Witness::of(&file, other)?)?;
            rustix::fs::linkat(CWD, data::door(&file), &above, name, AtFlags::SYMLINK_FOLLOW).ok();
            return Ok(());
        }
    }
    Ok(())
}

/// Gives a file a further name again that was removed, or that another file has got, since the checkpoint. Whether it has
/// it now. One that was made anew is elsewhere until the end, when it gets its first name. `is_back`: what lies at its first name,
/// or will, is from the image.
fn second_name(
    cx: &mut Restore<'_>,
    (id, path): (ObjectId, &Path),
    is_back: bool,
    made: &BTreeMap<PathBuf, PathBuf>,
) -> Result<bool> {
    let record = cx.record::<InodeRecord>(id)?;
    let first = cx.mapped(&record.checked_path()?);
    let _turn = reopen::turn_of_user(cx, id)?;
    let made = made.get(&first);
    let Ok(file) = reopen::look(made.unwrap_or(&first)) else { return Ok(false) };
    let stat = rustix::fs::fstat(&file).map_err(Error::system("looking at a file", first.display()))?;
    let Ok((above, name)) = route::place(path) else { return Ok(false) };
    let there = rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW);
    if let Ok(there) = there {
        return Ok(contents::same(&there, &stat));
    }
    // What has its first name is it, or has its contents by now.
    let ours = (stat.st_dev, stat.st_ino) == (record.device, record.inode) || is_back;
    if !ours
        || reopen::kind_of(&record)?.0 != Life::Named
        || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
    {
        return Ok(false);
    }
    let witness = Witness::of(&file, path)?;
    match made {
        // Should it be undone, its first name goes first.
        Some(_) => cx.plan.will_make(path, Some(witness))?,
        None => cx.plan.will_link(path, witness)?,
    }
    Ok(rustix::fs::linkat(CWD, data::door(&file), &above, name, AtFlags::SYMLINK_FOLLOW).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back() {
        let record = TouchedRecord { ids: vec![1, 7], second_names: vec![SecondName { id: 7, path: b"/x".to_vec() }] };
        assert_eq!(TouchedRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
