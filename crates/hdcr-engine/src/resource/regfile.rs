//! Open regular files, memfds among them: access mode, flags and offset; the inode itself is in [`super::contents`].
//!
//! Captured: path, access mode, status flags, offset, `O_PATH`; whether the name is gone. Not captured: read-ahead state,
//! error sequence counters. Needs: nothing; for files that this user may not open for reading, root.
//! Refused: files of file systems that are windows into the kernel (see [`refused_fs`]), secret and huge memory files.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use hdcr_image::{Record, Tag};
use hdcr_sys::kcmp::{self, Kind};
use rustix::fs::{AtFlags, FileType, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::contents::{self, Life, Met, Uses};
use super::keep::Case;
use super::clone::{self, Original};
use super::{FileKind, FileView, data, held, keep, reopen};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::restore::{Restore, SharedOutput};
use crate::survey::Survey;

pub(crate) struct RegFile;

/// What is kept of an open regular file.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RegFileRecord {
    /// The inode's object.
    #[prost(uint64, tag = "1")]
    pub(crate) inode: u64,
    #[prost(uint64, tag = "2")]
    offset: u64,
    #[prost(uint32, tag = "3")]
    flags: u32,
}

impl Record for RegFileRecord {
    const TAG: Tag = Tag(0x0211);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl RegFileRecord {
    /// Whether it was opened for writing, and leads to this inode.
    pub(crate) fn writes_to(&self, inode: ObjectId) -> bool {
        self.leads_to(inode) && writes(self.flags)
    }

    /// Whether it leads to an inode, whatever for.
    pub(crate) fn leads_to(&self, inode: ObjectId) -> bool {
        self.inode == inode.0
    }

    /// Whether it is for writing alone.
    pub(crate) fn only_writes(&self) -> bool {
        let access = OFlags::RWMODE.bits() | OFlags::PATH.bits();
        self.flags & access == OFlags::WRONLY.bits()
    }

    /// Whether all that it writes goes to the end.
    pub(crate) fn appends(&self) -> bool {
        self.flags & OFlags::APPEND.bits() != 0
    }
}

/// Access mode and flags that only `open(2)` can give.
pub(crate) const AT_OPEN: u32 =
    0o3 | OFlags::PATH.bits() | OFlags::DSYNC.bits() | OFlags::SYNC.bits() | OFlags::DIRECTORY.bits();

/// The flags of an open file as a word.
pub(crate) fn flags_of(view: &FileView) -> u32 {
    model::low32(view.info.flags) & !OFlags::CLOEXEC.bits()
}

/// Whether it was opened for writing.
fn writes(flags: u32) -> bool {
    flags & OFlags::PATH.bits() == 0 && flags & 0o3 != 0
}

/// How an open file uses its inode.
fn uses(flags: u32) -> Uses {
    let path_only = flags & OFlags::PATH.bits() != 0;
    let write = writes(flags);
    let read = !path_only && matches!(flags & 0o3, 0 | 2);
    Uses { write, overwrite: write && flags & OFlags::APPEND.bits() == 0, read, ..Uses::default() }
}

/// The same, with what can be told of where it writes: one that is open for writing alone, whose offset is at its end, is made
/// longer only. One that is open for reading as well is a store of something, and written with offsets of their own
/// (`pwrite(2)`), whatever its offset is.
fn uses_of(flags: u32, at_end: bool) -> Uses {
    let uses = uses(flags);
    Uses { in_place: uses.overwrite && (uses.read || !at_end), ..uses }
}

/// Whether the offset of a descriptor of a running program is at the end: the file may grow between two looks, and in the middle
/// of a write the length is ahead of the offset. A writer that has lost its processor there stays so until it has it again;
/// one that writes in place is refused a little later.
fn is_at_end(view: &FileView, door: &std::path::Path) -> bool {
    // Where it stands still nothing moves any more.
    let runs = crate::procfs::stat(view.pid).is_ok_and(|stat| !matches!(stat.state, b't' | b'T'));
    let looks: u32 = if runs { 14 } else { 1 };
    let pause = |look: u32| std::time::Duration::from_micros(100) * 2_u32.pow(look.min(8));
    (0..looks).any(|look| {
        if look > 0 {
            std::thread::sleep(pause(look));
        }
        seems_at_end(view, door)
    })
}

fn seems_at_end(view: &FileView, door: &std::path::Path) -> bool {
    let size = || rustix::fs::stat(door).map(|stat| stat.st_size.cast_unsigned());
    let (before, at, after) = (size(), crate::procfs::fd_info(view.pid, view.fd), size());
    match (before, at, after) {
        (Ok(before), Ok(info), Ok(after)) => (before..=after).contains(&info.pos),
        // It is gone; what counts is the look under the freeze.
        _ => true,
    }
}

impl FileKind for RegFile {
    type Record = RegFileRecord;

    fn claims(view: &FileView) -> bool {
        view.starts_with("/") && FileType::from_raw_mode(view.stat.st_mode) == FileType::RegularFile
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        let door = crate::procfs::path(view.pid, &format!("fd/{}", view.fd));
        if let Some((code, what)) = refused_fs(&door) {
            survey.refuse(view.refuse(
                code,
                what,
                "its state lies in the kernel, not in a file",
                "close it before the checkpoint",
            ));
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let must_read = (writes(flags_of(view)) || view.stat.st_nlink == 0) && !super::locks::leased(&view.info);
        // A descriptor that is closed while we look is not there: what counts is the look under the freeze.
        if must_read
            && let Err(error @ (Errno::ACCESS | Errno::PERM)) =
                rustix::fs::open(&door, flags, rustix::fs::Mode::empty())
        {
            let cause = format!("its contents cannot be kept: this user may not open it for reading ({error})");
            survey.refuse(view.refuse("file-unreadable", "regular file", &cause, "run hdcr as a user who may read it"));
        }
        large(survey, view);
        note_out_of_reach(survey, view);
        note_sealed(survey, view);
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<RegFileRecord> {
        let flags = flags_of(view);
        let stat = rustix::fs::fstat(file)
            .map_err(Error::system("looking at an open file", model::path_of(&view.link).display()))?;
        let owner = Owner { pid: Some(view.pid), fd: Some(view.fd), ..Owner::default() };
        let met = Met { link: &view.link, stat: &stat, door: Some(data::door(file)), owner };
        let inode = contents::note(cx, &met, uses_of(flags, view.info.pos == stat.st_size.cast_unsigned()));
        Ok(RegFileRecord { inode: inode.0, offset: view.info.pos, flags })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: RegFileRecord) -> Result<OwnedFd> {
        let _turn = cx.turn_of_holders(id)?;
        let inode = ObjectId(record.inode);
        let flags = OFlags::from_bits_retain(record.flags & AT_OPEN);
        let opened = reopen::open(cx, inode)?;
        let takes_it = opened.nameless
            && record.flags & OFlags::TMPFILE.bits() == OFlags::TMPFILE.bits()
            && record.flags & 0o3 == 2;
        let base = rustix::fs::fstat(&opened.base).map_err(Error::system("looking at a file", inode))?;
        let file = if takes_it {
            rustix::io::fcntl_dupfd_cloexec(&opened.base, 0)
                .map_err(Error::system("opening a file without a name", inode))?
        } else if let Some((number, output)) = shared_output(cx, id, &base, flags) {
            cx.shared_output.push(SharedOutput { number, id, offset: record.offset });
            return Ok(output);
        } else {
            reopen::open_anew(cx, inode, flags)?
        };
        if !flags.contains(OFlags::PATH) {
            rustix::fs::seek(&file, SeekFrom::Start(record.offset))
                .map_err(Error::system("setting a file's offset", inode))?;
        }
        Ok(file)
    }
}

/// By which number, 1 or 2, an open file is standard output or error. A shell has its own elsewhere while that of a command
/// leads to another file: as long as nothing else of the tree is an output there, it is either.
fn output_numbers(cx: &Restore<'_>, id: ObjectId) -> Option<Vec<usize>> {
    let held_as = |open: ObjectId| {
        let holders = cx.holders.get(&open).map(Vec::as_slice).unwrap_or_default();
        let has = move |number: &usize| holders.iter().any(|(_, fd)| usize::try_from(*fd) == Ok(*number));
        [1, 2].into_iter().filter(has).collect::<Vec<_>>()
    };
    let own = held_as(id);
    if !own.is_empty() {
        return Some(own);
    }
    let inode = cx.record::<RegFileRecord>(id).ok()?.inode;
    let others = crate::stored::ids(cx.frames, RegFileRecord::TAG).into_iter().filter(|open| *open != id);
    let mut others = others.filter(|open| !held_as(*open).is_empty());
    let is_output = others.any(|open| cx.record::<RegFileRecord>(open).is_ok_and(|other| other.inode == inode));
    Some(if is_output { Vec::new() } else { vec![1, 2] })
}

/// Standard output or error of the restoring command, when it leads to the same file (`hdcr run ... > log 2>&1`): both
/// then write at one offset, and neither overwrites what the other has said. Each is used for one open file only.
fn shared_output(cx: &Restore<'_>, id: ObjectId, base: &Stat, flags: OFlags) -> Option<(usize, OwnedFd)> {
    let fits = |number: &usize| {
        let output = cx.stdio.get(*number);
        output.is_some_and(|output| {
            rustix::fs::fcntl_getfl(output).is_ok_and(|now| now & OFlags::RWMODE == flags & OFlags::RWMODE)
                && rustix::fs::fstat(output).is_ok_and(|stat| contents::same(&stat, base))
        })
    };
    let fitting: Vec<usize> = [1, 2].into_iter().filter(fits).collect();
    // Of most open files nothing more is asked.
    if fitting.is_empty() || !writes(flags.bits()) {
        return None;
    }
    let numbers = output_numbers(cx, id)?.into_iter().filter(|number| fitting.contains(number));
    let own = std::process::id().cast_signed();
    let used = |cx: &Restore<'_>, output: &OwnedFd| {
        cx.shared_output.iter().filter_map(|shared| cx.stdio.get(shared.number)).any(|other| {
            let pair = Kind::File { a: other.as_raw_fd(), b: output.as_raw_fd() };
            kcmp::kcmp(own, own, pair).is_ok_and(std::cmp::Ordering::is_eq)
        })
    };
    for number in numbers {
        let output = cx.stdio.get(number)?;
        if !used(cx, output) {
            let file = rustix::io::fcntl_dupfd_cloexec(output, 3).ok()?;
            return Some((number, file));
        }
    }
    None
}

/// Says when this user can reach a file through the program's descriptor only.
fn note_out_of_reach(survey: &mut Survey<'_>, view: &FileView) {
    let hidden = rustix::fs::lstat(OsStr::from_bytes(&view.link)).is_err_and(|error| error == Errno::ACCESS);
    if hidden && view.stat.st_nlink > 0 {
        survey.note(view.refuse(
            "file-out-of-reach",
            "open file",
            "this user may not search the directory in which it lies; it is found again by a restore whose own standard \
             stream leads to it, or by root",
            "give the user the right to search that directory",
        ));
    }
}

/// Says of a written file that not even root could put it back.
fn note_sealed(survey: &mut Survey<'_>, view: &FileView) {
    let door = crate::procfs::path(view.pid, &format!("fd/{}", view.fd));
    if view.stat.st_nlink == 0 || !writes(flags_of(view)) || !held::is_sealed(&door, AtFlags::empty()) {
        return;
    }
    survey.note(view.refuse(
        "file-sealed",
        "written file",
        "it has the append-only or immutable attribute: a restore is refused as long as it has",
        "take it away before a restore (`chattr -a -i`)",
    ));
}

/// A file that is written in place and too large to be kept stands in the way; of one that seems to be written at its end
/// only, a user is told.
fn large(survey: &mut Survey<'_>, view: &FileView) {
    let (files, path) = (&survey.request.files, model::path_of(&view.link));
    let door = crate::procfs::path(view.pid, &format!("fd/{}", view.fd));
    // What is mapped from there as well is kept: that is known under the freeze only.
    if view.stat.st_nlink == 0 || data::path_on_tmpfs(&door) {
        return;
    }
    let flags = flags_of(view);
    let (uses, size) = (uses(flags), keep::stored(&view.stat));
    let seen = |in_place| Case { life: Life::Named, path: &path, size, uses: Uses { in_place, ..uses }, tmpfs: false };
    // Where it is asked for its offset at all.
    let matters = uses.overwrite && !uses.read && keep::beyond(&seen(true), files);
    let uses = uses_of(flags, !matters || is_at_end(view, &door));
    let seen = |in_place| Case { life: Life::Named, path: &path, size, uses: Uses { in_place, ..uses }, tmpfs: false };
    if keep::beyond(&seen(uses.in_place), files) {
        let original = Original { path: &path, room: size, overwritten: true, needed: true };
        if let Err(why) = clone::is_possible(survey, &door, original) {
            let owner = Owner { pid: Some(view.pid), fd: Some(view.fd), path: Some(path.clone()), ..Owner::default() };
            let refusal = keep::beyond_limit(owner, files.limit, why);
            survey.refuse(refusal);
        }
    } else if keep::beyond(&seen(uses.overwrite), files) {
        let original = Original { path: &path, room: size, overwritten: true, needed: false };
        if clone::is_possible(survey, &door, original).is_ok() {
            return;
        }
        let cause =
            "it is larger than the limit: a rollback cuts it back to its length, but what was overwritten stays";
        survey.note(view.refuse(
            "file-too-large",
            "written file",
            cause,
            "name it with --files, raise --file-limit, or have the checkpoints on its file system (--store) if that is one with \
             reflinks",
        ));
    }
}

/// Code and name of a kind of file system whose files are not data, by its magic number (`<linux/magic.h>`).
pub(crate) fn refused_fs(path: &std::path::Path) -> Option<(&'static str, &'static str)> {
    let magic = rustix::fs::statfs(path).map(|fs| data::magic(&fs)).ok()?;
    let name = match magic {
        0x9584_58f6 => return Some(("huge-page-file", "file of huge pages")),
        0x5345_434d => return Some(("secret-memory", "memory of memfd_secret")),
        0x1980_0202 => return Some(("message-queue", "POSIX message queue")),
        0x9fa0 => "file of proc outside of /proc",
        0x6265_6572 => "file of sysfs outside of /sys",
        0x6462_6720 => "file of debugfs",
        0x7472_6163 => "file of tracefs",
        0x7363_6673 => "file of securityfs",
        0x6265_6570 => "file of configfs",
        0xcafe_4a11 => "file of bpf",
        0xde5e_81e4 => "file of efivarfs",
        0x6165_676c => "file of pstore",
        0x4249_4e4d => "file of binfmt_misc",
        0x6573_5543 => "file of fusectl",
        0xf97c_ff8c => "file of selinuxfs",
        0x6e73_6673 => "namespace",
        0x5049_4446 => "process descriptor",
        0x0904_1934 => "anonymous inode",
        _ => return None,
    };
    Some(("pseudo-file", name))
}

/// A refusal for a mapping or a program rather than a descriptor.
pub(crate) fn refuse_path(code: &'static str, object: &str, owner: Owner, cause: &str, remedy: &str) -> Refusal {
    Refusal { code, object: object.to_owned(), owner, cause: cause.to_owned(), remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = RegFileRecord { inode: 3, offset: 1 << 40, flags: 0o102_001 };
        assert_eq!(RegFileRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }

    #[test]
    fn flags_tell_the_use() {
        let append = uses(0o1 | OFlags::APPEND.bits());
        assert!(append.write && !append.overwrite && !append.read);
        assert!(uses(0o2).overwrite && uses(0o2).read);
        assert_eq!(uses(OFlags::PATH.bits()), Uses::default());
        assert!(uses(0).read && !uses(0).write);
        let (writes, both) = (OFlags::WRONLY.bits(), OFlags::RDWR.bits());
        assert!(!uses_of(writes, true).in_place && uses_of(writes, false).in_place && uses_of(both, true).in_place);
        assert!(!uses_of(both | OFlags::APPEND.bits(), false).in_place);
    }
}
