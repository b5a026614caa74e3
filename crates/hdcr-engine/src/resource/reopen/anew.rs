//! Files that a program only writes, and that are gone or shorter by the time of a roll-back: a log that it has closed, removed and
//! begun anew, one that somebody has cut.
//!
//! Nothing in the program depends on what such a file holds. So where the image does not hold its contents either, their loss is
//! told, and is no reason to lose the program as well.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use hdcr_image::hdcr_layout::{Mapping, tag};
use hdcr_image::{List, Record, Tag};
use rustix::fs::Stat;

use super::judge::is_another;
use crate::error::{Refusal, Result};
use crate::model::ObjectId;
use crate::resource::contents::{InodeRecord, Keep};
use crate::resource::regfile::RegFileRecord;
use crate::restore::StoredFrame;
use crate::rollback::since;
use crate::stored;

type Frames = BTreeMap<(u16, ObjectId), StoredFrame>;

/// Whether the program can go on with a file as it is found, or, if it is not, with a new one. What it writes by offsets must
/// not come into another file than its own, or over what somebody else has written there.
pub(super) fn goes_on(
    frames: &Frames,
    (id, record): (ObjectId, &InodeRecord),
    found: Option<(&OwnedFd, &Stat)>,
) -> Result<bool> {
    if record.keep() != Keep::Length || is_mapped(frames, id)? {
        return Ok(false);
    }
    let (mut written, mut appended) = (false, true);
    for open in stored::ids(frames, RegFileRecord::TAG) {
        let open = stored::one::<RegFileRecord>(frames, open)?;
        if open.leads_to(id) {
            if !open.only_writes() {
                return Ok(false);
            }
            written = true;
            appended &= open.appends();
        }
    }
    let shorter = |stat: &Stat| stat.st_size.cast_unsigned() < record.size;
    let is_its_own = found.is_none_or(|(file, stat)| shorter(stat) && !is_another(record, file, stat));
    Ok(written && (appended || is_its_own))
}

fn is_mapped(frames: &Frames, id: ObjectId) -> Result<bool> {
    for space in stored::ids(frames, Tag(tag::MAPPING)) {
        let List(mappings) = stored::one::<List<Mapping>>(frames, space)?;
        if mappings.iter().any(|mapping| mapping.object == id.0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is lost.
pub(super) fn note(path: &Path, cause: &str) -> Refusal {
    since::note(
        "rollback-lost",
        path,
        format!("{cause}; the program only writes it, and goes on"),
        "keep it with --files",
    )
}
