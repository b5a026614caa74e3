//! Files that the tree has worked on and does not hold at the moment: whoever watches it knows their names.
//!
//! Captured as if the tree held them: contents when small, as far as the room for all of them goes, else the length. A
//! restore brings back those that were changed since, and only names what cannot come back.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use hdcr_image::{Record, Tag};
use rustix::fs::FileType;

use super::contents::{self, InodeRecord, Met, Uses};
use super::reopen;
use crate::capture::Capture;
use crate::error::{Error, Owner, Result};
use crate::model::{self, ObjectId};
use crate::restore::{Restore, StoredFrame};
use crate::rollback::since::{self, Index};
use crate::stored;

/// The list of such files; one in an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TouchedRecord {
    /// Their objects.
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
}

impl Record for TouchedRecord {
    const TAG: Tag = Tag(0x021a);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The object under which the list is stored.
const TOUCHED: ObjectId = ObjectId(0);

/// Notes the files that were handed over, the latest first.
pub(crate) fn note(cx: &mut Capture<'_>) {
    let request = cx.request;
    for path in &request.files.touched {
        let Ok(stat) = rustix::fs::lstat(path) else { continue };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        let owner = Owner { path: Some(path.clone()), ..Owner::default() };
        let met = Met { link: path.as_os_str().as_bytes(), stat: &stat, door: Some(path.clone()), owner };
        contents::note(cx, &met, Uses { touched: true, ..Uses::default() });
    }
}

/// What is said of one of which the image holds its length, its head and its tail.
const BEYOND: &str = "it was written after the checkpoint, and is larger than what is kept of such files: its length, its head and \
     its tail are as they were, and what was written over between them stays";

/// Stores which of the objects are such files.
pub(super) fn list(cx: &mut Capture<'_>, ids: Vec<u64>) -> Result<()> {
    if ids.is_empty() { Ok(()) } else { cx.frame(TOUCHED, &TouchedRecord { ids }) }
}

/// The objects of such files: what stands in their way stands in nobody else's.
pub(crate) fn listed(frames: &BTreeMap<(u16, ObjectId), StoredFrame>) -> Result<BTreeSet<u64>> {
    if !frames.contains_key(&(TouchedRecord::TAG.0, TOUCHED)) {
        return Ok(BTreeSet::new());
    }
    Ok(stored::one::<TouchedRecord>(frames, TOUCHED)?.ids.into_iter().collect())
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
    for id in cx.record::<TouchedRecord>(TOUCHED)?.ids.into_iter().map(ObjectId) {
        let record = cx.record::<InodeRecord>(id)?;
        let path = cx.mapped(&record.checked_path()?);
        if since.is_some_and(|since| since.is_doubtful(&path) || !since.concerns(&path)) {
            known.insert(path);
            continue;
        }
        cx.contents.goes_on();
        let _turn = reopen::turn_of_user(cx, id)?;
        match reopen::unheld(cx, id) {
            Ok(()) if record.edges && since.is_some_and(|since| since.has_changed(&path)) => {
                cx.notes.push(since::note(
                    "rollback-written",
                    &path,
                    BEYOND,
                    "keep it with --files, or raise --file-limit",
                ));
            }
            Ok(()) => {}
            Err(Error::Refused(refusals)) => cx.notes.extend(refusals.0),
            Err(error) => return Err(error),
        }
        known.insert(path);
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back() {
        let record = TouchedRecord { ids: vec![1, 7] };
        assert_eq!(TouchedRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
