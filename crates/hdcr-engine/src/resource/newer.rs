//! What a roll-back takes from the end of a file that others may have written to as well: a log that several programs
//! append to.
//!
//! The program's own lines come again; those of the others would be lost. Who has written what cannot be told from the
//! file. So what is cut off a file that is only appended to, or that somebody else is known to have written, is kept, and
//! the user is told where. So is what is cut off a standard output, which a shell may have given to its other commands as
//! well. A file that the program alone is known to write, at offsets of its own, is not kept.

use std::path::Path;

use hdcr_image::Record;
use rustix::fs::Stat;

use super::contents::InodeRecord;
use super::regfile::RegFileRecord;
use crate::error::Result;
use crate::model::ObjectId;
use crate::restore::Restore;
use crate::rollback::{Newer, since};
use crate::stored;

/// What becomes of the bytes of a file behind its length at the checkpoint.
pub(super) fn of(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord, path: &Path, now: &Stat) -> Result<Newer> {
    let grown = now.st_size.cast_unsigned().saturating_sub(record.size);
    // Nobody has watched who has written what the tree does not hold.
    let unknown = cx.unheld && !cx.watched;
    if grown == 0 || !(unknown || shared(cx, id)? || cx.foreign.contains(path)) {
        return Ok(Newer::Go);
    }
    Ok(kept(cx, path, grown))
}

/// What a file has grown by is kept, and that is said.
pub(crate) fn kept(cx: &mut Restore<'_>, path: &Path, grown: u64) -> Newer {
    let Some(place) = cx.plan.place_of_newer(path) else { return Newer::Go };
    let cause = format!(
        "it was cut back; the {grown} bytes that were written since the checkpoint, by whoever, are in {}",
        place.display()
    );
    cx.notes.push(since::note("rollback-cut", path, cause, ""));
    Newer::Stay(place)
}

/// What becomes of what a file holds that is only written at its end, and was cut or written over since: of all of it.
pub(super) fn of_rewritten(cx: &mut Restore<'_>, id: ObjectId, path: &Path, now: &Stat) -> Result<Newer> {
    let unknown = cx.unheld && !cx.watched;
    if now.st_size == 0 || !(unknown || shared(cx, id)? || cx.foreign.contains(path)) {
        return Ok(Newer::Go);
    }
    let Some(place) = cx.plan.place_of_newer(path) else { return Ok(Newer::Go) };
    let cause =
        format!("it was cut or written over since the checkpoint; what it held by now is in {}", place.display());
    cx.notes.push(since::note("rollback-cut", path, cause, ""));
    Ok(Newer::Stay(place))
}

/// What becomes of another file that now lies where one that the tree holds was, and is to get its contents: all is kept.
pub(super) fn of_another(cx: &mut Restore<'_>, path: &Path) -> Newer {
    let Some(place) = cx.plan.place_of_newer(path) else { return Newer::Go };
    let cause = format!("another file lay at its path; what it held is in {}", place.display());
    cx.notes.push(since::note("rollback-replaced", path, cause, ""));
    Newer::Stay(place)
}

/// Whether the program only appends to a file, as programs do that share it with others, or has it as standard output or
/// error (`script > log 2>&1` gives it to all commands of the script).
fn shared(cx: &Restore<'_>, id: ObjectId) -> Result<bool> {
    let (mut written, mut appended) = (false, true);
    for open in stored::ids(cx.frames, RegFileRecord::TAG) {
        let record = stored::one::<RegFileRecord>(cx.frames, open)?;
        if record.writes_to(id) {
            let holders = cx.holders.get(&open).map(Vec::as_slice).unwrap_or_default();
            if holders.iter().any(|(_, number)| matches!(number, 1 | 2)) {
                return Ok(true);
            }
            written = true;
            appended &= record.appends();
        }
    }
    Ok(written && appended)
}
