//! Room for a roll-back on a full disk: a file of some length beside the journal, made when the first checkpoint is, and
//! given up piece by piece for what has to be written when there is no other room.
//!
//! A job whose program has filled the disk must be brought back all the same. What a roll-back writes beside the files
//! themselves is the journal and what it keeps of them, and that goes when it ends: then the reserve is made whole again.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::{Newer, Planned, since};
use crate::error::{Error, Owner, Refusal, Result};

const NAME: &str = "rollback.reserve";

/// Some thousand entries of a journal, or a few short files.
const SIZE: u64 = 1 << 20;

/// Where there is little room in all.
const SMALL: u64 = 64 << 10;

/// A reserve takes at most this part of what is free.
const SHARE: u64 = 16;

/// For so many bytes at least it is given up at a time.
const PIECE: u64 = 16 << 10;

fn place(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

fn open(directory: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    options.read(true).write(true).create(create).truncate(false).mode(0o600).custom_flags(flags);
    options.open(place(directory))
}

/// Makes the reserve in a directory, or makes it whole again.
pub fn keep(directory: &Path) -> io::Result<()> {
    fill(&open(directory, true)?)
}

/// Whether a directory has one.
pub fn is_in(directory: &Path) -> bool {
    place(directory).symlink_metadata().is_ok()
}

/// Makes a reserve that has been given up whole again.
pub fn refill(directory: &Path) {
    if let Err(error) = open(directory, true).and_then(|file| fill(&file)) {
        tracing::debug!(%error, "the room for a roll-back is less than it was");
    }
}

fn fill(file: &File) -> io::Result<()> {
    let there = file.metadata()?.len();
    if there >= SIZE {
        return Ok(());
    }
    let disk = rustix::fs::fstatvfs(file)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let size = if free / SHARE >= SIZE { SIZE } else { SMALL };
    if there >= size {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), there, size - there) {
        // A file system that cannot promise room: what is written takes it.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            let zeros = vec![0; usize::try_from(size - there).unwrap_or_default()];
            let written = std::os::unix::fs::FileExt::write_all_at(file, &zeros, there);
            written.inspect_err(|_| drop(file.set_len(there)))
        }
        other => Ok(other?),
    }
}

/// Gives up so much of the reserve; `false` when there is nothing left to give up.
fn give_up(directory: &Path, bytes: u64) -> bool {
    let Ok(file) = open(directory, false) else { return false };
    let Ok(there) = file.metadata() else { return false };
    tracing::debug!(bytes, of = there.len(), "room for a roll-back is taken from the reserve");
    if there.len() > 0 {
        return file.set_len(there.len().saturating_sub(bytes.max(PIECE).next_multiple_of(PIECE))).is_ok();
    }
    // A new file may be what there is no room for.
    std::fs::remove_file(place(directory)).is_ok()
}

fn is_full(error: Option<i32>) -> bool {
    error.is_some_and(|code| [Errno::NOSPC, Errno::DQUOT].map(Errno::raw_os_error).contains(&code))
}

/// Writes something of about this length; where the disk is full, the reserve of a directory is given up for it.
pub fn with_room<T>(directory: &Path, bytes: u64, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match write() {
            Err(error) if is_full(error.raw_os_error()) && give_up(directory, bytes) => {}
            other => return other,
        }
    }
}

/// Likewise, for what is done by several calls, and may be begun anew.
pub(super) fn with_room_for<T>(directory: &Path, bytes: u64, mut write: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match write() {
            Err(error) if has_no_room(&error) && give_up(directory, bytes) => {}
            other => return other,
        }
    }
}

/// Whether something failed because a disk is full.
pub(super) fn has_no_room(error: &Error) -> bool {
    matches!(error, Error::System { source, .. } if is_full(source.raw_os_error()))
}

/// About the room that a part of a file takes.
pub(super) fn room_of(file: &rustix::fs::Stat, range: Range<u64>) -> u64 {
    let length = range.end.saturating_sub(range.start);
    length.min(file.st_blocks.cast_unsigned().saturating_mul(512))
}

/// There is no room for what an action takes away: up to where it is kept instead.
///
/// A program that has filled the disk by its output is rolled back all the same: what it has added since is its own,
/// and comes again. Everything else would be lost by a roll-back that fails.
pub(super) fn less(planned: &Planned, path: &Path, range: Range<u64>, place: &Path) -> Result<(u64, Refusal)> {
    let (bytes, kept) = (range.end - range.start, planned.action.size().max(range.start));
    if planned.newer == Newer::Go && kept < range.end {
        let cause = format!(
            "there was no room to keep the {} bytes that it has grown by since the checkpoint: they are gone, and \
             would be so had this roll-back failed",
            range.end - kept
        );
        return Ok((kept, since::note("rollback-no-room", path, cause, "")));
    }
    Err(Error::refuse(Refusal {
        code: "rollback-room",
        object: "file that is rolled back".to_owned(),
        owner: Owner { path: Some(path.to_owned()), ..Owner::default() },
        cause: format!("there is no room to keep its {bytes} bytes until the roll-back is over"),
        remedy: format!("free so much in {}", place.parent().unwrap_or(place).display()),
    }))
}

/// Gives it up for good.
pub fn forget(directory: &Path) {
    if let Err(error) = std::fs::remove_file(place(directory)) {
        tracing::debug!(%error, "no room was kept for a roll-back");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn kept(directory: &Path) -> u64 {
        place(directory).symlink_metadata().map_or(0, |there| there.blocks().saturating_mul(512))
    }

    #[test]
    fn it_is_given_up_piece_by_piece_and_made_whole_again() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        keep(at).unwrap();
        assert!(is_in(at));
        let whole = kept(at);
        assert!(whole >= SMALL, "{whole}");
        let full = || io::Error::from(Errno::NOSPC);
        let mut tries = 0_u64;
        let done = with_room(at, 1, || {
            tries += 1;
            if tries < 3 { Err(full()) } else { Ok(kept(at)) }
        });
        assert!(done.is_ok_and(|left| left < whole) && tries == 3);
        refill(at);
        // All of it, and then it is said that there is no room.
        let mut asked = 0;
        assert!(
            with_room(at, 10 * SIZE, || {
                asked += 1;
                Err::<(), _>(full())
            })
            .is_err()
        );
        assert!(asked == 3 && !is_in(at));
        assert!(with_room(at, 1, || Err::<(), _>(io::Error::from(Errno::ACCESS))).is_err());
        refill(at);
        assert_eq!(kept(at), whole);
    }
}
