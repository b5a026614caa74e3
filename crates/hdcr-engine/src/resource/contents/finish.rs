//! The records of all inodes of a capture, made at its end: what is kept of each.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::Stat;

use super::{InodeRecord, Keep, Life, ParentDirectory, Pending, Uses, facts};
use crate::capture::Capture;
use crate::checkpoint::FilePolicy;
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::resource::clone::{self, NoClone, Original};
use crate::resource::keep::{self, Case, Decision, Rooms, decide, volatile};
use crate::resource::late::LateFile;
use crate::resource::windows::{self, keep_windows};
use crate::resource::{data, names, patient, touched};

/// Makes the records of all inodes that were noted, and stores the contents that are kept. Called once, at the end of a
/// capture.
pub(crate) fn finish(cx: &mut Capture<'_>) -> Result<()> {
    let mut rooms = Rooms::new(cx.request.files.limit);
    let mut worked_on = Vec::new();
    let mut all: Vec<_> = std::mem::take(&mut cx.inodes.pending).into_iter().collect();
    // Those that are needed most take the room for clones first.
    all.sort_by_key(|(_, pending)| !pending.uses.in_place);
    for (id, mut pending) in all {
        pending.file = pending.file.take().or_else(|| pending.opened());
        if pending.uses.touched {
            // One that cannot be read is as if it was not handed over: the tree does not need it now.
            if pending.file.is_none() && pending.uses == (Uses { touched: true, ..Uses::default() }) {
                continue;
            }
            worked_on.push(id.0);
        }
        let record = record(cx, id, &mut pending, &mut rooms)?;
        cx.frame(id, &record)?;
    }
    worked_on.sort_unstable();
    names::list(cx)?;
    touched::list(cx, worked_on)
}

/// Whether a file changed so short a time ago that a next change could leave the same times behind: before Linux 6.13 the
/// kernel's clock for files moves in ticks of up to 10 ms (`current_time` in fs/inode.c).
fn just_changed(stat: &Stat) -> bool {
    const TICKS_NS: i64 = 30_000_000;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let changed = i64::try_from(stat.st_ctime_nsec).unwrap_or(0);
    let age = (now.tv_sec - stat.st_ctime).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec - changed);
    age < TICKS_NS
}

fn record(cx: &mut Capture<'_>, id: ObjectId, pending: &mut Pending, rooms: &mut Rooms) -> Result<InodeRecord> {
    let stat = pending.file.as_ref().and_then(|file| rustix::fs::fstat(file).ok()).or(pending.stat);
    pending.stat = stat;
    let path = model::path_of(&pending.path);
    let tmpfs = pending.file.as_ref().is_some_and(data::on_tmpfs);
    let size = stat.map_or(0, |stat| stat.st_size.cast_unsigned());
    let room = stat.as_ref().map_or(size, keep::stored);
    let case = Case { life: pending.life, path: &path, size: room, uses: pending.uses, tmpfs };
    let decided = decide(&case, &cx.request.files, rooms);
    let length = length_of_clone(cx, id, pending, &case, decided)?;
    pending.cloned = length.is_some();
    let Decision { keep, contents } = if pending.cloned { decided.with_clone(pending.uses) } else { decided };
    let mut record = InodeRecord {
        path: pending.path.clone(),
        life: pending.life.into(),
        keep: keep.into(),
        size: length.unwrap_or(size),
        contents,
        stand_in: pending.uses.program && !pending.uses.write,
        text: pending.uses.is_text(),
        volatile: volatile(&path, tmpfs),
        mapped: pending.uses.shared_write || stat.as_ref().is_some_and(just_changed),
        ..stat.as_ref().map(facts).unwrap_or_default()
    };
    if let (Life::Elsewhere, Some(stat)) = (pending.life, &stat) {
        record.later_path =
            data::name_of(&path, stat).map(|found| found.into_os_string().into_vec()).unwrap_or_default();
    }
    if matches!(pending.life, Life::Named | Life::Elsewhere) && record.volatile {
        record.parents = parents(&path);
    }
    if pending.file.is_some() {
        keep_file(cx, id, pending, &mut record)?;
    } else if pending.life == Life::Anonymous {
        record.size = keep_windows(cx, id, &pending.windows)?;
    } else if !pending.windows.is_empty() {
        // Who owns it is not known, nor its mode: it is only executed, and read.
        (record.mode, record.keep, record.contents) = (0o100_555, Keep::Contents.into(), true);
        record.size = windows::keep_seen(cx, id, &pending.windows)?;
    } else if contents {
        return Err(Error::refuse(unreadable(pending)));
    }
    Ok(record)
}

/// Clones a file if that is how its contents are to be kept; its length. One without which a roll-back would go wrong is refused
/// when that cannot be.
fn length_of_clone(
    cx: &mut Capture<'_>,
    id: ObjectId,
    pending: &Pending,
    case: &Case<'_>,
    decided: Decision,
) -> Result<Option<u64>> {
    let needed = keep::beyond(case, &cx.request.files);
    let overwritten = case.uses.overwrite || case.uses.touched && !case.uses.write;
    let original = Original { path: case.path, room: case.size, overwritten, needed };
    let may_be = keep::may_be_cloned(case, decided, &cx.request.files);
    let cloned = match pending.file.as_ref().filter(|_| may_be) {
        Some(file) => clone::take(cx, id, file, original),
        None => Err(NoClone::Impossible),
    };
    match cloned {
        Err(why) if needed => {
            let owner = Owner { path: Some(case.path.to_owned()), ..pending.owner.clone() };
            Err(Error::refuse(keep::beyond_limit(owner, cx.request.files.limit, why)))
        }
        other => Ok(other.ok()),
    }
}

/// Keeps what is to be kept of an open file.
fn keep_file(cx: &mut Capture<'_>, id: ObjectId, pending: &Pending, record: &mut InodeRecord) -> Result<()> {
    let Some(file) = pending.file.as_ref() else { return Ok(()) };
    if pending.life == Life::Memfd {
        record.seals = rustix::fs::fcntl_get_seals(file).map_or(0, |seals| seals.bits());
    }
    let named = matches!(pending.life, Life::Named | Life::Elsewhere);
    if let Some((kind, bytes)) = named.then(|| data::handle_of(file)).flatten() {
        (record.handle_type, record.handle) = (kind, bytes);
    }
    match record.keep() {
        Keep::Unchanged => {
            let held = !pending.uses.only_by_name();
            let late = late(cx, id, pending, held, record)?;
            cx.late.push(late);
            record.contents = false;
        }
        Keep::Contents if record.contents && !pending.cloned && !is_as_before(cx, id, pending, file) => {
            let (subject, by) = (model::path_of(&pending.path), cx.request.by);
            patient::read(file, record.size, &subject, by, &mut |offset, bytes| cx.content(id, offset, bytes))?;
        }
        Keep::Length => keep_length(cx, id, pending, file, record)?,
        Keep::Contents | Keep::AsItIs => {}
    }
    Ok(())
}

/// One that is read when the tree runs again.
fn late(cx: &Capture<'_>, id: ObjectId, pending: &Pending, held: bool, record: &InodeRecord) -> Result<LateFile> {
    let path = model::path_of(&pending.path);
    let file = pending.file.as_ref().filter(|_| held).map(OwnedFd::try_clone).transpose();
    let file = file.map_err(Error::system("duplicating a descriptor", path.display()))?;
    let stat = pending.stat.ok_or_else(|| Error::Unsound(format!("{}: nothing is known of it", path.display())))?;
    let (contents, shared, by) = (record.contents, pending.uses.shared, cx.request.by);
    let in_common = keep::is_common(pending.uses, &path, record.size)
        && keep::policy_of(&cx.request.files, &path) != FilePolicy::Verify;
    Ok(LateFile { id, file, path, stat, contents, in_common, shared, begins: None, by })
}

/// Keeps what shows whether a file begins as it did, and of its contents what there is time and room for.
fn keep_length(
    cx: &mut Capture<'_>,
    id: ObjectId,
    pending: &Pending,
    file: &OwnedFd,
    record: &mut InodeRecord,
) -> Result<()> {
    let (subject, by, size) = (model::path_of(&pending.path), cx.request.by, record.size);
    (record.sampled, record.digest) = (true, patient::look(data::sample, (file, size, &subject), by)?);
    record.edges = !record.contents && (pending.uses.overwrite || pending.uses.touched) && size > 0;
    if record.edges || record.contents {
        record.middle = patient::look(data::middle, (file, size, &subject), by)?;
    }
    if record.contents && !pending.cloned {
        // What it holds now stays, whatever is written behind it: there is time for it when the tree runs again.
        let mut late = late(cx, id, pending, true, record)?;
        late.begins = Some((record.digest.clone(), record.middle.clone()));
        cx.late.push(late);
        record.contents = false;
    }
    if record.edges {
        patient::edges(file, size, &subject, by, &mut |offset, bytes| cx.content(id, offset, bytes))?;
    }
    Ok(())
}

/// Whether the image before holds these contents.
fn is_as_before(cx: &mut Capture<'_>, id: ObjectId, pending: &Pending, file: &OwnedFd) -> bool {
    let judged = matches!(pending.life, Life::Named | Life::Elsewhere) && !pending.uses.shared && !data::on_tmpfs(file);
    let stat = if judged { rustix::fs::fstat(file).ok() } else { None };
    stat.is_some_and(|stat| cx.unchanged.takes(id, file, &stat))
}

fn parents(path: &Path) -> Vec<ParentDirectory> {
    let mut found: Vec<_> = path.ancestors().skip(1).filter_map(|directory| rustix::fs::stat(directory).ok()).collect();
    found.reverse();
    found.iter().map(|stat| ParentDirectory { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid }).collect()
}

fn unreadable(pending: &Pending) -> Refusal {
    Refusal {
        code: "file-unreadable",
        object: "file whose contents must be kept".to_owned(),
        owner: Owner { path: Some(model::path_of(&pending.path)), ..pending.owner.clone() },
        cause: "this user may not open it for reading".to_owned(),
        remedy: "run hdcr as a user who may read it, or set the policy of the file to verify or ignore".to_owned(),
    }
}
