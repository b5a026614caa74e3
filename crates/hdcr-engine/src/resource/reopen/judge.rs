//! What is to be done with a file that is there: by its record, and by what it is now. Looks only.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hdcr_image::Record;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::{anew, by_handle, gone, kind_of, look, no_regular_file, record_of, refuse, stat_of};
use crate::error::{Error, Refusal, Result};
use crate::model::ObjectId;
use crate::resource::contents::{self, InodeRecord, Keep, Life};
use crate::resource::{data, held, touched};
use crate::restore::{StoredFrame, mapped};
use crate::stored;

/// What is to be done with a file that is there.
pub(super) enum Verdict {
    Use,
    Contents,
    Cut,
    Edges,
    Refuse(&'static str, &'static str, &'static str),
}

/// What stands in the way of finding the files of an image as they are needed. Looks only.
pub(crate) fn obstacles(
    frames: &BTreeMap<(u16, ObjectId), StoredFrame>,
    map_path: &[(PathBuf, PathBuf)],
    stdio: &[OwnedFd],
) -> Result<Vec<Refusal>> {
    let mut found = Vec::new();
    let unheld = touched::listed(frames)?;
    for id in stored::ids(frames, InodeRecord::TAG).into_iter().filter(|id| !unheld.contains(&id.0)) {
        let record = record_of(frames, id)?;
        if kind_of(&record)?.0 == Life::Named {
            let path = mapped(map_path, &record.checked_path()?);
            match obstacle(frames, (id, &record), &path, stdio) {
                Err(Error::Refused(refusals)) => found.extend(refusals.0),
                other => other?,
            }
        }
    }
    Ok(found)
}

fn obstacle(
    frames: &BTreeMap<(u16, ObjectId), StoredFrame>,
    (id, record): (ObjectId, &InodeRecord),
    path: &Path,
    stdio: &[OwnedFd],
) -> Result<()> {
    let file = match look(path) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) if record.contents => return Ok(()),
        Err(Errno::NOENT | Errno::NOTDIR) if by_handle(record).is_some() => return Ok(()),
        Err(Errno::NOENT | Errno::NOTDIR) if anew::goes_on(frames, (id, record), None)? => return Ok(()),
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(gone(record)),
        Err(Errno::ACCESS) => held::out_of_reach(stdio, record, path)?,
        Err(Errno::LOOP) => held::through_links(record, path)?,
        Err(error) => return Err(Error::system("opening a file", path.display())(error)),
    };
    let stat = stat_of(&file, path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(no_regular_file(record));
    }
    let Verdict::Refuse(code, cause, remedy) = judge(record, &file, &stat, path)? else { return Ok(()) };
    let copy = record.contents && (record.stand_in || record.volatile);
    // One that was renamed, and not the very one that was judged.
    let is_other = |other: OwnedFd| rustix::fs::fstat(&other).is_ok_and(|other| !contents::same(&other, &stat));
    let goes_on =
        copy || by_handle(record).is_some_and(is_other) || anew::goes_on(frames, (id, record), Some((&file, &stat)))?;
    if goes_on { Ok(()) } else { Err(refuse(record, code, cause, remedy)) }
}

fn unchanged(record: &InodeRecord, stat: &Stat) -> bool {
    let times = (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    let before = (record.mtime, record.mtime_ns.into(), record.ctime, record.ctime_ns.into());
    stat.st_ino == record.inode
        && stat.st_dev == record.device
        && stat.st_size.cast_unsigned() == record.size
        && times == before
}

/// What is to be done with a file that lies where the record says.
pub(super) fn judge(record: &InodeRecord, file: &OwnedFd, stat: &Stat, path: &Path) -> Result<Verdict> {
    const KEEP: &str = "keep its contents with --files, or set its policy to ignore";
    const PUT_BACK: &str = "put the old one back (install that version again, or --map-path OLD=NEW to where it lies); for the \
                            next checkpoints keep its contents: with --files, or with a checkpoint in a store";
    let size = stat.st_size.cast_unsigned();
    match kind_of(record)?.1 {
        Keep::Contents if !record.mapped && unchanged(record, stat) => Ok(Verdict::Use),
        Keep::Contents => Ok(Verdict::Contents),
        // The image holds it, should it have been cut or written over.
        Keep::Length if record.contents && (size < record.size || !begins_as_it_did(record, file, path)?) => {
            Ok(Verdict::Contents)
        }
        Keep::Length if size < record.size => {
            Ok(Verdict::Refuse("file-shorter", "it is shorter than at the checkpoint", KEEP))
        }
        Keep::Length if digest_fits(record, file, path)? => {
            Ok(if size > record.size { Verdict::Cut } else { Verdict::Use })
        }
        // Something like a header was written over since: it is the same file when all else is as it was.
        Keep::Length if !is_another(record, file, stat) && middle_fits(record, file, path)? => Ok(Verdict::Edges),
        Keep::Length => Ok(Verdict::Refuse("file-replaced", "it does not begin as it did at the checkpoint", KEEP)),
        Keep::AsItIs => Ok(Verdict::Use),
        Keep::Unchanged => {
            let (mtime, nanoseconds) = (record.mtime, u64::from(record.mtime_ns));
            let dated = size == record.size && (stat.st_mtime, stat.st_mtime_nsec) == (mtime, nanoseconds);
            // A sample is enough to know the beginning of a file that has grown and the build of a program.
            let enough = !record.sampled || size > record.size || record.stand_in;
            // Packages give files the times of their builds, and some systems give all files the same: what is executed is looked at.
            let told = dated && (!record.text || record.digest.is_empty() || unchanged(record, stat));
            if told || (enough && size >= record.size && digest_fits(record, file, path)?) {
                return Ok(Verdict::Use);
            }
            if record.text {
                let cause = "it has changed since the checkpoint, and the program executes what it held";
                return Ok(Verdict::Refuse("file-changed", cause, PUT_BACK));
            }
            Ok(Verdict::Refuse("file-changed", "it has changed since the checkpoint, and the tree only reads it", KEEP))
        }
    }
}

fn digest_fits(record: &InodeRecord, file: &OwnedFd, path: &Path) -> Result<bool> {
    if record.digest.is_empty() {
        return Ok(false);
    }
    let reader = held::open(record, file, OFlags::RDONLY | OFlags::CLOEXEC)?;
    let now = if record.sampled {
        data::sample(&reader, record.size, path)?
    } else {
        data::digest(&reader, record.size, path)?
    };
    Ok(now == record.digest)
}

fn begins_as_it_did(record: &InodeRecord, file: &OwnedFd, path: &Path) -> Result<bool> {
    Ok(digest_fits(record, file, path)? && (record.middle.is_empty() || middle_is(record, file, path)?))
}

fn middle_fits(record: &InodeRecord, file: &OwnedFd, path: &Path) -> Result<bool> {
    Ok(record.edges && middle_is(record, file, path)?)
}

fn middle_is(record: &InodeRecord, file: &OwnedFd, path: &Path) -> Result<bool> {
    let reader = held::open(record, file, OFlags::RDONLY | OFlags::CLOEXEC)?;
    Ok(data::middle(&reader, record.size, path)? == record.middle)
}

/// Whether a file is not the very one of the record, and not a copy of it as it was. Handles tell apart also what was given
/// the same inode number later.
pub(super) fn is_another(record: &InodeRecord, file: &OwnedFd, stat: &Stat) -> bool {
    let copied = stat.st_size.cast_unsigned() == record.size
        && (stat.st_mtime, stat.st_mtime_nsec) == (record.mtime, record.mtime_ns.into());
    let handles = data::handle_of(file).filter(|_| !record.handle.is_empty());
    let same = handles.map(|(kind, bytes)| kind == record.handle_type && bytes == record.handle);
    !copied && !same.unwrap_or(stat.st_ino == record.inode)
}
